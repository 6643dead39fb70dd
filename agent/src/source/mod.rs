//! Sources: what on this host can be backed up, and how it becomes streams of bytes.
//!
//! A source pushes [`SourceEvent`]s into a bounded channel and knows nothing of what follows. Back-pressure is the
//! channel: a source that is not read from waits. A source that returns `Err` has failed as a whole, whatever it sent
//! before: nothing becomes a backup. What could not be read but does not spoil the rest is a [`SourceEvent::Warning`],
//! which makes the backup *partial*.
//!
//! To add a kind of source: a file here, a variant in `config::source::SourceKind`, an arm in [`run`] and [`test`].

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::sync::mpsc;

/// How many events may wait between a source and the chunker. Data events carry at most [`MAX_DATA`] bytes, so this
/// bounds the memory of the hand-over.
pub const EVENTS_AHEAD: usize = 8;
/// Largest piece of data in one event, in bytes.
pub const MAX_DATA: usize = 1024 * 1024;

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
