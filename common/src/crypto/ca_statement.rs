//! Which CA the coordinators of a repository have from now on, said by the root keys: for hosts whose pinned CA is lost
//! (docs/recovery.md). Root keys are pinned on each host, so whoever has the network, or the coordinator, cannot say it.
//!
//! It is a small JSON document. What is signed are the fields themselves, not their spelling. Of two statements the later
//! one counts; a host never goes back to an earlier one.

use serde::{Deserialize, Serialize};

use super::trust::RootsInForce;
use super::{SigningKey, VerifyingKey};
use crate::clock::UnixMillis;
use crate::id::{RepositoryId, Sha256};

/// What signatures are for.
const CONTEXT: &str = "sealift/1/ca";
/// The version of the document.
const FORMAT: u32 = 1;
/// Largest document that is read, in bytes.
pub const MAX_LEN: usize = 16 * 1024;
/// Most signatures of one document.
const MAX_SIGNATURES: usize = 32;

/// Why a statement is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaStatementError {
    /// It cannot be read.
    #[error("the statement on the coordinator's CA cannot be read: {0}")]
    Malformed(String),
    /// It is about another repository.
    #[error("the statement on the coordinator's CA is for repository {said}, not for {own}")]
    Repository {
        /// What it says.
        said: RepositoryId,
        /// What it should.
        own: RepositoryId,
    },
    /// Too few root keys have signed it.
    #[error(
        "the statement on the coordinator's CA has {valid} valid signatures of root keys in force, {threshold} are needed"
    )]
    Signatures {
        /// So many hold.
        valid: usize,
        /// So many are needed.
        threshold: u32,
    },
    /// The certificate is not the one that it names.
    #[error("the coordinator's CA is {shown}, the root keys said {said}")]
    Certificate {
        /// Of the certificate.
        shown: Sha256,
        /// What the statement says.
        said: Sha256,
    },
    /// The host has obeyed a later one.
    #[error("the statement on the coordinator's CA is of {said}, this host has one of {known}")]
    Old {
        /// When it was made.
        said: UnixMillis,
        /// When the one was that the host knows.
        known: UnixMillis,
    },
}

/// A statement with its signatures. Parsing one says nothing about who signed it: [`CaStatement::verify`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaStatement {
    /// Of which repository.
    pub repository: RepositoryId,
    /// Fingerprint of the CA's certificate.
    pub ca_sha256: Sha256,
    /// When it was made: the later one counts.
    pub created: UnixMillis,
    signatures: Vec<(VerifyingKey, Vec<u8>)>,
}

/// The form on disk and on the wire.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    repository_id: RepositoryId,
    ca_sha256: String,
    created_ms: UnixMillis,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    key: String,
    signature: String,
}

impl CaStatement {
    /// Says it with each of `keys`.
    pub fn sign(
        repository: RepositoryId,
        ca_sha256: Sha256,
        created: UnixMillis,
        keys: &[SigningKey],
    ) -> Self {
        let mut statement = Self { repository, ca_sha256, created, signatures: Vec::new() };
        let signature = |key: &SigningKey| {
            (key.verifying_key(), key.sign(CONTEXT, &statement.parts(&created.0.to_be_bytes())).to_vec())
        };
        let signatures = keys.iter().map(signature).collect();
        statement.signatures = signatures;
        statement
    }

    fn parts<'a>(&'a self, created: &'a [u8; 8]) -> [&'a [u8]; 3] {
        [self.repository.as_bytes(), self.ca_sha256.as_bytes(), created]
    }

    /// The document.
    pub fn to_json(&self) -> String {
        let signature = |(key, signature): &(VerifyingKey, Vec<u8>)| Signature {
            key: hex::encode(key.as_bytes()),
            signature: hex::encode(signature),
        };
        let document = Document {
            format: FORMAT,
            repository_id: self.repository,
            ca_sha256: self.ca_sha256.to_string(),
            created_ms: self.created,
            signatures: self.signatures.iter().map(signature).collect(),
        };
        // Texts and numbers: there is nothing in it that JSON cannot say.
        serde_json::to_string(&document).unwrap_or_default()
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`CaStatementError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CaStatementError> {
        let bad = |problem: &str| CaStatementError::Malformed(problem.to_owned());
        if bytes.len() > MAX_LEN {
            return Err(bad("it is too long"));
        }
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| CaStatementError::Malformed(error.to_string()))?;
        if document.format != FORMAT {
            return Err(bad("it needs a newer version of this program"));
        }
        if document.signatures.len() > MAX_SIGNATURES {
            return Err(bad("it has too many signatures"));
        }
        let signature = |wire: &Signature| {
            let key = VerifyingKey::try_from(hex::decode(&wire.key).ok()?.as_slice()).ok()?;
            Some((key, hex::decode(&wire.signature).ok()?))
        };
        let signatures: Option<Vec<_>> = document.signatures.iter().map(signature).collect();
        Ok(Self {
            repository: document.repository_id,
            ca_sha256: document.ca_sha256.parse().map_err(|_| bad("ca_sha256 is no SHA-256"))?,
            created: document.created_ms,
            signatures: signatures.ok_or_else(|| bad("a signature is not hex"))?,
        })
    }

    /// Whether the root keys in force say so of this repository and this certificate.
    ///
    /// # Errors
    /// [`CaStatementError`].
    pub fn verify(
        &self,
        roots: &RootsInForce,
        repository: RepositoryId,
        certificate: &[u8],
    ) -> Result<(), CaStatementError> {
        if self.repository != repository {
            return Err(CaStatementError::Repository { said: self.repository, own: repository });
        }
        let shown = Sha256::of(certificate);
        if self.ca_sha256 != shown {
            return Err(CaStatementError::Certificate { shown, said: self.ca_sha256 });
        }
        let created = self.created.0.to_be_bytes();
        let holds = |(key, signature): &&(VerifyingKey, Vec<u8>)| {
            roots.accept(key) && key.verify(CONTEXT, &self.parts(&created), signature).is_ok()
        };
        let mut signers: Vec<VerifyingKey> =
            self.signatures.iter().filter(holds).map(|(key, _)| *key).collect();
        signers.sort_unstable();
        signers.dedup();
        let (valid, threshold) = (signers.len(), roots.threshold());
        if valid >= threshold as usize {
            Ok(())
        } else {
            Err(CaStatementError::Signatures { valid, threshold })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trust::RootPin;
    use super::*;

    const CERTIFICATE: &[u8] = b"a certificate";

    fn repository(byte: u8) -> RepositoryId {
        RepositoryId::from_bytes([byte; 16])
    }

    fn said(keys: &[SigningKey]) -> CaStatement {
        CaStatement::sign(repository(1), Sha256::of(CERTIFICATE), UnixMillis(1_700_000_000_000), keys)
    }

    #[test]
    fn only_the_root_keys_in_force_say_it() {
        let (root, other) = (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]));
        let pinned = |threshold| {
            RootsInForce::Pinned(RootPin {
                fingerprints: vec![root.verifying_key().fingerprint(), other.verifying_key().fingerprint()],
                threshold,
            })
        };
        let verify = |statement: &CaStatement, roots: &RootsInForce| {
            statement.verify(roots, repository(1), CERTIFICATE)
        };
        let one = said(std::slice::from_ref(&root));
        assert_eq!(verify(&one, &pinned(1)), Ok(()));
        assert_eq!(verify(&one, &pinned(2)), Err(CaStatementError::Signatures { valid: 1, threshold: 2 }));
        assert_eq!(verify(&said(&[root.clone(), other.clone()]), &pinned(2)), Ok(()));
        let twice = said(&[root.clone(), root.clone()]);
        assert!(verify(&twice, &pinned(2)).is_err(), "a key counts once");
        let named = |key: &SigningKey| RootsInForce::Named { keys: vec![key.verifying_key()], threshold: 1 };
        assert_eq!(verify(&one, &named(&root)), Ok(()));
        assert!(verify(&one, &named(&other)).is_err());
        let nobody = RootsInForce::Pinned(RootPin::any_of(Vec::new()));
        assert!(verify(&one, &nobody).is_err() && verify(&said(&[]), &nobody).is_err(), "no pin, no word");

        let roots = pinned(1);
        assert!(matches!(
            one.verify(&roots, repository(2), CERTIFICATE),
            Err(CaStatementError::Repository { .. })
        ));
        assert!(matches!(
            one.verify(&roots, repository(1), b"another"),
            Err(CaStatementError::Certificate { .. })
        ));
        for changed in [
            CaStatement { created: UnixMillis(1), ..one.clone() },
            CaStatement { repository: repository(3), ..one.clone() },
        ] {
            assert!(changed.verify(&roots, changed.repository, CERTIFICATE).is_err(), "{changed:?}");
        }
    }

    #[test]
    fn the_document_stays_readable() {
        let document = include_str!("ca_statement.v1.json").trim_end();
        let root = SigningKey::from_seed([1; 32]);
        assert_eq!(said(std::slice::from_ref(&root)).to_json(), document);
        assert_eq!(CaStatement::parse(document.as_bytes()), Ok(said(&[root])));
        for bad in ["", "{}", &document.replace(":1,", ":2,"), &document.replace("\"key\"", "\"kay\"")] {
            assert!(CaStatement::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(CaStatement::parse(&vec![b' '; MAX_LEN + 1]).is_err());
    }
}
