//! What can go wrong with identities.

use sealift_common::clock::UnixMillis;
use sealift_common::crypto::{AgentKeyError, TrustError};
use sealift_common::id::{AgentId, Sha256};
use sealift_common::name::InvalidName;

use super::ca::CaError;
use crate::audit::{AccessError, OpError};
use crate::objects::ObjectError;
use crate::store::StoreError;

/// Why an operation on an identity did not come about.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not of the form of a token.
    #[error("this is not an enrolment token: it looks like slt_…_…, on one line")]
    TokenMalformed,
    /// No such token, or another secret.
    #[error("this enrolment token is not known here: check that it is whole, and of this coordinator")]
    TokenUnknown,
    /// Too late.
    #[error("the enrolment token {id} expired at {at}: ask for a new one (sealift token create)")]
    TokenExpired {
        /// Its public part.
        id: String,
        /// When.
        at: UnixMillis,
    },
    /// Taken back.
    #[error("the enrolment token {id} was revoked: ask for a new one (sealift token create)")]
    TokenRevoked {
        /// Its public part.
        id: String,
    },
    /// All uses are used.
    #[error(
        "the enrolment token {id} is used up ({uses} of {uses}): ask for a new one (sealift token create)"
    )]
    TokenUsedUp {
        /// Its public part.
        id: String,
        /// How many uses it had.
        uses: u32,
    },
    /// A token that cannot be made.
    #[error("{0}")]
    TokenTerms(&'static str),
    /// Another agent has this name.
    #[error(
        "an agent named {name} is in service: give another name (sealift agent approve --name), or, if this is its new host, use sealift token create --replaces"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The same agent id with other keys or by another token.
    #[error(
        "agent {0} has enrolled before with other keys or another token: start with an empty state directory"
    )]
    AgentTaken(AgentId),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The `agents/` object does not hold.
    #[error("the agent key object is refused")]
    KeyObject(#[from] AgentKeyError),
    /// No such agent.
    #[error("there is no agent {0:?}")]
    AgentUnknown(String),
    /// A prefix of several ids.
    #[error("{0:?} is the beginning of more than one id: give more of it")]
    Ambiguous(String),
    /// Revoked agents stay revoked.
    #[error("agent {0} is revoked: enrol the host anew")]
    AgentRevoked(AgentId),
    /// Retired agents stay retired.
    #[error("agent {0} is retired: to bring it back, use sealift token create --replaces")]
    AgentRetired(AgentId),
    /// It waits for an admin.
    #[error("agent {0} asked for a name that is taken, and waits for an admin: sealift agent approve")]
    AgentPending(AgentId),
    /// It does not wait.
    #[error("agent {0} does not wait for approval: it is {1}")]
    NotPending(String, &'static str),
    /// The keys of a host that was replaced.
    #[error("the host of agent {0} was replaced: the keys of the old one are not good any more")]
    HostReplaced(AgentId),
    /// A challenge that was not asked for, was answered, or is too old.
    #[error("the challenge is unknown, used or older than a minute: ask for a new one")]
    ChallengeUnknown,
    /// The answer to a challenge is not the agent's.
    #[error("the challenge's signature is not that of agent {0}")]
    ChallengeSignature(AgentId),
    /// More than can be answered now.
    #[error("too many challenges are open: try again in a minute")]
    TooManyChallenges,
    /// No such token to revoke.
    #[error("there is no token {0:?}")]
    NoToken(String),
    /// A host that believes in another root key.
    #[error(
        "the root key that was pinned ({}) is not one of this coordinator's",
        .pinned.iter().map(Sha256::to_string).collect::<Vec<_>>().join(", ")
    )]
    OtherRoot {
        /// Its pins.
        pinned: Vec<Sha256>,
    },
    /// The trust policy is not signed, or does not follow.
    #[error("the trust policy is refused")]
    Trust(#[from] TrustError),
    /// Not the version that comes next.
    #[error("the trust policy in force is version {current}, so the next one is {next}, not {given}: somebody else was faster?",
        next = .current + 1)]
    TrustVersion {
        /// In force.
        current: u64,
        /// What was given.
        given: u64,
    },
    /// No root key was named in the configuration.
    #[error(
        "no root key is pinned here: name its fingerprint in the coordinator's configuration (trust.root_sha256)"
    )]
    NoRoots,
    /// The CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The bucket.
    #[error("the bucket did not take it")]
    Objects(#[from] ObjectError),
    /// Not allowed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The database's own.
    #[error("identities could not be read or written")]
    Store(#[from] StoreError),
}

impl OpError for IdentityError {
    fn is_refusal(&self) -> bool {
        use IdentityError as E;
        matches!(
            self,
            E::TokenUnknown
                | E::TokenExpired { .. }
                | E::TokenRevoked { .. }
                | E::TokenUsedUp { .. }
                | E::AgentTaken(_)
                | E::NameTaken { .. }
                | E::AgentRevoked(_)
                | E::AgentRetired(_)
                | E::AgentPending(_)
                | E::HostReplaced(_)
                | E::ChallengeUnknown
                | E::ChallengeSignature(_)
                | E::KeyObject(_)
                | E::OtherRoot { .. }
                | E::Trust(_)
        )
    }
}
