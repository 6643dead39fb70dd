//! SQLite's one writer: transactions that wait for one another share a wait for the disk.
//!
//! What was answered is on disk (`synchronous = FULL`), so a transaction by itself costs an `fsync`, and a fleet that
//! reconnects makes ten thousand. Here each is a savepoint in a transaction that stays open for those who queue already; the
//! commit queues behind them, and only when it is done are they answered. Alone, a transaction is committed at once.
//!
//! What one does that fails is undone to its savepoint and touches nobody else. A commit that fails undoes all of them, and
//! none was answered: each is tried again by [`super::Store::run_tx`]. A caller that goes away in the middle leaves its
//! savepoint open; whoever comes next undoes it first.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::Pool;
use sqlx::pool::PoolConnection;
use tokio::sync::{Mutex, watch};

use super::dialect::{Db, Dialect, Tx};
use super::{Borrowed, StoreError};

/// How long to wait for one's turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a group's commit went, once it did.
type Outcome = Option<Result<(), Arc<str>>>;

/// The writer. Share it in an [`Arc`].
pub(super) struct Grouped {
    pool: Pool<Db>,
    slot: Mutex<Slot>,
}

/// What whose turn it is has for itself.
#[derive(Default)]
struct Slot {
    connection: Option<PoolConnection<Db>>,
    group: Option<Group>,
    groups: u64,
    /// A savepoint is open: where nobody works under it, its owner went away.
    open: bool,
}

/// Transactions that will be committed together.
struct Group {
    number: u64,
    done: watch::Sender<Outcome>,
}

impl Slot {
    async fn execute(&mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        let connection = self.connection.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        sqlx::query(statement).execute(&mut **connection).await.map(drop)
    }

    /// Undoes what somebody left behind.
    async fn tidy(&mut self) -> Result<(), sqlx::Error> {
        if std::mem::take(&mut self.open) {
            self.undo_one().await?;
        }
        Ok(())
    }

    async fn undo_one(&mut self) -> Result<(), sqlx::Error> {
        self.execute("ROLLBACK TO one").await?;
        self.execute("RELEASE one").await
    }

    /// Ends the group: all of it is on disk, or none.
    async fn end(&mut self, outcome: Result<(), sqlx::Error>) {
        self.open = false;
        let Some(group) = self.group.take() else { return };
        if let Err(error) = &outcome {
            tracing::warn!(%error, "transactions are undone, and tried again");
            // Gone already, perhaps; a connection in an unknown state is not used again.
            let _ = self.execute("ROLLBACK").await;
            if let Some(connection) = self.connection.as_mut() {
                connection.close_on_drop();
            }
            self.connection = None;
        }
        let outcome = outcome.map_err(|error| Arc::from(error.to_string()));
        group.done.send_replace(Some(outcome));
    }
}

impl Grouped {
    pub fn new(pool: Pool<Db>) -> Arc<Self> {
        Arc::new(Self { pool, slot: Mutex::default() })
    }

    /// Runs `work` as one transaction.
    pub async fn run<'caller, T, E, F>(self: &Arc<Self>, name: &'static str, work: &F) -> Result<T, E>
    where
        E: From<StoreError>,
        F: for<'tx> Fn(&'tx mut Tx, Borrowed<'tx, 'caller>) -> BoxFuture<'tx, Result<T, E>>,
    {
        let failed = |source| E::from(StoreError::Database { operation: name, source });
        let (outcome, mut done) = {
            let turn = tokio::time::timeout(PATIENCE, self.slot.lock());
            let mut slot = turn.await.map_err(|_| failed(sqlx::Error::PoolTimedOut))?;
            let done = self.enter(&mut slot).await.map_err(failed)?;
            let outcome = match slot.connection.as_mut() {
                Some(connection) => work(connection, PhantomData).await,
                None => Err(failed(sqlx::Error::PoolClosed)),
            };
            let closed = match &outcome {
                Ok(_) => slot.execute("RELEASE one").await,
                Err(_) => slot.undo_one().await,
            };
            slot.open = false;
            if let Err(error) = closed {
                // The database has ended the whole transaction by itself (its disk is full, say).
                slot.end(Err(error)).await;
            }
            (outcome, done)
        };
        let value = outcome?;
        match done.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(Ok(()))) => Ok(value),
            Ok(Some(Err(problem))) => Err(failed(sqlx::Error::Protocol(problem.to_string()))),
            Ok(None) | Err(_) => Err(failed(sqlx::Error::PoolClosed)),
        }
    }

    /// Opens a savepoint, in the group that is open or in a new one.
    async fn enter(self: &Arc<Self>, slot: &mut Slot) -> Result<watch::Receiver<Outcome>, sqlx::Error> {
        if let Err(error) = slot.tidy().await {
            slot.end(Err(error)).await;
        }
        if slot.group.is_none() {
            if slot.connection.is_none() {
                slot.connection = Some(self.pool.acquire().await?);
            }
            slot.execute(Dialect::Sqlite.begin()).await?;
            slot.groups += 1;
            let (number, done) = (slot.groups, watch::Sender::new(None));
            slot.group = Some(Group { number, done });
            let writer = Arc::clone(self);
            // Queues behind all who wait already: they are this group.
            tokio::spawn(async move { writer.commit(number).await });
        }
        let done = slot.group.as_ref().map(|group| group.done.subscribe()).ok_or(sqlx::Error::PoolClosed)?;
        match slot.execute("SAVEPOINT one").await {
            Ok(()) => slot.open = true,
            Err(error) => {
                slot.end(Err(error)).await;
                return Err(sqlx::Error::Protocol("no savepoint can be opened".to_owned()));
            }
        }
        Ok(done)
    }

    async fn commit(&self, number: u64) {
        let mut slot = self.slot.lock().await;
        if slot.group.as_ref().is_none_or(|group| group.number != number) {
            return;
        }
        let mut outcome = slot.tidy().await;
        if outcome.is_ok() {
            outcome = slot.execute("COMMIT").await;
        }
        slot.end(outcome).await;
    }

    /// Commits what is open and gives the connection back.
    pub async fn close(&self) {
        let number = self.slot.lock().await.groups;
        self.commit(number).await;
        self.slot.lock().await.connection = None;
    }
}
