//! Policies and their versions.

use sealift_common::clock::UnixMillis;
use sealift_common::id::PolicyId;
use sealift_common::name::Name;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, failed, number, text, time};

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRow {
    /// Its id.
    pub id: PolicyId,
    /// What people call it.
    pub name: Name,
    /// In force; 0 while there is none.
    pub version: u32,
    /// Tried out; 0 for none.
    pub canary_version: u32,
    /// The selector of the hosts that it is tried out on.
    pub canary: String,
    /// When it was made.
    pub created: UnixMillis,
    /// When it was deleted.
    pub deleted: Option<UnixMillis>,
}

/// What a policy said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    /// Which policy.
    pub policy: PolicyId,
    /// Counted from 1.
    pub version: u32,
    /// TOML, as it was given.
    pub document: String,
    /// How it came about.
    pub action: String,
    /// When.
    pub created: UnixMillis,
    /// By whom.
    pub created_by: String,
}

const READ: &str = "read a policy";

fn decode(row: Row) -> Result<PolicyRow, sqlx::Error> {
    Ok(PolicyRow {
        id: text(&row, "id")?,
        name: text(&row, "name")?,
        version: number(&row, "version")?,
        canary_version: number(&row, "canary_version")?,
        canary: row.try_get("canary")?,
        created: UnixMillis(row.try_get("created_ms")?),
        deleted: time(&row, "deleted_ms")?,
    })
}

fn decode_version(row: Row) -> Result<VersionRow, sqlx::Error> {
    Ok(VersionRow {
        policy: text(&row, "policy_id")?,
        version: number(&row, "version")?,
        document: row.try_get("document")?,
        action: row.try_get("action")?,
        created: UnixMillis(row.try_get("created_ms")?),
        created_by: row.try_get("created_by")?,
    })
}

/// Makes changes of policies wait for each other: what a change touches is counted from all of them.
///
/// # Errors
/// The database's own.
pub async fn lock_all(tx: &mut Tx) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO sites (name, claims) VALUES ('policies:', 1)
         ON CONFLICT (name) DO UPDATE SET claims = sites.claims + 1",
    )
    .execute(tx)
    .await
    .map(drop)
    .map_err(failed("lock the policies"))
}

/// Policies that are not deleted, by name.
///
/// # Errors
/// The database's own.
pub async fn all(tx: &mut Tx) -> Result<Vec<PolicyRow>, StoreError> {
    sqlx::query("SELECT * FROM policies WHERE deleted_ms IS NULL ORDER BY name")
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed(READ))
}

/// The policy of this name that is not deleted.
///
/// # Errors
/// The database's own.
pub async fn by_name(tx: &mut Tx, name: &str) -> Result<Option<PolicyRow>, StoreError> {
    sqlx::query("SELECT * FROM policies WHERE name = $1 AND deleted_ms IS NULL")
        .bind(name)
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed(READ))
}

/// The policy of this id, deleted or not.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, id: PolicyId) -> Result<Option<PolicyRow>, StoreError> {
    sqlx::query("SELECT * FROM policies WHERE id = $1")
        .bind(id.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed(READ))
}

/// Adds a policy, or writes what can change about it.
///
/// # Errors
/// The database's own; also where another one has its name.
pub async fn put(tx: &mut Tx, policy: &PolicyRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO policies (id, name, version, canary_version, canary, claims, created_ms, deleted_ms)
         VALUES ($1, $2, $3, $4, $5, 0, $6, $7)
         ON CONFLICT (id) DO UPDATE SET version = $3, canary_version = $4, canary = $5, deleted_ms = $7",
    )
    .bind(policy.id.to_string())
    .bind(policy.name.as_str())
    .bind(i64::from(policy.version))
    .bind(i64::from(policy.canary_version))
    .bind(&policy.canary)
    .bind(policy.created.0)
    .bind(policy.deleted.map(|t| t.0))
    .execute(tx)
    .await
    .map(drop)
    .map_err(failed("write a policy"))
}

/// Locks a policy until the transaction ends: to count what runs under it.
///
/// # Errors
/// The database's own.
pub async fn lock(tx: &mut Tx, id: PolicyId) -> Result<(), StoreError> {
    sqlx::query("UPDATE policies SET claims = claims + 1 WHERE id = $1")
        .bind(id.to_string())
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("lock a policy"))
}

/// Adds a version.
///
/// # Errors
/// The database's own.
pub async fn insert_version(tx: &mut Tx, version: &VersionRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO policy_versions (policy_id, version, document, action, created_ms, created_by)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(version.policy.to_string())
    .bind(i64::from(version.version))
    .bind(&version.document)
    .bind(&version.action)
    .bind(version.created.0)
    .bind(&version.created_by)
    .execute(tx)
    .await
    .map(drop)
    .map_err(failed("add a version of a policy"))
}

/// One version.
///
/// # Errors
/// The database's own.
pub async fn version(tx: &mut Tx, policy: PolicyId, version: u32) -> Result<Option<VersionRow>, StoreError> {
    sqlx::query("SELECT * FROM policy_versions WHERE policy_id = $1 AND version = $2")
        .bind(policy.to_string())
        .bind(i64::from(version))
        .try_map(decode_version)
        .fetch_optional(tx)
        .await
        .map_err(failed("read a version of a policy"))
}

/// All versions of a policy, newest first.
///
/// # Errors
/// The database's own.
pub async fn versions(tx: &mut Tx, policy: PolicyId) -> Result<Vec<VersionRow>, StoreError> {
    sqlx::query("SELECT * FROM policy_versions WHERE policy_id = $1 ORDER BY version DESC")
        .bind(policy.to_string())
        .try_map(decode_version)
        .fetch_all(tx)
        .await
        .map_err(failed("read the versions of a policy"))
}
