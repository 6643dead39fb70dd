//! The fleet at a glance, and the audit, for admins.

use std::collections::HashMap;
use std::time::Duration;

use sealift_common::clock::UnixMillis;
use sealift_common::name::Name;
use sealift_common::protocol::{Currency, UPGRADE_REQUIRED};
use sealift_proto::v1;
use sealift_proto::v1::fleet_admin_server::FleetAdmin;
use tonic::{Request, Response, Status};

use super::runs::rows_to_wire;
use super::{Gate, convert};
use crate::audit::Action;
use crate::core::Core;
use crate::identity::Identities;
use crate::objects::ObjectStore;
use crate::runs::Runs;
use crate::runs::state::RunState;
use crate::sessions::SessionService;
use crate::store::audit::EventRow;
use crate::store::fleet::{self, FleetCounts};
use crate::store::lists::Paging;
use crate::store::lists::audit::EventList;
use crate::store::lists::runs::RunList;
use crate::store::source_policies::PromiseRow;
use crate::store::{StoreError, Tx, lists, pauses, retention, source_policies, unknown_heads};

/// Sources that the overview names of each sort.
const NAMED: u32 = 20;
/// Failures that the overview shows.
const RECENT_FAILURES: u32 = 10;
/// How far back it looks for them, in milliseconds.
const RECENT_MS: i64 = 7 * 24 * 3_600 * 1_000;

/// The overview.
#[derive(Debug, Clone)]
pub struct FleetApi {
    /// Who calls.
    pub gate: Gate,
    /// The database.
    pub core: Core,
    /// The trust policy in force.
    pub identities: Identities,
    /// What the bucket's probe found.
    pub objects: ObjectStore,
    /// Who is connected.
    pub sessions: SessionService,
    /// Whether runs are held.
    pub runs: Runs,
}

impl FleetApi {
    fn storage(&self) -> v1::StorageStatus {
        let (settings, report) = (self.objects.settings(), self.objects.report());
        v1::StorageStatus {
            endpoint: settings.shown_endpoint(),
            bucket: settings.bucket.to_string(),
            prefix: settings.prefix.as_str().to_owned(),
            writable: report.usable,
            error: match (&report.error, report.probed) {
                (Some(error), _) => error.clone(),
                (None, None) => "not probed yet".to_owned(),
                (None, Some(_)) => String::new(),
            },
            probed_ms: report.probed.unwrap_or_default().0,
            findings: report
                .findings
                .iter()
                .map(|finding| v1::ProbeFinding {
                    check: finding.check.to_owned(),
                    result: finding.result.clone(),
                    meaning: finding.meaning.to_owned(),
                    warning: finding.warning,
                })
                .collect(),
        }
    }

    /// How many agents work but cannot do everything, and how many are too old.
    async fn outdated(&self, tx: &mut Tx) -> Result<(u32, u32), StoreError> {
        let (mut behind, mut too_old) = (0, 0);
        for (protocol, agents) in fleet::protocols(tx).await? {
            match protocol.currency(self.sessions.speaks()) {
                Some(Currency::Behind) => behind += agents,
                Some(Currency::TooOld) => too_old += agents,
                Some(Currency::Current) | None => {}
            }
        }
        Ok((behind, too_old))
    }

    async fn failures(&self, tx: &mut Tx) -> Result<Vec<v1::Run>, Status> {
        let since = UnixMillis(self.core.clock.now().0.saturating_sub(RECENT_MS));
        let list = RunList { state: Some(RunState::Failed), since, ..RunList::default() };
        let page = lists::runs::list(tx, &list, &Paging::first(RECENT_FAILURES)).await?;
        rows_to_wire(tx, page.rows).await
    }
}

/// What an admin should do something about.
fn warnings(
    counts: &FleetCounts,
    unknown_heads: u64,
    trust_version: u64,
    storage: &v1::StorageStatus,
) -> Vec<String> {
    let mut out = Vec::new();
    if unknown_heads > 0 {
        out.push(format!(
            "hosts remember newer backups of {unknown_heads} series than this database knows: was it restored from an older \
             backup? They are in the bucket (sealift restore --offline); sealift audit list --action series.ahead names them"
        ));
    }
    if trust_version == 0 {
        out.push(
            "there is no trust policy yet: nothing can be backed up (sealift trust set --recipient age1…)"
                .into(),
        );
    }
    if !storage.writable {
        out.push(format!("the object store cannot be used: {}", storage.error));
    }
    for finding in storage.findings.iter().filter(|finding| finding.warning) {
        out.push(format!("object store: {}: {}", finding.check, finding.meaning));
    }
    if counts.sources_without_good_backup > 0 {
        out.push(match counts.sources_without_good_backup {
            1 => "1 source has no good backup yet".to_owned(),
            n => format!("{n} sources have no good backup yet"),
        });
    }
    out
}

/// What retention and presence have found.
async fn troubles(tx: &mut Tx) -> Result<Vec<String>, StoreError> {
    let (damaged, halted) = retention::troubles(tx).await?;
    let mut out = Vec::new();
    if damaged > 0 {
        out.push(format!(
            "{damaged} backups cannot be restored whole, because objects of theirs are missing or damaged: `sealift backup \
             list` shows them; the next backup of each source heals what it can"
        ));
    }
    if halted > 0 {
        out.push(format!(
            "nothing is deleted in {halted} series, because their manifests in the bucket are not those that the database \
             knows: `sealift retention plan` says which"
        ));
    }
    Ok(out)
}

/// Names of sources, as status shows them.
fn named<'a>(sources: impl Iterator<Item = (&'a Name, &'a Name)>) -> Vec<String> {
    sources.map(|(agent, source)| format!("{agent}/{source}")).collect()
}

fn broken_to_wire(row: &PromiseRow, now: UnixMillis) -> v1::BrokenPromise {
    let age = row.last_good.map_or(Duration::ZERO, |good| now.since(good));
    v1::BrokenPromise {
        source: format!("{}/{}", row.agent_name, row.source),
        promise_ms: row.promise_ms,
        last_good_ms: row.last_good.unwrap_or_default().0,
        last_good_age_ms: i64::try_from(age.as_millis()).unwrap_or(i64::MAX),
        since_ms: row.overdue_since.unwrap_or_default().0,
    }
}

/// `token.create`, or `token.*` for all of a kind; empty for all.
#[allow(clippy::result_large_err)]
fn actions(wanted: &str) -> Result<Vec<String>, Status> {
    let Some(kind) = wanted.strip_suffix('*') else {
        return Ok(Some(wanted.to_owned()).filter(|action| !action.is_empty()).into_iter().collect());
    };
    let all = Action::ALL.iter().map(|action| action.as_str()).filter(|name| name.starts_with(kind));
    let all: Vec<String> = all.map(str::to_owned).collect();
    if all.is_empty() {
        Err(convert::bad_field("action", format!("no action begins with {kind:?}")))
    } else {
        Ok(all)
    }
}

fn event_to_wire(event: EventRow) -> v1::AuditEvent {
    v1::AuditEvent {
        id: event.id.to_string(),
        time_ms: event.time.0,
        actor: event.actor,
        source_address: event.source_address,
        request_id: event.request_id,
        action: event.action,
        entity: event.entity,
        outcome: event.outcome,
        details_json: event.details,
    }
}

#[tonic::async_trait]
impl FleetAdmin for FleetApi {
    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        ctx.authorize(Action::FleetStatus, &"fleet").await.map_err(Status::from)?;
        let mut conn = self.core.store.reader().await?;
        let counts = fleet::counts(&mut conn).await?;
        let unknown_heads = unknown_heads::count(&mut conn).await?;
        let trust = self.identities.trust_state(&mut conn).await?;
        let connected = u32::try_from(self.sessions.registry().count_anywhere()).unwrap_or(u32::MAX);
        let trust_version = trust.as_ref().map_or(0, |trust| trust.known.version);
        let recipients: HashMap<_, _> = trust
            .iter()
            .flat_map(|trust| trust.policy.rules.iter().flat_map(|rule| &rule.recipients))
            .map(|recipient| (recipient.recipient.fingerprint(), ()))
            .collect();
        let storage = self.storage();
        let mut warnings = warnings(&counts, unknown_heads, trust_version, &storage);
        if let Err(error) = self.core.standing.serving() {
            warnings.insert(0, error.to_string());
        }
        warnings.extend(troubles(&mut conn).await?);
        let (behind, too_old) = self.outdated(&mut conn).await?;
        if too_old > 0 {
            warnings.push(format!(
                "the agents of {too_old} hosts are too old for this coordinator, and nothing is backed up there: install newer ones \
                 (sealift agent list shows {UPGRADE_REQUIRED})"
            ));
        }
        let now = self.core.clock.now();
        let (without_policy, overdue) = source_policies::counts(&mut conn, now).await?;
        let bare = source_policies::without_policy(&mut conn, NAMED).await?;
        let late = source_policies::overdue(&mut conn, now, false, NAMED).await?;
        let pauses = pauses::in_force(&mut conn, now).await?;
        Ok(Response::new(v1::StatusReply {
            sources_without_policy: without_policy,
            without_policy: named(bare.iter().map(|(agent, source)| (agent, source))),
            sources_overdue: overdue,
            overdue: named(late.iter().map(|row| (&row.agent_name, &row.source))),
            broken_promises: late.iter().map(|row| broken_to_wire(row, now)).collect(),
            pauses: pauses.iter().map(|pause| pause.to_string()).collect(),
            dispatch_held: self.runs.is_held(),
            agents_behind: behind,
            agents_upgrade_required: too_old,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agents: counts.agents,
            agents_connected: connected,
            agents_silent: counts.agents_active.saturating_sub(connected),
            sources: counts.sources,
            sources_without_good_backup: counts.sources_without_good_backup,
            backups: counts.backups,
            stored_bytes: counts.stored_bytes,
            raw_bytes: counts.raw_bytes,
            recent_failures: self.failures(&mut conn).await?,
            runs_active: counts.runs_active,
            trust_version,
            recipients: u32::try_from(recipients.len()).unwrap_or(u32::MAX),
            warnings,
            storage: Some(storage),
            state: self.core.standing.state().to_string(),
        }))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        ctx.authorize(Action::AuditList, &"audit").await.map_err(Status::from)?;
        let wire = request.into_inner();
        let (limit, after) = convert::page(wire.page);
        let after = match convert::time_cursor(&after)? {
            None => None,
            Some((ms, place)) => Some((UnixMillis(ms), convert::text("page.after", &place)?)),
        };
        let list = EventList {
            since: UnixMillis(wire.since_ms),
            actor: wire.actor,
            actions: actions(&wire.action)?,
            after,
            limit,
        };
        let events = lists::audit::list(&mut *self.core.store.reader().await?, &list).await?;
        let next =
            convert::next(&events, limit, |event| convert::time_cursor_to_wire(event.time, &event.place));
        Ok(Response::new(v1::ListAuditReply {
            events: events.into_iter().map(event_to_wire).collect(),
            next,
        }))
    }
}
