//! *Commit*: the manifest is read in the bucket, and the database follows.

use futures::FutureExt as _;
use sealift_common::format::manifest::Manifest;
use sealift_common::format::names::ObjectName;
use sealift_common::id::{AgentId, BackupId};

use super::current::CurrentError;
use super::references::count_losses;
use super::{BackupError, Backups};
use crate::audit::{Action, Details, OpContext, Operation};
use crate::objects::{ByteRange, ObjectErrorKind};
use crate::runs::state::{AttemptEvent, AttemptState};
use crate::runs::{AttemptRef, Report, advance, attempt};
use crate::store::backups::{self, BackupRow, BackupState, Prepared};
use crate::store::{Tx, attempts, runs, sources};

/// What lies in the bucket under a manifest's name.
#[derive(Debug)]
pub(super) enum Seen {
    /// Nothing.
    Absent,
    /// The manifest that was prepared.
    Present,
    /// Something else.
    Wrong(String),
}

/// The answer to Commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The backup lacks something.
    pub partial: bool,
}

impl Backups {
    /// Commits a prepared backup whose manifest is in the bucket. Asked again, it answers the same.
    ///
    /// # Errors
    /// [`BackupError::NotArrived`] where it is not, [`BackupError::Altered`] where something else is, and others.
    pub async fn commit(
        &self,
        ctx: &OpContext,
        attempt: &AttemptRef,
        id: BackupId,
    ) -> Result<Committed, BackupError> {
        let details = Details::none().with("attempt", attempt.to_string());
        let operation = ctx.operation(Action::BackupCommit, format!("backup:{id}"), details);
        let commit = async {
            let backup = self.prepared_by(operation.agent()?, attempt, id).await?;
            self.commit_if_there(&operation, &backup).await
        };
        operation.run(commit.boxed()).await
    }

    async fn prepared_by(
        &self,
        agent: AgentId,
        attempt: &AttemptRef,
        id: BackupId,
    ) -> Result<BackupRow, BackupError> {
        let find = self.core.store.run_tx("find a prepared backup", move |tx, _| {
            async move {
                // Not fenced: the attempt may be over by now, and the backup is there all the same.
                attempt::find(tx, attempt, agent).await?;
                let backup = backups::get(tx, id).await?;
                let mine =
                    backup.filter(|b| (b.run, b.attempt, b.agent) == (attempt.run, attempt.number, agent));
                let foreign = CurrentError::Backup { backup: id, attempt: *attempt };
                mine.ok_or(BackupError::Current(foreign))
            }
            .boxed()
        });
        find.await
    }

    async fn commit_if_there(
        &self,
        operation: &Operation<'_>,
        backup: &BackupRow,
    ) -> Result<Committed, BackupError> {
        let prepared = backup.prepared.as_ref().ok_or(BackupError::NotPrepared { backup: backup.id })?;
        let partial = prepared.partial;
        if backup.state == BackupState::Committed {
            return Ok(Committed { partial });
        }
        match self.look(backup, prepared).await? {
            Seen::Present => {
                self.follow(operation, backup).await?;
                Ok(Committed { partial })
            }
            Seen::Absent => Err(BackupError::NotArrived { backup: backup.id }),
            Seen::Wrong(problem) => Err(BackupError::Altered { backup: backup.id, problem }),
        }
    }

    /// Reads the manifest in the bucket: the whole of it, so that nothing is committed that a restore would refuse. What
    /// is there and is not what was signed for is removed: it would keep the right bytes out.
    pub(super) async fn look(&self, backup: &BackupRow, prepared: &Prepared) -> Result<Seen, BackupError> {
        let name = ObjectName::Manifest {
            series: backup.series,
            sequence: backup.sequence,
            sha256: prepared.manifest_sha256,
        };
        let key = name.into();
        let problem = match self.objects.get(&key, ByteRange::All, prepared.manifest_size).await {
            Ok(bytes) => {
                let repository = self.core.repository;
                let parsed =
                    tokio::task::spawn_blocking(move || Manifest::parse(repository, &name, &bytes)).await;
                match parsed {
                    Ok(Ok(manifest)) if manifest.public_sha256() == prepared.public_sha256 => {
                        return Ok(Seen::Present);
                    }
                    Ok(Ok(_)) => "its public part is not the one that was prepared".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => return Ok(Seen::Absent), // cancelled with the program: look again
                }
            }
            Err(error) if error.kind == ObjectErrorKind::NotFound => return Ok(Seen::Absent),
            Err(error) if matches!(error.kind, ObjectErrorKind::TooLarge { .. }) => "it is longer".to_owned(),
            Err(error) if matches!(error.kind, ObjectErrorKind::Refused { .. }) => {
                "it cannot be read without its writer's own key (SSE-C)".to_owned()
            }
            Err(error) => return Err(BackupError::Objects(error)),
        };
        if let Err(error) = self.objects.delete(&key, None).await {
            tracing::warn!(error = &error as &dyn std::error::Error, %key, "cannot remove a false manifest");
        }
        Ok(Seen::Wrong(problem))
    }

    /// The manifest is in the bucket: the backup is committed, its packs are live, and its run has ended.
    pub(super) async fn follow(
        &self,
        operation: &Operation<'_>,
        backup: &BackupRow,
    ) -> Result<(), BackupError> {
        let id = backup.id;
        let record = operation.change(move |tx, _| {
            async move {
                let said = self.record_commit(tx, id).await?;
                Ok::<_, BackupError>(((), said))
            }
            .boxed()
        });
        record.await?;
        self.runs.ended(backup.run);
        Ok(())
    }

    async fn record_commit(&self, tx: &mut Tx, id: BackupId) -> Result<Details, BackupError> {
        let Some(found) = backups::get(tx, id).await? else {
            return Err(BackupError::NotPrepared { backup: id });
        };
        runs::hold(tx, found.run).await?;
        sources::lock_series(tx, found.series).await?;
        let backup = backups::get(tx, id).await?;
        let Some((backup, prepared)) = backup.and_then(|b| b.prepared.clone().map(|p| (b, p))) else {
            return Err(BackupError::NotPrepared { backup: id });
        };
        let said = Details::none()
            .with("series", backup.series.to_string())
            .with("sequence", backup.sequence)
            .with("manifest_sha256", prepared.manifest_sha256.to_string())
            .with("partial", prepared.partial);
        if backup.state == BackupState::Committed {
            return Ok(said);
        }
        let now = self.core.clock.now();
        backups::resolve(tx, id, BackupState::Committed, Some(now)).await?;
        let late = backup.state == BackupState::Abandoned;
        let lost = count_losses(tx, backup.series, id, &prepared.refs, late, now).await?;
        let said = if lost > 0 { said.with("lost_packs", lost) } else { said };
        let attempt = attempts::get(tx, backup.run, backup.attempt).await?;
        if let Some(attempt) = attempt
            && attempt.state == AttemptState::Preparing
            && attempt.backup == Some(id)
        {
            let report = Report { backup: Some(id), partial: prepared.partial, ..Report::default() };
            advance(tx, now, &attempt, AttemptEvent::Commit, report).await?;
        }
        Ok(said)
    }
}
