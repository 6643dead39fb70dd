//! Packs: every one that was ever signed for, and whether backups may refer to it.

use roaring::RoaringBitmap;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::EpochId;
use sealift_common::format::pack::PackMeta;
use sealift_common::id::{BackupId, PackId, SeriesId, Sha256};
use sqlx::{AssertSqlSafe, Row as _};

use super::{Row, StoreError, Tx, as_i64, bytes, failed, number, placeholders, text, time};

pub use crate::retention::states::PackState;

/// Hashes asked for in one query: databases bound the number of parameters.
const HASHES_PER_QUERY: usize = 900;

/// What an agent says of a pack it has made, and what everyone who reads it later relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackFacts {
    /// Hash and lengths.
    pub meta: PackMeta,
    /// The backup under whose data key it is sealed.
    pub origin: BackupId,
}

/// One pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRow {
    /// Of which series.
    pub series: SeriesId,
    /// Its position in the bitmaps of the series' backups.
    pub ordinal: u32,
    /// Its own id, which is part of how it is sealed.
    pub pack: PackId,
    /// What its agent says of it.
    pub facts: PackFacts,
    /// The dedup epoch of its chunks.
    pub epoch: EpochId,
    /// Of the trust policy whose recipients it is sealed to.
    pub trust_version: u64,
    /// Where it is in its life.
    pub state: PackState,
    /// When its PUT was signed last.
    pub signed: UnixMillis,
    /// When it was first seen in the bucket.
    pub stored: Option<UnixMillis>,
    /// Raw bytes in it; 0 where its agent did not say.
    pub raw_len: u64,
    /// The store refuses to delete it until then.
    pub locked_until: Option<UnixMillis>,
}

fn decode_facts(row: &Row) -> Result<PackFacts, sqlx::Error> {
    let meta = PackMeta {
        sha256: bytes(row, "sha256")?,
        size: number(row, "size")?,
        meta_sha256: bytes(row, "meta_sha256")?,
        index_len: number(row, "index_len")?,
        directory_len: number(row, "directory_len")?,
        header_len: number(row, "header_len")?,
    };
    Ok(PackFacts { meta, origin: bytes(row, "origin_backup")? })
}

fn decode(row: Row) -> Result<PackRow, sqlx::Error> {
    Ok(PackRow {
        series: text(&row, "series_id")?,
        ordinal: number(&row, "ordinal")?,
        pack: bytes(&row, "pack_id")?,
        facts: decode_facts(&row)?,
        epoch: bytes(&row, "epoch_id")?,
        trust_version: number(&row, "trust_version")?,
        state: text(&row, "state")?,
        signed: UnixMillis(row.try_get("signed_ms")?),
        stored: time(&row, "stored_ms")?,
        raw_len: number(&row, "raw_len")?,
        locked_until: time(&row, "locked_until_ms")?,
    })
}

/// The ordinal of a series' next pack.
///
/// # Errors
/// The database's own.
pub async fn next_ordinal(tx: &mut Tx, series: SeriesId) -> Result<u32, StoreError> {
    sqlx::query("SELECT COALESCE(MAX(ordinal) + 1, 0) AS next FROM packs WHERE series_id = $1")
        .bind(series.to_string())
        .try_map(|row: Row| number(&row, "next"))
        .fetch_one(tx)
        .await
        .map_err(failed("count a series' packs"))
}

/// Adds a pack.
///
/// # Errors
/// The database's own; also where the series has it already.
pub async fn insert(tx: &mut Tx, pack: &PackRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO packs (series_id, ordinal, sha256, pack_id, origin_backup, epoch_id, trust_version, size,
                            meta_sha256, index_len, directory_len, header_len, state, signed_ms, stored_ms,
                            raw_len, locked_until_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
    )
    .bind(pack.series.to_string())
    .bind(i64::from(pack.ordinal))
    .bind(pack.facts.meta.sha256.to_vec())
    .bind(pack.pack.to_vec())
    .bind(pack.facts.origin.to_vec())
    .bind(pack.epoch.to_vec())
    .bind(as_i64(pack.trust_version))
    .bind(as_i64(pack.facts.meta.size))
    .bind(pack.facts.meta.meta_sha256.to_vec())
    .bind(i64::from(pack.facts.meta.index_len))
    .bind(i64::from(pack.facts.meta.directory_len))
    .bind(i64::from(pack.facts.meta.header_len))
    .bind(pack.state.as_str())
    .bind(pack.signed.0)
    .bind(pack.stored.map(|t| t.0))
    .bind(as_i64(pack.raw_len))
    .bind(pack.locked_until.map(|t| t.0))
    .execute(tx)
    .await
    .map_err(failed("add a pack"))?;
    Ok(())
}

/// One pack of a series.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, series: SeriesId, sha256: Sha256) -> Result<Option<PackRow>, StoreError> {
    sqlx::query("SELECT * FROM packs WHERE series_id = $1 AND sha256 = $2")
        .bind(series.to_string())
        .bind(sha256.to_vec())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed("read a pack"))
}

/// What a new pack of a series finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Packs sealed under the same backup that are signed for and not confirmed.
    pub unconfirmed: u32,
    /// The next pack's ordinal.
    pub next_ordinal: u32,
}

/// What the pack `except` of `backup` finds, itself apart.
///
/// # Errors
/// The database's own.
pub async fn ahead(
    tx: &mut Tx,
    series: SeriesId,
    backup: BackupId,
    except: Sha256,
) -> Result<Ahead, StoreError> {
    sqlx::query(
        "SELECT (SELECT COUNT(*) FROM packs WHERE series_id = $1 AND state = 'signed' AND origin_backup = $2 AND sha256 <> $3)
                    AS unconfirmed,
                (SELECT COALESCE(MAX(ordinal) + 1, 0) FROM packs WHERE series_id = $1) AS next_ordinal",
    )
    .bind(series.to_string())
    .bind(backup.to_vec())
    .bind(except.to_vec())
    .try_map(|row: Row| {
        Ok(Ahead { unconfirmed: number(&row, "unconfirmed")?, next_ordinal: number(&row, "next_ordinal")? })
    })
    .fetch_one(tx)
    .await
    .map_err(failed("count packs on their way"))
}

/// Records that a pack's PUT was signed again.
///
/// # Errors
/// The database's own.
pub async fn signed_again(
    tx: &mut Tx,
    series: SeriesId,
    ordinal: u32,
    at: UnixMillis,
    locked_until: Option<UnixMillis>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE packs SET signed_ms = $3, locked_until_ms = COALESCE($4, locked_until_ms)
         WHERE series_id = $1 AND ordinal = $2",
    )
    .bind(series.to_string())
    .bind(i64::from(ordinal))
    .bind(at.0)
    .bind(locked_until.map(|t| t.0))
    .execute(tx)
    .await
    .map_err(failed("record a signature"))?;
    Ok(())
}

/// Records that a signed pack was seen in the bucket; one that is further on stays as it is.
///
/// # Errors
/// The database's own.
pub async fn stored(tx: &mut Tx, series: SeriesId, ordinal: u32, at: UnixMillis) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE packs SET state = 'stored', stored_ms = $3
         WHERE series_id = $1 AND ordinal = $2 AND state = 'signed'",
    )
    .bind(series.to_string())
    .bind(i64::from(ordinal))
    .bind(at.0)
    .execute(tx)
    .await
    .map_err(failed("record that a pack is stored"))?;
    Ok(())
}

/// Records that a pack is missing or damaged: no backup will refer to it again.
///
/// # Errors
/// The database's own.
pub async fn lost(
    tx: &mut Tx,
    series: SeriesId,
    sha256: Sha256,
    state: PackState,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE packs SET state = $3 WHERE series_id = $1 AND sha256 = $2 AND state <> $3
            AND state IN ('stored', 'live', 'retiring', 'doomed', 'missing', 'damaged')",
    )
    .bind(series.to_string())
    .bind(sha256.to_vec())
    .bind(state.as_str())
    .execute(tx)
    .await
    .map_err(failed("record that a pack is lost"))?;
    Ok(done.rows_affected() > 0)
}

/// Records that a missing pack is there again.
///
/// # Errors
/// The database's own.
pub async fn found(tx: &mut Tx, series: SeriesId, sha256: Sha256) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE packs SET state = 'live', doomed_ms = NULL WHERE series_id = $1 AND sha256 = $2 AND state = 'missing'",
    )
    .bind(series.to_string())
    .bind(sha256.to_vec())
    .execute(tx)
    .await
    .map_err(failed("record that a pack is found again"))?;
    Ok(done.rows_affected() > 0)
}

/// What Prepare needs to know of a pack that a manifest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its position in the bitmaps.
    pub ordinal: u32,
    /// Where it is in its life.
    pub state: PackState,
    /// The dedup epoch of its chunks.
    pub epoch: EpochId,
    /// What its agent said of it when it was signed for.
    pub facts: PackFacts,
}

/// Those of `hashes` that the series has, in no order.
///
/// # Errors
/// The database's own.
pub async fn candidates(
    tx: &mut Tx,
    series: SeriesId,
    hashes: &[Sha256],
) -> Result<Vec<Candidate>, StoreError> {
    let mut found = Vec::with_capacity(hashes.len());
    for chunk in hashes.chunks(HASHES_PER_QUERY) {
        let sql = format!(
            "SELECT ordinal, state, epoch_id, sha256, size, origin_backup, meta_sha256, index_len, directory_len,
                    header_len FROM packs WHERE series_id = $1 AND sha256 IN ({})",
            placeholders(2, chunk.len())
        );
        let whole = chunk.len() == HASHES_PER_QUERY;
        let query = sqlx::query(AssertSqlSafe(sql)).persistent(whole).bind(series.to_string());
        let query = chunk.iter().fold(query, |query, hash| query.bind(hash.to_vec()));
        let rows = query.fetch_all(&mut *tx).await.map_err(failed("look up packs"))?;
        for row in rows {
            found.push(decode_candidate(&row).map_err(failed("look up packs"))?);
        }
    }
    Ok(found)
}

fn decode_candidate(row: &Row) -> Result<Candidate, sqlx::Error> {
    Ok(Candidate {
        ordinal: number(row, "ordinal")?,
        state: text(row, "state")?,
        epoch: bytes(row, "epoch_id")?,
        facts: decode_facts(row)?,
    })
}

/// Packs that backups of `epoch` may refer to, sealed under one of these trust policies, in the order of their ordinals.
///
/// # Errors
/// The database's own.
pub async fn referable(
    tx: &mut Tx,
    series: SeriesId,
    epoch: EpochId,
    trust_versions: &[u64],
    after: Option<u32>,
    limit: u32,
) -> Result<Vec<(u32, PackFacts)>, StoreError> {
    if trust_versions.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT ordinal, sha256, size, origin_backup, meta_sha256, index_len, directory_len, header_len
         FROM packs WHERE state IN ('stored', 'live') AND series_id = $1 AND epoch_id = $2 AND ordinal > $3
           AND trust_version IN ({}) ORDER BY ordinal LIMIT $4",
        placeholders(5, trust_versions.len())
    );
    let query = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .bind(series.to_string())
        .bind(epoch.to_vec())
        .bind(after.map_or(-1, i64::from))
        .bind(i64::from(limit));
    let query = trust_versions.iter().fold(query, |query, version| query.bind(as_i64(*version)));
    let rows = query.fetch_all(tx).await.map_err(failed("list a series' packs"))?;
    let decode = |row: &Row| Ok((number(row, "ordinal")?, decode_facts(row)?));
    rows.iter().map(decode).collect::<Result<_, _>>().map_err(failed("list a series' packs"))
}

/// The packs of these ordinals, in order, those after `after`.
///
/// # Errors
/// The database's own.
pub async fn of_ordinals(
    tx: &mut Tx,
    series: SeriesId,
    ordinals: &RoaringBitmap,
) -> Result<Vec<(PackFacts, PackState)>, StoreError> {
    let (Some(first), Some(last)) = (ordinals.min(), ordinals.max()) else { return Ok(Vec::new()) };
    let rows = sqlx::query(
        "SELECT * FROM packs WHERE series_id = $1 AND ordinal BETWEEN $2 AND $3 ORDER BY ordinal",
    )
    .bind(series.to_string())
    .bind(i64::from(first))
    .bind(i64::from(last))
    .fetch_all(tx)
    .await
    .map_err(failed("read a backup's packs"))?;
    let decode = |row: &Row| {
        let ordinal: u32 = number(row, "ordinal")?;
        Ok((ordinal, decode_facts(row)?, text(row, "state")?))
    };
    let all =
        rows.iter().map(decode).collect::<Result<Vec<_>, _>>().map_err(failed("read a backup's packs"))?;
    Ok(all
        .into_iter()
        .filter(|(o, ..)| ordinals.contains(*o))
        .map(|(_, facts, state)| (facts, state))
        .collect())
}

/// Runs of neighbouring numbers, first and last included.
pub(super) fn ranges(numbers: &RoaringBitmap) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

/// When all packs of a series were last seen in the bucket.
///
/// # Errors
/// The database's own.
pub async fn listed(tx: &mut Tx, series: SeriesId) -> Result<Option<UnixMillis>, StoreError> {
    sqlx::query("SELECT listed_ms FROM series_listings WHERE series_id = $1")
        .bind(series.to_string())
        .try_map(|row: Row| Ok(UnixMillis(row.try_get("listed_ms")?)))
        .fetch_optional(tx)
        .await
        .map_err(failed("read when a series was listed"))
}

/// Records that the packs of a series were listed, in a listing that began at `at`.
///
/// # Errors
/// The database's own.
pub async fn set_listed(tx: &mut Tx, series: SeriesId, at: UnixMillis) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO series_listings (series_id, listed_ms) VALUES ($1, $2)
         ON CONFLICT (series_id) DO UPDATE SET listed_ms = $2",
    )
    .bind(series.to_string())
    .bind(at.0)
    .execute(tx)
    .await
    .map_err(failed("record when a series was listed"))?;
    Ok(())
}

/// A pack of which a listing must show an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectedPack {
    /// Its hash: its name.
    pub sha256: Sha256,
    /// Its stored length.
    pub size: u64,
    /// It was missing when the series was last listed.
    pub missing: bool,
}

/// The packs of a series that must be in the bucket, stored before `before`, and those that are missing from it.
///
/// # Errors
/// The database's own.
pub async fn expected(
    tx: &mut Tx,
    series: SeriesId,
    before: UnixMillis,
) -> Result<Vec<ExpectedPack>, StoreError> {
    sqlx::query(
        "SELECT sha256, size, state FROM packs WHERE series_id = $1 AND stored_ms < $2
            AND state IN ('stored', 'live', 'retiring', 'doomed', 'missing')",
    )
    .bind(series.to_string())
    .bind(before.0)
    .try_map(|row: Row| {
        let missing = text::<PackState>(&row, "state")? == PackState::Missing;
        Ok(ExpectedPack { sha256: bytes(&row, "sha256")?, size: number(&row, "size")?, missing })
    })
    .fetch_all(tx)
    .await
    .map_err(failed("read a series' packs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_ranges() {
        let numbers: RoaringBitmap = [0, 1, 2, 5, 7, 8, u32::MAX].into_iter().collect();
        assert_eq!(ranges(&numbers), [(0, 2), (5, 5), (7, 8), (u32::MAX, u32::MAX)]);
        assert_eq!(ranges(&RoaringBitmap::new()), []);
    }
}
