//! Names and labels, parsed once at the edge: whatever holds one of these types is known to be well-formed. What selects
//! by them is in [`crate::selector`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of an agent, a source or a label key, in bytes.
pub const MAX_NAME: usize = 63;
/// Longest value of a label, in bytes.
pub const MAX_LABEL_VALUE: usize = 128;
/// Most labels an agent may carry.
pub const MAX_LABELS: usize = 64;

/// A text that is not a name or a label; says which rule it broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a [`Name`].
    #[error(
        "{0:?} is not a name: use 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit"
    )]
    Name(String),
    /// Not a label.
    #[error(
        "label {0:?} is not KEY=VALUE: the key is a name, the value 1 to 128 of letters, digits, '.', '_', '-', '/' and ':'"
    )]
    Label(String),
    /// Not a source reference.
    #[error("{0:?} is not AGENT/SOURCE")]
    SourceRef(String),
}

/// Cuts what goes into an error message, so that a hostile name cannot flood a log.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The name of an agent, a source or a policy: `^[a-z0-9][a-z0-9._-]{0,62}$`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let lower_or_digit = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = text.len() <= MAX_NAME
            && text.bytes().next().is_some_and(lower_or_digit)
            && text.bytes().all(|c| lower_or_digit(c) || b"._-".contains(&c));
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidName::Name(shown(text))) }
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One source of one agent: `AGENT/SOURCE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRef {
    /// Name (or id) of the agent.
    pub agent: String,
    /// Name of the source in that agent's config.
    pub source: Name,
}

impl FromStr for SourceRef {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let bad = || InvalidName::SourceRef(shown(text));
        let (agent, source) = text.split_once('/').ok_or_else(bad)?;
        agent.parse::<Name>().map_err(|_| bad())?;
        Ok(Self { agent: agent.to_owned(), source: source.parse().map_err(|_| bad())? })
    }
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.agent, self.source)
    }
}

/// Labels of an agent, given by tokens and admins, never by hosts: permissions rest on them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// These labels with `set` added or replaced and `remove` taken away.
    pub fn changed(&self, set: &Labels, remove: &[String]) -> Self {
        let mut out = self.0.clone();
        out.retain(|key, _| !remove.contains(key));
        out.extend(set.0.clone());
        Self(out)
    }
}

/// Parses one `KEY=VALUE`, as given on a command line.
///
/// # Errors
/// [`InvalidName::Label`] where key or value break the rules.
pub fn parse_label(text: &str) -> Result<(String, String), InvalidName> {
    let bad = || InvalidName::Label(shown(text));
    let (key, value) = text.split_once('=').ok_or_else(bad)?;
    if !label_fits(key, value) {
        return Err(bad());
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn label_fits(key: &str, value: &str) -> bool {
    key.parse::<Name>().is_ok()
        && (1..=MAX_LABEL_VALUE).contains(&value.len())
        && value.bytes().all(in_label_value)
}

/// Whether a label's value may hold this byte.
pub(crate) const fn in_label_value(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-' | b'/' | b':')
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = InvalidName;
    fn try_from(map: BTreeMap<String, String>) -> Result<Self, InvalidName> {
        if let Some((key, value)) = map.iter().find(|(k, v)| !label_fits(k, v)) {
            return Err(InvalidName::Label(shown(&format!("{key}={value}"))));
        }
        if map.len() > MAX_LABELS {
            return Err(InvalidName::Label(format!("{} labels, at most {MAX_LABELS}", map.len())));
        }
        Ok(Self(map))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "store-0042", "db.main_1", &"x".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a/b", "a b", "ü", "..", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_source_reference_has_two_names() {
        let parsed: SourceRef = "store-1/main-db".parse().unwrap();
        assert_eq!((parsed.agent.as_str(), parsed.source.as_str()), ("store-1", "main-db"));
        assert!("store-1".parse::<SourceRef>().is_err());
        assert!("store-1/../x".parse::<SourceRef>().is_err());
    }
}
