//! A pack as the spool's files name it.

use serde::{Deserialize, Serialize};

use sealift_common::format::pack::PackMeta;
use sealift_common::id::BackupId;

/// Hash, lengths and origin of a pack that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRecord {
    sha256: String,
    size: u64,
    meta_sha256: String,
    index_len: u32,
    directory_len: u32,
    header_len: u32,
    origin: BackupId,
    /// Raw bytes in it; 0 where nobody needs to know.
    #[serde(default)]
    pub raw_len: u64,
}

impl PackRecord {
    /// What is to be remembered of a pack.
    pub fn new(meta: &PackMeta, origin: BackupId, raw_len: u64) -> Self {
        Self {
            sha256: meta.sha256.to_string(),
            size: meta.size,
            meta_sha256: meta.meta_sha256.to_string(),
            index_len: meta.index_len,
            directory_len: meta.directory_len,
            header_len: meta.header_len,
            origin,
            raw_len,
        }
    }

    /// The pack; `None` where the hashes are none.
    pub fn pack(&self) -> Option<(PackMeta, BackupId)> {
        let meta = PackMeta {
            sha256: self.sha256.parse().ok()?,
            size: self.size,
            meta_sha256: self.meta_sha256.parse().ok()?,
            index_len: self.index_len,
            directory_len: self.directory_len,
            header_len: self.header_len,
        };
        Some((meta, self.origin))
    }
}
