//! Lists of hosts with their labels, as spreadsheets and inventories give them: CSV with a header, a column `name`, and a
//! column for each label.

use std::collections::BTreeMap;
use std::path::Path;

use sealift_common::name::{Name, parse_label};

use crate::error::{Error, Exit, Result, because};

/// Largest file, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// Most hosts.
const MAX_HOSTS: usize = 10_000;

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLine {
    /// What the host is called.
    pub name: Name,
    /// Its labels; a cell that is empty is no label.
    pub labels: BTreeMap<String, String>,
    /// Columns whose cell is empty.
    pub empty: Vec<String>,
    /// Which rule of the trust policy it falls under; from the column `scope`.
    pub scope: String,
}

/// Reads a list.
///
/// # Errors
/// Exit code 2: the line and what is wrong with it.
pub fn read(path: &Path) -> Result<Vec<HostLine>> {
    let unreadable = || because(Exit::Usage, format!("cannot read {}", path.display()));
    let size = std::fs::metadata(path).map_err(unreadable())?.len();
    if size > MAX_FILE {
        return Err(Error::usage(format!("{} is longer than 16 MiB", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable())?;
    parse(&text).map_err(|problem| Error::usage(format!("{}, {problem}", path.display())))
}

fn parse(text: &str) -> Result<Vec<HostLine>, String> {
    // Spreadsheets put a byte order mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = records(text)?.into_iter();
    let (_, header) = lines.next().ok_or("line 1: it is empty: write a header, like name,store,region")?;
    let name_at =
        header.iter().position(|column| column == "name").ok_or("line 1: there is no column \"name\"")?;
    for column in header.iter().filter(|column| !matches!(column.as_str(), "name" | "scope")) {
        column
            .parse::<Name>()
            .map_err(|error| format!("line 1: the column {column:?} is no label: {error}"))?;
    }
    let mut hosts: Vec<HostLine> = Vec::new();
    for (line, cells) in lines {
        let wrong = |problem: String| format!("line {line}: {problem}");
        if cells.len() != header.len() {
            return Err(wrong(format!("{} cells, the header has {}", cells.len(), header.len())));
        }
        let name: Name = cells[name_at].parse().map_err(|error| wrong(format!("{error}")))?;
        if hosts.iter().any(|host| host.name == name) {
            return Err(wrong(format!("{name} is named twice")));
        }
        let mut host = HostLine { name, labels: BTreeMap::new(), empty: Vec::new(), scope: String::new() };
        for (column, cell) in header.iter().zip(cells) {
            match column.as_str() {
                "name" => {}
                "scope" => host.scope = cell,
                _ if cell.is_empty() => host.empty.push(column.clone()),
                _ => {
                    parse_label(&format!("{column}={cell}")).map_err(|error| wrong(error.to_string()))?;
                    host.labels.insert(column.clone(), cell);
                }
            }
        }
        hosts.push(host);
    }
    match hosts.len() {
        0 => Err("line 2: there are no hosts".to_owned()),
        n if n > MAX_HOSTS => Err(format!("it has {n} hosts, at most {MAX_HOSTS} go in one list")),
        _ => Ok(hosts),
    }
}

/// Lines of cells (RFC 4180: quotes around a cell, doubled within), each with its number. Empty lines are left out, as are
/// those that start with `#`.
fn records(text: &str) -> Result<Vec<(usize, Vec<String>)>, String> {
    let mut out = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        out.push((number, cells(line).ok_or_else(|| format!("line {number}: a quote does not end"))?));
    }
    Ok(out)
}

fn cells(line: &str) -> Option<Vec<String>> {
    let (mut cells, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(std::mem::take(&mut cell).trim().to_owned()),
            _ => cell.push(c),
        }
    }
    cells.push(cell.trim().to_owned());
    (!quoted).then_some(cells)
}

/// A list as CSV, for another program to read.
pub fn to_csv<'a>(header: &[&str], rows: impl IntoIterator<Item = Vec<&'a str>>) -> String {
    // Names, ids and tokens: nothing in them needs quotes.
    let mut out = header.join(",") + "\n";
    for row in rows {
        out.push_str(&row.join(","));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_spreadsheets_write_them() {
        let text = "\u{feff}name,store,\"region\",scope\r\n# comment\r\nstore-1, 0001 ,eu,\r\n\r\n\"store-2\",0002,,dba\r\n";
        let hosts = parse(text).unwrap();
        assert_eq!(hosts.len(), 2);
        assert_eq!(
            hosts[0].labels,
            [("region", "eu"), ("store", "0001")].map(|(k, v)| (k.into(), v.into())).into()
        );
        assert_eq!((hosts[1].name.as_str(), hosts[1].scope.as_str()), ("store-2", "dba"));
        assert_eq!((hosts[1].labels.len(), hosts[1].empty.as_slice()), (1, ["region".to_owned()].as_slice()));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, says) in [
            ("", "line 1"),
            ("host,store\na,b", "no column \"name\""),
            ("name,a b\nx,y", "is no label"),
            ("name,store\n", "no hosts"),
            ("name,store\nstore-1", "line 2: 1 cells"),
            ("name\nstore-1\nstore-1", "line 3: store-1 is named twice"),
            ("name,store\nstore-1,a b", "line 2"),
            ("name\n\"store-1", "does not end"),
            ("name\nStore 1", "line 2"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(says), "{text:?}: {problem}");
        }
    }
}
