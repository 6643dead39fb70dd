//! Attempts: one agent process working on a run, under one lease.

use std::collections::HashSet;

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, BackupId, InstanceId, RunId, SeriesId};
use sqlx::{AssertSqlSafe, Row as _};

use super::dialect::pairs;
use super::{Row, StoreError, Tx, as_i64, failed, number, optional_text, text, time};
use crate::runs::state::AttemptState;

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// Of which run.
    pub run: RunId,
    /// The how-manieth of that run, from 1.
    pub number: u32,
    /// On which host.
    pub agent: AgentId,
    /// Into which series.
    pub series: SeriesId,
    /// Where it is.
    pub state: AttemptState,
    /// Of the database that made it.
    pub generation: u64,
    /// Counts the attempts on this series; a stale one is refused.
    pub epoch: u64,
    /// Which coordinator process looks after it.
    pub lease_owner: String,
    /// When it is given up unless the agent is heard of.
    pub lease_expires: UnixMillis,
    /// The agent process that works on it.
    pub instance: Option<InstanceId>,
    /// The backup begun last.
    pub backup: Option<BackupId>,
    /// When it was offered.
    pub started: UnixMillis,
    /// When it was over.
    pub ended: Option<UnixMillis>,
    /// Why it ended without a backup.
    pub error: String,
    /// The last words of the tool.
    pub stderr: String,
}

fn decode(row: Row) -> Result<AttemptRow, sqlx::Error> {
    Ok(AttemptRow {
        run: text(&row, "run_id")?,
        number: number(&row, "number")?,
        agent: text(&row, "agent_id")?,
        series: text(&row, "series_id")?,
        state: text(&row, "state")?,
        generation: number(&row, "generation")?,
        epoch: number(&row, "epoch")?,
        lease_owner: row.try_get("lease_owner")?,
        lease_expires: UnixMillis(row.try_get("lease_expires_ms")?),
        instance: optional_text(&row, "instance_id")?,
        backup: optional_text(&row, "backup_id")?,
        started: UnixMillis(row.try_get("started_ms")?),
        ended: time(&row, "ended_ms")?,
        error: row.try_get("error")?,
        stderr: row.try_get("stderr")?,
    })
}

/// Adds an attempt.
///
/// # Errors
/// The database's own; also where another attempt on the series is not over.
pub async fn insert(tx: &mut Tx, attempt: &AttemptRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO attempts (run_id, number, agent_id, series_id, state, generation, epoch, lease_owner,
                               lease_expires_ms, instance_id, backup_id, started_ms, ended_ms, error, stderr)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
    )
    .bind(attempt.run.to_string())
    .bind(i64::from(attempt.number))
    .bind(attempt.agent.to_string())
    .bind(attempt.series.to_string())
    .bind(attempt.state.as_str())
    .bind(as_i64(attempt.generation))
    .bind(as_i64(attempt.epoch))
    .bind(&attempt.lease_owner)
    .bind(attempt.lease_expires.0)
    .bind(attempt.instance.map(|i| i.to_string()))
    .bind(attempt.backup.map(|b| b.to_string()))
    .bind(attempt.started.0)
    .bind(attempt.ended.map(|t| t.0))
    .bind(&attempt.error)
    .bind(&attempt.stderr)
    .execute(tx)
    .await
    .map_err(failed("add an attempt"))?;
    Ok(())
}

/// Writes what can change about an attempt.
///
/// # Errors
/// The database's own.
pub async fn update(tx: &mut Tx, attempt: &AttemptRow) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE attempts SET state = $3, lease_owner = $4, lease_expires_ms = $5, instance_id = $6, backup_id = $7,
                ended_ms = $8, error = $9, stderr = $10 WHERE run_id = $1 AND number = $2",
    )
    .bind(attempt.run.to_string())
    .bind(i64::from(attempt.number))
    .bind(attempt.state.as_str())
    .bind(&attempt.lease_owner)
    .bind(attempt.lease_expires.0)
    .bind(attempt.instance.map(|i| i.to_string()))
    .bind(attempt.backup.map(|b| b.to_string()))
    .bind(attempt.ended.map(|t| t.0))
    .bind(&attempt.error)
    .bind(&attempt.stderr)
    .execute(tx)
    .await
    .map_err(failed("update an attempt"))?;
    Ok(())
}

/// One attempt of a run.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, run: RunId, number: u32) -> Result<Option<AttemptRow>, StoreError> {
    sqlx::query("SELECT * FROM attempts WHERE run_id = $1 AND number = $2")
        .bind(run.to_string())
        .bind(i64::from(number))
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read an attempt"))
}

/// All attempts of a run, in order.
///
/// # Errors
/// The database's own.
pub async fn of_run(tx: &mut Tx, run: RunId) -> Result<Vec<AttemptRow>, StoreError> {
    sqlx::query("SELECT * FROM attempts WHERE run_id = $1 ORDER BY number")
        .bind(run.to_string())
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("read a run's attempts"))
}

/// The attempts of one agent that are not over.
///
/// # Errors
/// The database's own.
pub async fn open_of_agent(tx: &mut Tx, agent: AgentId) -> Result<Vec<AttemptRow>, StoreError> {
    sqlx::query("SELECT * FROM attempts WHERE agent_id = $1 AND ended_ms IS NULL ORDER BY run_id, number")
        .bind(agent.to_string())
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("read an agent's attempts"))
}

/// Whether an attempt is under way on this series.
///
/// # Errors
/// The database's own.
pub async fn series_is_busy(tx: &mut Tx, series: SeriesId) -> Result<bool, StoreError> {
    sqlx::query("SELECT 1 FROM attempts WHERE series_id = $1 AND ended_ms IS NULL")
        .bind(series.to_string())
        .fetch_optional(tx)
        .await
        .map(|row| row.is_some())
        .map_err(failed("look at a series"))
}

/// Attempts whose lease ended at or before `now`.
///
/// # Errors
/// The database's own.
pub async fn expired(tx: &mut Tx, now: UnixMillis, limit: u32) -> Result<Vec<AttemptRow>, StoreError> {
    sqlx::query(
        "SELECT * FROM attempts WHERE ended_ms IS NULL AND lease_expires_ms <= $1 ORDER BY lease_expires_ms LIMIT $2",
    )
    .bind(now.0)
    .bind(i64::from(limit))
    .try_map(decode)
    .fetch_all(tx)
    .await
    .map_err(failed("find leases that ended"))
}

/// Extends the leases of agents' open attempts, each until its own time; all of them in one statement. Those that an agent has
/// not answered, or is to stop, end in any case.
///
/// # Errors
/// The database's own.
pub async fn extend(tx: &mut Tx, until: &[(AgentId, UnixMillis)]) -> Result<(), StoreError> {
    if until.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "WITH heard (id, until_ms) AS (VALUES {}) UPDATE attempts SET lease_expires_ms = heard.until_ms FROM heard
         WHERE attempts.agent_id = heard.id AND attempts.ended_ms IS NULL
            AND attempts.state NOT IN ('offered', 'cancelling') AND attempts.lease_expires_ms < heard.until_ms",
        pairs(until.len())
    );
    let query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
    let query = until.iter().fold(query, |query, (agent, until)| query.bind(agent.to_string()).bind(until.0));
    query.execute(tx).await.map(drop).map_err(failed("extend leases"))
}

/// The agents that have an open attempt.
///
/// # Errors
/// The database's own.
pub async fn working_agents(tx: &mut Tx) -> Result<HashSet<AgentId>, StoreError> {
    let found = sqlx::query("SELECT DISTINCT agent_id FROM attempts WHERE ended_ms IS NULL")
        .try_map(|row: Row| text(&row, "agent_id"))
        .fetch_all(tx)
        .await;
    Ok(found.map_err(failed("find agents that work"))?.into_iter().collect())
}

/// Gives every open attempt at least until `until`: agents need time to come back.
///
/// # Errors
/// The database's own.
pub async fn extend_all(tx: &mut Tx, until: UnixMillis) -> Result<(), StoreError> {
    sqlx::query("UPDATE attempts SET lease_expires_ms = $1 WHERE ended_ms IS NULL AND lease_expires_ms < $1")
        .bind(until.0)
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("extend all leases"))
}

/// How many open attempts one coordinator process looks after.
///
/// # Errors
/// The database's own.
pub async fn open_of_owner(tx: &mut Tx, owner: &str) -> Result<u32, StoreError> {
    sqlx::query("SELECT COUNT(*) AS open FROM attempts WHERE ended_ms IS NULL AND lease_owner = $1")
        .bind(owner)
        .try_map(|row: Row| number(&row, "open"))
        .fetch_one(tx)
        .await
        .map_err(failed("count a coordinator's attempts"))
}
