//! One id type per noun, so that a run's id cannot be handed in where a backup's is wanted.
//!
//! Ids are UUIDs: 16 raw bytes in stored structures and on the wire, lower-case and dashed in object names, in text and
//! in JSON. New ids are made by [`Random`], the one source of randomness that code takes as an argument.
//!
//! To add a noun, add a line to the `ids!` call below.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A byte string or a text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{noun} id must be {expected}, got {got}")]
pub struct InvalidId {
    noun: &'static str,
    expected: &'static str,
    got: String,
}

/// Where fresh ids and key material come from.
///
/// Production code uses [`Random::from_os`]; simulations that must be replayable use [`Random::from_seed`].
#[derive(Debug, Clone)]
pub struct Random(Source);

#[derive(Debug, Clone)]
enum Source {
    Os,
    Seeded(std::sync::Arc<std::sync::Mutex<blake3::OutputReader>>),
}

impl Random {
    /// The operating system's generator.
    pub fn from_os() -> Self {
        Self(Source::Os)
    }

    /// A deterministic stream for tests and simulations: never for keys that protect anything.
    pub fn from_seed(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        Self(Source::Seeded(std::sync::Arc::new(std::sync::Mutex::new(hasher.finalize_xof()))))
    }

    /// Fills `out` with random bytes.
    ///
    /// # Panics
    /// When the operating system has no randomness to give: nothing safe can be done without it.
    #[allow(clippy::expect_used)]
    pub fn fill(&self, out: &mut [u8]) {
        match &self.0 {
            Source::Os => aws_lc_rs::rand::fill(out).expect("the operating system's random generator failed"),
            Source::Seeded(reader) => {
                reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner).fill(out);
            }
        }
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// A uniformly distributed fraction in `[0, 1)`, for jitter.
    pub fn fraction(&self) -> f64 {
        (u64::from_le_bytes(self.bytes()) >> 11) as f64 / (1u64 << 53) as f64
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $noun:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh random id (UUID version 4).
            pub fn generate(random: &Random) -> Self {
                Self(uuid::Builder::from_random_bytes(random.bytes()).into_uuid())
            }

            /// The 16 raw bytes, as structures and the wire carry them.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The id as 16 raw bytes in a vector, as protobuf fields want it.
            pub fn to_vec(&self) -> Vec<u8> {
                self.0.as_bytes().to_vec()
            }

            /// The id with these raw bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidId;
            fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| InvalidId {
                    noun: $noun, expected: "16 bytes", got: format!("{} bytes", bytes.len()),
                })
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId {
                    noun: $noun, expected: "a UUID like 0190c5e1-…", got: format!("{:?}", text.chars().take(64).collect::<String>()),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.as_hyphenated())
            }
        }
    )*};
}

ids! {
    /// One repository: everything below one prefix of one bucket.
    RepositoryId = "repository";
    /// One host, for as long as it keeps its identity.
    AgentId = "agent";
    /// One start of an agent process; tells a restart from a clone.
    InstanceId = "instance";
    /// One start of a coordinator process.
    CoordinatorId = "coordinator";
    /// One source over time: unit of deduplication, sequence and isolation.
    SeriesId = "series";
    /// One planned backup of one source; has one or more attempts.
    RunId = "run";
    /// One backup, and the data key that its packs are sealed under.
    BackupId = "backup";
    /// One pack; never reused.
    PackId = "pack";
    /// One permission to restore, which keeps the packs it names from being deleted.
    LeaseId = "lease";
    /// One policy, whatever it is called.
    PolicyId = "policy";
    /// One pause of the schedules of part of the fleet.
    PauseId = "pause";
    /// One request, as audit and logs name it.
    RequestId = "request";
    /// One audit event.
    EventId = "event";
}

/// SHA-256 of an object's bytes: the last part of its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        let mut out = [0; 32];
        out.copy_from_slice(digest.as_ref());
        Self(out)
    }

    /// The 32 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The raw bytes in a vector, as protobuf fields want them.
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// A hash with these raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for Sha256 {
    type Error = InvalidId;
    fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
        bytes.try_into().map(Self).map_err(|_| InvalidId {
            noun: "SHA-256",
            expected: "32 bytes",
            got: format!("{} bytes", bytes.len()),
        })
    }
}

impl FromStr for Sha256 {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let mut out = [0; 32];
        hex::decode_to_slice(text, &mut out).map_err(|_| InvalidId {
            noun: "SHA-256",
            expected: "64 hex digits",
            got: format!("{:?}", text.chars().take(80).collect::<String>()),
        })?;
        Ok(Self(out))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_as_text_and_bytes() {
        let id = RunId::generate(&Random::from_seed(7));
        assert_eq!(id.to_string().parse::<RunId>(), Ok(id));
        assert_eq!(RunId::try_from(id.as_bytes().as_slice()), Ok(id));
    }

    #[test]
    fn an_id_of_the_wrong_length_names_the_noun() {
        let error = SeriesId::try_from([0u8; 3].as_slice()).unwrap_err();
        assert_eq!(error.to_string(), "series id must be 16 bytes, got 3 bytes");
    }

    #[test]
    fn a_seed_gives_the_same_ids_again() {
        let (a, b) = (Random::from_seed(1), Random::from_seed(1));
        assert_eq!(PackId::generate(&a), PackId::generate(&b));
        assert_ne!(PackId::generate(&a), PackId::generate(&Random::from_seed(2)));
    }

    #[test]
    fn sha256_of_nothing_is_the_known_value() {
        assert_eq!(
            Sha256::of(b"").to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
