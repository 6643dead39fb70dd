//! `sealift agent list|show|label|approve|retire|revoke`: the hosts of the fleet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use sealift_common::clock::UnixMillis;
use sealift_common::name::{Name, parse_label};
use sealift_common::selector::Selector;
use sealift_proto::v1;
use serde::Serialize;

use crate::app::App;
use crate::coordinator::{Limit, Order, ordered_pages};
use crate::error::{Error, Exit, Result, said};
use crate::hosts;
use crate::source::SourceView;
use crate::time::{parse_moment, relative, rfc3339, rough};
use crate::ui::{self, Change, Format};

/// Clocks may differ this much.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// `sealift agent …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List hosts
    #[command(
        after_help = "Examples:\n  sealift agent list\n  sealift agent list -l 'role=pos,region in (eu,uk)' --output json\n  sealift agent list --sort stored --limit 20      (or name, last-seen, enrolled)"
    )]
    List(ListArgs),
    /// Show one host and its sources
    #[command(after_help = "Example:\n  sealift agent show store-0042")]
    Show(ShowArgs),
    /// Set and remove labels of a host, or of all hosts of a list
    #[command(
        after_help = "Examples:\n  sealift agent label store-0042 region=eu legacy-      (sets region, removes legacy)\n  sealift agent label -f hosts.csv      (CSV: a column `name`, one for each label; an empty cell removes it)"
    )]
    Label(LabelArgs),
    /// Let a pending host into service: it asked for a name that was taken
    #[command(
        after_help = "Examples:\n  sealift agent approve store-0042.3f1c9a2b\n  sealift agent approve 3f1c9a2b --name store-0042-b"
    )]
    Approve(ApproveArgs),
    /// Take a host out of service in peace: it is not missed any more, and its backups stay until then
    #[command(
        after_help = "Example:\n  sealift agent retire store-0042 --keep-until 2027-12-31 --reason 'store closed'"
    )]
    Retire(RetireArgs),
    /// Shut a host out for good: its certificate and its session end at once
    #[command(after_help = "Example:\n  sealift agent revoke store-0042 --reason 'stolen'")]
    Revoke(RevokeArgs),
}

/// `sealift agent list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only hosts with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    order: Order,
}

/// `sealift agent show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Name or id of the host
    agent: String,
}

/// `sealift agent label`
#[derive(Debug, Args)]
pub struct LabelArgs {
    /// Name or id of the host
    #[arg(required_unless_present = "file")]
    agent: Option<String>,
    /// KEY=VALUE sets a label, KEY- removes one
    #[arg(required_unless_present = "file", value_name = "KEY=VALUE|KEY-")]
    labels: Vec<String>,
    /// Label all hosts of this list
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with_all = ["agent", "labels"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    change: Change,
}

/// `sealift agent approve`
#[derive(Debug, Args)]
pub struct ApproveArgs {
    /// Name or id of the host, as `agent list` shows it
    agent: String,
    /// Another name than the one it asked for
    #[arg(long)]
    name: Option<Name>,
    #[command(flatten)]
    change: Change,
}

/// `sealift agent retire`
#[derive(Debug, Args)]
pub struct RetireArgs {
    /// Name or id of the host
    agent: String,
    /// Its backups stay until then
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    keep_until: UnixMillis,
    /// Why; goes into the audit
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    change: Change,
}

/// `sealift agent revoke`
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Name or id of the host
    agent: String,
    /// Why; goes into the audit
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    change: Change,
}

/// Checks a label selector's grammar and hands it on as text.
pub fn selector(text: &str) -> Result<String, String> {
    text.parse::<Selector>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[derive(Serialize)]
struct View {
    id: String,
    name: String,
    state: String,
    connected: bool,
    labels: BTreeMap<String, String>,
    scope: String,
    version: String,
    /// The newest version of the protocol that its build speaks.
    protocol: Option<String>,
    /// What its build can do …
    features: Vec<String>,
    /// … and what the coordinator can do, and it cannot.
    lacks: Vec<String>,
    /// current, behind or upgrade_required.
    build: Option<String>,
    upgrade_required: Option<String>,
    os: String,
    timezone: String,
    address: String,
    enrolled: Option<String>,
    last_seen: Option<String>,
    certificate_expires: Option<String>,
    signing_key: String,
    wanted_name: Option<String>,
    state_reason: Option<String>,
    keep_until: Option<String>,
    clock_skew_ms: i64,
    /// Of all its series.
    backups: u64,
    stored_bytes: u64,
    sources: Vec<SourceView>,
    #[serde(skip)]
    last_seen_ms: i64,
    #[serde(skip)]
    certificate_expires_ms: i64,
}

impl From<&v1::Agent> for View {
    fn from(agent: &v1::Agent) -> Self {
        Self {
            id: agent.id.clone(),
            name: agent.name.clone(),
            state: agent.state.clone(),
            connected: agent.connected,
            labels: agent.labels.clone().into_iter().collect(),
            scope: agent.scope.clone(),
            version: agent.version.clone(),
            protocol: (!agent.protocol.is_empty()).then(|| agent.protocol.clone()),
            features: agent.features.clone(),
            lacks: agent.lacks.clone(),
            build: (!agent.build.is_empty()).then(|| agent.build.clone()),
            upgrade_required: rfc3339(agent.upgrade_required_ms),
            os: agent.os.clone(),
            timezone: agent.timezone.clone(),
            address: agent.address.clone(),
            enrolled: rfc3339(agent.enrolled_ms),
            last_seen: rfc3339(agent.last_seen_ms),
            certificate_expires: rfc3339(agent.certificate_expires_ms),
            signing_key: hex::encode(&agent.signing_key),
            wanted_name: (!agent.wanted_name.is_empty()).then(|| agent.wanted_name.clone()),
            state_reason: (!agent.state_reason.is_empty()).then(|| agent.state_reason.clone()),
            keep_until: rfc3339(agent.keep_until_ms),
            clock_skew_ms: agent.clock_skew_ms,
            backups: agent.backups,
            stored_bytes: agent.stored_bytes,
            sources: agent.sources.iter().map(SourceView::from).collect(),
            last_seen_ms: agent.last_seen_ms,
            certificate_expires_ms: agent.certificate_expires_ms,
        }
    }
}

/// Runs `sealift agent …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::List(args) => list(app, args).await,
        Command::Show(args) => show(app, args).await,
        Command::Label(args) => label(app, args).await,
        Command::Approve(args) => approve(app, args).await,
        Command::Retire(args) => retire(app, args).await,
        Command::Revoke(args) => revoke(app, args).await,
    }
}

async fn list(app: &App, args: ListArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let selector = args.selector.unwrap_or_default();
    // The table only counts sources.
    let brief = app.ui.format == Format::Table;
    let agents = ordered_pages(&app.ui, args.limit, args.order, async |page| {
        let request = v1::ListAgentsRequest { page: Some(page), selector: selector.clone(), brief };
        let reply = coordinator.agents().list_agents(request).await.map_err(said("list hosts"))?.into_inner();
        Ok((reply.agents, reply.next))
    })
    .await?;
    let now = app.clock.now();
    let views: Vec<View> = agents.iter().map(View::from).collect();
    app.ui.list(
        &views,
        &["name", "state", "last seen", "sources", "backups", "stored", "version", "labels"],
        |view| {
            vec![
                view.name.clone(),
                view.state.clone(),
                if view.connected { "connected".to_owned() } else { relative(view.last_seen_ms, now) },
                view.sources.len().to_string(),
                view.backups.to_string(),
                ui::size(view.stored_bytes),
                view.version_line(),
                ui::labels(&view.labels),
            ]
        },
    )?;
    if views.is_empty() && selector.is_empty() {
        app.ui
            .note("no host has enrolled: `sealift token create` makes a token, and says what to do with it");
    }
    Ok(Exit::Done)
}

async fn show(app: &App, args: ShowArgs) -> Result<Exit> {
    let request = v1::GetAgentRequest { agent: args.agent };
    let agent =
        app.connect().await?.agents().get_agent(request).await.map_err(said("show the host"))?.into_inner();
    print(app, &agent)
}

fn print(app: &App, agent: &v1::Agent) -> Result<Exit> {
    let now = app.clock.now();
    app.ui.object(&View::from(agent), |view| lines(view, now))?;
    Ok(Exit::Done)
}

fn lines(view: &View, now: UnixMillis) -> Vec<(&'static str, String)> {
    let sources = view.sources.iter().map(|source| source.line(now)).collect::<Vec<_>>().join("\n");
    vec![
        ("Name", view.name.clone()),
        ("Id", view.id.clone()),
        ("State", view.state_line()),
        ("Clock", clock_line(view.clock_skew_ms)),
        ("Last seen", if view.connected { "connected".to_owned() } else { relative(view.last_seen_ms, now) }),
        ("Address", view.address.clone()),
        ("Labels", ui::labels(&view.labels)),
        ("Scope", view.scope.clone()),
        ("Version", view.version_line()),
        ("Protocol", view.protocol_line()),
        ("System", view.os.clone()),
        ("Time zone", view.timezone.clone()),
        ("Enrolled", view.enrolled.clone().unwrap_or_default()),
        ("Certificate ends", relative(view.certificate_expires_ms, now)),
        ("Signing key", view.signing_key.clone()),
        (
            "Stored",
            format!("{}, {}", ui::size(view.stored_bytes), ui::count(view.backups as usize, "backup")),
        ),
        ("Sources", sources),
    ]
}

impl View {
    /// Says so where the build is not as good as the coordinator's.
    fn version_line(&self) -> String {
        match self.build.as_deref() {
            None | Some("current") => self.version.clone(),
            Some(build) => format!("{} ({build})", self.version),
        }
    }

    fn protocol_line(&self) -> String {
        let Some(protocol) = &self.protocol else { return String::new() };
        let mut line = protocol.clone();
        if !self.features.is_empty() {
            line += &format!(": {}", self.features.join(", "));
        }
        if !self.lacks.is_empty() {
            line += &format!("\nlacks {}: upgrade the agent", self.lacks.join(", "));
        }
        if let Some(since) = &self.upgrade_required {
            line +=
                &format!("\ntoo old for this coordinator: not served since {since}, until it is upgraded");
        }
        line
    }

    fn state_line(&self) -> String {
        let more = match (&self.wanted_name, &self.keep_until, &self.state_reason) {
            (Some(wanted), ..) => {
                format!(": asked for the name {wanted}, which is taken; see sealift agent approve")
            }
            (_, Some(until), reason) => {
                format!(
                    ", backups stay until {until}{}",
                    reason.as_ref().map_or_else(String::new, |r| format!(" ({r})"))
                )
            }
            (_, _, Some(reason)) => format!(" ({reason})"),
            _ => String::new(),
        };
        format!("{}{more}", self.state)
    }
}

/// Something only where the host's clock is wrong.
fn clock_line(skew_ms: i64) -> String {
    let apart = Duration::from_millis(skew_ms.unsigned_abs());
    if apart <= CLOCK_TOLERANCE {
        return String::new();
    }
    let way = if skew_ms > 0 { "ahead of" } else { "behind" };
    format!("{} {way} the coordinator's: set it, and let NTP keep it", rough(apart))
}

async fn label(app: &App, args: LabelArgs) -> Result<Exit> {
    if let Some(path) = &args.file {
        return label_list(app, path, args.change).await;
    }
    let agent = args.agent.unwrap_or_default();
    let (set, remove) = split_labels(&args.labels)?;
    if args.change.dry_run {
        let set = ui::labels(&set.into_iter().collect::<BTreeMap<_, _>>());
        app.ui.note(format!("would label {agent}: set {set:?}, remove {:?}", remove.join(",")));
        return Ok(Exit::Done);
    }
    let request = v1::LabelAgentRequest { agent, set: set.into_iter().collect(), remove };
    let agent = app
        .connect()
        .await?
        .agents()
        .label_agent(request)
        .await
        .map_err(said("label the host"))?
        .into_inner();
    match app.ui.format {
        Format::Json => print(app, &agent),
        Format::Table => {
            let labels: BTreeMap<_, _> = agent.labels.into_iter().collect();
            app.ui.note(format!("{} now has the labels {}", agent.name, ui::labels(&labels)));
            Ok(Exit::Done)
        }
    }
}

async fn label_list(app: &App, path: &Path, change: Change) -> Result<Exit> {
    let list = hosts::read(path)?;
    if change.dry_run {
        for host in &list {
            let set = ui::labels(&host.labels);
            app.ui.note(format!("would label {}: set {set:?}, remove {:?}", host.name, host.empty.join(",")));
        }
        return Ok(Exit::Done);
    }
    let host = |host: hosts::HostLine| v1::LabelAgentRequest {
        agent: host.name.into(),
        set: host.labels.into_iter().collect(),
        remove: host.empty,
    };
    let request = v1::LabelAgentsRequest { hosts: list.into_iter().map(host).collect() };
    let reply = app.connect().await?.hosts().label_agents(request).await.map_err(said("label the hosts"))?;
    let reply = reply.into_inner();
    if app.ui.format == Format::Json {
        app.ui.json(&serde_json::json!({ "changed": reply.changed, "unchanged": reply.unchanged }))?;
    }
    let (changed, unchanged) = (reply.changed as usize, reply.unchanged);
    app.ui.note(format!("{} labelled, {unchanged} had these labels before", ui::count(changed, "host")));
    Ok(Exit::Done)
}

async fn approve(app: &App, args: ApproveArgs) -> Result<Exit> {
    if args.change.dry_run {
        let name = args.name.map_or_else(|| "the name it asked for".to_owned(), String::from);
        app.ui.note(format!("would let {} into service under {name}", args.agent));
        return Ok(Exit::Done);
    }
    let name = args.name.map(String::from).unwrap_or_default();
    let request = v1::ApproveAgentRequest { agent: args.agent, name };
    let agent =
        app.connect().await?.hosts().approve_agent(request).await.map_err(said("approve the host"))?;
    let agent = agent.into_inner();
    if app.ui.format == Format::Json {
        return print(app, &agent);
    }
    app.ui.note(format!("{} is in service", agent.name));
    Ok(Exit::Done)
}

async fn retire(app: &App, args: RetireArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let request = v1::GetAgentRequest { agent: args.agent };
    let agent = coordinator.agents().get_agent(request).await.map_err(said("retire the host"))?.into_inner();
    let until = rfc3339(args.keep_until.0).unwrap_or_default();
    let what =
        format!("{} ({}) will be taken out of service; its backups stay until {until}", agent.name, agent.id);
    if args.change.dry_run {
        app.ui.note(what);
        return Ok(Exit::Done);
    }
    app.ui.confirm_loss(args.change, &what, &agent.name)?;
    let request =
        v1::RetireAgentRequest { agent: agent.id, keep_until_ms: args.keep_until.0, reason: args.reason };
    let agent =
        coordinator.hosts().retire_agent(request).await.map_err(said("retire the host"))?.into_inner();
    if app.ui.format == Format::Json {
        return print(app, &agent);
    }
    app.ui.note(format!("{} is retired", agent.name));
    Ok(Exit::Done)
}

type LabelChanges = (Vec<(String, String)>, Vec<String>);

fn split_labels(labels: &[String]) -> Result<LabelChanges> {
    let (mut set, mut remove) = (Vec::new(), Vec::new());
    for text in labels {
        match text.strip_suffix('-').filter(|_| !text.contains('=')) {
            Some(key) => remove.push(key.parse::<Name>().map_err(Error::usage)?.into()),
            None => set.push(parse_label(text).map_err(Error::usage)?),
        }
    }
    Ok((set, remove))
}

async fn revoke(app: &App, args: RevokeArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let request = v1::GetAgentRequest { agent: args.agent };
    let agent = coordinator.agents().get_agent(request).await.map_err(said("revoke the host"))?.into_inner();
    let what = format!("{} ({}) will be shut out for good; its backups stay", agent.name, agent.id);
    if args.change.dry_run {
        app.ui.note(what);
        return Ok(Exit::Done);
    }
    app.ui.confirm_loss(args.change, &what, &agent.name)?;
    let request = v1::RevokeAgentRequest { agent: agent.id, reason: args.reason };
    let agent =
        coordinator.agents().revoke_agent(request).await.map_err(said("revoke the host"))?.into_inner();
    if app.ui.format == Format::Json {
        return print(app, &agent);
    }
    app.ui.note(format!("{} is revoked", agent.name));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        let given = ["region=eu", "legacy-", "path=a-"].map(str::to_owned);
        let (set, remove) = split_labels(&given).unwrap();
        assert_eq!(set, [("region".to_owned(), "eu".to_owned()), ("path".to_owned(), "a-".to_owned())]);
        assert_eq!(remove, ["legacy"]);
        assert_eq!(split_labels(&["nonsense".to_owned()]).unwrap_err().exit(), Exit::Usage);
    }
}
