//! Backups, from Begin to Commit, and what admins ask about them.
//!
//! **A backup exists if and only if its manifest is in the bucket.** The database prepares that moment and follows it:
//!
//! | step | transaction | then |
//! |---|---|---|
//! | [`begin`] | new backup id, next sequence number, nonce; the attempt runs | the agent stores packs ([`crate::uploads`]) |
//! | [`prepare`] | every pack named is there; its references are kept; the sequence number is taken for good | the manifest's PUT is signed |
//! | [`commit`] | the manifest was read in the bucket; its packs are live; the run ends | |
//!
//! A coordinator that dies between Prepare and Commit looks into the bucket when it comes back ([`resolve`]). A sequence
//! number that was prepared is never given again, not even if the manifest never arrived: it might, as long as some store
//! may accept its signature, and afterwards nothing is gained. An abandoned manifest that turns up late makes its backup a
//! committed one: readers of the bucket alone would see it, so the coordinator does too.
//!
//! [`current`] fences every call; [`listing`] compares a series with the bucket; [`query`] and [`restore`] are what admins
//! ask.

pub mod begin;
pub mod commit;
pub mod current;
pub mod listing;
pub mod prepare;
pub mod query;
pub mod references;
pub mod resolve;
pub mod restore;

use sealift_common::crypto::TrustError;
use sealift_common::id::{BackupId, SeriesId};

use crate::audit::{AccessError, OpError};
use crate::core::Core;
use crate::objects::signing::SigningError;
use crate::objects::{ObjectError, ObjectStore};
use crate::runs::{RunError, Runs};
use crate::store::StoreError;

use current::CurrentError;
use prepare::ManifestMismatch;

/// Begins, prepares and commits backups. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Backups {
    core: Core,
    objects: ObjectStore,
    runs: Runs,
}

impl Backups {
    /// Backups into `objects`, for the attempts of `runs`.
    pub fn new(core: Core, objects: ObjectStore, runs: Runs) -> Self {
        Self { core, objects, runs }
    }
}

/// Why a backup did not come about, or is not found.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The attempt or its backup is not the one that counts.
    #[error(transparent)]
    Current(#[from] CurrentError),
    /// The attempt or run cannot move like that.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Nobody could open it.
    #[error(
        "no trust policy names recipients for scope {scope:?}: set one with `sealift trust set --recipient age1…`"
    )]
    NoRecipients {
        /// The scope of the agent.
        scope: String,
    },
    /// An agent that did not hear of the new epoch.
    #[error(
        "series {series} is to start a new epoch, and this agent builds on the old one: update the agent"
    )]
    EpochLeft {
        /// Which series.
        series: SeriesId,
    },
    /// The trust policy that is stored does not parse.
    #[error("the stored trust policy is wrong")]
    Trust(#[source] TrustError),
    /// The manifest is not what it should be.
    #[error("the manifest of backup {backup} is refused: {mismatch}")]
    Manifest {
        /// Of which backup.
        backup: BackupId,
        /// Why.
        mismatch: ManifestMismatch,
    },
    /// Prepare was called with another manifest before.
    #[error("backup {backup} was prepared with another manifest already: call Begin again")]
    OtherManifest {
        /// Which backup.
        backup: BackupId,
    },
    /// Commit without Prepare.
    #[error("backup {backup} was not prepared: call Prepare first")]
    NotPrepared {
        /// Which backup.
        backup: BackupId,
    },
    /// Commit without the manifest.
    #[error(
        "the manifest of backup {backup} is not in the bucket: send it again (call Prepare for a new signature)"
    )]
    NotArrived {
        /// Which backup.
        backup: BackupId,
    },
    /// Something else lies where the manifest should be. It has been removed.
    #[error("what was stored as the manifest of backup {backup} is not what was signed for: {problem}")]
    Altered {
        /// Which backup.
        backup: BackupId,
        /// What is wrong with it.
        problem: String,
    },
    /// No such backup, agent, source or restore.
    #[error("there is no {what}")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// It was deleted, and is still there.
    #[error("backup {backup} was deleted: get it back with `sealift backup undelete {backup}` first")]
    Expired {
        /// Which backup.
        backup: BackupId,
    },
    /// Not a way to name a backup.
    #[error("{0:?} does not name a backup: give an id, latest:AGENT/SOURCE or AGENT/SOURCE@TIME (RFC 3339)")]
    Reference(String),
    /// A prefix of several ids.
    #[error("{0:?} is the beginning of more than one backup's id: give more of it")]
    Ambiguous(String),
    /// A restore that ended, or is someone else's.
    #[error("this restore has ended: open it again")]
    RestoreOver,
    /// An object that the restore has no business with.
    #[error("{object} is no part of the backup that is being restored")]
    ForeignObject {
        /// The object's name, as asked.
        object: String,
    },
    /// The signer.
    #[error("no request can be signed")]
    Signing(#[source] SigningError),
    /// The store.
    #[error("the object store could not be asked")]
    Objects(#[source] ObjectError),
    /// Not allowed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The database's own.
    #[error("the backup could not be read or written")]
    Store(#[from] StoreError),
}

impl OpError for BackupError {
    fn is_refusal(&self) -> bool {
        match self {
            Self::Current(inner) => inner.is_refusal(),
            Self::Run(inner) => inner.is_refusal(),
            Self::Manifest { .. } | Self::OtherManifest { .. } | Self::Altered { .. } => true,
            Self::NotPrepared { .. } | Self::NotArrived { .. } | Self::ForeignObject { .. } => true,
            _ => false,
        }
    }

    fn is_passing(&self) -> bool {
        matches!(self, Self::Objects(error) if error.is_retryable())
    }
}
