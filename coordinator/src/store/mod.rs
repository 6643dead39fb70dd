//! The coordinator's database: what was asked, what was done, who may do it. Content and keys never lie here.
//!
//! One file per noun, each with plain functions over a [`Tx`]; domain modules compose them into one transaction with
//! [`Store::run_tx`]. It is SQLite or PostgreSQL, chosen by URL ([`DatabaseUrl`]); what differs is in [`dialect`], the schema
//! in [`migrations`]. To add a noun: a migration (`coordinator/migrations/`), a file, a `mod` line.
//!
//! PostgreSQL runs at READ COMMITTED. What orders transactions there is the lock on one row, taken first:
//! the run's for whatever moves a run or its attempts ([`runs::lock`]), the series' for what gives out its numbers or
//! changes what may be referred to ([`sources::lock_series`]), the agent's and the token's for changes of theirs. Where
//! several are needed: agent, run, series.

pub mod agent_sessions;
pub mod agents;
pub mod attempts;
pub mod audit;
pub mod backups;
mod connect;
pub mod coordinators;
pub mod dialect;
pub mod export;
pub mod fleet;
pub mod generation;
pub mod installation;
pub mod leases;
pub mod lists;
mod migrations;
pub mod packs;
pub mod pauses;
pub mod policies;
pub mod recovery;
pub mod restore_leases;
pub mod retention;
pub mod run_progress;
pub mod runs;
pub mod select;
pub mod series;
pub mod series_operations;
pub mod source_policies;
pub mod sources;
pub mod tokens;
pub mod trust;
pub mod unknown_heads;
mod url;

use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use sealift_common::clock::UnixMillis;
use sqlx::any::AnyTypeInfoKind;
use sqlx::{Column as _, Connection as _, Row as _};

use dialect::Cure;
pub use dialect::{Db, Dialect, Hints, Row, Tx, claiming, locking, placeholders};
pub use url::{DatabaseUrl, InvalidDatabaseUrl, PostgresUrl};

/// How often a transaction is tried before its error is passed on.
const MAX_TRIES: u32 = 5;

/// What can go wrong with the database itself.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused, or could not be reached.
    #[error("database: {operation} failed")]
    Database {
        /// The transaction's or query's name.
        operation: &'static str,
        /// What the driver said.
        #[source]
        source: sqlx::Error,
    },
    /// The connection was lost while a transaction was committed: it may have happened or not.
    #[error("database: the answer to the end of {operation} was lost")]
    Unanswered {
        /// The transaction's name.
        operation: &'static str,
        /// What the driver said.
        #[source]
        source: sqlx::Error,
    },
    /// The database is ahead of this program.
    #[error(
        "the database's schema is at {version}, and this program knows schemas up to {newest}: \
         a newer version of Sealift has been here; install that version"
    )]
    Newer {
        /// Of the schema.
        version: i64,
        /// That this program knows.
        newest: i64,
    },
    /// Somebody else has taken over.
    #[error("the {lease} of epoch {epoch} is not this coordinator's any more")]
    Deposed {
        /// Which lease.
        lease: &'static str,
        /// The term that is over.
        epoch: u64,
    },
    /// The schema could not be brought up to date.
    #[error("cannot bring the database's schema up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A second process has the database open.
    #[error(
        "{path} is in use by another coordinator; stop that one first, or give this one a database of its own"
    )]
    Locked {
        /// The database file.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot open {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Names the operation in what the driver says: `query.map_err(failed("read the token"))`.
pub fn failed(operation: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { operation, source }
}

/// The text in `column`, parsed into its type.
///
/// # Errors
/// Where the cell holds what this program cannot have written.
pub fn text<T>(row: &Row, column: &str) -> Result<T, sqlx::Error>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let cell: String = row.try_get(column)?;
    cell.parse().map_err(|e: T::Err| undecodable(column, e.into()))
}

/// The text in `column`, parsed into its type, where there is one.
///
/// # Errors
/// As [`text`].
pub fn optional_text<T>(row: &Row, column: &str) -> Result<Option<T>, sqlx::Error>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let cell: Option<String> = row.try_get(column)?;
    cell.map(|cell| cell.parse()).transpose().map_err(|e: T::Err| undecodable(column, e.into()))
}

/// The byte string in `column`, parsed into its type.
///
/// # Errors
/// As [`text`].
pub fn bytes<T>(row: &Row, column: &str) -> Result<T, sqlx::Error>
where
    T: for<'b> TryFrom<&'b [u8], Error: std::error::Error + Send + Sync + 'static>,
{
    let cell: Vec<u8> = row.try_get(column)?;
    T::try_from(&cell).map_err(|e| undecodable(column, e.into()))
}

/// The JSON in `column`.
///
/// # Errors
/// As [`text`].
pub fn json<T: serde::de::DeserializeOwned>(row: &Row, column: &str) -> Result<T, sqlx::Error> {
    let cell: String = row.try_get(column)?;
    serde_json::from_str(&cell).map_err(|e| undecodable(column, e.into()))
}

/// The moment in `column`, where there is one.
///
/// # Errors
/// As [`text`].
pub fn time(row: &Row, column: &str) -> Result<Option<UnixMillis>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(UnixMillis))
}

/// The number in `column`, which is never negative.
///
/// # Errors
/// As [`text`].
pub fn number<T>(row: &Row, column: &str) -> Result<T, sqlx::Error>
where
    T: TryFrom<i64, Error: std::error::Error + Send + Sync + 'static>,
{
    T::try_from(row.try_get::<i64, _>(column)?).map_err(|e| undecodable(column, e.into()))
}

/// The truth value in `column`: a number on SQLite.
///
/// # Errors
/// As [`text`].
pub fn flag(row: &Row, column: &str) -> Result<bool, sqlx::Error> {
    match row.try_column(column)?.type_info().kind() {
        AnyTypeInfoKind::Bool => row.try_get(column),
        _ => Ok(row.try_get::<i64, _>(column)? != 0),
    }
}

/// The truth value in `column`, where there is one.
///
/// # Errors
/// As [`text`].
pub fn optional_flag(row: &Row, column: &str) -> Result<Option<bool>, sqlx::Error> {
    match row.try_column(column)?.type_info().kind() {
        AnyTypeInfoKind::Bool => row.try_get(column),
        _ => Ok(row.try_get::<Option<i64>, _>(column)?.map(|number| number != 0)),
    }
}

/// A value of ours as a JSON cell.
fn to_json(value: &impl serde::Serialize) -> String {
    // Maps with text keys and lists of texts: there is nothing in them that JSON cannot say.
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

fn undecodable(column: &str, source: Box<dyn std::error::Error + Send + Sync>) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source }
}

/// A number of the domain as the database stores it; 2^63 and beyond is not a number we ever count to.
pub fn as_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Lets a transaction's closure borrow from its caller: `'caller` outlives each try.
pub type Borrowed<'tx, 'caller> = PhantomData<&'tx &'caller ()>;

/// The database of one installation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(connect::Connections);

impl Store {
    /// Opens the database and brings its schema up to date.
    ///
    /// # Errors
    /// Where it cannot be reached, was written by a newer version, or (SQLite) is in use by another coordinator.
    pub async fn open(database: &DatabaseUrl) -> Result<Self, StoreError> {
        connect::open(database).await.map(Self)
    }

    /// Which of the two databases it is.
    pub fn dialect(&self) -> Dialect {
        self.0.dialect
    }

    /// Runs `work` in one transaction, committed if it returns `Ok` and undone otherwise.
    ///
    /// `work` is called again (at most 5 times) where the database says that trying again may help, so it must do
    /// nothing but database work. Write it as `move |tx, _| async move { … }.boxed()`.
    ///
    /// # Errors
    /// What `work` returned, or the database's own error. [`StoreError::Unanswered`] where the connection was lost at the
    /// very end: then nobody knows.
    pub async fn run_tx<'caller, T, E, F>(&self, name: &'static str, work: F) -> Result<T, E>
    where
        E: std::error::Error + From<StoreError> + 'static,
        F: for<'tx> Fn(&'tx mut Tx, Borrowed<'tx, 'caller>) -> BoxFuture<'tx, Result<T, E>>,
    {
        let started = std::time::Instant::now();
        let mut tries = 1;
        loop {
            let outcome = self.try_tx(name, &work).await;
            match &outcome {
                Err(error) if tries < MAX_TRIES && self.may_go_better(error) => {
                    tokio::time::sleep(Duration::from_millis(10) * 2u32.pow(tries)).await;
                    tries += 1;
                }
                _ => {
                    let elapsed_ms = started.elapsed().as_millis();
                    tracing::trace!(tx = name, elapsed_ms, tries, ok = outcome.is_ok(), "transaction");
                    return outcome;
                }
            }
        }
    }

    async fn try_tx<'caller, T, E, F>(&self, name: &'static str, work: &F) -> Result<T, E>
    where
        E: std::error::Error + From<StoreError> + 'static,
        F: for<'tx> Fn(&'tx mut Tx, Borrowed<'tx, 'caller>) -> BoxFuture<'tx, Result<T, E>>,
    {
        let failed = |source| E::from(StoreError::Database { operation: name, source });
        let mut connection = self.0.writer.acquire().await.map_err(failed)?;
        let outcome = self.try_on(&mut connection, name, work).await;
        if let Err(error) = &outcome
            && cures(error).any(|cure| cure == Cure::Reconnect)
        {
            connection.close_on_drop();
        }
        outcome
    }

    async fn try_on<'caller, T, E, F>(
        &self,
        connection: &mut Tx,
        name: &'static str,
        work: &F,
    ) -> Result<T, E>
    where
        E: From<StoreError>,
        F: for<'tx> Fn(&'tx mut Tx, Borrowed<'tx, 'caller>) -> BoxFuture<'tx, Result<T, E>>,
    {
        let failed = |source| E::from(StoreError::Database { operation: name, source });
        let mut tx = connection.begin_with(self.0.dialect.begin()).await.map_err(failed)?;
        let value = work(&mut tx, PhantomData).await?;
        match tx.commit().await {
            Ok(()) => Ok(value),
            Err(source) if dialect::cure(&source) == Cure::Reconnect => {
                Err(E::from(StoreError::Unanswered { operation: name, source }))
            }
            Err(source) => Err(failed(source)),
        }
    }

    fn may_go_better(&self, error: &(dyn std::error::Error + 'static)) -> bool {
        !may_have_happened(error) && cures(error).any(|cure| cure != Cure::None)
    }

    /// A connection for queries that need no transaction and write nothing.
    ///
    /// # Errors
    /// Where none is free in time.
    pub async fn reader(&self) -> Result<sqlx::pool::PoolConnection<Db>, StoreError> {
        self.0.readers.acquire().await.map_err(failed("get a connection"))
    }

    /// Listens to notifications; `None` on SQLite, where there are none.
    ///
    /// # Errors
    /// The database's own.
    pub async fn hints(&self) -> Result<Option<Hints>, StoreError> {
        match &self.0.listen {
            Some(url) => Hints::listen(url.connect_url().as_str()).await.map(Some),
            None => Ok(None),
        }
    }

    /// One consistent picture of the database for as long as the transaction is held, while others write.
    ///
    /// # Errors
    /// Where no connection is free in time.
    pub async fn snapshot(&self) -> Result<sqlx::Transaction<'static, Db>, StoreError> {
        let begin = self.0.readers.begin_with(self.0.dialect.snapshot());
        let mut tx = begin.await.map_err(failed("take a snapshot"))?;
        dialect::take_time(&mut tx).await?;
        Ok(tx)
    }

    /// A transaction that is not tried again: for what is read from elsewhere as it goes, and done once.
    ///
    /// # Errors
    /// Where no connection is free in time.
    pub async fn transaction(&self) -> Result<sqlx::Transaction<'static, Db>, StoreError> {
        let begin = self.0.writer.begin_with(self.0.dialect.begin());
        let mut tx = begin.await.map_err(failed("begin a transaction"))?;
        dialect::take_time(&mut tx).await?;
        Ok(tx)
    }

    /// Closes all connections; what is committed is on disk.
    pub async fn close(&self) {
        self.0.readers.close().await;
        self.0.writer.close().await;
    }
}

type AnyError = dyn std::error::Error + 'static;

fn causes(error: &AnyError) -> impl Iterator<Item = &AnyError> {
    std::iter::successors(Some(error), |error| error.source())
}

fn database_errors(error: &AnyError) -> impl Iterator<Item = &sqlx::Error> {
    causes(error).filter_map(|error| error.downcast_ref::<sqlx::Error>())
}

fn cures(error: &AnyError) -> impl Iterator<Item = Cure> {
    database_errors(error).map(dialect::cure)
}

/// Whether `error` says that the database could not be reached: trying again later may help, and nothing is wrong inside.
pub fn is_unreachable(error: &(dyn std::error::Error + 'static)) -> bool {
    database_errors(error).any(dialect::is_unreachable)
}

/// Whether what failed with `error` may have been done all the same: the answer was lost.
pub fn may_have_happened(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error)
        .any(|error| matches!(error.downcast_ref::<StoreError>(), Some(StoreError::Unanswered { .. })))
}
