//! Packs: the objects that hold the data (docs/format.md, Pack).
//!
//! ```text
//! "SLFTPAK1" | frames | chunk index | frame directory | header | index len, directory len, header len | "SLFTEND1"
//! ```
//!
//! Writing: a [`BackupKeys`] per session begins packs; [`PackWriter::assign`] gives out the frames' numbers, workers compress
//! and seal them with [`FrameJob::seal`], and [`PackWriter::finish`] puts the object together as a list of buffers that are
//! never copied. Reading: [`PackTail::parse`] on the last bytes, [`PackTail::open`] with the data key,
//! [`OpenPack::open_frame`] on each frame.

mod header;
mod index;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub use header::{PackHeader, Trailer};
pub use index::open_chunk_index;
pub use read::{FrameInfo, OpenPack, PackTail};
pub use write::{BackupKeys, FrameJob, Pack, PackWriteError, PackWriter, SealedFrame};

use crate::crypto::SlotError;
use crate::format::names::ObjectName;
use crate::id::{BackupId, SeriesId, Sha256};

/// What every pack starts with.
pub const MAGIC: &[u8; 8] = b"SLFTPAK1";
/// What every pack ends with.
pub const END_MAGIC: &[u8; 8] = b"SLFTEND1";
/// Bytes of the lengths and the magic at the end.
pub const TRAILER_LEN: usize = 20;
/// Stored size at which a pack is closed, in bytes.
pub const TARGET_STORED: u64 = 16 * 1024 * 1024;
/// Most stored bytes of a pack.
pub const MAX_STORED: u64 = 64 * 1024 * 1024;
/// Most raw bytes of a pack.
pub const MAX_RAW: u64 = 1024 * 1024 * 1024;
/// Most bytes of a header.
pub const MAX_HEADER: u32 = 64 * 1024;
/// Most bytes of a sealed directory.
pub const MAX_DIRECTORY: u32 = 1024 * 1024;
/// Most bytes of a sealed chunk index.
pub const MAX_INDEX: u32 = 16 * 1024 * 1024;
/// Most chunks in a pack.
pub const MAX_CHUNKS: usize = 512 * 1024;
/// Most frames in a pack: keeps the directory below [`MAX_DIRECTORY`].
pub const MAX_FRAMES: usize = 64 * 1024;

/// What a manifest or a coordinator says about a pack, apart from whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackMeta {
    /// Of the whole object.
    pub sha256: Sha256,
    /// Of the whole object, in bytes.
    pub size: u64,
    /// Of header ‖ sealed directory.
    pub meta_sha256: Sha256,
    /// Sealed chunk index, in bytes.
    pub index_len: u32,
    /// Sealed directory, in bytes.
    pub directory_len: u32,
    /// Header, in bytes.
    pub header_len: u32,
}

impl PackMeta {
    /// The lengths at the end of the object.
    pub fn trailer(&self) -> Trailer {
        Trailer { index_len: self.index_len, directory_len: self.directory_len, header_len: self.header_len }
    }

    /// How many bytes of the object's end a restore has to read before the frames: directory, header and trailer.
    pub fn suffix_len(&self) -> u64 {
        u64::from(self.directory_len) + u64::from(self.header_len) + TRAILER_LEN as u64
    }

    /// The object's name.
    pub fn name(&self, series: SeriesId) -> ObjectName {
        ObjectName::Pack { series, sha256: self.sha256 }
    }
}

/// A pack that is not to be used. Names the object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pack {name}: {problem}")]
pub struct PackError {
    /// The object's name.
    pub name: ObjectName,
    /// What is wrong with it.
    #[source]
    pub problem: PackProblem,
}

/// What is wrong with a pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackProblem {
    /// Fewer bytes were read than the part asked for has.
    #[error("it is shorter than it should be: {got} bytes, expected {expected}")]
    Truncated {
        /// Bytes there.
        got: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// The magic at its start or end is wrong.
    #[error("it is not a pack of storage format 1, or its first or last bytes were altered")]
    Magic,
    /// The lengths at its end are not those that the manifest names.
    #[error("the lengths at its end are not the expected ones")]
    Lengths,
    /// A length beyond what readers accept.
    #[error("its {part} is {len} bytes, at most {cap} are accepted")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// Its length.
        len: u64,
        /// The most that is accepted.
        cap: u64,
    },
    /// The whole object does not hash to its name.
    #[error("its bytes do not hash to its name")]
    Hash,
    /// Header and directory are not those that the manifest names.
    #[error("its header or directory was altered")]
    Meta,
    /// The header cannot be read.
    #[error("its header is malformed: {0}")]
    Header(String),
    /// The header needs features that this version does not have.
    #[error("it requires {0:?}: use a newer version of Sealift")]
    RequiredFeatures(Vec<String>),
    /// It is another series', repository's or backup's.
    #[error("it belongs to another {0}")]
    Foreign(&'static str),
    /// The slots do not give the key.
    #[error("{0}")]
    Slots(#[source] SlotError),
    /// The data key is not the one it was sealed under.
    #[error("it was not sealed under the data key of backup {0}")]
    Commitment(BackupId),
    /// The directory does not decrypt or does not add up.
    #[error("its frame directory {0}")]
    Directory(&'static str),
    /// The chunk index does not decrypt or cannot be read.
    #[error("its chunk index {0}")]
    Index(&'static str),
    /// A frame does not decrypt or decompress.
    #[error("frame {number}: {problem}")]
    Frame {
        /// Which frame, from 0.
        number: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}
