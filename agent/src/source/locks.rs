//! Closing a file without dropping the locks that SQLite holds on it.
//!
//! POSIX locks belong to a process and a file: when *any* descriptor of the file is closed, all locks that the process
//! holds on it are gone (`man 2 fcntl`). A directory source that reads `till.db` would so take the lock away under which
//! a SQLite source is copying that very file. So whoever reads files in this process closes them [here](close), and
//! while a file is [held](hold), its descriptors are kept.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Device and inode.
pub type FileId = (u64, u64);

/// Files with locks, and descriptors that wait for these to be released.
static HELD: Mutex<Option<HashMap<FileId, Vec<OwnedFd>>>> = Mutex::new(None);

/// Keeps the locks of these files for as long as it lives. Drop it after whatever holds the locks.
#[derive(Debug)]
pub struct Hold(Vec<FileId>);

/// Holds `files`; at most one hold may exist for a file at a time.
pub fn hold(files: Vec<FileId>) -> Hold {
    let mut held = lock();
    let map = held.get_or_insert_default();
    for file in &files {
        map.entry(*file).or_default();
    }
    Hold(files)
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = lock();
        let map = held.get_or_insert_default();
        self.0.iter().for_each(|file| drop(map.remove(file)));
    }
}

/// Closes a descriptor, now or once nothing is lost by it.
pub fn close(descriptor: OwnedFd, file: FileId) {
    let mut held = lock();
    match held.get_or_insert_default().get_mut(&file) {
        Some(waiting) => waiting.push(descriptor),
        // While the map is locked: nobody can take a lock between the look and the close.
        None => drop(descriptor),
    }
}

fn lock() -> MutexGuard<'static, Option<HashMap<FileId, Vec<OwnedFd>>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_held_file_is_not_closed_before_its_time() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"x").unwrap();
        let descriptor = OwnedFd::from(file);
        let open = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        let id = (u64::MAX, 1); // no other test's file
        let target = std::fs::read_link(&open).unwrap();
        let hold = hold(vec![id]);
        close(descriptor, id);
        assert_eq!(std::fs::read_link(&open).unwrap(), target);
        drop(hold);
        assert!(std::fs::read_link(&open).is_ok_and(|now| now != target) || !open.exists());
    }
}
