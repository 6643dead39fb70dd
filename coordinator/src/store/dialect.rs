//! All that differs between SQLite and PostgreSQL, and the aliases through which the rest does not notice.
//!
//! The SQL in the other files of this folder is one text for both: parameters are `$1`; sums are
//! `CAST(SUM(x) AS BIGINT)`; truth values are read with [`super::flag`]; lists go in as [`placeholders`], in chunks.
//! PostgreSQL runs at READ COMMITTED, so whatever reads first and writes after reads with [`locking`] (on SQLite one
//! transaction writes at a time, and the helper adds nothing).

use sealift_common::clock::UnixMillis;
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use super::{StoreError, failed};

/// The database in use: either of the two, decided when it is opened.
pub type Db = sqlx::Any;
/// One connection, in a transaction or not: what the functions of this folder take.
pub type Tx = sqlx::AnyConnection;
/// One row.
pub type Row = sqlx::any::AnyRow;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// One file, one process, one writer.
    Sqlite,
    /// A server, any number of processes.
    Postgres,
}

impl Dialect {
    /// Where this connection leads.
    pub fn of(tx: &Tx) -> Self {
        if tx.backend_name() == "PostgreSQL" { Self::Postgres } else { Self::Sqlite }
    }

    /// Its name in the names of migrations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }

    /// How a transaction begins that sees what was committed by then, until it ends.
    pub(super) const fn snapshot(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN",
            Self::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        }
    }

    /// How a transaction begins. SQLite takes the write lock at once: a transaction that reads first and writes later could
    /// otherwise not be retried.
    pub(super) const fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED",
        }
    }
}

/// `select`, with the rows it finds locked until the transaction ends: nobody else changes or locks them meanwhile, and what
/// is read is what others had committed before. Rows that refer to them can still be added.
pub fn locking(tx: &Tx, select: &'static str) -> SqlStr {
    match Dialect::of(tx) {
        Dialect::Sqlite => select.into_sql_str(),
        Dialect::Postgres => AssertSqlSafe(format!("{select} FOR NO KEY UPDATE")).into_sql_str(),
    }
}

/// As [`locking`], but for looking only: others may look as well, and change what no other row refers to.
pub fn sharing(tx: &Tx, select: &'static str) -> SqlStr {
    match Dialect::of(tx) {
        Dialect::Sqlite => select.into_sql_str(),
        Dialect::Postgres => AssertSqlSafe(format!("{select} FOR KEY SHARE")).into_sql_str(),
    }
}

/// What the time is for all coordinators: the database's on PostgreSQL, `here` on SQLite.
///
/// # Errors
/// The database's own.
pub async fn now(tx: &mut Tx, here: UnixMillis) -> Result<UnixMillis, StoreError> {
    match Dialect::of(tx) {
        Dialect::Sqlite => Ok(here),
        Dialect::Postgres => {
            sqlx::query_scalar("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)")
                .fetch_one(tx)
                .await
                .map(UnixMillis)
                .map_err(failed("ask the database for the time"))
        }
    }
}

/// As [`locking`], for claiming work: rows that somebody else has locked are not found.
pub fn claiming(tx: &Tx, select: &'static str) -> SqlStr {
    match Dialect::of(tx) {
        Dialect::Sqlite => select.into_sql_str(),
        Dialect::Postgres => AssertSqlSafe(format!("{select} FOR NO KEY UPDATE SKIP LOCKED")).into_sql_str(),
    }
}

/// Lets this one transaction take as long as it takes.
///
/// # Errors
/// The database's own.
pub(super) async fn take_time(tx: &mut Tx) -> Result<(), StoreError> {
    if Dialect::of(tx) == Dialect::Postgres {
        let lift = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";
        sqlx::raw_sql(lift).execute(tx).await.map_err(failed("begin a long transaction"))?;
    }
    Ok(())
}

/// `$first, $(first+1), …`, `count` of them: for `IN (…)`. At most a few thousand; not for a cached statement
/// (`persistent(false)`) where the count differs from call to call.
pub fn placeholders(first: usize, count: usize) -> String {
    (first..first + count).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ")
}

/// `(text, number), …`, `count` of them, from `$1` on: for `VALUES (…)`, whose types PostgreSQL cannot guess.
pub fn pairs(count: usize) -> String {
    let pair = |n: usize| format!("(CAST(${} AS TEXT), CAST(${} AS BIGINT))", 2 * n + 1, 2 * n + 2);
    (0..count).map(pair).collect::<Vec<_>>().join(", ")
}

/// The channel of notifications. They are hints: what they are about is in the database.
const CHANNEL: &str = "sealift";
/// To whom: all coordinators.
pub const EVERYBODY: &str = "*";

/// Tells a coordinator, or [`EVERYBODY`], that there is something for it, once the transaction is committed. On SQLite there is
/// nobody to tell.
///
/// # Errors
/// The database's own.
pub async fn notify(tx: &mut Tx, whom: &str) -> Result<(), StoreError> {
    if Dialect::of(tx) == Dialect::Postgres {
        sqlx::query("SELECT pg_notify($1, $2)")
            .bind(CHANNEL)
            .bind(whom)
            .execute(tx)
            .await
            .map_err(failed("notify coordinators"))?;
    }
    Ok(())
}

/// Notifications, as they come.
#[derive(Debug)]
pub struct Hints(sqlx::postgres::PgListener);

impl Hints {
    pub(super) async fn listen(url: &str) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Database { operation: "listen to notifications", source };
        let mut listener = sqlx::postgres::PgListener::connect(url).await.map_err(failed)?;
        listener.listen(CHANNEL).await.map_err(failed)?;
        Ok(Self(listener))
    }

    /// Whom the next one is for. After an error, listen anew.
    ///
    /// # Errors
    /// The database's own.
    pub async fn next(&mut self) -> Result<String, StoreError> {
        let next = self.0.recv().await.map_err(failed("wait for a notification"))?;
        Ok(next.payload().to_owned())
    }
}

/// What trying again may do for a transaction that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cure {
    /// Nothing.
    None,
    /// It was undone because of others: the next try may go through.
    Retry,
    /// The connection is gone, or the server is: the next try takes another connection.
    Reconnect,
}

pub(super) fn cure(error: &sqlx::Error) -> Cure {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => Cure::Reconnect,
        // Each has waited long enough already.
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Cure::None,
        sqlx::Error::Database(error) => cure_code(&error.code().unwrap_or_default()),
        _ => Cure::None,
    }
}

fn cure_code(code: &str) -> Cure {
    match code {
        // PostgreSQL: serialization, deadlock, lock_timeout; unique violation, which the next try sees coming and names.
        "40001" | "40P01" | "55P03" | "23505" => Cure::Retry,
        // "cached plan must not change result type": the schema was migrated under a prepared statement.
        "0A000" => Cure::Reconnect,
        // Shut down, crashed, starting up, idle in transaction for too long.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "53300" => Cure::Reconnect,
        code if code.len() == 5 && code.starts_with("08") => Cure::Reconnect,
        // SQLITE_BUSY (5) and SQLITE_LOCKED (6), with their extended codes in the upper bytes.
        code if code.len() < 5 && code.parse::<u32>().is_ok_and(|c| matches!(c & 0xff, 5 | 6)) => Cure::Retry,
        _ => Cure::None,
    }
}

/// Whether the database could not be reached, rather than having refused.
pub(super) fn is_unreachable(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) || cure(error) == Cure::Reconnect
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_count_on() {
        assert_eq!(placeholders(2, 3), "$2, $3, $4");
        assert_eq!(placeholders(1, 0), "");
        assert_eq!(
            pairs(2),
            "(CAST($1 AS TEXT), CAST($2 AS BIGINT)), (CAST($3 AS TEXT), CAST($4 AS BIGINT))"
        );
    }

    #[test]
    fn only_what_may_go_better_is_tried_again() {
        for code in ["40001", "40P01", "23505", "5", "6", "517"] {
            assert_eq!(cure_code(code), Cure::Retry, "{code}");
        }
        for code in ["08006", "08000", "57P01", "57P03"] {
            assert_eq!(cure_code(code), Cure::Reconnect, "{code}");
        }
        for code in ["23503", "42P01", "1", "2067", "1555", "", "22021"] {
            assert_eq!(cure_code(code), Cure::None, "{code}");
        }
    }
}
