//! A simulated year of nightly 2 % changes: the agent's own chunk table and extents, and retention's own plans, night by night.
//! Stored bytes, uploads, extents and what a restore reads stay where docs/format.md and docs/adr/0070 say, whether changes are
//! spread evenly or as databases have them. No bytes are moved: a chunk is its record, and a pack the list of its chunks.

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

/// Where the changes of a night lie.
#[derive(Debug, Clone, Copy)]
enum Changes {
    /// Anywhere, each chunk as likely as any other.
    Even,
    /// As databases have them: four fifths of them in the first fifth of the data, and side by side in runs of up to so many
    /// chunks.
    Clustered {
        /// The longest run.
        run: usize,
    },
}

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

    fn below(&self, limit: usize) -> usize {
        u64::from_le_bytes(self.random.bytes()) as usize % limit
    }

    fn change(&mut self, changes: Changes) {
        let mut left = CHUNKS / CHANGED;
        while left > 0 {
            let (first, run) = match changes {
                Changes::Even => (self.below(CHUNKS), 1),
                Changes::Clustered { run } => {
                    let hot = CHUNKS / 5;
                    let is_hot = self.below(5) < 4;
                    let first = if is_hot { self.below(hot) } else { hot + self.below(CHUNKS - hot) };
                    (first, 1 + self.below(run))
                }
            };
            let run = run.min(left);
            for at in first..first + run {
                self.data[at % CHUNKS] = self.new_chunk();
            }
            left -= run;
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

/// What came of a year; bytes as shares of the source.
#[derive(Debug)]
struct Figures {
    backups: usize,
    stored: f64,
    /// Of what is stored, what a kept backup uses.
    needed: f64,
    /// Uploaded a night, on average over the second half of the year.
    uploaded: f64,
    most_uploaded: f64,
    extents: usize,
    restore_reads: f64,
    without_cache: f64,
}

fn after_a_year_of(changes: Changes) -> Figures {
    let mut year = Year::new();
    let rules = RetentionRules { daily: 7, weekly: 4, monthly: 12, ..RetentionRules::default() };
    let mut nights = Vec::new();
    for night in 0..NIGHTS {
        if night > 0 {
            year.change(changes);
        }
        let before = year.uploaded;
        year.back_up();
        nights.push(year.uploaded - before);
        year.retain(&rules);
        year.collect();
        year.now = year.now.plus(DAY);
    }
    let raw = year.raw_bytes();
    let share = |bytes: u64| bytes as f64 / raw as f64;
    let later = &nights[nights.len() / 2..];
    let figures = Figures {
        backups: year.backups.iter().filter(|b| b.fate.state == BackupState::Committed).count(),
        stored: share(year.stored()),
        needed: share(needed(&year)),
        uploaded: share(later.iter().sum::<u64>()) / later.len() as f64,
        most_uploaded: share(nights[1..].iter().copied().max().unwrap()),
        extents: year.backups.last().unwrap().extents,
        restore_reads: share(year.restore_reads(CACHE_FRAMES)),
        without_cache: share(year.restore_reads(1)),
    };
    println!("{changes:?}: {figures:.3?}");
    figures
}

/// What holds whatever changes.
fn holds(figures: &Figures) {
    assert!(figures.backups <= 7 + 4 + 12, "{figures:?}");
    assert!(figures.extents <= CHUNKS, "at most one extent per chunk, of 14 bytes: {figures:?}");
    assert!(figures.uploaded <= 0.027, "2 % changed, and a third of that because packs retire: {figures:?}");
    assert!(figures.most_uploaded <= 0.045, "2 % changed, and at most 2 % retired: {figures:?}");
    // Cold chunks keep a hot pack for long, each for another backup.
    assert!(figures.stored <= figures.needed * 2.0, "{figures:?}");
}

#[test]
fn a_year_of_evenly_spread_changes_stays_by_the_arithmetic() {
    let figures = after_a_year_of(Changes::Even);
    holds(&figures);
    // ln 4 / (1 - 1/4), of docs/adr/0070: frames are needed in part for as long as their pack is.
    let expected = 4f64.ln() / 0.75;
    assert!((expected - 0.1..=expected + 0.05).contains(&figures.restore_reads), "{expected}: {figures:?}");
    assert!(figures.stored <= figures.needed * 1.5, "{figures:?}");
    assert!(figures.without_cache > 5.0, "a cache would not be needed: {figures:?}");
}

#[test]
fn a_year_of_changes_in_runs_is_read_less_often() {
    // Runs of up to 1 MiB: chunks of a frame change together.
    let figures = after_a_year_of(Changes::Clustered { run: 64 });
    holds(&figures);
    assert!(figures.restore_reads <= 1.55, "{figures:?}");
    assert!(figures.extents < CHUNKS / 10, "{figures:?}");
}

#[test]
fn a_year_of_lone_changes_in_a_hot_fifth_is_the_worst_to_read() {
    // What is left of a pack is what hardly ever changes, and it keeps its frames.
    let figures = after_a_year_of(Changes::Clustered { run: 1 });
    holds(&figures);
    assert!(figures.restore_reads <= 2.5, "{figures:?}");
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
