//! How often each caller may call: agents and admins by identity, everybody else by address.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::audit::Actor;

/// Calls a second, and at once after a pause.
const fn quota(per_second: u32, burst: u32) -> Quota {
    match (NonZeroU32::new(per_second), NonZeroU32::new(burst)) {
        (Some(per_second), Some(burst)) => Quota::per_second(per_second).allow_burst(burst),
        _ => Quota::per_second(NonZeroU32::MIN),
    }
}

/// A host that backs up at full speed authorises and confirms some ten packs a second.
const AGENT: Quota = quota(100, 400);
/// A restore asks for signatures 256 objects at a time.
const ADMIN: Quota = quota(100, 500);
/// Enrolment and what is refused: a site behind one address may enrol its hosts in one go.
const ANONYMOUS: Quota = quota(5, 60);

/// The limits of all callers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Limits {
    known: Arc<DefaultKeyedRateLimiter<String>>,
    admins: Arc<DefaultKeyedRateLimiter<String>>,
    anonymous: Arc<DefaultKeyedRateLimiter<IpAddr>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            known: Arc::new(RateLimiter::keyed(AGENT)),
            admins: Arc::new(RateLimiter::keyed(ADMIN)),
            anonymous: Arc::new(RateLimiter::keyed(ANONYMOUS)),
        }
    }
}

impl Limits {
    /// Counts a call.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`, saying when to try again.
    #[allow(clippy::result_large_err)] // a Status, as tonic makes them
    pub fn count(&self, actor: &Actor, address: IpAddr) -> Result<(), Status> {
        let verdict = match actor {
            Actor::Agent(_) => self.known.check_key(&actor.to_string()),
            Actor::Admin(_) | Actor::Coordinator => self.admins.check_key(&actor.to_string()),
            Actor::Anonymous => self.anonymous.check_key(&address),
        };
        verdict.map_err(|until| too_often(until.wait_time_from(DefaultClock::default().now())))
    }

    /// Forgets callers that have not called for a while.
    pub fn forget_idle(&self) {
        self.known.retain_recent();
        self.admins.retain_recent();
        self.anonymous.retain_recent();
    }
}

fn too_often(wait: Duration) -> Status {
    let details = ErrorDetails::with_retry_info(Some(wait));
    let message = format!("too many calls: try again in {:.1} s", wait.as_secs_f64());
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_stopped_with_a_hint_and_others_are_not() {
        let limits = Limits::default();
        let (flooder, other): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let refused = (0..1_000).find_map(|_| limits.count(&Actor::Anonymous, flooder).err()).unwrap();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.get_details_retry_info().and_then(|info| info.retry_delay).is_some());
        assert!(limits.count(&Actor::Anonymous, other).is_ok());
    }
}
