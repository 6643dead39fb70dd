//! Numbers about the whole fleet.

use super::agents::{SaidProtocol, decode_protocol};
use super::select::Select;
use super::{Row, StoreError, Tx, number};

/// How many there are of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FleetCounts {
    /// Agents that have enrolled.
    pub agents: u32,
    /// Of these, those that may still do something.
    pub agents_active: u32,
    /// Sources in the hosts' configs.
    pub sources: u32,
    /// Of these, those that have no good backup.
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

/// Counts it all. Reads hosts, sources and series, of which there are thousands, and no history.
pub fn query() -> Select {
    Select::new(
        "SELECT (SELECT COUNT(*) FROM agents) AS agents,
                (SELECT COUNT(*) FROM agents WHERE state = 'active') AS agents_active,
                (SELECT COUNT(*) FROM sources WHERE present) AS sources,
                (SELECT COUNT(*) FROM sources s LEFT JOIN series_totals n ON n.series_id = s.series_id
                    WHERE s.present AND n.good_backup_id IS NULL) AS bare,
                (SELECT COUNT(*) FROM runs WHERE ended_ms IS NULL AND state = 'active') AS runs_active,
                CAST(COALESCE(SUM(t.backups), 0) AS BIGINT) AS backups,
                CAST(COALESCE(SUM(t.raw_bytes), 0) AS BIGINT) AS raw,
                CAST(COALESCE(SUM(t.stored_bytes), 0) AS BIGINT) AS stored
         FROM series_totals t",
    )
}

/// Runs [`query`].
///
/// # Errors
/// The database's own.
pub async fn counts(tx: &mut Tx) -> Result<FleetCounts, StoreError> {
    let rows = query().fetch(tx, "count the fleet", |row: Row| {
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
    });
    Ok(rows.await?.into_iter().next().unwrap_or_default())
}

/// What active agents speak, and how many speak it.
///
/// # Errors
/// The database's own.
pub async fn protocols(tx: &mut Tx) -> Result<Vec<(SaidProtocol, u32)>, StoreError> {
    // Whether it was refused counts here, not since when.
    let select = Select::new(
        "SELECT protocol, features, CAST(CASE WHEN upgrade_required_ms IS NULL THEN NULL ELSE 1 END AS BIGINT) AS upgrade_required_ms,
                COUNT(*) AS agents
         FROM agents WHERE state = 'active' GROUP BY 1, 2, 3",
    );
    let row = |row: Row| Ok((decode_protocol(&row)?, number(&row, "agents")?));
    select.fetch(tx, "count what agents speak", row).await
}
