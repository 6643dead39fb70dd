//! Runs: what was asked for.

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, BackupId, RunId, SeriesId};
use sealift_common::name::Name;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, claiming, failed, locking, number, optional_text, text, time};
use crate::runs::state::RunState;

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRow {
    /// Its id.
    pub id: RunId,
    /// On which host.
    pub agent: AgentId,
    /// Of which source.
    pub source: Name,
    /// Into which series.
    pub series: SeriesId,
    /// Where it is.
    pub state: RunState,
    /// When it was asked for.
    pub created: UnixMillis,
    /// No attempt starts before this.
    pub due: UnixMillis,
    /// When its first attempt was offered.
    pub started: Option<UnixMillis>,
    /// When it was over.
    pub ended: Option<UnixMillis>,
    /// How many attempts were made.
    pub attempts: u32,
    /// Who wants it to end, while it has not.
    pub cancelled_by: Option<String>,
    /// Who asked for it.
    pub requested_by: String,
    /// W3C traceparent of the request; may be empty.
    pub trace_parent: String,
    /// The backup that came of it.
    pub backup: Option<BackupId>,
    /// Why there is none, or none yet.
    pub error: String,
}

const READ: &str = "read a run";

fn decode(row: Row) -> Result<RunRow, sqlx::Error> {
    Ok(RunRow {
        id: text(&row, "id")?,
        agent: text(&row, "agent_id")?,
        source: text(&row, "source")?,
        series: text(&row, "series_id")?,
        state: text(&row, "state")?,
        created: UnixMillis(row.try_get("created_ms")?),
        due: UnixMillis(row.try_get("due_ms")?),
        started: time(&row, "started_ms")?,
        ended: time(&row, "ended_ms")?,
        attempts: number(&row, "attempts")?,
        cancelled_by: row.try_get("cancelled_by")?,
        requested_by: row.try_get("requested_by")?,
        trace_parent: row.try_get("trace_parent")?,
        backup: optional_text(&row, "backup_id")?,
        error: row.try_get("error")?,
    })
}

/// Adds a run.
///
/// # Errors
/// The database's own.
pub async fn insert(tx: &mut Tx, run: &RunRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO runs (id, agent_id, source, series_id, state, created_ms, due_ms, started_ms, ended_ms, attempts,
                           cancelled_by, requested_by, trace_parent, backup_id, error)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
    )
    .bind(run.id.to_string())
    .bind(run.agent.to_string())
    .bind(run.source.as_str())
    .bind(run.series.to_string())
    .bind(run.state.as_str())
    .bind(run.created.0)
    .bind(run.due.0)
    .bind(run.started.map(|t| t.0))
    .bind(run.ended.map(|t| t.0))
    .bind(i64::from(run.attempts))
    .bind(&run.cancelled_by)
    .bind(&run.requested_by)
    .bind(&run.trace_parent)
    .bind(run.backup.map(|b| b.to_string()))
    .bind(&run.error)
    .execute(tx)
    .await
    .map_err(failed("add a run"))?;
    Ok(())
}

/// Writes what can change about a run.
///
/// # Errors
/// The database's own.
pub async fn update(tx: &mut Tx, run: &RunRow) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE runs SET state = $2, due_ms = $3, started_ms = $4, ended_ms = $5, attempts = $6, cancelled_by = $7,
                backup_id = $8, error = $9 WHERE id = $1",
    )
    .bind(run.id.to_string())
    .bind(run.state.as_str())
    .bind(run.due.0)
    .bind(run.started.map(|t| t.0))
    .bind(run.ended.map(|t| t.0))
    .bind(i64::from(run.attempts))
    .bind(&run.cancelled_by)
    .bind(run.backup.map(|b| b.to_string()))
    .bind(&run.error)
    .execute(tx)
    .await
    .map_err(failed("update a run"))?;
    Ok(())
}

/// The run with this id.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, id: RunId) -> Result<Option<RunRow>, StoreError> {
    sqlx::query("SELECT * FROM runs WHERE id = $1")
        .bind(id.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed(READ))
}

/// The run with this id, locked until the transaction ends. Whatever moves a run or one of its attempts takes this lock
/// first, before it reads either.
///
/// # Errors
/// The database's own.
pub async fn lock(tx: &mut Tx, id: RunId) -> Result<Option<RunRow>, StoreError> {
    sqlx::query(locking(tx, "SELECT * FROM runs WHERE id = $1"))
        .bind(id.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed(READ))
}

/// As [`lock`], for claiming: `None` where somebody else is at it.
///
/// # Errors
/// The database's own.
pub async fn claim(tx: &mut Tx, id: RunId) -> Result<Option<RunRow>, StoreError> {
    sqlx::query(claiming(tx, "SELECT * FROM runs WHERE id = $1"))
        .bind(id.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed(READ))
}

/// At most two runs whose ids start with `prefix`: one is unambiguous.
///
/// # Errors
/// The database's own.
pub async fn by_prefix(tx: &mut Tx, prefix: &str) -> Result<Vec<RunRow>, StoreError> {
    sqlx::query("SELECT * FROM runs WHERE id >= $1 AND id < $2 ORDER BY id LIMIT 2")
        .bind(prefix)
        .bind(format!("{prefix}~")) // '~' sorts after every digit, letter and dash
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed(READ))
}

/// Runs that wait and are due, of series on which nothing is under way, oldest first.
///
/// # Errors
/// The database's own.
pub async fn due(tx: &mut Tx, now: UnixMillis, limit: u32) -> Result<Vec<RunRow>, StoreError> {
    sqlx::query(
        "SELECT * FROM runs WHERE ended_ms IS NULL AND state IN ('queued', 'backoff') AND due_ms <= $1
            AND NOT EXISTS (SELECT 1 FROM attempts WHERE attempts.series_id = runs.series_id AND attempts.ended_ms IS NULL)
         ORDER BY due_ms, created_ms, id LIMIT $2",
    )
    .bind(now.0)
    .bind(i64::from(limit))
    .try_map(decode)
    .fetch_all(tx)
    .await
    .map_err(failed("find runs that are due"))
}

/// The runs of an agent that are not over.
///
/// # Errors
/// The database's own.
pub async fn open_of_agent(tx: &mut Tx, agent: AgentId) -> Result<Vec<RunRow>, StoreError> {
    sqlx::query("SELECT * FROM runs WHERE ended_ms IS NULL AND agent_id = $1 ORDER BY created_ms, id")
        .bind(agent.to_string())
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("read an agent's runs"))
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Only runs of this agent.
    pub agent: Option<AgentId>,
    /// Only runs of the source with this name.
    pub source: Option<Name>,
    /// Only runs in this state.
    pub state: Option<RunState>,
    /// Only runs asked for at or after this moment.
    pub since: UnixMillis,
    /// Only runs older than this position: time and id of the last one seen.
    pub before: Option<(i64, String)>,
    /// At most so many.
    pub limit: u32,
}

/// Runs, newest first.
///
/// # Errors
/// The database's own.
pub async fn list(tx: &mut Tx, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
    let (before_ms, before_id) = filter.before.clone().unwrap_or((i64::MAX, String::new()));
    sqlx::query(
        "SELECT * FROM runs WHERE created_ms >= $1 AND (created_ms < $2 OR (created_ms = $2 AND id < $3))
            AND ($4 = '' OR agent_id = $4) AND ($5 = '' OR source = $5) AND ($6 = '' OR state = $6)
         ORDER BY created_ms DESC, id DESC LIMIT $7",
    )
    .bind(filter.since.0)
    .bind(before_ms)
    .bind(before_id)
    .bind(filter.agent.map(|a| a.to_string()).unwrap_or_default())
    .bind(filter.source.as_ref().map_or("", Name::as_str))
    .bind(filter.state.map_or("", RunState::as_str))
    .bind(i64::from(filter.limit))
    .try_map(decode)
    .fetch_all(tx)
    .await
    .map_err(failed("list runs"))
}

/// The newest run of a series.
///
/// # Errors
/// The database's own.
pub async fn newest_of_series(tx: &mut Tx, series: SeriesId) -> Result<Option<RunRow>, StoreError> {
    sqlx::query("SELECT * FROM runs WHERE series_id = $1 ORDER BY created_ms DESC, id DESC LIMIT 1")
        .bind(series.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed(READ))
}
