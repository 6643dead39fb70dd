//! `sealift policy apply|list|show|history|rollback|delete|preview`: who is backed up when, what stays, what is promised.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sealift_common::clock::UnixMillis;
use sealift_proto::v1;
use serde::Serialize;

use crate::agent::selector;
use crate::app::App;
use crate::error::{Error, Exit, Result, because, said};
use crate::time::{relative, rfc3339};
use crate::ui::{self, Change};

/// Largest policy file, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// `sealift policy …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a file the policy of its name, as a new version; on a few hosts first with --canary
    #[command(
        after_help = "Examples:\n  sealift policy apply -f stores-nightly.toml --dry-run\n  sealift policy apply -f stores-nightly.toml --canary 'store in (0001,0002)'\n  sealift policy apply -f stores-nightly.toml --expect 3000"
    )]
    Apply(ApplyArgs),
    /// List policies
    #[command(after_help = "Example:\n  sealift policy list")]
    List(ListArgs),
    /// Show one policy
    #[command(after_help = "Example:\n  sealift policy show stores-nightly")]
    Show(OneArgs),
    /// Show all versions of a policy
    #[command(after_help = "Example:\n  sealift policy history stores-nightly")]
    History(OneArgs),
    /// Go back to an earlier version
    #[command(
        after_help = "Examples:\n  sealift policy rollback stores-nightly --dry-run\n  sealift policy rollback stores-nightly --to 3 --expect 12"
    )]
    Rollback(RollbackArgs),
    /// Delete a policy: its sources come under the next one that selects them, or under none
    #[command(after_help = "Example:\n  sealift policy delete stores-nightly --expect 3000")]
    Delete(DeleteArgs),
    /// Show what a file would mean: hosts and sources, next starts, what changes
    #[command(after_help = "Example:\n  sealift policy preview -f stores-nightly.toml")]
    Preview(PreviewArgs),
}

/// `sealift policy list`
#[derive(Debug, Args)]
pub struct ListArgs {}

/// `sealift policy show|history`
#[derive(Debug, Args)]
pub struct OneArgs {
    /// Name of the policy
    name: String,
}

/// `sealift policy preview`
#[derive(Debug, Args)]
pub struct PreviewArgs {
    /// The policy, a TOML file; - is stdin
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// As if it were tried out on these hosts only
    #[arg(long, value_name = "SELECTOR", value_parser = selector)]
    canary: Option<String>,
}

/// `sealift policy apply`
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The policy, a TOML file; - is stdin
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Try it out on these hosts only, until it is applied without this
    #[arg(long, value_name = "SELECTOR", value_parser = selector)]
    canary: Option<String>,
    /// How many hosts are touched; needed where it is more than a tenth of the fleet, and more than 5
    #[arg(long, value_name = "N")]
    expect: Option<u32>,
    #[command(flatten)]
    change: Change,
}

/// `sealift policy rollback`
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Name of the policy
    name: String,
    /// Which version; without it, the one that was in force before
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u32).range(1..))]
    to: Option<u32>,
    /// How many hosts are touched; needed where it is more than a tenth of the fleet, and more than 5
    #[arg(long, value_name = "N")]
    expect: Option<u32>,
    #[command(flatten)]
    change: Change,
}

/// `sealift policy delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Name of the policy
    name: String,
    /// How many hosts are touched; needed where it is more than a tenth of the fleet, and more than 5
    #[arg(long, value_name = "N")]
    expect: Option<u32>,
    #[command(flatten)]
    change: Change,
}

#[derive(Serialize)]
struct View {
    id: String,
    name: String,
    version: Option<u32>,
    canary_version: Option<u32>,
    canary: Option<String>,
    priority: i32,
    labels: String,
    sources: Vec<String>,
    cron: Option<String>,
    timezone: Option<String>,
    created: Option<String>,
    /// For how many sources it is in force.
    sources_in_force: u32,
    policy: serde_json::Value,
    document: Option<String>,
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<v1::Policy> for View {
    fn from(policy: v1::Policy) -> Self {
        Self {
            id: policy.id,
            name: policy.name,
            version: (policy.version > 0).then_some(policy.version),
            canary_version: (policy.canary_version > 0).then_some(policy.canary_version),
            canary: (policy.canary_version > 0).then_some(policy.canary),
            priority: policy.priority,
            labels: policy.labels,
            sources: policy.source_patterns,
            cron: some(policy.cron),
            timezone: some(policy.timezone),
            created: rfc3339(policy.created_ms),
            sources_in_force: policy.sources,
            policy: serde_json::from_str(&policy.document_json).unwrap_or_default(),
            document: some(policy.document),
        }
    }
}

impl View {
    fn versions(&self) -> String {
        let whole = self.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
        match (&self.canary, self.canary_version) {
            (Some(canary), Some(tried)) => {
                let hosts = if canary.is_empty() { "all hosts" } else { canary };
                format!("{whole}, {tried} tried out on {hosts}")
            }
            _ => whole,
        }
    }

    fn selects(&self) -> String {
        let labels = if self.labels.is_empty() { "all hosts" } else { &self.labels };
        let sources =
            if self.sources.is_empty() { "all sources".to_owned() } else { self.sources.join(", ") };
        format!("{labels}: {sources}")
    }

    fn schedule(&self) -> String {
        match (&self.cron, &self.timezone) {
            (Some(cron), Some(zone)) => format!("{cron} ({zone})"),
            _ => "on request".to_owned(),
        }
    }
}

/// A change, made or not, as JSON shows it.
#[derive(Serialize)]
struct ChangeView {
    name: String,
    id: String,
    version: u32,
    made: bool,
    unchanged: bool,
    refused: Option<String>,
    hosts: u32,
    hosts_selected: u32,
    sources_selected: u32,
    hosts_touched: u32,
    sources_touched: u32,
    sources: Vec<SourceView>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct SourceView {
    agent: String,
    source: String,
    kind: String,
    timezone: Option<String>,
    changed: bool,
    before: Option<InForce>,
    after: Option<InForce>,
    starts: Vec<Option<String>>,
    #[serde(skip)]
    starts_ms: Vec<i64>,
}

#[derive(Serialize)]
struct InForce {
    policy: String,
    version: u32,
    canary: bool,
}

impl InForce {
    fn of(policy: String, version: u32, canary: bool) -> Option<Self> {
        (!policy.is_empty()).then_some(Self { policy, version, canary })
    }
}

fn shown(in_force: Option<&InForce>) -> String {
    in_force.map_or_else(
        || "none".to_owned(),
        |p| format!("{} v{}{}", p.policy, p.version, if p.canary { " (tried out)" } else { "" }),
    )
}

impl From<v1::PolicyChange> for ChangeView {
    fn from(change: v1::PolicyChange) -> Self {
        let source = |source: v1::PolicySource| SourceView {
            agent: source.agent,
            source: source.source,
            kind: source.kind,
            timezone: some(source.timezone),
            changed: source.changed,
            before: InForce::of(source.before, source.before_version, false),
            after: InForce::of(source.after, source.after_version, source.canary),
            starts: source.starts_ms.iter().map(|start| rfc3339(*start)).collect(),
            starts_ms: source.starts_ms,
        };
        Self {
            name: change.name,
            id: change.id,
            version: change.version,
            made: change.made,
            unchanged: change.unchanged,
            refused: some(change.refused),
            hosts: change.hosts,
            hosts_selected: change.hosts_selected,
            sources_selected: change.sources_selected,
            hosts_touched: change.hosts_touched,
            sources_touched: change.sources_touched,
            sources: change.sources.into_iter().map(source).collect(),
            warnings: change.warnings,
        }
    }
}

#[derive(Serialize)]
struct VersionView {
    version: u32,
    action: String,
    created: Option<String>,
    created_by: String,
    in_force: bool,
    tried_out: bool,
    document: String,
    #[serde(skip)]
    created_ms: i64,
}

/// Runs `sealift policy …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Apply(args) => apply(app, args).await,
        Command::List(ListArgs {}) => list(app).await,
        Command::Show(args) => show(app, args).await,
        Command::History(args) => history(app, args).await,
        Command::Rollback(args) => rollback(app, args).await,
        Command::Delete(args) => delete(app, args).await,
        Command::Preview(args) => preview(app, args).await,
    }
}

fn read(file: &std::path::Path) -> Result<String> {
    use std::io::Read as _;
    let failed = || because(Exit::Usage, format!("cannot read {}", file.display()));
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed())?
    } else {
        let opened = std::fs::File::open(file).map_err(failed())?;
        opened.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed())?
    };
    if read as u64 > MAX_FILE {
        return Err(Error::usage(format!("{} is larger than {} KiB", file.display(), MAX_FILE / 1024)));
    }
    Ok(text)
}

async fn ask_preview(
    app: &App,
    document: &str,
    canary: Option<&String>,
    expect: Option<u32>,
) -> Result<ChangeView> {
    let request = v1::ApplyPolicyRequest {
        document: document.to_owned(),
        canary: canary.cloned().unwrap_or_default(),
        has_canary: canary.is_some(),
        expect,
    };
    let reply = app.connect().await?.policies().preview_policy(request).await;
    Ok(reply.map_err(said("preview the policy"))?.into_inner().into())
}

async fn preview(app: &App, args: PreviewArgs) -> Result<Exit> {
    let change = ask_preview(app, &read(&args.file)?, args.canary.as_ref(), None).await?;
    print(app, &change)?;
    Ok(Exit::Done)
}

async fn apply(app: &App, args: ApplyArgs) -> Result<Exit> {
    let document = read(&args.file)?;
    if args.change.dry_run {
        return dry(app, &ask_preview(app, &document, args.canary.as_ref(), args.expect).await?);
    }
    let request = v1::ApplyPolicyRequest {
        document,
        has_canary: args.canary.is_some(),
        canary: args.canary.unwrap_or_default(),
        expect: args.expect,
    };
    let reply = app.connect().await?.policies().apply_policy(request).await;
    made(app, &reply.map_err(said("apply the policy"))?.into_inner().into())
}

async fn rollback(app: &App, args: RollbackArgs) -> Result<Exit> {
    let request = v1::RollbackPolicyRequest {
        name: args.name,
        to: args.to.unwrap_or(0),
        expect: args.expect,
        dry_run: args.change.dry_run,
    };
    let reply = app.connect().await?.policies().rollback_policy(request).await;
    let change = reply.map_err(said("roll the policy back"))?.into_inner().into();
    if args.change.dry_run { dry(app, &change) } else { made(app, &change) }
}

async fn delete(app: &App, args: DeleteArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let request = |dry_run| v1::DeletePolicyRequest { name: args.name.clone(), expect: args.expect, dry_run };
    let failed = said("delete the policy");
    let reply = coordinator.policies().delete_policy(request(true)).await;
    let change: ChangeView = reply.map_err(&failed)?.into_inner().into();
    if args.change.dry_run {
        return dry(app, &change);
    }
    let loss = format!(
        "{} on {} will be under other policies or none",
        ui::count(change.sources_touched as usize, "source"),
        ui::count(change.hosts_touched as usize, "host")
    );
    app.ui.confirm_loss(args.change, &loss, &args.name)?;
    let reply = coordinator.policies().delete_policy(request(false)).await;
    made(app, &reply.map_err(&failed)?.into_inner().into())
}

/// What would be done; with the exit code of what would be refused.
fn dry(app: &App, change: &ChangeView) -> Result<Exit> {
    print(app, change)?;
    app.ui.note("nothing was changed");
    Ok(if change.refused.is_some() { Exit::Failed } else { Exit::Done })
}

fn made(app: &App, change: &ChangeView) -> Result<Exit> {
    print(app, change)?;
    if change.unchanged {
        app.ui.note(format!("{} says this already: nothing was changed", change.name));
    }
    Ok(Exit::Done)
}

fn print(app: &App, change: &ChangeView) -> Result<()> {
    let now = app.clock.now();
    for warning in &change.warnings {
        app.ui.warn(warning);
    }
    if let Some(refused) = &change.refused {
        app.ui.warn(format!("would be refused: {refused}"));
    }
    if app.ui.format == ui::Format::Json {
        return app.ui.json(change);
    }
    app.ui.note(format!(
        "{} version {}: for {} on {}; changes {} on {} of {}",
        change.name,
        change.version,
        ui::count(change.sources_selected as usize, "source"),
        ui::count(change.hosts_selected as usize, "host"),
        ui::count(change.sources_touched as usize, "source"),
        change.hosts_touched,
        ui::count(change.hosts as usize, "host"),
    ));
    app.ui.list(&change.sources, &["source", "now", "then", "zone", "next starts"], |view| {
        let starts: Vec<_> = view.starts_ms.iter().map(|start| relative(*start, now)).collect();
        vec![
            format!("{}/{}", view.agent, view.source),
            shown(view.before.as_ref()),
            if view.changed { shown(view.after.as_ref()) } else { "as now".to_owned() },
            view.timezone.clone().unwrap_or_default(),
            starts.join(", "),
        ]
    })
}

async fn list(app: &App) -> Result<Exit> {
    let reply = app.connect().await?.policies().list_policies(v1::ListPoliciesRequest {}).await;
    let policies = reply.map_err(said("list policies"))?.into_inner().policies;
    let views: Vec<View> = policies.into_iter().map(View::from).collect();
    app.ui.list(
        &views,
        &["policy", "version", "priority", "selects", "schedule", "in force for"],
        |view| {
            vec![
                view.name.clone(),
                view.versions(),
                view.priority.to_string(),
                view.selects(),
                view.schedule(),
                ui::count(view.sources_in_force as usize, "source"),
            ]
        },
    )?;
    Ok(Exit::Done)
}

async fn show(app: &App, args: OneArgs) -> Result<Exit> {
    let reply = app.connect().await?.policies().get_policy(v1::GetPolicyRequest { name: args.name }).await;
    let view = View::from(reply.map_err(said("show the policy"))?.into_inner());
    app.ui.object(&view, |view| {
        vec![
            ("Policy", view.name.clone()),
            ("Version", view.versions()),
            ("Priority", view.priority.to_string()),
            ("Selects", view.selects()),
            ("Schedule", view.schedule()),
            ("In force for", ui::count(view.sources_in_force as usize, "source")),
            ("Document", view.document.clone().unwrap_or_default()),
        ]
    })?;
    Ok(Exit::Done)
}

async fn history(app: &App, args: OneArgs) -> Result<Exit> {
    let reply =
        app.connect().await?.policies().get_policy_history(v1::GetPolicyRequest { name: args.name }).await;
    let history = reply.map_err(said("show the policy's history"))?.into_inner();
    let now: UnixMillis = app.clock.now();
    let view = |version: v1::PolicyVersion| VersionView {
        in_force: version.version == history.version,
        tried_out: version.version == history.canary_version,
        version: version.version,
        action: version.action,
        created: rfc3339(version.created_ms),
        created_by: version.created_by,
        document: version.document,
        created_ms: version.created_ms,
    };
    let views: Vec<VersionView> = history.versions.into_iter().map(view).collect();
    app.ui.list(&views, &["version", "how", "when", "by", ""], |view| {
        let state = match (view.in_force, view.tried_out) {
            (true, _) => "in force",
            (_, true) => "tried out",
            _ => "",
        };
        vec![
            view.version.to_string(),
            view.action.clone(),
            relative(view.created_ms, now),
            view.created_by.clone(),
            state.to_owned(),
        ]
    })?;
    Ok(Exit::Done)
}
