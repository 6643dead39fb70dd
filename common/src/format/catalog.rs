//! The catalog of a directory backup: one entry per member of its tar, so that one file is found, read and checked without
//! the rest (docs/format.md, Manifest). A stream of `varint length ‖ CatalogEntry`.

use prost::Message;
use sealift_proto::format as wire;

/// Most bytes of one entry.
pub const MAX_ENTRY: usize = 1024 * 1024;

/// A catalog that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// An entry is longer than readers accept.
    #[error("entry {number} of the catalog is longer than {MAX_ENTRY} bytes")]
    TooLong {
        /// Which entry, from 0.
        number: u64,
    },
    /// An entry is malformed.
    #[error("entry {number} of the catalog is malformed: {problem}")]
    Malformed {
        /// Which entry, from 0.
        number: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The catalog ends in the middle of an entry.
    #[error("the catalog ends in the middle of entry {number}")]
    Truncated {
        /// Which entry, from 0.
        number: u64,
    },
}

/// What kind of file an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of a file that came before.
    Hardlink,
    /// A device, a pipe, a socket.
    Other,
}

impl EntryKind {
    fn to_wire(self) -> wire::EntryKind {
        match self {
            Self::File => wire::EntryKind::File,
            Self::Directory => wire::EntryKind::Directory,
            Self::Symlink => wire::EntryKind::Symlink,
            Self::Hardlink => wire::EntryKind::Hardlink,
            Self::Other => wire::EntryKind::Other,
        }
    }

    fn from_wire(kind: i32) -> Option<Self> {
        match wire::EntryKind::try_from(kind).ok()? {
            wire::EntryKind::Unspecified => None,
            wire::EntryKind::File => Some(Self::File),
            wire::EntryKind::Directory => Some(Self::Directory),
            wire::EntryKind::Symlink => Some(Self::Symlink),
            wire::EntryKind::Hardlink => Some(Self::Hardlink),
            wire::EntryKind::Other => Some(Self::Other),
        }
    }
}

/// One member of the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Path below the root of the source, as bytes: relative, without `..`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Length of a regular file, in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// First byte of the member's first (pax) header in the tar stream.
    pub tar_offset: u64,
    /// Bytes of the member, with headers and padding.
    pub tar_len: u64,
    /// Where a link points to.
    pub link_target: Vec<u8>,
    /// BLAKE3 of a regular file's content.
    pub blake3: Option<[u8; 32]>,
}

impl CatalogEntry {
    /// Appends the entry to a catalog.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let entry = wire::CatalogEntry {
            path: self.path.clone(),
            kind: self.kind.to_wire().into(),
            size: self.size,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime_ns: self.mtime_ns,
            tar_offset: self.tar_offset,
            tar_len: self.tar_len,
            link_target: self.link_target.clone(),
            blake3: self.blake3.map(Vec::from).unwrap_or_default(),
        };
        out.extend_from_slice(&entry.encode_length_delimited_to_vec());
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let entry = wire::CatalogEntry::decode(bytes).map_err(|_| "it is not protobuf")?;
        if !stays_below_root(&entry.path) {
            return Err("its path leads out of the backup");
        }
        Ok(Self {
            kind: EntryKind::from_wire(entry.kind).ok_or("its kind is not known to this version")?,
            blake3: match entry.blake3.as_slice() {
                [] => None,
                hash => Some(hash.try_into().map_err(|_| "its BLAKE3 is not 32 bytes")?),
            },
            path: entry.path,
            size: entry.size,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime_ns: entry.mtime_ns,
            tar_offset: entry.tar_offset,
            tar_len: entry.tar_len,
            link_target: entry.link_target,
        })
    }
}

/// Whether a path from a catalog or an archive is relative and has neither `..` nor NUL in it.
pub fn stays_below_root(path: &[u8]) -> bool {
    !path.starts_with(b"/")
        && !path.contains(&0)
        && path.split(|byte| *byte == b'/').all(|part| part != b"..")
}

/// Reads a catalog as it arrives: push bytes, take entries until there is none, push on; [`CatalogReader::finish`] at the end.
#[derive(Debug, Default)]
pub struct CatalogReader {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were taken.
    taken: usize,
    entries: u64,
}

impl CatalogReader {
    /// At the start of a catalog.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next entry; `None` where more has to be pushed first.
    ///
    /// # Errors
    /// [`CatalogError`]: the rest of the catalog cannot be read.
    pub fn next_entry(&mut self) -> Result<Option<CatalogEntry>, CatalogError> {
        let number = self.entries;
        let rest = &self.buffer[self.taken..];
        let mut body = rest;
        let len = match prost::decode_length_delimiter(&mut body) {
            Ok(len) => len,
            Err(_) if rest.len() < 10 => return Ok(None), // a length has at most ten bytes
            Err(_) => return Err(CatalogError::Malformed { number, problem: "its length is no number" }),
        };
        if len > MAX_ENTRY {
            return Err(CatalogError::TooLong { number });
        }
        let Some(entry) = body.get(..len) else { return Ok(None) };
        let entry =
            CatalogEntry::decode(entry).map_err(|problem| CatalogError::Malformed { number, problem })?;
        self.taken += rest.len() - body.len() + len;
        self.entries += 1;
        Ok(Some(entry))
    }

    /// Checks that the catalog ended with an entry.
    ///
    /// # Errors
    /// [`CatalogError::Truncated`].
    pub fn finish(self) -> Result<(), CatalogError> {
        if self.taken == self.buffer.len() {
            Ok(())
        } else {
            Err(CatalogError::Truncated { number: self.entries })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(path: &[u8]) -> CatalogEntry {
        CatalogEntry {
            path: path.to_vec(),
            kind: EntryKind::File,
            size: 5,
            mode: 0o644,
            uid: 1000,
            gid: 1000,
            mtime_ns: -1,
            tar_offset: 512,
            tar_len: 1024,
            link_target: vec![],
            blake3: Some([7; 32]),
        }
    }

    fn read(bytes: &[u8], step: usize) -> Result<Vec<CatalogEntry>, CatalogError> {
        let mut reader = CatalogReader::new();
        let mut entries = Vec::new();
        for piece in bytes.chunks(step) {
            reader.push(piece);
            while let Some(entry) = reader.next_entry()? {
                entries.push(entry);
            }
        }
        reader.finish().map(|()| entries)
    }

    #[test]
    fn entries_come_back_however_they_arrive() {
        let entries = [entry(b"etc/passwd"), entry(b"caf\xe9/\xff"), entry(&vec![b'x'; 5000])];
        let mut catalog = Vec::new();
        entries.iter().for_each(|entry| entry.encode(&mut catalog));
        for step in [1, 7, 4096, catalog.len()] {
            assert_eq!(read(&catalog, step).unwrap(), entries);
        }
        assert_eq!(read(&[], 1).unwrap(), []);
        assert_eq!(read(&catalog[..catalog.len() - 1], 100), Err(CatalogError::Truncated { number: 2 }));
    }

    #[test]
    fn paths_that_lead_out_unknown_kinds_and_endless_entries_are_refused() {
        for path in [b"/etc/passwd".as_slice(), b"a/../../b", b"..", b"a\0b"] {
            let mut catalog = Vec::new();
            entry(path).encode(&mut catalog);
            assert!(matches!(read(&catalog, 100), Err(CatalogError::Malformed { number: 0, .. })));
        }
        let unknown = wire::CatalogEntry { kind: 99, ..Default::default() }.encode_length_delimited_to_vec();
        assert!(matches!(read(&unknown, 100), Err(CatalogError::Malformed { .. })));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0x7f], 4), Err(CatalogError::TooLong { number: 0 }));
        assert!(read(&[0xff; 11], 4).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), step in 1usize..50) {
            let _ = read(&bytes, step);
        }
    }
}
