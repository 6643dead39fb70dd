//! The state directory: private, written atomically, locked by one process, and never filled to the brim.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// Bytes that must be free before an attempt starts: its journal, a new series secret and a renewed certificate always
/// fit, and the index cache stops growing before they would not.
pub const RESERVE_BYTES: u64 = 16 * 1024 * 1024;
/// Files that must be free, on file systems that count them.
const RESERVE_FILES: u64 = 64;

/// What can go wrong with the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// A verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that does not hold what this program writes.
    #[error("{} is damaged ({problem}): {advice}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// Another process holds the lock.
    #[error("{} is in use by another sealift-agent: stop that one first", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Others may enter the directory.
    #[error("{} has mode {mode:04o}, so others may read its keys: run chmod 700 {}", path.display(), path.display())]
    TooOpen {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Too little room.
    #[error("{free_bytes} bytes and {free_files} files are free on the disk of {}, {RESERVE_BYTES} bytes are needed: make room there", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
        /// Bytes that are free for this user.
        free_bytes: u64,
        /// Files that may still be made.
        free_files: u64,
    },
}

/// The directory that the agent keeps its state in. Clones share the lock.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
    _lock: Arc<Flock<File>>,
}

impl StateDir {
    /// Makes the directory where it is missing (0700), and takes its lock.
    ///
    /// # Errors
    /// [`StateError`], naming the directory.
    pub fn create(root: &Path) -> Result<Self, StateError> {
        make_private_dir(root)?;
        Self::open(root)
    }

    /// Opens an existing directory, and takes its lock.
    ///
    /// # Errors
    /// [`StateError::TooOpen`] where others may enter it, [`StateError::InUse`] where another process has it.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let metadata = std::fs::metadata(root).map_err(io("open the state directory", root))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(StateError::TooOpen { path: root.to_owned(), mode });
        }
        let path = root.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("open", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StateError::InUse { path: root.to_owned() })?;
        Ok(Self { root: root.to_owned(), _lock: Arc::new(lock) })
    }

    /// The absolute place of a file inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The bytes of `name`, zeroed when dropped; `None` where there is no such file.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        let path = self.path(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read", &path)(error)),
        };
        let mut bytes = Zeroizing::new(Vec::new());
        file.read_to_end(&mut bytes).map_err(io("read", &path))?;
        Ok(Some(bytes))
    }

    /// Replaces `name` as one step: a crash leaves the old bytes or the new ones. The file is 0600.
    ///
    /// # Errors
    /// [`StateError::Io`]; the old bytes are then still there.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        let parent = path.parent().unwrap_or(&self.root);
        make_private_dir(parent)?;
        let mut temporary = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(parent)
            .map_err(io("write beside", &path))?;
        temporary.write_all(bytes).map_err(io("write", &path))?;
        temporary.as_file().sync_all().map_err(io("write", &path))?;
        temporary.persist(&path).map_err(|error| io("replace", &path)(error.error))?;
        sync_dir(parent)
    }

    /// Reads a JSON file.
    ///
    /// # Errors
    /// [`StateError::Io`], or [`StateError::Damaged`] with this advice.
    pub fn read_json<T: DeserializeOwned>(
        &self,
        name: &str,
        advice: &'static str,
    ) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        // serde_json's errors can quote the value at fault, which may be a key: only the place is told.
        serde_json::from_slice(&bytes).map(Some).map_err(|error| StateError::Damaged {
            path: self.path(name),
            problem: format!("line {}, column {}", error.line(), error.column()),
            advice,
        })
    }

    /// Replaces a JSON file as one step.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| io("encode", &self.path(name))(std::io::Error::other(error)))?;
        self.write(name, &Zeroizing::new(bytes))
    }

    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Names of the files in a folder, without what a crash left half written; none where there is no such folder.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn list(&self, folder: &str) -> Result<Vec<String>, StateError> {
        let path = self.path(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io("list", &path)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(io("list", &path))?.file_name();
            if let Some(name) = name.to_str().filter(|n| !n.starts_with('.')) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether there is room for what an attempt must be able to write.
    ///
    /// # Errors
    /// [`StateError::Full`], or [`StateError::Io`] where the disk cannot be asked.
    pub fn check_space(&self) -> Result<(), StateError> {
        let disk = nix::sys::statvfs::statvfs(&self.root)
            .map_err(|errno| io("ask for the free space of", &self.root)(errno.into()))?;
        let free_bytes = disk.blocks_available().saturating_mul(disk.fragment_size());
        // File systems without a fixed number of files say 0 of 0.
        let free_files = if disk.files() == 0 { u64::MAX } else { disk.files_available() };
        if free_bytes < RESERVE_BYTES || free_files < RESERVE_FILES {
            return Err(StateError::Full { path: self.root.clone(), free_bytes, free_files });
        }
        Ok(())
    }
}

fn io<'a>(operation: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> StateError + use<'a> {
    move |source| StateError::Io { operation, path: path.to_owned(), source }
}

fn make_private_dir(path: &Path) -> Result<(), StateError> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io("make the directory", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes a rename in `dir` survive a power cut.
fn sync_dir(dir: &Path) -> Result<(), StateError> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_and_replaced_whole() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("state");
        let state = StateDir::create(&root).unwrap();
        state.write("series/a.json", b"one").unwrap();
        state.write("series/a.json", b"two").unwrap();
        assert_eq!(state.read("series/a.json").unwrap().unwrap().as_slice(), b"two");
        let mode = |p: &str| std::fs::metadata(root.join(p)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("series"), mode("series/a.json")), (0o700, 0o700, 0o600));
        assert_eq!(state.list("series").unwrap(), ["a.json"]);
        state.remove("series/a.json").unwrap();
        state.remove("series/a.json").unwrap();
        assert!(state.read("series/a.json").unwrap().is_none());
    }

    #[test]
    fn a_second_process_and_an_open_directory_are_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("state");
        let held = StateDir::create(&root).unwrap();
        assert!(matches!(StateDir::open(&root), Err(StateError::InUse { .. })));
        drop(held);
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = StateDir::open(&root).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_damaged_json_file_is_named_without_its_content() {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temporary.path().join("s")).unwrap();
        state.write("x.json", br#"{"secret": hunter2}"#).unwrap();
        let error = state.read_json::<serde_json::Value>("x.json", "remove it").unwrap_err().to_string();
        assert!(
            error.contains("x.json") && error.contains("remove it") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
