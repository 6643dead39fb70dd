//! The main job with a command's standard output, and what a failing tool leaves behind: nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use sealift_tests::cluster::Cluster;
use sealift_tests::tree;

fn source(command: &[&str]) -> String {
    format!("[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = {command:?}\n")
}

#[test]
fn output_comes_back_byte_for_byte() {
    let cluster = Cluster::dev();
    let original = tree::noise(7, 40 << 20);
    let file = cluster.scratch().file("original", &original, 0o600).display().to_string();
    let _agent = cluster.agent("store-1", &source(&["/bin/cat", &file]));
    let backup = cluster.backup_ok("store-1/dump");
    assert_eq!(backup["raw_bytes"], original.len());
    let stream = backup["streams"][0]["name"].as_str().unwrap();
    let identity = cluster.identity.display().to_string();
    let arguments =
        ["restore", "latest:store-1/dump", "--identity", &identity, "--stdout", "--stream", stream, "--yes"];
    let restored = cluster.sealift(&arguments).expect(0);
    assert!(restored.stdout == original, "{} bytes came back", restored.stdout.len());

    // The same again is found, all of it, and a changed piece in the middle alone is stored.
    let again = cluster.backup_ok("store-1/dump");
    assert_eq!(again["new_raw_bytes"], 0, "{again:#}");
    let mut changed = original;
    changed[20 << 20] ^= 1;
    std::fs::write(&file, &changed).unwrap();
    let later = cluster.backup_ok("store-1/dump");
    let new = later["new_raw_bytes"].as_u64().unwrap();
    assert!((1..1 << 20).contains(&new), "{new} bytes stored for one changed bit");
    assert!(cluster.sealift(&arguments).expect(0).stdout == changed);
    cluster.sealift(&["backup", "verify", "latest:store-1/dump", "--level", "hash"]).expect(0);
    cluster
        .sealift(&["backup", "verify", "latest:store-1/dump", "--level", "decrypt", "--identity", &identity])
        .expect(0);
}

#[test]
fn a_tool_that_fails_after_half_leaves_no_backup() {
    let cluster = Cluster::dev();
    let half = cluster.scratch().file("half", tree::noise(7, 20 << 20), 0o600).display().to_string();
    let script = format!("#!/bin/sh\ncat {half}\necho 'disk on fire: sector 7' >&2\nexit 1\n");
    let script = cluster.scratch().file("fails", script, 0o700).display().to_string();
    let _agent = cluster.agent("store-1", &source(&[&script]));
    let (run, code) = cluster.backup("store-1/dump");
    assert_eq!((code, run["state"].as_str()), (1, Some("failed")), "{run:#}");
    let shown = cluster.run(run["id"].as_str().unwrap());
    let attempts = shown["attempts"].as_array().unwrap();
    assert!(!attempts.is_empty());
    assert!(
        attempts.iter().all(|attempt| attempt["stderr"].to_string().contains("disk on fire")),
        "{shown:#}"
    );
    assert!(cluster.backups("store-1/dump").is_empty());
    assert!(!cluster.s3().list().iter().any(|name| name.contains("/manifests/")));
    cluster.sealift(&["backup", "show", "latest:store-1/dump"]).expect(4);
}
