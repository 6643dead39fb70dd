//! Is what was stored still there, and still what it was? Presence by a listing, content by reading whole objects back.
//!
//! What is found missing or damaged is marked, audited, and never referred to again, so that the next backup stores those
//! chunks anew. Whether a backup decrypts only holders of a private key can tell: `sealift` does that.

use futures::{FutureExt as _, StreamExt as _};
use sealift_common::format::names::ObjectName;
use sealift_common::id::{SeriesId, Sha256};
use tokio::sync::mpsc;

use crate::audit::{Action, Details, OpContext, Outcome};
use crate::backups::listing::LostPack;
use crate::backups::restore::manifest_name;
use crate::backups::{BackupError, Backups};
use crate::core::Core;
use crate::objects::signing::MAX_MANIFEST;
use crate::objects::{ObjectErrorKind, ObjectStore};
use crate::store::backups::BackupRow;
use crate::store::packs::{self, PackFacts, PackState};
use crate::store::retention;

/// Objects read back at the same time.
const PARALLEL: usize = 4;
/// Packs between two words of progress.
const REPORT_EVERY: u64 = 16;

/// How thoroughly to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Every object is listed, with its length.
    Presence,
    /// Every object is read back, whole, and hashed.
    Hash,
}

/// How far a verification is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Packs looked at so far.
    pub packs_checked: u64,
    /// Packs to look at.
    pub packs_total: u64,
    /// Bytes read back so far.
    pub bytes_checked: u64,
    /// What was found since the last word.
    pub findings: Vec<Finding>,
    /// The last word.
    pub done: bool,
}

/// An object that is not as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its name.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Verifies backups. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Verification {
    core: Core,
    objects: ObjectStore,
    backups: Backups,
}

impl Verification {
    /// Verifies the backups in `objects`.
    pub fn new(core: Core, objects: ObjectStore, backups: Backups) -> Self {
        Self { core, objects, backups }
    }

    /// Verifies the backup that `text` names, telling `progress` as it goes; the last word has `done`.
    ///
    /// # Errors
    /// As [`Backups::find`]; those of access, store and database. A store that does not answer proves nothing.
    pub async fn verify(
        &self,
        ctx: &OpContext,
        text: &str,
        level: Level,
        progress: &mpsc::Sender<Progress>,
    ) -> Result<(), BackupError> {
        ctx.authorize(Action::BackupVerify, &"backup").await?;
        let backup = self.backups.find(&mut *self.core.store.reader().await?, text).await?;
        let entity = format!("backup:{}", backup.id);
        let asked = Details::none().with("level", format!("{level:?}").to_lowercase());
        ctx.record_alone(Action::BackupVerify, &entity, Outcome::Intended, asked).await?;

        let manifest = self.check_manifest(manifest_name(&backup)?).await?;
        self.backups.record_manifest(ctx, backup.id, manifest.is_some()).await?;
        let mut bad = usize::from(manifest.is_some());
        bad += self.check_packs(ctx, &backup, level, manifest, progress).await?;

        if bad == 0 && level == Level::Hash {
            let (id, now) = (backup.id, self.core.clock.now());
            let note = self.core.store.run_tx("record a verification", move |tx, _| {
                async move { retention::set_verified(tx, id, now).await }.boxed()
            });
            note.await?;
        }
        let outcome = if bad == 0 { Outcome::Done } else { Outcome::Failed };
        ctx.record_alone(Action::BackupVerify, &entity, outcome, Details::none().with("findings", bad))
            .await?;
        Ok(())
    }

    /// The manifest is small and decides everything: it is read back at every level.
    async fn check_manifest(&self, name: ObjectName) -> Result<Option<Finding>, BackupError> {
        let Some(sha256) = name.sha256() else { return Ok(None) };
        let (_, problem) = self.hash(&name, sha256, MAX_MANIFEST).await?;
        Ok(problem.map(|(_, problem)| Finding { object: name.to_string(), problem }))
    }

    async fn check_packs(
        &self,
        ctx: &OpContext,
        backup: &BackupRow,
        level: Level,
        manifest: Option<Finding>,
        progress: &mpsc::Sender<Progress>,
    ) -> Result<usize, BackupError> {
        let series = backup.series;
        if level == Level::Presence {
            self.backups.check_listing(ctx, series).await?;
        }
        let all = match &backup.prepared {
            Some(prepared) => {
                packs::of_ordinals(&mut *self.core.store.reader().await?, series, &prepared.refs).await?
            }
            None => Vec::new(),
        };
        let packs_total = all.len() as u64;
        let mut said =
            Progress { packs_total, findings: manifest.into_iter().collect(), ..Progress::default() };
        let checks = all.into_iter().map(|(facts, state)| self.check_pack(series, facts, state, level));
        let mut checks = futures::stream::iter(checks).buffer_unordered(PARALLEL);
        let mut bad = 0;
        while let Some(checked) = checks.next().await {
            let (read, lost) = checked?;
            said.packs_checked += 1;
            said.bytes_checked += read;
            if let Some(lost) = lost {
                bad += 1;
                let name = ObjectName::Pack { series, sha256: lost.sha256 };
                said.findings.push(Finding { object: name.to_string(), problem: lost.problem.clone() });
                self.backups.record_lost(ctx, &[lost]).await?;
            }
            if said.packs_checked.is_multiple_of(REPORT_EVERY) || !said.findings.is_empty() {
                // Whoever asked may be gone: the verification goes on, what it finds matters.
                let _ = progress.send(said.clone()).await;
                said.findings.clear();
            }
        }
        said.done = true;
        let _ = progress.send(said).await;
        Ok(bad)
    }

    /// Bytes read, and what is wrong with a pack.
    async fn check_pack(
        &self,
        series: SeriesId,
        facts: PackFacts,
        state: PackState,
        level: Level,
    ) -> Result<(u64, Option<LostPack>), BackupError> {
        let sha256 = facts.meta.sha256;
        let lost = |state, problem: String| LostPack { series, sha256, state, problem };
        if level == Level::Presence {
            // The listing has just said so.
            let problem = match state {
                PackState::Missing => "it is not in the bucket",
                PackState::Damaged => "it was found damaged",
                _ => return Ok((0, None)),
            };
            return Ok((0, Some(lost(state, problem.to_owned()))));
        }
        let (read, problem) =
            self.hash(&ObjectName::Pack { series, sha256 }, sha256, facts.meta.size).await?;
        Ok((read, problem.map(|(state, problem)| lost(state, problem))))
    }

    async fn hash(
        &self,
        name: &ObjectName,
        sha256: Sha256,
        limit: u64,
    ) -> Result<(u64, Option<(PackState, String)>), BackupError> {
        match self.objects.hash(&(*name).into(), limit).await {
            Ok((size, hash)) if hash == sha256 => Ok((size, None)),
            Ok((size, hash)) => Ok((size, Some((PackState::Damaged, format!("it hashes to {hash}"))))),
            Err(error) => match error.kind {
                ObjectErrorKind::NotFound => {
                    Ok((0, Some((PackState::Missing, "it is not in the bucket".to_owned()))))
                }
                ObjectErrorKind::TooLarge { .. } => {
                    Ok((limit, Some((PackState::Damaged, "it is longer than it was".to_owned()))))
                }
                _ => Err(BackupError::Objects(error)),
            },
        }
    }
}
