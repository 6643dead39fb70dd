//! The one coordinator that leads, by a leased row with an epoch.
//!
//! A term is renewed three times within its life. Whoever cannot renew stops leading *before* the lease ends by the
//! database's clock, counting from when it asked for the last renewal that was granted, on a clock that cannot be set. That
//! alone would rest on timing; what makes it safe is [`Leader::fence`], first in every transaction of the leader.

use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::id::Random;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::store::{Dialect, StoreError, Tx, dialect, leases};

/// The lease's name.
const LEASE: &str = "leadership";

/// How long a term lasts without being renewed.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Life of the lease after each renewal.
    pub life: Duration,
}

impl Timing {
    /// How often to renew, and how often to look whether the lease is free.
    fn renew(self) -> Duration {
        self.life / 3
    }

    /// How long after a renewal was asked for to lead on without another.
    fn lead(self) -> Duration {
        self.life.mul_f64(0.8)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self { life: Duration::from_secs(15) }
    }
}

/// One term of this coordinator. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leader {
    epoch: u64,
    over: CancellationToken,
}

impl Leader {
    /// The term's number: no two terms of an installation have the same, and later ones are greater.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// To be called first in every transaction of what only the leader does: a term that is over writes nothing, and the next
    /// one begins after this transaction.
    ///
    /// # Errors
    /// [`StoreError::Deposed`], or the database's own.
    pub async fn fence(&self, tx: &mut Tx) -> Result<(), StoreError> {
        leases::fence(tx, LEASE, self.epoch).await
    }

    /// Whether the term is over.
    pub fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Waits until the term is over.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }
}

/// Whether this coordinator leads, now and from now on. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leadership(watch::Receiver<Option<Leader>>);

impl Leadership {
    /// The present term, if there is one.
    pub fn current(&self) -> Option<Leader> {
        self.0.borrow().clone()
    }

    /// Waits for a term; `None` when the coordinator stops.
    pub async fn wait(&mut self) -> Option<Leader> {
        let found = self.0.wait_for(|term| term.as_ref().is_some_and(|leader| !leader.is_over())).await;
        found.ok().and_then(|term| term.clone())
    }
}

/// Seeks the lease, and keeps it.
#[derive(Debug)]
pub struct Keeper {
    core: Core,
    timing: Timing,
    term: watch::Sender<Option<Leader>>,
}

/// The two ends of leadership.
pub fn keeper(core: &Core, timing: Timing) -> (Leadership, Keeper) {
    let (term, leadership) = watch::channel(None);
    (Leadership(leadership), Keeper { core: core.clone(), timing, term })
}

impl Keeper {
    /// Leads whenever nobody else does, until `stop`.
    pub async fn keep(self, stop: CancellationToken) {
        let random: Random = self.core.random.clone();
        while !stop.is_cancelled() {
            let asked = Instant::now();
            self.compare_clocks(asked + self.timing.renew()).await;
            match self.take().await {
                Ok(Some(epoch)) => self.lead(epoch, asked, &stop).await,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot ask who leads; trying again"
                    );
                }
            }
            let pause = self.timing.renew().mul_f64(0.5 + 0.5 * random.fraction());
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(pause) => {} }
        }
    }

    /// Leases are given by the database's clock. A clock that a test moves by hand is compared once, at the start.
    async fn compare_clocks(&self, end: Instant) {
        if !self.core.clock.is_system() {
            return;
        }
        if let Ok(Err(error)) = tokio::time::timeout_at(end, self.core.compare_clocks()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot ask the database for the time");
        }
    }

    async fn take(&self) -> Result<Option<u64>, StoreError> {
        let (here, life) = (self.core.clock.now(), self.timing.life);
        if self.core.store.dialect() == Dialect::Postgres {
            // A look that locks nothing: mostly somebody else leads.
            let mut reader = self.core.store.reader().await?;
            let now = dialect::now(&mut reader, here).await?;
            if leases::get(&mut reader, LEASE).await?.is_some_and(|l| !l.owner.is_empty() && l.expires > now)
            {
                return Ok(None);
            }
        }
        let owner = &self.core.coordinator.to_string();
        let take = self.core.store.run_tx("take the lead", move |tx, _| {
            async move {
                let now = dialect::now(tx, here).await?;
                leases::take(tx, LEASE, owner, now, now.plus(life)).await
            }
            .boxed()
        });
        take.await
    }

    async fn renew(&self, epoch: u64) -> Result<bool, StoreError> {
        let (here, life, owner) =
            (self.core.clock.now(), self.timing.life, &self.core.coordinator.to_string());
        let renew = self.core.store.run_tx("lead on", move |tx, _| {
            async move {
                let now = dialect::now(tx, here).await?;
                leases::renew(tx, LEASE, owner, epoch, now.plus(life)).await
            }
            .boxed()
        });
        renew.await
    }

    /// Leads from `asked`, when the lease was asked for, until it cannot be renewed or `stop`.
    async fn lead(&self, epoch: u64, asked: Instant, stop: &CancellationToken) {
        let over = CancellationToken::new();
        self.term.send_replace(Some(Leader { epoch, over: over.clone() }));
        tracing::info!(epoch, "this coordinator leads");
        let mut renewed = asked;
        let stopped = loop {
            let end = renewed + self.timing.lead();
            let next = (Instant::now() + self.timing.renew()).min(end);
            tokio::select! { () = stop.cancelled() => break true, () = tokio::time::sleep_until(next) => {} }
            let asked = Instant::now();
            self.compare_clocks(end).await;
            match tokio::time::timeout_at(end, self.renew(epoch)).await {
                Ok(Ok(true)) => renewed = asked,
                Ok(Ok(false)) => break false,
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, epoch, "cannot renew the lead");
                }
                Err(_) => {}
            }
            if Instant::now() >= renewed + self.timing.lead() {
                break false;
            }
        };
        over.cancel();
        self.term.send_replace(None);
        if !stopped {
            tracing::warn!(epoch, "this coordinator does not lead any more");
            return;
        }
        let owner = &self.core.coordinator.to_string();
        let release = self.core.store.run_tx("give the lead back", move |tx, _| {
            async move { leases::release(tx, LEASE, owner, epoch).await }.boxed()
        });
        if let Err(error) = release.await {
            // It ends by itself.
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot give the lead back");
        }
    }
}
