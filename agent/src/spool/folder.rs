//! What one attempt keeps in the spool, and where each of its new packs is: in memory, on disk, or stored.
//!
//! While the source is read, packs come and go, and the folder is worth nothing without the process. Once the source is
//! through, [`Folder::settle`] brings what is still in memory to disk, with the plan of the manifest beside it: from then on
//! another process can finish the backup.
//!
//! | file | what |
//! |---|---|
//! | `NUMBER.pack` | a pack, sealed for the spool |
//! | `NUMBER.stored` | after [`Folder::settle`]: as what it was stored (the pack's file is gone) |
//! | `plan` | after [`Folder::settle`]: what the manifest will say, sealed |

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use sealift_common::format::pack::{BackupKeys, Pack};
use sealift_common::id::Random;

use super::{PackRecord, Spool, SpoolError, io, make_private_dir};
use crate::pack::StoredPack;

const PLAN: &str = "plan";
/// The plan is sealed once under a key of its own.
const PLAN_NONCE: [u8; 12] = [0; 12];
const PLAN_CONTEXT: &[u8] = b"sealift/1/spool-plan";

/// Where a new pack is.
#[derive(Debug)]
enum Place {
    Memory(Arc<Pack>),
    Disk,
    Stored(StoredPack),
}

#[derive(Debug)]
struct Entry {
    raw_len: u64,
    place: Place,
    /// Bytes of its file, while there is one.
    on_disk: u64,
}

#[derive(Debug, Default)]
struct Table {
    entries: Vec<Entry>,
    /// No more packs will come.
    complete: bool,
    settled: bool,
}

/// The new packs of one attempt.
#[derive(Debug)]
pub struct Folder {
    spool: Arc<Spool>,
    path: PathBuf,
    keys: BackupKeys,
    random: Random,
    table: Mutex<Table>,
    /// One at a time writes; the table is free meanwhile.
    disk: Mutex<()>,
    all_stored: watch::Sender<bool>,
    /// Bytes that wait on disk, for whoever shows them.
    gauge: Arc<AtomicU64>,
    kept: AtomicBool,
}

impl Folder {
    /// A folder that nothing is in. It is made on disk when it is first needed.
    pub fn new(spool: Arc<Spool>, keys: BackupKeys, random: Random, gauge: Arc<AtomicU64>) -> Self {
        let path = spool.place(&keys.owner.backup.to_string());
        Self {
            spool,
            path,
            keys,
            random,
            table: Mutex::default(),
            disk: Mutex::default(),
            all_stored: watch::Sender::new(false),
            gauge,
            kept: AtomicBool::new(false),
        }
    }

    /// The folder that an earlier process settled, with as many packs as `raw_lens` has. It stays where it is until
    /// [`Folder::discard`].
    ///
    /// # Errors
    /// [`SpoolError`]: then it cannot be used, and dropping it leaves it there.
    pub fn reopen(
        spool: Arc<Spool>,
        keys: BackupKeys,
        random: Random,
        gauge: Arc<AtomicU64>,
        raw_lens: &[u64],
    ) -> Result<Self, SpoolError> {
        let folder = Self::new(spool, keys, random, gauge);
        folder.kept.store(true, Relaxed);
        let entries = (0..).zip(raw_lens).map(|(number, raw_len)| folder.find(number, *raw_len));
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        let bytes = entries.iter().map(|entry| entry.on_disk).sum();
        // Here already: the quota only bounds what comes.
        folder.spool.used.fetch_add(bytes, Relaxed);
        *folder.lock() = Table { entries, complete: true, settled: true };
        folder.tell();
        Ok(folder)
    }

    fn find(&self, number: u32, raw_len: u64) -> Result<Entry, SpoolError> {
        let (pack, note) = (self.pack_file(number), self.note_file(number));
        let stored = match std::fs::read(&note) {
            // A note is whole before its pack's file goes; a damaged one means that the file is still there.
            Ok(bytes) => serde_json::from_slice::<PackRecord>(&bytes).ok().and_then(|record| record.pack()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(io("read", &note)(error)),
        };
        if let Some((meta, origin)) = stored {
            let place = Place::Stored(StoredPack { meta, origin, raw_len });
            return Ok(Entry { raw_len, place, on_disk: 0 });
        }
        let on_disk = std::fs::metadata(&pack).map_err(io("find", &pack))?.len();
        Ok(Entry { raw_len, place: Place::Disk, on_disk })
    }

    /// The plan that an earlier process left with [`Folder::settle`].
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn read_plan(path: &Path, keys: &sealift_common::crypto::DataKey) -> Result<Vec<u8>, SpoolError> {
        let file = path.join(PLAN);
        let sealed = std::fs::read(&file).map_err(io("read", &file))?;
        keys.spool_plan_key()
            .open(PLAN_NONCE, PLAN_CONTEXT, &sealed)
            .map_err(|error| SpoolError::Damaged { path: file, problem: error.to_string() })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes in the next new pack; gives its number.
    pub fn arrived(&self, pack: Arc<Pack>) -> u32 {
        let mut table = self.lock();
        let number = u32::try_from(table.entries.len()).unwrap_or(u32::MAX);
        table.entries.push(Entry { raw_len: pack.raw_len(), place: Place::Memory(pack), on_disk: 0 });
        number
    }

    /// All packs have come.
    pub fn complete(&self) {
        self.lock().complete = true;
        self.tell();
    }

    /// Bytes that wait on disk.
    pub fn bytes(&self) -> u64 {
        self.lock().entries.iter().map(|entry| entry.on_disk).sum()
    }

    /// Raw bytes of each new pack, in their order.
    pub fn raw_lens(&self) -> Vec<u64> {
        self.lock().entries.iter().map(|entry| entry.raw_len).collect()
    }

    /// The packs that are stored, in their order.
    pub fn stored_packs(&self) -> Vec<StoredPack> {
        let stored = |entry: &Entry| match &entry.place {
            Place::Stored(stored) => Some(*stored),
            _ => None,
        };
        self.lock().entries.iter().filter_map(stored).collect()
    }

    /// Numbers of the packs that are not stored.
    pub fn left(&self) -> Vec<u32> {
        let table = self.lock();
        let left = (0..).zip(&table.entries).filter(|(_, entry)| !matches!(entry.place, Place::Stored(_)));
        left.map(|(number, _)| number).collect()
    }

    /// Waits until all packs have come and are stored.
    pub async fn all_stored(&self) {
        // The sender lives in `self`.
        let _ = self.all_stored.subscribe().wait_for(|all| *all).await;
    }

    /// Brings a pack from memory to disk; `false` where there is no room. Blocks: keep it off the async threads.
    ///
    /// # Errors
    /// [`SpoolError`]; the pack stays in memory.
    pub fn spill(&self, number: u32) -> Result<bool, SpoolError> {
        let _disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        self.spill_alone(number)
    }

    fn spill_alone(&self, number: u32) -> Result<bool, SpoolError> {
        let Some(pack) = self.in_memory(number) else { return Ok(true) };
        make_private_dir(&self.path)?;
        let file = self.pack_file(number);
        let damaged = |error: sealift_common::format::pack::PackError| SpoolError::Damaged {
            path: file.clone(),
            problem: error.to_string(),
        };
        let sealed = pack.reseal(&self.keys, &self.random).map_err(damaged)?;
        let size = sealed.meta().size;
        if !self.spool.reserve(size) {
            return Ok(false);
        }
        if let Err(error) = write(&file, sealed.body()) {
            let _ = std::fs::remove_file(&file);
            self.spool.release(size);
            return Err(error);
        }
        if let Some(entry) = self.lock().entries.get_mut(number as usize) {
            entry.place = Place::Disk;
            entry.on_disk = size;
        }
        self.tell();
        Ok(true)
    }

    /// Takes a pack up again from disk. Blocks.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn load(&self, number: u32) -> Result<Pack, SpoolError> {
        let file = self.pack_file(number);
        let bytes = Bytes::from(std::fs::read(&file).map_err(io("read", &file))?);
        Pack::load(&bytes, &self.keys)
            .map_err(|error| SpoolError::Damaged { path: file, problem: error.to_string() })
    }

    /// A pack is stored: its file is not needed any more. Blocks.
    ///
    /// # Errors
    /// [`SpoolError`]: after a restart the pack would be stored once more.
    pub fn stored(&self, number: u32, stored: StoredPack) -> Result<(), SpoolError> {
        let _disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let (settled, on_disk) = {
            let mut table = self.lock();
            let settled = table.settled;
            let Some(entry) = table.entries.get_mut(number as usize) else { return Ok(()) };
            entry.place = Place::Stored(stored);
            (settled, std::mem::take(&mut entry.on_disk))
        };
        self.tell();
        if settled {
            self.note(number, &stored)?;
        }
        if on_disk > 0 {
            let file = self.pack_file(number);
            self.spool.release(on_disk);
            std::fs::remove_file(&file).map_err(io("remove", &file))?;
        }
        Ok(())
    }

    /// Brings everything to disk that another process needs to finish this backup. `false` where there is no room: then
    /// nothing has changed but for what did fit. Blocks.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn settle(&self, mut plan: Vec<u8>) -> Result<bool, SpoolError> {
        let _disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        make_private_dir(&self.path)?;
        for number in self.left() {
            if !self.spill_alone(number)? {
                return Ok(false);
            }
        }
        let stored: Vec<_> = {
            let table = self.lock();
            let stored = (0..).zip(&table.entries).filter_map(|(number, entry)| match &entry.place {
                Place::Stored(stored) => Some((number, *stored)),
                _ => None,
            });
            stored.collect()
        };
        for (number, stored) in stored {
            self.note(number, &stored)?;
        }
        self.keys.data_key.spool_plan_key().seal(PLAN_NONCE, PLAN_CONTEXT, &mut plan);
        write(&self.path.join(PLAN), &[plan.into()])?;
        for dir in [Some(self.path.as_path()), self.path.parent()].into_iter().flatten() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync", dir))?;
        }
        self.lock().settled = true;
        Ok(true)
    }

    /// Dropping this leaves everything where it is.
    pub fn keep(&self) {
        self.kept.store(true, Relaxed);
    }

    /// Dropping this removes everything.
    pub fn discard(&self) {
        self.kept.store(false, Relaxed);
    }

    fn in_memory(&self, number: u32) -> Option<Arc<Pack>> {
        match &self.lock().entries.get(number as usize)?.place {
            Place::Memory(pack) => Some(pack.clone()),
            Place::Disk | Place::Stored(_) => None,
        }
    }

    fn note(&self, number: u32, stored: &StoredPack) -> Result<(), SpoolError> {
        let file = self.note_file(number);
        let record = PackRecord::new(&stored.meta, stored.origin, stored.raw_len);
        let note = serde_json::to_vec(&record).map_err(|error| io("encode", &file)(error.into()))?;
        write(&file, &[note.into()])
    }

    fn pack_file(&self, number: u32) -> PathBuf {
        self.path.join(format!("{number:08}.pack"))
    }

    fn note_file(&self, number: u32) -> PathBuf {
        self.path.join(format!("{number:08}.stored"))
    }

    fn tell(&self) {
        let table = self.lock();
        let all = table.complete && table.entries.iter().all(|entry| matches!(entry.place, Place::Stored(_)));
        self.gauge.store(table.entries.iter().map(|entry| entry.on_disk).sum(), Relaxed);
        self.all_stored.send_replace(all);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.spool.release(self.bytes());
        self.gauge.store(0, Relaxed);
        if self.kept.load(Relaxed) {
            return;
        }
        if let Err(error) = super::remove(&self.path) {
            tracing::warn!(%error, "the spool is swept at the next start");
        }
    }
}

/// Writes a file of mode 0600, whole and on disk when this returns.
fn write(path: &Path, body: &[Bytes]) -> Result<(), SpoolError> {
    let failed = io("write", path);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(&failed)?;
    for part in body {
        file.write_all(part).map_err(&failed)?;
    }
    file.sync_all().map_err(&failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use sealift_common::clock::UnixMillis;
    use sealift_common::crypto::key_file::generate_identity;
    use sealift_common::crypto::{DataKey, KeyOwner, SeriesSecret};
    use sealift_common::format::chunk::{Chunk, ChunkId};
    use sealift_common::format::frame::{FrameCompressor, RawFrame};
    use sealift_common::id::{BackupId, RepositoryId, SeriesId};
    use sealift_common::secret::Secret;

    use super::*;

    fn keys(backup: u8) -> BackupKeys {
        let owner = KeyOwner {
            repository: RepositoryId::from_bytes([1; 16]),
            series: SeriesId::from_bytes([2; 16]),
            backup: BackupId::from_bytes([backup; 16]),
        };
        let recipient = generate_identity(UnixMillis(0)).1;
        let secret = SeriesSecret::from_bytes([3; 32]);
        let random = Random::from_seed(backup.into());
        BackupKeys::generate(&random, &[9; 32], owner, secret, &[recipient]).unwrap()
    }

    fn spool_keys() -> BackupKeys {
        let keys = keys(9);
        let salt = Secret::new([5; 32]);
        BackupKeys { data_key: DataKey::of_spool(&salt, &keys.secret), ..keys }
    }

    fn pack(keys: &BackupKeys, seed: u64) -> Arc<Pack> {
        let random = Random::from_seed(seed);
        let mut data = vec![0; 10_000];
        random.fill(&mut data);
        let mut writer = keys.begin_pack(&random);
        let mut frame = RawFrame::new();
        frame.push(&Chunk { id: ChunkId(random.bytes()), data: data.into() });
        let job = writer.assign(frame).unwrap_or_else(|_| panic!("it has room"));
        let (sealed, _) = job.seal(&mut FrameCompressor::new(1).unwrap());
        writer.complete(sealed).unwrap();
        Arc::new(writer.finish().unwrap())
    }

    fn stored(pack: &Pack) -> StoredPack {
        StoredPack { meta: *pack.meta(), origin: pack.owner().backup, raw_len: pack.raw_len() }
    }

    #[test]
    fn another_process_finds_what_was_settled_and_nothing_else_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, backup) = (Spool::new(dir.path().join("s"), 1 << 20, Some(0)), keys(1));
        make_private_dir(dir.path().join("s").as_path()).unwrap();
        let packs = [1, 2, 3].map(|seed| pack(&backup, seed));
        let folder = Folder::new(spool.clone(), spool_keys(), Random::from_seed(8), Arc::default());
        for pack in &packs {
            folder.arrived(pack.clone());
        }
        folder.complete();
        folder.stored(1, stored(&packs[1])).unwrap();
        assert!(folder.settle(b"the plan".to_vec()).unwrap());
        folder.stored(2, stored(&packs[2])).unwrap();
        let (raw_lens, path) = (folder.raw_lens(), folder.path().to_owned());
        folder.keep();
        drop(folder);

        let mut names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap()).collect();
        names.sort_by_key(std::fs::DirEntry::file_name);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert!(names.iter().all(|entry| mode(&entry.path()) == 0o600));
        let names: Vec<_> = names.iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
        assert_eq!(names, ["00000000.pack", "00000001.stored", "00000002.stored", "plan"]);
        for name in &names {
            let bytes = std::fs::read(path.join(name)).unwrap();
            assert!(!bytes.windows(8).any(|window| window == b"the plan"), "{name} is in clear");
        }
        assert!(Pack::load(&std::fs::read(path.join("00000000.pack")).unwrap().into(), &backup).is_err());

        let plan = Folder::read_plan(&path, &spool_keys().data_key).unwrap();
        assert_eq!(plan, b"the plan");
        assert!(Folder::read_plan(&path, &backup.data_key).is_err());
        let folder =
            Folder::reopen(spool.clone(), spool_keys(), Random::from_seed(8), Arc::default(), &raw_lens)
                .unwrap();
        assert_eq!(folder.left(), [0]);
        assert_eq!(folder.stored_packs(), [stored(&packs[1]), stored(&packs[2])]);
        let loaded = folder.load(0).unwrap();
        let again = loaded.reseal(&backup, &Random::from_seed(4)).unwrap();
        assert_eq!((again.raw_len(), again.chunks()), (packs[0].raw_len(), packs[0].chunks()));
        folder.discard();
        drop(folder);
        assert!(!path.exists(), "discarded");
        assert_eq!(spool.used.load(Relaxed), 0);
    }

    #[test]
    fn a_full_spool_keeps_packs_in_memory_and_a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, backup) = (Spool::new(dir.path().to_owned(), 15_000, Some(0)), keys(1));
        let folder = Folder::new(spool, spool_keys(), Random::from_seed(8), Arc::default());
        for seed in [1, 2] {
            folder.arrived(pack(&backup, seed));
        }
        assert!(folder.spill(0).unwrap());
        assert!(!folder.spill(1).unwrap(), "beyond the quota");
        assert!(!folder.settle(Vec::new()).unwrap());
        let file = folder.pack_file(0);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        // The frame is opened when it is sealed anew; that is where it shows.
        let loaded = folder.load(0).and_then(|pack| {
            pack.reseal(&backup, &Random::from_seed(4))
                .map_err(|error| SpoolError::Damaged { path: file.clone(), problem: error.to_string() })
        });
        assert!(loaded.is_err());
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn all_are_stored_only_when_all_have_come() {
        let dir = tempfile::tempdir().unwrap();
        let backup = keys(1);
        let folder = Folder::new(
            Spool::new(dir.path().to_owned(), 0, None),
            spool_keys(),
            Random::from_seed(8),
            Arc::default(),
        );
        let one = pack(&backup, 1);
        folder.arrived(one.clone());
        folder.stored(0, stored(&one)).unwrap();
        assert!(!*folder.all_stored.borrow());
        folder.complete();
        folder.all_stored().await;
    }
}
