//! Coordinators restart: who waits goes on waiting, and what a host had to say is heard afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Read;
use std::process::{Child, Stdio};

use sealift_tests::cluster::Cluster;
use sealift_tests::faults::Gate;
use sealift_tests::wait;

/// A command that waits, as a process of its own.
struct Waiting {
    child: Child,
    name: String,
}

impl Waiting {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let mut command = cluster.command();
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), name: arguments.join(" ") }
    }

    /// Waits for its end; exit code, stdout and stderr.
    #[track_caller]
    fn end(mut self) -> (i32, String, String) {
        let status =
            wait::until(&format!("{} ends", self.name), || self.child.try_wait().unwrap().ok_or("it runs"));
        let (mut out, mut err) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (status.code().unwrap_or(-1), out, err)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

#[test]
fn who_waits_for_a_run_goes_on_when_the_coordinator_is_back() {
    let (mut cluster, gate) = (Cluster::dev(), Gate::new(1 << 20));
    let _agent = cluster.agent("store-1", &gate.source("data"));
    let backup = Waiting::start(&cluster, &["--output", "json", "backup", "run", "store-1/data", "--wait"]);
    gate.wait_until_reached();
    let run = wait::until("the run is listed", || {
        let runs = cluster.json(&["run", "list"]);
        runs[0]["id"].as_str().map(str::to_owned).ok_or("no run")
    });
    let watch = Waiting::start(&cluster, &["run", "watch", &run]);
    wait::until_true("the run is active", || cluster.run(&run)["state"] == "active");
    cluster.crash_coordinator();
    cluster.wait_until_connected("store-1");
    // And once more, politely.
    cluster.stop_coordinator();
    cluster.start_coordinator();
    cluster.wait_until_connected("store-1");
    gate.open();
    for (waiting, json) in [(backup, true), (watch, false)] {
        let name = waiting.name.clone();
        let (code, out, err) = waiting.end();
        assert_eq!(code, 0, "{name}: {err}");
        assert!(err.contains("waiting for the coordinator"), "{name} says nothing of it: {err}");
        assert!(err.contains("is back"), "{name}: {err}");
        if json {
            let runs: serde_json::Value = serde_json::from_str(&out).unwrap();
            assert_eq!(runs[0]["state"], "succeeded");
        }
    }
    assert_eq!(cluster.backups("store-1/data").len(), 1);
}

/// The source fails while the coordinator is away, and the agent is killed before it could say so: the journal does.
#[test]
fn a_failure_that_could_not_be_reported_is_reported_later() {
    let (mut cluster, gate) = (Cluster::dev(), Gate::new(1 << 20));
    let mut agent = cluster.agent("store-1", &gate.source("data"));
    let run = cluster.start_backup("store-1/data");
    gate.wait_until_reached();
    // Before Begin an attempt waits for its coordinator, whatever its source does.
    wait::until_true("the attempt has begun", || cluster.run(&run)["attempts"][0]["state"] == "running");
    cluster.kill_coordinator();
    gate.break_it();
    wait::until_true("the journal has the failure", || {
        let entries = std::fs::read_dir(agent.dir().join("state/journal")).unwrap().flatten();
        // What is being written has another name.
        let entries = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "json"));
        let mut texts = entries.map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default());
        texts.any(|text| text.contains("the gate is broken"))
    });
    agent.kill();
    cluster.start_coordinator();
    agent.start();
    let attempt = wait::until("the first attempt has ended", || {
        let attempt = cluster.run(&run)["attempts"][0].clone();
        if attempt["ended"].is_null() { Err(attempt.to_string()) } else { Ok(attempt) }
    });
    assert_eq!(attempt["state"], "failed", "{attempt:#}");
    assert!(attempt["error"].as_str().unwrap().contains("exit"), "{attempt:#}");
    assert!(attempt["stderr"].as_str().unwrap().contains("the gate is broken"), "{attempt:#}");
    let events = cluster.json(&["audit", "list", "--action", "attempt.fail"]);
    assert!(!events.as_array().unwrap().is_empty(), "not audited");
    wait::until_true("the journal is empty", || {
        std::fs::read_dir(agent.dir().join("state/journal")).unwrap().next().is_none()
    });
    assert!(cluster.backups("store-1/data").is_empty());
}
