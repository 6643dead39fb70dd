//! Names of the objects in the bucket, relative to `<prefix>/` (docs/format.md, Objects).
//!
//! To add a kind of object: a variant of [`ObjectName`], its line in `Display` and its arm in `FromStr`.

use std::fmt;
use std::str::FromStr;

use crate::id::{AgentId, BackupId, SeriesId, Sha256};

/// The largest trust-policy version that fits its ten digits.
pub const MAX_TRUST_VERSION: u64 = 9_999_999_999;

/// A text that names no object of this format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a Sealift object")]
pub struct InvalidObjectName(String);

/// The name of one object. Text and type are one to one: what parses prints the same again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// `sealift.json`: a hint for people and tools.
    Repository,
    /// One version of the trust policy.
    Trust {
        /// Its version, from 1.
        version: u64,
        /// Of the object's bytes.
        sha256: Sha256,
    },
    /// One signing key of an agent.
    AgentKey {
        /// The agent.
        agent: AgentId,
        /// Of the object's bytes.
        sha256: Sha256,
    },
    /// One pack.
    Pack {
        /// The series it belongs to.
        series: SeriesId,
        /// Of the object's bytes.
        sha256: Sha256,
    },
    /// One manifest: one backup.
    Manifest {
        /// The series it belongs to.
        series: SeriesId,
        /// Its place in the series, from 1.
        sequence: u64,
        /// Of the object's bytes.
        sha256: Sha256,
    },
    /// Further key slots for one backup's data key.
    Slots {
        /// The series.
        series: SeriesId,
        /// The backup whose data key it is.
        backup: BackupId,
        /// Of the object's bytes.
        sha256: Sha256,
    },
}

impl ObjectName {
    /// The SHA-256 that the object's bytes must have; `None` for `sealift.json`.
    pub fn sha256(&self) -> Option<Sha256> {
        match *self {
            Self::Repository => None,
            Self::Trust { sha256, .. }
            | Self::AgentKey { sha256, .. }
            | Self::Pack { sha256, .. }
            | Self::Manifest { sha256, .. }
            | Self::Slots { sha256, .. } => Some(sha256),
        }
    }

    /// The series it belongs to, if it belongs to one.
    pub fn series(&self) -> Option<SeriesId> {
        match *self {
            Self::Pack { series, .. } | Self::Manifest { series, .. } | Self::Slots { series, .. } => {
                Some(series)
            }
            Self::Repository | Self::Trust { .. } | Self::AgentKey { .. } => None,
        }
    }
}

/// The series that the coordinator's own backups are: manifests and packs like any other's, under names of their own below
/// [`COORDINATOR_PREFIX`]. No host's series has this id: those are random.
pub const COORDINATOR_SERIES: SeriesId = SeriesId::from_bytes([0; 16]);

/// What all trust policies' names start with.
pub const TRUST_PREFIX: &str = "trust/";
/// What all series' objects' names start with.
pub const SERIES_PREFIX: &str = "series/";
/// What all agent keys' names start with.
pub const AGENTS_PREFIX: &str = "agents/";
/// What the coordinator's own objects' names start with: its backups, audit checkpoints, generation.
pub const COORDINATOR_PREFIX: &str = "coordinator/";

/// What the names of one agent's keys start with.
pub fn agent_prefix(agent: AgentId) -> String {
    format!("{AGENTS_PREFIX}{agent}/")
}

/// What the names of all objects of one series start with.
pub fn series_prefix(series: SeriesId) -> String {
    if series == COORDINATOR_SERIES {
        return COORDINATOR_PREFIX.to_owned();
    }
    format!("{SERIES_PREFIX}{series}/")
}

/// What the names of the packs of one series start with.
pub fn packs_prefix(series: SeriesId) -> String {
    format!("{}{}/", series_prefix(series), folders(series).0)
}

/// What the names of the manifests of one series start with. They sort by sequence.
pub fn manifests_prefix(series: SeriesId) -> String {
    format!("{}{}/", series_prefix(series), folders(series).1)
}

/// What the names of further slots for one backup's data key start with.
pub fn slots_prefix(series: SeriesId, backup: BackupId) -> String {
    format!("{}slots/{backup}/", series_prefix(series))
}

/// Where packs and manifests of a series lie below its prefix.
fn folders(series: SeriesId) -> (&'static str, &'static str) {
    if series == COORDINATOR_SERIES { ("parts", "backups") } else { ("packs", "manifests") }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository => f.write_str("sealift.json"),
            Self::Trust { version, sha256 } => write!(f, "{TRUST_PREFIX}{version:010}-{sha256}"),
            Self::AgentKey { agent, sha256 } => write!(f, "{AGENTS_PREFIX}{agent}/{sha256}"),
            Self::Pack { series, sha256 } => write!(f, "{}{sha256}", packs_prefix(*series)),
            Self::Manifest { series, sequence, sha256 } => {
                write!(f, "{}{sequence:020}-{sha256}", manifests_prefix(*series))
            }
            Self::Slots { series, backup, sha256 } => {
                write!(f, "{}{sha256}", slots_prefix(*series, *backup))
            }
        }
    }
}

impl FromStr for ObjectName {
    type Err = InvalidObjectName;
    fn from_str(text: &str) -> Result<Self, InvalidObjectName> {
        let parsed = parse(text).filter(|name| name.to_string() == text);
        parsed.ok_or_else(|| InvalidObjectName(text.chars().take(200).collect()))
    }
}

fn parse(text: &str) -> Option<ObjectName> {
    let parts: Vec<&str> = text.splitn(6, '/').collect();
    Some(match parts.as_slice() {
        ["sealift.json"] => ObjectName::Repository,
        ["trust", name] => {
            let (version, sha256) = numbered(name)?;
            ObjectName::Trust { version, sha256 }
        }
        ["agents", agent, sha256] => {
            ObjectName::AgentKey { agent: agent.parse().ok()?, sha256: sha256.parse().ok()? }
        }
        ["series", series, "packs", sha256] => {
            ObjectName::Pack { series: series.parse().ok()?, sha256: sha256.parse().ok()? }
        }
        ["series", series, "manifests", name] => {
            let (sequence, sha256) = numbered(name)?;
            ObjectName::Manifest { series: series.parse().ok()?, sequence, sha256 }
        }
        ["series", series, "slots", backup, sha256] => ObjectName::Slots {
            series: series.parse().ok()?,
            backup: backup.parse().ok()?,
            sha256: sha256.parse().ok()?,
        },
        ["coordinator", "parts", sha256] => {
            ObjectName::Pack { series: COORDINATOR_SERIES, sha256: sha256.parse().ok()? }
        }
        ["coordinator", "backups", name] => {
            let (sequence, sha256) = numbered(name)?;
            ObjectName::Manifest { series: COORDINATOR_SERIES, sequence, sha256 }
        }
        ["coordinator", "slots", backup, sha256] => ObjectName::Slots {
            series: COORDINATOR_SERIES,
            backup: backup.parse().ok()?,
            sha256: sha256.parse().ok()?,
        },
        _ => return None,
    })
}

/// `<digits>-<sha256>`, numbers counting from 1.
fn numbered(name: &str) -> Option<(u64, Sha256)> {
    let (number, sha256) = name.split_once('-')?;
    let number = number.parse().ok().filter(|number| *number > 0)?;
    Some((number, sha256.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Random;

    #[test]
    fn every_name_prints_and_parses_one_to_one() {
        let random = Random::from_seed(1);
        let (series, sha256) = (SeriesId::generate(&random), Sha256::of(b"x"));
        let (backup, agent) = (BackupId::generate(&random), AgentId::generate(&random));
        for name in [
            ObjectName::Repository,
            ObjectName::Trust { version: 7, sha256 },
            ObjectName::AgentKey { agent, sha256 },
            ObjectName::Pack { series, sha256 },
            ObjectName::Manifest { series, sequence: u64::MAX, sha256 },
            ObjectName::Slots { series, backup, sha256 },
            ObjectName::Pack { series: COORDINATOR_SERIES, sha256 },
            ObjectName::Manifest { series: COORDINATOR_SERIES, sequence: 1, sha256 },
            ObjectName::Slots { series: COORDINATOR_SERIES, backup, sha256 },
        ] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        let manifest = ObjectName::Manifest { series, sequence: 3, sha256 }.to_string();
        assert!(manifest.starts_with(&manifests_prefix(series)), "{manifest}");
        assert_eq!(manifest, format!("series/{series}/manifests/00000000000000000003-{sha256}"));
        let trust = ObjectName::Trust { version: 3, sha256 }.to_string();
        assert_eq!(trust, format!("trust/0000000003-{sha256}"));
        let own = ObjectName::Manifest { series: COORDINATOR_SERIES, sequence: 3, sha256 }.to_string();
        assert_eq!(own, format!("coordinator/backups/00000000000000000003-{sha256}"));
        assert!(own.starts_with(&manifests_prefix(COORDINATOR_SERIES)));
        assert!(own.starts_with(&series_prefix(COORDINATOR_SERIES)));
    }

    #[test]
    fn other_spellings_of_a_name_are_refused() {
        let series = SeriesId::generate(&Random::from_seed(1));
        let sha256 = Sha256::of(b"x").to_string();
        for bad in [
            String::new(),
            "Sealift.json".to_owned(),
            format!("trust/3-{sha256}"),
            format!("trust/0000000000-{sha256}"),
            format!("trust/+000000003-{sha256}"),
            format!("trust/00000000003-{sha256}"),
            format!("series/{series}/packs/{}", sha256.to_uppercase()),
            format!("series/{}/packs/{sha256}", series.to_string().to_uppercase()),
            format!("series/{series}/packs/../packs/{sha256}"),
            format!("series/{series}/packs/{sha256}/"),
            format!("/series/{series}/packs/{sha256}"),
            format!("series/{COORDINATOR_SERIES}/packs/{sha256}"),
            format!("series/{COORDINATOR_SERIES}/manifests/00000000000000000001-{sha256}"),
        ] {
            assert!(bad.parse::<ObjectName>().is_err(), "{bad}");
        }
    }
}
