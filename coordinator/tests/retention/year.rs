//! A simulated year of nightly 2 % changes: the agent's own chunk table and extents, and retention's own plans, night by night.
//! Stored bytes, extents and what a restore reads stay within what docs/format.md says. No bytes are moved: a chunk is its
//! record, and a pack the list of its chunks.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use roaring::RoaringBitmap;
use sealift_agent::dedup::{ChunkTable, Extents, PackExtent};
use sealift_common::clock::UnixMillis;
use sealift_common::format::chunk::{ChunkId, ChunkRecord};
use sealift_common::id::{BackupId, Random};
use sealift_coordinator::retention::packs::{self, Backup, Newest, Pack, Series};
use sealift_coordinator::retention::plan::{Candidate, Fate, plan};
use sealift_coordinator::retention::rules::RetentionRules;
use sealift_coordinator::retention::states::{BackupState, PackEvent, PackState};

const NIGHTS: u32 = 365;
const DAY: Duration = Duration::from_secs(86_400);
/// Chunks of the source: 16 KiB each on average, a quarter of a gigabyte in all.
const CHUNKS: usize = 16_384;
const CHUNK: u32 = 16 * 1024;
/// One in so many changes each night.
const CHANGED: usize = 50;
/// A frame is about 256 KiB raw.
const CHUNKS_PER_FRAME: usize = 16;
/// A pack of 16 MiB at the usual ratio.
const CHUNKS_PER_PACK: usize = 56 * 64;
/// Frames that every reader keeps, at least.
const CACHE_FRAMES: usize = 256;

struct StoredPack {
    fate: Pack,
    chunks: Vec<ChunkRecord>,
}

struct MadeBackup {
    candidate: Candidate,
    fate: Backup,
    used: BTreeMap<u32, u64>,
    extents: usize,
}

/// One series and its source, over a year.
struct Year {
    random: Random,
    now: UnixMillis,
    data: Vec<ChunkRecord>,
    next_chunk: u64,
    packs: BTreeMap<u32, StoredPack>,
    backups: Vec<MadeBackup>,
    uploaded: u64,
    /// Ordinals and extents of the newest backup.
    newest: Vec<(u32, PackExtent)>,
}

impl Year {
    fn new() -> Self {
        let mut year = Self {
            random: Random::from_seed(2027),
            now: UnixMillis(1_800_000_000_000),
            data: Vec::new(),
            next_chunk: 0,
            packs: BTreeMap::new(),
            backups: Vec::new(),
            uploaded: 0,
            newest: Vec::new(),
        };
        year.data = (0..CHUNKS).map(|_| year.new_chunk()).collect();
        year
    }

    fn new_chunk(&mut self) -> ChunkRecord {
        self.next_chunk += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next_chunk.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        id[8..].copy_from_slice(&self.next_chunk.to_le_bytes());
        let spread = u32::from_le_bytes(self.random.bytes()) % CHUNK;
        ChunkRecord { id: ChunkId(id), raw_len: CHUNK / 2 + spread }
    }

    fn raw_bytes(&self) -> u64 {
        self.data.iter().map(|chunk| u64::from(chunk.raw_len)).sum()
    }

    fn change(&mut self) {
        for _ in 0..CHUNKS / CHANGED {
            let at = u64::from_le_bytes(self.random.bytes()) as usize % CHUNKS;
            self.data[at] = self.new_chunk();
        }
    }

    fn back_up(&mut self) {
        let (mut table, mut ends, mut ordinals) = (ChunkTable::default(), Vec::new(), Vec::new());
        for (ordinal, pack) in self.packs.iter().filter(|(_, pack)| pack.fate.state.is_offered()) {
            table.append_pack(&pack.chunks);
            ends.push(table.end());
            ordinals.push(*ordinal);
        }
        let (mut extents, mut new) = (Extents::default(), Vec::new());
        for chunk in &self.data {
            let place = table.find(chunk).unwrap_or_else(|| {
                new.push(*chunk);
                table.append_chunk(*chunk)
            });
            extents.push(place, u64::from(chunk.raw_len));
        }
        for chunks in new.chunks(CHUNKS_PER_PACK) {
            let (ordinal, raw_len) = self.store_pack(chunks);
            ends.push(ends.last().copied().unwrap_or_default() + raw_len);
            ordinals.push(ordinal);
        }
        self.newest = extents.in_packs(&ends).into_iter().map(|e| (ordinals[e.pack], e)).collect();
        let mut used: BTreeMap<u32, u64> = BTreeMap::new();
        for (ordinal, extent) in &self.newest {
            *used.entry(*ordinal).or_default() += extent.raw_len;
        }
        self.commit(used);
    }

    fn store_pack(&mut self, chunks: &[ChunkRecord]) -> (u32, u64) {
        let ordinal = self.packs.last_key_value().map_or(0, |(last, _)| last + 1);
        let raw_len = chunks.iter().map(|chunk| u64::from(chunk.raw_len)).sum();
        let fate = Pack {
            ordinal,
            state: PackState::Stored,
            raw_len,
            signed: self.now,
            stored: Some(self.now),
            referred: false,
            doomed: None,
            locked_until: None,
        };
        self.packs.insert(ordinal, StoredPack { fate, chunks: chunks.to_vec() });
        self.uploaded += raw_len;
        (ordinal, raw_len)
    }

    fn commit(&mut self, used: BTreeMap<u32, u64>) {
        let refs: RoaringBitmap = used.keys().copied().collect();
        for ordinal in &refs {
            let fate = &mut self.packs.get_mut(&ordinal).unwrap().fate;
            fate.state = fate.state.apply(PackEvent::Refer).unwrap();
            fate.referred = true;
        }
        let id = BackupId::generate(&self.random);
        let candidate = Candidate {
            id,
            sequence: self.backups.len() as u64 + 1,
            received: self.now,
            complete: true,
            whole: true,
            verified: None,
            held: false,
            in_use: false,
            undeleted: None,
        };
        let fate = Backup {
            id,
            state: BackupState::Committed,
            refs,
            signed_until: self.now,
            expired: None,
            in_use: false,
            locked_until: None,
        };
        self.backups.push(MadeBackup { candidate, fate, used, extents: self.newest.len() });
    }

    fn retain(&mut self, rules: &RetentionRules) {
        let committed = self.backups.iter().filter(|b| b.fate.state == BackupState::Committed);
        let candidates: Vec<Candidate> = committed.map(|b| b.candidate).collect();
        for verdict in plan(&candidates, Some(rules), self.now) {
            if let Fate::Expire(_) = verdict.fate {
                let backup = self.backups.iter_mut().find(|b| b.fate.id == verdict.backup).unwrap();
                backup.fate.state = BackupState::Expired;
                backup.fate.expired = Some(self.now);
            }
        }
    }

    fn series(&self) -> Series {
        let newest = self.backups.last().unwrap();
        Series {
            packs: self.packs.values().map(|pack| pack.fate.clone()).collect(),
            backups: self.backups.iter().map(|backup| backup.fate.clone()).collect(),
            newest: Some(Newest {
                committed: newest.candidate.received,
                raw_bytes: self.raw_bytes(),
                used: newest.used.clone(),
            }),
            run_since: None,
        }
    }

    fn collect(&mut self) {
        let plan = packs::plan(&self.series(), self.now);
        for (ordinals, event) in [
            (&plan.retire, PackEvent::Retire),
            (&plan.doom, PackEvent::Doom),
            (&plan.revive, PackEvent::Refer),
        ] {
            for ordinal in ordinals {
                let fate = &mut self.packs.get_mut(&ordinal).unwrap().fate;
                fate.state = fate.state.apply(event).unwrap();
                fate.doomed = (event == PackEvent::Doom).then_some(self.now);
            }
        }
        self.backups.retain(|backup| !plan.delete_backups.contains(&backup.fate.id));
        // Manifests are gone: packs that only they kept may follow.
        let plan = packs::plan(&self.series(), self.now);
        let wanted: Vec<&Backup> = self.backups.iter().map(|backup| &backup.fate).collect();
        for ordinal in &plan.delete_packs {
            assert!(wanted.iter().all(|backup| !backup.refs.contains(ordinal)), "a pack that is needed goes");
            self.packs.remove(&ordinal);
        }
    }

    fn stored(&self) -> u64 {
        self.packs.values().map(|pack| pack.fate.raw_len).sum()
    }

    /// Raw bytes of the frames that a restore of the newest backup reads, with this many of them kept.
    fn restore_reads(&self, kept: usize) -> u64 {
        let frames: HashMap<u32, Vec<u64>> = self
            .packs
            .iter()
            .map(|(ordinal, pack)| {
                let lens = pack.chunks.chunks(CHUNKS_PER_FRAME);
                let lens = lens.map(|frame| frame.iter().map(|chunk| u64::from(chunk.raw_len)).sum::<u64>());
                (
                    *ordinal,
                    lens.scan(0, |end, len| {
                        *end += len;
                        Some(*end)
                    })
                    .collect(),
                )
            })
            .collect();
        let (mut read, mut clock) = (0, 0u64);
        let (mut cached, mut by_age) = (HashMap::new(), BTreeMap::new());
        for (ordinal, extent) in &self.newest {
            let ends = &frames[ordinal];
            let first = ends.partition_point(|end| *end <= extent.raw_offset);
            let last = ends.partition_point(|end| *end < extent.raw_offset + extent.raw_len);
            for frame in first..=last {
                clock += 1;
                match cached.insert((*ordinal, frame), clock) {
                    Some(age) => {
                        by_age.remove(&age);
                    }
                    None => read += ends[frame] - frame.checked_sub(1).map_or(0, |before| ends[before]),
                }
                by_age.insert(clock, (*ordinal, frame));
                if by_age.len() > kept
                    && let Some((_, oldest)) = by_age.pop_first()
                {
                    cached.remove(&oldest);
                }
            }
        }
        read
    }
}

#[test]
fn a_year_of_nightly_changes_stays_within_the_figures() {
    let mut year = Year::new();
    let rules = RetentionRules { daily: 7, weekly: 4, monthly: 12, ..RetentionRules::default() };
    let mut most_uploaded = 0;
    for night in 0..NIGHTS {
        if night > 0 {
            year.change();
        }
        let before = year.uploaded;
        year.back_up();
        if night > 0 {
            most_uploaded = most_uploaded.max(year.uploaded - before);
        }
        year.retain(&rules);
        year.collect();
        year.now = year.now.plus(DAY);
    }
    let raw = year.raw_bytes();
    let newest = year.backups.last().unwrap();
    let kept = year.backups.iter().filter(|b| b.fate.state == BackupState::Committed).count();
    let share = |bytes: u64| bytes as f64 / raw as f64;
    let (reads, bare) = (share(year.restore_reads(CACHE_FRAMES)), share(year.restore_reads(1)));
    let needed = needed(&year);
    println!(
        "{kept} backups kept; stored {:.2} times the source ({:.2} of it in use); uploaded in the year {:.2}, at most {:.3} \
         in a night; {} extents of {CHUNKS} chunks; a restore reads {reads:.2} times the source, without a cache {bare:.1}",
        share(year.stored()),
        share(needed),
        share(year.uploaded),
        share(most_uploaded),
        newest.extents,
    );
    assert!(kept <= 7 + 4 + 12, "{kept}");
    assert!(newest.extents <= CHUNKS, "about one extent per chunk, of 14 bytes");
    assert!(most_uploaded as f64 <= raw as f64 * 0.045, "2 % changed, and at most 2 % retired");
    // Changes are spread evenly here, which no real source does: the worst case for frames that are partly needed.
    assert!(reads <= 1.9, "{reads}");
    assert!(bare > 5.0, "a cache would not be needed: {bare}");
    assert!(year.stored() as f64 <= needed as f64 * 1.5, "{} of {needed}", year.stored());
}

/// Raw bytes of the chunks that the kept backups use, each pack counted by the most that one of them uses of it.
fn needed(year: &Year) -> u64 {
    let mut most: BTreeMap<u32, u64> = BTreeMap::new();
    for backup in year.backups.iter().filter(|b| b.fate.state == BackupState::Committed) {
        for (ordinal, used) in &backup.used {
            let known = most.entry(*ordinal).or_default();
            *known = (*known).max(*used);
        }
    }
    most.values().sum()
}
