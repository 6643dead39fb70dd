//! Attempts: what this host works on, from the offer to the word that it is over.
//!
//! [`Attempts`] is the registry that the session talks to. Each attempt is a task of its own ([`run`]) which does not care
//! whether the session that offered it is still there. An attempt is in the journal before it starts and leaves it when the
//! coordinator knows how it ended. One whose source is through and whose packs wait in the spool ([`spooled`]) goes on in
//! the next process; any other that a process leaves behind was interrupted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use sealift_common::lifecycle::Lifecycle;
use sealift_common::name::Name;
use sealift_common::telemetry;
use sealift_proto::v1;

use crate::agent::Agent;
use crate::service;
use crate::state::journal::{AttemptRef, Entry, Failure};
use job::Job;
use report::Delivery;
use stop::{Stop, StopReason};

mod begin;
mod failure;
mod finish;
mod indexes;
mod job;
mod manifest;
mod patience;
mod report;
mod run;
mod source_test;
mod spooled;
pub mod stop;
mod store;

/// One attempt that has not ended, or whose end the coordinator does not know.
#[derive(Debug)]
struct Running {
    attempt: AttemptRef,
    stop: Stop,
}

/// The attempts of this process, and those that an earlier process left behind.
#[derive(Debug)]
pub struct Attempts {
    agent: Arc<Agent>,
    lifecycle: Lifecycle,
    tracker: TaskTracker,
    running: Mutex<HashMap<Name, Running>>,
    count: watch::Sender<usize>,
    /// Ended, and the coordinator does not know: interrupted with an earlier process, or a report that was not taken.
    unreported: Mutex<Vec<Entry>>,
    resumable: Mutex<Vec<(Job, Entry)>>,
}

impl Attempts {
    /// The registry; what the journal still holds was interrupted, or waits in the spool.
    ///
    /// # Errors
    /// [`StateError`](crate::state::dir::StateError) where the journal cannot be read.
    pub fn new(agent: Arc<Agent>, lifecycle: Lifecycle) -> Result<Arc<Self>, crate::state::dir::StateError> {
        let (mut unreported, mut resumable) = (Vec::new(), Vec::new());
        let tickets = agent.tickets().all()?;
        if let Some(spool) = &agent.spool {
            let wanted: Vec<_> = tickets.iter().map(|ticket| ticket.folder.clone()).collect();
            if let Err(error) = spool.sweep(&wanted) {
                tracing::warn!(error = crate::source::whole_chain(&error), "cannot tidy the spool");
            }
        }
        for entry in agent.journal().entries()? {
            let ticket = tickets.iter().find(|t| t.attempt == entry.attempt && entry.failure.is_none());
            match ticket.and_then(|ticket| Job::taken_up(ticket, &agent.config(), agent.clock.now())) {
                Some(job) => resumable.push((job, entry)),
                None => {
                    tracing::warn!(attempt = %entry.attempt, source = entry.source, "ended, and was not reported");
                    unreported.push(entry);
                }
            }
        }
        for ticket in &tickets {
            if !resumable.iter().any(|(job, _)| job.attempt == ticket.attempt) {
                tokio::spawn(spooled::expire(agent.clone(), ticket.series));
            }
        }
        Ok(Arc::new(Self {
            agent,
            tracker: lifecycle.tracker.clone(),
            lifecycle,
            running: Mutex::default(),
            count: watch::Sender::new(0),
            unreported: Mutex::new(unreported),
            resumable: Mutex::new(resumable),
        }))
    }

    /// Goes on with what an earlier process left in the spool. Call it before the first session: Hello then says that these
    /// attempts are alive.
    pub fn resume(self: &Arc<Self>) {
        let resumable = std::mem::take(&mut *self.resumable.lock().unwrap_or_else(PoisonError::into_inner));
        for (job, entry) in resumable {
            tracing::info!(attempt = %job.attempt, source = %job.source.name, "taking up a backup from the spool");
            let span = tracing::info_span!("attempt", attempt = %job.attempt, source = %job.source.name);
            self.start(&mut self.running(), job, entry, span);
        }
    }

    /// Whether nothing runs and everything is reported.
    pub fn is_idle(&self) -> bool {
        *self.count.borrow() == 0
    }

    /// Waits until the agent was told to stop and its attempts are over.
    pub async fn wait_stopped(&self, lifecycle: &Lifecycle) {
        lifecycle.soft.cancelled().await;
        // The sender lives in `self`.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Accepts an offer and starts working on it, or says why not. The same offer again gets the same answer.
    pub fn offer(self: &Arc<Self>, offer: v1::Offer) -> v1::OfferReply {
        let wire = offer.attempt.clone();
        let answer = |accepted, reason: String, reject: v1::RejectReason| v1::OfferReply {
            attempt: wire.clone(),
            accepted,
            reason,
            reject: reject.into(),
        };
        match self.accept(offer) {
            Ok(()) => answer(true, String::new(), v1::RejectReason::Unspecified),
            Err((reason, reject)) => {
                tracing::warn!(reason, "refused an offer");
                answer(false, reason, reject)
            }
        }
    }

    fn accept(self: &Arc<Self>, offer: v1::Offer) -> Result<(), (String, v1::RejectReason)> {
        let trace_parent = offer.trace_parent.clone();
        let job = Job::parse(offer, &self.agent.config())?;
        if self.lifecycle.soft.is_cancelled() {
            return Err(("the agent is being stopped".to_owned(), v1::RejectReason::Busy));
        }
        let mut running = self.running();
        match running.get(&job.source.name) {
            Some(same) if same.attempt == job.attempt => return Ok(()),
            Some(other) => {
                let reason = format!("{} is being backed up by attempt {}", job.source.name, other.attempt);
                return Err((reason, v1::RejectReason::Busy));
            }
            None => {}
        }
        let full =
            |error: crate::state::dir::StateError| (error.to_string(), v1::RejectReason::StateDiskFull);
        self.agent.state.check_space().map_err(full)?;
        let entry = Entry {
            attempt: job.attempt,
            series: job.series,
            source: job.source.name.to_string(),
            started: self.agent.clock.now(),
            failure: None,
        };
        self.agent.journal().record(&entry).map_err(full)?;
        let span = tracing::info_span!("attempt", attempt = %job.attempt, source = %job.source.name);
        telemetry::set_trace_parent(&span, &trace_parent);
        self.start(&mut running, job, entry, span);
        Ok(())
    }

    fn start(
        self: &Arc<Self>,
        running: &mut HashMap<Name, Running>,
        job: Job,
        entry: Entry,
        span: tracing::Span,
    ) {
        let stop = Stop::default();
        running.insert(job.source.name.clone(), Running { attempt: job.attempt, stop: stop.clone() });
        self.count.send_replace(running.len());
        let this = self.clone();
        self.tracker.spawn(async move { this.work(job, entry, stop).await }.instrument(span));
    }

    async fn work(&self, job: Job, mut entry: Entry, stop: Stop) {
        let name = job.source.name.clone();
        let outcome = run::run(&self.agent, &job, &stop, &self.lifecycle).await;
        let mut delivery = Delivery::Known;
        if let run::Outcome::Failed(failure) = &outcome {
            entry.failure = Some(failure.clone());
            if let Err(error) = self.agent.journal().record(&entry) {
                tracing::error!(%error, "cannot note the failure; it is reported while this process lives");
            }
            delivery = report::deliver(&self.agent, job.attempt, failure).await;
        }
        if !matches!(outcome, run::Outcome::Suspended) {
            match delivery {
                Delivery::Known => {
                    if let Err(error) = self.agent.journal().forget(job.attempt) {
                        tracing::error!(%error, "cannot forget an attempt that is over");
                    }
                }
                Delivery::Kept => self.unreported().push(entry),
            }
            // What still waits in the spool is for the next attempt of this run, if there is one.
            tokio::spawn(spooled::expire(self.agent.clone(), job.series));
        }
        // An idle agent is to be small: what the dump took goes back to the system.
        service::return_memory();
        let mut running = self.running();
        running.remove(&name);
        self.count.send_replace(running.len());
    }

    /// Ends an attempt on the coordinator's word.
    pub fn cancel(&self, cancel: &v1::CancelAttempt) {
        let attempt = cancel.attempt.as_ref().and_then(|wire| AttemptRef::try_from(wire).ok());
        if let Some(attempt) = attempt {
            self.stop(attempt, StopReason::Cancelled(cancel.reason.clone()));
        }
    }

    /// What Hello says of attempts.
    pub fn states(&self) -> Vec<v1::AttemptState> {
        let running = self.running();
        let alive = running.values().map(|running| v1::AttemptState {
            attempt: Some(running.attempt.to_wire()),
            phase: v1::AttemptPhase::Running.into(),
            ..v1::AttemptState::default()
        });
        let mut states: Vec<_> = alive.collect();
        drop(running);
        states.extend(self.unreported().iter().map(ended));
        states
    }

    /// The coordinator has read Hello: it knows what was `said` of ended attempts, and says which ones are over.
    pub fn welcomed(&self, said: &[v1::AttemptState], lost: &[v1::AttemptRef]) {
        let ended = |state: &&v1::AttemptState| state.phase() == v1::AttemptPhase::Interrupted;
        let told: Vec<_> = said.iter().filter(ended).filter_map(|state| state.attempt.clone()).collect();
        for entry in self.unreported().extract_if(.., |entry| told.contains(&entry.attempt.to_wire())) {
            if let Err(error) = self.agent.journal().forget(entry.attempt) {
                tracing::error!(%error, "cannot forget an attempt that is over");
            }
        }
        for attempt in lost.iter().filter_map(|wire| AttemptRef::try_from(wire).ok()) {
            self.stop(attempt, StopReason::TakenAway);
        }
    }

    /// Tests one source, or all, and sends what was found.
    pub fn test_sources(&self, test: v1::TestSource, outgoing: tokio::sync::mpsc::Sender<v1::AgentMessage>) {
        let agent = self.agent.clone();
        self.tracker.spawn(async move { source_test::answer(&agent, test, outgoing).await });
    }

    fn stop(&self, attempt: AttemptRef, reason: StopReason) {
        if let Some(running) = self.running().values().find(|running| running.attempt == attempt) {
            running.stop.now(reason);
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Name, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreported(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.unreported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What Hello says of an attempt that nothing works on any more.
fn ended(entry: &Entry) -> v1::AttemptState {
    let interrupted = v1::AttemptState {
        attempt: Some(entry.attempt.to_wire()),
        phase: v1::AttemptPhase::Interrupted.into(),
        ..v1::AttemptState::default()
    };
    match entry.failure.clone() {
        None => v1::AttemptState {
            failure: "the agent was stopped or killed while it ran".to_owned(),
            ..interrupted
        },
        Some(Failure { error: failure, stderr, retryable, cancelled }) => {
            v1::AttemptState { failed: true, failure, stderr, retryable, cancelled, ..interrupted }
        }
    }
}
