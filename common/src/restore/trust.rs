//! The trust policy that a restore believes in, and the witnesses that know what the newest manifest is.

use std::collections::BTreeMap;

use super::RestoreError;
use crate::crypto::trust::{TrustState, verify_chain};
use crate::crypto::{RootPin, TrustError, TrustObject, TrustPolicy};
use crate::id::{RepositoryId, SeriesId, Sha256};

/// A chain of trust policies that was verified, and what it was verified against.
#[derive(Debug, Clone)]
pub struct Trust {
    state: TrustState,
    versions: BTreeMap<u64, Sha256>,
    pinned: bool,
}

impl Trust {
    /// Verifies a chain against pinned root keys. Where nothing is pinned, the chain is only checked to be whole and signed
    /// by the keys that signed its first version: who those belong to, nobody knows. Tell people so.
    ///
    /// # Errors
    /// [`RestoreError::Trust`].
    pub fn verify(
        pin: &RootPin,
        repository: RepositoryId,
        objects: &[TrustObject],
    ) -> Result<Self, RestoreError> {
        let pinned = !pin.fingerprints.is_empty();
        let first = objects.iter().min_by_key(|object| object.policy().version);
        let signers = first.map(TrustObject::signers).unwrap_or_default();
        let unpinned = RootPin::any_of(signers);
        let pin = if pinned { pin } else { &unpinned };
        let state = verify_chain(pin, None, repository, objects).map_err(RestoreError::Trust)?;
        let versions = objects.iter().map(|object| (object.policy().version, object.sha256())).collect();
        Ok(Self { state, versions, pinned })
    }

    /// The repository that a chain is of, as its newest object says; nothing is verified by this.
    ///
    /// # Errors
    /// [`TrustError::Missing`] where there is none.
    pub fn repository_of(objects: &[TrustObject]) -> Result<RepositoryId, RestoreError> {
        let newest = objects.iter().max_by_key(|object| object.policy().version);
        newest.map(|object| object.policy().repository).ok_or(RestoreError::Trust(TrustError::Missing))
    }

    /// The policy in force.
    pub fn policy(&self) -> &TrustPolicy {
        &self.state.policy
    }

    /// Whether it leads back to pinned root keys.
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Whether `version` of the policy is this object, as far as the chain knows that version.
    pub fn knows(&self, version: u64, sha256: &Sha256) -> bool {
        version <= self.state.policy.version
            && self.versions.get(&version).is_none_or(|known| known == sha256)
    }
}

/// What somebody has seen as the newest manifest of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// The series.
    pub series: SeriesId,
    /// Its newest sequence then.
    pub sequence: u64,
    /// That manifest.
    pub manifest: Sha256,
}

impl Witness {
    /// Compares what was seen with what there is now: the newest sequence, and the manifests known by their sequence.
    ///
    /// # Errors
    /// [`RestoreError::RolledBack`] and [`RestoreError::Forked`].
    pub fn compare(&self, newest: u64, manifests: impl Fn(u64) -> Vec<Sha256>) -> Result<(), RestoreError> {
        if newest < self.sequence {
            return Err(RestoreError::RolledBack {
                series: self.series,
                witnessed: self.sequence,
                found: newest,
            });
        }
        let there = manifests(self.sequence);
        // Gaps are what retention leaves; another manifest under a number that is never reissued is not.
        if there.is_empty() || there.contains(&self.manifest) {
            return Ok(());
        }
        Err(RestoreError::Forked { series: self.series, sequence: self.sequence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::crypto::key_file::generate_identity;
    use crate::crypto::trust::RuleRecipient;
    use crate::crypto::{Rule, SigningKey};
    use crate::id::Random;

    const REPOSITORY: RepositoryId = RepositoryId::from_bytes([1; 16]);

    fn chain(key: &SigningKey) -> TrustObject {
        let (_, recipient) = generate_identity(UnixMillis(0));
        let policy = TrustPolicy {
            repository: REPOSITORY,
            version: 1,
            created: UnixMillis(1),
            previous: None,
            rules: vec![Rule {
                scope: String::new(),
                recipients: vec![RuleRecipient { recipient, label: String::new() }],
            }],
            agents: vec![],
            next_roots: vec![],
            next_threshold: 0,
        };
        TrustObject::sign(policy, &[key]).unwrap()
    }

    #[test]
    fn without_a_pin_the_chain_must_still_be_signed_and_is_said_to_be_unpinned() {
        let key = SigningKey::generate(&Random::from_seed(1));
        let object = chain(&key);
        let none = RootPin::any_of(vec![]);
        let trust = Trust::verify(&none, REPOSITORY, std::slice::from_ref(&object)).unwrap();
        assert!(!trust.is_pinned());
        assert!(
            trust.knows(1, &object.sha256())
                && !trust.knows(1, &Sha256::of(b"x"))
                && !trust.knows(2, &object.sha256())
        );
        let pin = RootPin::any_of(vec![key.verifying_key().fingerprint()]);
        assert!(Trust::verify(&pin, REPOSITORY, std::slice::from_ref(&object)).unwrap().is_pinned());
        let other = RootPin::any_of(vec![Sha256::of(b"other")]);
        assert!(matches!(Trust::verify(&other, REPOSITORY, &[object]), Err(RestoreError::Trust(_))));
        assert!(matches!(
            Trust::verify(&none, REPOSITORY, &[]),
            Err(RestoreError::Trust(TrustError::Missing))
        ));
    }

    #[test]
    fn a_witness_notices_roll_back_and_fork_and_forgives_retention() {
        let seen = Witness { series: SeriesId::from_bytes([2; 16]), sequence: 5, manifest: Sha256::of(b"5") };
        let nothing = |_| vec![];
        assert!(matches!(
            seen.compare(4, nothing),
            Err(RestoreError::RolledBack { witnessed: 5, found: 4, .. })
        ));
        assert!(seen.compare(9, nothing).is_ok());
        assert!(seen.compare(5, |_| vec![Sha256::of(b"5"), Sha256::of(b"x")]).is_ok());
        assert!(matches!(
            seen.compare(6, |_| vec![Sha256::of(b"x")]),
            Err(RestoreError::Forked { sequence: 5, .. })
        ));
    }
}
