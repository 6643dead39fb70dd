//! What is in force for each source, and what its schedule waits for.

use std::collections::HashMap;

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, PolicyId, RunId, SeriesId};
use sealift_common::name::{Labels, Name};
use sqlx::Row as _;

use super::agents::AgentState;
use super::select::Select;
use super::{Row, StoreError, Tx, failed, json, locking, number, optional_text, text, time, to_json};
use crate::retention::rules::RetentionRules;

/// An instant that was missed by a host that has not been heard of since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// The newest.
    pub instant: UnixMillis,
    /// Until when it could have started.
    pub deadline: UnixMillis,
    /// The row that later instants are counted on.
    pub run: RunId,
}

/// What is in force for a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePolicyRow {
    /// The source, by where its backups go.
    pub series: SeriesId,
    /// Its host.
    pub agent: AgentId,
    /// Its policy and which version of it; `None`: under no policy.
    pub policy: Option<(PolicyId, u32)>,
    /// In which zone its schedule is meant.
    pub timezone: String,
    /// Since when it is under a policy.
    pub assigned: UnixMillis,
    /// How old its newest good backup may be, in milliseconds; 0: nothing is promised.
    pub promise_ms: i64,
    /// Since when the promise was seen to be broken.
    pub overdue_since: Option<UnixMillis>,
    /// The first instant that is not dealt with.
    pub next_due: Option<UnixMillis>,
    /// What was missed while its host is away.
    pub owed: Option<Owed>,
    /// The rules in force.
    pub retention: RetentionRules,
    /// Those that replace them, and from when on.
    pub retention_next: Option<(RetentionRules, UnixMillis)>,
}

fn decode(row: &Row) -> Result<SourcePolicyRow, sqlx::Error> {
    let policy: Option<PolicyId> = optional_text(row, "policy_id")?;
    let next: String = row.try_get("retention_next")?;
    let next_ms = time(row, "retention_next_ms")?;
    let owed_run: Option<RunId> = optional_text(row, "owed_run_id")?;
    Ok(SourcePolicyRow {
        series: text(row, "series_id")?,
        agent: text(row, "agent_id")?,
        policy: policy.map(|id| Ok::<_, sqlx::Error>((id, number(row, "policy_version")?))).transpose()?,
        timezone: row.try_get("timezone")?,
        assigned: UnixMillis(row.try_get("assigned_ms")?),
        promise_ms: row.try_get("promise_ms")?,
        overdue_since: time(row, "overdue_since_ms")?,
        next_due: time(row, "next_due_ms")?,
        owed: match (time(row, "owed_ms")?, time(row, "owed_deadline_ms")?, owed_run) {
            (Some(instant), Some(deadline), Some(run)) => Some(Owed { instant, deadline, run }),
            _ => None,
        },
        retention: json(row, "retention")?,
        retention_next: match (next.is_empty(), next_ms) {
            (false, Some(at)) => Some((json(row, "retention_next")?, at)),
            _ => None,
        },
    })
}

/// Adds a row or replaces it.
///
/// # Errors
/// The database's own.
pub async fn put(tx: &mut Tx, row: &SourcePolicyRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO source_policies (series_id, agent_id, policy_id, policy_version, timezone, assigned_ms, promise_ms,
                overdue_since_ms, next_due_ms, owed_ms, owed_deadline_ms, owed_run_id, retention, retention_next,
                retention_next_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
         ON CONFLICT (series_id) DO UPDATE SET agent_id = $2, policy_id = $3, policy_version = $4, timezone = $5,
            assigned_ms = $6, promise_ms = $7, overdue_since_ms = $8, next_due_ms = $9, owed_ms = $10,
            owed_deadline_ms = $11, owed_run_id = $12, retention = $13, retention_next = $14, retention_next_ms = $15",
    )
    .bind(row.series.to_string())
    .bind(row.agent.to_string())
    .bind(row.policy.map(|(id, _)| id.to_string()))
    .bind(row.policy.map_or(0, |(_, version)| i64::from(version)))
    .bind(&row.timezone)
    .bind(row.assigned.0)
    .bind(row.promise_ms)
    .bind(row.overdue_since.map(|t| t.0))
    .bind(row.next_due.map(|t| t.0))
    .bind(row.owed.map(|owed| owed.instant.0))
    .bind(row.owed.map(|owed| owed.deadline.0))
    .bind(row.owed.map(|owed| owed.run.to_string()))
    .bind(to_json(&row.retention))
    .bind(row.retention_next.map(|(rules, _)| to_json(&rules)).unwrap_or_default())
    .bind(row.retention_next.map(|(_, at)| at.0))
    .execute(tx)
    .await
    .map(drop)
    .map_err(failed("write what is in force for a source"))
}

/// What is in force for one source.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, series: SeriesId) -> Result<Option<SourcePolicyRow>, StoreError> {
    sqlx::query("SELECT * FROM source_policies WHERE series_id = $1")
        .bind(series.to_string())
        .try_map(|row: Row| decode(&row))
        .fetch_optional(tx)
        .await
        .map_err(failed("read what is in force for a source"))
}

/// What is in force for one source, locked until the transaction ends.
///
/// # Errors
/// The database's own.
pub async fn lock(tx: &mut Tx, series: SeriesId) -> Result<Option<SourcePolicyRow>, StoreError> {
    sqlx::query(locking(tx, "SELECT * FROM source_policies WHERE series_id = $1"))
        .bind(series.to_string())
        .try_map(|row: Row| decode(&row))
        .fetch_optional(tx)
        .await
        .map_err(failed("lock what is in force for a source"))
}

/// What is in force for these series.
///
/// # Errors
/// The database's own.
pub async fn of_series(
    tx: &mut Tx,
    series: &[SeriesId],
) -> Result<HashMap<SeriesId, SourcePolicyRow>, StoreError> {
    let mut out = HashMap::new();
    for some in series.chunks(500) {
        let ids = some.iter().map(ToString::to_string);
        let query = Select::new("SELECT * FROM source_policies WHERE series_id IN (").bind_all(ids).push(")");
        let rows = query.fetch(tx, "read what is in force for sources", |row: Row| decode(&row)).await?;
        out.extend(rows.into_iter().map(|row| (row.series, row)));
    }
    Ok(out)
}

/// What is in force for the sources of one host.
///
/// # Errors
/// The database's own.
pub async fn of_agent(tx: &mut Tx, agent: AgentId) -> Result<Vec<SourcePolicyRow>, StoreError> {
    sqlx::query("SELECT * FROM source_policies WHERE agent_id = $1")
        .bind(agent.to_string())
        .try_map(|row: Row| decode(&row))
        .fetch_all(tx)
        .await
        .map_err(failed("read what is in force for a host's sources"))
}

/// A source as policies see it, with what is in force for it so far.
#[derive(Debug, Clone)]
pub struct FleetRow {
    /// The host.
    pub agent: AgentId,
    /// Its name.
    pub agent_name: Name,
    /// What it may do.
    pub state: AgentState,
    /// Its labels.
    pub labels: Labels,
    /// Its zone.
    pub timezone: String,
    /// Where the source's backups go.
    pub series: SeriesId,
    /// The source's name.
    pub name: Name,
    /// Its kind.
    pub kind: String,
    /// Whether it is in the host's config.
    pub present: bool,
    /// In force so far.
    pub now: Option<SourcePolicyRow>,
}

/// All sources of all hosts, by the ids of their series, those after `after`.
///
/// # Errors
/// The database's own.
pub async fn fleet(tx: &mut Tx, after: &str, limit: u32) -> Result<Vec<FleetRow>, StoreError> {
    sqlx::query(
        "SELECT s.agent_id AS host_id, a.name AS agent_name, a.state AS agent_state, a.labels, a.timezone AS host_zone,
                s.series_id AS source_series, s.name AS source_name, s.kind,
                CASE WHEN s.present THEN 1 ELSE 0 END AS is_present, p.*
         FROM sources s JOIN agents a ON a.id = s.agent_id LEFT JOIN source_policies p ON p.series_id = s.series_id
         WHERE s.series_id > $1 ORDER BY s.series_id LIMIT $2",
    )
    .bind(after)
    .bind(i64::from(limit))
    .try_map(|row: Row| {
        let known: Option<String> = row.try_get("series_id")?;
        Ok(FleetRow {
            agent: text(&row, "host_id")?,
            agent_name: text(&row, "agent_name")?,
            state: text(&row, "agent_state")?,
            labels: json(&row, "labels")?,
            timezone: row.try_get("host_zone")?,
            series: text(&row, "source_series")?,
            name: text(&row, "source_name")?,
            kind: row.try_get("kind")?,
            present: number::<i64>(&row, "is_present")? != 0,
            now: known.map(|_| decode(&row)).transpose()?,
        })
    })
    .fetch_all(tx)
    .await
    .map_err(failed("read the fleet's sources"))
}

/// A source whose schedule wants something, with its host.
#[derive(Debug, Clone)]
pub struct WaitingRow {
    /// What is in force.
    pub row: SourcePolicyRow,
    /// The source's name.
    pub source: Name,
    /// The host's labels.
    pub labels: Labels,
    /// When the host was last heard of.
    pub last_seen: UnixMillis,
    /// Whether a run of the source has not ended.
    pub open_run: bool,
}

macro_rules! waiting {
    ($rest:literal) => {
        concat!(
            "SELECT p.*, s.name AS source_name, a.labels, a.last_seen_ms,
                (SELECT COUNT(*) FROM runs r WHERE r.series_id = p.series_id AND r.ended_ms IS NULL) AS open_runs
             FROM source_policies p JOIN sources s ON s.series_id = p.series_id JOIN agents a ON a.id = p.agent_id ",
            $rest
        )
    };
}

fn decode_waiting(row: Row) -> Result<WaitingRow, sqlx::Error> {
    Ok(WaitingRow {
        row: decode(&row)?,
        source: text(&row, "source_name")?,
        labels: json(&row, "labels")?,
        last_seen: UnixMillis(row.try_get("last_seen_ms")?),
        open_run: number::<i64>(&row, "open_runs")? > 0,
    })
}

/// Sources whose schedule has come due, longest ago first.
///
/// # Errors
/// The database's own.
pub async fn due(tx: &mut Tx, now: UnixMillis, limit: u32) -> Result<Vec<WaitingRow>, StoreError> {
    sqlx::query(waiting!("WHERE p.next_due_ms <= $1 ORDER BY p.next_due_ms, p.series_id LIMIT $2"))
        .bind(now.0)
        .bind(i64::from(limit))
        .try_map(decode_waiting)
        .fetch_all(tx)
        .await
        .map_err(failed("find schedules that are due"))
}

/// Sources that missed a run and whose hosts were heard of since `seen`.
///
/// # Errors
/// The database's own.
pub async fn returned(tx: &mut Tx, seen: UnixMillis, limit: u32) -> Result<Vec<WaitingRow>, StoreError> {
    sqlx::query(waiting!(
        "WHERE p.owed_ms IS NOT NULL AND p.next_due_ms IS NOT NULL AND a.last_seen_ms >= $1
         ORDER BY p.owed_ms, p.series_id LIMIT $2"
    ))
    .bind(seen.0)
    .bind(i64::from(limit))
    .try_map(decode_waiting)
    .fetch_all(tx)
    .await
    .map_err(failed("find hosts that have returned"))
}

/// Takes an instant for oneself: moves the schedule on from `before`. `false` where somebody else has.
///
/// # Errors
/// The database's own.
pub async fn take_instant(
    tx: &mut Tx,
    series: SeriesId,
    before: UnixMillis,
    next: UnixMillis,
) -> Result<bool, StoreError> {
    sqlx::query("UPDATE source_policies SET next_due_ms = $3 WHERE series_id = $1 AND next_due_ms = $2")
        .bind(series.to_string())
        .bind(before.0)
        .bind(next.0)
        .execute(tx)
        .await
        .map(|done| done.rows_affected() == 1)
        .map_err(failed("take an instant"))
}

/// Writes what is owed. `false` where it was changed from `before` by somebody else.
///
/// # Errors
/// The database's own.
pub async fn set_owed(
    tx: &mut Tx,
    series: SeriesId,
    before: Option<UnixMillis>,
    owed: Option<Owed>,
) -> Result<bool, StoreError> {
    sqlx::query(
        "UPDATE source_policies SET owed_ms = $3, owed_deadline_ms = $4, owed_run_id = $5
         WHERE series_id = $1 AND COALESCE(owed_ms, -1) = $2",
    )
    .bind(series.to_string())
    .bind(before.map_or(-1, |t| t.0))
    .bind(owed.map(|owed| owed.instant.0))
    .bind(owed.map(|owed| owed.deadline.0))
    .bind(owed.map(|owed| owed.run.to_string()))
    .execute(tx)
    .await
    .map(|done| done.rows_affected() == 1)
    .map_err(failed("write what is owed"))
}

/// Writes since when a promise is broken, or that it is kept again. `false` where that was known.
///
/// # Errors
/// The database's own.
pub async fn set_overdue(
    tx: &mut Tx,
    series: SeriesId,
    since: Option<UnixMillis>,
) -> Result<bool, StoreError> {
    sqlx::query(
        "UPDATE source_policies SET overdue_since_ms = $2
         WHERE series_id = $1 AND ((overdue_since_ms IS NULL AND $3 = 1) OR (overdue_since_ms IS NOT NULL AND $3 = 0))",
    )
    .bind(series.to_string())
    .bind(since.map(|t| t.0))
    .bind(i64::from(since.is_some()))
    .execute(tx)
    .await
    .map(|done| done.rows_affected() == 1)
    .map_err(failed("write that a source is overdue"))
}

/// A promise, and what it is to be measured by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromiseRow {
    /// The source.
    pub series: SeriesId,
    /// Its host's name.
    pub agent_name: Name,
    /// Its name.
    pub source: Name,
    /// How old the newest good backup may be, in milliseconds.
    pub promise_ms: i64,
    /// When the newest good backup was begun.
    pub last_good: Option<UnixMillis>,
    /// Since when it is under a policy.
    pub assigned: UnixMillis,
    /// Since when the promise was seen to be broken.
    pub overdue_since: Option<UnixMillis>,
}

/// Sources whose promise is broken at `now`, or was and is kept again: those whose state changes where `changed` is set, else
/// those that are overdue.
///
/// # Errors
/// The database's own.
pub async fn overdue(
    tx: &mut Tx,
    now: UnixMillis,
    changed: bool,
    limit: u32,
) -> Result<Vec<PromiseRow>, StoreError> {
    sqlx::query(
        "SELECT * FROM (
            SELECT p.series_id, a.name AS agent_name, s.name AS source_name, p.promise_ms, p.assigned_ms, p.overdue_since_ms,
                   t.good_backup_ms AS good_ms
            FROM source_policies p JOIN sources s ON s.series_id = p.series_id JOIN agents a ON a.id = p.agent_id
            LEFT JOIN series_totals t ON t.series_id = p.series_id
            WHERE p.promise_ms > 0 AND p.policy_id IS NOT NULL AND s.present AND a.state = 'active') AS promises
         WHERE CASE WHEN $2 = 0 THEN COALESCE(good_ms, assigned_ms) + promise_ms < $1
                    WHEN overdue_since_ms IS NULL THEN COALESCE(good_ms, assigned_ms) + promise_ms < $1
                    ELSE COALESCE(good_ms, assigned_ms) + promise_ms >= $1 END
         ORDER BY agent_name, source_name LIMIT $3",
    )
    .bind(now.0)
    .bind(i64::from(changed))
    .bind(i64::from(limit))
    .try_map(|row: Row| {
        Ok(PromiseRow {
            series: text(&row, "series_id")?,
            agent_name: text(&row, "agent_name")?,
            source: text(&row, "source_name")?,
            promise_ms: row.try_get("promise_ms")?,
            last_good: time(&row, "good_ms")?,
            assigned: UnixMillis(row.try_get("assigned_ms")?),
            overdue_since: time(&row, "overdue_since_ms")?,
        })
    })
    .fetch_all(tx)
    .await
    .map_err(failed("find sources that are overdue"))
}

/// How many sources are under no policy, and how many are overdue at `now`.
///
/// # Errors
/// The database's own.
pub async fn counts(tx: &mut Tx, now: UnixMillis) -> Result<(u32, u32), StoreError> {
    sqlx::query(
        "SELECT (SELECT COUNT(*) FROM sources s JOIN agents a ON a.id = s.agent_id
                 LEFT JOIN source_policies p ON p.series_id = s.series_id
                 WHERE s.present AND a.state = 'active' AND p.policy_id IS NULL) AS bare,
                (SELECT COUNT(*) FROM source_policies p JOIN sources s ON s.series_id = p.series_id
                 JOIN agents a ON a.id = p.agent_id LEFT JOIN series_totals t ON t.series_id = p.series_id
                 WHERE p.promise_ms > 0 AND p.policy_id IS NOT NULL AND s.present AND a.state = 'active'
                   AND COALESCE(t.good_backup_ms, p.assigned_ms) + p.promise_ms < $1) AS late",
    )
    .bind(now.0)
    .try_map(|row: Row| Ok((number(&row, "bare")?, number(&row, "late")?)))
    .fetch_one(tx)
    .await
    .map_err(failed("count promises"))
}

/// Sources under no policy, at most `limit`: host and source.
///
/// # Errors
/// The database's own.
pub async fn without_policy(tx: &mut Tx, limit: u32) -> Result<Vec<(Name, Name)>, StoreError> {
    sqlx::query(
        "SELECT a.name AS agent_name, s.name AS source_name FROM sources s JOIN agents a ON a.id = s.agent_id
         LEFT JOIN source_policies p ON p.series_id = s.series_id
         WHERE s.present AND a.state = 'active' AND p.policy_id IS NULL ORDER BY a.name, s.name LIMIT $1",
    )
    .bind(i64::from(limit))
    .try_map(|row: Row| Ok((text(&row, "agent_name")?, text(&row, "source_name")?)))
    .fetch_all(tx)
    .await
    .map_err(failed("find sources under no policy"))
}

/// How many sources a policy is in force for.
///
/// # Errors
/// The database's own.
pub async fn count_of_policy(tx: &mut Tx, policy: PolicyId) -> Result<u32, StoreError> {
    sqlx::query("SELECT COUNT(*) AS sources FROM source_policies WHERE policy_id = $1")
        .bind(policy.to_string())
        .try_map(|row: Row| number(&row, "sources"))
        .fetch_one(tx)
        .await
        .map_err(failed("count the sources of a policy"))
}
