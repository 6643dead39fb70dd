//! What a fleet saw.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sealift_common::id::{AgentId, BackupId, RunId, SeriesId, Sha256};

/// Longest reason that is kept, in characters.
const MAX_REASON: usize = 160;

/// A call of an agent whose latency is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// From the first byte of a connection to Welcome.
    Open,
    /// Begin, to its last message.
    Begin,
    /// AuthorizePack: one signature. Counted from when it was due where the fleet is paced.
    Sign,
    /// The PUT of a pack or manifest.
    Put,
    /// ConfirmPack.
    Confirm,
    /// Prepare.
    Prepare,
    /// Commit.
    Commit,
}

/// A backup that a host was told is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The host.
    pub agent: AgentId,
    /// Of which source.
    pub source: String,
    /// Into which series.
    pub series: SeriesId,
    /// In which run.
    pub run: RunId,
    /// Its id.
    pub backup: BackupId,
    /// Its place in the series.
    pub sequence: u64,
    /// Its manifest.
    pub manifest: Sha256,
    /// BLAKE3 of its one stream, `source.bin`.
    pub content: [u8; 32],
}

/// What a fleet saw. All counts are since its start, or the last [`Figures::forget_latencies`].
#[derive(Debug, Default)]
pub struct Figures {
    connected: AtomicUsize,
    welcomes: AtomicU64,
    latencies: Mutex<HashMap<Call, Vec<Duration>>>,
    offers: Mutex<HashMap<RunId, Instant>>,
    committed: Mutex<Vec<Committed>>,
    ended: Mutex<BTreeMap<String, u64>>,
    refused: Mutex<BTreeMap<String, u64>>,
    retries: Mutex<BTreeMap<String, u64>>,
}

fn count(all: &Mutex<BTreeMap<String, u64>>, why: &str) {
    let why = why.chars().take(MAX_REASON).collect();
    *all.lock().expect("not poisoned").entry(why).or_default() += 1;
}

impl Figures {
    /// Hosts with an open session.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::SeqCst)
    }

    /// Sessions that were ever opened.
    pub fn welcomes(&self) -> u64 {
        self.welcomes.load(Ordering::SeqCst)
    }

    /// How long calls of a kind took.
    pub fn latencies(&self, call: Call) -> Vec<Duration> {
        self.latencies.lock().expect("not poisoned").get(&call).cloned().unwrap_or_default()
    }

    /// Starts the latencies anew.
    pub fn forget_latencies(&self) {
        self.latencies.lock().expect("not poisoned").clear();
    }

    /// When the first offer of each run arrived.
    pub fn offers(&self) -> HashMap<RunId, Instant> {
        self.offers.lock().expect("not poisoned").clone()
    }

    /// Backups that hosts were told are committed.
    pub fn committed(&self) -> Vec<Committed> {
        self.committed.lock().expect("not poisoned").clone()
    }

    /// How many backups that is.
    pub fn commits(&self) -> usize {
        self.committed.lock().expect("not poisoned").len()
    }

    /// Why attempts ended without a backup, and how often.
    pub fn failures(&self) -> BTreeMap<String, u64> {
        self.ended.lock().expect("not poisoned").clone()
    }

    /// Why sessions were not opened or ended, and how often.
    pub fn lost_sessions(&self) -> BTreeMap<String, u64> {
        self.refused.lock().expect("not poisoned").clone()
    }

    /// Why steps of attempts were tried again, and how often.
    pub fn retries(&self) -> BTreeMap<String, u64> {
        self.retries.lock().expect("not poisoned").clone()
    }

    pub(super) fn opened(&self) -> Connected<'_> {
        self.connected.fetch_add(1, Ordering::SeqCst);
        self.welcomes.fetch_add(1, Ordering::SeqCst);
        Connected(self)
    }

    pub(super) fn took(&self, call: Call, since: Instant) {
        let took = since.elapsed();
        self.latencies.lock().expect("not poisoned").entry(call).or_default().push(took);
    }

    pub(super) fn offered(&self, run: RunId) {
        self.offers.lock().expect("not poisoned").entry(run).or_insert_with(Instant::now);
    }

    pub(super) fn has_committed(&self, backup: Committed) {
        self.committed.lock().expect("not poisoned").push(backup);
    }

    pub(super) fn attempt_ended(&self, why: &str) {
        count(&self.ended, why);
    }

    pub(super) fn tried_again(&self, why: &str) {
        count(&self.retries, why);
    }

    pub(super) fn session_lost(&self, why: &str) {
        count(&self.refused, why);
    }
}

/// Counts a host as connected while it lives.
pub(super) struct Connected<'a>(&'a Figures);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::SeqCst);
    }
}
