//! What a restore will do, shown before it does it.

use std::path::Path;

use sealift_common::crypto::KeyStanding;
use sealift_common::format::manifest::{Outcome, Status, Stream, StreamKind};
use sealift_common::restore::OpenBackup;
use serde::Serialize;

use super::args::{Args, Database, Target};
use super::{chosen_stream, into};
use crate::app::App;
use crate::error::Result;
use crate::time::relative;
use crate::ui;

/// What will be done, as JSON shows it.
#[derive(Debug, Serialize)]
pub struct Plan {
    backup: String,
    host: String,
    source: String,
    kind: String,
    created: String,
    status: &'static str,
    /// How far the key that signed it is believed: `attested`, `continuous`, `unknown`.
    signed_by: &'static str,
    streams: Vec<StreamView>,
    files: Vec<String>,
    /// Bytes that will be written, as far as they are known before the catalog was read.
    raw_bytes: u64,
    packs: usize,
    target: String,
    /// Programs that are needed on this machine.
    tools: Vec<String>,
    /// Whether something that is there will be replaced.
    pub replaces: bool,
    #[serde(skip)]
    created_ms: i64,
}

#[derive(Debug, Serialize)]
struct StreamView {
    name: String,
    kind: &'static str,
    raw_bytes: u64,
    outcome: &'static str,
}

impl Plan {
    /// Decides what a restore will do. Nothing is changed by this.
    pub fn make(backup: &OpenBackup, args: &Args, target: &Target) -> Result<Self> {
        let (public, content) = (backup.public(), backup.content());
        let all = content.streams.iter().filter(|stream| stream.kind != StreamKind::Catalog);
        let (streams, tools, shown, replaces): (Vec<&Stream>, _, _, _) = match target {
            Target::Directory(dir) => {
                (all.collect(), Vec::new(), dir.display().to_string(), args.force && occupied(dir))
            }
            Target::Stdout(name) if args.plan && name.is_empty() => {
                (all.collect(), Vec::new(), "stdout".to_owned(), false)
            }
            Target::Stdout(name) => {
                (vec![chosen_stream(backup, name)?], Vec::new(), "stdout".to_owned(), false)
            }
            Target::Database(database) => {
                let streams = into::streams(backup, args, database)?;
                let replaces = matches!(database, Database::Sqlite(path) if path.exists());
                (streams, into::tools(database), database.shown(), replaces)
            }
        };
        Ok(Self {
            backup: public.owner.backup.to_string(),
            host: content.source.host.clone(),
            source: content.source.name.clone(),
            kind: content.source.kind.clone(),
            created: public.created.rfc3339(),
            status: if public.status == Status::Complete { "complete" } else { "partial" },
            signed_by: match backup.standing() {
                KeyStanding::Attested => "attested",
                KeyStanding::Continuous => "continuous",
                KeyStanding::Unknown => "unknown",
            },
            raw_bytes: streams.iter().map(|stream| stream.raw_len).sum(),
            streams: streams.into_iter().map(StreamView::from).collect(),
            files: args.files.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
            packs: public.packs.len(),
            target: shown,
            tools,
            replaces,
            created_ms: public.created.0,
        })
    }

    /// Prints it as data, for `--plan`.
    pub fn print(&self, app: &App) -> Result<()> {
        app.ui.object(self, |plan| plan.lines(app))
    }

    /// Tells it on stderr, before it is done.
    pub fn tell(&self, app: &App) {
        for (label, value) in self.lines(app).into_iter().filter(|(_, value)| !value.is_empty()) {
            app.ui.note(ui::printable(&format!("{label:9} {}", value.replace('\n', "\n          "))));
        }
    }

    fn lines(&self, app: &App) -> Vec<(&'static str, String)> {
        let made = relative(self.created_ms, app.clock.now());
        let stream = |s: &StreamView| {
            format!(
                "{}  {}{}",
                s.name,
                ui::size(s.raw_bytes),
                if s.outcome == "success" { String::new() } else { format!("  {}", s.outcome) }
            )
        };
        vec![
            (
                "Backup",
                format!("{} of {}/{}, made {made}, {}", self.backup, self.host, self.source, self.status),
            ),
            ("Signed by", format!("a key that is {}", self.signed_by)),
            ("Streams", self.streams.iter().map(stream).collect::<Vec<_>>().join("\n")),
            ("Files", self.files.join("\n")),
            ("Reads", format!("up to {} out of {}", ui::size(self.raw_bytes), ui::count(self.packs, "pack"))),
            ("Tools", self.tools.join(", ")),
            (
                "To",
                format!(
                    "{}{}",
                    self.target,
                    if self.replaces { ", replacing what is in the way" } else { "" }
                ),
            ),
        ]
    }
}

impl From<&Stream> for StreamView {
    fn from(stream: &Stream) -> Self {
        Self {
            name: stream.name.clone(),
            kind: kind(stream.kind),
            raw_bytes: stream.raw_len,
            outcome: outcome(stream.outcome),
        }
    }
}

/// A stream's kind, as JSON shows it.
pub fn kind(kind: StreamKind) -> &'static str {
    match kind {
        StreamKind::Dump => "dump",
        StreamKind::PaxTar => "pax_tar",
        StreamKind::Catalog => "catalog",
    }
}

/// A stream's outcome, as JSON shows it.
pub fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Success => "success",
        Outcome::Partial => "partial",
        Outcome::Failed => "failed",
    }
}

fn occupied(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}
