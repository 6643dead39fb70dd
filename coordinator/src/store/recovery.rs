//! What a recovery reads and writes across nouns: rows for what the bucket has and the database has forgotten.

use sealift_common::clock::UnixMillis;
use sealift_common::crypto::EpochId;
use sealift_common::id::{AgentId, BackupId, SeriesId, Sha256};
use sqlx::Row as _;

use super::backups::BackupState;
use super::{Row, StoreError, Tx, as_i64, bytes, failed, number, text};

/// The token that recovered agents are recorded under: nobody has its secret.
pub const TOKEN: &str = "recovered";

/// What the database knows of one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownBackup {
    /// Its id.
    pub id: BackupId,
    /// Its place in the series.
    pub sequence: u64,
    /// Where it is.
    pub state: BackupState,
    /// Its manifest, from Prepare on.
    pub manifest: Option<Sha256>,
}

/// All backups of a series, whatever became of them.
///
/// # Errors
/// The database's own.
pub async fn known_backups(tx: &mut Tx, series: SeriesId) -> Result<Vec<KnownBackup>, StoreError> {
    sqlx::query("SELECT id, sequence, state, manifest_sha256 FROM backups WHERE series_id = $1")
        .bind(series.to_string())
        .try_map(|row: Row| {
            let manifest = match row.try_get::<Option<Vec<u8>>, _>("manifest_sha256")? {
                None => None,
                Some(_) => Some(bytes(&row, "manifest_sha256")?),
            };
            let sequence = number(&row, "sequence")?;
            Ok(KnownBackup { id: text(&row, "id")?, sequence, state: text(&row, "state")?, manifest })
        })
        .fetch_all(tx)
        .await
        .map_err(failed("read a series' backups"))
}

/// The agent whose series this is.
///
/// # Errors
/// The database's own.
pub async fn owner(tx: &mut Tx, series: SeriesId) -> Result<Option<AgentId>, StoreError> {
    sqlx::query("SELECT agent_id FROM series WHERE id = $1")
        .bind(series.to_string())
        .try_map(|row: Row| text(&row, "agent_id"))
        .fetch_optional(tx)
        .await
        .map_err(failed("read a series"))
}

/// All series.
///
/// # Errors
/// The database's own.
pub async fn all_series(tx: &mut Tx) -> Result<Vec<SeriesId>, StoreError> {
    sqlx::query("SELECT id FROM series ORDER BY id")
        .try_map(|row: Row| text(&row, "id"))
        .fetch_all(tx)
        .await
        .map_err(failed("list series"))
}

/// No backup of this series will get a sequence number up to `floor`, which never falls. Only where it is `agent`'s, if one
/// is named.
///
/// # Errors
/// The database's own.
pub async fn raise_floor(
    tx: &mut Tx,
    series: SeriesId,
    agent: Option<AgentId>,
    floor: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE series SET sequence_floor = $2 WHERE id = $1 AND sequence_floor < $2 AND ($3 = '' OR agent_id = $3)",
    )
    .bind(series.to_string())
    .bind(as_i64(floor))
    .bind(agent.map(|id| id.to_string()).unwrap_or_default())
    .execute(tx)
    .await
    .map_err(failed("keep sequence numbers"))?;
    Ok(())
}

/// The highest sequence number of a series that was ever signed for, as far as the database knows.
///
/// # Errors
/// The database's own.
pub async fn highest_sequence(tx: &mut Tx, series: SeriesId) -> Result<u64, StoreError> {
    sqlx::query(
        "SELECT COALESCE(MAX(sequence), 0) AS highest FROM backups WHERE series_id = $1 AND state <> 'begun'",
    )
    .bind(series.to_string())
    .try_map(|row: Row| number(&row, "highest"))
    .fetch_one(tx)
    .await
    .map_err(failed("count a series' backups"))
}

/// A backup whose manifest is gone was deleted after this copy of the database was made.
///
/// # Errors
/// The database's own.
pub async fn vanished(tx: &mut Tx, backup: BackupId) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE backups SET state = 'abandoned', committed_ms = NULL WHERE id = $1 AND state = 'committed'",
    )
    .bind(backup.to_string())
    .execute(tx)
    .await
    .map_err(failed("record that a backup is gone"))?;
    Ok(())
}

/// A pack that a manifest in the bucket names is live, whatever was known of it.
///
/// # Errors
/// The database's own.
pub async fn revive(
    tx: &mut Tx,
    series: SeriesId,
    sha256: Sha256,
    stored: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE packs SET state = 'live', stored_ms = COALESCE(stored_ms, $3)
         WHERE series_id = $1 AND sha256 = $2 AND state <> 'live'",
    )
    .bind(series.to_string())
    .bind(sha256.to_vec())
    .bind(stored.0)
    .execute(tx)
    .await
    .map_err(failed("make a pack live again"))?;
    Ok(())
}

/// Whether a series has a backup of this dedup epoch.
///
/// # Errors
/// The database's own.
pub async fn has_epoch(tx: &mut Tx, series: SeriesId, epoch: EpochId) -> Result<bool, StoreError> {
    sqlx::query("SELECT 1 AS one FROM backups WHERE series_id = $1 AND epoch_id = $2 LIMIT 1")
        .bind(series.to_string())
        .bind(epoch.to_vec())
        .fetch_optional(tx)
        .await
        .map(|row| row.is_some())
        .map_err(failed("look for an epoch"))
}

/// Forgets a source's row; its series stays.
///
/// # Errors
/// The database's own.
pub async fn forget_source(tx: &mut Tx, agent: AgentId, name: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM sources WHERE agent_id = $1 AND name = $2")
        .bind(agent.to_string())
        .bind(name)
        .execute(tx)
        .await
        .map_err(failed("rename a source"))?;
    Ok(())
}

/// Gives an agent another name.
///
/// # Errors
/// The database's own.
pub async fn rename_agent(tx: &mut Tx, agent: AgentId, name: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE agents SET name = $2 WHERE id = $1")
        .bind(agent.to_string())
        .bind(name)
        .execute(tx)
        .await
        .map_err(failed("rename an agent"))?;
    Ok(())
}

/// This is the database of another repository than it thought: nothing is in it yet.
///
/// # Errors
/// The database's own.
pub async fn set_repository(tx: &mut Tx, id: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE installation SET value = $1 WHERE name = 'repository_id'")
        .bind(id)
        .execute(tx)
        .await
        .map_err(failed("record the repository"))?;
    Ok(())
}

/// Forgets a version of the trust policy that the bucket never had.
///
/// # Errors
/// The database's own.
pub async fn forget_trust(tx: &mut Tx, version: u64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM trust_policies WHERE version = $1")
        .bind(as_i64(version))
        .execute(tx)
        .await
        .map_err(failed("forget a trust policy"))?;
    Ok(())
}
