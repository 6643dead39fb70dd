//! `sealift pause` and `sealift resume`: schedules of some or all hosts start nothing for a while.

use clap::Args;
use sealift_proto::v1;
use serde::Serialize;

use crate::agent::selector;
use crate::app::App;
use crate::error::{Error, Exit, Result, said};
use crate::time::{parse_duration, parse_moment, relative, rfc3339};
use crate::ui::Change;

/// `sealift pause`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sealift pause -l region=eu --until 2026-12-27T06:00:00Z --reason 'Christmas'\n  sealift pause --until 4h\n  sealift pause --list"
)]
pub struct PauseArgs {
    /// Only hosts with these labels; without it, all hosts
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    /// Until then: a time, or a duration from now; without it, until `sealift resume`
    #[arg(long, value_name = "T")]
    until: Option<String>,
    /// Why; shown in the status and kept in the audit
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Only list what is paused
    #[arg(long, conflicts_with_all = ["until", "reason", "selector"])]
    list: bool,
    #[command(flatten)]
    change: Change,
}

/// `sealift resume`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sealift resume -l region=eu\n  sealift resume      (ends all pauses)")]
pub struct ResumeArgs {
    /// Only the pause of exactly these labels; without it, all pauses
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    #[command(flatten)]
    change: Change,
}

/// A pause, as JSON shows it.
#[derive(Serialize)]
struct View {
    id: String,
    selector: String,
    reason: String,
    created: Option<String>,
    created_by: String,
    until: Option<String>,
    ended: Option<String>,
    #[serde(skip)]
    until_ms: i64,
}

impl From<v1::Pause> for View {
    fn from(pause: v1::Pause) -> Self {
        Self {
            id: pause.id,
            selector: pause.selector,
            reason: pause.reason,
            created: rfc3339(pause.created_ms),
            created_by: pause.created_by,
            until: rfc3339(pause.until_ms),
            ended: rfc3339(pause.ended_ms),
            until_ms: pause.until_ms,
        }
    }
}

fn list(app: &App, pauses: Vec<v1::Pause>) -> Result<Exit> {
    let now = app.clock.now();
    let views: Vec<View> = pauses.into_iter().map(View::from).collect();
    app.ui.list(&views, &["hosts", "until", "by", "reason"], |view| {
        let hosts = if view.selector.is_empty() { "all" } else { &view.selector };
        let until = if view.until_ms == 0 { "resumed".to_owned() } else { relative(view.until_ms, now) };
        vec![hosts.to_owned(), until, view.created_by.clone(), view.reason.clone()]
    })?;
    Ok(Exit::Done)
}

/// Runs `sealift pause`.
pub async fn pause(app: &App, args: PauseArgs) -> Result<Exit> {
    let until_ms = match &args.until {
        None => 0,
        Some(text) => match parse_duration(text) {
            Ok(span) => app.clock.now().plus(span).0,
            Err(_) => {
                parse_moment(text)
                    .map_err(|_| {
                        Error::usage(format!(
                            "{text:?} is neither a duration (4h) nor a time (2026-12-27T06:00:00Z)"
                        ))
                    })?
                    .0
            }
        },
    };
    if args.change.dry_run {
        let hosts = args.selector.as_deref().unwrap_or("all hosts");
        app.ui.note(format!("would pause the schedules of {hosts}"));
        return Ok(Exit::Done);
    }
    let coordinator = app.connect().await?;
    if args.list {
        let reply = coordinator.policies().list_pauses(v1::ListPausesRequest {}).await;
        return list(app, reply.map_err(said("list the pauses"))?.into_inner().pauses);
    }
    let request = v1::PauseSchedulesRequest {
        selector: args.selector.unwrap_or_default(),
        until_ms,
        reason: args.reason,
    };
    let reply = coordinator.policies().pause_schedules(request).await;
    let view = View::from(reply.map_err(said("pause the schedules"))?.into_inner());
    let now = app.clock.now();
    app.ui.object(&view, |view| {
        let until =
            if view.until_ms == 0 { "until resumed".to_owned() } else { relative(view.until_ms, now) };
        vec![
            ("Paused", if view.selector.is_empty() { "all hosts".to_owned() } else { view.selector.clone() }),
            ("Until", until),
            ("Reason", view.reason.clone()),
        ]
    })?;
    Ok(Exit::Done)
}

/// Runs `sealift resume`.
pub async fn resume(app: &App, args: ResumeArgs) -> Result<Exit> {
    if args.change.dry_run {
        app.ui.note(format!(
            "would end {}",
            args.selector.as_deref().map_or("all pauses".to_owned(), |s| format!("the pause of {s}"))
        ));
        return Ok(Exit::Done);
    }
    let request = v1::ResumeSchedulesRequest {
        has_selector: args.selector.is_some(),
        selector: args.selector.unwrap_or_default(),
    };
    let reply = app.connect().await?.policies().resume_schedules(request).await;
    list(app, reply.map_err(said("resume the schedules"))?.into_inner().pauses)
}
