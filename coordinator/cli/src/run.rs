//! `sealift run list|show|cancel|watch`: planned, running and past runs.

use std::time::Duration;

use clap::{Args, Subcommand};
use sealift_common::clock::UnixMillis;
use sealift_proto::v1;
use serde::Serialize;
use tokio_stream::StreamExt as _;

use crate::agent::selector;
use crate::app::App;
use crate::coordinator::{Coordinator, Limit, Order, ordered_pages};
use crate::error::{Error, Exit, Result, said};
use crate::progress::Bar;
use crate::time::{Since, parse_since, relative, rfc3339, rough, took};
use crate::ui::{self, Change, Ui};

/// `sealift run …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List runs, newest first
    #[command(
        after_help = "Examples:\n  sealift run list\n  sealift run list --state failed --since 24h\n  sealift run list store-0042/main-db --output json\n  sealift run list -l role=pos --reverse --limit 20      (oldest first)"
    )]
    List(Box<ListArgs>),
    /// Show one run: its attempts, and what the dump tool said
    #[command(after_help = "Example:\n  sealift run show 0190c5e1")]
    Show(OneArgs),
    /// End a run; what it stored is used by the next one
    #[command(after_help = "Example:\n  sealift run cancel 0190c5e1 --reason 'shop opens'")]
    Cancel(CancelArgs),
    /// Follow a run to its end; its outcome is the exit code
    #[command(after_help = "Example:\n  sealift run watch 0190c5e1")]
    Watch(OneArgs),
}

/// `sealift run list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only runs of this host, or of this one source
    #[arg(value_name = "AGENT[/SOURCE]", default_value = "", hide_default_value = true)]
    source: String,
    /// Only hosts with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    /// Only runs in this state: scheduled, queued, active, backoff, succeeded, partial, failed, cancelled, missed, skipped,
    /// superseded
    #[arg(long, default_value = "", hide_default_value = true)]
    state: String,
    /// Only runs since then: a duration (24h, 7d) or a time
    #[arg(long, value_parser = parse_since)]
    since: Option<Since>,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    order: Order,
}

/// `sealift run show|watch`
#[derive(Debug, Args)]
pub struct OneArgs {
    /// Id of the run, or an unambiguous prefix
    run: String,
}

/// `sealift run cancel`
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// Id of the run, or an unambiguous prefix
    run: String,
    /// Why; goes into the audit
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    change: Change,
}

/// A run, as JSON shows it.
#[derive(Serialize)]
pub struct RunView {
    /// Its id.
    pub id: String,
    agent_id: String,
    agent: String,
    source: String,
    series_id: String,
    /// `scheduled`, `queued`, `active`, `backoff`, `succeeded`, `partial`, `failed`, `cancelled`, `missed`, `skipped`,
    /// `superseded`
    pub state: String,
    created: Option<String>,
    started: Option<String>,
    ended: Option<String>,
    backup_id: Option<String>,
    requested_by: String,
    error: Option<String>,
    /// Why its policy made it: `schedule`, `catch-up`; `None` where somebody asked for it.
    occasion: Option<String>,
    policy_id: Option<String>,
    policy_version: Option<u32>,
    /// When the policy was due.
    instant: Option<String>,
    /// It starts no earlier.
    due: Option<String>,
    /// Missed if it has not started by then.
    deadline: Option<String>,
    /// Instants that it stands for beside its own.
    collapsed: u32,
    progress: Option<ProgressView>,
    attempts: Vec<AttemptView>,
    #[serde(skip)]
    created_ms: i64,
    #[serde(skip)]
    duration_ms: u64,
}

#[derive(Serialize)]
struct ProgressView {
    stage: String,
    raw_bytes: u64,
    new_raw_bytes: u64,
    stored_bytes: u64,
    packs: u64,
    spooled_bytes: u64,
    expected_raw_bytes: Option<u64>,
}

#[derive(Serialize)]
struct AttemptView {
    number: u32,
    state: String,
    started: Option<String>,
    ended: Option<String>,
    error: Option<String>,
    stderr: Option<String>,
    backup_id: Option<String>,
    epoch: u64,
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl From<&v1::Run> for RunView {
    fn from(run: &v1::Run) -> Self {
        let duration = UnixMillis(run.ended_ms).since(UnixMillis(run.started_ms));
        Self {
            id: run.id.clone(),
            agent_id: run.agent_id.clone(),
            agent: run.agent.clone(),
            source: run.source.clone(),
            series_id: run.series_id.clone(),
            state: run.state.clone(),
            created: rfc3339(run.created_ms),
            started: rfc3339(run.started_ms),
            ended: rfc3339(run.ended_ms),
            backup_id: some(&run.backup_id),
            requested_by: run.requested_by.clone(),
            error: some(&run.error),
            occasion: some(&run.occasion),
            policy_id: some(&run.policy_id),
            policy_version: (run.policy_version > 0).then_some(run.policy_version),
            instant: rfc3339(run.instant_ms),
            due: rfc3339(run.due_ms),
            deadline: rfc3339(run.deadline_ms),
            collapsed: run.collapsed,
            progress: run.progress.as_ref().map(|p| ProgressView {
                stage: p.stage.clone(),
                raw_bytes: p.raw_bytes,
                new_raw_bytes: p.new_raw_bytes,
                stored_bytes: p.stored_bytes,
                packs: p.packs,
                spooled_bytes: p.spooled_bytes,
                expected_raw_bytes: (p.expected_raw_bytes > 0).then_some(p.expected_raw_bytes),
            }),
            attempts: run.attempts.iter().map(AttemptView::from).collect(),
            created_ms: run.created_ms,
            duration_ms: if run.started_ms == 0 {
                0
            } else {
                u64::try_from(duration.as_millis()).unwrap_or(0)
            },
        }
    }
}

impl From<&v1::Attempt> for AttemptView {
    fn from(attempt: &v1::Attempt) -> Self {
        Self {
            number: attempt.number,
            state: attempt.state.clone(),
            started: rfc3339(attempt.started_ms),
            ended: rfc3339(attempt.ended_ms),
            error: some(&attempt.error),
            stderr: some(&attempt.stderr),
            backup_id: some(&attempt.backup_id),
            epoch: attempt.epoch,
        }
    }
}

impl RunView {
    /// One line for people.
    pub fn line(&self, now: UnixMillis) -> String {
        let error = self.error.as_deref().unwrap_or_default();
        format!(
            "{}/{} {} {} ({}) {error}",
            self.agent,
            self.source,
            self.state,
            relative(self.created_ms, now),
            short(&self.id)
        )
    }

    fn lines(&self, now: UnixMillis) -> Vec<(&'static str, String)> {
        let mut attempts = String::new();
        for attempt in &self.attempts {
            attempts.push_str(&format!(
                "{}. {} {}\n",
                attempt.number,
                attempt.state,
                attempt.error.as_deref().unwrap_or_default()
            ));
            for line in attempt.stderr.as_deref().unwrap_or_default().lines() {
                attempts.push_str(&format!("   | {line}\n"));
            }
        }
        vec![
            ("Run", self.id.clone()),
            ("Source", format!("{}/{}", self.agent, self.source)),
            ("State", self.state.clone()),
            ("Error", self.error.clone().unwrap_or_default()),
            ("Backup", self.backup_id.clone().unwrap_or_default()),
            ("Asked for", format!("{} by {}", relative(self.created_ms, now), self.requested_by)),
            ("Policy was due", self.instant.clone().unwrap_or_default()),
            ("Starts", self.due.clone().filter(|_| self.started.is_none()).unwrap_or_default()),
            (
                "Stands for",
                if self.collapsed > 0 {
                    format!("{} more", ui::count(self.collapsed as usize, "time"))
                } else {
                    String::new()
                },
            ),
            ("Started", self.started.clone().unwrap_or_default()),
            ("Took", took(self.duration_ms)),
            (
                "Progress",
                self.progress.as_ref().map_or_else(String::new, |p| {
                    let waiting = match p.spooled_bytes {
                        0 => String::new(),
                        bytes => format!(", {} wait on the host's disk", ui::size(bytes)),
                    };
                    format!(
                        "{}, {} read, {} new, {} stored in {}{waiting}",
                        p.stage,
                        ui::size(p.raw_bytes),
                        ui::size(p.new_raw_bytes),
                        ui::size(p.stored_bytes),
                        ui::count(p.packs as usize, "pack")
                    )
                }),
            ),
            ("Attempts", attempts),
        ]
    }
}

/// The first block of an id: enough for people to name it by.
pub fn short(id: &str) -> &str {
    id.split('-').next().unwrap_or(id)
}

/// Whether a run in this state has ended, and with which exit code.
pub fn outcome(state: &str) -> Option<Exit> {
    match state {
        "succeeded" => Some(Exit::Done),
        "partial" => Some(Exit::Partial),
        "failed" | "cancelled" | "missed" | "skipped" | "superseded" => Some(Exit::Failed),
        _ if state.starts_with("skipped") => Some(Exit::Failed),
        _ => None,
    }
}

/// Runs `sealift run …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::List(args) => list(app, *args).await,
        Command::Show(args) => show(app, args).await,
        Command::Cancel(args) => cancel(app, args).await,
        Command::Watch(args) => watch_one(app, args).await,
    }
}

async fn list(app: &App, args: ListArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let now = app.clock.now();
    let runs = ordered_pages(&app.ui, args.limit, args.order, async |page| {
        let request = v1::ListRunsRequest {
            page: Some(page),
            source: args.source.clone(),
            selector: args.selector.clone().unwrap_or_default(),
            state: args.state.clone(),
            since_ms: args.since.map(|since| since.from(now)).unwrap_or_default(),
        };
        let reply = coordinator.runs().list_runs(request).await.map_err(said("list runs"))?.into_inner();
        Ok((reply.runs, reply.next))
    })
    .await?;
    let views: Vec<RunView> = runs.iter().map(RunView::from).collect();
    app.ui.list(&views, &["id", "source", "state", "asked for", "took", "error"], |view| {
        vec![
            view.id.clone(),
            format!("{}/{}", view.agent, view.source),
            view.state.clone(),
            relative(view.created_ms, now),
            took(view.duration_ms),
            view.error.clone().unwrap_or_default().chars().take(80).collect(),
        ]
    })?;
    Ok(Exit::Done)
}

async fn show(app: &App, args: OneArgs) -> Result<Exit> {
    let request = v1::GetRunRequest { run: args.run };
    let run = app.connect().await?.runs().get_run(request).await.map_err(said("show the run"))?.into_inner();
    app.ui.object(&RunView::from(&run), |view| view.lines(app.clock.now()))?;
    Ok(Exit::Done)
}

async fn cancel(app: &App, args: CancelArgs) -> Result<Exit> {
    if args.change.dry_run {
        app.ui.note(format!("would cancel the run {}", args.run));
        return Ok(Exit::Done);
    }
    app.ui.confirm(args.change, &format!("cancel the run {}?", args.run))?;
    let request = v1::CancelRunRequest { run: args.run, reason: args.reason };
    let run =
        app.connect().await?.runs().cancel_run(request).await.map_err(said("cancel the run"))?.into_inner();
    if app.ui.format == ui::Format::Json {
        app.ui.json(&RunView::from(&run))?;
    }
    app.ui.note(format!("the run of {}/{} is {}", run.agent, run.source, run.state));
    Ok(Exit::Done)
}

async fn watch_one(app: &App, args: OneArgs) -> Result<Exit> {
    let run = watch(app, &mut app.connect().await?, &args.run).await?;
    if app.ui.format == ui::Format::Json {
        app.ui.json(&RunView::from(&run))?;
    }
    Ok(outcome(&run.state).unwrap_or(Exit::Failed))
}

/// How long a coordinator that went away is waited for: so many times this pause.
const RECONNECTS: u32 = 90;
const RECONNECT_PAUSE: Duration = Duration::from_secs(2);

/// Follows a run to its end, showing progress on stderr. Coordinators restart: the run goes on meanwhile, and so does this, with
/// whichever coordinator of the context answers.
pub async fn watch(app: &App, coordinator: &mut Coordinator, run: &str) -> Result<v1::Run> {
    let failed = said("watch the run");
    let mut follower = Follower { ui: &app.ui, bar: None, last: String::new(), lost: 0 };
    loop {
        let error = match follow(coordinator, run, &mut follower).await {
            Ok(Some(run)) => {
                follower.end(coordinator, &run).await;
                return Ok(run);
            }
            Ok(None) => failed(tonic::Status::unavailable("the coordinator ended the stream")),
            Err(status) if is_lost(&status) => failed(status),
            Err(status) => {
                follower.close();
                return Err(failed(status));
            }
        };
        *coordinator = follower.reconnect(app, error).await?;
    }
}

/// Whether the connection ended, rather than the coordinator saying no.
fn is_lost(status: &tonic::Status) -> bool {
    use tonic::Code;
    match status.code() {
        // What the transport says of itself: the coordinator names each of its own errors.
        Code::Unavailable | Code::Cancelled | Code::Unknown => true,
        Code::Internal => status.message().starts_with("h2 protocol error"),
        _ => false,
    }
}

async fn follow(
    coordinator: &Coordinator,
    run: &str,
    follower: &mut Follower<'_>,
) -> Result<Option<v1::Run>, tonic::Status> {
    let request = v1::GetRunRequest { run: run.to_owned() };
    let mut changes = coordinator.runs().watch_run(request).await?.into_inner();
    while let Some(change) = changes.next().await {
        let run = change?;
        follower.found();
        if outcome(&run.state).is_some() {
            return Ok(Some(run));
        }
        follower.show(&run);
    }
    Ok(None)
}

/// Shows a run's changes: a bar on a terminal, a line per change of stage elsewhere.
struct Follower<'a> {
    ui: &'a Ui,
    bar: Option<Bar>,
    last: String,
    /// How often in a row the coordinator was not there.
    lost: u32,
}

impl Follower<'_> {
    fn show(&mut self, run: &v1::Run) {
        let name = format!("{}/{}", run.agent, run.source);
        let progress = run.progress.clone().unwrap_or_default();
        let bar = self.bar.get_or_insert_with(|| Bar::new(self.ui, &name, 0));
        bar.expect(progress.expected_raw_bytes);
        bar.set(progress.raw_bytes);
        let stage =
            if run.state == "active" && !progress.stage.is_empty() { &progress.stage } else { &run.state };
        bar.say(&format!(
            "{stage}, {} new, {} stored",
            ui::size(progress.new_raw_bytes),
            ui::size(progress.stored_bytes)
        ));
        if !progress.log_line.is_empty() {
            bar.line(self.ui, &ui::printable(&progress.log_line));
        }
        if *stage != self.last {
            let why = run.error.as_str();
            if stage == "backoff" && !why.is_empty() {
                // The reason now, not after the last try.
                bar.line(self.ui, &format!("{name}: {}: tried again soon", ui::printable(why)));
            } else if !self.ui.terminal {
                self.ui.note(format!("{name}: {stage}"));
            }
            self.last.clone_from(stage);
        }
    }

    /// Waits for a coordinator, with bounded patience; `error` is what happened to the last one.
    async fn reconnect(&mut self, app: &App, mut error: Error) -> Result<Coordinator> {
        if self.lost == 0 {
            self.close();
            self.ui.note(format!("{error}; the run goes on: waiting for the coordinator"));
        }
        while self.lost < RECONNECTS {
            self.lost += 1;
            tokio::time::sleep(RECONNECT_PAUSE).await;
            match app.connect().await {
                Err(away) if away.exit() == Exit::Unreachable => error = away,
                connected => return connected,
            }
        }
        Err(error)
    }

    /// The coordinator answers.
    fn found(&mut self) {
        if std::mem::take(&mut self.lost) > 0 {
            self.ui.note("the coordinator is back");
        }
    }

    async fn end(&mut self, coordinator: &Coordinator, run: &v1::Run) {
        self.close();
        let name = format!("{}/{}", run.agent, run.source);
        let took = rough(UnixMillis(run.ended_ms).since(UnixMillis(run.started_ms)));
        match run.state.as_str() {
            "succeeded" | "partial" => {
                // Progress comes every few seconds; what was really stored, the backup knows.
                let request = v1::GetBackupRequest { backup: run.backup_id.clone() };
                let info = coordinator.backups().get_backup(request).await.map(tonic::Response::into_inner);
                let info = info.unwrap_or_default();
                self.ui.note(format!(
                    "{name}: {} in {took}: {} read, {} new, {} stored, backup {}",
                    run.state,
                    ui::size(info.raw_bytes),
                    ui::size(info.new_raw_bytes),
                    ui::size(info.new_stored_bytes),
                    run.backup_id
                ));
                info.warnings.iter().for_each(|warning| self.ui.warn(ui::printable(warning)));
            }
            _ => self.ui.error(format!(
                "{name}: {}: {} (sealift run show {})",
                run.state,
                run.error,
                short(&run.id)
            )),
        }
    }

    fn close(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

/// The exit code of several runs: the worst that is not a success decides, failure before partial.
pub fn worst(runs: &[v1::Run]) -> Exit {
    let exits: Vec<Exit> = runs.iter().map(|run| outcome(&run.state).unwrap_or(Exit::Failed)).collect();
    [Exit::Failed, Exit::Partial].into_iter().find(|exit| exits.contains(exit)).unwrap_or(Exit::Done)
}

/// The error for a selection that no source is in.
pub fn nothing_selected() -> Error {
    Error::new(Exit::NotFound, "no source is selected by that: see `sealift source list`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(state: &str) -> v1::Run {
        v1::Run { state: state.to_owned(), ..v1::Run::default() }
    }

    #[test]
    fn the_outcome_is_the_exit_code() {
        assert_eq!(worst(&[ended("succeeded"), ended("succeeded")]), Exit::Done);
        assert_eq!(worst(&[ended("succeeded"), ended("partial")]), Exit::Partial);
        assert_eq!(worst(&[ended("partial"), ended("cancelled"), ended("succeeded")]), Exit::Failed);
        for state in ["queued", "active", "backoff", "scheduled"] {
            assert_eq!(outcome(state), None, "{state}");
        }
    }
}
