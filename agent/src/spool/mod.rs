//! The spool: sealed packs that wait on this host's disk while the store is slow or away, so that no database snapshot is
//! held open at the speed of a shop's uplink.
//!
//! A pack goes there only when the line has shown that it is slower than the source. It is sealed for the spool: under a key
//! that is made for one attempt ([`DataKey::of_spool`](sealift_common::crypto::DataKey::of_spool)), never under a backup's.
//! On its way out it is sealed anew for the backup that is written then, as after a lost session.
//!
//! [`Spool`] is the place and its limits, shared by all attempts of this host. [`Folder`](folder::Folder) holds what one attempt keeps there;
//! dropping it removes everything, unless it was told to keep it for the next process. What a killed process leaves behind
//! is swept at the next start.

pub mod folder;
mod record;

use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use record::PackRecord;

/// Unless the owner says otherwise, this much of the disk stays free: a twentieth …
const FREE_PART: u64 = 20;
/// … but never less than this many bytes …
const FREE_LEAST: u64 = 64 << 20;
/// … and not more than this many.
const FREE_MOST: u64 = 5 << 30;

/// What can go wrong with the spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
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
    /// What lies there is not what was written.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Where packs of this host may wait, and how much room they may take.
#[derive(Debug)]
pub struct Spool {
    root: PathBuf,
    max_bytes: u64,
    min_free: Option<u64>,
    used: AtomicU64,
}

impl Spool {
    /// The spool in `root`, which is this agent's own; made where it is missing, when it is first needed. `min_free` bytes of
    /// its disk stay free; `None`: a twentieth.
    pub fn new(root: PathBuf, max_bytes: u64, min_free: Option<u64>) -> Arc<Self> {
        Arc::new(Self { root, max_bytes, min_free, used: AtomicU64::new(0) })
    }

    /// Where a folder of this name lies.
    fn place(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Takes room for `bytes`; `false` where the quota or the disk has none.
    fn reserve(&self, bytes: u64) -> bool {
        let within = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.max_bytes);
        if self.used.fetch_update(Relaxed, Relaxed, within).is_err() {
            return false;
        }
        let room = self.disk_has_room(bytes);
        if !room {
            self.release(bytes);
        }
        room
    }

    fn release(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        // Always `Ok`: the closure never gives `None`.
        let _ = self.used.fetch_update(Relaxed, Relaxed, less);
    }

    fn disk_has_room(&self, bytes: u64) -> bool {
        // Not asked is not allowed: the spool is a convenience, the host's disk is not.
        let Ok(disk) = nix::sys::statvfs::statvfs(&self.root) else { return false };
        let (free, all) = (
            disk.blocks_available().saturating_mul(disk.fragment_size()),
            disk.blocks().saturating_mul(disk.fragment_size()),
        );
        let wanted = self.min_free.unwrap_or_else(|| (all / FREE_PART).clamp(FREE_LEAST, FREE_MOST));
        free.saturating_sub(bytes) >= wanted
    }

    /// Removes what killed processes left here, all but the folders in `wanted`.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn sweep(&self, wanted: &[PathBuf]) -> Result<(), SpoolError> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io("list", &self.root)(error)),
        };
        for entry in entries {
            let path = entry.map_err(io("list", &self.root))?.path();
            if !wanted.contains(&path) {
                tracing::info!(path = %path.display(), "removing what an interrupted backup left in the spool");
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Removes a folder of the spool; one that is not there is fine.
///
/// # Errors
/// [`SpoolError::Io`].
pub fn remove(path: &Path) -> Result<(), SpoolError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn io<'a>(operation: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> SpoolError + use<'a> {
    move |source| SpoolError::Io { operation, path: path.to_owned(), source }
}

fn make_private_dir(path: &Path) -> Result<(), SpoolError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io("make the directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_up_to_the_quota_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().to_owned(), 100, Some(0));
        assert!(spool.reserve(60));
        assert!(!spool.reserve(41), "beyond the quota");
        assert!(spool.reserve(40));
        spool.release(60);
        assert!(spool.reserve(60));
        assert!(!Spool::new(dir.path().to_owned(), u64::MAX, None).reserve(u64::MAX / 2), "beyond the disk");
        assert!(!Spool::new(dir.path().to_owned(), 100, Some(u64::MAX)).reserve(1), "the rest stays free");
    }

    #[test]
    fn what_nobody_waits_for_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().join("spool"), 100, None);
        spool.sweep(&[]).unwrap();
        for name in ["a", "b"] {
            make_private_dir(&spool.place(name)).unwrap();
        }
        spool.sweep(&[spool.place("b")]).unwrap();
        assert!(!spool.place("a").exists() && spool.place("b").exists());
    }
}
