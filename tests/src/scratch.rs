//! Temporary directories of a test.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A directory that is removed when the test succeeded, and kept and named when it panicked.
#[derive(Debug)]
pub struct Scratch {
    dir: Option<tempfile::TempDir>,
}

impl Scratch {
    /// A new directory under the system's temporary directory. Its name is short (a Unix socket's path may have 107
    /// bytes), and other users may pass through it (database servers refuse to run as root), not list it.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let dir =
            tempfile::Builder::new().prefix(&format!("slt-{name}-")).tempdir().expect("temporary directory");
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).expect("mode of the directory");
        Self { dir: Some(dir) }
    }

    /// Where it is.
    #[track_caller]
    pub fn path(&self) -> &Path {
        self.dir.as_ref().expect("present until dropped").path()
    }

    /// A path in it.
    #[track_caller]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Makes (where missing) a directory in it that only its owner may enter.
    #[track_caller]
    pub fn private_dir(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir_all(&path).expect("directory");
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("mode of the directory");
        path
    }

    /// Writes a file in it with the given mode.
    #[track_caller]
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, content).expect("write file");
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("mode of the file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        if std::thread::panicking() {
            eprintln!("kept for a look: {}", dir.keep().display());
        }
    }
}
