//! One table: Sealift's figures, and every other tool's as figure and ratio.

use std::time::Duration;

use sealift_tests::measure::{Cost, machine};

use crate::input::Input;

/// What one tool did.
pub struct Row {
    /// Name and version.
    pub name: String,
    /// First backup.
    pub first: Cost,
    /// Backup of the changed dump.
    pub later: Cost,
    /// Restore into nothing.
    pub restore: Cost,
    /// Bytes stored by the first backup.
    pub stored_first: u64,
    /// Bytes stored by the later one.
    pub stored_later: u64,
    /// Memory of what waits between backups.
    pub idle: Option<u64>,
}

/// What a line shows: its name, a figure of a row, and how figures are written.
type Line = (&'static str, fn(&Row) -> f64, fn(f64) -> String);

const LINES: [Line; 12] = [
    ("first backup, wall", |row| seconds(row.first.wall), as_seconds),
    ("first backup, CPU", |row| seconds(row.first.cpu), as_seconds),
    ("first backup, peak memory", |row| row.first.peak_rss as f64, as_mib),
    ("bytes stored at first", |row| row.stored_first as f64, as_mib),
    ("later backup, wall", |row| seconds(row.later.wall), as_seconds),
    ("later backup, CPU", |row| seconds(row.later.cpu), as_seconds),
    ("later backup, peak memory", |row| row.later.peak_rss as f64, as_mib),
    ("bytes stored for the change", |row| row.stored_later as f64, as_mib),
    ("restore, wall", |row| seconds(row.restore.wall), as_seconds),
    ("restore, CPU", |row| seconds(row.restore.cpu), as_seconds),
    ("restore, peak memory", |row| row.restore.peak_rss as f64, as_mib),
    ("idle memory", |row| row.idle.unwrap_or(0) as f64, as_mib),
];

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn as_seconds(value: f64) -> String {
    format!("{value:.2} s")
}

fn as_mib(value: f64) -> String {
    format!("{:.1} MiB", value / f64::from(1 << 20))
}

/// Prints a table in Markdown. Ratios are the other tool's figure over Sealift's: above 1, Sealift does better.
pub fn print(rows: &[Row], input: &Input) {
    println!("{}", machine());
    println!(
        "Dump of {:.2} GB; second version with 1,500 rows changed; Ceph RGW on loopback.\n",
        input.bytes() as f64 / 1e9
    );
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    println!("| | {} |", names.join(" | "));
    println!("|---{}|", "|---".repeat(rows.len()));
    for (what, figure, shown) in LINES {
        let ours = figure(&rows[0]);
        let cells = rows.iter().enumerate().map(|(i, row)| match figure(row) {
            0.0 => "–".to_owned(),
            value if i == 0 || ours == 0.0 => shown(value),
            value => format!("{} ({:.2}x)", shown(value), value / ours),
        });
        println!("| {what} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}
