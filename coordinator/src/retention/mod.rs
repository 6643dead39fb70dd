//! Which backups stay and why, and what may be deleted from the bucket.
//!
//! | file | what it is for |
//! |---|---|
//! | [`rules`] | what a policy says: last 3, daily 7, … |
//! | [`plan`] | which backups of a series stay, and why; pure |
//! | [`packs`] | which packs retire, are doomed, may go; pure |
//! | [`states`] | the states of packs and backups; pure |
//! | [`beside`] | the table of what may run beside what on one series; pure |
//! | [`applies`] | how long a series stays: the one place that asks the policies, and whether the host is retired |
//! | [`admin`] | delete, undelete, hold, release, and the plan that admins are shown |
//! | [`expire`] | rules are applied |
//! | [`collect`] | packs change their states; manifests and packs are deleted |
//! | [`compare`] | before that, the bucket's manifests are compared with the database; pure |
//! | [`reconcile`] | the leader goes through all series, round after round |
//!
//! Deleting is plan, then execute. A plan is made in the transaction that acts on it, from what that transaction has read,
//! with the series locked. `deleting` is recorded, for good, before the bucket is touched; what a crash interrupts is taken
//! up by the next round. Only the coordinator deletes, manifests before packs, and what the database does not know it never
//! touches. Before each batch [`crate::recovery`] is asked whether this database is the one that knows the bucket.
//!
//! To add a rule: a field of [`rules::RetentionRules`] and a line in [`plan`]. To add an operation on series: a variant of
//! [`beside::Operation`], a row and a column of its table.

pub mod admin;
pub mod applies;
pub mod beside;
pub mod collect;
pub mod compare;
pub mod expire;
pub mod packs;
pub mod plan;
pub mod reconcile;
pub mod rules;
pub mod states;

use sealift_common::id::{BackupId, SeriesId};

use crate::audit::{AccessError, OpError};
use crate::backups::{BackupError, Backups};
use crate::core::Core;
use crate::identity::IdentityError;
use crate::objects::{ObjectError, ObjectStore};
use crate::recovery::RecoveryError;
use crate::runtime::Leader;
use crate::store::retention::KeptBackup;
use crate::store::{StoreError, Tx, sources};

use plan::Candidate;
use states::{BackupState, IllegalMove};

/// Keeps, expires and collects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Retention {
    core: Core,
    objects: ObjectStore,
    backups: Backups,
    /// The term of the leader for whom this works; `None` for what admins ask.
    leader: Option<Leader>,
}

impl Retention {
    /// Retention of the backups in `objects`.
    pub fn new(core: Core, objects: ObjectStore, backups: Backups) -> Self {
        Self { core, objects, backups, leader: None }
    }

    /// The same, for the rounds of this leader: a term that is over writes nothing.
    #[must_use]
    pub fn led_by(&self, leader: &Leader) -> Self {
        Self { leader: Some(leader.clone()), ..self.clone() }
    }

    /// First in every transaction of a round.
    async fn fence(&self, tx: &mut Tx) -> Result<(), StoreError> {
        match &self.leader {
            Some(leader) => leader.fence(tx).await,
            None => Ok(()),
        }
    }

    /// First in every transaction of a round that changes what is known of a series.
    async fn enter(&self, tx: &mut Tx, series: SeriesId) -> Result<(), StoreError> {
        self.fence(tx).await?;
        sources::lock_series(tx, series).await
    }
}

/// Why a backup is not deleted, kept, or shown.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// It cannot be found.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// Its host cannot be found.
    #[error(transparent)]
    Agent(#[from] IdentityError),
    /// It is the one backup that a series must not lose.
    #[error(
        "{backup} is the last good backup of its series, which is never deleted: make another one first; those of a \
         retired host go by themselves after the day that was named"
    )]
    LastGood {
        /// The backup.
        backup: BackupId,
    },
    /// Somebody holds it.
    #[error("{backup} is held by {by} ({reason}): `sealift backup release {backup}` first")]
    Held {
        /// The backup.
        backup: BackupId,
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// It is held already, or not held.
    #[error("{backup} is {}", if *held { "held already" } else { "not held" })]
    Hold {
        /// The backup.
        backup: BackupId,
        /// Whether it is.
        held: bool,
    },
    /// Somebody reads it.
    #[error("{backup} is being restored: wait until that has ended")]
    InUse {
        /// The backup.
        backup: BackupId,
    },
    /// Not in its present state.
    #[error("{backup} cannot be changed like that")]
    State {
        /// The backup.
        backup: BackupId,
        /// What does not go.
        #[source]
        illegal: IllegalMove,
    },
    /// Why, was not said, or at too great length.
    #[error("say why, in 1 to {MAX_REASON} characters")]
    Reason,
    /// The object store.
    #[error("the object store could not be asked")]
    Objects(#[source] ObjectError),
    /// Whether the database is in step with the bucket is not known.
    #[error("it cannot be said whether anything may be deleted")]
    Recovery(#[from] Box<RecoveryError>),
    /// Not allowed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The database's own.
    #[error("retention could not be read or written")]
    Store(#[from] StoreError),
}

/// Longest reason, in characters.
pub const MAX_REASON: usize = 500;

impl OpError for RetentionError {
    fn is_refusal(&self) -> bool {
        match self {
            Self::Backup(inner) => inner.is_refusal(),
            Self::LastGood { .. } | Self::Held { .. } | Self::InUse { .. } | Self::State { .. } => true,
            Self::Hold { .. } | Self::Reason => true,
            Self::Agent(_) | Self::Objects(_) | Self::Recovery(_) | Self::Access(_) | Self::Store(_) => false,
        }
    }
}

/// The committed ones among the backups of a series, as [`plan`] wants them.
fn candidates(backups: &[KeptBackup]) -> Vec<Candidate> {
    let committed = backups.iter().filter(|backup| backup.state == BackupState::Committed);
    let candidate = |backup: &KeptBackup| Candidate {
        id: backup.id,
        sequence: backup.sequence,
        received: backup.committed.unwrap_or_default(),
        complete: !backup.partial,
        whole: backup.keeping.is_whole(),
        verified: backup.keeping.verified,
        held: backup.keeping.held.is_some(),
        in_use: backup.in_use,
        undeleted: backup.keeping.undeleted,
    };
    committed.map(candidate).collect()
}

fn series_entity(series: SeriesId) -> String {
    format!("series:{series}")
}
