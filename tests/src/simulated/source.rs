//! What a simulated host has to back up: blocks of made-up bytes, one of which changes from backup to backup.
//!
//! Every block is one pack, so that a first backup stores them all and a later one stores what changed and refers to the
//! rest, as real ones do.

use std::collections::HashMap;
use std::sync::Mutex;

use bytes::Bytes;
use sealift_common::crypto::SeriesSecret;
use sealift_common::id::{AgentId, Random, Sha256};

/// Name of the one stream of each backup.
pub const STREAM: &str = "source.bin";

/// One source of a simulated host.
pub struct Source {
    /// Its name.
    pub name: String,
    /// What its packs are sealed with, besides the backup's data key.
    pub secret: SeriesSecret,
    host: AgentId,
    block_bytes: usize,
    kept: Mutex<Kept>,
}

/// What outlives a crash: on a real host it is on disk.
struct Kept {
    versions: Vec<u64>,
    commits: u64,
    /// Which pack holds a block.
    stored: HashMap<Block, Sha256>,
    head: Option<(u64, Sha256)>,
}

/// One block in one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// Its place in the stream.
    pub place: usize,
    /// Counts its changes.
    pub version: u64,
}

impl Source {
    /// A source of `blocks` blocks of `block_bytes` each.
    pub fn new(host: AgentId, name: String, blocks: usize, block_bytes: usize, random: &Random) -> Self {
        let kept = Kept { versions: vec![0; blocks.max(1)], commits: 0, stored: HashMap::new(), head: None };
        Self { name, secret: SeriesSecret::generate(random), host, block_bytes, kept: Mutex::new(kept) }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().expect("not poisoned")
    }

    /// The blocks as the next backup finds them: since the last one, one of them changed.
    pub fn blocks(&self) -> Vec<Block> {
        let kept = self.kept();
        let changed = usize::try_from(kept.commits).unwrap_or_default() % kept.versions.len();
        let version = |(place, version): (usize, &u64)| Block {
            place,
            version: version + u64::from(kept.commits > 0 && place == changed),
        };
        kept.versions.iter().enumerate().map(version).collect()
    }

    /// The bytes of a block: no two are alike, and they do not compress.
    pub fn bytes(&self, block: Block) -> Bytes {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.host.as_bytes()).update(self.name.as_bytes());
        hasher.update(&block.place.to_le_bytes()).update(&block.version.to_le_bytes());
        let mut bytes = vec![0; self.block_bytes];
        hasher.finalize_xof().fill(&mut bytes);
        bytes.into()
    }

    /// The pack that holds a block, where one was stored.
    pub fn pack_of(&self, block: Block) -> Option<Sha256> {
        self.kept().stored.get(&block).copied()
    }

    /// A block is stored.
    pub fn stored(&self, block: Block, pack: Sha256) {
        self.kept().stored.insert(block, pack);
    }

    /// A backup of these blocks is committed.
    pub fn committed(&self, blocks: &[Block], sequence: u64, manifest: Sha256) {
        let mut kept = self.kept();
        kept.versions = blocks.iter().map(|block| block.version).collect();
        kept.stored.retain(|block, _| blocks.contains(block));
        kept.commits += 1;
        kept.head = Some((sequence, manifest));
    }

    /// Sequence and hash of the newest manifest that it knows of.
    pub fn head(&self) -> Option<(u64, Sha256)> {
        self.kept().head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_changes_from_backup_to_backup() {
        let random = Random::from_seed(1);
        let source = Source::new(AgentId::generate(&random), "data".to_owned(), 3, 100, &random);
        let first = source.blocks();
        assert_eq!(first, source.blocks(), "until a backup is committed nothing changes");
        source.committed(&first, 1, Sha256::of(b"1"));
        let second = source.blocks();
        let changed: Vec<_> = first.iter().zip(&second).filter(|(a, b)| a != b).collect();
        assert_eq!(changed.len(), 1);
        assert_ne!(source.bytes(*changed[0].0), source.bytes(*changed[0].1));
        assert_eq!(source.head(), Some((1, Sha256::of(b"1"))));
    }
}
