//! `sealift backup delete|undelete|hold|release`, and what `backup show` says about them.

use clap::{Args, Subcommand};
use sealift_common::clock::UnixMillis;
use sealift_proto::v1;
use serde::Serialize;

use crate::app::App;
use crate::backup::BackupView;
use crate::coordinator::Coordinator;
use crate::error::{Exit, Result, said};
use crate::time::{relative, rfc3339};
use crate::ui::{self, Change};

/// What keeps backups, and what does not.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Delete a backup; it can be undeleted for three days
    #[command(
        after_help = "Examples:\n  sealift backup delete 0190c5e1 --reason 'holds data of a customer who left'\n  sealift backup delete 0190c5e1 --reason test --dry-run"
    )]
    Delete(DeleteArgs),
    /// Take back a deletion
    #[command(after_help = "Examples:\n  sealift backup list --deleted\n  sealift backup undelete 0190c5e1")]
    Undelete(NameArgs),
    /// Keep a backup, whatever the rules say, until it is released
    #[command(
        after_help = "Examples:\n  sealift backup hold latest:store-0042/main-db --reason 'before the migration'"
    )]
    Hold(ReasonArgs),
    /// End a hold: rules apply to the backup again
    #[command(after_help = "Examples:\n  sealift backup release 0190c5e1")]
    Release(NameArgs),
}

/// `sealift backup delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    named: ReasonArgs,
}

/// A backup and why.
#[derive(Debug, Args)]
pub struct ReasonArgs {
    /// Id or prefix, latest:AGENT/SOURCE, or AGENT/SOURCE@TIME
    #[arg(value_parser = crate::restore::backup_name)]
    backup: String,
    /// Why, for the audit
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    change: Change,
}

/// A backup.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// Id or prefix, latest:AGENT/SOURCE, or AGENT/SOURCE@TIME
    #[arg(value_parser = crate::restore::backup_name)]
    backup: String,
    #[command(flatten)]
    change: Change,
}

/// What became of a backup since it was committed, as JSON shows it.
#[derive(Serialize)]
pub struct KeepingView {
    lost_packs: u64,
    manifest_lost: bool,
    verified: Option<String>,
    held: Option<NoteView>,
    deleted: Option<NoteView>,
    undelete_until: Option<String>,
    #[serde(skip)]
    undelete_until_ms: i64,
}

#[derive(Serialize)]
struct NoteView {
    at: Option<String>,
    by: String,
    reason: String,
    #[serde(skip)]
    at_ms: i64,
}

impl NoteView {
    fn new(at_ms: i64, by: &str, reason: &str) -> Option<Self> {
        let view = Self { at: rfc3339(at_ms), by: by.to_owned(), reason: reason.to_owned(), at_ms };
        (at_ms != 0).then_some(view)
    }

    fn line(&self, now: UnixMillis) -> String {
        format!("{} by {}: {}", relative(self.at_ms, now), self.by, self.reason)
    }
}

impl From<Option<&v1::BackupKeeping>> for KeepingView {
    fn from(wire: Option<&v1::BackupKeeping>) -> Self {
        let wire = wire.cloned().unwrap_or_default();
        Self {
            lost_packs: wire.lost_packs,
            manifest_lost: wire.manifest_lost,
            verified: rfc3339(wire.verified_ms),
            held: NoteView::new(wire.held_ms, &wire.held_by, &wire.held_reason),
            deleted: NoteView::new(wire.expired_ms, &wire.expired_by, &wire.expired_reason),
            undelete_until: rfc3339(wire.undelete_until_ms),
            undelete_until_ms: wire.undelete_until_ms,
        }
    }
}

impl KeepingView {
    /// Whether it cannot be restored whole.
    pub fn is_damaged(&self) -> bool {
        self.lost_packs > 0 || self.manifest_lost
    }

    /// What of it is missing from the bucket, for people.
    pub fn damage(&self) -> String {
        let packs = (self.lost_packs > 0)
            .then(|| format!("{} missing or damaged", ui::count(self.lost_packs as usize, "pack")));
        let manifest = self.manifest_lost.then(|| "its manifest is missing or damaged".to_owned());
        manifest.into_iter().chain(packs).collect::<Vec<_>>().join("\n")
    }

    /// Who holds it, for people.
    pub fn held(&self, now: UnixMillis) -> String {
        self.held.as_ref().map(|note| note.line(now)).unwrap_or_default()
    }

    /// Who deleted it, for people.
    pub fn deleted(&self, now: UnixMillis) -> String {
        let until = relative(self.undelete_until_ms, now);
        let line = |note: &NoteView| format!("{} (can be undeleted until {until})", note.line(now));
        self.deleted.as_ref().map(line).unwrap_or_default()
    }
}

/// Runs `sealift backup delete|undelete|hold|release`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    let coordinator = app.connect().await?;
    match command {
        Command::Delete(args) => delete(app, &coordinator, args.named).await,
        Command::Undelete(args) => undelete(app, &coordinator, args).await,
        Command::Hold(args) => hold(app, &coordinator, args).await,
        Command::Release(args) => release(app, &coordinator, args).await,
    }
}

async fn delete(app: &App, coordinator: &Coordinator, args: ReasonArgs) -> Result<Exit> {
    let failed = said("delete the backup");
    let ask = |backup: String, dry_run| {
        let request = v1::DeleteBackupRequest { backup, reason: args.reason.clone(), dry_run };
        async move { coordinator.retention().delete_backup(request).await }
    };
    let found = ask(args.backup.clone(), true).await.map_err(&failed)?.into_inner();
    let name = format!("{}/{}", found.agent, found.source);
    let made = relative(found.created_ms, app.clock.now());
    let what = format!(
        "backup {} of {name}, made {made}, will be deleted; it can be undeleted for three days",
        found.id
    );
    if args.change.dry_run {
        app.ui.note(what);
        return show(app, &found);
    }
    app.ui.confirm_loss(args.change, &what, &name)?;
    let deleted = ask(found.id, false).await.map_err(&failed)?.into_inner();
    app.ui.note(format!("deleted; `sealift backup undelete {}` takes it back", deleted.id));
    show(app, &deleted)
}

async fn undelete(app: &App, coordinator: &Coordinator, args: NameArgs) -> Result<Exit> {
    if args.change.dry_run {
        return would(app, coordinator, args.backup, "would be undeleted").await;
    }
    let request = v1::UndeleteBackupRequest { backup: args.backup };
    let backup = coordinator.retention().undelete_backup(request).await;
    let backup = backup.map_err(said("undelete the backup"))?.into_inner();
    app.ui.note("it is back; rules apply to it again in seven days, unless you hold it");
    show(app, &backup)
}

async fn hold(app: &App, coordinator: &Coordinator, args: ReasonArgs) -> Result<Exit> {
    if args.change.dry_run {
        return would(app, coordinator, args.backup, "would be held").await;
    }
    let request = v1::HoldBackupRequest { backup: args.backup, reason: args.reason };
    let backup = coordinator.retention().hold_backup(request).await.map_err(said("hold the backup"))?;
    show(app, &backup.into_inner())
}

async fn release(app: &App, coordinator: &Coordinator, args: NameArgs) -> Result<Exit> {
    if args.change.dry_run {
        return would(app, coordinator, args.backup, "would be released").await;
    }
    let request = v1::ReleaseBackupRequest { backup: args.backup };
    let backup = coordinator.retention().release_backup(request).await.map_err(said("release the backup"))?;
    show(app, &backup.into_inner())
}

async fn would(app: &App, coordinator: &Coordinator, backup: String, what: &str) -> Result<Exit> {
    let request = v1::GetBackupRequest { backup };
    let found =
        coordinator.backups().get_backup(request).await.map_err(said("find the backup"))?.into_inner();
    app.ui.note(format!("backup {} of {}/{} {what}", found.id, found.agent, found.source));
    show(app, &found)
}

fn show(app: &App, backup: &v1::BackupInfo) -> Result<Exit> {
    app.ui.object(&BackupView::from(backup), |view| view.lines(app.clock.now()))?;
    Ok(Exit::Done)
}
