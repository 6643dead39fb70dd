//! A till (SQLite, MariaDB) that commits ten times a second: how long its commits take with and without a backup under
//! way. `SEALIFT_BENCH_TILL_MB` sets the size of the databases (1000).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sealift_tests::cluster::Cluster;
use sealift_tests::measure::{machine, percentile};
use sealift_tests::scratch::Scratch;
use sealift_tests::services::{MariaDb, S3};
use sealift_tests::sqlite::{Pace, Till};

/// Commits without a backup that are compared with.
const QUIET_COMMITS: u64 = 200;

fn main() {
    let megabytes: usize = match std::env::var("SEALIFT_BENCH_TILL_MB") {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("SEALIFT_BENCH_TILL_MB is a number, not {text:?}"))
        }
        Err(_) => 1000,
    };
    println!("{}\n", machine());
    println!("| till | commits | p50 | p99 | longest |\n|---|---|---|---|---|");
    for mode in ["WAL", "DELETE"] {
        sqlite(mode, megabytes << 20);
    }
    mariadb(megabytes);
}

fn row(what: &str, latencies: Vec<Duration>) {
    let ms = |duration: Duration| format!("{:.1} ms", duration.as_secs_f64() * 1000.0);
    let longest = latencies.iter().max().copied().unwrap_or_default();
    let (p50, p99) = (percentile(latencies.clone(), 0.5), percentile(latencies.clone(), 0.99));
    println!("| {what} | {} | {} | {} | {} |", latencies.len(), ms(p50), ms(p99), ms(longest));
}

fn sqlite(mode: &str, bytes: usize) {
    let (scratch, cluster) = (Scratch::new("till"), Cluster::on(S3::rgw()));
    let path = scratch.join("till.db");
    let till = Till::open(&path, mode, bytes, Pace::PerSecond(10));
    till.wait_for_commits(QUIET_COMMITS);
    let source =
        format!("[[source]]\nname = \"till\"\nkind = \"sqlite\"\npath = {:?}\n", path.display().to_string());
    let _agent = cluster.agent("store", &source);
    let before = till.commits();
    cluster.backup_ok("store/till");
    let after = till.commits();
    let latencies = till.stop();
    let at = |commits: u64| usize::try_from(commits).expect("small").min(latencies.len());
    row(&format!("SQLite, {mode}, alone"), latencies[..at(QUIET_COMMITS)].to_vec());
    row(&format!("SQLite, {mode}, during its backup"), latencies[at(before)..at(after)].to_vec());
}

fn mariadb(megabytes: usize) {
    let (server, cluster) = (MariaDb::start(), Cluster::on(S3::rgw()));
    server.create_database("shop");
    server.script(
        "shop",
        &format!(
            "CREATE TABLE sales (id INT PRIMARY KEY AUTO_INCREMENT, at DATETIME, note TEXT);
             CREATE TABLE ballast (id INT PRIMARY KEY, content BLOB);
             INSERT INTO ballast SELECT seq, REPEAT(MD5(seq), 500) FROM seq_1_to_{};",
            megabytes * 1_000_000 / 16_000
        ),
    );
    let source = format!("[[source]]\nname = \"shop\"\nkind = \"mysql\"\nurl = {:?}\n", server.url(""));
    let _agent = cluster.agent_with("store", &source, &[("DB_SHOP_PASSWORD", server.password())], None);
    let stop = AtomicBool::new(false);
    let quiet = commits(&server, |n| n >= QUIET_COMMITS);
    row("MariaDB, alone", quiet);
    let busy = std::thread::scope(|scope| {
        let till = scope.spawn(|| commits(&server, |_| stop.load(Ordering::Relaxed)));
        cluster.backup_ok("store/shop");
        stop.store(true, Ordering::Relaxed);
        till.join().expect("the till")
    });
    row("MariaDB, during its backup", busy);
}

/// One connection that inserts ten times a second until `enough`; how long each commit took.
fn commits(server: &MariaDb, enough: impl Fn(u64) -> bool) -> Vec<Duration> {
    let (mut child, mut input, mut output) = connect(server);
    let mut latencies = Vec::new();
    while !enough(latencies.len() as u64) {
        let started = Instant::now();
        writeln!(input, "INSERT INTO sales (at, note) VALUES (NOW(), 'sold'); SELECT 'done';")
            .expect("write");
        input.flush().expect("write");
        let mut line = String::new();
        output.read_line(&mut line).expect("answer");
        assert_eq!(line.trim(), "done");
        latencies.push(started.elapsed());
        between_customers();
    }
    drop(input);
    child.wait().expect("end of the client");
    latencies
}

fn connect(server: &MariaDb) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut command = server.client("mariadb");
    command.args(["--batch", "--skip-column-names", "--unbuffered", "shop"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start mariadb");
    let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    (child, input, BufReader::new(output))
}

/// A pause that is part of what is simulated, not a wait for something.
#[allow(clippy::disallowed_methods)]
fn between_customers() {
    std::thread::sleep(Duration::from_millis(100));
}
