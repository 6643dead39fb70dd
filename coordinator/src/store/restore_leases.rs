//! Restores that are under way: nothing that they read may be deleted before they end.

use sealift_common::clock::UnixMillis;
use sealift_common::id::{BackupId, LeaseId};
use sqlx::Row as _;

use super::{Row, StoreError, Tx, failed, locking, text, time};

/// One restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreLeaseRow {
    /// Its id, which only its opener knows.
    pub id: LeaseId,
    /// Of which backup.
    pub backup: BackupId,
    /// Who opened it.
    pub opened_by: String,
    /// When.
    pub opened: UnixMillis,
    /// When it ends unless it is used.
    pub expires: UnixMillis,
    /// When it was closed.
    pub closed: Option<UnixMillis>,
}

fn decode(row: Row) -> Result<RestoreLeaseRow, sqlx::Error> {
    Ok(RestoreLeaseRow {
        id: text(&row, "id")?,
        backup: text(&row, "backup_id")?,
        opened_by: row.try_get("opened_by")?,
        opened: UnixMillis(row.try_get("opened_ms")?),
        expires: UnixMillis(row.try_get("expires_ms")?),
        closed: time(&row, "closed_ms")?,
    })
}

/// Opens a restore.
///
/// # Errors
/// The database's own.
pub async fn insert(tx: &mut Tx, lease: &RestoreLeaseRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO restore_leases (id, backup_id, opened_by, opened_ms, expires_ms, closed_ms)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(lease.id.to_string())
    .bind(lease.backup.to_string())
    .bind(&lease.opened_by)
    .bind(lease.opened.0)
    .bind(lease.expires.0)
    .bind(lease.closed.map(|t| t.0))
    .execute(tx)
    .await
    .map_err(failed("open a restore"))?;
    Ok(())
}

/// The restore with this id.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, id: LeaseId) -> Result<Option<RestoreLeaseRow>, StoreError> {
    sqlx::query("SELECT * FROM restore_leases WHERE id = $1")
        .bind(id.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read a restore"))
}

/// The restore with this id, locked until the transaction ends: for every change of it.
///
/// # Errors
/// The database's own.
pub async fn lock(tx: &mut Tx, id: LeaseId) -> Result<Option<RestoreLeaseRow>, StoreError> {
    sqlx::query(locking(tx, "SELECT * FROM restore_leases WHERE id = $1"))
        .bind(id.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read a restore"))
}

/// Writes what can change about a restore.
///
/// # Errors
/// The database's own.
pub async fn update(tx: &mut Tx, lease: &RestoreLeaseRow) -> Result<(), StoreError> {
    sqlx::query("UPDATE restore_leases SET expires_ms = $2, closed_ms = $3 WHERE id = $1")
        .bind(lease.id.to_string())
        .bind(lease.expires.0)
        .bind(lease.closed.map(|t| t.0))
        .execute(tx)
        .await
        .map_err(failed("update a restore"))?;
    Ok(())
}
