//! Reading one file: holes without reading them, the page cache left as it was, changes meanwhile noticed.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Advice, SeekFrom, Stat, fadvise, fstat, seek};
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};

use super::archive::Archive;
use crate::source::MAX_DATA;
use crate::source::error::SourceError;

/// Files up to this size, in bytes, are read before their header is written, and again where they changed meanwhile.
pub const SMALL: u64 = 256 * 1024;
/// How often a small file that keeps changing is read.
const TRIES: usize = 4;

/// A small file, read as a whole.
pub struct Small {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its state once it was read.
    pub stat: Stat,
    /// Whether it changed under every try.
    pub changed: bool,
}

/// Reads a small file until it holds still.
pub fn read_small(file: BorrowedFd<'_>, mut before: Stat) -> Result<Small, Errno> {
    let cached = is_cached(file, &before);
    for _ in 0..TRIES {
        let bytes = read_up_to(file, SMALL * 2)?;
        let after = fstat(file)?;
        if !differs(&before, &after) && bytes.len() as u64 == size(&after) {
            if !cached {
                let _ = fadvise(file, 0, None, Advice::DontNeed);
            }
            return Ok(Small { bytes, stat: after, changed: false });
        }
        before = after;
    }
    Ok(Small { bytes: read_up_to(file, SMALL * 2)?, stat: before, changed: true })
}

fn read_up_to(file: BorrowedFd<'_>, limit: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    while (bytes.len() as u64) < limit {
        let read = retry(|| pread(file, piece.as_mut_slice(), bytes.len() as u64))?;
        match piece.get(..read) {
            None | Some([]) => break,
            Some(more) => bytes.extend_from_slice(more),
        }
    }
    Ok(bytes)
}

/// Copies exactly `size` bytes of a large file into the archive: what it grew by is left out, what it shrank by is
/// filled with zeros. Returns its BLAKE3, and what is wrong with the copy, if anything is.
pub fn copy_large(
    file: BorrowedFd<'_>,
    before: &Stat,
    archive: &mut Archive<'_>,
) -> Result<(blake3::Hash, Option<String>), SourceError> {
    let mut copy = Copy { archive, hash: blake3::Hasher::new(), position: 0 };
    let cached = is_cached(file, before);
    let sparse = (before.st_blocks as u64).saturating_mul(512) < size(before);
    let _ = fadvise(file, 0, None, Advice::Sequential);
    let mut problem = None;
    while copy.position < size(before) {
        let end = size(before);
        let extent = if sparse { next_extent(file, copy.position, end) } else { Ok((copy.position, end)) };
        match extent.map(|(start, stop)| (start.min(end), stop.min(end))) {
            Ok((start, stop)) => {
                copy.zeros(start)?;
                if let Err(found) = copy.data(file, stop, cached)? {
                    problem = Some(found);
                    break;
                }
            }
            Err(errno) => {
                problem = Some(format!("could not be read to its end ({errno}): filled with zeros"));
                break;
            }
        }
    }
    copy.zeros(size(before))?;
    let changed = fstat(file).is_ok_and(|after| differs(before, &after));
    if problem.is_none() && changed {
        problem = Some("changed while it was read".to_owned());
    }
    Ok((copy.hash.finalize(), problem))
}

struct Copy<'a, 'b> {
    archive: &'a mut Archive<'b>,
    hash: blake3::Hasher,
    position: u64,
}

impl Copy<'_, '_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        self.hash.update(bytes);
        self.position += bytes.len() as u64;
        self.archive.write(bytes)
    }

    /// Zeros up to `end`.
    fn zeros(&mut self, end: u64) -> Result<(), SourceError> {
        const ZEROS: &[u8] = &[0; 64 * 1024];
        while self.position < end {
            let len = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(ZEROS.len());
            self.take(ZEROS.get(..len).unwrap_or(ZEROS))?;
        }
        Ok(())
    }

    /// The file's bytes up to `end`. The inner error is the file's, the outer one the backup's.
    fn data(
        &mut self,
        file: BorrowedFd<'_>,
        end: u64,
        cached: bool,
    ) -> Result<Result<(), String>, SourceError> {
        let mut piece = vec![0; MAX_DATA];
        while self.position < end {
            let len = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(piece.len());
            let Some(room) = piece.get_mut(..len) else { break };
            let start = self.position;
            match retry(|| pread(file, &mut *room, start)) {
                Ok(0) => return Ok(Err("shrank while it was read: filled with zeros".to_owned())),
                Ok(read) => self.take(room.get(..read).unwrap_or_default())?,
                Err(errno) => {
                    return Ok(Err(format!("could not be read to its end ({errno}): filled with zeros")));
                }
            }
            if !cached {
                let len = std::num::NonZeroU64::new(self.position - start);
                let _ = fadvise(file, start, len, Advice::DontNeed);
            }
        }
        Ok(Ok(()))
    }
}

/// The next range at or after `position` that holds data: start and end; what lies before it is a hole.
fn next_extent(file: BorrowedFd<'_>, position: u64, end: u64) -> Result<(u64, u64), Errno> {
    match seek(file, SeekFrom::Data(position)) {
        Ok(start) => Ok((start, seek(file, SeekFrom::Hole(start)).unwrap_or(end))),
        // Nothing but a hole is left.
        Err(Errno::NXIO) => Ok((end, end)),
        // A file system that knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((position, end)),
        Err(errno) => Err(errno),
    }
}

/// Whether the beginning of the file is in the page cache: then somebody uses it, and it is left there.
fn is_cached(file: BorrowedFd<'_>, stat: &Stat) -> bool {
    let len = usize::try_from(size(stat)).unwrap_or(usize::MAX).min(64 * 1024);
    let mut piece = vec![0; len];
    let read = preadv2(file.as_fd(), &mut [IoSliceMut::new(&mut piece)], 0, ReadWriteFlags::NOWAIT);
    read.is_ok_and(|read| read == len)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Length in bytes.
pub fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn differs(before: &Stat, after: &Stat) -> bool {
    let key = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    key(before) != key(after)
}
