//! The harness itself: each server starts, answers, and is gone when its handle is.
#![allow(clippy::expect_used)]

use sealift_tests::services::{MariaDb, Postgres, S3};
use sealift_tests::sqlite::{Pace, Till, assert_consistent};
use sealift_tests::tree;

#[test]
fn postgres_answers_and_ends() {
    let mut server = Postgres::start();
    server.create_database("shop");
    server.script("shop", "CREATE TABLE t (a int);\nINSERT INTO t SELECT generate_series(1, 10);");
    assert_eq!(server.sql("shop", "SELECT sum(a) FROM t"), "55");
    assert!(server.dump("shop").contains("COPY public.t"));
    let pid = server.process().pid();
    drop(server);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn mariadb_answers() {
    let server = MariaDb::start();
    server.create_database("shop");
    server.script("shop", "CREATE TABLE t (a int);\nINSERT INTO t VALUES (1), (2);");
    assert_eq!(server.sql("shop", "SELECT sum(a) FROM t"), "3");
    assert!(server.dump("shop").contains("INSERT INTO"));
}

#[test]
fn rgw_is_shared_and_each_test_has_a_bucket() {
    let (one, other) = (S3::rgw(), S3::rgw());
    assert_eq!(one.endpoint, other.endpoint);
    assert_ne!(one.bucket, other.bucket);
    keeps_objects(&one);
    assert!(other.list().is_empty());
}

#[test]
fn rclone_keeps_objects() {
    keeps_objects(&S3::rclone());
}

fn keeps_objects(s3: &S3) {
    let scratch = sealift_tests::scratch::Scratch::new("objects");
    let (from, to) = (scratch.file("from", b"some bytes", 0o600), scratch.join("to"));
    s3.put("a/b", &from);
    assert_eq!(s3.list(), ["a/b"]);
    s3.get("a/b", &to);
    assert_eq!(std::fs::read(to).expect("copy"), b"some bytes");
    s3.delete("a/b");
    assert!(s3.list().is_empty());
}

#[test]
fn trees_differ_where_they_should() {
    let scratch = sealift_tests::scratch::Scratch::new("tree");
    let (one, two) = (scratch.private_dir("one"), scratch.private_dir("two"));
    tree::make_oddities(&one);
    let mut copy = std::process::Command::new("cp");
    copy.arg("-a").arg(one.join(".")).arg(&two);
    sealift_tests::process::run(copy);
    tree::assert_equal(&tree::read(&one), &tree::read(&two));
    std::fs::remove_file(two.join("zz-linked")).expect("remove");
    std::fs::copy(two.join("linked"), two.join("zz-linked")).expect("copy");
    assert_ne!(tree::read(&one), tree::read(&two), "a copy is not a hard link");
}

#[test]
fn a_torn_copy_of_a_till_is_noticed() {
    let scratch = sealift_tests::scratch::Scratch::new("till");
    let till = Till::open(&scratch.join("till.db"), "WAL", 1 << 20, Pace::Flood);
    till.wait_for_commits(50);
    let commits = till.stop().len();
    assert_eq!(assert_consistent(&scratch.join("till.db")), commits as u64);
    let connection = rusqlite::Connection::open(scratch.join("till.db")).expect("open");
    connection.execute("DELETE FROM entries WHERE n = 7 AND amount < 0", []).expect("delete");
    drop(connection);
    let torn = std::panic::catch_unwind(|| assert_consistent(&scratch.join("till.db")));
    assert!(torn.is_err());
}
