//! `[backup]`: what holds for every backup of this host, where its policy says nothing else.

use std::time::Duration;

use sealift_common::quantity::Span;
use serde::Deserialize;

/// Limits and compression of a backup.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    stall_timeout: Span,
    max_duration: Span,
    compression_level: CompressionLevel,
}

/// zstd's levels that make sense in a stream: above 12 they cost ten times the time for a few per cent.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "i32")]
struct CompressionLevel(i32);

impl TryFrom<i32> for CompressionLevel {
    type Error = String;
    fn try_from(level: i32) -> Result<Self, String> {
        if (1..=19).contains(&level) {
            Ok(Self(level))
        } else {
            Err(format!("compression_level is 1 to 19, not {level}"))
        }
    }
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            stall_timeout: Span(Duration::from_secs(30 * 60)),
            max_duration: Span(Duration::from_secs(24 * 60 * 60)),
            // Measured on a database dump: level 3 stores 326 MiB where level 1 stores 332 MiB, and restores as fast;
            // it costs a quarter of the compression speed (250-295 against 330-370 MB/s a core), which only a first
            // backup notices, since later ones compress what is new alone.
            compression_level: CompressionLevel(3),
        }
    }
}

impl Backup {
    /// A source that makes no progress for this long is ended.
    pub fn stall_timeout(&self) -> Duration {
        self.stall_timeout.0
    }

    /// A backup that takes longer is ended.
    pub fn max_duration(&self) -> Duration {
        self.max_duration.0
    }

    /// zstd level.
    pub fn compression_level(&self) -> i32 {
        self.compression_level.0
    }
}
