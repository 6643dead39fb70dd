//! What an agent says when it connects, and what that changes: its sources, and the attempts it works on.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::EpochId;
use sealift_common::id::{AgentId, InstanceId, SeriesId};
use sealift_common::name::Name;
use sealift_common::protocol::{Agreed, Feature, Spoken};

use super::{SaidHead, SessionService};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::identity::enrol::said;
use crate::recovery::names::PLACEHOLDER;
use crate::runs::attempt::{Report, advance, ended_by_agent, find, lock_open};
use crate::runs::state::{AttemptEvent, AttemptState};
use crate::runs::{AttemptRef, RunError};
use crate::store::agents::{self, AgentRow, SaidProtocol};
use crate::store::sources::{self, SourceRow};
use crate::store::{Tx, attempts, recovery};

/// How long an agent waits for the first comparison of database and bucket after a start.
const CHECKED: Duration = Duration::from_secs(5);
/// Most sources of one host.
pub const MAX_SOURCES: usize = 1_000;

/// Clocks may differ this much.
const CLOCK_TOLERANCE_MS: u64 = 5 * 60 * 1_000;

/// What an agent says first; the wire's `Hello`, parsed.
#[derive(Debug, Clone)]
pub struct Hello {
    /// This start of its process.
    pub instance: InstanceId,
    /// Its version.
    pub version: String,
    /// What its build speaks.
    pub speaks: Spoken,
    /// Its operating system.
    pub os: String,
    /// Its time zone.
    pub timezone: String,
    /// What its clock says; `None` from one that does not tell.
    pub clock: Option<UnixMillis>,
    /// What it calls itself.
    pub host: String,
    /// What it can back up.
    pub sources: Vec<SaidSource>,
    /// What it works on, or could not report.
    pub attempts: Vec<SaidAttempt>,
    /// The newest manifests that it knows of.
    pub heads: Vec<SaidHead>,
}

/// A source, as its host describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaidSource {
    /// Its name in the host's config.
    pub name: Name,
    /// Its kind.
    pub kind: String,
    /// For people.
    pub detail: String,
    /// Where its credentials come from.
    pub credential_origins: Vec<String>,
    /// The dedup epoch of its series; `None` before the first backup.
    pub epoch: Option<EpochId>,
}

/// An attempt, as its host remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaidAttempt {
    /// Which.
    pub attempt: AttemptRef,
    /// `None`: it goes on. `Some`: nothing works on it any more.
    pub ended: Option<SaidEnd>,
}

/// How an attempt ended, as its host remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SaidEnd {
    /// The process that worked on it is gone; what its journal knows.
    Interrupted(String),
    /// It failed, and its report did not come through.
    Failed {
        /// The report.
        report: Report,
        /// Somebody had asked for it to end.
        stopped: bool,
    },
}

/// What the agent is to know before anything else.
#[derive(Debug, Clone, Default)]
pub struct Welcome {
    /// Counts the agent's sessions, on all coordinators.
    pub epoch: u64,
    /// Attempts that are over: stop working on them.
    pub lost: Vec<AttemptRef>,
    /// Attempts that go on but are to stop.
    pub cancelling: Vec<AttemptRef>,
}

impl SessionService {
    /// Takes in what an agent says first, after it was agreed on what is spoken.
    ///
    /// # Errors
    /// Those of access and database.
    pub async fn hello(&self, ctx: &OpContext, hello: &Hello, agreed: &Agreed) -> Result<Welcome, RunError> {
        let operation = ctx.operation(Action::SessionOpen, ctx.actor(), Details::none());
        let address = ctx.address();
        self.core.standing.checked(CHECKED).await;
        let take_in = async {
            let agent = operation.agent()?;
            let record = self.core.store.run_tx("hello", move |tx, _| {
                async move {
                    let row = self.describe(tx, agent, hello, address).await?;
                    // A source that this database has forgotten must not get another series: see [`crate::recovery`].
                    if self.core.standing.serving().is_ok() {
                        self.take_sources(tx, &row, &hello.sources).await?;
                    }
                    let mut welcome = self.take_attempts(tx, ctx, agent, hello, agreed).await?;
                    let ahead = ahead(tx, agent, &hello.heads).await?;
                    self.take_heads(tx, ctx, agent, &hello.heads).await?;
                    welcome.epoch = self.relay.opened(tx, agent).await?;
                    let said = Details::none()
                        .with("instance", hello.instance.to_string())
                        .with("version", row.version)
                        .with("protocol", agreed.version.to_string())
                        .with("features", agreed.features.to_string())
                        .with("sources", hello.sources.len());
                    ctx.record(tx, Action::SessionOpen, ctx.actor(), Outcome::Done, said).await?;
                    Ok::<_, RunError>((agent, welcome, ahead))
                }
                .boxed()
            });
            record.await
        };
        let (agent, welcome, ahead) = operation.run(take_in.boxed()).await?;
        if !ahead.is_empty() && self.core.standing.serving().is_ok() {
            let generations = self.generations.clone();
            tokio::spawn(async move {
                if let Err(error) = generations.examine(agent, &ahead).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, %agent, "cannot look for the manifests that a host names");
                }
            });
        }
        self.runs.wake();
        for said in &hello.attempts {
            self.runs.changed(said.attempt.run);
        }
        Ok(welcome)
    }

    /// Takes in a changed list of sources.
    ///
    /// # Errors
    /// Those of access and database.
    pub async fn sources_changed(&self, ctx: &OpContext, said: &[SaidSource]) -> Result<(), RunError> {
        let operation = ctx.operation(Action::SessionOpen, ctx.actor(), Details::none());
        let take_in = async {
            let agent = operation.agent()?;
            let record = self.core.store.run_tx("sources changed", move |tx, _| {
                async move {
                    let row = known(tx, agent).await?;
                    // Else they are asked for again as soon as it serves.
                    if self.core.standing.serving().is_err() {
                        return Ok(());
                    }
                    self.take_sources(tx, &row, said).await
                }
                .boxed()
            });
            record.await
        };
        operation.run(take_in.boxed()).await
    }

    async fn describe(
        &self,
        tx: &mut Tx,
        agent: AgentId,
        hello: &Hello,
        address: Option<SocketAddr>,
    ) -> Result<AgentRow, RunError> {
        let mut row = known(tx, agent).await?;
        let host = hello.host.to_ascii_lowercase();
        if row.name.as_str().starts_with(PLACEHOLDER)
            && host.parse::<Name>().is_ok()
            && agents::by_name(tx, &host).await?.is_none()
        {
            recovery::rename_agent(tx, agent, &host).await?;
        }
        row.version = said(&hello.version);
        let speaks = &hello.speaks;
        row.protocol = SaidProtocol { newest: Some(speaks.newest), features: speaks.features, refused: None };
        row.os = said(&hello.os);
        row.timezone = said(&hello.timezone);
        row.address = address.map(|a| a.to_string()).unwrap_or_default();
        row.last_seen = self.core.clock.now();
        row.clock_skew_ms = hello.clock.map_or(0, |clock| clock.0.saturating_sub(row.last_seen.0));
        if row.clock_skew_ms.unsigned_abs() > CLOCK_TOLERANCE_MS {
            tracing::warn!(%agent, name = %row.name, skew_ms = row.clock_skew_ms, "the clock of this host is wrong");
        }
        agents::update(tx, &row).await?;
        Ok(row)
    }

    /// A source that is new gets a series; one that is gone keeps its own, and is shown as absent.
    async fn take_sources(&self, tx: &mut Tx, agent: &AgentRow, said: &[SaidSource]) -> Result<(), RunError> {
        let now = self.core.clock.now();
        let before = sources::of_agent(tx, agent.id).await?;
        let mut before: BTreeMap<Name, SourceRow> = before.into_iter().map(|s| (s.name.clone(), s)).collect();
        for source in said.iter().take(MAX_SOURCES) {
            let mut old = before.remove(&source.name);
            if old.is_none()
                && let Some(forgotten) = forgotten(tx, &before, source).await?
            {
                recovery::forget_source(tx, agent.id, forgotten.name.as_str()).await?;
                before.remove(&forgotten.name);
                old = Some(forgotten);
            }
            let row = SourceRow {
                agent: agent.id,
                name: source.name.clone(),
                kind: source.kind.clone(),
                detail: source.detail.clone(),
                credential_origins: source.credential_origins.clone(),
                series: old.as_ref().map_or_else(|| SeriesId::generate(&self.core.random), |old| old.series),
                present: true,
                changed: now,
            };
            match old {
                None => sources::insert_series(tx, &row, &agent.scope).await?,
                Some(old) if SourceRow { changed: now, ..old.clone() } == row => continue,
                Some(_) => {}
            }
            sources::put(tx, &row).await?;
        }
        for gone in before.into_values().filter(|source| source.present) {
            sources::put(tx, &SourceRow { present: false, changed: now, ..gone }).await?;
        }
        Ok(())
    }

    /// Attempts of this agent that are open: those it says it works on go on, also where another process of it has taken them
    /// up from its spool; the others are lost with their process.
    async fn take_attempts(
        &self,
        tx: &mut Tx,
        ctx: &OpContext,
        agent: AgentId,
        hello: &Hello,
        agreed: &Agreed,
    ) -> Result<Welcome, RunError> {
        let now = self.core.clock.now();
        let (mut welcome, mut running) = (Welcome::default(), HashSet::new());
        let mut ended = BTreeMap::new();
        for said in &hello.attempts {
            match find(tx, &said.attempt, agent).await {
                Ok(attempt) if attempt.ended.is_none() => match &said.ended {
                    None => drop(running.insert((attempt.run, attempt.number))),
                    Some(end) => drop(ended.insert((attempt.run, attempt.number), end.clone())),
                },
                Ok(_) | Err(RunError::Stale { .. } | RunError::NotYours { .. }) => {
                    welcome.lost.push(said.attempt);
                }
                Err(error) => return Err(error),
            }
        }
        for attempt in attempts::open_of_agent(tx, agent).await? {
            let Some(mut attempt) = lock_open(tx, &attempt).await? else { continue };
            let key = (attempt.run, attempt.number);
            // Only a spool lets an attempt outlive its process.
            let same_process = attempt.instance.is_none_or(|instance| instance == hello.instance);
            if running.contains(&key) && (same_process || agreed.features.has(Feature::Spool)) {
                if attempt.state == AttemptState::Offered {
                    // It was accepted; the answer was lost with the session before.
                    attempt = advance(tx, now, &attempt, AttemptEvent::Accept, Report::default()).await?;
                }
                attempt.instance = Some(hello.instance);
                attempt.lease_owner = self.core.coordinator.to_string();
                attempt.lease_expires = self.core.lease_time().plus(self.settings.lease());
                attempts::update(tx, &attempt).await?;
                if attempt.state == AttemptState::Cancelling {
                    welcome.cancelling.push(attempt.reference());
                }
                continue;
            }
            let (event, action, report) = match ended.remove(&key) {
                Some(SaidEnd::Failed { report, stopped }) => {
                    (ended_by_agent(attempt.state, stopped), Action::AttemptFail, report)
                }
                Some(SaidEnd::Interrupted(why)) if !why.is_empty() => {
                    let report = Report { error: said(&why), ..Report::default() };
                    (AttemptEvent::Lose, Action::AttemptLose, report)
                }
                // Not heard of by the agent: the offer, or the process that took it, is gone.
                _ => {
                    let error = "the agent does not work on it any more".to_owned();
                    (AttemptEvent::Lose, Action::AttemptLose, Report { error, ..Report::default() })
                }
            };
            welcome.lost.push(attempt.reference());
            let said = Details::none().with("error", report.error.as_str());
            let after = advance(tx, now, &attempt, event, report).await?;
            let said = said.with("state", after.state.as_str());
            ctx.record(tx, action, &format!("attempt:{}", attempt.reference()), Outcome::Done, said).await?;
        }
        Ok(welcome)
    }
}

/// The series that a recovery took in without the name of its source, and that this source writes: its packs are of the
/// epoch whose secret only this host has.
async fn forgotten(
    tx: &mut Tx,
    rows: &BTreeMap<Name, SourceRow>,
    said: &SaidSource,
) -> Result<Option<SourceRow>, RunError> {
    let Some(epoch) = said.epoch else { return Ok(None) };
    for row in rows.values().filter(|row| row.name.as_str().starts_with(PLACEHOLDER)) {
        if recovery::has_epoch(tx, row.series, epoch).await? {
            return Ok(Some(row.clone()));
        }
    }
    Ok(None)
}

/// Heads that are newer than all that the database knows of their series: those numbers are taken.
async fn ahead(tx: &mut Tx, agent: AgentId, heads: &[SaidHead]) -> Result<Vec<SaidHead>, RunError> {
    let mut ahead = Vec::new();
    for head in heads {
        if head.sequence > recovery::highest_sequence(tx, head.series).await? {
            recovery::raise_floor(tx, head.series, Some(agent), head.sequence).await?;
            ahead.push(*head);
        }
    }
    Ok(ahead)
}

/// The agent, which is locked until the transaction ends.
pub(super) async fn known(tx: &mut Tx, agent: AgentId) -> Result<AgentRow, RunError> {
    let found = agents::lock(tx, agent).await?;
    found.ok_or_else(|| RunError::NotFound { what: format!("agent {agent}") })
}
