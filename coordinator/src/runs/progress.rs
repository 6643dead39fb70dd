//! How far runs are. The coordinator that holds an agent's session knows it at once; where others may be asked, it says so in the
//! database every [`SHARED_EVERY`] at most, and the others show that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::id::RunId;
use serde::{Deserialize, Serialize};

use super::{Attempt, AttemptRef};
use crate::core::Core;
use crate::store::run_progress::{self, ProgressRow};
use crate::store::{Dialect, StoreError, Tx};

/// Between two words to the other coordinators about one run.
const SHARED_EVERY: Duration = Duration::from_secs(3);
/// What nobody has said anything new about for so long is forgotten.
const STALE: Duration = Duration::from_secs(3_600);
/// How often to forget.
pub const TIDY: Duration = Duration::from_secs(600);

/// How far a backup is, as its agent says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Read from the source so far.
    pub raw_bytes: u64,
    /// Of these, not found in earlier backups.
    pub new_raw_bytes: u64,
    /// Acknowledged by the store.
    pub stored_bytes: u64,
    /// How many packs that makes.
    pub packs: u64,
    /// dumping, uploading, spooled, committing.
    pub stage: String,
    /// Of what is new, this waits on the host's own disk for a slow store.
    pub spooled_bytes: u64,
    /// An estimate; 0 where unknown.
    pub expected_raw_bytes: u64,
    /// One line for people; may be empty.
    pub log_line: String,
}

/// What an agent that is connected here said last of a run.
#[derive(Debug, Clone)]
struct Heard {
    attempt: u32,
    progress: Progress,
    at: UnixMillis,
    shared: Option<UnixMillis>,
}

/// What is known of the progress of runs. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Board {
    core: Core,
    heard: Arc<Mutex<HashMap<RunId, Heard>>>,
}

impl Board {
    pub(super) fn new(core: Core) -> Self {
        Self { core, heard: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RunId, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One coordinator alone knows everything.
    fn is_shared(&self) -> bool {
        self.core.store.dialect() == Dialect::Postgres
    }

    /// Takes in what an agent that is connected here says.
    pub(super) async fn take(&self, attempt: &AttemptRef, progress: Progress) -> Result<(), StoreError> {
        let at = self.core.lease_time();
        let row = ProgressRow {
            attempt: attempt.number,
            // There is nothing in it that JSON cannot say.
            said: serde_json::to_string(&progress).unwrap_or_default(),
            at,
        };
        {
            let mut heard = self.lock();
            let before = heard.get(&attempt.run).filter(|before| before.attempt == attempt.number);
            let shared = before.and_then(|before| before.shared);
            let share = self.is_shared() && shared.is_none_or(|last| at.since(last) >= SHARED_EVERY);
            let shared = if share { Some(at) } else { shared };
            heard.insert(attempt.run, Heard { attempt: attempt.number, progress, at, shared });
            if !share {
                return Ok(());
            }
        }
        let (run, row) = (attempt.run, &row);
        let say = self.core.store.run_tx("say how far a run is", move |tx, _| {
            async move { run_progress::put(tx, run, row).await }.boxed()
        });
        say.await
    }

    /// Nothing works on the run any more.
    pub(super) fn forget(&self, run: RunId) {
        self.lock().remove(&run);
    }

    /// How far a run is whose attempts are these: what was said last of the one that is under way, here or elsewhere.
    pub(super) async fn of(
        &self,
        tx: &mut Tx,
        run: RunId,
        attempts: &[Attempt],
    ) -> Result<Option<Progress>, StoreError> {
        let Some(open) = attempts.last().filter(|attempt| attempt.ended.is_none()) else { return Ok(None) };
        let here = self.lock().get(&run).filter(|heard| heard.attempt == open.number).cloned();
        if !self.is_shared() {
            return Ok(here.map(|heard| heard.progress));
        }
        let there = run_progress::get(tx, run).await?.filter(|row| row.attempt == open.number);
        Ok(match (here, there) {
            (Some(here), Some(there)) if here.at >= there.at => Some(here.progress),
            // What a newer coordinator says otherwise is not shown.
            (here, Some(there)) => {
                serde_json::from_str(&there.said).ok().or(here.map(|heard| heard.progress))
            }
            (here, None) => here.map(|heard| heard.progress),
        })
    }

    /// Forgets runs that have ended or moved away, of which nobody told.
    pub(super) async fn tidy(&self) -> Result<(), StoreError> {
        let then = self.core.lease_time().minus(STALE);
        self.lock().retain(|_, heard| heard.at >= then);
        let forget = self.core.store.run_tx("forget how far runs were", move |tx, _| {
            async move { run_progress::forget_before(tx, then).await }.boxed()
        });
        forget.await
    }
}
