//! How an attempt is told to end before it is through.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Why an attempt has to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody asked for it; their reason.
    Cancelled(String),
    /// The coordinator gave the attempt up: nothing is to be reported.
    TakenAway,
    /// The agent is being stopped.
    AgentStops,
}

/// A stop signal with its reason; the first one counts.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
    reason: Arc<OnceLock<StopReason>>,
}

impl Stop {
    /// Ends the attempt.
    pub fn now(&self, reason: StopReason) {
        // A second reason is not needed.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Waits for the signal.
    pub async fn asked(&self) -> StopReason {
        self.token.cancelled().await;
        self.reason.get().cloned().unwrap_or(StopReason::AgentStops)
    }
}
