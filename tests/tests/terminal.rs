//! What only somebody at a terminal sees and types: passphrases, questions, progress bars.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use sealift_tests::cluster::Cluster;
use sealift_tests::faults::Gate;
use sealift_tests::terminal::Terminal;

fn sealift(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = cluster.command();
    command.args(arguments);
    command
}

const SOURCE: &str =
    "[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/echo\", \"content\"]\n";

#[test]
fn keys_with_a_passphrase_open_and_sign_for_who_knows_it() {
    let cluster = Cluster::dev();
    let path = |name: &str| cluster.scratch().join(name).display().to_string();
    let (key, root) = (path("anna.key"), path("root.key"));
    for (kind, out) in [("identity", &key), ("root", &root)] {
        let generate = ["keys", "generate", "--kind", kind, "--out", out, "--passphrase"];
        let mut terminal = Terminal::start(&sealift(&cluster, &generate));
        terminal.wait_for("passphrase for the new key:");
        terminal.type_secret("correct horse");
        terminal.wait_for("the same again:");
        terminal.type_secret("correct horse");
        let (code, screen) = terminal.end();
        assert_eq!(code, 0, "{screen}");
        let kept = std::fs::read_to_string(out).unwrap();
        assert!(kept.starts_with("-----BEGIN AGE ENCRYPTED FILE-----"), "not protected: {kept}");
        assert!(!screen.contains("horse"), "the passphrase is on the screen: {screen}");
        if kind == "identity" {
            let recipient = screen.split_whitespace().find(|word| word.starts_with("age1")).unwrap();
            cluster.set_trust(&[recipient]);
        }
    }
    let mismatch = ["keys", "generate", "--kind", "root", "--out", &path("none"), "--passphrase"];
    let mut terminal = Terminal::start(&sealift(&cluster, &mismatch));
    terminal.wait_for("passphrase for the new key:");
    terminal.type_secret("one");
    terminal.wait_for("the same again:");
    terminal.type_secret("another");
    let (code, screen) = terminal.end();
    assert_eq!(code, 2, "{screen}");
    assert!(screen.contains("differ") && !cluster.scratch().join("none").exists(), "{screen}");

    let _agent = cluster.agent("store-1", SOURCE);
    let backup = cluster.backup_ok("store-1/dump");
    let stream = backup["streams"][0]["name"].as_str().unwrap();
    let restore =
        ["restore", "latest:store-1/dump", "--identity", &key, "--stdout", "--stream", stream, "--yes"];
    let mut terminal = Terminal::start(&sealift(&cluster, &restore));
    terminal.wait_for("passphrase of");
    terminal.type_secret("correct horse");
    let (code, screen) = terminal.end();
    assert_eq!(code, 0, "{screen}");
    assert!(screen.contains("content"), "{screen}");

    // A wrong one, and nobody to ask: one clear error each. From a file it works without a terminal.
    let mut terminal = Terminal::start(&sealift(&cluster, &restore));
    terminal.wait_for("passphrase of");
    terminal.type_secret("wrong horse");
    let (code, screen) = terminal.end();
    assert_eq!(code, 2, "{screen}");
    assert!(screen.contains("passphrase") && !screen.contains("content\r"), "{screen}");
    let nobody = cluster.sealift(&restore).expect(2);
    assert!(nobody.stderr.contains("--passphrase-file"), "{}", nobody.stderr);
    let file = cluster.scratch().file("passphrase", "correct horse\n", 0o600).display().to_string();
    let with_file = [&restore[..], &["--passphrase-file", &file]].concat();
    assert_eq!(cluster.sealift(&with_file).expect(0).text(), "content\n");
    let test = ["keys", "test", "--identity", &key, "--passphrase-file", &file];
    assert!(cluster.sealift(&test).expect(0).text().contains("opens"));
}

#[test]
fn progress_has_a_rate_and_from_the_second_backup_on_an_eta() {
    let (cluster, gate) = (Cluster::dev(), Gate::new(8 << 20));
    let _agent = cluster.agent("store-1", &gate.source("feed"));
    let backup = sealift(&cluster, &["backup", "run", "store-1/feed", "--wait"]);
    for later in [false, true] {
        gate.close();
        let mut terminal = Terminal::start(&backup);
        gate.wait_until_reached();
        // What the bar says once a second.
        terminal.wait_for("store-1/feed");
        terminal.wait_for("8.00 MiB");
        terminal.wait_for(if later { "ETA" } else { "iB/s" });
        assert!(later || !terminal.screen().contains("ETA"), "an ETA out of nothing: {}", terminal.screen());
        gate.open();
        terminal.wait_for("succeeded in");
        let (code, screen) = terminal.end();
        assert_eq!(code, 0, "{screen}");
    }
    // Without a terminal there is no bar, and nothing that moves a cursor.
    gate.open();
    let plain = cluster.sealift(&["backup", "run", "store-1/feed", "--wait"]).expect(0);
    assert!(!plain.stderr.contains('\r') && !plain.stderr.contains('\x1b'), "{:?}", plain.stderr);
}

#[test]
fn questions_are_asked_and_no_means_no() {
    let cluster = Cluster::dev();
    let _agent = cluster.agent("store-1", SOURCE);
    cluster.backup_ok("store-1/dump");
    let identity = cluster.identity.display().to_string();
    let target = cluster.scratch().join("restored");
    let to = target.display().to_string();
    let restore =
        sealift(&cluster, &["restore", "latest:store-1/dump", "--identity", &identity, "--to", &to]);
    for (answer, code) in [("n", 1), ("y", 0)] {
        let mut terminal = Terminal::start(&restore);
        terminal.wait_for("[y/N]");
        terminal.type_line(answer);
        let (exit, screen) = terminal.end();
        assert_eq!(exit, code, "{screen}");
        assert_eq!(target.exists(), code == 0, "{screen}");
    }
    let revoke = sealift(&cluster, &["agent", "revoke", "store-1", "--reason", "stolen"]);
    let mut terminal = Terminal::start(&revoke);
    terminal.wait_for("to go on:");
    terminal.type_line("yes");
    let (exit, screen) = terminal.end();
    assert_eq!(exit, 1, "{screen}");
    assert!(screen.contains("nothing was done"), "{screen}");
    assert_eq!(cluster.json(&["agent", "show", "store-1"])["state"], "active");
}
