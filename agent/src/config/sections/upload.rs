//! `[upload]`: how much of the line backups may take.

use sealift_common::quantity::ByteSize;
use serde::Deserialize;

/// Limits of uploading, where the policy says nothing else.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upload {
    bandwidth: Option<ByteSize>,
}

impl Upload {
    /// Bytes a second over all backups of this host; `None`: no limit.
    pub fn bandwidth(&self) -> Option<u64> {
        self.bandwidth.map(|size| size.0).filter(|bytes| *bytes > 0)
    }
}
