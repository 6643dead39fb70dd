//! The index cache: which chunks each stored pack holds, so that a later backup need not ask.
//!
//! One file per pack, named by the pack's hash, checksummed, and written only once the pack is stored. All of it can be read
//! again from the bucket, so a damaged file is removed and a full disk only costs time.

use sealift_common::format::chunk::{ChunkId, ChunkRecord};
use sealift_common::id::{SeriesId, Sha256};

use super::dir::{StateDir, StateError};

const MAGIC: &[u8; 8] = b"SLFTIDX1";
const HEAD: usize = MAGIC.len() + 32;
/// Bytes of one record of a chunk index: chunk id 16, raw length u32 (docs/format.md, Pack).
const RECORD: usize = 20;

/// The cache of one series.
#[derive(Debug, Clone)]
pub struct IndexCache {
    state: StateDir,
    folder: String,
}

impl IndexCache {
    /// The cache of `series`.
    pub fn new(state: StateDir, series: SeriesId) -> Self {
        Self { state, folder: format!("index/{series}") }
    }

    /// The records of `pack`; `None` where they are not here, or not intact (then the file is removed).
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn load(&self, pack: Sha256) -> Result<Option<Vec<ChunkRecord>>, StateError> {
        let name = self.file(pack);
        let Some(bytes) = self.state.read(&name)? else { return Ok(None) };
        let records = bytes.get(HEAD..).unwrap_or_default();
        let head = bytes.get(..HEAD).unwrap_or_default();
        if head != self.head(pack, records) || records.len() % RECORD != 0 {
            tracing::warn!(%pack, "removing a damaged index cache file");
            self.state.remove(&name)?;
            return Ok(None);
        }
        Ok(Some(records.as_chunks::<RECORD>().0.iter().map(decode).collect()))
    }

    /// Keeps the records of `pack`, which is stored.
    ///
    /// # Errors
    /// [`StateError::Full`] where the disk has no room for what can be read again.
    pub fn store(&self, pack: Sha256, chunks: &[ChunkRecord]) -> Result<(), StateError> {
        self.state.check_space()?;
        let records: Vec<u8> = chunks.iter().flat_map(encode).collect();
        let mut bytes = self.head(pack, &records);
        bytes.extend_from_slice(&records);
        self.state.write(&self.file(pack), &bytes)
    }

    /// Removes the files of packs that `keep` does not want.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn retain(&self, keep: impl Fn(Sha256) -> bool) -> Result<(), StateError> {
        for name in self.state.list(&self.folder)? {
            if !name.parse().is_ok_and(&keep) {
                self.state.remove(&format!("{}/{name}", self.folder))?;
            }
        }
        Ok(())
    }

    fn file(&self, pack: Sha256) -> String {
        format!("{}/{pack}", self.folder)
    }

    /// The checksum covers the pack's hash, so that a file under a wrong name is as bad as a damaged one.
    fn head(&self, pack: Sha256, records: &[u8]) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(pack.as_bytes()).update(records);
        [MAGIC.as_slice(), hasher.finalize().as_bytes()].concat()
    }
}

fn encode(chunk: &ChunkRecord) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..16].copy_from_slice(&chunk.id.0);
    record[16..].copy_from_slice(&chunk.raw_len.to_le_bytes());
    record
}

fn decode(record: &[u8; RECORD]) -> ChunkRecord {
    let mut id = [0; 16];
    id.copy_from_slice(&record[..16]);
    let raw_len = u32::from_le_bytes([record[16], record[17], record[18], record[19]]);
    ChunkRecord { id: ChunkId(id), raw_len }
}

#[cfg(test)]
mod tests {
    use sealift_common::id::Random;

    use super::*;

    fn chunk(n: u8) -> ChunkRecord {
        ChunkRecord { id: ChunkId([n; 16]), raw_len: 1000 + u32::from(n) }
    }

    #[test]
    fn what_is_damaged_or_misnamed_counts_as_absent() {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temporary.path().join("s")).unwrap();
        let cache = IndexCache::new(state.clone(), SeriesId::generate(&Random::from_seed(1)));
        let (a, b) = (Sha256::of(b"a"), Sha256::of(b"b"));
        let chunks = [chunk(1), chunk(2), chunk(3)];
        cache.store(a, &chunks).unwrap();
        assert_eq!(cache.load(a).unwrap().unwrap(), chunks);
        assert_eq!(cache.load(b).unwrap(), None);

        let bytes = state.read(&cache.file(a)).unwrap().unwrap();
        state.write(&cache.file(b), &bytes).unwrap();
        assert_eq!(cache.load(b).unwrap(), None, "another pack's file");
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1;
            state.write(&cache.file(a), &flipped).unwrap();
            assert_eq!(cache.load(a).unwrap(), None, "bit flipped at {at}");
        }
        assert!(state.list(&cache.folder).unwrap().is_empty(), "damaged files are removed");
    }

    #[test]
    fn packs_that_may_not_be_referred_to_leave_the_cache() {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temporary.path().join("s")).unwrap();
        let cache = IndexCache::new(state, SeriesId::generate(&Random::from_seed(1)));
        let (a, b) = (Sha256::of(b"a"), Sha256::of(b"b"));
        cache.store(a, &[chunk(1)]).unwrap();
        cache.store(b, &[chunk(2)]).unwrap();
        cache.retain(|pack| pack == b).unwrap();
        assert_eq!((cache.load(a).unwrap(), cache.load(b).unwrap().is_some()), (None, true));
    }
}
