//! How far a backup is: counters that the stages write and one task reads, about once a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use sealift_proto::v1;
use sealift_proto::v1::agent_message::Message as Up;

use crate::session::link::Link;
use crate::state::journal::AttemptRef;

const INTERVAL: Duration = Duration::from_secs(1);

/// What an attempt is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// The source is being read.
    Dumping,
    /// The source is through; packs are on their way.
    Uploading,
    /// As [`Stage::Uploading`], and everything that is left is on disk: a restart loses nothing.
    Spooled,
    /// The manifest is being written.
    Committing,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Dumping => "dumping",
            Self::Uploading => "uploading",
            Self::Spooled => "spooled",
            Self::Committing => "committing",
        }
    }
}

/// The counters of one attempt.
#[derive(Debug, Default)]
pub struct Meters {
    /// Bytes read from the source.
    pub raw_bytes: AtomicU64,
    /// Of these, not found in earlier backups.
    pub new_raw_bytes: AtomicU64,
    /// Bytes that the store acknowledged.
    pub stored_bytes: AtomicU64,
    /// Packs that the coordinator calls stored.
    pub packs: AtomicU64,
    /// Bytes that wait in the spool.
    pub spooled_bytes: Arc<AtomicU64>,
    /// The source's own estimate, or the size of the backup before.
    pub expected_raw_bytes: AtomicU64,
    stage: AtomicU8,
}

impl Meters {
    /// The next stage has begun.
    pub fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Relaxed);
    }

    /// What the attempt is doing.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Relaxed) {
            0 => Stage::Dumping,
            1 => Stage::Uploading,
            2 => Stage::Spooled,
            _ => Stage::Committing,
        }
    }

    fn message(&self, attempt: AttemptRef) -> v1::Progress {
        v1::Progress {
            attempt: Some(attempt.to_wire()),
            raw_bytes: self.raw_bytes.load(Relaxed),
            new_raw_bytes: self.new_raw_bytes.load(Relaxed),
            stored_bytes: self.stored_bytes.load(Relaxed),
            packs: self.packs.load(Relaxed),
            stage: self.stage().as_str().to_owned(),
            expected_raw_bytes: self.expected_raw_bytes.load(Relaxed),
            log_line: String::new(),
            spooled_bytes: self.spooled_bytes.load(Relaxed),
        }
    }
}

/// Tells the coordinator until it is dropped. A message that finds no room is left out: the next one says more.
pub async fn tell(meters: &Meters, attempt: AttemptRef, link: &Link) -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(connection) = link.current() {
            let message = v1::AgentMessage { message: Some(Up::Progress(meters.message(attempt))) };
            let _ = connection.outgoing.try_send(message);
        }
    }
}
