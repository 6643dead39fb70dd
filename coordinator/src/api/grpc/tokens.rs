//! Enrolment tokens, for admins.

use std::time::Duration;

use sealift_common::name::Name;
use sealift_proto::v1;
use sealift_proto::v1::token_admin_server::TokenAdmin;
use tonic::{Request, Response, Status};

use super::{Gate, convert};
use crate::identity::Identities;
use crate::identity::token::TokenTerms;
use crate::store::tokens::TokenRow;

/// How long a token lives unless told otherwise.
pub const DEFAULT_LIFE: Duration = Duration::from_secs(3_600);

/// Tokens.
#[derive(Debug, Clone)]
pub struct TokenApi {
    /// Who calls.
    pub gate: Gate,
    /// What does the work.
    pub identities: Identities,
}

fn to_wire(row: TokenRow) -> v1::Token {
    v1::Token {
        id: row.id,
        labels: convert::labels_to_wire(&row.labels),
        scope: row.scope,
        created_ms: row.created.0,
        expires_ms: row.expires.0,
        uses: row.uses,
        used: row.used,
        revoked: row.revoked,
        created_by: row.created_by,
        name: row.name,
        replaces: row.replaces.map(|agent| agent.to_string()).unwrap_or_default(),
    }
}

#[tonic::async_trait]
impl TokenAdmin for TokenApi {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let name = (!wire.name.is_empty()).then(|| convert::text::<Name>("name", &wire.name)).transpose()?;
        let terms = TokenTerms {
            labels: convert::labels(wire.labels)?,
            life: if wire.ttl_ms == 0 { DEFAULT_LIFE } else { Duration::from_millis(wire.ttl_ms) },
            uses: wire.uses.max(1),
            scope: wire.scope,
            name,
            replaces: Some(wire.replaces).filter(|agent| !agent.is_empty()),
        };
        let (token, row) = self.identities.create_token(&ctx, terms).await?;
        let settings = self.identities.settings();
        Ok(Response::new(v1::CreateTokenReply {
            token: token.expose().clone(),
            info: Some(to_wire(row)),
            ca_sha256: self.identities.ca().fingerprint().to_vec(),
            root_sha256: settings.roots.iter().map(|root| root.to_vec()).collect(),
            coordinators: settings.addresses(),
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let (limit, after) = convert::page(request.into_inner().page);
        let rows = self.identities.list_tokens(&ctx, &after, limit).await?;
        let next = convert::next(&rows, limit, |row| row.id.clone());
        Ok(Response::new(v1::ListTokensReply { tokens: rows.into_iter().map(to_wire).collect(), next }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let row = self.identities.revoke_token(&ctx, &request.get_ref().id).await?;
        Ok(Response::new(v1::RevokeTokenReply { token: Some(to_wire(row)) }))
    }
}
