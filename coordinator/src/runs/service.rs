//! What admins and agents do with runs, each in one transaction with its audit events.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, BackupId, RunId};
use sealift_common::name::Labels;
use tokio::sync::{Notify, broadcast};

use super::attempt::{AttemptRef, Report, advance, ended_by_agent, fence, find, lock_open, look};
use super::limits::Documents;
use super::progress::{Board, Progress};
use super::state::{AttemptEvent, AttemptState, RunEvent, RunState};
use super::{Attempt, RunError};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::core::Core;
use crate::runtime::Leader;
use crate::sessions::Sessions;
use crate::sessions::relay::Relay;
use crate::store::runs::{self, RunRow};
use crate::store::sources::{self, SourceRow};
use crate::store::{Tx, agents, attempts, backups, dialect, trust};

/// The site of a host with these labels; empty where they do not say.
pub fn site_of(labels: &Labels) -> String {
    labels.get("store").unwrap_or_default().to_owned()
}

/// Most changes that a watcher may be behind before it is told to look again.
const CHANGES: usize = 1_024;

/// A run with its attempts and what is known of its progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunView {
    /// The run.
    pub run: RunRow,
    /// Its attempts, in order.
    pub attempts: Vec<Attempt>,
    /// Of the attempt that is under way.
    pub progress: Option<Progress>,
}

/// Runs and attempts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Runs {
    pub(super) core: Core,
    pub(super) sessions: Arc<Sessions>,
    relay: Relay,
    /// How long an attempt outlives the last word of its agent.
    pub(super) lease: Duration,
    pub(super) wake: Arc<Notify>,
    /// The last term of this coordinator as leader in which leases were looked after.
    pub(super) began: Arc<AtomicU64>,
    /// When each agent was heard of, as it was last recorded.
    pub(super) recorded: Arc<Mutex<HashMap<AgentId, UnixMillis>>>,
    /// Runs of policies that this process looks after at the same time, at most.
    pub(super) most: u32,
    /// Whether the bucket cannot be written.
    pub(super) held: Arc<AtomicBool>,
    pub(super) documents: Documents,
    changes: broadcast::Sender<RunId>,
    progress: Board,
}

impl Runs {
    /// Runs of the installation of `core`, on the agents of `sessions`.
    pub fn new(core: Core, sessions: Arc<Sessions>, lease: Duration) -> Self {
        let (changes, _) = broadcast::channel(CHANGES);
        let relay = Relay::new(core.clone(), sessions.clone());
        let progress = Board::new(core.clone());
        Self {
            core,
            sessions,
            relay,
            lease,
            wake: Arc::default(),
            most: u32::MAX,
            held: Arc::default(),
            documents: Documents::default(),
            began: Arc::default(),
            recorded: Arc::default(),
            changes,
            progress,
        }
    }

    /// These runs, of which policies start at most `most` at the same time on this coordinator.
    #[must_use]
    pub fn at_most(self, most: u32) -> Self {
        Self { most, ..self }
    }

    /// To be called once a transaction that moved an attempt is committed: watchers look again, and what waits may start.
    pub fn changed(&self, run: RunId) {
        // Nobody watches: nobody to tell.
        let _ = self.changes.send(run);
        self.wake();
    }

    /// As [`Runs::changed`], where the attempt has ended: what was said about its progress is forgotten.
    pub fn ended(&self, run: RunId) {
        self.progress.forget(run);
        self.changed(run);
    }

    /// Notified when something may be startable.
    pub fn waker(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Something may be startable now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Ids of runs, as they change.
    pub fn watch(&self) -> broadcast::Receiver<RunId> {
        self.changes.subscribe()
    }

    /// Takes in how far an attempt is. Words about attempts that are over, or not this agent's, are dropped.
    ///
    /// # Errors
    /// The database's own.
    pub async fn take_progress(
        &self,
        agent: AgentId,
        attempt: &AttemptRef,
        progress: Progress,
    ) -> Result<(), RunError> {
        let found = look(&mut *self.core.store.reader().await?, attempt, agent).await;
        match found {
            Ok(found) if found.ended.is_some() => return Ok(()),
            Ok(_) => self.progress.take(attempt, progress).await?,
            Err(RunError::Store(error)) => return Err(error.into()),
            Err(_) => return Ok(()),
        }
        let _ = self.changes.send(attempt.run);
        Ok(())
    }

    /// Forgets what was said of runs that ended elsewhere. Called from time to time.
    ///
    /// # Errors
    /// The database's own.
    pub async fn tidy_progress(&self) -> Result<(), RunError> {
        Ok(self.progress.tidy().await?)
    }

    /// Asks for one backup of each of `sources`. A source that has a run which has not ended gets that one again.
    ///
    /// # Errors
    /// [`RunError::NoTrustPolicy`], or those of access and database.
    pub async fn start(
        &self,
        ctx: &OpContext,
        sources: &[SourceRow],
        trace_parent: &str,
    ) -> Result<Vec<RunRow>, RunError> {
        let names: Vec<String> = sources.iter().map(|s| format!("{}/{}", s.agent, s.name)).collect();
        let details = Details::none().with("sources", names);
        let started = ctx
            .perform(Action::RunStart, &"runs", details, |tx, _| {
                async move {
                    if trust::newest(tx).await?.is_none() {
                        return Err(RunError::NoTrustPolicy);
                    }
                    let (mut out, mut series) =
                        (Vec::new(), Vec::from_iter(sources.iter().map(|s| s.series)));
                    // In one order, whoever asks.
                    series.sort_unstable();
                    for series in series {
                        sources::lock_series(tx, series).await?;
                    }
                    for source in sources {
                        out.push(self.queue(tx, ctx, source, trace_parent).await?);
                    }
                    dialect::notify(tx, dialect::EVERYBODY).await?;
                    let ids: Vec<String> = out.iter().map(|run| run.id.to_string()).collect();
                    Ok((out, Details::none().with("runs", ids)))
                }
                .boxed()
            })
            .await?;
        self.wake();
        Ok(started)
    }

    async fn queue(
        &self,
        tx: &mut Tx,
        ctx: &OpContext,
        source: &SourceRow,
        trace_parent: &str,
    ) -> Result<RunRow, RunError> {
        let now = self.core.clock.now();
        if let Some(mut run) = runs::open_of_series(tx, source.series).await?.into_iter().next() {
            run = runs::lock(tx, run.id).await?.unwrap_or(run);
            if run.state == RunState::Scheduled {
                // Planned for later: whoever asks now gets it now.
                run.state = run.state.apply(RunEvent::Queue)?;
                run.due = now;
                runs::update(tx, &run).await?;
            }
            return Ok(run);
        }
        let run = RunRow {
            id: RunId::generate(&self.core.random),
            agent: source.agent,
            source: source.name.clone(),
            series: source.series,
            state: RunState::Queued,
            created: now,
            due: now,
            started: None,
            ended: None,
            attempts: 0,
            cancelled_by: None,
            requested_by: ctx.actor().to_string(),
            trace_parent: trace_parent.to_owned(),
            backup: None,
            error: String::new(),
            site: agents::get(tx, source.agent)
                .await?
                .map(|agent| site_of(&agent.labels))
                .unwrap_or_default(),
            plan: None,
        };
        runs::insert(tx, &run).await?;
        Ok(run)
    }

    /// The run that `text` names: an id or an unambiguous beginning of one.
    ///
    /// # Errors
    /// [`RunError::NotFound`], [`RunError::Ambiguous`], or the database's own.
    pub async fn find(&self, tx: &mut Tx, text: &str) -> Result<RunRow, RunError> {
        let shown = || text.chars().take(80).collect::<String>();
        let looks_like_id = !text.is_empty() && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
        let mut found =
            if looks_like_id { runs::by_prefix(tx, &text.to_ascii_lowercase()).await? } else { vec![] };
        match (found.pop(), found.is_empty()) {
            (Some(run), true) => Ok(run),
            (Some(_), false) => Err(RunError::Ambiguous(shown())),
            (None, _) => Err(RunError::NotFound { what: format!("run {:?}", shown()) }),
        }
    }

    /// One run with all that is known of it.
    ///
    /// # Errors
    /// As [`Runs::find`], and those of access.
    pub async fn show(&self, ctx: &OpContext, text: &str) -> Result<RunView, RunError> {
        ctx.authorize(Action::RunShow, &"run").await?;
        let mut conn = self.core.store.reader().await?;
        let run = self.find(&mut conn, text).await?;
        self.view(&mut conn, run).await
    }

    /// A run's row with its attempts and progress.
    ///
    /// # Errors
    /// The database's own.
    pub async fn view(&self, tx: &mut Tx, run: RunRow) -> Result<RunView, RunError> {
        let attempts = attempts::of_run(tx, run.id).await?;
        let progress = match run.backup {
            Some(backup) => made(tx, backup).await?,
            None if run.state.is_over() => None,
            None => self.progress.of(tx, run.id, &attempts).await?,
        };
        Ok(RunView { run, attempts, progress })
    }

    /// Ends a run: at once where nothing is under way, else as soon as its agent has stopped.
    ///
    /// # Errors
    /// As [`Runs::find`], [`RunError::Illegal`] where it is over or its manifest is on the way, and those of access.
    pub async fn cancel(&self, ctx: &OpContext, text: &str, reason: &str) -> Result<RunView, RunError> {
        let entity = format!("run:{}", text.chars().take(80).collect::<String>());
        let details = Details::none().with("reason", reason);
        let (run, told) = ctx
            .perform(Action::RunCancel, &entity, details, |tx, _| {
                async move {
                    let mut run = self.find(tx, text).await?;
                    run = runs::lock(tx, run.id).await?.unwrap_or(run);
                    let now = self.core.clock.now();
                    run.state = run.state.apply(RunEvent::Cancel)?;
                    run.cancelled_by = Some(ctx.actor().to_string());
                    if run.state.is_over() {
                        run.ended = Some(now);
                        reason.clone_into(&mut run.error);
                    }
                    let mut told = None;
                    if let Some(open) =
                        attempts::of_run(tx, run.id).await?.into_iter().find(|a| a.ended.is_none())
                    {
                        let report = Report { error: reason.to_owned(), ..Report::default() };
                        told = Some(advance(tx, now, &open, AttemptEvent::Cancel, report).await?);
                    }
                    runs::update(tx, &run).await?;
                    let said = Details::none().with("run", run.id.to_string());
                    Ok::<_, RunError>(((run, told), said))
                }
                .boxed()
            })
            .await?;
        if let Some(attempt) = told {
            self.relay.cancel(attempt.agent, attempt.reference(), reason).await?;
        }
        self.changed(run.id);
        self.view(&mut *self.core.store.reader().await?, run).await
    }

    /// An agent answered an offer.
    ///
    /// # Errors
    /// As [`fence`], [`RunError::Illegal`], or the database's own.
    pub async fn answered(
        &self,
        ctx: &OpContext,
        reference: &AttemptRef,
        rejected: Option<Report>,
    ) -> Result<(), RunError> {
        let operation = ctx.operation(Action::AttemptAnswer, format!("attempt:{reference}"), Details::none());
        let (now, rejected) = (self.core.clock.now(), &rejected);
        let until = self.core.lease_time().plus(self.lease);
        let answer = async {
            let agent = operation.agent()?;
            let instance = self.sessions.instance(agent);
            let record = self.core.store.run_tx("offer answered", move |tx, _| {
                async move {
                    let mut attempt = fence(tx, reference, agent).await?;
                    attempt.instance = instance.or(attempt.instance);
                    attempt.lease_expires = until;
                    let (event, report) = match rejected {
                        None => (AttemptEvent::Accept, Report::default()),
                        Some(report) => (AttemptEvent::Reject, report.clone()),
                    };
                    advance(tx, now, &attempt, event, report).await?;
                    Ok::<_, RunError>(())
                }
                .boxed()
            });
            record.await
        };
        operation.run(answer.boxed()).await?;
        self.changed(reference.run);
        Ok(())
    }

    /// An agent says that its attempt ended without a backup. Late and repeated reports are no errors: they get the outcome
    /// that was recorded.
    ///
    /// # Errors
    /// [`RunError::NotFound`], [`RunError::NotYours`], [`RunError::Stale`], or those of access and database.
    pub async fn fail(
        &self,
        ctx: &OpContext,
        reference: &AttemptRef,
        report: Report,
        stopped: bool,
    ) -> Result<Attempt, RunError> {
        let details =
            Details::none().with("error", report.error.as_str()).with("retryable", report.retryable);
        let operation = ctx.operation(Action::AttemptFail, format!("attempt:{reference}"), details);
        let report = &report;
        let fail = async {
            let agent = operation.agent()?;
            let record = operation.change(move |tx, _| {
                async move {
                    let attempt = find(tx, reference, agent).await?;
                    if attempt.ended.is_some() {
                        return Ok::<_, RunError>((attempt, Details::none().with("late", true)));
                    }
                    let event = ended_by_agent(attempt.state, stopped);
                    let now = self.core.clock.now();
                    let attempt = advance(tx, now, &attempt, event, report.clone()).await?;
                    let said = Details::none().with("state", attempt.state.as_str());
                    Ok((attempt, said))
                }
                .boxed()
            });
            record.await
        };
        let attempt = operation.run(fail.boxed()).await?;
        self.ended(reference.run);
        Ok(attempt)
    }

    /// Ends all runs of an agent that will not be heard any more.
    ///
    /// # Errors
    /// The database's own.
    pub async fn end_all_of(&self, ctx: &OpContext, agent: AgentId, reason: &str) -> Result<(), RunError> {
        let now = self.core.clock.now();
        let ended = self
            .core
            .store
            .run_tx("end an agent's runs", |tx, _| {
                async move {
                    for attempt in attempts::open_of_agent(tx, agent).await? {
                        let Some(attempt) = lock_open(tx, &attempt).await? else { continue };
                        let report = Report { error: reason.to_owned(), ..Report::default() };
                        // Whatever it was doing: it cannot tell us any more.
                        advance(tx, now, &attempt, AttemptEvent::Lose, report).await?;
                    }
                    let mut ended = Vec::new();
                    for run in runs::open_of_agent(tx, agent).await? {
                        let Some(mut run) = runs::lock(tx, run.id).await?.filter(|run| !run.state.is_over())
                        else {
                            continue;
                        };
                        run.state = run.state.apply(RunEvent::Cancel)?;
                        run.cancelled_by = Some(ctx.actor().to_string());
                        reason.clone_into(&mut run.error);
                        run.ended = Some(now);
                        runs::update(tx, &run).await?;
                        let said = Details::none().with("reason", reason);
                        ctx.record(tx, Action::RunFinish, &format!("run:{}", run.id), Outcome::Done, said)
                            .await?;
                        ended.push(run.id);
                    }
                    Ok::<_, RunError>(ended)
                }
                .boxed()
            })
            .await?;
        for run in ended {
            self.ended(run);
        }
        Ok(())
    }

    /// The source that a run backs up.
    ///
    /// # Errors
    /// The database's own.
    pub async fn source_of(&self, tx: &mut Tx, run: &RunRow) -> Result<Option<SourceRow>, RunError> {
        Ok(sources::get(tx, run.agent, &run.source).await?)
    }

    /// Ends attempts whose lease ended at `now`, by the clock of leases; their runs go on with the next one, or fail.
    ///
    /// # Errors
    /// The database's own.
    pub async fn expire(&self, now: UnixMillis, leader: Option<&Leader>) -> Result<usize, RunError> {
        const BATCH: u32 = 100;
        let ctx = &OpContext::coordinator(&self.core);
        let ended = self
            .core
            .store
            .run_tx("end leases", move |tx, _| {
                async move {
                    if let Some(leader) = leader {
                        leader.fence(tx).await?;
                    }
                    let (mut ended, over) = (Vec::new(), self.core.clock.now());
                    for attempt in attempts::expired(tx, now, BATCH).await? {
                        let open = lock_open(tx, &attempt).await?.filter(|open| open.lease_expires <= now);
                        let Some(attempt) = open else { continue };
                        let error = match attempt.state {
                            AttemptState::Offered => "the agent did not answer the offer",
                            _ => "the agent was not heard of until the lease ended",
                        };
                        let report = Report { error: error.to_owned(), ..Report::default() };
                        advance(tx, over, &attempt, AttemptEvent::Lose, report).await?;
                        let entity = format!("attempt:{}", attempt.reference());
                        let said = Details::none().with("error", error);
                        ctx.record(tx, Action::AttemptLose, &entity, Outcome::Done, said).await?;
                        ended.push(attempt.run);
                    }
                    Ok::<_, RunError>(ended)
                }
                .boxed()
            })
            .await?;
        for run in &ended {
            self.ended(*run);
        }
        Ok(ended.len())
    }
}

/// How far a run got that made a backup: what the backup says.
async fn made(tx: &mut Tx, backup: BackupId) -> Result<Option<Progress>, RunError> {
    let prepared = backups::get(tx, backup).await?.and_then(|row| row.prepared);
    Ok(prepared.map(|prepared| Progress {
        raw_bytes: prepared.raw_bytes,
        new_raw_bytes: prepared.new_raw_bytes,
        stored_bytes: prepared.new_stored_bytes,
        packs: prepared.refs.len(),
        expected_raw_bytes: prepared.raw_bytes,
        ..Progress::default()
    }))
}
