//! One table in Markdown, line by line as it is measured.

use std::time::Duration;

use sealift_tests::measure::percentile;

/// The table's head.
pub fn head() {
    println!("| | goal | measured |\n|---|---|---|");
}

/// One line.
pub fn line(what: impl AsRef<str>, goal: &str, measured: impl AsRef<str>) {
    println!("| {} | {goal} | {} |", what.as_ref(), measured.as_ref());
}

/// A duration: `12.3 ms`, `1.23 s`.
pub fn time(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1000.0),
        seconds => format!("{seconds:.2} s"),
    }
}

/// `p50 1.0 ms, p99 2.0 ms, longest 3.0 ms (of 100)`.
pub fn spread(values: Vec<Duration>) -> String {
    let longest = values.iter().max().copied().unwrap_or_default();
    format!(
        "p50 {}, p99 {}, longest {} (of {})",
        time(percentile(values.clone(), 0.5)),
        time(percentile(values.clone(), 0.99)),
        time(longest),
        values.len()
    )
}

/// `123.4 MiB`.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
