//! Bad input gets one clear error that says what to do, and loses nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Command, Output};

use sealift_tests::binary;
use sealift_tests::cluster::Cluster;
use sealift_tests::scratch::Scratch;

/// `sealift-agent check` on a config with this mode; what it says.
fn check_agent(config: &str, mode: u32) -> (Option<i32>, String) {
    let scratch = Scratch::new("config");
    let path = scratch.file("agent.toml", config, mode);
    said(Command::new(binary("sealift-agent")).arg("check").arg("--config").arg(path))
}

fn said(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.output().expect("start");
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&text).into_owned())
}

const HEAD: &str = "coordinators = [\"https://127.0.0.1:7443\"]\nstate_dir = \"/tmp/none\"\n";

/// Refused, and every one of `words` is in the error.
#[track_caller]
fn refused((code, text): (Option<i32>, String), words: &[&str]) {
    assert!(code.is_some_and(|code| code != 0), "not refused: {text}");
    for word in words {
        assert!(text.contains(word), "nothing about {word:?} in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn agent_configs() {
    let with = |more: &str| check_agent(&format!("{HEAD}{more}"), 0o600);
    refused(with("colour = \"red\"\n"), &["colour", "agent.toml"]);
    refused(with("[[source]]\nname = \"x\"\nkind = \"sqlite\"\npath = \"/a\"\nexlude = []\n"), &["exlude"]);
    refused(with("[[source]]\nname = \"X y\"\nkind = \"sqlite\"\npath = \"/a\"\n"), &["X y"]);
    refused(with("[[source]]\nname = \"x\"\nkind = \"oracle\"\n"), &["oracle", "postgres"]);
    refused(with("[[source]]\nname = \"x\"\nkind = \"directory\"\npath = \"/srv/../etc\"\n"), &[".."]);
    refused(with("[[source]]\nname = \"x\"\nkind = \"directory\"\npath = \"relative\"\n"), &["relative"]);
    refused(
        with("[[source]]\nname = \"x\"\nkind = \"postgres\"\nurl = \"postgres://u:pw@h/\"\n"),
        &["password"],
    );
    refused(with("[[source]]\nname = \"x\"\nkind = \"command\"\ncommand = []\n"), &["command"]);
    let foreign = HEAD.replace("https://127.0.0.1", "http://backup.example.com");
    refused(check_agent(&foreign, 0o600), &["http://backup.example.com", "https"]);
    let secret = format!(
        "{HEAD}[[source]]\nname = \"x\"\nkind = \"postgres\"\nurl = \"postgres://u@h/\"\npassword = \"hush\"\n"
    );
    let (code, text) = check_agent(&secret, 0o644);
    assert!(!text.contains("hush"), "the secret is repeated: {text}");
    refused((code, text), &["agent.toml", "600"]);
    refused(check_agent("this is not toml", 0o600), &["agent.toml", "1"]);
}

#[test]
fn enrolment() {
    let cluster = Cluster::dev();
    let token = cluster.json(&["token", "create", "--name", "store-1"]);
    let file = cluster.scratch().file("token", token["token"].as_str().unwrap(), 0o600);
    let (ca, root) = (token["ca_sha256"].as_str().unwrap(), token["root_key_sha256"][0].as_str().unwrap());
    let enroll = |ca: &str, root: &str, state: &str| {
        let mut command = Command::new(binary("sealift-agent"));
        command.args(["enroll", "--coordinator", &cluster.url(), "--token-file"]).arg(&file);
        command
            .args(["--ca-sha256", ca, "--root-key-sha256", root, "--state-dir"])
            .arg(cluster.scratch().join(state));
        said(&mut command)
    };
    let other = "0".repeat(64);
    refused(enroll(&other, root, "a"), &["pinned"]);
    refused(enroll(ca, &other, "b"), &[&other, "--root-key-sha256", "still good"]);
    refused(enroll("xyz", root, "c"), &["xyz"]);
    // None of that has used up the token: another state directory shows that no half-made agent holds it.
    let (code, text) = enroll(ca, root, "d");
    assert_eq!(code, Some(0), "{text}");
    refused(enroll(ca, root, "e"), &["used up"]);
    refused(enroll(ca, root, "d"), &["enrolled"]);

    let revoked = cluster.json(&["token", "create"]);
    cluster.sealift(&["token", "revoke", revoked["id"].as_str().unwrap(), "--yes"]).expect(0);
    std::fs::write(&file, revoked["token"].as_str().unwrap()).unwrap();
    refused(enroll(ca, root, "f"), &["token"]);
    std::fs::write(&file, "slt_nonsense").unwrap();
    refused(enroll(ca, root, "g"), &["token"]);
}

#[test]
fn commands() {
    let cluster = Cluster::dev();
    for (arguments, code) in [
        (&["backup", "run", "nobody/nothing"][..], 4),
        (&["backup", "show", "latest:nobody/nothing"], 4),
        (&["backup", "show", "../../etc/passwd"], 2),
        (&["run", "show", "0000"], 4),
        (&["agent", "show", "nobody"], 4),
        (&["restore", "latest:nobody/nothing", "--identity", "/none", "--to", "/tmp/none"], 2),
        (&["token", "create", "--ttl", "soon"], 2),
        (&["trust", "set", "--recipient", "age1nonsense", "--yes"], 2),
        (&["trust", "set", "--recipient", &cluster.recipient, "--yes"], 2),
        (&["fly"], 2),
    ] {
        let answer = cluster.sealift(arguments).expect(code);
        assert!(answer.stdout.is_empty() && !answer.stderr.is_empty(), "{arguments:?}: {answer:?}");
        assert!(!answer.stderr.contains("panicked"), "{arguments:?}: {}", answer.stderr);
    }
}

#[test]
fn a_coordinator_that_is_away() {
    let mut cluster = Cluster::dev();
    cluster.kill_coordinator();
    let answer = cluster.sealift(&["status"]).expect(6);
    assert!(answer.stderr.contains("127.0.0.1"), "{}", answer.stderr);
}
