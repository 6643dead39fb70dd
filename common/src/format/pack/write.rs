//! Making packs. The header is fixed before the first frame (its hash goes into every seal), so workers compress and seal
//! frames of one pack side by side while others still arrive.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use sealift_proto::format as wire;

use super::header::{DIRECTORY, DIRECTORY_NONCE, FRAME, PackHeader, Trailer, aad, frame_nonce};
use super::{
    MAGIC, MAX_CHUNKS, MAX_FRAMES, MAX_RAW, MAX_STORED, PackError, PackMeta, PackProblem, PackTail,
    TARGET_STORED, TRAILER_LEN, index,
};
use crate::crypto::aead::{AeadKey, TAG_LEN};
use crate::crypto::{DataKey, KeyOwner, KeySlots, Recipient, SeriesSecret, SlotError};
use crate::format::chunk::ChunkRecord;
use crate::format::frame::{self, Codec, FrameCompressor, RawFrame};
use crate::id::{PackId, Random, Sha256};

/// What all packs and the manifest of one backup are sealed with. A lost session ends it: the run goes on with new ones.
#[derive(Debug, Clone)]
pub struct BackupKeys {
    /// Whose data key it is.
    pub owner: KeyOwner,
    /// The data key.
    pub data_key: DataKey,
    /// The data key, encrypted to the recipients.
    pub slots: KeySlots,
    /// The series secret of the dedup epoch.
    pub secret: SeriesSecret,
}

impl BackupKeys {
    /// Derives a fresh data key for `owner` and encrypts it to `recipients`.
    ///
    /// # Errors
    /// As [`KeySlots::seal`].
    pub fn generate(
        random: &Random,
        session_nonce: &[u8; 32],
        owner: KeyOwner,
        secret: SeriesSecret,
        recipients: &[Recipient],
    ) -> Result<Self, SlotError> {
        let data_key = DataKey::derive(random, session_nonce, &secret);
        let slots = KeySlots::seal(&data_key, &owner, recipients)?;
        Ok(Self { owner, data_key, slots, secret })
    }

    /// Begins a pack under a fresh pack id.
    pub fn begin_pack(&self, random: &Random) -> PackWriter {
        PackWriter {
            seal: Arc::new(Seal::new(self, PackId::generate(random))),
            secret: self.secret.clone(),
            chunks: Vec::new(),
            frames: BTreeMap::new(),
            assigned: 0,
            assigned_raw: 0,
            completed_raw: 0,
            completed_stored: 0,
        }
    }
}

/// The header of a pack that is being made, and the key under it.
struct Seal {
    header: PackHeader,
    header_bytes: Vec<u8>,
    header_sha256: Sha256,
    key: AeadKey,
}

impl Seal {
    fn new(keys: &BackupKeys, pack: PackId) -> Self {
        let header = PackHeader {
            owner: keys.owner,
            pack,
            epoch: keys.secret.epoch_id(),
            commitment: keys.data_key.commitment(pack.as_bytes()).to_vec(),
            slots: keys.slots.clone(),
        };
        let header_bytes = header.encode();
        let key = keys.data_key.pack_key(pack, keys.owner.repository, keys.owner.series);
        Self { header_sha256: Sha256::of(&header_bytes), header, header_bytes, key }
    }

    fn frame(&self, number: u64, plain: &[u8]) -> Bytes {
        let mut sealed = Vec::with_capacity(plain.len() + TAG_LEN);
        sealed.extend_from_slice(plain);
        self.key.seal(frame_nonce(number), &aad(&self.header_sha256, FRAME, Some(number)), &mut sealed);
        sealed.into()
    }
}

/// A pack that cannot take what it is given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackWriteError {
    /// Frames were assigned that have not come back.
    #[error("pack {pack} cannot be finished: {pending} of its frames are still being sealed")]
    Pending {
        /// The pack.
        pack: PackId,
        /// Frames outstanding.
        pending: u64,
    },
    /// Nothing was assigned.
    #[error("pack {0} cannot be finished: it is empty")]
    Empty(PackId),
    /// A frame of another pack, or one that came twice.
    #[error("frame {number} is not one that pack {pack} waits for")]
    Unexpected {
        /// The pack.
        pack: PackId,
        /// The frame's number.
        number: u64,
    },
}

/// One pack in the making.
pub struct PackWriter {
    seal: Arc<Seal>,
    secret: SeriesSecret,
    chunks: Vec<ChunkRecord>,
    frames: BTreeMap<u64, SealedFrame>,
    assigned: u64,
    assigned_raw: u64,
    completed_raw: u64,
    completed_stored: u64,
}

impl PackWriter {
    /// The pack's id.
    pub fn id(&self) -> PackId {
        self.seal.header.pack
    }

    /// Raw bytes assigned so far: where the next frame's chunks will lie in the pack's raw space.
    pub fn raw_len(&self) -> u64 {
        self.assigned_raw
    }

    /// Bytes of the frames that are sealed.
    pub fn stored_len(&self) -> u64 {
        self.completed_stored
    }

    /// Frames that are being sealed.
    pub fn pending(&self) -> u64 {
        self.assigned - self.frames.len() as u64
    }

    /// Whether it is time to begin another pack: the target is reached by what is sealed, together with what is being sealed
    /// at the ratio seen so far; or a limit of the format is near.
    pub fn is_full(&self) -> bool {
        let pending_raw = self.assigned_raw - self.completed_raw;
        let pending = match self.completed_raw {
            0 => 0,
            raw => u128::from(pending_raw) * u128::from(self.completed_stored) / u128::from(raw),
        };
        u128::from(self.completed_stored) + pending >= u128::from(TARGET_STORED)
            || !self.has_room_for(frame::TARGET_RAW as u64, 64)
    }

    /// Whether a frame of these raw bytes and chunks keeps the pack within the format's limits even if nothing compresses.
    fn has_room_for(&self, raw_len: u64, chunks: usize) -> bool {
        let pending_raw = self.assigned_raw - self.completed_raw;
        let (frames, chunks) = (self.assigned + 1, self.chunks.len() + chunks);
        // 20 bytes a frame is more than a directory entry has; zstd adds less than 1/128 to what does not compress.
        let overhead =
            frames * (20 + TAG_LEN as u64) + chunks as u64 * 21 + self.seal.header_bytes.len() as u64 + 4096;
        self.completed_stored + pending_raw + raw_len + overhead <= MAX_STORED
            && self.assigned_raw + raw_len <= MAX_RAW
            && frames <= MAX_FRAMES as u64
            && chunks <= MAX_CHUNKS
    }

    /// Gives `frame` the next place in the pack: its chunks lie at [`PackWriter::raw_len`] as it was before this call.
    ///
    /// # Errors
    /// The frame itself, where this pack has no room for it: finish this pack and begin another.
    #[allow(clippy::result_large_err)] // it is moved through, not an error to be kept
    pub fn assign(&mut self, frame: RawFrame) -> Result<FrameJob, RawFrame> {
        let raw_len = frame.data().len() as u64;
        if frame.is_empty()
            || raw_len > frame::MAX_RAW as u64
            || !self.has_room_for(raw_len, frame.chunks().len())
        {
            return Err(frame);
        }
        let job = FrameJob { seal: Arc::clone(&self.seal), number: self.assigned, frame };
        self.chunks.extend_from_slice(job.frame.chunks());
        self.assigned += 1;
        self.assigned_raw += raw_len;
        Ok(job)
    }

    /// Takes back a sealed frame; they may come in any order.
    ///
    /// # Errors
    /// [`PackWriteError::Unexpected`].
    pub fn complete(&mut self, frame: SealedFrame) -> Result<(), PackWriteError> {
        let (pack, number) = (self.id(), frame.number);
        if frame.pack != pack || number >= self.assigned || self.frames.contains_key(&number) {
            return Err(PackWriteError::Unexpected { pack, number });
        }
        self.completed_raw += u64::from(frame.raw_len);
        self.completed_stored += frame.bytes.len() as u64;
        self.frames.insert(number, frame);
        Ok(())
    }

    /// Puts the pack together. Hashes all of it: keep it off the async threads.
    ///
    /// # Errors
    /// [`PackWriteError::Pending`] and [`PackWriteError::Empty`].
    pub fn finish(self) -> Result<Pack, PackWriteError> {
        let pack = self.id();
        match self.pending() {
            0 if self.assigned == 0 => Err(PackWriteError::Empty(pack)),
            0 => {
                Ok(Pack::assemble(self.seal, &self.secret, self.frames.into_values().collect(), self.chunks))
            }
            pending => Err(PackWriteError::Pending { pack, pending }),
        }
    }
}

/// The right and duty to seal one frame, once: no nonce is used twice. Goes to a worker thread.
pub struct FrameJob {
    seal: Arc<Seal>,
    number: u64,
    frame: RawFrame,
}

impl FrameJob {
    /// Compresses and seals the frame; gives back its emptied buffer for the next one.
    pub fn seal(mut self, compressor: &mut FrameCompressor) -> (SealedFrame, RawFrame) {
        let raw_len = u32::try_from(self.frame.data().len()).unwrap_or(u32::MAX); // assign() has seen to 16 MiB
        let (codec, plain) = compressor.compress(self.frame.data());
        let bytes = self.seal.frame(self.number, plain);
        self.frame.clear();
        (SealedFrame { pack: self.seal.header.pack, number: self.number, raw_len, codec, bytes }, self.frame)
    }
}

/// A frame on its way back into its pack.
#[derive(Debug, Clone)]
pub struct SealedFrame {
    pack: PackId,
    number: u64,
    raw_len: u32,
    codec: Codec,
    bytes: Bytes,
}

impl SealedFrame {
    /// Raw bytes in it.
    pub fn raw_len(&self) -> u32 {
        self.raw_len
    }

    /// Bytes it takes in the pack.
    pub fn stored_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A finished pack: the object's bytes, and what the session needs to seal it anew should it be lost before it is stored.
#[derive(Clone)]
pub struct Pack {
    seal: Arc<Seal>,
    meta: PackMeta,
    frames: Vec<SealedFrame>,
    chunks: Vec<ChunkRecord>,
    body: Vec<Bytes>,
}

impl Pack {
    fn assemble(
        seal: Arc<Seal>,
        secret: &SeriesSecret,
        frames: Vec<SealedFrame>,
        chunks: Vec<ChunkRecord>,
    ) -> Self {
        let index = index::seal(secret, seal.header.pack, &seal.header_sha256, &chunks);
        let entry = |frame: &SealedFrame| wire::Frame {
            stored_len: u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX),
            raw_len: frame.raw_len,
            codec: frame.codec.to_wire().into(),
        };
        let mut directory =
            wire::PackDirectory { frames: frames.iter().map(entry).collect() }.encode_to_vec();
        seal.key.seal(DIRECTORY_NONCE, &aad(&seal.header_sha256, DIRECTORY, None), &mut directory);
        // All three are below 64 MiB: has_room_for() has seen to it.
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let trailer = Trailer {
            index_len: len(&index),
            directory_len: len(&directory),
            header_len: len(&seal.header_bytes),
        };
        let meta_sha256 = Sha256::of(&[seal.header_bytes.as_slice(), &directory].concat());

        let mut body = Vec::with_capacity(frames.len() + 4);
        body.push(Bytes::from_static(MAGIC));
        body.extend(frames.iter().map(|frame| frame.bytes.clone()));
        let tail = [index.as_slice(), &directory, &seal.header_bytes, &trailer.encode()].concat();
        body.push(tail.into());
        let meta = PackMeta {
            sha256: hash(&body),
            size: body.iter().map(|part| part.len() as u64).sum(),
            meta_sha256,
            index_len: trailer.index_len,
            directory_len: trailer.directory_len,
            header_len: trailer.header_len,
        };
        Self { seal, meta, frames, chunks, body }
    }

    /// Takes up again a pack that waited on disk: it must have been sealed with `keys`.
    ///
    /// # Errors
    /// [`PackError`] where its bytes are not what was written.
    pub fn load(bytes: &Bytes, keys: &BackupKeys) -> Result<Self, PackError> {
        let meta = PackMeta::of(keys.owner.series, bytes)?;
        let tail = PackTail::parse_whole(&keys.owner, &meta, bytes)?;
        let open = tail.open(&keys.data_key)?;
        let end = bytes.len() - TRAILER_LEN;
        let start = bytes.len() - usize::try_from(meta.trailer().tail_len()).unwrap_or(bytes.len());
        let chunks = index::open_chunk_index(keys.owner.series, &meta, &bytes[start..end], &keys.secret)?;
        let pack = tail.header().pack;
        let frames = open.frames().iter().zip(0..).map(|(frame, number)| {
            let at = usize::try_from(frame.offset).unwrap_or(usize::MAX);
            let bytes = bytes.slice(at..at + frame.stored_len as usize);
            SealedFrame { pack, number, raw_len: frame.raw_len, codec: frame.codec, bytes }
        });
        let frames = frames.collect();
        let header_bytes = bytes[end - meta.header_len as usize..end].to_vec();
        let seal = Seal {
            header_sha256: Sha256::of(&header_bytes),
            header: tail.header().clone(),
            header_bytes,
            key: keys.data_key.pack_key(pack, keys.owner.repository, keys.owner.series),
        };
        Ok(Self { seal: Arc::new(seal), meta, frames, chunks, body: vec![bytes.clone()] })
    }

    /// The same chunks in the same places, under new keys and a new pack id: what a lost session leaves to do for packs that
    /// are not stored yet. Nothing is decompressed. Keep it off the async threads.
    ///
    /// # Errors
    /// [`PackError`] where memory no longer holds what was sealed.
    pub fn reseal(&self, keys: &BackupKeys, random: &Random) -> Result<Self, PackError> {
        let seal = Arc::new(Seal::new(keys, PackId::generate(random)));
        let reseal = |frame: &SealedFrame| {
            let aad = aad(&self.seal.header_sha256, FRAME, Some(frame.number));
            let plain = self.seal.key.open(frame_nonce(frame.number), &aad, &frame.bytes);
            let plain = zeroize::Zeroizing::new(plain.map_err(|_| PackError {
                name: self.meta.name(self.seal.header.owner.series),
                problem: PackProblem::Frame {
                    number: usize::try_from(frame.number).unwrap_or(usize::MAX),
                    problem: "does not decrypt: its bytes were altered",
                },
            })?);
            let bytes = seal.frame(frame.number, &plain);
            Ok(SealedFrame { pack: seal.header.pack, bytes, ..frame.clone() })
        };
        let frames = self.frames.iter().map(reseal).collect::<Result<_, PackError>>()?;
        Ok(Self::assemble(seal, &keys.secret, frames, self.chunks.clone()))
    }

    /// The pack's id.
    pub fn id(&self) -> PackId {
        self.seal.header.pack
    }

    /// The backup whose data key it is sealed under.
    pub fn owner(&self) -> &KeyOwner {
        &self.seal.header.owner
    }

    /// Hash and lengths, as the manifest names them.
    pub fn meta(&self) -> &PackMeta {
        &self.meta
    }

    /// The object's bytes, in order: some hundred buffers, cheap to clone.
    pub fn body(&self) -> &[Bytes] {
        &self.body
    }

    /// The chunks it holds, in raw-space order from offset 0: what the index cache takes in once the pack is stored.
    pub fn chunks(&self) -> &[ChunkRecord] {
        &self.chunks
    }

    /// Raw bytes in it.
    pub fn raw_len(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.raw_len)).sum()
    }
}

impl std::fmt::Debug for Pack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pack").field("id", &self.id()).field("meta", &self.meta).finish_non_exhaustive()
    }
}

fn hash(body: &[Bytes]) -> Sha256 {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    body.iter().for_each(|part| context.update(part));
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    Sha256::from_bytes(out)
}
