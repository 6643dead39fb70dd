//! The certificate authority: one root, which signs the coordinator's own certificates and those of agents and admins.
//!
//! It lives in a directory: `ca.pem` for everybody, `ca.key` (0600) for nobody else; and, where it took the place of a lost one
//! ([`super::ca_reset`]), `ca.statement`, by which hosts know it. Certificates differ only in their
//! alternative names, usages and life; all else is decided here, nothing by who asks.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKey,
    PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use sealift_common::clock::{Clock, UnixMillis};
use sealift_common::crypto::{CaStatement, CaStatementError};
use sealift_common::id::{AgentId, Random, Sha256};
use sealift_common::tls::{self, Identity};

use super::peer::{Subject, TrustDomain};

/// The file in which root keys say that this CA is the coordinators'.
pub const STATEMENT: &str = "ca.statement";
/// How long a new CA is good.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long the coordinator's own certificate is good; it is made anew at each start and at half of this.
pub const SERVER_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Certificates are good from a little earlier on: clocks differ.
const SKEW: Duration = Duration::from_secs(300);

/// What can go wrong with the CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the CA's directory.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// One of the two files is there without the other.
    #[error("{} is missing, but the other half of the CA is there: restore it from your backup of {}", missing.display(), dir.display())]
    Half {
        /// Which.
        missing: PathBuf,
        /// The CA's directory.
        dir: PathBuf,
    },
    /// The CA's certificate.
    #[error("the CA's certificate cannot be used")]
    Tls(#[from] tls::TlsError),
    /// The CA's key, or making a certificate.
    #[error("cannot {operation}")]
    Make {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// What root keys said of it.
    #[error("{} cannot be used", path.display())]
    Statement {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: CaStatementError,
    },
    /// A certificate request that cannot be read.
    #[error(
        "the certificate request cannot be used: send PKCS#10 in DER with an ECDSA P-256 key, signed by that key"
    )]
    Request(#[source] Option<rcgen::Error>),
}

fn make(operation: &'static str) -> impl FnOnce(rcgen::Error) -> CaError {
    move |source| CaError::Make { operation, source }
}

/// The public key of a certificate request: all that is taken from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedKey(PublicKey);

impl RequestedKey {
    /// Reads a request and checks that whoever sends it has the key.
    ///
    /// # Errors
    /// [`CaError::Request`].
    pub fn parse(der: &[u8]) -> Result<Self, CaError> {
        let request = CertificateSigningRequestDer::from(der);
        let request =
            CertificateSigningRequestParams::from_der(&request).map_err(|e| CaError::Request(Some(e)))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::Request(None));
        }
        Ok(Self(request.public_key))
    }

    /// Of the key's bytes.
    pub fn sha256(&self) -> Sha256 {
        Sha256::of(self.0.der_bytes())
    }
}

/// A certificate that was just made.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf, then CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// Until when it is good.
    pub not_after: UnixMillis,
    /// Its serial number, hex.
    pub serial: String,
}

/// The certificate authority.
#[derive(Debug)]
pub struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    statement: Option<CaStatement>,
    domain: TrustDomain,
    clock: Clock,
    random: Random,
}

impl Ca {
    /// Opens the CA in `dir`, or makes one where there is none.
    ///
    /// # Errors
    /// [`CaError`], naming the file.
    pub fn open_or_create(
        dir: &Path,
        domain: TrustDomain,
        clock: Clock,
        random: Random,
    ) -> Result<Self, CaError> {
        let (certificate_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        match (certificate_path.exists(), key_path.exists()) {
            (false, false) => create(dir, &domain, &clock, &random)?,
            (true, true) => {}
            (false, true) => return Err(CaError::Half { missing: certificate_path, dir: dir.to_owned() }),
            (true, false) => return Err(CaError::Half { missing: key_path, dir: dir.to_owned() }),
        }
        let pem = std::fs::read_to_string(&key_path).map_err(|source| CaError::File {
            operation: "read",
            path: key_path,
            source,
        })?;
        let key = KeyPair::from_pem(&pem).map_err(make("read the CA's key"))?;
        drop(zeroize::Zeroizing::new(pem));
        let Some(certificate) = tls::certificates_from_file(&certificate_path)?.into_iter().next() else {
            return Err(CaError::Half { missing: certificate_path, dir: dir.to_owned() });
        };
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(make("read the CA's certificate"))?;
        let statement = statement(dir, &certificate)?;
        Ok(Self { certificate, issuer, statement, domain, clock, random })
    }

    /// What root keys said of it, where it took the place of a lost one.
    pub fn statement(&self) -> Option<&CaStatement> {
        self.statement.as_ref()
    }

    /// The CA's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What enrolment pins.
    pub fn fingerprint(&self) -> Sha256 {
        tls::fingerprint(&self.certificate)
    }

    /// 32 bytes that only who has the CA's key can make, for this purpose.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let key = zeroize::Zeroizing::new(self.issuer.key().serialize_der());
        sealift_common::crypto::keys::hkdf(&key, None, &[purpose.as_bytes()])
    }

    /// What all its certificates have in common.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Makes key and certificate of the coordinator's own, for these DNS names and addresses. The chain has the CA in it, so
    /// that enrolment can pin it.
    ///
    /// # Errors
    /// [`CaError::Make`], also for a name that is none.
    pub fn issue_server(&self, dns: &[String], ips: &[IpAddr]) -> Result<Identity, CaError> {
        let mut names = Vec::new();
        for name in dns {
            names.push(SanType::DnsName(Ia5String::try_from(name.as_str()).map_err(make("use a DNS name"))?));
        }
        names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
        names.push(uri(&format!("spiffe://{}/coordinator", self.domain))?);
        let key = generate()?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let issued = self.issue(names, usages, "sealift coordinator", SERVER_LIFE, &key)?;
        Ok(Identity { chain: issued.chain, key: private_key(&key) })
    }

    /// Signs a certificate for the key that an agent or admin has shown to have.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn issue_agent(
        &self,
        agent: AgentId,
        key_epoch: u32,
        key: &RequestedKey,
        life: Duration,
    ) -> Result<Issued, CaError> {
        self.client(&Subject::Agent(agent), key_epoch, life, &key.0)
    }

    /// Makes key and certificate of an admin, for whoever administers the machine that the coordinator runs on.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn issue_admin(&self, subject: &Subject, life: Duration) -> Result<(Issued, Identity), CaError> {
        let key = generate()?;
        let issued = self.client(subject, 0, life, &key)?;
        let identity = Identity { chain: issued.chain.clone(), key: private_key(&key) };
        Ok((issued, identity))
    }

    fn client(
        &self,
        subject: &Subject,
        key_epoch: u32,
        life: Duration,
        key: &impl PublicKeyData,
    ) -> Result<Issued, CaError> {
        let name = match subject {
            Subject::Agent(id) if key_epoch > 0 => format!("agent {id} {key_epoch}"),
            Subject::Agent(id) => format!("agent {id}"),
            Subject::Admin(name) => format!("admin {name}"),
        };
        let names = vec![uri(&subject.spiffe_id(&self.domain))?];
        self.issue(names, vec![ExtendedKeyUsagePurpose::ClientAuth], &name, life, key)
    }

    fn issue(
        &self,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        common_name: &str,
        life: Duration,
        key: &impl PublicKeyData,
    ) -> Result<Issued, CaError> {
        let now = self.clock.now();
        let not_after = now.plus(life);
        let serial = serial(&self.random);
        let mut params = params(common_name, now, not_after, &serial);
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(make("sign a certificate"))?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        Ok(Issued { chain, not_after, serial: hex::encode(serial) })
    }
}

fn uri(text: &str) -> Result<SanType, CaError> {
    Ia5String::try_from(text).map(SanType::URI).map_err(make("name a certificate"))
}

fn generate() -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make("make a key"))
}

fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(key.serialize_der().into())
}

/// Positive, and not starting with a zero byte, so that it reads the same everywhere.
fn serial(random: &Random) -> [u8; 16] {
    let mut serial: [u8; 16] = random.bytes();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

fn params(common_name: &str, now: UnixMillis, not_after: UnixMillis, serial: &[u8; 16]) -> CertificateParams {
    let moment = |t: UnixMillis| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(u64::try_from(t.0).unwrap_or_default())
    };
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = moment(now.minus(SKEW));
    params.not_after = moment(not_after);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params
}

/// The statement beside a CA; one on another CA counts for nothing.
fn statement(dir: &Path, certificate: &CertificateDer<'_>) -> Result<Option<CaStatement>, CaError> {
    let path = dir.join(STATEMENT);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| CaError::File { operation: "read", path: path.clone(), source })?,
    };
    let said = CaStatement::parse(&bytes).map_err(|source| CaError::Statement { path, source })?;
    Ok(Some(said).filter(|said| said.ca_sha256 == tls::fingerprint(certificate)))
}

fn create(dir: &Path, domain: &TrustDomain, clock: &Clock, random: &Random) -> Result<(), CaError> {
    let now = clock.now();
    let mut params = params(&format!("sealift CA {domain}"), now, now.plus(CA_LIFE), &serial(random));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = generate()?;
    let certificate = params.self_signed(&key).map_err(make("sign the CA's certificate"))?;
    super::files::make_private_dir(dir).map_err(|source| CaError::File {
        operation: "write",
        path: dir.to_owned(),
        source,
    })?;
    // The key first: a certificate without its key would look like a lost one.
    for (name, text, mode) in [("ca.key", key.serialize_pem(), 0o600), ("ca.pem", certificate.pem(), 0o644)] {
        let path = dir.join(name);
        super::files::write_whole(&path, text.as_bytes(), mode).map_err(|source| CaError::File {
            operation: "write",
            path,
            source,
        })?;
    }
    Ok(())
}
