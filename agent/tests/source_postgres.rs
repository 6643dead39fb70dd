//! PostgreSQL as a source, against a real server.
#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod support;

use std::fs;
use std::process::Command;

use sealift_agent::source::SourceError;
use sealift_tests::services::{Postgres, PostgresOptions};
use support::{Bench, attributes, wait_until};
use tokio_util::sync::CancellationToken;

const DATA: &str = include_str!("../../tests/data/nasty-postgres.sql");
const ROLES: &str = include_str!("../../tests/data/nasty-roles.sql");

fn source(server: &Postgres, extra: &str) -> String {
    let url = server.url("postgres");
    format!(
        "[[source]]\nname = \"pg\"\nkind = \"postgres\"\nurl = {url:?}\npassword = \"${{PG}}\"\n{extra}\n"
    )
}

fn bench(server: &Postgres, extra: &str) -> Bench {
    Bench::with(&source(server, extra), &[("PG", server.password())])
}

/// Everything that tells two servers' databases apart, in a comparable form.
fn whole(server: &Postgres, database: &str) -> String {
    format!("{}\n{}", without_superuser(&server.globals()), server.dump(database))
}

fn without_superuser(globals: &str) -> String {
    let lines = globals.lines().filter(|line| !line.contains("ROLE postgres"));
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_on_a_new_server() {
    let (old, new) = (Postgres::start(), Postgres::start());
    old.script("postgres", ROLES);
    let name = "it's a \"nasty\" name/..";
    old.create_database(name);
    old.create_database("empty");
    old.script(name, DATA);
    let quoted = name.replace('"', "\"\"");
    old.sql("postgres", &format!("ALTER DATABASE \"{quoted}\" SET work_mem = '5MB'"));
    old.sql("postgres", &format!("COMMENT ON DATABASE \"{quoted}\" IS 'two\nlines'"));
    old.sql("postgres", &format!("GRANT TEMPORARY ON DATABASE \"{quoted}\" TO till_reader"));

    let bench = bench(&old, "");
    let got = bench.run("pg").await.unwrap();
    assert!(got.warnings.is_empty(), "{:?}", got.warnings);
    let stream = "db/it%27s%20a%20%22nasty%22%20name%2F...sql";
    assert_eq!(
        got.names(),
        [
            "globals.sql",
            "db/empty.create.sql",
            "db/empty.sql",
            &stream.replace(".sql", ".create.sql"),
            stream,
            "db/postgres.create.sql",
            "db/postgres.sql",
        ]
    );
    let head = attributes(&got.get(stream).head);
    assert_eq!((head["database"], head["encoding"], head["format"]), (name, "UTF8", "sql"));
    assert!(got.summary.server_version.starts_with(&old.sql("postgres", "SHOW server_version")[..2]));
    assert_eq!(bench.temp_files(), Vec::<String>::new());

    let text = |name: &str| String::from_utf8(got.stream(name).to_vec()).unwrap();
    // The new server has its own superuser, with a password of its own.
    let globals = without_superuser(&text("globals.sql"));
    new.script("postgres", &globals);
    new.script("postgres", &text(&stream.replace(".sql", ".create.sql")));
    new.script(name, &text(stream));
    assert_eq!(whole(&new, name), whole(&old, name));
    let settings = "SELECT array_agg(setconfig::text ORDER BY setrole), shobj_description(d.oid, 'pg_database'), datacl \
        FROM pg_database d LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid WHERE datname LIKE 'it%' GROUP BY d.oid";
    assert_eq!(new.sql("postgres", settings), old.sql("postgres", settings));
    // Into a database of another name too.
    new.create_database("other");
    new.script("other", &text(stream));
    assert_eq!(new.dump("other"), old.dump(name));

    // The same bytes again, but for the token that pg_dump draws: that is what deduplicates.
    let again = bench.run("pg").await.unwrap();
    let stable = |events: &support::Events| {
        let text = String::from_utf8(events.stream(stream).to_vec()).unwrap();
        text.lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(stable(&again), stable(&got));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_least_privileged_role_is_enough_and_what_it_may_not_read_is_named() {
    let server = Postgres::start();
    server.sql("postgres", "CREATE ROLE backup LOGIN PASSWORD 'bp'");
    server.sql("postgres", "GRANT pg_read_all_data TO backup");
    server.create_database("shop");
    server.create_database("closed");
    server.sql("postgres", "REVOKE CONNECT ON DATABASE closed FROM PUBLIC");
    server.sql("shop", "CREATE TABLE t AS SELECT generate_series(1, 9) AS a");
    let url = server.url("").replace("postgres@", "backup@");
    let text = format!("[[source]]\nname = \"pg\"\nkind = \"postgres\"\nurl = {url:?}\n");
    let bench = Bench::with(&text, &[("DB_PG_PASSWORD", "bp")]);
    let got = bench.run("pg").await.unwrap();
    assert_eq!(
        got.names(),
        ["globals.sql", "db/postgres.create.sql", "db/postgres.sql", "db/shop.create.sql", "db/shop.sql",]
    );
    assert_eq!(got.warnings.len(), 1);
    assert!(got.warnings[0].item.contains("closed") && got.warnings[0].problem.contains("GRANT CONNECT"));
    // pg_read_all_data reads pg_authid too.
    assert_eq!(got.summary.attributes["role_passwords"], "included");
    let check = bench.test("pg").await;
    assert!(!check.ok && check.detail.contains("closed"), "{check:?}");

    server.sql("postgres", "REVOKE pg_read_all_data FROM backup");
    let error = bench.run("pg").await.unwrap_err();
    assert!(error.stderr().contains("permission denied") && !error.is_retryable(), "{error:?}");
    let check = bench.test("pg").await;
    assert!(!check.ok && check.detail.contains("public.t"), "{check:?}");

    server.sql("shop", "GRANT SELECT ON t TO backup");
    let got = bench.run("pg").await.unwrap();
    assert_eq!(got.summary.attributes["role_passwords"], "omitted");
    assert!(got.stream("db/shop.sql").windows(6).any(|bytes| bytes == b"1\n2\n3\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn chosen_databases_must_be_there() {
    let server = Postgres::start();
    server.create_database("a");
    server.create_database("b");
    let got = bench(&server, "databases = [\"b\"]\nglobals = false").run("pg").await.unwrap();
    assert_eq!(got.names(), ["db/b.create.sql", "db/b.sql"]);
    let got =
        bench(&server, "exclude_databases = [\"a\", \"postgres\"]\nglobals = false").run("pg").await.unwrap();
    assert_eq!(got.names(), ["db/b.create.sql", "db/b.sql"]);
    let error = bench(&server, "databases = [\"b\", \"gone\"]").run("pg").await.unwrap_err();
    assert!(error.to_string().contains("\"gone\"") && error.to_string().contains("a, b"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_once_and_not_repeated() {
    let server = Postgres::start();
    let bench = Bench::with(&source(&server, ""), &[("PG", "planted-wrong-secret")]);
    let error = bench.run("pg").await.unwrap_err();
    assert!(error.to_string().contains("password authentication failed"), "{error}");
    assert!(!error.is_retryable() && !format!("{error:?}").contains("planted-wrong-secret"));
    assert!(!bench.test("pg").await.ok);
    assert_eq!(bench.temp_files(), Vec::<String>::new());
    let error = Bench::new(&source(&server, "")).run("pg").await.unwrap_err();
    assert!(sealift_agent::source::whole_chain(&error).contains("env:PG"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let port = sealift_tests::services::free_port();
    let text =
        format!("[[source]]\nname = \"pg\"\nkind = \"postgres\"\nurl = \"postgres://x@127.0.0.1:{port}/\"\n");
    let error = Bench::new(&text).run("pg").await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains(&port.to_string()), "{error}");
}

/// A table that `pg_dump` cannot get at, because somebody holds it: the dump hangs where we want it to.
struct Held {
    session: std::process::Child,
}

impl Held {
    fn lock(server: &Postgres, database: &str, table: &str) -> Self {
        let mut psql: Command = server.client("psql");
        psql.args(["-X", "-d", database, "-c"])
            .arg(format!("BEGIN; LOCK TABLE {table}; SELECT pg_sleep(600);"));
        Self { session: psql.stdout(std::process::Stdio::null()).spawn().unwrap() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.session.kill();
        let _ = self.session.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_runs_no_secret_shows_and_cancelling_leaves_nothing() {
    let server = Postgres::start();
    server.create_database("shop");
    server.sql("shop", "CREATE TABLE t (a int)");
    let held = Held::lock(&server, "shop", "t");
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
    let granted = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND granted";
    wait_until("the table is locked", || server.sql("shop", granted) == "1").await;
    let bench = bench(&server, "databases = [\"shop\"]");
    let cancel = CancellationToken::new();
    let (outcome, seen) = tokio::join!(bench.run_until("pg", cancel.clone()), async {
        wait_until("pg_dump waits for the lock", || server.sql("shop", locked) != "0").await;
        let seen = support::children_of_this_process("pg_dump");
        cancel.cancel();
        seen
    });
    assert!(matches!(outcome, Err(SourceError::Cancelled)));
    assert!(!seen.is_empty());
    for (pid, command_line, environment) in seen {
        for text in [&command_line, &environment] {
            assert!(!text.contains(server.password()), "{command_line}");
        }
        assert!(environment.contains("PGPASSFILE="));
        wait_until("the tool is gone", || !support::is_alive(pid)).await;
    }
    assert_eq!(bench.temp_files(), Vec::<String>::new());
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_whose_server_dies_is_no_backup() {
    let mut server = Postgres::start();
    server.create_database("shop");
    server.sql("shop", "CREATE TABLE a AS SELECT g, repeat('x', 1000) FROM generate_series(1, 5000) g");
    server.sql("shop", "CREATE TABLE t (a int)");
    let _held = Held::lock(&server, "shop", "t");
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
    let bench = bench(&server, "databases = [\"shop\"]\nglobals = false");
    let (outcome, ()) = tokio::join!(bench.run("pg"), async {
        wait_until("pg_dump waits for the lock", || server.sql("shop", locked) != "0").await;
        server.process().kill();
    });
    let error = outcome.unwrap_err();
    assert!(matches!(&error, SourceError::ToolFailed { tool, .. } if tool == "pg_dump"), "{error:?}");
    assert!(error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn old_tools_are_refused_with_what_to_install() {
    let server = Postgres::start();
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    // The real client to ask, beside a pg_dump that says it is of another age.
    std::os::unix::fs::symlink(Postgres::bin("psql"), dir.path().join("psql")).unwrap();
    script("pg_dump", "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n");
    let error = bench(&server, &format!("bin_dir = {:?}", dir.path())).run("pg").await.unwrap_err();
    assert!(
        matches!(&error, SourceError::ToolOutdated { tool_version, .. } if tool_version == "9.6.24"),
        "{error:?}"
    );
    let error = bench(&server, "bin_dir = \"/nonexistent\"").run("pg").await.unwrap_err();
    assert!(matches!(error, SourceError::ToolMissing { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_checked_as_asked() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let server = Postgres::start_with(PostgresOptions {
        settings: vec![("ssl".to_owned(), "on".to_owned())],
        hba: vec!["hostssl all all 127.0.0.1/32 scram-sha-256".to_owned(), "local all all reject".to_owned()],
        files: vec![
            ("server.crt".to_owned(), certified.cert.pem().into_bytes()),
            ("server.key".to_owned(), certified.signing_key.serialize_pem().into_bytes()),
        ],
    });
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    fs::write(&ca, certified.cert.pem()).unwrap();
    let with = |host: &str, tls: &str| {
        let text = source(&server, &format!("globals = false\ndatabases = [\"postgres\"]\ntls = {tls}"));
        Bench::with(&text.replace("127.0.0.1", host), &[("PG", server.password())])
    };
    let own_ca = |mode: &str| format!("{{ mode = \"{mode}\", ca = {ca:?} }}");
    assert!(with("localhost", &own_ca("verify-full")).run("pg").await.is_ok());
    assert!(with("127.0.0.1", &own_ca("verify-ca")).run("pg").await.is_ok());
    assert!(with("127.0.0.1", "{ mode = \"require\" }").run("pg").await.is_ok());
    for (host, tls) in [
        ("127.0.0.1", own_ca("verify-full")), // the name does not fit
        ("localhost", "{ mode = \"verify-full\" }".to_owned()), // the system knows no such CA
        ("localhost", "{ mode = \"disable\" }".to_owned()), // the server demands TLS
    ] {
        let error = with(host, &tls).run("pg").await.unwrap_err();
        assert!(matches!(error, SourceError::ToolFailed { .. }), "{error:?}");
    }
}
