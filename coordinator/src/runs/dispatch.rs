//! Reconcilers of runs: offer what is due to agents that are connected, extend and end leases. Each is idempotent and
//! bounded, and looks only at the database and at who is connected.

use std::time::Duration;

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::RunError;
use super::attempt::Attempt;
use super::service::Runs;
use super::state::{AttemptState, RunEvent};
use crate::sessions::Command;
use crate::store::runs::{self, RunRow};
use crate::store::{Tx, agents, attempts, sources};

/// Runs that are looked at in one go.
const BATCH: u32 = 500;
/// How often to look even if nothing called for it: back-offs end by themselves.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an agent may take to answer an offer.
const OFFER_LIFE: Duration = Duration::from_secs(30);
/// Leases of connected agents are extended this many times before they would end.
const EXTENSIONS: u32 = 6;

impl Runs {
    /// Dispatches until `stop`; what fails is logged and tried again.
    pub async fn dispatch(self, stop: CancellationToken) {
        let grace = self.core.clock.now().plus(self.lease);
        let owner = self.owner.clone();
        // Agents come back after a restart: until then nothing of theirs is given up.
        let adopted = self.core.store.run_tx("adopt leases", |tx, _| {
            let owner = owner.clone();
            async move { attempts::adopt(tx, &owner, grace).await }.boxed()
        });
        if let Err(error) = adopted.await {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot adopt the leases of before");
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let now = self.core.clock.now();
            let expired = self.expire(now).await.map(drop);
            for outcome in [expired, self.dispatch_once().await.map(drop)] {
                if let Err(error) = outcome {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "cannot dispatch; trying again"
                    );
                }
            }
        }
    }

    /// Offers what is due to agents that are connected. Returns how many offers were sent.
    ///
    /// # Errors
    /// The database's own.
    pub async fn dispatch_once(&self) -> Result<usize, RunError> {
        let now = self.core.clock.now();
        let due = runs::due(&mut *self.core.store.reader().await?, now, BATCH).await?;
        let mut sent = 0;
        for run in due {
            if !self.sessions.is_connected(run.agent) {
                continue;
            }
            let run_id = run.id;
            let claimed = self
                .core
                .store
                .run_tx("claim a run", move |tx, _| async move { self.claim(tx, run_id).await }.boxed())
                .await?;
            let Some((run, attempt)) = claimed else { continue };
            let offer = Command::Offer {
                attempt: attempt.reference(),
                series: attempt.series,
                source: run.source.clone(),
                trace_parent: run.trace_parent.clone(),
            };
            // An offer that does not arrive ends with its lease, and the run goes on.
            sent += usize::from(self.sessions.send(run.agent, offer));
            self.changed(run.id);
        }
        Ok(sent)
    }

    /// Makes the next attempt of a run, unless somebody was faster.
    async fn claim(
        &self,
        tx: &mut Tx,
        run: sealift_common::id::RunId,
    ) -> Result<Option<(RunRow, Attempt)>, RunError> {
        let now = self.core.clock.now();
        let Some(mut run) = runs::get(tx, run).await? else { return Ok(None) };
        let Ok(state) = run.state.apply(RunEvent::Start) else { return Ok(None) };
        if run.due > now || attempts::series_is_busy(tx, run.series).await? {
            return Ok(None);
        }
        run.state = state;
        run.attempts += 1;
        run.started = run.started.or(Some(now));
        let attempt = Attempt {
            run: run.id,
            number: run.attempts,
            agent: run.agent,
            series: run.series,
            state: AttemptState::Offered,
            generation: self.core.generation,
            epoch: sources::next_fence(tx, run.series).await?,
            lease_owner: self.owner.clone(),
            lease_expires: now.plus(OFFER_LIFE.min(self.lease)),
            instance: self.sessions.instance(run.agent),
            backup: None,
            started: now,
            ended: None,
            error: String::new(),
            stderr: String::new(),
        };
        attempts::insert(tx, &attempt).await?;
        runs::update(tx, &run).await?;
        Ok(Some((run, attempt)))
    }

    /// Extends the leases of agents that were heard of, and records when each was, until `stop`.
    pub async fn keep_leases(self, stop: CancellationToken) {
        let mut recorded = std::collections::HashMap::new();
        loop {
            tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(self.lease / EXTENSIONS) => {} }
            let heard: Vec<_> = self.sessions.all();
            recorded.retain(|agent, _| heard.iter().any(|(connected, _)| connected == agent));
            let news: Vec<_> = heard
                .into_iter()
                .filter(|(agent, at)| recorded.get(agent).is_none_or(|before| before < at))
                .collect();
            let (lease, batch) = (self.lease, &news);
            let outcome = self
                .core
                .store
                .run_tx("extend leases", move |tx, _| {
                    async move {
                        for (agent, at) in batch {
                            agents::seen(tx, *agent, *at).await?;
                            attempts::extend(tx, *agent, at.plus(lease)).await?;
                        }
                        Ok::<_, RunError>(())
                    }
                    .boxed()
                })
                .await;
            match outcome {
                Ok(()) => recorded.extend(news),
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "cannot extend leases; trying again"
                    );
                }
            }
        }
    }
}
