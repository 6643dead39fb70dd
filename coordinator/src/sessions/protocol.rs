//! What the build on a host speaks: agreed upon before anything else that it says is read.
//!
//! An agent that is too old is not served, and told so. It stays a member of the fleet: it is shown, and renews its certificate.

use futures::FutureExt as _;
use sealift_common::protocol::{Agreed, Disagreement, Spoken};

use super::SessionService;
use super::hello::known;
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::identity::enrol::said;
use crate::runs::RunError;
use crate::store::agents::{self, SaidProtocol};

impl SessionService {
    /// What this coordinator speaks.
    pub fn speaks(&self) -> &Spoken {
        &self.speaks
    }

    /// What an agent of this `version` and the coordinator have in common.
    ///
    /// # Errors
    /// [`RunError::Protocol`] where that is nothing; those of access and database.
    pub async fn agree(&self, ctx: &OpContext, version: &str, speaks: &Spoken) -> Result<Agreed, RunError> {
        let disagreement = match self.speaks.agree(speaks) {
            Ok(agreed) => return Ok(agreed),
            Err(disagreement) => disagreement,
        };
        let agent = ctx.operation(Action::SessionOpen, ctx.actor(), Details::none()).agent()?;
        let (now, version) = (self.core.clock.now(), &said(version));
        tracing::warn!(%agent, version, error = %disagreement, "an agent was turned away");
        let record = self.core.store.run_tx("turn an agent away", move |tx, _| {
            async move {
                let mut row = known(tx, agent).await?;
                let before = row.protocol.refused;
                row.version.clone_from(version);
                row.last_seen = now;
                row.address = ctx.address().map(|address| address.to_string()).unwrap_or(row.address);
                row.protocol = SaidProtocol {
                    newest: Some(speaks.newest),
                    features: speaks.features,
                    refused: matches!(disagreement, Disagreement::AgentTooOld { .. })
                        .then_some(before.unwrap_or(now)),
                };
                agents::update(tx, &row).await?;
                // It asks again and again while it waits for its upgrade: that is in the audit once.
                if before.is_none() {
                    let said = Details::none()
                        .with("error", disagreement.to_string())
                        .with("version", version.as_str())
                        .with("protocol", speaks.newest.to_string());
                    ctx.record(tx, Action::SessionOpen, ctx.actor(), Outcome::Refused, said).await?;
                }
                Ok::<_, RunError>(())
            }
            .boxed()
        });
        record.await?;
        Err(disagreement.into())
    }
}
