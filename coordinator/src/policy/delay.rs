//! When rules of retention take effect for a source: at once where they keep more, after a while where they keep less. Pure.
//!
//! It is the source that counts, not the policy: a source that comes under a stricter policy by a label has its week too.

use std::time::Duration;

use sealift_common::clock::UnixMillis;

use crate::retention::rules::RetentionRules;

/// How long a shortened retention can be thought over.
pub const SHORTENED_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// The rules of a source over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RulesInTime {
    /// In force.
    pub now: RetentionRules,
    /// In force from then on.
    pub next: Option<(RetentionRules, UnixMillis)>,
}

impl RulesInTime {
    /// The rules in force at `moment`.
    pub fn at(&self, moment: UnixMillis) -> RetentionRules {
        match self.next {
            Some((rules, from)) if from <= moment => rules,
            _ => self.now,
        }
    }

    /// What becomes of them where policies want `wanted` from `moment` on. `fresh`: nothing was backed up yet, so that there is
    /// nothing to lose.
    #[must_use]
    pub fn changed(&self, wanted: RetentionRules, moment: UnixMillis, fresh: bool) -> Self {
        let now = self.at(moment);
        if fresh || !wanted.shortens(&now) {
            return Self { now: wanted, next: None };
        }
        let pending = self.next.filter(|(rules, from)| *rules == wanted && *from > moment);
        Self { now, next: Some(pending.unwrap_or((wanted, moment.plus(SHORTENED_AFTER)))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn daily(daily: u32) -> RetentionRules {
        RetentionRules { daily, ..RetentionRules::default() }
    }

    fn day(n: u32) -> UnixMillis {
        UnixMillis(0).plus(DAY * n)
    }

    #[test]
    fn longer_is_at_once_and_shorter_after_a_week() {
        let start = RulesInTime::default().changed(daily(7), day(0), true);
        assert_eq!(start, RulesInTime { now: daily(7), next: None });
        assert_eq!(start.changed(daily(30), day(1), false), RulesInTime { now: daily(30), next: None });
        let shortened = start.changed(daily(3), day(1), false);
        assert_eq!(shortened, RulesInTime { now: daily(7), next: Some((daily(3), day(8))) });
        // Looking again does not begin the week anew, and once it is over the rules are those in force.
        assert_eq!(shortened.changed(daily(3), day(5), false), shortened);
        assert_eq!((shortened.at(day(7)), shortened.at(day(8))), (daily(7), daily(3)));
        assert_eq!(shortened.changed(daily(3), day(8), false), RulesInTime { now: daily(3), next: None });
    }

    #[test]
    fn a_change_of_mind_counts_from_the_rules_in_force() {
        let shortened = RulesInTime { now: daily(7), next: Some((daily(3), day(8))) };
        assert_eq!(shortened.changed(daily(7), day(5), false), RulesInTime { now: daily(7), next: None });
        let other = shortened.changed(daily(5), day(5), false);
        assert_eq!(other, RulesInTime { now: daily(7), next: Some((daily(5), day(12))) });
        // No policy any more: everything stays. Under one again: that is shorter.
        let all = RetentionRules::default();
        let kept = shortened.changed(all, day(5), false);
        assert_eq!(kept, RulesInTime { now: all, next: None });
        assert_eq!(kept.changed(daily(7), day(6), false).next, Some((daily(7), day(13))));
    }
}
