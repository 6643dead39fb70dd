//! This coordinator among the others of its installation: it says that it is alive, sees to it that what the database says of
//! its sessions is so, and learns who is connected elsewhere. The leader buries the dead.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::id::AgentId;

use super::registry::{Closed, Sessions};
use crate::core::Core;
use crate::runtime::Leader;
use crate::store::coordinators::CoordinatorRow;
use crate::store::{Dialect, StoreError, agent_sessions, coordinators};

/// How often to say so.
pub const INTERVAL: Duration = Duration::from_secs(3);
/// A coordinator that has not said so for so long is dead.
const DEAD: Duration = Duration::from_secs(20);
/// A session of which nothing is seen here so long after it was recorded has ended.
const OPENING: Duration = Duration::from_secs(30);

/// This coordinator among the others. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Presence {
    core: Core,
    sessions: Arc<Sessions>,
    address: Arc<str>,
    started: UnixMillis,
}

impl Presence {
    /// Of the coordinator that is reached at `address`.
    pub fn new(core: Core, sessions: Arc<Sessions>, address: &str) -> Self {
        let started = core.lease_time();
        Self { core, sessions, address: address.into(), started }
    }

    /// Who is connected here.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Says that this coordinator is alive, and compares its sessions with what the database says.
    ///
    /// # Errors
    /// The database's own.
    pub async fn round(&self) -> Result<(), StoreError> {
        let row = CoordinatorRow {
            id: self.core.coordinator,
            address: self.address.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            seen: self.core.lease_time(),
        };
        let row = &row;
        let said = self.core.store.run_tx("say that a coordinator is alive", move |tx, _| {
            async move { coordinators::seen(tx, row).await }.boxed()
        });
        said.await?;
        // Of one coordinator alone, everything is known here.
        if self.core.store.dialect() == Dialect::Sqlite { Ok(()) } else { self.compare().await }
    }

    async fn compare(&self) -> Result<(), StoreError> {
        let (here, now) = (self.core.coordinator, self.core.lease_time());
        let mine = self.sessions.epochs();
        let open = agent_sessions::all_open(&mut *self.core.store.reader().await?).await?;
        let elsewhere: HashSet<AgentId> =
            open.iter().filter(|(_, session)| session.coordinator != here).map(|(agent, _)| *agent).collect();
        self.sessions.set_elsewhere(elsewhere);
        for (agent, epoch) in &mine {
            let (agent, epoch) = (*agent, *epoch);
            match open.get(&agent) {
                Some(session) if session.coordinator == here && session.epoch == epoch => {}
                Some(session) if session.epoch > epoch => self.sessions.close_below(agent, session.epoch),
                // Taken for dead while it could not say that it was alive; or this look was older than the session.
                _ => {
                    let reopen = self.core.store.run_tx("a session goes on", move |tx, _| {
                        async move { agent_sessions::reopen(tx, agent, epoch, here).await }.boxed()
                    });
                    if !reopen.await? {
                        self.sessions.close_below(agent, epoch + 1);
                    } else if !self.sessions.holds(agent, epoch) {
                        // It ended meanwhile, and that was recorded before this.
                        self.closed(agent, epoch).await?;
                    }
                }
            }
        }
        let known: HashSet<AgentId> = mine.into_iter().map(|(agent, _)| agent).collect();
        for (agent, session) in open {
            let gone = session.coordinator == here && !known.contains(&agent);
            if gone && now.since(session.changed) >= OPENING && !self.sessions.is_connected(agent) {
                self.closed(agent, session.epoch).await?;
            }
        }
        Ok(())
    }

    /// Records that a session ended here.
    ///
    /// # Errors
    /// The database's own.
    pub async fn closed(&self, agent: AgentId, epoch: u64) -> Result<(), StoreError> {
        let now = self.core.lease_time();
        let close = self.core.store.run_tx("a session ended", move |tx, _| {
            async move { agent_sessions::close(tx, agent, epoch, now).await }.boxed()
        });
        close.await
    }

    /// Buries coordinators that died: their agents are connected to nobody.
    ///
    /// # Errors
    /// The database's own.
    pub async fn bury(&self, leader: &Leader) -> Result<(), StoreError> {
        let (here, now, dialect) = (self.core.coordinator, self.core.lease_time(), self.core.store.dialect());
        let all = coordinators::all(&mut *self.core.store.reader().await?).await?;
        // Only one coordinator can have a SQLite file: the others are of before.
        let dead = |row: &CoordinatorRow| dialect == Dialect::Sqlite || now.since(row.seen) >= DEAD;
        for row in all.into_iter().filter(|row| row.id != here && dead(row)) {
            tracing::warn!(coordinator = %row.id, address = row.address, "a coordinator is gone");
            self.forget(&row, Some(leader)).await?;
        }
        Ok(())
    }

    /// This coordinator goes: its sessions have ended.
    ///
    /// # Errors
    /// The database's own.
    pub async fn leave(&self) -> Result<(), StoreError> {
        self.sessions.close_all(&Closed::Stopping);
        let id = self.core.coordinator;
        let all = coordinators::all(&mut *self.core.store.reader().await?).await?;
        match all.into_iter().find(|row| row.id == id) {
            Some(row) => self.forget(&row, None).await,
            None => Ok(()),
        }
    }

    async fn forget(&self, row: &CoordinatorRow, leader: Option<&Leader>) -> Result<(), StoreError> {
        let now = self.core.lease_time();
        let forget = self.core.store.run_tx("forget a coordinator", move |tx, _| {
            async move {
                if let Some(leader) = leader {
                    leader.fence(tx).await?;
                }
                agent_sessions::close_all_of(tx, row.id, now).await?;
                coordinators::forget(tx, row.id).await
            }
            .boxed()
        });
        forget.await
    }
}
