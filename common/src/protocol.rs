//! What a build speaks, and what two builds agree on.
//!
//! A [`Version`] is `major.minor`: the minor counts what was added, and a build may still understand versions before its own
//! newest. What was added has a name as well, a [`Feature`]: both sides list theirs, and only what both list is used. So a host
//! that is upgraded a year later keeps working, and is asked for nothing that it does not understand.
//!
//! To add a feature: a line in `features!`, the next minor in [`Version::NEWEST`], and a look at what was agreed on wherever
//! it is used (`Command::spoken_to` in the coordinator, `session/speak.rs` in the agent). To drop the oldest builds: a higher
//! [`Version::LEAST`]; their hosts are told [`UPGRADE_REQUIRED`].

use std::fmt;
use std::str::FromStr;

use sealift_proto::v1;

/// How the answer begins that a build gets which is too old. It may still renew its certificate.
pub const UPGRADE_REQUIRED: &str = "upgrade_required";

/// A version of the protocol between agents and coordinators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes when those of before cannot be understood any more.
    pub major: u32,
    /// Counts what was added.
    pub minor: u32,
}

impl Version {
    /// The oldest version that this build still understands.
    pub const LEAST: Self = Self { major: 1, minor: 0 };
    /// The newest version that this build speaks.
    pub const NEWEST: Self = Self { major: 1, minor: 1 };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version of the protocol, like 1.1")]
pub struct InvalidVersion(String);

impl FromStr for Version {
    type Err = InvalidVersion;
    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let parts = text
            .split_once('.')
            .and_then(|(major, minor)| Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? }));
        parts.ok_or_else(|| InvalidVersion(text.chars().take(40).collect()))
    }
}

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// Something that not every build can do. `Offer`, `CancelAttempt` and what belongs to a backup are no features: every
        /// build has them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Feature { $($(#[$doc])* $name,)* }

        impl Feature {
            /// All that this build knows of.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name on the wire, in the database and to people.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

features! {
    /// The agent takes limits of a policy with an offer: bandwidth, time, compression.
    Limits = "limits",
    /// The agent leaves a dedup epoch when an offer says so.
    LeaveEpoch = "leave-epoch",
    /// The agent tests its sources when it is asked to.
    SourceTest = "source-test",
    /// The agent moves to another session, perhaps elsewhere, when it is asked to: no work is disturbed by it.
    Reconnect = "reconnect",
    /// The coordinator takes a changed list of sources within a session.
    SourceList = "source-list",
    /// An attempt outlives the agent's process, in its spool.
    Spool = "spool",
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of features.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// None.
    pub const NONE: Self = Self(0);

    /// All that this build knows of.
    pub fn all() -> Self {
        Feature::ALL.iter().copied().collect()
    }

    const fn bit(feature: Feature) -> u32 {
        1 << feature as u32
    }

    /// Those of these names that this build knows; the other side may know more.
    pub fn known<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let known = |name| Feature::ALL.iter().copied().find(|feature| feature.as_str() == name);
        names.into_iter().filter_map(known).collect()
    }

    /// Whether it is one of them.
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & Self::bit(feature) != 0
    }

    /// Those that both have.
    #[must_use]
    pub const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those of `self` that `other` has not.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |feature| self.has(*feature))
    }

    /// Their names, as they go over the wire.
    pub fn names(self) -> Vec<String> {
        self.iter().map(|feature| feature.as_str().to_owned()).collect()
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        Self(features.into_iter().fold(0, |all, feature| all | Self::bit(feature)))
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(" "))
    }
}

/// What one side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spoken {
    /// The oldest version that it understands …
    pub least: Version,
    /// … and the newest.
    pub newest: Version,
    /// What it can do.
    pub features: Features,
}

impl Spoken {
    /// What this build speaks.
    pub fn of_this_build() -> Self {
        Self { least: Version::LEAST, newest: Version::NEWEST, features: Features::all() }
    }

    /// What the coordinator and this agent have in common.
    ///
    /// # Errors
    /// [`Disagreement`] where that is nothing.
    pub fn agree(&self, agent: &Self) -> Result<Agreed, Disagreement> {
        let (coordinator, version) = (self, self.newest.min(agent.newest));
        if version < coordinator.least {
            return Err(Disagreement::AgentTooOld { speaks: agent.newest, least: coordinator.least });
        }
        if version < agent.least {
            return Err(Disagreement::CoordinatorTooOld { speaks: coordinator.newest, least: agent.least });
        }
        Ok(Agreed { version, features: coordinator.features.both(agent.features) })
    }

    /// What this coordinator thinks of an agent that speaks up to `newest`, with these features.
    pub fn currency(&self, newest: Version, features: Features) -> Currency {
        if newest < self.least {
            Currency::TooOld
        } else if newest < self.newest || !self.features.without(features).is_empty() {
            Currency::Behind
        } else {
            Currency::Current
        }
    }
}

impl Spoken {
    /// The first message of an agent that speaks so, with all else left out.
    pub fn hello(&self) -> v1::Hello {
        v1::Hello {
            protocol_min: self.least.major,
            protocol_min_minor: self.least.minor,
            protocol_max: self.newest.major,
            protocol_max_minor: self.newest.minor,
            features: self.features.names(),
            ..v1::Hello::default()
        }
    }
}

impl From<&v1::Hello> for Spoken {
    fn from(hello: &v1::Hello) -> Self {
        Self {
            least: Version { major: hello.protocol_min, minor: hello.protocol_min_minor },
            newest: Version { major: hello.protocol_max, minor: hello.protocol_max_minor },
            features: Features::known(hello.features.iter().map(String::as_str)),
        }
    }
}

/// What both sides of a session use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The newest version that both speak.
    pub version: Version,
    /// What both can do.
    pub features: Features,
}

impl Agreed {
    /// The coordinator's first message, with all else left out.
    pub fn welcome(&self) -> v1::Welcome {
        v1::Welcome {
            protocol: self.version.major,
            protocol_minor: self.version.minor,
            features: self.features.names(),
            ..v1::Welcome::default()
        }
    }
}

impl From<&v1::Welcome> for Agreed {
    fn from(welcome: &v1::Welcome) -> Self {
        Self {
            version: Version { major: welcome.protocol, minor: welcome.protocol_minor },
            features: Features::known(welcome.features.iter().map(String::as_str)),
        }
    }
}

/// Why two builds cannot talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Disagreement {
    /// The agent has to be upgraded.
    #[error(
        "{UPGRADE_REQUIRED}: this agent speaks protocol {speaks}, the coordinator {least} or newer: install a newer agent on this \
         host; until then its certificate is renewed, and nothing is backed up"
    )]
    AgentTooOld {
        /// The newest that it speaks.
        speaks: Version,
        /// The least that would do.
        least: Version,
    },
    /// The coordinator has to be upgraded: coordinators go first.
    #[error(
        "this coordinator speaks protocol {speaks}, the agent {least} or newer: upgrade the coordinator (coordinators go before agents)"
    )]
    CoordinatorTooOld {
        /// The newest that it speaks.
        speaks: Version,
        /// The least that would do.
        least: Version,
    },
}

/// Whether an agent's build is as good as its coordinator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Currency {
    /// It speaks all that the coordinator speaks.
    Current,
    /// It works, but cannot do everything.
    Behind,
    /// It is not served until it is upgraded.
    TooOld,
}

impl Currency {
    /// Its name to people and scripts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Behind => "behind",
            Self::TooOld => UPGRADE_REQUIRED,
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken(least: &str, newest: &str, features: &[Feature]) -> Spoken {
        Spoken {
            least: least.parse().unwrap(),
            newest: newest.parse().unwrap(),
            features: features.iter().copied().collect(),
        }
    }

    #[test]
    fn the_lesser_of_two_newest_versions_is_in_force_where_both_understand_it() {
        for (coordinator, agent, agreed) in [
            (("1.0", "1.1"), ("1.0", "1.1"), Ok("1.1")),
            (("1.0", "1.1"), ("1.0", "1.0"), Ok("1.0")),
            (("1.0", "1.1"), ("1.0", "1.7"), Ok("1.1")),
            (("1.3", "2.1"), ("1.0", "1.4"), Ok("1.4")),
            (("1.3", "2.1"), ("1.0", "1.2"), Err(("agent", "1.2", "1.3"))),
            (("1.0", "1.1"), ("0.9", "0.9"), Err(("agent", "0.9", "1.0"))),
            (("1.0", "1.1"), ("2.0", "2.3"), Err(("coordinator", "1.1", "2.0"))),
            (("1.0", "1.1"), ("1.2", "1.3"), Err(("coordinator", "1.1", "1.2"))),
        ] {
            let (here, there) = (spoken(coordinator.0, coordinator.1, &[]), spoken(agent.0, agent.1, &[]));
            let found = here.agree(&there).map(|agreed| agreed.version);
            let expected = agreed.map(|version| version.parse().unwrap()).map_err(|(who, speaks, least)| {
                let (speaks, least) = (speaks.parse().unwrap(), least.parse().unwrap());
                match who {
                    "agent" => Disagreement::AgentTooOld { speaks, least },
                    _ => Disagreement::CoordinatorTooOld { speaks, least },
                }
            });
            assert_eq!(found, expected, "{coordinator:?} with {agent:?}");
        }
    }

    #[test]
    fn only_what_both_can_do_is_used() {
        use Feature::{Limits, Reconnect, Spool};
        let (here, there) =
            (spoken("1.0", "1.1", &[Limits, Spool]), spoken("1.0", "1.1", &[Spool, Reconnect]));
        let agreed = here.agree(&there).unwrap().features;
        assert_eq!(agreed.iter().collect::<Vec<_>>(), [Spool]);
        assert!(agreed.has(Spool) && !agreed.has(Limits) && !agreed.has(Reconnect));
    }

    #[test]
    fn names_come_back_and_those_of_newer_builds_are_passed_over() {
        let all = Features::all();
        assert_eq!(all.iter().count(), Feature::ALL.len());
        assert_eq!(Features::known(all.to_string().split(' ')), all);
        assert_eq!(Features::known(["spool", "telepathy", ""]).names(), ["spool"]);
        assert_eq!(Features::known([]), Features::NONE);
        for text in ["", "1", "1.", ".1", "1.1.1", "one.two", "-1.0"] {
            text.parse::<Version>().unwrap_err();
        }
    }

    #[test]
    fn the_first_messages_say_it_and_a_build_that_knew_no_minors_speaks_the_least() {
        let here = Spoken::of_this_build();
        assert_eq!(Spoken::from(&here.hello()), here);
        let agreed = here.agree(&here).unwrap();
        assert_eq!(Agreed::from(&agreed.welcome()), agreed);
        let plain = v1::Hello { protocol_min: 1, protocol_max: 1, ..v1::Hello::default() };
        assert_eq!(Spoken::from(&plain), spoken("1.0", "1.0", &[]));
    }

    #[test]
    fn an_agent_that_speaks_less_is_behind_and_one_below_the_least_too_old() {
        let here = spoken("1.1", "1.3", &[Feature::Limits, Feature::Spool]);
        let of = |newest: &str, features: &[Feature]| {
            here.currency(newest.parse().unwrap(), features.iter().copied().collect())
        };
        assert_eq!(of("1.3", &[Feature::Limits, Feature::Spool]), Currency::Current);
        assert_eq!(of("1.4", Feature::ALL), Currency::Current);
        assert_eq!(of("1.2", Feature::ALL), Currency::Behind);
        assert_eq!(of("1.3", &[Feature::Limits]), Currency::Behind);
        assert_eq!(of("1.0", Feature::ALL), Currency::TooOld);
    }
}
