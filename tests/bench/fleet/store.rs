//! Lists on a database with a large fleet's history.

use std::time::{Duration, Instant};

use sealift_common::clock::Clock;
use sealift_tests::cluster::Cluster;
use sealift_tests::generated::{self, Database, Size, host_name};
use sealift_tests::services::{Postgres, PostgresOptions, S3};
use sealift_tests::simulated::{Fleet, Invitation, Options};

use crate::table::{line, spread, time};

/// Hosts at full size; each has a hundred backups.
const HOSTS: usize = 10_000;
/// Backups of a host.
const EACH: usize = 100;
/// How often each list is asked for; the first time warms up.
const TIMES: usize = 8;
/// What every list is to stay under.
const GOAL: &str = "200 ms";

/// Prints the lines of this part.
pub fn measure(backups: usize) {
    let hosts = (backups / EACH).clamp(1, HOSTS);
    on("SQLite", None, Size { hosts, backups, packs: 3 });
    on("PostgreSQL", Some(server()), Size { hosts, backups, packs: 3 });
}

/// A server with the memory that one with such a database has.
pub fn server() -> Postgres {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let settings = vec![
        setting("shared_buffers", "1GB"),
        setting("work_mem", "32MB"),
        setting("maintenance_work_mem", "512MB"),
    ];
    let server = Postgres::start_with(PostgresOptions { settings, ..PostgresOptions::default() });
    server.create_database("sealift");
    server
}

fn on(name: &str, server: Option<Postgres>, size: Size) {
    let mut cluster = match &server {
        None => Cluster::on(S3::rgw()),
        Some(server) => Cluster::on_postgres(S3::rgw(), server, "sealift"),
    };
    {
        let mut fleet = Fleet::new(Options::default());
        fleet.enrol(&Invitation::of(&cluster, 1, &[("role", "real")]), "real", 1);
        fleet.connect();
        fleet.until_connected(1);
        cluster.backup_ok("real-0000/data");
    }
    cluster.stop_coordinator();
    let started = Instant::now();
    let file = cluster.data_dir().join("coordinator.db");
    let database = match &server {
        None => Database::Sqlite(&file),
        Some(server) => Database::Postgres(server, "sealift"),
    };
    generated::fill(database, size, Clock::system().now().0);
    let Size { hosts, backups, packs } = size;
    let packs = backups * packs;
    line(
        format!("{name}: {hosts} hosts, {backups} backups, {packs} packs generated"),
        "–",
        time(started.elapsed()),
    );
    cluster.start_coordinator();

    let host = host_name(hosts / 2);
    let source = format!("{host}/data");
    let one = format!("store={:05}", hosts / 4);
    let lists: &[&[&str]] = &[
        &["status"],
        &["status", "--storage", "host"],
        &["status", "--storage", "series"],
        &["status", "--storage", "label", "--label", "region"],
        &["agent", "list"],
        &["agent", "list", "-l", "role=pos,region in (eu,uk),!legacy"],
        &["agent", "list", "--sort", "stored"],
        &["agent", "list", "--sort", "last-seen", "--reverse"],
        &["agent", "show", &host],
        &["source", "list"],
        &["source", "list", "-l", "region=eu"],
        &["source", "list", "--sort", "last-backup"],
        &["backup", "list"],
        &["backup", "list", "--since", "7d", "--reverse"],
        &["backup", "list", "--sort", "size"],
        &["backup", "list", "-l", "region=eu"],
        &["backup", "list", "-l", &one],
        &["backup", "list", "-l", "legacy", "--sort", "stored"],
        &["backup", "list", &host],
        &["backup", "list", &source],
        &["run", "list"],
        &["run", "list", "--state", "failed"],
        &["run", "list", "--state", "failed", "-l", "region=eu", "--limit", "100"],
        &["run", "list", "-l", &one],
        &["run", "list", &source, "--state", "failed"],
        &["audit", "list"],
        &["audit", "list", "--since", "1d", "--action", "backup.*"],
        &["token", "list"],
    ];
    for arguments in lists {
        let mut all: Vec<Duration> = (0..TIMES).map(|_| timed(&cluster, arguments)).collect();
        all.remove(0);
        line(format!("{name}: `sealift {}`, the process included", arguments.join(" ")), GOAL, spread(all));
    }
}

fn timed(cluster: &Cluster, arguments: &[&str]) -> Duration {
    let started = Instant::now();
    cluster.sealift(arguments).expect(0);
    started.elapsed()
}
