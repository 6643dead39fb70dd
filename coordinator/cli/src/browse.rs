//! `sealift browse B [PATH]`: the streams and files of a backup.

use std::sync::Arc;

use sealift_common::format::catalog::{CatalogEntry, EntryKind};
use sealift_common::format::manifest::StreamKind;
use sealift_common::restore::OpenBackup;
use sealift_common::restore::extract::SafePath;
use sealift_common::restore::tree::Entries;
use serde::Serialize;
use tokio::runtime::Handle;

use crate::app::App;
use crate::error::{Error, Exit, Result, because};
use crate::identity::IdentityArgs;
use crate::restore::{Pins, backup_name, online};
use crate::time::relative;
use crate::ui;

/// `sealift browse`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sealift browse latest:store-0042/main-db --identity key.txt\n  sealift browse latest:store-0042/app-data --identity key.txt etc\n  sealift browse latest:store-0042/app-data --identity key.txt --recursive --output json"
)]
pub struct Args {
    /// Id or prefix, latest:AGENT/SOURCE, or AGENT/SOURCE@TIME
    #[arg(value_parser = backup_name)]
    backup: String,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Only this file, or what is in this directory
    path: Option<std::ffi::OsString>,
    /// Also what is in the directories below
    #[arg(long, short = 'r')]
    recursive: bool,
    #[command(flatten)]
    pins: Pins,
}

#[derive(Serialize)]
struct View {
    /// As `restore --file` or `--stream` takes it; bytes that are no UTF-8 are replaced, see `path_hex`.
    path: String,
    /// Set where the path is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    /// `stream`, `file`, `directory`, `symlink`, `hardlink`, `other`.
    kind: &'static str,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(skip)]
    modified_ms: i64,
}

/// Runs `sealift browse`.
pub async fn run(app: &App, args: &Args) -> Result<Exit> {
    let identities = Arc::new(args.identity.load(&app.ui)?);
    let coordinator = app.connect().await?;
    let session = online::Session::open(app, coordinator, &args.backup, identities, &args.pins).await?;
    let views = entries(&session.backup, args).await;
    session.close(views.as_ref().map(drop)).await;
    let views = views?;
    if views.is_empty() && args.path.is_some() {
        return Err(Error::new(Exit::NotFound, "the backup has nothing of that name"));
    }
    let now = app.clock.now();
    app.ui.list(&views, &["kind", "mode", "size", "modified", "path"], |view| {
        let link = view.link_target.as_ref().map(|target| format!(" -> {target}")).unwrap_or_default();
        vec![
            view.kind.to_owned(),
            view.mode.clone().unwrap_or_default(),
            ui::size(view.size),
            if view.modified.is_some() { relative(view.modified_ms, now) } else { String::new() },
            format!("{}{link}", view.path),
        ]
    })?;
    Ok(Exit::Done)
}

async fn entries(backup: &OpenBackup, args: &Args) -> Result<Vec<View>> {
    use std::os::unix::ffi::OsStrExt as _;
    let below = args.path.as_ref().map_or(&b""[..], |path| path.as_bytes());
    let below = SafePath::parse(below).map_err(|why| Error::usage(format!("PATH: {why}")))?;
    let mut views = Vec::new();
    for stream in &backup.content().streams {
        let path = SafePath::parse(stream.name.as_bytes()).map_err(Error::failed)?;
        if stream.kind == StreamKind::Dump && path.is_within(&below) {
            views.push(View::of_stream(&stream.name, stream.raw_len));
        }
    }
    for catalog in backup.content().streams.iter().filter(|stream| stream.kind == StreamKind::Catalog) {
        let (backup, catalog, below, recursive) =
            (backup.clone(), catalog.clone(), below.clone(), args.recursive);
        let runtime = Handle::current();
        let read = move || {
            let mut found = Vec::new();
            let mut entries = Entries::open(&runtime, &backup, &catalog)?;
            while let Some(entry) = entries.next()? {
                if SafePath::parse(&entry.path).is_ok_and(|path| shown(&path, &below, recursive)) {
                    found.push(View::from(&entry));
                }
            }
            Ok::<_, sealift_common::restore::RestoreError>(found)
        };
        let found =
            tokio::task::spawn_blocking(read).await.map_err(because(Exit::Failed, "the reader died"))??;
        views.extend(found);
    }
    Ok(views)
}

/// Whether `path` is `below` itself, right in it, or anywhere in it.
fn shown(path: &SafePath, below: &SafePath, recursive: bool) -> bool {
    path.is_within(below) && !path.is_root() && (recursive || path.depth() <= below.depth() + 1)
}

impl View {
    fn of_stream(name: &str, size: u64) -> Self {
        Self {
            path: name.to_owned(),
            path_hex: None,
            kind: "stream",
            size,
            mode: None,
            modified: None,
            link_target: None,
            blake3: None,
            modified_ms: 0,
        }
    }
}

impl From<&CatalogEntry> for View {
    fn from(entry: &CatalogEntry) -> Self {
        let modified = jiff::Timestamp::from_nanosecond(entry.mtime_ns.into()).ok();
        Self {
            path: String::from_utf8_lossy(&entry.path).into_owned(),
            path_hex: std::str::from_utf8(&entry.path).is_err().then(|| hex::encode(&entry.path)),
            kind: match entry.kind {
                EntryKind::File => "file",
                EntryKind::Directory => "directory",
                EntryKind::Symlink => "symlink",
                EntryKind::Hardlink => "hardlink",
                EntryKind::Other => "other",
            },
            size: entry.size,
            mode: Some(format!("{:04o}", entry.mode & 0o7777)),
            modified: modified.map(|time| time.to_string()),
            link_target: (!entry.link_target.is_empty())
                .then(|| String::from_utf8_lossy(&entry.link_target).into_owned()),
            blake3: entry.blake3.map(hex::encode),
            modified_ms: entry.mtime_ns / 1_000_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_shows_what_is_right_in_it() {
        let path = |text: &str| SafePath::parse(text.as_bytes()).unwrap();
        assert!(shown(&path("etc"), &path(""), false) && shown(&path("etc/app"), &path("etc"), false));
        assert!(shown(&path("etc/app"), &path("etc/app"), false), "a file shows itself");
        assert!(
            !shown(&path("etc/app/x"), &path("etc"), false) && shown(&path("etc/app/x"), &path("etc"), true)
        );
        assert!(!shown(&path("etcetera"), &path("etc"), true));
    }
}
