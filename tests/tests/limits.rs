//! What a host's owner sets limits to: the line, a source's patience, the disk with the agent's state.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;
use std::time::{Duration, Instant};

use sealift_tests::agent::Agent;
use sealift_tests::cluster::Cluster;
use sealift_tests::faults::{Gate, is_alive, packs};
use sealift_tests::process::{Process, guarded, run};
use sealift_tests::{tree, wait};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// The error of a run's first attempt, once it has ended.
#[track_caller]
fn first_error(cluster: &Cluster, run: &str) -> (String, Value) {
    wait::until("the first attempt ends", || {
        let shown = cluster.run(run);
        match shown["attempts"][0]["error"].as_str() {
            Some(error) => Ok((error.to_owned(), shown["attempts"][0].clone())),
            None => Err(shown.to_string()),
        }
    })
}

#[test]
fn uploads_keep_to_the_bandwidth_that_the_host_allows() {
    let cluster = Cluster::dev();
    let data = cluster.scratch().file("data", tree::noise(1, 12 * MIB), 0o600).display().to_string();
    let source = format!(
        "[upload]\nbandwidth = \"4MiB/s\"\n\n[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/cat\", {data:?}]\n"
    );
    let _agent = cluster.agent("store-1", &source);
    let started = Instant::now();
    let backup = cluster.backup_ok("store-1/dump");
    let took = started.elapsed();
    let stored = backup["new_stored_bytes"].as_u64().unwrap();
    assert!(stored >= 12 * MIB as u64, "{backup:#}");
    // Faster than the limit cannot be right; how much slower is the machine's business.
    let least = Duration::from_secs_f64(stored as f64 / (4 * MIB) as f64 - 0.5);
    assert!(took >= least, "{stored} bytes at 4 MiB/s took {took:?}");
}

#[test]
fn a_source_that_hangs_is_ended() {
    let (cluster, gate) = (Cluster::dev(), Gate::new(MIB));
    let _agent =
        cluster.agent("store-1", &format!("[backup]\nstall_timeout = \"2s\"\n\n{}", gate.source("hangs")));
    let run = cluster.start_backup("store-1/hangs");
    let source = gate.wait_until_reached();
    let (error, attempt) = first_error(&cluster, &run);
    assert!(error.contains("stall_timeout") && error.contains("2 s"), "{error}");
    assert_eq!(attempt["state"], "failed");
    wait::until_true("the source is gone", || !is_alive(source));
    assert!(cluster.backups("store-1/hangs").is_empty());
    cluster.sealift(&["run", "cancel", &run, "--yes"]).expect(0);
}

#[test]
fn a_source_that_never_ends_is_ended() {
    let cluster = Cluster::dev();
    let pid = cluster.scratch().join("pid").display().to_string();
    let script = format!("echo $$ > {pid}; while :; do echo more; sleep 0.2; done");
    let source = format!(
        "[backup]\nmax_duration = \"3s\"\n\n[[source]]\nname = \"endless\"\nkind = \"command\"\ncommand = [\"/bin/sh\", \"-c\", {script:?}]\n"
    );
    let _agent = cluster.agent("store-1", &source);
    let run = cluster.start_backup("store-1/endless");
    let (error, attempt) = first_error(&cluster, &run);
    assert!(error.contains("max_duration") && error.contains("3 s"), "{error}");
    assert_eq!(attempt["state"], "failed");
    let source = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    wait::until_true("the source is gone", || !is_alive(source));
    assert!(cluster.backups("store-1/endless").is_empty());
    cluster.sealift(&["run", "cancel", &run, "--yes"]).expect(0);
}

/// A small disk for an agent's state: a tmpfs in a mount namespace of its own, which lives as long as this.
struct SmallDisk {
    holder: Process,
    state: std::path::PathBuf,
}

impl SmallDisk {
    /// Moves the state of an agent that does not run onto it.
    fn under(agent: &mut Agent, mib: usize) -> Self {
        let state = agent.dir().join("state");
        let aside = agent.dir().join("aside");
        let script = format!(
            "set -e; cp -a {0} {1}; mount -t tmpfs -o size={mib}m,mode=700 tmpfs {0}; cp -a {1}/. {0}/; touch {1}/ready; exec sleep infinity",
            state.display(),
            aside.display()
        );
        let mut command = guarded("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let mut holder = Process::start("holder of the small disk", command, &agent.dir().join("holder.log"));
        wait::until("the small disk is mounted (as root: a mount namespace is needed)", || {
            holder.still_runs().unwrap_or_else(|ended| panic!("{ended}"));
            if aside.join("ready").exists() { Ok(()) } else { Err("not yet") }
        });
        let namespace = format!("--mount=/proc/{}/ns/mnt", holder.pid());
        agent.wrap(&["nsenter", &namespace, "--"]);
        Self { holder, state }
    }

    fn inside(&self, script: &str) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.pid()));
        command.args(["sh", "-c", script]).current_dir("/");
        run(command);
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        self.inside(&format!("cat /dev/zero > {}/ballast 2>/dev/null || true", self.state.display()));
    }

    fn empty(&self) {
        self.inside(&format!("rm {}/ballast", self.state.display()));
    }
}

#[test]
fn a_full_state_disk_refuses_backups_and_spoils_nothing() {
    let (cluster, gate) = (Cluster::dev(), Gate::new(2 * MIB));
    let mut agent = cluster.agent("store-1", &gate.source("data"));
    agent.stop();
    let disk = SmallDisk::under(&mut agent, 40);
    agent.start();
    cluster.wait_until_connected("store-1");
    gate.open();
    cluster.backup_ok("store-1/data");
    gate.close();

    // It fills up while a backup runs: that one still comes about.
    let under_way = cluster.start_backup("store-1/data");
    gate.wait_until_reached();
    disk.fill();
    gate.open();
    assert_eq!(cluster.wait_for_end(&under_way)["state"], "succeeded");

    // The next one is refused, with the disk's name and what to do.
    let before = packs(&cluster);
    let refused = cluster.start_backup("store-1/data");
    let (error, attempt) = first_error(&cluster, &refused);
    assert_eq!(attempt["state"], "rejected");
    assert!(error.contains("the disk with the agent's state is full"), "{error}");
    assert!(error.contains(&disk.state.display().to_string()) && error.contains("make room"), "{error}");
    assert_eq!(packs(&cluster), before);

    // A crash on a full disk costs neither identity nor journal; with room again, the run goes on by itself.
    agent.crash();
    cluster.wait_until_connected("store-1");
    disk.empty();
    let ended = cluster.wait_for_end(&refused);
    assert_eq!(ended["state"], "succeeded", "{ended:#}");
    let newest = cluster.json(&["backup", "show", "latest:store-1/data"]);
    assert_eq!(newest["new_raw_bytes"], 0, "what was stored is not known any more: {newest:#}");
    assert_eq!(cluster.backups("store-1/data").len(), 3);
    agent.stop();
}
