//! The trust policy: who may open backups, which agents are attested, which root keys come next. Root keys sign it on an
//! admin's machine; agents and restorers verify it against the roots they have pinned, so a coordinator or bucket that was
//! taken over cannot swap recipients (docs/format.md, Trust).

use prost::Message;
use sealift_proto::format as wire;

use super::sign::{SigningKey, VerifyingKey};
use super::slots::Recipient;
use crate::clock::UnixMillis;
use crate::format::names::{MAX_TRUST_VERSION, ObjectName};
use crate::format::{PartError, PartReader, push_part};
use crate::id::{AgentId, RepositoryId, Sha256};

const MAGIC: &str = "SLFTTRU1";
const CONTEXT: &str = "sealift/1/trust";
/// Most bytes of a policy that readers accept: room for 200,000 attested agents.
pub const MAX_POLICY: usize = 16 * 1024 * 1024;
/// Most bytes of its signatures.
const MAX_SIGNATURES: usize = 64 * 1024;

/// A trust policy, or a chain of them, that is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// There is none.
    #[error("there is no trust policy yet: set one with `sealift trust set --recipient age1…`")]
    Missing,
    /// Its outer shape is wrong.
    #[error("the trust policy {0}")]
    Shape(#[source] PartError),
    /// A field is wrong.
    #[error("the trust policy is malformed: {0}")]
    Malformed(String),
    /// It needs features that this version does not have.
    #[error("the trust policy requires {0:?}: use a newer version of Sealift")]
    RequiredFeatures(Vec<String>),
    /// The object's name says another hash or version than its bytes.
    #[error("the trust policy stored as {name} is not what its name says")]
    Name {
        /// The object's name.
        name: String,
    },
    /// Another repository's policy.
    #[error("the trust policy is of repository {found}, this is {expected}")]
    Repository {
        /// This repository.
        expected: RepositoryId,
        /// The policy's.
        found: RepositoryId,
    },
    /// Too few of the root keys in force have signed it.
    #[error(
        "version {version} of the trust policy is signed by {valid} of the root keys in force, needed are {threshold}; check the pinned root fingerprint"
    )]
    Signatures {
        /// Version of the policy.
        version: u64,
        /// Valid signatures by keys in force.
        valid: usize,
        /// How many it takes.
        threshold: u32,
    },
    /// A version does not follow from the one before.
    #[error(
        "version {version} of the trust policy does not follow from the version before it: one is missing, or the chain was altered"
    )]
    Broken {
        /// The version that does not follow.
        version: u64,
    },
    /// Older than what was seen before.
    #[error(
        "the newest trust policy offered is version {offered}, but version {known} was seen before: it was rolled back"
    )]
    RolledBack {
        /// Newest version offered.
        offered: u64,
        /// Version seen before.
        known: u64,
    },
    /// Another object than was seen under the same version.
    #[error("version {version} of the trust policy is not the one seen before")]
    Forked {
        /// The version.
        version: u64,
    },
}

/// Who may open the backups of a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The scope it is for, exactly; the empty scope matches every series.
    pub scope: String,
    /// Whom the data keys are encrypted to, at least one.
    pub recipients: Vec<RuleRecipient>,
}

/// One recipient of a [`Rule`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleRecipient {
    /// The public key.
    pub recipient: Recipient,
    /// For people: whose it is.
    pub label: String,
}

/// A signing key of an agent that root keys vouch for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestedAgent {
    /// The agent.
    pub agent: AgentId,
    /// Its signing key.
    pub signing_key: VerifyingKey,
    /// When the key was made.
    pub created: UnixMillis,
}

/// One version of the trust policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustPolicy {
    /// The repository it is for.
    pub repository: RepositoryId,
    /// From 1, without gaps.
    pub version: u64,
    /// When it was signed.
    pub created: UnixMillis,
    /// SHA-256 of the object of the version before; `None` for the first.
    pub previous: Option<Sha256>,
    /// The first whose scope matches counts.
    pub rules: Vec<Rule>,
    /// Attested agents.
    pub agents: Vec<AttestedAgent>,
    /// The root keys that sign from the next version on; empty: those in force stay.
    pub next_roots: Vec<VerifyingKey>,
    /// How many of `next_roots` it takes; 0 where `next_roots` is empty.
    pub next_threshold: u32,
}

impl TrustPolicy {
    /// The recipients of series of `scope`: those of the first rule whose scope is `scope` or empty.
    pub fn recipients_for(&self, scope: &str) -> Option<Vec<Recipient>> {
        let rule = self.rules.iter().find(|rule| rule.scope.is_empty() || rule.scope == scope)?;
        Some(rule.recipients.iter().map(|r| r.recipient.clone()).collect())
    }

    /// Whether the root keys vouch for this key of this agent.
    pub fn attests(&self, agent: AgentId, key: &VerifyingKey) -> bool {
        self.agents.iter().any(|attested| attested.agent == agent && attested.signing_key == *key)
    }

    fn check(&self) -> Result<(), TrustError> {
        let bad = |problem: String| Err(TrustError::Malformed(problem));
        if self.version == 0 || self.version > MAX_TRUST_VERSION {
            return bad(format!("version {} is not between 1 and {MAX_TRUST_VERSION}", self.version));
        }
        if (self.version == 1) != self.previous.is_none() {
            return bad("every version but the first names the one before".to_owned());
        }
        if let Some(rule) = self.rules.iter().find(|rule| rule.recipients.is_empty()) {
            return bad(format!("the rule for scope {:?} has no recipient", rule.scope));
        }
        let mut distinct = self.next_roots.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let threshold = self.next_threshold as usize;
        let fits =
            if distinct.is_empty() { threshold == 0 } else { (1..=distinct.len()).contains(&threshold) };
        if distinct.len() != self.next_roots.len() || !fits {
            return bad(format!("{threshold} of {} next root keys cannot sign", self.next_roots.len()));
        }
        Ok(())
    }

    fn to_wire(&self) -> wire::TrustPolicy {
        let recipient = |r: &RuleRecipient| wire::Recipient {
            kind: wire::SlotKind::Age.into(),
            recipient: r.recipient.to_string(),
            label: r.label.clone(),
        };
        let rule = |rule: &Rule| wire::Rule {
            scope: rule.scope.clone(),
            recipients: rule.recipients.iter().map(recipient).collect(),
        };
        let agent = |agent: &AttestedAgent| wire::AgentKey {
            agent_id: agent.agent.to_vec(),
            signing_key: agent.signing_key.to_vec(),
            created_ms: agent.created.0,
        };
        wire::TrustPolicy {
            repository_id: self.repository.to_vec(),
            version: self.version,
            created_ms: self.created.0,
            previous_sha256: self.previous.map(|sha256| sha256.to_vec()).unwrap_or_default(),
            rules: self.rules.iter().map(rule).collect(),
            agents: self.agents.iter().map(agent).collect(),
            next_root_keys: self.next_roots.iter().map(VerifyingKey::to_vec).collect(),
            next_threshold: self.next_threshold,
            required_features: Vec::new(),
        }
    }

    fn from_wire(policy: wire::TrustPolicy) -> Result<Self, TrustError> {
        if !policy.required_features.is_empty() {
            return Err(TrustError::RequiredFeatures(policy.required_features));
        }
        let policy = Self {
            repository: id(&policy.repository_id)?,
            version: policy.version,
            created: UnixMillis(policy.created_ms),
            previous: match policy.previous_sha256.as_slice() {
                [] => None,
                sha256 => Some(id(sha256)?),
            },
            rules: policy.rules.into_iter().map(rule_from_wire).collect::<Result<_, _>>()?,
            agents: policy.agents.iter().map(agent_from_wire).collect::<Result<_, _>>()?,
            next_roots: policy.next_root_keys.iter().map(|key| id(key)).collect::<Result<_, _>>()?,
            next_threshold: policy.next_threshold,
        };
        policy.check()?;
        Ok(policy)
    }
}

/// An id, hash or key out of a field.
fn id<'a, T: TryFrom<&'a [u8], Error: std::fmt::Display>>(bytes: &'a [u8]) -> Result<T, TrustError> {
    T::try_from(bytes).map_err(|error| TrustError::Malformed(error.to_string()))
}

fn rule_from_wire(rule: wire::Rule) -> Result<Rule, TrustError> {
    let recipient = |r: wire::Recipient| match r.kind() {
        wire::SlotKind::Age => Ok(RuleRecipient {
            recipient: r.recipient.parse().map_err(|e| TrustError::Malformed(format!("{e}")))?,
            label: r.label,
        }),
        _ => {
            Err(TrustError::Malformed(format!("recipients of kind {} are not known to this version", r.kind)))
        }
    };
    let recipients = rule.recipients.into_iter().map(recipient).collect::<Result<_, _>>()?;
    Ok(Rule { scope: rule.scope, recipients })
}

fn agent_from_wire(agent: &wire::AgentKey) -> Result<AttestedAgent, TrustError> {
    Ok(AttestedAgent {
        agent: id(&agent.agent_id)?,
        signing_key: id(&agent.signing_key)?,
        created: UnixMillis(agent.created_ms),
    })
}

/// A policy with its signatures, as the bucket holds it. Parsing one says nothing about who signed it:
/// [`verify_chain`] does.
#[derive(Debug, Clone)]
pub struct TrustObject {
    /// The object's bytes.
    bytes: Vec<u8>,
    sha256: Sha256,
    /// SHA-256 of what is signed.
    signed: Sha256,
    policy: TrustPolicy,
    signatures: Vec<(VerifyingKey, Vec<u8>)>,
}

impl TrustObject {
    /// Signs `policy` with each of `keys`.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] for a policy that readers would refuse.
    pub fn sign(policy: TrustPolicy, keys: &[&SigningKey]) -> Result<Self, TrustError> {
        policy.check()?;
        let mut bytes = MAGIC.as_bytes().to_vec();
        push_part(&mut bytes, &policy.to_wire().encode_to_vec());
        let signed = Sha256::of(&bytes);
        let signatures = keys.iter().map(|key| wire::Signature {
            key: key.verifying_key().to_vec(),
            signature: key.sign(CONTEXT, &[signed.as_bytes()]).to_vec(),
        });
        push_part(&mut bytes, &wire::Signatures { signatures: signatures.collect() }.encode_to_vec());
        Self::parse(&bytes)
    }

    /// Takes an object apart.
    ///
    /// # Errors
    /// [`TrustError`] where it is malformed or needs a newer version; its signatures are not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustError> {
        let mut reader = PartReader::new(bytes);
        reader.magic(MAGIC).map_err(TrustError::Shape)?;
        let policy = reader.part("policy", MAX_POLICY).map_err(TrustError::Shape)?;
        let signed = Sha256::of(&bytes[..MAGIC.len() + 4 + policy.len()]);
        let signatures = reader.part("signatures", MAX_SIGNATURES).map_err(TrustError::Shape)?;
        reader.end().map_err(TrustError::Shape)?;
        let malformed = |what: &str| TrustError::Malformed(format!("its {what} part is not protobuf"));
        let policy = wire::TrustPolicy::decode(policy).map_err(|_| malformed("policy"))?;
        let signatures =
            wire::Signatures::decode(signatures).map_err(|_| malformed("signatures"))?.signatures;
        let signatures = signatures.into_iter().map(|s| Ok((id(&s.key)?, s.signature)));
        Ok(Self {
            bytes: bytes.to_vec(),
            sha256: Sha256::of(bytes),
            signed,
            policy: TrustPolicy::from_wire(policy)?,
            signatures: signatures.collect::<Result<_, TrustError>>()?,
        })
    }

    /// Takes an object apart that was read under `name`, and checks that it is what the name says.
    ///
    /// # Errors
    /// As [`TrustObject::parse`], and [`TrustError::Name`].
    pub fn parse_named(name: &ObjectName, bytes: &[u8]) -> Result<Self, TrustError> {
        let wrong = || TrustError::Name { name: name.to_string() };
        if name.sha256() != Some(Sha256::of(bytes)) {
            return Err(wrong());
        }
        let object = Self::parse(bytes)?;
        if object.name() == *name { Ok(object) } else { Err(wrong()) }
    }

    /// This object with one more signature, for a threshold of several root keys on several machines.
    ///
    /// # Errors
    /// As [`TrustObject::parse`].
    pub fn countersign(&self, key: &SigningKey) -> Result<Self, TrustError> {
        let mut reader = PartReader::new(&self.bytes);
        reader.magic(MAGIC).map_err(TrustError::Shape)?;
        let policy = reader.part("policy", MAX_POLICY).map_err(TrustError::Shape)?;
        let mut bytes = MAGIC.as_bytes().to_vec();
        push_part(&mut bytes, policy);
        let own = (key.verifying_key(), key.sign(CONTEXT, &[self.signed.as_bytes()]).to_vec());
        let others = self.signatures.iter().filter(|(by, _)| *by != own.0);
        let signatures = others.chain([&own]);
        let signatures =
            signatures.map(|(key, s)| wire::Signature { key: key.to_vec(), signature: s.clone() });
        push_part(&mut bytes, &wire::Signatures { signatures: signatures.collect() }.encode_to_vec());
        Self::parse(&bytes)
    }

    /// The object's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the object's bytes.
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// The object's name in the bucket.
    pub fn name(&self) -> ObjectName {
        ObjectName::Trust { version: self.policy.version, sha256: self.sha256 }
    }

    /// What it says; not to be believed before [`verify_chain`].
    pub fn policy(&self) -> &TrustPolicy {
        &self.policy
    }

    /// Fingerprints of the keys whose signatures hold, whoever they belong to.
    pub fn signers(&self) -> Vec<Sha256> {
        let holds = |(key, signature): &&(VerifyingKey, Vec<u8>)| {
            key.verify(CONTEXT, &[self.signed.as_bytes()], signature).is_ok()
        };
        self.signatures.iter().filter(holds).map(|(key, _)| key.fingerprint()).collect()
    }

    /// How many of the keys that `in_force` accepts have validly signed, each counted once.
    fn valid_signatures(&self, in_force: impl Fn(&VerifyingKey) -> bool) -> usize {
        let mut signers: Vec<VerifyingKey> = self
            .signatures
            .iter()
            .filter(|(key, _)| in_force(key))
            .filter(|(key, signature)| key.verify(CONTEXT, &[self.signed.as_bytes()], signature).is_ok())
            .map(|(key, _)| *key)
            .collect();
        signers.sort_unstable();
        signers.dedup();
        signers.len()
    }
}

/// The root keys that are believed without proof: pinned at enrolment, or given on a restore's command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootPin {
    /// Fingerprints of the keys ([`VerifyingKey::fingerprint`]).
    pub fingerprints: Vec<Sha256>,
    /// How many of them must have signed the policy that the chain starts with; at least 1.
    pub threshold: u32,
}

impl RootPin {
    /// Any one of these keys is enough.
    pub fn any_of(fingerprints: Vec<Sha256>) -> Self {
        Self { fingerprints, threshold: 1 }
    }
}

/// The root keys whose signatures the next version needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootsInForce {
    /// No policy has named root keys yet: the pinned ones.
    Pinned(RootPin),
    /// Those that a verified policy named as next.
    Named {
        /// The keys.
        keys: Vec<VerifyingKey>,
        /// How many of them it takes.
        threshold: u32,
    },
}

impl RootsInForce {
    /// Whether this key is one of them.
    pub fn accept(&self, key: &VerifyingKey) -> bool {
        match self {
            Self::Pinned(pin) => pin.fingerprints.contains(&key.fingerprint()),
            Self::Named { keys, .. } => keys.contains(key),
        }
    }

    /// How many of them it takes; at least one.
    pub fn threshold(&self) -> u32 {
        match self {
            Self::Pinned(pin) => pin.threshold.max(1),
            Self::Named { threshold, .. } => (*threshold).max(1),
        }
    }

    fn check(&self, object: &TrustObject) -> Result<(), TrustError> {
        let (valid, threshold) = (object.valid_signatures(|key| self.accept(key)), self.threshold());
        if valid >= threshold as usize {
            return Ok(());
        }
        Err(TrustError::Signatures { version: object.policy.version, valid, threshold })
    }
}

/// What an agent or a CLI remembers of the newest policy it has verified, so that it notices a roll-back. Keep it together
/// with that object's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownTrust {
    /// Its version.
    pub version: u64,
    /// SHA-256 of the object.
    pub sha256: Sha256,
    /// Root keys in force after it.
    pub roots: RootsInForce,
}

/// A verified trust policy: the newest of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustState {
    /// What it says.
    pub policy: TrustPolicy,
    /// What to remember of it.
    pub known: KnownTrust,
}

/// Verifies a chain of `trust/` objects, in any order, and gives the newest.
///
/// Without `known`, the chain starts at its first object that the pinned roots have signed (version 1, or a later one for
/// whoever pinned roots that came later); what lies before it is neither needed nor believed. With `known`, it starts at
/// that very object or at the version after it. From there on each version follows from the one before (version + 1, its
/// hash) and is signed by the threshold of root keys in force: those that the last policy to name any named as next, else
/// the pinned ones. Give at least the newest object: what is remembered in `known` does not say the rules.
///
/// # Errors
/// [`TrustError`]: anything that does not hold refuses the whole chain.
pub fn verify_chain(
    pin: &RootPin,
    known: Option<&KnownTrust>,
    repository: RepositoryId,
    objects: &[TrustObject],
) -> Result<TrustState, TrustError> {
    let mut chain: Vec<&TrustObject> = objects.iter().collect();
    chain.sort_by_key(|object| (object.policy.version, object.sha256));
    chain.dedup_by_key(|object| object.sha256);
    if let Some(other) = chain.iter().find(|object| object.policy.repository != repository) {
        let found = other.policy.repository;
        return Err(TrustError::Repository { expected: repository, found });
    }
    let newest = chain.last().ok_or(TrustError::Missing)?;
    if let Some(known) = known.filter(|known| newest.policy.version < known.version) {
        return Err(TrustError::RolledBack { offered: newest.policy.version, known: known.version });
    }
    let (mut state, rest) = match known {
        Some(known) => start_from_known(known, &chain)?,
        None => start_from_pin(pin, &chain)?,
    };
    for object in rest {
        state = Some(follow(state, known, pin, object)?);
    }
    state.ok_or(TrustError::Missing)
}

type Start<'a, 'b> = (Option<TrustState>, &'b [&'a TrustObject]);

fn start_from_pin<'a, 'b>(pin: &RootPin, chain: &'b [&'a TrustObject]) -> Result<Start<'a, 'b>, TrustError> {
    let roots = RootsInForce::Pinned(pin.clone());
    let Some(at) = chain.iter().position(|object| roots.check(object).is_ok()) else {
        // Names the version that should have been signed by the pinned roots.
        return Err(chain
            .first()
            .map_or(TrustError::Missing, |first| roots.check(first).err().unwrap_or(TrustError::Missing)));
    };
    let (first, rest) = (chain[at], &chain[at + 1..]);
    Ok((Some(accepted(first, roots)), rest))
}

fn start_from_known<'a, 'b>(
    known: &KnownTrust,
    chain: &'b [&'a TrustObject],
) -> Result<Start<'a, 'b>, TrustError> {
    let newer = chain.partition_point(|object| object.policy.version < known.version);
    let chain = &chain[newer..];
    match chain.first() {
        Some(first) if first.policy.version > known.version => Ok((None, chain)),
        Some(first) if first.sha256 == known.sha256 => {
            let state = TrustState { policy: first.policy.clone(), known: known.clone() };
            Ok((Some(state), &chain[1..]))
        }
        Some(_) => Err(TrustError::Forked { version: known.version }),
        None => Err(TrustError::Missing),
    }
}

/// One step: `object` after `state`, or after `known` where there is no state yet.
fn follow(
    state: Option<TrustState>,
    known: Option<&KnownTrust>,
    pin: &RootPin,
    object: &TrustObject,
) -> Result<TrustState, TrustError> {
    let before = state.map(|state| state.known).or_else(|| known.cloned()).ok_or(TrustError::Missing)?;
    let version = object.policy.version;
    if version == before.version {
        return Err(TrustError::Forked { version });
    }
    if version != before.version + 1 || object.policy.previous != Some(before.sha256) {
        return Err(TrustError::Broken { version });
    }
    let roots = match before.roots {
        RootsInForce::Pinned(_) => RootsInForce::Pinned(pin.clone()),
        named => named,
    };
    roots.check(object)?;
    Ok(accepted(object, roots))
}

fn accepted(object: &TrustObject, roots: RootsInForce) -> TrustState {
    let policy = object.policy.clone();
    let roots = match policy.next_roots.as_slice() {
        [] => roots,
        keys => RootsInForce::Named { keys: keys.to_vec(), threshold: policy.next_threshold },
    };
    let known = KnownTrust { version: policy.version, sha256: object.sha256, roots };
    TrustState { policy, known }
}

#[cfg(test)]
mod tests;
