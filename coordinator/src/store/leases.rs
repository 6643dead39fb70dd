//! Leases: what one coordinator at a time may do, for a while, under an epoch that is never given twice.
//!
//! Three strengths of lock on the row order it all on PostgreSQL: whoever works under the lease *shares* the row until its
//! transaction ends; renewing does not disturb that; taking over waits for it. So whatever commits under an epoch has
//! committed before the next one begins.

use sealift_common::clock::UnixMillis;
use sqlx::{AssertSqlSafe, Row as _};

use super::{Dialect, Row, StoreError, Tx, as_i64, dialect, failed, number};

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// The coordinator's process; empty: nobody.
    pub owner: String,
    /// Of the owner's term.
    pub epoch: u64,
    /// When it ends unless it is renewed; by the database's clock.
    pub expires: UnixMillis,
}

fn decode(row: Row) -> Result<LeaseRow, sqlx::Error> {
    Ok(LeaseRow {
        owner: row.try_get("owner")?,
        epoch: number(&row, "epoch")?,
        expires: UnixMillis(row.try_get("expires_ms")?),
    })
}

/// The lease of this name, as it is; `None` where nobody ever took it.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, name: &str) -> Result<Option<LeaseRow>, StoreError> {
    sqlx::query("SELECT owner, epoch, expires_ms FROM leases WHERE name = $1")
        .bind(name)
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read a lease"))
}

/// Takes the lease where it is free at `now`, until `until`: the epoch of the new term. Waits for transactions of the term
/// before. On SQLite it is always free: there is one coordinator, and who held it before is dead.
///
/// # Errors
/// The database's own.
pub async fn take(
    tx: &mut Tx,
    name: &str,
    owner: &str,
    now: UnixMillis,
    until: UnixMillis,
) -> Result<Option<u64>, StoreError> {
    sqlx::query("INSERT INTO leases (name, owner, epoch, expires_ms) VALUES ($1, '', 0, 0) ON CONFLICT (name) DO NOTHING")
        .bind(name)
        .execute(&mut *tx)
        .await
        .map_err(failed("make a lease"))?;
    let strength = if Dialect::of(tx) == Dialect::Postgres { " FOR UPDATE" } else { "" };
    let sql = format!("SELECT owner, epoch, expires_ms FROM leases WHERE name = $1{strength}");
    let found = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .try_map(decode)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("take a lease"))?;
    let free = found.owner.is_empty() || found.expires <= now || Dialect::of(tx) == Dialect::Sqlite;
    if !free {
        return Ok(None);
    }
    let epoch = found.epoch + 1;
    sqlx::query("UPDATE leases SET owner = $2, epoch = $3, expires_ms = $4 WHERE name = $1")
        .bind(name)
        .bind(owner)
        .bind(as_i64(epoch))
        .bind(until.0)
        .execute(tx)
        .await
        .map_err(failed("take a lease"))?;
    Ok(Some(epoch))
}

/// Renews a term; `false` where it is over.
///
/// # Errors
/// The database's own.
pub async fn renew(
    tx: &mut Tx,
    name: &str,
    owner: &str,
    epoch: u64,
    until: UnixMillis,
) -> Result<bool, StoreError> {
    let done = sqlx::query("UPDATE leases SET expires_ms = $4 WHERE name = $1 AND owner = $2 AND epoch = $3")
        .bind(name)
        .bind(owner)
        .bind(as_i64(epoch))
        .bind(until.0)
        .execute(tx)
        .await
        .map_err(failed("renew a lease"))?;
    Ok(done.rows_affected() > 0)
}

/// Gives a term back, so that the next owner need not wait for its end.
///
/// # Errors
/// The database's own.
pub async fn release(tx: &mut Tx, name: &str, owner: &str, epoch: u64) -> Result<(), StoreError> {
    sqlx::query("UPDATE leases SET owner = '', expires_ms = 0 WHERE name = $1 AND owner = $2 AND epoch = $3")
        .bind(name)
        .bind(owner)
        .bind(as_i64(epoch))
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("give a lease back"))
}

/// Refuses a transaction of a term that is over; of one that is not, nobody takes over before the transaction ends.
///
/// # Errors
/// [`StoreError::Deposed`], or the database's own.
pub async fn fence(tx: &mut Tx, name: &'static str, epoch: u64) -> Result<(), StoreError> {
    let found =
        sqlx::query(dialect::sharing(tx, "SELECT owner, epoch, expires_ms FROM leases WHERE name = $1"))
            .bind(name)
            .try_map(decode)
            .fetch_optional(tx)
            .await
            .map_err(failed("look at a lease"))?;
    match found {
        Some(lease) if lease.epoch == epoch && !lease.owner.is_empty() => Ok(()),
        _ => Err(StoreError::Deposed { lease: name, epoch }),
    }
}
