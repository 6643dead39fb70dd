//! What is under way on a series that must not run beside something else.

use sealift_common::clock::UnixMillis;
use sealift_common::id::SeriesId;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, failed};
use crate::retention::beside::{Operation, may_run_beside};

/// Takes `operation` on a series for `holder` until `expires`, if nothing is under way that it must not run beside: what
/// that is, otherwise. Its own holder may take it again, which extends it.
///
/// Call it with the series locked.
///
/// # Errors
/// The database's own.
pub async fn take(
    tx: &mut Tx,
    series: SeriesId,
    operation: Operation,
    holder: &str,
    now: UnixMillis,
    expires: UnixMillis,
) -> Result<Option<Operation>, StoreError> {
    let running: Vec<(String, String)> = sqlx::query(
        "SELECT operation, holder FROM series_operations WHERE series_id = $1 AND expires_ms > $2",
    )
    .bind(series.to_string())
    .bind(now.0)
    .try_map(|row: Row| Ok((row.try_get("operation")?, row.try_get("holder")?)))
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("read what is under way on a series"))?;
    let in_the_way = running.iter().find_map(|(name, by)| {
        let other = Operation::by_name(name)?;
        let own = by == holder && other == operation;
        (!own && !may_run_beside(operation, other)).then_some(other)
    });
    if in_the_way.is_some() {
        return Ok(in_the_way);
    }
    sqlx::query(
        "INSERT INTO series_operations (series_id, operation, holder, expires_ms) VALUES ($1, $2, $3, $4)
         ON CONFLICT (series_id, operation) DO UPDATE SET holder = $3, expires_ms = $4",
    )
    .bind(series.to_string())
    .bind(operation.as_str())
    .bind(holder)
    .bind(expires.0)
    .execute(tx)
    .await
    .map_err(failed("record what is under way on a series"))?;
    Ok(None)
}

/// Gives back what `holder` took.
///
/// # Errors
/// The database's own.
pub async fn give_back(
    tx: &mut Tx,
    series: SeriesId,
    operation: Operation,
    holder: &str,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM series_operations WHERE series_id = $1 AND operation = $2 AND holder = $3")
        .bind(series.to_string())
        .bind(operation.as_str())
        .bind(holder)
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("record that something ended on a series"))
}
