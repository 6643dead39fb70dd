//! An application that keeps writing to a SQLite database while it is backed up, and what its copy must fulfil.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::wait;

/// Writes transactions of several rows in two tables until it is dropped. In every transaction of number `n` one entry
/// moves an amount from one account to another, so that the sum of all balances stays zero and each number has two rows.
#[derive(Debug)]
pub struct Till {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<Duration>>>,
}

/// How often a till writes.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// One transaction after the other.
    Flood,
    /// About this many a second, as a shop's till would.
    PerSecond(u32),
}

impl Till {
    /// Makes the database at `path` with about `size_bytes` of content in the given journal mode, and starts writing.
    #[track_caller]
    pub fn open(path: &Path, journal_mode: &str, size_bytes: usize, pace: Pace) -> Self {
        create(path, journal_mode, size_bytes);
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (path, stop, commits) = (path.to_owned(), stop.clone(), commits.clone());
            move || write(&path, &stop, &commits, pace)
        });
        Self { path: path.to_owned(), stop, commits, thread: Some(thread) }
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Transactions committed so far.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Waits until `more` further transactions are committed.
    #[track_caller]
    pub fn wait_for_commits(&self, more: u64) {
        let target = self.commits() + more;
        wait::until_true("the till commits", || self.commits() >= target);
    }

    /// Stops writing. How long each commit took, in order.
    #[track_caller]
    pub fn stop(mut self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("started").join().expect("the till never fails")
    }
}

impl Drop for Till {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[track_caller]
fn create(path: &Path, journal_mode: &str, size_bytes: usize) {
    let connection = open(path);
    connection.pragma_update(None, "journal_mode", journal_mode).expect("journal mode");
    connection
        .execute_batch(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
             CREATE TABLE entries (n INTEGER NOT NULL, account INTEGER NOT NULL, amount INTEGER NOT NULL, note TEXT,
               PRIMARY KEY (n, account)) WITHOUT ROWID;
             CREATE INDEX by_account ON entries (account, n);
             CREATE TABLE ballast (id INTEGER PRIMARY KEY, content BLOB NOT NULL);",
        )
        .expect("schema");
    let transaction = connection.unchecked_transaction().expect("transaction");
    for id in 0..100 {
        transaction.execute("INSERT INTO accounts VALUES (?1, 0)", [id]).expect("account");
    }
    for id in 0..size_bytes / 3000 {
        let content = crate::tree::noise(id as u64 + 1, 3000);
        transaction.execute("INSERT INTO ballast VALUES (?1, ?2)", params![id, content]).expect("ballast");
    }
    transaction.commit().expect("commit");
}

#[track_caller]
fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).expect("open the database");
    connection.busy_timeout(Duration::from_secs(60)).expect("busy timeout");
    connection
}

fn write(path: &Path, stop: &AtomicBool, commits: &AtomicU64, pace: Pace) -> Vec<Duration> {
    let mut connection = open(path);
    let mut latencies = Vec::new();
    let mut n = 0_i64;
    while !stop.load(Ordering::Relaxed) {
        let (from, to, amount) = (n % 100, (n * 7 + 1) % 100, n % 50 + 1);
        let started = Instant::now();
        let transaction = connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .expect("a till's transaction starts");
        for (account, amount) in [(from, -amount), (to, amount)] {
            transaction
                .execute("UPDATE accounts SET balance = balance + ?1 WHERE id = ?2", params![amount, account])
                .expect("balance");
            transaction
                .execute(
                    "INSERT INTO entries VALUES (?1, ?2, ?3, 'note') ON CONFLICT DO UPDATE SET amount = amount + ?3",
                    params![n, account, amount],
                )
                .expect("entry");
        }
        transaction
            .execute("UPDATE ballast SET content = randomblob(3000) WHERE id = ?1", [n * 13 % 1000])
            .expect("ballast");
        transaction.commit().expect("commit");
        latencies.push(started.elapsed());
        commits.fetch_add(1, Ordering::Relaxed);
        n += 1;
        if let Pace::PerSecond(rate) = pace {
            between_customers(rate);
        }
    }
    latencies
}

/// A pause that is part of what is simulated, not a wait for something.
#[allow(clippy::disallowed_methods)]
fn between_customers(rate: u32) {
    std::thread::sleep(Duration::from_secs(1) / rate);
}

/// What a consistent copy of a till's database fulfils; gives how many transactions it holds.
#[track_caller]
pub fn assert_consistent(path: &Path) -> u64 {
    let connection = open(path);
    let one = |sql: &str| -> i64 { connection.query_row(sql, [], |row| row.get(0)).expect("query") };
    let integrity: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("query");
    assert_eq!(integrity, "ok");
    assert_eq!(one("SELECT COALESCE(SUM(balance), 0) FROM accounts"), 0, "balances do not add up");
    let halves = one("SELECT COUNT(*) FROM (SELECT n FROM entries GROUP BY n HAVING SUM(amount) <> 0)");
    assert_eq!(halves, 0, "{halves} transactions are there by half");
    let wrong = one(
        "SELECT COUNT(*) FROM accounts a WHERE balance <> (SELECT COALESCE(SUM(amount), 0) FROM entries WHERE account = a.id)",
    );
    assert_eq!(wrong, 0, "{wrong} balances are not the sum of their entries");
    let missing = one("SELECT COALESCE(MAX(n) + 1, 0) - COUNT(DISTINCT n) FROM entries");
    assert_eq!(missing, 0, "{missing} earlier transactions are missing");
    u64::try_from(one("SELECT COUNT(DISTINCT n) FROM entries")).expect("a count")
}
