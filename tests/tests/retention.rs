//! What an admin sees of retention: holding, deleting and taking it back, the plan, and a pack that vanished.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use sealift_tests::cluster::Cluster;
use sealift_tests::tree;
use serde_json::Value;

/// Ids of what `backup list` shows.
fn listed(cluster: &Cluster, more: &[&str]) -> Vec<String> {
    let all = cluster.json(&[&["backup", "list", "store-1/dump"], more].concat());
    all.as_array().unwrap().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

fn plan(cluster: &Cluster) -> Vec<Value> {
    cluster.json(&["retention", "plan", "store-1/dump"]).as_array().unwrap().clone()
}

#[test]
fn backups_are_held_deleted_and_taken_back() {
    let cluster = Cluster::dev();
    let content = tree::noise(9, 3 << 20);
    let file = cluster.scratch().file("content", &content, 0o600).display().to_string();
    let source =
        format!("[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/cat\", {file:?}]\n");
    let _agent = cluster.agent("store-1", &source);
    let id = |backup: Value| backup["id"].as_str().unwrap().to_owned();
    let (old, new) = (id(cluster.backup_ok("store-1/dump")), id(cluster.backup_ok("store-1/dump")));
    let delete = |backup: &str| cluster.sealift(&["backup", "delete", backup, "--reason", "a test", "--yes"]);

    // The last good one is refused, and so is a held one; the audit has both refusals.
    assert!(delete(&new).expect(1).stderr.contains("last good"), "why is said");
    cluster.sealift(&["backup", "hold", &old, "--reason", "an audit"]).expect(0);
    assert!(delete(&old).expect(1).stderr.contains("an audit"));
    let held = cluster.json(&["backup", "show", &old]);
    assert_eq!((held["state"].as_str(), held["held"]["reason"].as_str()), (Some("held"), Some("an audit")));
    cluster.sealift(&["backup", "release", &old]).expect(0);
    let audit = cluster.json(&["audit", "list", "--action", "backup.delete"]);
    let refused = audit.as_array().unwrap().iter().filter(|event| event["outcome"] == "refused").count();
    assert_eq!(refused, 2, "{audit:#}");

    // Without a terminal nothing is lost by mistake; a dry run changes nothing.
    cluster.sealift(&["backup", "delete", &old, "--reason", "a test"]).expect(2);
    cluster.sealift(&["backup", "delete", &old, "--reason", "a test", "--dry-run"]).expect(0);
    assert_eq!(listed(&cluster, &[]), [new.clone(), old.clone()]);
    delete(&old).expect(0);
    assert_eq!(listed(&cluster, &[]), std::slice::from_ref(&new));
    assert_eq!(listed(&cluster, &["--deleted"]), std::slice::from_ref(&old));
    let target = cluster.scratch().join("early");
    let refused = cluster.restore_to(&old, &target, &[]);
    assert_ne!(refused.code, 0, "a deleted backup is taken back first");
    cluster.sealift(&["backup", "undelete", &old]).expect(0);
    assert_eq!(listed(&cluster, &[]), [new.clone(), old.clone()]);
    cluster.restore(&old, "taken-back");

    let plan = plan(&cluster);
    assert_eq!(plan.len(), 2);
    assert!(plan.iter().all(|fate| fate["keep"] == true && fate["rules"].is_null()), "{plan:#?}");
    let why: Vec<&str> = plan[0]["why"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(why, ["no policy says how long it stays", "last good backup"]);
}
