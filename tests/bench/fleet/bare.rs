//! What the disk allows, for comparison: one-row transactions on a SQLite file of its own, with the coordinator's settings.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::sessions::spend;

/// Rows that are there before.
const ROWS: u32 = 50_000;

/// Commits `count` rows like those of packs into `file`, `rate` a second; how long each took from when it was due.
pub fn commits(file: &Path, count: u32, rate: u32) -> Vec<Duration> {
    let database = Connection::open(file).expect("a database");
    database
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE packs (series TEXT, ordinal INTEGER, sha256 BLOB, origin BLOB, meta BLOB, signed INTEGER,
                                 PRIMARY KEY (series, ordinal));
             CREATE UNIQUE INDEX by_hash ON packs (series, sha256);
             CREATE INDEX by_origin ON packs (origin);
             BEGIN",
        )
        .expect("a table");
    let mut insert = database.prepare("INSERT INTO packs VALUES (?, ?, ?, ?, ?, ?)").expect("an insert");
    let mut add = |n: u32| {
        let hash = blake3::hash(&n.to_le_bytes());
        let (series, hash) = (format!("series-{:036}", n % 2_500), hash.as_bytes());
        insert.execute(params![series, n, &hash[..], &hash[..16], &hash[..], n]).expect("a row");
    };
    (0..ROWS).for_each(&mut add);
    database.execute_batch("COMMIT").expect("commit");
    let started = Instant::now();
    let due = |n: u32| started + Duration::from_secs(1) * n / rate;
    (0..count)
        .map(|n| {
            spend(due(n).saturating_duration_since(Instant::now()));
            database.execute_batch("BEGIN IMMEDIATE").expect("begin");
            add(ROWS + n);
            database.execute_batch("COMMIT").expect("commit");
            due(n).elapsed()
        })
        .collect()
}
