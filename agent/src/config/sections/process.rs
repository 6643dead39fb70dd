//! `[process]`: how little of the host backups may take.

use serde::Deserialize;

/// Priority of dump tools, of compression, and of reading files. A shop's till comes first, so the default is low.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    nice: Nice,
    /// Priority at the disk.
    pub io: IoPriority,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "i32")]
struct Nice(i32);

impl TryFrom<i32> for Nice {
    type Error = String;
    fn try_from(nice: i32) -> Result<Self, String> {
        if (0..=19).contains(&nice) {
            Ok(Self(nice))
        } else {
            Err(format!("nice is 0 (normal) to 19, not {nice}"))
        }
    }
}

/// Priority at the disk, where the disk's scheduler knows priorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoPriority {
    /// As everyone else.
    Normal,
    /// Behind everyone else, but never starved.
    Low,
    /// Only while nobody else uses the disk: a backup of a busy host may stall.
    Idle,
}

impl Default for Process {
    fn default() -> Self {
        Self { nice: Nice(10), io: IoPriority::Low }
    }
}

impl Process {
    /// The nice value: 0 (normal) to 19 (most modest).
    pub fn nice(&self) -> i32 {
        self.nice.0
    }
}
