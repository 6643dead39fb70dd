//! Reconcilers of runs: offer what is due to agents that are connected here, extend their leases; the leader ends those
//! that ended. Each is idempotent and bounded, and looks only at the database and at who is connected.

use std::collections::HashSet;
use std::collections::hash_map::Entry;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::EpochId;
use sealift_common::id::RunId;

use super::RunError;
use super::attempt::Attempt;
use super::limits::{Active, OfferLimits, take_place};
use super::service::Runs;
use super::state::{AttemptState, RunEvent};
use crate::runtime::Leader;
use crate::sessions::Command;
use crate::store::pauses::{self, PauseRow};
use crate::store::runs::{self, RunRow};
use crate::store::{Tx, agent_sessions, agents, attempts, series, sources};

/// A run whose next attempt is to be offered: under which limits, and which dedup epoch it has to leave.
type Claimed = (RunRow, Attempt, OfferLimits, Option<EpochId>);

/// Runs that are looked at in one go.
const BATCH: u32 = 500;
/// How often to look even if nothing called for it: back-offs end by themselves.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// How long an agent may take to answer an offer.
const OFFER_LIFE: Duration = Duration::from_secs(30);
/// Leases of connected agents are extended this many times before they would end.
const EXTENSIONS: u32 = 6;
/// Agents that are recorded in one transaction. A SQLite file has one writer: what agents wait for must not stand behind
/// many of them.
const LEASES: usize = 25;
/// How often to record that an agent without work is still there: often enough for whoever looks for hosts that have come
/// back ([`crate::scheduler`]).
const SEEN: Duration = Duration::from_secs(20);

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
        if self.is_held() {
            return Ok(0);
        }
        let now = self.core.clock.now();
        let (pauses, mut active) = {
            let mut conn = self.core.store.reader().await?;
            (pauses::in_force(&mut conn, now).await?, Active::count(&mut conn).await?)
        };
        // All that waits is looked at, page by page: hosts that are away must not stand in the way of those that are here.
        let here = self.core.coordinator;
        let (mut sent, mut after) = (0, (i64::MIN, String::new()));
        loop {
            let due = runs::due(&mut *self.core.store.reader().await?, here, now, &after, BATCH).await?;
            let Some(last) = due.last() else { return Ok(sent) };
            after = (last.due.0, last.id.to_string());
            let more = due.len() == BATCH as usize;
            sent += self.offer_each(due, now, &pauses, &mut active).await?;
            if !more {
                return Ok(sent);
            }
        }
    }

    /// Offers those of `due` that may start.
    async fn offer_each(
        &self,
        due: Vec<RunRow>,
        now: UnixMillis,
        pauses: &[PauseRow],
        active: &mut Active,
    ) -> Result<usize, RunError> {
        let mut sent = 0;
        for run in due {
            if !self.sessions.is_connected(run.agent) || !self.may_start(&run, now, pauses, active).await? {
                continue;
            }
            let run_id = run.id;
            let claimed = self
                .core
                .store
                .run_tx("claim a run", move |tx, _| async move { self.claim(tx, run_id).await }.boxed())
                .await?;
            let Some((run, attempt, limits, leave_epoch)) = claimed else { continue };
            active.add(&run);
            let offer = Command::Offer {
                attempt: attempt.reference(),
                series: attempt.series,
                source: run.source.clone(),
                limits,
                trace_parent: run.trace_parent.clone(),
                leave_epoch,
            };
            // An offer that does not arrive ends with its lease, and the run goes on.
            sent += usize::from(self.sessions.send(run.agent, offer));
            self.changed(run.id);
        }
        Ok(sent)
    }

    /// A first look, without locks: whether a run is in its window, not paused, and may find a place.
    async fn may_start(
        &self,
        run: &RunRow,
        now: UnixMillis,
        pauses: &[PauseRow],
        active: &Active,
    ) -> Result<bool, RunError> {
        let Some(plan) = run.plan else { return Ok(true) };
        if plan.deadline <= now {
            return Ok(false);
        }
        let mut conn = self.core.store.reader().await?;
        if !pauses.is_empty() {
            let agent = agents::get(&mut conn, run.agent).await?;
            if agent.is_some_and(|agent| pauses.iter().any(|pause| pause.selector.matches(&agent.labels))) {
                return Ok(false);
            }
        }
        let policy = self.documents.of_run(&mut conn, run).await?;
        Ok(active.has_room(run, policy.as_deref()))
    }

    /// Makes the next attempt of a run, unless somebody was faster or there is no place for it.
    async fn claim(&self, tx: &mut Tx, run: RunId) -> Result<Option<Claimed>, RunError> {
        let now = self.core.clock.now();
        let Some(mut run) = runs::claim(tx, run).await? else { return Ok(None) };
        let Ok(state) = run.state.apply(RunEvent::Start) else { return Ok(None) };
        if agent_sessions::holder_of(tx, run.agent).await? != Some(self.core.coordinator) {
            return Ok(None);
        }
        if run.due > now || attempts::series_is_busy(tx, run.series).await? {
            return Ok(None);
        }
        let policy = self.documents.of_run(tx, &run).await?;
        if run.plan.is_some_and(|plan| plan.deadline <= now)
            || !take_place(tx, &run, policy.as_deref(), &self.core.coordinator.to_string(), self.most).await?
        {
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
            generation: self.core.standing.generation(),
            epoch: sources::next_fence(tx, run.series).await?,
            lease_owner: self.core.coordinator.to_string(),
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
        let limits = policy.as_deref().map(OfferLimits::of).unwrap_or_default();
        let leave_epoch = series::leave_epoch(tx, run.series).await?;
        Ok(Some((run, attempt, limits, leave_epoch)))
    }

    /// Extends the leases of agents that were heard of here, and records when each was; for those without work now and then.
    ///
    /// # Errors
    /// The database's own.
    pub async fn keep_leases(&self) -> Result<(), RunError> {
        let heard = self.sessions.all();
        let working = &attempts::working_agents(&mut *self.core.store.reader().await?).await?;
        let news = {
            let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
            let connected: HashSet<_> = heard.iter().map(|(agent, _)| *agent).collect();
            recorded.retain(|agent, _| connected.contains(agent));
            let mut news = Vec::new();
            for (agent, at) in heard {
                match recorded.entry(agent) {
                    // What it said first is recorded already.
                    Entry::Vacant(entry) => drop(entry.insert(at)),
                    Entry::Occupied(entry) => {
                        let silent = at.since(*entry.get());
                        if silent >= SEEN || (silent > Duration::ZERO && working.contains(&agent)) {
                            news.push((agent, at));
                        }
                    }
                }
            }
            news
        };
        for batch in news.chunks(LEASES) {
            self.core
                .store
                .run_tx("extend leases", move |tx, _| {
                    async move {
                        agents::seen(tx, batch).await?;
                        let working = batch.iter().filter(|(agent, _)| working.contains(agent));
                        let until = |at: UnixMillis| self.core.to_lease_time(at).plus(self.lease);
                        let leases: Vec<_> = working.map(|(agent, at)| (*agent, until(*at))).collect();
                        attempts::extend(tx, &leases).await?;
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
