//! A backup exists if and only if its manifest is in the bucket: what was prepared and never arrived is nowhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sealift_tests::agent::Agent;
use sealift_tests::cluster::Cluster;
use sealift_tests::faults::{Feed, manifests, packs};
use sealift_tests::gateway::{Gateway, Verdict};
use sealift_tests::wait;

const SOURCE: &str = "store-1/feed";

#[test]
fn a_manifest_that_never_arrives_leaves_no_backup() {
    let (mut cluster, feed) = (Cluster::dev(), Feed::new(4));
    let _agent = cluster.agent("store-1", &feed.source("feed"));
    feed.renew(1);
    let first = cluster.backup_ok(SOURCE);
    let series = first["series_id"].as_str().unwrap().to_owned();

    // The store refuses this series' next manifest: where its folder was, there is a file.
    let (folder, aside) =
        (cluster.objects().join(format!("series/{series}/manifests")), cluster.scratch().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    feed.renew(2);
    let before = packs(&cluster).len();
    let run = cluster.start_backup(SOURCE);
    wait::until("the manifest's upload is refused", || {
        let shown = cluster.run(&run);
        let stage =
            shown["progress"]["stage"] == "committing" || shown["attempts"].as_array().unwrap().len() > 1;
        if stage && packs(&cluster).len() > before || shown["state"] == "backoff" {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    });
    assert_eq!(cluster.backups(SOURCE).len(), 1);
    cluster.crash_coordinator();
    assert_eq!(cluster.backups(SOURCE).len(), 1, "a ghost");

    // The store is well again: online and offline there is one backup, and the run or the next one makes the second.
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    assert!(manifests(&cluster).len() <= 2);
    let ended = cluster.wait_for_end(&run);
    if ended["state"] != "succeeded" {
        assert_eq!(cluster.backups(SOURCE).len(), 1, "{ended:#}");
        cluster.backup_ok(SOURCE);
    }
    assert_eq!(cluster.backups(SOURCE).len(), 2);
    assert_eq!(manifests(&cluster).len(), 2);
    let listed = cluster.restore_offline(&cluster.identity, &["--list"]).expect(0);
    assert!(listed.text().contains(&series), "{}", listed.text());
    cluster.sealift(&["backup", "verify", "latest:store-1/feed", "--level", "hash"]).expect(0);
}

/// A coordinator, and a host with one backup, before whose store something stands that the test may tell what to do.
struct Behind {
    gateway: Gateway,
    cluster: Cluster,
    feed: Feed,
    _agent: Agent,
    _store: Cluster,
}

impl Behind {
    fn new() -> Self {
        // The embedded server of another coordinator, as any server over the network.
        let store = Cluster::dev();
        let s3 = store.s3().with_prefix("behind");
        let gateway = Gateway::before(&s3.endpoint);
        let cluster = Cluster::on(s3.behind(&gateway));
        let feed = Feed::new(4);
        let agent = cluster.agent("store-1", &feed.source("feed"));
        feed.renew(1);
        cluster.backup_ok(SOURCE);
        feed.renew(2);
        Self { gateway, cluster, feed, _agent: agent, _store: store }
    }

    /// What becomes of manifests that are sent from now on.
    fn manifests_are(&self, verdict: Verdict) {
        self.gateway.set(move |method, path| match method == "PUT" && path.contains("/manifests/") {
            true => verdict,
            false => Verdict::Pass,
        });
    }

    fn stored(&self) -> usize {
        self.cluster.s3().list().iter().filter(|name| name.contains("/manifests/")).count()
    }

    /// So many backups there are, as the coordinator lists them and as whoever has only bucket and key sees them.
    #[track_caller]
    fn there_are(&self, count: usize) {
        assert_eq!(self.cluster.backups(SOURCE).len(), count, "online");
        let listed = self.cluster.restore_offline(&self.cluster.identity, &["--list", "--output", "json"]);
        assert_eq!(listed.expect(0).json().as_array().unwrap().len(), count, "offline");
        assert_eq!(self.stored(), count, "in the bucket");
    }

    /// The first attempt fails, and leaves no ghost; the next one, with a store that is well, is fine.
    #[track_caller]
    fn leaves_no_ghost(&mut self, verdict: Verdict) -> String {
        self.manifests_are(verdict);
        let run = self.cluster.start_backup(SOURCE);
        let error = wait::until("the first attempt fails", || {
            let shown = self.cluster.run(&run);
            match shown["attempts"][0]["state"].as_str() {
                Some("failed" | "lost") => Ok(shown["attempts"][0]["error"].as_str().unwrap().to_owned()),
                _ => Err(shown.to_string()),
            }
        });
        assert!(!self.gateway.seen(verdict).is_empty());
        self.there_are(1);
        self.cluster.crash_coordinator();
        self.there_are(1);
        self.gateway.set(|_, _| Verdict::Pass);
        let ended = self.cluster.wait_for_end(&run);
        if ended["state"] != "succeeded" {
            self.cluster.backup_ok(SOURCE);
        }
        self.there_are(2);
        self.comes_back();
        error
    }

    #[track_caller]
    fn comes_back(&self) {
        let stream =
            self.cluster.json(&["backup", "show", "latest:store-1/feed"])["streams"][0]["name"].clone();
        let identity = self.cluster.identity.display().to_string();
        let restore = ["restore", "latest:store-1/feed", "--identity", &identity, "--stdout", "--stream"];
        let answer = self.cluster.sealift(&[&restore[..], &[stream.as_str().unwrap(), "--yes"]].concat());
        assert!(answer.expect(0).stdout == self.feed.content(), "other bytes came back");
    }
}

#[test]
fn a_manifest_that_the_store_refuses_leaves_no_backup() {
    let error = Behind::new().leaves_no_ghost(Verdict::Refuse);
    assert!(error.contains("403"), "does not say why: {error}");
}

#[test]
fn a_manifest_that_the_store_only_pretends_to_take_leaves_no_backup() {
    let error = Behind::new().leaves_no_ghost(Verdict::Swallow);
    assert!(error.contains("not in the bucket"), "does not say why: {error}");
}

#[test]
fn a_manifest_whose_arrival_nobody_hears_of_is_one_backup() {
    let behind = Behind::new();
    behind.manifests_are(Verdict::LoseAnswer);
    let run = behind.cluster.start_backup(SOURCE);
    wait::until_true("the manifest is sent", || !behind.gateway.seen(Verdict::LoseAnswer).is_empty());
    behind.gateway.set(|_, _| Verdict::Pass);
    assert_eq!(behind.cluster.wait_for_end(&run)["state"], "succeeded");
    behind.there_are(2);
    behind.comes_back();
}
