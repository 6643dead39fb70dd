//! Opens the database, and keeps a second process out of a SQLite file.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{Connection as _, Pool};

use super::dialect::{Db, Dialect, Tx};
use super::url::{DatabaseUrl, PostgresUrl};
use super::{StoreError, migrations};

/// How many connections read while the one writer of SQLite writes.
const SQLITE_READERS: u32 = 8;
/// Connections to PostgreSQL, of one coordinator: transactions, and queries that write nothing.
const POSTGRES_WRITERS: u32 = 16;
const POSTGRES_READERS: u32 = 8;
/// How long to wait for a free connection, or for a server that restarts.
const ACQUIRE: Duration = Duration::from_secs(10);

/// `synchronous = FULL`: what was answered is on disk.
const SQLITE_WRITER: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
     PRAGMA busy_timeout = 10000; PRAGMA foreign_keys = ON";
const SQLITE_READER: &str = "PRAGMA busy_timeout = 10000";
/// Nothing that a coordinator does holds a lock or a statement for long; what does is ended and tried again.
const POSTGRES_WRITER: &str = "SET lock_timeout = '10s'; SET statement_timeout = '60s'; \
     SET idle_in_transaction_session_timeout = '60s'";
/// Readers cannot write, as on SQLite.
const POSTGRES_READER: &str = "SET default_transaction_read_only = on; SET statement_timeout = '60s'";

/// The connections to one database.
#[derive(Clone)]
pub(super) struct Connections {
    pub dialect: Dialect,
    pub writer: Pool<Db>,
    pub readers: Pool<Db>,
    /// Where to listen to notifications.
    pub listen: Option<PostgresUrl>,
    _lock: Option<Arc<File>>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("dialect", &self.dialect).finish_non_exhaustive()
    }
}

/// Opens the database and brings its schema up to date.
pub(super) async fn open(database: &DatabaseUrl) -> Result<Connections, StoreError> {
    sqlx::any::install_default_drivers();
    match database {
        DatabaseUrl::Sqlite(path) => open_sqlite(path).await,
        DatabaseUrl::Postgres(url) => open_postgres(url).await,
    }
}

fn failed(source: sqlx::Error) -> StoreError {
    StoreError::Database { operation: "open the database", source }
}

fn pool(max: u32, session: &'static str) -> AnyPoolOptions {
    AnyPoolOptions::new().max_connections(max).acquire_timeout(ACQUIRE).after_connect(move |connection, _| {
        async move { sqlx::raw_sql(session).execute(connection).await.map(drop) }.boxed()
    })
}

async fn open_sqlite(path: &Path) -> Result<Connections, StoreError> {
    let lock = lock(path)?;
    let io = |source| StoreError::File { path: path.to_owned(), source };
    let path = std::fs::canonicalize(path).map_err(io)?;
    let text = path.to_str().ok_or_else(|| io(std::io::Error::other("the path is not UTF-8")))?;
    let text = utf8_percent_encode(text, NON_ALPHANUMERIC);
    let options =
        |mode: &str| format!("sqlite:{text}?mode={mode}").parse::<AnyConnectOptions>().map_err(failed);
    let writer = pool(1, SQLITE_WRITER).connect_with(options("rw")?).await.map_err(failed)?;
    migrations::run(Dialect::Sqlite, &mut *writer.acquire().await.map_err(failed)?).await?;
    let readers = pool(SQLITE_READERS, SQLITE_READER).connect_with(options("ro")?).await.map_err(failed)?;
    let lock = Some(Arc::new(lock));
    Ok(Connections { dialect: Dialect::Sqlite, writer, readers, listen: None, _lock: lock })
}

async fn open_postgres(url: &PostgresUrl) -> Result<Connections, StoreError> {
    let options: AnyConnectOptions = url.connect_url().as_str().parse().map_err(failed)?;
    // On a connection of its own: another coordinator's migration may take longer than any statement should.
    let mut migrator = Tx::connect_with(&options).await.map_err(failed)?;
    let migrated = migrations::run(Dialect::Postgres, &mut migrator).await;
    // The lock on the migrations ends with the connection, whatever came of it.
    let closed = migrator.close().await.map_err(failed);
    migrated.and(closed)?;
    // A connection that died while it was idle is found when a transaction begins on it, which is then tried again.
    let writer = pool(POSTGRES_WRITERS, POSTGRES_WRITER).test_before_acquire(false);
    let writer = writer.connect_with(options.clone()).await.map_err(failed)?;
    let readers = pool(POSTGRES_READERS, POSTGRES_READER).connect_with(options).await.map_err(failed)?;
    let listen = Some(url.clone());
    Ok(Connections { dialect: Dialect::Postgres, writer, readers, listen, _lock: None })
}

/// Makes the file (0600) where it is missing, and locks it.
fn lock(path: &Path) -> Result<File, StoreError> {
    let io = |path: &Path, source| StoreError::File { path: path.to_owned(), source };
    let private = |path: &Path| {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| io(path, e))
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let lock = private(&lock_path)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(StoreError::Locked { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => return Err(io(&lock_path, source)),
    }
    private(path)?;
    Ok(lock)
}
