//! Policies and pauses, for admins.

use sealift_common::clock::UnixMillis;
use sealift_common::selector::Selector;
use sealift_proto::v1;
use sealift_proto::v1::policy_admin_server::PolicyAdmin;
use tonic::{Request, Response, Status};

use super::{Gate, convert};
use crate::policy::Policies;
use crate::policy::guards::InForce;
use crate::policy::preview::PreviewSource;
use crate::policy::resolve::Standing;
use crate::policy::service::{Change, Terms};
use crate::scheduler::Scheduler;
use crate::store::pauses::PauseRow;
use crate::store::policies::{PolicyRow, VersionRow};

/// Policies.
#[derive(Debug, Clone)]
pub struct PolicyApi {
    /// Who calls.
    pub gate: Gate,
    /// What does the work.
    pub policies: Policies,
    /// Makes what is in force of it at once, so that whoever asked sees it.
    pub scheduler: Scheduler,
}

impl PolicyApi {
    async fn changed(&self) {
        if let Err(error) = self.scheduler.assign_once(None).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "a change of policies is not in force everywhere yet; it will be looked at again"
            );
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[allow(clippy::result_large_err)]
fn terms(wire: &v1::ApplyPolicyRequest) -> Result<Terms, Status> {
    let canary = wire.has_canary.then(|| convert::text::<Selector>("canary", &wire.canary)).transpose()?;
    Ok(Terms { canary, expect: wire.expect })
}

fn change_to_wire(change: Change, made: bool) -> v1::PolicyChange {
    let Change { policy, version, preview, guarded, unchanged } = change;
    v1::PolicyChange {
        name: policy.name.to_string(),
        id: policy.id.to_string(),
        version,
        made: made && !unchanged,
        unchanged,
        refused: guarded.filter(|_| !made).map(|guarded| guarded.to_string()).unwrap_or_default(),
        hosts: count(preview.hosts),
        hosts_selected: count(preview.hosts_selected),
        sources_selected: count(preview.sources_selected),
        hosts_touched: count(preview.hosts_touched),
        sources_touched: count(preview.sources_touched),
        sources: preview.sources.into_iter().map(source_to_wire).collect(),
        warnings: preview.warnings,
    }
}

fn source_to_wire(shown: PreviewSource) -> v1::PolicySource {
    let name = |in_force: &Option<InForce>| in_force.as_ref().map(|p| p.name.to_string()).unwrap_or_default();
    let version = |in_force: &Option<InForce>| in_force.as_ref().map_or(0, |p| p.version);
    v1::PolicySource {
        before: name(&shown.before),
        before_version: version(&shown.before),
        after: name(&shown.after),
        after_version: version(&shown.after),
        canary: shown.after.as_ref().is_some_and(|after| after.canary),
        agent: shown.source.agent_name.to_string(),
        source: shown.source.name.to_string(),
        kind: shown.source.kind,
        timezone: shown.timezone,
        changed: shown.changed,
        starts_ms: shown.starts.into_iter().map(|start| start.0).collect(),
    }
}

fn policy_to_wire(
    row: &PolicyRow,
    standing: &Standing,
    sources: u32,
    text: Option<VersionRow>,
) -> v1::Policy {
    let version = standing.whole.as_ref().or(standing.canary.as_ref().map(|(_, version)| version));
    let policy = version.map(|version| version.policy.clone());
    let schedule = policy.as_ref().and_then(|policy| policy.schedule.clone());
    v1::Policy {
        id: row.id.to_string(),
        name: row.name.to_string(),
        version: row.version,
        canary_version: row.canary_version,
        canary: row.canary.clone(),
        created_ms: row.created.0,
        document: text.map(|text| text.document).unwrap_or_default(),
        document_json: policy.as_ref().and_then(|p| serde_json::to_string(&**p).ok()).unwrap_or_default(),
        sources,
        labels: policy.as_ref().map(|p| p.select.labels.to_string()).unwrap_or_default(),
        source_patterns: policy
            .as_ref()
            .map(|p| p.select.sources.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        cron: schedule.as_ref().map(|s| s.cron.to_string()).unwrap_or_default(),
        timezone: schedule.as_ref().map(|s| s.timezone.to_string()).unwrap_or_default(),
        priority: policy.as_ref().map_or(0, |p| p.priority),
    }
}

/// A pause as admins see it.
pub fn pause_to_wire(pause: PauseRow) -> v1::Pause {
    v1::Pause {
        id: pause.id.to_string(),
        selector: pause.selector.to_string(),
        reason: pause.reason,
        created_ms: pause.created.0,
        created_by: pause.created_by,
        until_ms: pause.until.unwrap_or_default().0,
        ended_ms: pause.ended.unwrap_or_default().0,
    }
}

#[tonic::async_trait]
impl PolicyAdmin for PolicyApi {
    async fn apply_policy(
        &self,
        request: Request<v1::ApplyPolicyRequest>,
    ) -> Result<Response<v1::PolicyChange>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let change = self.policies.apply(&ctx, &wire.document, &terms(&wire)?).await?;
        self.changed().await;
        Ok(Response::new(change_to_wire(change, true)))
    }

    async fn preview_policy(
        &self,
        request: Request<v1::ApplyPolicyRequest>,
    ) -> Result<Response<v1::PolicyChange>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let change = self.policies.preview(&ctx, &wire.document, &terms(&wire)?).await?;
        Ok(Response::new(change_to_wire(change, false)))
    }

    async fn list_policies(
        &self,
        request: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let found = self.policies.list(&ctx).await?;
        let policies = found
            .iter()
            .map(|(row, standing, sources)| policy_to_wire(row, standing, *sources, None))
            .collect();
        Ok(Response::new(v1::ListPoliciesReply { policies }))
    }

    async fn get_policy(
        &self,
        request: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::Policy>, Status> {
        let ctx = self.gate.context(&request).await?;
        let (row, standing, sources, text) = self.policies.show(&ctx, &request.get_ref().name).await?;
        Ok(Response::new(policy_to_wire(&row, &standing, sources, Some(text))))
    }

    async fn get_policy_history(
        &self,
        request: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::PolicyHistory>, Status> {
        let ctx = self.gate.context(&request).await?;
        let (row, versions) = self.policies.history(&ctx, &request.get_ref().name).await?;
        let version = |version: VersionRow| v1::PolicyVersion {
            version: version.version,
            action: version.action,
            created_ms: version.created.0,
            created_by: version.created_by,
            document: version.document,
        };
        Ok(Response::new(v1::PolicyHistory {
            name: row.name.to_string(),
            version: row.version,
            canary_version: row.canary_version,
            versions: versions.into_iter().map(version).collect(),
        }))
    }

    async fn rollback_policy(
        &self,
        request: Request<v1::RollbackPolicyRequest>,
    ) -> Result<Response<v1::PolicyChange>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let to = (wire.to > 0).then_some(wire.to);
        let change = self.policies.rollback(&ctx, &wire.name, to, wire.expect, wire.dry_run).await?;
        if !wire.dry_run {
            self.changed().await;
        }
        Ok(Response::new(change_to_wire(change, !wire.dry_run)))
    }

    async fn delete_policy(
        &self,
        request: Request<v1::DeletePolicyRequest>,
    ) -> Result<Response<v1::PolicyChange>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let change = self.policies.delete(&ctx, &wire.name, wire.expect, wire.dry_run).await?;
        if !wire.dry_run {
            self.changed().await;
        }
        Ok(Response::new(change_to_wire(change, !wire.dry_run)))
    }

    async fn pause_schedules(
        &self,
        request: Request<v1::PauseSchedulesRequest>,
    ) -> Result<Response<v1::Pause>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let selector: Selector = convert::text("selector", &wire.selector)?;
        let until = (wire.until_ms != 0).then_some(UnixMillis(wire.until_ms));
        let pause = self.policies.pause(&ctx, &selector, until, &wire.reason).await?;
        Ok(Response::new(pause_to_wire(pause)))
    }

    async fn resume_schedules(
        &self,
        request: Request<v1::ResumeSchedulesRequest>,
    ) -> Result<Response<v1::ListPausesReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let selector = wire.has_selector.then(|| convert::text("selector", &wire.selector)).transpose()?;
        let ended = self.policies.resume(&ctx, selector.as_ref()).await?;
        Ok(Response::new(v1::ListPausesReply { pauses: ended.into_iter().map(pause_to_wire).collect() }))
    }

    async fn list_pauses(
        &self,
        request: Request<v1::ListPausesRequest>,
    ) -> Result<Response<v1::ListPausesReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let pauses = self.policies.pauses(&ctx).await?;
        Ok(Response::new(v1::ListPausesReply { pauses: pauses.into_iter().map(pause_to_wire).collect() }))
    }
}
