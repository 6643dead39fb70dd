//! Agents and their sources, for admins.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, RequestId};
use sealift_common::name::Name;
use sealift_common::protocol::{Currency, Feature, Features};
use sealift_common::selector::Selector;
use sealift_proto::v1;
use sealift_proto::v1::agent_admin_server::AgentAdmin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::backup_admin::backup_to_wire;
use super::convert::Target;
use super::{Gate, convert};
use crate::audit::{Action, Details, Outcome};
use crate::backups::query::BackupView;
use crate::core::Core;
use crate::identity::{Identities, IdentityError, agents};
use crate::policy::Policies;
use crate::policy::promise::{Rpo, measure};
use crate::policy::resolve::{Standing, Subject, resolve};
use crate::policy::standings;
use crate::sessions::SessionService;
use crate::sessions::checks::{Checks, PATIENCE, SourceCheck};
use crate::store::agents::{self as store_agents, AgentRow, AgentState};
use crate::store::backups::BackupRow;
use crate::store::lists::agents::ListedAgent;
use crate::store::lists::sources::ListedSource;
use crate::store::runs::RunRow;
use crate::store::{Tx, lists, source_policies, sources};

/// Most hosts that are asked to test their sources at a time.
const MAX_TESTED: u32 = 1_000;
/// Sources that are looked at for one page, at most: the page is that much longer than asked for where few are wanted.
const MOST_LOOKED_AT: usize = 5_000;
/// Answers that wait for the network.
const QUEUE: usize = 64;

/// Agents and sources.
#[derive(Debug, Clone)]
pub struct AgentApi {
    /// Who calls.
    pub gate: Gate,
    /// The database.
    pub core: Core,
    /// What does the work.
    pub identities: Identities,
    /// Who is connected.
    pub sessions: SessionService,
    /// Tests of sources that are under way.
    pub checks: Arc<Checks>,
    /// Told when labels change: other policies may be in force then.
    pub policies: Policies,
}

impl AgentApi {
    fn agent_to_wire(&self, row: &AgentRow, sources: Vec<v1::SourceState>) -> v1::Agent {
        let connected = self.sessions.is_connected(row.id);
        let state = match row.state {
            AgentState::Active if !connected => "silent",
            state => state.as_str(),
        };
        let (here, currency) = (self.sessions.speaks(), row.protocol.currency(self.sessions.speaks()));
        let lacks = currency.map_or(Features::NONE, |_| here.features.without(row.protocol.features));
        v1::Agent {
            id: row.id.to_string(),
            name: row.name.to_string(),
            state: state.to_owned(),
            labels: convert::labels_to_wire(&row.labels),
            scope: row.scope.clone(),
            version: row.version.clone(),
            os: row.os.clone(),
            connected,
            enrolled_ms: row.enrolled.0,
            last_seen_ms: row.last_seen.0,
            certificate_expires_ms: row.certificate_expires.0,
            address: row.address.clone(),
            signing_key: row.signing_key.to_vec(),
            timezone: row.timezone.clone(),
            wanted_name: row.wanted_name.clone(),
            state_reason: row.state_reason.clone(),
            keep_until_ms: row.keep_until.map_or(0, |at| at.0),
            clock_skew_ms: row.clock_skew_ms,
            protocol: row.protocol.newest.map(|version| version.to_string()).unwrap_or_default(),
            features: row.protocol.features.names(),
            build: currency.map_or("", Currency::as_str).to_owned(),
            lacks: lacks.names(),
            upgrade_required_ms: row.protocol.refused.map_or(0, |at| at.0),
            stored_bytes: sources.iter().map(|source| source.stored_bytes).sum(),
            backups: sources.iter().map(|source| source.backups).sum(),
            sources,
        }
    }

    /// Sources with the newest run and backup of each, and what policies say of them. The caller holds no reader meanwhile:
    /// these are read side by side.
    async fn states(
        &self,
        agents: &HashMap<AgentId, &AgentRow>,
        listed: Vec<ListedSource>,
    ) -> Result<Vec<v1::SourceState>, Status> {
        let (store, now) = (&self.core.store, self.core.clock.now());
        let series: Vec<_> = listed.iter().map(|listed| listed.source.series).collect();
        let policies = async {
            let mut conn = store.reader().await?;
            Ok::<_, Status>((
                standings(&mut conn).await?,
                source_policies::of_series(&mut conn, &series).await?,
            ))
        };
        let runs = async { lists::sources::last_runs(&mut *store.reader().await?, &series).await };
        let backups = async { lists::sources::last_backups(&mut *store.reader().await?, &series).await };
        let (policies, runs, backups) = tokio::join!(policies, runs, backups);
        let ((standings, in_force), mut runs, mut backups) = (policies?, runs?, backups?);
        let mut out = Vec::with_capacity(listed.len());
        for listed in listed {
            let (series, agent) = (listed.source.series, agents.get(&listed.source.agent));
            let mut state = source_to_wire(listed, runs.remove(&series), backups.remove(&series));
            if let Some(agent) = agent {
                add_policies(agent, &standings, in_force.get(&series), now, &mut state)?;
            }
            out.push(state);
        }
        Ok(out)
    }

    pub(super) async fn whole(&self, row: AgentRow) -> Result<Response<v1::Agent>, Status> {
        let of_agents = lists::sources::of_agents(&mut *self.core.store.reader().await?, &[row.id]).await;
        let listed = of_agents?.remove(&row.id).unwrap_or_default();
        let sources = self.states(&HashMap::from([(row.id, &row)]), listed).await?;
        Ok(Response::new(self.agent_to_wire(&row, sources)))
    }
}

fn source_to_wire(
    listed: ListedSource,
    last_run: Option<RunRow>,
    last_good: Option<BackupRow>,
) -> v1::SourceState {
    let ListedSource { source, agent: agent_name, stored_bytes, backups } = listed;
    let source_name = source.name.to_string();
    let view = |backup| BackupView { backup, agent: agent_name.clone(), source: source_name.clone() };
    v1::SourceState {
        agent_id: source.agent.to_string(),
        last_good: last_good.map(view).map(backup_to_wire),
        last_run: last_run.map(|run| convert::run_row_to_wire(run, &agent_name)),
        agent: agent_name,
        name: source_name,
        kind: source.kind,
        detail: source.detail,
        series_id: source.series.to_string(),
        present: source.present,
        stored_bytes,
        backups,
        rpo: Rpo::None.to_string(),
        ..Default::default()
    }
}

/// Adds what policies say of a source.
#[allow(clippy::result_large_err)]
fn add_policies(
    agent: &AgentRow,
    standings: &[Standing],
    in_force: Option<&source_policies::SourcePolicyRow>,
    now: UnixMillis,
    state: &mut v1::SourceState,
) -> Result<(), Status> {
    let name: Name = convert::text("source", &state.name)?;
    let subject = Subject { labels: &agent.labels, name: &name, kind: &state.kind };
    let (choice, others) = resolve(standings, &subject);
    state.other_policies = others.into_iter().map(ToString::to_string).collect();
    if let Some(choice) = choice {
        state.policy = choice.standing.name.to_string();
        state.policy_version = choice.version.number;
        state.policy_canary = choice.canary;
    }
    let last_good = state.last_good.as_ref().map(|backup| UnixMillis(backup.created_ms));
    state.last_good_age_ms =
        last_good.map_or(0, |good| now.since(good).as_millis().try_into().unwrap_or(i64::MAX));
    if let Some(row) = in_force {
        state.next_due_ms = row.next_due.unwrap_or_default().0;
        if row.policy.is_some() && state.present {
            state.promise_ms = row.promise_ms;
            state.rpo = measure(row.promise_ms, last_good, row.assigned, now).to_string();
        }
    }
    Ok(())
}

/// Which sources are asked for, beyond the labels of their hosts.
#[derive(Debug, Default)]
struct SourceFilter {
    rpo: Option<Rpo>,
    policy: String,
    without_policy: bool,
}

impl SourceFilter {
    #[allow(clippy::result_large_err)]
    fn of(wire: &v1::ListSourcesRequest) -> Result<Self, Status> {
        Ok(Self {
            rpo: (!wire.rpo.is_empty()).then(|| convert::text("rpo", &wire.rpo)).transpose()?,
            policy: wire.policy.clone(),
            without_policy: wire.without_policy,
        })
    }

    fn wants(&self, state: &v1::SourceState) -> bool {
        self.rpo.is_none_or(|rpo| state.rpo == rpo.as_str())
            && (self.policy.is_empty() || state.policy == self.policy)
            && (!self.without_policy || (state.policy.is_empty() && state.present))
    }
}

/// The agents that a target names or selects, by name.
///
/// # Errors
/// As [`agents::find`].
pub async fn targeted(
    tx: &mut Tx,
    target: &Target,
    after: &str,
    limit: u32,
) -> Result<Vec<AgentRow>, IdentityError> {
    match &target.agent {
        Some(agent) => {
            let agent = agents::find(tx, agent).await?;
            Ok(Some(agent).filter(|agent| target.selector.matches(&agent.labels)).into_iter().collect())
        }
        None => agents::select(tx, &target.selector, after, limit).await,
    }
}

#[tonic::async_trait]
impl AgentAdmin for AgentApi {
    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let paging = convert::paging(wire.page)?;
        let selector: Selector = convert::text("selector", &wire.selector)?;
        let page = self.identities.list_agents(&ctx, &selector, &paging).await?;
        let ids: Vec<_> = page.rows.iter().map(|listed| listed.agent.id).collect();
        let rows = page.rows.iter().map(|listed| (listed.agent.id, &listed.agent)).collect();
        let sources = lists::sources::of_agents(&mut *self.core.store.reader().await?, &ids).await?;
        let listed = sources.into_values().flatten();
        let states = match wire.brief {
            true => listed.map(|listed| source_to_wire(listed, None, None)).collect(),
            false => self.states(&rows, listed.collect()).await?,
        };
        let mut by_agent: HashMap<String, Vec<v1::SourceState>> = HashMap::new();
        for state in states {
            by_agent.entry(state.agent_id.clone()).or_default().push(state);
        }
        let agent = |listed: &ListedAgent| {
            let sources = by_agent.remove(&listed.agent.id.to_string()).unwrap_or_default();
            self.agent_to_wire(&listed.agent, sources)
        };
        let agents = page.rows.iter().map(agent).collect();
        let next = convert::position_to_wire(page.next.as_ref());
        Ok(Response::new(v1::ListAgentsReply { agents, next }))
    }

    async fn get_agent(&self, request: Request<v1::GetAgentRequest>) -> Result<Response<v1::Agent>, Status> {
        let ctx = self.gate.context(&request).await?;
        let row = self.identities.show_agent(&ctx, &request.get_ref().agent).await?;
        self.whole(row).await
    }

    async fn label_agent(
        &self,
        request: Request<v1::LabelAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let set = convert::labels(wire.set)?;
        let row = self.identities.label_agent(&ctx, &wire.agent, &set, &wire.remove).await?;
        self.policies.changed();
        self.whole(row).await
    }

    async fn revoke_agent(
        &self,
        request: Request<v1::RevokeAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        let row = self.identities.revoke_agent(&ctx, &wire.agent, &wire.reason).await?;
        self.sessions.relay().revoke(row.id).await?;
        self.sessions.runs.end_all_of(&ctx, row.id, "the agent was revoked").await?;
        self.whole(row).await
    }

    async fn list_sources(
        &self,
        request: Request<v1::ListSourcesRequest>,
    ) -> Result<Response<v1::ListSourcesReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        ctx.authorize(Action::SourceList, &"sources").await.map_err(Status::from)?;
        let wire = request.into_inner();
        let filter = SourceFilter::of(&wire)?;
        let mut paging = convert::paging(wire.page)?;
        let selector: Selector = convert::text("selector", &wire.selector)?;
        let (wanted, mut out, mut looked_at) = (paging.limit as usize, Vec::new(), 0);
        // What policies say is not in the list's order: pages are looked through until there are enough, or it is the
        // next call's turn.
        let next = loop {
            let mut conn = self.core.store.reader().await?;
            let page = lists::sources::list(&mut conn, &selector, &paging).await?;
            looked_at += page.rows.len();
            let ids: BTreeSet<AgentId> = page.rows.iter().map(|listed| listed.source.agent).collect();
            let agents = store_agents::of_ids(&mut conn, &Vec::from_iter(ids)).await?;
            drop(conn);
            let by_id = agents.iter().map(|agent| (agent.id, agent)).collect();
            let states = self.states(&by_id, page.rows).await?;
            out.extend(states.into_iter().filter(|state| filter.wants(state)));
            match page.next {
                Some(next) if out.len() < wanted && looked_at < MOST_LOOKED_AT => paging.after = Some(next),
                next => break next,
            }
        };
        let next = convert::position_to_wire(next.as_ref());
        Ok(Response::new(v1::ListSourcesReply { sources: out, next }))
    }

    type TestSourcesStream = Pin<Box<dyn Stream<Item = Result<v1::TestSourcesReply, Status>> + Send>>;

    async fn test_sources(
        &self,
        request: Request<v1::TestSourcesRequest>,
    ) -> Result<Response<Self::TestSourcesStream>, Status> {
        let ctx = self.gate.context(&request).await?;
        let wire = request.into_inner();
        ctx.authorize(Action::SourceTest, &"sources").await.map_err(Status::from)?;
        let target = convert::target(&wire.source, &wire.selector)?;
        let agents = {
            let mut conn = self.core.store.reader().await?;
            let agents = targeted(&mut conn, &target, "", MAX_TESTED).await?;
            if let (Some(name), Some(agent)) = (&target.source, agents.first())
                && sources::get(&mut conn, agent.id, name).await?.is_none()
            {
                return Err(Status::not_found(format!("{} has no source {name}", agent.name)));
            }
            agents
        };
        let details = Details::none().with("agents", agents.len());
        ctx.record_alone(Action::SourceTest, &"sources", Outcome::Done, details).await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (api, source) = (self.clone(), target.source);
        tokio::spawn(async move {
            let tests = agents.into_iter().map(|agent| api.test_agent(agent, source.clone(), sender.clone()));
            futures::stream::iter(tests).for_each_concurrent(QUEUE, |test| test).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

type Answers = mpsc::Sender<Result<v1::TestSourcesReply, Status>>;

impl AgentApi {
    async fn test_agent(&self, agent: AgentRow, source: Option<Name>, out: Answers) {
        let request = RequestId::generate(&self.core.random);
        let name = agent.name.to_string();
        let problem =
            |error: &str| v1::TestSourcesReply { agent: name.clone(), check: None, error: error.to_owned() };
        if !agent.protocol.may_do(Feature::SourceTest) {
            let version = &agent.version;
            let error = format!("its agent (version {version}) cannot test sources when asked: upgrade it");
            // Whoever asked is gone: nobody to tell.
            let _ = out.send(Ok(problem(&error))).await;
            return;
        }
        let mut answers = match self.checks.ask(self.sessions.relay(), agent.id, request, source).await {
            Ok(Some(answers)) => answers,
            outcome => {
                let answer = outcome.map(|_| problem("is not connected")).map_err(Status::from);
                // Whoever asked is gone: nobody to tell.
                let _ = out.send(answer).await;
                return;
            }
        };
        loop {
            let answer = tokio::select! {
                () = out.closed() => break,
                answer = tokio::time::timeout(PATIENCE, answers.recv()) => answer,
            };
            match answer {
                Ok(Some(answer)) => {
                    for check in answer.checks {
                        let reply = v1::TestSourcesReply {
                            agent: name.clone(),
                            check: Some(check_to_wire(check)),
                            error: String::new(),
                        };
                        let _ = out.send(Ok(reply)).await;
                    }
                    if answer.last {
                        break;
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    let _ = out.send(Ok(problem("did not answer within two minutes"))).await;
                    break;
                }
            }
        }
        self.checks.forget(request);
    }
}

fn check_to_wire(check: SourceCheck) -> v1::SourceCheck {
    v1::SourceCheck {
        source: check.source,
        ok: check.ok,
        detail: check.detail,
        tool_version: check.tool_version,
        server_version: check.server_version,
    }
}
