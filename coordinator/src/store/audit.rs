//! The audit table: append-only, which triggers enforce.

use sealift_common::clock::UnixMillis;
use sealift_common::id::EventId;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, failed, text};

/// One row of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Its place in the order in which events were recorded; what is given to [`append`] does not matter.
    pub place: i64,
    /// Its id.
    pub id: EventId,
    /// When it was recorded.
    pub time: UnixMillis,
    /// Who: `admin:NAME`, `agent:ID`, `anonymous`, `coordinator`.
    pub actor: String,
    /// From which network address; empty for the coordinator itself.
    pub source_address: String,
    /// Ties the events of one request together.
    pub request_id: String,
    /// What: `token.create`.
    pub action: String,
    /// To what: `token:ID`.
    pub entity: String,
    /// `intended`, `done`, `failed` or `refused`.
    pub outcome: String,
    /// JSON object; holds nothing secret.
    pub details: String,
}

/// Appends one event.
///
/// # Errors
/// The database's own: then the transaction it belongs to must not go on.
pub async fn append(tx: &mut Tx, event: &EventRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_events (id, time_ms, actor, source_address, request_id, action, entity, outcome, details)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(event.id.to_string())
    .bind(event.time.0)
    .bind(&event.actor)
    .bind(&event.source_address)
    .bind(&event.request_id)
    .bind(&event.action)
    .bind(&event.entity)
    .bind(&event.outcome)
    .bind(&event.details)
    .execute(tx)
    .await
    .map_err(failed("append to the audit"))?;
    Ok(())
}

pub(super) fn decode(row: Row) -> Result<EventRow, sqlx::Error> {
    Ok(EventRow {
        place: row.try_get("seq")?,
        id: text(&row, "id")?,
        time: UnixMillis(row.try_get("time_ms")?),
        actor: row.try_get("actor")?,
        source_address: row.try_get("source_address")?,
        request_id: row.try_get("request_id")?,
        action: row.try_get("action")?,
        entity: row.try_get("entity")?,
        outcome: row.try_get("outcome")?,
        details: row.try_get("details")?,
    })
}
