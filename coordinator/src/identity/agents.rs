//! What admins see of agents, and may do to them.

use futures::FutureExt as _;
use sealift_common::id::AgentId;
use sealift_common::name::Labels;
use sealift_common::selector::Selector;

use super::{Identities, IdentityError};
use crate::audit::{Action, Actor, Details, OpContext};
use crate::store::agents::{self, AgentRow, AgentState};
use crate::store::lists::agents::{AgentOrder, ListedAgent};
use crate::store::lists::{Page, Paging};
use crate::store::{Tx, lists};

/// The agent that `text` names: by name, by id, or by an unambiguous beginning of its id.
///
/// # Errors
/// [`IdentityError::AgentUnknown`], [`IdentityError::Ambiguous`], or the database's own.
pub async fn find(tx: &mut Tx, text: &str) -> Result<AgentRow, IdentityError> {
    let shown = || text.chars().take(80).collect::<String>();
    if let Some(agent) = agents::by_name(tx, text).await? {
        return Ok(agent);
    }
    let looks_like_id = !text.is_empty() && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
    let mut found =
        if looks_like_id { agents::by_prefix(tx, &text.to_ascii_lowercase()).await? } else { Vec::new() };
    match (found.pop(), found.is_empty()) {
        (Some(agent), true) => Ok(agent),
        (Some(_), false) => Err(IdentityError::Ambiguous(shown())),
        (None, _) => Err(IdentityError::AgentUnknown(shown())),
    }
}

/// As [`find`], with the agent locked until the transaction ends.
///
/// # Errors
/// As [`find`].
pub async fn find_to_change(tx: &mut Tx, text: &str) -> Result<AgentRow, IdentityError> {
    let found = find(tx, text).await?;
    agents::lock(tx, found.id).await?.ok_or_else(|| IdentityError::AgentUnknown(found.id.to_string()))
}

/// Agents that `selector` matches, by name, those after `after`.
///
/// # Errors
/// The database's own.
pub async fn select(
    tx: &mut Tx,
    selector: &Selector,
    after: &str,
    limit: u32,
) -> Result<Vec<AgentRow>, IdentityError> {
    Ok(agents::selected(tx, selector, after, limit).await?)
}

impl Identities {
    /// Who it is that calls, if they may still call at all. `key_epoch` says which of an agent's hosts it is.
    ///
    /// # Errors
    /// [`IdentityError::AgentRevoked`] and its kin, [`IdentityError::AgentUnknown`], or the database's own.
    pub async fn check_caller(&self, actor: &Actor, key_epoch: u32) -> Result<(), IdentityError> {
        let Actor::Agent(id) = actor else { return Ok(()) };
        match agents::standing(&mut *self.core.store.reader().await?, *id).await? {
            Some((_, present)) if present != key_epoch => Err(IdentityError::HostReplaced(*id)),
            Some((AgentState::Active, _)) => Ok(()),
            Some((AgentState::Pending, _)) => Err(IdentityError::AgentPending(*id)),
            Some((AgentState::Retired, _)) => Err(IdentityError::AgentRetired(*id)),
            Some((AgentState::Revoked, _)) => Err(IdentityError::AgentRevoked(*id)),
            None => Err(IdentityError::AgentUnknown(id.to_string())),
        }
    }

    /// Agents that `selector` matches, and what each stores.
    ///
    /// # Errors
    /// Those of access and database.
    pub async fn list_agents(
        &self,
        ctx: &OpContext,
        selector: &Selector,
        paging: &Paging<AgentOrder>,
    ) -> Result<Page<ListedAgent>, IdentityError> {
        ctx.authorize(Action::AgentList, &"agents").await?;
        Ok(lists::agents::list(&mut *self.core.store.reader().await?, selector, paging).await?)
    }

    /// One agent.
    ///
    /// # Errors
    /// As [`find`], and those of access.
    pub async fn show_agent(&self, ctx: &OpContext, text: &str) -> Result<AgentRow, IdentityError> {
        ctx.authorize(Action::AgentShow, &"agent").await?;
        find(&mut *self.core.store.reader().await?, text).await
    }

    /// Sets and removes labels.
    ///
    /// # Errors
    /// As [`find`], too many labels, and those of access.
    pub async fn label_agent(
        &self,
        ctx: &OpContext,
        text: &str,
        set: &Labels,
        remove: &[String],
    ) -> Result<AgentRow, IdentityError> {
        let entity = format!("agent:{}", text.chars().take(80).collect::<String>());
        let details = Details::none().with("set", serde_json::json!(set)).with("remove", remove);
        ctx.perform(Action::AgentLabel, &entity, details, move |tx, _| {
            async move {
                let mut agent = find_to_change(tx, text).await?;
                let before = agent.labels.clone();
                let after: std::collections::BTreeMap<_, _> = agent.labels.changed(set, remove).into();
                agent.labels = Labels::try_from(after)?;
                agents::update(tx, &agent).await?;
                let said = Details::none()
                    .with("agent", agent.id.to_string())
                    .with("before", serde_json::json!(before))
                    .with("after", serde_json::json!(agent.labels));
                Ok((agent, said))
            }
            .boxed()
        })
        .await
    }

    /// Refuses an agent from now on, for good. Its session is closed by whoever calls this
    /// ([`crate::sessions::Sessions::close`]); its backups stay.
    ///
    /// # Errors
    /// As [`find`], and those of access.
    pub async fn revoke_agent(
        &self,
        ctx: &OpContext,
        text: &str,
        reason: &str,
    ) -> Result<AgentRow, IdentityError> {
        let entity = format!("agent:{}", text.chars().take(80).collect::<String>());
        ctx.perform(Action::AgentRevoke, &entity, Details::none().with("reason", reason), move |tx, _| {
            async move {
                let mut agent = find_to_change(tx, text).await?;
                let before = agent.state;
                agent.state = AgentState::Revoked;
                agent.state_reason = super::enrol::said(reason);
                agents::update(tx, &agent).await?;
                let said = Details::none()
                    .with("agent", agent.id.to_string())
                    .with("name", agent.name.as_str())
                    .with("before", before.as_str())
                    .with("after", agent.state.as_str());
                Ok((agent, said))
            }
            .boxed()
        })
        .await
    }

    /// The scope of an agent: which rule of the trust policy its series fall under.
    ///
    /// # Errors
    /// [`IdentityError::AgentUnknown`], or the database's own.
    pub async fn agent(&self, id: AgentId) -> Result<AgentRow, IdentityError> {
        let found = agents::get(&mut *self.core.store.reader().await?, id).await?;
        found.ok_or_else(|| IdentityError::AgentUnknown(id.to_string()))
    }
}
