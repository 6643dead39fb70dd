//! Why an attempt ended without a backup, and what the coordinator is told of it.

use std::time::Duration;

use sealift_common::crypto::SlotError;
use sealift_common::id::InvalidId;

use crate::attempt::stop::StopReason;
use crate::chunk::ChunkError;
use crate::put::PutError;
use crate::session::error::CallError;
use crate::source::{SourceError, whole_chain};
use crate::spool::SpoolError;
use crate::state::dir::StateError;
use crate::state::journal::Failure;
use crate::state::trust::TrustKeeperError;

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The source could not be read.
    #[error(transparent)]
    Source(SourceError),
    /// Its streams could not be taken in.
    #[error(transparent)]
    Chunk(ChunkError),
    /// The source is suddenly empty.
    #[error(
        "the source is empty, the backup before had {previous_raw_bytes} bytes: if that is right, start a new series by renaming the source"
    )]
    ShrunkToNothing {
        /// Raw bytes of the backup before.
        previous_raw_bytes: u64,
    },
    /// The coordinator refused a call, or stayed away too long.
    #[error("cannot {operation}")]
    Call {
        /// What was asked for.
        operation: &'static str,
        /// What came back.
        source: CallError,
    },
    /// The coordinator's answer makes no sense.
    #[error("the coordinator's answer to {operation} cannot be used: {problem}")]
    Answer {
        /// What was asked for.
        operation: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The store did not take an object.
    #[error(transparent)]
    Put(PutError),
    /// The store was away for too long.
    #[error("the store was away for {} s: {last}", .after.as_secs())]
    StoreAway {
        /// How long it was waited for.
        after: Duration,
        /// The last error.
        last: String,
    },
    /// The trust policy.
    #[error(transparent)]
    Trust(TrustKeeperError),
    /// No key slot could be made.
    #[error("cannot encrypt the data key to the recipients")]
    Slots(#[source] SlotError),
    /// Packs that this backup refers to may not be referred to any more.
    #[error(
        "{0} packs that this backup builds on are not there any more: the next attempt uploads them anew"
    )]
    PacksGone(usize),
    /// State directory.
    #[error(transparent)]
    State(StateError),
    /// What waited in the spool.
    #[error("what was read from the source is lost: the next attempt reads it again")]
    Spool(#[source] SpoolError),
    /// A pack or manifest could not be built.
    #[error("cannot build {what}: {problem}")]
    Build {
        /// Pack or manifest.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// It took too long.
    #[error("the backup took longer than max_duration ({} s)", .0.as_secs())]
    TooLong(Duration),
    /// The agent stops.
    #[error("the agent was stopped")]
    AgentStops,
    /// Somebody cancelled it.
    #[error("{0}")]
    Cancelled(String),
}

impl AttemptError {
    /// Turns a refused answer of the coordinator into an error.
    pub fn answer(operation: &'static str) -> impl Fn(InvalidId) -> Self {
        move |error| Self::Answer { operation, problem: error.to_string() }
    }

    /// What the coordinator is told.
    pub fn to_failure(&self) -> Failure {
        let stderr = match self {
            Self::Source(source) => source.stderr().to_owned(),
            _ => String::new(),
        };
        Failure {
            error: whole_chain(self).replace('\n', " "),
            stderr,
            retryable: self.is_retryable(),
            cancelled: matches!(self, Self::Cancelled(_)),
        }
    }

    /// Whether what waits in the spool is as good as before: the line or the store was at fault.
    pub fn leaves_spool_good(&self) -> bool {
        match self {
            Self::StoreAway { .. } | Self::AgentStops | Self::TooLong(_) => true,
            Self::Call { source, .. } => matches!(source, CallError::Away(_)),
            Self::Put(error) => {
                matches!(error, PutError::Away(_) | PutError::Signature { .. } | PutError::Certificate(_))
            }
            _ => false,
        }
    }

    fn is_retryable(&self) -> bool {
        match self {
            Self::Source(source) => source.is_retryable(),
            Self::Chunk(ChunkError::Protocol(_)) => false,
            Self::Call { source, .. } => !matches!(source, CallError::Refused(_)),
            Self::Chunk(_)
            | Self::StoreAway { .. }
            | Self::PacksGone(_)
            | Self::State(_)
            | Self::Spool(_)
            | Self::TooLong(_)
            | Self::AgentStops
            | Self::Answer { .. } => true,
            Self::Put(error) => !matches!(error, PutError::Config { .. } | PutError::Unsafe(_)),
            Self::ShrunkToNothing { .. }
            | Self::Trust(_)
            | Self::Slots(_)
            | Self::Build { .. }
            | Self::Cancelled(_) => false,
        }
    }
}

impl From<StopReason> for AttemptError {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::Cancelled(reason) => Self::Cancelled(reason),
            StopReason::TakenAway | StopReason::AgentStops => Self::AgentStops,
        }
    }
}
