//! How long an attempt tries again when the coordinator does not answer: for as long as there is no session (the lease and
//! `max_duration` bound that), but only so often while there is one. And how long the store may be away.

use std::time::Duration;

use tokio::time::Instant;

use super::failure::AttemptError;
use crate::agent::Agent;
use crate::put::PutError;
use crate::session::backoff::Backoff;
use crate::session::error::CallError;
use crate::session::link::Link;

const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Failures in a row, with a session up, after which an attempt gives up.
const MOST_FAILURES: u32 = 12;

/// One call's tries.
#[derive(Debug)]
pub struct Patience {
    operation: &'static str,
    backoff: Backoff,
    link: Link,
    failures: u32,
}

impl Patience {
    /// For a call that is to do `operation` (a verb, for errors).
    pub fn new(agent: &Agent, operation: &'static str) -> Self {
        let backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT, agent.random.clone());
        Self { operation, backoff, link: agent.link.clone(), failures: 0 }
    }

    /// Waits before the next try of a call that failed in this session.
    ///
    /// # Errors
    /// [`AttemptError::Call`] where no further try makes sense.
    pub async fn wait(&mut self, status: tonic::Status, session: u64) -> Result<(), AttemptError> {
        let source = CallError::from(status);
        // A call that a new session has overtaken is refused because it is late, not because it is wrong.
        let same_session = self.link.current().is_some_and(|connection| connection.number == session);
        self.failures += u32::from(same_session);
        if same_session && (!matches!(source, CallError::Away(_)) || self.failures >= MOST_FAILURES) {
            return Err(AttemptError::Call { operation: self.operation, source });
        }
        tracing::warn!(error = %source, "cannot {} yet", self.operation);
        if !same_session {
            // The next session is what is waited for, and it comes with a jitter of its own.
            self.backoff.reset();
            self.link.connected().await.ok_or(AttemptError::AgentStops)?;
        }
        tokio::time::sleep(self.backoff.next_wait()).await;
        Ok(())
    }
}

/// Tries before the store's refusal of a signature or a certificate is believed.
const MOST_REFUSALS: u32 = 4;

/// One object's tries at the store.
#[derive(Debug)]
pub struct StorePatience {
    backoff: Backoff,
    away_since: Option<Instant>,
    refusals: u32,
}

impl StorePatience {
    /// For an object that was not tried yet.
    pub fn new(agent: &Agent) -> Self {
        let backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT, agent.random.clone());
        Self { backoff, away_since: None, refusals: 0 }
    }

    /// Waits before the next try; a store may be away for `timeout`.
    ///
    /// # Errors
    /// [`AttemptError`] where no further try makes sense.
    pub async fn wait(&mut self, error: PutError, timeout: Duration) -> Result<(), AttemptError> {
        match &error {
            PutError::Away(last) => {
                let since = *self.away_since.get_or_insert_with(Instant::now);
                if since.elapsed() > timeout {
                    return Err(AttemptError::StoreAway { after: since.elapsed(), last: last.clone() });
                }
            }
            PutError::Signature { .. } | PutError::Certificate(_) if self.refusals < MOST_REFUSALS => {
                self.refusals += 1;
            }
            _ => return Err(AttemptError::Put(error)),
        }
        tracing::warn!(%error, "an object is not stored yet");
        tokio::time::sleep(self.backoff.next_wait()).await;
        Ok(())
    }
}
