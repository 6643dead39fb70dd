//! Moves of attempts, and of their runs with them, in one transaction.

use std::fmt;
use std::time::Duration;

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, BackupId, RunId};

use serde::{Deserialize, Serialize};

use super::RunError;
use super::state::{AttemptEvent, AttemptState, RunEvent};
use crate::store::{Tx, attempts, runs};

pub use crate::store::attempts::AttemptRow as Attempt;

/// How long to wait after the first, the second, … unsuccessful attempt.
const BACK_OFF: [Duration; 5] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
    Duration::from_secs(1_800),
];

/// Names one attempt and fences it; the wire's `AttemptRef`, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttemptRef {
    /// Of which run.
    pub run: RunId,
    /// The how-manieth, from 1.
    pub number: u32,
    /// Of the database that made it.
    pub generation: u64,
    /// Counts the attempts on the series.
    pub epoch: u64,
}

impl fmt::Display for AttemptRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run, self.number)
    }
}

impl Attempt {
    /// Its name and fence.
    pub fn reference(&self) -> AttemptRef {
        AttemptRef { run: self.run, number: self.number, generation: self.generation, epoch: self.epoch }
    }
}

/// How an attempt is to move, with what is to be remembered of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Of *Begin* and *Commit*.
    pub backup: Option<BackupId>,
    /// Of *Commit*: the backup lacks something.
    pub partial: bool,
    /// Why it ended without a backup; one line.
    pub error: String,
    /// The tool's last words, redacted by the agent.
    pub stderr: String,
    /// Whether another attempt may do better.
    pub retryable: bool,
}

/// The attempt that `reference` names, if it is `agent`'s and still the one that counts. To be called first in every
/// transaction in which an agent writes.
///
/// # Errors
/// [`RunError::NotYours`], [`RunError::Stale`], [`RunError::Over`], or the database's own.
pub async fn fence(tx: &mut Tx, reference: &AttemptRef, agent: AgentId) -> Result<Attempt, RunError> {
    open(reference, find(tx, reference, agent).await?)
}

/// As [`fence`], for a look that nothing is written after: its run is not locked.
///
/// # Errors
/// As [`fence`].
pub async fn fence_to_look(tx: &mut Tx, reference: &AttemptRef, agent: AgentId) -> Result<Attempt, RunError> {
    open(reference, look(tx, reference, agent).await?)
}

fn open(reference: &AttemptRef, attempt: Attempt) -> Result<Attempt, RunError> {
    match attempt.ended {
        Some(ended) => Err(RunError::Over { attempt: *reference, state: attempt.state, ended }),
        None => Ok(attempt),
    }
}

/// As [`fence`], for an attempt that may be over: late reports get the recorded outcome.
///
/// # Errors
/// As [`fence`], apart from [`RunError::Over`].
pub async fn find(tx: &mut Tx, reference: &AttemptRef, agent: AgentId) -> Result<Attempt, RunError> {
    runs::hold(tx, reference.run).await?;
    look(tx, reference, agent).await
}

/// As [`find`], where nothing is written: its run is not locked.
///
/// # Errors
/// As [`find`].
pub async fn look(tx: &mut Tx, reference: &AttemptRef, agent: AgentId) -> Result<Attempt, RunError> {
    let found = attempts::get(tx, reference.run, reference.number).await?;
    // Another host's attempt and one that never was look the same: nobody learns of others' runs by asking.
    let mine = found.filter(|attempt| attempt.agent == agent);
    let attempt = mine.ok_or(RunError::NotYours { attempt: *reference })?;
    if (attempt.generation, attempt.epoch) != (reference.generation, reference.epoch) {
        return Err(RunError::Stale { attempt: *reference });
    }
    Ok(attempt)
}

/// Locks the run of an attempt that was found in a list, and reads it again: `None` where it has ended meanwhile. Whoever
/// has it from [`fence`] or [`find`] holds that lock already.
///
/// # Errors
/// The database's own.
pub async fn lock_open(tx: &mut Tx, attempt: &Attempt) -> Result<Option<Attempt>, RunError> {
    runs::hold(tx, attempt.run).await?;
    let found = attempts::get(tx, attempt.run, attempt.number).await?;
    Ok(found.filter(|attempt| attempt.ended.is_none()))
}

/// Moves `attempt`, whose run is locked, by `event`, and its run with it. Call [`super::Runs::changed`] once the transaction is committed.
///
/// # Errors
/// [`RunError::Illegal`] where the state does not allow it, or the database's own.
pub async fn advance(
    tx: &mut Tx,
    now: UnixMillis,
    attempt: &Attempt,
    event: AttemptEvent,
    report: Report,
) -> Result<Attempt, RunError> {
    let mut attempt = attempt.clone();
    attempt.state = attempt.state.apply(event)?;
    attempt.backup = report.backup.or(attempt.backup);
    if !report.error.is_empty() {
        attempt.error.clone_from(&report.error);
        attempt.stderr.clone_from(&report.stderr);
    }
    if attempt.state.is_over() {
        attempt.ended = Some(now);
    }
    attempts::update(tx, &attempt).await?;
    if attempt.state.is_over() {
        end_of_attempt(tx, now, &attempt, &report).await?;
    }
    Ok(attempt)
}

/// The event that an agent's report of an end is. `stopped`: somebody had asked for it.
pub fn ended_by_agent(state: AttemptState, stopped: bool) -> AttemptEvent {
    match (stopped, state) {
        (true, AttemptState::Preparing) | (false, _) => AttemptEvent::Fail,
        (true, _) => AttemptEvent::Stopped,
    }
}

/// What the end of an attempt means for its run.
async fn end_of_attempt(
    tx: &mut Tx,
    now: UnixMillis,
    attempt: &Attempt,
    report: &Report,
) -> Result<(), RunError> {
    let found = runs::get(tx, attempt.run).await?;
    let mut run = found.ok_or_else(|| RunError::NotFound { what: format!("run {}", attempt.run) })?;
    let wait = BACK_OFF.get(run.attempts.saturating_sub(1) as usize).or(BACK_OFF.last());
    let again = now.plus(wait.copied().unwrap_or_default());
    // Another attempt starts in the run's window, or not at all.
    let in_time = run.plan.is_none_or(|plan| again < plan.deadline);
    let more = run.attempts < run.max_attempts() && run.cancelled_by.is_none() && in_time;
    let event = match attempt.state {
        AttemptState::Committed => RunEvent::Committed { partial: report.partial },
        AttemptState::Cancelled => RunEvent::Stopped,
        AttemptState::Lost => RunEvent::Unsuccessful { retry: more },
        _ => RunEvent::Unsuccessful { retry: more && report.retryable },
    };
    run.state = run.state.apply(event)?;
    run.error.clone_from(&attempt.error);
    if let RunEvent::Committed { .. } = event {
        run.backup = attempt.backup;
    }
    if run.state.is_over() {
        run.ended = Some(now);
    } else {
        run.due = again;
    }
    runs::update(tx, &run).await?;
    Ok(())
}
