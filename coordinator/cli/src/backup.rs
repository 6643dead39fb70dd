//! `sealift backup run|list|show|verify`; deleting and holding are in [`crate::backup_keeping`].

use clap::{Args, Subcommand, ValueEnum};
use sealift_common::clock::UnixMillis;
use sealift_common::telemetry;
use sealift_proto::v1;
use serde::Serialize;
use tokio_stream::StreamExt as _;

use crate::agent::selector;
use crate::app::App;
use crate::backup_keeping::{self, KeepingView};
use crate::coordinator::{Coordinator, Limit, Order, ordered_pages, pages};
use crate::error::{Error, Exit, Result, said};
use crate::identity::IdentityArgs;
use crate::progress::Bar;
use crate::restore::Pins;
use crate::run::{self, RunView, nothing_selected, worst};
use crate::time::{Since, parse_since, relative, rfc3339, took};
use crate::ui::{self, Change};

/// `sealift backup …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Back up a source now
    #[command(
        after_help = "Examples:\n  sealift backup run store-0042/main-db --wait\n  sealift backup run -l role=pos,region=eu"
    )]
    Run(RunArgs),
    /// List backups, newest first
    #[command(
        after_help = "Examples:\n  sealift backup list\n  sealift backup list store-0042/main-db --since 7d\n  sealift backup list -l role=pos --output json\n  sealift backup list --sort stored --limit 20      (or made, size)"
    )]
    List(Box<ListArgs>),
    /// Show one backup: streams, sizes, warnings, who can open it
    #[command(
        after_help = "Examples:\n  sealift backup show latest:store-0042/main-db\n  sealift backup show store-0042/main-db@2026-11-22T03:00"
    )]
    Show(ShowArgs),
    /// Check a backup against what is stored
    #[command(
        after_help = "Examples:\n  sealift backup verify latest:store-0042/main-db\n  sealift backup verify 0190c5e1 --level decrypt --identity key.txt"
    )]
    Verify(VerifyArgs),
    #[command(flatten)]
    Keeping(backup_keeping::Command),
}

/// `sealift backup run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What to back up
    #[arg(value_name = "AGENT/SOURCE", required_unless_present = "selector", conflicts_with = "selector")]
    source: Option<String>,
    /// All sources of the hosts with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    /// Wait until it has ended; the outcome is the exit code (3: partial)
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    change: Change,
}

/// `sealift backup list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only backups of this host, or of this one source
    #[arg(value_name = "AGENT[/SOURCE]", default_value = "", hide_default_value = true)]
    source: String,
    /// Only hosts with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    /// Only backups since then: a duration (24h, 7d) or a time
    #[arg(long, value_parser = parse_since)]
    since: Option<Since>,
    /// Those that were deleted and can be undeleted, instead of those that are there
    #[arg(long)]
    deleted: bool,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    order: Order,
}

/// `sealift backup show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Id or prefix, latest:AGENT/SOURCE, or AGENT/SOURCE@TIME
    #[arg(value_parser = crate::restore::backup_name)]
    backup: String,
}

/// How thoroughly a backup is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Every object is there, with the right size (by the coordinator)
    Presence,
    /// Every object hashes to its name (by the coordinator)
    Hash,
    /// Every byte of every stream decrypts and hashes right (on this machine, with --identity)
    Decrypt,
}

/// `sealift backup verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Id or prefix, latest:AGENT/SOURCE, or AGENT/SOURCE@TIME
    #[arg(value_parser = crate::restore::backup_name)]
    backup: String,
    /// How thoroughly; without it: decrypt where --identity is given, else hash
    #[arg(long, value_enum)]
    level: Option<Level>,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    pins: Pins,
}

/// A backup, as JSON shows it.
#[derive(Serialize)]
pub struct BackupView {
    /// Its id.
    pub id: String,
    agent_id: String,
    agent: String,
    source: String,
    kind: String,
    series_id: String,
    sequence: u64,
    status: String,
    state: String,
    created: Option<String>,
    committed: Option<String>,
    duration_ms: u64,
    /// Bytes of all streams.
    pub raw_bytes: u64,
    new_raw_bytes: u64,
    new_stored_bytes: u64,
    packs: u32,
    recipients: Vec<String>,
    trust_version: u64,
    warnings: Vec<String>,
    warnings_omitted: u64,
    streams: Vec<StreamView>,
    run_id: Option<String>,
    manifest_sha256: String,
    tool_version: String,
    server_version: String,
    /// What became of it since it was committed.
    #[serde(flatten)]
    keeping: KeepingView,
    /// When it was made.
    #[serde(skip)]
    pub created_ms: i64,
}

#[derive(Serialize)]
struct StreamView {
    name: String,
    kind: String,
    raw_bytes: u64,
}

impl From<&v1::BackupInfo> for BackupView {
    fn from(info: &v1::BackupInfo) -> Self {
        let stream = |s: &v1::StreamInfo| StreamView {
            name: s.name.clone(),
            kind: s.kind.clone(),
            raw_bytes: s.raw_bytes,
        };
        Self {
            id: info.id.clone(),
            agent_id: info.agent_id.clone(),
            agent: info.agent.clone(),
            source: info.source.clone(),
            kind: info.kind.clone(),
            series_id: info.series_id.clone(),
            sequence: info.sequence,
            status: info.status.clone(),
            state: info.state.clone(),
            created: rfc3339(info.created_ms),
            committed: rfc3339(info.committed_ms),
            duration_ms: info.duration_ms,
            raw_bytes: info.raw_bytes,
            new_raw_bytes: info.new_raw_bytes,
            new_stored_bytes: info.new_stored_bytes,
            packs: info.packs,
            recipients: info.recipients.clone(),
            trust_version: info.trust_version,
            warnings: info.warnings.clone(),
            warnings_omitted: info.warnings_omitted,
            streams: info.streams.iter().map(stream).collect(),
            run_id: (!info.run_id.is_empty()).then(|| info.run_id.clone()),
            manifest_sha256: info.manifest_sha256.clone(),
            tool_version: info.tool_version.clone(),
            server_version: info.server_version.clone(),
            keeping: KeepingView::from(info.keeping.as_ref()),
            created_ms: info.created_ms,
        }
    }
}

impl BackupView {
    /// `complete`, `partial`, or with what is missing from the bucket.
    fn status_line(&self) -> String {
        if self.keeping.is_damaged() { format!("{}, DAMAGED", self.status) } else { self.status.clone() }
    }

    /// What people see.
    pub fn lines(&self, now: UnixMillis) -> Vec<(&'static str, String)> {
        let streams =
            self.streams.iter().map(|s| format!("{}  {}  {}", s.name, s.kind, ui::size(s.raw_bytes)));
        let mut warnings = self.warnings.join("\n");
        if self.warnings_omitted > 0 {
            warnings.push_str(&format!("\n… and {} more", self.warnings_omitted));
        }
        vec![
            ("Backup", self.id.clone()),
            ("Source", format!("{}/{} ({})", self.agent, self.source, self.kind)),
            ("Status", format!("{}, {}", self.status_line(), self.state)),
            ("Damage", self.keeping.damage()),
            ("Held", self.keeping.held(now)),
            ("Deleted", self.keeping.deleted(now)),
            (
                "Made",
                format!("{} ({})", self.created.clone().unwrap_or_default(), relative(self.created_ms, now)),
            ),
            ("Took", took(self.duration_ms)),
            (
                "Size",
                format!(
                    "{}, of which {} new, stored as {}",
                    ui::size(self.raw_bytes),
                    ui::size(self.new_raw_bytes),
                    ui::size(self.new_stored_bytes)
                ),
            ),
            ("Packs", self.packs.to_string()),
            ("Streams", streams.collect::<Vec<_>>().join("\n")),
            ("Warnings", warnings),
            ("Dump tool", self.tool_version.clone()),
            ("Server", self.server_version.clone()),
            ("Series", format!("{}, sequence {}", self.series_id, self.sequence)),
            ("Opened by", self.recipients.join("\n")),
            ("Manifest", self.manifest_sha256.clone()),
            ("Run", self.run_id.clone().unwrap_or_default()),
        ]
    }
}

/// Runs `sealift backup …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Run(args) => start(app, args).await,
        Command::List(args) => list(app, *args).await,
        Command::Show(args) => show(app, args).await,
        Command::Verify(args) => verify(app, args).await,
        Command::Keeping(command) => backup_keeping::run(app, command).await,
    }
}

#[tracing::instrument(name = "backup run", skip_all)]
async fn start(app: &App, args: RunArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    if let Some(selector) = &args.selector {
        let names = selected(app, &coordinator, selector).await?;
        app.ui.confirm(args.change, &format!("start {}?", ui::count(names.len(), "backup")))?;
        if args.change.dry_run {
            app.ui.list(&names, &["would back up"], |name| vec![name.clone()])?;
            return Ok(Exit::Done);
        }
    }
    let source = args.source.unwrap_or_default();
    if args.change.dry_run {
        app.ui.list(&[source], &["would back up"], |name| vec![name.clone()])?;
        return Ok(Exit::Done);
    }
    let request = v1::StartRunsRequest {
        source,
        selector: args.selector.unwrap_or_default(),
        trace_parent: telemetry::trace_parent(),
    };
    let reply = coordinator.runs().start_runs(request).await.map_err(said("start the backup"))?.into_inner();
    if reply.runs.is_empty() {
        return Err(nothing_selected());
    }
    let runs = if args.wait { wait(app, coordinator, &reply.runs).await? } else { reply.runs };
    let views: Vec<RunView> = runs.iter().map(RunView::from).collect();
    match app.ui.format {
        ui::Format::Json => app.ui.json(&views)?,
        ui::Format::Table if args.wait => {}
        ui::Format::Table => {
            views.iter().try_for_each(|view| ui::print(&format!("{}\n", view.id)))?;
            app.ui.note("started; follow with `sealift run watch ID`");
        }
    }
    Ok(if args.wait { worst(&runs) } else { Exit::Done })
}

async fn selected(app: &App, coordinator: &Coordinator, selector: &str) -> Result<Vec<String>> {
    let sources = pages(&app.ui, Limit::all(), async |page| {
        let request =
            v1::ListSourcesRequest { page: Some(page), selector: selector.to_owned(), ..Default::default() };
        let reply =
            coordinator.agents().list_sources(request).await.map_err(said("list sources"))?.into_inner();
        Ok((reply.sources, reply.next))
    })
    .await?;
    let names: Vec<String> =
        sources.iter().filter(|s| s.present).map(|s| format!("{}/{}", s.agent, s.name)).collect();
    if names.is_empty() { Err(nothing_selected()) } else { Ok(names) }
}

/// Watches the runs one after the other: they run side by side, so the last one to end is the last one waited for.
async fn wait(app: &App, mut coordinator: Coordinator, runs: &[v1::Run]) -> Result<Vec<v1::Run>> {
    let mut ended = Vec::with_capacity(runs.len());
    for started in runs {
        ended.push(run::watch(app, &mut coordinator, &started.id).await?);
    }
    Ok(ended)
}

async fn list(app: &App, args: ListArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let now = app.clock.now();
    let backups = ordered_pages(&app.ui, args.limit, args.order, async |page| {
        let request = v1::ListBackupsRequest {
            page: Some(page),
            source: args.source.clone(),
            selector: args.selector.clone().unwrap_or_default(),
            since_ms: args.since.map(|since| since.from(now)).unwrap_or_default(),
            deleted: args.deleted,
        };
        let reply =
            coordinator.backups().list_backups(request).await.map_err(said("list backups"))?.into_inner();
        Ok((reply.backups, reply.next))
    })
    .await?;
    let views: Vec<BackupView> = backups.iter().map(BackupView::from).collect();
    app.ui.list(&views, &["id", "source", "status", "made", "size", "new", "stored"], |view| {
        vec![
            view.id.clone(),
            format!("{}/{}", view.agent, view.source),
            view.status_line(),
            relative(view.created_ms, now),
            ui::size(view.raw_bytes),
            ui::size(view.new_raw_bytes),
            ui::size(view.new_stored_bytes),
        ]
    })?;
    Ok(Exit::Done)
}

async fn show(app: &App, args: ShowArgs) -> Result<Exit> {
    let request = v1::GetBackupRequest { backup: args.backup };
    let info = app
        .connect()
        .await?
        .backups()
        .get_backup(request)
        .await
        .map_err(said("show the backup"))?
        .into_inner();
    app.ui.object(&BackupView::from(&info), |view| view.lines(app.clock.now()))?;
    Ok(Exit::Done)
}

/// The result of `backup verify`.
#[derive(Serialize)]
pub struct VerifyView {
    /// The backup.
    pub backup: String,
    /// `presence`, `hash` or `decrypt`.
    pub level: &'static str,
    /// Whether nothing was found.
    pub ok: bool,
    /// Packs looked at.
    pub packs_checked: u64,
    /// Bytes read: stored ones, or for `decrypt` those of the streams.
    pub bytes_checked: u64,
    /// What is wrong.
    pub findings: Vec<FindingView>,
}

/// One thing that is wrong with what is stored.
#[derive(Serialize)]
pub struct FindingView {
    /// The object, or the stream.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
}

async fn verify(app: &App, args: VerifyArgs) -> Result<Exit> {
    let level = args.level.unwrap_or(if args.identity.given() { Level::Decrypt } else { Level::Hash });
    let view = match level {
        Level::Decrypt => {
            let identities = args.identity.load(&app.ui)?;
            crate::restore::verify_decrypt(app, &args.backup, identities, &args.pins).await?
        }
        Level::Presence => by_coordinator(app, args.backup, "presence").await?,
        Level::Hash => by_coordinator(app, args.backup, "hash").await?,
    };
    app.ui.object(&view, |view| {
        let findings: Vec<_> = view.findings.iter().map(|f| format!("{}: {}", f.object, f.problem)).collect();
        vec![
            ("Backup", view.backup.clone()),
            ("Level", view.level.to_owned()),
            (
                "Checked",
                format!(
                    "{}, {}",
                    ui::count(view.packs_checked as usize, "pack"),
                    ui::size(view.bytes_checked)
                ),
            ),
            ("Result", if view.ok { "good".to_owned() } else { ui::count(view.findings.len(), "finding") }),
            ("Findings", findings.join("\n")),
        ]
    })?;
    if view.ok {
        return Ok(Exit::Done);
    }
    app.ui.error(format!("the backup {} is damaged", view.backup));
    Ok(Exit::Verification)
}

async fn by_coordinator(app: &App, backup: String, level: &'static str) -> Result<VerifyView> {
    let failed = said("verify the backup");
    let coordinator = app.connect().await?;
    let request = v1::GetBackupRequest { backup };
    let info = coordinator.backups().get_backup(request).await.map_err(&failed)?.into_inner();
    let request = v1::VerifyBackupRequest { backup: info.id.clone(), level: level.to_owned() };
    let mut messages = coordinator.backups().verify_backup(request).await.map_err(&failed)?.into_inner();
    let mut view = VerifyView {
        backup: info.id,
        level,
        ok: false,
        packs_checked: 0,
        bytes_checked: 0,
        findings: Vec::new(),
    };
    let mut bar = Bar::new(&app.ui, "verifying", 0);
    let mut done = false;
    while let Some(message) = messages.next().await {
        let progress = message.map_err(&failed)?;
        view.packs_checked = progress.packs_checked;
        view.bytes_checked = progress.bytes_checked;
        view.findings.extend(
            progress.findings.into_iter().map(|f| FindingView { object: f.object, problem: f.problem }),
        );
        bar.set(progress.bytes_checked);
        bar.say(&format!("{} of {} packs", progress.packs_checked, progress.packs_total));
        done |= progress.done;
    }
    bar.finish();
    if !done {
        return Err(Error::new(Exit::Unreachable, "the coordinator ended the verification early: try again"));
    }
    view.ok = view.findings.is_empty();
    Ok(view)
}
