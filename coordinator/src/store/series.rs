//! Series: one source over time.

use sealift_common::clock::UnixMillis;
use sealift_common::crypto::EpochId;
use sealift_common::id::{AgentId, SeriesId};
use sealift_common::name::Name;
use sqlx::Row as _;

use super::{Row, StoreError, Tx, failed, flag, number, text};

/// One series, with what is stored in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesRow {
    /// Its id.
    pub id: SeriesId,
    /// The host that feeds it.
    pub agent: AgentId,
    /// The source that feeds it, or fed it last.
    pub source: Name,
    /// Which rule of the trust policy it falls under.
    pub scope: String,
    /// When it was started.
    pub created: UnixMillis,
    /// Whether the host still has the source.
    pub present: bool,
    /// How many backups there are.
    pub backups: u64,
    /// Sequence number of the newest.
    pub sequence: u64,
    /// When the newest was committed.
    pub newest: Option<UnixMillis>,
    /// Packs that are there.
    pub packs: u64,
    /// Bytes of those.
    pub stored_bytes: u64,
    /// Dedup epoch of the newest backup.
    pub epoch: Option<EpochId>,
    /// The epoch that is not built upon any more.
    pub leave_epoch: Option<EpochId>,
}

const COLUMNS: &str = "s.id, s.agent_id, s.source, s.scope, s.created_ms, s.leave_epoch,
    COALESCE((SELECT o.present FROM sources o WHERE o.series_id = s.id), FALSE) AS present,
    (SELECT COUNT(*) FROM backups b WHERE b.series_id = s.id AND b.state = 'committed') AS backups,
    (SELECT COALESCE(MAX(b.sequence), 0) FROM backups b WHERE b.series_id = s.id AND b.state = 'committed') AS sequence,
    (SELECT MAX(b.committed_ms) FROM backups b WHERE b.series_id = s.id AND b.state = 'committed') AS newest_ms,
    (SELECT COUNT(*) FROM packs p WHERE p.series_id = s.id AND p.state IN ('stored', 'live')) AS packs,
    (SELECT CAST(COALESCE(SUM(p.size), 0) AS BIGINT) FROM packs p
        WHERE p.series_id = s.id AND p.state IN ('stored', 'live')) AS stored_bytes,
    (SELECT b.epoch_id FROM backups b WHERE b.series_id = s.id AND b.state = 'committed'
        ORDER BY b.sequence DESC LIMIT 1) AS epoch_id";

fn epoch(row: &Row, column: &str) -> Result<Option<EpochId>, sqlx::Error> {
    let bytes: Option<Vec<u8>> = row.try_get(column)?;
    bytes
        .map(|bytes| EpochId::try_from(bytes.as_slice()))
        .transpose()
        .map_err(|e| sqlx::Error::Decode(e.into()))
}

fn decode(row: Row) -> Result<SeriesRow, sqlx::Error> {
    Ok(SeriesRow {
        id: text(&row, "id")?,
        agent: text(&row, "agent_id")?,
        source: text(&row, "source")?,
        scope: row.try_get("scope")?,
        created: UnixMillis(row.try_get("created_ms")?),
        present: flag(&row, "present")?,
        backups: number(&row, "backups")?,
        sequence: number(&row, "sequence")?,
        newest: row.try_get::<Option<i64>, _>("newest_ms")?.map(UnixMillis),
        packs: number(&row, "packs")?,
        stored_bytes: number(&row, "stored_bytes")?,
        epoch: epoch(&row, "epoch_id")?,
        leave_epoch: epoch(&row, "leave_epoch")?,
    })
}

/// All series of an agent, by source.
///
/// # Errors
/// The database's own.
pub async fn of_agent(tx: &mut Tx, agent: AgentId) -> Result<Vec<SeriesRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM series s WHERE s.agent_id = $1 ORDER BY s.source, s.created_ms");
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(agent.to_string())
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("read an agent's series"))
}

/// At most two series whose ids start with `prefix`: one is unambiguous.
///
/// # Errors
/// The database's own.
pub async fn by_prefix(tx: &mut Tx, prefix: &str) -> Result<Vec<SeriesRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM series s WHERE s.id >= $1 AND s.id < $2 ORDER BY s.id LIMIT 2");
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(prefix)
        .bind(format!("{prefix}~")) // '~' sorts after every digit, letter and dash
        .try_map(decode)
        .fetch_all(tx)
        .await
        .map_err(failed("read a series"))
}

/// The dedup epoch of a series that is not built upon any more.
///
/// # Errors
/// The database's own.
pub async fn leave_epoch(tx: &mut Tx, series: SeriesId) -> Result<Option<EpochId>, StoreError> {
    sqlx::query("SELECT leave_epoch FROM series WHERE id = $1")
        .bind(series.to_string())
        .try_map(|row: Row| epoch(&row, "leave_epoch"))
        .fetch_one(tx)
        .await
        .map_err(failed("read the epoch of a series"))
}

/// Builds upon this epoch no more.
///
/// # Errors
/// The database's own.
pub async fn set_leave_epoch(tx: &mut Tx, series: SeriesId, leave: EpochId) -> Result<(), StoreError> {
    sqlx::query("UPDATE series SET leave_epoch = $2 WHERE id = $1")
        .bind(series.to_string())
        .bind(leave.to_vec())
        .execute(tx)
        .await
        .map_err(failed("end an epoch"))?;
    Ok(())
}

/// Feeds a series from another source of the same host; that source's own series, if it has one, is left without a source.
///
/// # Errors
/// The database's own.
pub async fn feed_from(
    tx: &mut Tx,
    series: SeriesId,
    agent: AgentId,
    source: &Name,
) -> Result<(), StoreError> {
    let (series, agent) = (series.to_string(), agent.to_string());
    let old = sqlx::query(
        "DELETE FROM sources WHERE series_id = $1 RETURNING kind, detail, credential_origins, changed_ms",
    )
    .bind(&series)
    .try_map(|row: Row| {
        let texts = (row.try_get::<String, _>("kind")?, row.try_get::<String, _>("detail")?);
        Ok((texts, row.try_get::<String, _>("credential_origins")?, row.try_get::<i64, _>("changed_ms")?))
    })
    .fetch_optional(&mut *tx)
    .await
    .map_err(failed("rename a series"))?;
    let moved = sqlx::query("UPDATE sources SET series_id = $1 WHERE agent_id = $2 AND name = $3")
        .bind(&series)
        .bind(&agent)
        .bind(source.as_str())
        .execute(&mut *tx)
        .await
        .map_err(failed("rename a series"))?;
    if let (0, Some(((kind, detail), origins, changed))) = (moved.rows_affected(), old) {
        // The host does not have it yet: its next Hello finds the series there.
        sqlx::query(
            "INSERT INTO sources (agent_id, name, kind, detail, credential_origins, series_id, present, changed_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&agent)
        .bind(source.as_str())
        .bind(kind)
        .bind(detail)
        .bind(origins)
        .bind(&series)
        .bind(false)
        .bind(changed)
        .execute(&mut *tx)
        .await
        .map_err(failed("rename a series"))?;
    }
    sqlx::query("UPDATE series SET source = $2 WHERE id = $1")
        .bind(&series)
        .bind(source.as_str())
        .execute(tx)
        .await
        .map_err(failed("rename a series"))?;
    Ok(())
}
