//! Peak memory of the agent on streams of 1 GiB and 10 GiB: it must not grow with the dump, but for the index of its
//! chunks (30 bytes each). `SEALIFT_BENCH_GIB` sets the larger one (10).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use sealift_tests::cluster::Cluster;
use sealift_tests::measure;
use sealift_tests::services::S3;

const GIB: u64 = 1 << 30;
/// Average chunk of a series up to 16 GiB (docs/format.md, Chunks).
const CHUNK: u64 = 16 << 10;
const INDEX_BYTES: u64 = 30;
/// Heaps do not shrink at once, and threads are not always in the same place.
const SLACK: u64 = 24 << 20;

fn main() {
    let large: u64 = match std::env::var("SEALIFT_BENCH_GIB") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("SEALIFT_BENCH_GIB is a number, not {text:?}")),
        Err(_) => 10,
    };
    println!("{}\n", measure::machine());
    println!("| stream | peak memory of the agent |\n|---|---|");
    let small_peak = peak(1);
    let large_peak = peak(large);
    let allowed = small_peak + (large - 1) * GIB / CHUNK * INDEX_BYTES + SLACK;
    assert!(large_peak <= allowed, "{large_peak} bytes at {large} GiB; {allowed} would be right");
}

/// A fresh fleet, so that one stream's heap is not the other's.
fn peak(gib: u64) -> u64 {
    let cluster = Cluster::on(S3::rgw());
    // Numbers: no two chunks are the same, and they compress, so that the disk is not what is measured.
    let source = format!(
        "[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/sh\", \"-c\", \"seq 1 9999999999 | head -c {}\"]\n",
        gib * GIB
    );
    let mut agent = cluster.agent("host", &source);
    let backup = cluster.backup_ok("host/dump");
    assert_eq!(backup["raw_bytes"], gib * GIB);
    let peak = measure::peak_rss(agent.process().pid()).expect("the agent runs");
    println!("| {gib} GiB | {:.1} MiB |", peak as f64 / f64::from(1 << 20));
    peak
}
