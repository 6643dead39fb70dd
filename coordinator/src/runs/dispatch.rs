//! Reconcilers of runs: offer what is due to agents that are connected here, extend their leases; the leader ends those
//! that ended. Each is idempotent and bounded, and looks only at the database and at who is connected.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::crypto::EpochId;

use super::RunError;
use super::attempt::Attempt;
use super::service::Runs;
use super::state::{AttemptState, RunEvent};
use crate::runtime::Leader;
use crate::sessions::Command;
use crate::store::runs::{self, RunRow};
use crate::store::{Tx, agents, attempts, series, sources};

/// Runs that are looked at in one go.
const BATCH: u32 = 500;
/// How often to look even if nothing called for it: back-offs end by themselves.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// How long an agent may take to answer an offer.
const OFFER_LIFE: Duration = Duration::from_secs(30);
/// Leases of connected agents are extended this many times before they would end.
const EXTENSIONS: u32 = 6;
/// Agents whose leases are extended in one transaction.
const LEASES: usize = 500;

impl Runs {
    /// Ends leases that ended by the clock. Called by the leader only, which begins its term by giving everybody time: while
    /// nobody led, agents could not be heard.
    ///
    /// # Errors
    /// The database's own.
    pub async fn expire_as(&self, leader: &Leader) -> Result<(), RunError> {
        if self.began.load(Ordering::SeqCst) != leader.epoch() {
            let until = self.core.lease_time().plus(self.lease);
            let extend = self.core.store.run_tx("begin a term", move |tx, _| {
                async move {
                    leader.fence(tx).await?;
                    attempts::extend_all(tx, until).await
                }
                .boxed()
            });
            extend.await?;
            self.began.store(leader.epoch(), Ordering::SeqCst);
        }
        self.expire(self.core.lease_time(), Some(leader)).await?;
        Ok(())
    }

    /// Offers what is due to agents that are connected. Returns how many offers were sent.
    ///
    /// # Errors
    /// The database's own.
    pub async fn dispatch_once(&self) -> Result<usize, RunError> {
        let now = self.core.clock.now();
        let due = runs::due(&mut *self.core.store.reader().await?, now, BATCH).await?;
        let mut sent = 0;
        for run in due {
            if !self.sessions.is_connected(run.agent) {
                continue;
            }
            let run_id = run.id;
            let claimed = self
                .core
                .store
                .run_tx("claim a run", move |tx, _| async move { self.claim(tx, run_id).await }.boxed())
                .await?;
            let Some((run, attempt, leave_epoch)) = claimed else { continue };
            let offer = Command::Offer {
                attempt: attempt.reference(),
                series: attempt.series,
                source: run.source.clone(),
                trace_parent: run.trace_parent.clone(),
                leave_epoch,
            };
            // An offer that does not arrive ends with its lease, and the run goes on.
            sent += usize::from(self.sessions.send(run.agent, offer));
            self.changed(run.id);
        }
        Ok(sent)
    }

    /// Makes the next attempt of a run, unless somebody was faster.
    async fn claim(
        &self,
        tx: &mut Tx,
        run: sealift_common::id::RunId,
    ) -> Result<Option<(RunRow, Attempt, Option<EpochId>)>, RunError> {
        let now = self.core.clock.now();
        let Some(mut run) = runs::claim(tx, run).await? else { return Ok(None) };
        let Ok(state) = run.state.apply(RunEvent::Start) else { return Ok(None) };
        if run.due > now || attempts::series_is_busy(tx, run.series).await? {
            return Ok(None);
        }
        run.state = state;
        run.attempts += 1;
        run.started = run.started.or(Some(now));
        let attempt = Attempt {
            run: run.id,
            number: run.attempts,
            agent: run.agent,
            series: run.series,
            state: AttemptState::Offered,
            generation: self.core.generation,
            epoch: sources::next_fence(tx, run.series).await?,
            lease_owner: self.core.instance.to_string(),
            lease_expires: self.core.lease_time().plus(OFFER_LIFE.min(self.lease)),
            instance: self.sessions.instance(run.agent),
            backup: None,
            started: now,
            ended: None,
            error: String::new(),
            stderr: String::new(),
        };
        attempts::insert(tx, &attempt).await?;
        runs::update(tx, &run).await?;
        let leave_epoch = series::leave_epoch(tx, run.series).await?;
        Ok(Some((run, attempt, leave_epoch)))
    }

    /// Extends the leases of agents that were heard of here, and records when each was.
    ///
    /// # Errors
    /// The database's own.
    pub async fn keep_leases(&self) -> Result<(), RunError> {
        let heard = self.sessions.all();
        let news: Vec<_> = {
            let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
            recorded.retain(|agent, _| heard.iter().any(|(connected, _)| connected == agent));
            heard
                .into_iter()
                .filter(|(agent, at)| recorded.get(agent).is_none_or(|before| before < at))
                .collect()
        };
        for batch in news.chunks(LEASES) {
            self.core
                .store
                .run_tx("extend leases", move |tx, _| {
                    async move {
                        for (agent, at) in batch {
                            agents::seen(tx, *agent, *at).await?;
                            let until = self.core.to_lease_time(*at).plus(self.lease);
                            attempts::extend(tx, *agent, until).await?;
                        }
                        Ok::<_, RunError>(())
                    }
                    .boxed()
                })
                .await?;
            self.recorded.lock().unwrap_or_else(PoisonError::into_inner).extend(batch.iter().copied());
        }
        Ok(())
    }

    /// How often [`Runs::keep_leases`] is to be called.
    pub fn lease_interval(&self) -> Duration {
        self.lease / EXTENSIONS
    }
}
