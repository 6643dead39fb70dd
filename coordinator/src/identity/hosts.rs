//! What admins do with hosts over their life: approve one whose name was taken, retire one, label many.

use futures::FutureExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::name::{Labels, MAX_NAME, Name};
use std::collections::BTreeMap;

use super::agents::find_to_change;
use super::enrol::said;
use super::{Identities, IdentityError};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::store::Tx;
use crate::store::agents::{self, AgentRow, AgentState};

/// Most hosts that are labelled in one go.
pub const MAX_HOSTS: usize = 10_000;

/// What is to change about the labels of one host.
#[derive(Debug, Clone)]
pub struct LabelChange {
    /// Name or id.
    pub agent: String,
    /// Added or replaced.
    pub set: Labels,
    /// Taken away.
    pub remove: Vec<String>,
}

impl Identities {
    /// Lets a pending agent into service, under the name that it asked for or under `name`. Where the name's holder is
    /// revoked or retired, that one gives it up.
    ///
    /// # Errors
    /// As [`find_to_change`], [`IdentityError::NotPending`], [`IdentityError::NameTaken`], and those of access.
    pub async fn approve_agent(
        &self,
        ctx: &OpContext,
        text: &str,
        name: Option<&Name>,
    ) -> Result<AgentRow, IdentityError> {
        let entity = format!("agent:{}", said(text));
        ctx.perform(Action::AgentApprove, &entity, Details::none(), move |tx, _| {
            async move {
                let mut agent = find_to_change(tx, text).await?;
                if agent.state != AgentState::Pending {
                    return Err(IdentityError::NotPending(agent.name.into(), agent.state.as_str()));
                }
                let wanted: Name = match name {
                    Some(name) => name.clone(),
                    None => agent.wanted_name.parse()?,
                };
                let before = told(&agent);
                free_name(tx, ctx, &agent, &wanted).await?;
                agents::rename(tx, agent.id, &wanted).await?;
                agent.name = wanted;
                agent.state = AgentState::Active;
                agent.wanted_name = String::new();
                agents::update(tx, &agent).await?;
                let said = Details::none()
                    .with("agent", agent.id.to_string())
                    .with("before", before)
                    .with("after", told(&agent));
                Ok((agent, said))
            }
            .boxed()
        })
        .await
    }

    /// Takes an agent out of service in peace: it is refused from now on and not missed, and its backups stay until
    /// `keep_until`. Its session is closed by whoever calls this.
    ///
    /// # Errors
    /// As [`find_to_change`], and those of access.
    pub async fn retire_agent(
        &self,
        ctx: &OpContext,
        text: &str,
        keep_until: UnixMillis,
        reason: &str,
    ) -> Result<AgentRow, IdentityError> {
        let entity = format!("agent:{}", said(text));
        let details = Details::none().with("keep_until", keep_until.rfc3339()).with("reason", said(reason));
        ctx.perform(Action::AgentRetire, &entity, details, move |tx, _| {
            async move {
                let mut agent = find_to_change(tx, text).await?;
                let before = told(&agent);
                agent.state = AgentState::Retired;
                agent.state_reason = said(reason);
                agent.keep_until = Some(keep_until);
                agents::update(tx, &agent).await?;
                let said = Details::none()
                    .with("agent", agent.id.to_string())
                    .with("before", before)
                    .with("after", told(&agent));
                Ok((agent, said))
            }
            .boxed()
        })
        .await
    }

    /// Sets and removes labels of many agents, all or none; how many changed. Each that does is an event of its own.
    ///
    /// # Errors
    /// As [`find_to_change`], too many hosts or labels, and those of access.
    pub async fn label_agents(
        &self,
        ctx: &OpContext,
        changes: &[LabelChange],
    ) -> Result<usize, IdentityError> {
        let details = Details::none().with("hosts", changes.len());
        ctx.perform(Action::AgentLabel, &"agents", details, move |tx, _| {
            async move {
                if changes.len() > MAX_HOSTS {
                    return Err(IdentityError::TokenTerms("a list has at most 10,000 hosts"));
                }
                let mut changed = 0;
                for change in changes {
                    let mut agent = find_to_change(tx, &change.agent).await?;
                    let before = agent.labels.clone();
                    let after: BTreeMap<_, _> = before.changed(&change.set, &change.remove).into();
                    agent.labels = Labels::try_from(after)?;
                    if agent.labels == before {
                        continue;
                    }
                    agents::update(tx, &agent).await?;
                    let said = Details::none()
                        .with("before", serde_json::json!(before))
                        .with("after", serde_json::json!(agent.labels));
                    let entity = format!("agent:{}", agent.id);
                    ctx.record(tx, Action::AgentLabel, &entity, Outcome::Done, said).await?;
                    changed += 1;
                }
                Ok((changed, Details::none().with("changed", changed)))
            }
            .boxed()
        })
        .await
    }
}

/// Makes a name free for `agent`, if whoever has it is out of service.
async fn free_name(tx: &mut Tx, ctx: &OpContext, agent: &AgentRow, name: &Name) -> Result<(), IdentityError> {
    let Some(holder) = agents::by_name(tx, name.as_str()).await?.filter(|holder| holder.id != agent.id)
    else {
        return Ok(());
    };
    if !matches!(holder.state, AgentState::Revoked | AgentState::Retired) {
        return Err(IdentityError::NameTaken { name: name.to_string() });
    }
    let suffix = format!(".{}-{}", holder.state, &holder.id.to_string()[..8]);
    let short: String = name.as_str().chars().take(MAX_NAME - suffix.len()).collect();
    let aside: Name = format!("{short}{suffix}").parse()?;
    agents::rename(tx, holder.id, &aside).await?;
    let said = Details::none().with("before", name.as_str()).with("after", aside.as_str());
    ctx.record(tx, Action::AgentApprove, &format!("agent:{}", holder.id), Outcome::Done, said).await?;
    Ok(())
}

fn told(agent: &AgentRow) -> serde_json::Value {
    serde_json::json!({
        "name": agent.name.as_str(),
        "state": agent.state.as_str(),
        "keep_until": agent.keep_until.map(UnixMillis::rfc3339),
    })
}
