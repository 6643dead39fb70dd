//! Agents: hosts that have enrolled.

use std::fmt;
use std::str::FromStr;

use sealift_common::clock::UnixMillis;
use sealift_common::crypto::VerifyingKey;
use sealift_common::id::{AgentId, SeriesId, Sha256};
use sealift_common::name::{Labels, Name};
use sealift_common::protocol::{Currency, Feature, Features, Spoken, Version};
use sealift_common::selector::Selector;
use sqlx::{AssertSqlSafe, Row as _};

use super::dialect::pairs;
use super::select::Select;
use super::{Row, StoreError, Tx, bytes, failed, json, locking, number, optional_text, text, time};

/// Ids asked for in one query.
const IDS_PER_QUERY: usize = 500;

/// What an agent may do. Whether it is silent is not stored: that is `active` without a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// Asked for a name that another has: may do nothing until an admin approves it.
    Pending,
    /// May do what agents do.
    Active,
    /// Gone for good, in peace: refused like a revoked one, and not missed.
    Retired,
    /// Never again: its certificates and its signing key are refused.
    Revoked,
}

impl AgentState {
    /// The state's name in the database and to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Retired => "retired",
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
            "pending" => Ok(Self::Pending),
            "active" => Ok(Self::Active),
            "retired" => Ok(Self::Retired),
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

/// What the build on a host speaks, as it said last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaidProtocol {
    /// The newest version; `None` before the first Hello.
    pub newest: Option<Version>,
    /// What it can do, of what this coordinator knows.
    pub features: Features,
    /// Since when it is not served, where it is too old.
    pub refused: Option<UnixMillis>,
}

impl SaidProtocol {
    /// Whether it can do this, as far as is known.
    pub fn may_do(&self, feature: Feature) -> bool {
        self.newest.is_none() || self.features.has(feature)
    }

    /// Whether it is as good as this coordinator's; `None` while that is not known.
    pub fn currency(&self, here: &Spoken) -> Option<Currency> {
        match self.refused {
            Some(_) => Some(Currency::TooOld),
            None => self.newest.map(|newest| here.currency(newest, self.features)),
        }
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
    /// What a pending one wants to be called.
    pub wanted_name: String,
    /// Backups of a retired one stay until then.
    pub keep_until: Option<UnixMillis>,
    /// Its clock less the coordinator's, when it connected last.
    pub clock_skew_ms: i64,
    /// How often its host was replaced; certificates of earlier hosts are refused.
    pub key_epoch: u32,
    /// What its build speaks.
    pub protocol: SaidProtocol,
}

pub(super) fn decode_protocol(row: &Row) -> Result<SaidProtocol, sqlx::Error> {
    let features: String = row.try_get("features")?;
    Ok(SaidProtocol {
        newest: optional_text(row, "protocol")?,
        features: Features::known(features.split(' ')),
        refused: time(row, "upgrade_required_ms")?,
    })
}

pub(super) fn decode(row: Row) -> Result<AgentRow, sqlx::Error> {
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
        wanted_name: row.try_get("wanted_name")?,
        keep_until: time(&row, "keep_until_ms")?,
        clock_skew_ms: row.try_get("clock_skew_ms")?,
        key_epoch: number(&row, "key_epoch")?,
        protocol: decode_protocol(&row)?,
    })
}

/// Adds an agent.
///
/// # Errors
/// The database's own; also where its name or id is taken.
pub async fn insert(tx: &mut Tx, agent: &AgentRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO agents (id, name, state, state_reason, labels, scope, signing_key, key_object, tls_key_sha256,
                             token_id, version, os, timezone, address, enrolled_ms, last_seen_ms, certificate_expires_ms,
                             wanted_name)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
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
    .bind(&agent.wanted_name)
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
                timezone = $8, address = $9, last_seen_ms = $10, certificate_expires_ms = $11, wanted_name = $12,
                keep_until_ms = $13, clock_skew_ms = $14, protocol = $15, features = $16, upgrade_required_ms = $17
         WHERE id = $1",
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
    .bind(&agent.wanted_name)
    .bind(agent.keep_until.map(|t| t.0))
    .bind(agent.clock_skew_ms)
    .bind(agent.protocol.newest.map(|version| version.to_string()))
    .bind(agent.protocol.features.to_string())
    .bind(agent.protocol.refused.map(|t| t.0))
    .execute(tx)
    .await
    .map_err(failed("update an agent"))?;
    Ok(())
}

/// Gives an agent another name.
///
/// # Errors
/// The database's own; also where the name is taken.
pub async fn rename(tx: &mut Tx, id: AgentId, name: &Name) -> Result<(), StoreError> {
    sqlx::query("UPDATE agents SET name = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(name.as_str())
        .execute(tx)
        .await
        .map_err(failed("rename an agent"))?;
    Ok(())
}

/// Gives an agent the keys of its new host, and counts it: those of the old one are not good any more.
///
/// # Errors
/// The database's own.
pub async fn replace_host(tx: &mut Tx, agent: &AgentRow) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE agents SET signing_key = $2, key_object = $3, token_id = $4, enrolled_ms = $5, key_epoch = $6
         WHERE id = $1",
    )
    .bind(agent.id.to_string())
    .bind(agent.signing_key.to_vec())
    .bind(&agent.key_object)
    .bind(&agent.token_id)
    .bind(agent.enrolled.0)
    .bind(i64::from(agent.key_epoch))
    .execute(tx)
    .await
    .map_err(failed("replace an agent's host"))?;
    Ok(())
}

/// Records when agents were last heard of; all of them in one statement.
///
/// # Errors
/// The database's own.
pub async fn seen(tx: &mut Tx, heard: &[(AgentId, UnixMillis)]) -> Result<(), StoreError> {
    if heard.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "WITH heard (id, at_ms) AS (VALUES {}) UPDATE agents SET last_seen_ms = heard.at_ms FROM heard
         WHERE agents.id = heard.id AND agents.last_seen_ms < heard.at_ms",
        pairs(heard.len())
    );
    let query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
    let query = heard.iter().fold(query, |query, (agent, at)| query.bind(agent.to_string()).bind(at.0));
    query.execute(tx).await.map(drop).map_err(failed("record that agents were seen"))
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

/// The agent whose series this is.
///
/// # Errors
/// The database's own.
pub async fn of_series(tx: &mut Tx, series: SeriesId) -> Result<Option<AgentRow>, StoreError> {
    sqlx::query("SELECT a.* FROM agents a JOIN series s ON s.agent_id = a.id WHERE s.id = $1")
        .bind(series.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read whose series this is"))
}

/// What an agent may do, and which of its hosts is the present one; `None` for one that never enrolled.
///
/// # Errors
/// The database's own.
pub async fn standing(tx: &mut Tx, id: AgentId) -> Result<Option<(AgentState, u32)>, StoreError> {
    sqlx::query("SELECT state, key_epoch FROM agents WHERE id = $1")
        .bind(id.to_string())
        .try_map(|row: Row| Ok((text(&row, "state")?, number(&row, "key_epoch")?)))
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

/// The agents with these ids, in no order.
///
/// # Errors
/// The database's own.
pub async fn of_ids(tx: &mut Tx, ids: &[AgentId]) -> Result<Vec<AgentRow>, StoreError> {
    let mut out = Vec::with_capacity(ids.len());
    for some in ids.chunks(IDS_PER_QUERY) {
        let query = Select::new("SELECT a.* FROM agents a WHERE a.id IN (")
            .bind_all(some.iter().map(ToString::to_string));
        out.extend(query.push(")").fetch(tx, "read agents", decode).await?);
    }
    Ok(out)
}

/// Agents with such labels, by name, those after `after`.
///
/// # Errors
/// The database's own.
pub async fn selected(
    tx: &mut Tx,
    selector: &Selector,
    after: &str,
    limit: u32,
) -> Result<Vec<AgentRow>, StoreError> {
    Select::new("SELECT a.* FROM agents a WHERE a.name > ")
        .bind(after)
        .and_selected("a.id", selector)
        .push(" ORDER BY a.name LIMIT ")
        .bind(limit)
        .fetch(tx, "select agents", decode)
        .await
}
