//! The coordinator's database and its catalogue as lines of JSON: what its sealed backup holds (docs/format.md,
//! Coordinator). Pure: text in, text out.
//!
//! The database: a head, then for each table a line with its columns and a line for each row, then an end. Cells are
//! `null`, `true`, numbers, texts, and `{"b64": "…"}` for bytes. A table or column that a reader's schema does not have is
//! an error; one that the text does not have keeps the schema's default.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sealift_common::id::RepositoryId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::generation::Mark;
use crate::store::export::{Cell, Kind, Table};

/// What the first line calls itself.
const KIND: &str = "coordinator-database";
/// The version of these lines.
const FORMAT: u32 = 1;
/// Longest line that is read, in bytes: a row with the bitmap of a large backup.
pub const MAX_LINE: usize = 64 * 1024 * 1024;

/// A line that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {number} of the coordinator's backup {problem}")]
pub struct BadLine {
    /// The how-manieth, from 1.
    pub number: u64,
    /// What is wrong with it.
    pub problem: String,
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    sealift: String,
    format: u32,
    /// The repository.
    pub repository_id: RepositoryId,
    /// Counts recoveries.
    pub generation: u64,
    /// The generation's id.
    pub generation_id: u64,
    /// The high-water mark when it was made: what is newer, only the bucket knows.
    pub mark: u64,
    /// When it was made.
    pub created: String,
    /// The program that made it.
    pub version: String,
}

impl Head {
    /// Of a backup that is made at `created`.
    pub fn new(repository_id: RepositoryId, mark: Mark, created: String) -> Self {
        Self {
            sealift: KIND.to_owned(),
            format: FORMAT,
            repository_id,
            generation: mark.number,
            generation_id: mark.generation,
            mark: mark.mark,
            created,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// How new the database was.
    pub fn mark(&self) -> Mark {
        Mark { number: self.generation, generation: self.generation_id, mark: self.mark, nonce: 0 }
    }
}

/// One line, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The first.
    Head(Head),
    /// A table begins: its name and columns.
    Table(String, Vec<String>),
    /// A row of the table that began last.
    Row(Vec<Cell>),
    /// The last: how many rows there were.
    End(u64),
}

fn written(value: &impl Serialize) -> Vec<u8> {
    // Texts, numbers and lists of them: there is nothing in them that JSON cannot say.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The first line.
pub fn head(head: &Head) -> Vec<u8> {
    written(head)
}

/// The line before a table's rows.
pub fn table(table: &Table) -> Vec<u8> {
    let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
    written(&json!({ "table": table.name, "columns": columns }))
}

/// A row's line.
pub fn row(cells: &[Cell]) -> Vec<u8> {
    let cell = |cell: &Cell| match cell {
        Cell::Null => Value::Null,
        Cell::Flag(flag) => (*flag).into(),
        Cell::Number(number) => (*number).into(),
        Cell::Text(text) => text.as_str().into(),
        Cell::Bytes(bytes) => json!({ "b64": BASE64_STANDARD.encode(bytes) }),
    };
    written(&cells.iter().map(cell).collect::<Vec<_>>())
}

/// The last line.
pub fn end(rows: u64) -> Vec<u8> {
    written(&json!({ "end": rows }))
}

/// Reads one line; `number` is for errors.
///
/// # Errors
/// [`BadLine`].
pub fn parse(number: u64, line: &[u8]) -> Result<Line, BadLine> {
    let bad = |problem: &str| BadLine { number, problem: problem.to_owned() };
    let value: Value = serde_json::from_slice(line).map_err(|_| bad("is not JSON"))?;
    match value {
        Value::Array(cells) => {
            let cells = cells
                .into_iter()
                .map(|value| parse_cell(value).ok_or_else(|| bad("has a cell of no known kind")));
            Ok(Line::Row(cells.collect::<Result<_, _>>()?))
        }
        Value::Object(ref object) if object.contains_key("table") => {
            #[derive(Deserialize)]
            struct Begin {
                table: String,
                columns: Vec<String>,
            }
            let begin: Begin = serde_json::from_value(value).map_err(|_| bad("begins no table"))?;
            Ok(Line::Table(begin.table, begin.columns))
        }
        Value::Object(ref object) if object.contains_key("end") => {
            object["end"].as_u64().map(Line::End).ok_or_else(|| bad("is no end"))
        }
        value => {
            let head: Head =
                serde_json::from_value(value).map_err(|_| bad("is none that this version knows"))?;
            if head.sealift != KIND || head.format != FORMAT {
                return Err(bad("is of another format: use a newer version of Sealift"));
            }
            Ok(Line::Head(head))
        }
    }
}

fn parse_cell(value: Value) -> Option<Cell> {
    Some(match value {
        Value::Null => Cell::Null,
        Value::Bool(flag) => Cell::Flag(flag),
        Value::Number(number) => Cell::Number(number.as_i64()?),
        Value::String(text) => Cell::Text(text),
        Value::Object(object) if object.len() == 1 => {
            Cell::Bytes(BASE64_STANDARD.decode(object.get("b64")?.as_str()?).ok()?)
        }
        _ => return None,
    })
}

/// Whether a cell may stand in a column of this kind.
pub fn fits(cell: &Cell, kind: Kind) -> bool {
    match cell {
        Cell::Null => true,
        Cell::Flag(_) => kind == Kind::Flag,
        Cell::Number(_) => kind == Kind::Number,
        Cell::Text(_) => kind == Kind::Text,
        Cell::Bytes(_) => kind == Kind::Bytes,
    }
}

/// One line of the catalogue: where the backups of one source of one host are. Written by
/// [`super::backup`], read by `sealift restore --offline --find` too.
pub use sealift_common::format::coordinator::Entry;

/// A catalogue's line.
pub fn entry(entry: &Entry) -> Vec<u8> {
    written(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::export::Column;

    #[test]
    fn lines_come_back_as_they_were_written() {
        let mark = Mark { number: 2, generation: u64::MAX >> 1, mark: 9, nonce: 0 };
        let begun = Head::new(RepositoryId::from_bytes([1; 16]), mark, "2026-11-22T03:00:00Z".to_owned());
        assert_eq!(begun.mark(), mark);
        assert_eq!(parse(1, &head(&begun)), Ok(Line::Head(begun)));
        let column = |name: &str, kind| Column { name: name.to_owned(), kind };
        let runs = Table {
            counter: None,
            name: "runs".to_owned(),
            columns: vec![
                column("id", Kind::Text),
                column("ended_ms", Kind::Number),
                column("refs", Kind::Bytes),
            ],
        };
        let text = table(&runs);
        assert_eq!(
            String::from_utf8_lossy(&text),
            "{\"columns\":[\"id\",\"ended_ms\",\"refs\"],\"table\":\"runs\"}\n"
        );
        let names = vec!["id".to_owned(), "ended_ms".to_owned(), "refs".to_owned()];
        assert_eq!(parse(2, &text), Ok(Line::Table("runs".to_owned(), names)));
        let cells = vec![
            Cell::Text("a\nb".into()),
            Cell::Number(i64::MIN),
            Cell::Bytes(vec![0, 255]),
            Cell::Null,
            Cell::Flag(true),
        ];
        let text = row(&cells);
        assert_eq!(
            String::from_utf8_lossy(&text),
            "[\"a\\nb\",-9223372036854775808,{\"b64\":\"AP8=\"},null,true]\n"
        );
        assert_eq!(parse(3, &text), Ok(Line::Row(cells)));
        assert_eq!(parse(4, &end(7)), Ok(Line::End(7)));
    }

    #[test]
    fn other_lines_are_refused_by_their_number() {
        for bad in [
            "",
            "{",
            "1",
            "[1.5]",
            "[{\"b64\":\"!\"}]",
            "[[1]]",
            "{\"end\":-1}",
            "{\"table\":1}",
            "{\"sealift\":\"x\"}",
        ] {
            assert_eq!(parse(17, bad.as_bytes()).unwrap_err().number, 17, "{bad}");
        }
        let newer = String::from_utf8(head(&Head::new(
            RepositoryId::from_bytes([1; 16]),
            Mark { number: 1, generation: 1, mark: 1, nonce: 0 },
            String::new(),
        )));
        let newer = newer.unwrap().replace("\"format\":1", "\"format\":2");
        assert!(parse(1, newer.as_bytes()).unwrap_err().problem.contains("newer"));
        assert!(
            fits(&Cell::Null, Kind::Flag)
                && fits(&Cell::Number(1), Kind::Number)
                && !fits(&Cell::Number(1), Kind::Text)
        );
    }
}
