//! `sealift series list|show|rename|new-epoch`: one source over time, whatever host and name it has.

use clap::{Args, Subcommand};
use sealift_common::clock::UnixMillis;
use sealift_common::name::Name;
use sealift_proto::v1;
use serde::Serialize;

use crate::agent::selector;
use crate::app::App;
use crate::coordinator::{Limit, pages};
use crate::error::{Exit, Result, said};
use crate::time::{relative, rfc3339};
use crate::ui::{self, Change};

/// `sealift series …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List series, also those that no source feeds any more
    #[command(
        after_help = "Examples:\n  sealift series list\n  sealift series list store-0042\n  sealift series list -l role=pos"
    )]
    List(ListArgs),
    /// Show one series
    #[command(after_help = "Example:\n  sealift series show store-0042/main-db")]
    Show(ShowArgs),
    /// Go on with a series under the new name of its source
    #[command(
        after_help = "Example:\n  sealift series rename store-0042/main-db shop-db      (once the host's configuration says shop-db)"
    )]
    Rename(RenameArgs),
    /// Build on nothing that was stored before: the next backup uploads everything anew
    #[command(
        name = "new-epoch",
        after_help = "Example:\n  sealift series new-epoch store-0042/main-db --reason 'the host was broken into'"
    )]
    NewEpoch(NewEpochArgs),
}

/// `sealift series list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this host's, or this source's
    #[arg(value_name = "AGENT[/SOURCE]")]
    source: Option<String>,
    /// Only hosts with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    #[command(flatten)]
    limit: Limit,
}

/// `sealift series show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// AGENT/SOURCE, an id or its beginning
    series: String,
}

/// `sealift series rename`
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// AGENT/SOURCE, an id or its beginning
    series: String,
    /// The source's name in the host's configuration now
    source: Name,
    #[command(flatten)]
    change: Change,
}

/// `sealift series new-epoch`
#[derive(Debug, Args)]
pub struct NewEpochArgs {
    /// AGENT/SOURCE, an id or its beginning
    series: String,
    /// Why; goes into the audit
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Serialize)]
struct View {
    id: String,
    agent_id: String,
    agent: String,
    source: String,
    scope: String,
    present: bool,
    created: Option<String>,
    backups: u64,
    sequence: u64,
    newest: Option<String>,
    packs: u64,
    stored_bytes: u64,
    epoch_id: Option<String>,
    epoch_ends: bool,
    #[serde(skip)]
    newest_ms: i64,
}

impl From<&v1::Series> for View {
    fn from(series: &v1::Series) -> Self {
        Self {
            id: series.id.clone(),
            agent_id: series.agent_id.clone(),
            agent: series.agent.clone(),
            source: series.source.clone(),
            scope: series.scope.clone(),
            present: series.present,
            created: rfc3339(series.created_ms),
            backups: series.backups,
            sequence: series.sequence,
            newest: rfc3339(series.newest_ms),
            packs: series.packs,
            stored_bytes: series.stored_bytes,
            epoch_id: (!series.epoch_id.is_empty()).then(|| hex::encode(&series.epoch_id)),
            epoch_ends: series.epoch_ends,
            newest_ms: series.newest_ms,
        }
    }
}

/// Runs `sealift series …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::List(args) => list(app, args).await,
        Command::Show(args) => {
            let request = v1::GetSeriesRequest { series: args.series };
            let found = app.connect().await?.series().get_series(request).await;
            print(app, &found.map_err(said("show the series"))?.into_inner())
        }
        Command::Rename(args) => rename(app, args).await,
        Command::NewEpoch(args) => new_epoch(app, args).await,
    }
}

async fn list(app: &App, args: ListArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let (source, selector) = (args.source.unwrap_or_default(), args.selector.unwrap_or_default());
    let all = pages(&app.ui, args.limit, async |page| {
        let request =
            v1::ListSeriesRequest { page: Some(page), source: source.clone(), selector: selector.clone() };
        let reply =
            coordinator.series().list_series(request).await.map_err(said("list series"))?.into_inner();
        Ok((reply.series, reply.next))
    })
    .await?;
    let now = app.clock.now();
    let views: Vec<View> = all.iter().map(View::from).collect();
    app.ui.list(&views, &["series", "source", "backups", "newest", "stored", "state"], |view| {
        vec![
            crate::run::short(&view.id).to_owned(),
            format!("{}/{}", view.agent, view.source),
            view.backups.to_string(),
            if view.newest_ms == 0 { "never".to_owned() } else { relative(view.newest_ms, now) },
            ui::size(view.stored_bytes),
            state(view).to_owned(),
        ]
    })?;
    Ok(Exit::Done)
}

fn state(view: &View) -> &'static str {
    match view {
        View { epoch_ends: true, .. } => "next backup starts a new epoch",
        View { present: true, .. } => "fed",
        _ => "no source",
    }
}

fn print(app: &App, series: &v1::Series) -> Result<Exit> {
    let now = app.clock.now();
    app.ui.object(&View::from(series), |view| lines(view, now))?;
    Ok(Exit::Done)
}

fn lines(view: &View, now: UnixMillis) -> Vec<(&'static str, String)> {
    vec![
        ("Series", view.id.clone()),
        ("Source", format!("{}/{}", view.agent, view.source)),
        ("State", state(view).to_owned()),
        ("Scope", view.scope.clone()),
        ("Started", view.created.clone().unwrap_or_default()),
        ("Backups", view.backups.to_string()),
        ("Newest", if view.newest_ms == 0 { "never".to_owned() } else { relative(view.newest_ms, now) }),
        ("Stored", format!("{} in {}", ui::size(view.stored_bytes), ui::count(view.packs as usize, "pack"))),
        ("Epoch", view.epoch_id.clone().unwrap_or_default()),
    ]
}

async fn rename(app: &App, args: RenameArgs) -> Result<Exit> {
    if args.change.dry_run {
        app.ui.note(format!("would go on with {} under the name {}", args.series, args.source));
        return Ok(Exit::Done);
    }
    app.ui.confirm(args.change, &format!("go on with {} under the name {}?", args.series, args.source))?;
    let request = v1::RenameSeriesRequest { series: args.series, source: args.source.into() };
    let renamed = app.connect().await?.series().rename_series(request).await;
    print(app, &renamed.map_err(said("rename the series"))?.into_inner())
}

async fn new_epoch(app: &App, args: NewEpochArgs) -> Result<Exit> {
    let what =
        format!("the next backup of {} builds on nothing of before and uploads everything anew", args.series);
    if args.change.dry_run {
        app.ui.note(what);
        return Ok(Exit::Done);
    }
    app.ui.confirm(args.change, &format!("{what}; go on?"))?;
    let request = v1::StartEpochRequest { series: args.series, reason: args.reason };
    let started = app.connect().await?.series().start_epoch(request).await;
    print(app, &started.map_err(said("start a new epoch"))?.into_inner())
}
