//! How long to wait before the next try: exponential, capped, with full jitter, so that a thousand hosts which lost the same
//! coordinator do not come back in step. The jitter stays full after the cap.

use std::time::Duration;

use sealift_common::id::Random;

/// The waits between tries.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    tries: u32,
    random: Random,
}

impl Backoff {
    /// Waits between zero and `first` at first, twice as long each time, up to `cap`.
    pub fn new(first: Duration, cap: Duration, random: Random) -> Self {
        Self { first, cap, tries: 0, random }
    }

    /// How long to wait now.
    pub fn next_wait(&mut self) -> Duration {
        let longest =
            self.first.saturating_mul(1u32.checked_shl(self.tries).unwrap_or(u32::MAX)).min(self.cap);
        self.tries = self.tries.saturating_add(1).min(31);
        longest.mul_f64(self.random.fraction())
    }

    /// Starts anew: the last try succeeded.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// Another cap, as the coordinator asked for.
    pub fn set_cap(&mut self, cap: Duration) {
        self.cap = cap;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_are_spread_below_it() {
        let cap = Duration::from_secs(60);
        let mut backoff = Backoff::new(Duration::from_millis(500), cap, Random::from_seed(4));
        let waits: Vec<_> = (0..2_000).map(|_| backoff.next_wait()).collect();
        assert!(waits[0] <= Duration::from_millis(500));
        assert!(waits.iter().all(|w| *w <= cap));
        let late = &waits[100..];
        let mean = late.iter().sum::<Duration>() / u32::try_from(late.len()).unwrap();
        assert!((25..35).contains(&mean.as_secs()), "full jitter has its mean in the middle: {mean:?}");
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(500));
    }
}
