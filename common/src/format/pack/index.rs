//! The chunk index of a pack: which chunks it holds, readable by the host that wrote it and by nobody else. Twenty bytes a
//! chunk, `{chunk id 16, raw_len u32}`, in raw-space order, compressed with zstd.

use super::header::{INDEX, INDEX_NONCE, aad};
use super::{MAX_CHUNKS, PackError, PackHeader, PackMeta, PackProblem};
use crate::crypto::SeriesSecret;
use crate::format::chunk::{ChunkId, ChunkRecord};
use crate::format::names::ObjectName;
use crate::id::{PackId, SeriesId, Sha256};

const RECORD_LEN: usize = 20;
const LEVEL: i32 = 1;

/// Seals the index of a pack.
#[allow(clippy::expect_used)] // zstd fails only where memory does
pub(super) fn seal(
    secret: &SeriesSecret,
    pack: PackId,
    header_sha256: &Sha256,
    chunks: &[ChunkRecord],
) -> Vec<u8> {
    let mut records = Vec::with_capacity(chunks.len() * RECORD_LEN);
    for chunk in chunks {
        records.extend_from_slice(&chunk.id.0);
        records.extend_from_slice(&chunk.raw_len.to_le_bytes());
    }
    let mut sealed = zstd::bulk::compress(&records, LEVEL).expect("zstd compresses a buffer");
    secret.index_key(pack).seal(INDEX_NONCE, &aad(header_sha256, INDEX, None), &mut sealed);
    sealed
}

/// Opens the chunk index of a pack that this host wrote, from the end of the object: `index ‖ directory ‖ header`, without
/// the last 20 bytes. What the coordinator hands over is not believed: the index decrypts only with this series secret and
/// only beside the very header it was written with.
///
/// # Errors
/// [`PackError`]: treat the pack's chunks as absent then.
pub fn open_chunk_index(
    series: SeriesId,
    meta: &PackMeta,
    tail: &[u8],
    secret: &SeriesSecret,
) -> Result<Vec<ChunkRecord>, PackError> {
    let name: ObjectName = meta.name(series);
    open(series, meta, tail, secret).map_err(|problem| PackError { name, problem })
}

fn open(
    series: SeriesId,
    meta: &PackMeta,
    tail: &[u8],
    secret: &SeriesSecret,
) -> Result<Vec<ChunkRecord>, PackProblem> {
    meta.trailer().check(meta.size)?;
    let expected = meta.trailer().tail_len() - super::TRAILER_LEN as u64;
    if tail.len() as u64 != expected {
        return Err(PackProblem::Truncated { got: tail.len() as u64, expected });
    }
    let (index, rest) = tail.split_at(meta.index_len as usize);
    let (directory, header_bytes) = rest.split_at(meta.directory_len as usize);
    if Sha256::of(&[header_bytes, directory].concat()) != meta.meta_sha256 {
        return Err(PackProblem::Meta);
    }
    let header = PackHeader::parse(header_bytes)?;
    if header.owner.series != series {
        return Err(PackProblem::Foreign("series"));
    }
    if header.epoch != secret.epoch_id() {
        return Err(PackProblem::Foreign("dedup epoch"));
    }
    let aad = aad(&Sha256::of(header_bytes), INDEX, None);
    let plain = secret.index_key(header.pack).open(INDEX_NONCE, &aad, index);
    let plain = plain.map_err(|_| PackProblem::Index("does not decrypt: its bytes were altered"))?;
    decode(&plain)
}

fn decode(compressed: &[u8]) -> Result<Vec<ChunkRecord>, PackProblem> {
    let records = zstd::bulk::decompress(compressed, MAX_CHUNKS * RECORD_LEN)
        .map_err(|_| PackProblem::Index("does not decompress"))?;
    let (records, rest) = records.as_chunks::<RECORD_LEN>();
    if !rest.is_empty() {
        return Err(PackProblem::Index("ends in the middle of a record"));
    }
    let record = |bytes: &[u8; RECORD_LEN]| {
        let (mut id, mut raw_len) = ([0; 16], [0; 4]);
        id.copy_from_slice(&bytes[..16]);
        raw_len.copy_from_slice(&bytes[16..]);
        ChunkRecord { id: ChunkId(id), raw_len: u32::from_le_bytes(raw_len) }
    };
    Ok(records.iter().map(record).collect())
}
