//! Numbers about the whole fleet.

use super::{Row, StoreError, Tx, failed, number};

/// How many there are of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FleetCounts {
    /// Agents that have enrolled.
    pub agents: u32,
    /// Of these, those that may still do something.
    pub agents_active: u32,
    /// Sources in the hosts' configs.
    pub sources: u32,
    /// Of these, those that have no backup.
    pub sources_without_good_backup: u32,
    /// Runs that are under way.
    pub runs_active: u32,
    /// Backups that can be restored.
    pub backups: u64,
    /// What they take in the bucket, in bytes.
    pub stored_bytes: u64,
    /// What they restore to, in bytes.
    pub raw_bytes: u64,
}

/// Counts it all.
///
/// # Errors
/// The database's own.
pub async fn counts(tx: &mut Tx) -> Result<FleetCounts, StoreError> {
    sqlx::query(
        "SELECT (SELECT COUNT(*) FROM agents) AS agents,
                (SELECT COUNT(*) FROM agents WHERE state = 'active') AS agents_active,
                (SELECT COUNT(*) FROM sources WHERE present) AS sources,
                (SELECT COUNT(*) FROM sources WHERE present AND NOT EXISTS (SELECT 1 FROM backups
                    WHERE backups.series_id = sources.series_id AND backups.state = 'committed')) AS bare,
                (SELECT COUNT(*) FROM backups WHERE state = 'committed') AS backups,
                (SELECT CAST(COALESCE(SUM(raw_bytes), 0) AS BIGINT) FROM backups WHERE state = 'committed') AS raw,
                (SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM packs WHERE state IN ('stored', 'live', 'retiring', 'doomed', 'deleting')) AS stored,
                (SELECT COUNT(*) FROM runs WHERE ended_ms IS NULL AND state = 'active') AS runs_active",
    )
    .try_map(|row: Row| {
        Ok(FleetCounts {
            agents: number(&row, "agents")?,
            agents_active: number(&row, "agents_active")?,
            sources: number(&row, "sources")?,
            sources_without_good_backup: number(&row, "bare")?,
            runs_active: number(&row, "runs_active")?,
            backups: number(&row, "backups")?,
            stored_bytes: number(&row, "stored")?,
            raw_bytes: number(&row, "raw")?,
        })
    })
    .fetch_one(tx)
    .await
    .map_err(failed("count the fleet"))
}
