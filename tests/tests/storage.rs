//! A bucket that goes away: noticed in good time, said once, nothing is started meanwhile; and the same when it is back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use sealift_tests::cluster::Cluster;
use sealift_tests::faults::Feed;
use sealift_tests::network::Line;
use sealift_tests::services::S3;
use sealift_tests::wait;
use serde_json::Value;

/// A look every quarter of a minute, two answers that time out, and a slow machine.
const SHORT: Duration = Duration::from_secs(60);

#[track_caller]
fn until_held(cluster: &Cluster, held: bool) -> Value {
    wait::until_within(SHORT, &format!("held: {held}"), || {
        let status = cluster.json(&["status"]);
        let storage = &status["storage"];
        if status["dispatch_held"] == held && storage["writable"] == !held {
            Ok(status)
        } else {
            Err(storage.to_string())
        }
    })
}

#[track_caller]
fn events(cluster: &Cluster, action: &str) -> Vec<Value> {
    cluster.json(&["audit", "list", "--action", action]).as_array().unwrap().clone()
}

/// What must hold however the bucket goes and comes back.
fn goes_away(cluster: &Cluster, says: &str, go: impl FnOnce(), come_back: impl FnOnce()) {
    let feed = Feed::new(3);
    feed.renew(1);
    let _agent = cluster.agent("store-1", &feed.source("feed"));
    cluster.backup_ok("store-1/feed");
    until_held(cluster, false);
    assert!(events(cluster, "dispatch.pause").is_empty());

    go();
    let status = until_held(cluster, true);
    let error = status["storage"]["error"].as_str().unwrap();
    assert!(error.contains(says), "{error}");
    let text = cluster.sealift(&["status"]).expect(0).text();
    assert!(text.contains("NOT WRITABLE") && text.contains("nothing is started"), "{text}");
    let run = cluster.start_backup("store-1/feed");

    come_back();
    until_held(cluster, false);
    assert_eq!(cluster.wait_for_end(&run)["state"], "succeeded");
    let run = cluster.run(&run);
    let (paused, resumed) = (events(cluster, "dispatch.pause"), events(cluster, "dispatch.resume"));
    assert_eq!((paused.len(), resumed.len()), (1, 1), "{paused:#?} {resumed:#?}");
    assert!(paused[0]["details"]["error"].as_str().unwrap().contains(says), "{:#}", paused[0]);
    assert_eq!(
        run["attempts"].as_array().unwrap().len(),
        1,
        "it was tried while there was no bucket: {run:#}"
    );
    let started = |value: &Value| value.as_str().unwrap().to_owned();
    assert!(started(&run["attempts"][0]["started"]) >= started(&resumed[0]["time"]), "{run:#}");
    let restored = cluster.restore("latest:store-1/feed", "restored");
    let files: Vec<_> = std::fs::read_dir(&restored).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(std::fs::read(&files[0]).unwrap() == feed.content(), "restored something else");
}

#[test]
fn the_embedded_bucket_is_moved_away_and_back() {
    let cluster = Cluster::dev();
    let (place, away) = (cluster.objects(), cluster.scratch().join("away"));
    let back = || {
        assert!(!place.exists(), "something was written where the bucket is not");
        std::fs::rename(&away, &place).unwrap();
    };
    goes_away(&cluster, "there is no such bucket", || std::fs::rename(&place, &away).unwrap(), back);
}

/// As when the disk is not mounted: the folder is there, and empty.
#[test]
fn an_empty_bucket_in_its_place_is_noticed() {
    let cluster = Cluster::dev();
    let (place, away) = (cluster.objects(), cluster.scratch().join("away"));
    let go = || {
        std::fs::rename(&place, &away).unwrap();
        std::fs::create_dir(&place).unwrap();
    };
    let back = || {
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::rename(&away, &place).unwrap();
    };
    goes_away(&cluster, "nothing of what this coordinator had seen in it", go, back);
}

#[test]
fn a_server_that_cannot_be_reached_is_noticed() {
    let s3 = S3::rclone();
    let line = Line::to(s3.port(), 0);
    let cluster = Cluster::on(s3.over(format!("http://127.0.0.1:{}", line.port()), None));
    goes_away(&cluster, "did not answer", || line.cut(), || line.mend());
}
