//! SQLite: a page-stable copy, made as fast as the disk allows, then streamed at whatever speed the line has.
//!
//! A lock or a snapshot is never held while bytes go over the line: under a rollback journal a reader holds up every
//! commit, and under a write-ahead log it keeps the log from being reset. How each kind of database is copied is told in
//! [`copy`](self::copy). The copy lies in the state directory, without a name as soon as it is complete, so that it is
//! gone whatever happens; room for it is checked first. The stream is the database file itself.

mod copy;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::{BufMut, BytesMut};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::error::SourceError;
use super::sink::Sink;
use super::temp::TempRoot;
use super::{MAX_DATA, SourceCheck, SourceEnv, SourceEvent, SourceSummary, StreamHead, StreamKind, priority};
use crate::config;
use crate::config::source::Sqlite;

/// The one stream.
pub const STREAM: &str = "database.sqlite";

/// Only one copy at a time in this process: closing a descriptor of a file drops the locks that another copy of the same
/// file holds ([`super::locks`]), and two copies at once would only be in each other's way at the disk.
static ONE_COPY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Copies and streams the database.
pub async fn run(sqlite: &Sqlite, env: &SourceEnv, sink: &Sink) -> Result<SourceSummary, SourceError> {
    // Dropping this future ends the thread too.
    let cancel = sink.cancel().child_token();
    let _ends_with_this = cancel.clone().drop_guard();
    let turn = tokio::select! {
        () = cancel.cancelled() => return Err(SourceError::Cancelled),
        turn = ONE_COPY.lock() => turn,
    };
    let (path, temp, copy_cancel) = (sqlite.path.as_path().to_owned(), env.temp.clone(), cancel.clone());
    let copied = on_a_thread(None, move || copy::copy(&path, &temp, &copy_cancel)).await?;
    drop(turn);

    let path = sqlite.path.as_path();
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let attributes = BTreeMap::from([
        ("format".to_owned(), "sqlite".to_owned()),
        ("path".to_owned(), text(Some(path.as_os_str()))),
        ("file_name".to_owned(), text(path.file_name())),
        ("journal_mode".to_owned(), copied.journal_mode.to_owned()),
    ]);
    let head = StreamHead { name: STREAM.to_owned(), kind: StreamKind::Dump, catalog_of: None, attributes };
    sink.send(SourceEvent::Expected(copied.size)).await?;
    sink.begin(head).await?;
    let (sink, runtime) = (sink.until(cancel), Handle::current());
    let file_sink = sink.clone();
    let temp = env.temp.clone();
    on_a_thread(Some(env.process), move || send(copied.file, &file_sink, &runtime, temp.path())).await?;
    sink.end(false).await?;
    let version = rusqlite::version().to_owned();
    Ok(SourceSummary { tool_version: format!("SQLite {version}"), ..SourceSummary::default() })
}

/// Sends the copy, and lets go of it in the page cache: nobody else will read it.
fn send(mut file: File, sink: &Sink, runtime: &Handle, place: &Path) -> Result<(), SourceError> {
    let mut sent = 0;
    loop {
        let mut piece = BytesMut::with_capacity(MAX_DATA).limit(MAX_DATA);
        let read = std::io::copy(&mut (&mut file).take(MAX_DATA as u64), &mut (&mut piece).writer());
        let read = read.map_err(SourceError::io("read the copy in", place))?;
        if read == 0 {
            return Ok(());
        }
        sink.send_blocking(runtime, SourceEvent::Data(piece.into_inner().freeze()))?;
        let _ =
            rustix::fs::fadvise(&file, sent, std::num::NonZeroU64::new(read), rustix::fs::Advice::DontNeed);
        sent += read;
    }
}

/// Runs `work` on a thread of its own, at this priority.
async fn on_a_thread<T: Send + 'static>(
    priority: Option<config::sections::Process>,
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    let (done, outcome) = tokio::sync::oneshot::channel();
    let run = move || {
        // A sandbox may forbid it; a backup at normal priority is better than none.
        let _ = priority.map(|wanted| priority::lower_this_thread(&wanted));
        let _ = done.send(work());
    };
    let start = std::thread::Builder::new().name("sqlite".to_owned()).spawn(run);
    start.map_err(|source| SourceError::ToolStart { tool: "the thread that reads".to_owned(), source })?;
    outcome.await.map_err(|_| SourceError::Closed)?
}

/// Whether the database is there and can be read; nothing is copied.
pub async fn test(
    sqlite: &Sqlite,
    env: &SourceEnv,
    cancel: &CancellationToken,
) -> Result<SourceCheck, SourceError> {
    let turn = tokio::select! {
        () = cancel.cancelled() => return Err(SourceError::Cancelled),
        turn = ONE_COPY.lock() => turn,
    };
    let (path, temp) = (sqlite.path.as_path().to_owned(), env.temp.clone());
    let found = on_a_thread(None, move || look(&path, &temp)).await?;
    drop(turn);
    let detail =
        format!("{} of {} bytes, journal mode {}", sqlite.path.as_path().display(), found.1, found.0);
    let tool_version = format!("SQLite {}", rusqlite::version());
    Ok(SourceCheck { ok: true, detail, tool_version, ..SourceCheck::default() })
}

fn look(path: &Path, temp: &TempRoot) -> Result<(&'static str, u64), SourceError> {
    let database = copy::Database::open(path)?;
    database.check_space(temp)?;
    Ok((database.journal_mode(), database.size()))
}
