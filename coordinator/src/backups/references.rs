//! What a backup refers to: kept from deletion by Prepare, and counted where something of it is lost.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use roaring::RoaringBitmap;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::EpochId;
use sealift_common::format::manifest::PackRef;
use sealift_common::format::names::ObjectName;
use sealift_common::id::{BackupId, SeriesId, Sha256};

use super::prepare::ManifestMismatch;
use super::{BackupError, Backups};
use crate::objects::settings::ObjectLock;
use crate::retention::states::PackState;
use crate::store::packs::Candidate;
use crate::store::retention::{self, PackMove};
use crate::store::{StoreError, Tx};

/// Locks that are extended at the same time.
const PARALLEL: usize = 16;

/// What a manifest names, found in the database.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct References {
    /// Ordinals of its packs.
    pub refs: RoaringBitmap,
    /// Those of them that are not live yet, or not any more.
    waiting: RoaringBitmap,
    /// Raw bytes used of each, in the order of the ordinals.
    used: Vec<u32>,
}

/// The packs that a manifest names, if every one of them may be referred to, as it was stored.
///
/// # Errors
/// [`ManifestMismatch::Pack`] for the first that may not.
pub fn references(
    named: &[PackRef],
    candidates: &[Candidate],
    epoch: EpochId,
) -> Result<References, ManifestMismatch> {
    let known: HashMap<Sha256, &Candidate> = candidates.iter().map(|c| (c.facts.meta.sha256, c)).collect();
    let (mut found, mut used) = (References::default(), BTreeMap::new());
    for pack in named {
        let sha256 = pack.meta.sha256;
        let wrong = |why| Err(ManifestMismatch::Pack { sha256, why });
        match known.get(&sha256) {
            None => return wrong("was never stored in this series"),
            Some(known) if !known.state.is_referable() => {
                return wrong("is not stored, or not whole any more");
            }
            Some(known) if known.epoch != epoch => return wrong("is of another epoch"),
            Some(known) if known.facts.meta != pack.meta || known.facts.origin != pack.origin => {
                return wrong("was stored with other lengths, hashes or origin");
            }
            Some(known) => {
                found.refs.insert(known.ordinal);
                used.insert(known.ordinal, u32::try_from(pack.referenced_raw).unwrap_or(u32::MAX));
                if known.state != PackState::Live {
                    found.waiting.insert(known.ordinal);
                }
            }
        }
    }
    found.used = used.into_values().collect();
    Ok(found)
}

impl References {
    /// Makes all of them live, for a backup that is being prepared. `false` where one of them is about to be deleted: they
    /// are counted.
    ///
    /// Call it with the series locked.
    ///
    /// # Errors
    /// The database's own.
    pub async fn keep(
        &self,
        tx: &mut Tx,
        series: SeriesId,
        backup: BackupId,
        now: UnixMillis,
        locked_until: Option<UnixMillis>,
    ) -> Result<bool, StoreError> {
        let moved = retention::move_packs(tx, series, &self.waiting, PackMove::Refer, now).await?;
        retention::set_used(tx, backup, &self.used, locked_until).await?;
        Ok(moved == self.waiting.len())
    }
}

/// Counts anew what is lost of a backup that is committed now, perhaps long after it was prepared: what it names is live
/// again, as far as it is there.
///
/// # Errors
/// The database's own.
pub async fn count_losses(
    tx: &mut Tx,
    series: SeriesId,
    backup: BackupId,
    refs: &RoaringBitmap,
    late: bool,
    now: UnixMillis,
) -> Result<u64, StoreError> {
    retention::move_packs(tx, series, refs, PackMove::Refer, now).await?;
    // Only what waited beyond its time can have lost packs to collection.
    let states: &[PackState] = match late {
        true => &[PackState::Missing, PackState::Damaged, PackState::Deleting, PackState::Deleted],
        false => &[PackState::Missing, PackState::Damaged],
    };
    let mut lost = RoaringBitmap::new();
    for state in states {
        lost |= retention::ordinals(tx, series, *state).await?;
    }
    let lost = lost.intersection_len(refs);
    retention::set_lost_packs(tx, backup, lost).await?;
    Ok(lost)
}

impl Backups {
    /// Sees to it that everything a prepared backup names is locked for another period: reused packs were locked when they
    /// were stored, perhaps long ago.
    ///
    /// # Errors
    /// Where the store cannot be asked, or refuses: then the manifest is not signed for.
    pub(super) async fn extend_locks(
        &self,
        series: SeriesId,
        refs: &RoaringBitmap,
        lock: ObjectLock,
    ) -> Result<(), BackupError> {
        let now = self.core.clock.now();
        let needed = now.plus(lock.period);
        let packs = retention::packs(&mut *self.core.store.reader().await?, series).await?;
        let short = packs.into_iter().filter(|pack| refs.contains(pack.fate.ordinal));
        let short = short.filter(|pack| pack.fate.locked_until.is_none_or(|until| until < needed));
        let until = now.plus(lock.at_upload());
        let extended = futures::stream::iter(short.map(|pack| pack.sha256))
            .map(|sha256| async move {
                let key = ObjectName::Pack { series, sha256 }.into();
                let until =
                    self.objects.extend_lock(&key, &lock, until).await.map_err(BackupError::Objects)?;
                Ok::<_, BackupError>((sha256, until))
            })
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<_>>()
            .await?;
        if extended.is_empty() {
            return Ok(());
        }
        let extended = Arc::new(extended);
        self.core
            .store
            .run_tx("record extended locks", move |tx, _| {
                let extended = extended.clone();
                Box::pin(async move {
                    for (sha256, until) in extended.iter() {
                        retention::set_locked_until(tx, series, *sha256, *until).await?;
                    }
                    Ok::<_, BackupError>(())
                })
            })
            .await
    }
}
