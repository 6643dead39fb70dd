//! Sources: what on this host can be backed up, and how it becomes streams of bytes.
//!
//! A source pushes [`SourceEvent`]s into a bounded channel and knows nothing of what follows. Back-pressure is the
//! channel: a source that is not read from waits. A source that returns `Err` has failed as a whole, whatever it sent
//! before: nothing becomes a backup. What could not be read but does not spoil the rest is a [`SourceEvent::Warning`],
//! which makes the backup *partial*.
//!
//! To add a kind of source: a file here, a variant in `config::source::SourceKind`, an arm in [`run`] and [`test`].

pub mod command;
mod database;
pub mod directory;
mod error;
mod locks;
pub mod mysql;
pub mod postgres;
pub mod priority;
pub mod process;
mod sink;
pub mod sqlite;
mod temp;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::error::SourceError;
use self::sink::Sink;
pub use self::temp::TempRoot;
use crate::config::secret::Environment;
use crate::config::{self, Config, SourceKind};

/// How many events may wait between a source and the chunker. Data events carry at most [`MAX_DATA`] bytes, so this
/// bounds the memory of the hand-over.
pub const EVENTS_AHEAD: usize = 8;
/// Largest piece of data in one event, in bytes.
pub const MAX_DATA: usize = 1024 * 1024;

/// Where distributions keep the CAs that the system trusts.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What a stream is, as the manifest records it (docs/format.md, Manifest).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// Output of a dump tool, or a copied database file.
    Dump,
    /// A directory as a pax tar.
    PaxTar,
    /// The catalog of the directory stream named in [`StreamHead::catalog_of`].
    Catalog,
}

/// What a stream starts with.
#[derive(Debug, Clone)]
pub struct StreamHead {
    /// Unique within the backup; file-name safe: `globals.sql`, `db/production.sql`, `files.tar`, …
    pub name: String,
    /// What it is.
    pub kind: StreamKind,
    /// For catalogs: the name of the tar stream.
    pub catalog_of: Option<String>,
    /// What a restore needs to know (`format=custom`, `database=production`, …). Never a credential.
    pub attributes: BTreeMap<String, String>,
}

/// What a source says, in order: streams one after the other, warnings at any time.
#[derive(Debug)]
pub enum SourceEvent {
    /// A stream starts.
    Begin(StreamHead),
    /// The next bytes of the open stream; never empty, at most [`MAX_DATA`].
    Data(Bytes),
    /// The open stream ended; all of it was sent. `partial` where warnings concern it.
    End {
        /// Whether something in this stream is missing or unprotected.
        partial: bool,
    },
    /// Something could not be read or is not protected: the backup becomes *partial*, and this names what and why.
    Warning(Warning),
    /// The source's own estimate of all its raw bytes, for progress.
    Expected(u64),
}

/// One thing that makes a backup partial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The file, table, … concerned, printable.
    pub item: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The sending half that a source writes to.
pub type SourceOutput = mpsc::Sender<SourceEvent>;

/// What a source knows of itself once it is through.
#[derive(Debug, Clone, Default)]
pub struct SourceSummary {
    /// Version of the dump tool.
    pub tool_version: String,
    /// Version of the server that was dumped.
    pub server_version: String,
    /// For `SealedManifest.source.attributes`.
    pub attributes: BTreeMap<String, String>,
}

/// What varies around a source: where it may write, its limits, and where its secrets come from.
#[derive(Debug)]
pub struct SourceEnv {
    /// Temporary files.
    pub temp: Arc<TempRoot>,
    /// Where `${VAR}` and `credential:` are looked up, and `PATH`.
    pub environment: Environment,
    /// Priority of tools and readers.
    pub process: config::sections::Process,
    /// A tool that says nothing for this long is ended.
    pub stall_timeout: Duration,
}

impl SourceEnv {
    /// What `config` says; makes the temporary directory and sweeps what killed processes left there.
    ///
    /// # Errors
    /// [`SourceError::Io`] where the state directory cannot be written.
    pub fn open(config: &Config, environment: Environment) -> Result<Self, SourceError> {
        Ok(Self {
            temp: Arc::new(TempRoot::open(config.state_dir.as_path())?),
            environment,
            process: config.process,
            stall_timeout: config.backup.stall_timeout(),
        })
    }
}

/// What [`test`] found out about a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceCheck {
    /// Whether a complete backup would be made, as far as can be told without making one.
    pub ok: bool,
    /// For people: what would be backed up, or what is wrong and what to do.
    pub detail: String,
    /// Version of the dump tool.
    pub tool_version: String,
    /// Version of the server.
    pub server_version: String,
}

/// Reads `source` to its end into `out`.
///
/// Ends soon after `cancel`, with no process and no temporary file left. Dropping the future does the same.
///
/// # Errors
/// Any [`SourceError`]: then nothing that was sent may become a backup.
pub async fn run(
    source: &config::Source,
    env: &SourceEnv,
    out: SourceOutput,
    cancel: CancellationToken,
) -> Result<SourceSummary, SourceError> {
    let sink = Sink::new(out, cancel);
    match &source.kind {
        SourceKind::Postgres(postgres) => postgres::run(source, postgres, env, &sink).await,
        SourceKind::Mysql(mysql) => mysql::run(source, mysql, env, &sink).await,
        SourceKind::Sqlite(sqlite) => sqlite::run(sqlite, env, &sink).await,
        SourceKind::Directory(directory) => directory::run(directory, env, &sink).await,
        SourceKind::Command(command) => command::run(command, env, &sink).await,
    }
}

/// Tries what can be tried without making a backup: connection, permissions, versions.
pub async fn test(source: &config::Source, env: &SourceEnv, cancel: CancellationToken) -> SourceCheck {
    let checked = match &source.kind {
        SourceKind::Postgres(postgres) => postgres::test(source, postgres, env, &cancel).await,
        SourceKind::Mysql(mysql) => mysql::test(source, mysql, env, &cancel).await,
        SourceKind::Sqlite(sqlite) => sqlite::test(sqlite, env, &cancel).await,
        SourceKind::Directory(directory) => directory::test(directory),
        SourceKind::Command(command) => command::test(command, env),
    };
    checked.unwrap_or_else(|error| SourceCheck { detail: whole_chain(&error), ..SourceCheck::default() })
}

/// The CAs that this system trusts, where a mode wants one: neither libpq before version 16 nor MariaDB's client finds
/// them by itself.
fn system_ca(mode: config::source::TlsMode) -> Option<&'static Path> {
    let mut known = SYSTEM_CAS.iter().map(Path::new);
    if mode.verifies() { known.find(|path| path.is_file()) } else { None }
}

/// An error with its causes, on one line.
pub fn whole_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
