//! SQLite as a source, while another process keeps writing.
#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use sealift_agent::source::SourceError;
use sealift_agent::source::sqlite::STREAM;
use sealift_tests::sqlite::{Pace, Till, assert_consistent};
use support::{Bench, Events, attributes, wait_until};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn source(path: &Path) -> String {
    format!("[[source]]\nname = \"s\"\nkind = \"sqlite\"\npath = {path:?}\n")
}

/// Writes what was backed up to a file, for a look.
fn restore(events: &Events) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("restored.db");
    fs::write(&path, events.stream(STREAM)).unwrap();
    (dir, path)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A till in a process of its own, as in a shop: locks within one process are another matter.
struct Shop {
    process: Child,
    ledger: PathBuf,
}

impl Shop {
    fn open(dir: &Path, journal_mode: &str, megabytes: usize, rate: u32) -> Self {
        let ledger = dir.join("commits.txt");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_till_in_a_process_of_its_own", "--ignored", "--nocapture"]);
        command.env("TILL", format!("{}|{journal_mode}|{megabytes}|{rate}", dir.join("till.db").display()));
        let process = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        Self { process, ledger }
    }

    fn commits(&self) -> u64 {
        fs::read_to_string(&self.ledger).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    async fn wait_for_commits(&self, more: u64) {
        let wanted = self.commits() + more;
        wait_until("the till commits", || self.commits() >= wanted).await;
    }

    /// Ends it as a customer would.
    fn close(mut self) -> String {
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success());
        fs::read_to_string(self.ledger.with_file_name("latencies.txt")).unwrap()
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "started by the other tests as a process of its own"]
fn a_till_in_a_process_of_its_own() {
    let what = std::env::var("TILL").expect("only the other tests start this");
    let [path, mode, megabytes, rate] = what.split('|').collect::<Vec<_>>().try_into().unwrap();
    let path = Path::new(path);
    let rate: u32 = rate.parse().unwrap();
    let pace = if rate == 0 { Pace::Flood } else { Pace::PerSecond(rate) };
    let till = Till::open(path, mode, megabytes.parse::<usize>().unwrap() << 20, pace);
    let (closing, closed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = closing.send(());
    });
    let ledger = path.with_file_name("commits.txt");
    while closed.recv_timeout(Duration::from_millis(5)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        let next = ledger.with_extension("next");
        fs::write(&next, till.commits().to_string()).unwrap();
        fs::rename(next, &ledger).unwrap();
    }
    let mut latencies = till.stop();
    latencies.sort();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let summary =
        format!("{} commits: p50 {:?}, p99 {:?}, max {:?}", latencies.len(), at(0.5), at(0.99), at(1.0));
    fs::write(path.with_file_name("latencies.txt"), summary).unwrap();
}

async fn copies_are_consistent_under(journal_mode: &str) {
    let dir = TempDir::new().unwrap();
    let shop = Shop::open(dir.path(), journal_mode, 30, 0);
    shop.wait_for_commits(20).await;
    let bench = Bench::new(&source(&dir.path().join("till.db")));
    for _ in 0..5 {
        let before = shop.commits();
        let got = bench.run("s").await.unwrap();
        let (_dir, restored) = restore(&got);
        assert!(assert_consistent(&restored) >= before);
        assert!(got.warnings.is_empty());
        assert_eq!(got.expected, Some(got.stream(STREAM).len() as u64));
        let head = attributes(&got.get(STREAM).head);
        assert_eq!(head["journal_mode"], if journal_mode == "wal" { "wal" } else { "rollback" });
        assert_eq!(head["file_name"], "till.db");
    }
    assert_eq!(bench.temp_files(), Vec::<String>::new());
    shop.wait_for_commits(1).await;
    shop.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_consistent_under_a_rollback_journal() {
    copies_are_consistent_under("delete").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_consistent_under_a_persistent_journal() {
    copies_are_consistent_under("persist").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_consistent_under_a_write_ahead_log() {
    copies_are_consistent_under("wal").await;
}

/// A directory source that reads the same files must not take the locks away (see `source::locks`).
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_backup_beside_it_does_no_harm() {
    for journal_mode in ["delete", "wal"] {
        let dir = TempDir::new().unwrap();
        let shop = Shop::open(dir.path(), journal_mode, 30, 0);
        shop.wait_for_commits(5).await;
        let directory = format!("[[source]]\nname = \"d\"\nkind = \"directory\"\npath = {:?}\n", dir.path());
        let bench = Bench::new(&(source(&dir.path().join("till.db")) + &directory));
        let both = async {
            for _ in 0..2 {
                let (_dir, restored) = restore(&bench.run("s").await.unwrap());
                assert_consistent(&restored);
            }
        };
        let beside = async {
            loop {
                bench.run("d").await.unwrap();
            }
        };
        tokio::select! { () = both => {}, () = beside => {} }
        drop(shop);
    }
}

#[tokio::test]
async fn an_idle_write_ahead_log_is_left_as_it_lies() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("idle.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t AS SELECT 42 AS a").unwrap();
    drop(connection);
    assert_eq!(names(dir.path()), ["idle.db"]);
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let got = Bench::new(&source(&path)).run("s").await.unwrap();
    assert_eq!(names(dir.path()), ["idle.db"]);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    let (_dir, restored) = restore(&got);
    let restored = Connection::open(restored).unwrap();
    assert_eq!(restored.query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 42);
}

/// The agent's user may read the till's files and write none of them, as a hardened service is run.
#[tokio::test(flavor = "multi_thread")]
async fn reading_is_all_that_is_needed() {
    let nobody = 65534;
    if let Ok(path) = std::env::var("READ_ONLY_DATABASE") {
        let got = Bench::new(&source(Path::new(&path))).run("s").await.unwrap();
        let (_dir, restored) = restore(&got);
        assert_consistent(&restored);
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not as root: the database belongs to the user that reads it");
    }
    let scratch = TempDir::new().unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (program, home) = (scratch.path().join("test"), scratch.path().join("home"));
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).unwrap();
    let back_up = |dir: &Path| {
        let mut command = Command::new(&program);
        command.args(["--exact", "reading_is_all_that_is_needed"]).env("TMPDIR", &home).current_dir("/");
        command.env("READ_ONLY_DATABASE", dir.join("till.db"));
        if nix::unistd::geteuid().is_root() {
            command.uid(nobody).gid(nobody);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    for journal_mode in ["delete", "wal"] {
        let dir = scratch.path().join(journal_mode);
        fs::create_dir(&dir).unwrap();
        let shop = Shop::open(&dir, journal_mode, 5, 0);
        shop.wait_for_commits(5).await;
        back_up(&dir); // in use
        let crash = shop.commits();
        drop(shop);
        back_up(&dir); // as a crash left it
        assert!(crash > 0);
        let connection = Connection::open(dir.join("till.db")).unwrap();
        connection.execute_batch("UPDATE accounts SET balance = balance").unwrap();
        drop(connection);
        let there = names(&dir);
        back_up(&dir); // idle
        assert_eq!(names(&dir), there);
    }
}

/// The till was killed: its last transactions are in the log alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_in_the_log_is_in_the_copy() {
    let dir = TempDir::new().unwrap();
    let shop = Shop::open(dir.path(), "wal", 1, 0);
    shop.wait_for_commits(50).await;
    let commits = shop.commits();
    drop(shop);
    let path = dir.path().join("till.db");
    for index_too in [true, false] {
        if !index_too {
            fs::remove_file(dir.path().join("till.db-shm")).unwrap();
        }
        let (there, size) = (names(dir.path()), fs::metadata(dir.path().join("till.db-wal")).unwrap().len());
        let got = Bench::new(&source(&path)).run("s").await.unwrap();
        let (_dir, restored) = restore(&got);
        assert!(assert_consistent(&restored) >= commits);
        assert_eq!(names(dir.path()), there);
        assert_eq!(fs::metadata(dir.path().join("till.db-wal")).unwrap().len(), size);
    }
}

/// A crash in the middle of a large transaction: half of it is in the database, the way back in the journal.
#[tokio::test]
async fn what_a_crash_left_in_the_journal_is_rolled_back_in_the_copy() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("live.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB); PRAGMA cache_size = 5;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
             INSERT INTO t SELECT i, zeroblob(3000) FROM n; BEGIN; UPDATE t SET b = randomblob(3000);",
        )
        .unwrap();
    // The image of that moment, as a crash would leave it.
    let crashed = dir.path().join("crashed.db");
    fs::copy(&path, &crashed).unwrap();
    fs::copy(dir.path().join("live.db-journal"), dir.path().join("crashed.db-journal")).unwrap();
    connection.execute_batch("ROLLBACK").unwrap();
    let before = (fs::read(&crashed).unwrap(), fs::read(dir.path().join("crashed.db-journal")).unwrap());
    assert!(before.0 != fs::read(&path).unwrap(), "half of the transaction is in the database");
    let got = Bench::new(&source(&crashed)).run("s").await.unwrap();
    assert_eq!(
        before,
        (fs::read(&crashed).unwrap(), fs::read(dir.path().join("crashed.db-journal")).unwrap())
    );
    let (_dir, restored) = restore(&got);
    let restored = Connection::open(restored).unwrap();
    let untouched = "SELECT COUNT(*) FROM t WHERE b = zeroblob(3000)";
    assert_eq!(restored.query_row(untouched, [], |row| row.get::<_, i64>(0)).unwrap(), 500);
}

#[tokio::test]
async fn an_exclusive_writer_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("busy.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE t (a); BEGIN EXCLUSIVE; INSERT INTO t VALUES (1)").unwrap();
    let bench = Bench::new(&source(&path));
    let cancel = CancellationToken::new();
    let (outcome, ()) = tokio::join!(bench.run_until("s", cancel.clone()), async {
        wait_until("the copy waits", || !bench.temp_files().is_empty()).await;
        cancel.cancel();
    });
    assert!(matches!(outcome, Err(SourceError::Cancelled)), "{outcome:?}");
    wait_until("nothing is left", || bench.temp_files().is_empty()).await;
    let (got, ()) = tokio::join!(bench.run("s"), async {
        wait_until("the copy waits", || !bench.temp_files().is_empty()).await;
        connection.execute_batch("COMMIT").unwrap();
    });
    let (_dir, restored) = restore(&got.unwrap());
    let restored = Connection::open(restored).unwrap();
    assert_eq!(restored.query_row("SELECT COUNT(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
}

#[tokio::test]
async fn what_is_no_database_is_said_so() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.db");
    let run = async || Bench::new(&source(&path)).run("s").await;
    assert!(matches!(run().await, Err(SourceError::Io { .. })));
    fs::write(&path, "this is a text, and no database at all").unwrap();
    assert!(run().await.unwrap_err().to_string().contains("not a SQLite database"));
    assert!(!Bench::new(&source(&path)).test("s").await.ok);
    fs::write(&path, "").unwrap();
    assert_eq!(run().await.unwrap().stream(STREAM), b"", "an empty file is an empty database");
    assert!(Bench::new(&source(&path)).test("s").await.ok);
}

#[tokio::test]
async fn room_is_looked_for_first() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("huge.db");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"SQLite format 3\0").unwrap();
    file.set_len(15 << 40).unwrap(); // a hole of 15 TiB
    let error = Bench::new(&source(&path)).run("s").await.unwrap_err();
    assert!(matches!(error, SourceError::NoSpace { needed, .. } if needed > 15 << 40), "{error:?}");
}

/// Written down, not asserted: what a till feels. `cargo test -p sealift-agent --release --test source_sqlite \
/// measure -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_what_a_till_feels() {
    for journal_mode in ["delete", "wal"] {
        for backup in [false, true] {
            let dir = TempDir::new().unwrap();
            let shop = Shop::open(dir.path(), journal_mode, 512, 10);
            shop.wait_for_commits(10).await;
            let bench = Bench::new(&source(&dir.path().join("till.db")));
            if backup {
                for _ in 0..3 {
                    bench.run("s").await.unwrap();
                }
            } else {
                shop.wait_for_commits(100).await;
            }
            println!(
                "{journal_mode}, 1 GiB, {}: {}",
                if backup { "three backups" } else { "alone" },
                shop.close()
            );
        }
    }
}
