//! What can go wrong in a command, and the one place where it becomes an exit code.
//!
//! The codes are a contract (docs/cli.md): scripts branch on them.

use std::fmt;
use std::process::ExitCode;

use sealift_common::restore::RestoreError;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything that was asked for was done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line, or a file it names, is not as it must be.
    Usage = 2,
    /// Done, but something is missing from it.
    Partial = 3,
    /// What was named does not exist.
    NotFound = 4,
    /// The coordinator does not permit it.
    Refused = 5,
    /// The coordinator, the store or the database cannot be reached.
    Unreachable = 6,
    /// Stored bytes are not what was once written, or not what they claim to be.
    Verification = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The coordinator answered with an error.
    #[error("cannot {doing}: {}", status.message())]
    Coordinator {
        /// What was asked for, after "cannot".
        doing: &'static str,
        /// The answer.
        status: Box<tonic::Status>,
    },
    /// Restoring failed.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Anything that was found out on this machine.
    #[error("{message}")]
    Local {
        /// How the process ends.
        exit: Exit,
        /// One line: what is wrong, and what to do about it.
        message: String,
        /// What lies beneath.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// The result of a command: how the process ends, or why it could not do its work.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this machine, without a deeper cause.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self::Local { exit, message: message.to_string(), source: None }
    }

    /// The command line, or a file it names, is not as it must be.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// It failed, without a deeper cause.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// How the process ends because of this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Coordinator { status, .. } => exit_of_code(status.code()),
            Self::Restore(error) => exit_of_restore(error),
            Self::Local { exit, .. } => *exit,
        }
    }
}

/// Turns an error of this machine into an [`Error`], saying what was being done: `.map_err(because(Exit::Failed, "cannot …"))`.
pub fn because<E>(exit: Exit, message: impl fmt::Display) -> impl FnOnce(E) -> Error
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| Error::Local { exit, message: message.to_string(), source: Some(source.into()) }
}

/// Turns a coordinator's answer into an [`Error`]: `.map_err(said("list tokens"))`.
pub fn said(doing: &'static str) -> impl Fn(tonic::Status) -> Error {
    move |status| Error::Coordinator { doing, status: Box::new(status) }
}

fn exit_of_code(code: tonic::Code) -> Exit {
    use tonic::Code;
    match code {
        Code::Ok => Exit::Done,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => Exit::Refused,
        Code::Unavailable | Code::DeadlineExceeded => Exit::Unreachable,
        Code::DataLoss => Exit::Verification,
        Code::Cancelled
        | Code::Unknown
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal => Exit::Failed,
    }
}

fn exit_of_restore(error: &RestoreError) -> Exit {
    use sealift_common::restore::Class;
    match error.class() {
        Class::Untrusted => Exit::Verification,
        Class::NotFound => Exit::NotFound,
        Class::Unreachable => Exit::Unreachable,
        Class::Refused => Exit::Refused,
        Class::Usage => Exit::Usage,
        Class::Failed => Exit::Failed,
    }
}

/// [`chain`] of an [`Error`].
pub fn chain_of(error: &Error) -> String {
    chain(error)
}

/// The error and everything beneath it, on one line; a cause that only repeats what was said before is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let line = inner.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = inner.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_code_has_its_exit_code() {
        let expected = [
            (0, 0),
            (1, 1),
            (2, 1),
            (3, 2),
            (4, 6),
            (5, 4),
            (6, 1),
            (7, 5),
            (8, 1),
            (9, 1),
            (10, 1),
            (11, 2),
            (12, 1),
            (13, 1),
            (14, 6),
            (15, 7),
            (16, 5),
        ];
        for (code, exit) in expected {
            assert_eq!(exit_of_code(tonic::Code::from(code)) as u8, exit, "gRPC code {code}");
        }
    }

    #[test]
    fn a_chain_is_one_line_and_says_nothing_twice() {
        let inner = std::io::Error::other("disk full");
        let outer = because(Exit::Failed, "cannot write /x")(inner);
        assert_eq!(chain(&outer), "cannot write /x: disk full");
        let repeated =
            because(Exit::Failed, "cannot write /x: disk full")(std::io::Error::other("disk full"));
        assert_eq!(chain(&repeated), "cannot write /x: disk full");
    }
}
