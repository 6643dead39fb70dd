//! Whether a policy's promise is kept: the age of the newest good backup against what `[alert] overdue_after` says. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sealift_common::clock::UnixMillis;

/// How it stands with a promise (the recovery point objective).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rpo {
    /// Nothing is promised.
    None,
    /// The newest good backup is young enough.
    Kept,
    /// There is no backup yet, and it is not late yet.
    Waiting,
    /// The newest good backup is too old, or there is none.
    Overdue,
}

impl Rpo {
    /// Its name to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Kept => "ok",
            Self::Waiting => "waiting",
            Self::Overdue => "overdue",
        }
    }
}

impl fmt::Display for Rpo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No such state of a promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: write ok, waiting, overdue or none")]
pub struct UnknownRpo(String);

impl FromStr for Rpo {
    type Err = UnknownRpo;
    fn from_str(text: &str) -> Result<Self, UnknownRpo> {
        let all = [Self::None, Self::Kept, Self::Waiting, Self::Overdue];
        let found = all.into_iter().find(|rpo| rpo.as_str() == text);
        found.ok_or_else(|| UnknownRpo(text.chars().take(40).collect()))
    }
}

/// Measures a promise of `promise_ms` milliseconds (0: none) that is made since `assigned`.
pub fn measure(promise_ms: i64, last_good: Option<UnixMillis>, assigned: UnixMillis, now: UnixMillis) -> Rpo {
    if promise_ms <= 0 {
        return Rpo::None;
    }
    let promise = Duration::from_millis(u64::try_from(promise_ms).unwrap_or(0));
    let late = now.since(last_good.unwrap_or(assigned)) > promise;
    match (late, last_good) {
        (true, _) => Rpo::Overdue,
        (false, Some(_)) => Rpo::Kept,
        (false, None) => Rpo::Waiting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_measured_by_the_newest_good_backup() {
        let at = |hour: i64| UnixMillis(hour * 3_600_000);
        let promise = 26 * 3_600_000;
        for (promise, good, now, expected) in [
            (0, None, 1_000, Rpo::None),
            (promise, Some(at(100)), 126, Rpo::Kept),
            (promise, Some(at(100)), 127, Rpo::Overdue),
            (promise, None, 20, Rpo::Waiting),
            (promise, None, 27, Rpo::Overdue),
        ] {
            assert_eq!(measure(promise, good, at(0), at(now)), expected, "{good:?} {now}");
            assert_eq!(expected.to_string().parse::<Rpo>(), Ok(expected));
        }
        assert!("fine".parse::<Rpo>().is_err());
    }
}
