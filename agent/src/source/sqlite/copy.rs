//! How a database is copied, by what state it is in.
//!
//! | state | how | what its program notices |
//! |---|---|---|
//! | rollback journal | read without a lock first; then, under a shared lock, compared with that copy and put right | commits wait while the database is read from the page cache: about a second for 2 GB |
//! | write-ahead log in use | SQLite's backup in one read transaction | nothing |
//! | write-ahead log that nobody has open, or a journal that a crash left | the files are copied as they lie, looked at again for changes, and recovered in the copy | nothing |
//!
//! Nothing is ever written beside the database: opening an idle write-ahead log would create files there, which its own
//! program might then not be allowed to open.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio_util::sync::CancellationToken;

use crate::source::error::SourceError;
use crate::source::locks;
use crate::source::temp::TempRoot;

/// What every database that is not empty starts with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Room that is left for others beside a copy, in bytes.
const RESERVE: u64 = 64 << 20;
/// Bytes read, compared and written at once.
const PIECE: usize = 256 << 10;
/// Pages copied between two looks at whether the backup was cancelled.
const PAGES_AT_ONCE: i32 = 4096;
/// How long SQLite waits for a lock at a time, and how often that is tried: two minutes in all.
const LOCK_WAIT: Duration = Duration::from_millis(200);
const LOCK_TRIES: u32 = 600;
/// How often files that nobody seems to have open are copied before they count as busy.
const QUIET_TRIES: u32 = 20;

/// A finished copy.
pub struct Copied {
    /// The copy, at its beginning; it has no name any more.
    pub file: File,
    /// In bytes.
    pub size: u64,
    /// `wal` or `rollback`, as the original has it.
    pub journal_mode: &'static str,
}

/// Copies the database at `path` into `temp`. The caller sees to it that no other copy runs in this process.
pub fn copy(path: &Path, temp: &TempRoot, cancel: &CancellationToken) -> Result<Copied, SourceError> {
    let database = Database::open(path)?;
    database.check_space(temp)?;
    let place = temp.directory("sqlite-")?;
    let target = place.path().join("copy");
    let made = match (database.wal, database.sidecar("-shm").exists()) {
        (true, true) => database.copy_snapshot(&target, cancel),
        (true, false) => database.copy_quiet(&target, "-wal", cancel),
        (false, _) => match database.copy_compared(&target, cancel) {
            // Only who may write could roll back what a crash left; that is done in the copy.
            Err(SourceError::Sqlite { source, .. }) if needs_recovery(&source) => {
                database.copy_quiet(&target, "-journal", cancel)
            }
            other => other,
        },
    };
    made?;
    let fail = |error| SourceError::io("read the copy in", place.path())(error);
    let file = File::open(&target).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    let journal_mode = database.journal_mode();
    // The open file is all that is left of it.
    place.close().map_err(SourceError::io("remove a temporary directory in", temp.path()))?;
    Ok(Copied { file, size, journal_mode })
}

/// A database that is about to be copied. SQLite's locks on its files hold for as long as this lives.
pub struct Database {
    path: PathBuf,
    file: Option<File>,
    metadata: Metadata,
    wal: bool,
    _hold: locks::Hold,
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            locks::close(OwnedFd::from(file), (self.metadata.dev(), self.metadata.ino()));
        }
    }
}

impl Database {
    /// Opens the file and looks what it is.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let io = |operation| SourceError::io(operation, path);
        // Journal and log lie beside the file itself, not beside a link to it.
        let path = path.canonicalize().map_err(io("find"))?;
        let metadata = path.metadata().map_err(io("look at"))?;
        let unusable = |problem: &str| SourceError::Unusable {
            item: path.display().to_string(),
            problem: problem.to_owned(),
        };
        if !metadata.is_file() {
            return Err(unusable("is not a file"));
        }
        let sidecars = ["-wal", "-shm", "-journal"].map(|suffix| sidecar(&path, suffix).metadata());
        let ids = [Ok(metadata.clone())].into_iter().chain(sidecars).flatten().map(|m| (m.dev(), m.ino()));
        let hold = locks::hold(ids.collect());
        let file = File::open(&path).map_err(io("open"))?;
        let mut header = Vec::new();
        (&file).take(100).read_to_end(&mut header).map_err(io("read"))?;
        if !header.is_empty() && !header.starts_with(MAGIC) {
            return Err(unusable(
                "is not a SQLite database, or it is encrypted: back it up as a directory or by a command",
            ));
        }
        // "File format versions" of https://www.sqlite.org/fileformat.html: 2 is a write-ahead log.
        let wal = header.get(18) == Some(&2);
        Ok(Self { path, file: Some(file), metadata, wal, _hold: hold })
    }

    /// `wal` or `rollback`.
    pub fn journal_mode(&self) -> &'static str {
        if self.wal { "wal" } else { "rollback" }
    }

    /// Length of the database, in bytes, without what its log adds.
    pub fn size(&self) -> u64 {
        self.metadata.len()
    }

    /// Whether a copy fits into the state directory.
    pub fn check_space(&self, temp: &TempRoot) -> Result<(), SourceError> {
        let path = temp.path();
        let free =
            rustix::fs::statvfs(path).map_err(|e| SourceError::io("look for room in", path)(e.into()))?;
        let available = free.f_bavail.saturating_mul(free.f_frsize);
        let log = self.sidecar("-wal").metadata().map_or(0, |metadata| metadata.len());
        let needed = self.size().saturating_add(log).saturating_add(RESERVE);
        if available < needed {
            return Err(SourceError::NoSpace { path: path.to_owned(), needed, available });
        }
        Ok(())
    }

    fn sidecar(&self, suffix: &str) -> PathBuf {
        sidecar(&self.path, suffix)
    }

    fn sqlite(&self, operation: &'static str) -> impl FnOnce(rusqlite::Error) -> SourceError {
        let path = self.path.clone();
        move |source| SourceError::Sqlite { operation, path, source }
    }

    fn io(&self, operation: &'static str) -> impl FnOnce(io::Error) -> SourceError {
        SourceError::io(operation, &self.path)
    }

    /// A connection with a read transaction, as soon as the database's program lets us.
    fn read_transaction(&self, cancel: &CancellationToken) -> Result<Connection, SourceError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(self.sqlite("open"))?;
        connection.busy_timeout(LOCK_WAIT).map_err(self.sqlite("open"))?;
        connection.execute_batch("BEGIN").map_err(self.sqlite("open"))?;
        for _ in 0..LOCK_TRIES {
            if cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            // BEGIN alone takes no lock: the first read does.
            match connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())) {
                Ok(()) => return Ok(connection),
                Err(error) if is_busy(&error) => {}
                Err(error) => return Err(self.sqlite("read")(error)),
            }
        }
        Err(SourceError::SqliteBusy { path: self.path.clone(), after: LOCK_WAIT * LOCK_TRIES })
    }

    /// Rollback journal: most of the work without a lock, the rest under a shared one.
    fn copy_compared(&self, target: &Path, cancel: &CancellationToken) -> Result<(), SourceError> {
        let Some(source) = &self.file else { return Ok(()) };
        let mut copy = Copy::make(target)?;
        copy.allocate(self.size());
        // What is torn in this pass is put right in the next, which finds the database in the page cache.
        copy.bring_level(source, &self.path, cancel)?;
        let connection = self.read_transaction(cancel)?;
        let locked = std::time::Instant::now();
        // With the shared lock nobody may write to the file, not even a large transaction's overflow.
        copy.bring_level(source, &self.path, cancel)?;
        connection.execute_batch("COMMIT").map_err(self.sqlite("read"))?;
        tracing::info!(held_ms = locked.elapsed().as_millis(), "read the database under its lock");
        Ok(())
    }

    /// Write-ahead log in use: readers do not hold up writers.
    fn copy_snapshot(&self, target: &Path, cancel: &CancellationToken) -> Result<(), SourceError> {
        private_file(target).map_err(SourceError::io("make", target))?;
        let source = self.read_transaction(cancel)?;
        let mut copy = Connection::open(target).map_err(self.sqlite("copy"))?;
        // The copy is thrown away where anything goes wrong: it needs no journal, and need not reach the disk.
        copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
            .map_err(self.sqlite("copy"))?;
        let backup = Backup::new(&source, &mut copy).map_err(self.sqlite("copy"))?;
        // The source's transaction stays open between the steps, so that all of them see one snapshot.
        loop {
            if cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            match backup.step(PAGES_AT_ONCE).map_err(self.sqlite("copy"))? {
                StepResult::Done => return Ok(()),
                StepResult::More => {}
                _ => return Err(SourceError::SqliteBusy { path: self.path.clone(), after: LOCK_WAIT }),
            }
        }
    }

    /// Nobody has the database open: copies it with the journal or log beside it, and recovers the copy.
    fn copy_quiet(&self, target: &Path, suffix: &str, cancel: &CancellationToken) -> Result<(), SourceError> {
        let files = [(self.path.clone(), target.to_owned()), (self.sidecar(suffix), sidecar(target, suffix))];
        for _ in 0..QUIET_TRIES {
            if cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            let before = files.each_ref().map(|(from, _)| State::of(from));
            for (from, to) in &files {
                self.copy_file(from, to, cancel)?;
            }
            let after = files.each_ref().map(|(from, _)| State::of(from));
            // A log that is in use by now has its index beside it.
            if self.wal && self.sidecar("-shm").exists() {
                files.iter().try_for_each(|(_, to)| remove(to)).map_err(self.io("remove the copy of"))?;
                return self.copy_snapshot(target, cancel);
            }
            if before == after {
                return self.recover(target);
            }
        }
        Err(SourceError::SqliteBusy { path: self.path.clone(), after: Duration::ZERO })
    }

    fn copy_file(&self, from: &Path, to: &Path, cancel: &CancellationToken) -> Result<(), SourceError> {
        let file = match File::open(from) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return remove(to).map_err(self.io("remove the copy of"));
            }
            Err(error) => return Err(SourceError::io("open", from)(error)),
        };
        let copied = Copy::make(to).and_then(|mut copy| copy.bring_level(&file, from, cancel));
        let metadata = file.metadata().map_err(SourceError::io("look at", from))?;
        locks::close(OwnedFd::from(file), (metadata.dev(), metadata.ino()));
        copied
    }

    /// Lets SQLite roll back or roll forward in the copy what a crash, or the end of its program, had left beside it.
    fn recover(&self, target: &Path) -> Result<(), SourceError> {
        let copy = Connection::open(target).map_err(self.sqlite("recover the copy of"))?;
        let fail = || self.sqlite("recover the copy of");
        copy.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(fail())?;
        if self.wal {
            // Everything into the one file that is kept.
            copy.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(fail())?;
        }
        copy.close().map_err(|(_, error)| fail()(error))
    }
}

/// A copy under way, which knows what it holds without reading it again.
struct Copy {
    file: File,
    path: PathBuf,
    /// Of each piece that was written.
    pieces: Vec<blake3::Hash>,
}

impl Copy {
    fn make(path: &Path) -> Result<Self, SourceError> {
        let file = private_file(path).map_err(SourceError::io("make", path))?;
        Ok(Self { file, path: path.to_owned(), pieces: Vec::new() })
    }

    /// Takes the room beforehand: blocks that are new to the file system would be flushed with the next commit of anybody
    /// on the same disk (ext4's ordered mode), who would wait for all of this copy. Where that is unknown, nothing is lost.
    fn allocate(&self, size: u64) {
        if size > 0 {
            let _ = rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, size);
        }
    }

    /// Makes this what `source` is, writing only what differs.
    fn bring_level(
        &mut self,
        source: &File,
        path: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), SourceError> {
        let mut room = vec![0; PIECE];
        let mut offset = 0;
        for at in 0.. {
            if cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            let read = read_piece(source, &mut room, offset).map_err(SourceError::io("read", path))?;
            let piece = room.get(..read).unwrap_or_default();
            let hash = blake3::hash(piece);
            if self.pieces.get(at) != Some(&hash) {
                self.file.write_all_at(piece, offset).map_err(SourceError::io("write", &self.path))?;
                match self.pieces.get_mut(at) {
                    Some(known) => *known = hash,
                    None => self.pieces.push(hash),
                }
            }
            offset += read as u64;
            if read < PIECE {
                break;
            }
        }
        self.file.set_len(offset).map_err(SourceError::io("write", &self.path))
    }
}

/// What tells whether a file was written to; `None` where there is none.
#[derive(PartialEq, Eq)]
struct State(Option<(u64, u64, i64, i64, i64, i64)>);

impl State {
    fn of(path: &Path) -> Self {
        let key = |m: Metadata| (m.ino(), m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        Self(path.metadata().ok().map(key))
    }
}

fn sidecar(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn private_file(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Fills `piece` from `offset` on; less only at the end of the file.
fn read_piece(file: &File, piece: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = piece.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// A journal of a crash lies beside the database, and we may not roll it back there.
fn needs_recovery(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen))
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    /// Whether somebody holds a shared lock in the way SQLite does (`SHARED_FIRST` in its os.h).
    fn is_locked(path: &Path) -> bool {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0x4000_0002,
            l_len: 510,
            l_pid: 0,
        };
        // A lock of an open file: so it is in the way of this process's own locks too.
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).unwrap();
        let metadata = file.metadata().unwrap();
        locks::close(OwnedFd::from(file), (metadata.dev(), metadata.ino()));
        lock.l_type != libc::F_UNLCK as i16
    }

    #[test]
    fn another_reader_in_this_process_does_not_take_the_lock_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        let database = Database::open(&path).unwrap();
        let connection = database.read_transaction(&CancellationToken::new()).unwrap();
        assert!(is_locked(&path));
        // As a directory source does with each file.
        let file = File::open(&path).unwrap();
        let metadata = file.metadata().unwrap();
        locks::close(OwnedFd::from(file), (metadata.dev(), metadata.ino()));
        assert!(is_locked(&path), "still");
        drop(connection);
        drop(database);
        assert!(!is_locked(&path), "and not for longer");
    }
}
