//! The main job with PostgreSQL: dump, restore into a new server, and the two dumps are equal.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use sealift_tests::cluster::Cluster;
use sealift_tests::services::Postgres;
use sealift_tests::{assert_same_text, data};

/// A server full of what breaks naive tools.
fn nasty_server() -> Postgres {
    let server = Postgres::start();
    server.script("postgres", &data("nasty-roles.sql"));
    server.create_database("nasty");
    server.script("nasty", &data("nasty-postgres.sql"));
    server.create_database("Second \"one\"");
    server.sql("Second \"one\"", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
    server
}

fn source(server: &Postgres) -> String {
    format!("[[source]]\nname = \"main-db\"\nkind = \"postgres\"\nurl = {:?}\n", server.url(""))
}

#[test]
fn a_whole_server_comes_back_in_a_new_one() {
    let (server, cluster) = (nasty_server(), Cluster::dev());
    let password = [("DB_MAIN_DB_PASSWORD", server.password())];
    let _agent = cluster.agent_with("store-1", &source(&server), &password, None);

    let first = cluster.backup_ok("store-1/main-db");
    assert_eq!(first["status"], "complete", "{first:#}");
    let raw = first["raw_bytes"].as_u64().unwrap();
    let second = cluster.backup_ok("store-1/main-db");
    let new = second["new_raw_bytes"].as_u64().unwrap();
    assert!(new * 4 < raw, "the second backup sent {new} of {raw} bytes anew");

    let target = Postgres::start();
    let password_file = cluster.scratch().file("target-password", target.password(), 0o600);
    let restored = cluster.sealift(&[
        "restore",
        "latest:store-1/main-db",
        "--identity",
        &cluster.identity.display().to_string(),
        "--into",
        &target.url(""),
        "--password-file",
        &password_file.display().to_string(),
        "--globals",
        "--yes",
    ]);
    restored.expect(0);
    for database in ["nasty", "Second \"one\""] {
        assert_same_text(&server.dump(database), &target.dump(database));
    }
    assert_same_text(&roles(&server), &roles(&target));
}

/// Globals without the superuser's own password, which differs between the servers.
fn roles(server: &Postgres) -> String {
    let globals = server.globals();
    globals.lines().filter(|line| !line.starts_with("ALTER ROLE postgres ")).collect::<Vec<_>>().join("\n")
}
