//! All that differs between databases: today SQLite; PostgreSQL is to be added here.
//!
//! The SQL in the other files of this folder is what both take (`$1`, `RETURNING`, `ON CONFLICT`, partial indices).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::StoreError;

/// The database in use.
pub type Db = sqlx::Sqlite;
/// One connection, in a transaction or not: what the functions of this folder take.
pub type Tx = sqlx::SqliteConnection;
/// One row.
pub type Row = sqlx::sqlite::SqliteRow;

/// Takes the write lock at once: a transaction that reads first and writes later could otherwise not be retried.
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";

/// Brings the schema up to date.
pub(super) static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// How many connections read while the one writer writes.
const READERS: u32 = 8;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The connections of one database file, and the lock that keeps a second process out.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    pub writer: sqlx::Pool<Db>,
    pub readers: sqlx::Pool<Db>,
    _lock: std::sync::Arc<File>,
}

/// Opens the database file, which is made (0600) where it is missing.
pub(super) async fn connect(path: &Path) -> Result<Connections, StoreError> {
    let lock = lock(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true);
    let pool = |max: u32| SqlitePoolOptions::new().max_connections(max).acquire_timeout(BUSY_TIMEOUT);
    let failed = |source| StoreError::Database { operation: "open the database", source };
    let writer = pool(1).connect_with(options.clone()).await.map_err(failed)?;
    let readers = pool(READERS).connect_with(options.read_only(true)).await.map_err(failed)?;
    Ok(Connections { writer, readers, _lock: std::sync::Arc::new(lock) })
}

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

/// Whether the same transaction may succeed when it is tried again.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
    // SQLITE_BUSY (5) and SQLITE_LOCKED (6), with their extended codes in the upper bytes.
    let code = error.as_database_error().and_then(|e| e.code()).and_then(|c| c.parse::<u32>().ok());
    matches!(code.map(|c| c & 0xff), Some(5 | 6))
}
