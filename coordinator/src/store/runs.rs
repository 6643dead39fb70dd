//! Runs: what was asked for.

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, BackupId, CoordinatorId, PolicyId, RunId, SeriesId};
use sealift_common::name::Name;
use sqlx::Row as _;

use super::{Dialect, Row, StoreError, Tx, claiming, failed, locking, number, optional_text, text, time};
use crate::runs::state::RunState;

/// What a run is for, where a policy made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunPlan {
    /// Which policy.
    pub policy: PolicyId,
    /// Which version of it; a run that has started keeps it.
    pub version: u32,
    /// Why then.
    pub occasion: Occasion,
    /// When the policy was due.
    pub instant: UnixMillis,
    /// Missed if it has not started by then.
    pub deadline: UnixMillis,
    /// Stopped if it is under way then.
    pub stop: Option<UnixMillis>,
    /// How many instants it stands for beside its own.
    pub collapsed: u32,
    /// How often it is tried.
    pub attempts: u32,
}

/// Why a policy made a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Its schedule was due.
    Schedule,
    /// The host was away then.
    CatchUp,
}

impl Occasion {
    /// Its name in the database and to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::CatchUp => "catch-up",
        }
    }
}

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
    /// Where its host stands (the label `store`); empty where that is not said.
    pub site: String,
    /// What it is for, where a policy made it.
    pub plan: Option<RunPlan>,
}

/// How many attempts a run has that an admin asked for.
pub const MANUAL_ATTEMPTS: u32 = 3;

impl RunRow {
    /// How often it is tried.
    pub fn max_attempts(&self) -> u32 {
        self.plan.map_or(MANUAL_ATTEMPTS, |plan| plan.attempts)
    }
}

const READ: &str = "read a run";

pub(super) fn decode(row: Row) -> Result<RunRow, sqlx::Error> {
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
        site: row.try_get("site")?,
        plan: decode_plan(&row)?,
    })
}

fn decode_plan(row: &Row) -> Result<Option<RunPlan>, sqlx::Error> {
    let Some(policy) = optional_text(row, "policy_id")? else { return Ok(None) };
    Ok(Some(RunPlan {
        policy,
        version: number(row, "policy_version")?,
        occasion: match row.try_get::<String, _>("occasion")?.as_str() {
            "catch-up" => Occasion::CatchUp,
            _ => Occasion::Schedule,
        },
        instant: time(row, "instant_ms")?.unwrap_or_default(),
        deadline: time(row, "deadline_ms")?.unwrap_or(UnixMillis(i64::MAX)),
        stop: time(row, "stop_ms")?,
        collapsed: number(row, "collapsed")?,
        attempts: number(row, "max_attempts")?,
    }))
}

/// Adds a run. `false` where its policy has made one for the same source and instant already.
///
/// # Errors
/// The database's own.
pub async fn insert(tx: &mut Tx, run: &RunRow) -> Result<bool, StoreError> {
    let plan = run.plan.as_ref();
    let inserted = sqlx::query(
        "INSERT INTO runs (id, agent_id, source, series_id, state, created_ms, due_ms, started_ms, ended_ms, attempts,
                           cancelled_by, requested_by, trace_parent, backup_id, error, site, policy_id, policy_version,
                           occasion, instant_ms, deadline_ms, stop_ms, collapsed, max_attempts)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,
                 $24) ON CONFLICT DO NOTHING",
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
    .bind(&run.site)
    .bind(plan.map(|plan| plan.policy.to_string()))
    .bind(plan.map_or(0, |plan| i64::from(plan.version)))
    .bind(plan.map_or("", |plan| plan.occasion.as_str()))
    .bind(plan.map(|plan| plan.instant.0))
    .bind(plan.map(|plan| plan.deadline.0))
    .bind(plan.and_then(|plan| plan.stop).map(|t| t.0))
    .bind(plan.map_or(0, |plan| i64::from(plan.collapsed)))
    .bind(plan.map_or(i64::from(MANUAL_ATTEMPTS), |plan| i64::from(plan.attempts)))
    .execute(tx)
    .await
    .map_err(failed("add a run"))?;
    Ok(inserted.rows_affected() == 1)
}

/// Writes what can change about a run.
///
/// # Errors
/// The database's own.
pub async fn update(tx: &mut Tx, run: &RunRow) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE runs SET state = $2, due_ms = $3, started_ms = $4, ended_ms = $5, attempts = $6, cancelled_by = $7,
                backup_id = $8, error = $9, policy_version = $10, deadline_ms = $11, stop_ms = $12, max_attempts = $13
         WHERE id = $1",
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
    .bind(run.plan.map_or(0, |plan| i64::from(plan.version)))
    .bind(run.plan.map(|plan| plan.deadline.0))
    .bind(run.plan.and_then(|plan| plan.stop).map(|t| t.0))
    .bind(run.plan.map_or(i64::from(MANUAL_ATTEMPTS), |plan| i64::from(plan.attempts)))
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

/// As [`lock`], without a look at it. On SQLite one transaction writes at a time, and there is nothing to do.
///
/// # Errors
/// The database's own.
pub async fn hold(tx: &mut Tx, id: RunId) -> Result<(), StoreError> {
    if Dialect::of(tx) == Dialect::Sqlite {
        return Ok(());
    }
    sqlx::query(locking(tx, "SELECT 1 FROM runs WHERE id = $1"))
        .bind(id.to_string())
        .fetch_optional(tx)
        .await
        .map(drop)
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

/// Runs that wait and are due, of agents whose session `coordinator` holds and of series on which nothing is under way, oldest
/// first, those after `after` (when it is due, and its id).
///
/// # Errors
/// The database's own.
pub async fn due(
    tx: &mut Tx,
    coordinator: CoordinatorId,
    now: UnixMillis,
    after: &(i64, String),
    limit: u32,
) -> Result<Vec<RunRow>, StoreError> {
    sqlx::query(
        "SELECT * FROM runs WHERE ended_ms IS NULL AND state IN ('queued', 'backoff') AND due_ms <= $1
            AND (due_ms > $3 OR (due_ms = $3 AND id > $4))
            AND EXISTS (SELECT 1 FROM agent_sessions
                WHERE agent_sessions.agent_id = runs.agent_id AND agent_sessions.coordinator_id = $5)
            AND NOT EXISTS (SELECT 1 FROM attempts WHERE attempts.series_id = runs.series_id AND attempts.ended_ms IS NULL)
         ORDER BY due_ms, id LIMIT $2",
    )
    .bind(now.0)
    .bind(i64::from(limit))
    .bind(after.0)
    .bind(&after.1)
    .bind(coordinator.to_string())
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

/// The run of a series that has not ended, where there is one.
///
/// # Errors
/// The database's own.
pub async fn open_of_series(tx: &mut Tx, series: SeriesId) -> Result<Vec<RunRow>, StoreError> {
    sqlx::query("SELECT * FROM runs WHERE series_id = $1 AND ended_ms IS NULL ORDER BY created_ms, id")
        .bind(series.to_string())
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed(READ))
}

/// Planned runs whose own start has come, at most `limit`.
///
/// # Errors
/// The database's own.
pub async fn to_queue(tx: &mut Tx, now: UnixMillis, limit: u32) -> Result<Vec<RunRow>, StoreError> {
    sqlx::query("SELECT * FROM runs WHERE state = 'scheduled' AND due_ms <= $1 ORDER BY due_ms, id LIMIT $2")
        .bind(now.0)
        .bind(i64::from(limit))
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("find runs whose start has come"))
}

/// Runs that wait although their window has ended, at most `limit`.
///
/// # Errors
/// The database's own.
pub async fn too_late(tx: &mut Tx, now: UnixMillis, limit: u32) -> Result<Vec<RunRow>, StoreError> {
    sqlx::query(
        "SELECT * FROM runs WHERE ended_ms IS NULL AND deadline_ms <= $1 AND state IN ('scheduled', 'queued', 'backoff')
         ORDER BY deadline_ms, id LIMIT $2",
    )
    .bind(now.0)
    .bind(i64::from(limit))
    .try_map(decode)
    .fetch_all(tx)
    .await
    .map_err(failed("find runs whose window has ended"))
}

/// Runs under way that their policy wants stopped by now, at most `limit`.
///
/// # Errors
/// The database's own.
pub async fn to_stop(tx: &mut Tx, now: UnixMillis, limit: u32) -> Result<Vec<RunRow>, StoreError> {
    sqlx::query(
        "SELECT * FROM runs WHERE ended_ms IS NULL AND deadline_ms IS NOT NULL AND stop_ms <= $1 AND state = 'active'
            AND cancelled_by IS NULL ORDER BY stop_ms, id LIMIT $2",
    )
    .bind(now.0)
    .bind(i64::from(limit))
    .try_map(decode)
    .fetch_all(tx)
    .await
    .map_err(failed("find runs that are to stop"))
}

/// Counts more instants on a run that was missed or skipped.
///
/// # Errors
/// The database's own.
pub async fn collapse(tx: &mut Tx, id: RunId, count: u32) -> Result<(), StoreError> {
    sqlx::query("UPDATE runs SET collapsed = collapsed + $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(i64::from(count))
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("count an instant on a run"))
}

/// Locks a site until the transaction ends, and counts the runs under way there.
///
/// # Errors
/// The database's own.
pub async fn lock_site(tx: &mut Tx, site: &str) -> Result<u32, StoreError> {
    sqlx::query(
        "INSERT INTO sites (name, claims) VALUES ($1, 1) ON CONFLICT (name) DO UPDATE SET claims = sites.claims + 1",
    )
    .bind(format!("store={site}"))
    .execute(&mut *tx)
    .await
    .map_err(failed("lock a site"))?;
    sqlx::query(
        "SELECT COUNT(*) AS active FROM runs WHERE ended_ms IS NULL AND state = 'active' AND site = $1",
    )
    .bind(site)
    .try_map(|row: Row| number(&row, "active"))
    .fetch_one(tx)
    .await
    .map_err(failed("count the runs of a site"))
}

/// How many runs of a policy are under way.
///
/// # Errors
/// The database's own.
pub async fn active_of_policy(tx: &mut Tx, policy: PolicyId) -> Result<u32, StoreError> {
    sqlx::query(
        "SELECT COUNT(*) AS active FROM runs WHERE ended_ms IS NULL AND state = 'active' AND policy_id = $1",
    )
    .bind(policy.to_string())
    .try_map(|row: Row| number(&row, "active"))
    .fetch_one(tx)
    .await
    .map_err(failed("count the runs of a policy"))
}

/// What recent backups of a host stored and how long each took, newest first, with their series.
///
/// # Errors
/// The database's own.
pub async fn measured(
    tx: &mut Tx,
    agent: AgentId,
    limit: u32,
) -> Result<Vec<(SeriesId, u64, i64)>, StoreError> {
    sqlx::query(
        "SELECT series_id, new_stored_bytes, committed_ms - created_ms AS took_ms FROM backups
         WHERE agent_id = $1 AND state = 'committed' ORDER BY committed_ms DESC LIMIT $2",
    )
    .bind(agent.to_string())
    .bind(i64::from(limit))
    .try_map(|row: Row| {
        Ok((text(&row, "series_id")?, number(&row, "new_stored_bytes")?, row.try_get("took_ms")?))
    })
    .fetch_all(tx)
    .await
    .map_err(failed("read how long backups took"))
}

/// Runs under way, counted by site and policy.
///
/// # Errors
/// The database's own.
pub async fn active_by_place(tx: &mut Tx) -> Result<Vec<(String, Option<String>, u32)>, StoreError> {
    sqlx::query(
        "SELECT site, policy_id, COUNT(*) AS active FROM runs WHERE ended_ms IS NULL AND state = 'active'
         GROUP BY site, policy_id",
    )
    .try_map(|row: Row| Ok((row.try_get("site")?, row.try_get("policy_id")?, number(&row, "active")?)))
    .fetch_all(tx)
    .await
    .map_err(failed("count the runs under way"))
}
