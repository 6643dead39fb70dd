//! A backup exists if and only if its manifest is in the bucket: what was prepared and never arrived is nowhere.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use sealift_tests::cluster::Cluster;
use sealift_tests::faults::{Feed, manifests, packs};
use sealift_tests::wait;

#[test]
fn a_manifest_that_never_arrives_leaves_no_backup() {
    let (mut cluster, feed) = (Cluster::dev(), Feed::new(4));
    let _agent = cluster.agent("store-1", &feed.source("feed"));
    feed.renew(1);
    let first = cluster.backup_ok("store-1/feed");
    let series = first["series_id"].as_str().unwrap().to_owned();

    // The store refuses this series' next manifest: where its folder was, there is a file.
    let (folder, aside) =
        (cluster.objects().join(format!("series/{series}/manifests")), cluster.scratch().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    feed.renew(2);
    let before = packs(&cluster).len();
    let run = cluster.start_backup("store-1/feed");
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
    assert_eq!(cluster.backups("store-1/feed").len(), 1);
    cluster.crash_coordinator();
    assert_eq!(cluster.backups("store-1/feed").len(), 1, "a ghost");

    // The store is well again: online and offline there is one backup, and the run or the next one makes the second.
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    assert!(manifests(&cluster).len() <= 2);
    let ended = cluster.wait_for_end(&run);
    if ended["state"] != "succeeded" {
        assert_eq!(cluster.backups("store-1/feed").len(), 1, "{ended:#}");
        cluster.backup_ok("store-1/feed");
    }
    assert_eq!(cluster.backups("store-1/feed").len(), 2);
    assert_eq!(manifests(&cluster).len(), 2);
    let listed = cluster.restore_offline(&cluster.identity, &["--list"]).expect(0);
    assert!(listed.text().contains(&series), "{}", listed.text());
    cluster.sealift(&["backup", "verify", "latest:store-1/feed", "--level", "hash"]).expect(0);
}
