//! The one stream that the agent holds open to a coordinator, and how it comes back when it is lost.
//!
//! [`run`] keeps a session up for the life of the process; [`open`](open::open) makes one; [`pump`](pump::pump) carries its messages. A lost
//! session does not touch a running dump: attempts see the connection through [`link::Link`] and go on when it is back.
//!
//! Several coordinators are tried in the order of the configuration, starting with the first after each start: one that does
//! not answer is passed over within a second, and only when none answers do the waits grow. All waits have full jitter, so
//! that a fleet which lost one coordinator does not fall upon the next in one moment.
//!
//! To handle a new message of the coordinator: an arm in [`pump`]'s `receive`, and in [`speak`]'s `understood`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;
use url::Url;

use sealift_common::lifecycle::Lifecycle;

use crate::agent::Agent;
use crate::attempt::Attempts;
use crate::service;
use crate::source::whole_chain;
use backoff::Backoff;
use link::LinkOwner;
use open::{OpenError, OpenSession};
use pump::Ended;

pub mod backoff;
pub mod clock;
pub mod error;
pub mod link;
mod open;
pub use open::host_name;
mod pump;
mod speak;

/// The first wait after a lost session …
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// … and the longest, until a coordinator names another.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest wait before the next coordinator of the list is tried.
const NEXT_WAIT: Duration = Duration::from_secs(1);
/// How long a build that is too old waits before it asks again: somebody has to upgrade it first.
const UPGRADE_WAIT: Duration = Duration::from_secs(300);
/// The least wait after a renewal that failed meanwhile.
const RENEWAL_WAIT: Duration = Duration::from_secs(10);
/// A session that held this long was a good one: the waits start anew.
const GOOD: Duration = Duration::from_secs(30);

/// Keeps a session up until the agent stops: at once when it has nothing to do, else when its attempts have ended.
pub async fn run(agent: Arc<Agent>, attempts: Arc<Attempts>, owner: LinkOwner, lifecycle: Lifecycle) {
    let mut keeper = Keeper {
        backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT, agent.random.clone()),
        agent,
        attempts,
        owner,
        lifecycle,
        next: 0,
        failed_in_a_row: 0,
        sessions: 0,
    };
    keeper.run().await;
}

struct Keeper {
    agent: Arc<Agent>,
    attempts: Arc<Attempts>,
    owner: LinkOwner,
    lifecycle: Lifecycle,
    backoff: Backoff,
    next: usize,
    /// Coordinators that gave no session since the last good one.
    failed_in_a_row: usize,
    sessions: u64,
}

impl Keeper {
    async fn run(&mut self) {
        while !self.is_over() {
            let coordinator = self.coordinator();
            let wait = match self.open(&coordinator).await {
                Ok(session) => self.hold(session, &coordinator).await,
                Err(OpenError::Failed(error)) => {
                    let error = clock::hint(error, self.agent.clock.now());
                    tracing::warn!(%coordinator, error, "no session");
                    self.pass_over()
                }
                Err(OpenError::UpgradeRequired { said, channel }) => {
                    tracing::error!(%coordinator, "{said}");
                    service::status(&said);
                    self.wait_for_upgrade(channel).await
                }
            };
            let over = self.attempts.wait_stopped(&self.lifecycle);
            tokio::select! { () = tokio::time::sleep(wait) => {}, () = over => {} }
        }
    }

    /// The next coordinator, and how long to wait before it is tried: not long while there is one that was not asked.
    fn pass_over(&mut self) -> Duration {
        if self.turn_to_next() {
            NEXT_WAIT.mul_f64(self.agent.random.fraction())
        } else {
            self.backoff.next_wait()
        }
    }

    /// A build that is too old is not shut out for good: it keeps its certificate fresh until it is replaced by a newer one.
    async fn wait_for_upgrade(&mut self, channel: Channel) -> Duration {
        let mut least = Duration::from_secs(1);
        if let Err(error) = self.agent.identity.renew_if_due(channel).await {
            tracing::warn!(error = whole_chain(&error), "the certificate is not renewed yet");
            least = RENEWAL_WAIT;
        }
        if self.turn_to_next() {
            return NEXT_WAIT.mul_f64(self.agent.random.fraction());
        }
        let wait = UPGRADE_WAIT.mul_f64(0.5 + self.agent.random.fraction() / 2.0);
        let renewal = self.agent.identity.current().renew_at().since(self.agent.clock.now());
        wait.min(renewal).max(least)
    }

    /// Turns to the next coordinator; whether there is one that was not asked.
    fn turn_to_next(&mut self) -> bool {
        self.next = self.next.wrapping_add(1);
        self.failed_in_a_row += 1;
        !self.failed_in_a_row.is_multiple_of(self.agent.coordinators().len().max(1))
    }

    fn is_over(&self) -> bool {
        self.lifecycle.hard.is_cancelled() || (self.lifecycle.soft.is_cancelled() && self.attempts.is_idle())
    }

    fn coordinator(&self) -> Url {
        let all = self.agent.coordinators();
        // The configuration refuses an empty list.
        all[self.next % all.len().max(1)].clone()
    }

    async fn open(&mut self, coordinator: &Url) -> Result<OpenSession, OpenError> {
        self.sessions += 1;
        let opened = open::open(&self.agent, &self.attempts, coordinator, self.sessions);
        tokio::select! {
            opened = opened => opened,
            () = self.lifecycle.hard.cancelled() => Err("the agent stops".to_owned().into()),
        }
    }

    /// Carries messages until the session ends; says how long to wait before the next one. A session that only moves to a
    /// new certificate is replaced before it is closed.
    async fn hold(&mut self, mut session: OpenSession, coordinator: &Url) -> Duration {
        let since = Instant::now();
        let mut identity = self.agent.identity.changes();
        loop {
            self.backoff.set_cap(session.reconnect_cap);
            self.failed_in_a_row = 0;
            self.owner.up(session.connection.clone());
            let features = session.features;
            tracing::info!(%coordinator, session = session.connection.number, %features, "session is up");
            service::status(&format!("connected to {coordinator}"));
            let ended =
                pump::pump(&mut session, &self.agent, &self.attempts, &self.lifecycle, &mut identity).await;
            if let Ended::Moves = ended {
                match self.open(coordinator).await {
                    Ok(moved) => {
                        session = moved;
                        continue;
                    }
                    Err(OpenError::Failed(error) | OpenError::UpgradeRequired { said: error, .. }) => {
                        tracing::warn!(%coordinator, error, "cannot move to a new session");
                    }
                }
            }
            self.owner.down();
            if since.elapsed() >= GOOD {
                self.backoff.reset();
            }
            return match ended {
                Ended::Stopped => Duration::ZERO,
                Ended::AskedToReconnect { jitter } => {
                    self.next = self.next.wrapping_add(1);
                    jitter.mul_f64(self.agent.random.fraction())
                }
                Ended::Moves => self.backoff.next_wait(),
                Ended::Lost(error) => {
                    tracing::warn!(%coordinator, error, "session lost");
                    self.pass_over()
                }
            };
        }
    }
}
