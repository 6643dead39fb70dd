//! The backup that an attempt is writing now: every call of an agent names both, and is turned away unless they fit.

use sealift_common::id::{AgentId, BackupId};

use crate::runs::state::AttemptState;
use crate::runs::{Attempt, AttemptRef, RunError, fence, fence_to_look};
use crate::store::backups::{self, BackupRow, BackupState};
use crate::store::{StoreError, Tx};

/// The attempt or the backup named is not the one that counts.
#[derive(Debug, thiserror::Error)]
pub enum CurrentError {
    /// The attempt.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The backup.
    #[error("backup {backup} is not what attempt {attempt} is writing: call Begin again")]
    Backup {
        /// The backup named.
        backup: BackupId,
        /// The attempt named.
        attempt: AttemptRef,
    },
    /// The database's own.
    #[error("the backup could not be read")]
    Store(#[from] StoreError),
}

impl CurrentError {
    /// Whether the caller asked for what is not theirs.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Run(inner) => crate::audit::OpError::is_refusal(inner),
            Self::Backup { .. } => true,
            Self::Store(_) => false,
        }
    }
}

/// The backup `id`, if `attempt` is `agent`'s, still counts, and is storing packs for it.
///
/// # Errors
/// [`CurrentError`].
pub async fn current(
    tx: &mut Tx,
    attempt: &AttemptRef,
    agent: AgentId,
    id: BackupId,
) -> Result<BackupRow, CurrentError> {
    let found = fence(tx, attempt, agent).await?;
    begun(tx, attempt, &found, id).await
}

/// As [`current`], for a look that nothing is written after.
///
/// # Errors
/// [`CurrentError`].
pub async fn current_to_look(
    tx: &mut Tx,
    attempt: &AttemptRef,
    agent: AgentId,
    id: BackupId,
) -> Result<BackupRow, CurrentError> {
    let found = fence_to_look(tx, attempt, agent).await?;
    begun(tx, attempt, &found, id).await
}

async fn begun(
    tx: &mut Tx,
    attempt: &AttemptRef,
    found: &Attempt,
    id: BackupId,
) -> Result<BackupRow, CurrentError> {
    let other = || CurrentError::Backup { backup: id, attempt: *attempt };
    if found.backup != Some(id) || found.state != AttemptState::Running {
        return Err(other());
    }
    let backup = backups::get(tx, id).await?.ok_or_else(other)?;
    if backup.state == BackupState::Begun { Ok(backup) } else { Err(other()) }
}
