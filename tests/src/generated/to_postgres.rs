//! Rows into a PostgreSQL server, by COPY.
//!
//! A trigger that counts every pack would rewrite the same few rows millions of times in one transaction: triggers do not
//! fire here, and what they would have kept up to date is made at the end.

use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::process::{Command, Stdio};

use super::rows::Rows;
use super::{Cell, Template};
use crate::services::Postgres;

pub(super) struct ToPostgres<'a> {
    server: &'a Postgres,
    name: &'a str,
}

/// What the triggers of migrations 0050 and 0070 keep up to date.
const FOLLOW: &str = "
    DELETE FROM agent_labels;
    INSERT INTO agent_labels (agent_id, key, value)
        SELECT a.id, l.key, l.value FROM agents a, json_each_text(a.labels::json) l;
    DELETE FROM series_totals;
    INSERT INTO series_totals (series_id, agent_id, packs, stored_bytes, backups, raw_bytes, last_backup_id, last_backup_ms,
            good_backup_id, good_backup_ms)
        SELECT e.id, e.agent_id, COALESCE(p.packs, 0), COALESCE(p.stored, 0), COALESCE(b.backups, 0), COALESCE(b.raw, 0),
            n.id, n.created_ms, g.id, g.created_ms
        FROM series e
        LEFT JOIN (SELECT series_id, COUNT(*) AS packs, CAST(SUM(size) AS BIGINT) AS stored FROM packs
            WHERE state NOT IN ('signed', 'missing', 'deleted') GROUP BY series_id) p ON p.series_id = e.id
        LEFT JOIN (SELECT series_id, COUNT(*) AS backups, CAST(SUM(raw_bytes) AS BIGINT) AS raw FROM backups
            WHERE state = 'committed' GROUP BY series_id) b ON b.series_id = e.id
        LEFT JOIN LATERAL (SELECT id, created_ms FROM backups WHERE series_id = e.id AND state = 'committed'
            ORDER BY sequence DESC LIMIT 1) n ON TRUE
        LEFT JOIN LATERAL (SELECT id, created_ms FROM backups WHERE series_id = e.id AND state = 'committed'
            AND NOT (partial OR manifest_lost OR lost_packs > 0) ORDER BY sequence DESC LIMIT 1) g ON TRUE;
    VACUUM ANALYZE;";

impl<'a> ToPostgres<'a> {
    pub fn new(server: &'a Postgres, name: &'a str) -> Self {
        Self { server, name }
    }

    pub fn template(&self, table: &str, which: &str) -> Template {
        let columns = self.server.sql(
            self.name,
            &format!(
                "SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0
                   AND NOT attisdropped ORDER BY attnum"
            ),
        );
        // The last column is there so that no empty cell is trimmed.
        let row =
            self.server.sql(self.name, &format!("COPY (SELECT *, 'end' FROM {table} {which}) TO STDOUT"));
        let mut cells: Vec<Cell> = row.split('\t').map(|cell| Cell::Raw(cell.to_owned())).collect();
        cells.pop();
        let columns: Vec<String> = columns.lines().map(str::to_owned).collect();
        assert_eq!(columns.len(), cells.len(), "no row of {table} to copy");
        Template { columns, cells }
    }

    fn psql(&self) -> Command {
        let mut command = self.server.client("psql");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.name]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    pub fn copy(&self, table: &str, mut rows: Rows<'_>) {
        let mut child = self.psql().spawn().expect("start psql");
        let mut input = BufWriter::with_capacity(1 << 20, child.stdin.take().expect("piped"));
        let columns = rows.columns().join(", ");
        // A psql that gave up closes its end; its words follow.
        let head = "SET session_replication_role = replica; SET synchronous_commit = off;";
        let mut written = writeln!(input, "{head}\nCOPY {table} ({columns}) FROM STDIN;");
        let mut line = String::new();
        while let Some(row) = rows.next() {
            if written.is_err() {
                break;
            }
            line.clear();
            for (n, cell) in row.iter().enumerate() {
                line.push_str(if n == 0 { "" } else { "\t" });
                push(&mut line, cell);
            }
            line.push('\n');
            written = input.write_all(line.as_bytes());
        }
        let _ = written.and_then(|()| input.write_all(b"\\.\n")).and_then(|()| input.flush());
        drop(input);
        let output = child.wait_with_output().expect("end of psql");
        assert!(output.status.success(), "{table}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn finish(self) {
        self.server.script(self.name, FOLLOW);
    }
}

/// As COPY reads it: the backslash escapes.
fn push(line: &mut String, cell: &Cell) {
    match cell {
        Cell::Null => line.push_str("\\N"),
        Cell::Number(number) => drop(write!(line, "{number}")),
        Cell::Raw(text) => line.push_str(text),
        Cell::Bytes(bytes) => {
            line.push_str("\\\\x");
            line.push_str(&hex::encode(bytes));
        }
        Cell::Text(text) => {
            for c in text.chars() {
                match c {
                    '\\' => line.push_str("\\\\"),
                    '\t' => line.push_str("\\t"),
                    '\n' => line.push_str("\\n"),
                    '\r' => line.push_str("\\r"),
                    c => line.push(c),
                }
            }
        }
    }
}
