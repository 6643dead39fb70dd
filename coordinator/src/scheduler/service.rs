//! Runs out of schedules that are due: planned, queued when their own start comes, missed when their window ends.
//!
//! Each step looks at the database and at the time only, is bounded, and may be repeated.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::tz::TimeZone;
use sealift_common::clock::UnixMillis;
use sealift_common::id::{PolicyId, RunId};

use super::next_run::{Calendar, Due, offset};
use super::plan::{Circumstances, Decision, Planned, Return, SkipReason, decide, host_returns};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::core::Core;
use crate::policy::document::{AtWindowEnd, Policy};
use crate::policy::{PolicyError, service};
use crate::runs::service::site_of;
use crate::runs::state::{RunEvent, RunState};
use crate::runs::{RunError, Runs};
use crate::runtime::Leader;
use crate::store::pauses::{self, PauseRow};
use crate::store::runs::{self, Occasion, RunPlan, RunRow};
use crate::store::source_policies::{self, Owed, WaitingRow};
use crate::store::{StoreError, Tx, backups, trust};

/// Sources and runs that are looked at in one transaction.
const BATCH: u32 = 200;
/// How often to look.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// How often to look at policies, labels and sources although nobody said that they changed.
pub const ASSIGN_EVERY: Duration = Duration::from_secs(15);
/// How often to measure promises.
pub const PROMISES_EVERY: Duration = Duration::from_secs(10);
/// A host that was heard of so recently is back.
const SEEN_WITHIN: Duration = Duration::from_secs(90);

/// What one look did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Runs that were planned, to catch up included.
    pub planned: usize,
    /// Instants that were missed, skipped, or counted on an earlier row.
    pub without_run: usize,
    /// Runs whose own start has come.
    pub queued: usize,
    /// Runs whose window ended before they started.
    pub missed: usize,
    /// Runs that were told to stop.
    pub stopped: usize,
}

/// Makes runs of schedules. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Scheduler {
    pub(super) core: Core,
    runs: Runs,
}

/// A source with its policy, and what has come due.
type Work = (WaitingRow, Option<Arc<Policy>>, Option<Due>);

/// Policies by version, parsed once a look.
#[derive(Default)]
struct Documents(HashMap<(PolicyId, u32), Option<Arc<Policy>>>);

impl Documents {
    async fn of(&mut self, tx: &mut Tx, row: &WaitingRow) -> Result<Option<Arc<Policy>>, PolicyError> {
        let Some(key) = row.row.policy else { return Ok(None) };
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        let found = Some(service::in_force(tx, key.0, key.1).await?);
        self.0.insert(key, found.clone());
        Ok(found)
    }
}

impl Scheduler {
    /// A scheduler of the installation of `core`.
    pub fn new(core: Core, runs: Runs) -> Self {
        Self { core, runs }
    }

    /// One look at everything that may have come due, by the leader.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn run_once(&self, leader: &Leader) -> Result<Status, PolicyError> {
        let now = self.core.clock.now();
        let mut status = Status::default();
        (status.planned, status.without_run) = self.materialise(leader, now).await?;
        status.planned += self.take_back(leader, now).await?;
        status.missed = self.miss(leader, now).await?;
        status.queued = self.queue(leader, now).await?;
        status.stopped = self.stop_late(now).await?;
        if status.queued > 0 {
            self.runs.wake();
        }
        Ok(status)
    }

    /// Gives each instant that has come due its row.
    async fn materialise(&self, leader: &Leader, now: UnixMillis) -> Result<(usize, usize), PolicyError> {
        let (mut calendar, mut planned, mut others) = (Calendar::default(), 0, 0);
        loop {
            let due = source_policies::due(&mut *self.core.store.reader().await?, now, BATCH).await?;
            if due.is_empty() {
                return Ok((planned, others));
            }
            let mut work: Vec<Work> = Vec::new();
            let mut documents = Documents::default();
            {
                let mut conn = self.core.store.reader().await?;
                for row in due {
                    let document = documents.of(&mut conn, &row).await?;
                    let what = document.as_ref().and_then(|policy| {
                        let zone = TimeZone::get(&row.row.timezone).unwrap_or(TimeZone::UTC);
                        calendar.due(&policy.schedule.as_ref()?.cron, &zone, row.row.next_due?, now)
                    });
                    work.push((row, document, what));
                }
            }
            let (made, not) = self.write_due(leader, &work, now).await?;
            planned += made;
            others += not;
            if work.len() < BATCH as usize {
                return Ok((planned, others));
            }
        }
    }

    async fn write_due(
        &self,
        leader: &Leader,
        work: &[Work],
        now: UnixMillis,
    ) -> Result<(usize, usize), PolicyError> {
        self.core
            .store
            .run_tx("plan what is due", move |tx, _| {
                async move {
                    leader.fence(tx).await?;
                    let pauses = pauses::in_force(tx, now).await?;
                    let trusted = trust::newest(tx).await?.is_some();
                    let (mut planned, mut others) = (0, 0);
                    for (row, document, due) in work {
                        let (Some(policy), Some(due)) = (document, due) else {
                            // A schedule that is never due again, or that cannot be read: the next assignment says what holds.
                            self.give_up(tx, row).await?;
                            continue;
                        };
                        match self.one_instant(tx, row, policy, due, &pauses, trusted, now).await? {
                            Some(true) => planned += 1,
                            Some(false) => others += 1,
                            None => {}
                        }
                    }
                    Ok::<_, PolicyError>((planned, others))
                }
                .boxed()
            })
            .await
    }

    async fn give_up(&self, tx: &mut Tx, row: &WaitingRow) -> Result<(), StoreError> {
        tracing::warn!(series = %row.row.series, "the schedule of a source cannot be followed; it is looked at again");
        let mut row = row.row.clone();
        (row.policy, row.next_due) = (None, None);
        source_policies::put(tx, &row).await
    }

    /// What becomes of one instant: `Some(true)` a run, `Some(false)` none, `None` where somebody else was faster.
    #[allow(clippy::too_many_arguments)]
    async fn one_instant(
        &self,
        tx: &mut Tx,
        row: &WaitingRow,
        policy: &Policy,
        due: &Due,
        pauses: &[PauseRow],
        trusted: bool,
        now: UnixMillis,
    ) -> Result<Option<bool>, PolicyError> {
        let (Some((id, version)), Some(before), Some(schedule)) =
            (row.row.policy, row.row.next_due, &policy.schedule)
        else {
            return Ok(None);
        };
        if !source_policies::take_instant(tx, row.row.series, before, due.next).await? {
            return Ok(None);
        }
        let circumstances = Circumstances {
            owed: row.row.owed.is_some(),
            paused: is_paused(pauses, row),
            open_run: row.open_run,
            trusted,
        };
        let delay = offset(id, row.row.series, schedule.spread.0);
        let decision = decide(due, delay, schedule.window.map(|window| window.0), now, &circumstances);
        let make = |planned: &Planned, state, error: &str| {
            self.row(row, policy, (id, version), planned, Occasion::Schedule, state, error, now)
        };
        let owed = row.row.owed.map(|owed| owed.instant);
        match decision {
            Decision::Plan(planned) => {
                Ok(Some(runs::insert(tx, &make(&planned, RunState::Scheduled, "")).await?))
            }
            Decision::Skip(planned, why) => {
                let run = make(&planned, RunState::Skipped, why.as_str());
                self.insert_ended(tx, &run).await?;
                if why == SkipReason::Paused {
                    let owes = Owed { instant: planned.instant, deadline: planned.deadline, run: run.id };
                    source_policies::set_owed(tx, row.row.series, owed, Some(owes)).await?;
                }
                Ok(Some(false))
            }
            Decision::Miss(planned) => {
                let run =
                    make(&planned, RunState::Missed, "nobody planned it in time: the coordinator was away");
                self.insert_ended(tx, &run).await?;
                let owes = Owed { instant: planned.instant, deadline: planned.deadline, run: run.id };
                source_policies::set_owed(tx, row.row.series, owed, Some(owes)).await?;
                Ok(Some(false))
            }
            Decision::Collapse { count } => {
                if let Some(owes) = row.row.owed {
                    runs::collapse(tx, owes.run, count).await?;
                    let planned = super::plan::planned(due, delay, schedule.window.map(|window| window.0));
                    let newest = Owed { instant: planned.instant, deadline: planned.deadline, run: owes.run };
                    source_policies::set_owed(tx, row.row.series, owed, Some(newest)).await?;
                }
                Ok(Some(false))
            }
        }
    }

    async fn insert_ended(&self, tx: &mut Tx, run: &RunRow) -> Result<(), StoreError> {
        if runs::insert(tx, run).await? {
            let said = Details::none()
                .with("state", run.state.as_str())
                .with("why", run.error.as_str())
                .with("series", run.series.to_string());
            let ctx = OpContext::coordinator(&self.core);
            ctx.record(tx, Action::RunFinish, &format!("run:{}", run.id), Outcome::Done, said).await?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn row(
        &self,
        row: &WaitingRow,
        policy: &Policy,
        (id, version): (PolicyId, u32),
        planned: &Planned,
        occasion: Occasion,
        state: RunState,
        error: &str,
        now: UnixMillis,
    ) -> RunRow {
        let stop = policy.limits.at_window_end == AtWindowEnd::Stop && occasion == Occasion::Schedule;
        RunRow {
            id: RunId::generate(&self.core.random),
            agent: row.row.agent,
            source: row.source.clone(),
            series: row.row.series,
            state,
            created: now,
            due: planned.start,
            started: None,
            ended: state.is_over().then_some(now),
            attempts: 0,
            cancelled_by: None,
            requested_by: format!("policy:{}", policy.name),
            trace_parent: String::new(),
            backup: None,
            error: error.to_owned(),
            site: site_of(&row.labels),
            plan: Some(RunPlan {
                policy: id,
                version,
                occasion,
                instant: planned.instant,
                deadline: planned.deadline,
                stop: stop.then_some(planned.deadline),
                collapsed: planned.collapsed,
                attempts: policy.attempts(),
            }),
        }
    }

    /// Hosts that missed a run and are back.
    async fn take_back(&self, leader: &Leader, now: UnixMillis) -> Result<usize, PolicyError> {
        let seen = now.minus(SEEN_WITHIN);
        self.core
            .store
            .run_tx("catch up", move |tx, _| {
                async move {
                    leader.fence(tx).await?;
                    let pauses = pauses::in_force(tx, now).await?;
                    let (mut documents, mut made) = (Documents::default(), 0);
                    for row in source_policies::returned(tx, seen, BATCH).await? {
                        let Some(policy) = documents.of(tx, &row).await? else { continue };
                        if is_paused(&pauses, &row) {
                            continue;
                        }
                        made += usize::from(self.one_return(tx, &row, &policy, now).await?);
                    }
                    Ok::<_, PolicyError>(made)
                }
                .boxed()
            })
            .await
    }

    async fn one_return(
        &self,
        tx: &mut Tx,
        row: &WaitingRow,
        policy: &Policy,
        now: UnixMillis,
    ) -> Result<bool, PolicyError> {
        let (Some(owed), Some(under), Some(next), Some(schedule)) =
            (row.row.owed, row.row.policy, row.row.next_due, &policy.schedule)
        else {
            return Ok(false);
        };
        if !source_policies::set_owed(tx, row.row.series, Some(owed.instant), None).await? || row.open_run {
            return Ok(false);
        }
        let good = backups::newest_good(tx, row.row.series).await?.map(|backup| backup.created);
        let delay = offset(under.0, row.row.series, schedule.spread.0);
        let (planned, why) =
            match host_returns(owed.instant, owed.deadline, next, delay, schedule.catch_up, good, now) {
                Return::InTime(planned) => (planned, "in its window"),
                Return::CatchUp(planned) => (planned, "after its window"),
                Return::Nothing => return Ok(false),
            };
        tracing::info!(series = %row.row.series, instant = %planned.instant, why, "a host is back: its run is made up for");
        let run = self.row(row, policy, under, &planned, Occasion::CatchUp, RunState::Scheduled, "", now);
        Ok(runs::insert(tx, &run).await?)
    }

    /// Runs that wait although their window has ended.
    async fn miss(&self, leader: &Leader, now: UnixMillis) -> Result<usize, PolicyError> {
        let ctx = &OpContext::coordinator(&self.core);
        let missed = self
            .core
            .store
            .run_tx("end runs that are too late", move |tx, _| {
                async move {
                    leader.fence(tx).await?;
                    let mut ended = Vec::new();
                    for late in runs::too_late(tx, now, BATCH).await? {
                        // The source first, then its run: the order of whoever locks both.
                        source_policies::lock(tx, late.series).await?;
                        let Some(mut run) = runs::lock(tx, late.id).await? else { continue };
                        let Ok(state) = run.state.apply(RunEvent::Miss) else { continue };
                        run.state = state;
                        run.ended = Some(now);
                        if state == RunState::Missed {
                            "it could not start in its window: its host was away, or its turn did not come"
                                .clone_into(&mut run.error);
                        }
                        runs::update(tx, &run).await?;
                        let said =
                            Details::none().with("state", state.as_str()).with("why", run.error.as_str());
                        ctx.record(tx, Action::RunFinish, &format!("run:{}", run.id), Outcome::Done, said)
                            .await?;
                        self.owe(tx, &run).await?;
                        ended.push(run.id);
                    }
                    Ok::<_, PolicyError>(ended)
                }
                .boxed()
            })
            .await?;
        for run in &missed {
            self.runs.ended(*run);
        }
        Ok(missed.len())
    }

    /// A run that was missed at its own time is owed; one that was to make up for it is not owed twice.
    async fn owe(&self, tx: &mut Tx, run: &RunRow) -> Result<(), PolicyError> {
        let Some(plan) = run.plan.filter(|plan| plan.occasion == Occasion::Schedule) else { return Ok(()) };
        let Some(row) = source_policies::get(tx, run.series).await? else { return Ok(()) };
        if run.state == RunState::Missed && row.policy.map(|(id, _)| id) == Some(plan.policy) {
            let owes = Owed { instant: plan.instant, deadline: plan.deadline, run: run.id };
            source_policies::set_owed(tx, run.series, row.owed.map(|owed| owed.instant), Some(owes)).await?;
        }
        Ok(())
    }

    /// Runs whose own start has come wait for their host, or for their turn, from now on.
    async fn queue(&self, leader: &Leader, now: UnixMillis) -> Result<usize, PolicyError> {
        let queued = self
            .core
            .store
            .run_tx("queue planned runs", move |tx, _| {
                async move {
                    leader.fence(tx).await?;
                    let mut queued = Vec::new();
                    for planned in runs::to_queue(tx, now, BATCH).await? {
                        let Some(mut run) = runs::lock(tx, planned.id).await? else { continue };
                        let Ok(state) = run.state.apply(RunEvent::Queue) else { continue };
                        run.state = state;
                        runs::update(tx, &run).await?;
                        queued.push(run.id);
                    }
                    Ok::<_, PolicyError>(queued)
                }
                .boxed()
            })
            .await?;
        for run in &queued {
            self.runs.changed(*run);
        }
        Ok(queued.len())
    }

    /// Runs under way whose policy wants them to end with their window.
    async fn stop_late(&self, now: UnixMillis) -> Result<usize, PolicyError> {
        let late = runs::to_stop(&mut *self.core.store.reader().await?, now, BATCH).await?;
        let ctx = OpContext::coordinator(&self.core);
        let mut stopped = 0;
        for run in late {
            match self.runs.cancel(&ctx, &run.id.to_string(), "its window has ended").await {
                Ok(_) => stopped += 1,
                // It ends by itself just now: its manifest is on the way.
                Err(RunError::Illegal(_)) => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, run = %run.id, "cannot stop a run at the end of its window");
                }
            }
        }
        Ok(stopped)
    }

    /// Records which promises are broken, and which are kept again: one event each.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn measure_promises(&self, leader: &Leader) -> Result<(), PolicyError> {
        let now = self.core.clock.now();
        let ctx = &OpContext::coordinator(&self.core);
        self.core
            .store
            .run_tx("measure promises", move |tx, _| {
                async move {
                    leader.fence(tx).await?;
                    for promise in source_policies::overdue(tx, now, true, BATCH).await? {
                        let broken = promise.overdue_since.is_none();
                        let since = broken.then_some(now);
                        if !source_policies::set_overdue(tx, promise.series, since).await? {
                            continue;
                        }
                        let entity = format!("source:{}/{}", promise.agent_name, promise.source);
                        let good = promise.last_good.map(UnixMillis::rfc3339);
                        let said = Details::none().with("promise_ms", promise.promise_ms).with("last_good", good);
                        let action = if broken { Action::PromiseBreak } else { Action::PromiseKeep };
                        ctx.record(tx, action, &entity, Outcome::Done, said).await?;
                        if broken {
                            tracing::warn!(%entity, "the newest good backup is older than the policy promises");
                        }
                    }
                    Ok::<_, PolicyError>(())
                }
                .boxed()
            })
            .await
    }
}

fn is_paused(pauses: &[PauseRow], row: &WaitingRow) -> bool {
    pauses.iter().any(|pause| pause.selector.matches(&row.labels))
}
