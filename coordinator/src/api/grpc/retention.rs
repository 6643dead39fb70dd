//! The `RetentionAdmin` service: deleting, holding, and what admins ask about retention.

use sealift_proto::v1;
use sealift_proto::v1::retention_admin_server::RetentionAdmin;
use tonic::{Request, Response, Status};

use super::Gate;
use super::backup_admin::backup_to_wire;
use super::convert::{page, text};
use crate::retention::Retention;
use crate::retention::admin::{PlanQuery, SourcePlan};
use crate::retention::plan::Fate;

/// Hosts on one page of plans: each may have some hundred backups.
const MAX_HOSTS: u32 = 50;

/// Answers the calls of admins about what stays and what goes.
#[derive(Debug, Clone)]
pub struct RetentionApi {
    /// Who calls.
    pub gate: Gate,
    /// What stays, and what may go.
    pub retention: Retention,
}

fn plan_to_wire(plan: SourcePlan) -> v1::SourceRetention {
    let fates = plan.verdicts.into_iter().map(|(view, verdict)| {
        let (keep, why) = match &verdict.fate {
            Fate::Keep(why) => (true, why.iter().map(ToString::to_string).collect()),
            Fate::Expire(why) => (false, vec![why.to_string()]),
        };
        v1::BackupFate { backup: Some(backup_to_wire(view)), keep, why }
    });
    v1::SourceRetention {
        agent: plan.agent,
        source: plan.source,
        rules: plan.term.to_string(),
        halted: plan.halted.unwrap_or_default(),
        backups: fates.collect(),
    }
}

#[tonic::async_trait]
impl RetentionAdmin for RetentionApi {
    async fn delete_backup(
        &self,
        request: Request<v1::DeleteBackupRequest>,
    ) -> Result<Response<v1::BackupInfo>, Status> {
        let ctx = self.gate.context(&request).await?;
        let asked = request.into_inner();
        let view = self.retention.delete(&ctx, &asked.backup, &asked.reason, asked.dry_run).await?;
        Ok(Response::new(backup_to_wire(view)))
    }

    async fn undelete_backup(
        &self,
        request: Request<v1::UndeleteBackupRequest>,
    ) -> Result<Response<v1::BackupInfo>, Status> {
        let ctx = self.gate.context(&request).await?;
        let view = self.retention.undelete(&ctx, &request.into_inner().backup).await?;
        Ok(Response::new(backup_to_wire(view)))
    }

    async fn hold_backup(
        &self,
        request: Request<v1::HoldBackupRequest>,
    ) -> Result<Response<v1::BackupInfo>, Status> {
        let ctx = self.gate.context(&request).await?;
        let asked = request.into_inner();
        let view = self.retention.hold(&ctx, &asked.backup, &asked.reason).await?;
        Ok(Response::new(backup_to_wire(view)))
    }

    async fn release_backup(
        &self,
        request: Request<v1::ReleaseBackupRequest>,
    ) -> Result<Response<v1::BackupInfo>, Status> {
        let ctx = self.gate.context(&request).await?;
        let view = self.retention.release(&ctx, &request.into_inner().backup).await?;
        Ok(Response::new(backup_to_wire(view)))
    }

    async fn plan_retention(
        &self,
        request: Request<v1::PlanRetentionRequest>,
    ) -> Result<Response<v1::PlanRetentionReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let asked = request.into_inner();
        let (limit, after) = page(asked.page);
        let selector = text("selector", &asked.selector)?;
        let query = PlanQuery { source: asked.source, selector, after, limit: limit.min(MAX_HOSTS) };
        let (plans, next) = self.retention.plans(&ctx, &query).await?;
        let sources = plans.into_iter().map(plan_to_wire).collect();
        Ok(Response::new(v1::PlanRetentionReply { sources, next: next.unwrap_or_default() }))
    }
}
