//! Who can open what: a second recipient opens the next backup alone, whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use sealift_tests::cluster::Cluster;
use sealift_tests::tree;

#[test]
fn a_second_recipient_opens_the_next_backup_alone() {
    let cluster = Cluster::dev();
    let content = tree::noise(7, 20 << 20);
    let file = cluster.scratch().file("content", &content, 0o600).display().to_string();
    let source =
        format!("[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/cat\", {file:?}]\n");
    let _agent = cluster.agent("store-1", &source);
    let first = cluster.backup_ok("store-1/dump");

    let second_recipient = cluster.new_identity("second.key");
    let second = cluster.scratch().join("second.key");
    cluster.set_trust(&[&cluster.recipient, &second_recipient]);
    let next = cluster.backup_ok("store-1/dump");
    assert_eq!(next["recipients"].as_array().unwrap().len(), 2, "{next:#}");

    let stream = next["streams"][0]["name"].as_str().unwrap().to_owned();
    let open = |backup: &str, key: &std::path::Path| {
        let key = key.display().to_string();
        cluster.sealift(&["restore", backup, "--identity", &key, "--stdout", "--stream", &stream, "--yes"])
    };
    for key in [&cluster.identity, &second] {
        assert!(open(next["id"].as_str().unwrap(), key).expect(0).stdout == content);
    }
    // What was sealed before is not opened by who came later.
    let refused = open(first["id"].as_str().unwrap(), &second);
    assert_ne!(refused.code, 0);
    assert!(refused.stdout.is_empty());
    cluster.sealift(&["keys", "test", "--identity", &second.display().to_string()]).expect(0);

    // The first one is removed: it opens no further backup.
    cluster.set_trust(&[&second_recipient]);
    let last = cluster.backup_ok("store-1/dump");
    assert!(open(last["id"].as_str().unwrap(), &second).expect(0).stdout == content);
    assert_eq!(last["recipients"].as_array().unwrap().len(), 1, "{last:#}");
}
