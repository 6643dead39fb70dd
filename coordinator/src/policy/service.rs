//! Changes of policies: applied, rolled back, deleted, each a version of its own, guarded and audited.

use std::sync::Arc;

use futures::FutureExt as _;
use sealift_common::id::PolicyId;
use sealift_common::selector::Selector;
use serde_json::json;
use tokio::sync::Notify;

use super::document::Policy;
use super::guards::{self, FleetSource, Impact, impact};
use super::preview::{self, Preview};
use super::resolve::{Standing, Version};
use super::{PolicyError, fleet, standings, version};
use crate::audit::{Action, Details, OpContext};
use crate::core::Core;
use crate::store::policies::{self, PolicyRow, VersionRow};
use crate::store::{Tx, source_policies};

/// What an author wants of a change beside its content.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Try it out on these hosts first.
    pub canary: Option<Selector>,
    /// So many hosts are touched.
    pub expect: Option<u32>,
}

/// A change that was made, or would be.
#[derive(Debug, Clone)]
pub struct Change {
    /// The policy afterwards; a new one has no versions where nothing was made.
    pub policy: PolicyRow,
    /// Which version it is about; the next one where nothing was made.
    pub version: u32,
    /// What it means.
    pub preview: Preview,
    /// Why it would be refused without more words, where nothing was made.
    pub guarded: Option<guards::Guarded>,
    /// The policy says this already.
    pub unchanged: bool,
}

/// Policies. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Policies {
    pub(super) core: Core,
    /// Wakes the scheduler: what is in force may be something else now.
    wake: Arc<Notify>,
}

/// A change worked out: what stands afterwards, and what that means.
struct Worked {
    row: PolicyRow,
    document: String,
    number: u32,
    before: Vec<Standing>,
    after: Vec<Standing>,
    fleet: Vec<FleetSource>,
    impact: Impact,
    unchanged: bool,
}

impl Policies {
    /// Policies of the installation of `core`.
    pub fn new(core: Core) -> Self {
        Self { core, wake: Arc::default() }
    }

    /// Wakes whoever makes policies, labels and sources into schedules.
    pub fn changed(&self) {
        self.wake.notify_one();
    }

    /// Notified when something may have changed.
    pub fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// What applying `document` would mean. Nothing is changed.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn preview(
        &self,
        ctx: &OpContext,
        document: &str,
        terms: &Terms,
    ) -> Result<Change, PolicyError> {
        ctx.authorize(Action::PolicyPreview, &"policies").await?;
        let mut conn = self.core.store.reader().await?;
        let worked = self.work_out(&mut conn, document, terms.canary.as_ref()).await?;
        self.shown(&mut conn, worked, terms.expect, true).await
    }

    /// Makes `document` what its policy says from now on; with a canary, on the canary's hosts only.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn apply(&self, ctx: &OpContext, document: &str, terms: &Terms) -> Result<Change, PolicyError> {
        ctx.authorize(Action::PolicyApply, &"policies").await?;
        let parsed: Policy = document.parse()?;
        let entity = format!("policy:{}", parsed.name);
        let details = Details::none()
            .with("canary", terms.canary.as_ref().map(ToString::to_string))
            .with("expect", terms.expect)
            .with("wanted", json!(parsed));
        let change = ctx
            .perform(Action::PolicyApply, &entity, details, |tx, _| {
                async move {
                    policies::lock_all(tx).await?;
                    let worked = self.work_out(tx, document, terms.canary.as_ref()).await?;
                    let action = match &terms.canary {
                        Some(canary) => format!("tried out on {canary}"),
                        None => "applied".to_owned(),
                    };
                    self.make(tx, ctx, worked, terms, &action).await
                }
                .boxed()
            })
            .await?;
        self.changed();
        Ok(change)
    }

    /// Makes an earlier version what the policy says: version `to`, or the one before the present one. `dry`: only shows it.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn rollback(
        &self,
        ctx: &OpContext,
        name: &str,
        to: Option<u32>,
        expect: Option<u32>,
        dry: bool,
    ) -> Result<Change, PolicyError> {
        if dry {
            ctx.authorize(Action::PolicyPreview, &"policies").await?;
            let mut conn = self.core.store.reader().await?;
            let (document, _) = self.earlier(&mut conn, name, to).await?;
            let worked = self.work_out(&mut conn, &document, None).await?;
            return self.shown(&mut conn, worked, expect, true).await;
        }
        let details = Details::none().with("to", to).with("expect", expect);
        let change = ctx
            .perform(Action::PolicyRollback, &entity(name), details, |tx, _| {
                async move {
                    policies::lock_all(tx).await?;
                    let (document, number) = self.earlier(tx, name, to).await?;
                    let worked = self.work_out(tx, &document, None).await?;
                    let terms = Terms { canary: None, expect };
                    self.make(tx, ctx, worked, &terms, &format!("rolled back to version {number}")).await
                }
                .boxed()
            })
            .await?;
        self.changed();
        Ok(change)
    }

    /// Deletes a policy: its sources come under the next one that selects them, or under none. Its history stays.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn delete(
        &self,
        ctx: &OpContext,
        name: &str,
        expect: Option<u32>,
        dry: bool,
    ) -> Result<Change, PolicyError> {
        if dry {
            ctx.authorize(Action::PolicyPreview, &"policies").await?;
            let mut conn = self.core.store.reader().await?;
            let worked = self.without(&mut conn, name).await?;
            return self.shown(&mut conn, worked, expect, false).await;
        }
        let details = Details::none().with("expect", expect);
        let change = ctx
            .perform(Action::PolicyDelete, &entity(name), details, |tx, _| {
                async move {
                    policies::lock_all(tx).await?;
                    let worked = self.without(tx, name).await?;
                    guards::check(&worked.impact, false, expect)?;
                    let before = said(&worked.before, worked.row.id);
                    policies::put(
                        tx,
                        &PolicyRow { deleted: Some(self.core.clock.now()), ..worked.row.clone() },
                    )
                    .await?;
                    let touched = worked.impact.hosts_touched;
                    let change = self.shown(tx, worked, expect, false).await?;
                    let details =
                        Details::none().with("before", before).with("after", serde_json::Value::Null);
                    Ok::<_, PolicyError>((change, details.with("hosts_touched", touched)))
                }
                .boxed()
            })
            .await?;
        self.changed();
        Ok(change)
    }

    /// All policies as they stand, by name, and how many sources each is in force for.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn list(&self, ctx: &OpContext) -> Result<Vec<(PolicyRow, Standing, u32)>, PolicyError> {
        ctx.authorize(Action::PolicyList, &"policies").await?;
        let mut conn = self.core.store.reader().await?;
        let mut out = Vec::new();
        for row in policies::all(&mut conn).await? {
            let standing = super::standing(&mut conn, &row).await?;
            let sources = source_policies::count_of_policy(&mut conn, row.id).await?;
            out.push((row, standing, sources));
        }
        Ok(out)
    }

    /// One policy as it stands, with the text of the version in force (or, before there is one, of the one that is tried out).
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn show(
        &self,
        ctx: &OpContext,
        name: &str,
    ) -> Result<(PolicyRow, Standing, u32, VersionRow), PolicyError> {
        ctx.authorize(Action::PolicyShow, &"policy").await?;
        let mut conn = self.core.store.reader().await?;
        let row = known(&mut conn, name).await?;
        let standing = super::standing(&mut conn, &row).await?;
        let number = if row.version == 0 { row.canary_version } else { row.version };
        let found = policies::version(&mut conn, row.id, number).await?;
        let text =
            found.ok_or_else(|| PolicyError::NotFound(format!("version {number} of the policy {name}")))?;
        let sources = source_policies::count_of_policy(&mut conn, row.id).await?;
        Ok((row, standing, sources, text))
    }

    /// All versions of a policy, newest first.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn history(
        &self,
        ctx: &OpContext,
        name: &str,
    ) -> Result<(PolicyRow, Vec<VersionRow>), PolicyError> {
        ctx.authorize(Action::PolicyShow, &"policy").await?;
        let mut conn = self.core.store.reader().await?;
        let row = known(&mut conn, name).await?;
        let versions = policies::versions(&mut conn, row.id).await?;
        Ok((row, versions))
    }

    /// The text of an earlier version, and which it is.
    async fn earlier(&self, tx: &mut Tx, name: &str, to: Option<u32>) -> Result<(String, u32), PolicyError> {
        let row = known(tx, name).await?;
        let missing = |what: String| PolicyError::NotFound(format!("{what} of the policy {name}"));
        let found = match to {
            Some(number) => policies::version(tx, row.id, number)
                .await?
                .ok_or_else(|| missing(format!("version {number}")))?,
            None => {
                // Where something is tried out, the way back is what is in force; else what was so before.
                let versions = policies::versions(tx, row.id).await?;
                let below = if row.canary_version > 0 { row.canary_version } else { row.version };
                let present = versions.iter().find(|v| v.version == below).map(|v| v.document.clone());
                versions
                    .into_iter()
                    .find(|v| v.version < below && Some(&v.document) != present.as_ref())
                    .ok_or_else(|| missing("earlier version".to_owned()))?
            }
        };
        Ok((found.document, found.version))
    }

    /// What stands once `document` is applied, and what that means.
    async fn work_out(
        &self,
        tx: &mut Tx,
        document: &str,
        canary: Option<&Selector>,
    ) -> Result<Worked, PolicyError> {
        let parsed: Policy = document.parse()?;
        let before = standings(tx).await?;
        let now = self.core.clock.now();
        let known = policies::by_name(tx, parsed.name.as_str()).await?;
        let row = known.unwrap_or_else(|| PolicyRow {
            id: PolicyId::generate(&self.core.random),
            name: parsed.name.clone(),
            version: 0,
            canary_version: 0,
            canary: String::new(),
            created: now,
            deleted: None,
        });
        let number = policies::versions(tx, row.id).await?.first().map_or(0, |newest| newest.version) + 1;
        let mut standing = before
            .iter()
            .find(|standing| standing.id == row.id)
            .cloned()
            .unwrap_or_else(|| Standing { id: row.id, name: row.name.clone(), whole: None, canary: None });
        let new = Version { number, policy: Arc::new(parsed) };
        let same = |version: Option<&Version>| version.is_some_and(|version| version.policy == new.policy);
        let unchanged = match canary {
            None => same(standing.whole.as_ref()) && standing.canary.is_none(),
            Some(wanted) => {
                standing.canary.as_ref().is_some_and(|(selector, v)| selector == wanted && same(Some(v)))
            }
        };
        match canary {
            Some(selector) => standing.canary = Some((selector.clone(), new)),
            None => (standing.whole, standing.canary) = (Some(new), None),
        }
        let mut after: Vec<Standing> = before.iter().filter(|other| other.id != row.id).cloned().collect();
        after.push(standing);
        let fleet = fleet(tx).await?;
        let impact = impact(row.id, &before, &after, &fleet);
        Ok(Worked { row, document: document.to_owned(), number, before, after, fleet, impact, unchanged })
    }

    /// What stands without a policy, and what that means.
    async fn without(&self, tx: &mut Tx, name: &str) -> Result<Worked, PolicyError> {
        let row = known(tx, name).await?;
        let before = standings(tx).await?;
        let after: Vec<Standing> = before.iter().filter(|other| other.id != row.id).cloned().collect();
        let fleet = fleet(tx).await?;
        let impact = impact(row.id, &before, &after, &fleet);
        let number = row.version;
        Ok(Worked { row, document: String::new(), number, before, after, fleet, impact, unchanged: false })
    }

    /// Writes a change that was worked out, if it may be made.
    async fn make(
        &self,
        tx: &mut Tx,
        ctx: &OpContext,
        worked: Worked,
        terms: &Terms,
        action: &str,
    ) -> Result<(Change, Details), PolicyError> {
        if worked.unchanged {
            let change = self.shown(tx, worked, None, false).await?;
            return Ok((change, Details::none().with("unchanged", true)));
        }
        guards::check(&worked.impact, true, terms.expect)?;
        let mut row = worked.row.clone();
        match &terms.canary {
            Some(canary) => (row.canary_version, row.canary) = (worked.number, canary.to_string()),
            None => (row.version, row.canary_version, row.canary) = (worked.number, 0, String::new()),
        }
        policies::put(tx, &row).await?;
        let version = VersionRow {
            policy: row.id,
            version: worked.number,
            document: worked.document.clone(),
            action: action.to_owned(),
            created: self.core.clock.now(),
            created_by: ctx.actor().to_string(),
        };
        policies::insert_version(tx, &version).await?;
        let details = Details::none()
            .with("policy", row.id.to_string())
            .with("version", worked.number)
            .with("before", said(&worked.before, row.id))
            .with("after", said(&worked.after, row.id))
            .with("hosts_touched", worked.impact.hosts_touched);
        let change = self.shown(tx, Worked { row, ..worked }, terms.expect, false).await?;
        Ok((change, details))
    }

    async fn shown(
        &self,
        tx: &mut Tx,
        worked: Worked,
        expect: Option<u32>,
        must_select: bool,
    ) -> Result<Change, PolicyError> {
        let preview = preview::preview(tx, &worked.impact, &worked.fleet, self.core.clock.now()).await?;
        let guarded = guards::check(&worked.impact, must_select, expect).err().filter(|_| !worked.unchanged);
        Ok(Change {
            policy: worked.row,
            version: worked.number,
            preview,
            guarded,
            unchanged: worked.unchanged,
        })
    }
}

async fn known(tx: &mut Tx, name: &str) -> Result<PolicyRow, PolicyError> {
    let found = policies::by_name(tx, name).await?;
    found.ok_or_else(|| {
        PolicyError::NotFound(format!("policy {:?}", name.chars().take(80).collect::<String>()))
    })
}

fn entity(name: &str) -> String {
    format!("policy:{}", name.chars().take(80).collect::<String>())
}

/// What a policy says among these, for the audit.
fn said(standings: &[Standing], id: PolicyId) -> serde_json::Value {
    let Some(standing) = standings.iter().find(|standing| standing.id == id) else {
        return serde_json::Value::Null;
    };
    let version = |version: &Version| json!({ "version": version.number, "document": *version.policy });
    json!({
        "in_force": standing.whole.as_ref().map(version),
        "canary": standing.canary.as_ref().map(|(selector, tried)| json!({ "hosts": selector, "tried": version(tried) })),
    })
}

/// The version of a policy that a source is under, parsed.
///
/// # Errors
/// As [`version`].
pub async fn in_force(tx: &mut Tx, policy: PolicyId, number: u32) -> Result<Arc<Policy>, PolicyError> {
    Ok(version(tx, policy, &policy.to_string(), number).await?.policy)
}
