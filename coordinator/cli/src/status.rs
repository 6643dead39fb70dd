//! `sealift status`: the fleet at a glance.

use std::time::Duration;

use sealift_proto::v1;
use serde::Serialize;

use crate::agent::selector;
use crate::app::App;
use crate::coordinator::{Limit, Order, ordered_pages};
use crate::error::{Exit, Result, said};
use crate::run::RunView;
use crate::time::{relative, rfc3339, rough};
use crate::ui;

/// `sealift status`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sealift status\n  sealift status --output json\n  sealift status --storage host --limit 20\n  sealift status --storage label --label region -l role=pos"
)]
pub struct Args {
    /// Show what the backups take in the bucket, by host, series or label
    #[arg(long, value_enum, value_name = "BY")]
    storage: Option<By>,
    /// By label: only labels with this key
    #[arg(long, requires = "storage", default_value = "", hide_default_value = true, value_name = "KEY")]
    label: String,
    #[command(flatten)]
    usage: UsageArgs,
}

/// What `--storage` shows.
#[derive(Debug, clap::Args)]
struct UsageArgs {
    /// With --storage: only hosts with these labels
    #[arg(short = 'l', long, requires = "storage", value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    order: Order,
}

/// What is summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// All series of a host
    Host,
    /// Each series
    Series,
    /// All series of the hosts that have a label
    Label,
}

#[derive(Serialize)]
struct UsageView {
    name: String,
    id: String,
    hosts: u32,
    series: u32,
    backups: u64,
    packs: u64,
    stored_bytes: u64,
    raw_bytes: u64,
}

async fn usage(app: &App, by: By, args: Args) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let by = match by {
        By::Host => v1::UsageBy::Host,
        By::Series => v1::UsageBy::Series,
        By::Label => v1::UsageBy::Label,
    };
    let UsageArgs { selector, limit, order } = args.usage;
    let usage = ordered_pages(&app.ui, limit, order, async |page| {
        let request = v1::ListUsageRequest {
            page: Some(page),
            by: by.into(),
            selector: selector.clone().unwrap_or_default(),
            label: args.label.clone(),
        };
        let reply =
            coordinator.storage().list_usage(request).await.map_err(said("ask what is stored"))?.into_inner();
        Ok((reply.usage, reply.next))
    })
    .await?;
    let view = |usage: v1::Usage| UsageView {
        name: usage.name,
        id: usage.id,
        hosts: usage.hosts,
        series: usage.series,
        backups: usage.backups,
        packs: usage.packs,
        stored_bytes: usage.stored_bytes,
        raw_bytes: usage.raw_bytes,
    };
    let views: Vec<UsageView> = usage.into_iter().map(view).collect();
    app.ui.list(
        &views,
        &["name", "stored", "backups", "size of these", "packs", "series", "hosts"],
        |view| {
            vec![
                view.name.clone(),
                ui::size(view.stored_bytes),
                view.backups.to_string(),
                ui::size(view.raw_bytes),
                view.packs.to_string(),
                view.series.to_string(),
                view.hosts.to_string(),
            ]
        },
    )?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct View {
    state: String,
    version: String,
    agents: u32,
    agents_connected: u32,
    agents_silent: u32,
    /// They work, but cannot do everything that the coordinator can.
    agents_behind: u32,
    /// They are too old to be served.
    agents_upgrade_required: u32,
    sources: u32,
    sources_without_good_backup: u32,
    backups: u64,
    stored_bytes: u64,
    raw_bytes: u64,
    runs_active: u32,
    trust_version: u64,
    recipients: u32,
    recent_failures: Vec<RunView>,
    storage: StorageView,
    warnings: Vec<String>,
    sources_without_policy: u32,
    /// The first 20 of them.
    without_policy: Vec<String>,
    sources_overdue: u32,
    /// The first 20 of them.
    overdue: Vec<String>,
    /// Of the same, what was promised and what there is.
    broken_promises: Vec<BrokenView>,
    pauses: Vec<String>,
    /// No backup is started: the bucket cannot be written.
    dispatch_held: bool,
}

#[derive(Serialize)]
struct BrokenView {
    source: String,
    promise_ms: i64,
    last_good: Option<String>,
    age_ms: Option<i64>,
    since: Option<String>,
}

#[derive(Serialize)]
struct StorageView {
    endpoint: String,
    bucket: String,
    prefix: String,
    writable: bool,
    error: Option<String>,
    probed: Option<String>,
    findings: Vec<FindingView>,
    #[serde(skip)]
    probed_ms: i64,
}

#[derive(Serialize)]
struct FindingView {
    check: String,
    result: String,
    meaning: String,
    warning: bool,
}

impl From<v1::StatusReply> for View {
    fn from(reply: v1::StatusReply) -> Self {
        Self {
            state: reply.state,
            version: reply.version,
            agents: reply.agents,
            agents_connected: reply.agents_connected,
            agents_silent: reply.agents_silent,
            agents_behind: reply.agents_behind,
            agents_upgrade_required: reply.agents_upgrade_required,
            sources: reply.sources,
            sources_without_good_backup: reply.sources_without_good_backup,
            backups: reply.backups,
            stored_bytes: reply.stored_bytes,
            raw_bytes: reply.raw_bytes,
            runs_active: reply.runs_active,
            trust_version: reply.trust_version,
            recipients: reply.recipients,
            recent_failures: reply.recent_failures.iter().map(RunView::from).collect(),
            storage: reply.storage.unwrap_or_default().into(),
            warnings: reply.warnings,
            sources_without_policy: reply.sources_without_policy,
            without_policy: reply.without_policy,
            sources_overdue: reply.sources_overdue,
            overdue: reply.overdue,
            broken_promises: reply.broken_promises.into_iter().map(BrokenView::from).collect(),
            pauses: reply.pauses,
            dispatch_held: reply.dispatch_held,
        }
    }
}

impl From<v1::StorageStatus> for StorageView {
    fn from(storage: v1::StorageStatus) -> Self {
        let finding = |f: v1::ProbeFinding| FindingView {
            check: f.check,
            result: f.result,
            meaning: f.meaning,
            warning: f.warning,
        };
        Self {
            endpoint: storage.endpoint,
            bucket: storage.bucket,
            prefix: storage.prefix,
            writable: storage.writable,
            error: (!storage.error.is_empty()).then_some(storage.error),
            probed: rfc3339(storage.probed_ms),
            findings: storage.findings.into_iter().map(finding).collect(),
            probed_ms: storage.probed_ms,
        }
    }
}

/// Runs `sealift status`.
pub async fn run(app: &App, args: Args) -> Result<Exit> {
    if let Some(by) = args.storage {
        return usage(app, by, args).await;
    }
    let reply = app
        .connect()
        .await?
        .fleet()
        .status(v1::StatusRequest {})
        .await
        .map_err(said("ask for the status"))?;
    let view = View::from(reply.into_inner());
    let now = app.clock.now();
    app.ui.object(&view, |view| {
        let probed = relative(view.storage.probed_ms, now);
        let failures = view.recent_failures.iter().map(|run| run.line(now)).collect::<Vec<_>>().join("\n");
        vec![
            ("State", format!("{} (coordinator {})", view.state, view.version)),
            ("Hosts", hosts(view)),
            (
                "Sources",
                format!("{}, {} without a good backup", view.sources, view.sources_without_good_backup),
            ),
            (
                "Backups",
                format!(
                    "{} of {}, {} stored",
                    view.backups,
                    ui::size(view.raw_bytes),
                    ui::size(view.stored_bytes)
                ),
            ),
            ("Running", running(view)),
            ("Overdue", overdue(view)),
            ("No policy", some_of(view.sources_without_policy, &view.without_policy)),
            ("Paused", view.pauses.join("\n")),
            ("Trust", trust(view)),
            ("Storage", storage(&view.storage, &probed)),
            ("Failures", failures),
            ("Warnings", view.warnings.join("\n")),
        ]
    })?;
    Ok(Exit::Done)
}

fn hosts(view: &View) -> String {
    let mut text =
        format!("{}, {} connected, {} silent", view.agents, view.agents_connected, view.agents_silent);
    for (count, what) in [
        (view.agents_behind, "with an agent that is behind this coordinator"),
        (view.agents_upgrade_required, "with an agent that is too old"),
    ] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}

fn running(view: &View) -> String {
    let held = if view.dispatch_held { "; nothing is started: the bucket cannot be written" } else { "" };
    format!("{}{held}", view.runs_active)
}

/// So many, and of the first how old their newest good backup is, and may be.
fn overdue(view: &View) -> String {
    let shown = view.broken_promises.iter().map(BrokenView::line);
    let more = (view.sources_overdue as usize).saturating_sub(view.broken_promises.len());
    let more = (more > 0).then(|| format!("and {more} more: sealift source list --rpo overdue"));
    match view.sources_overdue {
        0 => String::new(),
        count => std::iter::once(count.to_string()).chain(shown).chain(more).collect::<Vec<_>>().join("\n"),
    }
}

impl BrokenView {
    fn line(&self) -> String {
        let rough = |ms: i64| rough(Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
        let promised = rough(self.promise_ms);
        match self.age_ms {
            Some(age) => format!("{}: {} old, promised {promised}", self.source, rough(age)),
            None => format!("{}: no good backup, promised {promised}", self.source),
        }
    }
}

impl From<v1::BrokenPromise> for BrokenView {
    fn from(broken: v1::BrokenPromise) -> Self {
        Self {
            source: broken.source,
            promise_ms: broken.promise_ms,
            last_good: rfc3339(broken.last_good_ms),
            age_ms: (broken.last_good_ms != 0).then_some(broken.last_good_age_ms),
            since: rfc3339(broken.since_ms),
        }
    }
}

/// So many, and the names of the first.
fn some_of(count: u32, names: &[String]) -> String {
    match count as usize {
        0 => String::new(),
        count if count > names.len() => format!("{count}: {}, …", names.join(", ")),
        count => format!("{count}: {}", names.join(", ")),
    }
}

fn trust(view: &View) -> String {
    match view.trust_version {
        0 => "no trust policy yet: no backup can be made until `sealift trust set --recipient …`".to_owned(),
        version => format!("policy version {version}, {}", ui::count(view.recipients as usize, "recipient")),
    }
}

fn storage(storage: &StorageView, probed: &str) -> String {
    let mut text = format!("{}/{}/{}", storage.endpoint, storage.bucket, storage.prefix);
    match &storage.error {
        Some(error) => text.push_str(&format!("\nNOT WRITABLE: {error}")),
        None if storage.writable => text.push_str(&format!(", writable (probed {probed})")),
        None => text.push_str(", not probed yet"),
    }
    for finding in storage.findings.iter().filter(|finding| finding.warning) {
        text.push_str(&format!("\n! {}: {}: {}", finding.check, finding.result, finding.meaning));
    }
    text
}
