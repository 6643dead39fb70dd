//! Time as an argument: production takes [`Clock::system`], tests and simulations take [`Clock::manual`].
//!
//! `clippy.toml` bans the ways around this, so that a year of schedules can be simulated in seconds.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment, in Unix milliseconds (the format's and the wire's unit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// This moment plus `duration`; stops at the ends of the scale.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This moment less `duration`; stops at the ends of the scale.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long ago `earlier` was; zero where it is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 in UTC, as JSON output shows it; the bare number where no calendar reaches. Always with three digits after
    /// the point: of two such texts the greater is the later, for whoever sorts or compares them as they are.
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_millisecond(self.0).map_or_else(|_| self.0.to_string(), |t| format!("{t:.3}"))
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

/// What the time is. Cheap to clone; clones of a manual clock share their hands.
#[derive(Debug, Clone)]
pub struct Clock(Hands);

#[derive(Debug, Clone)]
enum Hands {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Hands::System)
    }

    /// A clock that moves only by [`Clock::advance`].
    pub fn manual(start: UnixMillis) -> Self {
        Self(Hands::Manual(Arc::new(AtomicI64::new(start.0))))
    }

    /// Whether it is the machine's.
    pub fn is_system(&self) -> bool {
        matches!(self.0, Hands::System)
    }

    /// The time now.
    #[allow(clippy::disallowed_methods)] // the one place that may ask the machine
    pub fn now(&self) -> UnixMillis {
        match &self.0 {
            Hands::System => UnixMillis(jiff::Timestamp::now().as_millisecond()),
            Hands::Manual(hands) => UnixMillis(hands.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock forward; the system clock does not listen.
    pub fn advance(&self, by: Duration) {
        if let Hands::Manual(hands) = &self.0 {
            hands.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_in_the_order_of_their_moments() {
        let texts: Vec<String> = [1_700_000_000_000, 1_700_000_000_120, 1_700_000_000_125, 1_700_000_001_000]
            .map(UnixMillis)
            .map(|m| m.rfc3339())
            .into();
        assert_eq!(texts[0], "2023-11-14T22:13:20.000Z");
        assert!(texts.is_sorted(), "{texts:?}");
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(UnixMillis(1_000));
        let twin = clock.clone();
        clock.advance(Duration::from_secs(2));
        assert_eq!(twin.now(), UnixMillis(3_000));
        assert_eq!(twin.now().since(UnixMillis(1_000)), Duration::from_secs(2));
        assert_eq!(UnixMillis(0).since(twin.now()), Duration::ZERO);
    }

    #[test]
    fn a_moment_prints_as_rfc_3339() {
        assert_eq!(UnixMillis(0).to_string(), "1970-01-01T00:00:00.000Z");
    }
}
