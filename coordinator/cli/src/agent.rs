//! `sealift agent list|show|label|revoke`: the hosts of the fleet.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use sealift_common::clock::UnixMillis;
use sealift_common::name::{Name, parse_label};
use sealift_common::selector::Selector;
use sealift_proto::v1;
use serde::Serialize;

use crate::app::App;
use crate::coordinator::{Limit, pages};
use crate::error::{Error, Exit, Result, said};
use crate::source::SourceView;
use crate::time::{relative, rfc3339};
use crate::ui::{self, Change};

/// `sealift agent …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List hosts
    #[command(
        after_help = "Examples:\n  sealift agent list\n  sealift agent list -l 'role=pos,region in (eu,uk)' --output json"
    )]
    List(ListArgs),
    /// Show one host and its sources
    #[command(after_help = "Example:\n  sealift agent show store-0042")]
    Show(ShowArgs),
    /// Set and remove labels of a host
    #[command(
        after_help = "Example:\n  sealift agent label store-0042 region=eu legacy-      (sets region, removes legacy)"
    )]
    Label(LabelArgs),
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
    agent: String,
    /// KEY=VALUE sets a label, KEY- removes one
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    labels: Vec<String>,
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
    os: String,
    timezone: String,
    address: String,
    enrolled: Option<String>,
    last_seen: Option<String>,
    certificate_expires: Option<String>,
    signing_key: String,
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
            os: agent.os.clone(),
            timezone: agent.timezone.clone(),
            address: agent.address.clone(),
            enrolled: rfc3339(agent.enrolled_ms),
            last_seen: rfc3339(agent.last_seen_ms),
            certificate_expires: rfc3339(agent.certificate_expires_ms),
            signing_key: hex::encode(&agent.signing_key),
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
        Command::Revoke(args) => revoke(app, args).await,
    }
}

async fn list(app: &App, args: ListArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let selector = args.selector.unwrap_or_default();
    let agents = pages(&app.ui, args.limit, async |page| {
        let request = v1::ListAgentsRequest { page: Some(page), selector: selector.clone() };
        let reply = coordinator.agents().list_agents(request).await.map_err(said("list hosts"))?.into_inner();
        Ok((reply.agents, reply.next))
    })
    .await?;
    let now = app.clock.now();
    let views: Vec<View> = agents.iter().map(View::from).collect();
    app.ui.list(&views, &["name", "state", "last seen", "sources", "version", "labels"], |view| {
        vec![
            view.name.clone(),
            view.state.clone(),
            if view.connected { "connected".to_owned() } else { relative(view.last_seen_ms, now) },
            view.sources.len().to_string(),
            view.version.clone(),
            ui::labels(&view.labels),
        ]
    })?;
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
        ("State", view.state.clone()),
        ("Last seen", if view.connected { "connected".to_owned() } else { relative(view.last_seen_ms, now) }),
        ("Address", view.address.clone()),
        ("Labels", ui::labels(&view.labels)),
        ("Scope", view.scope.clone()),
        ("Version", view.version.clone()),
        ("System", view.os.clone()),
        ("Time zone", view.timezone.clone()),
        ("Enrolled", view.enrolled.clone().unwrap_or_default()),
        ("Certificate ends", relative(view.certificate_expires_ms, now)),
        ("Signing key", view.signing_key.clone()),
        ("Sources", sources),
    ]
}

async fn label(app: &App, args: LabelArgs) -> Result<Exit> {
    let (set, remove) = split_labels(&args.labels)?;
    if args.change.dry_run {
        let set = ui::labels(&set.into_iter().collect::<BTreeMap<_, _>>());
        app.ui.note(format!("would label {}: set {set:?}, remove {:?}", args.agent, remove.join(",")));
        return Ok(Exit::Done);
    }
    let request = v1::LabelAgentRequest { agent: args.agent, set: set.into_iter().collect(), remove };
    let agent = app
        .connect()
        .await?
        .agents()
        .label_agent(request)
        .await
        .map_err(said("label the host"))?
        .into_inner();
    match app.ui.format {
        ui::Format::Json => print(app, &agent),
        ui::Format::Table => {
            let labels: BTreeMap<_, _> = agent.labels.into_iter().collect();
            app.ui.note(format!("{} now has the labels {}", agent.name, ui::labels(&labels)));
            Ok(Exit::Done)
        }
    }
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
    if app.ui.format == ui::Format::Json {
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
