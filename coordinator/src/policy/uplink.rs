//! Whether what a host has to store fits through its line in the time that a policy gives it. Pure.

use std::time::Duration;

/// A run that made a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// What it stored.
    pub stored_bytes: u64,
    /// How long that took.
    pub duration: Duration,
}

/// Below this nothing is learnt of a line: waiting outweighs sending.
const LEAST_BYTES: u64 = 1 << 20;

/// The fastest that the line was seen to be, in bytes a second; `None` where nothing that says so was stored yet.
pub fn rate(measured: &[Measured]) -> Option<u64> {
    let telling = measured.iter().filter(|run| run.stored_bytes >= LEAST_BYTES && !run.duration.is_zero());
    telling.map(|run| (run.stored_bytes as f64 / run.duration.as_secs_f64()) as u64).max()
}

/// What a run may be expected to store: the mean of those before.
pub fn expected_bytes(measured: &[Measured]) -> u64 {
    let total: u64 = measured.iter().map(|run| run.stored_bytes).sum();
    total / (measured.len() as u64).max(1)
}

/// How long `bytes` take at the measured rate, which the policy may limit further; `None` where that is not known.
pub fn time_needed(bytes: u64, rate: Option<u64>, limit: Option<u64>) -> Option<Duration> {
    let rate = match (rate, limit) {
        (Some(rate), Some(limit)) => rate.min(limit),
        (Some(rate), None) => rate,
        // Never measured: the limit at least is known.
        (None, Some(limit)) => limit,
        (None, None) => return None,
    };
    Some(Duration::from_secs(bytes / rate.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(mib: u64, seconds: u64) -> Measured {
        Measured { stored_bytes: mib << 20, duration: Duration::from_secs(seconds) }
    }

    #[test]
    fn the_fastest_telling_run_says_how_fast_the_line_is() {
        let runs = [run(100, 100), run(100, 50), run(0, 1)];
        assert_eq!(rate(&runs), Some(2 << 20));
        assert_eq!(rate(&[run(0, 1)]), None);
        assert_eq!(expected_bytes(&runs), (200 << 20) / 3);
        assert_eq!(expected_bytes(&[]), 0);
    }

    #[test]
    fn a_limit_slows_a_fast_line_only() {
        assert_eq!(time_needed(100, Some(10), None), Some(Duration::from_secs(10)));
        assert_eq!(time_needed(100, Some(10), Some(5)), Some(Duration::from_secs(20)));
        assert_eq!(time_needed(100, Some(10), Some(50)), Some(Duration::from_secs(10)));
        assert_eq!(time_needed(100, None, Some(50)), Some(Duration::from_secs(2)));
        assert_eq!(time_needed(100, None, None), None);
    }
}
