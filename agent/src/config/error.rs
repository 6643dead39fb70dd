//! What can be wrong with a configuration, said so that it can be put right.

use std::path::PathBuf;

/// A configuration, or a secret that it refers to, that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or directory of the configuration could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key or value breaks the rules.
    #[error("{}, line {line}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The file may be read by more people than its content allows.
    #[error("{} has mode {mode:04o} and {problem}: run `chmod {wanted} {}`", path.display(), path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Why that is too much.
        problem: &'static str,
        /// The mode that would do.
        wanted: &'static str,
    },
    /// A secret that the configuration refers to is not there or cannot be used.
    #[error("cannot use the secret {origin}: {problem}")]
    Secret {
        /// Where it should come from (`env:DB_0_PASSWORD`, `file:/etc/…`); never its value.
        origin: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}
