//! Harness of the end-to-end tests: real servers in private temporary instances, real binaries, faults on demand.
//!
//! | module | what it is for |
//! |---|---|
//! | [`cluster`] | a coordinator, agents and the command-line tool, as users run them |
//! | [`agent`] | one host of the fleet |
//! | [`generated`] | a fleet's history straight into a database: 10,000 hosts, 1,000,000 backups |
//! | [`simulated`] | thousands of hosts in one process, real but for their dumps |
//! | [`services`] | PostgreSQL, MariaDB and S3 servers that live as long as a test |
//! | [`process`] | child processes that die with the test, and their logs |
//! | [`network`] | slow lines, proxies, TLS in front of plain servers |
//! | [`gateway`] | a gateway before an S3 server that refuses, loses, or demands certificates |
//! | [`measure`] | time and memory of processes, for the benchmarks |
//! | [`scratch`] | temporary directories: removed on success, kept and named on failure |
//! | [`faults`] | moments to kill something at, and objects that are not what they were |
//! | [`stage`] | a fleet whose bucket somebody else holds |
//! | [`terminal`] | a command on a terminal that the test reads and types on |
//! | [`tree`] | directories with every oddity, and comparing two |
//! | [`sqlite`] | an application that keeps writing to SQLite |
//! | [`wait`] | waiting for states, with a limit and a reason |
//!
//! A harness reports by panicking: a server that is not installed fails the test and says what to install, nothing is
//! skipped. Start servers from the test's own body (not from a destructor), and keep the handle: dropping it ends them.
//!
//! This crate depends on no program of the workspace (on `common` and `proto` alone), so that their own tests may depend
//! on it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, clippy::print_stdout)]

pub mod agent;
pub mod cluster;
pub mod faults;
pub mod gateway;
pub mod generated;
pub mod measure;
pub mod network;
pub mod process;
pub mod scratch;
pub mod services;
pub mod simulated;
pub mod sqlite;
pub mod stage;
pub mod terminal;
pub mod tree;
pub mod wait;

use std::path::PathBuf;

/// The project's top folder.
pub fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

/// The target directory that this test was built in (`target`, or what `CARGO_TARGET_DIR` says).
pub fn target_dir() -> PathBuf {
    // target/<profile>/deps/<test>
    let test = std::env::current_exe().expect("path of this test");
    test.ancestors().nth(3).expect("a test lies in target/<profile>/deps").to_owned()
}

/// A program from the Python environment that `make test` keeps in the target directory: `python`, `rclone`.
#[track_caller]
pub fn tool(name: &str) -> PathBuf {
    let path = target_dir().join("venv/bin").join(name);
    assert!(path.exists(), "this test needs {}: run `make deps` once (make test does)", path.display());
    path
}

/// A program of this workspace, as built beside this test.
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    let path = test.ancestors().nth(2).expect("a test lies in target/<profile>/deps").join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace --bins` first (make test does)",
        path.display()
    );
    path
}

/// A file of `tests/data`.
#[track_caller]
pub fn data(name: &str) -> String {
    let path = workspace().join("tests/data").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Panics with the first line that differs: the whole of two dumps is too much to read.
#[track_caller]
pub fn assert_same_text(expected: &str, found: &str) {
    let shown = |line: &str| line.chars().take(300).collect::<String>();
    let first = expected.lines().zip(found.lines()).enumerate().find(|(_, (a, b))| a != b);
    if let Some((n, (a, b))) = first {
        panic!("line {} differs\nexpected {}\nfound    {}", n + 1, shown(a), shown(b));
    }
    assert_eq!(expected.lines().count(), found.lines().count(), "one text is longer");
}
