//! The main job with MariaDB: dump, restore into a new server, and the two dumps are equal.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use sealift_tests::cluster::Cluster;
use sealift_tests::services::MariaDb;
use sealift_tests::{assert_same_text, data};

fn nasty_server() -> MariaDb {
    let server = MariaDb::start();
    server.create_database("nasty");
    server.script("nasty", &data("nasty-mariadb.sql"));
    server.create_database("sec`ond");
    server.sql("sec`ond", "CREATE TABLE t (i INT PRIMARY KEY); INSERT INTO t SELECT seq FROM seq_1_to_1000");
    server
}

fn source(server: &MariaDb) -> String {
    format!("[[source]]\nname = \"shop\"\nkind = \"mysql\"\nurl = {:?}\n", server.url(""))
}

#[test]
fn a_whole_server_comes_back_in_a_new_one() {
    let (server, cluster) = (nasty_server(), Cluster::dev());
    let _agent =
        cluster.agent_with("store-1", &source(&server), &[("DB_0_PASSWORD", server.password())], None);

    let first = cluster.backup_ok("store-1/shop");
    assert_eq!(first["status"], "complete", "{first:#}");
    let second = cluster.backup_ok("store-1/shop");
    let (raw, new) = (first["raw_bytes"].as_u64().unwrap(), second["new_raw_bytes"].as_u64().unwrap());
    assert!(new * 4 < raw, "the second backup sent {new} of {raw} bytes anew");

    let target = MariaDb::start();
    let password_file = cluster.scratch().file("target-password", target.password(), 0o600);
    let restored = cluster.sealift(&[
        "restore",
        "latest:store-1/shop",
        "--identity",
        &cluster.identity.display().to_string(),
        "--into",
        &target.url(""),
        "--password-file",
        &password_file.display().to_string(),
        "--yes",
    ]);
    restored.expect(0);
    for database in ["nasty", "sec`ond"] {
        assert_same_text(&server.dump(database), &target.dump(database));
    }
}

#[test]
fn tables_without_transactions_make_it_partial_and_are_named() {
    let (server, cluster) = (MariaDb::start(), Cluster::dev());
    server.create_database("old");
    server.script("old", "CREATE TABLE slips (i INT) ENGINE = MyISAM;\nINSERT INTO slips VALUES (1);");
    server.script(
        "old",
        "CREATE TABLE pages (i INT) ENGINE = Aria;\nCREATE TABLE safe (i INT) ENGINE = InnoDB;",
    );
    let _agent =
        cluster.agent_with("store-1", &source(&server), &[("DB_SHOP_PASSWORD", server.password())], None);

    let (run, code) = cluster.backup("store-1/shop");
    assert_eq!((code, run["state"].as_str()), (3, Some("partial")), "{run:#}");
    let backup = cluster.json(&["backup", "show", "latest:store-1/shop"]);
    let warnings = backup["warnings"].to_string();
    assert!(warnings.contains("slips") && warnings.contains("pages"), "{warnings}");
    assert!(!warnings.contains("safe"), "{warnings}");
}
