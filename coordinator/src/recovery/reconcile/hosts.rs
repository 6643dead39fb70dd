//! Hosts and series that the database does not know: made of what they have signed, and of what is known of their names.

use futures::FutureExt as _;
use sealift_common::crypto::AgentKeyObject;
use sealift_common::id::Sha256;
use sealift_common::name::Labels;

use super::super::RecoveryError;
use super::super::names::{Names, placeholder};
use super::{Believed, Known, MAX_KEY, Reconciler, Report, SeriesInBucket, named};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::core::Core;
use crate::objects::ByteRange;
use crate::store::agents::{self, AgentRow, AgentState, SaidProtocol};
use crate::store::sources::{self, SourceRow};
use crate::store::tokens::{self, TokenRow};
use crate::store::{Tx, recovery};

impl Reconciler {
    /// Host and series of a manifest, made where the database does not know them.
    pub(super) async fn owner_of(
        &self,
        tx: &mut Tx,
        ctx: &OpContext,
        known: &Known,
        found: &SeriesInBucket,
        believed: &Believed,
        done: &mut Report,
    ) -> Result<(), RecoveryError> {
        let public = &believed.public;
        if agents::get(tx, public.agent).await?.is_none() {
            let Some(key) = found.keys.get(&public.agent) else { return Ok(()) };
            let row = new_agent(tx, &self.core, key, &known.names).await?;
            let said = Details::none().with("name", row.name.as_str()).with("state", row.state.as_str());
            ctx.record(tx, Action::CoordinatorRecover, &format!("agent:{}", row.id), Outcome::Done, said)
                .await?;
            done.agents_added += 1;
        }
        if recovery::owner(tx, found.series).await?.is_none() {
            let source = known.names.source(found.series);
            let taken = match &source.source {
                Some(name) => sources::get(tx, public.agent, name).await?.is_some(),
                None => true,
            };
            let name = match source.source {
                Some(name) if !taken => name,
                _ => named(&placeholder(found.series))?,
            };
            let row = SourceRow {
                agent: public.agent,
                name,
                kind: source.kind,
                detail: String::new(),
                credential_origins: Vec::new(),
                series: found.series,
                present: false,
                changed: self.core.clock.now(),
            };
            let scope = known.names.host(public.agent).scope;
            sources::insert_series(tx, &row, &scope).await?;
            sources::put(tx, &row).await?;
            done.series_added += 1;
        }
        Ok(())
    }

    /// Hosts that the trust policy names are taken in without a manifest too.
    pub(super) async fn take_attested(
        &self,
        ctx: &OpContext,
        known: &Known,
        report: &mut Report,
    ) -> Result<(), RecoveryError> {
        let Some(trust) = &known.trust else { return Ok(()) };
        for attested in &trust.policy.agents {
            let mut key = None;
            for name in known.agent_keys.get(&attested.agent).into_iter().flatten() {
                let bytes = self.objects.get(&(*name).into(), ByteRange::All, MAX_KEY).await?;
                let object = AgentKeyObject::parse_named(name, &bytes).ok();
                key = key.or(object.filter(|object| object.signing_key() == attested.signing_key));
            }
            let Some(key) = key else { continue };
            let key = &key;
            let added = self.core.store.run_tx("take in an attested host", move |tx, _| {
                async move {
                    if agents::get(tx, key.agent()).await?.is_some() {
                        return Ok(false);
                    }
                    let row = new_agent(tx, &self.core, key, &known.names).await?;
                    let said =
                        Details::none().with("name", row.name.as_str()).with("state", row.state.as_str());
                    ctx.record(
                        tx,
                        Action::CoordinatorRecover,
                        &format!("agent:{}", row.id),
                        Outcome::Done,
                        said,
                    )
                    .await?;
                    Ok::<_, RecoveryError>(true)
                }
                .boxed()
            });
            report.agents_added += u64::from(added.await?);
        }
        Ok(())
    }
}

/// An agent out of its key object and what is known of its name.
///
/// # Errors
/// The database's own.
pub async fn new_agent(
    tx: &mut Tx,
    core: &Core,
    key: &AgentKeyObject,
    names: &Names,
) -> Result<AgentRow, RecoveryError> {
    let now = core.clock.now();
    if tokens::get(tx, recovery::TOKEN).await?.is_none() {
        let token = TokenRow {
            id: recovery::TOKEN.to_owned(),
            // Of random bytes that nobody keeps.
            secret_sha256: Sha256::of(&core.random.bytes::<32>()),
            labels: Labels::default(),
            scope: String::new(),
            name: String::new(),
            created: now,
            expires: now,
            uses: 0,
            used: 0,
            revoked: true,
            created_by: "coordinator".to_owned(),
            replaces: None,
        };
        tokens::insert(tx, &token).await?;
    }
    let host = names.host(key.agent());
    let name = match host.name {
        Some(name) if agents::by_name(tx, name.as_str()).await?.is_none() => name,
        _ => named(&placeholder(key.agent()))?,
    };
    let row = AgentRow {
        id: key.agent(),
        name,
        state: if host.revoked { AgentState::Revoked } else { AgentState::Active },
        state_reason: if host.revoked { "revoked before the recovery".to_owned() } else { String::new() },
        labels: host.labels,
        scope: host.scope,
        signing_key: key.signing_key(),
        key_object: key.bytes().to_vec(),
        tls_key_sha256: Sha256::of(b""),
        token_id: recovery::TOKEN.to_owned(),
        version: String::new(),
        os: String::new(),
        timezone: String::new(),
        address: String::new(),
        enrolled: key.created(),
        last_seen: key.created(),
        certificate_expires: now,
        wanted_name: String::new(),
        keep_until: None,
        clock_skew_ms: 0,
        key_epoch: 0,
        protocol: SaidProtocol::default(),
    };
    agents::insert(tx, &row).await?;
    Ok(row)
}
