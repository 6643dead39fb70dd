//! `sealift restore`, and what else opens backups: `browse`, `backup verify --level decrypt`, `keys test`.
//!
//! | file | what it is for |
//! |---|---|
//! | [`args`] | the command line |
//! | [`pins`] | what is believed, and how backups are named |
//! | [`online`], [`signed`] | a backup opened through the coordinator, by GETs that it signs |
//! | [`offline`], [`s3`] | a backup found and opened with nothing but the bucket |
//! | [`plan`] | what will be done, shown before it is |
//! | [`into`] | into a database |

mod args;
mod catalogue;
mod http;
mod into;
mod offline;
pub mod online;
mod pins;
mod plan;
mod s3;
mod signed;

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sealift_common::crypto::Identities;
use sealift_common::format::manifest::{Outcome, Stream, StreamKind};
use sealift_common::restore::extract::{Extras, SafePath};
use sealift_common::restore::tree::{Progress, TreeOptions, TreeReport, Wanted, restore_tree};
use sealift_common::restore::{OpenBackup, RestoreError, VerifiedReader};
use serde::Serialize;
use tokio::runtime::Handle;

pub use self::args::Args;
use self::args::Target;
pub use self::pins::{Pins, backup_name};
use crate::app::App;
use crate::backup::{FindingView, VerifyView};
use crate::error::{Error, Exit, Result};
use crate::progress::Bar;
use crate::ui;

/// How often a bar looks at what was done.
const TICK: Duration = Duration::from_millis(200);

/// Runs `sealift restore`.
#[tracing::instrument(name = "restore", skip_all)]
pub async fn run(app: &App, args: Args) -> Result<Exit> {
    if args.offline {
        return offline::run(app, &args).await;
    }
    let name = args
        .backup
        .clone()
        .ok_or_else(|| Error::usage("name the backup: an id, latest:AGENT/SOURCE or AGENT/SOURCE@TIME"))?;
    let target = args.target()?;
    let identities = Arc::new(args.identity.load(&app.ui)?);
    let coordinator = app.connect().await?;
    let session = online::Session::open(app, coordinator, &name, identities, &args.pins).await?;
    let result = act(app, &args, &target, &session.backup).await;
    session.close(result.as_ref().map(drop)).await;
    result
}

/// Shows what will be done, asks, and does it.
async fn act(app: &App, args: &Args, target: &Target, backup: &OpenBackup) -> Result<Exit> {
    let plan = plan::Plan::make(backup, args, target)?;
    if args.plan || args.change.dry_run {
        plan.print(app)?;
        return Ok(Exit::Done);
    }
    if !matches!(target, Target::Stdout(_)) {
        plan.tell(app);
    }
    match target {
        Target::Directory(path) => {
            if plan.replaces && app.ui.terminal {
                app.ui.confirm_loss(
                    args.change,
                    "files that are in the way will be replaced",
                    &path.display().to_string(),
                )?;
            } else {
                app.ui.confirm(args.change, "restore?")?;
            }
            to_directory(app, args, path, backup).await
        }
        Target::Stdout(stream) => to_stdout(app, args, stream, backup).await,
        Target::Database(database) => into::run(app, args, database, backup, &plan).await,
    }
}

/// What a restore did, as JSON shows it.
#[derive(Serialize)]
struct Restored {
    backup: String,
    target: String,
    written: u64,
    skipped: u64,
    bytes: u64,
    partial: bool,
    warnings: Vec<String>,
}

impl Restored {
    /// Says what was done, and how the process ends.
    fn report(&self, app: &App) -> Result<Exit> {
        self.warnings.iter().for_each(|warning| app.ui.warn(ui::printable(warning)));
        if app.ui.format == ui::Format::Json {
            app.ui.json(self)?;
        }
        let skipped =
            if self.skipped > 0 { format!(", {} there already", self.skipped) } else { String::new() };
        app.ui.note(format!(
            "restored {} to {}{skipped}, every byte verified",
            ui::size(self.bytes),
            self.target
        ));
        if self.partial {
            app.ui.warn("the backup is partial: what could not be read when it was made is missing");
            return Ok(Exit::Partial);
        }
        Ok(Exit::Done)
    }
}

async fn to_directory(app: &App, args: &Args, target: &Path, backup: &OpenBackup) -> Result<Exit> {
    let wanted = args.wanted()?;
    let options = TreeOptions { force: args.force, resume: args.resume, extras: Extras::default() };
    let progress = Arc::new(Progress::default());
    let (handle, path, opened, watched) =
        (Handle::current(), target.to_owned(), backup.clone(), progress.clone());
    let work = move || restore_tree(&handle, &opened, &path, &wanted, options, &watched);
    let read = || (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
    let report: TreeReport = blocking(app, "restoring", work, read).await?;
    let restored = Restored {
        backup: backup.public().owner.backup.to_string(),
        target: target.display().to_string(),
        written: report.written,
        skipped: report.skipped,
        bytes: progress.done.load(Ordering::Relaxed),
        partial: report.partial,
        warnings: report.warnings,
    };
    restored.report(app)
}

async fn to_stdout(app: &App, args: &Args, stream: &str, backup: &OpenBackup) -> Result<Exit> {
    let stream = chosen_stream(backup, stream)?.clone();
    backup.check_outcome(&stream, args.force)?;
    if io::stdout().is_terminal() && stream.kind != StreamKind::Dump {
        return Err(Error::usage("that is binary: say where to, for example `> files.tar`"));
    }
    let reader = verified(backup, &stream)?;
    let counters = backup.counters().clone();
    let total = stream.raw_len;
    let work = move || reader.copy_to(&mut raw_stdout(), Path::new("stdout"));
    blocking(app, "restoring", work, || (counters.raw_bytes.load(Ordering::Relaxed), total)).await?;
    if stream.outcome == Outcome::Success { Ok(Exit::Done) } else { Ok(Exit::Partial) }
}

/// Stdout without the line buffer of the standard library: a dump is written in pieces of its frames.
fn raw_stdout() -> impl io::Write {
    use std::os::fd::AsFd as _;
    match io::stdout().as_fd().try_clone_to_owned() {
        Ok(fd) => Box::new(std::fs::File::from(fd)) as Box<dyn io::Write>,
        Err(_) => Box::new(io::stdout()),
    }
}

/// The stream of this name; without a name, the only one there is apart from catalogs.
fn chosen_stream<'a>(backup: &'a OpenBackup, name: &str) -> Result<&'a Stream> {
    if !name.is_empty() {
        return Ok(backup.stream(name)?);
    }
    let mut streams = backup.content().streams.iter().filter(|stream| stream.kind != StreamKind::Catalog);
    match (streams.next(), streams.next()) {
        (Some(only), None) => Ok(only),
        _ => {
            let names: Vec<_> = backup.content().streams.iter().map(|stream| stream.name.as_str()).collect();
            Err(Error::usage(format!("say which --stream: the backup has {}", names.join(", "))))
        }
    }
}

/// A whole stream for a thread that may block.
fn verified(backup: &OpenBackup, stream: &Stream) -> Result<VerifiedReader, RestoreError> {
    Ok(VerifiedReader::new(backup.read(stream)?.blocking(Handle::current()), stream))
}

/// Does work on a thread that may block, with a bar that follows `read` (done, total).
async fn blocking<T: Send + 'static, E: Send + 'static>(
    app: &App,
    what: &str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
    read: impl Fn() -> (u64, u64),
) -> Result<T>
where
    Error: From<E>,
{
    let mut bar = Bar::new(&app.ui, what, 0);
    let mut task = tokio::task::spawn_blocking(work);
    let joined = loop {
        tokio::select! {
            joined = &mut task => break joined,
            () = tokio::time::sleep(TICK) => {
                let (done, total) = read();
                bar.expect(total);
                bar.set(done);
            }
        }
    };
    bar.finish();
    Ok(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

/// Parses a `--file`.
fn safe_path(text: &std::ffi::OsStr) -> Result<SafePath> {
    use std::os::unix::ffi::OsStrExt as _;
    SafePath::parse(text.as_bytes()).map_err(|why| {
        Error::usage(format!("--file {}: {why}; write it as `sealift browse` lists it", text.display()))
    })
}

/// Reads every stream of a backup for nothing but the checks.
pub async fn verify_decrypt(
    app: &App,
    name: &str,
    identities: Identities,
    pins: &Pins,
) -> Result<VerifyView> {
    let coordinator = app.connect().await?;
    let session = online::Session::open(app, coordinator, name, Arc::new(identities), pins).await?;
    let view = drain(app, &session.backup).await;
    session.close(view.as_ref().map(drop)).await;
    view
}

async fn drain(app: &App, backup: &OpenBackup) -> Result<VerifyView> {
    let mut findings = Vec::new();
    let total: u64 = backup.content().raw_bytes();
    for stream in &backup.content().streams {
        let reader = verified(backup, stream)?;
        let counters = backup.counters().clone();
        let read = move || (counters.raw_bytes.load(Ordering::Relaxed), total);
        match blocking(app, "verifying", move || reader.drain(), read).await {
            Ok(()) => {}
            Err(error) if error.exit() == Exit::Verification => {
                findings
                    .push(FindingView { object: stream.name.clone(), problem: crate::error::chain(&error) });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(VerifyView {
        backup: backup.public().owner.backup.to_string(),
        level: "decrypt",
        ok: findings.is_empty(),
        packs_checked: backup.public().packs.len() as u64,
        bytes_checked: load(&backup.counters().raw_bytes),
        findings,
    })
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Args {
    /// What of the backup is wanted.
    fn wanted(&self) -> Result<Wanted> {
        if self.files.is_empty() {
            return Ok(Wanted::Everything);
        }
        self.files.iter().map(|path| safe_path(path)).collect::<Result<_>>().map(Wanted::Paths)
    }
}
