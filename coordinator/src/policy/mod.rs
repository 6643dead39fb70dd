//! Policies: who is backed up when, what stays, what is promised.
//!
//! [`document`] is what is written, [`resolve`] says which policy is in force for a source, [`guards`] what a change touches
//! and whether it may be made, [`delay`] when a retention takes effect, [`promise`] whether backups are as young as promised,
//! [`uplink`] what fits through a line: all pure.
//! [`service`] makes the changes, [`preview`] shows them, [`pause`] stops and starts schedules. From policies to what is in
//! force for each source, and from there to runs: [`crate::scheduler`].

pub mod delay;
pub mod document;
pub mod guards;
pub mod pause;
pub mod preview;
pub mod promise;
pub mod resolve;
pub mod service;
pub mod uplink;

use std::sync::Arc;

use sealift_common::clock::UnixMillis;
use sealift_common::id::{PolicyId, SeriesId};

use crate::audit::{AccessError, OpError};
use crate::retention::rules::RetentionRules;
use crate::store::agents::AgentState;
use crate::store::policies::PolicyRow;
use crate::store::{StoreError, Tx, policies, source_policies};
use delay::RulesInTime;
use document::{InvalidPolicy, Policy};
use guards::{FleetSource, Guarded};
use resolve::{Standing, Version};

pub use service::Policies;

/// Sources that are read in one go.
const BATCH: u32 = 5_000;

/// Why an operation on policies did not come about.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// No such policy, version or pause.
    #[error("there is no {0}")]
    NotFound(String),
    /// What was written is no policy.
    #[error(transparent)]
    Invalid(#[from] InvalidPolicy),
    /// It may not be done like that.
    #[error(transparent)]
    Guarded(#[from] Guarded),
    /// A pause that ends before it begins.
    #[error("the pause would end in the past: give --until a time to come")]
    PauseInThePast,
    /// What is stored cannot be read: it was written by a newer version, or by hand.
    #[error("version {version} of the policy {name} cannot be read")]
    Unreadable {
        /// Its name.
        name: String,
        /// Which version.
        version: u32,
        /// Why not.
        #[source]
        source: InvalidPolicy,
    },
    /// Not allowed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The database's own.
    #[error("the policy could not be read or written")]
    Store(#[from] StoreError),
}

impl OpError for PolicyError {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Guarded(_))
    }
}

/// One version of a policy, parsed.
///
/// # Errors
/// [`PolicyError::NotFound`], [`PolicyError::Unreadable`], or the database's own.
pub async fn version(tx: &mut Tx, policy: PolicyId, name: &str, number: u32) -> Result<Version, PolicyError> {
    let found = policies::version(tx, policy, number).await?;
    let row = found.ok_or_else(|| PolicyError::NotFound(format!("version {number} of the policy {name}")))?;
    let parsed: Result<Policy, _> = row.document.parse();
    match parsed {
        Ok(policy) => Ok(Version { number, policy: Arc::new(policy) }),
        Err(source) => Err(PolicyError::Unreadable { name: name.to_owned(), version: number, source }),
    }
}

/// A policy as it stands.
///
/// # Errors
/// As [`version`].
pub async fn standing(tx: &mut Tx, row: &PolicyRow) -> Result<Standing, PolicyError> {
    let (id, name) = (row.id, row.name.as_str());
    let whole = match row.version {
        0 => None,
        number => Some(version(tx, id, name, number).await?),
    };
    let canary = match row.canary_version {
        0 => None,
        number => {
            let selector = row.canary.parse().map_err(|error| {
                let problem = format!("{error}");
                let source = InvalidPolicy::Value { key: "canary", problem };
                PolicyError::Unreadable { name: name.to_owned(), version: number, source }
            })?;
            Some((selector, version(tx, id, name, number).await?))
        }
    };
    Ok(Standing { id, name: row.name.clone(), whole, canary })
}

/// All policies as they stand.
///
/// # Errors
/// As [`version`].
pub async fn standings(tx: &mut Tx) -> Result<Vec<Standing>, PolicyError> {
    let mut out = Vec::new();
    for row in policies::all(tx).await? {
        out.push(standing(tx, &row).await?);
    }
    Ok(out)
}

/// All sources that may be backed up: in the config of a host that may do what hosts do.
///
/// # Errors
/// The database's own.
pub async fn fleet(tx: &mut Tx) -> Result<Vec<FleetSource>, StoreError> {
    let (mut out, mut after) = (Vec::new(), String::new());
    loop {
        let page = source_policies::fleet(tx, &after, BATCH).await?;
        let Some(last) = page.last() else { break };
        after = last.series.to_string();
        let fit = page.into_iter().filter(|row| row.present && row.state == AgentState::Active);
        out.extend(fit.map(|row| FleetSource {
            agent: row.agent,
            agent_name: row.agent_name,
            labels: Arc::new(row.labels),
            timezone: row.timezone.into(),
            series: row.series,
            name: row.name,
            kind: row.kind,
        }));
    }
    out.sort_by(|a, b| (&a.agent_name, &a.name).cmp(&(&b.agent_name, &b.name)));
    Ok(out)
}

/// The rules of retention in force for a series at `now`, those that are to replace them, and which policy says so. Nothing is
/// said (everything stays) for a source that no policy was ever in force for.
///
/// # Errors
/// The database's own.
pub async fn retention_of(
    tx: &mut Tx,
    series: SeriesId,
    now: UnixMillis,
) -> Result<(RetentionRules, Option<(RetentionRules, UnixMillis)>, Option<PolicyId>), StoreError> {
    let Some(row) = source_policies::get(tx, series).await? else {
        return Ok((RetentionRules::default(), None, None));
    };
    let rules = RulesInTime { now: row.retention, next: row.retention_next };
    Ok((rules.at(now), rules.next.filter(|(_, from)| *from > now), row.policy.map(|(id, _)| id)))
}
