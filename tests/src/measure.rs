//! Wall-clock time, CPU time and peak memory of processes, read from /proc.

use std::process::Child;
use std::time::{Duration, Instant};

use crate::wait;

/// What one job cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// From start to end.
    pub wall: Duration,
    /// User and system time of the client's processes.
    pub cpu: Duration,
    /// Peak resident memory, added up over them.
    pub peak_rss: u64,
}

/// Waits for the processes of one job, which were started at `started`. All must succeed.
#[track_caller]
pub fn finish(started: Instant, children: Vec<Child>) -> Cost {
    let mut peaks = vec![0; children.len()];
    wait::until_within(Duration::from_secs(900), "the job ends", || {
        for (child, peak) in children.iter().zip(&mut peaks) {
            *peak = (*peak).max(peak_rss(child.id()).unwrap_or(0));
        }
        // A child that ended and was not waited for keeps its CPU times.
        if children.iter().all(|child| state(child.id()) == Some('Z')) { Ok(()) } else { Err("it runs") }
    });
    let wall = started.elapsed();
    let cpu = children.iter().map(|child| cpu(child.id())).sum();
    for mut child in children {
        let status = child.wait().expect("wait");
        assert!(status.success(), "a process of the job ended with {status}");
    }
    Cost { wall, cpu, peak_rss: peaks.iter().sum() }
}

/// CPU time of a process and of its ended children that it waited for.
pub fn cpu(pid: u32) -> Duration {
    times(pid, 11..15)
}

/// CPU time of a process alone: without the dump tools that it started.
pub fn own_cpu(pid: u32) -> Duration {
    times(pid, 11..13)
}

/// Adds up times of `/proc/PID/stat`: user, system, and the same of children.
fn times(pid: u32, fields: std::ops::Range<usize>) -> Duration {
    let ticks: u64 = fields.filter_map(|field| stat(pid)?.get(field)?.parse::<u64>().ok()).sum();
    // The kernel's USER_HZ is 100 on every Linux that runs Rust.
    Duration::from_millis(ticks * 10)
}

/// Highest resident memory since the process started or [`forget_peak`].
pub fn peak_rss(pid: u32) -> Option<u64> {
    status_kib(pid, "VmHWM:")
}

/// Resident memory now.
pub fn rss(pid: u32) -> Option<u64> {
    status_kib(pid, "VmRSS:")
}

/// Starts [`peak_rss`] anew.
#[track_caller]
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("reset the peak of a process of one's own");
}

fn status_kib(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn state(pid: u32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// Fields of /proc/PID/stat from the third (state) on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// Processor, cores, memory and kernel, in one line.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Machine: {}, {cores} cores, {} memory, Linux {}.",
        field(&read("/proc/cpuinfo"), "model name"),
        field(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// The value below which this share of all values lies: 0.99 for p99.
pub fn percentile(mut values: Vec<Duration>, share: f64) -> Duration {
    values.sort();
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}
