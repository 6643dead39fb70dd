//! A directory, as a pax tar and a catalog of what is in it (docs/format.md, Manifest).
//!
//! Everything is opened relative to its directory and without following links, so that nobody who can write below the
//! directory can lead the agent outside, not even by swapping entries while it reads. Entries come in the order of their
//! names, so that an unchanged tree gives the same bytes. What cannot be read is named and makes the backup partial; what
//! was deleted meanwhile is not there, as if the backup had started a moment later.
//!
//! Reading happens on a thread of its own, low in priority, and leaves the page cache as it found it.

mod archive;
mod content;
mod tar;
mod walk;

use std::collections::BTreeMap;

use tokio::runtime::Handle;

use super::error::SourceError;
use super::sink::Sink;
use super::{SourceCheck, SourceEnv, SourceSummary, StreamHead, StreamKind, priority};
use crate::config::source::Directory;
use archive::Archive;
use walk::Walk;

/// The stream with the files.
pub const TAR_STREAM: &str = "files.tar";
/// The stream with their catalog.
pub const CATALOG_STREAM: &str = "files.catalog";

/// Archives the directory.
pub async fn run(directory: &Directory, env: &SourceEnv, sink: &Sink) -> Result<SourceSummary, SourceError> {
    // Dropping this future ends the thread too.
    let cancel = sink.cancel().child_token();
    let _ends_with_this = cancel.clone().drop_guard();
    let sink = sink.until(cancel);
    let (done, outcome) = tokio::sync::oneshot::channel();
    let runtime = Handle::current();
    let (directory, process, temp) = (directory.clone(), env.process, env.temp.clone());
    let read = move || {
        // A sandbox may forbid it; a backup at normal priority is better than none.
        let _ = priority::lower_this_thread(&process);
        let archived =
            Archive::new(runtime, &sink, &temp).and_then(|archive| archive_all(&directory, archive));
        let _ = done.send(archived);
    };
    let start = std::thread::Builder::new().name("directory".to_owned()).spawn(read);
    start.map_err(|source| SourceError::ToolStart { tool: "the thread that reads".to_owned(), source })?;
    outcome.await.map_err(|_| SourceError::Closed)?
}

fn archive_all(directory: &Directory, archive: Archive<'_>) -> Result<SourceSummary, SourceError> {
    let path = directory.path.as_path();
    let mut walk = Walk::start(directory, archive)?;
    let path_text = path.to_string_lossy().into_owned();
    let head = |name: &str, kind, catalog_of| StreamHead {
        name: name.to_owned(),
        kind,
        catalog_of,
        attributes: BTreeMap::from([("path".to_owned(), path_text.clone())]),
    };
    walk.archive.begin(head(TAR_STREAM, StreamKind::PaxTar, None))?;
    walk.run()?;
    let attributes = BTreeMap::from([
        ("path".to_owned(), path_text.clone()),
        ("entries".to_owned(), walk.entries.to_string()),
    ]);
    walk.archive.finish(head(CATALOG_STREAM, StreamKind::Catalog, Some(TAR_STREAM.to_owned())))?;
    let tool_version = format!("sealift-agent {}", env!("CARGO_PKG_VERSION"));
    Ok(SourceSummary { tool_version, attributes, ..SourceSummary::default() })
}

/// Whether the directory is there and may be read; what is in it is not looked at.
pub fn test(directory: &Directory) -> Result<SourceCheck, SourceError> {
    let path = directory.path.as_path();
    let root = walk::open_root(path)?;
    let names = walk::names(&root).map_err(|e| SourceError::io("list", path)(e.into()))?;
    let detail = match names.len() {
        0 => format!("{} is empty: is its file system mounted?", path.display()),
        count => format!("{} with {count} entries at the top", path.display()),
    };
    let tool_version = format!("sealift-agent {}", env!("CARGO_PKG_VERSION"));
    Ok(SourceCheck { ok: true, detail, tool_version, ..SourceCheck::default() })
}
