//! Pauses of schedules.

use std::fmt;

use sealift_common::clock::UnixMillis;
use sealift_common::id::PauseId;
use sealift_common::selector::Selector;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, failed, text, time};

/// Schedules of some hosts do not start anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PauseRow {
    /// Its id.
    pub id: PauseId,
    /// Of which hosts.
    pub selector: Selector,
    /// Why.
    pub reason: String,
    /// Since when.
    pub created: UnixMillis,
    /// Who wanted it.
    pub created_by: String,
    /// Until when; `None`: until somebody ends it.
    pub until: Option<UnixMillis>,
    /// When it was ended.
    pub ended: Option<UnixMillis>,
}

impl fmt::Display for PauseRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.selector.is_empty() {
            true => f.write_str("all hosts")?,
            false => self.selector.fmt(f)?,
        }
        match self.until {
            Some(until) => write!(f, " until {until}"),
            None => Ok(()),
        }
    }
}

fn decode(row: Row) -> Result<PauseRow, sqlx::Error> {
    Ok(PauseRow {
        id: text(&row, "id")?,
        selector: text(&row, "selector")?,
        reason: row.try_get("reason")?,
        created: UnixMillis(row.try_get("created_ms")?),
        created_by: row.try_get("created_by")?,
        until: time(&row, "until_ms")?,
        ended: time(&row, "ended_ms")?,
    })
}

/// Adds a pause.
///
/// # Errors
/// The database's own.
pub async fn insert(tx: &mut Tx, pause: &PauseRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO pauses (id, selector, reason, created_ms, created_by, until_ms, ended_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(pause.id.to_string())
    .bind(pause.selector.to_string())
    .bind(&pause.reason)
    .bind(pause.created.0)
    .bind(&pause.created_by)
    .bind(pause.until.map(|t| t.0))
    .bind(pause.ended.map(|t| t.0))
    .execute(tx)
    .await
    .map(drop)
    .map_err(failed("add a pause"))
}

/// Ends a pause; `false` where it had ended.
///
/// # Errors
/// The database's own.
pub async fn end(tx: &mut Tx, id: PauseId, now: UnixMillis) -> Result<bool, StoreError> {
    sqlx::query("UPDATE pauses SET ended_ms = $2 WHERE id = $1 AND ended_ms IS NULL")
        .bind(id.to_string())
        .bind(now.0)
        .execute(tx)
        .await
        .map(|done| done.rows_affected() == 1)
        .map_err(failed("end a pause"))
}

/// Pauses in force at `now`, oldest first.
///
/// # Errors
/// The database's own.
pub async fn in_force(tx: &mut Tx, now: UnixMillis) -> Result<Vec<PauseRow>, StoreError> {
    sqlx::query(
        "SELECT * FROM pauses WHERE ended_ms IS NULL AND (until_ms IS NULL OR until_ms > $1) ORDER BY created_ms, id",
    )
    .bind(now.0)
    .try_map(decode)
    .fetch_all(tx)
    .await
    .map_err(failed("read the pauses"))
}
