//! What to read, decided without reading: from the byte ranges of a stream to pieces of packs, from pieces to frames,
//! from frames to ranges of stored bytes. Pure.

use std::ops::Range;

/// A run of bytes in the raw space of one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Position of the pack in the manifest.
    pub pack: u32,
    /// Where it starts in the pack's raw space.
    pub raw_offset: u64,
    /// Its length; never 0.
    pub raw_len: u64,
}

/// The extents of one stream, findable by stream offset.
#[derive(Debug, Clone)]
pub struct StreamMap {
    pieces: Vec<Piece>,
    /// Where each piece starts in the stream.
    starts: Vec<u64>,
    len: u64,
}

impl StreamMap {
    /// Takes a stream's extents. `None` where their lengths overflow.
    pub fn new(extents: impl IntoIterator<Item = Piece>) -> Option<Self> {
        let (mut pieces, mut starts, mut len) = (Vec::new(), Vec::new(), 0u64);
        for piece in extents.into_iter().filter(|piece| piece.raw_len > 0) {
            piece.raw_offset.checked_add(piece.raw_len)?;
            starts.push(len);
            len = len.checked_add(piece.raw_len)?;
            pieces.push(piece);
        }
        Some(Self { pieces, starts, len })
    }

    /// Bytes of the stream.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the stream has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces that make up `range` of the stream, in order. What lies beyond the stream's end is left out.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        let first = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        let placed = self.starts.iter().zip(&self.pieces).skip(first);
        placed.take_while(move |(start, _)| **start < range.end).filter_map(move |(&start, piece)| {
            let from = range.start.max(start);
            let to = range.end.min(start + piece.raw_len);
            (from < to).then(|| Piece {
                pack: piece.pack,
                raw_offset: piece.raw_offset + (from - start),
                raw_len: to - from,
            })
        })
    }
}

/// Sorts ranges and joins those that touch or overlap.
pub fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut out: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// Where one frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePlace {
    /// Where its stored bytes start in the pack.
    pub stored_offset: u64,
    /// How many there are, tag included.
    pub stored_len: u32,
    /// Where its bytes start in the pack's raw space.
    pub raw_offset: u64,
    /// How many raw bytes it holds.
    pub raw_len: u32,
}

/// A part of one frame that a stream needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameUse {
    /// Its number in the pack.
    pub frame: usize,
    /// Which of its raw bytes.
    pub bytes: Range<usize>,
}

/// The frames that hold `piece`, in order; `None` where the pack's raw space ends before the piece does.
pub fn frames_of(piece: &Piece, frames: &[FramePlace]) -> Option<Vec<FrameUse>> {
    let end = piece.raw_offset.checked_add(piece.raw_len)?;
    let mut at = piece.raw_offset;
    let mut uses = Vec::new();
    let first = frames.partition_point(|frame| frame.raw_offset + u64::from(frame.raw_len) <= at);
    for (number, frame) in frames.iter().enumerate().skip(first) {
        if at >= end {
            break;
        }
        let from = usize::try_from(at.checked_sub(frame.raw_offset)?).ok()?;
        let to = usize::try_from((end - frame.raw_offset).min(u64::from(frame.raw_len))).ok()?;
        if from < to {
            uses.push(FrameUse { frame: number, bytes: from..to });
        }
        at = frame.raw_offset + u64::from(frame.raw_len);
    }
    (at >= end).then_some(uses)
}

/// One GET: stored bytes of a pack, and the frames in it that are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Which stored bytes.
    pub range: Range<u64>,
    /// Numbers of the wanted frames.
    pub frames: Vec<usize>,
}

/// Bytes that are rather read in vain than left out by a request of their own.
pub const MAX_GAP: u64 = 128 * 1024;
/// Most bytes of one GET: more of them in parallel beat one that is longer.
pub const MAX_FETCH: u64 = 4 * 1024 * 1024;

/// Joins wanted frames of one pack into few GETs. `wanted` is sorted and without repetitions.
pub fn coalesce(wanted: &[usize], frames: &[FramePlace]) -> Vec<Fetch> {
    let mut out: Vec<Fetch> = Vec::new();
    for &number in wanted {
        let Some(frame) = frames.get(number) else { continue };
        let range = frame.stored_offset..frame.stored_offset + u64::from(frame.stored_len);
        match out.last_mut() {
            Some(last)
                if range.start.saturating_sub(last.range.end) <= MAX_GAP
                    && range.end - last.range.start <= MAX_FETCH =>
            {
                last.range.end = range.end;
                last.frames.push(number);
            }
            _ => out.push(Fetch { range, frames: vec![number] }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(pack: u32, raw_offset: u64, raw_len: u64) -> Piece {
        Piece { pack, raw_offset, raw_len }
    }

    fn pack(frames: &[(u32, u32)]) -> Vec<FramePlace> {
        let (mut stored_offset, mut raw_offset) = (8, 0);
        frames
            .iter()
            .map(|&(stored_len, raw_len)| {
                let place = FramePlace { stored_offset, stored_len, raw_offset, raw_len };
                stored_offset += u64::from(stored_len);
                raw_offset += u64::from(raw_len);
                place
            })
            .collect()
    }

    #[test]
    fn a_range_is_cut_out_of_its_extents() {
        let map =
            StreamMap::new([piece(0, 100, 10), piece(1, 0, 0), piece(1, 5, 20), piece(0, 0, 3)]).unwrap();
        assert_eq!(map.len(), 33);
        assert_eq!(map.pieces(8..12).collect::<Vec<_>>(), [piece(0, 108, 2), piece(1, 5, 2)]);
        assert_eq!(map.pieces(30..99).collect::<Vec<_>>(), [piece(0, 0, 3)]);
        assert_eq!(map.pieces(0..0).count(), 0);
        assert_eq!(map.pieces(33..40).count(), 0);
    }

    #[test]
    fn extents_that_overflow_are_refused() {
        assert!(StreamMap::new([piece(0, u64::MAX, 1)]).is_none());
        assert!(StreamMap::new([piece(0, 0, u64::MAX), piece(0, 0, 1)]).is_none());
    }

    #[test]
    fn a_piece_that_its_pack_does_not_hold_is_refused() {
        let frames = pack(&[(50, 100), (50, 100)]);
        assert_eq!(
            frames_of(&piece(0, 90, 20), &frames),
            Some(vec![FrameUse { frame: 0, bytes: 90..100 }, FrameUse { frame: 1, bytes: 0..10 }])
        );
        assert_eq!(frames_of(&piece(0, 190, 20), &frames), None);
        assert_eq!(frames_of(&piece(0, 200, 1), &frames), None);
        assert_eq!(frames_of(&piece(0, u64::MAX, 1), &frames), None);
        assert_eq!(frames_of(&piece(0, 0, 1), &[]), None);
    }

    #[test]
    fn neighbours_share_a_request_and_strangers_do_not() {
        let kib = 1024;
        let frames = pack(&[(64 * kib, 1), (64 * kib, 1), (64 * kib, 1), (512 * kib, 1), (64 * kib, 1)]);
        let fetches = coalesce(&[0, 2, 4], &frames);
        assert_eq!(fetches.len(), 2);
        assert_eq!(
            (fetches[0].frames.as_slice(), fetches[1].frames.as_slice()),
            ([0, 2].as_slice(), [4].as_slice())
        );
        assert_eq!(fetches[0].range, 8..8 + 3 * 64 * 1024);
        let long = pack(&[(1024 * kib, 1); 10]);
        let fetches = coalesce(&(0..10).collect::<Vec<_>>(), &long);
        assert!(fetches.iter().all(|f| f.range.end - f.range.start <= MAX_FETCH));
        assert_eq!(fetches.len(), 3);
    }

    #[test]
    fn ranges_are_joined() {
        assert_eq!(joined(vec![5..7, 0..2, 2..3, 6..9, 4..4]), [0..3, 5..9]);
    }

    proptest! {
        /// Whatever the extents and frames, the pieces of a range yield exactly its bytes, in order.
        #[test]
        fn pieces_and_frames_give_back_the_stream(
            sizes in proptest::collection::vec(1u32..40, 1..20),
            cuts in proptest::collection::vec((0u64..300, 1u64..60), 0..20),
            from in 0u64..500, len in 0u64..500,
        ) {
            let frames = pack(&sizes.iter().map(|s| (s + 16, *s)).collect::<Vec<_>>());
            let raw: u64 = sizes.iter().map(|s| u64::from(*s)).sum();
            let space: Vec<u64> = (0..raw).collect();
            let extents: Vec<Piece> = cuts.iter().filter(|(o, l)| o + l <= raw).map(|(o, l)| piece(0, *o, *l)).collect();
            let stream: Vec<u64> = extents.iter()
                .flat_map(|p| space[p.raw_offset as usize..(p.raw_offset + p.raw_len) as usize].to_vec()).collect();
            let map = StreamMap::new(extents).unwrap();
            let wanted = from.min(map.len())..(from + len).min(map.len());
            let mut got = Vec::new();
            for piece in map.pieces(wanted.clone()) {
                for used in frames_of(&piece, &frames).unwrap() {
                    let start = frames[used.frame].raw_offset as usize;
                    got.extend_from_slice(&space[start + used.bytes.start..start + used.bytes.end]);
                }
            }
            prop_assert_eq!(got, &stream[wanted.start as usize..wanted.end as usize]);
        }
    }
}
