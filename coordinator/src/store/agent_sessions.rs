//! Which coordinator holds the session of which agent. The newest session of an agent wins, on whatever coordinator.

use std::collections::HashMap;

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, CoordinatorId};
use sqlx::Row as _;

use super::{Row, StoreError, Tx, as_i64, failed, locking, number, text};

/// A session that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Counts the sessions of the agent.
    pub epoch: u64,
    /// The coordinator that held the session before, where that has not ended.
    pub before: Option<CoordinatorId>,
}

fn holder(row: &Row) -> Result<Option<CoordinatorId>, sqlx::Error> {
    let cell: String = row.try_get("coordinator_id")?;
    if cell.is_empty() { Ok(None) } else { text(row, "coordinator_id").map(Some) }
}

/// Records that an agent opened a session with `coordinator`.
///
/// # Errors
/// The database's own.
pub async fn open(
    tx: &mut Tx,
    agent: AgentId,
    coordinator: CoordinatorId,
    now: UnixMillis,
) -> Result<Opened, StoreError> {
    let before = sqlx::query(locking(tx, "SELECT coordinator_id FROM agent_sessions WHERE agent_id = $1"))
        .bind(agent.to_string())
        .try_map(|row: Row| holder(&row))
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("find an agent's session"))?;
    let epoch = sqlx::query(
        "INSERT INTO agent_sessions (agent_id, epoch, coordinator_id, changed_ms) VALUES ($1, 1, $2, $3)
         ON CONFLICT (agent_id) DO UPDATE SET epoch = agent_sessions.epoch + 1, coordinator_id = $2, changed_ms = $3
         RETURNING epoch",
    )
    .bind(agent.to_string())
    .bind(coordinator.to_string())
    .bind(now.0)
    .try_map(|row: Row| number(&row, "epoch"))
    .fetch_one(tx)
    .await
    .map_err(failed("record an agent's session"))?;
    Ok(Opened { epoch, before: before.flatten() })
}

/// Records that a session ended, unless a newer one has taken its place.
///
/// # Errors
/// The database's own.
pub async fn close(tx: &mut Tx, agent: AgentId, epoch: u64, now: UnixMillis) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE agent_sessions SET coordinator_id = '', changed_ms = $3 WHERE agent_id = $1 AND epoch = $2",
    )
    .bind(agent.to_string())
    .bind(as_i64(epoch))
    .bind(now.0)
    .execute(tx)
    .await
    .map(drop)
    .map_err(failed("record the end of a session"))
}

/// Records that a session goes on which was taken for ended, unless a newer one has taken its place.
///
/// # Errors
/// The database's own.
pub async fn reopen(
    tx: &mut Tx,
    agent: AgentId,
    epoch: u64,
    coordinator: CoordinatorId,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE agent_sessions SET coordinator_id = $3 WHERE agent_id = $1 AND epoch = $2 AND coordinator_id IN ('', $3)",
    )
    .bind(agent.to_string())
    .bind(as_i64(epoch))
    .bind(coordinator.to_string())
    .execute(tx)
    .await
    .map_err(failed("record that a session goes on"))?;
    Ok(done.rows_affected() > 0)
}

/// The coordinator that holds an agent's session, if it has one.
///
/// # Errors
/// The database's own.
pub async fn holder_of(tx: &mut Tx, agent: AgentId) -> Result<Option<CoordinatorId>, StoreError> {
    let found = sqlx::query("SELECT coordinator_id FROM agent_sessions WHERE agent_id = $1")
        .bind(agent.to_string())
        .try_map(|row: Row| holder(&row))
        .fetch_optional(tx)
        .await
        .map_err(failed("find an agent's session"))?;
    Ok(found.flatten())
}

/// One session that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRow {
    /// Counts the sessions of the agent.
    pub epoch: u64,
    /// Who holds it.
    pub coordinator: CoordinatorId,
    /// When it was opened.
    pub changed: UnixMillis,
}

/// Every session that has not ended.
///
/// # Errors
/// The database's own.
pub async fn all_open(tx: &mut Tx) -> Result<HashMap<AgentId, SessionRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM agent_sessions WHERE coordinator_id <> ''")
        .try_map(|row: Row| {
            let session = SessionRow {
                epoch: number(&row, "epoch")?,
                coordinator: text(&row, "coordinator_id")?,
                changed: UnixMillis(row.try_get("changed_ms")?),
            };
            Ok((text(&row, "agent_id")?, session))
        })
        .fetch_all(tx)
        .await
        .map_err(failed("read who is connected"))?;
    Ok(rows.into_iter().collect())
}

/// Records that all sessions of a coordinator ended.
///
/// # Errors
/// The database's own.
pub async fn close_all_of(
    tx: &mut Tx,
    coordinator: CoordinatorId,
    now: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE agent_sessions SET coordinator_id = '', changed_ms = $2 WHERE coordinator_id = $1")
        .bind(coordinator.to_string())
        .bind(now.0)
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("record the end of a coordinator's sessions"))
}
