//! `sealift retention plan`.

use clap::{Args, Subcommand};
use sealift_proto::v1;
use serde::Serialize;

use crate::agent::selector;
use crate::app::App;
use crate::coordinator::{Limit, pages};
use crate::error::{Exit, Result, said};
use crate::time::{relative, rfc3339};
use crate::ui;

/// `sealift retention …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say of each backup whether it stays, and why
    #[command(
        after_help = "Examples:\n  sealift retention plan\n  sealift retention plan store-0042/main-db\n  sealift retention plan -l role=pos --output json"
    )]
    Plan(PlanArgs),
}

/// `sealift retention plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Only backups of this host, or of this one source
    #[arg(value_name = "AGENT[/SOURCE]", default_value = "", hide_default_value = true)]
    source: String,
    /// Only hosts with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    /// Only those that would go
    #[arg(long)]
    expiring: bool,
}

/// What becomes of a backup, as JSON shows it.
#[derive(Serialize)]
struct FateView {
    backup: String,
    agent: String,
    source: String,
    received: Option<String>,
    status: String,
    keep: bool,
    why: Vec<String>,
    rules: Option<String>,
    halted: Option<String>,
    #[serde(skip)]
    received_ms: i64,
}

fn views(source: v1::SourceRetention) -> Vec<FateView> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (rules, halted) = (some(&source.rules), some(&source.halted));
    let view = |fate: v1::BackupFate| {
        let backup = fate.backup.unwrap_or_default();
        FateView {
            backup: backup.id,
            agent: source.agent.clone(),
            source: source.source.clone(),
            received: rfc3339(backup.committed_ms),
            status: backup.status,
            keep: fate.keep,
            why: fate.why,
            rules: rules.clone(),
            halted: halted.clone(),
            received_ms: backup.committed_ms,
        }
    };
    source.backups.into_iter().map(view).collect()
}

/// Runs `sealift retention …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    let Command::Plan(args) = command;
    let coordinator = app.connect().await?;
    let sources = pages(&app.ui, Limit::all(), async |page| {
        let request = v1::PlanRetentionRequest {
            page: Some(page),
            source: args.source.clone(),
            selector: args.selector.clone().unwrap_or_default(),
        };
        let reply = coordinator.retention().plan_retention(request).await;
        let reply = reply.map_err(said("plan retention"))?.into_inner();
        Ok((reply.sources, reply.next))
    })
    .await?;
    for source in sources.iter().filter(|source| !source.halted.is_empty()) {
        app.ui.warn(format!("nothing is deleted of {}/{}: {}", source.agent, source.source, source.halted));
    }
    let mut fates: Vec<FateView> = sources.into_iter().flat_map(views).collect();
    fates.retain(|fate| !args.expiring || !fate.keep);
    let now = app.clock.now();
    app.ui.list(&fates, &["backup", "source", "received", "status", "fate", "why"], |fate| {
        vec![
            fate.backup.clone(),
            format!("{}/{}", fate.agent, fate.source),
            relative(fate.received_ms, now),
            fate.status.clone(),
            if fate.keep { "stays" } else { "goes" }.to_owned(),
            fate.why.join(", "),
        ]
    })?;
    let going = fates.iter().filter(|fate| !fate.keep).count();
    app.ui.note(format!("{} of {} would go", going, ui::count(fates.len(), "backup")));
    Ok(Exit::Done)
}
