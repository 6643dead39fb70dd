//! The outer shape that manifests, trust policies and agent keys share: a magic, parts with a u32 length before each, and
//! bytes of a fixed length.

/// An object whose outer shape is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// The first eight bytes are not the expected magic.
    #[error("does not start with {expected}: it is another kind of object, or a newer format")]
    Magic {
        /// The magic that was looked for.
        expected: &'static str,
    },
    /// The object ends in the middle of a part.
    #[error("ends in the middle of its {part} part")]
    Truncated {
        /// Which part.
        part: &'static str,
    },
    /// A part is longer than readers accept.
    #[error("its {part} part is {len} bytes, at most {cap} are accepted")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// Its length, in bytes.
        len: usize,
        /// The most that is accepted, in bytes.
        cap: usize,
    },
    /// There are bytes after the last part.
    #[error("has {0} bytes after its end")]
    Trailing(usize),
}

/// Takes an object apart from front to back.
pub(crate) struct PartReader<'a> {
    rest: &'a [u8],
}

impl<'a> PartReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn magic(&mut self, expected: &'static str) -> Result<(), PartError> {
        self.rest = self.rest.strip_prefix(expected.as_bytes()).ok_or(PartError::Magic { expected })?;
        Ok(())
    }

    /// The next part, without its length.
    pub(crate) fn part(&mut self, part: &'static str, cap: usize) -> Result<&'a [u8], PartError> {
        let (len, rest) = self.rest.split_first_chunk::<4>().ok_or(PartError::Truncated { part })?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > cap {
            return Err(PartError::TooLong { part, len, cap });
        }
        let (bytes, rest) = rest.split_at_checked(len).ok_or(PartError::Truncated { part })?;
        self.rest = rest;
        Ok(bytes)
    }

    /// The next `N` bytes.
    pub(crate) fn fixed<const N: usize>(&mut self, part: &'static str) -> Result<&'a [u8; N], PartError> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(PartError::Truncated { part })?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(crate) fn end(self) -> Result<(), PartError> {
        if self.rest.is_empty() { Ok(()) } else { Err(PartError::Trailing(self.rest.len())) }
    }
}

/// Appends `part` with its length before it; the caller keeps parts below 4 GiB by the format's caps.
pub(crate) fn push_part(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_out_as_they_went_in_and_nothing_else_does() {
        let mut object = b"SLFTTEST".to_vec();
        push_part(&mut object, b"one");
        push_part(&mut object, b"");
        object.extend_from_slice(&[7; 4]);

        let mut reader = PartReader::new(&object);
        reader.magic("SLFTTEST").unwrap();
        assert_eq!(reader.part("first", 3), Ok(b"one".as_slice()));
        assert_eq!(reader.part("second", 3), Ok(b"".as_slice()));
        assert_eq!(reader.fixed::<4>("third"), Ok(&[7; 4]));
        assert_eq!(reader.end(), Ok(()));

        assert_eq!(
            PartReader::new(b"SLFTXXXX").magic("SLFTTEST"),
            Err(PartError::Magic { expected: "SLFTTEST" })
        );
        let mut reader = PartReader::new(&object[8..]);
        assert_eq!(reader.part("first", 2), Err(PartError::TooLong { part: "first", len: 3, cap: 2 }));
        let mut reader = PartReader::new(&object[8..14]);
        assert_eq!(reader.part("first", 3), Err(PartError::Truncated { part: "first" }));
        assert_eq!(PartReader::new(b"x").end(), Err(PartError::Trailing(1)));
    }
}
