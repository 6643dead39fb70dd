//! Names of objects, relative to the repository's prefix (docs/format.md, Objects).

use std::fmt;
use std::str::FromStr;

use sealift_common::id::{AgentId, BackupId, SeriesId, Sha256};

/// The name of one object: path parts of letters, digits, `-`, `_` and `.`, relative to the prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

/// A text that is not an object's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an object's name: parts of letters, digits, '-', '_' and '.', joined by '/'")]
pub struct InvalidObjectName(String);

/// Whether `part` may stand between two slashes. No character of it needs escaping in a URL, on any server.
pub(super) fn is_part(part: &str) -> bool {
    !part.is_empty()
        && part != "."
        && part != ".."
        && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
}

impl ObjectName {
    /// A pack of a series.
    pub fn pack(series: SeriesId, sha256: Sha256) -> Self {
        Self(format!("series/{series}/packs/{sha256}"))
    }

    /// Where all packs of a series are.
    pub fn packs_of(series: SeriesId) -> String {
        format!("series/{series}/packs/")
    }

    /// A manifest of a series.
    pub fn manifest(series: SeriesId, sequence: u64, sha256: Sha256) -> Self {
        Self(format!("series/{series}/manifests/{sequence:020}-{sha256}"))
    }

    /// Where further key slots of one backup are.
    pub fn slots_of(series: SeriesId, backup: BackupId) -> String {
        format!("series/{series}/slots/{backup}/")
    }

    /// Where the signing keys of an agent are.
    pub fn keys_of(agent: AgentId) -> String {
        format!("agents/{agent}/")
    }

    /// A signing key of an agent.
    pub fn agent_key(agent: AgentId, sha256: Sha256) -> Self {
        Self(format!("agents/{agent}/{sha256}"))
    }

    /// A version of the trust policy.
    pub fn trust(version: u64, sha256: Sha256) -> Self {
        Self(format!("trust/{version:010}-{sha256}"))
    }

    /// The hint at the root that says what this prefix is.
    pub fn repository() -> Self {
        Self("sealift.json".to_owned())
    }

    /// An object of the coordinator's own.
    ///
    /// # Errors
    /// [`InvalidObjectName`] where `rest` is not made of name parts.
    pub fn coordinator(rest: &str) -> Result<Self, InvalidObjectName> {
        format!("coordinator/{rest}").parse()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectName {
    type Err = InvalidObjectName;
    fn from_str(text: &str) -> Result<Self, InvalidObjectName> {
        if text.len() <= 512 && text.split('/').all(is_part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidObjectName(text.chars().take(120).collect()))
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_format() {
        let series: SeriesId = "0190c5e1-0000-4000-8000-000000000001".parse().unwrap();
        let hash = Sha256::of(b"");
        assert_eq!(
            ObjectName::manifest(series, 7, hash).as_str(),
            format!("series/{series}/manifests/00000000000000000007-{hash}")
        );
        assert_eq!(ObjectName::trust(3, hash).as_str(), format!("trust/0000000003-{hash}"));
        assert!(ObjectName::pack(series, hash).as_str().starts_with(&ObjectName::packs_of(series)));
    }

    #[test]
    fn a_name_cannot_leave_its_prefix() {
        for bad in ["", "/", "../x", "a/../b", "a//b", "/a", "a/", "a?b", "a b", "a%2fb", "ü"] {
            assert!(bad.parse::<ObjectName>().is_err(), "{bad}");
        }
    }
}
