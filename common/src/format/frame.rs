//! Frames: runs of whole new chunks that are compressed and sealed together (docs/format.md, Pack). A chunk is the unit of
//! deduplication, a frame the coarser unit of compression.

use std::io;

use sealift_proto::format::Codec as WireCodec;
use zstd::bulk::{Compressor, Decompressor};

use super::chunk::{Chunk, ChunkRecord};

/// A frame is closed when the next chunk would take it beyond this many raw bytes.
///
/// "About 256 KiB", from above: up to 256 KiB zstd takes smaller tables, and a database dump comes out 3 % larger in the
/// same time.
pub const TARGET_RAW: usize = 320 * 1024;
/// Most raw bytes of a frame.
pub const MAX_RAW: usize = 16 * 1024 * 1024;

/// How the plaintext of a frame is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it is: compression did not pay.
    Raw,
    /// One zstd frame without dictionary.
    Zstd,
}

impl Codec {
    /// As the directory records it.
    pub fn to_wire(self) -> WireCodec {
        match self {
            Self::Raw => WireCodec::Raw,
            Self::Zstd => WireCodec::Zstd,
        }
    }

    /// As the directory records it; `None` for what this version does not know.
    pub fn from_wire(codec: i32) -> Option<Self> {
        match WireCodec::try_from(codec).ok()? {
            WireCodec::Unspecified => None,
            WireCodec::Raw => Some(Self::Raw),
            WireCodec::Zstd => Some(Self::Zstd),
        }
    }
}

/// Chunks that will become one frame: their bytes, copied once into one buffer, and their records.
#[derive(Debug, Clone, Default)]
pub struct RawFrame {
    data: Vec<u8>,
    chunks: Vec<ChunkRecord>,
}

impl RawFrame {
    /// An empty frame with room for [`TARGET_RAW`] bytes.
    pub fn new() -> Self {
        Self { data: Vec::with_capacity(TARGET_RAW), chunks: Vec::new() }
    }

    /// Whether a chunk of `len` bytes should still go into this frame. The first always does.
    pub fn has_room_for(&self, len: usize) -> bool {
        self.chunks.is_empty() || self.data.len() + len <= TARGET_RAW
    }

    /// Appends a chunk; ask [`RawFrame::has_room_for`] first.
    pub fn push(&mut self, chunk: &Chunk) {
        self.data.extend_from_slice(&chunk.data);
        self.chunks.push(chunk.record());
    }

    /// The chunks' bytes.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The chunks' records, in the order of their bytes.
    pub fn chunks(&self) -> &[ChunkRecord] {
        &self.chunks
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.data.clear();
        self.chunks.clear();
    }
}

/// Compresses frames. Keep one per thread: its context and its buffer are reused.
pub struct FrameCompressor {
    zstd: Compressor<'static>,
    out: Vec<u8>,
}

impl FrameCompressor {
    /// A compressor at a zstd level (1 fast … 19 small; 0 is zstd's default).
    ///
    /// # Errors
    /// Where zstd cannot allocate or does not know the level.
    pub fn new(level: i32) -> io::Result<Self> {
        Ok(Self { zstd: Compressor::new(level)?, out: Vec::new() })
    }

    /// The bytes to seal for `raw`: a zstd frame where that is smaller.
    pub(super) fn compress<'a>(&'a mut self, raw: &'a [u8]) -> (Codec, &'a [u8]) {
        self.out.clear();
        // Room for less than `raw` is all that is of use: where it does not suffice, zstd reports an error.
        self.out.reserve(raw.len().max(64));
        match self.zstd.compress_to_buffer(raw, &mut self.out) {
            Ok(len) if len < raw.len() => (Codec::Zstd, &self.out[..len]),
            _ => (Codec::Raw, raw),
        }
    }
}

/// Decompresses frames. Keep one per thread.
pub struct FrameDecompressor(Decompressor<'static>);

impl FrameDecompressor {
    /// A decompressor.
    ///
    /// # Errors
    /// Where zstd cannot allocate.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Decompressor::new()?))
    }

    /// The raw bytes of an opened frame; `None` where they are not exactly `raw_len`, and never more memory than that.
    pub(super) fn decompress(&mut self, codec: Codec, plain: Vec<u8>, raw_len: usize) -> Option<Vec<u8>> {
        let raw = match codec {
            Codec::Raw => plain,
            Codec::Zstd => self.0.decompress(&plain, raw_len).ok()?,
        };
        (raw.len() == raw_len).then_some(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_incompressible_ones_stay_raw() {
        let mut compressor = FrameCompressor::new(1).unwrap();
        let mut decompressor = FrameDecompressor::new().unwrap();
        let text = b"insert into orders values (1);\n".repeat(1000);
        let mut noise = vec![0; 10_000];
        crate::id::Random::from_seed(1).fill(&mut noise);
        for (raw, expected) in [(text, Codec::Zstd), (noise, Codec::Raw), (vec![7], Codec::Raw)] {
            let (codec, stored) = compressor.compress(&raw);
            assert_eq!(codec, expected);
            assert!(stored.len() <= raw.len());
            let stored = stored.to_vec();
            assert_eq!(decompressor.decompress(codec, stored.clone(), raw.len()), Some(raw.clone()));
            assert_eq!(decompressor.decompress(codec, stored.clone(), raw.len() - 1), None);
            assert_eq!(decompressor.decompress(codec, stored, raw.len() + 1), None);
        }
    }
}
