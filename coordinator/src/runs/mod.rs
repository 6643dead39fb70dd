//! Runs and their attempts: what was asked for, who works on it, and whether a late word still counts.
//!
//! [`state`] says which moves there are; [`attempt`] makes them in the database and fences every write of an agent;
//! [`service`] is what admins and agents do with runs; [`dispatch`] offers what is due and looks after leases, within the
//! [`limits`] of policies; [`progress`] shows how far they are, on any coordinator; [`storage`] holds it while the bucket cannot be written.

pub mod attempt;
pub mod dispatch;
pub mod limits;
pub mod progress;
pub mod service;
pub mod state;
pub mod storage;

pub use attempt::{Attempt, AttemptRef, Report, advance, ended_by_agent, fence, fence_to_look};
pub use progress::Progress;
pub use service::{RunView, Runs};

use sealift_common::clock::UnixMillis;
use sealift_common::protocol::Disagreement;

use crate::audit::{AccessError, OpError};
use crate::policy::PolicyError;
use crate::store::StoreError;

/// Why an operation on a run did not come about.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No such run or attempt.
    #[error("there is no {what}")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// A prefix of several ids.
    #[error("{0:?} is the beginning of more than one id: give more of it")]
    Ambiguous(String),
    /// Nobody could open the backup.
    #[error("there is no trust policy yet: set one with `sealift trust set --recipient age1…`")]
    NoTrustPolicy,
    /// Another agent's attempt.
    #[error("attempt {attempt} is not this agent's")]
    NotYours {
        /// Whose it is not.
        attempt: AttemptRef,
    },
    /// An attempt that a newer one has replaced, or of another database.
    #[error("attempt {attempt} is stale: a newer one has taken its place")]
    Stale {
        /// The stale one.
        attempt: AttemptRef,
    },
    /// An attempt that has ended.
    #[error("attempt {attempt} ended at {ended} as {state}")]
    Over {
        /// Which.
        attempt: AttemptRef,
        /// How it ended.
        state: state::AttemptState,
        /// When.
        ended: UnixMillis,
    },
    /// An agent and a coordinator that do not understand each other.
    #[error(transparent)]
    Protocol(#[from] Disagreement),
    /// A move that the present state does not allow.
    #[error(transparent)]
    Illegal(#[from] state::IllegalMove),
    /// The policy of a run.
    #[error("the policy of the run cannot be read")]
    Policy(#[source] Box<PolicyError>),
    /// Not allowed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The database's own.
    #[error("the run could not be read or written")]
    Store(#[from] StoreError),
}

impl From<PolicyError> for RunError {
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::Store(error) => Self::Store(error),
            error => Self::Policy(Box::new(error)),
        }
    }
}

impl OpError for RunError {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::NotYours { .. } | Self::Stale { .. } | Self::Over { .. })
    }
}
