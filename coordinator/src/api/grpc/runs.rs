//! Runs, for admins.

use std::collections::BTreeSet;
use std::pin::Pin;

use futures::Stream;
use sealift_common::clock::UnixMillis;
use sealift_common::telemetry;
use sealift_proto::v1;
use sealift_proto::v1::run_admin_server::RunAdmin;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::agents::targeted;
use super::convert::Target;
use super::{Gate, convert};
use crate::audit::{Action, OpContext};
use crate::core::Core;
use crate::runs::state::RunState;
use crate::runs::{RunView, Runs};
use crate::store::lists::history::Of;
use crate::store::lists::runs::RunList;
use crate::store::runs::RunRow;
use crate::store::{Tx, agents, lists, sources};

/// Most runs that one request starts.
const MAX_STARTED: usize = 10_000;
/// Changes that wait for the network.
const QUEUE: usize = 16;

/// Runs.
#[derive(Debug, Clone)]
pub struct RunApi {
    /// Who calls.
    pub gate: Gate,
    /// The database.
    pub core: Core,
    /// What does the work.
    pub runs: Runs,
    /// Ends those who watch when the coordinator stops.
    pub stop: CancellationToken,
}

impl RunApi {
    async fn to_wire(&self, view: RunView) -> Result<v1::Run, Status> {
        let agent = agents::get(&mut *self.core.store.reader().await?, view.run.agent).await?;
        Ok(convert::run_to_wire(view, &agent.map(|a| a.name.to_string()).unwrap_or_default()))
    }

    async fn sources(&self, source: &str, selector: &str) -> Result<Vec<sources::SourceRow>, Status> {
        let target = convert::target(source, selector)?;
        if source.is_empty() && selector.is_empty() {
            return Err(convert::bad_field(
                "source",
                "name AGENT/SOURCE, or select agents by their labels (-l)",
            ));
        }
        let mut conn = self.core.store.reader().await?;
        let mut out = Vec::new();
        for agent in targeted(&mut conn, &target, "", u32::MAX).await? {
            if agent.state != agents::AgentState::Active {
                if target.agent.is_some() {
                    return Err(Status::failed_precondition(format!(
                        "agent {} is {}",
                        agent.name, agent.state
                    )));
                }
                continue;
            }
            match &target.source {
                Some(name) => {
                    let found =
                        sources::get(&mut conn, agent.id, name).await?.filter(|source| source.present);
                    let missing = || Status::not_found(format!("{} has no source {name}", agent.name));
                    out.push(found.ok_or_else(missing)?);
                }
                None => out
                    .extend(sources::of_agent(&mut conn, agent.id).await?.into_iter().filter(|s| s.present)),
            }
        }
        if out.is_empty() {
            return Err(Status::not_found("no source is selected: see `sealift source list`"));
        }
        if out.len() > MAX_STARTED {
            return Err(convert::bad_field("selector", format!("selects more than {MAX_STARTED} sources")));
        }
        Ok(out)
    }
}

/// What a list of runs is narrowed to; `None` where nothing can be in it.
async fn listed_of(tx: &mut Tx, target: &Target) -> Result<Option<Of>, Status> {
    let Some(agent) = &target.agent else { return Ok(Some(Of::Labels(target.selector.clone()))) };
    let agent = crate::identity::agents::find(tx, agent).await?;
    if !target.selector.matches(&agent.labels) {
        return Ok(None);
    }
    let Some(name) = &target.source else { return Ok(Some(Of::Agent(agent.id))) };
    let found = sources::get(tx, agent.id, name).await?;
    let missing = || Status::not_found(format!("{} has no source {name}", agent.name));
    Ok(Some(Of::Series(found.ok_or_else(missing)?.series)))
}

/// Runs with the names of their hosts, which are looked up all at once.
pub async fn rows_to_wire(tx: &mut Tx, runs: Vec<RunRow>) -> Result<Vec<v1::Run>, Status> {
    let series: BTreeSet<_> = runs.iter().map(|run| run.series).collect();
    let names = lists::sources::names(tx, &Vec::from_iter(series)).await?;
    let to_wire = |run: RunRow| {
        let agent = names.get(&run.series).map(|(agent, _)| agent.clone()).unwrap_or_default();
        convert::run_row_to_wire(run, &agent)
    };
    Ok(runs.into_iter().map(to_wire).collect())
}

#[tonic::async_trait]
impl RunAdmin for RunApi {
    async fn start_runs(
        &self,
        request: Request<v1::StartRunsRequest>,
    ) -> Result<Response<v1::StartRunsReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        ctx.authorize(Action::RunStart, &"runs").await.map_err(Status::from)?;
        let wire = request.into_inner();
        let sources = self.sources(&wire.source, &wire.selector).await?;
        let own = telemetry::trace_parent();
        let trace = if own.is_empty() { wire.trace_parent.chars().take(64).collect() } else { own };
        let runs = self.runs.start(&ctx, &sources, &trace).await?;
        let runs = rows_to_wire(&mut *self.core.store.reader().await?, runs).await?;
        Ok(Response::new(v1::StartRunsReply { runs }))
    }

    async fn list_runs(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        ctx.authorize(Action::RunList, &"runs").await.map_err(Status::from)?;
        let wire = request.into_inner();
        let paging = convert::paging(wire.page)?;
        let target = convert::target(&wire.source, &wire.selector)?;
        let state =
            (!wire.state.is_empty()).then(|| convert::text::<RunState>("state", &wire.state)).transpose()?;
        let mut conn = self.core.store.reader().await?;
        let Some(of) = listed_of(&mut conn, &target).await? else {
            return Ok(Response::new(v1::ListRunsReply::default()));
        };
        let list = RunList { of, state, since: UnixMillis(wire.since_ms) };
        let page = lists::runs::list(&mut conn, &list, &paging).await?;
        let next = convert::position_to_wire(page.next.as_ref());
        Ok(Response::new(v1::ListRunsReply { runs: rows_to_wire(&mut conn, page.rows).await?, next }))
    }

    async fn get_run(&self, request: Request<v1::GetRunRequest>) -> Result<Response<v1::Run>, Status> {
        let ctx = self.gate.context(&request).await?;
        let view = self.runs.show(&ctx, &request.get_ref().run).await?;
        Ok(Response::new(self.to_wire(view).await?))
    }

    async fn cancel_run(&self, request: Request<v1::CancelRunRequest>) -> Result<Response<v1::Run>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let reason = if wire.reason.is_empty() { "cancelled by an admin" } else { wire.reason.as_str() };
        let view = self.runs.cancel(&ctx, &wire.run, reason).await?;
        Ok(Response::new(self.to_wire(view).await?))
    }

    type WatchRunStream = Pin<Box<dyn Stream<Item = Result<v1::Run, Status>> + Send>>;

    async fn watch_run(
        &self,
        request: Request<v1::GetRunRequest>,
    ) -> Result<Response<Self::WatchRunStream>, Status> {
        let ctx = self.gate.context(&request).await?;
        // Subscribed before the first look, so that nothing falls in between.
        let changes = self.runs.watch();
        let view = self.runs.show(&ctx, &request.get_ref().run).await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let api = self.clone();
        tokio::spawn(async move {
            if let Err(status) = api.follow(&ctx, view, changes, &sender).await {
                // The watcher is gone: nobody to tell.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl RunApi {
    async fn follow(
        &self,
        ctx: &OpContext,
        mut view: RunView,
        mut changes: tokio::sync::broadcast::Receiver<sealift_common::id::RunId>,
        out: &mpsc::Sender<Result<v1::Run, Status>>,
    ) -> Result<(), Status> {
        let id = view.run.id;
        loop {
            let over = view.run.state.is_over();
            if out.send(Ok(self.to_wire(view).await?)).await.is_err() || over {
                return Ok(());
            }
            loop {
                let change = tokio::select! {
                    () = out.closed() => return Ok(()),
                    () = self.stop.cancelled() => return Err(Status::unavailable("the coordinator stops; try again")),
                    change = changes.recv() => change,
                };
                match change {
                    Ok(changed) if changed == id => break,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return Ok(()),
                }
            }
            view = self.runs.show(ctx, &id.to_string()).await?;
        }
    }
}
