//! What can go wrong in a restore, and of what class it is: programs turn the class into an exit or status code.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::crypto::{AgentKeyError, KeyStanding, SlotError, TrustError};
use crate::id::{SeriesId, Sha256};

/// What kind of failure a [`RestoreError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// What is stored is not what was once written, or not what it claims to be.
    Untrusted,
    /// What was named does not exist.
    NotFound,
    /// The store cannot be reached.
    Unreachable,
    /// The store or coordinator does not permit it.
    Refused,
    /// What was asked for cannot be done as it was asked.
    Usage,
    /// Anything else.
    Failed,
}

/// An object that could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// It is not there.
    #[error("{object} is not in the store")]
    NotFound {
        /// Its name.
        object: String,
    },
    /// The store does not let us.
    #[error("the store refuses to give {object}: {answer}")]
    Refused {
        /// Its name.
        object: String,
        /// What the store said.
        answer: String,
    },
    /// The store does not answer, or not with the object.
    #[error("cannot read {object} from the store after {attempts} attempts: {answer}")]
    Unreachable {
        /// Its name.
        object: String,
        /// How often it was tried.
        attempts: u32,
        /// What happened last.
        answer: String,
    },
    /// The store answered with more than readers accept.
    #[error("{object} has more than {cap} bytes: it is not what it claims to be")]
    TooLong {
        /// Its name.
        object: String,
        /// The most that is accepted, in bytes.
        cap: u64,
    },
}

/// A restore that did not happen. Clones share their causes: one bad frame may be waited for at several places.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RestoreError {
    /// An object could not be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The trust policy does not hold.
    #[error("the trust policy cannot be believed")]
    Trust(#[source] TrustError),
    /// An agent's key does not hold.
    #[error("the keys of the host that made this backup cannot be believed")]
    AgentKey(#[source] AgentKeyError),
    /// An object's bytes do not have the hash that its name says.
    #[error("{object} is damaged: its bytes hash to {actual}")]
    Hash {
        /// Its name.
        object: String,
        /// SHA-256 of what the store gave.
        actual: Sha256,
    },
    /// The manifest does not hold.
    #[error("{object} cannot be believed: {problem}")]
    Manifest {
        /// Name of the manifest.
        object: String,
        /// What is wrong.
        problem: String,
    },
    /// The manifest's signing key is not vouched for.
    #[error(
        "{object} is signed with a key that nothing vouches for ({standing:?}): --accept-unknown-key believes it all the same"
    )]
    UnknownKey {
        /// Name of the manifest.
        object: String,
        /// How far the key is believed.
        standing: KeyStanding,
    },
    /// A witness knows a newer manifest than the store.
    #[error(
        "series {series} was rolled back: a witness has seen sequence {witnessed}, the newest here is {found}; --accept-rollback restores it all the same"
    )]
    RolledBack {
        /// The series.
        series: SeriesId,
        /// Newest sequence that the witness has seen.
        witnessed: u64,
        /// Newest sequence in the store.
        found: u64,
    },
    /// A witness knows another manifest under the same sequence.
    #[error(
        "manifest {sequence} of series {series} is not the one that a witness has seen; --accept-rollback restores it all the same"
    )]
    Forked {
        /// The series.
        series: SeriesId,
        /// The sequence.
        sequence: u64,
    },
    /// The data key cannot be opened.
    #[error("cannot open the data key of {object}")]
    Slot {
        /// Name of the pack or manifest.
        object: String,
        /// Why.
        #[source]
        source: SlotError,
    },
    /// A pack's tail does not hold.
    #[error("pack {object} is damaged or was replaced: {problem}")]
    Pack {
        /// Its name.
        object: String,
        /// What is wrong.
        problem: String,
    },
    /// A frame does not hold.
    #[error("frame {frame} of pack {object} is damaged or was replaced: {problem}")]
    Frame {
        /// Name of the pack.
        object: String,
        /// Its number, from 0.
        frame: usize,
        /// What is wrong.
        problem: String,
    },
    /// A stream or file that is not what was backed up, although every frame of it holds.
    #[error("{item} is not what was backed up: {problem}")]
    Content {
        /// The stream or file.
        item: String,
        /// What is wrong.
        problem: String,
    },
    /// A stream whose dump did not end well.
    #[error("stream {stream} is {outcome}: --force restores it all the same")]
    Outcome {
        /// Its name.
        stream: String,
        /// `partial` or `failed`.
        outcome: &'static str,
    },
    /// A stream or a file that the backup does not have.
    #[error("the backup has no {what} {name:?}; it has {}", list(has))]
    NotInBackup {
        /// "stream" or "file".
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        has: Vec<String>,
    },
    /// The target is not fit to be restored to.
    #[error("cannot restore to {}: {problem}", path.display())]
    Target {
        /// Where to.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// Writing what was restored failed.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The restore was given up.
    #[error("the restore was cancelled")]
    Cancelled,
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    if text.is_empty() { "none".to_owned() } else { text }
}

impl RestoreError {
    /// What kind of failure this is.
    pub fn class(&self) -> Class {
        match self {
            Self::Object(ObjectError::NotFound { .. }) => Class::Untrusted,
            Self::Object(ObjectError::TooLong { .. }) => Class::Untrusted,
            Self::Object(ObjectError::Refused { .. }) => Class::Refused,
            Self::Object(ObjectError::Unreachable { .. }) => Class::Unreachable,
            Self::Slot { source: SlotError::NoMatchingIdentity { .. }, .. } => Class::Failed,
            Self::Trust(_)
            | Self::AgentKey(_)
            | Self::Hash { .. }
            | Self::Manifest { .. }
            | Self::UnknownKey { .. }
            | Self::RolledBack { .. }
            | Self::Forked { .. }
            | Self::Slot { .. }
            | Self::Pack { .. }
            | Self::Frame { .. }
            | Self::Content { .. } => Class::Untrusted,
            Self::NotInBackup { .. } => Class::NotFound,
            Self::Target { .. } => Class::Usage,
            Self::Outcome { .. } | Self::Write { .. } | Self::Cancelled => Class::Failed,
        }
    }

    /// Writing `path` failed.
    pub fn write(path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Write { path: path.into(), source: Arc::new(source.into()) }
    }
}
