//! Asking hosts to test their sources: answers come back over the session and are handed to whoever asked.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use sealift_common::id::{AgentId, RequestId};
use sealift_common::name::Name;
use tokio::sync::mpsc;

use super::registry::{Command, Sessions};

/// How long a host may take to test its sources.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Most answers that wait for whoever asked.
const QUEUE: usize = 1_024;

/// What a host found about one source.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

impl Checks {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RequestId, (AgentId, mpsc::Sender<CheckAnswer>)>> {
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Asks a host; `None` where it is not connected.
    pub fn ask(
        &self,
        sessions: &Sessions,
        agent: AgentId,
        request: RequestId,
        source: Option<Name>,
    ) -> Option<mpsc::Receiver<CheckAnswer>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.lock().insert(request, (agent, sender));
        if sessions.send(agent, Command::TestSource { request, source }) {
            return Some(receiver);
        }
        self.forget(request);
        None
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
    }
}
