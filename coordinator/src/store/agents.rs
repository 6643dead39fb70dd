//! Agents: hosts that have enrolled.

use std::fmt;
use std::str::FromStr;

use sealift_common::clock::UnixMillis;
use sealift_common::crypto::VerifyingKey;
use sealift_common::id::{AgentId, Sha256};
use sealift_common::name::{Labels, Name};
use sqlx::Row as _;

use super::{Row, StoreError, Tx, bytes, failed, json, locking, text};

/// What an agent may do. Whether it is silent is not stored: that is `active` without a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// May do what agents do.
    Active,
    /// Never again: its certificates and its signing key are refused.
    Revoked,
}

impl AgentState {
    /// The state's name in the database and to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Revoked => "revoked",
        }
    }
}

/// A state's name that nobody knows.
#[derive(Debug, thiserror::Error)]
#[error("there is no agent state {0:?}")]
pub struct UnknownAgentState(String);

impl FromStr for AgentState {
    type Err = UnknownAgentState;
    fn from_str(text: &str) -> Result<Self, UnknownAgentState> {
        match text {
            "active" => Ok(Self::Active),
            "revoked" => Ok(Self::Revoked),
            other => Err(UnknownAgentState(other.to_owned())),
        }
    }
}

impl fmt::Display for AgentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    /// Its id, which the host chose.
    pub id: AgentId,
    /// Its name, which is unique.
    pub name: Name,
    /// What it may do.
    pub state: AgentState,
    /// Why it may not.
    pub state_reason: String,
    /// From its token and from admins.
    pub labels: Labels,
    /// Which rule of the trust policy its series fall under.
    pub scope: String,
    /// What it signs manifests with.
    pub signing_key: VerifyingKey,
    /// The `agents/` object of that key.
    pub key_object: Vec<u8>,
    /// Of the public key of its newest certificate.
    pub tls_key_sha256: Sha256,
    /// The token it enrolled with.
    pub token_id: String,
    /// Its version, as it says.
    pub version: String,
    /// Its operating system, as it says.
    pub os: String,
    /// Its time zone, as it says.
    pub timezone: String,
    /// From where it was last seen.
    pub address: String,
    /// When it enrolled.
    pub enrolled: UnixMillis,
    /// When it was last seen.
    pub last_seen: UnixMillis,
    /// Until when its newest certificate is good.
    pub certificate_expires: UnixMillis,
}

fn decode(row: Row) -> Result<AgentRow, sqlx::Error> {
    Ok(AgentRow {
        id: text(&row, "id")?,
        name: text(&row, "name")?,
        state: text(&row, "state")?,
        state_reason: row.try_get("state_reason")?,
        labels: json(&row, "labels")?,
        scope: row.try_get("scope")?,
        signing_key: bytes(&row, "signing_key")?,
        key_object: row.try_get("key_object")?,
        tls_key_sha256: bytes(&row, "tls_key_sha256")?,
        token_id: row.try_get("token_id")?,
        version: row.try_get("version")?,
        os: row.try_get("os")?,
        timezone: row.try_get("timezone")?,
        address: row.try_get("address")?,
        enrolled: UnixMillis(row.try_get("enrolled_ms")?),
        last_seen: UnixMillis(row.try_get("last_seen_ms")?),
        certificate_expires: UnixMillis(row.try_get("certificate_expires_ms")?),
    })
}

/// Adds an agent.
///
/// # Errors
/// The database's own; also where its name or id is taken.
pub async fn insert(tx: &mut Tx, agent: &AgentRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO agents (id, name, state, state_reason, labels, scope, signing_key, key_object, tls_key_sha256,
                             token_id, version, os, timezone, address, enrolled_ms, last_seen_ms, certificate_expires_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
    )
    .bind(agent.id.to_string())
    .bind(agent.name.as_str())
    .bind(agent.state.as_str())
    .bind(&agent.state_reason)
    .bind(super::to_json(&agent.labels))
    .bind(&agent.scope)
    .bind(agent.signing_key.to_vec())
    .bind(&agent.key_object)
    .bind(agent.tls_key_sha256.to_vec())
    .bind(&agent.token_id)
    .bind(&agent.version)
    .bind(&agent.os)
    .bind(&agent.timezone)
    .bind(&agent.address)
    .bind(agent.enrolled.0)
    .bind(agent.last_seen.0)
    .bind(agent.certificate_expires.0)
    .execute(tx)
    .await
    .map_err(failed("add an agent"))?;
    Ok(())
}

/// Writes what can change about an agent.
///
/// # Errors
/// The database's own.
pub async fn update(tx: &mut Tx, agent: &AgentRow) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE agents SET state = $2, state_reason = $3, labels = $4, tls_key_sha256 = $5, version = $6, os = $7,
                timezone = $8, address = $9, last_seen_ms = $10, certificate_expires_ms = $11 WHERE id = $1",
    )
    .bind(agent.id.to_string())
    .bind(agent.state.as_str())
    .bind(&agent.state_reason)
    .bind(super::to_json(&agent.labels))
    .bind(agent.tls_key_sha256.to_vec())
    .bind(&agent.version)
    .bind(&agent.os)
    .bind(&agent.timezone)
    .bind(&agent.address)
    .bind(agent.last_seen.0)
    .bind(agent.certificate_expires.0)
    .execute(tx)
    .await
    .map_err(failed("update an agent"))?;
    Ok(())
}

/// Records when an agent was last heard of.
///
/// # Errors
/// The database's own.
pub async fn seen(tx: &mut Tx, id: AgentId, at: UnixMillis) -> Result<(), StoreError> {
    sqlx::query("UPDATE agents SET last_seen_ms = $2 WHERE id = $1 AND last_seen_ms < $2")
        .bind(id.to_string())
        .bind(at.0)
        .execute(tx)
        .await
        .map_err(failed("record that an agent was seen"))?;
    Ok(())
}

/// The agent with this id.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, id: AgentId) -> Result<Option<AgentRow>, StoreError> {
    sqlx::query("SELECT * FROM agents WHERE id = $1")
        .bind(id.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read an agent"))
}

/// The agent with this id, locked until the transaction ends: for every change of it.
///
/// # Errors
/// The database's own.
pub async fn lock(tx: &mut Tx, id: AgentId) -> Result<Option<AgentRow>, StoreError> {
    sqlx::query(locking(tx, "SELECT * FROM agents WHERE id = $1"))
        .bind(id.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read an agent"))
}

/// What an agent may do; `None` for one that never enrolled.
///
/// # Errors
/// The database's own.
pub async fn state(tx: &mut Tx, id: AgentId) -> Result<Option<AgentState>, StoreError> {
    sqlx::query("SELECT state FROM agents WHERE id = $1")
        .bind(id.to_string())
        .try_map(|row: Row| text(&row, "state"))
        .fetch_optional(tx)
        .await
        .map_err(failed("read an agent's state"))
}

/// The agent with this name.
///
/// # Errors
/// The database's own.
pub async fn by_name(tx: &mut Tx, name: &str) -> Result<Option<AgentRow>, StoreError> {
    sqlx::query("SELECT * FROM agents WHERE name = $1")
        .bind(name)
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read an agent"))
}

/// At most two agents whose ids start with `prefix`: one is unambiguous.
///
/// # Errors
/// The database's own.
pub async fn by_prefix(tx: &mut Tx, prefix: &str) -> Result<Vec<AgentRow>, StoreError> {
    sqlx::query("SELECT * FROM agents WHERE id >= $1 AND id < $2 ORDER BY id LIMIT 2")
        .bind(prefix)
        .bind(format!("{prefix}~"))
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("read an agent"))
}

/// Agents by name, those after `after`.
///
/// # Errors
/// The database's own.
pub async fn list(tx: &mut Tx, after: &str, limit: u32) -> Result<Vec<AgentRow>, StoreError> {
    sqlx::query("SELECT * FROM agents WHERE name > $1 ORDER BY name LIMIT $2")
        .bind(after)
        .bind(i64::from(limit))
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("list agents"))
}
