//! Packs change their states; manifests and packs whose time has come are deleted.
//!
//! One series at a time, in steps that may each be the last:
//!
//! 1. states move, in one transaction ([`packs::plan`]);
//! 2. if something is to be deleted: the database is in step with the bucket, every copy of it that there is by now can be
//!    known as one ([`recovery`]), and the bucket's manifests are those that the database knows ([`compare`]); if not, that
//!    is recorded, and nothing is deleted;
//! 3. expired backups become deleting, in a transaction; their manifests are deleted, with all versions; they are deleted;
//! 4. doomed packs become deleting, in a transaction of its own; the objects are deleted; they are deleted.
//!
//! Whether the database is in step is asked again before each batch of 3 and 4.
//!
//! What is deleting stays so until its object is gone: a store that refuses (a lock) is asked again the next round.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use roaring::RoaringBitmap;
use sealift_common::format::names::ObjectName;
use sealift_common::id::{BackupId, SeriesId};

use super::beside::Operation;
use super::compare::compare;
use super::packs::{self, Backup, CollectPlan, Newest, Series};
use super::states::BackupState;
use super::{Retention, RetentionError, series_entity};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::objects::Deletion;
use crate::recovery::{self, RecoveryError};
use crate::store::retention::{self, KeptBackup, PackMove, StoredPack};
use crate::store::{StoreError, Tx, series_operations};

/// A collection that was not heard of for so long is over.
const LEASE: Duration = Duration::from_secs(15 * 60);
/// Objects deleted at the same time.
const PARALLEL: usize = 8;
/// Objects that are deleted before it is asked again whether anything may be.
const ASK_EVERY: usize = 500;
/// Packs deleted in one round of one series; the next round goes on.
const BATCH: u64 = 10_000;

/// What one round did to one series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Backups that expired.
    pub expired: usize,
    /// Manifests that are gone.
    pub manifests: usize,
    /// Packs that are gone.
    pub packs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that the store refused to delete.
    pub refused: usize,
    /// Something that must not run beside it is under way.
    pub busy: bool,
    /// There was something to delete, and nothing was.
    pub halted: bool,
}

/// A round over many series makes one mark, before the first of them deletes anything.
#[derive(Debug, Default)]
pub struct Round {
    marked: bool,
}

/// Why nothing may be deleted.
#[derive(Debug)]
enum Halt {
    /// The database is not in step with the bucket: on record once, for all series.
    NotServing,
    /// The series is another in the bucket.
    Differs(String),
}

/// Packs and backups of a series, and what is to be done with them.
struct Facts {
    packs: BTreeMap<u32, StoredPack>,
    backups: Vec<KeptBackup>,
    plan: CollectPlan,
}

impl Retention {
    /// Applies the rules of a series, moves its packs, and deletes what may go.
    ///
    /// # Errors
    /// Those of store and database; what was done before stays done, and the next round goes on.
    pub async fn collect(&self, series: SeriesId, round: &mut Round) -> Result<Collected, RetentionError> {
        let ctx = &OpContext::coordinator(&self.core);
        let mut done = Collected::default();
        if !self.take(series).await? {
            return Ok(Collected { busy: true, ..done });
        }
        let outcome = self.collect_taken(ctx, series, round, &mut done).await;
        self.give_back(series).await?;
        outcome.map(|()| done)
    }

    async fn collect_taken(
        &self,
        ctx: &OpContext,
        series: SeriesId,
        round: &mut Round,
        done: &mut Collected,
    ) -> Result<(), RetentionError> {
        done.expired = self.expire(ctx, series).await?;
        let plan = self.move_packs(ctx, series).await?;
        let mut halt = None;
        if !plan.delete_backups.is_empty() || !plan.delete_packs.is_empty() {
            halt = self.delete_due(ctx, series, round, done).await?.err();
        }
        done.halted = halt.is_some();
        match halt {
            // It comes again as soon as they are in step.
            Some(Halt::NotServing) => Ok(()),
            Some(Halt::Differs(why)) => self.note_round(ctx, series, Some(why)).await,
            None => self.note_round(ctx, series, None).await,
        }
    }

    async fn delete_due(
        &self,
        ctx: &OpContext,
        series: SeriesId,
        round: &mut Round,
        done: &mut Collected,
    ) -> Result<Result<(), Halt>, RetentionError> {
        if let Err(halt) = self.may_begin(series, round).await? {
            return Ok(Err(halt));
        }
        // The bucket's next mark follows what is deleted here.
        self.core.standing.touch();
        if let Err(halt) = self.delete_manifests(ctx, series, done).await? {
            return Ok(Err(halt));
        }
        self.delete_packs(ctx, series, done).await
    }

    async fn take(&self, series: SeriesId) -> Result<bool, RetentionError> {
        let now = self.core.clock.now();
        let taken = self.core.store.run_tx("take a series for collection", move |tx, _| {
            async move {
                self.enter(tx, series).await?;
                series_operations::take(
                    tx,
                    series,
                    Operation::Collect,
                    &self.core.coordinator.to_string(),
                    now,
                    now.plus(LEASE),
                )
                .await
            }
            .boxed()
        });
        Ok(taken.await?.is_none())
    }

    async fn give_back(&self, series: SeriesId) -> Result<(), StoreError> {
        self.core
            .store
            .run_tx("give a series back", move |tx, _| {
                async move {
                    let holder = self.core.coordinator.to_string();
                    series_operations::give_back(tx, series, Operation::Collect, &holder).await
                }
                .boxed()
            })
            .await
    }

    /// What is known of a series and what is to be done; in the transaction that does it.
    async fn facts(&self, tx: &mut Tx, series: SeriesId) -> Result<Facts, StoreError> {
        let now = self.core.clock.now();
        let backups = retention::backups(tx, series, now).await?;
        let stored = retention::packs(tx, series).await?;
        let complete = |b: &&KeptBackup| b.state == BackupState::Committed && !b.partial;
        let newest = match backups.iter().filter(complete).max_by_key(|b| (b.committed, b.sequence)) {
            Some(backup) => {
                let used = retention::used(tx, backup.id).await?;
                // Without a word on what it uses, nothing can be said to be used little.
                (used.len() as u64 == backup.refs.len()).then(|| Newest {
                    committed: backup.committed.unwrap_or_default(),
                    raw_bytes: backup.raw_bytes,
                    used: backup.refs.iter().zip(used.iter().copied().map(u64::from)).collect(),
                })
            }
            None => None,
        };
        let facts = Series {
            packs: stored.iter().map(|pack| pack.fate.clone()).collect(),
            backups: backups.iter().map(backup_facts).collect(),
            newest,
            run_since: retention::run_since(tx, series).await?,
        };
        let plan = packs::plan(&facts, now);
        let packs = stored.into_iter().map(|pack| (pack.fate.ordinal, pack)).collect();
        Ok(Facts { packs, backups, plan })
    }

    /// Everything but deleting.
    async fn move_packs(&self, ctx: &OpContext, series: SeriesId) -> Result<CollectPlan, RetentionError> {
        self.core
            .store
            .run_tx("move the packs of a series", move |tx, _| {
                async move {
                    self.enter(tx, series).await?;
                    let plan = self.facts(tx, series).await?.plan;
                    let now = self.core.clock.now();
                    let moves = [
                        ("revived", &plan.revive, PackMove::Refer),
                        ("retired", &plan.retire, PackMove::Retire),
                        ("doomed", &plan.doom, PackMove::Doom),
                        ("forsaken", &plan.forsake, PackMove::Forsake),
                    ];
                    let (mut said, mut moved) = (Details::none(), 0);
                    for (name, packs, how) in moves {
                        let count = retention::move_packs(tx, series, packs, how, now).await?;
                        moved += count;
                        said = said.with(name, count);
                    }
                    if moved > 0 {
                        let entity = series_entity(series);
                        ctx.record(tx, Action::SeriesCollect, &entity, Outcome::Done, said).await?;
                    }
                    Ok(plan)
                }
                .boxed()
            })
            .await
    }

    /// Whether anything may be deleted in this series.
    async fn may_begin(
        &self,
        series: SeriesId,
        round: &mut Round,
    ) -> Result<Result<(), Halt>, RetentionError> {
        if !round.marked {
            if let Err(halt) = halted(recovery::deletion_begins(&self.core, &self.objects).await)? {
                return Ok(Err(halt));
            }
            round.marked = true;
        }
        let before = self.read_backups(series).await?;
        let listed = self.backups.listed_manifests(series).await?;
        let after = self.read_backups(series).await?;
        let compared = compare(series, &before, &listed, &after, self.core.clock.now());
        Ok(compared.map_err(|difference| Halt::Differs(difference.to_string())))
    }

    /// Asked before each batch.
    async fn may_go_on(&self) -> Result<Result<(), Halt>, RetentionError> {
        halted(recovery::deletion_allowed(&self.core, &self.objects).await)
    }

    async fn read_backups(&self, series: SeriesId) -> Result<Vec<KeptBackup>, StoreError> {
        retention::backups(&mut *self.core.store.reader().await?, series, self.core.clock.now()).await
    }

    async fn delete_manifests(
        &self,
        ctx: &OpContext,
        series: SeriesId,
        done: &mut Collected,
    ) -> Result<Result<(), Halt>, RetentionError> {
        for (place, backup) in self.begin_deleting_backups(ctx, series).await?.into_iter().enumerate() {
            if place % ASK_EVERY == 0
                && let Err(halt) = self.may_go_on().await?
            {
                return Ok(Err(halt));
            }
            let name =
                ObjectName::Manifest { series, sequence: backup.sequence, sha256: backup.manifest_sha256 };
            match self.objects.delete_for_good(&name.into()).await.map_err(RetentionError::Objects)? {
                Deletion::Gone => {
                    self.end_deleting_backup(ctx, backup.id).await?;
                    done.manifests += 1;
                }
                Deletion::Refused { why } => {
                    tracing::info!(%name, why, "the store does not delete a manifest yet");
                    done.refused += 1;
                }
            }
        }
        Ok(Ok(()))
    }

    async fn begin_deleting_backups(
        &self,
        ctx: &OpContext,
        series: SeriesId,
    ) -> Result<Vec<KeptBackup>, RetentionError> {
        self.core
            .store
            .run_tx("begin to delete backups", move |tx, _| {
                async move {
                    self.enter(tx, series).await?;
                    let facts = self.facts(tx, series).await?;
                    let mut due = Vec::new();
                    for backup in facts.backups {
                        if !facts.plan.delete_backups.contains(&backup.id) {
                            continue;
                        }
                        let (from, to) = (BackupState::Expired, BackupState::Deleting);
                        let expired = backup.keeping.expired.as_ref();
                        if retention::move_backup(tx, backup.id, from, to, expired).await? {
                            let said = Details::none()
                                .with("series", series.to_string())
                                .with("before", from.as_str())
                                .with("after", to.as_str())
                                .with("expired_by", expired.map(|n| n.by.clone()).unwrap_or_default())
                                .with(
                                    "expired_because",
                                    expired.map(|n| n.reason.clone()).unwrap_or_default(),
                                );
                            let entity = format!("backup:{}", backup.id);
                            ctx.record(tx, Action::BackupRemove, &entity, Outcome::Intended, said).await?;
                        }
                        due.push(backup);
                    }
                    Ok::<_, RetentionError>(due)
                }
                .boxed()
            })
            .await
    }

    async fn end_deleting_backup(&self, ctx: &OpContext, id: BackupId) -> Result<(), RetentionError> {
        self.core
            .store
            .run_tx("record that a manifest is gone", move |tx, _| {
                async move {
                    self.fence(tx).await?;
                    let (from, to) = (BackupState::Deleting, BackupState::Deleted);
                    if retention::end_backup(tx, id).await? {
                        let said = Details::none().with("before", from.as_str()).with("after", to.as_str());
                        let entity = format!("backup:{id}");
                        ctx.record(tx, Action::BackupRemove, &entity, Outcome::Done, said).await?;
                    }
                    Ok(())
                }
                .boxed()
            })
            .await
    }

    async fn delete_packs(
        &self,
        ctx: &OpContext,
        series: SeriesId,
        done: &mut Collected,
    ) -> Result<Result<(), Halt>, RetentionError> {
        let mut deleting = self.begin_deleting_packs(ctx, series).await?;
        while !deleting.is_empty() {
            let batch = deleting.drain(..deleting.len().min(ASK_EVERY)).collect();
            if let Err(halt) = self.may_go_on().await? {
                return Ok(Err(halt));
            }
            self.delete_batch(ctx, series, batch, done).await?;
        }
        Ok(Ok(()))
    }

    async fn delete_batch(
        &self,
        ctx: &OpContext,
        series: SeriesId,
        batch: Vec<(u32, StoredPack)>,
        done: &mut Collected,
    ) -> Result<(), RetentionError> {
        let mut outcomes = futures::stream::iter(batch)
            .map(|(ordinal, pack)| async move {
                let name: ObjectName = ObjectName::Pack { series, sha256: pack.sha256 };
                (ordinal, pack, self.objects.delete_for_good(&name.into()).await)
            })
            .buffer_unordered(PARALLEL);
        let (mut gone, mut bytes, mut failed) = (RoaringBitmap::new(), 0, None);
        while let Some((ordinal, pack, outcome)) = outcomes.next().await {
            match outcome {
                Ok(Deletion::Gone) => {
                    gone.insert(ordinal);
                    bytes += pack.size;
                }
                Ok(Deletion::Refused { why }) => {
                    tracing::info!(pack = %pack.sha256, why, "the store does not delete a pack yet");
                    done.refused += 1;
                }
                Err(error) => failed = Some(error),
            }
        }
        self.end_deleting_packs(ctx, series, &gone, bytes).await?;
        done.packs += gone.len() as usize;
        done.bytes += bytes;
        failed.map_or(Ok(()), |error| Err(RetentionError::Objects(error)))
    }

    /// Doomed to deleting: its own transaction, before the bucket is touched, and final.
    async fn begin_deleting_packs(
        &self,
        ctx: &OpContext,
        series: SeriesId,
    ) -> Result<Vec<(u32, StoredPack)>, RetentionError> {
        self.core
            .store
            .run_tx("begin to delete packs", move |tx, _| {
                async move {
                    self.enter(tx, series).await?;
                    let mut facts = self.facts(tx, series).await?;
                    let due: RoaringBitmap = facts.plan.delete_packs.iter().take(BATCH as usize).collect();
                    let now = self.core.clock.now();
                    let moved = retention::move_packs(tx, series, &due, PackMove::Delete, now).await?;
                    if moved > 0 {
                        let said = Details::none().with("deleting", moved).with("before", "doomed");
                        let entity = series_entity(series);
                        ctx.record(tx, Action::SeriesCollect, &entity, Outcome::Intended, said).await?;
                    }
                    let due = due.iter().filter_map(|ordinal| Some((ordinal, facts.packs.remove(&ordinal)?)));
                    Ok::<_, RetentionError>(due.collect())
                }
                .boxed()
            })
            .await
    }

    async fn end_deleting_packs(
        &self,
        ctx: &OpContext,
        series: SeriesId,
        gone: &RoaringBitmap,
        bytes: u64,
    ) -> Result<(), RetentionError> {
        if gone.is_empty() {
            return Ok(());
        }
        self.core
            .store
            .run_tx("record that packs are gone", move |tx, _| {
                async move {
                    self.enter(tx, series).await?;
                    let now = self.core.clock.now();
                    let moved = retention::move_packs(tx, series, gone, PackMove::Remove, now).await?;
                    let said = Details::none().with("deleted", moved).with("bytes", bytes);
                    let entity = series_entity(series);
                    ctx.record(tx, Action::SeriesCollect, &entity, Outcome::Done, said).await?;
                    Ok(())
                }
                .boxed()
            })
            .await
    }

    /// Records that the series was looked at; that nothing may be deleted in it, or may again, is audited.
    async fn note_round(
        &self,
        ctx: &OpContext,
        series: SeriesId,
        halt: Option<String>,
    ) -> Result<(), RetentionError> {
        let halt = &halt;
        self.core
            .store
            .run_tx("record that a series was collected", move |tx, _| {
                async move {
                    self.enter(tx, series).await?;
                    let now = self.core.clock.now();
                    let before = retention::halted(tx, series).await?;
                    let why = before.as_ref().map(|(_, why)| why);
                    if why != halt.as_ref() {
                        let shown = |why: Option<&String>| why.map_or("deletes", String::as_str).to_owned();
                        let said =
                            Details::none().with("before", shown(why)).with("after", shown(halt.as_ref()));
                        let entity = series_entity(series);
                        ctx.record(tx, Action::SeriesHalt, &entity, Outcome::Done, said).await?;
                        if let Some(why) = halt {
                            tracing::error!(%series, why, "nothing is deleted in this series");
                        }
                    }
                    let since = before.map_or(now, |(since, _)| since);
                    let halt = halt.as_deref().map(|why| (since, why));
                    Ok(retention::set_collected(tx, series, now, halt).await?)
                }
                .boxed()
            })
            .await
    }
}

/// What recovery says, as a reason to delete nothing; what it could not find out is an error.
fn halted(said: Result<(), RecoveryError>) -> Result<Result<(), Halt>, RetentionError> {
    match said {
        Ok(()) => Ok(Ok(())),
        Err(RecoveryError::NotServing(_)) => Ok(Err(Halt::NotServing)),
        Err(error) => Err(Box::new(error).into()),
    }
}

fn backup_facts(backup: &KeptBackup) -> Backup {
    Backup {
        id: backup.id,
        state: backup.state,
        refs: backup.refs.clone(),
        signed_until: backup.signed_until,
        expired: backup.keeping.expired.as_ref().map(|note| note.at),
        in_use: backup.in_use,
        locked_until: backup.locked_until,
    }
}
