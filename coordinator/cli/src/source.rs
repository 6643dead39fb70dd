//! `sealift source list|test`: what the hosts can back up.

use std::time::Duration;

use clap::{Args, Subcommand};
use sealift_common::clock::UnixMillis;
use sealift_proto::v1;
use serde::Serialize;
use tokio_stream::StreamExt as _;

use crate::agent::selector;
use crate::app::App;
use crate::backup::BackupView;
use crate::coordinator::{Limit, Order, ordered_pages};
use crate::error::{Exit, Result, said};
use crate::run::RunView;
use crate::time::{relative, rfc3339, rough};
use crate::ui;

/// `sealift source …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List what the hosts can back up, with the last good backup of each
    #[command(
        after_help = "Examples:\n  sealift source list\n  sealift source list -l role=pos --rpo overdue\n  sealift source list --no-policy\n  sealift source list --sort last-backup --limit 20      (or name, stored)"
    )]
    List(ListArgs),
    /// Let hosts connect to their sources and say what they find
    #[command(
        after_help = "Examples:\n  sealift source test store-0042\n  sealift source test store-0042/main-db\n  sealift source test -l role=pos"
    )]
    Test(TestArgs),
}

/// `sealift source list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only hosts with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    /// Only those whose newest good backup stands so against the policy's promise: ok, waiting, overdue, none
    #[arg(long, value_name = "STATE", value_parser = ["ok", "waiting", "overdue", "none"])]
    rpo: Option<String>,
    /// Only those that this policy is in force for
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// Only those under no policy
    #[arg(long, conflicts_with = "policy")]
    no_policy: bool,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    order: Order,
}

/// `sealift source test`
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only this host, or this one source
    #[arg(value_name = "AGENT[/SOURCE]")]
    source: Option<String>,
    /// Only hosts with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
}

/// A source, as JSON shows it.
#[derive(Serialize)]
pub struct SourceView {
    agent_id: String,
    agent: String,
    source: String,
    kind: String,
    detail: String,
    series_id: Option<String>,
    /// Whether it is still in the host's config.
    present: bool,
    backups: u64,
    stored_bytes: u64,
    last_good_backup: Option<BackupView>,
    last_run: Option<RunView>,
    /// The policy in force, which version of it, and whether that is tried out.
    policy: Option<String>,
    policy_version: Option<u32>,
    policy_canary: bool,
    /// Policies that select it as well, in the order they would follow.
    other_policies: Vec<String>,
    /// When the schedule is due next, before the spread.
    next_due: Option<String>,
    rpo: RpoView,
    #[serde(skip)]
    next_due_ms: i64,
}

/// The policy's promise: how old the newest good backup may be, and is.
#[derive(Serialize)]
struct RpoView {
    /// `ok`, `waiting` (for the first backup), `overdue`, `none` (nothing is promised).
    state: String,
    promise_ms: Option<i64>,
    age_ms: Option<i64>,
}

impl RpoView {
    /// How it stands, and the age against the promise; empty where nothing is promised.
    fn shown(&self) -> String {
        let rough = |ms: i64| rough(Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
        match (self.promise_ms, self.age_ms) {
            (None, _) => String::new(),
            (Some(promise), Some(age)) => format!("{}: {} of {}", self.state, rough(age), rough(promise)),
            (Some(promise), None) => format!("{}: none in {}", self.state, rough(promise)),
        }
    }
}

impl From<&v1::SourceState> for SourceView {
    fn from(state: &v1::SourceState) -> Self {
        Self {
            agent_id: state.agent_id.clone(),
            agent: state.agent.clone(),
            source: state.name.clone(),
            kind: state.kind.clone(),
            detail: state.detail.clone(),
            series_id: (!state.series_id.is_empty()).then(|| state.series_id.clone()),
            present: state.present,
            backups: state.backups,
            stored_bytes: state.stored_bytes,
            last_good_backup: state.last_good.as_ref().filter(|b| !b.id.is_empty()).map(BackupView::from),
            last_run: state.last_run.as_ref().filter(|r| !r.id.is_empty()).map(RunView::from),
            policy: (!state.policy.is_empty()).then(|| state.policy.clone()),
            policy_version: (!state.policy.is_empty()).then_some(state.policy_version),
            policy_canary: state.policy_canary,
            other_policies: state.other_policies.clone(),
            next_due: rfc3339(state.next_due_ms),
            rpo: RpoView {
                state: state.rpo.clone(),
                promise_ms: (state.promise_ms > 0).then_some(state.promise_ms),
                age_ms: state.last_good.as_ref().map(|_| state.last_good_age_ms),
            },
            next_due_ms: state.next_due_ms,
        }
    }
}

impl SourceView {
    /// One line in the description of a host.
    pub fn line(&self, now: UnixMillis) -> String {
        let gone = if self.present { "" } else { " (no longer in its config)" };
        let late =
            if self.rpo.state == "overdue" { format!(", {}", self.rpo.shown()) } else { String::new() };
        format!("{}  {}{gone}, last good backup {}{late}", self.source, self.kind, self.last_good(now))
    }

    /// The policy in force; those that it keeps from being so follow in parentheses.
    fn policies(&self) -> String {
        let policy = self.policy.as_deref().unwrap_or("none");
        let tried = if self.policy_canary { " (tried out)" } else { "" };
        match self.other_policies.as_slice() {
            [] => format!("{policy}{tried}"),
            others => format!("{policy}{tried} (before {})", others.join(", ")),
        }
    }

    fn last_good(&self, now: UnixMillis) -> String {
        self.last_good_backup.as_ref().map_or_else(|| "never".to_owned(), |b| relative(b.created_ms, now))
    }
}

/// Runs `sealift source …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::List(args) => list(app, args).await,
        Command::Test(args) => test(app, args).await,
    }
}

async fn list(app: &App, args: ListArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let selector = args.selector.unwrap_or_default();
    let sources = ordered_pages(&app.ui, args.limit, args.order, async |page| {
        let request = v1::ListSourcesRequest {
            page: Some(page),
            selector: selector.clone(),
            rpo: args.rpo.clone().unwrap_or_default(),
            policy: args.policy.clone().unwrap_or_default(),
            without_policy: args.no_policy,
        };
        let reply =
            coordinator.agents().list_sources(request).await.map_err(said("list sources"))?.into_inner();
        Ok((reply.sources, reply.next))
    })
    .await?;
    let now = app.clock.now();
    let views: Vec<SourceView> = sources.iter().map(SourceView::from).collect();
    let header = [
        "source",
        "kind",
        "last good backup",
        "rpo",
        "size",
        "stored",
        "last run",
        "policy",
        "next due",
        "detail",
    ];
    app.ui.list(&views, &header, |view| {
        let last_run = view.last_run.as_ref().map(|run| run.state.clone()).unwrap_or_default();
        vec![
            format!("{}/{}", view.agent, view.source),
            view.kind.clone(),
            view.last_good(now),
            view.rpo.shown(),
            view.last_good_backup.as_ref().map(|b| ui::size(b.raw_bytes)).unwrap_or_default(),
            ui::size(view.stored_bytes),
            if view.present { last_run } else { "not in config".to_owned() },
            view.policies(),
            if view.next_due_ms == 0 { String::new() } else { relative(view.next_due_ms, now) },
            view.detail.clone(),
        ]
    })?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct TestView {
    agent: String,
    source: Option<String>,
    ok: bool,
    detail: String,
    tool_version: Option<String>,
    server_version: Option<String>,
}

impl From<v1::TestSourcesReply> for TestView {
    fn from(reply: v1::TestSourcesReply) -> Self {
        let some = |text: String| (!text.is_empty()).then_some(text);
        match reply.check {
            Some(check) if reply.error.is_empty() => Self {
                agent: reply.agent,
                source: some(check.source),
                ok: check.ok,
                detail: check.detail,
                tool_version: some(check.tool_version),
                server_version: some(check.server_version),
            },
            check => Self {
                agent: reply.agent,
                source: check.and_then(|check| some(check.source)),
                ok: false,
                detail: reply.error,
                tool_version: None,
                server_version: None,
            },
        }
    }
}

async fn test(app: &App, args: TestArgs) -> Result<Exit> {
    let request = v1::TestSourcesRequest {
        selector: args.selector.unwrap_or_default(),
        source: args.source.unwrap_or_default(),
    };
    let failed = said("test the sources");
    let mut replies =
        app.connect().await?.agents().test_sources(request).await.map_err(&failed)?.into_inner();
    let mut views: Vec<TestView> = Vec::new();
    while let Some(reply) = replies.next().await {
        views.push(reply.map_err(&failed)?.into());
    }
    app.ui.list(&views, &["source", "result", "tool", "server", "detail"], |view| {
        vec![
            view.source
                .as_ref()
                .map_or_else(|| view.agent.clone(), |source| format!("{}/{source}", view.agent)),
            if view.ok { "ok" } else { "FAILED" }.to_owned(),
            view.tool_version.clone().unwrap_or_default(),
            view.server_version.clone().unwrap_or_default(),
            view.detail.clone(),
        ]
    })?;
    let bad = views.iter().filter(|view| !view.ok).count();
    if bad > 0 {
        app.ui.error(format!(
            "{} of {} cannot be backed up as they are",
            bad,
            ui::count(views.len(), "source")
        ));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}
