//! Temporary files of this process: 0600 in a 0700 directory of its own, removed on every path out.
//!
//! A process that was killed cannot remove anything. So each process holds a lock on its directory for as long as it
//! lives, and whoever starts next sweeps the directories that nobody holds.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::{NamedTempFile, TempDir};

use super::error::SourceError;

/// What the lock in each directory is called.
const LOCK: &str = "lock";
const PREFIX: &str = "run-";

/// The temporary directory of this process.
#[derive(Debug)]
pub struct TempRoot {
    directory: TempDir,
    _lock: File,
}

impl TempRoot {
    /// Makes a directory below `STATE_DIR/tmp`, and removes what killed processes left there.
    ///
    /// # Errors
    /// [`SourceError::Io`] where the state directory cannot be written.
    pub fn open(state_dir: &Path) -> Result<Self, SourceError> {
        let parent = state_dir.join("tmp");
        let fail = |error| SourceError::io("make a temporary directory in", &parent)(error);
        DirBuilder::new().recursive(true).mode(0o700).create(&parent).map_err(fail)?;
        fs::set_permissions(&parent, fs::Permissions::from_mode(0o700)).map_err(fail)?;
        // Nobody sweeps between the making of a directory and its lock.
        let gate = File::open(&parent).map_err(fail)?;
        flock(&gate, FlockOperation::LockExclusive).map_err(|e| fail(e.into()))?;
        sweep(&parent).map_err(fail)?;
        let directory = private_directory(PREFIX, &parent).map_err(fail)?;
        let lock = open_lock(&directory.path().join(LOCK)).map_err(fail)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| fail(e.into()))?;
        Ok(Self { directory, _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A file of mode 0600 with a random name, removed when it is dropped.
    pub fn file(&self, prefix: &str) -> Result<NamedTempFile, SourceError> {
        let fail = SourceError::io("make a temporary file in", self.path());
        tempfile::Builder::new().prefix(prefix).tempfile_in(self.path()).map_err(fail)
    }

    /// A file without a name: gone when it is closed, however that comes about.
    pub fn unnamed_file(&self) -> Result<File, SourceError> {
        let fail = SourceError::io("make a temporary file in", self.path());
        tempfile::tempfile_in(self.path()).map_err(fail)
    }

    /// A directory of mode 0700, removed with what is in it when it is dropped.
    pub fn directory(&self, prefix: &str) -> Result<TempDir, SourceError> {
        let fail = SourceError::io("make a temporary directory in", self.path());
        private_directory(prefix, self.path()).map_err(fail)
    }
}

fn private_directory(prefix: &str, parent: &Path) -> io::Result<TempDir> {
    let private = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix(prefix).permissions(private).tempdir_in(parent)
}

fn open_lock(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

/// Removes the directories of processes that are gone.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !entry.file_type()?.is_dir() {
            continue;
        }
        let path: PathBuf = entry.path();
        let lock = open_lock(&path.join(LOCK))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            fs::remove_dir_all(&path)?;
            tracing::info!(path = %path.display(), "removed what an interrupted process had left");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_swept_and_what_a_live_one_holds_is_not() {
        let state = tempfile::tempdir().unwrap();
        let live = TempRoot::open(state.path()).unwrap();
        let held = live.file("pw-").unwrap();
        let dead = state.path().join("tmp").join("run-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("pgpass"), "secret").unwrap();
        let other = TempRoot::open(state.path()).unwrap();
        assert!(!dead.exists());
        assert!(held.path().exists());
        for (path, mode) in [(live.path(), 0o700), (held.path(), 0o600), (&state.path().join("tmp"), 0o700)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, mode);
        }
        drop((held, live, other));
        assert_eq!(fs::read_dir(state.path().join("tmp")).unwrap().count(), 0);
    }
}
