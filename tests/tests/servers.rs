//! The main job on every kind of S3 server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use sealift_tests::cluster::Cluster;
use sealift_tests::services::S3;
use sealift_tests::tree;

/// Backup, changed backup, restore online and offline; what was stored, and what status says of the server.
fn main_job(s3: S3) -> (Vec<String>, serde_json::Value) {
    let mut cluster = Cluster::on(s3);
    let mut content = tree::noise(7, 40 << 20);
    let file = cluster.scratch().file("content", &content, 0o600).display().to_string();
    let source =
        format!("[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/cat\", {file:?}]\n");
    let _agent = cluster.agent("store-1", &source);
    let first = cluster.backup_ok("store-1/dump");
    content[20 << 20] ^= 1;
    std::fs::write(&file, &content).unwrap();
    let later = cluster.backup_ok("store-1/dump");
    assert!(later["new_raw_bytes"].as_u64().unwrap() < 1 << 20, "{later:#}");

    let stream = first["streams"][0]["name"].as_str().unwrap();
    let identity = cluster.identity.display().to_string();
    let arguments =
        ["restore", "latest:store-1/dump", "--identity", &identity, "--stdout", "--stream", stream, "--yes"];
    assert!(cluster.sealift(&arguments).expect(0).stdout == content, "online");
    cluster.sealift(&["backup", "verify", "latest:store-1/dump", "--level", "hash"]).expect(0);
    let status = cluster.json(&["status"]);

    cluster.kill_coordinator();
    let series = first["series_id"].as_str().unwrap();
    let offline = cluster
        .restore_offline(&cluster.identity, &["--series", series, "--stdout", "--stream", stream, "--yes"]);
    assert!(offline.expect(0).stdout == content, "offline");
    let found = cluster.restore_offline(&cluster.identity, &["--list"]).expect(0);
    assert!(found.text().contains(series), "{}", found.text());
    (cluster.s3().list(), status)
}

#[test]
fn on_ceph_rgw() {
    let (objects, status) = main_job(S3::rgw());
    assert_eq!(objects.iter().filter(|name| name.contains("/manifests/")).count(), 2, "{objects:?}");
    assert_eq!(status["storage"]["writable"], true, "{status:#}");
}

#[test]
fn on_rclone_which_does_not_verify() {
    let (objects, status) = main_job(S3::rclone());
    assert_eq!(objects.iter().filter(|name| name.contains("/manifests/")).count(), 2, "{objects:?}");
    let findings = status["storage"]["findings"].as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["warning"] == true), "{status:#}");
    assert!(!status["warnings"].as_array().unwrap().is_empty(), "{status:#}");
}

/// Any other server: `SEALIFT_TEST_S3_ENDPOINT`, `_REGION`, `_BUCKET` and the usual AWS variables. Where none is given
/// the embedded one stands in for it, reached over the network as any other.
#[test]
fn on_the_server_of_the_environment() {
    match S3::from_environment() {
        Some(s3) => {
            main_job(s3);
        }
        None => {
            let stands_in = Cluster::dev();
            main_job(stands_in.s3().with_prefix("by-environment"));
        }
    }
}
