//! What is to be done about a source whose schedule has come due, or that missed a run. Pure.
//!
//! An instant gets one row, whatever becomes of it: planned, missed, or skipped with a reason. While a host stays away after
//! a missed run, later instants are counted on that row; when it is back, the policy says whether one run makes up for it.

use std::time::Duration;

use sealift_common::clock::UnixMillis;
use serde::{Deserialize, Serialize};

use super::next_run::Due;
use crate::policy::document::CatchUp;

/// Why an instant had no run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SkipReason {
    /// Schedules of this host are paused.
    Paused,
    /// A run of this source had not ended: that one is it.
    Coalesced,
    /// Nobody could open the backup.
    NoTrustPolicy,
}

impl SkipReason {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "schedules of this host are paused",
            Self::Coalesced => "a run of this source had not ended yet: it serves for both",
            Self::NoTrustPolicy => "there is no trust policy",
        }
    }
}

/// What a decision depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// An earlier instant was missed, and the host has not been heard of since.
    pub owed: bool,
    /// Schedules of this host are paused.
    pub paused: bool,
    /// A run of this source has not ended.
    pub open_run: bool,
    /// There is a trust policy.
    pub trusted: bool,
}

/// A run as it is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// The instant that it is for.
    pub instant: UnixMillis,
    /// It starts no earlier.
    pub start: UnixMillis,
    /// It is missed if it has not started by then.
    pub deadline: UnixMillis,
    /// Instants before it that it stands for as well.
    pub collapsed: u32,
}

/// What to do about an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Plan a run.
    Plan(Planned),
    /// It is too late for it already.
    Miss(Planned),
    /// No run, for a reason.
    Skip(Planned, SkipReason),
    /// Count it on the row of the instant that was missed before.
    Collapse {
        /// So many more.
        count: u32,
    },
}

/// The run for an instant, `offset` after it.
pub fn planned(due: &Due, offset: Duration, window: Option<Duration>) -> Planned {
    Planned {
        instant: due.instant,
        start: due.instant.plus(offset),
        deadline: window.map_or(due.next, |window| due.instant.plus(window)),
        collapsed: due.collapsed,
    }
}

/// What to do about an instant that has come due.
pub fn decide(
    due: &Due,
    offset: Duration,
    window: Option<Duration>,
    now: UnixMillis,
    circumstances: &Circumstances,
) -> Decision {
    let planned = planned(due, offset, window);
    if circumstances.owed {
        Decision::Collapse { count: due.collapsed.saturating_add(1) }
    } else if circumstances.paused {
        Decision::Skip(planned, SkipReason::Paused)
    } else if planned.deadline <= now {
        Decision::Miss(planned)
    } else if circumstances.open_run {
        Decision::Skip(planned, SkipReason::Coalesced)
    } else if !circumstances.trusted {
        Decision::Skip(planned, SkipReason::NoTrustPolicy)
    } else {
        Decision::Plan(planned)
    }
}

/// What to do about a source that missed its run, now that its host is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// It is still in time: a run as planned.
    InTime(Planned),
    /// One run makes up for it.
    CatchUp(Planned),
    /// Nothing: the policy does not want it, or the next run is near.
    Nothing,
}

/// Decides for the newest instant that was missed, `owed`, whose deadline was `deadline`.
#[allow(clippy::too_many_arguments)] // all that the decision depends on, and nothing else
pub fn host_returns(
    owed: UnixMillis,
    deadline: UnixMillis,
    next: UnixMillis,
    offset: Duration,
    catch_up: CatchUp,
    last_good: Option<UnixMillis>,
    now: UnixMillis,
) -> Return {
    let start = now.plus(offset);
    if now < deadline {
        return Return::InTime(Planned {
            instant: owed,
            // Hosts that come back together do not start together, and each starts in its window.
            start: owed.plus(offset).max(start.min(deadline.minus(Duration::from_secs(1)))),
            deadline,
            collapsed: 0,
        });
    }
    let wanted = match catch_up {
        CatchUp::Always => true,
        CatchUp::Never => false,
        CatchUp::IfOlderThan(span) => last_good.is_none_or(|good| now.since(good) > span.0),
    };
    if !wanted || start >= next {
        return Return::Nothing;
    }
    Return::CatchUp(Planned { instant: owed, start, deadline: next, collapsed: 0 })
}

#[cfg(test)]
mod tests {
    use sealift_common::quantity::Span;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn at(hours: u64) -> UnixMillis {
        UnixMillis(0).plus(HOUR * u32::try_from(hours).unwrap())
    }

    fn due() -> Due {
        Due { instant: at(26), collapsed: 1, next: at(50) }
    }

    #[test]
    fn an_instant_has_one_outcome() {
        let fine = Circumstances { trusted: true, ..Circumstances::default() };
        let decide = |now, circumstances| decide(&due(), HOUR, Some(HOUR * 5), now, &circumstances);
        let planned = Planned { instant: at(26), start: at(27), deadline: at(31), collapsed: 1 };
        assert_eq!(decide(at(26), fine), Decision::Plan(planned));
        assert_eq!(decide(at(31), fine), Decision::Miss(planned));
        assert_eq!(
            decide(at(26), Circumstances { paused: true, ..fine }),
            Decision::Skip(planned, SkipReason::Paused)
        );
        assert_eq!(
            decide(at(26), Circumstances { open_run: true, ..fine }),
            Decision::Skip(planned, SkipReason::Coalesced)
        );
        assert_eq!(
            decide(at(26), Circumstances::default()),
            Decision::Skip(planned, SkipReason::NoTrustPolicy)
        );
        assert_eq!(
            decide(at(26), Circumstances { owed: true, paused: true, ..fine }),
            Decision::Collapse { count: 2 }
        );
        let no_window = super::decide(&due(), HOUR, None, at(26), &fine);
        assert_eq!(no_window, Decision::Plan(Planned { deadline: at(50), ..planned }));
    }

    #[test]
    fn a_host_that_returns_catches_up_as_its_policy_says() {
        let returns =
            |now, catch_up, last_good| host_returns(at(26), at(31), at(50), HOUR, catch_up, last_good, now);
        let stale = CatchUp::IfOlderThan(Span(HOUR * 20));
        // In its window: a run as planned, spread anew, never beyond the window.
        let in_time = Planned { instant: at(26), start: at(29), deadline: at(31), collapsed: 0 };
        assert_eq!(returns(at(28), CatchUp::Never, None), Return::InTime(in_time));
        match returns(at(31).minus(Duration::from_secs(10)), stale, None) {
            Return::InTime(planned) => assert!(planned.start < planned.deadline),
            other => panic!("{other:?}"),
        }
        // After it.
        let late = Planned { instant: at(26), start: at(41), deadline: at(50), collapsed: 0 };
        assert_eq!(returns(at(40), CatchUp::Always, Some(at(39))), Return::CatchUp(late));
        assert_eq!(returns(at(40), CatchUp::Never, None), Return::Nothing);
        assert_eq!(returns(at(40), stale, None), Return::CatchUp(late));
        assert_eq!(returns(at(40), stale, Some(at(3))), Return::CatchUp(late));
        assert_eq!(returns(at(40), stale, Some(at(20))), Return::Nothing);
        assert_eq!(returns(at(49), CatchUp::Always, None), Return::Nothing, "the next run is as near");
    }
}
