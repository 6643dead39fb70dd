//! How far runs are, as the coordinator that holds the session says from time to time.

use sealift_common::clock::UnixMillis;
use sealift_common::id::RunId;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, failed, number};

/// What was said last of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressRow {
    /// Of which of its attempts.
    pub attempt: u32,
    /// What, as JSON.
    pub said: String,
    /// When, by the database's clock.
    pub at: UnixMillis,
}

/// Replaces what was said of a run, unless something newer was.
///
/// # Errors
/// The database's own.
pub async fn put(tx: &mut Tx, run: RunId, row: &ProgressRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO run_progress (run_id, attempt, said, said_ms) VALUES ($1, $2, $3, $4)
         ON CONFLICT (run_id) DO UPDATE SET attempt = $2, said = $3, said_ms = $4 WHERE run_progress.said_ms <= $4",
    )
    .bind(run.to_string())
    .bind(i64::from(row.attempt))
    .bind(&row.said)
    .bind(row.at.0)
    .execute(tx)
    .await
    .map(drop)
    .map_err(failed("say how far a run is"))
}

/// What was said last of a run.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, run: RunId) -> Result<Option<ProgressRow>, StoreError> {
    sqlx::query("SELECT attempt, said, said_ms FROM run_progress WHERE run_id = $1")
        .bind(run.to_string())
        .try_map(|row: Row| {
            Ok(ProgressRow {
                attempt: number(&row, "attempt")?,
                said: row.try_get("said")?,
                at: UnixMillis(row.try_get("said_ms")?),
            })
        })
        .fetch_optional(tx)
        .await
        .map_err(failed("read how far a run is"))
}

/// Forgets what was said before then.
///
/// # Errors
/// The database's own.
pub async fn forget_before(tx: &mut Tx, then: UnixMillis) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM run_progress WHERE said_ms < $1")
        .bind(then.0)
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("forget how far runs were"))
}
