//! Who this host is: its keys, its certificate, and what it pinned when it enrolled.
//!
//! Everything is one file, replaced as one step, so that key and certificate always fit each other. The signing key (Ed25519)
//! stays for the life of the agent; the TLS key (P-256) is new with every certificate.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use url::Url;
use zeroize::Zeroizing;

use sealift_common::clock::UnixMillis;
use sealift_common::crypto::SigningKey;
use sealift_common::id::{AgentId, RepositoryId, Sha256};
use sealift_common::tls;
use sealift_proto::v1;

use crate::state::dir::{StateDir, StateError};
use crate::state::encoded::Encoded;

pub mod certificate;
pub mod enroll;
pub mod keeper;

const FILE: &str = "identity.json";
const ADVICE: &str = "restore it from a copy, or remove it and enrol this host again";

/// An identity, or a message that should carry one, that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The state directory has none.
    #[error("this host is not enrolled: no identity in {0}; run sealift-agent enroll first")]
    NotEnrolled(String),
    /// The state directory already has one.
    #[error(
        "this host is already enrolled as {name} ({id}): use another --state-dir, or remove {file} to start over"
    )]
    AlreadyEnrolled {
        /// Its name.
        name: String,
        /// Its id.
        id: AgentId,
        /// The file to remove.
        file: String,
    },
    /// State directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// A key or a request for a certificate could not be made.
    #[error("cannot make {what}")]
    Key {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The coordinator's answer cannot be used.
    #[error("the coordinator's answer cannot be used: {0}")]
    Answer(String),
    /// Certificate, key or CA do not make a TLS configuration.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// A TLS private key (P-256, PKCS#8 DER).
#[derive(Clone)]
pub struct TlsKey(Zeroizing<Vec<u8>>);

impl TlsKey {
    /// A fresh key.
    ///
    /// # Errors
    /// [`IdentityError::Key`].
    pub fn generate() -> Result<Self, IdentityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|source| IdentityError::Key { what: "a TLS key", source })?;
        Ok(Self(Zeroizing::new(pair.serialize_der())))
    }

    /// A PKCS#10 request for a certificate of this key, in DER. Names come from the coordinator, never from a CSR.
    ///
    /// # Errors
    /// [`IdentityError::Key`].
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let failed = |source| IdentityError::Key { what: "a certificate request", source };
        let pair = KeyPair::try_from(self.0.as_slice()).map_err(failed)?;
        let params = CertificateParams::new(Vec::new()).map_err(failed)?;
        Ok(params.serialize_request(&pair).map_err(failed)?.der().to_vec())
    }
}

/// The identity of this host.
#[derive(Clone)]
pub struct Identity {
    /// Its id, chosen by itself.
    pub agent: AgentId,
    /// Its name, given by the token.
    pub name: String,
    /// Which rule of the trust policy its series fall under; pinned.
    pub scope: String,
    /// The repository its backups go to.
    pub repository: RepositoryId,
    /// The coordinators it was enrolled at.
    pub coordinators: Vec<Url>,
    /// Fingerprints of the root keys pinned at enrolment.
    pub root_pins: Vec<Sha256>,
    /// Signs manifests, and proves who this is when the certificate has expired.
    pub signing_key: SigningKey,
    /// CAs of coordinators.
    pub ca: Vec<CertificateDer<'static>>,
    /// When root keys said so, where the CA of the enrolment was lost; zero where not.
    pub ca_said: UnixMillis,
    /// Certificate, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The certificate's key.
    pub tls_key: TlsKey,
    /// When the certificate was issued, by this host's clock.
    pub issued: UnixMillis,
    /// When it expires.
    pub not_after: UnixMillis,
}

impl Identity {
    /// Reads the identity.
    ///
    /// # Errors
    /// [`IdentityError::NotEnrolled`] where there is none; [`StateError::Damaged`] where it cannot be read.
    pub fn load(state: &StateDir) -> Result<Self, IdentityError> {
        let stored: Option<Stored> = state.read_json(FILE, ADVICE)?;
        let stored =
            stored.ok_or_else(|| IdentityError::NotEnrolled(state.path("").display().to_string()))?;
        stored
            .parse()
            .map_err(|problem| StateError::Damaged { path: state.path(FILE), problem, advice: ADVICE }.into())
    }

    /// Writes the identity, as one step.
    ///
    /// # Errors
    /// [`StateError`]: the earlier one is then still in place.
    pub fn save(&self, state: &StateDir) -> Result<(), StateError> {
        state.write_json(FILE, &Stored::from(self))
    }

    /// What TLS connections present.
    pub fn tls(&self) -> tls::Identity {
        tls::Identity {
            chain: self.chain.clone(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.tls_key.0.to_vec())),
        }
    }

    /// When the certificate wants to be renewed: at 70 % of its life.
    pub fn renew_at(&self) -> UnixMillis {
        let life = self.not_after.since(self.issued);
        self.issued.plus(life.mul_f64(0.7))
    }

    /// This identity with the certificate that `answer` brings for `key`.
    ///
    /// # Errors
    /// [`IdentityError::Answer`] where a field is missing, names another agent, or does not fit the key.
    pub fn with_certificate(
        &self,
        answer: &v1::Identity,
        key: TlsKey,
        now: UnixMillis,
    ) -> Result<Self, IdentityError> {
        let bad = |problem: &str| IdentityError::Answer(problem.to_owned());
        if answer.agent_id != self.agent.as_bytes() {
            return Err(bad("it names another agent"));
        }
        if answer.certificate_chain_der.is_empty() || answer.ca_der.is_empty() {
            return Err(bad("it holds no certificate or no CA"));
        }
        if answer.not_after_ms <= now.0 {
            return Err(bad("its certificate has expired already: is this host's clock right?"));
        }
        let der = |all: &[Vec<u8>]| all.iter().cloned().map(CertificateDer::from).collect::<Vec<_>>();
        let renewed = Self {
            chain: der(&answer.certificate_chain_der),
            ca: der(&answer.ca_der),
            tls_key: key,
            issued: now,
            not_after: UnixMillis(answer.not_after_ms),
            ..self.clone()
        };
        // Refuses a certificate that is not for our key, before the old one is given up.
        tls::client_config(&renewed.ca, Some(&renewed.tls()))?;
        Ok(renewed)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("agent", &self.agent)
            .field("name", &self.name)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The form on disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    agent_id: AgentId,
    name: String,
    scope: String,
    repository_id: RepositoryId,
    coordinators: Vec<Url>,
    root_sha256: Vec<String>,
    signing_key: Encoded,
    ca: Vec<String>,
    #[serde(default)]
    ca_said_ms: UnixMillis,
    certificate: Vec<String>,
    tls_key: Encoded,
    issued_ms: UnixMillis,
    not_after_ms: UnixMillis,
}

impl From<&Identity> for Stored {
    fn from(identity: &Identity) -> Self {
        let encode = |all: &[CertificateDer<'_>]| all.iter().map(|c| BASE64_STANDARD.encode(c)).collect();
        Self {
            agent_id: identity.agent,
            name: identity.name.clone(),
            scope: identity.scope.clone(),
            repository_id: identity.repository,
            coordinators: identity.coordinators.clone(),
            root_sha256: identity.root_pins.iter().map(ToString::to_string).collect(),
            signing_key: Encoded::new(identity.signing_key.seed().expose()),
            ca: encode(&identity.ca),
            ca_said_ms: identity.ca_said,
            certificate: encode(&identity.chain),
            tls_key: Encoded::new(&identity.tls_key.0),
            issued_ms: identity.issued,
            not_after_ms: identity.not_after,
        }
    }
}

impl Stored {
    fn parse(self) -> Result<Identity, String> {
        let certificates = |all: &[String]| {
            all.iter()
                .map(|text| BASE64_STANDARD.decode(text).map(CertificateDer::from))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| "a certificate is not base64".to_owned())
        };
        let pins = self.root_sha256.iter().map(|hex| hex.parse()).collect::<Result<_, _>>();
        Ok(Identity {
            agent: self.agent_id,
            name: self.name,
            scope: self.scope,
            repository: self.repository_id,
            coordinators: self.coordinators,
            root_pins: pins.map_err(|error| format!("root_sha256: {error}"))?,
            signing_key: decode_seed(&self.signing_key)?,
            ca: certificates(&self.ca)?,
            ca_said: self.ca_said_ms,
            chain: certificates(&self.certificate)?,
            tls_key: decode_tls_key(&self.tls_key)?,
            issued: self.issued_ms,
            not_after: self.not_after_ms,
        })
    }
}

fn decode_seed(encoded: &Encoded) -> Result<SigningKey, String> {
    let seed = encoded.decode_32();
    seed.map(SigningKey::from_seed).ok_or_else(|| "the signing key is not 32 bytes in base64".to_owned())
}

fn decode_tls_key(encoded: &Encoded) -> Result<TlsKey, String> {
    encoded.decode().map(TlsKey).ok_or_else(|| "the TLS key is not base64".to_owned())
}
