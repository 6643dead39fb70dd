//! The gRPC services. Each handler does three things: who calls, what do they want (parsed), what came of it (converted).

pub mod convert;
pub mod enrollment;
pub mod session;

pub mod agents;
pub mod backup;
pub mod backup_admin;
pub mod fleet;
pub mod hosts;
pub mod policies;
pub mod retention;
pub mod runs;
pub mod series;
pub mod storage;
pub mod tokens;
pub mod trust;

use sealift_common::telemetry;
use tonic::{Code, Request, Status};

use super::limits::Limits;
use crate::audit::{Action, Actor, Details, OpContext, Outcome};
use crate::core::Core;
use crate::identity::peer::{Peer, Subject};
use crate::identity::{Identities, IdentityError};

/// Largest message that is read, in bytes; streams of larger things come in pieces of at most 1 MiB.
pub const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// Decides at each call who it is that calls, and whether they may call at all. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    core: Core,
    identities: Identities,
    limits: Limits,
}

impl Gate {
    /// A gate in front of the services.
    pub fn new(core: Core, identities: Identities, limits: Limits) -> Self {
        Self { core, identities, limits }
    }

    /// Who calls. Status is asked of the database each time, not only at the handshake.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` for who calls too often, `PERMISSION_DENIED` for a revoked agent.
    #[allow(clippy::result_large_err)]
    pub async fn context<T>(&self, request: &Request<T>) -> Result<OpContext, Status> {
        let peer = request.extensions().get::<Peer>();
        let peer =
            peer.ok_or_else(|| Status::internal("the connection does not say who is at its other end"))?;
        let actor = match peer.certificate.as_ref().map(|c| &c.subject) {
            None => Actor::Anonymous,
            Some(Subject::Agent(id)) => Actor::Agent(*id),
            Some(Subject::Admin(name)) => Actor::Admin(name.clone()),
        };
        self.limits.count(&actor, peer.address.ip())?;
        let ctx = OpContext::new(&self.core, actor, Some(peer.address));
        let key_epoch = peer.certificate.as_ref().map_or(0, |certificate| certificate.key_epoch);
        match self.identities.check_caller(ctx.actor(), key_epoch).await {
            Ok(()) => Ok(ctx),
            // It asks again and again while it waits: that is in the audit once, as its enrolment.
            Err(error @ IdentityError::AgentPending(_)) => Err(error.into()),
            Err(
                error @ (IdentityError::AgentRevoked(_)
                | IdentityError::AgentRetired(_)
                | IdentityError::HostReplaced(_)
                | IdentityError::AgentUnknown(_)),
            ) => {
                let refused = ctx.record_alone(
                    Action::CallRefuse,
                    ctx.actor(),
                    Outcome::Refused,
                    Details::none().with("error", error.to_string()),
                );
                refused.await?;
                Err(Status::permission_denied(error.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What an agent asks for, once it is read. What cannot be read is refused like anything else that is not the agent's to
    /// ask, and audited.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for what could not be read, and those of access.
    pub async fn read<T>(
        &self,
        ctx: &OpContext,
        action: Action,
        asked: Result<T, Status>,
    ) -> Result<T, Status> {
        ctx.authorize(action, ctx.actor()).await?;
        match asked {
            Err(status) if status.code() == Code::InvalidArgument => {
                let said = Details::none().with("error", status.message());
                ctx.record_alone(action, ctx.actor(), Outcome::Refused, said).await?;
                Err(Status::permission_denied(status.message()))
            }
            asked => asked,
        }
    }
}

/// The span of one request, as part of the caller's trace.
pub fn span(request: &http::Request<()>) -> tracing::Span {
    let span = tracing::info_span!("grpc", method = request.uri().path());
    let parent = request.headers().get("traceparent").and_then(|v| v.to_str().ok());
    telemetry::set_trace_parent(&span, parent.unwrap_or_default());
    span
}
