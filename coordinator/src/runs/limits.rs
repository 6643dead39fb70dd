//! What policies limit: how a backup is made, and how many are made at the same time.
//!
//! Counting and starting are one transaction under a lock on the row that is counted for (the site's, the policy's): two
//! coordinators cannot both take the last place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sealift_common::id::PolicyId;

use super::RunError;
use crate::policy::PolicyError;
use crate::policy::document::Policy;
use crate::policy::service::in_force;
use crate::store::runs::{self, RunRow};
use crate::store::{Tx, attempts, policies, source_policies};

/// Versions of policies that are remembered: they never change.
const REMEMBERED: usize = 256;

/// How a backup is to be made, where its policy says so; the wire's `Limits`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfferLimits {
    /// Bytes a second.
    pub bandwidth: Option<u64>,
    /// A source without progress for so long is given up.
    pub stall_timeout: Option<Duration>,
    /// An attempt that takes longer is given up.
    pub max_duration: Option<Duration>,
    /// Zstandard's level.
    pub compression: Option<i32>,
}

impl OfferLimits {
    /// As a policy says.
    pub fn of(policy: &Policy) -> Self {
        let limits = &policy.limits;
        Self {
            bandwidth: limits.bandwidth.map(|size| size.0),
            stall_timeout: limits.stall_timeout.map(|span| span.0),
            max_duration: limits.max_duration.map(|span| span.0),
            compression: limits.compression,
        }
    }
}

/// Policies by version, parsed once. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Documents(Arc<Mutex<ByVersion>>);

type ByVersion = HashMap<(PolicyId, u32), Arc<Policy>>;

impl Documents {
    /// That version.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn get(&self, tx: &mut Tx, policy: PolicyId, version: u32) -> Result<Arc<Policy>, PolicyError> {
        let key = (policy, version);
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = in_force(tx, policy, version).await?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED {
            all.clear();
        }
        all.insert(key, found.clone());
        Ok(found)
    }

    /// The policy of a run: the version that planned it, or what is in force for its source.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn of_run(&self, tx: &mut Tx, run: &RunRow) -> Result<Option<Arc<Policy>>, PolicyError> {
        let which = match run.plan {
            Some(plan) => Some((plan.policy, plan.version)),
            None => source_policies::get(tx, run.series).await?.and_then(|row| row.policy),
        };
        match which {
            Some((policy, version)) => self.get(tx, policy, version).await.map(Some),
            None => Ok(None),
        }
    }
}

/// How many runs are under way, as of one look.
#[derive(Debug, Clone, Default)]
pub struct Active {
    by_site: HashMap<String, u32>,
    by_policy: HashMap<String, u32>,
}

impl Active {
    /// Counts them.
    ///
    /// # Errors
    /// The database's own.
    pub async fn count(tx: &mut Tx) -> Result<Self, RunError> {
        let mut active = Self::default();
        for (site, policy, count) in runs::active_by_place(tx).await? {
            *active.by_site.entry(site).or_default() += count;
            if let Some(policy) = policy {
                *active.by_policy.entry(policy).or_default() += count;
            }
        }
        Ok(active)
    }

    /// Whether a run may find a place: a first look, without a lock. Runs that an admin asked for always do.
    pub fn has_room(&self, run: &RunRow, policy: Option<&Policy>) -> bool {
        let (Some(plan), Some(policy)) = (run.plan, policy) else { return true };
        let free =
            |limit: Option<u32>, count: Option<&u32>| limit.is_none_or(|limit| *count.unwrap_or(&0) < limit);
        let site_limit = policy.limits.concurrent_per_site.filter(|_| !run.site.is_empty());
        free(site_limit, self.by_site.get(&run.site))
            && free(policy.limits.concurrent, self.by_policy.get(&plan.policy.to_string()))
    }

    /// One more.
    pub fn add(&mut self, run: &RunRow) {
        *self.by_site.entry(run.site.clone()).or_default() += 1;
        if let Some(plan) = run.plan {
            *self.by_policy.entry(plan.policy.to_string()).or_default() += 1;
        }
    }
}

/// Whether there is a place for this run, for good: with the site's and the policy's rows locked until the transaction ends.
///
/// # Errors
/// The database's own.
pub async fn take_place(
    tx: &mut Tx,
    run: &RunRow,
    policy: Option<&Policy>,
    owner: &str,
    most_here: u32,
) -> Result<bool, RunError> {
    let (Some(plan), Some(policy)) = (run.plan, policy) else { return Ok(true) };
    if attempts::open_of_owner(tx, owner).await? >= most_here {
        return Ok(false);
    }
    if let Some(most) = policy.limits.concurrent_per_site
        && !run.site.is_empty()
        && runs::lock_site(tx, &run.site).await? >= most
    {
        return Ok(false);
    }
    if let Some(most) = policy.limits.concurrent {
        policies::lock(tx, plan.policy).await?;
        if runs::active_of_policy(tx, plan.policy).await? >= most {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use sealift_common::clock::UnixMillis;
    use sealift_common::id::{AgentId, RunId, SeriesId};

    use super::*;
    use crate::runs::state::RunState;
    use crate::store::runs::{Occasion, RunPlan};

    fn run(site: &str, planned: bool) -> RunRow {
        RunRow {
            id: RunId::from_bytes([1; 16]),
            agent: AgentId::from_bytes([1; 16]),
            source: "db".parse().unwrap(),
            series: SeriesId::from_bytes([1; 16]),
            state: RunState::Queued,
            created: UnixMillis(0),
            due: UnixMillis(0),
            started: None,
            ended: None,
            attempts: 0,
            cancelled_by: None,
            requested_by: String::new(),
            trace_parent: String::new(),
            backup: None,
            error: String::new(),
            site: site.to_owned(),
            plan: planned.then_some(RunPlan {
                policy: PolicyId::from_bytes([1; 16]),
                version: 1,
                occasion: Occasion::Schedule,
                instant: UnixMillis(0),
                deadline: UnixMillis(1),
                stop: None,
                collapsed: 0,
                attempts: 3,
            }),
        }
    }

    #[test]
    fn places_are_counted_by_site_and_policy() {
        let policy: Policy =
            "name = \"p\"\n[limits]\nconcurrent_per_site = 1\nconcurrent = 2".parse().unwrap();
        let mut active = Active::default();
        assert!(active.has_room(&run("a", true), Some(&policy)));
        active.add(&run("a", true));
        assert!(!active.has_room(&run("a", true), Some(&policy)), "one in each site");
        assert!(active.has_room(&run("a", false), Some(&policy)), "an admin's wish is not held up");
        assert!(active.has_room(&run("b", true), Some(&policy)));
        active.add(&run("b", true));
        assert!(!active.has_room(&run("c", true), Some(&policy)), "two under the policy");
        assert!(active.has_room(&run("a", true), None));
        let per_site: Policy = "name = \"p\"\n[limits]\nconcurrent_per_site = 1".parse().unwrap();
        active.add(&run("", true));
        assert!(active.has_room(&run("", true), Some(&per_site)), "hosts without a site do not share one");
    }
}
