//! Waiting for states: with a limit, a name for what is waited for, and the last thing seen.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How long a state may take on a slow, busy machine before the test is called hung.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Polls `state` until it gives `Ok`, at most [`LIMIT`]; panics with `what` and the last `Err` after that.
#[track_caller]
pub fn until<T, E: Display>(what: &str, state: impl FnMut() -> Result<T, E>) -> T {
    until_within(LIMIT, what, state)
}

/// As [`until`], with a limit of one's own.
#[track_caller]
pub fn until_within<T, E: Display>(
    limit: Duration,
    what: &str,
    mut state: impl FnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    loop {
        match state() {
            Ok(value) => return value,
            Err(seen) if started.elapsed() > limit => {
                panic!("waited {} s for: {what}; last seen: {seen}", limit.as_secs())
            }
            Err(_) => pause(),
        }
    }
}

/// As [`until`], for a yes or no.
#[track_caller]
pub fn until_true(what: &str, mut state: impl FnMut() -> bool) {
    until(what, || if state() { Ok(()) } else { Err("not yet") });
}

/// The pause between two looks. Not a wait for something to have happened: that is what the look is for.
#[allow(clippy::disallowed_methods)]
fn pause() {
    std::thread::sleep(Duration::from_millis(15));
}
