//! What admins do to backups: delete, undelete, hold, release; and the plan that they are shown.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use sealift_common::selector::Selector;

use super::applies::term_of;
use super::packs::GRACE;
use super::plan::{Candidate, Term, Verdict};
use super::states::{BackupEvent, BackupState};
use super::{MAX_REASON, Retention, RetentionError, candidates};
use crate::audit::{Action, Details, OpContext};
use crate::backups::query::BackupView;
use crate::identity::agents;
use crate::store::backups::BackupRow;
use crate::store::retention::{self, KeptBackup, Note, PackMove};
use crate::store::{Borrowed, Tx, backups, sources};

/// What becomes of the backups of one source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourcePlan {
    /// The host's name.
    pub agent: String,
    /// The source's name.
    pub source: String,
    /// How long they stay.
    pub term: Term,
    /// Why nothing is deleted in its series, whatever expires.
    pub halted: Option<String>,
    /// Newest first, with what is known of each.
    pub verdicts: Vec<(BackupView, Verdict)>,
}

/// Which sources' plans are asked for.
#[derive(Debug, Clone, Default)]
pub struct PlanQuery {
    /// Only this source, or (without a slash) this agent's; empty for all.
    pub source: String,
    /// Only of agents with such labels.
    pub selector: Selector,
    /// After the agent of that name.
    pub after: String,
    /// Of at most so many agents.
    pub limit: u32,
}

impl Retention {
    /// Deletes a backup for people: it expires, and can be undeleted for three days. With `dry_run` it is only said whether
    /// it could be.
    ///
    /// # Errors
    /// [`RetentionError::LastGood`], [`RetentionError::Held`], [`RetentionError::InUse`], [`RetentionError::State`] and
    /// others.
    pub async fn delete(
        &self,
        ctx: &OpContext,
        text: &str,
        reason: &str,
        dry_run: bool,
    ) -> Result<BackupView, RetentionError> {
        let reason = &checked(reason);
        if dry_run {
            // A refusal is one, whether or not the question was only a question: it is in the audit.
            let asked = ctx.operation(Action::BackupDelete, entity(text), Details::none());
            let look = async {
                let mut reader = self.core.store.reader().await?;
                reason.as_ref().map_err(|_| RetentionError::Reason)?;
                let (row, kept, all) = self.load(&mut reader, text).await?;
                let term = term_of(&mut reader, row.series, self.core.clock.now()).await?;
                may_delete(&kept, &all, &term)?;
                Ok(self.backups.view(&mut reader, row).await?)
            };
            return asked.run(look.boxed()).await;
        }
        self.change(ctx, Action::BackupDelete, text, move |tx, _| {
            async move {
                let reason = reason.as_ref().map_err(|_| RetentionError::Reason)?;
                let (row, kept, all) = self.load_locked(tx, text).await?;
                let term = term_of(tx, row.series, self.core.clock.now()).await?;
                may_delete(&kept, &all, &term)?;
                let note = self.note(ctx, reason);
                retention::move_backup(tx, row.id, BackupState::Committed, BackupState::Expired, Some(&note))
                    .await?;
                let said = moved(&kept, BackupState::Expired)
                    .with("reason", reason.as_str())
                    .with("undelete_until", note.at.plus(GRACE).rfc3339());
                Ok((row, said))
            }
            .boxed()
        })
        .await
    }

    /// Takes back a deletion, whoever deleted.
    ///
    /// # Errors
    /// [`RetentionError::State`] for what is not deleted, or no longer there, and others.
    pub async fn undelete(&self, ctx: &OpContext, text: &str) -> Result<BackupView, RetentionError> {
        self.change(ctx, Action::BackupUndelete, text, move |tx, _| {
            async move {
                let (row, kept, _) = self.load_locked(tx, text).await?;
                let to = apply(&kept, BackupEvent::Undelete)?;
                let now = self.core.clock.now();
                retention::move_backup(tx, row.id, BackupState::Expired, to, None).await?;
                retention::set_undeleted(tx, row.id, now).await?;
                retention::move_packs(tx, row.series, &kept.refs, PackMove::Refer, now).await?;
                let before = kept.keeping.expired.as_ref().map(|note| note.reason.clone());
                Ok((row, moved(&kept, to).with("deleted_because", before.unwrap_or_default())))
            }
            .boxed()
        })
        .await
    }

    /// Holds a backup: neither rules nor admins delete it.
    ///
    /// # Errors
    /// [`RetentionError::Hold`] where it is held already, [`RetentionError::State`] where it is deleted, and others.
    pub async fn hold(
        &self,
        ctx: &OpContext,
        text: &str,
        reason: &str,
    ) -> Result<BackupView, RetentionError> {
        let reason = &checked(reason);
        self.change(ctx, Action::BackupHold, text, move |tx, _| {
            async move {
                let reason = reason.as_ref().map_err(|_| RetentionError::Reason)?;
                let (row, kept, _) = self.load_locked(tx, text).await?;
                // What may expire may be held: committed ones.
                apply(&kept, BackupEvent::Expire)?;
                if kept.keeping.held.is_some() {
                    return Err(RetentionError::Hold { backup: row.id, held: true });
                }
                retention::set_held(tx, row.id, Some(&self.note(ctx, reason))).await?;
                let said = Details::none().with("backup", row.id.to_string()).with("reason", reason.as_str());
                Ok((row, said.with("before", "not held").with("after", "held")))
            }
            .boxed()
        })
        .await
    }

    /// Releases a held backup: rules apply to it again.
    ///
    /// # Errors
    /// [`RetentionError::Hold`] where it is not held, and others.
    pub async fn release(&self, ctx: &OpContext, text: &str) -> Result<BackupView, RetentionError> {
        self.change(ctx, Action::BackupRelease, text, move |tx, _| {
            async move {
                let (row, kept, _) = self.load_locked(tx, text).await?;
                let held = kept.keeping.held.ok_or(RetentionError::Hold { backup: row.id, held: false })?;
                retention::set_held(tx, row.id, None).await?;
                let said = Details::none().with("backup", row.id.to_string());
                let before = format!("held by {} ({})", held.by, held.reason);
                Ok((row, said.with("before", before).with("after", "not held")))
            }
            .boxed()
        })
        .await
    }

    /// What would become of which backup if the rules were applied now, and why; and after which agent the next page begins.
    ///
    /// # Errors
    /// Those of access and database; [`BackupError::NotFound`](crate::backups::BackupError::NotFound) for a source that does
    /// not exist.
    pub async fn plans(
        &self,
        ctx: &OpContext,
        query: &PlanQuery,
    ) -> Result<(Vec<SourcePlan>, Option<String>), RetentionError> {
        ctx.authorize(Action::RetentionPlan, &"retention").await?;
        let mut reader = self.core.store.reader().await?;
        let (agent, source) = query.source.split_once('/').unwrap_or((&query.source, ""));
        let agents = match agent {
            "" => agents::select(&mut reader, &query.selector, &query.after, query.limit).await?,
            name => vec![agents::find(&mut reader, name).await?],
        };
        let next = (agent.is_empty() && agents.len() as u32 == query.limit)
            .then(|| agents.last().map(|agent| agent.name.to_string()))
            .flatten();
        let mut plans = Vec::new();
        for agent in agents {
            for row in sources::of_agent(&mut reader, agent.id).await? {
                if source.is_empty() || row.name.as_str() == source {
                    plans.push(self.source_plan(&mut reader, agent.name.to_string(), row).await?);
                }
            }
        }
        if !source.is_empty() && plans.is_empty() {
            let what = format!("source {}", query.source.chars().take(120).collect::<String>());
            return Err(crate::backups::BackupError::NotFound { what }.into());
        }
        Ok((plans, next))
    }

    async fn source_plan(
        &self,
        tx: &mut Tx,
        agent: String,
        source: sources::SourceRow,
    ) -> Result<SourcePlan, RetentionError> {
        let now = self.core.clock.now();
        let term = term_of(tx, source.series, now).await?;
        let kept = retention::backups(tx, source.series, now).await?;
        let mut verdicts = Vec::new();
        for verdict in term.plan(&candidates(&kept), now) {
            if let Some(row) = backups::get(tx, verdict.backup).await? {
                let view = BackupView { backup: row, agent: agent.clone(), source: source.name.to_string() };
                verdicts.push((view, verdict));
            }
        }
        let halted = retention::halted(tx, source.series).await?.map(|(_, why)| why);
        Ok(SourcePlan { agent, source: source.name.to_string(), term, halted, verdicts })
    }

    /// One change, audited with what was before and what is after; the backup as it is then.
    async fn change<'caller, F>(
        &self,
        ctx: &OpContext,
        action: Action,
        text: &str,
        work: F,
    ) -> Result<BackupView, RetentionError>
    where
        F: for<'tx> Fn(
                &'tx mut Tx,
                Borrowed<'tx, 'caller>,
            ) -> BoxFuture<'tx, Result<(BackupRow, Details), RetentionError>>
            + Send
            + Sync,
    {
        let work = &work;
        ctx.perform(action, &entity(text), Details::none(), move |tx, _| {
            async move {
                let (row, said) = work(tx, std::marker::PhantomData).await?;
                let row = backups::get(tx, row.id).await?.unwrap_or(row);
                Ok::<_, RetentionError>((self.backups.view(tx, row).await?, said))
            }
            .boxed()
        })
        .await
    }

    async fn load_locked(
        &self,
        tx: &mut Tx,
        text: &str,
    ) -> Result<(BackupRow, KeptBackup, Vec<Candidate>), RetentionError> {
        let series = self.backups.find_any(tx, text).await?.series;
        sources::lock_series(tx, series).await?;
        self.load(tx, text).await
    }

    async fn load(
        &self,
        tx: &mut Tx,
        text: &str,
    ) -> Result<(BackupRow, KeptBackup, Vec<Candidate>), RetentionError> {
        let row = self.backups.find_any(tx, text).await?;
        let all = retention::backups(tx, row.series, self.core.clock.now()).await?;
        let candidates = candidates(&all);
        let gone = || crate::backups::BackupError::NotFound { what: format!("backup {}", row.id) };
        let kept = all.into_iter().find(|backup| backup.id == row.id).ok_or_else(gone)?;
        Ok((row, kept, candidates))
    }

    fn note(&self, ctx: &OpContext, reason: &str) -> Note {
        Note { at: self.core.clock.now(), by: ctx.actor().to_string(), reason: reason.to_owned() }
    }
}

fn entity(text: &str) -> String {
    format!("backup:{}", text.chars().take(120).collect::<String>())
}

fn checked(reason: &str) -> Result<String, RetentionError> {
    let reason = reason.trim();
    let fits = !reason.is_empty() && reason.chars().count() <= MAX_REASON;
    if fits { Ok(reason.to_owned()) } else { Err(RetentionError::Reason) }
}

fn apply(kept: &KeptBackup, event: BackupEvent) -> Result<BackupState, RetentionError> {
    kept.state.apply(event).map_err(|illegal| RetentionError::State { backup: kept.id, illegal })
}

fn moved(kept: &KeptBackup, to: BackupState) -> Details {
    let said = Details::none().with("backup", kept.id.to_string());
    said.with("before", kept.state.as_str()).with("after", to.as_str())
}

fn may_delete(kept: &KeptBackup, all: &[Candidate], term: &Term) -> Result<(), RetentionError> {
    let backup = kept.id;
    apply(kept, BackupEvent::Expire)?;
    if let Some(held) = &kept.keeping.held {
        return Err(RetentionError::Held { backup, by: held.by.clone(), reason: held.reason.clone() });
    }
    if kept.in_use {
        return Err(RetentionError::InUse { backup });
    }
    if term.indispensable(all) == Some(backup) {
        return Err(RetentionError::LastGood { backup });
    }
    Ok(())
}
