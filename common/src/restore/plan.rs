//! What to read, decided without reading: from extents to frames, from frames to ranges of stored bytes. Pure.

use std::ops::Range;

use crate::format::extent::Extent;
use crate::format::pack::FrameInfo;

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

/// A part of one frame that a stream needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameUse {
    /// Its number in the pack.
    pub frame: usize,
    /// Which of its raw bytes.
    pub bytes: Range<usize>,
}

/// The parts of frames that hold `extent`, in order; `None` where the pack's raw space ends before the extent does.
pub fn frames_of(extent: &Extent, frames: &[FrameInfo]) -> Option<Vec<FrameUse>> {
    let end = extent.raw_offset.checked_add(extent.raw_len)?;
    let mut at = extent.raw_offset;
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

/// GETs for everything from `from` to the end of the last wanted frame, none left out, cut between frames.
pub fn contiguous(from: u64, wanted: &[usize], frames: &[FrameInfo]) -> Vec<Fetch> {
    let Some(last) = wanted.last().copied() else { return Vec::new() };
    let first = frames.partition_point(|frame| frame.offset < from);
    let mut out: Vec<Fetch> = Vec::new();
    let mut start = from;
    for (number, frame) in frames.iter().enumerate().take(last + 1).skip(first) {
        let end = frame.offset + u64::from(frame.stored_len);
        match out.last_mut() {
            Some(fetch) if end - fetch.range.start <= MAX_FETCH => fetch.range.end = end,
            _ => out.push(Fetch { range: start..end, frames: Vec::new() }),
        }
        start = end;
        if let Some(fetch) = out.last_mut().filter(|_| wanted.binary_search(&number).is_ok()) {
            fetch.frames.push(number);
        }
    }
    out
}

/// Joins wanted frames of one pack into few GETs. `wanted` is sorted and without repetitions.
pub fn coalesce(wanted: &[usize], frames: &[FrameInfo]) -> Vec<Fetch> {
    let mut out: Vec<Fetch> = Vec::new();
    for &number in wanted {
        let Some(frame) = frames.get(number) else { continue };
        let range = frame.offset..frame.offset + u64::from(frame.stored_len);
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
    use crate::format::frame::Codec;

    fn extent(raw_offset: u64, raw_len: u64) -> Extent {
        Extent { pack: 0, raw_offset, raw_len }
    }

    fn pack(frames: &[(u32, u32)]) -> Vec<FrameInfo> {
        let (mut offset, mut raw_offset) = (8, 0);
        frames
            .iter()
            .map(|&(stored_len, raw_len)| {
                let place = FrameInfo { offset, stored_len, raw_offset, raw_len, codec: Codec::Zstd };
                offset += u64::from(stored_len);
                raw_offset += u64::from(raw_len);
                place
            })
            .collect()
    }

    #[test]
    fn an_extent_that_its_pack_does_not_hold_is_refused() {
        let frames = pack(&[(50, 100), (50, 100)]);
        assert_eq!(
            frames_of(&extent(90, 20), &frames),
            Some(vec![FrameUse { frame: 0, bytes: 90..100 }, FrameUse { frame: 1, bytes: 0..10 }])
        );
        assert_eq!(frames_of(&extent(190, 20), &frames), None);
        assert_eq!(frames_of(&extent(200, 1), &frames), None);
        assert_eq!(frames_of(&extent(u64::MAX, 1), &frames), None);
        assert_eq!(frames_of(&extent(0, 1), &[]), None);
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
    fn a_pack_that_is_read_whole_is_read_without_gaps() {
        let frames = pack(&[(1024 * 1024, 1); 10]);
        let fetches = contiguous(0, &[1, 5, 6], &frames);
        assert_eq!(fetches.first().map(|f| f.range.start), Some(0), "the magic too");
        assert_eq!(fetches.last().map(|f| f.range.end), Some(8 + 7 * 1024 * 1024));
        assert!(fetches.windows(2).all(|pair| pair[0].range.end == pair[1].range.start));
        assert_eq!(fetches.iter().flat_map(|f| f.frames.clone()).collect::<Vec<_>>(), [1, 5, 6]);
        let rest = contiguous(8 + 7 * 1024 * 1024, &[8], &frames);
        assert_eq!(rest.first().map(|f| f.range.start), Some(8 + 7 * 1024 * 1024));
        assert_eq!(contiguous(0, &[], &frames), []);
    }

    #[test]
    fn ranges_are_joined() {
        assert_eq!(joined(vec![5..7, 0..2, 2..3, 6..9, 4..4]), [0..3, 5..9]);
    }

    proptest! {
        /// Whatever the frames, the parts found for an extent are exactly its bytes, in order.
        #[test]
        fn frames_give_back_the_extent(
            sizes in proptest::collection::vec(1u32..40, 1..20), from in 0u64..900, len in 1u64..300,
        ) {
            let frames = pack(&sizes.iter().map(|s| (s + 16, *s)).collect::<Vec<_>>());
            let raw: u64 = sizes.iter().map(|s| u64::from(*s)).sum();
            let Some(found) = frames_of(&extent(from, len), &frames) else {
                prop_assert!(from + len > raw);
                return Ok(());
            };
            let space: Vec<u64> = (0..raw).collect();
            let mut got = Vec::new();
            for used in found {
                let start = frames[used.frame].raw_offset as usize;
                got.extend_from_slice(&space[start + used.bytes.start..start + used.bytes.end]);
            }
            prop_assert_eq!(got, &space[from as usize..(from + len) as usize]);
        }
    }
}
