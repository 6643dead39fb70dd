//! Policies through the real command: previewed, guarded, tried out, rolled back, paused; and a backup that a schedule makes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sealift_tests::cluster::{Answer, Cluster};
use sealift_tests::simulated::{Fleet, Invitation, Options};
use sealift_tests::{agent::Agent, wait};
use serde_json::Value;

/// What a small host backs up.
const SOURCES: &str = "[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/echo\", \"hello\"]\n\n\
    [[source]]\nname = \"etc\"\nkind = \"command\"\ncommand = [\"/bin/echo\", \"etc\"]\n";

/// A host with labels.
fn host(cluster: &Cluster, name: &str, labels: &[&str]) -> Agent {
    let agent = cluster.agent(name, SOURCES);
    let mut arguments = vec!["agent", "label", name];
    arguments.extend(labels);
    cluster.sealift(&arguments).expect(0);
    agent
}

fn file(cluster: &Cluster, name: &str, text: &str) -> String {
    cluster.scratch().file(name, text, 0o600).display().to_string()
}

fn apply(cluster: &Cluster, file: &str, more: &[&str]) -> Answer {
    let mut arguments = vec!["--output", "json", "policy", "apply", "-f", file];
    arguments.extend(more);
    cluster.sealift(&arguments)
}

fn source(cluster: &Cluster, name: &str) -> Value {
    let all = cluster.json(&["source", "list"]);
    let found = all
        .as_array()
        .unwrap()
        .iter()
        .find(|s| format!("{}/{}", s["agent"], s["source"]).replace('"', "") == name);
    found.unwrap_or_else(|| panic!("no {name} in {all:#}")).clone()
}

/// A moment, as text that sorts by time.
fn moment(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn events(cluster: &Cluster, action: &str) -> Vec<Value> {
    cluster.json(&["audit", "list", "--action", action]).as_array().unwrap().clone()
}

#[test]
fn a_policy_is_previewed_guarded_tried_out_and_rolled_back() {
    let cluster = Cluster::dev();
    let _hosts = [
        host(&cluster, "store-1", &["role=pos", "store=0001"]),
        host(&cluster, "store-2", &["role=pos", "store=0002"]),
        host(&cluster, "web-1", &["role=web"]),
    ];
    let mut tills = Fleet::new(Options { sources: vec!["dump".to_owned()], ..Options::default() });
    tills.enrol(&Invitation::of(&cluster, 4, &[("role", "pos")]), "till", 4);
    tills.connect();
    tills.until_connected(4);
    wait::until("status counts the sources under no policy", || {
        let status = cluster.json(&["status"]);
        if status["sources_without_policy"] == 10 { Ok(()) } else { Err(status.to_string()) }
    });

    let nightly = |retention: &str| {
        format!(
            "name = \"stores-nightly\"\n[select]\nlabels = \"role=pos\"\nsources = [\"dump\"]\n\
             [schedule]\ncron = \"0 2 * * *\"\ntimezone = \"America/Havana\"\nspread = \"2h\"\nwindow = \"5h\"\n\
             [retention]\ndaily = {retention}\n[alert]\noverdue_after = \"26h\"\n"
        )
    };
    let first = file(&cluster, "first.toml", &nightly("7"));

    // A preview changes nothing, and says what would be refused.
    let preview = cluster.json(&["policy", "preview", "-f", &first]);
    assert_eq!((&preview["hosts_touched"], &preview["hosts"]), (&6.into(), &7.into()), "{preview:#}");
    assert_eq!(preview["sources_selected"], 6);
    let shown = &preview["sources"][0];
    assert_eq!((&shown["agent"], &shown["after"]["policy"]), (&"store-1".into(), &"stores-nightly".into()));
    assert_eq!((shown["before"].is_null(), shown["timezone"].as_str()), (true, Some("America/Havana")));
    assert_eq!(shown["starts"].as_array().unwrap().len(), 3);
    assert!(preview["refused"].as_str().unwrap().contains("--expect 6"), "{preview:#}");
    assert!(cluster.json(&["policy", "list"]).as_array().unwrap().is_empty());
    assert_eq!(apply(&cluster, &first, &["--dry-run"]).code, 1);

    // Guards: nothing selected, more than a tenth and a handful, another number than meant.
    let slip = file(&cluster, "slip.toml", "name = \"slip\"\n[select]\nlabels = \"role=pso\"\n");
    let refused = apply(&cluster, &slip, &[]).expect(1);
    assert!(refused.stderr.contains("selects no source"), "{}", refused.stderr);
    let refused = apply(&cluster, &first, &[]).expect(1);
    assert!(refused.stderr.contains("touches 6 of 7 hosts"), "{}", refused.stderr);
    let refused = apply(&cluster, &first, &["--expect", "3"]).expect(1);
    assert!(refused.stderr.contains("not 3"), "{}", refused.stderr);
    assert_eq!(events(&cluster, "policy.apply").iter().filter(|e| e["outcome"] == "refused").count(), 3);
    let broken = file(&cluster, "broken.toml", "name = \"x\"\n[select]\nlabels = \"role like pos\"\n");
    let refused = apply(&cluster, &broken, &[]).expect(2);
    assert!(
        refused.stderr.contains("line 3, column 10") && refused.stderr.contains("position 6"),
        "{}",
        refused.stderr
    );

    let made = apply(&cluster, &first, &["--expect", "6"]).expect(0).json();
    assert_eq!((&made["made"], &made["version"]), (&true.into(), &1.into()), "{made:#}");
    wait::until("the policy is in force", || {
        let state = source(&cluster, "store-1/dump");
        let there = state["policy"] == "stores-nightly" && !state["next_due"].is_null();
        if there && state["rpo"]["state"] == "waiting" { Ok(()) } else { Err(state.to_string()) }
    });
    assert_eq!(source(&cluster, "store-1/etc")["policy"], Value::Null);
    assert_eq!(cluster.json(&["status"])["sources_without_policy"], 4);
    let bare = cluster.json(&["source", "list", "--no-policy"]);
    assert_eq!(bare.as_array().unwrap().len(), 4);
    assert_eq!(cluster.json(&["source", "list", "--rpo", "waiting"]).as_array().unwrap().len(), 6);
    assert!(apply(&cluster, &first, &[]).expect(0).stderr.contains("says this already"));

    // Tried out on one host first.
    let second = file(&cluster, "second.toml", &nightly("5"));
    let tried = apply(&cluster, &second, &["--canary", "store=0002", "--expect", "1"]).expect(0).json();
    assert_eq!((&tried["hosts_touched"], &tried["version"]), (&1.into(), &2.into()), "{tried:#}");
    let versions = |name: &str| {
        let state = source(&cluster, name);
        (state["policy_version"].as_u64().unwrap(), state["policy_canary"].as_bool().unwrap())
    };
    assert_eq!((versions("store-1/dump"), versions("store-2/dump")), ((1, false), (2, true)));
    // The other five: a handful needs no word.
    let rest = apply(&cluster, &second, &[]).expect(0).json();
    assert_eq!(rest["hosts_touched"], 5, "{rest:#}");
    assert_eq!((versions("store-1/dump"), versions("store-2/dump")), ((3, false), (3, false)));

    // Back to what was before; nothing of the history is lost.
    let back = cluster.json(&["policy", "rollback", "stores-nightly", "--expect", "6"]);
    assert_eq!((&back["made"], &back["version"]), (&true.into(), &4.into()), "{back:#}");
    let history = cluster.json(&["policy", "history", "stores-nightly"]);
    let actions: Vec<_> = history.as_array().unwrap().iter().map(|v| v["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["rolled back to version 1", "applied", "tried out on store=0002", "applied"]);
    let shown = cluster.json(&["policy", "show", "stores-nightly"]);
    assert_eq!(
        (&shown["version"], &shown["policy"]["retention"]["daily"]),
        (&4.into(), &7.into()),
        "{shown:#}"
    );
    let applied: Vec<_> =
        events(&cluster, "policy.apply").into_iter().filter(|e| e["outcome"] == "done").collect();
    let details = &applied.last().unwrap()["details"];
    assert_eq!(details["before"]["in_force"]["document"]["retention"]["daily"], 7, "{details:#}");
    assert_eq!(details["after"]["in_force"]["document"]["retention"]["daily"], 5, "{details:#}");

    // A second policy wins by its priority, and says so.
    let other = file(&cluster, "other.toml", "name = \"all\"\npriority = 1\n");
    apply(&cluster, &other, &["--expect", "7"]).expect(0);
    let state = source(&cluster, "store-1/dump");
    assert_eq!((&state["policy"], &state["other_policies"][0]), (&"all".into(), &"stores-nightly".into()));
    assert_eq!(cluster.json(&["status"])["sources_without_policy"], 0);
    cluster.sealift(&["policy", "delete", "all", "--expect", "7"]).expect(2);
    cluster.sealift(&["policy", "delete", "all", "--yes"]).expect(1);
    cluster.sealift(&["policy", "delete", "all", "--yes", "--expect", "7"]).expect(0);
    assert_eq!(source(&cluster, "store-1/dump")["policy"], "stores-nightly");
    cluster.sealift(&["policy", "show", "all"]).expect(4);
    assert!(cluster.sealift(&["policy", "list"]).expect(0).text().contains("stores-nightly"));
}

#[test]
fn a_run_ends_with_its_window() {
    let cluster = Cluster::dev();
    let endless = "[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/sleep\", \"1000\"]\n";
    let _host = cluster.agent("store-1", endless);
    let text = "name = \"short\"\n[schedule]\ncron = \"* * * * *\"\ntimezone = \"UTC\"\nwindow = \"1m\"\n\
        [limits]\nat_window_end = \"stop\"\n";
    apply(&cluster, &file(&cluster, "short.toml", text), &[]).expect(0);
    let stopped = wait::until_within(std::time::Duration::from_secs(240), "a run is stopped", || {
        let runs = cluster.json(&["run", "list", "store-1/dump", "--state", "cancelled"]);
        runs.get(0).cloned().ok_or_else(|| cluster.json(&["run", "list"]).to_string())
    });
    assert_eq!(stopped["error"], "its window has ended", "{stopped:#}");
    assert!(moment(&stopped["ended"]) >= moment(&stopped["deadline"]), "{stopped:#}");
}

#[test]
fn a_schedule_makes_backups_until_it_is_paused() {
    let cluster = Cluster::dev();
    let _host = host(&cluster, "store-1", &["role=pos", "store=0001"]);
    let every_minute = "name = \"often\"\n[select]\nsources = [\"dump\"]\n[schedule]\ncron = \"* * * * *\"\n\
        timezone = \"UTC\"\n[limits]\nconcurrent_per_site = 1\nbandwidth = \"1MiB/s\"\n[alert]\noverdue_after = \"10m\"\n";
    let policy = file(&cluster, "often.toml", every_minute);
    apply(&cluster, &policy, &["--expect", "1"]).expect(0);

    // A backup that nobody asked for by hand.
    let run = wait::until("a scheduled backup", || {
        let runs = cluster.json(&["run", "list", "store-1/dump", "--state", "succeeded"]);
        runs.get(0).cloned().ok_or_else(|| cluster.json(&["run", "list"]).to_string())
    });
    assert_eq!(
        (&run["requested_by"], &run["occasion"]),
        (&"policy:often".into(), &"schedule".into()),
        "{run:#}"
    );
    let text = |key: &str| run[key].as_str().unwrap().to_owned();
    assert!(text("instant").ends_with(":00.000Z"), "{run:#}");
    let (instant, due) = (moment(&run["instant"]), moment(&run["due"]));
    assert!(due >= instant && moment(&run["started"]) >= due, "never early: {run:#}");
    let backup = cluster.json(&["backup", "show", &text("backup_id")]);
    assert_eq!(backup["source"], "dump");
    assert_eq!(source(&cluster, "store-1/dump")["rpo"]["state"], "ok");
    assert!(cluster.json(&["run", "list", "store-1/etc"]).as_array().unwrap().is_empty());

    // Paused: the next instants are skipped, and say why.
    cluster.sealift(&["pause", "-l", "role=pos", "--until", "1h", "--reason", "inventory"]).expect(0);
    let status = cluster.json(&["status"]);
    assert!(status["pauses"][0].as_str().unwrap().starts_with("role=pos until "), "{status:#}");
    let skipped = wait::until("an instant is skipped", || {
        let runs = cluster.json(&["run", "list", "store-1/dump", "--state", "skipped"]);
        runs.get(0).cloned().ok_or_else(|| cluster.json(&["run", "list"]).to_string())
    });
    assert!(skipped["error"].as_str().unwrap().contains("paused"), "{skipped:#}");
    // What an admin asks for still runs.
    cluster.backup_ok("store-1/dump");
    cluster.sealift(&["resume", "-l", "role=web"]).expect(4);
    cluster.sealift(&["resume", "-l", "role=pos"]).expect(0);
    cluster.sealift(&["resume"]).expect(4);
    let before = cluster.backups("store-1/dump").len();
    wait::until_true("backups are made again", || cluster.backups("store-1/dump").len() > before);
    let paused = events(&cluster, "schedule.pause");
    assert_eq!(
        paused.last().unwrap()["details"]["after"][0].as_str().unwrap().split(' ').next(),
        Some("role=pos")
    );

    // Each instant has one row, whatever became of it.
    let all = cluster.json(&["run", "list", "store-1/dump"]);
    let mut instants: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .filter(|run| run["occasion"] == "schedule")
        .map(|run| run["instant"].as_str().unwrap().to_owned())
        .collect();
    let rows = instants.len();
    instants.sort();
    instants.dedup();
    assert_eq!(instants.len(), rows, "{all:#}");

    // Changed before it starts: the run that waits goes with the old version.
    let yearly = every_minute.replace("* * * * *", "0 0 1 1 *").replace("bandwidth = \"1MiB/s\"\n", "");
    let yearly = file(&cluster, "yearly.toml", &yearly);
    apply(&cluster, &yearly, &["--expect", "1"]).expect(0);
    wait::until("the schedule is the new one", || {
        let state = source(&cluster, "store-1/dump");
        let due = state["next_due"].as_str().unwrap_or_default().to_owned();
        if due.contains("-01-01T00:00:00.000Z") { Ok(()) } else { Err(state.to_string()) }
    });
}
