//! Keys of objects, relative to the repository's prefix: the names of the format ([`ObjectName`]) and the coordinator's own.

use std::fmt;
use std::str::FromStr;

use sealift_common::format::names::{COORDINATOR_PREFIX, ObjectName};

/// The key of one object: parts of letters, digits, `-`, `_` and `.`, relative to the prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

/// A text that is not an object's key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an object's key: parts of letters, digits, '-', '_' and '.', joined by '/'")]
pub struct InvalidObjectKey(String);

/// Whether `part` may stand between two slashes. No character of it needs escaping in a URL, on any server.
pub(super) fn is_part(part: &str) -> bool {
    !part.is_empty()
        && part != "."
        && part != ".."
        && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
}

impl ObjectKey {
    /// An object of the coordinator's own.
    ///
    /// # Errors
    /// [`InvalidObjectKey`] where `rest` is not made of key parts.
    pub fn coordinator(rest: &str) -> Result<Self, InvalidObjectKey> {
        format!("{COORDINATOR_PREFIX}{rest}").parse()
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<ObjectName> for ObjectKey {
    fn from(name: ObjectName) -> Self {
        Self(name.to_string())
    }
}

impl FromStr for ObjectKey {
    type Err = InvalidObjectKey;
    fn from_str(text: &str) -> Result<Self, InvalidObjectKey> {
        if text.len() <= 512 && text.split('/').all(is_part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidObjectKey(text.chars().take(120).collect()))
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_leave_its_prefix() {
        for bad in ["", "/", "../x", "a/../b", "a//b", "/a", "a/", "a?b", "a b", "a%2fb", "ü"] {
            assert!(bad.parse::<ObjectKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_name_of_the_format_is_a_key() {
        let name = ObjectName::Trust { version: 1, sha256: sealift_common::id::Sha256::of(b"") };
        assert_eq!(ObjectKey::from(name).to_string().parse(), Ok(ObjectKey::from(name)));
    }
}
