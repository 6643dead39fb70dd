//! Backups between Prepare and Commit whose agent does not come back: the bucket decides.

use std::time::Duration;

use futures::FutureExt as _;

use super::commit::Seen;
use super::{BackupError, Backups};
use crate::audit::{Action, Details, OpContext};
use crate::runs::state::{AttemptEvent, AttemptState};
use crate::runs::{Report, advance};
use crate::store::backups::{self, BackupRow, BackupState};
use crate::store::{Tx, attempts, runs};

/// Between two rounds.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// Backups looked at in one round, of each kind.
const BATCH: u32 = 100;
/// Abandoned manifests are looked for this much longer: stores exist that finish a PUT hours late.
const LATE: Duration = Duration::from_secs(25 * 3_600);

/// What one round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Manifests that are in the bucket.
    pub committed: usize,
    /// Manifests that did not arrive in time.
    pub abandoned: usize,
    /// Manifests that may still arrive.
    pub waiting: usize,
}

impl Backups {
    /// One round, logged where it did something.
    ///
    /// # Errors
    /// As [`Backups::resolve_once`].
    pub async fn resolve_round(&self) -> Result<(), BackupError> {
        let Resolved { committed, abandoned, .. } = self.resolve_once().await?;
        if committed + abandoned > 0 {
            tracing::info!(committed, abandoned, "resolved backups");
        }
        Ok(())
    }

    /// Looks for every manifest that is on its way, and for abandoned ones that may have come late.
    ///
    /// # Errors
    /// Those of store and database; what was done before stays done.
    pub async fn resolve_once(&self) -> Result<Resolved, BackupError> {
        let since = self.core.clock.now().minus(LATE);
        let open = {
            let mut reader = self.core.store.reader().await?;
            let mut open = backups::committing(&mut reader, None, BATCH).await?;
            open.extend(backups::abandoned_since(&mut reader, since, BATCH).await?);
            open
        };
        let mut done = Resolved::default();
        for backup in &open {
            match self.resolve(backup).await? {
                BackupState::Committed => done.committed += 1,
                BackupState::Abandoned if backup.state == BackupState::Committing => done.abandoned += 1,
                BackupState::Abandoned => {}
                _ => done.waiting += 1,
            }
        }
        Ok(done)
    }

    /// Looks for one manifest and moves its backup accordingly: the state it is in afterwards.
    ///
    /// # Errors
    /// Those of store and database.
    pub(super) async fn resolve(&self, backup: &BackupRow) -> Result<BackupState, BackupError> {
        let Some(prepared) = &backup.prepared else { return Ok(backup.state) };
        let ctx = OpContext::coordinator(&self.core);
        let entity = format!("backup:{}", backup.id);
        let operation = ctx.operation(Action::BackupResolve, entity, Details::none());
        if matches!(self.look(backup, prepared).await?, Seen::Present) {
            operation.run(self.follow(&operation, backup).boxed()).await?;
            return Ok(BackupState::Committed);
        }
        if backup.state != BackupState::Committing || self.core.clock.now() <= prepared.signed_until {
            return Ok(backup.state);
        }
        let moved = operation.change(move |tx, _| {
            async move {
                let state = self.record_absence(tx, backup).await?;
                Ok::<_, BackupError>((state, Details::none().with("state", state.as_str())))
            }
            .boxed()
        });
        let state = operation.run(moved.boxed()).await?;
        self.runs.changed(backup.run);
        Ok(state)
    }

    async fn record_absence(&self, tx: &mut Tx, backup: &BackupRow) -> Result<BackupState, BackupError> {
        let now = self.core.clock.now();
        runs::hold(tx, backup.run).await?;
        let Some(current) = backups::get(tx, backup.id).await? else { return Ok(BackupState::Abandoned) };
        // Signed again, or committed, while the bucket was asked.
        let expired = current.prepared.as_ref().is_some_and(|prepared| prepared.signed_until < now);
        if current.state != BackupState::Committing || !expired {
            return Ok(current.state);
        }
        backups::resolve(tx, backup.id, BackupState::Abandoned, None).await?;
        let attempt = attempts::get(tx, backup.run, backup.attempt).await?;
        if let Some(attempt) = attempt
            && attempt.state == AttemptState::Preparing
            && attempt.backup == Some(backup.id)
        {
            let error = "the manifest did not arrive in the bucket while its signature was good".to_owned();
            let report = Report { error, retryable: true, ..Report::default() };
            advance(tx, now, &attempt, AttemptEvent::Fail, report).await?;
        }
        Ok(BackupState::Abandoned)
    }
}
