//! The coordinator's own disasters (docs/recovery.md): its database is set back by a copy of before, or lost. Nothing is
//! deleted, no host is shut out, one command brings it back, and every backup is listed and restores.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use nix::sys::signal::Signal;
use sealift_tests::agent::Agent;
use sealift_tests::cluster::Cluster;
use sealift_tests::{tree, wait};
use serde_json::Value;

/// Hosts of the large tests; `SEALIFT_TEST_HOSTS` sets another number.
const HOSTS: usize = 8;
/// Bytes of one backup.
const SIZE: usize = 40_000;

/// A fleet whose every backup is remembered with what it must give back.
struct Fleet {
    cluster: Cluster,
    agents: Vec<Agent>,
    /// Content by backup id.
    made: BTreeMap<String, Vec<u8>>,
    round: u64,
}

impl Fleet {
    fn new(hosts: usize) -> Self {
        let hosts =
            std::env::var("SEALIFT_TEST_HOSTS").ok().and_then(|text| text.parse().ok()).unwrap_or(hosts);
        let mut fleet = Self { cluster: Cluster::dev(), agents: Vec::new(), made: BTreeMap::new(), round: 0 };
        fleet.enrol(hosts);
        fleet
    }

    /// More hosts, each with one source.
    fn enrol(&mut self, more: usize) {
        let first = self.agents.len();
        for n in first..first + more {
            let name = format!("store-{n:04}");
            let dir = self.cluster.scratch().private_dir(&format!("agent-{name}"));
            let mut agent = Agent::new(&name, self.cluster.url(), dir, &[], None);
            std::fs::write(agent.dir().join("data"), "").unwrap();
            agent.write_config(&source(&agent, "feed"));
            let place = format!("store={n}");
            agent.enrol(
                &self
                    .cluster
                    .json(&["token", "create", "--name", &name, "--label", "role=pos", "--label", &place]),
            );
            agent.start();
            self.agents.push(agent);
        }
        self.all_connected();
    }

    fn all_connected(&self) {
        let hosts = self.agents.len();
        wait::until("all hosts are connected", || {
            let status = self.cluster.json(&["status"]);
            if status["agents_connected"] == hosts { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// A backup of every host, with new content.
    fn back_up(&mut self) {
        self.round += 1;
        let mut content = BTreeMap::new();
        for (n, agent) in self.agents.iter().enumerate() {
            let data = tree::noise(self.round * 10_000 + n as u64, SIZE);
            std::fs::write(agent.dir().join("data"), &data).unwrap();
            content.insert(agent.name().to_owned(), data);
        }
        let answer = self.cluster.sealift(&["--output", "json", "backup", "run", "-l", "role=pos", "--wait"]);
        let runs = answer.expect(0).json();
        for run in runs.as_array().unwrap() {
            let (agent, backup) = (run["agent"].as_str().unwrap(), run["backup_id"].as_str().unwrap());
            self.made.insert(backup.to_owned(), content[agent].clone());
        }
        assert!(runs.as_array().unwrap().len() >= self.agents.len());
    }

    fn listed(&self) -> BTreeSet<String> {
        let all = self.cluster.json(&["backup", "list", "--limit", "0"]);
        all.as_array().unwrap().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Every backup that was ever made is listed, and nothing else.
    fn all_listed(&self) {
        assert_eq!(self.listed(), self.made.keys().cloned().collect());
    }

    /// Restores backups and compares: all, or each `every`-th.
    fn restores(&self, every: usize) {
        let stream = self.cluster.json(&["backup", "list", "--limit", "1"]);
        let first = stream[0]["id"].as_str().unwrap();
        let stream = self.cluster.json(&["backup", "show", first])["streams"][0]["name"].clone();
        let stream = stream.as_str().unwrap_or("stdout").to_owned();
        let identity = self.cluster.identity.display().to_string();
        for (id, content) in self.made.iter().step_by(every) {
            let arguments =
                ["restore", id, "--identity", &identity, "--stdout", "--stream", &stream, "--yes"];
            let restored = self.cluster.sealift(&arguments).expect(0).stdout;
            assert!(restored == *content, "backup {id} gives back {} other bytes", restored.len());
        }
    }

    fn status(&self) -> Value {
        self.cluster.json(&["status"])
    }

    fn state(&self) -> String {
        self.status()["state"].as_str().unwrap().to_owned()
    }

    fn wait_for_state(&self, wanted: &str) {
        wait::until(&format!("the coordinator is {wanted}"), || {
            let state = self.state();
            if state == wanted { Ok(()) } else { Err(state) }
        });
    }

    /// Objects of the fleet; the coordinator's own marks come and go.
    fn objects(&self) -> BTreeSet<String> {
        self.cluster.s3().list().into_iter().filter(|name| !name.starts_with("coordinator/")).collect()
    }

    fn database(&self) -> PathBuf {
        self.cluster.data_dir().join("coordinator.db")
    }

    fn remove_database(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.database().display()));
        }
    }

    /// Source and series, of all sources.
    fn series(&self) -> BTreeSet<(String, String)> {
        let all = self.cluster.json(&["source", "list", "--limit", "0"]);
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        all.as_array().unwrap().iter().map(|s| (text(&s["source"]), text(&s["series_id"]))).collect()
    }

    fn events(&self, action: &str) -> usize {
        self.cluster.json(&["audit", "list", "--action", action, "--limit", "0"]).as_array().unwrap().len()
    }
}

fn source(agent: &Agent, name: &str) -> String {
    let file = agent.dir().join("data").display().to_string();
    format!("[[source]]\nname = {name:?}\nkind = \"command\"\ncommand = [\"/bin/cat\", {file:?}]\n")
}

#[test]
fn a_database_set_back_by_a_day_is_noticed_and_recovers_from_the_bucket() {
    let mut fleet = Fleet::new(HOSTS - 2);
    fleet.back_up();
    fleet.cluster.stop_coordinator();
    let copy = fleet.cluster.scratch().join("copy.db");
    std::fs::copy(fleet.database(), &copy).unwrap();

    // A day: two more hosts, a new source, another trust policy, another backup of each.
    fleet.cluster.start_coordinator();
    fleet.enrol(2);
    let second = fleet.cluster.new_identity("second.key");
    fleet.cluster.set_trust(&[&fleet.cluster.recipient.clone(), &second]);
    let more = source(&fleet.agents[0], "feed") + &source(&fleet.agents[0], "more");
    fleet.agents[0].write_config(&more);
    fleet.agents[0].process().signal(Signal::SIGHUP);
    wait::until_true("the new source is known", || fleet.series().len() == fleet.agents.len() + 1);
    fleet.back_up();
    let (series, objects) = (fleet.series(), fleet.objects());

    // Back to the copy.
    fleet.cluster.stop_coordinator();
    fleet.remove_database();
    std::fs::copy(&copy, fleet.database()).unwrap();
    fleet.cluster.start_coordinator();
    fleet.wait_for_state("recovering");
    let status = fleet.status();
    assert!(status["warnings"][0].as_str().unwrap().contains("recover --from-bucket"), "{status:#}");
    assert_eq!(fleet.events("recovery.notice"), 1);
    let refused = fleet.cluster.sealift(&["backup", "run", "-l", "role=pos"]).expect(6);
    assert!(refused.stderr.contains("recovering"), "{}", refused.stderr);
    // Known hosts come back all the same, and what is listed can be restored.
    wait::until_true("known hosts are connected", || {
        fleet.status()["agents_connected"] == HOSTS - 2 || fleet.agents.len() != HOSTS
    });
    let known = fleet.listed();
    assert!(!known.is_empty() && known.len() < fleet.made.len());

    let report = fleet.cluster.own(&["recover", "--from-bucket", "--output", "json"]).expect(0).json();
    println!("{report:#}");
    assert_eq!(report["backups_gone"], 0);
    assert_eq!(report["packs_lost"], 0);
    assert_eq!(report["left_alone"], serde_json::json!([]));
    assert_eq!(report["backups"], fleet.made.len());
    assert_eq!(report["agents_added"], 2);
    assert_eq!(fleet.state(), "serving");
    fleet.all_listed();
    fleet.all_connected();
    // Each source writes into the series it wrote into.
    wait::until("all series are known by their sources", || {
        let now = fleet.series();
        if now == series { Ok(()) } else { Err(format!("{now:?}")) }
    });
    assert!(fleet.objects().is_superset(&objects), "something was deleted");
    fleet.restores(1);

    // Backups go on where they were.
    let runs = fleet.cluster.sealift(&["--output", "json", "backup", "run", "-l", "role=pos", "--wait"]);
    assert_eq!(runs.expect(0).json().as_array().unwrap().len(), fleet.agents.len() - 2 + 1);
    assert!(fleet.objects().is_superset(&objects), "something was deleted");
    // The command has nothing more to do, and says so.
    let again = fleet.cluster.own(&["recover", "--from-bucket"]).expect(1);
    assert!(again.stderr.contains("nothing to recover"), "{}", again.stderr);
}

#[test]
fn a_lost_database_comes_back_from_the_sealed_backup_and_the_bucket() {
    let mut fleet = Fleet::new(HOSTS - 2);
    fleet.back_up();
    let made = fleet.cluster.own(&["backup", "--output", "json"]).expect(0).json();
    assert_eq!(made["sequence"], 1, "{made:#}");
    // What happens after the last backup of the coordinator, only bucket and hosts know.
    fleet.enrol(2);
    fleet.back_up();
    let (series, objects) = (fleet.series(), fleet.objects());
    fleet.cluster.kill_coordinator();
    fleet.remove_database();
    std::fs::remove_dir_all(fleet.cluster.data_dir().join("ca")).unwrap();

    let identity = fleet.cluster.identity.clone();
    // Somebody starts it on nothing: it notices, and does no harm.
    fleet.cluster.start_coordinator();
    fleet.wait_for_state("recovering");
    fleet.cluster.sealift(&["token", "create"]).expect(6);
    // Found by bucket and key alone (`dev` serves the bucket, hence not before): by the name that the fleet knows the host
    // by, and by label.
    for wanted in ["host=store-0001", "store=1"] {
        let found = fleet.cluster.restore_offline(&identity, &["--output", "json", "--find", wanted]);
        let found = found.expect(0).json();
        assert_eq!(found.as_array().unwrap().len(), 2, "{wanted}: {found:#}");
        assert!(found[0]["host"] == "store-0001" && found[0]["labels"]["role"] == "pos", "{found:#}");
    }
    fleet.cluster.own(&["recover", "--from-bucket"]).expect(1);
    fleet.cluster.stop_coordinator();

    let key = identity.display().to_string();
    let planned = fleet.cluster.own(&["recover", "--from-bucket", "--identity", &key, "--dry-run"]).expect(0);
    assert!(planned.stderr.contains("begins with the coordinator's backup"), "{}", planned.stderr);
    let recover = ["recover", "--from-bucket", "--identity", &key, "--output", "json"];
    let report = fleet.cluster.own(&recover).expect(0).json();
    println!("{report:#}");
    assert_eq!((&report["backups_gone"], &report["packs_lost"]), (&0.into(), &0.into()));
    assert_eq!(report["left_alone"], serde_json::json!([]));
    assert_eq!((&report["backups"], &report["agents_added"]), (&fleet.made.len().into(), &2.into()));

    fleet.cluster.start_coordinator();
    fleet.wait_for_state("serving");
    fleet.all_listed();
    fleet.all_connected();
    wait::until("all series are known by their sources", || {
        let now = fleet.series();
        if now == series { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let shown = fleet.cluster.json(&["agent", "show", "store-0001"]);
    assert_eq!(shown["labels"]["store"], "1", "{shown:#}");
    assert!(fleet.objects().is_superset(&objects), "something was deleted");
    fleet.restores(1);
    let runs = fleet.cluster.sealift(&["--output", "json", "backup", "run", "-l", "role=pos", "--wait"]);
    assert_eq!(runs.expect(0).json().as_array().unwrap().len(), fleet.agents.len() - 2);
}

#[test]
fn without_a_backup_of_the_coordinator_the_bucket_and_the_ca_are_enough() {
    let mut fleet = Fleet::new(3);
    fleet.back_up();
    fleet.back_up();
    let series = fleet.series();
    fleet.cluster.kill_coordinator();
    fleet.remove_database();
    let key = fleet.cluster.identity.display().to_string();
    let report = fleet.cluster.own(&["recover", "--from-bucket", "--identity", &key, "--output", "json"]);
    let report = report.expect(0).json();
    assert_eq!(
        (&report["backups_added"], &report["agents_added"]),
        (&fleet.made.len().into(), &fleet.agents.len().into()),
        "{report:#}"
    );
    fleet.cluster.start_coordinator();
    fleet.wait_for_state("serving");
    fleet.all_listed();
    fleet.all_connected();
    wait::until_true("all series are known by their sources", || fleet.series() == series);
    fleet.restores(1);
}

/// Between a change and its mark in the bucket, hosts tell.
#[test]
fn a_copy_that_is_seconds_old_is_noticed_by_what_hosts_know() {
    let mut fleet = Fleet::new(1);
    fleet.back_up();
    fleet.cluster.stop_coordinator();
    let copy = fleet.cluster.scratch().join("copy.db");
    std::fs::copy(fleet.database(), &copy).unwrap();
    fleet.cluster.start_coordinator();
    fleet.all_connected();
    fleet.back_up();
    fleet.cluster.kill_coordinator();
    fleet.remove_database();
    std::fs::copy(&copy, fleet.database()).unwrap();
    // As if the marks of the last seconds had not arrived.
    let marks = fleet.cluster.objects().join("coordinator/marks");
    let mut names: Vec<_> = std::fs::read_dir(&marks).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    for newer in names.split_off(1) {
        std::fs::remove_file(newer).unwrap();
    }
    fleet.cluster.start_coordinator();
    fleet.wait_for_state("recovering");
    let warning = fleet.status()["warnings"][0].to_string();
    assert!(warning.contains("never heard of it"), "{warning}");
    fleet.cluster.own(&["recover", "--from-bucket"]).expect(0);
    fleet.all_listed();
}

#[test]
fn a_crash_is_no_false_alarm() {
    let mut fleet = Fleet::new(2);
    for _ in 0..5 {
        let run = fleet.cluster.start_backup("store-0000/feed");
        fleet.cluster.crash_coordinator();
        fleet.wait_for_state("serving");
        fleet.cluster.wait_for_end(&run);
        fleet.all_connected();
    }
    assert_eq!(fleet.events("recovery.notice"), 0);
    assert!(fleet.listed().len() >= 5);
    fleet.cluster.stop_coordinator();
    fleet.cluster.start_coordinator();
    fleet.wait_for_state("serving");
}

/// The CA is lost, and no backup has it: root keys vouch for another CA, and hosts come back by themselves.
#[test]
fn a_lost_ca_is_replaced_by_the_word_of_the_root_keys() {
    let mut fleet = Fleet::new(3);
    let hosts = fleet.agents.len();
    fleet.back_up();
    let series = fleet.series();
    let ca = fleet.cluster.data_dir().join("ca");
    let root = fleet.cluster.data_dir().join("root.key").display().to_string();
    let reset = ["ca", "reset", "--root-key", &root, "--output", "json"];
    let runs = fleet.cluster.own(&reset).expect(1);
    assert!(runs.stderr.contains("stop it"), "{}", runs.stderr);
    fleet.cluster.stop_coordinator();
    let there = fleet.cluster.own(&reset).expect(1);
    assert!(there.stderr.contains("--yes"), "{}", there.stderr);
    std::fs::remove_dir_all(&ca).unwrap();
    // Nobody is shut out by accident.
    let lost = fleet.cluster.own(&["backup"]).expect(1);
    assert!(lost.stderr.contains("ca reset"), "{}", lost.stderr);

    // Somebody else's CA, with the word of somebody else's root key: hosts stay away.
    let mut other = Cluster::dev();
    let _host =
        other.agent("store-9", "[[source]]\nname = \"x\"\nkind = \"command\"\ncommand = [\"/bin/true\"]\n");
    other.wait_until_connected("store-9");
    other.stop_coordinator();
    let theirs = other.data_dir().join("root.key").display().to_string();
    other.own(&["ca", "reset", "--root-key", &theirs, "--yes"]).expect(0);
    std::fs::create_dir(&ca).unwrap();
    for name in ["ca.key", "ca.pem", "ca.statement"] {
        std::fs::copy(other.data_dir().join("ca").join(name), ca.join(name)).unwrap();
    }
    fleet.cluster.start_coordinator();
    for agent in &fleet.agents {
        wait::until_true("the host says why it stays away", || {
            agent.log().contains("the statement on the coordinator's CA is for repository")
        });
    }
    assert_eq!(fleet.status()["agents_connected"], 0);
    fleet.cluster.stop_coordinator();
    std::fs::remove_dir_all(&ca).unwrap();

    // Root keys that no host has pinned make nothing.
    let refused = fleet.cluster.own(&["ca", "reset", "--root-key", &theirs]).expect(1);
    assert!(refused.stderr.contains("would not obey"), "{}", refused.stderr);
    fleet.cluster.own(&[&reset[..], &["--dry-run"]].concat()).expect(0);
    assert!(!ca.join("ca.pem").exists());

    let made = fleet.cluster.own(&reset).expect(0).json();
    fleet.cluster.start_coordinator();
    fleet.wait_for_state("serving");
    fleet.all_connected();
    let token = fleet.cluster.json(&["token", "create"]);
    assert_eq!(token["ca_sha256"], made["ca_sha256"], "{token:#}");
    assert_eq!(fleet.events("ca.reset"), 2);
    assert_eq!(fleet.events("agent.recover"), 2 * hosts);
    assert_eq!(fleet.series(), series);
    fleet.back_up();
    fleet.restores(1);

    // What a host has learned it keeps.
    let sessions = |agent: &Agent| agent.log().matches("session is up").count();
    for agent in &mut fleet.agents {
        agent.stop();
        let before = sessions(agent);
        agent.start();
        wait::until_true("the host is back after its restart", || sessions(agent) > before);
    }
    assert_eq!(fleet.events("agent.recover"), 2 * hosts);

    // It can be lost again, and the coordinator's backup brings it back, with what the root keys said.
    fleet.cluster.own(&["backup"]).expect(0);
    fleet.cluster.stop_coordinator();
    fleet.remove_database();
    let statement = std::fs::read_to_string(ca.join("ca.statement")).unwrap();
    std::fs::remove_dir_all(&ca).unwrap();
    let key = fleet.cluster.identity.display().to_string();
    fleet.cluster.own(&["recover", "--from-bucket", "--identity", &key]).expect(0);
    assert_eq!(std::fs::read_to_string(ca.join("ca.statement")).unwrap(), statement);
    fleet.cluster.start_coordinator();
    fleet.all_connected();
    fleet.all_listed();
}
