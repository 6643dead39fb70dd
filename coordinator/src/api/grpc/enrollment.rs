//! How a host becomes an agent, and stays one.

use sealift_common::id::AgentId;
use sealift_proto::v1;
use sealift_proto::v1::certificates_server::Certificates;
use sealift_proto::v1::enrollment_server::Enrollment;
use tonic::{Request, Response, Status};

use super::{Gate, convert};
use crate::identity::ca::RequestedKey;
use crate::identity::enrol::{Enrolled, Enrolment, Membership};
use crate::identity::{Identities, IdentityError};
use crate::sessions::relay::Relay;

/// Enrolment and certificates.
#[derive(Debug, Clone)]
pub struct EnrollmentApi {
    /// Who calls.
    pub gate: Gate,
    /// What does the work.
    pub identities: Identities,
    /// Shuts out whom a new host replaces.
    pub relay: Relay,
}

#[allow(clippy::result_large_err)]
fn requested_key(csr: &[u8]) -> Result<RequestedKey, Status> {
    RequestedKey::parse(csr).map_err(|error| IdentityError::Ca(error).into())
}

fn identity(identities: &Identities, repository: Vec<u8>, membership: Membership) -> v1::Identity {
    let Membership { agent, issued, ca, trust_chain } = membership;
    v1::Identity {
        agent_id: agent.id.to_vec(),
        name: agent.name.into(),
        scope: agent.scope,
        repository_id: repository,
        certificate_chain_der: issued.chain.iter().map(|der| der.to_vec()).collect(),
        ca_der: vec![ca.to_vec()],
        not_after_ms: issued.not_after.0,
        trust_domain: identities.ca().domain().to_string(),
        trust_chain,
        replaces_agent_id: Vec::new(),
    }
}

impl EnrollmentApi {
    fn reply(&self, membership: Membership) -> Response<v1::Identity> {
        Response::new(identity(&self.identities, self.identities.repository().to_vec(), membership))
    }
}

#[tonic::async_trait]
impl Enrollment for EnrollmentApi {
    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Result<Response<v1::Identity>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let token = zeroize::Zeroizing::new(wire.token);
        let enrolment = Enrolment {
            token: token.parse().map_err(Status::from)?,
            host: wire.host,
            key: requested_key(&wire.csr_der)?,
            signing_key: convert::bytes("signing_key", &wire.signing_key)?,
            key_object: wire.agent_key_object,
            agent: convert::bytes("agent_id", &wire.agent_id)?,
            version: wire.agent_version,
            root_pins: convert::all_bytes("root_key_sha256", &wire.root_key_sha256)?,
        };
        match self.identities.enrol(&ctx, enrolment).await? {
            Enrolled::Member(membership) => {
                // Where its host was replaced: the old one is shut out at once.
                self.relay.revoke(membership.agent.id).await?;
                Ok(self.reply(*membership))
            }
            Enrolled::Replaces(agent) => {
                Ok(Response::new(v1::Identity { replaces_agent_id: agent.to_vec(), ..Default::default() }))
            }
        }
    }

    async fn challenge(
        &self,
        request: Request<v1::ChallengeRequest>,
    ) -> Result<Response<v1::ChallengeReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let agent: AgentId = convert::bytes("agent_id", &request.get_ref().agent_id)?;
        let challenge = self.identities.challenge(&ctx, agent).await?;
        Ok(Response::new(v1::ChallengeReply { challenge: challenge.to_vec() }))
    }

    async fn recover(&self, request: Request<v1::RecoverRequest>) -> Result<Response<v1::Identity>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let agent: AgentId = convert::bytes("agent_id", &wire.agent_id)?;
        let recovered =
            self.identities.recover(&ctx, agent, &wire.challenge, &wire.csr_der, &wire.signature).await?;
        Ok(self.reply(recovered))
    }

    async fn get_ca(&self, request: Request<v1::GetCaRequest>) -> Result<Response<v1::GetCaReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let (ca, statement) = self.identities.ca_said(&ctx).await?;
        let statement = statement.map(|said| said.to_json().into_bytes()).unwrap_or_default();
        Ok(Response::new(v1::GetCaReply { ca_der: ca.to_vec(), statement }))
    }
}

#[tonic::async_trait]
impl Certificates for EnrollmentApi {
    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::Identity>, Status> {
        let ctx = self.gate.context(&request).await?;
        let key = requested_key(&request.get_ref().csr_der)?;
        Ok(self.reply(self.identities.renew(&ctx, key).await?))
    }
}
