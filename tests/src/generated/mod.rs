//! A fleet's history straight into the coordinator's database: ten thousand hosts and a million backups in a few minutes.
//!
//! Rows are copies of real ones: make one host, one backup and what belongs to it the usual way, then [`fill`]. Only what
//! tells rows apart is changed (ids, names, times, sizes, labels), by column name, so that columns which are added later
//! are filled like those of the real rows. The new objects are not in the bucket: such a database is for looking at.

mod rows;
mod sqlite;
mod to_postgres;

use std::path::Path;

pub use rows::host_name;
use rows::{Rows, TABLES, Table};
use sqlite::Sqlite;
use to_postgres::ToPostgres;

use crate::services::Postgres;

/// How much to make. Hosts have one source each, and backups in equal numbers, a day apart.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// New hosts.
    pub hosts: usize,
    /// New backups, each with a run and an attempt; one run in fifty failed and has none.
    pub backups: usize,
    /// Packs of each backup.
    pub packs: usize,
}

impl Size {
    fn each(self) -> usize {
        (self.backups / self.hosts.max(1)).max(1)
    }
}

/// What a coordinator keeps its database in.
#[derive(Debug, Clone, Copy)]
pub enum Database<'a> {
    /// The file.
    Sqlite(&'a Path),
    /// A server, and the database there.
    Postgres(&'a Postgres, &'a str),
}

/// One cell.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    Null,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
    /// As the database wrote it.
    Raw(String),
}

/// A real row, to be copied.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    pub columns: Vec<String>,
    pub cells: Vec<Cell>,
}

/// Adds packs to the series of a real one, as if they had just been stored: the next backup may refer to them. They are
/// not in the bucket.
#[track_caller]
pub fn add_stored_packs(database: Database<'_>, count: usize) {
    insert(database, &[rows::STORED_PACKS], Size { hosts: 1, backups: 1, packs: count }, 0);
}

/// Adds rows to a database that holds at least one host with one committed backup. `now_ms` is when the newest was made.
#[track_caller]
pub fn fill(database: Database<'_>, size: Size, now_ms: i64) {
    insert(database, TABLES, size, now_ms);
}

#[track_caller]
fn insert(database: Database<'_>, tables: &[Table], size: Size, now_ms: i64) {
    match database {
        Database::Sqlite(path) => {
            let database = Sqlite::open(path);
            for table in tables {
                let template = database.template(table.name, table.template);
                let rows = Rows::of(table, template, size, now_ms);
                database.insert(table.name, rows);
            }
            database.finish();
        }
        Database::Postgres(server, name) => {
            let database = ToPostgres::new(server, name);
            for table in tables {
                let template = database.template(table.name, table.template);
                let rows = Rows::of(table, template, size, now_ms);
                database.copy(table.name, rows);
            }
            database.finish();
        }
    }
}
