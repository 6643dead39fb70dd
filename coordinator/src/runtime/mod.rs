//! What a coordinator does in the background: reconcilers, each of which looks at the database (and the bucket, and who is
//! connected) again and again and does what is missing. Each is idempotent and bounded, so that it does not matter when one
//! dies half-way.
//!
//! Of several coordinators on one database one *leads* ([`leader`]). What is one job for the whole installation (scheduling,
//! ending leases, retention) runs there; what is about agents runs where their sessions are.
//!
//! To add a reconciler: an entry in `app/background.rs`,
//!
//! ```text
//! runtime.everywhere(Every::new("dispatch", Duration::from_secs(1)).or_when(wake), runs, |runs| async move { … });
//! runtime.on_leader(Every::new("schedule", Duration::from_secs(5)).once_in_step(), scheduler, |scheduler, leader| …);
//! ```
//!
//! where the closure makes one round with a clone of the part before it. A round of the leader is dropped at its next `await`
//! when leadership ends. What it had sent to the database by then must not count: so every transaction of such a round begins
//! with [`Leader::fence`]. What it asks of the bucket must be right whoever asks, and repeated without harm.

pub mod leader;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sealift_common::id::Random;
use sealift_common::lifecycle::Lifecycle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use leader::{Leader, Leadership};

use crate::core::Core;
use crate::recovery::state::Standing;

/// The least time between two rounds: many hints in a row are one.
const BREATH: Duration = Duration::from_millis(10);
/// Rounds are this much of their interval early or late, so that coordinators do not work in step.
const JITTER: f64 = 0.1;

/// When a reconciler makes its rounds: at once, then again and again.
#[derive(Debug, Clone)]
pub struct Every {
    name: &'static str,
    interval: Duration,
    wake: Option<Arc<Notify>>,
    in_step: bool,
}

impl Every {
    /// About every `interval`. The name is for the log.
    pub fn new(name: &'static str, interval: Duration) -> Self {
        Self { name, interval, wake: None, in_step: false }
    }

    /// And whenever this is notified: a hint that there is something to do.
    #[must_use]
    pub fn or_when(self, wake: Arc<Notify>) -> Self {
        Self { wake: Some(wake), ..self }
    }

    /// But not before the database is known to be in step with the bucket.
    #[must_use]
    pub fn once_in_step(self) -> Self {
        Self { in_step: true, ..self }
    }

    async fn pause(&self, random: &Random) {
        let pause = self.interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * random.fraction());
        let woken = async {
            match &self.wake {
                Some(wake) => wake.notified().await,
                None => std::future::pending().await,
            }
        };
        let breathed = async { tokio::join!(woken, tokio::time::sleep(BREATH)) };
        tokio::select! { () = tokio::time::sleep(pause) => {}, _ = breathed => {} }
    }
}

/// Starts reconcilers, and keeps or seeks leadership for those that need it.
#[derive(Clone)]
pub struct Runtime {
    random: Random,
    standing: Standing,
    stop: CancellationToken,
    tracker: TaskTracker,
    leadership: Leadership,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("leadership", &self.leadership).finish_non_exhaustive()
    }
}

impl Runtime {
    /// The runtime of this coordinator, which from now on seeks leadership until `lifecycle` stops it softly.
    pub fn start(core: &Core, timing: leader::Timing, lifecycle: &Lifecycle) -> Self {
        let (leadership, keeper) = leader::keeper(core, timing);
        lifecycle.tracker.spawn(keeper.keep(lifecycle.soft.clone()));
        Self {
            random: core.random.clone(),
            standing: core.standing.clone(),
            stop: lifecycle.soft.clone(),
            tracker: lifecycle.tracker.clone(),
            leadership,
        }
    }

    /// Whether this coordinator leads.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// Cancelled when the coordinator stops: for a round that waits.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs rounds on every coordinator until it stops. A round that is under way then is finished.
    pub fn everywhere<P, W, F, E>(&self, every: Every, part: P, round: W)
    where
        P: Clone + Send + Sync + 'static,
        W: Fn(P) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let this = self.clone();
        self.tracker.spawn(async move {
            while !this.stop.is_cancelled() {
                this.make(&every, || round(part.clone())).await;
                tokio::select! { () = this.stop.cancelled() => {}, () = every.pause(&this.random) => {} }
            }
        });
    }

    /// Runs rounds while this coordinator leads, the first as soon as it does.
    pub fn on_leader<P, W, F, E>(&self, every: Every, part: P, round: W)
    where
        P: Clone + Send + Sync + 'static,
        W: Fn(P, Leader) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let mut this = self.clone();
        self.tracker.spawn(async move {
            loop {
                let leader = tokio::select! {
                    () = this.stop.cancelled() => return,
                    leader = this.leadership.wait() => leader,
                };
                let Some(leader) = leader else { return };
                while !leader.is_over() {
                    tokio::select! {
                        () = leader.over() => {}
                        () = this.make(&every, || round(part.clone(), leader.clone())) => {}
                    }
                    tokio::select! { () = leader.over() => {}, () = every.pause(&this.random) => {} }
                }
            }
        });
    }

    async fn make<F, E>(&self, every: &Every, round: impl FnOnce() -> F)
    where
        F: Future<Output = Result<(), E>>,
        E: std::error::Error + 'static,
    {
        if every.in_step && !self.standing.ready().await {
            return;
        }
        if let Err(error) = round().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the round of {:?} failed; trying again", every.name);
        }
    }
}
