//! The life of hosts, for admins: roll-outs, approvals, retirements, many labels.

use std::time::Duration;

use sealift_common::clock::UnixMillis;
use sealift_common::name::Name;
use sealift_proto::v1;
use sealift_proto::v1::host_admin_server::HostAdmin;
use tonic::{Request, Response, Status};

use super::agents::AgentApi;
use super::convert;
use super::tokens::DEFAULT_LIFE;
use crate::identity::hosts::LabelChange;
use crate::identity::token::TokenTerms;

/// Hosts over their life.
#[derive(Debug, Clone)]
pub struct HostApi {
    /// What shows agents.
    pub agents: AgentApi,
}

#[tonic::async_trait]
impl HostAdmin for HostApi {
    async fn create_tokens(
        &self,
        request: Request<v1::CreateTokensRequest>,
    ) -> Result<Response<v1::CreateTokensReply>, Status> {
        let ctx = self.agents.gate.context(&request).await?;
        let wire = request.into_inner();
        let life = if wire.ttl_ms == 0 { DEFAULT_LIFE } else { Duration::from_millis(wire.ttl_ms) };
        let terms = |host: v1::HostToken| {
            Ok::<_, Status>(TokenTerms {
                labels: convert::labels(host.labels)?,
                life,
                uses: 1,
                scope: host.scope,
                name: Some(convert::text::<Name>("hosts.name", &host.name)?),
                replaces: None,
            })
        };
        let hosts = wire.hosts.into_iter().map(terms).collect::<Result<Vec<_>, _>>()?;
        let identities = &self.agents.identities;
        let made = identities.create_tokens(&ctx, hosts).await?;
        let settings = identities.settings();
        Ok(Response::new(v1::CreateTokensReply {
            expires_ms: made.first().map_or(0, |(_, row)| row.expires.0),
            tokens: made
                .into_iter()
                .map(|(token, row)| v1::CreatedToken {
                    name: row.name,
                    token: token.expose().clone(),
                    id: row.id,
                })
                .collect(),
            ca_sha256: identities.ca().fingerprint().to_vec(),
            root_sha256: settings.roots.iter().map(|root| root.to_vec()).collect(),
            coordinators: settings.addresses(),
        }))
    }

    async fn approve_agent(
        &self,
        request: Request<v1::ApproveAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let ctx = self.agents.gate.context(&request).await?;
        let wire = request.into_inner();
        let name = (!wire.name.is_empty()).then(|| convert::text::<Name>("name", &wire.name)).transpose()?;
        let row = self.agents.identities.approve_agent(&ctx, &wire.agent, name.as_ref()).await?;
        self.agents.whole(row).await
    }

    async fn retire_agent(
        &self,
        request: Request<v1::RetireAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let ctx = self.agents.gate.context(&request).await?;
        let wire = request.into_inner();
        let keep_until = UnixMillis(wire.keep_until_ms);
        let api = &self.agents;
        let row = api.identities.retire_agent(&ctx, &wire.agent, keep_until, &wire.reason).await?;
        api.sessions.relay().revoke(row.id).await?;
        api.sessions.runs.end_all_of(&ctx, row.id, "the agent was retired").await?;
        api.whole(row).await
    }

    async fn label_agents(
        &self,
        request: Request<v1::LabelAgentsRequest>,
    ) -> Result<Response<v1::LabelAgentsReply>, Status> {
        let ctx = self.agents.gate.context(&request).await?;
        let change = |wire: v1::LabelAgentRequest| {
            let set = convert::labels(wire.set)?;
            Ok::<_, Status>(LabelChange { agent: wire.agent, set, remove: wire.remove })
        };
        let changes = request.into_inner().hosts.into_iter().map(change).collect::<Result<Vec<_>, _>>()?;
        let changed = self.agents.identities.label_agents(&ctx, &changes).await?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Response::new(v1::LabelAgentsReply {
            changed: count(changed),
            unchanged: count(changes.len() - changed),
        }))
    }
}
