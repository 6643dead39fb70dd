//! The commands of an admin's day, on a fleet that runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use sealift_tests::binary;
use sealift_tests::cluster::Cluster;
use sealift_tests::faults::{Gate, is_alive, packs};
use sealift_tests::wait;

const SOURCE: &str =
    "[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/echo\", \"content\"]\n";

#[test]
fn run_cancel_ends_the_source_and_keeps_what_is_stored() {
    let (cluster, gate) = (Cluster::dev(), Gate::new(40 << 20));
    let _agent = cluster.agent("store-1", &gate.source("data"));
    let run = cluster.start_backup("store-1/data");
    let source = gate.wait_until_reached();
    wait::until_true("two packs are stored", || packs(&cluster).len() >= 2);
    let dry = cluster.sealift(&["run", "cancel", &run, "--dry-run"]).expect(0);
    assert!(dry.stderr.contains("would"), "{}", dry.stderr);
    assert_eq!(cluster.run(&run)["state"], "active");
    cluster.sealift(&["run", "cancel", &run[..8], "--yes", "--reason", "shop opens"]).expect(0);
    let ended = cluster.wait_for_end(&run);
    assert_eq!(ended["state"], "cancelled");
    assert!(ended["error"].as_str().unwrap().contains("shop opens"), "{ended:#}");
    wait::until_true("the source is gone", || !is_alive(source));
    assert_eq!(cluster.sealift(&["run", "watch", &run]).code, 1);
    // What is over cannot be cancelled, and says so.
    let again = cluster.sealift(&["run", "cancel", &run, "--yes"]).expect(1);
    assert!(again.stderr.contains("cancelled"), "{}", again.stderr);

    // The next backup refers to what was stored.
    let before = packs(&cluster);
    gate.close();
    gate.open();
    let backup = cluster.backup_ok("store-1/data");
    assert!(backup["new_raw_bytes"].as_u64().unwrap() < 20 << 20, "{backup:#}");
    assert!(packs(&cluster).is_superset(&before));
}

#[test]
fn labels_select_and_a_revoked_host_is_out_at_once() {
    let (cluster, gate) = (Cluster::dev(), Gate::new(1 << 20));
    let mut agent = cluster.agent("store-1", &(gate.source("data") + SOURCE));
    let _other = cluster.agent("store-2", SOURCE);
    cluster.sealift(&["agent", "label", "store-1", "role=pos", "region=eu"]).expect(0);
    let shown = cluster.json(&["agent", "show", "store-1"]);
    assert_eq!(shown["labels"], serde_json::json!({"role": "pos", "region": "eu"}));
    cluster.sealift(&["agent", "label", "store-1", "region-"]).expect(0);
    let names = |selector: &str| {
        let list = cluster.json(&["agent", "list", "-l", selector]);
        list.as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("role=pos"), ["store-1"]);
    assert_eq!(names("role!=pos"), ["store-2"]);
    assert!(names("region=eu").is_empty());
    let bad = cluster.sealift(&["agent", "label", "store-1", "No Label=x"]).expect(2);
    assert!(bad.stderr.contains("No Label"), "{}", bad.stderr);
    cluster.sealift(&["backup", "run", "-l", "role=pos", "--dry-run"]).expect(0);

    // Revoked in the middle of a backup: the run ends, the session ends, and nothing lets it in again.
    let run = cluster.start_backup("store-1/data");
    gate.wait_until_reached();
    let unsaid = cluster.sealift(&["agent", "revoke", "store-1", "--reason", "stolen"]).expect(2);
    assert!(unsaid.stderr.contains("--yes"), "{}", unsaid.stderr);
    cluster.sealift(&["agent", "revoke", "store-1", "--yes", "--reason", "stolen"]).expect(0);
    let shown = cluster.json(&["agent", "show", "store-1"]);
    assert_eq!((&shown["state"], &shown["connected"]), (&"revoked".into(), &false.into()), "{shown:#}");
    assert_ne!(cluster.wait_for_end(&run)["state"], "succeeded");
    gate.open();
    agent.crash();
    wait::until_true("it is told", || agent.log().contains("revoked"));
    assert_eq!(cluster.json(&["agent", "show", "store-1"])["connected"], false);
    assert!(cluster.backups("store-1/data").is_empty());
    wait::until_true("the refusal is audited", || {
        let refused = cluster.json(&["audit", "list", "--action", "call.refuse"]);
        !refused.as_array().unwrap().is_empty()
    });
}

#[test]
fn a_revoked_or_used_up_token_lets_nobody_in() {
    let cluster = Cluster::dev();
    let enroll = |token: &serde_json::Value, state: &str| {
        let file = cluster.scratch().file("token", token["token"].as_str().unwrap(), 0o600);
        let mut command = Command::new(binary("sealift-agent"));
        command.args(["enroll", "--coordinator", &cluster.url(), "--token-file"]).arg(file);
        command.args(["--ca-sha256", token["ca_sha256"].as_str().unwrap(), "--root-key-sha256"]);
        command.arg(token["root_key_sha256"][0].as_str().unwrap()).arg("--state-dir");
        let output = command.arg(cluster.scratch().join(state)).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let once = cluster.json(&["token", "create", "--name", "store-1", "--label", "role=pos"]);
    assert_eq!(enroll(&once, "a").0, Some(0));
    let (code, said) = enroll(&once, "b");
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("used up") && said.contains("sealift token create"), "{said}");

    let taken_back = cluster.json(&["token", "create"]);
    let id = taken_back["id"].as_str().unwrap();
    cluster.sealift(&["token", "revoke", id, "--yes"]).expect(0);
    let (code, said) = enroll(&taken_back, "c");
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("revoked"), "{said}");
    cluster.sealift(&["token", "revoke", "nosuchtoken", "--yes"]).expect(4);
    let list = cluster.json(&["token", "list"]);
    let of = |id: &str| list.as_array().unwrap().iter().find(|t| t["id"] == id).unwrap().clone();
    assert_eq!(of(id)["revoked"], true);
    assert_eq!(of(once["id"].as_str().unwrap())["used"], 1);
    assert_eq!(cluster.json(&["agent", "show", "store-1"])["labels"]["role"], "pos");
    let refusals = cluster.json(&["audit", "list", "--action", "agent.enroll"]);
    let refused = refusals.as_array().unwrap().iter().filter(|event| event["outcome"] == "refused");
    assert_eq!(refused.count(), 2, "{refusals:#}");
}

#[test]
fn contexts_are_chosen_by_name() {
    let cluster = Cluster::dev();
    let sealift = |arguments: &[&str]| {
        let mut command = cluster.command();
        command.env_remove("SEALIFT_CONTEXT").args(arguments);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, said) = sealift(&["status"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("context"), "{said}");
    let file = cluster.data_dir().join("context.toml").display().to_string();
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(&cluster.root_pins[0]), "the root key is not pinned: {text}");
    assert_eq!(sealift(&["context", "use", &file]).0, 0);
    assert_eq!(sealift(&["status"]).0, 0);
    let (code, listed) = sealift(&["context", "list"]);
    assert!(code == 0 && listed.contains('*') && listed.contains("dev"), "{listed}");
    assert_eq!(sealift(&["--context", "dev", "status"]).0, 0);
    let (code, said) = sealift(&["context", "use", "elsewhere"]);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("elsewhere") && said.contains("context list"), "{said}");
    assert_eq!(sealift(&["--context", "elsewhere", "status"]).0, 4);
}

#[test]
fn completion_is_a_script_that_the_shell_takes() {
    let cluster = Cluster::dev();
    let script = cluster.sealift(&["completion", "bash"]).expect(0).text();
    let file = cluster.scratch().file("completion", &script, 0o600);
    let check = "source \"$1\" && complete -p sealift && COMP_WORDS=(sealift ba) COMP_CWORD=1 && _sealift sealift ba sealift && echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-c", check, "bash"]).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.lines().any(|line| line == "backup"), "{said}");
    for shell in ["zsh", "fish"] {
        assert!(cluster.sealift(&["completion", shell]).expect(0).text().contains("backup"), "{shell}");
    }
    cluster.sealift(&["completion", "cmd"]).expect(2);
}
