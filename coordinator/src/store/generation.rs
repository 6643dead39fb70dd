//! Which database this is among the copies that may exist of it, and whether it is in step with the bucket.

use sealift_common::clock::UnixMillis;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, as_i64, failed, number};

/// The one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationRow {
    /// Counts recoveries, from 1.
    pub number: u64,
    /// Random, made by each recovery; part of every epoch.
    pub id: u64,
    /// The high-water mark: counted here first, then put into the bucket.
    pub mark: u64,
    /// Random, new with each mark: another copy of this database that counts as far says another one.
    pub nonce: u64,
    /// Why the database is not to be believed; `None` while it is.
    pub recovering: Option<String>,
    /// When that changed.
    pub changed: UnixMillis,
    /// When the coordinator stored its own backup last.
    pub backup: UnixMillis,
}

fn decode(row: Row) -> Result<GenerationRow, sqlx::Error> {
    let (state, reason): (String, String) = (row.try_get("state")?, row.try_get("reason")?);
    Ok(GenerationRow {
        number: number(&row, "number")?,
        id: number(&row, "id")?,
        mark: number(&row, "mark")?,
        nonce: number(&row, "mark_nonce")?,
        recovering: (state == "recovering").then_some(reason),
        changed: UnixMillis(row.try_get("changed_ms")?),
        backup: UnixMillis(row.try_get("backup_ms")?),
    })
}

/// The row, which starts as generation `id` where there is none yet.
///
/// # Errors
/// The database's own.
pub async fn get_or_start(tx: &mut Tx, id: u64, now: UnixMillis) -> Result<GenerationRow, StoreError> {
    sqlx::query(
        "INSERT INTO generation (one, number, id, mark, state, reason, changed_ms, backup_ms, claimed_ms)
         VALUES (1, 1, $1, 0, 'serving', '', $2, 0, 0) ON CONFLICT (one) DO NOTHING",
    )
    .bind(as_i64(id))
    .bind(now.0)
    .execute(&mut *tx)
    .await
    .map_err(failed("start a generation"))?;
    get(tx).await
}

/// The row.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx) -> Result<GenerationRow, StoreError> {
    sqlx::query("SELECT * FROM generation WHERE one = 1")
        .try_map(decode)
        .fetch_one(tx)
        .await
        .map_err(failed("read the generation"))
}

/// Counts one more mark of generation `id`; `None` where another has taken its place, or it recovers.
///
/// # Errors
/// The database's own.
pub async fn next_mark(tx: &mut Tx, id: u64, nonce: u64) -> Result<Option<GenerationRow>, StoreError> {
    sqlx::query(
        "UPDATE generation SET mark = mark + 1, mark_nonce = $2
         WHERE one = 1 AND id = $1 AND state = 'serving' RETURNING *",
    )
    .bind(as_i64(id))
    .bind(as_i64(nonce))
    .try_map(decode)
    .fetch_optional(tx)
    .await
    .map_err(failed("count a mark"))
}

/// The database is not to be believed. `false` where that was known.
///
/// # Errors
/// The database's own.
pub async fn set_recovering(tx: &mut Tx, reason: &str, now: UnixMillis) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE generation SET state = 'recovering', reason = $1, changed_ms = $2
         WHERE one = 1 AND state = 'serving'",
    )
    .bind(reason)
    .bind(now.0)
    .execute(tx)
    .await
    .map_err(failed("record that the database is behind"))?;
    Ok(done.rows_affected() > 0)
}

/// The database is in step again: a new generation begins, with its first mark.
///
/// # Errors
/// The database's own.
pub async fn renew(tx: &mut Tx, number: u64, id: u64, nonce: u64, now: UnixMillis) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE generation SET number = $1, id = $2, mark = 1, mark_nonce = $4, state = 'serving', reason = '',
                changed_ms = $3, claimed_ms = 0 WHERE one = 1",
    )
    .bind(as_i64(number))
    .bind(as_i64(id))
    .bind(now.0)
    .bind(as_i64(nonce))
    .execute(tx)
    .await
    .map_err(failed("begin a generation"))?;
    Ok(())
}

/// Takes the right to make the coordinator's backup until `until`, where the last one was made before `due` and nobody
/// else is at it.
///
/// # Errors
/// The database's own.
pub async fn claim_backup(
    tx: &mut Tx,
    now: UnixMillis,
    due: UnixMillis,
    until: UnixMillis,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE generation SET claimed_ms = $3
         WHERE one = 1 AND state = 'serving' AND claimed_ms <= $1 AND backup_ms <= $2",
    )
    .bind(now.0)
    .bind(due.0)
    .bind(until.0)
    .execute(tx)
    .await
    .map_err(failed("claim the coordinator's backup"))?;
    Ok(done.rows_affected() > 0)
}

/// Records that the coordinator's backup was made at `made`; `None`: that it was not, and may be tried again.
///
/// # Errors
/// The database's own.
pub async fn end_backup(tx: &mut Tx, made: Option<UnixMillis>) -> Result<(), StoreError> {
    sqlx::query("UPDATE generation SET claimed_ms = 0, backup_ms = COALESCE($1, backup_ms) WHERE one = 1")
        .bind(made.map(|t| t.0))
        .execute(tx)
        .await
        .map_err(failed("record the coordinator's backup"))?;
    Ok(())
}
