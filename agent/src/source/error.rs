//! What can go wrong with a source, said so that it can be put right.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::ConfigError;

/// A source that could not be read. Whatever it had sent before is void.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The configuration, or a secret that it names, cannot be used.
    #[error("the configuration of this source cannot be used")]
    Config(#[source] ConfigError),
    /// A tool is not installed, or not where the configuration says.
    #[error("{tool} was not found: {hint}")]
    ToolMissing {
        /// The program.
        tool: String,
        /// What to install or to set.
        hint: String,
    },
    /// A tool is there but does not fit the server.
    #[error(
        "{tool} {tool_version} cannot dump a server of version {server_version}: install {tool} {server_version} or newer"
    )]
    ToolOutdated {
        /// The program.
        tool: String,
        /// Its version.
        tool_version: String,
        /// The server's.
        server_version: String,
    },
    /// A tool could not be started.
    #[error("{tool} could not be started")]
    ToolStart {
        /// The program.
        tool: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool ended with an error.
    #[error("{tool} failed ({status}){}", telling_line(stderr))]
    ToolFailed {
        /// The program.
        tool: String,
        /// `exit status 1`, `signal 9`.
        status: String,
        /// The end of its standard error, redacted.
        stderr: String,
    },
    /// A tool said nothing for too long.
    #[error("{tool} made no progress for {} s and was ended (stall_timeout): is it waiting for a lock?{}", after.as_secs(), telling_line(stderr))]
    ToolStalled {
        /// The program.
        tool: String,
        /// How long it was waited for.
        after: Duration,
        /// The end of its standard error, redacted.
        stderr: String,
    },
    /// A tool said something that cannot be understood.
    #[error("{tool} answered what cannot be understood: {problem}")]
    ToolAnswer {
        /// The program.
        tool: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// What is to be backed up is not there.
    #[error("{item} {problem}")]
    Unusable {
        /// The database, directory or file.
        item: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// Reading or writing a file failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The state directory has no room for a copy.
    #[error("copying needs {needed} bytes in {}, {available} are free: make room, or move state_dir", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes the copy takes.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// SQLite refused.
    #[error("cannot {operation} the SQLite database {}", path.display())]
    Sqlite {
        /// What was tried.
        operation: &'static str,
        /// The database.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: rusqlite::Error,
    },
    /// The SQLite database never had a quiet moment.
    #[error("{} was locked or changing for {} s on end: does its program hold it exclusively?", path.display(), after.as_secs())]
    SqliteBusy {
        /// The database.
        path: PathBuf,
        /// How long it was tried.
        after: Duration,
    },
    /// The backup was cancelled.
    #[error("the backup was cancelled")]
    Cancelled,
    /// Whoever read from the source has gone.
    #[error("the backup ended before its source did")]
    Closed,
}

/// Phrases of tools that will say the same again: no retry helps before somebody has done something.
const PERMANENT: [&str; 9] = [
    "authentication failed",
    "Access denied",
    "no pg_hba.conf entry",
    "does not exist",
    "Unknown database",
    "permission denied",
    "version mismatch",
    "certificate verify failed",
    "unknown option",
];

impl SourceError {
    /// An I/O error on `path`.
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source }
    }

    /// Whether the next attempt may well succeed without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::ToolFailed { stderr, .. } => !PERMANENT.iter().any(|phrase| stderr.contains(phrase)),
            Self::ToolStalled { .. } | Self::ToolStart { .. } | Self::Io { .. } | Self::Closed => true,
            Self::SqliteBusy { .. } => true,
            Self::Sqlite { source, .. } => !matches!(
                source.sqlite_error_code(),
                Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt)
            ),
            Self::Config(_)
            | Self::ToolMissing { .. }
            | Self::ToolOutdated { .. }
            | Self::ToolAnswer { .. }
            | Self::Unusable { .. }
            | Self::NoSpace { .. }
            | Self::Cancelled => false,
        }
    }

    /// The end of the tool's standard error, redacted; empty where there was no tool.
    pub fn stderr(&self) -> &str {
        match self {
            Self::ToolFailed { stderr, .. } | Self::ToolStalled { stderr, .. } => stderr,
            _ => "",
        }
    }
}

/// The line that says what is wrong: the first that speaks of an error, else the last.
fn telling_line(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let speaks = |line: &&str| ["error", "fatal"].iter().any(|word| line.to_ascii_lowercase().contains(word));
    let line = lines().find(speaks).or_else(|| lines().next_back());
    line.map_or(String::new(), |line| format!(": {}", line.chars().take(300).collect::<String>()))
}
