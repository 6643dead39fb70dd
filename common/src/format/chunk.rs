//! Where streams are cut, and what the pieces are called (docs/format.md, Chunks): FastCDC (2020, normalisation 1) with a
//! gear table keyed per series and epoch, and chunk ids from keyed BLAKE3. Restorers need none of this.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use fastcdc::v2020::{Normalization, cut_gear, select_masks};
use sealift_proto::format as wire;

use crate::crypto::SeriesSecret;
use crate::id::SeriesId;
use crate::secret::Secret;

/// The name of the algorithm in manifests.
pub const ALGORITHM: &str = "fastcdc-2020";
const NORMALIZATION: u32 = 1;

/// How large chunks are in one dedup epoch. Chosen once per epoch, so that an index holds about a million chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChunkClass {
    /// 16 KiB on average: up to 16 GiB of raw data.
    Avg16KiB,
    /// 64 KiB: up to 64 GiB.
    Avg64KiB,
    /// 256 KiB: up to 256 GiB.
    Avg256KiB,
    /// 1 MiB: up to 1 TiB.
    Avg1MiB,
    /// 4 MiB: above.
    Avg4MiB,
}

impl ChunkClass {
    /// All classes, the smallest first.
    pub const ALL: [Self; 5] =
        [Self::Avg16KiB, Self::Avg64KiB, Self::Avg256KiB, Self::Avg1MiB, Self::Avg4MiB];

    /// The class for a source of `raw_bytes`, as expected at the start of an epoch.
    pub fn for_raw_size(raw_bytes: u64) -> Self {
        let fits = |class: &Self| class.limit().is_none_or(|limit| raw_bytes <= limit);
        Self::ALL.into_iter().find(fits).unwrap_or(Self::Avg4MiB)
    }

    /// Whether a source of `raw_bytes` has outgrown this class twofold: time for a new epoch.
    pub fn is_outgrown_by(self, raw_bytes: u64) -> bool {
        self.limit().is_some_and(|limit| raw_bytes > limit * 2)
    }

    /// Average chunk, in bytes.
    pub const fn avg(self) -> u32 {
        match self {
            Self::Avg16KiB => 16 << 10,
            Self::Avg64KiB => 64 << 10,
            Self::Avg256KiB => 256 << 10,
            Self::Avg1MiB => 1 << 20,
            Self::Avg4MiB => 4 << 20,
        }
    }

    /// Smallest chunk but for the last of a stream, in bytes.
    pub const fn min(self) -> u32 {
        self.avg() / 4
    }

    /// Largest chunk, in bytes.
    pub const fn max(self) -> u32 {
        self.avg() * 4
    }

    /// The class with this average, as a state file keeps it.
    pub fn from_avg(avg: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.avg() == avg)
    }

    /// As the manifest records it.
    pub fn to_wire(self) -> wire::Chunking {
        wire::Chunking {
            algorithm: ALGORITHM.to_owned(),
            min: self.min(),
            avg: self.avg(),
            max: self.max(),
            normalization: NORMALIZATION,
        }
    }

    fn limit(self) -> Option<u64> {
        (self != Self::Avg4MiB).then(|| u64::from(self.avg()) << 20)
    }
}

/// The name of a chunk within its series and epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 16]);

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({})", hex::encode(self.0))
    }
}

/// What is known of a chunk without its bytes: one record of a pack's chunk index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkRecord {
    /// Its name.
    pub id: ChunkId,
    /// Its length, in bytes. A cache hit must match in it.
    pub raw_len: u32,
}

/// A chunk.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Its name.
    pub id: ChunkId,
    /// Its bytes. They share memory with what was pushed: copy those that are kept.
    pub data: Bytes,
}

impl Chunk {
    /// Its record.
    pub fn record(&self) -> ChunkRecord {
        // A chunk is at most 16 MiB.
        ChunkRecord { id: self.id, raw_len: u32::try_from(self.data.len()).unwrap_or(u32::MAX) }
    }
}

/// Cuts streams into chunks: push buffers, take chunks until there is none, push on; at the end of a stream, [`end`] it and
/// take the rest. Where the cuts fall does not depend on how the stream was split into buffers. Holds at most one largest
/// chunk besides the buffer pushed last.
///
/// ```ignore
/// for buffer in stream {
///     chunker.push(buffer);
///     while let Some(chunk) = chunker.next_chunk() { … }
/// }
/// chunker.end();
/// while let Some(chunk) = chunker.next_chunk() { … }
/// ```
///
/// [`end`]: Chunker::end
pub struct Chunker {
    cutter: Cutter,
    id_key: Secret<[u8; 32]>,
    /// Bytes of buffers before the current one that no chunk has taken yet, then copies of its first `borrowed` bytes.
    carry: BytesMut,
    borrowed: usize,
    /// The current buffer.
    data: Bytes,
    ended: bool,
}

impl Chunker {
    /// A chunker for all streams of one backup, one after the other.
    pub fn new(secret: &SeriesSecret, series: SeriesId, class: ChunkClass) -> Self {
        Self {
            cutter: Cutter::new(&secret.gear(series), class),
            id_key: secret.chunk_id_key(series),
            carry: BytesMut::new(),
            borrowed: 0,
            data: Bytes::new(),
            ended: false,
        }
    }

    /// Takes the next buffer of the stream. Take all chunks first; what is left over is copied otherwise.
    pub fn push(&mut self, buffer: Bytes) {
        self.keep_rest();
        self.data = buffer;
        self.ended = false;
    }

    /// Says that the stream ended: what is left becomes its last chunks. The next push starts another stream.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The next chunk, or `None` where more has to be pushed first (or the stream ended and all of it was taken).
    pub fn next_chunk(&mut self) -> Option<Chunk> {
        let data = if self.carry.is_empty() { self.cut_data()? } else { self.cut_carry()? };
        let hash = blake3::keyed_hash(self.id_key.expose(), &data);
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        Some(Chunk { id: ChunkId(id), data })
    }

    /// Cuts the current buffer in place.
    fn cut_data(&mut self) -> Option<Bytes> {
        if self.data.is_empty() {
            return None;
        }
        if self.data.len() < self.cutter.max && !self.ended {
            self.keep_rest();
            return None;
        }
        let len = self.cutter.cut(&self.data);
        Some(self.data.split_to(len))
    }

    /// Cuts across the border of two buffers. Every byte is copied at most once.
    fn cut_carry(&mut self) -> Option<Bytes> {
        let fresh = self.data.len() - self.borrowed;
        let wanted = self.cutter.max.saturating_sub(self.carry.len()).min(fresh);
        self.carry.extend_from_slice(&self.data[self.borrowed..self.borrowed + wanted]);
        self.borrowed += wanted;
        if self.carry.len() < self.cutter.max && !self.ended {
            self.data.clear();
            self.borrowed = 0;
            return None;
        }
        let len = self.cutter.cut(&self.carry);
        let chunk = self.carry.split_to(len).freeze();
        if self.carry.len() <= self.borrowed {
            self.data.advance(self.borrowed - self.carry.len());
            self.carry = BytesMut::new();
            self.borrowed = 0;
        }
        Some(chunk)
    }

    fn keep_rest(&mut self) {
        self.carry.extend_from_slice(&self.data[self.borrowed..]);
        self.data.clear();
        self.borrowed = 0;
    }
}

/// The cut points alone.
struct Cutter {
    min: usize,
    avg: usize,
    max: usize,
    masks: [u64; 2],
    gear: Box<[u64; 256]>,
    gear_ls: Box<[u64; 256]>,
}

impl Cutter {
    fn new(gear: &[u64; 256], class: ChunkClass) -> Self {
        let avg = class.avg() as usize;
        let (strict, loose) = select_masks(avg, Normalization::Level1);
        Self {
            min: class.min() as usize,
            avg,
            max: class.max() as usize,
            masks: [strict, loose],
            gear: Box::new(*gear),
            gear_ls: Box::new(gear.map(|entry| entry << 1)),
        }
    }

    /// Length of the first chunk of `bytes`, which hold a largest chunk or the rest of the stream.
    fn cut(&self, bytes: &[u8]) -> usize {
        let [strict, loose] = self.masks;
        let (_, len) = cut_gear(
            bytes,
            self.min,
            self.avg,
            self.max,
            strict,
            loose,
            strict << 1,
            loose << 1,
            self.gear.as_slice(),
            self.gear_ls.as_slice(),
        );
        len
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::Random;

    fn chunker(seed: u8) -> Chunker {
        let secret = SeriesSecret::from_bytes([seed; 32]);
        Chunker::new(&secret, SeriesId::from_bytes([1; 16]), ChunkClass::Avg16KiB)
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        Random::from_seed(42).fill(&mut out);
        out
    }

    /// The chunks of one stream that arrives in `buffers`.
    fn chunks<'a>(chunker: &mut Chunker, buffers: impl Iterator<Item = &'a [u8]>) -> Vec<Chunk> {
        let mut out = Vec::new();
        for buffer in buffers {
            chunker.push(Bytes::copy_from_slice(buffer));
            out.extend(std::iter::from_fn(|| chunker.next_chunk()));
        }
        chunker.end();
        out.extend(std::iter::from_fn(|| chunker.next_chunk()));
        out
    }

    fn records(chunks: &[Chunk]) -> Vec<ChunkRecord> {
        chunks.iter().map(Chunk::record).collect()
    }

    #[test]
    fn chunks_are_the_stream_and_keep_to_their_bounds() {
        let stream = noise(3_000_001);
        let all = chunks(&mut chunker(1), stream.chunks(1 << 20));
        assert_eq!(all.iter().flat_map(|chunk| chunk.data.to_vec()).collect::<Vec<_>>(), stream);
        let (last, others) = all.split_last().unwrap();
        assert!(others.iter().all(|c| (4096..=65536).contains(&c.data.len())), "{:?}", records(&all));
        assert!(last.data.len() <= 65536);
        assert!((100..400).contains(&all.len()), "{} chunks", all.len());
    }

    #[test]
    fn the_secret_decides_cuts_and_names() {
        let stream = noise(500_000);
        let (one, other) = (
            chunks(&mut chunker(1), [&*stream].into_iter()),
            chunks(&mut chunker(2), [&*stream].into_iter()),
        );
        assert_ne!(one[0].data.len(), other[0].data.len());
        assert_ne!(one[0].id, other[0].id);
    }

    #[test]
    fn a_change_in_the_middle_changes_few_chunks() {
        let stream = noise(2_000_000);
        let mut changed = stream.clone();
        changed.splice(1_000_000..1_000_000, *b"a new row");
        let before = chunks(&mut chunker(1), stream.chunks(777_777));
        let after = chunks(&mut chunker(1), changed.chunks(333_333));
        let known: std::collections::HashSet<_> = before.iter().map(|chunk| chunk.id).collect();
        let new = after.iter().filter(|chunk| !known.contains(&chunk.id)).count();
        assert!((1..=3).contains(&new), "{new} new chunks");
    }

    #[test]
    fn streams_do_not_leak_into_each_other() {
        let mut chunker = chunker(1);
        let first = chunks(&mut chunker, [noise(100_000).as_slice()].into_iter());
        assert!(chunks(&mut chunker, std::iter::empty()).is_empty());
        let again = chunks(&mut chunker, [noise(100_000).as_slice()].into_iter());
        assert_eq!(records(&first), records(&again));
    }

    #[test]
    fn classes_follow_the_expected_size_and_last_until_outgrown_twofold() {
        let gib = 1u64 << 30;
        for (size, avg) in [
            (0, 16 << 10),
            (16 * gib, 16 << 10),
            (16 * gib + 1, 64 << 10),
            (64 * gib, 64 << 10),
            (256 * gib, 256 << 10),
            (1024 * gib, 1 << 20),
            (1024 * gib + 1, 4 << 20),
        ] {
            assert_eq!(ChunkClass::for_raw_size(size).avg(), avg, "{size}");
        }
        assert!(!ChunkClass::Avg16KiB.is_outgrown_by(32 * gib));
        assert!(ChunkClass::Avg16KiB.is_outgrown_by(32 * gib + 1));
        assert!(!ChunkClass::Avg4MiB.is_outgrown_by(u64::MAX));
        assert!(ChunkClass::ALL.into_iter().all(|class| ChunkClass::from_avg(class.avg()) == Some(class)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn cuts_do_not_depend_on_buffers(
            len in 0usize..400_000,
            splits in prop::collection::vec(1usize..150_000, 1..20),
            zeros in prop::bool::ANY,
        ) {
            let stream = if zeros { vec![0; len] } else { noise(len) };
            let whole = chunks(&mut chunker(3), [stream.as_slice()].into_iter());
            let mut rest = stream.as_slice();
            let mut sizes = splits.iter().cycle();
            let buffers = std::iter::from_fn(|| {
                let at = (*sizes.next()?).min(rest.len());
                let (buffer, after) = rest.split_at(at);
                rest = after;
                (!buffer.is_empty()).then_some(buffer)
            });
            let split = chunks(&mut chunker(3), buffers);
            prop_assert_eq!(records(&whole), records(&split));
            prop_assert_eq!(split.iter().flat_map(|c| c.data.to_vec()).collect::<Vec<_>>(), stream);
        }
    }
}
