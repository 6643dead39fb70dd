//! Compares a series with a listing of the bucket: what is missing is not referred to again, and the backups that need it are
//! named.

use std::collections::{HashMap, HashSet};

use futures::FutureExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::format::names::{ObjectName, manifests_prefix, packs_prefix};
use sealift_common::id::{BackupId, SeriesId, Sha256};

use super::{BackupError, Backups};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::objects::signing::MAX_MANIFEST;
use crate::retention::states::PackState;
use crate::store::packs;
use crate::store::retention::{self, KeptBackup};
use crate::store::{StoreError, Tx, sources};

/// A pack that is not as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostPack {
    /// Of which series.
    pub series: SeriesId,
    /// Its hash.
    pub sha256: Sha256,
    /// Missing, or damaged.
    pub state: PackState,
    /// What was found, for people.
    pub problem: String,
}

/// What a listing shows that the database does not say yet.
#[derive(Debug, Default)]
struct Changes {
    lost: Vec<LostPack>,
    found: Vec<Sha256>,
    /// Backups whose manifests are there (`false`) or not (`true`), otherwise than was known.
    manifests: Vec<(BackupId, bool)>,
}

impl Backups {
    /// Lists the objects of a series and marks those that are missing, or of another length; what was missing and is there
    /// again is taken back.
    ///
    /// # Errors
    /// Those of store and database.
    pub async fn check_listing(
        &self,
        ctx: &OpContext,
        series: SeriesId,
    ) -> Result<Vec<LostPack>, BackupError> {
        // What is stored after this moment may be missing from the listing and yet be there.
        let began = self.core.clock.now();
        let changes = self.compare(series, began).await?;
        self.record_changes(ctx, series, &changes).await?;
        self.core
            .store
            .run_tx("record a listing", move |tx, _| packs::set_listed(tx, series, began).boxed())
            .await?;
        Ok(changes.lost)
    }

    async fn compare(&self, series: SeriesId, began: UnixMillis) -> Result<Changes, BackupError> {
        let (expected, backups) = {
            let mut reader = self.core.store.reader().await?;
            let expected = packs::expected(&mut reader, series, began).await?;
            (expected, retention::backups(&mut reader, series, began).await?)
        };
        let mut changes = Changes::default();
        // A series without packs needs no listing.
        if !expected.is_empty() {
            self.compare_packs(series, expected, &mut changes).await?;
        }
        let prepared = backups
            .iter()
            .filter(|b| b.state.has_manifest() && b.committed.is_some_and(|committed| committed < began));
        let prepared: Vec<&KeptBackup> = prepared.collect();
        if !prepared.is_empty() {
            self.compare_manifests(series, &prepared, &mut changes).await?;
        }
        Ok(changes)
    }

    async fn compare_packs(
        &self,
        series: SeriesId,
        expected: Vec<packs::ExpectedPack>,
        changes: &mut Changes,
    ) -> Result<(), BackupError> {
        let mut unseen: HashMap<Sha256, packs::ExpectedPack> =
            expected.into_iter().map(|pack| (pack.sha256, pack)).collect();
        let mut after = None;
        loop {
            let page = self.objects.list(&packs_prefix(series), after).await.map_err(BackupError::Objects)?;
            for object in &page.objects {
                let Ok(ObjectName::Pack { sha256, .. }) = object.name.as_str().parse() else { continue };
                let Some(pack) = unseen.remove(&sha256) else { continue };
                if pack.size != object.size {
                    let problem = format!("it is {} bytes, not {}", object.size, pack.size);
                    changes.lost.push(LostPack { series, sha256, state: PackState::Damaged, problem });
                } else if pack.missing {
                    changes.found.push(sha256);
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        // Those that were missing before are still missing: the same again, and no news.
        changes.lost.extend(unseen.into_keys().map(|sha256| {
            let problem = "it is not in the bucket".to_owned();
            LostPack { series, sha256, state: PackState::Missing, problem }
        }));
        Ok(())
    }

    async fn compare_manifests(
        &self,
        series: SeriesId,
        backups: &[&KeptBackup],
        changes: &mut Changes,
    ) -> Result<(), BackupError> {
        let listed: HashSet<ObjectName> = self.listed_manifests(series).await?.into_iter().collect();
        for backup in backups {
            let name =
                ObjectName::Manifest { series, sequence: backup.sequence, sha256: backup.manifest_sha256 };
            match (listed.contains(&name), backup.keeping.manifest_lost) {
                (false, false) => changes.manifests.push((backup.id, true)),
                // There again: believed when it reads right.
                (true, true) => match self.objects.hash(&name.into(), MAX_MANIFEST).await {
                    Ok((_, hash)) if hash == backup.manifest_sha256 => {
                        changes.manifests.push((backup.id, false));
                    }
                    Err(error) if error.is_retryable() => return Err(BackupError::Objects(error)),
                    _ => {}
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// The names of all manifests of a series that are in the bucket.
    ///
    /// # Errors
    /// The store's own.
    pub async fn listed_manifests(&self, series: SeriesId) -> Result<Vec<ObjectName>, BackupError> {
        let (mut names, mut after) = (Vec::new(), None);
        loop {
            let page = self.objects.list(&manifests_prefix(series), after).await;
            let page = page.map_err(BackupError::Objects)?;
            names.extend(page.objects.iter().filter_map(|object| match object.name.as_str().parse() {
                Ok(name @ ObjectName::Manifest { .. }) => Some(name),
                _ => None,
            }));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(names),
            }
        }
    }

    async fn record_changes(
        &self,
        ctx: &OpContext,
        series: SeriesId,
        changes: &Changes,
    ) -> Result<(), BackupError> {
        if changes.lost.is_empty() && changes.found.is_empty() && changes.manifests.is_empty() {
            return Ok(());
        }
        self.core
            .store
            .run_tx("record what a listing shows", move |tx, _| {
                async move {
                    sources::lock_series(tx, series).await?;
                    note_lost(tx, ctx, &changes.lost).await?;
                    for sha256 in &changes.found {
                        if packs::found(tx, series, *sha256).await? {
                            let said = Details::none().with("series", series.to_string());
                            let said = said.with("state", "found again");
                            let entity = format!("pack:{sha256}");
                            ctx.record(tx, Action::BackupVerify, &entity, Outcome::Done, said).await?;
                        }
                    }
                    for (backup, lost) in &changes.manifests {
                        note_manifest(tx, ctx, *backup, *lost).await?;
                    }
                    self.name_affected(tx, ctx, series).await?;
                    Ok::<_, BackupError>(())
                }
                .boxed()
            })
            .await
    }

    /// Marks packs of one series as lost: no backup refers to them again. Each is audited, and so is each backup that needs
    /// one of them.
    ///
    /// # Errors
    /// The database's own.
    pub async fn record_lost(&self, ctx: &OpContext, lost: &[LostPack]) -> Result<(), BackupError> {
        let Some(series) = lost.first().map(|pack| pack.series) else { return Ok(()) };
        let changes = Changes { lost: lost.to_vec(), ..Changes::default() };
        self.record_changes(ctx, series, &changes).await
    }

    /// Records whether a backup's manifest is there and right.
    ///
    /// # Errors
    /// The database's own.
    pub async fn record_manifest(
        &self,
        ctx: &OpContext,
        backup: BackupId,
        lost: bool,
    ) -> Result<(), BackupError> {
        self.core
            .store
            .run_tx("record how a manifest is", move |tx, _| {
                async move { Ok::<_, BackupError>(note_manifest(tx, ctx, backup, lost).await?) }.boxed()
            })
            .await
    }

    /// Counts anew what is lost of each backup of a series, and audits each whose count is another.
    async fn name_affected(&self, tx: &mut Tx, ctx: &OpContext, series: SeriesId) -> Result<(), StoreError> {
        let lost = retention::ordinals(tx, series, PackState::Missing).await?
            | retention::ordinals(tx, series, PackState::Damaged).await?;
        for backup in retention::backups(tx, series, self.core.clock.now()).await? {
            let (before, after) = (backup.keeping.lost_packs, backup.refs.intersection_len(&lost));
            if !backup.state.has_manifest() || before == after {
                continue;
            }
            retention::set_lost_packs(tx, backup.id, after).await?;
            let said = Details::none()
                .with("series", series.to_string())
                .with("before", before)
                .with("after", after)
                .with("problem", "packs that it needs are missing or damaged");
            let entity = format!("backup:{}", backup.id);
            ctx.record(tx, Action::BackupDamage, &entity, Outcome::Done, said).await?;
            if after > before {
                tracing::error!(backup = %backup.id, %series, lost_packs = after, "a backup cannot be restored whole");
            }
        }
        Ok(())
    }
}

async fn note_lost(tx: &mut Tx, ctx: &OpContext, lost: &[LostPack]) -> Result<(), StoreError> {
    for pack in lost {
        if packs::lost(tx, pack.series, pack.sha256, pack.state).await? {
            let said = Details::none()
                .with("series", pack.series.to_string())
                .with("state", pack.state.as_str())
                .with("problem", pack.problem.as_str());
            let entity = format!("pack:{}", pack.sha256);
            ctx.record(tx, Action::BackupVerify, &entity, Outcome::Done, said).await?;
            tracing::error!(series = %pack.series, pack = %pack.sha256, problem = pack.problem, "a pack is lost");
        }
    }
    Ok(())
}

async fn note_manifest(tx: &mut Tx, ctx: &OpContext, backup: BackupId, lost: bool) -> Result<(), StoreError> {
    if retention::set_manifest_lost(tx, backup, lost).await? {
        let said = Details::none().with("before", !lost).with("after", lost);
        let said = said.with("problem", "its manifest is missing or damaged");
        ctx.record(tx, Action::BackupDamage, &format!("backup:{backup}"), Outcome::Done, said).await?;
        if lost {
            tracing::error!(%backup, "the manifest of a backup is lost");
        }
    }
    Ok(())
}
