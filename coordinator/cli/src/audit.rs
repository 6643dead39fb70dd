//! `sealift audit list`: who did what.

use clap::{Args, Subcommand};
use sealift_proto::v1;
use serde::Serialize;

use crate::app::App;
use crate::coordinator::{Limit, pages};
use crate::error::{Exit, Result, said};
use crate::time::{Since, parse_since, relative, rfc3339};

/// `sealift audit …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List audit events, in the order in which they happened
    #[command(
        after_help = "Examples:\n  sealift audit list --since 24h\n  sealift audit list --actor admin --action backup.restore --output json"
    )]
    List(ListArgs),
}

/// `sealift audit list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only events since then: a duration (24h, 7d) or a time
    #[arg(long, value_parser = parse_since)]
    since: Option<Since>,
    /// Only what this admin or host did
    #[arg(long, default_value = "", hide_default_value = true)]
    actor: String,
    /// Only this action
    #[arg(long, default_value = "", hide_default_value = true)]
    action: String,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Serialize)]
struct View {
    id: String,
    time: Option<String>,
    actor: String,
    source_address: String,
    request_id: String,
    action: String,
    entity: String,
    outcome: String,
    details: serde_json::Value,
    #[serde(skip)]
    time_ms: i64,
}

impl From<v1::AuditEvent> for View {
    fn from(event: v1::AuditEvent) -> Self {
        let details = serde_json::from_str(&event.details_json)
            .unwrap_or_else(|_| serde_json::Value::String(event.details_json.clone()));
        Self {
            id: event.id,
            time: rfc3339(event.time_ms),
            actor: event.actor,
            source_address: event.source_address,
            request_id: event.request_id,
            action: event.action,
            entity: event.entity,
            outcome: event.outcome,
            details: if event.details_json.is_empty() { serde_json::Value::Null } else { details },
            time_ms: event.time_ms,
        }
    }
}

/// Runs `sealift audit …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    let Command::List(args) = command;
    let coordinator = app.connect().await?;
    let now = app.clock.now();
    let events = pages(&app.ui, args.limit, async |page| {
        let request = v1::ListAuditRequest {
            page: Some(page),
            since_ms: args.since.map(|since| since.from(now)).unwrap_or_default(),
            actor: args.actor.clone(),
            action: args.action.clone(),
        };
        let reply =
            coordinator.fleet().list_audit(request).await.map_err(said("list the audit"))?.into_inner();
        Ok((reply.events, reply.next))
    })
    .await?;
    let views: Vec<View> = events.into_iter().map(View::from).collect();
    app.ui.list(&views, &["time", "actor", "action", "entity", "outcome", "details"], |view| {
        let details = if view.details.is_null() { String::new() } else { view.details.to_string() };
        vec![
            relative(view.time_ms, now),
            view.actor.clone(),
            view.action.clone(),
            view.entity.clone(),
            view.outcome.clone(),
            details.chars().take(100).collect(),
        ]
    })?;
    Ok(Exit::Done)
}
