//! Which chunks are stored already, and where.
//!
//! The *raw line* is the raw spaces of all packs that this backup may refer to, laid end to end, followed by what is new: a
//! chunk is a place on that line. So a chunk can be referred to before the pack that will hold it is full, extents merge
//! across packs by themselves, and a pack that must be sealed anew (a lost session) changes no extent. Only at the end are
//! places turned into packs ([`Extents::in_packs`]).
//!
//! Memory: 20 bytes a chunk for its record, a quarter for the marks, 6 to 11 for the hash index.

use hashbrown::HashTable;

use sealift_common::format::chunk::ChunkRecord;

/// Records per block: blocks never move, so growing copies no records.
const BLOCK: usize = 4096;
/// Every this many records, their place on the raw line is written down; between marks it is added up.
const MARK: usize = 32;

/// All chunks that may be referred to.
#[derive(Debug, Default)]
pub struct ChunkTable {
    blocks: Vec<Vec<ChunkRecord>>,
    marks: Vec<u64>,
    end: u64,
    count: u32,
    index: HashTable<u32>,
}

impl ChunkTable {
    /// Lays the raw space of a stored pack at the end of the raw line; gives its length. `chunks` are those of its chunk
    /// index, in order.
    pub fn append_pack(&mut self, chunks: &[ChunkRecord]) -> u64 {
        let start = self.end;
        chunks.iter().for_each(|chunk| self.append(*chunk));
        self.end - start
    }

    /// Where the chunk is on the raw line. A chunk of another length is another chunk.
    pub fn find(&self, wanted: &ChunkRecord) -> Option<u64> {
        let entry = *self.index.find(hash(wanted), |entry| self.record(*entry) == wanted)?;
        Some(self.position(entry))
    }

    /// Lays a new chunk at the end of the raw line; gives its place.
    pub fn append_chunk(&mut self, chunk: ChunkRecord) -> u64 {
        let start = self.end;
        self.append(chunk);
        start
    }

    /// Length of the raw line, in bytes.
    pub fn end(&self) -> u64 {
        self.end
    }

    fn append(&mut self, record: ChunkRecord) {
        let entry = self.count;
        if (entry as usize).is_multiple_of(MARK) {
            self.marks.push(self.end);
        }
        if (entry as usize).is_multiple_of(BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        if let Some(block) = self.blocks.last_mut() {
            block.push(record);
        }
        self.count += 1;
        self.end += u64::from(record.raw_len);
        let Self { blocks, index, .. } = self;
        let stored = |entry: u32| &blocks[entry as usize / BLOCK][entry as usize % BLOCK];
        // The first place of a chunk that is stored twice wins: older packs are worth more, they have shown to last.
        if index.find(hash(&record), |other| *stored(*other) == record).is_none() {
            index.insert_unique(hash(&record), entry, |other| hash(stored(*other)));
        }
    }

    fn record(&self, entry: u32) -> &ChunkRecord {
        &self.blocks[entry as usize / BLOCK][entry as usize % BLOCK]
    }

    fn position(&self, entry: u32) -> u64 {
        let mark = entry as usize / MARK;
        let since_mark = mark * MARK..entry as usize;
        let between: u64 = since_mark.map(|e| u64::from(self.blocks[e / BLOCK][e % BLOCK].raw_len)).sum();
        self.marks[mark] + between
    }
}

/// Chunk ids are keyed hashes: any eight bytes of them are evenly spread.
fn hash(chunk: &ChunkRecord) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = chunk.id.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// What a stream consists of: pieces of the raw line, in the order of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents(Vec<(u64, u64)>);

/// A piece of one pack's raw space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackExtent {
    /// Position of the pack among the spans.
    pub pack: usize,
    /// Start in the pack's raw space.
    pub raw_offset: u64,
    /// Length, in bytes.
    pub raw_len: u64,
}

impl Extents {
    /// Appends a piece; neighbours merge.
    pub fn push(&mut self, start: u64, len: u64) {
        match self.0.last_mut() {
            Some((last_start, last_len)) if *last_start + *last_len == start => *last_len += len,
            _ => self.0.push((start, len)),
        }
    }

    /// The same as pieces of packs. `ends` are the ends of the packs on the raw line, ascending; the first starts at 0.
    pub fn in_packs(&self, ends: &[u64]) -> Vec<PackExtent> {
        let mut out = Vec::with_capacity(self.0.len());
        for &(start, len) in &self.0 {
            split(start, len, ends, |extent| out.push(extent));
        }
        out
    }
}

/// Cuts one piece of the raw line at the ends of packs.
fn split(mut start: u64, mut len: u64, ends: &[u64], mut piece: impl FnMut(PackExtent)) {
    let mut pack = ends.partition_point(|end| *end <= start);
    while len > 0 && pack < ends.len() {
        let pack_start = if pack == 0 { 0 } else { ends[pack - 1] };
        let raw_len = len.min(ends[pack] - start);
        if raw_len > 0 {
            piece(PackExtent { pack, raw_offset: start - pack_start, raw_len });
        }
        start += raw_len;
        len -= raw_len;
        pack += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sealift_common::format::chunk::ChunkId;

    use super::*;

    fn chunk(n: u32, raw_len: u32) -> ChunkRecord {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_le_bytes());
        id[8..12].copy_from_slice(&n.to_le_bytes());
        ChunkRecord { id: ChunkId(id), raw_len }
    }

    #[test]
    fn a_chunk_is_found_where_it_was_laid_and_only_with_its_length() {
        let mut table = ChunkTable::default();
        let records: Vec<_> = (0..10_000).map(|n| chunk(n, n + 1)).collect();
        let length = table.append_pack(&records);
        assert_eq!(length, table.end());
        let new = table.append_chunk(chunk(77_777, 5));
        assert_eq!(new, length);
        let mut position = 0;
        for n in 0..10_000 {
            assert_eq!(table.find(&chunk(n, n + 1)), Some(position), "chunk {n}");
            assert_eq!(table.find(&chunk(n, n + 2)), None);
            position += u64::from(n + 1);
        }
        assert_eq!(table.find(&chunk(77_777, 5)), Some(new));
        assert_eq!(table.find(&chunk(77_778, 5)), None);
    }

    #[test]
    fn the_first_place_of_a_chunk_wins() {
        let mut table = ChunkTable::default();
        table.append_pack(&[chunk(1, 10)]);
        table.append_pack(&[chunk(1, 10)]);
        assert_eq!((table.find(&chunk(1, 10)), table.end()), (Some(0), 20));
    }

    #[test]
    fn neighbours_merge_even_across_packs_and_are_cut_at_the_end() {
        let mut extents = Extents::default();
        extents.push(5, 5);
        extents.push(10, 10);
        extents.push(40, 1);
        let cut = extents.in_packs(&[10, 15, 50]);
        let piece = |pack, raw_offset, raw_len| PackExtent { pack, raw_offset, raw_len };
        assert_eq!(cut, [piece(0, 5, 5), piece(1, 0, 5), piece(2, 0, 5), piece(2, 25, 1)]);
    }

    proptest! {
        #[test]
        fn cutting_keeps_every_byte_in_its_place(
            packs in prop::collection::vec(0u64..50, 1..8),
            pieces in prop::collection::vec((0u64..200, 1u64..60), 0..12),
        ) {
            let ends: Vec<u64> = packs.iter().scan(0, |end, len| { *end += len; Some(*end) }).collect();
            let total = *ends.last().unwrap();
            let pieces: Vec<_> = pieces.into_iter()
                .map(|(start, len)| (start.min(total), len))
                .map(|(start, len)| (start, len.min(total - start)))
                .filter(|(_, len)| *len > 0)
                .collect();
            let mut extents = Extents::default();
            pieces.iter().for_each(|(start, len)| extents.push(*start, *len));

            let line: Vec<u64> = pieces.iter().flat_map(|(start, len)| *start..start + len).collect();
            let cut = extents.in_packs(&ends);
            let starts: Vec<u64> = ends.iter().zip(&packs).map(|(end, len)| end - len).collect();
            let again: Vec<u64> = cut.iter()
                .flat_map(|e| (e.raw_offset..e.raw_offset + e.raw_len).map(|at| starts[e.pack] + at))
                .collect();
            prop_assert_eq!(&again, &line);
            prop_assert!(cut.iter().all(|e| e.raw_offset + e.raw_len <= packs[e.pack]));
        }
    }
}
