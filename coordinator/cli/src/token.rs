//! `sealift token create|list|revoke`: what lets a host enrol.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use sealift_common::name::{Name, parse_label};
use sealift_proto::v1;
use serde::Serialize;

use crate::app::App;
use crate::coordinator::{Limit, pages};
use crate::error::{Exit, Result, said};
use crate::time::{parse_duration, relative, rfc3339};
use crate::ui::{self, Change};
use crate::{hosts, trust};

/// `sealift token …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token that lets hosts enrol; it is shown once
    #[command(
        after_help = "Examples:\n  sealift token create --label role=pos --label store=0042\n  sealift token create --name store-0042 --ttl 30m\n  sealift token create --uses 50 --ttl 24h --label region=eu\n  sealift token create --from hosts.csv --ttl 7d > tokens.csv      (one token for each host; columns: name, and a label each)\n  sealift token create --replaces store-0042      (new disk, same host)"
    )]
    Create(Box<CreateArgs>),
    /// List tokens
    #[command(after_help = "Example:\n  sealift token list")]
    List(Limit),
    /// Make a token useless from now on
    #[command(after_help = "Example:\n  sealift token revoke 7f3a9c")]
    Revoke(RevokeArgs),
}

/// `sealift token create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// One token for each host of this list (CSV: a column `name`, one for each label, perhaps `scope`); each is good for its
    /// own name and labels only
    #[arg(long, value_name = "FILE", conflicts_with_all = ["uses", "scope", "name", "replaces"])]
    from: Option<PathBuf>,
    /// For the new host of this agent: name, labels and series stay, the old host's keys are shut out
    #[arg(long, value_name = "AGENT", conflicts_with_all = ["uses", "scope", "name", "labels"])]
    replaces: Option<String>,
    /// A label that hosts enrolled with it carry; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// How long it can be used
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    /// How many hosts can enrol with it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    uses: u32,
    /// Which rule of the trust policy the hosts' backups are sealed by
    #[arg(long, default_value = "", hide_default_value = true)]
    scope: String,
    /// The host's name in the fleet; without it the host says its own
    #[arg(long)]
    name: Option<Name>,
    /// With --replaces: root key to vouch with for what the old host has signed; without it the one that the context names
    #[arg(long = "root-key", value_name = "FILE", requires = "replaces")]
    root_keys: Vec<PathBuf>,
    /// File whose first line is the passphrase of the root key; without it the terminal is asked
    #[arg(long, value_name = "FILE", requires = "replaces")]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    change: Change,
}

/// `sealift token revoke`
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Id of the token
    id: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Serialize)]
struct View {
    id: String,
    name: Option<String>,
    labels: BTreeMap<String, String>,
    scope: String,
    created: Option<String>,
    expires: Option<String>,
    uses: u32,
    used: u32,
    revoked: bool,
    created_by: String,
    replaces: Option<String>,
    #[serde(skip)]
    expires_ms: i64,
}

impl From<&v1::Token> for View {
    fn from(token: &v1::Token) -> Self {
        Self {
            id: token.id.clone(),
            name: (!token.name.is_empty()).then(|| token.name.clone()),
            labels: token.labels.clone().into_iter().collect(),
            scope: token.scope.clone(),
            created: rfc3339(token.created_ms),
            expires: rfc3339(token.expires_ms),
            uses: token.uses,
            used: token.used,
            revoked: token.revoked,
            created_by: token.created_by.clone(),
            replaces: (!token.replaces.is_empty()).then(|| token.replaces.clone()),
            expires_ms: token.expires_ms,
        }
    }
}

#[derive(Serialize)]
struct Created {
    token: String,
    id: String,
    expires: Option<String>,
    uses: u32,
    ca_sha256: String,
    root_key_sha256: Vec<String>,
    coordinators: Vec<String>,
    enroll: String,
}

/// Runs `sealift token …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Create(args) => create(app, *args).await,
        Command::List(limit) => list(app, limit).await,
        Command::Revoke(args) => revoke(app, args).await,
    }
}

async fn create(app: &App, args: CreateArgs) -> Result<Exit> {
    if let Some(path) = &args.from {
        return create_for_list(app, &args, path).await;
    }
    if let Some(agent) = &args.replaces {
        let request = v1::GetAgentRequest { agent: agent.clone() };
        let agent = app.connect().await?.agents().get_agent(request).await.map_err(said("find the host"))?;
        let agent = agent.into_inner();
        let what = format!(
            "the host that enrols with this token becomes {} ({}); the keys of the present one are shut out then",
            agent.name, agent.id
        );
        app.ui.note(&what);
        if args.change.dry_run {
            return Ok(Exit::Done);
        }
        app.ui.confirm_loss(args.change, &what, &agent.name)?;
        // Two keys of one agent believe neither: what the old host signed is vouched for before there is a second one.
        let root = trust::RootArgs {
            root_keys: args.root_keys.clone(),
            passphrase_file: args.passphrase_file.clone(),
        };
        let coordinator = app.connect().await?;
        if !agent.signing_key.is_empty() {
            trust::vouch(app, &coordinator, std::slice::from_ref(&agent), &root, None).await?;
        }
        app.ui.note(format!("once it has enrolled: sealift trust attest {}", agent.name));
    } else if args.change.dry_run {
        app.ui.note(format!(
            "would make a token for {} within {}, labels {}",
            ui::count(args.uses as usize, "host"),
            crate::time::rough(args.ttl),
            ui::labels(args.labels.iter().map(|(k, v)| (k, v)))
        ));
        return Ok(Exit::Done);
    }
    let request = v1::CreateTokenRequest {
        labels: args.labels.into_iter().collect(),
        ttl_ms: u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX),
        uses: args.uses,
        scope: args.scope,
        name: args.name.map(String::from).unwrap_or_default(),
        replaces: args.replaces.clone().unwrap_or_default(),
    };
    let reply = app
        .connect()
        .await?
        .tokens()
        .create_token(request)
        .await
        .map_err(said("create a token"))?
        .into_inner();
    let info = reply.info.unwrap_or_default();
    let ca_sha256 = hex::encode(&reply.ca_sha256);
    let root_key_sha256: Vec<String> = reply.root_sha256.iter().map(hex::encode).collect();
    let created = Created {
        enroll: enroll_line(&reply.coordinators, &ca_sha256, &root_key_sha256),
        token: reply.token,
        id: info.id,
        expires: rfc3339(info.expires_ms),
        uses: info.uses,
        ca_sha256,
        root_key_sha256,
        coordinators: reply.coordinators,
    };
    match app.ui.format {
        ui::Format::Json => app.ui.json(&created)?,
        ui::Format::Table => {
            let until = relative(info.expires_ms, app.clock.now());
            app.ui.note(format!(
                "this token is shown once; it ends {until}, for {}",
                ui::count(info.uses as usize, "host")
            ));
            ui::print(&format!("{}\n", created.token))?;
            app.ui.note(format!(
                "\non the host, put the token into a file that only root can read, then:\n\n  {}\n",
                created.enroll
            ));
        }
    }
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct CreatedList {
    expires: Option<String>,
    ca_sha256: String,
    root_key_sha256: Vec<String>,
    coordinators: Vec<String>,
    enroll: String,
    tokens: Vec<CreatedOne>,
}

#[derive(Serialize)]
struct CreatedOne {
    name: String,
    token: String,
    id: String,
}

async fn create_for_list(app: &App, args: &CreateArgs, path: &Path) -> Result<Exit> {
    let list = hosts::read(path)?;
    if args.change.dry_run {
        for host in &list {
            app.ui.note(format!("would make a token for {}, labels {}", host.name, ui::labels(&host.labels)));
        }
        return Ok(Exit::Done);
    }
    let host = |host: hosts::HostLine| {
        let mut labels: BTreeMap<String, String> = args.labels.iter().cloned().collect();
        labels.extend(host.labels);
        v1::HostToken { name: host.name.into(), labels: labels.into_iter().collect(), scope: host.scope }
    };
    let request = v1::CreateTokensRequest {
        hosts: list.into_iter().map(host).collect(),
        ttl_ms: u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX),
    };
    let reply = app.connect().await?.hosts().create_tokens(request).await.map_err(said("create tokens"))?;
    let reply = reply.into_inner();
    let ca_sha256 = hex::encode(&reply.ca_sha256);
    let root_key_sha256: Vec<String> = reply.root_sha256.iter().map(hex::encode).collect();
    let one = |made: v1::CreatedToken| CreatedOne { name: made.name, token: made.token, id: made.id };
    let created = CreatedList {
        enroll: enroll_line(&reply.coordinators, &ca_sha256, &root_key_sha256),
        expires: rfc3339(reply.expires_ms),
        ca_sha256,
        root_key_sha256,
        coordinators: reply.coordinators,
        tokens: reply.tokens.into_iter().map(one).collect(),
    };
    match app.ui.format {
        ui::Format::Json => app.ui.json(&created)?,
        ui::Format::Table => {
            let rows = created.tokens.iter().map(|made| vec![made.name.as_str(), made.token.as_str()]);
            ui::print(&hosts::to_csv(&["name", "token"], rows))?;
            app.ui.note(format!(
                "{} are shown once; they end {}. Put each into a file that only root can read on its host, then there:\n\n  {}\n",
                ui::count(created.tokens.len(), "token"),
                relative(reply.expires_ms, app.clock.now()),
                created.enroll
            ));
        }
    }
    Ok(Exit::Done)
}

/// The line to paste on the host. The token is not in it: command lines show in process lists.
fn enroll_line(coordinators: &[String], ca_sha256: &str, roots: &[String]) -> String {
    let mut line = "sealift-agent enroll".to_owned();
    for url in coordinators {
        line.push_str(&format!(" --coordinator {url}"));
    }
    line.push_str(&format!(" --token-file token.txt --ca-sha256 {ca_sha256}"));
    for root in roots {
        line.push_str(&format!(" --root-key-sha256 {root}"));
    }
    line.push_str(" --state-dir /var/lib/sealift-agent");
    line
}

async fn list(app: &App, limit: Limit) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let tokens = pages(&app.ui, limit, async |page| {
        let request = v1::ListTokensRequest { page: Some(page) };
        let reply =
            coordinator.tokens().list_tokens(request).await.map_err(said("list tokens"))?.into_inner();
        Ok((reply.tokens, reply.next))
    })
    .await?;
    let now = app.clock.now();
    let views: Vec<View> = tokens.iter().map(View::from).collect();
    app.ui.list(&views, &["id", "state", "used", "expires", "name", "labels", "by"], |view| {
        let state = match view {
            _ if view.revoked => "revoked",
            _ if view.expires_ms <= now.0 => "expired",
            _ if view.used >= view.uses => "used up",
            _ => "good",
        };
        vec![
            view.id.clone(),
            state.to_owned(),
            format!("{}/{}", view.used, view.uses),
            relative(view.expires_ms, now),
            view.name.clone().unwrap_or_default(),
            ui::labels(&view.labels),
            view.created_by.clone(),
        ]
    })?;
    Ok(Exit::Done)
}

async fn revoke(app: &App, args: RevokeArgs) -> Result<Exit> {
    if args.change.dry_run {
        app.ui.note(format!("would revoke the token {}", args.id));
        return Ok(Exit::Done);
    }
    app.ui.confirm(args.change, &format!("revoke the token {}?", args.id))?;
    let request = v1::RevokeTokenRequest { id: args.id };
    let reply = app
        .connect()
        .await?
        .tokens()
        .revoke_token(request)
        .await
        .map_err(said("revoke the token"))?
        .into_inner();
    let token = reply.token.unwrap_or_default();
    if app.ui.format == ui::Format::Json {
        app.ui.json(&View::from(&token))?;
    }
    app.ui.note(format!("the token {} can no longer be used", token.id));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_paste_has_every_pin_and_no_token() {
        let line = enroll_line(
            &["https://a:7443".to_owned(), "https://b:7443".to_owned()],
            "cafe",
            &["r1".to_owned(), "r2".to_owned()],
        );
        assert_eq!(
            line,
            "sealift-agent enroll --coordinator https://a:7443 --coordinator https://b:7443 --token-file token.txt \
             --ca-sha256 cafe --root-key-sha256 r1 --root-key-sha256 r2 --state-dir /var/lib/sealift-agent"
        );
    }
}
