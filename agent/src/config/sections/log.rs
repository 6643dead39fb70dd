//! `[log]`: the host's own log, JSON lines, bounded.

use sealift_common::quantity::ByteSize;
use serde::Deserialize;

use crate::config::values::AbsolutePath;

/// Where the log goes and how much of it is kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The log file (mode 0640); standard error alone where this is absent.
    pub file: Option<AbsolutePath>,
    /// Least important level that is written.
    pub level: Level,
    /// A file that has grown to this size is rotated.
    pub max_size: ByteSize,
    /// How many rotated files are kept.
    pub keep: u16,
}

/// Importance of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// What happened.
    Info,
    /// How it happened.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// As filters write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { file: None, level: Level::Info, max_size: ByteSize(10 << 20), keep: 5 }
    }
}
