//! One TOML file as a table that still knows its lines, with `${VAR}` filled in.
//!
//! Sources are taken out and read one by one by their `kind`: serde's tagged enums would forget the line of a wrong key.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use sealift_common::name::Name;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::secret::{Environment, variable_name};

/// Largest configuration file, in bytes.
pub const MAX_FILE: u64 = 1024 * 1024;
/// Keys whose values are not filled in here: secrets are read anew for each run, and a command's arguments would show
/// in process lists.
const LEFT_ALONE: [&str; 3] = ["password", "command", "env"];

/// A parsed file, and what is needed to say where in it something is.
pub struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    root: Spanned<DeTable<'a>>,
}

/// A key and its value, with their places.
type Entry<'a> = (Spanned<Cow<'a, str>>, Spanned<DeValue<'a>>);

impl<'a> Document<'a> {
    /// Parses `text` and fills in `${VAR}` (`$${` stays `${`).
    pub fn parse(path: &'a Path, text: &'a str, environment: &Environment) -> Result<Self, ConfigError> {
        let root = DeTable::parse(text).map_err(|e| invalid(path, text, e.span(), e.message()))?;
        let mut this = Self { path, text, root };
        let fill = |table: &mut DeTable<'a>| fill_in_table(table, environment);
        fill(this.root.get_mut()).map_err(|(span, problem)| invalid(path, text, Some(span), &problem))?;
        Ok(this)
    }

    /// Takes the `[[source]]` tables out.
    pub fn take_sources(&mut self) -> Result<Vec<SourceTable<'a>>, ConfigError> {
        let Some((_, value)) = self.take("source") else { return Ok(Vec::new()) };
        let span = value.span();
        let DeValue::Array(array) = value.into_inner() else {
            return Err(self.invalid(span, "write a source as [[source]], with two brackets"));
        };
        array.into_iter().map(|item| self.source_table(item)).collect()
    }

    fn source_table(&self, item: Spanned<DeValue<'a>>) -> Result<SourceTable<'a>, ConfigError> {
        let span = item.span();
        let DeValue::Table(mut table) = item.into_inner() else {
            return Err(self.invalid(span, "a source is a table"));
        };
        let kind = table.remove("kind").map(Spanned::into_inner);
        let kind = match kind {
            Some(DeValue::String(kind)) => kind.into_owned(),
            _ => {
                let problem = "this source needs kind = \"postgres\", \"mysql\", \"sqlite\", \"directory\" or \"command\"";
                return Err(self.invalid(span, problem));
            }
        };
        let name =
            table.remove("name").ok_or_else(|| self.invalid(span.clone(), "this source needs a name"))?;
        let name_span = name.span();
        let name = match name.into_inner() {
            DeValue::String(name) => name.parse().map_err(|e| self.invalid(name_span, &format!("{e}")))?,
            _ => return Err(self.invalid(name_span, "the name of a source is a text")),
        };
        Ok(SourceTable { name, kind, table: Spanned::new(span, DeValue::Table(table)) })
    }

    fn take(&mut self, key: &str) -> Option<Entry<'a>> {
        self.root.get_mut().remove_entry(key)
    }

    /// Reads what is left as `T`, which refuses keys that it does not know.
    pub fn read_rest<T: DeserializeOwned>(&mut self) -> Result<T, ConfigError> {
        let root = std::mem::replace(&mut self.root, Spanned::new(0..0, DeTable::new()));
        T::deserialize(toml::de::Deserializer::from(root))
            .map_err(|e| invalid(self.path, self.text, e.span(), e.message()))
    }

    /// Reads one source's table as `T`, which refuses keys that it does not know.
    pub fn read<T: DeserializeOwned>(&self, table: Spanned<DeValue<'a>>) -> Result<T, ConfigError> {
        let whole = table.span();
        T::deserialize(toml::de::ValueDeserializer::from(table))
            .map_err(|e| invalid(self.path, self.text, e.span().or(Some(whole)), e.message()))
    }

    /// An error at `span`.
    pub fn invalid(&self, span: Range<usize>, problem: &str) -> ConfigError {
        invalid(self.path, self.text, Some(span), problem)
    }
}

/// One `[[source]]`, not yet read.
pub struct SourceTable<'a> {
    /// Its `name`.
    pub name: Name,
    /// Its `kind`.
    pub kind: String,
    /// The rest of its keys.
    pub table: Spanned<DeValue<'a>>,
}

fn invalid(path: &Path, text: &str, span: Option<Range<usize>>, problem: &str) -> ConfigError {
    let start = span.map_or(0, |span| span.start.min(text.len()));
    let line = text.as_bytes()[..start].iter().filter(|c| **c == b'\n').count() + 1;
    ConfigError::Invalid { path: path.to_owned(), line, problem: problem.trim().replace('\n', "; ") }
}

type Misfit = (Range<usize>, String);

fn fill_in_table(table: &mut DeTable<'_>, environment: &Environment) -> Result<(), Misfit> {
    for (key, value) in table.iter_mut() {
        if !LEFT_ALONE.contains(&key.get_ref().as_ref()) {
            fill_in_value(value, environment)?;
        }
    }
    Ok(())
}

fn fill_in_value(value: &mut Spanned<DeValue<'_>>, environment: &Environment) -> Result<(), Misfit> {
    let span = value.span();
    match value.get_mut() {
        DeValue::String(text) if text.contains("${") => {
            *text = Cow::Owned(fill_in(text, environment).map_err(|problem| (span, problem))?);
            Ok(())
        }
        DeValue::Array(array) => array.iter_mut().try_for_each(|item| fill_in_value(item, environment)),
        DeValue::Table(table) => fill_in_table(table, environment),
        _ => Ok(()),
    }
}

/// Replaces each `${VAR}` in `text`; `$${` stands for a literal `${`.
fn fill_in(text: &str, environment: &Environment) -> Result<String, String> {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            out.extend([before, "${"]);
            rest = after;
            continue;
        }
        let (name, tail) = after.split_once('}').ok_or("\"${\" without \"}\": write $${ for a literal ${")?;
        let name = variable_name(name)?;
        let value =
            environment.get(name).ok_or_else(|| format!("the environment variable {name} is not set"))?;
        out.extend([before, value.expose()]);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in_but_not_twice() {
        let environment = Environment::fixed([("A", "1"), ("B", "${A}")]);
        assert_eq!(fill_in("x${A}y${B}", &environment).unwrap(), "x1y${A}");
        assert_eq!(fill_in("$${A}", &environment).unwrap(), "${A}");
        assert!(fill_in("${A", &environment).is_err());
        assert_eq!(fill_in("${C}", &environment).unwrap_err(), "the environment variable C is not set");
    }

    #[test]
    fn a_secret_is_not_filled_in_early() {
        let environment = Environment::fixed([("PW", "hunter2")]);
        let text = "a = \"${PW}\"\npassword = \"${PW}\"\ncommand = [\"sh\", \"-c\", \"echo ${HOME}\"]\n";
        let document = Document::parse(Path::new("x"), text, &environment).unwrap();
        let table = document.root.get_ref();
        assert_eq!(table.get("a").unwrap().get_ref().as_str(), Some("hunter2"));
        assert_eq!(table.get("password").unwrap().get_ref().as_str(), Some("${PW}"));
    }
}
