//! Reaching agents wherever they are connected. What is for an agent on another coordinator is left in the database for that
//! coordinator, which takes it within a second; on PostgreSQL a notification says so at once.
//!
//! Nothing rests on it: what was to be told to a coordinator that died is found out by the agent's next Hello, or ends with
//! its lease.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::id::{AgentId, CoordinatorId, RequestId};
use sealift_common::name::Name;
use serde::{Deserialize, Serialize};

use super::checks::{CheckAnswer, Checks};
use super::registry::{Closed, Command, Sessions};
use crate::core::Core;
use crate::runs::AttemptRef;
use crate::store::{StoreError, Tx, agent_sessions, coordinators, dialect};

/// How often to look for messages even if nothing called for it.
pub const INTERVAL: Duration = Duration::from_millis(500);
/// Messages taken in one go.
const BATCH: u32 = 100;

/// What one coordinator leaves for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// An agent has opened a newer session: end those below this epoch.
    Replaced { agent: AgentId, epoch: u64 },
    /// An agent may not be here any more.
    Revoked { agent: AgentId },
    /// Tell an agent to stop working on an attempt.
    Cancel { agent: AgentId, attempt: AttemptRef, reason: String },
    /// Tell an agent to test its sources, and pass its answers on.
    Test { agent: AgentId, request: RequestId, source: Option<Name>, asked_by: CoordinatorId },
    /// What an agent found, for a question asked here.
    Tested { agent: AgentId, request: RequestId, answer: CheckAnswer },
}

/// Reaches agents. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Relay {
    core: Core,
    sessions: Arc<Sessions>,
}

impl Relay {
    /// For the agents of `sessions`, and those of other coordinators on the same database.
    pub fn new(core: Core, sessions: Arc<Sessions>) -> Self {
        Self { core, sessions }
    }

    /// Tells an agent to stop working on an attempt. One that is away is told when it connects, or its lease ends.
    ///
    /// # Errors
    /// The database's own.
    pub async fn cancel(&self, agent: AgentId, attempt: AttemptRef, reason: &str) -> Result<(), StoreError> {
        let reason = reason.to_owned();
        if self.sessions.send(agent, Command::Cancel { attempt, reason: reason.clone() }) {
            return Ok(());
        }
        self.leave(agent, Message::Cancel { agent, attempt, reason }).await.map(drop)
    }

    /// Ends the session of an agent that may not be here any more.
    ///
    /// # Errors
    /// The database's own.
    pub async fn revoke(&self, agent: AgentId) -> Result<(), StoreError> {
        self.sessions.close(agent, Closed::Revoked);
        self.leave(agent, Message::Revoked { agent }).await.map(drop)
    }

    /// Asks an agent to test one source, or all. `false` where it is connected nowhere.
    ///
    /// # Errors
    /// The database's own.
    pub async fn test(
        &self,
        agent: AgentId,
        request: RequestId,
        source: Option<Name>,
    ) -> Result<bool, StoreError> {
        if self.sessions.send(agent, Command::TestSource { request, source: source.clone() }) {
            return Ok(true);
        }
        let asked_by = self.core.coordinator;
        self.leave(agent, Message::Test { agent, request, source, asked_by }).await
    }

    /// Takes in what an agent that is connected here found: for a question of ours, or of another coordinator.
    ///
    /// # Errors
    /// The database's own.
    pub async fn tested(
        &self,
        checks: &Checks,
        agent: AgentId,
        request: RequestId,
        answer: CheckAnswer,
    ) -> Result<(), StoreError> {
        match checks.asked_elsewhere(request, answer.last) {
            None => checks.answered(agent, request, answer),
            Some(coordinator) => {
                let message = Message::Tested { agent, request, answer };
                let post = self.core.store.run_tx("pass an answer on", |tx, _| {
                    let message = message.clone();
                    async move { self.post(tx, coordinator, &message).await }.boxed()
                });
                post.await?;
            }
        }
        Ok(())
    }

    /// Records that an agent opened a session here: its epoch. An older one on another coordinator is closed there.
    ///
    /// # Errors
    /// The database's own.
    pub async fn opened(&self, tx: &mut Tx, agent: AgentId) -> Result<u64, StoreError> {
        let here = self.core.coordinator;
        let opened = agent_sessions::open(tx, agent, here, self.core.lease_time()).await?;
        if let Some(before) = opened.before.filter(|before| *before != here) {
            self.post(tx, before, &Message::Replaced { agent, epoch: opened.epoch }).await?;
        }
        Ok(opened.epoch)
    }

    /// Leaves a message for the coordinator that holds an agent's session. `false` where none does.
    async fn leave(&self, agent: AgentId, message: Message) -> Result<bool, StoreError> {
        // Mostly it is connected here, or nowhere.
        let holder = agent_sessions::holder_of(&mut *self.core.store.reader().await?, agent).await?;
        if holder.is_none_or(|holder| holder == self.core.coordinator) {
            return Ok(false);
        }
        let message = &message;
        let left = self.core.store.run_tx("reach an agent elsewhere", move |tx, _| {
            async move {
                match agent_sessions::holder_of(tx, agent).await? {
                    Some(holder) if holder != self.core.coordinator => {
                        self.post(tx, holder, message).await?;
                        Ok::<_, StoreError>(true)
                    }
                    _ => Ok(false),
                }
            }
            .boxed()
        });
        left.await
    }

    async fn post(&self, tx: &mut Tx, to: CoordinatorId, message: &Message) -> Result<(), StoreError> {
        // There is nothing in a message that JSON cannot say.
        let body = serde_json::to_string(message).unwrap_or_default();
        coordinators::post(tx, to, &body, self.core.lease_time()).await?;
        dialect::notify(tx, &to.to_string()).await
    }

    /// Takes what others left for this coordinator.
    ///
    /// # Errors
    /// The database's own.
    pub async fn take(&self, checks: &Checks) -> Result<(), StoreError> {
        let here = self.core.coordinator;
        while coordinators::has_messages(&mut *self.core.store.reader().await?, here).await? {
            let take = self.core.store.run_tx("take messages", move |tx, _| {
                async move { coordinators::take(tx, here, BATCH).await }.boxed()
            });
            for body in take.await? {
                match serde_json::from_str(&body) {
                    Ok(message) => self.act(checks, message),
                    Err(error) => tracing::warn!(%error, "a message of a newer coordinator was dropped"),
                }
            }
        }
        Ok(())
    }

    fn act(&self, checks: &Checks, message: Message) {
        match message {
            Message::Replaced { agent, epoch } => self.sessions.close_below(agent, epoch),
            Message::Revoked { agent } => self.sessions.close(agent, Closed::Revoked),
            Message::Cancel { agent, attempt, reason } => {
                // Gone meanwhile: it is told when it comes back.
                self.sessions.send(agent, Command::Cancel { attempt, reason });
            }
            Message::Test { agent, request, source, asked_by } => {
                checks.ask_for(request, asked_by);
                if !self.sessions.send(agent, Command::TestSource { request, source }) {
                    checks.forget(request);
                }
            }
            Message::Tested { agent, request, answer } => checks.answered(agent, request, answer),
        }
    }
}
