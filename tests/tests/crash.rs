//! `kill -9` at twenty moments of a backup: no backup is ever incomplete, the next attempt succeeds, and what was stored
//! is not stored again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeSet;

use sealift_tests::agent::Agent;
use sealift_tests::cluster::Cluster;
use sealift_tests::faults::{Chance, Feed, Moment, manifests, packs, referred};

/// Blocks of 4 MiB: ten packs of 16 MiB.
const BLOCKS: u64 = 40;
const PACKS: u64 = BLOCKS / 4;
/// Packs that may be under way at a crash: signed ahead (4), and the one being filled.
const IN_FLIGHT: usize = 5;
const MOMENTS: u64 = 20;
const SOURCE: &str = "store-1/feed";

/// Twenty backups; `crash` happens once in each. One that came in time leads to more than `least_attempts` attempts.
fn survives(least_attempts: usize, crash: impl Fn(&mut Cluster, &mut Agent)) {
    let (mut cluster, feed) = (Cluster::dev(), Feed::new(BLOCKS));
    let mut agent = cluster.agent("store-1", &feed.source("feed"));
    let (mut chance, mut reused) = (Chance::new(), 0);
    for moment in Moment::spread(MOMENTS, &feed, PACKS, &mut chance) {
        println!("crash at {moment:?}");
        feed.renew(chance.below(u64::MAX));
        let before = (packs(&cluster), manifests(&cluster).len());
        let run = cluster.start_backup(SOURCE);
        moment.wait(&cluster, &feed, before.0.len(), before.1);
        let at_crash = packs(&cluster);
        crash(&mut cluster, &mut agent);
        let run = cluster.wait_for_end(&run);
        assert_eq!(run["state"], "succeeded", "{moment:?}: {run:#}");
        listed_is_stored(&cluster);
        comes_back(&cluster, &feed);
        // What the backup refers to of what was stored before the crash, it did not store again.
        let stored: BTreeSet<String> = at_crash.difference(&before.0).cloned().collect();
        let kept = referred(&cluster).intersection(&stored).count();
        println!("{kept} of {} packs are used", stored.len());
        assert!(
            stored.len() - kept <= IN_FLIGHT,
            "{moment:?}: {} packs were stored before the crash, the backup refers to {kept}",
            stored.len()
        );
        reused += usize::from(kept > 0 && run["attempts"].as_array().unwrap().len() > least_attempts);
    }
    // The bound alone would hold where every crash comes before there is anything to lose.
    assert!(reused >= 4, "only {reused} of {MOMENTS} backups went on with what was stored before the crash");
    cluster.sealift(&["backup", "verify", "latest:store-1/feed", "--level", "hash"]).expect(0);
}

/// A backup exists if and only if its manifest is in the bucket.
#[track_caller]
fn listed_is_stored(cluster: &Cluster) {
    let listed: BTreeSet<String> = cluster
        .backups(SOURCE)
        .iter()
        .map(|backup| backup["manifest_sha256"].as_str().expect("a hash").to_owned())
        .collect();
    let stored: BTreeSet<String> =
        manifests(cluster).iter().map(|name| name.rsplit('-').next().expect("a hash").to_owned()).collect();
    assert_eq!(listed, stored);
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

#[test]
fn of_the_agent() {
    survives(1, |_, agent| agent.crash());
}

#[test]
fn of_the_coordinator() {
    // The agent goes on under the same attempt.
    survives(0, |cluster, _| cluster.crash_coordinator());
}
