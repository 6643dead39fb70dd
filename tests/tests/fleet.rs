//! Fifty simulated hosts over real sessions: what the load tool (`make fleet-bench`) does with ten thousand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use sealift_tests::cluster::Cluster;
use sealift_tests::simulated::source::STREAM;
use sealift_tests::simulated::{Admin, Call, Fleet, Invitation, Options, Stage};
use sealift_tests::wait;

const HOSTS: usize = 50;

fn fleet(cluster: &Cluster) -> Fleet {
    let mut fleet = Fleet::new(Options::default());
    fleet.enrol(&Invitation::of(cluster, HOSTS, &[("role", "till")]), "till", HOSTS);
    fleet.connect();
    fleet.until_connected(HOSTS);
    fleet
}

#[test]
fn backs_up_reconnects_and_backs_up_again() {
    let mut cluster = Cluster::dev();
    let fleet = fleet(&cluster);
    let admin = Admin::of(&cluster);
    assert_eq!(admin.start("", "role=till").len(), HOSTS);
    fleet.until_committed(HOSTS);
    let first = fleet.figures().committed();
    assert!(first.iter().all(|backup| backup.sequence == 1));

    for (restarts, kill) in [(1, false), (2, true)] {
        if kill {
            cluster.kill_coordinator();
        } else {
            cluster.stop_coordinator();
        }
        wait::until_true("all sessions are lost", || fleet.figures().connected() == 0);
        cluster.start_coordinator();
        fleet.until_connected(HOSTS);
        assert_eq!(fleet.figures().welcomes(), HOSTS as u64 * (restarts + 1), "one session each");
    }

    let admin = Admin::of(&cluster);
    assert_eq!(admin.start("", "role=till").len(), HOSTS);
    fleet.until_committed(2 * HOSTS);
    assert_eq!(
        fleet.figures().latencies(Call::Sign).len(),
        3 * HOSTS,
        "two packs at first, one for the change"
    );

    // What hosts were told is what the coordinator has, and each restores.
    let told: BTreeSet<String> = fleet.figures().committed().iter().map(|b| b.backup.to_string()).collect();
    let listed = cluster.json(&["backup", "list", "--limit", "0"]);
    let listed: BTreeSet<String> =
        listed.as_array().unwrap().iter().map(|b| b["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told, listed);
    let newest = fleet.figures().committed().last().unwrap().clone();
    let restored =
        std::fs::read(cluster.restore(&newest.backup.to_string(), "restored").join(STREAM)).unwrap();
    assert_eq!(blake3::hash(&restored).as_bytes(), &newest.content);
}

#[test]
fn a_crash_and_a_cut_in_the_middle_cost_no_backup() {
    let cluster = Cluster::dev();
    let fleet = fleet(&cluster);
    fleet.hold(Some(Stage::Signed));
    let (crashed, cut) = (fleet.host(0), fleet.host(1));
    let runs = [
        cluster.start_backup(&format!("{}/data", crashed.name())),
        cluster.start_backup(&format!("{}/data", cut.name())),
    ];
    wait::until("both wait with signed packs", || match fleet.waiting() {
        2 => Ok(()),
        other => Err(other),
    });
    crashed.crash();
    cut.cut();
    fleet.hold(None);
    crashed.start();
    let [crashed_run, cut_run] = runs.map(|run| cluster.wait_for_end(&run));
    assert_eq!(crashed_run["state"], "succeeded", "{crashed_run:#}");
    assert_eq!(crashed_run["attempts"].as_array().unwrap().len(), 2, "{crashed_run:#}");
    assert_eq!(cut_run["state"], "succeeded", "{cut_run:#}");
    assert_eq!(cut_run["attempts"].as_array().unwrap().len(), 1, "{cut_run:#}");
    assert_eq!(fleet.figures().commits(), 2);
}
