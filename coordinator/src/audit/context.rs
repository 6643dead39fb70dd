//! Who asks, from where: needed to call any domain operation.

use std::fmt;
use std::net::SocketAddr;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use sealift_common::id::{AgentId, EventId, RequestId};
use sealift_common::name::Name;
use serde_json::Value;

use super::{Action, Subject};
use crate::core::Core;
use crate::recovery::state::NotServing;
use crate::store::audit::{EventRow, append};
use crate::store::{Borrowed, StoreError, Tx};

/// Longest text of one detail, in characters: an error message must not flood the audit.
const MAX_DETAIL: usize = 2_000;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// An admin, by certificate.
    Admin(Name),
    /// An agent, by certificate.
    Agent(AgentId),
    /// Nobody that we know.
    Anonymous,
    /// This program itself.
    Coordinator,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin(name) => write!(f, "admin:{name}"),
            Self::Agent(id) => write!(f, "agent:{id}"),
            Self::Anonymous => f.write_str("anonymous"),
            Self::Coordinator => f.write_str("coordinator"),
        }
    }
}

/// Why a caller was turned away.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// No certificate was shown where one is needed.
    #[error("{action} needs a client certificate; connect with the one you were issued")]
    Unauthenticated {
        /// What was asked.
        action: Action,
    },
    /// The caller is known, and may not do this.
    #[error("{actor} may not do {action}")]
    Denied {
        /// Who asked.
        actor: Actor,
        /// What was asked.
        action: Action,
    },
    /// It has to wait until the database is in step with the bucket.
    #[error(transparent)]
    NotServing(#[from] NotServing),
    /// The refusal, or who asks, could not be looked up or recorded.
    #[error("access could not be decided")]
    Store(#[from] StoreError),
}

/// What an operation's error must be able to carry.
pub trait OpError: std::error::Error + From<StoreError> + From<AccessError> + Send + Sync + 'static {
    /// Whether this says that the caller asked for what is not theirs to ask: audited as `refused`, not as `failed`.
    fn is_refusal(&self) -> bool {
        false
    }

    /// Whether this says no more than *not yet*: the caller asks again, and the audit need not hear of it each time.
    fn is_passing(&self) -> bool {
        false
    }
}

/// How an action went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// About to be done.
    Intended,
    /// Done.
    Done,
    /// Tried, and undone.
    Failed,
    /// Not allowed.
    Refused,
}

impl Outcome {
    /// Its name in the audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// What an event says beyond who, what and when. Never anything secret; long texts are cut.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details(serde_json::Map<String, Value>);

impl Details {
    /// No details.
    pub fn none() -> Self {
        Self::default()
    }

    /// These details and one more.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let value = match value.into() {
            Value::String(text) if text.chars().count() > MAX_DETAIL => {
                Value::String(text.chars().take(MAX_DETAIL).chain(['…']).collect())
            }
            other => other,
        };
        self.0.insert(key.to_owned(), value);
        self
    }

    fn of_error(error: &(dyn std::error::Error + 'static)) -> Self {
        let chain = std::iter::successors(Some(error), |e| e.source());
        Self::none().with("error", chain.map(ToString::to_string).collect::<Vec<_>>().join(": "))
    }
}

/// Who asks for an operation, from where, under which request.
#[derive(Debug, Clone)]
pub struct OpContext {
    pub(super) core: Core,
    actor: Actor,
    address: Option<SocketAddr>,
    request_id: RequestId,
}

impl OpContext {
    /// The context of one request. `actor` was authenticated by the caller of this function.
    pub fn new(core: &Core, actor: Actor, address: Option<SocketAddr>) -> Self {
        Self { core: core.clone(), actor, address, request_id: RequestId::generate(&core.random) }
    }

    /// The coordinator's own doing.
    pub fn coordinator(core: &Core) -> Self {
        Self::new(core, Actor::Coordinator, None)
    }

    /// Who asks.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// From where.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Ties events and log lines of one request together.
    pub fn request_id(&self) -> RequestId {
        self.request_id
    }

    /// Whether the caller may do `action` to `entity`; a refusal is audited. Enough by itself for what only reads. That
    /// agents have to wait while the database is behind is on record once: they ask again and again.
    ///
    /// # Errors
    /// [`AccessError`], also where the refusal could not be recorded.
    pub async fn authorize(
        &self,
        action: Action,
        entity: &(dyn fmt::Display + Sync),
    ) -> Result<(), AccessError> {
        let allowed = match (action.subject(), &self.actor) {
            (Subject::Anyone, _) | (_, Actor::Coordinator) => true,
            (Subject::Agent, actor) => matches!(actor, Actor::Agent(_)),
            (Subject::Admin, actor) => matches!(actor, Actor::Admin(_)),
            (Subject::Coordinator, _) => false,
        };
        if allowed {
            // The coordinator's own work looks at the state by itself.
            let waits = match &self.actor {
                Actor::Coordinator => Ok(()),
                _ => self.core.standing.allows(action),
            };
            if let (Err(error), Actor::Admin(_)) = (&waits, &self.actor) {
                self.record_alone(action, entity, Outcome::Refused, Details::of_error(error)).await?;
            }
            return Ok(waits?);
        }
        self.record_alone(action, entity, Outcome::Refused, Details::none()).await?;
        Err(match &self.actor {
            Actor::Anonymous => AccessError::Unauthenticated { action },
            actor => AccessError::Denied { actor: actor.clone(), action },
        })
    }

    /// Authorises and does `action` in one transaction with its two events. `work` returns its value and what the
    /// `done` event says. An operation that fails leaves two events and nothing else.
    ///
    /// # Errors
    /// Those of `work`, of [`OpContext::authorize`], and of the database.
    pub async fn perform<'caller, T, E, F>(
        &self,
        action: Action,
        entity: &(dyn fmt::Display + Sync),
        details: Details,
        work: F,
    ) -> Result<T, E>
    where
        T: Send,
        E: OpError,
        F: for<'tx> Fn(&'tx mut Tx, Borrowed<'tx, 'caller>) -> BoxFuture<'tx, Result<(T, Details), E>>
            + Send
            + Sync,
    {
        let operation = self.operation(action, entity, details);
        operation.run(operation.change(work).boxed()).await
    }

    /// Records that `action` did not come about: both events, or one for a refusal. The error is on its way to the caller
    /// already, so that a database that cannot take the record either is only logged.
    pub(super) async fn record_failure<E: OpError>(
        &self,
        action: Action,
        entity: &(dyn fmt::Display + Sync),
        details: &Details,
        error: &E,
    ) {
        let said = Details::of_error(error);
        let recorded = self.core.store.run_tx("record a failure", |tx, _| {
            let said = said.clone();
            async move {
                if error.is_refusal() {
                    return self.record(tx, action, entity, Outcome::Refused, said).await;
                }
                self.record(tx, action, entity, Outcome::Intended, details.clone()).await?;
                self.record(tx, action, entity, Outcome::Failed, said).await
            }
            .boxed()
        });
        if let Err(error) = recorded.await {
            tracing::error!(error = &error as &dyn std::error::Error, %action, "cannot record a failure in the audit");
        }
    }

    /// Appends one event to the audit, in the transaction of what it is about.
    ///
    /// # Errors
    /// The database's own: then the transaction must not go on.
    pub async fn record(
        &self,
        tx: &mut Tx,
        action: Action,
        entity: &(dyn fmt::Display + Sync),
        outcome: Outcome,
        details: Details,
    ) -> Result<(), StoreError> {
        let event = EventRow {
            place: 0,
            id: EventId::generate(&self.core.random),
            time: self.core.clock.now(),
            actor: self.actor.to_string(),
            source_address: self.address.map(|a| a.ip().to_string()).unwrap_or_default(),
            request_id: self.request_id.to_string(),
            action: action.as_str().to_owned(),
            entity: entity.to_string(),
            outcome: outcome.as_str().to_owned(),
            details: Value::Object(details.0).to_string(),
        };
        append(tx, &event).await
    }

    /// Appends one event in a transaction of its own.
    ///
    /// # Errors
    /// The database's own.
    pub async fn record_alone(
        &self,
        action: Action,
        entity: &(dyn fmt::Display + Sync),
        outcome: Outcome,
        details: Details,
    ) -> Result<(), StoreError> {
        self.core
            .store
            .run_tx("record an event", |tx, _| {
                let details = details.clone();
                async move { self.record(tx, action, entity, outcome, details).await }.boxed()
            })
            .await
    }
}
