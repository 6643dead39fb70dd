//! MySQL and MariaDB as a source, against a real MariaDB server.
#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sealift_agent::source::{SourceError, whole_chain};
use sealift_tests::services::{MariaDb, MariaDbOptions};
use support::{Bench, attributes, wait_until};
use tokio_util::sync::CancellationToken;

const DATA: &str = include_str!("../../tests/data/nasty-mariadb.sql");

fn source(server: &MariaDb, extra: &str) -> String {
    let url = server.url("");
    format!("[[source]]\nname = \"my\"\nkind = \"mysql\"\nurl = {url:?}\npassword = \"${{MY}}\"\n{extra}\n")
}

fn bench(server: &MariaDb, extra: &str) -> Bench {
    Bench::with(&source(server, extra), &[("MY", server.password())])
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_on_a_new_server() {
    let (old, new) = (MariaDb::start(), MariaDb::start());
    // Not with a quote: mariadb-dump 10.11 itself then fails to find the database where it has events.
    let name = "so `nasty`/ünï";
    old.create_database(name);
    old.create_database("empty");
    old.script(name, DATA);
    old.sql("mysql", "CREATE ROLE seller");
    old.sql(
        "mysql",
        "CREATE USER 'till''s'@'10.%' IDENTIFIED BY 'kept as a hash' WITH MAX_USER_CONNECTIONS 3",
    );
    old.sql("mysql", "GRANT SELECT, INSERT ON empty.* TO seller; GRANT seller TO 'till''s'@'10.%'");

    let bench = bench(&old, "");
    let got = bench.run("my").await.unwrap();
    let stream = "db/so%20%60nasty%60%2F%C3%BCn%C3%AF.sql";
    assert_eq!(got.names(), ["users.sql", "db/empty.sql", stream]);
    assert_eq!(attributes(&got.get(stream).head)["database"], name);
    assert_eq!(attributes(&got.get("db/empty.sql").head)["character_set"], "utf8mb4");
    assert!(got.summary.server_version.contains("MariaDB") && got.summary.tool_version.contains("dump"));
    assert_eq!(bench.temp_files(), Vec::<String>::new());

    let text = |name: &str| String::from_utf8(got.stream(name).to_vec()).unwrap();
    new.script("mysql", &text("users.sql"));
    new.create_database(name);
    new.script(name, &text(stream));
    assert_eq!(new.dump(name), old.dump(name));
    let grants =
        |server: &MariaDb| server.sql("mysql", "SHOW GRANTS FOR 'till''s'@'10.%'; SHOW GRANTS FOR seller");
    assert_eq!(grants(&new), grants(&old));
    // The same bytes again: that is what deduplicates.
    let again = bench.run("my").await.unwrap();
    assert!(again.stream(stream) == got.stream(stream));
    // The new server still has its own accounts.
    assert_eq!(new.sql("mysql", "SELECT 1"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_transactions_are_named() {
    let server = MariaDb::start();
    server.create_database("shop");
    server.create_database("other");
    server.script(
        "shop",
        "CREATE TABLE safe (a INT); CREATE TABLE isam (a INT) ENGINE=MyISAM; CREATE TABLE crash (a INT) ENGINE=Aria;
         CREATE TABLE mem (a INT) ENGINE=MEMORY; 
         CREATE TABLE merged (a INT) ENGINE=MERGE UNION=(isam); CREATE VIEW v AS SELECT * FROM isam;
         CREATE SEQUENCE s ENGINE=InnoDB; INSERT INTO isam VALUES (42);",
    );
    let got = bench(&server, "").run("my").await.unwrap();
    let mut named: Vec<_> = got.warnings.iter().map(|warning| warning.item.as_str()).collect();
    named.sort_unstable();
    assert_eq!(
        named,
        ["table shop.crash", "table shop.isam", "table shop.mem", "table shop.merged"],
        "{:?}",
        got.warnings
    );
    assert_eq!((got.get("db/shop.sql").ended, got.get("db/other.sql").ended), (Some(true), Some(false)));
    assert!(String::from_utf8_lossy(got.stream("db/shop.sql")).contains("(42)"));
    let check = bench(&server, "").test("my").await;
    assert!(!check.ok && check.detail.contains("shop.isam"), "{check:?}");
    assert!(bench(&server, "databases = [\"other\"]").test("my").await.ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn history_of_versioned_tables_comes_back() {
    let (old, new) = (MariaDb::start(), MariaDb::start());
    old.create_database("shop");
    old.script(
        "shop",
        "CREATE TABLE t (a INT PRIMARY KEY, b TEXT) WITH SYSTEM VERSIONING; INSERT INTO t VALUES (1, 'old');
         UPDATE t SET b = 'new'; DELETE FROM t WHERE a = 1; INSERT INTO t VALUES (2, 'x');",
    );
    let got = bench(&old, "databases = [\"shop\"]").run("my").await.unwrap();
    new.create_database("shop");
    new.script("shop", std::str::from_utf8(got.stream("db/shop.sql")).unwrap());
    let history = "SELECT a, b, ROW_START, ROW_END FROM t FOR SYSTEM_TIME ALL ORDER BY 1, 2";
    assert_eq!(old.sql("shop", history).lines().count(), 3);
    assert_eq!(new.sql("shop", history), old.sql("shop", history));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_least_privileged_user_is_enough() {
    let server = MariaDb::start();
    server.create_database("shop");
    server.script("shop", DATA);
    server.sql("mysql", "CREATE USER backup@'127.0.0.1' IDENTIFIED BY 'bp'");
    let grant = "GRANT SELECT, SHOW VIEW, EVENT, LOCK TABLES, PROCESS ON *.* TO backup@'127.0.0.1'";
    server.sql("mysql", grant);
    let url = server.url("").replace("root@", "backup@");
    let text = format!("[[source]]\nname = \"my\"\nkind = \"mysql\"\nurl = {url:?}\n");
    let bench = Bench::with(&text, &[("DB_0_PASSWORD", "bp")]);
    let got = bench.run("my").await.unwrap();
    assert!(
        got.warnings.iter().any(|warning| warning.problem.contains("GRANT TRIGGER")),
        "{:?}",
        got.warnings
    );
    assert!(!bench.test("my").await.ok);
    server.sql("mysql", "GRANT TRIGGER ON *.* TO backup@'127.0.0.1'");
    let got = bench.run("my").await.unwrap();
    assert!(
        !got.warnings.iter().any(|warning| warning.problem.contains("GRANT TRIGGER")),
        "{:?}",
        got.warnings
    );
    // Everything that root sees, but for comments that name the session.
    assert_eq!(
        String::from_utf8_lossy(got.stream("db/shop.sql")).matches("CREATE DEFINER").count(),
        server.dump("shop").matches("CREATE DEFINER").count()
    );
    server.sql("mysql", "REVOKE SELECT ON *.* FROM backup@'127.0.0.1'");
    server.sql("mysql", "GRANT SELECT ON shop.* TO backup@'127.0.0.1'");
    let got = bench.run("my").await;
    match got {
        Ok(got) => assert_eq!(got.summary.attributes["users"], "omitted"),
        // Without SELECT on mysql.proc the routines cannot be read: no backup, and it says why.
        Err(error) => assert!(error.to_string().contains("privileges"), "{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_users_own_option_file_is_read() {
    let server = MariaDb::start();
    server.create_database("shop");
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("my.cnf");
    fs::write(&own, format!("[client]\nuser=root\npassword={}\nhost=192.0.2.1\n", server.password()))
        .unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();
    let url = format!("mysql://localhost/?socket={}", server.socket().display());
    let text = format!(
        "[[source]]\nname = \"my\"\nkind = \"mysql\"\nurl = {url:?}\nconfig_file = {own:?}\nusers = false\ndatabases = [\"shop\"]\n"
    );
    let bench = Bench::new(&text);
    let got = bench.run("my").await;
    assert_eq!(got.unwrap().names(), ["db/shop.sql"]);
    let origins = bench.config.source("my").unwrap().credential_origins(&bench.env.environment);
    assert_eq!(origins, [format!("file:{}", own.display())]);
    fs::set_permissions(&own, fs::Permissions::from_mode(0o644)).unwrap();
    let error = whole_chain(&bench.run("my").await.unwrap_err());
    assert!(error.contains("chmod 0600") && error.contains("my.cnf"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_passwords_work_and_wrong_ones_are_not_repeated() {
    let server = MariaDb::start();
    let odd = r#"a"b\c#d'e;f = [client] ü"#;
    let sql = format!(
        "CREATE USER odd@'127.0.0.1' IDENTIFIED BY '{}'",
        odd.replace('\\', "\\\\").replace('\'', "''")
    );
    server.sql("mysql", &sql);
    server.sql("mysql", "GRANT ALL ON *.* TO odd@'127.0.0.1'; CREATE DATABASE x");
    let text = source(&server, "").replace("root@", "odd@");
    assert!(Bench::with(&text, &[("MY", odd)]).run("my").await.is_ok());
    let error = Bench::with(&text, &[("MY", "planted-wrong-secret")]).run("my").await.unwrap_err();
    assert!(error.to_string().contains("Access denied") && !error.is_retryable(), "{error}");
    assert!(!format!("{error:?}").contains("planted-wrong-secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_runs_no_secret_shows_and_cancelling_leaves_nothing() {
    let server = MariaDb::start();
    server.create_database("shop");
    server.sql("shop", "CREATE TABLE t (a INT)");
    // A table that mariadb-dump cannot get at, because somebody holds it.
    let mut holder = server.client("mariadb");
    holder.args(["-e", "LOCK TABLES t WRITE; SELECT SLEEP(600)", "shop"]);
    let mut holder = holder.stdout(std::process::Stdio::null()).spawn().unwrap();
    let held = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT SLEEP%'";
    wait_until("the table is locked", || server.sql("mysql", held) == "1").await;
    let bench = bench(&server, "databases = [\"shop\"]\nusers = false");
    let cancel = CancellationToken::new();
    let waits =
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE LIKE 'Waiting for table metadata%'";
    let (outcome, seen) = tokio::join!(bench.run_until("my", cancel.clone()), async {
        wait_until("the dump waits for the lock", || server.sql("mysql", waits) == "1").await;
        let seen = support::children_of_this_process("dump");
        let files = bench.temp_files();
        cancel.cancel();
        (seen, files)
    });
    assert!(matches!(outcome, Err(SourceError::Cancelled)));
    let (tools, files) = seen;
    assert!(!tools.is_empty() && files.len() == 1);
    for (pid, command_line, environment) in tools {
        assert!(
            command_line.split(' ').nth(1).unwrap().starts_with("--defaults-extra-file="),
            "{command_line}"
        );
        assert!(!command_line.contains(server.password()) && !environment.contains(server.password()));
        wait_until("the tool is gone", || !support::is_alive(pid)).await;
    }
    assert_eq!(bench.temp_files(), Vec::<String>::new());
    let _ = holder.kill();
    let _ = holder.wait();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_dies_half_way_is_no_backup() {
    let server = MariaDb::start();
    server.create_database("shop");
    server.sql("shop", "CREATE TABLE a AS SELECT seq, REPEAT('x', 1000) FROM mysql.seq_1_to_5000");
    // A view on what is gone: the dump fails once it gets there.
    server.sql("shop", "CREATE TABLE gone (a INT); CREATE VIEW v AS SELECT * FROM gone; DROP TABLE gone");
    let (events, outcome) = bench(&server, "databases = [\"shop\"]\nusers = false").run_all("my").await;
    let error = outcome.unwrap_err();
    assert!(error.stderr().contains("`v`") || error.stderr().contains("shop.v"), "{error:?}");
    assert_eq!(events.get("db/shop.sql").ended, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_checked_as_asked() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path
    };
    let (cert, key) =
        (file("cert.pem", certified.cert.pem()), file("key.pem", certified.signing_key.serialize_pem()));
    let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let server = MariaDb::start_with(MariaDbOptions {
        arguments: vec![
            option("ssl-cert", &cert),
            option("ssl-key", &key),
            "--require-secure-transport=ON".to_owned(),
        ],
    });
    let with = |host: &str, tls: &str| {
        let text = source(&server, &format!("users = false\ndatabases = [\"mysql\"]\ntls = {tls}"));
        Bench::with(&text.replace("127.0.0.1", host), &[("MY", server.password())])
    };
    let own_ca = format!("{{ mode = \"verify-full\", ca = {cert:?} }}");
    assert!(with("localhost", &own_ca).run("my").await.is_ok());
    assert!(with("127.0.0.1", "{ mode = \"require\" }").run("my").await.is_ok());
    for (host, tls) in [
        ("127.0.0.1", own_ca.as_str()),
        ("localhost", "{ mode = \"verify-full\" }"),
        ("localhost", "{ mode = \"disable\" }"),
    ] {
        let error = with(host, tls).run("my").await.unwrap_err();
        assert!(matches!(error, SourceError::ToolFailed { .. }), "{error:?}");
    }
}
