//! The trust policy, for admins: they sign it, the coordinator keeps and serves it.

use sealift_proto::v1;
use sealift_proto::v1::trust_admin_server::TrustAdmin;
use tonic::{Request, Response, Status};

use super::Gate;
use crate::identity::Identities;

/// Trust policies.
#[derive(Debug, Clone)]
pub struct TrustApi {
    /// Who calls.
    pub gate: Gate,
    /// What does the work.
    pub identities: Identities,
}

#[tonic::async_trait]
impl TrustAdmin for TrustApi {
    async fn get_trust(
        &self,
        request: Request<v1::GetTrustRequest>,
    ) -> Result<Response<v1::GetTrustReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let rows = self.identities.trust_chain(&ctx).await?;
        Ok(Response::new(v1::GetTrustReply {
            chain: rows.into_iter().map(|row| row.object).collect(),
            repository_id: self.identities.repository().to_vec(),
        }))
    }

    async fn set_trust(
        &self,
        request: Request<v1::SetTrustRequest>,
    ) -> Result<Response<v1::SetTrustReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let row = self.identities.set_trust(&ctx, &request.get_ref().object).await?;
        Ok(Response::new(v1::SetTrustReply { version: row.version, sha256: row.sha256.to_vec() }))
    }
}
