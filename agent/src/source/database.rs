//! What dumps of database servers have in common: names of their streams, and which databases are meant.

use std::collections::BTreeMap;

use sealift_common::id::Sha256;

use super::error::SourceError;
use super::{StreamHead, StreamKind};
use crate::config::source::Databases;

/// Longest escaped name that is used as it is, in bytes: file names end at 255.
const MAX_STEM: usize = 180;

/// A head for a stream of SQL.
pub fn sql_head(name: String, attributes: impl IntoIterator<Item = (&'static str, String)>) -> StreamHead {
    let mut map = BTreeMap::from([("format".to_owned(), "sql".to_owned())]);
    map.extend(attributes.into_iter().map(|(key, value)| (key.to_owned(), value)));
    StreamHead { name, kind: StreamKind::Dump, catalog_of: None, attributes: map }
}

/// `db/<name><suffix>`, safe as a file name: what is not a letter, digit, `_`, `-` or inner `.` is written `%XX`, and a
/// very long name is cut and told apart by its hash. The real name is the attribute `database`.
pub fn stream_name(database: &str, suffix: &str) -> String {
    let mut stem = String::new();
    for byte in database.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => stem.push(char::from(byte)),
            b'.' if !stem.is_empty() => stem.push('.'),
            other => stem.push_str(&format!("%{other:02X}")),
        }
    }
    if stem.len() > MAX_STEM {
        let hash = Sha256::of(database.as_bytes()).to_string();
        stem.truncate(MAX_STEM - 17);
        stem = format!("{stem}~{}", hash.get(..16).unwrap_or(&hash));
    }
    format!("db/{stem}{suffix}")
}

/// The databases that a source means, in the order of their names: those it names, or all, less those it leaves out.
///
/// # Errors
/// [`SourceError::Unusable`] where a named one is not there, or none is left: a source that shrank to nothing is no
/// backup.
pub fn choose<T>(
    found: Vec<T>,
    name: impl Fn(&T) -> &str,
    wanted: Option<&Databases>,
    excluded: &Databases,
    place: &str,
) -> Result<Vec<T>, SourceError> {
    if let Some(missing) = wanted.and_then(|w| w.names().iter().find(|n| found.iter().all(|f| name(f) != *n)))
    {
        let there = found.iter().take(20).map(&name).collect::<Vec<_>>().join(", ");
        let problem = format!("is not on the server at {place}, which has: {there}");
        return Err(SourceError::Unusable { item: format!("database {missing:?}"), problem });
    }
    let mut chosen = found;
    chosen.retain(|f| wanted.is_none_or(|w| w.contains(name(f))) && !excluded.contains(name(f)));
    if chosen.is_empty() {
        let problem = "has no database to back up: check databases and exclude_databases".to_owned();
        return Err(SourceError::Unusable { item: format!("the server at {place}"), problem });
    }
    chosen.sort_by(|a, b| name(a).cmp(name(b)));
    Ok(chosen)
}

/// Rows of `columns` fields from what a client printed, fields and rows each ended by `separator`.
pub fn rows<const N: usize>(
    tool: &str,
    answer: &[u8],
    separator: u8,
) -> Result<Vec<[String; N]>, SourceError> {
    let fail = |problem: &str| SourceError::ToolAnswer { tool: tool.to_owned(), problem: problem.to_owned() };
    let text = std::str::from_utf8(answer).map_err(|_| fail("it is not UTF-8"))?;
    let separator = char::from(separator);
    let Some(body) = text.strip_suffix(separator) else {
        return if text.is_empty() { Ok(Vec::new()) } else { Err(fail("the last row has no end")) };
    };
    let fields: Vec<String> = body.split(separator).map(str::to_owned).collect();
    if !fields.len().is_multiple_of(N) {
        return Err(fail(&format!("{} fields do not make rows of {N}", fields.len())));
    }
    let (whole, _) = fields.as_chunks::<N>();
    Ok(whole.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_names_are_safe_and_distinct() {
        for (name, stream) in [
            ("production", "db/production.sql"),
            ("Shop-2.v1", "db/Shop-2.v1.sql"),
            ("..", "db/%2E..sql"),
            ("a/b", "db/a%2Fb.sql"),
            ("ü\"", "db/%C3%BC%22.sql"),
            ("100%", "db/100%25.sql"),
        ] {
            assert_eq!(stream_name(name, ".sql"), stream);
        }
        let (a, b) = ("ü".repeat(64), format!("{}x", "ü".repeat(63)));
        assert_ne!(stream_name(&a, ".sql"), stream_name(&b, ".sql"));
        assert!(stream_name(&a, ".create.sql").len() < 255);
    }

    #[test]
    fn a_missing_database_is_an_error_and_so_is_none_at_all() {
        let names = |list: &[&str]| {
            Databases::try_from(list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap()
        };
        let found = || vec!["b", "a", "c"];
        let choose = |wanted: Option<&Databases>, excluded: &Databases| {
            choose(found(), |f| f, wanted, excluded, "here")
        };
        assert_eq!(choose(None, &names(&["b"])).unwrap(), ["a", "c"]);
        assert_eq!(choose(Some(&names(&["c", "a"])), &names(&[])).unwrap(), ["a", "c"]);
        assert!(choose(Some(&names(&["x"])), &names(&[])).unwrap_err().to_string().contains("\"x\""));
        assert!(choose(None, &names(&["a", "b", "c"])).is_err());
    }

    #[test]
    fn answers_are_rows() {
        assert_eq!(rows::<2>("t", b"a\0b\0c\0\0", 0).unwrap(), [["a", "b"], ["c", ""]]);
        assert!(rows::<2>("t", b"", 0).unwrap().is_empty());
        assert!(rows::<2>("t", b"a\0b\0c\0", 0).is_err());
        assert!(rows::<2>("t", b"a\0b", 0).is_err());
    }
}
