//! `sealift status`: the fleet at a glance.

use sealift_proto::v1;
use serde::Serialize;

use crate::app::App;
use crate::error::{Exit, Result, said};
use crate::run::RunView;
use crate::time::{relative, rfc3339};
use crate::ui;

/// `sealift status`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sealift status\n  sealift status --output json")]
pub struct Args {}

#[derive(Serialize)]
struct View {
    state: String,
    version: String,
    agents: u32,
    agents_connected: u32,
    agents_silent: u32,
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
    pauses: Vec<String>,
    /// No backup is started: the bucket cannot be written.
    dispatch_held: bool,
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
pub async fn run(app: &App, _: &Args) -> Result<Exit> {
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
            (
                "Hosts",
                format!(
                    "{}, {} connected, {} silent",
                    view.agents, view.agents_connected, view.agents_silent
                ),
            ),
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
            ("Overdue", some_of(view.sources_overdue, &view.overdue)),
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

fn running(view: &View) -> String {
    let held = if view.dispatch_held { "; nothing is started: the bucket cannot be written" } else { "" };
    format!("{}{held}", view.runs_active)
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
