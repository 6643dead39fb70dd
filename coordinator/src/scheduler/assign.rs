//! What is in force for each source: made from policies, labels and sources, again and again, written where it differs.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt as _;
use jiff::tz::TimeZone;
use sealift_common::clock::UnixMillis;
use sealift_common::id::PolicyId;

use super::next_run::offset;
use super::plan::planned;
use super::service::Scheduler;
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::policy::delay::RulesInTime;
use crate::policy::document::{AtWindowEnd, Policy, Schedule};
use crate::policy::guards::FleetSource;
use crate::policy::resolve::{Choice, Standing, resolve};
use crate::policy::{PolicyError, service, standings};
use crate::runs::state::RunEvent;
use crate::runtime::Leader;
use crate::store::agents::AgentState;
use crate::store::runs::{self, RunRow};
use crate::store::source_policies::{self, FleetRow, SourcePolicyRow};
use crate::store::{Tx, backups};

/// Sources that are read, and written, in one go.
const BATCH: u32 = 1_000;

/// Versions of policies that were looked up, so that each is parsed once a pass.
type Versions = HashMap<(PolicyId, u32), Option<Arc<Policy>>>;

impl Scheduler {
    /// Looks at every source, as the leader or (without one) for whoever changed a policy here. Returns for how many something
    /// else is in force than before.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn assign_once(&self, leader: Option<&Leader>) -> Result<usize, PolicyError> {
        let (mut after, mut changed, mut versions) = (String::new(), 0, Versions::new());
        loop {
            let page = source_policies::fleet(&mut *self.core.store.reader().await?, &after, BATCH).await?;
            let Some(last) = page.last() else { return Ok(changed) };
            after = last.series.to_string();
            // Read after the rows: a policy that was put in force meanwhile is then known, or its row is not the one that was
            // read any more, which `write` notices. The other way round it would be taken for one that is gone.
            let mut policies = standings(&mut *self.core.store.reader().await?).await?;
            policies.sort_by(|a, b| a.name.cmp(&b.name));
            let now = self.core.clock.now();
            let mut news = Vec::new();
            for row in page {
                let before = self.schedule_before(&row, &mut versions).await?;
                if let Some(news_of) = differs(&policies, &row, before.as_deref(), now) {
                    news.push((row, news_of));
                }
            }
            changed += news.len();
            if !news.is_empty() {
                self.write(leader, &news, now).await?;
            }
        }
    }

    /// The version that a source was under so far.
    async fn schedule_before(
        &self,
        row: &FleetRow,
        known: &mut Versions,
    ) -> Result<Option<Arc<Policy>>, PolicyError> {
        let Some(key) = row.now.as_ref().and_then(|now| now.policy) else { return Ok(None) };
        if let Some(version) = known.get(&key) {
            return Ok(version.clone());
        }
        let found = match service::in_force(&mut *self.core.store.reader().await?, key.0, key.1).await {
            Ok(policy) => Some(policy),
            // Then its schedule is made anew.
            Err(PolicyError::NotFound(_) | PolicyError::Unreadable { .. }) => None,
            Err(error) => return Err(error),
        };
        known.insert(key, found.clone());
        Ok(found)
    }

    async fn write(
        &self,
        leader: Option<&Leader>,
        news: &[(FleetRow, News)],
        now: UnixMillis,
    ) -> Result<(), PolicyError> {
        let ctx = &OpContext::coordinator(&self.core);
        self.core
            .store
            .run_tx("write what is in force", move |tx, _| {
                async move {
                    if let Some(leader) = leader {
                        leader.fence(tx).await?;
                    }
                    for (fleet, news) in news {
                        let mut row = news.row.clone();
                        // The schedule may have gone on since it was read, or somebody else may have written this.
                        let current = source_policies::lock(tx, row.series).await?;
                        if current.as_ref().map(|c| (c.policy, &c.timezone))
                            != fleet.now.as_ref().map(|f| (f.policy, &f.timezone))
                        {
                            continue;
                        }
                        if let Some(current) = current {
                            row.overdue_since = current.overdue_since;
                            if news.same_schedule {
                                (row.next_due, row.owed) = (current.next_due, current.owed);
                            }
                        }
                        let fresh =
                            fleet.now.is_none() && backups::newest_at(tx, row.series, now).await?.is_none();
                        let rules = news.rules.changed(
                            news.policy.as_ref().map_or_else(Default::default, |p| p.2.retention),
                            now,
                            fresh,
                        );
                        (row.retention, row.retention_next) = (rules.now, rules.next);
                        source_policies::put(tx, &row).await?;
                        self.reconsider(tx, ctx, fleet, news, now).await?;
                    }
                    Ok::<_, PolicyError>(())
                }
                .boxed()
            })
            .await
    }

    /// Runs that have not started go by what is in force now: with its version where it wants them too, else not at all.
    async fn reconsider(
        &self,
        tx: &mut Tx,
        ctx: &OpContext,
        fleet: &FleetRow,
        news: &News,
        now: UnixMillis,
    ) -> Result<(), PolicyError> {
        for open in runs::open_of_series(tx, fleet.series).await? {
            let Some(mut run) = runs::lock(tx, open.id).await? else { continue };
            let Some(plan) = run.plan else { continue };
            let Ok(superseded) = run.state.apply(RunEvent::Supersede) else { continue };
            if let Some((id, number, _)) = &news.policy
                && (*id, *number) == (plan.policy, plan.version)
                && news.scheduled
            {
                continue;
            }
            let kept = news.policy.as_ref().filter(|(id, ..)| news.scheduled && *id == plan.policy);
            let kept =
                kept.and_then(|(_, number, policy)| Some((*number, policy, policy.schedule.as_ref()?)));
            match kept.filter(|(.., schedule)| schedule.cron.is_due_at(&news.zone, plan.instant)) {
                Some((number, policy, schedule)) => {
                    relabel(&mut run, number, policy, schedule, &news.zone, now)
                }
                None => {
                    run.state = superseded;
                    run.ended = Some(now);
                    run.error = "its policy changed before it started".to_owned();
                    let said =
                        Details::none().with("state", run.state.as_str()).with("why", run.error.as_str());
                    ctx.record(tx, Action::RunFinish, &format!("run:{}", run.id), Outcome::Done, said)
                        .await?;
                }
            }
            runs::update(tx, &run).await?;
        }
        Ok(())
    }
}

/// A planned run under another version of its policy.
fn relabel(
    run: &mut RunRow,
    number: u32,
    policy: &Policy,
    schedule: &Schedule,
    zone: &TimeZone,
    now: UnixMillis,
) {
    let Some(plan) = &mut run.plan else { return };
    plan.version = number;
    plan.attempts = policy.attempts();
    if plan.occasion == runs::Occasion::CatchUp {
        return;
    }
    let next = schedule.cron.after(zone, plan.instant).unwrap_or(plan.deadline);
    let due = super::next_run::Due { instant: plan.instant, collapsed: plan.collapsed, next };
    let delay = offset(plan.policy, run.series, schedule.spread.0);
    let anew = planned(&due, delay, schedule.window.map(|window| window.0));
    run.due = anew.start.max(now.min(run.due));
    plan.deadline = anew.deadline;
    plan.stop = (policy.limits.at_window_end == AtWindowEnd::Stop).then_some(anew.deadline);
}

/// What is to be in force for a source that is not.
#[derive(Debug, Clone)]
struct News {
    row: SourcePolicyRow,
    rules: RulesInTime,
    policy: Option<(PolicyId, u32, Arc<Policy>)>,
    zone: TimeZone,
    /// Whether its schedule makes runs.
    scheduled: bool,
    /// Whether these are due when they were due before.
    same_schedule: bool,
}

/// What is in force for a source, where that is not what its row says.
fn differs(policies: &[Standing], row: &FleetRow, before: Option<&Policy>, now: UnixMillis) -> Option<News> {
    let source = FleetSource {
        agent: row.agent,
        agent_name: row.agent_name.clone(),
        labels: Arc::new(row.labels.clone()),
        timezone: row.timezone.as_str().into(),
        series: row.series,
        name: row.name.clone(),
        kind: row.kind.clone(),
    };
    let choice = resolve(policies, &source.subject()).0;
    let known = row.now.as_ref();
    if known.is_none() && choice.is_none() {
        return None;
    }
    let may_run = row.present && row.state == AgentState::Active;
    let schedule = choice.and_then(|choice| choice.version.policy.schedule.as_ref()).filter(|_| may_run);
    let zone = schedule.map_or(TimeZone::UTC, |schedule| schedule.timezone.of_host(&row.timezone));
    let zone_name = schedule.map_or_else(String::new, |_| zone.iana_name().unwrap_or("UTC").to_owned());
    let policy = choice.map(|choice: Choice<'_>| (choice.standing.id, choice.version.number));
    let rules = known.map_or_else(RulesInTime::default, |known| RulesInTime {
        now: known.retention,
        next: known.retention_next,
    });
    let wanted = choice.map_or_else(Default::default, |choice| choice.version.policy.retention);
    let same_schedule = known.is_some_and(|known| {
        let before = before.and_then(|before| before.schedule.as_ref());
        known.next_due.is_some() == schedule.is_some()
            && known.timezone == zone_name
            && before.map(|s| &s.cron) == schedule.map(|s| &s.cron)
            && known.policy.map(|(id, _)| id) == policy.map(|(id, _)| id)
    });
    if let Some(known) = known
        && known.policy == policy
        && known.agent == row.agent
        && (same_schedule || (schedule.is_none() && known.next_due.is_none()))
        && rules.at(now) == rules.changed(wanted, now, false).now
        && rules.next.is_none_or(|(_, from)| from > now)
    {
        return None;
    }
    let promise = choice.and_then(|choice| choice.version.policy.alert.overdue_after);
    let next_due = match known.filter(|_| same_schedule) {
        Some(known) => known.next_due,
        None => schedule.and_then(|schedule| schedule.cron.after(&zone, now)),
    };
    Some(News {
        row: SourcePolicyRow {
            series: row.series,
            agent: row.agent,
            policy,
            timezone: zone_name,
            assigned: known.filter(|known| known.policy.is_some()).map_or(now, |known| known.assigned),
            promise_ms: promise.map_or(0, |span| i64::try_from(span.0.as_millis()).unwrap_or(i64::MAX)),
            overdue_since: known.and_then(|known| known.overdue_since),
            next_due,
            owed: known.filter(|_| same_schedule).and_then(|known| known.owed),
            retention: rules.now,
            retention_next: rules.next,
        },
        rules,
        policy: choice
            .map(|choice| (choice.standing.id, choice.version.number, choice.version.policy.clone())),
        zone,
        scheduled: schedule.is_some(),
        same_schedule,
    })
}
