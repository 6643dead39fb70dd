//! Backups: begun, prepared, and what became of them. A backup exists if and only if its manifest is in the bucket; these
//! rows follow.

use roaring::RoaringBitmap;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::EpochId;
use sealift_common::id::{AgentId, BackupId, RunId, SeriesId, Sha256};
use serde::{Deserialize, Serialize};
use sqlx::Row as _;

use super::retention::{decode_keeping, decode_refs};
use super::{Row, StoreError, Tx, as_i64, bytes, failed, flag, json, number, text, time, to_json};

pub use super::retention::{Keeping, Note};
pub use crate::retention::states::BackupState;

/// Which rows of `backups` are *good*: there, complete, and nothing that they need is missing or damaged, as far as anyone has
/// looked (a verification that finds something says so in the same columns). Whatever speaks of a good backup means this, or
/// the newest such one of a series, which `series_totals` has at hand: migration 0070 says it in the same words, and
/// `retention/plan.rs` of its candidates.
macro_rules! good {
    () => {
        "state = 'committed' AND NOT (partial OR manifest_lost OR lost_packs > 0)"
    };
}

/// The columns that [`decode`] reads. Not `used`: four bytes for each pack, which collection alone asks for.
macro_rules! columns {
    () => {
        "id, series_id, agent_id, run_id, attempt, state, sequence, previous_sha256, session_nonce, epoch_id, trust_version,
         kind, created_ms, manifest_sha256, manifest_size, public_sha256, signed_until_ms, refs, partial, raw_bytes,
         new_raw_bytes, new_stored_bytes, recipients, report, committed_ms, lost_packs, manifest_lost, verified_ms, held_ms,
         held_by, held_reason, expired_ms, expired_by, expired_reason, undeleted_ms"
    };
}
pub(super) const COLUMNS: &str = columns!();

/// One backup.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupRow {
    /// Its id.
    pub id: BackupId,
    /// Of which series.
    pub series: SeriesId,
    /// By which host.
    pub agent: AgentId,
    /// In which run.
    pub run: RunId,
    /// In the how-manieth attempt of that run.
    pub attempt: u32,
    /// Where it is.
    pub state: BackupState,
    /// Its place in the series: given at Begin, taken for good by Prepare.
    pub sequence: u64,
    /// Of the newest manifest known at Begin; `None` for the first.
    pub previous: Option<Sha256>,
    /// What the coordinator puts into its data key.
    pub session_nonce: [u8; 32],
    /// The dedup epoch of its packs.
    pub epoch: EpochId,
    /// Of the trust policy whose recipients it is sealed to.
    pub trust_version: u64,
    /// Of the source: postgres, mysql, …
    pub kind: String,
    /// When it was begun.
    pub created: UnixMillis,
    /// From Prepare on.
    pub prepared: Option<Prepared>,
    /// When its manifest was first seen in the bucket.
    pub committed: Option<UnixMillis>,
    /// What became of it since.
    pub keeping: Keeping,
}

/// What Prepare adds to a backup.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Of the whole manifest object.
    pub manifest_sha256: Sha256,
    /// Length of the manifest object.
    pub manifest_size: u64,
    /// Of its public part, which Prepare has checked.
    pub public_sha256: Sha256,
    /// The store may accept the manifest's PUT until then.
    pub signed_until: UnixMillis,
    /// Ordinals of its packs.
    pub refs: RoaringBitmap,
    /// It lacks something, and says what.
    pub partial: bool,
    /// What was read from the source.
    pub raw_bytes: u64,
    /// Of these, what earlier backups did not have.
    pub new_raw_bytes: u64,
    /// What was stored for it.
    pub new_stored_bytes: u64,
    /// Fingerprints of those who can open it.
    pub recipients: Vec<String>,
    /// What its agent says about it.
    pub report: AgentReport,
}

/// What an agent says about a backup, for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    /// What it lacks, and why.
    pub warnings: Vec<String>,
    /// How many more there were.
    pub warnings_omitted: u64,
    /// Its streams.
    pub streams: Vec<Stream>,
    /// Of the dump tool.
    pub tool_version: String,
    /// Of the database server.
    pub server_version: String,
}

/// One stream of a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// dump, pax-tar, catalog.
    pub kind: String,
    /// Its length.
    pub raw_bytes: u64,
}

pub(super) fn decode(row: Row) -> Result<BackupRow, sqlx::Error> {
    let wrong = |column: &str| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: "not of the right length".into(),
    };
    let nonce: Vec<u8> = row.try_get("session_nonce")?;
    let previous: Option<Vec<u8>> = row.try_get("previous_sha256")?;
    let previous = previous.map(|hash| Sha256::try_from(hash.as_slice())).transpose();
    let state: BackupState = text(&row, "state")?;
    Ok(BackupRow {
        id: text(&row, "id")?,
        series: text(&row, "series_id")?,
        agent: text(&row, "agent_id")?,
        run: text(&row, "run_id")?,
        attempt: number(&row, "attempt")?,
        state,
        sequence: number(&row, "sequence")?,
        previous: previous.map_err(|_| wrong("previous_sha256"))?,
        session_nonce: nonce.try_into().map_err(|_| wrong("session_nonce"))?,
        epoch: bytes(&row, "epoch_id")?,
        trust_version: number(&row, "trust_version")?,
        kind: row.try_get("kind")?,
        created: UnixMillis(row.try_get("created_ms")?),
        prepared: if state == BackupState::Begun { None } else { Some(decode_prepared(&row)?) },
        committed: time(&row, "committed_ms")?,
        keeping: decode_keeping(&row)?,
    })
}

fn decode_prepared(row: &Row) -> Result<Prepared, sqlx::Error> {
    Ok(Prepared {
        manifest_sha256: bytes(row, "manifest_sha256")?,
        manifest_size: number(row, "manifest_size")?,
        public_sha256: bytes(row, "public_sha256")?,
        signed_until: UnixMillis(row.try_get("signed_until_ms")?),
        refs: decode_refs(row)?,
        partial: flag(row, "partial")?,
        raw_bytes: number(row, "raw_bytes")?,
        new_raw_bytes: number(row, "new_raw_bytes")?,
        new_stored_bytes: number(row, "new_stored_bytes")?,
        recipients: json(row, "recipients")?,
        report: json(row, "report")?,
    })
}

/// Adds a backup that has begun.
///
/// # Errors
/// The database's own.
pub async fn insert(tx: &mut Tx, backup: &BackupRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO backups (id, series_id, agent_id, run_id, attempt, state, sequence, previous_sha256, session_nonce,
                              epoch_id, trust_version, kind, created_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(backup.id.to_string())
    .bind(backup.series.to_string())
    .bind(backup.agent.to_string())
    .bind(backup.run.to_string())
    .bind(i64::from(backup.attempt))
    .bind(backup.state.as_str())
    .bind(as_i64(backup.sequence))
    .bind(backup.previous.map(|hash| hash.to_vec()))
    .bind(backup.session_nonce.to_vec())
    .bind(backup.epoch.to_vec())
    .bind(as_i64(backup.trust_version))
    .bind(&backup.kind)
    .bind(backup.created.0)
    .execute(tx)
    .await
    .map_err(failed("add a backup"))?;
    Ok(())
}

/// Makes a begun (or abandoned) backup a committing one.
///
/// # Errors
/// The database's own; also where another manifest of the series has its sequence number.
pub async fn prepare(tx: &mut Tx, id: BackupId, prepared: &Prepared) -> Result<(), StoreError> {
    let mut refs = Vec::with_capacity(prepared.refs.serialized_size());
    // Writing to a vector cannot fail; an empty bitmap would be refused when it is read.
    let _ = prepared.refs.serialize_into(&mut refs);
    sqlx::query(
        "UPDATE backups SET state = 'committing', manifest_sha256 = $2, manifest_size = $3, public_sha256 = $4,
                signed_until_ms = $5, refs = $6, packs = $7, partial = $8, raw_bytes = $9, new_raw_bytes = $10,
                new_stored_bytes = $11, recipients = $12, report = $13 WHERE id = $1",
    )
    .bind(id.to_string())
    .bind(prepared.manifest_sha256.to_vec())
    .bind(as_i64(prepared.manifest_size))
    .bind(prepared.public_sha256.to_vec())
    .bind(prepared.signed_until.0)
    .bind(refs)
    .bind(as_i64(prepared.refs.len()))
    .bind(prepared.partial)
    .bind(as_i64(prepared.raw_bytes))
    .bind(as_i64(prepared.new_raw_bytes))
    .bind(as_i64(prepared.new_stored_bytes))
    .bind(to_json(&prepared.recipients))
    .bind(to_json(&prepared.report))
    .execute(tx)
    .await
    .map_err(failed("prepare a backup"))?;
    Ok(())
}

/// Moves a prepared backup to `state`; `committed` is when its manifest was seen.
///
/// # Errors
/// The database's own.
pub async fn resolve(
    tx: &mut Tx,
    id: BackupId,
    state: BackupState,
    committed: Option<UnixMillis>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE backups SET state = $2, committed_ms = $3 WHERE id = $1 AND state <> 'begun'")
        .bind(id.to_string())
        .bind(state.as_str())
        .bind(committed.map(|t| t.0))
        .execute(tx)
        .await
        .map_err(failed("resolve a backup"))?;
    Ok(())
}

const READ: &str = "read a backup";

/// The backup with this id, whatever became of it.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, id: BackupId) -> Result<Option<BackupRow>, StoreError> {
    sqlx::query(concat!("SELECT ", columns!(), " FROM backups WHERE id = $1"))
        .bind(id.to_string())
        .try_map(decode)
        .fetch_optional(tx)
        .await
        .map_err(failed(READ))
}

/// At most two backups that are committed, or expired and can be undeleted, whose ids start with `prefix`: one is
/// unambiguous.
///
/// # Errors
/// The database's own.
pub async fn by_prefix(tx: &mut Tx, prefix: &str) -> Result<Vec<BackupRow>, StoreError> {
    sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM backups WHERE id >= $1 AND id < $2 AND state IN ('committed', 'expired') ORDER BY id LIMIT 2"
    ))
    .bind(prefix)
    .bind(format!("{prefix}~")) // '~' sorts after every digit, letter and dash
    .try_map(decode)
    .fetch_all(tx)
    .await
    .map_err(failed(READ))
}

/// The next sequence number of a series: after every one that was ever signed for, arrived or not, and after those that a
/// lost database may have given away.
///
/// # Errors
/// The database's own.
pub async fn next_sequence(tx: &mut Tx, series: SeriesId) -> Result<u64, StoreError> {
    sqlx::query(
        "SELECT MAX(taken) + 1 AS next FROM (
            SELECT COALESCE(MAX(sequence), 0) AS taken FROM backups WHERE series_id = $1 AND state <> 'begun'
            UNION ALL SELECT sequence_floor FROM series WHERE id = $1) AS numbers",
    )
    .bind(series.to_string())
    .try_map(|row: Row| number(&row, "next"))
    .fetch_one(tx)
    .await
    .map_err(failed("count a series' backups"))
}

/// The backup of a series with the highest sequence number whose manifest is in the bucket, expired ones among them: what a
/// reader of the bucket alone sees as the newest.
///
/// # Errors
/// The database's own.
pub async fn head(tx: &mut Tx, series: SeriesId) -> Result<Option<BackupRow>, StoreError> {
    sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM backups WHERE series_id = $1 AND state <> 'begun' AND state IN ('committed', 'expired')
         ORDER BY sequence DESC LIMIT 1"
    ))
    .bind(series.to_string())
    .try_map(decode)
    .fetch_optional(tx)
    .await
    .map_err(failed(READ))
}

/// The newest good backup of a series.
///
/// # Errors
/// The database's own.
pub async fn newest_good(tx: &mut Tx, series: SeriesId) -> Result<Option<BackupRow>, StoreError> {
    sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM backups WHERE series_id = $1 AND ",
        good!(),
        " ORDER BY sequence DESC LIMIT 1"
    ))
    .bind(series.to_string())
    .try_map(decode)
    .fetch_optional(tx)
    .await
    .map_err(failed(READ))
}

/// What is best to restore of a series as of `at`: the newest good backup that was begun by then. Where there is no good one, the
/// newest that is whole; where there is none either, the newest.
///
/// # Errors
/// The database's own.
pub async fn newest_at(
    tx: &mut Tx,
    series: SeriesId,
    at: UnixMillis,
) -> Result<Option<BackupRow>, StoreError> {
    sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM backups WHERE id = COALESCE(
            (SELECT id FROM backups WHERE series_id = $1 AND created_ms <= $2 AND ",
        good!(),
        " ORDER BY sequence DESC LIMIT 1),
            (SELECT id FROM backups WHERE series_id = $1 AND created_ms <= $2 AND state = 'committed'
             ORDER BY CASE WHEN manifest_lost OR lost_packs > 0 THEN 1 ELSE 0 END, sequence DESC LIMIT 1))"
    ))
    .bind(series.to_string())
    .bind(at.0)
    .try_map(decode)
    .fetch_optional(tx)
    .await
    .map_err(failed(READ))
}

/// Committing backups, of one series or of all.
///
/// # Errors
/// The database's own.
pub async fn committing(
    tx: &mut Tx,
    series: Option<SeriesId>,
    limit: u32,
) -> Result<Vec<BackupRow>, StoreError> {
    sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM backups WHERE state = 'committing' AND ($1 = '' OR series_id = $1)
         ORDER BY signed_until_ms LIMIT $2"
    ))
    .bind(series.map(|s| s.to_string()).unwrap_or_default())
    .bind(i64::from(limit))
    .try_map(decode)
    .fetch_all(tx)
    .await
    .map_err(failed("find backups to resolve"))
}

/// Abandoned backups whose signature was good at or after `since`: their manifests might still arrive.
///
/// # Errors
/// The database's own.
pub async fn abandoned_since(
    tx: &mut Tx,
    since: UnixMillis,
    limit: u32,
) -> Result<Vec<BackupRow>, StoreError> {
    sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM backups WHERE state = 'abandoned' AND signed_until_ms >= $1 LIMIT $2"
    ))
    .bind(since.0)
    .bind(i64::from(limit))
    .try_map(decode)
    .fetch_all(tx)
    .await
    .map_err(failed("find backups to look at again"))
}
