//! Streams of bytes into packs and a manifest, as agents make them (docs/format.md, Pack and Manifest): nothing is looked
//! up, and pieces of 256 KiB are the chunks. Memory holds one pack.

use std::collections::BTreeMap;

use bytes::Bytes;
use sealift_common::format::chunk::{Chunk, ChunkId};
use sealift_common::format::extent::ExtentBuilder;
use sealift_common::format::frame::{FrameCompressor, RawFrame, TARGET_RAW};
use sealift_common::format::manifest::{Outcome, PackRef, Stream, StreamKind};
use sealift_common::format::pack::{BackupKeys, FrameJob, PackWriter};
use sealift_common::id::Random;

use super::RecoveryError;
use crate::objects::{ObjectErrorKind, ObjectStore, Put};

/// zstd's level: the text is repetitive, and nobody waits.
const LEVEL: i32 = 6;

/// Makes one backup's packs.
pub struct Sealer<'a> {
    objects: &'a ObjectStore,
    keys: &'a BackupKeys,
    random: &'a Random,
    chunk_key: [u8; 32],
    compressor: Option<FrameCompressor>,
    pack: Option<PackWriter>,
    packs: Vec<PackRef>,
    streams: Vec<Stream>,
}

/// One stream in the making.
pub struct Open {
    name: &'static str,
    hasher: blake3::Hasher,
    extents: ExtentBuilder,
    buffer: Vec<u8>,
}

/// What became of it all.
#[derive(Debug)]
pub struct Sealed {
    /// Packs, which are in the bucket.
    pub packs: Vec<PackRef>,
    /// Streams.
    pub streams: Vec<Stream>,
}

impl<'a> Sealer<'a> {
    /// Packs under `keys`, which go into `objects`.
    pub fn new(objects: &'a ObjectStore, keys: &'a BackupKeys, random: &'a Random) -> Self {
        Self {
            objects,
            keys,
            random,
            chunk_key: *keys.secret.chunk_id_key(keys.owner.series).expose(),
            compressor: None,
            pack: None,
            packs: Vec::new(),
            streams: Vec::new(),
        }
    }

    /// Begins a stream. Give it back to [`Sealer::end`].
    pub fn begin(&self, name: &'static str) -> Open {
        Open { name, hasher: blake3::Hasher::new(), extents: ExtentBuilder::new(), buffer: Vec::new() }
    }

    /// Appends to a stream.
    ///
    /// # Errors
    /// Where the bucket does not take a pack.
    pub async fn write(&mut self, open: &mut Open, bytes: &[u8]) -> Result<(), RecoveryError> {
        open.hasher.update(bytes);
        open.buffer.extend_from_slice(bytes);
        while open.buffer.len() >= TARGET_RAW {
            let rest = open.buffer.split_off(TARGET_RAW);
            let piece = std::mem::replace(&mut open.buffer, rest);
            self.piece(open, piece).await?;
        }
        Ok(())
    }

    /// Ends a stream.
    ///
    /// # Errors
    /// As [`Sealer::write`].
    pub async fn end(&mut self, mut open: Open) -> Result<(), RecoveryError> {
        let last = std::mem::take(&mut open.buffer);
        if !last.is_empty() {
            self.piece(&mut open, last).await?;
        }
        self.streams.push(Stream {
            name: open.name.to_owned(),
            kind: StreamKind::Dump,
            raw_len: open.extents.raw_len(),
            blake3: *open.hasher.finalize().as_bytes(),
            extents: open.extents.finish(),
            outcome: Outcome::Success,
            catalog_of: None,
            attributes: BTreeMap::new(),
        });
        Ok(())
    }

    /// Stores the last pack.
    ///
    /// # Errors
    /// As [`Sealer::write`].
    pub async fn finish(mut self) -> Result<Sealed, RecoveryError> {
        self.store_pack().await?;
        Ok(Sealed { packs: self.packs, streams: self.streams })
    }

    async fn piece(&mut self, open: &mut Open, data: Vec<u8>) -> Result<(), RecoveryError> {
        let len = data.len() as u64;
        let hash = blake3::keyed_hash(&self.chunk_key, &data);
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        let mut frame = RawFrame::new();
        frame.push(&Chunk { id: ChunkId(id), data: Bytes::from(data) });
        if self.pack.as_ref().is_some_and(PackWriter::is_full) {
            self.store_pack().await?;
        }
        let pack = self.pack.get_or_insert_with(|| self.keys.begin_pack(self.random));
        let at = pack.raw_len();
        // An empty pack takes any frame of this size; is_full() has left room in every other.
        let job =
            pack.assign(frame).map_err(|_| RecoveryError::Seal("a frame fits into no pack".to_owned()))?;
        let sealed = compress(job, self.compressor.take()).await?;
        self.compressor = Some(sealed.1);
        pack.complete(sealed.0).map_err(|error| RecoveryError::Seal(error.to_string()))?;
        // The next pack of the manifest is the one that is being filled.
        open.extents.push(u32::try_from(self.packs.len()).unwrap_or(u32::MAX), at, len);
        Ok(())
    }

    async fn store_pack(&mut self) -> Result<(), RecoveryError> {
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let stopped = |_| RecoveryError::Seal("the program stops".to_owned());
        let made = tokio::task::spawn_blocking(move || {
            pack.finish().map(|pack| (*pack.meta(), pack.body().concat()))
        });
        let (meta, body) =
            made.await.map_err(stopped)?.map_err(|error| RecoveryError::Seal(error.to_string()))?;
        let name = meta.name(self.keys.owner.series);
        match self.objects.put(&name.into(), Bytes::from(body), Put::New).await {
            Err(error) if error.kind != ObjectErrorKind::AlreadyThere => return Err(error.into()),
            _ => {}
        }
        self.packs.push(PackRef { meta, origin: self.keys.owner.backup, referenced_raw: 0 });
        Ok(())
    }
}

type Compressed = (sealift_common::format::pack::SealedFrame, FrameCompressor);

/// Not for the async threads.
async fn compress(job: FrameJob, compressor: Option<FrameCompressor>) -> Result<Compressed, RecoveryError> {
    let work = tokio::task::spawn_blocking(move || {
        let mut compressor = match compressor {
            Some(compressor) => compressor,
            None => FrameCompressor::new(LEVEL)?,
        };
        let (frame, _) = job.seal(&mut compressor);
        Ok::<_, std::io::Error>((frame, compressor))
    });
    let done = work.await.map_err(|_| RecoveryError::Seal("the program stops".to_owned()))?;
    done.map_err(|error| RecoveryError::Seal(error.to_string()))
}
