//! The header of a pack, and the twenty bytes behind it.

use prost::Message;
use sealift_proto::format as wire;

use super::{END_MAGIC, MAGIC, MAX_DIRECTORY, MAX_HEADER, MAX_INDEX, MAX_STORED, PackProblem, TRAILER_LEN};
use crate::crypto::aead::TAG_LEN;
use crate::crypto::{EpochId, KeyOwner, KeySlots};
use crate::id::{BackupId, PackId, RepositoryId, SeriesId, Sha256};

/// The lengths at the end of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Trailer {
    /// Sealed chunk index, in bytes.
    pub index_len: u32,
    /// Sealed directory, in bytes.
    pub directory_len: u32,
    /// Header, in bytes.
    pub header_len: u32,
}

impl Trailer {
    /// Reads the last [`TRAILER_LEN`] bytes of a pack of `size` bytes: the way in where no manifest names the lengths.
    ///
    /// # Errors
    /// [`PackProblem::Magic`], [`PackProblem::TooLong`], [`PackProblem::Truncated`] where the parts do not fit into `size`.
    pub fn parse(last: &[u8; TRAILER_LEN], size: u64) -> Result<Self, PackProblem> {
        let (lengths, magic) = last.as_chunks::<4>().0.split_at(3);
        if magic.concat() != END_MAGIC {
            return Err(PackProblem::Magic);
        }
        let [index_len, directory_len, header_len] = [0, 1, 2].map(|at| u32::from_le_bytes(lengths[at]));
        let trailer = Self { index_len, directory_len, header_len };
        trailer.check(size)?;
        Ok(trailer)
    }

    /// Checks the lengths against the caps and against the size of the object.
    ///
    /// # Errors
    /// [`PackProblem::TooLong`] and [`PackProblem::Truncated`].
    pub fn check(&self, size: u64) -> Result<(), PackProblem> {
        for (part, len, cap) in [
            ("chunk index", self.index_len.into(), MAX_INDEX.into()),
            ("frame directory", self.directory_len.into(), MAX_DIRECTORY.into()),
            ("header", self.header_len.into(), MAX_HEADER.into()),
            ("object", size, MAX_STORED),
        ] {
            if len > cap {
                return Err(PackProblem::TooLong { part, len, cap });
            }
        }
        let least = MAGIC.len() as u64 + self.tail_len() + TAG_LEN as u64 + 1;
        if size < least {
            return Err(PackProblem::Truncated { got: size, expected: least });
        }
        Ok(())
    }

    /// Bytes of index, directory, header and trailer.
    pub fn tail_len(&self) -> u64 {
        u64::from(self.index_len)
            + u64::from(self.directory_len)
            + u64::from(self.header_len)
            + TRAILER_LEN as u64
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let lengths = [self.index_len, self.directory_len, self.header_len].map(u32::to_le_bytes);
        [lengths.concat().as_slice(), END_MAGIC].concat()
    }
}

/// The header of a pack: whose it is, and the slots to open it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackHeader {
    /// Whose data key it is sealed under.
    pub owner: KeyOwner,
    /// The pack.
    pub pack: PackId,
    /// The dedup epoch.
    pub epoch: EpochId,
    /// What commits it to the data key.
    pub commitment: Vec<u8>,
    /// The data key, encrypted to the recipients.
    pub slots: KeySlots,
}

impl PackHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        wire::PackHeader {
            repository_id: self.owner.repository.to_vec(),
            series_id: self.owner.series.to_vec(),
            backup_id: self.owner.backup.to_vec(),
            pack_id: self.pack.to_vec(),
            epoch_id: self.epoch.to_vec(),
            aead: wire::Aead::Aes256Gcm.into(),
            key_commitment: self.commitment.clone(),
            slots: self.slots.to_wire(),
            required_features: Vec::new(),
        }
        .encode_to_vec()
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, PackProblem> {
        let bad = |problem: String| PackProblem::Header(problem);
        let header = wire::PackHeader::decode(bytes).map_err(|_| bad("not protobuf".to_owned()))?;
        if !header.required_features.is_empty() {
            return Err(PackProblem::RequiredFeatures(header.required_features));
        }
        if header.aead() != wire::Aead::Aes256Gcm {
            return Err(bad(format!("AEAD {} is not known to this version", header.aead)));
        }
        if header.key_commitment.len() != 32 {
            return Err(bad("its key commitment is not 32 bytes".to_owned()));
        }
        let id = |e: crate::id::InvalidId| bad(e.to_string());
        Ok(Self {
            owner: KeyOwner {
                repository: RepositoryId::try_from(header.repository_id.as_slice()).map_err(id)?,
                series: SeriesId::try_from(header.series_id.as_slice()).map_err(id)?,
                backup: BackupId::try_from(header.backup_id.as_slice()).map_err(id)?,
            },
            pack: PackId::try_from(header.pack_id.as_slice()).map_err(id)?,
            epoch: EpochId::try_from(header.epoch_id.as_slice()).map_err(|e| bad(e.to_string()))?,
            commitment: header.key_commitment,
            slots: KeySlots::from_wire(header.slots).map_err(PackProblem::Slots)?,
        })
    }
}

/// What binds a sealed part to the header: H ‖ purpose (‖ number).
pub(super) fn aad(header_sha256: &Sha256, purpose: u8, number: Option<u64>) -> Vec<u8> {
    let mut aad = Vec::with_capacity(41);
    aad.extend_from_slice(header_sha256.as_bytes());
    aad.push(purpose);
    if let Some(number) = number {
        aad.extend_from_slice(&number.to_be_bytes());
    }
    aad
}

pub(super) const FRAME: u8 = 0x01;
pub(super) const DIRECTORY: u8 = 0x02;
pub(super) const INDEX: u8 = 0x03;

/// 00000000 ‖ u64be(number).
pub(super) fn frame_nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce
}

/// ffffffff ‖ u64be(0): never a frame's, as it is sealed under the same key.
pub(super) const DIRECTORY_NONCE: [u8; 12] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
/// The index has a key of its own.
pub(super) const INDEX_NONCE: [u8; 12] = [0; 12];
