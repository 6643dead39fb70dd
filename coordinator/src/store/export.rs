//! The whole database as tables, columns and cells that both databases mean alike: for the coordinator's own backup.
//!
//! Nothing here knows a table by its name: what a later migration adds is carried along by itself. Tables come in an order
//! in which rows can be added, those that are referred to first.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use sqlx::{AssertSqlSafe, Row as _};

use super::dialect::Dialect;
use super::{Row, StoreError, Tx, failed};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A truth value.
    Flag,
    /// A whole number.
    Number,
    /// Text.
    Text,
    /// Bytes.
    Bytes,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its columns, in their order.
    pub columns: Vec<Column>,
    /// The column that numbers the rows by itself. Its numbers mean nothing to another database, their order does.
    pub counter: Option<String>,
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// A truth value.
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

const READ: &str = "read the schema";
/// Tables that triggers fill from others: they follow by themselves.
const DERIVED: [&str; 2] = ["agent_labels", "series_totals"];

/// All tables of ours, in an order in which their rows can be added.
///
/// # Errors
/// The database's own; a column of a type that no migration may use.
pub async fn tables(tx: &mut Tx) -> Result<Vec<Table>, StoreError> {
    let dialect = Dialect::of(tx);
    let names = match dialect {
        Dialect::Sqlite => {
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE '%sqlx%'
             ORDER BY name"
        }
        Dialect::Postgres => {
            "SELECT CAST(table_name AS TEXT) AS name FROM information_schema.tables
             WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' AND table_name NOT LIKE '%sqlx%'
             ORDER BY name"
        }
    };
    let names: Vec<String> = sqlx::query(names)
        .try_map(|row: Row| row.try_get("name"))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(READ))?;
    let (mut tables, mut needs) = (Vec::new(), Vec::new());
    for name in names.into_iter().filter(|name| !DERIVED.contains(&name.as_str())) {
        let (columns, counter) = columns(tx, dialect, &name).await?;
        needs.push(referred(tx, dialect, &name).await?);
        tables.push(Table { name, columns, counter });
    }
    Ok(ordered(tables, &needs))
}

async fn columns(
    tx: &mut Tx,
    dialect: Dialect,
    table: &str,
) -> Result<(Vec<Column>, Option<String>), StoreError> {
    let query = match dialect {
        Dialect::Sqlite => "SELECT name, CASE type WHEN 'INTEGER' THEN 'counter' ELSE type END AS kind FROM pragma_table_info($1)
             ORDER BY cid",
        Dialect::Postgres => {
            "SELECT CAST(column_name AS TEXT) AS name,
                    CASE is_identity WHEN 'YES' THEN 'counter' ELSE CAST(data_type AS TEXT) END AS kind
             FROM information_schema.columns
             WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position"
        }
    };
    let column = |row: Row| {
        let (name, kind): (String, String) = (row.try_get("name")?, row.try_get("kind")?);
        let kind = match kind.to_ascii_lowercase().as_str() {
            // SQLite has no truth values: its columns of `BOOLEAN` are declared `INT`, and no others are.
            "boolean" | "int" => Kind::Flag,
            "bigint" => Kind::Number,
            "counter" => return Ok((name, None)),
            "text" => Kind::Text,
            "blob" | "bytea" => Kind::Bytes,
            other => {
                return Err(sqlx::Error::ColumnDecode {
                    index: name,
                    source: format!("a column of type {other} cannot be carried over").into(),
                });
            }
        };
        Ok((name, Some(kind)))
    };
    let all = sqlx::query(query).bind(table).try_map(column).fetch_all(tx).await.map_err(failed(READ))?;
    let counter = all.iter().find(|(_, kind)| kind.is_none()).map(|(name, _)| name.clone());
    let columns = all.into_iter().filter_map(|(name, kind)| Some(Column { name, kind: kind? }));
    Ok((columns.collect(), counter))
}

async fn referred(tx: &mut Tx, dialect: Dialect, table: &str) -> Result<Vec<String>, StoreError> {
    let query = match dialect {
        Dialect::Sqlite => "SELECT DISTINCT \"table\" AS name FROM pragma_foreign_key_list($1)",
        Dialect::Postgres => {
            "SELECT DISTINCT CAST(u.table_name AS TEXT) AS name FROM information_schema.table_constraints c
             JOIN information_schema.constraint_column_usage u USING (constraint_schema, constraint_name)
             WHERE c.constraint_type = 'FOREIGN KEY' AND c.table_schema = current_schema() AND c.table_name = $1"
        }
    };
    sqlx::query(query)
        .bind(table)
        .try_map(|row: Row| row.try_get("name"))
        .fetch_all(tx)
        .await
        .map_err(failed(READ))
}

/// Those that are referred to first; what refers in a circle keeps its place.
fn ordered(mut tables: Vec<Table>, needs: &[Vec<String>]) -> Vec<Table> {
    let mut needs: Vec<Vec<String>> = needs.to_vec();
    let mut out: Vec<Table> = Vec::new();
    while !tables.is_empty() {
        let known = |name: &String, own: &str| name == own || out.iter().any(|table| table.name == *name);
        let free = (0..tables.len()).find(|at| needs[*at].iter().all(|name| known(name, &tables[*at].name)));
        let at = free.unwrap_or(0);
        needs.remove(at);
        out.push(tables.remove(at));
    }
    out
}

/// All rows of a table, one after the other; nothing is held in memory.
pub fn rows<'a>(tx: &'a mut Tx, table: &'a Table) -> BoxStream<'a, Result<Vec<Cell>, StoreError>> {
    let names: Vec<String> = table.columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
    let order = table.counter.as_ref().map(|counter| format!(" ORDER BY \"{counter}\"")).unwrap_or_default();
    let query = format!("SELECT {} FROM \"{}\"{order}", names.join(", "), table.name);
    // Names out of the schema that our own migrations made.
    let rows = sqlx::query(AssertSqlSafe(query)).persistent(false).fetch(tx);
    rows.map(|row| {
        let row = row.map_err(failed("read a table"))?;
        let cells = table.columns.iter().enumerate().map(|(at, column)| cell(&row, at, column));
        cells.collect::<Result<_, _>>().map_err(failed("read a table"))
    })
    .boxed()
}

fn cell(row: &Row, at: usize, column: &Column) -> Result<Cell, sqlx::Error> {
    let some = match column.kind {
        Kind::Flag => super::optional_flag(row, &column.name)?.map(Cell::Flag),
        Kind::Number => row.try_get::<Option<i64>, _>(at)?.map(Cell::Number),
        Kind::Text => row.try_get::<Option<String>, _>(at)?.map(Cell::Text),
        Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(at)?.map(Cell::Bytes),
    };
    Ok(some.unwrap_or(Cell::Null))
}

/// Whether a table has no row.
///
/// # Errors
/// The database's own.
pub async fn is_empty(tx: &mut Tx, table: &str) -> Result<bool, StoreError> {
    let query = format!("SELECT 1 AS one FROM \"{table}\" LIMIT 1");
    let row = sqlx::query(AssertSqlSafe(query)).persistent(false).fetch_optional(tx).await;
    row.map(|row| row.is_none()).map_err(failed("look into a table"))
}

/// Empties a table.
///
/// # Errors
/// The database's own; tables of the audit refuse.
pub async fn clear(tx: &mut Tx, table: &str) -> Result<(), StoreError> {
    let query = format!("DELETE FROM \"{table}\"");
    let done = sqlx::query(AssertSqlSafe(query)).persistent(false).execute(tx).await;
    done.map(drop).map_err(failed("empty a table"))
}

/// Adds one row: a cell for each of `columns`, which are of this table.
///
/// # Errors
/// The database's own.
pub async fn insert(
    tx: &mut Tx,
    table: &str,
    columns: &[&Column],
    cells: Vec<Cell>,
) -> Result<(), StoreError> {
    let names: Vec<String> = columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
    let places: Vec<String> = (1..=columns.len()).map(|n| format!("${n}")).collect();
    let text = format!("INSERT INTO \"{table}\" ({}) VALUES ({})", names.join(", "), places.join(", "));
    let mut query = sqlx::query(AssertSqlSafe(text));
    for (column, cell) in columns.iter().zip(cells) {
        query = match (cell, column.kind) {
            (Cell::Flag(flag), _) => query.bind(flag),
            (Cell::Number(number), _) => query.bind(number),
            (Cell::Text(text), _) => query.bind(text),
            (Cell::Bytes(bytes), _) => query.bind(bytes),
            (Cell::Null, Kind::Flag) => query.bind(None::<bool>),
            (Cell::Null, Kind::Number) => query.bind(None::<i64>),
            (Cell::Null, Kind::Text) => query.bind(None::<String>),
            (Cell::Null, Kind::Bytes) => query.bind(None::<Vec<u8>>),
        };
    }
    query.execute(tx).await.map(drop).map_err(failed("add a row of the backup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_referred_to_comes_first() {
        let table = |name: &str| Table { name: name.to_owned(), columns: vec![], counter: None };
        let tables = vec![table("agents"), table("runs"), table("series"), table("tokens")];
        let text = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let needs = [text(&["tokens"]), text(&["series", "agents", "runs"]), text(&["agents"]), vec![]];
        let names: Vec<String> = ordered(tables, &needs).into_iter().map(|table| table.name).collect();
        assert_eq!(names, ["tokens", "agents", "series", "runs"]);
        let circle = ordered(vec![table("a"), table("b")], &[text(&["b"]), text(&["a"])]);
        assert_eq!(circle.len(), 2);
    }
}
