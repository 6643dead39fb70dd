//! Enrolment tokens. Of a token's secret only the hash is here.

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, Sha256};
use sealift_common::name::Labels;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, bytes, failed, flag, json, locking, number};

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its public part.
    pub id: String,
    /// Of its secret part.
    pub secret_sha256: Sha256,
    /// What the agents that use it are labelled with.
    pub labels: Labels,
    /// Which rule of the trust policy they fall under.
    pub scope: String,
    /// What the agent will be called; empty: the host names itself.
    pub name: String,
    /// When it was made.
    pub created: UnixMillis,
    /// Until when it is good.
    pub expires: UnixMillis,
    /// How many agents it may enrol.
    pub uses: u32,
    /// How many it has enrolled.
    pub used: u32,
    /// Whether it was taken back.
    pub revoked: bool,
    /// Who made it.
    pub created_by: String,
    /// The agent whose host is replaced.
    pub replaces: Option<AgentId>,
}

fn decode(row: Row) -> Result<TokenRow, sqlx::Error> {
    Ok(TokenRow {
        id: row.try_get("id")?,
        secret_sha256: bytes(&row, "secret_sha256")?,
        labels: json(&row, "labels")?,
        scope: row.try_get("scope")?,
        name: row.try_get("name")?,
        created: UnixMillis(row.try_get("created_ms")?),
        expires: UnixMillis(row.try_get("expires_ms")?),
        uses: number(&row, "uses")?,
        used: number(&row, "used")?,
        revoked: flag(&row, "revoked")?,
        created_by: row.try_get("created_by")?,
        replaces: Some(row.try_get::<String, _>("replaces")?)
            .filter(|id| !id.is_empty())
            .map(|id| id.parse())
            .transpose()
            .map_err(|e: sealift_common::id::InvalidId| sqlx::Error::Decode(e.into()))?,
    })
}

/// Adds a token.
///
/// # Errors
/// The database's own.
pub async fn insert(tx: &mut Tx, token: &TokenRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tokens (id, secret_sha256, labels, scope, name, created_ms, expires_ms, uses, used, revoked, created_by,
                             replaces)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(&token.id)
    .bind(token.secret_sha256.to_vec())
    .bind(super::to_json(&token.labels))
    .bind(&token.scope)
    .bind(&token.name)
    .bind(token.created.0)
    .bind(token.expires.0)
    .bind(i64::from(token.uses))
    .bind(i64::from(token.used))
    .bind(token.revoked)
    .bind(&token.created_by)
    .bind(token.replaces.map(|id| id.to_string()).unwrap_or_default())
    .execute(tx)
    .await
    .map_err(failed("add a token"))?;
    Ok(())
}

/// Writes what can change about a token.
///
/// # Errors
/// The database's own.
pub async fn update(tx: &mut Tx, token: &TokenRow) -> Result<(), StoreError> {
    sqlx::query("UPDATE tokens SET used = $2, revoked = $3 WHERE id = $1")
        .bind(&token.id)
        .bind(i64::from(token.used))
        .bind(token.revoked)
        .execute(tx)
        .await
        .map_err(failed("update a token"))?;
    Ok(())
}

/// Takes one use of a token; `false` where none is left, whoever else asks in the same moment.
///
/// # Errors
/// The database's own.
pub async fn claim(tx: &mut Tx, id: &str) -> Result<bool, StoreError> {
    let claimed =
        sqlx::query("UPDATE tokens SET used = used + 1 WHERE id = $1 AND used < uses AND NOT revoked")
            .bind(id)
            .execute(tx)
            .await
            .map_err(failed("use a token"))?;
    Ok(claimed.rows_affected() > 0)
}

/// The token with this id.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, id: &str) -> Result<Option<TokenRow>, StoreError> {
    sqlx::query("SELECT * FROM tokens WHERE id = $1")
        .bind(id)
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read a token"))
}

/// The token with this id, locked until the transaction ends: for counting its uses, and for changing it.
///
/// # Errors
/// The database's own.
pub async fn lock(tx: &mut Tx, id: &str) -> Result<Option<TokenRow>, StoreError> {
    sqlx::query(locking(tx, "SELECT * FROM tokens WHERE id = $1"))
        .bind(id)
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read a token"))
}

/// Tokens by id, those after `after`.
///
/// # Errors
/// The database's own.
pub async fn list(tx: &mut Tx, after: &str, limit: u32) -> Result<Vec<TokenRow>, StoreError> {
    sqlx::query("SELECT * FROM tokens WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(after)
        .bind(i64::from(limit))
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("list tokens"))
}
