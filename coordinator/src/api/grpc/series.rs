//! Series, for admins.

use sealift_common::name::Name;
use sealift_proto::v1;
use sealift_proto::v1::series_admin_server::SeriesAdmin;
use tonic::{Request, Response, Status};

use super::agents::targeted;
use super::{Gate, convert};
use crate::core::Core;
use crate::series::{SeriesService, SeriesView};

/// Series.
#[derive(Debug, Clone)]
pub struct SeriesApi {
    /// Who calls.
    pub gate: Gate,
    /// The database.
    pub core: Core,
    /// What does the work.
    pub series: SeriesService,
}

fn to_wire(view: SeriesView) -> v1::Series {
    let series = view.series;
    v1::Series {
        id: series.id.to_string(),
        agent_id: series.agent.to_string(),
        agent: view.agent,
        source: series.source.to_string(),
        scope: series.scope,
        created_ms: series.created.0,
        present: series.present,
        backups: series.backups,
        sequence: series.sequence,
        newest_ms: series.newest.map_or(0, |at| at.0),
        stored_bytes: series.stored_bytes,
        packs: series.packs,
        epoch_id: series.epoch.map(|epoch| epoch.to_vec()).unwrap_or_default(),
        epoch_ends: series.epoch.is_some() && series.epoch == series.leave_epoch,
    }
}

#[tonic::async_trait]
impl SeriesAdmin for SeriesApi {
    async fn list_series(
        &self,
        request: Request<v1::ListSeriesRequest>,
    ) -> Result<Response<v1::ListSeriesReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        // Pages break between agents, so that a cursor is an agent's name.
        let (limit, after) = convert::page(wire.page);
        let target = convert::target(&wire.source, &wire.selector)?;
        let hosts = {
            let mut conn = self.core.store.reader().await?;
            targeted(&mut conn, &target, &after, limit).await?
        };
        let next = match &target.agent {
            Some(_) => String::new(),
            None => convert::next(&hosts, limit, |host| host.name.to_string()),
        };
        let all = self.series.list(&ctx, &hosts).await?;
        let wanted =
            |view: &SeriesView| target.source.as_ref().is_none_or(|source| *source == view.series.source);
        Ok(Response::new(v1::ListSeriesReply {
            series: all.into_iter().filter(wanted).map(to_wire).collect(),
            next,
        }))
    }

    async fn get_series(
        &self,
        request: Request<v1::GetSeriesRequest>,
    ) -> Result<Response<v1::Series>, Status> {
        let ctx = self.gate.context(&request).await?;
        Ok(Response::new(to_wire(self.series.show(&ctx, &request.get_ref().series).await?)))
    }

    async fn rename_series(
        &self,
        request: Request<v1::RenameSeriesRequest>,
    ) -> Result<Response<v1::Series>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.get_ref();
        let source: Name = convert::text("source", &wire.source)?;
        Ok(Response::new(to_wire(self.series.rename(&ctx, &wire.series, &source).await?)))
    }

    async fn start_epoch(
        &self,
        request: Request<v1::StartEpochRequest>,
    ) -> Result<Response<v1::Series>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.get_ref();
        Ok(Response::new(to_wire(self.series.start_epoch(&ctx, &wire.series, &wire.reason).await?)))
    }
}
