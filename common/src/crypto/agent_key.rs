//! An agent's signing keys in the bucket: each object holds one public key, signed by the key before it, the first by
//! itself (docs/format.md, Agent keys).

use prost::Message;
use sealift_proto::format as wire;

use super::sign::{SigningKey, VerifyingKey};
use super::trust::TrustPolicy;
use crate::clock::UnixMillis;
use crate::format::names::ObjectName;
use crate::format::{PartError, PartReader, push_part};
use crate::id::{AgentId, Sha256};

const MAGIC: &str = "SLFTAGK1";
const CONTEXT: &str = "sealift/1/agent-key";
const MAX_KEY: usize = 4096;

/// An agent key object that is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentKeyError {
    /// Its outer shape is wrong.
    #[error("the agent key {0}")]
    Shape(#[source] PartError),
    /// A field is wrong.
    #[error("the agent key is malformed: {0}")]
    Malformed(String),
    /// The object's name says another hash or agent than its bytes.
    #[error("the agent key stored as {name} is not what its name says")]
    Name {
        /// The object's name.
        name: String,
    },
    /// It is another agent's.
    #[error("the agent key is of agent {found}, expected {expected}")]
    Agent {
        /// The agent whose keys are looked at.
        expected: AgentId,
        /// Whose it is.
        found: AgentId,
    },
    /// Neither itself nor the key before it has signed it.
    #[error("the signature of the agent key does not hold")]
    Signature,
}

/// One `agents/` object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentKeyObject {
    bytes: Vec<u8>,
    sha256: Sha256,
    /// SHA-256 of what is signed.
    signed: Sha256,
    agent: AgentId,
    signing_key: VerifyingKey,
    created: UnixMillis,
    signature: [u8; 64],
}

impl AgentKeyObject {
    /// The object of an agent's first key, signed by itself.
    pub fn first(agent: AgentId, key: &SigningKey, created: UnixMillis) -> Self {
        Self::build(agent, key.verifying_key(), created, key)
    }

    /// The object of a key that follows `previous`.
    pub fn next(agent: AgentId, key: &VerifyingKey, created: UnixMillis, previous: &SigningKey) -> Self {
        Self::build(agent, *key, created, previous)
    }

    fn build(agent: AgentId, signing_key: VerifyingKey, created: UnixMillis, signer: &SigningKey) -> Self {
        let key = wire::AgentKey {
            agent_id: agent.to_vec(),
            signing_key: signing_key.to_vec(),
            created_ms: created.0,
        };
        let mut bytes = MAGIC.as_bytes().to_vec();
        push_part(&mut bytes, &key.encode_to_vec());
        let signed = Sha256::of(&bytes);
        let signature = signer.sign(CONTEXT, &[signed.as_bytes()]);
        bytes.extend_from_slice(&signature);
        Self { sha256: Sha256::of(&bytes), bytes, signed, agent, signing_key, created, signature }
    }

    /// Takes an object apart; who signed it is not looked at, [`AgentKeyring`] and [`AgentKeyObject::is_self_signed`] do.
    ///
    /// # Errors
    /// [`AgentKeyError::Shape`] and [`AgentKeyError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, AgentKeyError> {
        let mut reader = PartReader::new(bytes);
        reader.magic(MAGIC).map_err(AgentKeyError::Shape)?;
        let key = reader.part("key", MAX_KEY).map_err(AgentKeyError::Shape)?;
        let signed = Sha256::of(&bytes[..MAGIC.len() + 4 + key.len()]);
        let signature = *reader.fixed::<64>("signature").map_err(AgentKeyError::Shape)?;
        reader.end().map_err(AgentKeyError::Shape)?;
        let key =
            wire::AgentKey::decode(key).map_err(|_| AgentKeyError::Malformed("not protobuf".to_owned()))?;
        let agent = AgentId::try_from(key.agent_id.as_slice());
        let signing_key = VerifyingKey::try_from(key.signing_key.as_slice());
        Ok(Self {
            bytes: bytes.to_vec(),
            sha256: Sha256::of(bytes),
            signed,
            agent: agent.map_err(|e| AgentKeyError::Malformed(e.to_string()))?,
            signing_key: signing_key.map_err(|e| AgentKeyError::Malformed(e.to_string()))?,
            created: UnixMillis(key.created_ms),
            signature,
        })
    }

    /// Takes an object apart that was read under `name`, and checks that it is what the name says.
    ///
    /// # Errors
    /// As [`AgentKeyObject::parse`], and [`AgentKeyError::Name`].
    pub fn parse_named(name: &ObjectName, bytes: &[u8]) -> Result<Self, AgentKeyError> {
        let wrong = || AgentKeyError::Name { name: name.to_string() };
        if name.sha256() != Some(Sha256::of(bytes)) {
            return Err(wrong());
        }
        let object = Self::parse(bytes)?;
        if object.name() == *name { Ok(object) } else { Err(wrong()) }
    }

    /// Checks the object that a host sends when it enrols: of this agent and key, signed by itself.
    ///
    /// # Errors
    /// [`AgentKeyError`].
    pub fn parse_first(bytes: &[u8], agent: AgentId, key: &VerifyingKey) -> Result<Self, AgentKeyError> {
        let object = Self::parse(bytes)?;
        if object.agent != agent {
            return Err(AgentKeyError::Agent { expected: agent, found: object.agent });
        }
        if object.signing_key == *key && object.is_self_signed() {
            Ok(object)
        } else {
            Err(AgentKeyError::Signature)
        }
    }

    /// Whether the key has signed itself.
    pub fn is_self_signed(&self) -> bool {
        self.is_signed_by(&self.signing_key)
    }

    /// Whether `key` has signed this object.
    pub fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        key.verify(CONTEXT, &[self.signed.as_bytes()], &self.signature).is_ok()
    }

    /// The object's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The object's name in the bucket.
    pub fn name(&self) -> ObjectName {
        ObjectName::AgentKey { agent: self.agent, sha256: self.sha256 }
    }

    /// Whose key it is.
    pub fn agent(&self) -> AgentId {
        self.agent
    }

    /// The key.
    pub fn signing_key(&self) -> VerifyingKey {
        self.signing_key
    }

    /// When the key was made.
    pub fn created(&self) -> UnixMillis {
        self.created
    }
}

/// How far a signing key is to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyStanding {
    /// Nothing vouches for it: a manifest signed with it is refused unless the restorer is told to accept it.
    Unknown,
    /// It leads back, signature by signature, to an attested key or to the agent's only first key.
    Continuous,
    /// The trust policy names it.
    Attested,
}

/// All keys of one agent.
#[derive(Debug, Clone)]
pub struct AgentKeyring {
    agent: AgentId,
    objects: Vec<AgentKeyObject>,
}

impl AgentKeyring {
    /// Gathers the objects below `agents/<agent>/`.
    ///
    /// # Errors
    /// [`AgentKeyError::Agent`] where one is another agent's; [`AgentKeyError::Signature`] where one is signed neither by
    /// itself nor by another of them.
    pub fn new(agent: AgentId, objects: Vec<AgentKeyObject>) -> Result<Self, AgentKeyError> {
        if let Some(other) = objects.iter().find(|object| object.agent != agent) {
            return Err(AgentKeyError::Agent { expected: agent, found: other.agent });
        }
        let signed = |object: &AgentKeyObject| objects.iter().any(|by| object.is_signed_by(&by.signing_key));
        if !objects.iter().all(signed) {
            return Err(AgentKeyError::Signature);
        }
        Ok(Self { agent, objects })
    }

    /// How far `key` is to be believed under `policy`. Two first keys (a host replaced after its keys were lost, or a
    /// forger with access to the bucket) believe neither: then only the trust policy decides.
    pub fn standing(&self, key: &VerifyingKey, policy: &TrustPolicy) -> KeyStanding {
        if policy.attests(self.agent, key) {
            return KeyStanding::Attested;
        }
        let mut believed: Vec<VerifyingKey> =
            policy.agents.iter().filter(|a| a.agent == self.agent).map(|a| a.signing_key).collect();
        let mut first = self.objects.iter().filter(|object| object.is_self_signed()).map(|o| o.signing_key);
        // One key may have two objects: an enrolment whose reply was lost is asked again.
        if let Some(only) = first.next()
            && first.all(|other| other == only)
        {
            believed.push(only);
        }
        let mut at = 0;
        while let Some(&by) = believed.get(at) {
            let next = self.objects.iter().filter(|object| object.is_signed_by(&by)).map(|o| o.signing_key);
            let next: Vec<_> = next.filter(|key| !believed.contains(key)).collect();
            believed.extend(next);
            at += 1;
        }
        if believed.contains(key) { KeyStanding::Continuous } else { KeyStanding::Unknown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::trust::AttestedAgent;
    use crate::id::{Random, RepositoryId};

    const AGENT: AgentId = AgentId::from_bytes([7; 16]);

    fn key(seed: u64) -> SigningKey {
        SigningKey::generate(&Random::from_seed(seed))
    }

    fn policy(attested: &[&SigningKey]) -> TrustPolicy {
        let attest = |key: &&SigningKey| AttestedAgent {
            agent: AGENT,
            signing_key: key.verifying_key(),
            created: UnixMillis(0),
        };
        TrustPolicy {
            repository: RepositoryId::from_bytes([1; 16]),
            version: 1,
            created: UnixMillis(0),
            previous: None,
            rules: vec![],
            agents: attested.iter().map(attest).collect(),
            next_roots: vec![],
            next_threshold: 0,
        }
    }

    #[test]
    fn keys_are_believed_along_the_chain() {
        let (a, b, c, eve) = (key(1), key(2), key(3), key(4));
        let now = UnixMillis(5);
        let objects = vec![
            AgentKeyObject::next(AGENT, &c.verifying_key(), now, &b),
            AgentKeyObject::next(AGENT, &b.verifying_key(), now, &a),
            AgentKeyObject::first(AGENT, &a, now),
        ];
        let ring = AgentKeyring::new(AGENT, objects.clone()).unwrap();
        let standing = |ring: &AgentKeyring, key: &SigningKey, attested: &[&SigningKey]| {
            ring.standing(&key.verifying_key(), &policy(attested))
        };
        assert_eq!(standing(&ring, &c, &[]), KeyStanding::Continuous);
        assert_eq!(standing(&ring, &c, &[&c]), KeyStanding::Attested);
        assert_eq!(standing(&ring, &eve, &[]), KeyStanding::Unknown);

        // A second first key, from a forger: nothing is believed but what the policy attests, and what follows from it.
        let forged = [objects, vec![AgentKeyObject::first(AGENT, &eve, now)]].concat();
        let ring = AgentKeyring::new(AGENT, forged).unwrap();
        assert_eq!(standing(&ring, &eve, &[]), KeyStanding::Unknown);
        assert_eq!(standing(&ring, &a, &[]), KeyStanding::Unknown);
        assert_eq!(standing(&ring, &c, &[&a]), KeyStanding::Continuous);
        assert_eq!(standing(&ring, &eve, &[&a]), KeyStanding::Unknown);
    }

    #[test]
    fn a_key_nobody_signed_and_another_agents_key_are_refused() {
        let (a, b) = (key(1), key(2));
        let orphan = AgentKeyObject::next(AGENT, &b.verifying_key(), UnixMillis(0), &a);
        assert_eq!(AgentKeyring::new(AGENT, vec![orphan]).unwrap_err(), AgentKeyError::Signature);
        let other = AgentKeyObject::first(AgentId::from_bytes([8; 16]), &a, UnixMillis(0));
        assert!(matches!(AgentKeyring::new(AGENT, vec![other]), Err(AgentKeyError::Agent { .. })));
    }

    #[test]
    fn enrolment_takes_only_the_self_signed_object_of_that_agent_and_key() {
        let (a, b) = (key(1), key(2));
        let object = AgentKeyObject::first(AGENT, &a, UnixMillis(5));
        let public = a.verifying_key();
        assert_eq!(AgentKeyObject::parse_first(object.bytes(), AGENT, &public).as_ref(), Ok(&object));
        assert_eq!(AgentKeyObject::parse_named(&object.name(), object.bytes()).as_ref(), Ok(&object));
        let refused = AgentKeyObject::parse_first(object.bytes(), AGENT, &b.verifying_key());
        assert_eq!(refused, Err(AgentKeyError::Signature));
        let refused = AgentKeyObject::parse_first(object.bytes(), AgentId::from_bytes([8; 16]), &public);
        assert!(matches!(refused, Err(AgentKeyError::Agent { .. })));
        let by_other = AgentKeyObject::next(AGENT, &public, UnixMillis(5), &b);
        assert!(AgentKeyObject::parse_first(by_other.bytes(), AGENT, &public).is_err());
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let a = key(1);
        let object = AgentKeyObject::first(AGENT, &a, UnixMillis(5));
        for bit in 0..object.bytes().len() * 8 {
            let mut bytes = object.bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(AgentKeyObject::parse_first(&bytes, AGENT, &a.verifying_key()).is_err(), "bit {bit}");
        }
    }
}
