//! One operation, however many steps it takes, with one record of how it ended.
//!
//! [`Operation::run`] wraps the whole of it: whichever step refuses, the refusal is audited there. What an agent asks is only
//! ever done this way, because an [`Operation`] alone says which agent asks.

use std::fmt;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use sealift_common::id::AgentId;

use super::{AccessError, Action, Actor, Details, OpContext, OpError, Outcome};
use crate::store::{Borrowed, Tx, may_have_happened};

/// Something that a caller wants done.
#[derive(Debug)]
pub struct Operation<'ctx> {
    ctx: &'ctx OpContext,
    action: Action,
    entity: String,
    details: Details,
}

impl OpContext {
    /// `action` on `entity`; `details` go into the event that says what was intended.
    pub fn operation(&self, action: Action, entity: impl fmt::Display, details: Details) -> Operation<'_> {
        Operation { ctx: self, action, entity: entity.to_string(), details }
    }
}

impl Operation<'_> {
    /// Authorises the operation and does it: `work` is all of its steps. Where it ends in an error, that is audited, unless
    /// it says no more than *not yet*.
    ///
    /// # Errors
    /// Those of `work` and of [`OpContext::authorize`].
    pub async fn run<T: Send, E: OpError>(&self, work: BoxFuture<'_, Result<T, E>>) -> Result<T, E> {
        self.ctx.authorize(self.action, &self.entity).await?;
        let outcome = work.await;
        if outcome.as_ref().err().is_none_or(|error| may_have_happened(error)) {
            self.ctx.core.standing.touch();
        }
        if let Err(error) = &outcome
            && !error.is_passing()
            && !may_have_happened(error)
        {
            self.ctx.record_failure(self.action, &self.entity, &self.details, error).await;
        }
        outcome
    }

    /// The agent that asks, where it is one: operations of agents are for themselves only.
    ///
    /// # Errors
    /// [`AccessError::Denied`] for everybody else.
    pub fn agent(&self) -> Result<AgentId, AccessError> {
        match self.ctx.actor() {
            Actor::Agent(id) => Ok(*id),
            actor => Err(AccessError::Denied { actor: actor.clone(), action: self.action }),
        }
    }

    /// The step that changes something: one transaction, with the two events of an operation that was done. `work` returns
    /// its value and what the `done` event says. Call it within [`Operation::run`], which records it where it fails.
    ///
    /// # Errors
    /// Those of `work` and of the database.
    pub async fn change<'caller, T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send,
        E: OpError,
        F: for<'tx> Fn(&'tx mut Tx, Borrowed<'tx, 'caller>) -> BoxFuture<'tx, Result<(T, Details), E>>
            + Send
            + Sync,
    {
        let work = &work;
        self.ctx
            .core
            .store
            .run_tx(self.action.as_str(), move |tx, _| {
                async move {
                    let (action, entity) = (self.action, &self.entity);
                    self.ctx.record(tx, action, entity, Outcome::Intended, self.details.clone()).await?;
                    let (value, said) = work(tx, std::marker::PhantomData).await?;
                    self.ctx.record(tx, action, entity, Outcome::Done, said).await?;
                    Ok::<_, E>(value)
                }
                .boxed()
            })
            .await
    }
}
