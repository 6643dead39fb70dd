//! Which packs of a series nobody needs any more, and when they may go (docs/format.md, Deleting). No I/O.
//!
//! | from | to | when |
//! |---|---|---|
//! | live | retiring | the newest complete backup uses less than a quarter of it; worst first, at most 2 % of that backup at a time |
//! | live, retiring | doomed | no backup refers to it that is committed or may yet be |
//! | signed, stored | doomed | no backup ever referred to it for 14 days: an interrupted backup goes on with it until then |
//! | doomed | live | a backup refers to it after all |
//! | doomed, missing, damaged | deleting | 72 hours without a reference, *and* no manifest in the bucket names it, *and* no run is open that began before it was doomed, *and* 25 hours after its last signature, *and* its lock has ended |
//!
//! Expired backups do not keep packs from being doomed; but as long as their manifests may be in the bucket, nothing that
//! they name is deleted. A manifest goes 72 hours after its backup expired, unless a restore reads it.

use std::collections::BTreeMap;
use std::time::Duration;

use roaring::RoaringBitmap;
use sealift_common::clock::UnixMillis;
use sealift_common::id::BackupId;

use super::states::{BackupState, PackState};

/// An expired backup can be undeleted for so long, and packs stay so long after their last reference.
pub const GRACE: Duration = Duration::from_secs(72 * 3_600);
/// A pack that no backup ever referred to stays so long.
pub const IDLE: Duration = Duration::from_secs(14 * 86_400);
/// Stores exist that finish a PUT hours after its signature: what was signed for may arrive so much later.
pub const LATE: Duration = Duration::from_secs(25 * 3_600);
/// A pack is retired when less than one part in so many of it is used.
const USED_PARTS: u64 = 4;
/// At most one part in so many of a backup is uploaded anew at a time because its packs retire.
const RETIRED_PARTS: u64 = 50;

/// A pack, as far as collection is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// Its position in the bitmaps.
    pub ordinal: u32,
    /// Where it is in its life.
    pub state: PackState,
    /// Raw bytes in it; 0 where its agent did not say.
    pub raw_len: u64,
    /// When its PUT was signed last.
    pub signed: UnixMillis,
    /// When it was first seen in the bucket.
    pub stored: Option<UnixMillis>,
    /// Whether a backup ever referred to it.
    pub referred: bool,
    /// Since when nothing refers to it, as far as anyone has looked.
    pub doomed: Option<UnixMillis>,
    /// The store refuses to delete it until then.
    pub locked_until: Option<UnixMillis>,
}

/// A backup, as far as collection is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    /// Its id.
    pub id: BackupId,
    /// Where it is.
    pub state: BackupState,
    /// Ordinals of its packs.
    pub refs: RoaringBitmap,
    /// Its manifest's signature was good until then.
    pub signed_until: UnixMillis,
    /// When it expired.
    pub expired: Option<UnixMillis>,
    /// A restore or a replication reads it.
    pub in_use: bool,
    /// The store refuses to delete its manifest until then.
    pub locked_until: Option<UnixMillis>,
}

/// The newest complete backup: what new backups are likely to need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Newest {
    /// When it was committed.
    pub committed: UnixMillis,
    /// What was read from the source.
    pub raw_bytes: u64,
    /// Of each of its packs, how many raw bytes it uses.
    pub used: BTreeMap<u32, u64>,
}

/// All that is known about a series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Packs that were not removed.
    pub packs: Vec<Pack>,
    /// Backups that were prepared and not removed.
    pub backups: Vec<Backup>,
    /// The newest complete one.
    pub newest: Option<Newest>,
    /// When the oldest open attempt began.
    pub run_since: Option<UnixMillis>,
}

/// What is to be done. Each pack is in one of the sets at most.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CollectPlan {
    /// Little of them is used.
    pub retire: RoaringBitmap,
    /// Nothing refers to them.
    pub doom: RoaringBitmap,
    /// They are lost, and nothing refers to them: their time begins to run.
    pub forsake: RoaringBitmap,
    /// A backup refers to them after all.
    pub revive: RoaringBitmap,
    /// Manifests to delete, before any pack.
    pub delete_backups: Vec<BackupId>,
    /// Packs to delete; deleting ones of an earlier round among them.
    pub delete_packs: RoaringBitmap,
}

impl Backup {
    /// Whether it is there, or may yet be.
    fn wants(&self, now: UnixMillis) -> bool {
        match self.state {
            BackupState::Committing | BackupState::Committed => true,
            BackupState::Abandoned => now <= self.signed_until.plus(LATE),
            _ => false,
        }
    }

    /// Whether its manifest may be in the bucket: what it names must stay.
    fn pins(&self, now: UnixMillis) -> bool {
        self.wants(now) || matches!(self.state, BackupState::Expired | BackupState::Deleting)
    }

    fn is_due(&self, now: UnixMillis) -> bool {
        let grace_is_over = self.expired.is_some_and(|at| at.plus(GRACE) <= now);
        match self.state {
            BackupState::Deleting => true,
            BackupState::Expired => {
                grace_is_over && !self.in_use && self.locked_until.is_none_or(|until| until <= now)
            }
            _ => false,
        }
    }
}

impl Pack {
    /// When the time since its last reference, or its first appearance, is over.
    fn due(&self) -> Option<UnixMillis> {
        let doomed = self.doomed?;
        let unused =
            if self.referred { doomed.plus(GRACE) } else { self.stored.unwrap_or(self.signed).plus(IDLE) };
        let signed = self.signed.plus(LATE);
        Some(unused.max(signed).max(self.locked_until.unwrap_or_default()))
    }

    fn may_go(&self, run_since: Option<UnixMillis>, now: UnixMillis) -> bool {
        let named_by_a_run = self.doomed.is_some_and(|doomed| run_since.is_some_and(|began| began <= doomed));
        !named_by_a_run && self.due().is_some_and(|due| due <= now)
    }
}

/// What is to be done with the packs and manifests of one series.
pub fn plan(series: &Series, now: UnixMillis) -> CollectPlan {
    let union = |backups: &mut dyn Iterator<Item = &Backup>| {
        backups.fold(RoaringBitmap::new(), |all, backup| all | &backup.refs)
    };
    let wanted = union(&mut series.backups.iter().filter(|backup| backup.wants(now)));
    let pinned = union(&mut series.backups.iter().filter(|backup| backup.pins(now)));
    let mut plan = CollectPlan {
        delete_backups: series.backups.iter().filter(|b| b.is_due(now)).map(|b| b.id).collect(),
        ..CollectPlan::default()
    };
    for pack in &series.packs {
        let (wanted, pinned) = (wanted.contains(pack.ordinal), pinned.contains(pack.ordinal));
        let idle = pack.stored.unwrap_or(pack.signed).plus(IDLE) <= now;
        let free = !wanted && !pinned && pack.may_go(series.run_since, now);
        let into = match pack.state {
            PackState::Doomed if wanted => &mut plan.revive,
            PackState::Doomed | PackState::Missing | PackState::Damaged if free => &mut plan.delete_packs,
            PackState::Missing | PackState::Damaged if !wanted && pack.doomed.is_none() => &mut plan.forsake,
            PackState::Live | PackState::Retiring if !wanted => &mut plan.doom,
            PackState::Signed | PackState::Stored if !wanted && idle => &mut plan.doom,
            PackState::Deleting => &mut plan.delete_packs,
            _ => continue,
        };
        into.insert(pack.ordinal);
    }
    plan.retire = series.newest.as_ref().map(|newest| retire(series, newest, &wanted)).unwrap_or_default();
    plan
}

/// Live packs of which the newest complete backup uses too little, as many as may be uploaded anew.
fn retire(series: &Series, newest: &Newest, wanted: &RoaringBitmap) -> RoaringBitmap {
    let used = |pack: &Pack| newest.used.get(&pack.ordinal).copied().unwrap_or(0);
    let under_way: u64 = series.packs.iter().filter(|p| p.state == PackState::Retiring).map(used).sum();
    let mut left = (newest.raw_bytes / RETIRED_PARTS).saturating_sub(under_way);
    let little_used = |pack: &&Pack| {
        pack.state == PackState::Live
            && wanted.contains(pack.ordinal)
            && pack.stored.is_some_and(|stored| stored <= newest.committed)
            && used(pack).saturating_mul(USED_PARTS) < pack.raw_len
    };
    let mut candidates: Vec<&Pack> = series.packs.iter().filter(little_used).collect();
    // Ten thousandths: exact enough to say which is worse, and a total order.
    candidates.sort_by_key(|pack| (used(pack).saturating_mul(10_000) / pack.raw_len.max(1), pack.ordinal));
    let mut retired = RoaringBitmap::new();
    for pack in candidates {
        let Some(rest) = left.checked_sub(used(pack)) else { break };
        left = rest;
        retired.insert(pack.ordinal);
    }
    retired
}

#[cfg(test)]
#[path = "packs_tests.rs"]
mod tests;
