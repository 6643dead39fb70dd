//! Extents: where the bytes of a stream lie, as ranges of packs' raw spaces (docs/format.md, Manifest).

/// A range of one pack's raw space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Position of the pack in the manifest's list.
    pub pack: u32,
    /// First byte in that pack's raw space.
    pub raw_offset: u64,
    /// Bytes; never 0.
    pub raw_len: u64,
}

/// Builds the extents of one stream; neighbours merge.
#[derive(Debug, Clone, Default)]
pub struct ExtentBuilder {
    extents: Vec<Extent>,
    raw_len: u64,
}

impl ExtentBuilder {
    /// An empty stream's.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a range. An empty one changes nothing.
    pub fn push(&mut self, pack: u32, raw_offset: u64, raw_len: u64) {
        self.raw_len += raw_len;
        match self.extents.last_mut() {
            Some(last) if last.pack == pack && last.raw_offset + last.raw_len == raw_offset => {
                last.raw_len += raw_len;
            }
            _ if raw_len > 0 => self.extents.push(Extent { pack, raw_offset, raw_len }),
            _ => {}
        }
    }

    /// Raw bytes so far.
    pub fn raw_len(&self) -> u64 {
        self.raw_len
    }

    /// The extents.
    pub fn finish(self) -> Vec<Extent> {
        self.extents
    }
}

/// Finds the extents of a range of a stream.
#[derive(Debug, Clone)]
pub struct ExtentMap<'a> {
    extents: &'a [Extent],
    /// Where in the stream each extent starts.
    starts: Vec<u64>,
    raw_len: u64,
}

impl<'a> ExtentMap<'a> {
    /// Over the extents of one stream.
    pub fn new(extents: &'a [Extent]) -> Self {
        let mut raw_len = 0;
        let start = |extent: &Extent| {
            let start = raw_len;
            raw_len += extent.raw_len;
            start
        };
        let starts = extents.iter().map(start).collect();
        Self { extents, starts, raw_len }
    }

    /// Length of the stream, in bytes.
    pub fn raw_len(&self) -> u64 {
        self.raw_len
    }

    /// The extents of `len` bytes from `offset`, cut to them, in the stream's order; `None` where the stream ends before.
    pub fn locate(&self, offset: u64, len: u64) -> Option<impl Iterator<Item = Extent> + use<'a, '_>> {
        let end = offset.checked_add(len).filter(|end| *end <= self.raw_len)?;
        let first = self.starts.partition_point(|start| *start <= offset).saturating_sub(1);
        let after = self.starts.partition_point(|start| *start < end).max(first);
        let cut = move |(extent, start): (&Extent, &u64)| {
            let skip = offset.saturating_sub(*start);
            let raw_len = extent.raw_len.min(end - start).saturating_sub(skip);
            Extent { pack: extent.pack, raw_offset: extent.raw_offset + skip, raw_len }
        };
        let (extents, starts) = (self.extents.get(first..after)?, self.starts.get(first..after)?);
        Some(extents.iter().zip(starts).map(cut).filter(|extent| extent.raw_len > 0))
    }
}

/// How many distinct raw bytes of each of `packs` packs the extents refer to.
pub fn referenced_raw<'a>(packs: usize, extents: impl Iterator<Item = &'a Extent>) -> Vec<u64> {
    let mut sorted: Vec<&Extent> = extents.collect();
    sorted.sort_unstable_by_key(|extent| (extent.pack, extent.raw_offset));
    let mut referenced = vec![0; packs];
    let mut seen = (u32::MAX, 0);
    for extent in sorted {
        if seen.0 != extent.pack {
            seen = (extent.pack, 0);
        }
        let end = extent.raw_offset.saturating_add(extent.raw_len);
        if let Some(sum) = referenced.get_mut(extent.pack as usize) {
            *sum += end.saturating_sub(seen.1.max(extent.raw_offset));
        }
        seen.1 = seen.1.max(end);
    }
    referenced
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn build(ranges: &[(u32, u64, u64)]) -> Vec<Extent> {
        let mut builder = ExtentBuilder::new();
        ranges.iter().for_each(|(pack, raw_offset, raw_len)| builder.push(*pack, *raw_offset, *raw_len));
        builder.finish()
    }

    #[test]
    fn neighbours_merge_and_nothing_else_does() {
        let extents =
            build(&[(0, 0, 10), (0, 10, 5), (0, 16, 4), (1, 20, 1), (1, 21, 0), (1, 30, 0), (0, 20, 1)]);
        let expected = [(0, 0, 15), (0, 16, 4), (1, 20, 1), (0, 20, 1)];
        let expected = expected.map(|(pack, raw_offset, raw_len)| Extent { pack, raw_offset, raw_len });
        assert_eq!(extents, expected);
        assert_eq!(build(&[(0, 0, 0)]), []);
    }

    #[test]
    fn referenced_bytes_count_once() {
        let extents = build(&[(0, 0, 10), (2, 5, 10), (0, 5, 10), (0, 2, 3), (2, 100, 1)]);
        assert_eq!(referenced_raw(3, extents.iter()), [15, 0, 11]);
    }

    proptest! {
        #[test]
        fn a_range_is_found_byte_for_byte(
            ranges in prop::collection::vec((0u32..3, 0u64..50, 0u64..20), 0..12),
            offset in 0u64..120,
            len in 0u64..120,
        ) {
            let bytes = |extents: &[Extent]| -> Vec<(u32, u64)> {
                let each = |e: &Extent| (e.raw_offset..e.raw_offset + e.raw_len).map(|at| (e.pack, at)).collect::<Vec<_>>();
                extents.iter().flat_map(each).collect()
            };
            let extents = build(&ranges);
            let all = bytes(&extents);
            let map = ExtentMap::new(&extents);
            prop_assert_eq!(map.raw_len(), all.len() as u64);
            match map.locate(offset, len) {
                Some(found) => {
                    let found: Vec<Extent> = found.collect();
                    prop_assert_eq!(bytes(&found), &all[offset as usize..(offset + len) as usize]);
                }
                None => prop_assert!(offset + len > all.len() as u64),
            }
            let distinct: std::collections::HashSet<_> = all.into_iter().collect();
            prop_assert_eq!(referenced_raw(3, extents.iter()).iter().sum::<u64>(), distinct.len() as u64);
        }
    }
}
