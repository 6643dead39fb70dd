//! `kill -9` at twenty moments of a backup: no backup is ever incomplete, the next attempt succeeds, and what was stored
//! is not stored again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeSet;

use sealift_tests::agent::Agent;
use sealift_tests::cluster::Cluster;
use sealift_tests::faults::{Chance, Feed, Moment, manifests, packs};

/// Blocks of 4 MiB: six packs of 16 MiB.
const BLOCKS: u64 = 24;
const PACKS: u64 = BLOCKS / 4;
/// Packs that may be under way at a crash: signed ahead (4), and the one being filled.
const IN_FLIGHT: usize = 5;
const MOMENTS: u64 = 20;
const SOURCE: &str = "store-1/feed";

/// Twenty backups; `crash` happens once in each.
fn survives(crash: impl Fn(&mut Cluster, &mut Agent)) {
    let (mut cluster, feed) = (Cluster::dev(), Feed::new(BLOCKS));
    let mut agent = cluster.agent("store-1", &feed.source("feed"));
    let mut chance = Chance::new();
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
        let stored_again = packs(&cluster).difference(&at_crash).count();
        // What is left over at the end is a pack of its own.
        let whole = usize::try_from(PACKS).unwrap() + 1;
        let missing = whole.saturating_sub(at_crash.len() - before.0.len());
        assert!(
            stored_again <= missing + IN_FLIGHT,
            "{moment:?}: {stored_again} packs stored after the crash, {missing} were missing"
        );
    }
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
    survives(|_, agent| agent.crash());
}

#[test]
fn of_the_coordinator() {
    survives(|cluster, _| cluster.crash_coordinator());
}
