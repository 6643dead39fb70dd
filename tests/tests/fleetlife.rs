//! The life of hosts: rolled out from a list, replaced, approved, retired; and their series with them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Duration;

use sealift_common::tls;
use sealift_proto::v1::ChallengeRequest;
use sealift_proto::v1::enrollment_client::EnrollmentClient;
use sealift_tests::agent::Agent;
use sealift_tests::cluster::Cluster;
use sealift_tests::wait;
use serde_json::{Value, json};
use tonic::Code;

/// A directory with something in it, and its `[[source]]`.
fn directory(cluster: &Cluster, name: &str) -> (std::path::PathBuf, String) {
    let path = cluster.scratch().private_dir(name);
    std::fs::write(path.join("receipts"), sealift_tests::tree::noise(11, 300_000)).unwrap();
    let source = format!(
        "[[source]]\nname = \"files\"\nkind = \"directory\"\npath = {:?}\n",
        path.display().to_string()
    );
    (path, source)
}

#[track_caller]
fn same_file(one: &Path, other: &Path) {
    assert!(std::fs::read(one).unwrap() == std::fs::read(other).unwrap(), "{} differs", other.display());
}

#[track_caller]
fn audited(cluster: &Cluster, action: &str) -> Vec<Value> {
    let events = cluster.json(&["audit", "list", "--action", action]);
    events.as_array().unwrap().iter().filter(|event| event["outcome"] == "done").cloned().collect()
}

#[test]
fn a_replaced_host_is_back_in_its_series_with_one_token() {
    let cluster = Cluster::dev();
    let (path, source) = directory(&cluster, "files");
    let mut old = cluster.agent("store-1", &source);
    cluster.sealift(&["agent", "label", "store-1", "store=0001"]).expect(0);
    let before = cluster.backup_ok("store-1/files");
    let host = cluster.json(&["agent", "show", "store-1"]);

    let refused = cluster.sealift(&["token", "create", "--replaces", "store-1"]);
    assert_eq!(refused.code, 2, "it must be asked for by name: {}", refused.stderr);
    let token = cluster.json(&["token", "create", "--replaces", "store-1", "--yes"]);
    // The old host still works until the new one is there.
    cluster.backup_ok("store-1/files");

    let mut new = Agent::new("store-1", cluster.url(), cluster.scratch().private_dir("new-disk"), &[], None);
    new.write_config(&source);
    new.enrol(&token);
    wait::until("the old host is shut out", || {
        let log = old.log();
        if log.contains("was replaced") { Ok(()) } else { Err(log) }
    });
    new.start();
    cluster.wait_until_connected("store-1");
    let shown = cluster.json(&["agent", "show", "store-1"]);
    assert_eq!((&shown["id"], &shown["labels"]), (&host["id"], &json!({ "store": "0001" })));
    assert_ne!(shown["signing_key"], host["signing_key"]);

    // What the old host stored comes back …
    let backup = before["id"].as_str().unwrap();
    let restored = cluster.restore(backup, "before");
    same_file(&path.join("receipts"), &restored.join("receipts"));
    // … and the series goes on, under keys that the admin vouches for, in an epoch of its own.
    cluster.sealift(&["trust", "attest", "store-1", "--yes"]).expect(0);
    let after = cluster.backup_ok("store-1/files");
    assert_eq!(after["series_id"], before["series_id"]);
    assert_eq!(after["sequence"], json!(before["sequence"].as_u64().unwrap() + 2));
    assert_eq!(after["new_raw_bytes"], after["raw_bytes"], "it builds on chunks that it cannot know");
    let restored = cluster.restore("latest:store-1/files", "after");
    same_file(&path.join("receipts"), &restored.join("receipts"));
    let restored = cluster.restore(backup, "before-again");
    same_file(&path.join("receipts"), &restored.join("receipts"));

    let events = audited(&cluster, "agent.enroll");
    let replaced =
        events.iter().find(|event| !event["details"]["before"].is_null()).expect("the replacement");
    assert_eq!(replaced["details"]["before"]["signing_key"], host["signing_key"]);
    assert_eq!(replaced["details"]["after"]["signing_key"], shown["signing_key"]);
    old.kill();
}

/// Calls without a certificate, as fast as they go, for `span`: more than one address may make. Tells when it was refused.
fn crowd(url: &str, ca_sha256: &str, span: Duration, refused: &Sender<()>) {
    let config = tls::pinned_client_config(ca_sha256.parse().unwrap()).unwrap();
    let url = url.parse().unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut client = EnrollmentClient::new(tls::channel(&url, config).unwrap());
        let asking = async {
            loop {
                // Nobody has this id; what counts is that it is asked.
                let asked = client.challenge(ChallengeRequest { agent_id: vec![7; 16] }).await;
                if asked.is_err_and(|status| status.code() == Code::ResourceExhausted) {
                    // Once is enough to know.
                    let _ = refused.send(());
                }
            }
        };
        let _: Result<(), _> = tokio::time::timeout(span, asking).await;
    });
}

#[test]
fn a_host_that_enrols_in_a_crowd_waits_for_its_turn() {
    tls::install_provider();
    let cluster = Cluster::dev();
    let token = cluster.json(&["token", "create", "--name", "store-1"]);
    let mut host = cluster.host("store-1", &[]);
    host.write_config("");
    let (url, ca) = (cluster.url(), token["ca_sha256"].as_str().unwrap().to_owned());
    let (refused, is_refused) = std::sync::mpsc::channel();
    let crowd = std::thread::spawn(move || crowd(&url, &ca, Duration::from_secs(5), &refused));
    is_refused.recv().expect("there are no limits");
    host.enrol(&token);
    crowd.join().unwrap();
    host.start();
    cluster.wait_until_connected("store-1");
}

#[test]
fn hosts_of_a_list_get_their_labels_and_a_taken_name_waits_for_an_admin() {
    let cluster = Cluster::dev();
    let (_, source) = directory(&cluster, "files");
    let list = "name,store,region\nstore-1,0001,eu\nstore-2,0002,\n";
    let list = cluster.scratch().file("hosts.csv", list, 0o600).display().to_string();
    let tokens = cluster.json(&["token", "create", "--from", &list, "--label", "role=pos"]);
    let token = |at: usize| {
        let mut token = tokens.clone();
        token["token"] = tokens["tokens"][at]["token"].clone();
        token
    };
    let host = |name: &str, dir: &str, token: &Value| {
        let mut agent = Agent::new(name, cluster.url(), cluster.scratch().private_dir(dir), &[], None);
        agent.write_config(&source);
        agent.enrol(token);
        agent.start();
        agent
    };
    let mut one = host("store-1", "one", &token(0));
    let _two = host("store-2", "two", &token(1));
    cluster.wait_until_connected("store-1");
    cluster.wait_until_connected("store-2");
    let labels = |name: &str| cluster.json(&["agent", "show", name])["labels"].clone();
    assert_eq!(labels("store-1"), json!({ "role": "pos", "store": "0001", "region": "eu" }));
    assert_eq!(labels("store-2"), json!({ "role": "pos", "store": "0002" }));

    // The list is the truth of the labels: what is empty in it is taken away.
    let changed = "name,store,region\nstore-1,0001,\nstore-2,0002,uk\n";
    let changed = cluster.scratch().file("changed.csv", changed, 0o600).display().to_string();
    let done = cluster.json(&["agent", "label", "-f", &changed]);
    assert_eq!(done, json!({ "changed": 2, "unchanged": 0 }));
    assert_eq!(labels("store-1"), json!({ "role": "pos", "store": "0001" }));
    assert_eq!(labels("store-2"), json!({ "role": "pos", "store": "0002", "region": "uk" }));
    assert_eq!(cluster.json(&["agent", "label", "-f", &changed]), json!({ "changed": 0, "unchanged": 2 }));

    // A second store-1.
    let third = host("store-1", "three", &cluster.json(&["token", "create", "--name", "store-1"]));
    let pending = wait::until("a host waits for approval", || {
        let agents = cluster.json(&["agent", "list"]);
        let found = agents.as_array().unwrap().iter().find(|agent| agent["state"] == "pending").cloned();
        found.ok_or_else(|| agents.to_string())
    });
    assert_eq!(pending["wanted_name"], "store-1");
    wait::until("the host says what it waits for", || {
        let log = third.log();
        if log.contains("sealift agent approve") { Ok(()) } else { Err(log) }
    });
    let id = pending["id"].as_str().unwrap();
    assert_ne!(cluster.sealift(&["agent", "approve", id]).code, 0, "the name is still taken");
    let word = ["agent", "retire", "store-1", "--keep-until", "2030-01-01", "--reason", "closed", "--yes"];
    cluster.sealift(&word).expect(0);
    cluster.sealift(&["agent", "approve", id]).expect(0);
    cluster.wait_until_connected("store-1");
    assert_eq!(cluster.json(&["agent", "show", "store-1"])["id"], pending["id"]);
    let agents = cluster.json(&["agent", "list"]);
    let retired =
        agents.as_array().unwrap().iter().find(|agent| agent["state"] == "retired").unwrap().clone();
    assert!(retired["keep_until"].as_str().unwrap().starts_with("2030-01-01"), "{retired:#}");
    wait::until("the retired host is told", || {
        let log = one.log();
        if log.contains("is retired") { Ok(()) } else { Err(log) }
    });
    let retire = &audited(&cluster, "agent.retire")[0]["details"];
    assert_eq!(
        (&retire["before"]["state"], &retire["after"]["state"]),
        (&json!("active"), &json!("retired"))
    );
    one.kill();
}

#[test]
fn a_series_outlives_the_name_of_its_source_and_a_new_epoch_bounds_it() {
    let cluster = Cluster::dev();
    let (path, source) = directory(&cluster, "files");
    let mut agent = cluster.agent("store-1", &source);
    let first = cluster.backup_ok("store-1/files");
    assert_ne!(
        cluster.sealift(&["series", "rename", "store-1/files", "shop", "--yes"]).code,
        0,
        "still there"
    );

    agent.stop();
    agent.write_config(&source.replace("\"files\"", "\"shop\""));
    agent.start();
    wait::until("the host has its source under the new name", || {
        let sources = cluster.json(&["source", "list"]);
        let shop = sources.as_array().unwrap().iter().any(|source| source["source"] == "shop");
        if shop { Ok(()) } else { Err(sources.to_string()) }
    });
    let renamed = cluster.json(&["series", "rename", "store-1/files", "shop", "--yes"]);
    assert_eq!((&renamed["id"], &renamed["source"]), (&first["series_id"], &json!("shop")));
    let second = cluster.backup_ok("store-1/shop");
    assert_eq!(second["series_id"], first["series_id"]);
    assert!(second["new_raw_bytes"].as_u64().unwrap() * 2 < second["raw_bytes"].as_u64().unwrap());

    let spoiled = ["series", "new-epoch", "store-1/shop", "--reason", "broken into", "--yes"];
    assert_eq!(cluster.json(&spoiled)["epoch_ends"], true);
    let third = cluster.backup_ok("store-1/shop");
    assert_eq!(third["new_raw_bytes"], third["raw_bytes"], "it builds on the epoch that was left");
    let shown = cluster.json(&["series", "show", "store-1/shop"]);
    assert_eq!((&shown["epoch_ends"], &shown["backups"]), (&json!(false), &json!(3)));
    assert_ne!(shown["epoch_id"], renamed["epoch_id"]);
    for (backup, to) in [(&first, "first"), (&third, "third")] {
        let restored = cluster.restore(backup["id"].as_str().unwrap(), to);
        same_file(&path.join("receipts"), &restored.join("receipts"));
    }
    let rename = &audited(&cluster, "series.rename")[0]["details"];
    assert_eq!((&rename["before"], &rename["after"]), (&json!("files"), &json!("shop")));
}
