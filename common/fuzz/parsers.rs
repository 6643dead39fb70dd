//! Each parser of stored bytes, as somebody meets it who can write whatever they like into the bucket: given any bytes, it
//! must give an error or a value, within bounds. Names and hashes are made to fit, so that what lies behind them is reached.
//!
//! Used by the fuzz targets (`fuzz_targets/`) and, over mutated golden vectors, by `common/tests/parsers.rs`. To add one: a
//! function here, a line in [`ALL`], a target.
#![allow(dead_code)] // each target uses one of them

use sealift_common::crypto::{AgentKeyObject, KeyOwner, KeySlots, SeriesSecret, TrustObject};
use sealift_common::format::catalog::CatalogReader;
use sealift_common::format::manifest::{Manifest, ManifestPublic};
use sealift_common::format::names::ObjectName;
use sealift_common::format::pack::{PackMeta, PackTail, open_chunk_index};
use sealift_common::id::{BackupId, RepositoryId, SeriesId, Sha256};
use sealift_common::restore::tar::TarReader;

/// A parser that is given any bytes.
pub type Parser = fn(&[u8]);

/// All of them, by name.
pub const ALL: &[(&str, Parser)] = &[
    ("manifest", manifest),
    ("public", public),
    ("pack", pack),
    ("chunk_index", chunk_index),
    ("trust", trust),
    ("agent_key", agent_key),
    ("slots", slots),
    ("catalog", catalog),
    ("tar", tar),
    ("names", names),
];

/// The length of the trailer of a pack.
const TRAILER: usize = 20;

/// A manifest under a name that fits its bytes.
pub fn manifest(bytes: &[u8]) {
    let (repository, series, sequence) = match public_part(bytes).map(ManifestPublic::decode) {
        Some(Ok(public)) => (public.owner.repository, public.owner.series, public.sequence),
        _ => (RepositoryId::from_bytes([1; 16]), SeriesId::from_bytes([2; 16]), 1),
    };
    let name = ObjectName::Manifest { series, sequence, sha256: Sha256::of(bytes) };
    let _ = Manifest::parse(repository, &name, bytes);
}

/// The public part of a manifest alone.
pub fn public(bytes: &[u8]) {
    let _ = ManifestPublic::decode(public_part(bytes).unwrap_or(bytes));
}

fn public_part(bytes: &[u8]) -> Option<&[u8]> {
    let len = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    bytes.get(12..)?.get(..len as usize)
}

/// A pack, read whole and by its tail, described as its own trailer and header say.
pub fn pack(bytes: &[u8]) {
    let meta = meta(bytes);
    for owner in owners(bytes, &meta) {
        let _ = PackTail::parse_whole(&owner, &meta, bytes);
        let _ = PackTail::parse(&owner, &meta, bytes);
    }
}

/// The chunk index of a pack, as its host is handed it.
pub fn chunk_index(bytes: &[u8]) {
    let meta = meta(bytes);
    let secret = SeriesSecret::from_bytes([3; 32]);
    for owner in owners(bytes, &meta) {
        let end = bytes.len().saturating_sub(TRAILER);
        let parts = [meta.index_len, meta.directory_len, meta.header_len];
        let len = parts.iter().fold(0_usize, |sum, len| sum.saturating_add(*len as usize));
        let tail = bytes.get(end.saturating_sub(len)..end).unwrap_or_default();
        let _ = open_chunk_index(owner.series, &meta, tail, &secret);
        let _ = open_chunk_index(owner.series, &meta, bytes, &secret);
    }
}

/// What a manifest would have to say of a pack with these bytes.
fn meta(bytes: &[u8]) -> PackMeta {
    let word = |from_end: usize| {
        let at = bytes.len().checked_sub(from_end)?;
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let (index_len, directory_len, header_len) =
        (word(20).unwrap_or(0), word(16).unwrap_or(0), word(12).unwrap_or(0));
    let end = bytes.len().saturating_sub(TRAILER);
    let header_at = end.saturating_sub(header_len as usize);
    let directory_at = header_at.saturating_sub(directory_len as usize);
    PackMeta {
        sha256: Sha256::of(bytes),
        size: bytes.len() as u64,
        meta_sha256: Sha256::of(&[&bytes[header_at..end], &bytes[directory_at..header_at]].concat()),
        index_len,
        directory_len,
        header_len,
    }
}

/// Whose the pack says it is (the ids come first in a header, each with two bytes before it), and somebody else.
fn owners(bytes: &[u8], meta: &PackMeta) -> [KeyOwner; 2] {
    let end = bytes.len().saturating_sub(TRAILER);
    let header = &bytes[end.saturating_sub(meta.header_len as usize)..end];
    let id = |at: usize| header.get(at..at + 16).and_then(|id| <[u8; 16]>::try_from(id).ok());
    let owner = |repository, series, backup| KeyOwner {
        repository: RepositoryId::from_bytes(repository),
        series: SeriesId::from_bytes(series),
        backup: BackupId::from_bytes(backup),
    };
    [
        owner(id(2).unwrap_or_default(), id(20).unwrap_or_default(), id(38).unwrap_or_default()),
        owner([1; 16], [2; 16], [3; 16]),
    ]
}

/// A trust policy.
pub fn trust(bytes: &[u8]) {
    if let Ok(object) = TrustObject::parse(bytes) {
        let _ = (object.name().to_string(), object.signers());
    }
}

/// A key of an agent.
pub fn agent_key(bytes: &[u8]) {
    if let Ok(object) = AgentKeyObject::parse(bytes) {
        let _ = (object.name().to_string(), object.is_self_signed());
    }
}

/// Key slots.
pub fn slots(bytes: &[u8]) {
    let _ = KeySlots::parse(bytes);
}

/// A catalog, in two pieces.
pub fn catalog(bytes: &[u8]) {
    let mut reader = CatalogReader::new();
    for piece in [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]] {
        reader.push(piece);
        while let Ok(Some(_)) = reader.next_entry() {}
    }
    let _ = reader.finish();
}

/// An archive. Its members are not written anywhere here.
pub fn tar(bytes: &[u8]) {
    let mut reader = TarReader::new(bytes);
    while let Ok(Some(_)) = reader.next_member() {}
}

/// The name of an object.
pub fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(name) = text.parse::<ObjectName>() {
        assert_eq!(name.to_string(), text, "a name has one form");
    }
}
