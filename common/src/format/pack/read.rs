//! Reading packs: first the end of the object, then the frames that are needed.

use std::ops::Range;

use prost::Message;
use sealift_proto::format as wire;

use super::header::{DIRECTORY, DIRECTORY_NONCE, FRAME, PackHeader, Trailer, aad, frame_nonce};
use super::{MAGIC, MAX_FRAMES, MAX_RAW, PackError, PackMeta, PackProblem, TRAILER_LEN};
use crate::crypto::aead::{AeadKey, TAG_LEN};
use crate::crypto::{DataKey, Identities, KeyOwner, KeySlots};
use crate::format::frame::{self, Codec, FrameDecompressor};
use crate::format::names::ObjectName;
use crate::id::{SeriesId, Sha256};

impl PackMeta {
    /// What a manifest would say of the pack with these bytes. Proves nothing about them but that they have the shape of one.
    ///
    /// # Errors
    /// [`PackError`] where they do not.
    pub fn of(series: SeriesId, bytes: &[u8]) -> Result<Self, PackError> {
        let sha256 = Sha256::of(bytes);
        let fail = |problem| PackError { name: ObjectName::Pack { series, sha256 }, problem };
        let size = bytes.len() as u64;
        let (rest, last) = bytes
            .split_last_chunk::<TRAILER_LEN>()
            .ok_or_else(|| fail(PackProblem::Truncated { got: size, expected: TRAILER_LEN as u64 }))?;
        let trailer = Trailer::parse(last, size).map_err(fail)?;
        let (rest, header) = rest.split_at(rest.len() - trailer.header_len as usize);
        let directory = &rest[rest.len() - trailer.directory_len as usize..];
        Ok(Self {
            sha256,
            size,
            meta_sha256: Sha256::of(&[header, directory].concat()),
            index_len: trailer.index_len,
            directory_len: trailer.directory_len,
            header_len: trailer.header_len,
        })
    }
}

/// The end of a pack, checked against what the manifest says of it, not decrypted yet.
#[derive(Debug, Clone)]
pub struct PackTail {
    name: ObjectName,
    meta: PackMeta,
    header: PackHeader,
    header_sha256: Sha256,
    directory: Vec<u8>,
}

impl PackTail {
    /// Checks the last bytes of a pack, at least [`PackMeta::suffix_len`] of them, against what a verified manifest says:
    /// `owner` is its repository and series, and the backup that the pack is attributed to.
    ///
    /// # Errors
    /// [`PackError`]: not one byte of the pack is to be used then.
    pub fn parse(owner: &KeyOwner, meta: &PackMeta, suffix: &[u8]) -> Result<Self, PackError> {
        let name = meta.name(owner.series);
        Self::check(owner, meta, name, suffix).map_err(|problem| PackError { name, problem })
    }

    /// As [`PackTail::parse`], where the whole object was read: its hash is checked too, so that no altered byte goes
    /// unnoticed, also in frames that are not needed.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn parse_whole(owner: &KeyOwner, meta: &PackMeta, bytes: &[u8]) -> Result<Self, PackError> {
        let name = meta.name(owner.series);
        let fail = |problem| PackError { name, problem };
        if bytes.len() as u64 != meta.size {
            return Err(fail(PackProblem::Truncated { got: bytes.len() as u64, expected: meta.size }));
        }
        if Sha256::of(bytes) != meta.sha256 {
            return Err(fail(PackProblem::Hash));
        }
        if !bytes.starts_with(MAGIC) {
            return Err(fail(PackProblem::Magic));
        }
        Self::check(owner, meta, name, bytes).map_err(fail)
    }

    fn check(
        owner: &KeyOwner,
        meta: &PackMeta,
        name: ObjectName,
        suffix: &[u8],
    ) -> Result<Self, PackProblem> {
        meta.trailer().check(meta.size)?;
        let (got, expected) = (suffix.len() as u64, meta.suffix_len());
        let truncated = PackProblem::Truncated { got, expected };
        if got < expected {
            return Err(truncated);
        }
        let (rest, last) = suffix.split_last_chunk::<TRAILER_LEN>().ok_or(truncated)?;
        if Trailer::parse(last, meta.size)? != meta.trailer() {
            return Err(PackProblem::Lengths);
        }
        let (rest, header_bytes) = rest.split_at(rest.len() - meta.header_len as usize);
        let directory = &rest[rest.len() - meta.directory_len as usize..];
        if Sha256::of(&[header_bytes, directory].concat()) != meta.meta_sha256 {
            return Err(PackProblem::Meta);
        }
        let header = PackHeader::parse(header_bytes)?;
        for (what, same) in [
            ("repository", header.owner.repository == owner.repository),
            ("series", header.owner.series == owner.series),
            ("backup", header.owner.backup == owner.backup),
        ] {
            if !same {
                return Err(PackProblem::Foreign(what));
            }
        }
        let header_sha256 = Sha256::of(header_bytes);
        Ok(Self { name, meta: *meta, header, header_sha256, directory: directory.to_vec() })
    }

    /// The header.
    pub fn header(&self) -> &PackHeader {
        &self.header
    }

    /// Opens the data key with private keys: from the header's own slots, or from `further` ones (`slots/` objects of the
    /// backup that it is attributed to). Once per backup is enough; [`PackTail::open`] checks the key for each pack.
    ///
    /// # Errors
    /// [`PackProblem::Slots`].
    pub fn unlock(&self, identities: &Identities, further: &[KeySlots]) -> Result<DataKey, PackError> {
        let commits = |key: &DataKey| key.commits_to(self.header.pack.as_bytes(), &self.header.commitment);
        let all = std::iter::once(&self.header.slots).chain(further);
        KeySlots::open_any(all, identities, &self.header.owner, commits)
            .map_err(|error| PackError { name: self.name, problem: PackProblem::Slots(error) })
    }

    /// Checks the commitment, decrypts the directory and checks that it adds up to the object.
    ///
    /// # Errors
    /// [`PackProblem::Commitment`] for another backup's key; [`PackProblem::Directory`].
    pub fn open(&self, data_key: &DataKey) -> Result<OpenPack, PackError> {
        self.open_directory(data_key).map_err(|problem| PackError { name: self.name, problem })
    }

    fn open_directory(&self, data_key: &DataKey) -> Result<OpenPack, PackProblem> {
        let PackHeader { owner, pack, commitment, .. } = &self.header;
        if !data_key.commits_to(pack.as_bytes(), commitment) {
            return Err(PackProblem::Commitment(owner.backup));
        }
        let key = data_key.pack_key(*pack, owner.repository, owner.series);
        let aad = aad(&self.header_sha256, DIRECTORY, None);
        let directory = key.open(DIRECTORY_NONCE, &aad, &self.directory);
        let directory =
            directory.map_err(|_| PackProblem::Directory("does not decrypt: its bytes were altered"))?;
        let directory = wire::PackDirectory::decode(directory.as_slice());
        let directory = directory.map_err(|_| PackProblem::Directory("is not protobuf"))?;
        let frames = frames(&directory.frames, self.meta.size - self.meta.trailer().tail_len())?;
        Ok(OpenPack { name: self.name, header_sha256: self.header_sha256, key, frames })
    }
}

/// Places the frames, which must fill the object from its magic up to `end`.
fn frames(entries: &[wire::Frame], end: u64) -> Result<Vec<FrameInfo>, PackProblem> {
    let bad = |problem| Err(PackProblem::Directory(problem));
    if entries.is_empty() || entries.len() > MAX_FRAMES {
        return bad("has no frames, or too many");
    }
    let (mut offset, mut raw_offset) = (MAGIC.len() as u64, 0);
    let mut frames = Vec::with_capacity(entries.len());
    for entry in entries {
        let Some(codec) = Codec::from_wire(entry.codec) else {
            return bad("names a codec unknown to this version");
        };
        let stored_raw = (entry.stored_len as usize).checked_sub(TAG_LEN).filter(|len| *len > 0);
        let Some(stored_raw) = stored_raw else { return bad("has an empty frame") };
        if entry.raw_len == 0 || entry.raw_len as usize > frame::MAX_RAW {
            return bad("has a frame of an impossible length");
        }
        if codec == Codec::Raw && stored_raw != entry.raw_len as usize {
            return bad("has a raw frame of two lengths");
        }
        let (stored_len, raw_len) = (entry.stored_len, entry.raw_len);
        frames.push(FrameInfo { offset, stored_len, raw_offset, raw_len, codec });
        offset += u64::from(stored_len);
        raw_offset += u64::from(raw_len);
    }
    if offset != end || raw_offset > MAX_RAW {
        return bad("does not add up to the object");
    }
    Ok(frames)
}

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameInfo {
    /// First byte in the object.
    pub offset: u64,
    /// Bytes in the object.
    pub stored_len: u32,
    /// First byte in the pack's raw space.
    pub raw_offset: u64,
    /// Bytes in the pack's raw space.
    pub raw_len: u32,
    /// How it is stored.
    pub codec: Codec,
}

/// A pack whose chain holds down to the directory: frames may be read. Shared by threads without locks.
#[derive(Debug)]
pub struct OpenPack {
    name: ObjectName,
    header_sha256: Sha256,
    key: AeadKey,
    frames: Vec<FrameInfo>,
}

impl OpenPack {
    /// The object's name.
    pub fn name(&self) -> ObjectName {
        self.name
    }

    /// All frames, in order, without gaps.
    pub fn frames(&self) -> &[FrameInfo] {
        &self.frames
    }

    /// Raw bytes in the pack.
    pub fn raw_len(&self) -> u64 {
        self.frames.last().map_or(0, |frame| frame.raw_offset + u64::from(frame.raw_len))
    }

    /// Numbers of the frames that hold `len` raw bytes from `raw_offset`; `None` where the pack has no such bytes.
    pub fn frames_for(&self, raw_offset: u64, len: u64) -> Option<Range<usize>> {
        let end = raw_offset.checked_add(len).filter(|end| *end <= self.raw_len())?;
        let from =
            self.frames.partition_point(|frame| frame.raw_offset + u64::from(frame.raw_len) <= raw_offset);
        let to = self.frames.partition_point(|frame| frame.raw_offset < end);
        Some(from..to.max(from))
    }

    /// Decrypts and decompresses frame `number` from its stored bytes: exactly its `raw_len` bytes.
    ///
    /// # Errors
    /// [`PackProblem::Frame`] where anything does not match.
    pub fn open_frame(
        &self,
        number: usize,
        stored: &[u8],
        decompressor: &mut FrameDecompressor,
    ) -> Result<Vec<u8>, PackError> {
        let fail = |problem| PackError { name: self.name, problem: PackProblem::Frame { number, problem } };
        let frame = self.frames.get(number).ok_or_else(|| fail("does not exist"))?;
        if stored.len() != frame.stored_len as usize {
            return Err(fail("is not as long as the directory says"));
        }
        let aad = aad(&self.header_sha256, FRAME, Some(number as u64));
        let plain = self.key.open(frame_nonce(number as u64), &aad, stored);
        let plain = plain.map_err(|_| fail("does not decrypt: its bytes were altered"))?;
        let raw = decompressor.decompress(frame.codec, plain, frame.raw_len as usize);
        raw.ok_or_else(|| fail("does not decompress to its length"))
    }
}
