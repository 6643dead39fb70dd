//! The main job with SQLite, while an application keeps writing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use sealift_tests::cluster::Cluster;
use sealift_tests::scratch::Scratch;
use sealift_tests::sqlite::{Pace, Till, assert_consistent};

fn source(till: &Till) -> String {
    format!(
        "[[source]]\nname = \"till\"\nkind = \"sqlite\"\npath = {:?}\n",
        till.path().display().to_string()
    )
}

/// Backs up while a till floods the database with transactions, and restores in all three ways.
fn comes_back_whole(journal_mode: &str) {
    let (scratch, cluster) = (Scratch::new("till"), Cluster::dev());
    let till = Till::open(&scratch.join("till.db"), journal_mode, 20 << 20, Pace::Flood);
    let _agent = cluster.agent("store-1", &source(&till));
    let mut seen = 0;
    for attempt in 0..3 {
        till.wait_for_commits(50);
        let before = till.commits();
        let backup = cluster.backup_ok("store-1/till");
        let after = till.commits();
        assert_eq!(backup["status"], "complete", "{backup:#}");
        let id = backup["id"].as_str().unwrap();
        let directory = cluster.restore(id, &format!("restored-{attempt}"));
        let copy = only_file(&directory);
        let commits = assert_consistent(&copy);
        // The till counts a commit a moment after it happened.
        assert!((before..=after + 1).contains(&commits), "{commits} transactions, not {before} to {after}");
        assert!(commits > seen, "no transaction since the backup before");
        seen = commits;
    }

    let into = scratch.join("into.db");
    let url = format!("sqlite://{}", into.display());
    let identity = cluster.identity.display().to_string();
    cluster
        .sealift(&["restore", "latest:store-1/till", "--identity", &identity, "--into", &url, "--yes"])
        .expect(0);
    assert_eq!(assert_consistent(&into), seen);
    till.stop();
}

fn only_file(directory: &std::path::Path) -> std::path::PathBuf {
    let mut files: Vec<_> = walk(directory);
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).expect("directory").map(|entry| entry.expect("entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn in_wal_mode() {
    comes_back_whole("WAL");
}

#[test]
fn with_a_rollback_journal() {
    comes_back_whole("DELETE");
}
