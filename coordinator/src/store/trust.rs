//! The chain of trust policies, as admins signed them.

use sealift_common::clock::UnixMillis;
use sealift_common::id::Sha256;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, as_i64, bytes, failed, flag, number};

/// One version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustRow {
    /// From 1, without gaps.
    pub version: u64,
    /// Of the object.
    pub sha256: Sha256,
    /// The whole `trust/` object.
    pub object: Vec<u8>,
    /// When it was stored.
    pub stored: UnixMillis,
    /// Whether the bucket has it: from then on it is in force.
    pub in_bucket: bool,
}

fn decode(row: Row) -> Result<TrustRow, sqlx::Error> {
    Ok(TrustRow {
        version: number(&row, "version")?,
        sha256: bytes(&row, "sha256")?,
        object: row.try_get("object")?,
        stored: UnixMillis(row.try_get("stored_ms")?),
        in_bucket: flag(&row, "in_bucket")?,
    })
}

/// Adds a version.
///
/// # Errors
/// The database's own; also where the version is there already.
pub async fn insert(tx: &mut Tx, row: &TrustRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO trust_policies (version, sha256, object, stored_ms, in_bucket) VALUES ($1, $2, $3, $4, $5)",
    )
        .bind(as_i64(row.version))
        .bind(row.sha256.to_vec())
        .bind(&row.object)
        .bind(row.stored.0)
        .bind(row.in_bucket)
        .execute(tx)
        .await
        .map_err(failed("add a trust policy"))?;
    Ok(())
}

/// Records that the bucket has a version.
///
/// # Errors
/// The database's own.
pub async fn set_in_bucket(tx: &mut Tx, version: u64) -> Result<(), StoreError> {
    sqlx::query("UPDATE trust_policies SET in_bucket = TRUE WHERE version = $1")
        .bind(as_i64(version))
        .execute(tx)
        .await
        .map_err(failed("record where a trust policy is"))?;
    Ok(())
}

/// All versions, oldest first, those that are not in the bucket yet among them.
///
/// # Errors
/// The database's own.
pub async fn all(tx: &mut Tx) -> Result<Vec<TrustRow>, StoreError> {
    sqlx::query("SELECT * FROM trust_policies ORDER BY version")
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("read the trust policies"))
}

/// The versions in force after `known`, oldest first.
///
/// # Errors
/// The database's own.
pub async fn chain(tx: &mut Tx, known: u64) -> Result<Vec<TrustRow>, StoreError> {
    sqlx::query("SELECT * FROM trust_policies WHERE version > $1 AND in_bucket ORDER BY version")
        .bind(as_i64(known))
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("read the trust policies"))
}

/// The newest version in force.
///
/// # Errors
/// The database's own.
pub async fn newest(tx: &mut Tx) -> Result<Option<TrustRow>, StoreError> {
    sqlx::query("SELECT * FROM trust_policies WHERE in_bucket ORDER BY version DESC LIMIT 1")
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read the trust policy"))
}
