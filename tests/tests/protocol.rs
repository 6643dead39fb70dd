//! Builds of different ages: an agent that speaks less keeps working, and one that is too old is not lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use nix::sys::signal::Signal;
use sealift_tests::agent::Agent;
use sealift_tests::cluster::Cluster;
use sealift_tests::faults::Feed;
use sealift_tests::services::S3;
use sealift_tests::wait;
use serde_json::{Value, json};

/// A host whose agent speaks up to `newest`, and can do only this.
fn host_of_before(cluster: &Cluster, newest: &str, can: &str, sources: &str) -> Agent {
    let mut agent = cluster.host("store-1", &[]);
    agent.set_build(Some((newest, can)));
    agent.write_config(sources);
    agent.enrol(&cluster.json(&["token", "create", "--name", "store-1"]));
    agent.start();
    agent
}

/// A new backup of the feed, asked for and restored.
#[track_caller]
fn backed_up(cluster: &Cluster, feed: &Feed, seed: u64) {
    feed.renew(seed);
    cluster.backup_ok("store-1/feed");
    let restored = cluster.restore("latest:store-1/feed", &format!("restored-{seed}"));
    let files: Vec<_> = std::fs::read_dir(&restored).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(std::fs::read(&files[0]).unwrap() == feed.content(), "restored something else");
}

#[track_caller]
fn until_build(cluster: &Cluster, build: &str) -> Value {
    wait::until(&format!("the build is seen to be {build}"), || {
        let shown = cluster.json(&["agent", "show", "store-1"]);
        if shown["build"] == build { Ok(shown) } else { Err(shown.to_string()) }
    })
}

#[test]
fn an_agent_that_speaks_less_keeps_working_and_is_asked_for_no_more() {
    let (mut cluster, feed) = (Cluster::dev(), Feed::new(3));
    let mut agent = host_of_before(&cluster, "1.0", "", &feed.source("feed"));
    cluster.wait_until_connected("store-1");
    let shown = cluster.json(&["agent", "show", "store-1"]);
    assert_eq!(
        (&shown["protocol"], &shown["features"], &shown["build"]),
        (&json!("1.0"), &json!([]), &json!("behind"))
    );
    assert!(shown["lacks"].as_array().unwrap().contains(&json!("source-test")), "{shown:#}");
    let listed = cluster.sealift(&["agent", "list"]).expect(0).text();
    assert!(listed.contains("(behind)"), "{listed}");
    let status = cluster.json(&["status"]);
    assert_eq!((&status["agents_behind"], &status["agents_upgrade_required"]), (&json!(1), &json!(0)));
    let status = cluster.sealift(&["status"]).expect(0).text();
    assert!(status.contains("1 with an agent that is behind"), "{status}");

    // Backups that are asked for, and those of a policy whose limits it would not understand.
    backed_up(&cluster, &feed, 1);
    let policy = "name = \"often\"\n[schedule]\ncron = \"* * * * *\"\ntimezone = \"UTC\"\n[limits]\nbandwidth = \"64MiB/s\"\n\
        max_duration = \"1h\"\n";
    let policy = cluster.scratch().file("often.toml", policy, 0o644);
    cluster.sealift(&["policy", "apply", "-f", &policy.display().to_string(), "--expect", "1"]).expect(0);
    wait::until("a scheduled backup", || {
        let runs = cluster.json(&["run", "list", "store-1/feed", "--state", "succeeded"]);
        let scheduled = runs.as_array().unwrap().iter().any(|run| run["occasion"] == "schedule");
        if scheduled { Ok(()) } else { Err(runs.to_string()) }
    });
    cluster.sealift(&["policy", "delete", "often", "--yes", "--expect", "1"]).expect(0);

    // What it does not understand is refused at once, with what to do.
    let test = cluster.sealift(&["source", "test", "store-1"]);
    let said = test.text() + &test.stderr;
    assert!(test.code == 1 && said.contains("upgrade it"), "{}: {said}", test.code);
    let epoch = cluster.sealift(&["series", "new-epoch", "store-1/feed", "--reason", "spoiled", "--yes"]);
    assert!(epoch.code == 1 && epoch.stderr.contains("upgrade it first"), "{}: {}", epoch.code, epoch.stderr);
    backed_up(&cluster, &feed, 2);

    // A changed configuration comes with another Hello.
    agent.write_config(&(feed.source("feed") + &feed.source("second")));
    agent.process().signal(Signal::SIGHUP);
    wait::until("the second source is known", || {
        let sources = cluster.json(&["source", "list"]);
        if sources.as_array().unwrap().len() == 2 { Ok(()) } else { Err(sources.to_string()) }
    });

    // A coordinator that stops cannot ask it to move: it comes back all the same.
    cluster.stop_coordinator();
    cluster.start_coordinator();
    cluster.wait_until_connected("store-1");
    backed_up(&cluster, &feed, 3);
    let log = agent.log();
    assert!(
        !log.contains("not agreed on"),
        "the coordinator said what this build does not understand: {log}"
    );

    agent.stop();
    agent.set_build(None);
    agent.start();
    let shown = until_build(&cluster, "current");
    assert_eq!((&shown["lacks"], &shown["upgrade_required"]), (&json!([]), &Value::Null));
    cluster.sealift(&["source", "test", "store-1"]).expect(0);
    cluster.sealift(&["series", "new-epoch", "store-1/feed", "--reason", "spoiled", "--yes"]).expect(0);
    backed_up(&cluster, &feed, 4);
}

#[test]
fn an_agent_that_is_too_old_is_told_so_and_renews_its_certificate_until_it_is_upgraded() {
    let (mut cluster, feed) = (Cluster::on(S3::rclone()), Feed::new(3));
    // The shortest that there is: renewed after 42 seconds.
    let config = cluster.data_dir().join("coordinator.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen("[ca]\n", "[ca]\nagent_certificate = \"60s\"\n", 1)).unwrap();
    cluster.crash_coordinator();

    let mut agent = host_of_before(&cluster, "0.9", "", &feed.source("feed"));
    let shown = until_build(&cluster, "upgrade_required");
    assert_eq!((&shown["connected"], &shown["protocol"]), (&json!(false), &json!("0.9")));
    assert!(shown["upgrade_required"].is_string(), "{shown:#}");
    wait::until("the agent says what is to be done", || {
        let log = agent.log();
        if log.contains("upgrade_required: this agent speaks protocol 0.9") { Ok(()) } else { Err(log) }
    });
    let status = cluster.json(&["status"]);
    assert_eq!(status["agents_upgrade_required"], 1);
    let warned = |warning: &Value| warning.as_str().unwrap().contains("too old for this coordinator");
    assert!(status["warnings"].as_array().unwrap().iter().any(warned), "{status:#}");
    assert!(cluster.sealift(&["agent", "list"]).expect(0).text().contains("(upgrade_required)"));

    // By its certificate, before that expires.
    let first = shown["certificate_expires"].as_str().unwrap().to_owned();
    wait::until("the certificate is renewed", || {
        let shown = cluster.json(&["agent", "show", "store-1"]);
        if shown["certificate_expires"].as_str() > Some(&first) { Ok(()) } else { Err(shown.to_string()) }
    });
    let of = |action: &str, outcome: &str| {
        let events = cluster.json(&["audit", "list", "--action", action]);
        events.as_array().unwrap().iter().filter(|event| event["outcome"] == outcome).count()
    };
    assert!(of("certificate.renew", "done") >= 1 && of("agent.recover", "done") == 0);
    assert_eq!(of("session.open", "refused"), 1, "once, however often it asks");

    agent.stop();
    agent.set_build(None);
    agent.start();
    until_build(&cluster, "current");
    cluster.wait_until_connected("store-1");
    backed_up(&cluster, &feed, 1);
}
