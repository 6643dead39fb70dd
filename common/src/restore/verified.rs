//! Whole streams, with their length and hash checked at the end.

use std::io::{self, Read, Write};
use std::path::Path;

use bytes::Bytes;

use super::RestoreError;
use super::engine::{BlockingReader, read_bytes};
use crate::format::manifest::Stream;

/// Reads a whole stream for a thread that may block, and checks length and BLAKE3 at its end: the last read fails where they
/// are not what the manifest says.
#[derive(Debug)]
pub struct VerifiedReader {
    inner: BlockingReader,
    name: String,
    raw_len: u64,
    blake3: [u8; 32],
    hasher: blake3::Hasher,
    current: Bytes,
}

impl VerifiedReader {
    /// Reads `stream` from its start.
    pub fn new(inner: BlockingReader, stream: &Stream) -> Self {
        Self {
            inner,
            name: stream.name.clone(),
            raw_len: stream.raw_len,
            blake3: stream.blake3,
            hasher: blake3::Hasher::new(),
            current: Bytes::new(),
        }
    }

    /// The next bytes, without a copy; `None` once the stream ended and was found right.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing follows it.
    pub fn next_bytes(&mut self) -> Option<Result<Bytes, RestoreError>> {
        if !self.current.is_empty() {
            return Some(Ok(std::mem::take(&mut self.current)));
        }
        match self.inner.next_bytes() {
            Some(Ok(bytes)) => {
                self.hasher.update(&bytes);
                Some(Ok(bytes))
            }
            Some(Err(error)) => Some(Err(error)),
            None => self.check().err().map(Err),
        }
    }

    fn check(&self) -> Result<(), RestoreError> {
        let bad = |problem: String| Err(RestoreError::Content { item: self.name.clone(), problem });
        if self.hasher.count() != self.raw_len {
            return bad(format!("it has {} bytes of {}", self.hasher.count(), self.raw_len));
        }
        if self.hasher.finalize() != self.blake3 {
            return bad("its BLAKE3 differs".to_owned());
        }
        Ok(())
    }

    /// Writes all of it to `out`. An error after the last byte means that what was written must not be used.
    ///
    /// # Errors
    /// [`RestoreError`]; [`RestoreError::Write`] names `shown`.
    pub fn copy_to(mut self, out: &mut dyn Write, shown: &Path) -> Result<(), RestoreError> {
        while let Some(bytes) = self.next_bytes() {
            out.write_all(&bytes?).map_err(|error| RestoreError::write(shown, error))?;
        }
        out.flush().map_err(|error| RestoreError::write(shown, error))
    }

    /// Reads all of it for nothing but the checks.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn drain(mut self) -> Result<(), RestoreError> {
        while let Some(bytes) = self.next_bytes() {
            bytes?;
        }
        Ok(())
    }
}

impl Read for VerifiedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut current = std::mem::take(&mut self.current);
        let read = read_bytes(&mut current, buffer, || self.next_bytes());
        self.current = current;
        read
    }
}
