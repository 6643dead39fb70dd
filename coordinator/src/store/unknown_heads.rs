//! Manifests that hosts remember as the newest of their series and that this database does not know: it was restored from an
//! older backup, or somebody altered it.

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, SeriesId, Sha256};

use super::{StoreError, Tx, failed, number};

/// What a host remembers of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownHead {
    /// Which series.
    pub series: SeriesId,
    /// Whose it is.
    pub agent: AgentId,
    /// The manifest's sequence number.
    pub sequence: u64,
    /// Its hash.
    pub manifest: Sha256,
    /// When the host said so.
    pub seen: UnixMillis,
}

/// Records what a host remembers. Whether it is news.
///
/// # Errors
/// The database's own.
pub async fn put(tx: &mut Tx, head: &UnknownHead) -> Result<bool, StoreError> {
    let put = sqlx::query(
        "INSERT INTO unknown_heads (series_id, agent_id, sequence, manifest_sha256, seen_ms)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (series_id) DO UPDATE SET sequence = $3, manifest_sha256 = $4, seen_ms = $5
         WHERE unknown_heads.manifest_sha256 <> $4",
    )
    .bind(head.series.to_string())
    .bind(head.agent.to_string())
    .bind(i64::try_from(head.sequence).unwrap_or(i64::MAX))
    .bind(head.manifest.to_vec())
    .bind(head.seen.0)
    .execute(tx)
    .await
    .map_err(failed("record what a host remembers"))?;
    Ok(put.rows_affected() > 0)
}

/// The host and this database agree about the series. Whether that is news.
///
/// # Errors
/// The database's own.
pub async fn forget(tx: &mut Tx, series: SeriesId) -> Result<bool, StoreError> {
    let gone = sqlx::query("DELETE FROM unknown_heads WHERE series_id = $1")
        .bind(series.to_string())
        .execute(tx)
        .await
        .map_err(failed("forget what a host remembers"))?;
    Ok(gone.rows_affected() > 0)
}

/// How many series there are of which a host remembers more.
///
/// # Errors
/// The database's own.
pub async fn count(tx: &mut Tx) -> Result<u64, StoreError> {
    sqlx::query("SELECT COUNT(*) AS series FROM unknown_heads")
        .try_map(|row| number(&row, "series"))
        .fetch_one(tx)
        .await
        .map_err(failed("count what hosts remember"))
}
