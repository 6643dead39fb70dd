//! `[spool]`: where sealed packs wait while the store is slow or away.

use sealift_common::quantity::ByteSize;
use serde::Deserialize;

use crate::config::values::AbsolutePath;

/// The spool's place and size.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// Where packs wait; absent: in the state directory.
    pub dir: Option<AbsolutePath>,
    max_bytes: ByteSize,
    min_free: Option<ByteSize>,
}

impl Default for Spool {
    fn default() -> Self {
        // What a shop's line of 10 Mbit/s takes in half an hour.
        Self { dir: None, max_bytes: ByteSize(2 << 30), min_free: None }
    }
}

impl Spool {
    /// Most bytes that wait, of all backups together; `None`: there is no spool.
    pub fn max_bytes(&self) -> Option<u64> {
        Some(self.max_bytes.0).filter(|bytes| *bytes > 0)
    }

    /// Bytes of its disk that stay free; `None`: a twentieth of it, at most 5 GiB.
    pub fn min_free(&self) -> Option<u64> {
        self.min_free.map(|size| size.0)
    }
}
