//! What a failed call to the coordinator means for the caller: try again, give up, or stop because somebody else took over.

use std::error::Error;

use tonic::{Code, Status};

/// A failed call, by what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The coordinator is away or overloaded: the same call may succeed later.
    #[error("{0}")]
    Away(String),
    /// The attempt is not this host's any more (a stale epoch, an ended run): stop, and report nothing.
    #[error("the coordinator took this attempt away: {0}")]
    Fenced(String),
    /// The coordinator said no, and will say so again.
    #[error("the coordinator refused: {0}")]
    Refused(String),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let text = describe(&status);
        match status.code() {
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::Internal
            | Code::Unknown => Self::Away(text),
            Code::FailedPrecondition => Self::Fenced(text),
            _ => Self::Refused(text),
        }
    }
}

/// A status in one line: its message, and below it what the transport has to say (where the real reason of a failed TLS
/// handshake is).
pub fn describe(status: &Status) -> String {
    let mut text = if status.message().is_empty() {
        status.code().description().to_owned()
    } else {
        status.message().to_owned()
    };
    let mut cause = status.source();
    while let Some(error) = cause {
        let line = error.to_string();
        // Layers that only say that something below them failed.
        if !text.contains(&line) && line != "transport error" && line != "tcp connect error" {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_epoch_stops_and_an_absent_coordinator_does_not() {
        assert!(matches!(CallError::from(Status::failed_precondition("stale epoch")), CallError::Fenced(_)));
        assert!(matches!(CallError::from(Status::unavailable("gone")), CallError::Away(_)));
        assert!(matches!(CallError::from(Status::permission_denied("no")), CallError::Refused(_)));
    }
}
