//! SQLite: the file is written under another name, found right, and put into its place in one step.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use sealift_common::restore::{OpenBackup, VerifiedReader};

use super::super::args::Args;
use crate::app::App;
use crate::error::{Error, Exit, Result, because};
use crate::restore::{blocking, chosen_stream, verified};

/// What SQLite keeps beside a database. Left from the old one, it would be applied to the new one.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Restores to `path`.
pub async fn restore(app: &App, args: &Args, path: &Path, backup: &OpenBackup, replaces: bool) -> Result<()> {
    if replaces && !args.force {
        return Err(Error::usage(format!(
            "{} exists: name another file, or stop what uses it and say --force to replace it",
            path.display()
        )));
    }
    if replaces && app.ui.terminal {
        let what = format!("{} will be replaced; nothing must have it open", path.display());
        app.ui.confirm_loss(args.change, &what, &path.file_name().unwrap_or_default().to_string_lossy())?;
    } else {
        app.ui.confirm(args.change, "restore?")?;
    }
    let stream = chosen_stream(backup, "")?;
    let (reader, target, total) = (verified(backup, stream)?, path.to_owned(), stream.raw_len);
    let counters = backup.counters().clone();
    let read = || (counters.raw_bytes.load(Ordering::Relaxed), total);
    blocking(app, "restoring", move || put(reader, &target), read).await
}

fn put(reader: VerifiedReader, path: &Path) -> Result<()> {
    let failed = || because(Exit::Failed, format!("cannot write {}", path.display()));
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed())?;
    reader.copy_to(file.as_file_mut(), path)?;
    file.flush().map_err(failed())?;
    if let Ok(old) = fs::metadata(path) {
        // The application that used the old file must be able to use the new one.
        let mode = fs::Permissions::from_mode(old.permissions().mode() & 0o777);
        fs::set_permissions(file.path(), mode).map_err(failed())?;
        let owner = std::os::unix::fs::chown(file.path(), Some(old.uid()), Some(old.gid()));
        if nix::unistd::geteuid().is_root() {
            owner.map_err(failed())?;
        }
    }
    file.as_file().sync_all().map_err(failed())?;
    for suffix in BESIDE {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        match fs::remove_file(PathBuf::from(beside)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
    }
    file.persist(path).map_err(|error| failed()(error.error))?;
    Ok(())
}
