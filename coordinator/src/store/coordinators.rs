//! The coordinator processes that are alive, and what they have to tell one another.

use sealift_common::clock::UnixMillis;
use sealift_common::id::CoordinatorId;
use sqlx::{AssertSqlSafe, Row as _};

use super::{Row, StoreError, Tx, failed, placeholders, text};

/// One coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorRow {
    /// Its process.
    pub id: CoordinatorId,
    /// Where agents and admins reach it, for people.
    pub address: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started: UnixMillis,
    /// When it last said that it is alive.
    pub seen: UnixMillis,
}

/// Records that a coordinator is alive.
///
/// # Errors
/// The database's own.
pub async fn seen(tx: &mut Tx, row: &CoordinatorRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO coordinators (id, address, version, started_ms, seen_ms) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (id) DO UPDATE SET seen_ms = $5",
    )
    .bind(row.id.to_string())
    .bind(&row.address)
    .bind(&row.version)
    .bind(row.started.0)
    .bind(row.seen.0)
    .execute(tx)
    .await
    .map(drop)
    .map_err(failed("record that a coordinator is alive"))
}

/// All coordinators, the longest-lived first.
///
/// # Errors
/// The database's own.
pub async fn all(tx: &mut Tx) -> Result<Vec<CoordinatorRow>, StoreError> {
    sqlx::query("SELECT * FROM coordinators ORDER BY started_ms, id")
        .try_map(|row: Row| {
            Ok(CoordinatorRow {
                id: text(&row, "id")?,
                address: row.try_get("address")?,
                version: row.try_get("version")?,
                started: UnixMillis(row.try_get("started_ms")?),
                seen: UnixMillis(row.try_get("seen_ms")?),
            })
        })
        .fetch_all(tx)
        .await
        .map_err(failed("list coordinators"))
}

/// Forgets a coordinator that is gone, and what it was to be told.
///
/// # Errors
/// The database's own.
pub async fn forget(tx: &mut Tx, id: CoordinatorId) -> Result<(), StoreError> {
    for sql in [
        "DELETE FROM coordinator_messages WHERE coordinator_id = $1",
        "DELETE FROM coordinators WHERE id = $1",
    ] {
        sqlx::query(sql)
            .bind(id.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed("forget a coordinator"))?;
    }
    Ok(())
}

/// Leaves a message for a coordinator.
///
/// # Errors
/// The database's own.
pub async fn post(tx: &mut Tx, to: CoordinatorId, body: &str, now: UnixMillis) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO coordinator_messages (coordinator_id, body, sent_ms) VALUES ($1, $2, $3)")
        .bind(to.to_string())
        .bind(body)
        .bind(now.0)
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("leave a message for a coordinator"))
}

/// Whether there are messages for a coordinator.
///
/// # Errors
/// The database's own.
pub async fn has_messages(tx: &mut Tx, id: CoordinatorId) -> Result<bool, StoreError> {
    sqlx::query("SELECT seq FROM coordinator_messages WHERE coordinator_id = $1 LIMIT 1")
        .bind(id.to_string())
        .fetch_optional(tx)
        .await
        .map(|row| row.is_some())
        .map_err(failed("look for messages"))
}

/// Takes the oldest messages for a coordinator: they are its to act on once the transaction is committed.
///
/// # Errors
/// The database's own.
pub async fn take(tx: &mut Tx, id: CoordinatorId, limit: u32) -> Result<Vec<String>, StoreError> {
    let messages: Vec<(i64, String)> = sqlx::query(
        "SELECT seq, body FROM coordinator_messages WHERE coordinator_id = $1 ORDER BY seq LIMIT $2",
    )
    .bind(id.to_string())
    .bind(i64::from(limit))
    .try_map(|row: Row| Ok((row.try_get("seq")?, row.try_get("body")?)))
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("read messages"))?;
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!("DELETE FROM coordinator_messages WHERE seq IN ({})", placeholders(1, messages.len()));
    let delete = sqlx::query(AssertSqlSafe(sql)).persistent(false);
    let delete = messages.iter().fold(delete, |query, (seq, _)| query.bind(*seq));
    delete.execute(tx).await.map_err(failed("take messages"))?;
    Ok(messages.into_iter().map(|(_, body)| body).collect())
}
