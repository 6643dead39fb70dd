//! What retention and collection read and write: holds, expiry, references, locks, and how far they are with a series.
//!
//! Everything here that decides or changes is called with the series locked ([`super::sources::lock_series`]).

use roaring::RoaringBitmap;
use sealift_common::clock::UnixMillis;
use sealift_common::id::{BackupId, SeriesId, Sha256};
use sqlx::Row as _;

use super::packs::ranges;
use super::select::Select;
use super::{Row, StoreError, Tx, bytes, failed, flag, number, optional_flag, text, time};
use crate::retention::states::{BackupState, PackState};

/// A backup that was prepared and not removed, as retention and collection see it.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptBackup {
    /// Its id.
    pub id: BackupId,
    /// Its place in the series.
    pub sequence: u64,
    /// Where it is.
    pub state: BackupState,
    /// Of its manifest.
    pub manifest_sha256: Sha256,
    /// When its manifest was first seen in the bucket.
    pub committed: Option<UnixMillis>,
    /// It lacks something, and says what.
    pub partial: bool,
    /// Ordinals of its packs.
    pub refs: RoaringBitmap,
    /// Its manifest's signature was good until then.
    pub signed_until: UnixMillis,
    /// What was read from the source.
    pub raw_bytes: u64,
    /// What became of it since it was committed.
    pub keeping: Keeping,
    /// The store refuses to delete its manifest until then.
    pub locked_until: Option<UnixMillis>,
    /// A restore reads it.
    pub in_use: bool,
}

/// What became of a backup since it was committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keeping {
    /// Of its packs, how many are missing or damaged.
    pub lost_packs: u64,
    /// Its manifest is not in the bucket.
    pub manifest_lost: bool,
    /// When all of it was last read back and hashed right.
    pub verified: Option<UnixMillis>,
    /// Who wants it kept.
    pub held: Option<Note>,
    /// Who let it go.
    pub expired: Option<Note>,
    /// When it was undeleted last.
    pub undeleted: Option<UnixMillis>,
}

impl Keeping {
    /// Whether all that it needs is there, as far as anyone has looked.
    pub const fn is_whole(&self) -> bool {
        self.lost_packs == 0 && !self.manifest_lost
    }
}

/// Who decided something, when and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// When.
    pub at: UnixMillis,
    /// Who.
    pub by: String,
    /// Why, in their words.
    pub reason: String,
}

pub(super) fn decode_keeping(row: &Row) -> Result<Keeping, sqlx::Error> {
    let note = |at: &str, by: &str, reason: &str| match time(row, at)? {
        Some(at) => Ok(Some(Note { at, by: row.try_get(by)?, reason: row.try_get(reason)? })),
        None => Ok::<_, sqlx::Error>(None),
    };
    Ok(Keeping {
        lost_packs: number(row, "lost_packs")?,
        manifest_lost: flag(row, "manifest_lost")?,
        verified: time(row, "verified_ms")?,
        held: note("held_ms", "held_by", "held_reason")?,
        expired: note("expired_ms", "expired_by", "expired_reason")?,
        undeleted: time(row, "undeleted_ms")?,
    })
}

pub(super) fn decode_refs(row: &Row) -> Result<RoaringBitmap, sqlx::Error> {
    let refs: Vec<u8> = row.try_get("refs")?;
    RoaringBitmap::deserialize_from(refs.as_slice())
        .map_err(|e| sqlx::Error::ColumnDecode { index: "refs".to_owned(), source: e.into() })
}

fn decode(row: Row) -> Result<KeptBackup, sqlx::Error> {
    Ok(KeptBackup {
        id: text(&row, "id")?,
        sequence: number(&row, "sequence")?,
        state: text(&row, "state")?,
        manifest_sha256: bytes(&row, "manifest_sha256")?,
        committed: time(&row, "committed_ms")?,
        partial: optional_flag(&row, "partial")?.unwrap_or_default(),
        refs: decode_refs(&row)?,
        signed_until: time(&row, "signed_until_ms")?.unwrap_or_default(),
        raw_bytes: number(&row, "raw_bytes")?,
        keeping: decode_keeping(&row)?,
        locked_until: time(&row, "locked_until_ms")?,
        in_use: number::<u64>(&row, "leases")? > 0,
    })
}

/// The backups of a series that were prepared and not removed, oldest first.
///
/// # Errors
/// The database's own.
pub async fn backups(tx: &mut Tx, series: SeriesId, now: UnixMillis) -> Result<Vec<KeptBackup>, StoreError> {
    sqlx::query(
        "SELECT id, sequence, state, manifest_sha256, committed_ms, partial, refs, signed_until_ms, raw_bytes, lost_packs,
                manifest_lost, verified_ms, held_ms, held_by, held_reason, expired_ms, expired_by, expired_reason,
                undeleted_ms, locked_until_ms,
                (SELECT COUNT(*) FROM restore_leases WHERE backup_id = backups.id AND closed_ms IS NULL
                    AND expires_ms >= $2) AS leases
         FROM backups WHERE series_id = $1 AND state IN ('committing', 'committed', 'expired', 'deleting', 'abandoned')
         ORDER BY sequence, id",
    )
    .bind(series.to_string())
    .bind(now.0)
    .try_map(decode)
    .fetch_all(tx)
    .await
    .map_err(failed("read a series' backups"))
}

/// Records what a prepared backup uses of each of its packs, in the order of their ordinals, and its manifest's lock.
///
/// # Errors
/// The database's own.
pub async fn set_used(
    tx: &mut Tx,
    backup: BackupId,
    used: &[u32],
    locked_until: Option<UnixMillis>,
) -> Result<(), StoreError> {
    let bytes: Vec<u8> = used.iter().flat_map(|used| used.to_le_bytes()).collect();
    sqlx::query("UPDATE backups SET used = $2, locked_until_ms = $3 WHERE id = $1")
        .bind(backup.to_string())
        .bind(bytes)
        .bind(locked_until.map(|t| t.0))
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("record what a backup uses"))
}

/// What a prepared backup uses of each of its packs, in the order of their ordinals.
///
/// # Errors
/// The database's own.
pub async fn used(tx: &mut Tx, backup: BackupId) -> Result<Vec<u32>, StoreError> {
    let bytes: Option<Vec<u8>> = sqlx::query("SELECT used FROM backups WHERE id = $1")
        .bind(backup.to_string())
        .try_map(|row: Row| row.try_get("used"))
        .fetch_one(tx)
        .await
        .map_err(failed("read what a backup uses"))?;
    let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).unwrap_or_default();
    Ok(bytes.unwrap_or_default().chunks_exact(4).map(number).collect())
}

/// Moves a backup from `from` to `to`: whether it was there. What it was let go with is kept or cleared.
///
/// # Errors
/// The database's own.
pub async fn move_backup(
    tx: &mut Tx,
    id: BackupId,
    from: BackupState,
    to: BackupState,
    expired: Option<&Note>,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE backups SET state = $3, expired_ms = $4, expired_by = $5, expired_reason = $6
         WHERE id = $1 AND state = $2",
    )
    .bind(id.to_string())
    .bind(from.as_str())
    .bind(to.as_str())
    .bind(expired.map(|note| note.at.0))
    .bind(expired.map(|note| note.by.clone()).unwrap_or_default())
    .bind(expired.map(|note| note.reason.clone()).unwrap_or_default())
    .execute(tx)
    .await
    .map_err(failed("move a backup"))?;
    Ok(done.rows_affected() > 0)
}

/// A deleting backup is deleted: whether it was there.
///
/// # Errors
/// The database's own.
pub async fn end_backup(tx: &mut Tx, id: BackupId) -> Result<bool, StoreError> {
    let done =
        sqlx::query("UPDATE backups SET state = 'deleted', used = NULL WHERE id = $1 AND state = 'deleting'")
            .bind(id.to_string())
            .execute(tx)
            .await
            .map_err(failed("record that a backup is gone"))?;
    Ok(done.rows_affected() > 0)
}

/// Records that a backup was undeleted.
///
/// # Errors
/// The database's own.
pub async fn set_undeleted(tx: &mut Tx, id: BackupId, at: UnixMillis) -> Result<(), StoreError> {
    sqlx::query("UPDATE backups SET undeleted_ms = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(at.0)
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("undelete a backup"))
}

/// Holds a backup, or releases it.
///
/// # Errors
/// The database's own.
pub async fn set_held(tx: &mut Tx, id: BackupId, hold: Option<&Note>) -> Result<(), StoreError> {
    sqlx::query("UPDATE backups SET held_ms = $2, held_by = $3, held_reason = $4 WHERE id = $1")
        .bind(id.to_string())
        .bind(hold.map(|note| note.at.0))
        .bind(hold.map(|note| note.by.clone()).unwrap_or_default())
        .bind(hold.map(|note| note.reason.clone()).unwrap_or_default())
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("hold a backup"))
}

/// Records that all of a backup was read back and hashed right.
///
/// # Errors
/// The database's own.
pub async fn set_verified(tx: &mut Tx, id: BackupId, at: UnixMillis) -> Result<(), StoreError> {
    sqlx::query("UPDATE backups SET verified_ms = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(at.0)
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("record a verification"))
}

/// Records whether a backup's manifest is lost: whether that is news.
///
/// # Errors
/// The database's own.
pub async fn set_manifest_lost(tx: &mut Tx, id: BackupId, lost: bool) -> Result<bool, StoreError> {
    let sql = match lost {
        true => "UPDATE backups SET manifest_lost = TRUE WHERE id = $1 AND NOT manifest_lost",
        false => "UPDATE backups SET manifest_lost = FALSE WHERE id = $1 AND manifest_lost",
    };
    let done = sqlx::query(sql)
        .bind(id.to_string())
        .execute(tx)
        .await
        .map_err(failed("record a manifest's loss"))?;
    Ok(done.rows_affected() > 0)
}

/// Records how many of a backup's packs are lost.
///
/// # Errors
/// The database's own.
pub async fn set_lost_packs(tx: &mut Tx, id: BackupId, lost: u64) -> Result<(), StoreError> {
    sqlx::query("UPDATE backups SET lost_packs = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(super::as_i64(lost))
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("record a backup's losses"))
}

/// Ordinals of the packs of a series that are in one of `states`.
///
/// # Errors
/// The database's own.
pub async fn ordinals(tx: &mut Tx, series: SeriesId, state: PackState) -> Result<RoaringBitmap, StoreError> {
    // The states of the partial indices are spelled out, or they would not be used.
    let sql = match state {
        PackState::Missing | PackState::Damaged => {
            "SELECT ordinal FROM packs WHERE series_id = $1 AND state IN ('missing', 'damaged') AND state = $2"
        }
        PackState::Deleting => {
            "SELECT ordinal FROM packs WHERE series_id = $1 AND state = 'deleting' AND state = $2"
        }
        _ => "SELECT ordinal FROM packs WHERE series_id = $1 AND state = $2",
    };
    let rows: Vec<u32> = sqlx::query(sql)
        .bind(series.to_string())
        .bind(state.as_str())
        .try_map(|row: Row| number(&row, "ordinal"))
        .fetch_all(tx)
        .await
        .map_err(failed("find a series' packs"))?;
    Ok(rows.into_iter().collect())
}

/// The packs of a series that were not removed, in the order of their ordinals, with their hashes and lengths.
///
/// # Errors
/// The database's own.
pub async fn packs(tx: &mut Tx, series: SeriesId) -> Result<Vec<StoredPack>, StoreError> {
    sqlx::query(
        "SELECT ordinal, sha256, size, state, raw_len, signed_ms, stored_ms, referred, doomed_ms, locked_until_ms
         FROM packs WHERE series_id = $1 AND state <> 'deleted' ORDER BY ordinal",
    )
    .bind(series.to_string())
    .try_map(|row: Row| {
        Ok(StoredPack {
            sha256: bytes(&row, "sha256")?,
            size: number(&row, "size")?,
            fate: crate::retention::packs::Pack {
                ordinal: number(&row, "ordinal")?,
                state: text(&row, "state")?,
                raw_len: number(&row, "raw_len")?,
                signed: UnixMillis(row.try_get("signed_ms")?),
                stored: time(&row, "stored_ms")?,
                referred: flag(&row, "referred")?,
                doomed: time(&row, "doomed_ms")?,
                locked_until: time(&row, "locked_until_ms")?,
            },
        })
    })
    .fetch_all(tx)
    .await
    .map_err(failed("read a series' packs"))
}

/// A pack as collection sees it, with what it takes to delete it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPack {
    /// Its hash: its name.
    pub sha256: Sha256,
    /// Its stored length.
    pub size: u64,
    /// What decides about it.
    pub fate: crate::retention::packs::Pack,
}

/// How packs are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackMove {
    /// A backup refers to them.
    Refer,
    /// Little of them is used.
    Retire,
    /// Nothing refers to them.
    Doom,
    /// They are lost, and nothing refers to them.
    Forsake,
    /// They are about to be removed.
    Delete,
    /// They are gone.
    Remove,
}

impl PackMove {
    /// The states from which each move leads somewhere else are those of [`PackState::apply`]; a test compares.
    const fn sql(self) -> &'static str {
        match self {
            Self::Refer => {
                "UPDATE packs SET state = 'live', referred = TRUE, doomed_ms = NULL WHERE series_id = $1
                    AND ordinal BETWEEN $2 AND $3 AND state IN ('stored', 'retiring', 'doomed') AND $4 >= 0"
            }
            Self::Retire => {
                "UPDATE packs SET state = 'retiring' WHERE series_id = $1 AND ordinal BETWEEN $2 AND $3
                    AND state = 'live' AND $4 >= 0"
            }
            Self::Doom => {
                "UPDATE packs SET state = 'doomed', doomed_ms = $4 WHERE series_id = $1 AND ordinal BETWEEN $2 AND $3
                    AND state IN ('signed', 'stored', 'live', 'retiring')"
            }
            Self::Forsake => {
                "UPDATE packs SET doomed_ms = $4 WHERE series_id = $1 AND ordinal BETWEEN $2 AND $3
                    AND state IN ('missing', 'damaged')"
            }
            Self::Delete => {
                "UPDATE packs SET state = 'deleting' WHERE series_id = $1 AND ordinal BETWEEN $2 AND $3
                    AND state IN ('doomed', 'missing', 'damaged') AND $4 >= 0"
            }
            Self::Remove => {
                "UPDATE packs SET state = 'deleted' WHERE series_id = $1 AND ordinal BETWEEN $2 AND $3
                    AND state = 'deleting' AND $4 >= 0"
            }
        }
    }
}

/// Moves packs of a series: how many were moved. Those that are where they should be are not counted.
///
/// # Errors
/// The database's own.
pub async fn move_packs(
    tx: &mut Tx,
    series: SeriesId,
    ordinals: &RoaringBitmap,
    how: PackMove,
    at: UnixMillis,
) -> Result<u64, StoreError> {
    let mut moved = 0;
    for (first, last) in ranges(ordinals) {
        let done = sqlx::query(how.sql())
            .bind(series.to_string())
            .bind(i64::from(first))
            .bind(i64::from(last))
            .bind(at.0)
            .execute(&mut *tx)
            .await
            .map_err(failed("move packs"))?;
        moved += done.rows_affected();
    }
    Ok(moved)
}

/// Records until when the store refuses to delete a pack.
///
/// # Errors
/// The database's own.
pub async fn set_locked_until(
    tx: &mut Tx,
    series: SeriesId,
    sha256: Sha256,
    until: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE packs SET locked_until_ms = $3 WHERE series_id = $1 AND sha256 = $2")
        .bind(series.to_string())
        .bind(sha256.to_vec())
        .bind(until.0)
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("record a pack's lock"))
}

/// When the oldest open attempt on a series began.
///
/// # Errors
/// The database's own.
pub async fn run_since(tx: &mut Tx, series: SeriesId) -> Result<Option<UnixMillis>, StoreError> {
    sqlx::query("SELECT MIN(started_ms) AS began FROM attempts WHERE series_id = $1 AND ended_ms IS NULL")
        .bind(series.to_string())
        .try_map(|row: Row| time(&row, "began"))
        .fetch_one(tx)
        .await
        .map_err(failed("find open attempts"))
}

/// Series that were not collected since `before` and have something to collect: packs or backups. Oldest first.
///
/// # Errors
/// The database's own.
pub async fn due_for_collection(
    tx: &mut Tx,
    before: UnixMillis,
    limit: u32,
) -> Result<Vec<SeriesId>, StoreError> {
    sqlx::query(
        "SELECT series.id FROM series LEFT JOIN series_retention ON series_retention.series_id = series.id
         WHERE (collected_ms IS NULL OR collected_ms < $1)
           AND EXISTS (SELECT 1 FROM packs WHERE packs.series_id = series.id)
         ORDER BY COALESCE(collected_ms, 0), series.id LIMIT $2",
    )
    .bind(before.0)
    .bind(i64::from(limit))
    .try_map(|row: Row| text(&row, "id"))
    .fetch_all(tx)
    .await
    .map_err(failed("find series to collect"))
}

/// Series with backups whose objects were not listed since `before`. Oldest first.
///
/// # Errors
/// The database's own.
pub async fn due_for_listing(
    tx: &mut Tx,
    before: UnixMillis,
    limit: u32,
) -> Result<Vec<SeriesId>, StoreError> {
    sqlx::query(
        "SELECT series.id FROM series LEFT JOIN series_listings ON series_listings.series_id = series.id
         WHERE (listed_ms IS NULL OR listed_ms < $1)
           AND EXISTS (SELECT 1 FROM backups WHERE backups.series_id = series.id AND backups.state = 'committed')
         ORDER BY COALESCE(listed_ms, 0), series.id LIMIT $2",
    )
    .bind(before.0)
    .bind(i64::from(limit))
    .try_map(|row: Row| text(&row, "id"))
    .fetch_all(tx)
    .await
    .map_err(failed("find series to list"))
}

/// Why nothing is deleted in a series, and since when.
///
/// # Errors
/// The database's own.
pub async fn halted(tx: &mut Tx, series: SeriesId) -> Result<Option<(UnixMillis, String)>, StoreError> {
    sqlx::query(
        "SELECT halted_ms, halted_why FROM series_retention WHERE series_id = $1 AND halted_ms IS NOT NULL",
    )
    .bind(series.to_string())
    .try_map(|row: Row| Ok((UnixMillis(row.try_get("halted_ms")?), row.try_get("halted_why")?)))
    .fetch_optional(tx)
    .await
    .map_err(failed("read whether a series is halted"))
}

/// Records that a series was looked at, and whether and why nothing is deleted in it.
///
/// # Errors
/// The database's own.
pub async fn set_collected(
    tx: &mut Tx,
    series: SeriesId,
    at: UnixMillis,
    halted: Option<(UnixMillis, &str)>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO series_retention (series_id, collected_ms, halted_ms, halted_why) VALUES ($1, $2, $3, $4)
         ON CONFLICT (series_id) DO UPDATE SET collected_ms = $2, halted_ms = $3, halted_why = $4",
    )
    .bind(series.to_string())
    .bind(at.0)
    .bind(halted.map(|(since, _)| since.0))
    .bind(halted.map(|(_, why)| why.to_owned()).unwrap_or_default())
    .execute(tx)
    .await
    .map(drop)
    .map_err(failed("record that a series was collected"))
}

/// Counts what an admin should know about, without reading what is whole.
pub fn troubles_query() -> Select {
    Select::new(
        "SELECT (SELECT COUNT(*) FROM backups WHERE state = 'committed' AND lost_packs > 0)
                + (SELECT COUNT(*) FROM backups
                   WHERE state = 'committed' AND manifest_lost = TRUE AND lost_packs = 0) AS damaged,
                (SELECT COUNT(*) FROM series_retention WHERE halted_ms IS NOT NULL) AS halted",
    )
}

/// Runs [`troubles_query`]: how many backups lack something, and series in which nothing is deleted.
///
/// # Errors
/// The database's own.
pub async fn troubles(tx: &mut Tx) -> Result<(u64, u64), StoreError> {
    let rows = troubles_query()
        .fetch(tx, "count what is damaged", |row| Ok((number(&row, "damaged")?, number(&row, "halted")?)));
    Ok(rows.await?.into_iter().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::states::PackEvent;

    #[test]
    fn moves_start_where_the_states_allow() {
        for (how, event) in [
            (PackMove::Refer, PackEvent::Refer),
            (PackMove::Retire, PackEvent::Retire),
            (PackMove::Doom, PackEvent::Doom),
            (PackMove::Delete, PackEvent::Delete),
            (PackMove::Remove, PackEvent::Remove),
        ] {
            let conditions = how.sql().split_once("WHERE").unwrap().1;
            for from in PackState::ALL {
                let moves = from.apply(event).is_ok_and(|to| to != *from);
                assert_eq!(conditions.contains(&format!("'{from}'")), moves, "{how:?} from {from}");
            }
        }
    }
}
