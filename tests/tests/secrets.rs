//! No password, token or key in any log, error, process list, audit row or database cell of a whole run.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sealift_tests::cluster::Cluster;
use sealift_tests::services::{MariaDb, Postgres, new_password};

/// What every process of the machine shows in its command line, gathered while a run is under way.
fn watch_command_lines(stop: &AtomicBool) -> String {
    let mut seen = std::collections::BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            seen.insert(String::from_utf8_lossy(&line).into_owned());
        }
    }
    seen.into_iter().collect::<Vec<_>>().join("\n")
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(dir).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries
        .into_iter()
        .map(|entry| entry.path())
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect()
}

#[test]
fn planted_secrets_show_nowhere() {
    let (postgres, mariadb) = (Postgres::start(), MariaDb::start());
    postgres.create_database("shop");
    postgres.sql("shop", "CREATE TABLE t AS SELECT generate_series(1, 100) AS i");
    mariadb.create_database("shop");
    let cluster = Cluster::dev();
    let (router_token, wrong_password) = (new_password(), new_password());
    let script =
        cluster.scratch().file("router", "#!/bin/sh\necho config; test -n \"$ROUTER_TOKEN\"\n", 0o700);
    let failing =
        cluster.scratch().file("failing", "#!/bin/sh\necho \"token was $ROUTER_TOKEN\" >&2; exit 1\n", 0o700);
    let secret_file = cluster.scratch().file("router-token", &router_token, 0o600);
    let command = |name: &str, script: &Path| {
        format!(
            "[[source]]\nname = {name:?}\nkind = \"command\"\ncommand = [{:?}]\nenv = {{ ROUTER_TOKEN = \"file:{}\" }}\n",
            script.display().to_string(),
            secret_file.display()
        )
    };
    let sources = [
        format!("[[source]]\nname = \"main-db\"\nkind = \"postgres\"\nurl = {:?}\n", postgres.url("")),
        format!("[[source]]\nname = \"shop\"\nkind = \"mysql\"\nurl = {:?}\n", mariadb.url("")),
        format!("[[source]]\nname = \"locked\"\nkind = \"postgres\"\nurl = {:?}\n", postgres.url("")),
        command("router", &script),
        command("failing", &failing),
    ];
    let variables = [
        ("DB_MAIN_DB_PASSWORD", postgres.password()),
        ("DB_SHOP_PASSWORD", mariadb.password()),
        ("DB_LOCKED_PASSWORD", wrong_password.as_str()),
    ];
    let stop = AtomicBool::new(false);
    let mut said = String::new();
    let mut agent = None;
    let command_lines = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_command_lines(&stop));
        let running = cluster.agent_with("store-1", &sources.join("\n"), &variables, None);
        for source in ["main-db", "shop", "router", "failing", "locked"] {
            let name = format!("store-1/{source}");
            let answer = cluster.sealift(&["backup", "run", &name, "--wait"]);
            assert_eq!(
                answer.code == 0,
                !["failing", "locked"].contains(&source),
                "{source}: {}",
                answer.stderr
            );
            said += &(answer.text() + &answer.stderr);
        }
        agent = Some(running);
        for arguments in [
            &["audit", "list"][..],
            &["run", "list"],
            &["source", "list"],
            &["token", "list"],
            &["agent", "list"],
        ] {
            said += &cluster.sealift(&[&["--output", "json"], arguments].concat()).expect(0).text();
        }
        for run in cluster.json(&["run", "list"]).as_array().unwrap() {
            said += &cluster.run(run["id"].as_str().unwrap()).to_string();
        }
        stop.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    let agent = agent.unwrap();

    let mut secrets = BTreeMap::from([
        ("password of PostgreSQL", postgres.password().to_owned()),
        ("password of MariaDB", mariadb.password().to_owned()),
        ("wrong password", wrong_password.clone()),
        ("environment of a command", router_token),
        ("identity", key_of(&cluster.identity)),
        ("root key", key_of(&cluster.data_dir().join("root.key"))),
        ("S3 secret key", cluster.s3().secret_key),
        ("enrolment token", std::fs::read_to_string(agent.dir().join("token")).unwrap()),
    ]);
    secrets.retain(|_, secret| !secret.trim().is_empty());
    assert_eq!(secrets.len(), 8);

    // Where each may lie: the files that are there to hold it.
    let mut places: Vec<(String, Vec<u8>)> = vec![
        ("command lines".to_owned(), command_lines.into_bytes()),
        ("what sealift printed".to_owned(), said.into_bytes()),
        ("log of the coordinator".to_owned(), cluster.coordinator_log().into_bytes()),
        ("log of the agent".to_owned(), agent.log().into_bytes()),
    ];
    let holders = ["root.key", "s3.env", "token", "agent.toml"];
    for path in files_below(&cluster.data_dir()).into_iter().chain(files_below(agent.dir())) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !holders.contains(&name.as_str()) {
            places.push((path.display().to_string(), std::fs::read(&path).unwrap_or_default()));
        }
    }
    assert!(places.iter().any(|(name, _)| name.ends_with("coordinator.db")), "the database was looked at");
    for (what, secret) in &secrets {
        for (place, bytes) in &places {
            let found = contains(bytes, secret.trim().as_bytes());
            assert!(!found, "{what} lies in {place}");
        }
    }
}

/// The key itself, without comments and labels.
fn key_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| !line.starts_with('#') && !line.trim().is_empty()).unwrap();
    line.rsplit(':').next().unwrap().to_owned()
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}
