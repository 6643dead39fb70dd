//! Several coordinators on one PostgreSQL: any agent on any of them, and nothing doubled or lost when one of them, the leader,
//! or the database goes away in the middle of backups.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sealift_tests::agent::Agent;
use sealift_tests::cluster::Cluster;
use sealift_tests::faults::{Chance, Feed, Gate};
use sealift_tests::services::S3;
use sealift_tests::simulated::source::STREAM;
use sealift_tests::simulated::{Fleet, Invitation, Options, Stage};
use sealift_tests::wait;
use serde_json::Value;

/// Blocks of 4 MiB.
const BLOCKS: u64 = 8;
const SOURCE: &str = "store-1/feed";

fn two() -> Cluster {
    Cluster::on_postgres(S3::embedded(), 2)
}

/// Runs a backup; once it has read half of the source, `fault` happens. It must come to its end, whole.
#[track_caller]
fn survives(cluster: &mut Cluster, feed: &Feed, seed: u64, fault: impl FnOnce(&mut Cluster)) -> Value {
    feed.renew(seed);
    let before = cluster.backups(SOURCE).len();
    let run = cluster.start_backup(SOURCE);
    wait::until_true("half is read", || feed.progress() >= BLOCKS / 2);
    fault(cluster);
    let run = cluster.wait_for_end(&run);
    assert_eq!(run["state"], "succeeded", "{run:#}");
    let backups = cluster.backups(SOURCE);
    assert_eq!(backups.len(), before + 1, "one run, one backup");
    assert_eq!(backups[0]["run_id"], run["id"], "{:#}", backups[0]);
    comes_back(cluster, feed);
    run
}

#[track_caller]
fn comes_back(cluster: &Cluster, feed: &Feed) {
    let stream = cluster.json(&["backup", "show", "latest:store-1/feed"])["streams"][0]["name"].clone();
    let identity = cluster.identity.display().to_string();
    let name = stream.as_str().expect("a stream");
    let arguments =
        ["restore", "latest:store-1/feed", "--identity", &identity, "--stdout", "--stream", name, "--yes"];
    assert!(cluster.sealift(&arguments).expect(0).stdout == feed.content(), "other bytes came back");
}

/// Which coordinator leads: the one whose log says so last.
#[track_caller]
fn leader(cluster: &Cluster) -> usize {
    wait::until("somebody leads", || {
        let terms = (0..2).filter(|n| cluster.coordinator_runs(*n)).filter_map(|n| {
            let log = cluster.coordinator_log_at(n);
            let line = log.lines().rev().find(|line| line.contains("this coordinator"))?.to_owned();
            let epoch = line.rsplit("epoch=").next()?.trim().parse::<u64>().ok()?;
            line.contains("this coordinator leads").then_some((epoch, n))
        });
        terms.max().map(|(_, n)| n).ok_or("nobody says so")
    })
}

/// Which coordinator holds the session of the one agent.
#[track_caller]
fn holder(cluster: &mut Cluster) -> usize {
    let sql = "SELECT COUNT(*) FROM agent_sessions s JOIN coordinators c ON s.coordinator_id = c.id";
    wait::until_true("a coordinator holds the session", || cluster.database().sql("sealift", sql) == "1");
    // The lines begin with the time.
    (0..2)
        .filter(|n| cluster.coordinator_runs(*n))
        .max_by_key(|n| {
            let log = cluster.coordinator_log_at(*n);
            log.lines().rev().find(|line| line.contains("an agent has connected")).map(str::to_owned)
        })
        .expect("a coordinator")
}

#[test]
fn the_main_job_runs_on_postgres() {
    let cluster = Cluster::on_postgres(S3::embedded(), 1);
    let feed = Feed::new(BLOCKS);
    feed.renew(1);
    let _agent = cluster.agent("store-1", &feed.source("feed"));
    let first = cluster.backup_ok(SOURCE);
    assert_eq!(first["status"], "complete", "{first:#}");
    comes_back(&cluster, &feed);
    let second = cluster.backup_ok(SOURCE);
    assert_eq!(second["new_raw_bytes"], 0, "{second:#}");
    cluster.sealift(&["backup", "verify", "latest:store-1/feed", "--level", "hash"]).expect(0);
    assert_eq!(cluster.json(&["status"])["backups"], 2);
}

#[test]
fn backups_survive_the_leader_the_session_holder_and_the_database() {
    let mut cluster = two();
    let feed = Feed::new(BLOCKS);
    let _agent = cluster.agent_at(1, "store-1", &feed.source("feed"));
    leader(&cluster);

    println!("the leader is killed");
    survives(&mut cluster, &feed, 1, |cluster| {
        let leader = leader(cluster);
        cluster.kill_coordinator_at(leader);
    });
    for n in 0..2 {
        if !cluster.coordinator_runs(n) {
            cluster.start_coordinator_at(n);
        }
    }
    cluster.wait_until_connected("store-1");

    println!("the holder of the session is killed");
    let run = survives(&mut cluster, &feed, 2, |cluster| {
        let holder = holder(cluster);
        cluster.kill_coordinator_at(holder);
    });
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "the dump was not started anew: {run:#}");
    for n in 0..2 {
        if !cluster.coordinator_runs(n) {
            cluster.start_coordinator_at(n);
        }
    }
    cluster.wait_until_connected("store-1");

    println!("the coordinator that holds the session is asked to stop: its agents move");
    let run = survives(&mut cluster, &feed, 3, |cluster| {
        let holder = holder(cluster);
        cluster.stop_coordinator_at(holder);
    });
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "{run:#}");
    for n in 0..2 {
        if !cluster.coordinator_runs(n) {
            cluster.start_coordinator_at(n);
        }
    }
    cluster.wait_until_connected("store-1");

    println!("the database is away for 30 s");
    let run = survives(&mut cluster, &feed, 4, |cluster| {
        cluster.database().stop();
        let away = Instant::now();
        wait::until_true("30 s pass", || away.elapsed() >= Duration::from_secs(30));
        cluster.database().start_again();
    });
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "{run:#}");
}

#[test]
fn a_coordinator_with_another_ca_does_not_start() {
    let mut cluster = two();
    cluster.stop_coordinator_at(1);
    let config = cluster.data_dir().join("coordinator-1.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let other = cluster.data_dir().join("other-ca");
    let text =
        text.replace(&cluster.data_dir().join("ca").display().to_string(), &other.display().to_string());
    std::fs::write(&config, text).unwrap();
    let error = cluster.serve_refused(1);
    assert!(error.contains("another CA") && error.contains("copy ca.pem and ca.key"), "{error}");
    assert!(!other.join("ca.pem").exists(), "no CA is made that nobody trusts");
}

/// What is asked of one coordinator reaches an agent that is connected to the other.
#[test]
fn commands_reach_agents_on_the_other_coordinator() {
    let cluster = two();
    let mut fleet = Fleet::new(Options::default());
    // The command asks the first coordinator; the hosts are on the second.
    fleet.enrol(&Invitation::of(&cluster, 2, &[]).first_at(1), "till", 2);
    fleet.connect();
    fleet.until_connected(2);
    let log = |n: usize| cluster.coordinator_log_at(n).matches("an agent has connected").count();
    assert_eq!((log(0), log(1)), (0, 2));
    for name in ["till-0000", "till-0001"] {
        cluster.wait_until_connected(name);
    }
    assert_eq!(cluster.json(&["status"])["agents_connected"], 2);

    // A run that is asked for here is dispatched there at once, and cancelled there.
    fleet.hold(Some(Stage::Begun));
    let asked = Instant::now();
    let run = cluster.start_backup("till-0000/data");
    wait::until_true("it is under way", || fleet.waiting() == 1);
    println!("dispatched after {:?}", asked.elapsed());
    cluster.sealift(&["run", "cancel", &run, "--yes"]).expect(0);
    let ended = cluster.wait_for_end(&run);
    assert_eq!(ended["state"], "cancelled", "{ended:#}");
    fleet.hold(None);

    // Revoked: the session ends within a second.
    assert!(fleet.host(1).is_connected());
    cluster.sealift(&["agent", "revoke", "till-0001", "--reason", "stolen", "--yes"]).expect(0);
    wait::until_within(Duration::from_secs(1), "the revoked agent's session ends", || {
        if fleet.host(1).is_connected() { Err("it is open") } else { Ok(()) }
    });
    assert!(fleet.host(0).is_connected());
}

/// How far a run is shows on the coordinator that does not hold the session as well.
#[test]
fn progress_shows_on_any_coordinator() {
    let mut cluster = two();
    let first = 3 << 20;
    let gate = Gate::new(first);
    let mut agent = cluster.agent_at(1, "store-1", &gate.source("feed"));
    assert_eq!(cluster.coordinator_log_at(1).matches("an agent has connected").count(), 1);
    // The command asks the first coordinator.
    let run = cluster.start_backup(SOURCE);
    gate.wait_until_reached();
    let until_shown = |cluster: &Cluster, what: &str| {
        wait::until_within(Duration::from_secs(30), what, || {
            let shown = cluster.run(&run);
            let read = shown["progress"]["raw_bytes"].as_u64().unwrap_or(0);
            if read >= first as u64 { Ok(shown) } else { Err(shown.to_string()) }
        })
    };
    let shown = until_shown(&cluster, "the first coordinator shows what the second hears");
    assert_eq!(shown["state"], "active", "{shown:#}");
    let mut watching = cluster.command();
    watching.args(["run", "watch", &run]).stderr(std::process::Stdio::piped());
    let watching = watching.spawn().unwrap();
    let rows = "SELECT COUNT(*) FROM run_progress";
    assert_eq!(cluster.database().sql("sealift", rows), "1", "one row for a run, however often it was said");

    gate.open();
    let ended = cluster.wait_for_end(&run);
    assert_eq!(
        (&ended["state"], ended["attempts"].as_array().unwrap().len()),
        (&"succeeded".into(), 1),
        "{ended:#}"
    );
    let said = watching.wait_with_output().unwrap();
    assert!(said.status.success() && String::from_utf8_lossy(&said.stderr).contains("dumping"), "{said:?}");
    agent.stop();
}

#[test]
fn sources_are_tested_on_the_other_coordinator_and_the_newest_session_wins() {
    let cluster = two();
    let feed = Feed::new(1);
    feed.renew(1);
    let mut agent: Agent = cluster.agent_at(1, "store-1", &feed.source("feed"));
    cluster.sealift(&["source", "test", SOURCE]).expect(0);

    // The same host comes back to the other one, while the first still believes in its session.
    agent.process().signal(Signal::SIGSTOP);
    let state = |n: usize| cluster.coordinator_log_at(n).matches("a session ended").count();
    let ended = state(1);
    let mut moved = cluster.same_agent_at(0, &agent);
    moved.start();
    wait::until_true("the older session is closed", || state(1) > ended);
    assert!(cluster.coordinator_log_at(1).contains("has opened a newer session"));
    cluster.wait_until_connected("store-1");
    agent.kill();
}

/// How many hosts; `make test` takes few.
fn hosts() -> usize {
    std::env::var("SEALIFT_TEST_HOSTS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    KillCoordinator(usize),
    StartCoordinator(usize),
    FreezeCoordinator(usize),
    CrashHost(usize),
    CutHosts(usize),
    RestartDatabase,
}

/// The next fault, from the seed and the faults before it alone. One coordinator is always there.
fn next_fault(chance: &mut Chance, down: &mut Option<usize>, hosts: usize) -> Fault {
    let host = usize::try_from(chance.below(hosts as u64)).unwrap();
    let n = usize::try_from(chance.below(2)).unwrap();
    match (chance.below(10), *down) {
        (0..=3, Some(gone)) => {
            *down = None;
            Fault::StartCoordinator(gone)
        }
        (0..=1, None) => {
            *down = Some(n);
            Fault::KillCoordinator(n)
        }
        (2, None) => Fault::FreezeCoordinator(n),
        (3, None) => Fault::RestartDatabase,
        (4..=6, _) => Fault::CrashHost(host),
        _ => Fault::CutHosts(host),
    }
}

fn strike(cluster: &mut Cluster, fleet: &Fleet, fault: Fault, crashed: &mut BTreeMap<usize, u32>) {
    println!("{fault:?}");
    match fault {
        Fault::KillCoordinator(n) => cluster.kill_coordinator_at(n),
        Fault::StartCoordinator(n) => cluster.start_coordinator_at(n),
        Fault::FreezeCoordinator(n) => {
            // Longer than a lease of leadership lasts, and it goes on as if nothing had happened.
            cluster.coordinator_at(n).signal(Signal::SIGSTOP);
            let frozen = Instant::now();
            wait::until_true("its lease is over", || frozen.elapsed() >= Duration::from_secs(16));
            cluster.coordinator_at(n).signal(Signal::SIGCONT);
        }
        // A run has three attempts, and each crash costs one.
        Fault::CrashHost(n) if *crashed.entry(n).or_default() < 2 => {
            *crashed.entry(n).or_default() += 1;
            fleet.host(n).crash();
            fleet.host(n).start();
        }
        Fault::CrashHost(n) => fleet.host(n).cut(),
        Fault::CutHosts(first) => {
            (0..fleet.len() / 4).for_each(|n| fleet.host((first + n) % fleet.len()).cut())
        }
        Fault::RestartDatabase => {
            cluster.database().stop();
            cluster.database().start_again();
        }
    }
}

#[test]
fn random_kills_and_cuts_double_and_lose_nothing() {
    let (mut cluster, mut chance, hosts) = (two(), Chance::new(), hosts());
    let mut fleet = Fleet::new(Options::default());
    for n in 0..2 {
        let half = if n == 0 { hosts / 2 } else { hosts - hosts / 2 };
        let invitation = Invitation::of(&cluster, half, &[("role", "till")]).first_at(n);
        fleet.enrol(&invitation, &format!("till-{n}"), half);
    }
    fleet.connect();
    fleet.until_connected(hosts);
    let (rounds, faults) = (2, 6);
    let mut down = None;
    for round in 1..=rounds {
        let mut crashed = BTreeMap::new();
        // Each is in the middle of a backup when the faults begin.
        fleet.hold(Some(Stage::Signed));
        cluster.sealift(&["backup", "run", "--selector", "role=till", "--yes"]).expect(0);
        wait::until_true("most hosts are in the middle of a backup", || fleet.waiting() * 10 >= hosts * 9);
        for step in 0..faults {
            let fault = next_fault(&mut chance, &mut down, hosts);
            strike(&mut cluster, &fleet, fault, &mut crashed);
            fleet.hold(if step % 2 == 0 { None } else { Some(Stage::Begun) });
        }
        fleet.hold(None);
        if let Some(gone) = down.take() {
            cluster.start_coordinator_at(gone);
        }
        ended(&cluster, round * hosts);
    }
    whole(&cluster, &fleet, rounds * hosts);
}

/// Waits until so many runs have ended. A host may not hear of the end of its own: the resolver commits as well.
#[track_caller]
fn ended(cluster: &Cluster, expected: usize) -> Vec<Value> {
    wait::until_within(Duration::from_secs(600), "all runs are over", || {
        let runs = cluster.json(&["run", "list", "--limit", "0"]).as_array().unwrap().clone();
        let over = |run: &&Value| matches!(run["state"].as_str(), Some("succeeded" | "failed" | "cancelled"));
        match runs.iter().filter(over).count() {
            count if count == expected && runs.len() == expected => Ok(runs),
            count => Err(format!("{count} of {} are", runs.len())),
        }
    })
}

/// Each run has ended once, with one backup; each backup is listed, has a number of its own in its series, and restores.
#[track_caller]
fn whole(cluster: &Cluster, fleet: &Fleet, expected: usize) {
    let array = |value: Value| value.as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let runs = ended(cluster, expected);
    assert_eq!(runs.len(), expected, "one run for each that was asked for");
    let failed: Vec<_> = runs.iter().filter(|run| run["state"] != "succeeded").collect();
    assert!(failed.is_empty(), "{failed:#?}\n{:?}", fleet.figures().failures());
    let listed = array(cluster.json(&["backup", "list", "--limit", "0"]));
    let of_runs: BTreeSet<String> = runs.iter().map(|run| text(&run["backup_id"])).collect();
    let ids: BTreeSet<String> = listed.iter().map(|backup| text(&backup["id"])).collect();
    assert_eq!(
        (listed.len(), &of_runs),
        (expected, &ids),
        "each run has a backup of its own, and there are no others"
    );
    let told = fleet.figures().committed();
    for backup in &told {
        assert!(
            ids.contains(&backup.backup.to_string()),
            "{backup:?} was told to be committed, and is not listed"
        );
    }
    let mut numbers = BTreeSet::new();
    for backup in &told {
        assert!(numbers.insert((backup.series, backup.sequence)), "{backup:?}: its number is another's too");
    }
    for backup in told.iter().rev().take(40) {
        let id = backup.backup.to_string();
        let restored = std::fs::read(cluster.restore(&id, &format!("restored-{id}")).join(STREAM)).unwrap();
        assert_eq!(blake3::hash(&restored).as_bytes(), &backup.content, "{backup:?}");
    }
}
