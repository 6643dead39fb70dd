//! A slow line: the source is let go as soon as it is read, what is left waits in the spool, and a restart of the agent
//! costs nothing of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sealift_tests::agent::Agent;
use sealift_tests::cluster::Cluster;
use sealift_tests::faults::Feed;
use sealift_tests::network::Line;
use sealift_tests::services::{Postgres, S3};
use sealift_tests::{assert_same_text, wait};
use serde_json::Value;

/// 2 Mbit/s.
const SHOP_LINE: u64 = 250_000;
/// Machines that run tests have little room.
const SPOOL: &str = "[spool]\nmin_free = \"64MiB\"\n";

/// A cluster whose bucket lies behind a line that is fast until it is told otherwise.
fn cluster_behind_a_line() -> (Cluster, Line) {
    let s3 = S3::rclone();
    let line = Line::to(s3.port(), 0);
    let endpoint = format!("http://127.0.0.1:{}", line.port());
    (Cluster::on(s3.over(endpoint, None)), line)
}

/// Waits until everything that is left of a run is on its host's disk; the run.
#[track_caller]
fn wait_until_spooled(cluster: &Cluster, run: &str) -> Value {
    wait::until("the run is spooled", || {
        let run = cluster.run(run);
        assert_ne!(run["state"], "succeeded", "the line was not slow: {run:#}");
        if run["progress"]["stage"] == "spooled" { Ok(run) } else { Err(run.to_string()) }
    })
}

/// Files that wait in an agent's spool. All are for the agent alone.
#[track_caller]
fn spooled_files(agent: &Agent) -> Vec<PathBuf> {
    let mut files = Vec::new();
    visit(&agent.dir().join("state/spool"), &mut files);
    files
}

fn visit(dir: &Path, files: &mut Vec<PathBuf>) {
    // Files come and go while this looks.
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(metadata) = path.metadata() else { continue };
        let mode = metadata.permissions().mode() & 0o777;
        assert_eq!(mode, if metadata.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        if metadata.is_dir() { visit(&path, files) } else { files.push(path) }
    }
}

/// Who is in the middle of reading the database.
fn readers(server: &Postgres) -> String {
    server.sql(
        "postgres",
        "SELECT count(*) FROM pg_stat_activity
         WHERE application_name = 'pg_dump' OR (datname = 'shop' AND backend_xmin IS NOT NULL)",
    )
}

#[test]
fn a_database_is_let_go_when_it_is_read_and_the_upload_survives_restarts() {
    let server = Postgres::start();
    server.create_database("shop");
    // 4 MiB that do not compress, beyond their spelling as hex digits.
    server.sql(
        "shop",
        "CREATE TABLE receipts AS SELECT i, decode(string_agg(md5(i || '-' || j), ''), 'hex') AS body
         FROM generate_series(1, 256) i, generate_series(1, 1024) j GROUP BY i",
    );
    let (cluster, line) = cluster_behind_a_line();
    let source =
        format!("[[source]]\nname = \"main-db\"\nkind = \"postgres\"\nurl = {:?}\n", server.url("shop"));
    let password = [("DB_MAIN_DB_PASSWORD", server.password())];
    let mut agent = cluster.agent_with("store-1", &(source + SPOOL), &password, None);

    line.set_speed(SHOP_LINE);
    let run = cluster.start_backup("store-1/main-db");
    let spooled = wait_until_spooled(&cluster, &run);
    assert_eq!(readers(&server), "0", "the database is still being read");
    assert!(spooled["progress"]["spooled_bytes"].as_u64().unwrap() > 4 << 20, "{spooled:#}");
    assert!(spooled_files(&agent).iter().any(|file| file.ends_with("plan")));
    let shown = cluster.sealift(&["run", "show", &run]).expect(0).text();
    assert!(shown.contains("spooled") && shown.contains("wait on the host's disk"), "{shown}");

    // Stopped in good order, and killed.
    agent.stop();
    assert!(!spooled_files(&agent).is_empty(), "a stop takes the spool with it");
    agent.start();
    cluster.wait_until_connected("store-1");
    wait_until_spooled(&cluster, &run);
    agent.crash();
    cluster.wait_until_connected("store-1");
    let resumed = wait_until_spooled(&cluster, &run);
    assert_eq!(readers(&server), "0", "the database is read again");

    let ended = cluster.wait_for_end(&run);
    assert_eq!(ended["state"], "succeeded", "{ended:#}\n{}", agent.log());
    let attempts = ended["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{ended:#}");
    assert_eq!(attempts[0]["epoch"], resumed["attempts"][0]["epoch"]);
    wait::until_true("the spool is empty", || spooled_files(&agent).is_empty());
    let tickets = std::fs::read_dir(agent.dir().join("state/spooled")).unwrap();
    assert_eq!(tickets.count(), 0, "the key of what waited is gone");

    line.set_speed(0);
    let target = Postgres::start();
    let password_file = cluster.scratch().file("target-password", target.password(), 0o600);
    let (identity, url) = (cluster.identity.display().to_string(), target.url(""));
    let password_file = password_file.display().to_string();
    let arguments = [
        "restore",
        "latest:store-1/main-db",
        "--identity",
        &identity,
        "--into",
        &url,
        "--password-file",
        &password_file,
    ];
    cluster.sealift(&[arguments.as_slice(), &["--yes"]].concat()).expect(0);
    assert_same_text(&server.dump("shop"), &target.dump("shop"));
}

#[test]
fn a_dump_larger_than_memory_is_drained_and_the_next_attempt_takes_it_up() {
    let (cluster, line) = cluster_behind_a_line();
    // 96 MiB; what waits in memory is at most four packs of 16 MiB.
    let feed = Feed::new(24);
    feed.renew(7);
    let limits = "[backup]\nmax_duration = \"30s\"\n";
    let agent = cluster.agent("store-1", &(feed.source("feed") + limits + SPOOL));

    line.set_speed(SHOP_LINE);
    let run = cluster.start_backup("store-1/feed");
    let spooled = wait_until_spooled(&cluster, &run);
    assert_eq!(feed.progress(), feed.blocks(), "the source was not read to its end");
    assert!(spooled["progress"]["stored_bytes"].as_u64().unwrap() < 40 << 20, "{spooled:#}");

    // The first attempt takes too long; the source is not read for the second.
    wait::until("the first attempt ends", || {
        let run = cluster.run(&run);
        if run["attempts"][0]["state"] == "failed" { Ok(()) } else { Err(run.to_string()) }
    });
    line.set_speed(0);
    let ended = cluster.wait_for_end(&run);
    assert_eq!(ended["state"], "succeeded", "{ended:#}\n{}", agent.log());
    assert_eq!(ended["attempts"].as_array().unwrap().len(), 2, "{ended:#}");
    assert_eq!(feed.runs(), 1, "the source was read again");
    wait::until_true("the spool is empty", || spooled_files(&agent).is_empty());

    let stream = cluster.json(&["backup", "show", "latest:store-1/feed"])["streams"][0]["name"].clone();
    let (identity, name) = (cluster.identity.display().to_string(), stream.as_str().expect("a stream"));
    let arguments =
        ["restore", "latest:store-1/feed", "--identity", &identity, "--stdout", "--stream", name, "--yes"];
    assert!(cluster.sealift(&arguments).expect(0).stdout == feed.content(), "other bytes came back");
}
