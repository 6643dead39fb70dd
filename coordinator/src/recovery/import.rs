//! The database of a backup into an empty one, in one transaction: all of it or nothing.

use super::RecoveryError;
use super::lines::{self, Line};
use super::own::Own;
use crate::store::export::{self, Cell, Column, Table};
use crate::store::{Db, Store, StoreError, failed};

/// Tables whose rows say that a database is in use.
const IN_USE: &[&str] = &["agents", "series", "backups", "runs"];
/// Rows of the audit are never removed: those of a backup come after those that are there.
const APPENDED: &[&str] = &["audit_events"];

/// Whether nothing has happened in this database yet.
///
/// # Errors
/// The database's own.
pub async fn is_unused(store: &Store) -> Result<bool, StoreError> {
    let mut reader = store.reader().await?;
    for table in IN_USE {
        if !export::is_empty(&mut reader, table).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Puts the rows of `own` into the database, which must be unused. Gives their number.
///
/// # Errors
/// [`RecoveryError`]; then the database is as it was.
pub async fn import(store: &Store, own: &Own) -> Result<u64, RecoveryError> {
    let (mut importer, mut lines) = (Importer::begin(store).await?, own.database()?);
    while let Some((number, line)) = lines.next().await? {
        importer.take(number, &line).await?;
    }
    importer.finish().await
}

/// Takes line after line; dropped before [`Importer::finish`], it leaves the database as it was.
pub struct Importer {
    tx: sqlx::Transaction<'static, Db>,
    tables: Vec<Table>,
    /// Into which table rows go, and which of its columns they fill.
    into: Option<(usize, Vec<usize>)>,
    rows: u64,
    end: Option<u64>,
}

impl Importer {
    /// Empties the database, which must be unused: what a start has written into it goes.
    ///
    /// # Errors
    /// The database's own.
    pub async fn begin(store: &Store) -> Result<Self, RecoveryError> {
        let mut tx = store.transaction().await?;
        let tables = export::tables(&mut tx).await?;
        for table in tables.iter().rev().filter(|table| !APPENDED.contains(&table.name.as_str())) {
            export::clear(&mut tx, &table.name).await?;
        }
        Ok(Self { tx, tables, into: None, rows: 0, end: None })
    }

    /// One line, without its end.
    ///
    /// # Errors
    /// [`RecoveryError`]
    pub async fn take(&mut self, number: u64, line: &[u8]) -> Result<(), RecoveryError> {
        match lines::parse(number, line)? {
            Line::Head(_) if number == 1 => {}
            Line::Table(name, columns) => self.into = Some(target(&self.tables, &name, &columns)?),
            Line::Row(cells) => {
                let (table, columns) = self.into.as_ref().ok_or_else(|| misplaced(number))?;
                let table = &self.tables[*table];
                let columns: Vec<&Column> = columns.iter().map(|at| &table.columns[*at]).collect();
                check(number, &columns, &cells)?;
                export::insert(&mut self.tx, &table.name, &columns, cells).await?;
                self.rows += 1;
            }
            Line::End(count) => self.end = Some(count),
            Line::Head(_) => return Err(misplaced(number)),
        }
        Ok(())
    }

    /// All lines were taken: the database has them. Gives the number of rows.
    ///
    /// # Errors
    /// [`RecoveryError::Content`] where the end is missing.
    pub async fn finish(self) -> Result<u64, RecoveryError> {
        if self.end != Some(self.rows) {
            return Err(RecoveryError::Content(format!(
                "{} rows were read, and it does not end so",
                self.rows
            )));
        }
        self.tx.commit().await.map_err(failed("put the backup into the database"))?;
        Ok(self.rows)
    }
}

fn misplaced(number: u64) -> RecoveryError {
    RecoveryError::Content(format!("line {number} of it is out of place"))
}

fn target(known: &[Table], name: &str, columns: &[String]) -> Result<(usize, Vec<usize>), RecoveryError> {
    let newer = |what: String| {
        RecoveryError::Content(format!(
            "it has {what}, which this version does not know: use the version that made it, or a newer one"
        ))
    };
    let table = known.iter().position(|table| table.name == name);
    let table = table.ok_or_else(|| newer(format!("a table {name}")))?;
    let column = |wanted: &String| {
        let found = known[table].columns.iter().position(|column| column.name == *wanted);
        found.ok_or_else(|| newer(format!("a column {name}.{wanted}")))
    };
    Ok((table, columns.iter().map(column).collect::<Result<_, _>>()?))
}

fn check(number: u64, columns: &[&Column], cells: &[Cell]) -> Result<(), RecoveryError> {
    let fits = columns.len() == cells.len()
        && columns.iter().zip(cells).all(|(column, cell)| lines::fits(cell, column.kind));
    if fits {
        Ok(())
    } else {
        Err(RecoveryError::Content(format!("line {number} of it does not fit its table")))
    }
}
