//! What hosts say they have, and the series each goes into.

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, SeriesId};
use sealift_common::name::Name;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, failed, flag, json, locking, number, text};

/// One source of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRow {
    /// The host.
    pub agent: AgentId,
    /// Its name in the host's config.
    pub name: Name,
    /// postgres, mysql, sqlite, directory, command.
    pub kind: String,
    /// For people.
    pub detail: String,
    /// Where its credentials come from; never what they are.
    pub credential_origins: Vec<String>,
    /// Where its backups go.
    pub series: SeriesId,
    /// Whether it is still in the host's config.
    pub present: bool,
    /// When any of this changed.
    pub changed: UnixMillis,
}

pub(super) fn decode(row: Row) -> Result<SourceRow, sqlx::Error> {
    Ok(SourceRow {
        agent: text(&row, "agent_id")?,
        name: text(&row, "name")?,
        kind: row.try_get("kind")?,
        detail: row.try_get("detail")?,
        credential_origins: json(&row, "credential_origins")?,
        series: text(&row, "series_id")?,
        present: flag(&row, "present")?,
        changed: UnixMillis(row.try_get("changed_ms")?),
    })
}

/// All sources of an agent, by name.
///
/// # Errors
/// The database's own.
pub async fn of_agent(tx: &mut Tx, agent: AgentId) -> Result<Vec<SourceRow>, StoreError> {
    sqlx::query("SELECT * FROM sources WHERE agent_id = $1 ORDER BY name")
        .bind(agent.to_string())
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("read an agent's sources"))
}

/// One source of an agent.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, agent: AgentId, name: &Name) -> Result<Option<SourceRow>, StoreError> {
    sqlx::query("SELECT * FROM sources WHERE agent_id = $1 AND name = $2")
        .bind(agent.to_string())
        .bind(name.as_str())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read a source"))
}

/// The source whose backups go into `series`.
///
/// # Errors
/// The database's own.
pub async fn of_series(tx: &mut Tx, series: SeriesId) -> Result<Option<SourceRow>, StoreError> {
    sqlx::query("SELECT * FROM sources WHERE series_id = $1")
        .bind(series.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read a source"))
}

/// Adds a source or replaces what is known of it; its series stays.
///
/// # Errors
/// The database's own.
pub async fn put(tx: &mut Tx, source: &SourceRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO sources (agent_id, name, kind, detail, credential_origins, series_id, present, changed_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (agent_id, name) DO UPDATE SET kind = $3, detail = $4, credential_origins = $5, present = $7,
            changed_ms = $8",
    )
    .bind(source.agent.to_string())
    .bind(source.name.as_str())
    .bind(&source.kind)
    .bind(&source.detail)
    .bind(super::to_json(&source.credential_origins))
    .bind(source.series.to_string())
    .bind(source.present)
    .bind(source.changed.0)
    .execute(tx)
    .await
    .map_err(failed("record a source"))?;
    Ok(())
}

/// Starts a series for a source.
///
/// # Errors
/// The database's own.
pub async fn insert_series(tx: &mut Tx, source: &SourceRow, scope: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO series (id, agent_id, source, scope, created_ms, fence) VALUES ($1, $2, $3, $4, $5, 0)",
    )
    .bind(source.series.to_string())
    .bind(source.agent.to_string())
    .bind(source.name.as_str())
    .bind(scope)
    .bind(source.changed.0)
    .execute(tx)
    .await
    .map_err(failed("start a series"))?;
    Ok(())
}

/// Locks a series until the transaction ends: for whatever gives out its numbers, or changes what may be referred to in it.
///
/// # Errors
/// The database's own.
pub async fn lock_series(tx: &mut Tx, series: SeriesId) -> Result<(), StoreError> {
    sqlx::query(locking(tx, "SELECT id FROM series WHERE id = $1"))
        .bind(series.to_string())
        .fetch_optional(tx)
        .await
        .map(drop)
        .map_err(failed("lock a series"))
}

/// Counts one more attempt on a series: the epoch that fences it.
///
/// # Errors
/// The database's own.
pub async fn next_fence(tx: &mut Tx, series: SeriesId) -> Result<u64, StoreError> {
    sqlx::query("UPDATE series SET fence = fence + 1 WHERE id = $1 RETURNING fence")
        .bind(series.to_string())
        .try_map(|row: Row| number(&row, "fence"))
        .fetch_one(tx)
        .await
        .map_err(failed("count an attempt on a series"))
}
