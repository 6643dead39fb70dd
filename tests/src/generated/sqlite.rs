//! Rows into a SQLite file.

use std::path::Path;

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, params_from_iter};

use super::rows::Rows;
use super::{Cell, Template};

pub(super) struct Sqlite(Connection);

impl Sqlite {
    /// Opens the file for one large transaction that need not survive a power cut.
    pub fn open(path: &Path) -> Self {
        let database = Connection::open(path).expect("the coordinator's database");
        let settings = "PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000; PRAGMA foreign_keys = OFF;
                        PRAGMA temp_store = MEMORY; PRAGMA busy_timeout = 60000; BEGIN IMMEDIATE";
        database.execute_batch(settings).expect("settings");
        Self(database)
    }

    pub fn template(&self, table: &str, which: &str) -> Template {
        let mut query = self.0.prepare(&format!("SELECT * FROM {table} {which}")).expect("a table");
        let columns: Vec<String> = query.column_names().into_iter().map(str::to_owned).collect();
        let count = columns.len();
        let cells = query.query_row([], |row| (0..count).map(|at| Ok(cell(row.get_ref(at)?))).collect());
        Template {
            columns,
            cells: cells.unwrap_or_else(|error| panic!("no row of {table} to copy: {error}")),
        }
    }

    pub fn insert(&self, table: &str, mut rows: Rows<'_>) {
        let columns = rows.columns().join(", ");
        let values = vec!["?"; rows.columns().len()].join(", ");
        let sql = format!("INSERT INTO {table} ({columns}) VALUES ({values})");
        let mut insert = self.0.prepare(&sql).expect("an insert");
        while let Some(row) = rows.next() {
            insert
                .execute(params_from_iter(row.iter().map(value)))
                .unwrap_or_else(|e| panic!("{table}: {e}"));
        }
    }

    pub fn finish(self) {
        self.0.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").expect("commit");
    }
}

fn cell(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Number(number),
        ValueRef::Real(number) => Cell::Text(number.to_string()),
        ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
    }
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Number(number) => Value::Integer(*number),
        Cell::Text(text) | Cell::Raw(text) => Value::Text(text.clone()),
        Cell::Bytes(bytes) => Value::Blob(bytes.clone()),
    }
}
