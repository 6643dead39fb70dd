//! What is changed of each real row to make many of it.

use super::{Cell, Size, Template};

const DAY_MS: i64 = 24 * 3_600 * 1_000;
const HOUR_MS: i64 = 3_600 * 1_000;
/// One run in so many fails.
const FAILS: usize = 50;

/// A table, and how its rows are made.
pub(crate) struct Table {
    pub name: &'static str,
    /// Which of its rows is copied: what follows `SELECT * FROM name`.
    pub template: &'static str,
    /// How many there are for a host.
    count: fn(Size) -> usize,
    /// What differs from the template in row `n` of host `host`; `None` where there is no such row.
    change: fn(&mut Row<'_>) -> Option<()>,
}

/// Tables in the order in which rows can refer to one another.
pub(crate) const TABLES: &[Table] = &[
    Table { name: "agents", template: "ORDER BY enrolled_ms LIMIT 1", count: |_| 1, change: agent },
    Table { name: "series", template: "ORDER BY created_ms LIMIT 1", count: |_| 1, change: series },
    Table { name: "sources", template: "ORDER BY changed_ms LIMIT 1", count: |_| 1, change: source },
    Table { name: "runs", template: "WHERE state = 'succeeded' LIMIT 1", count: Size::each, change: run },
    Table {
        name: "attempts",
        template: "WHERE state = 'committed' LIMIT 1",
        count: Size::each,
        change: attempt,
    },
    Table {
        name: "backups",
        template: "WHERE state = 'committed' LIMIT 1",
        count: Size::each,
        change: backup,
    },
    Table {
        name: "packs",
        template: "WHERE state = 'live' LIMIT 1",
        count: |size| size.each() * size.packs,
        change: pack,
    },
    Table {
        name: "audit_events",
        template: "WHERE action = 'backup.commit' AND outcome = 'done' LIMIT 1",
        count: |size| size.each() * 2,
        change: event,
    },
];

/// Packs that wait to be referred to.
pub(crate) const STORED_PACKS: Table = Table {
    name: "packs",
    template: "WHERE state = 'live' LIMIT 1",
    count: |size| size.packs,
    change: stored_pack,
};

/// One row in the making.
struct Row<'a> {
    cells: &'a mut [Cell],
    columns: &'a [String],
    size: Size,
    now_ms: i64,
    host: usize,
    n: usize,
}

/// All rows of a table, one after the other, in one buffer.
pub(crate) struct Rows<'a> {
    table: &'a Table,
    template: Template,
    cells: Vec<Cell>,
    size: Size,
    now_ms: i64,
    host: usize,
    n: usize,
}

impl<'a> Rows<'a> {
    pub fn of(table: &'a Table, mut template: Template, size: Size, now_ms: i64) -> Self {
        // Counted by the database.
        if let Some(at) = template.columns.iter().position(|column| column == "seq") {
            template.columns.remove(at);
            template.cells.remove(at);
        }
        Self { table, cells: Vec::new(), template, size, now_ms, host: 0, n: 0 }
    }

    pub fn columns(&self) -> &[String] {
        &self.template.columns
    }

    /// The next row.
    pub fn next(&mut self) -> Option<&[Cell]> {
        loop {
            if self.n == (self.table.count)(self.size) {
                (self.host, self.n) = (self.host + 1, 0);
            }
            if self.host == self.size.hosts {
                return None;
            }
            self.cells.clone_from(&self.template.cells);
            let mut row = Row {
                cells: &mut self.cells,
                columns: &self.template.columns,
                size: self.size,
                now_ms: self.now_ms,
                host: self.host,
                n: self.n,
            };
            self.n += 1;
            if (self.table.change)(&mut row).is_some() {
                return Some(&self.cells);
            }
        }
    }
}

/// Bytes that follow from what they are for.
fn derived<const N: usize>(what: &str, host: usize, n: usize) -> [u8; N] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(what.as_bytes()).update(&host.to_le_bytes()).update(&n.to_le_bytes());
    let mut out = [0; N];
    hasher.finalize_xof().fill(&mut out);
    out
}

fn id_bytes(what: &str, host: usize, n: usize) -> [u8; 16] {
    let mut bytes = derived::<16>(what, host, n);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn id(what: &str, host: usize, n: usize) -> Cell {
    let hex = hex::encode(id_bytes(what, host, n));
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Cell::Text(parts.join("-"))
}

fn bytes(what: &str, host: usize, n: usize) -> Cell {
    Cell::Bytes(derived::<32>(what, host, n).to_vec())
}

/// A number below `below` that looks random.
fn spread(what: &str, host: usize, n: usize, below: u64) -> i64 {
    i64::try_from(u64::from_le_bytes(derived::<8>(what, host, n)) % below.max(1)).unwrap_or_default()
}

/// The name of a generated host.
pub fn host_name(host: usize) -> String {
    format!("store-{host:05}")
}

impl Row<'_> {
    /// Replaces a cell; tables may have lost the column since.
    fn set(&mut self, column: &str, cell: Cell) {
        if let Some(at) = self.columns.iter().position(|name| name == column) {
            self.cells[at] = cell;
        }
    }

    fn set_all<const N: usize>(&mut self, cells: [(&str, Cell); N]) -> Option<()> {
        cells.into_iter().for_each(|(column, cell)| self.set(column, cell));
        Some(())
    }

    /// When run `n` was asked for.
    fn asked_ms(&self, n: usize) -> i64 {
        let days = i64::try_from(self.size.each() - n).unwrap_or_default();
        self.now_ms - days * DAY_MS + spread("time", self.host, n, 5 * HOUR_MS as u64)
    }

    fn fails(&self, n: usize) -> bool {
        (self.host + n) % FAILS == FAILS - 1
    }
}

fn agent(row: &mut Row<'_>) -> Option<()> {
    let host = row.host;
    let regions = ["eu", "uk", "us", "apac"];
    let role = if host.is_multiple_of(20) { "backoffice" } else { "pos" };
    let labels = format!(
        "{{\"region\":\"{}\",\"role\":\"{role}\",\"store\":\"{:05}\"{}}}",
        regions[host % regions.len()],
        host / 2,
        if host.is_multiple_of(200) { ",\"legacy\":\"yes\"" } else { "" }
    );
    let seen = row.now_ms - spread("seen", host, 0, 10_000);
    row.set_all([
        ("id", id("agent", host, 0)),
        ("name", Cell::Text(host_name(host))),
        ("labels", Cell::Text(labels)),
        (
            "enrolled_ms",
            Cell::Number(row.now_ms - 400 * DAY_MS + spread("enrolled", host, 0, 200 * DAY_MS as u64)),
        ),
        ("last_seen_ms", Cell::Number(seen)),
        ("certificate_expires_ms", Cell::Number(row.now_ms + DAY_MS)),
        ("tls_key_sha256", bytes("tls", host, 0)),
        ("signing_key", bytes("signing", host, 0)),
    ])
}

fn series(row: &mut Row<'_>) -> Option<()> {
    let fence = i64::try_from(row.size.each()).unwrap_or_default();
    row.set_all([
        ("id", id("series", row.host, 0)),
        ("agent_id", id("agent", row.host, 0)),
        ("fence", Cell::Number(fence)),
    ])
}

fn source(row: &mut Row<'_>) -> Option<()> {
    row.set_all([("agent_id", id("agent", row.host, 0)), ("series_id", id("series", row.host, 0))])
}

fn run(row: &mut Row<'_>) -> Option<()> {
    let (host, n) = (row.host, row.n);
    let asked = row.asked_ms(n);
    if row.fails(n) {
        row.set_all([
            ("state", Cell::Text("failed".to_owned())),
            ("backup_id", Cell::Null),
            ("error", Cell::Text("pg_dump ended with exit code 1".to_owned())),
        ])?;
    } else {
        row.set("backup_id", id("backup", host, n));
    }
    row.set_all([
        ("id", id("run", host, n)),
        ("agent_id", id("agent", host, 0)),
        ("series_id", id("series", host, 0)),
        ("created_ms", Cell::Number(asked)),
        ("due_ms", Cell::Number(asked)),
        ("started_ms", Cell::Number(asked + 200)),
        ("ended_ms", Cell::Number(asked + 60_000 + spread("took", host, n, 600_000))),
    ])
}

fn attempt(row: &mut Row<'_>) -> Option<()> {
    let (host, n) = (row.host, row.n);
    let asked = row.asked_ms(n);
    if row.fails(n) {
        let error = "pg_dump ended with exit code 1".to_owned();
        row.set_all([
            ("state", Cell::Text("failed".to_owned())),
            ("backup_id", Cell::Null),
            ("error", Cell::Text(error)),
        ])?;
    } else {
        row.set("backup_id", id("backup", host, n));
    }
    row.set_all([
        ("run_id", id("run", host, n)),
        ("agent_id", id("agent", host, 0)),
        ("series_id", id("series", host, 0)),
        ("epoch", Cell::Number(i64::try_from(n).unwrap_or_default() + 1)),
        ("started_ms", Cell::Number(asked + 200)),
        ("lease_expires_ms", Cell::Number(asked + 90_000)),
        ("ended_ms", Cell::Number(asked + 60_000 + spread("took", host, n, 600_000))),
    ])
}

fn backup(row: &mut Row<'_>) -> Option<()> {
    let (host, n) = (row.host, row.n);
    if row.fails(n) {
        return None;
    }
    let asked = row.asked_ms(n);
    row.set_all([
        ("id", id("backup", host, n)),
        ("series_id", id("series", host, 0)),
        ("agent_id", id("agent", host, 0)),
        ("run_id", id("run", host, n)),
        ("sequence", Cell::Number(i64::try_from(n).unwrap_or_default() + 1)),
        ("previous_sha256", bytes("manifest", host, n.wrapping_sub(1))),
        ("manifest_sha256", bytes("manifest", host, n)),
        ("created_ms", Cell::Number(asked + 300)),
        ("committed_ms", Cell::Number(asked + 60_000 + spread("took", host, n, 600_000))),
        ("signed_until_ms", Cell::Number(asked + 2 * HOUR_MS)),
        ("raw_bytes", Cell::Number((1 << 30) + spread("raw", host, n, 50 << 30))),
        ("new_raw_bytes", Cell::Number(spread("new", host, n, 1 << 30))),
        ("new_stored_bytes", Cell::Number(spread("stored", host, n, 1 << 28))),
    ])
}

fn pack(row: &mut Row<'_>) -> Option<()> {
    let (host, n) = (row.host, row.n);
    let of = n / row.size.packs.max(1);
    let stored = row.asked_ms(of) + 30_000;
    row.set_all([
        ("series_id", id("series", host, 0)),
        ("ordinal", Cell::Number(i64::try_from(n).unwrap_or_default())),
        ("sha256", bytes("pack", host, n)),
        ("pack_id", Cell::Bytes(id_bytes("pack", host, n).to_vec())),
        ("origin_backup", Cell::Bytes(id_bytes("backup", host, of).to_vec())),
        ("size", Cell::Number(1_000_000 + spread("size", host, n, 16 << 20))),
        ("signed_ms", Cell::Number(stored - 1_000)),
        ("stored_ms", Cell::Number(stored)),
    ])
}

fn stored_pack(row: &mut Row<'_>) -> Option<()> {
    // Far from the ordinals of real packs.
    let ordinal = i64::try_from(row.n).unwrap_or_default() + 1_000_000;
    row.set_all([
        ("ordinal", Cell::Number(ordinal)),
        ("sha256", bytes("stored pack", row.host, row.n)),
        ("pack_id", Cell::Bytes(id_bytes("stored pack", row.host, row.n).to_vec())),
        ("state", Cell::Text("stored".to_owned())),
    ])
}

fn event(row: &mut Row<'_>) -> Option<()> {
    let (host, n) = (row.host, row.n);
    let (of, second) = (n / 2, n % 2 == 1);
    let Cell::Text(agent) = id("agent", host, 0) else { return None };
    let Cell::Text(backup) = id("backup", host, of) else { return None };
    row.set_all([
        ("id", id("event", host, n)),
        ("request_id", id("request", host, of)),
        ("time_ms", Cell::Number(row.asked_ms(of) + 60_000 + i64::from(second))),
        ("actor", Cell::Text(format!("agent:{agent}"))),
        ("entity", Cell::Text(format!("backup:{backup}"))),
        ("outcome", Cell::Text(if second { "done" } else { "intended" }.to_owned())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_differ_in_what_tells_them_apart_and_in_nothing_else() {
        let columns = ["id", "seq", "state", "unknown", "backup_id"].map(str::to_owned).to_vec();
        let text = |text: &str| Cell::Text(text.to_owned());
        let cells = vec![text("template"), Cell::Number(1), text("succeeded"), text("kept"), text("b")];
        let size = Size { hosts: 3, backups: 60, packs: 1 };
        let table = TABLES.iter().find(|table| table.name == "runs").unwrap();
        let mut rows = Rows::of(table, Template { columns, cells }, size, 100 * DAY_MS);
        assert_eq!(rows.columns(), ["id", "state", "unknown", "backup_id"]);
        let (mut ids, mut failed) = (std::collections::BTreeSet::new(), 0);
        while let Some(row) = rows.next() {
            let Cell::Text(id) = &row[0] else { panic!("{row:?}") };
            assert!(ids.insert(id.clone()) && id.len() == 36, "{id}");
            assert_eq!(row[2], text("kept"));
            failed += usize::from(row[3] == Cell::Null);
        }
        assert_eq!((ids.len(), failed), (60, 0), "no host is so unlucky in twenty days");
    }
}
