//! Asking hosts to test their sources: answers come back over the session and are handed to whoever asked.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use sealift_common::id::{AgentId, CoordinatorId, RequestId};
use sealift_common::name::Name;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::relay::Relay;
use crate::store::StoreError;

/// How long a host may take to test its sources.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Most answers that wait for whoever asked.
const QUEUE: usize = 1_024;

/// What a host found about one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCheck {
    /// Its name.
    pub source: String,
    /// Whether it can be backed up.
    pub ok: bool,
    /// Why not, or what was found.
    pub detail: String,
    /// Of the dump tool.
    pub tool_version: String,
    /// Of the database.
    pub server_version: String,
}

/// Answers of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckAnswer {
    /// What it found.
    pub checks: Vec<SourceCheck>,
    /// Whether that was all.
    pub last: bool,
}

/// Questions that are open.
#[derive(Debug, Default)]
pub struct Checks {
    open: Mutex<HashMap<RequestId, (AgentId, mpsc::Sender<CheckAnswer>)>>,
    /// Questions of other coordinators to agents that are connected here.
    elsewhere: Mutex<HashMap<RequestId, CoordinatorId>>,
}

impl Checks {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RequestId, (AgentId, mpsc::Sender<CheckAnswer>)>> {
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Asks a host; `None` where it is not connected to any coordinator.
    ///
    /// # Errors
    /// The database's own.
    pub async fn ask(
        &self,
        relay: &Relay,
        agent: AgentId,
        request: RequestId,
        source: Option<Name>,
    ) -> Result<Option<mpsc::Receiver<CheckAnswer>>, StoreError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.lock().insert(request, (agent, sender));
        let asked = relay.test(agent, request, source).await;
        if !matches!(asked, Ok(true)) {
            self.forget(request);
        }
        Ok(asked?.then_some(receiver))
    }

    fn lock_elsewhere(&self) -> std::sync::MutexGuard<'_, HashMap<RequestId, CoordinatorId>> {
        self.elsewhere.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Remembers who asked a question to an agent that is connected here. The oldest may be forgotten: whoever asked has
    /// given up long ago.
    pub fn ask_for(&self, request: RequestId, asked_by: CoordinatorId) {
        let mut elsewhere = self.lock_elsewhere();
        if elsewhere.len() >= QUEUE {
            elsewhere.clear();
        }
        elsewhere.insert(request, asked_by);
    }

    /// Which other coordinator asked, where one did; `last` where it has heard all.
    pub fn asked_elsewhere(&self, request: RequestId, last: bool) -> Option<CoordinatorId> {
        let mut elsewhere = self.lock_elsewhere();
        if last { elsewhere.remove(&request) } else { elsewhere.get(&request).copied() }
    }

    /// Takes an answer in. One that nobody waits for, or from another host than was asked, is dropped.
    pub fn answered(&self, agent: AgentId, request: RequestId, answer: CheckAnswer) {
        let mut open = self.lock();
        let last = answer.last;
        if let Some((asked, sender)) = open.get(&request)
            && *asked == agent
        {
            // Whoever asked is gone, or far behind: then it sees what it has taken.
            let _ = sender.try_send(answer);
            if last {
                open.remove(&request);
            }
        }
    }

    /// Waits for no more answers.
    pub fn forget(&self, request: RequestId) {
        self.lock().remove(&request);
        self.lock_elsewhere().remove(&request);
    }
}
