//! TLS as all three programs use it: PEM files, pinned roots, client configurations, and the gRPC channel over them.
//!
//! Channels are built over our own connector, because enrolment must pin a CA by fingerprint before it knows the CA, and
//! because a renewed certificate is a new [`Identity`] on a new channel while the old one stays good.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tonic::transport::{Channel, Endpoint, Uri};
use url::Url;

use crate::id::Sha256;
use crate::proxy::{self, Proxy};

/// How long a connection may take to be made, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an idle connection is pinged: below the time-outs that common NAT boxes have (60 s and more).
pub const KEEPALIVE: Duration = Duration::from_secs(25);

/// What can go wrong with certificates, keys and connections.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be used.
    #[error("cannot read {what} from {}: is it a PEM file that this user may read?", path.display())]
    Pem {
        /// "certificates" or "private key".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// A file without any certificate in it.
    #[error("{} holds no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Certificates and key do not make a TLS configuration.
    #[error("cannot use {what} for TLS")]
    Config {
        /// Which part.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// An address that cannot be connected to.
    #[error("{0:?} is not an address of a coordinator: write https://HOST:PORT")]
    Address(String),
}

/// Makes aws-lc-rs the process's crypto provider. Call once, first thing in `main`.
pub fn install_provider() {
    // An error means that one is installed already, which is what is wanted.
    let _ = aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// SHA-256 over the certificate's DER: the fingerprint that tokens print and `enroll` pins.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Sha256 {
    Sha256::of(certificate)
}

/// A certificate chain (leaf first) and its private key.
#[derive(Debug)]
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Identity {
    /// Reads chain and key from PEM files.
    ///
    /// # Errors
    /// [`TlsError::Pem`] or [`TlsError::Empty`], naming the file.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let key_der = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Pem {
            what: "a private key",
            path: key.to_owned(),
            source,
        })?;
        Ok(Self { chain: certificates_from_file(chain)?, key: key_der })
    }
}

/// Reads all certificates of a PEM file; at least one.
///
/// # Errors
/// [`TlsError::Pem`] or [`TlsError::Empty`], naming the file.
pub fn certificates_from_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Pem { what: "certificates", path: path.to_owned(), source };
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    if all.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(all) }
}

/// A root store of exactly these certificates.
///
/// # Errors
/// [`TlsError::Config`] where one of them is no CA certificate.
pub fn roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store
            .add(certificate.clone())
            .map_err(|source| TlsError::Config { what: "the CA certificate", source })?;
    }
    Ok(store)
}

/// A client configuration that trusts exactly `ca` and presents `identity`, for HTTP/2.
///
/// # Errors
/// [`TlsError::Config`] where CA, chain or key do not fit.
pub fn client_config(
    ca: &[CertificateDer<'static>],
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, TlsError> {
    finish(builder()?.with_root_certificates(roots(ca)?), identity)
}

/// A client configuration for enrolment: trusts a server only if the chain that it presents holds the CA certificate
/// with this fingerprint, and verifies under that CA.
///
/// # Errors
/// [`TlsError::Config`] where the provider does not support TLS 1.2 and 1.3.
pub fn pinned_client_config(ca_sha256: Sha256) -> Result<Arc<ClientConfig>, TlsError> {
    verified_by(Believed::Pinned(ca_sha256))
}

/// A client configuration that takes whoever answers for the coordinator: to ask what anybody may know and what proves
/// itself, a statement of the root keys. Nothing that must be kept, and nothing secret, may go over it.
///
/// # Errors
/// [`TlsError::Config`] where the provider does not support TLS 1.2 and 1.3.
pub fn unverified_client_config() -> Result<Arc<ClientConfig>, TlsError> {
    verified_by(Believed::Anybody)
}

fn verified_by(believed: Believed) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = Arc::new(Verifier { believed, provider: provider() });
    finish(builder()?.dangerous().with_custom_certificate_verifier(verifier), None)
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Config { what: "the protocol versions", source })
}

fn finish(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(|source| TlsError::Config { what: "the client certificate and its key", source })?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Whose certificate is good enough.
#[derive(Debug)]
enum Believed {
    /// The CA with this fingerprint, found among what the server presents, and whom it certified.
    Pinned(Sha256),
    /// Whoever has the key of the certificate that it shows.
    Anybody,
}

/// Believes whom [`Believed`] names; signatures are checked as always.
#[derive(Debug)]
struct Verifier {
    believed: Believed,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// The usual verification with the pinned CA as the only root.
    fn under(
        &self,
        pinned: Sha256,
        presented: &[CertificateDer<'_>],
    ) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let Some(ca) = presented.iter().find(|c| fingerprint(c) == pinned) else {
            let presented: Vec<_> = presented.iter().map(|c| fingerprint(c).to_string()).collect();
            return Err(rustls::Error::General(format!(
                "the coordinator's CA is not the pinned one: expected SHA-256 {pinned}, it presents {}",
                if presented.is_empty() { "none".to_owned() } else { presented.join(", ") }
            )));
        };
        let mut store = RootCertStore::empty();
        store.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.believed {
            Believed::Anybody => Ok(ServerCertVerified::assertion()),
            Believed::Pinned(ca) => {
                let usual = self.under(ca, intermediates)?;
                usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A gRPC channel to one coordinator. Connects on first use and again when the connection was lost.
///
/// # Errors
/// [`TlsError::Address`] where `coordinator` is no `https://` URL with a host.
pub fn channel(coordinator: &Url, config: Arc<ClientConfig>) -> Result<Channel, TlsError> {
    channel_through(coordinator, config, None)
}

/// As [`channel`], through a proxy where it covers that host.
///
/// # Errors
/// As [`channel`].
pub fn channel_through(
    coordinator: &Url,
    config: Arc<ClientConfig>,
    proxy: Option<Proxy>,
) -> Result<Channel, TlsError> {
    let bad = || TlsError::Address(coordinator.to_string());
    if coordinator.scheme() != "https" {
        return Err(bad());
    }
    let host = coordinator.host_str().ok_or_else(bad)?.to_owned();
    let port = coordinator.port_or_known_default().ok_or_else(bad)?;
    // A bracketed IPv6 literal is an authority, not a name to verify.
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare.clone()).map_err(|_| bad())?;
    let connector = tokio_rustls::TlsConnector::from(config);
    let connect = tower::service_fn(move |_: Uri| {
        let (connector, name, bare) = (connector.clone(), name.clone(), bare.clone());
        let proxy = proxy.clone();
        async move {
            let stream = proxy::connect(&bare, port, proxy.as_ref()).await?;
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    // The scheme is http because tonic would otherwise want to add TLS of its own on top of ours.
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|_| bad())?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(CONNECT_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connect))
}

/// What TLS said about somebody's certificate, however deep in `error` it is: nothing that goes away by trying again.
pub fn certificate_problem<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    said_by_tls(error).filter(|said| is_about_certificates(said))
}

/// What TLS said, on its own or inside I/O errors, whose `source` passes over what they hold.
fn said_by_tls<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(said) = error.downcast_ref::<rustls::Error>() {
        return Some(said);
    }
    let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match held {
        Some(held) => said_by_tls(held),
        None => error.source().and_then(said_by_tls),
    }
}

fn is_about_certificates(error: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(_) => true,
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tls_said_of_certificates_is_found_however_deep() {
        let said = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let deep = std::io::Error::other(std::io::Error::other(said()));
        assert!(certificate_problem(&said()).is_some() && certificate_problem(&deep).is_some());
        let others =
            [std::io::Error::other("refused"), std::io::Error::other(rustls::Error::HandshakeNotComplete)];
        assert!(others.iter().all(|other| certificate_problem(other).is_none()));
    }

    #[tokio::test]
    async fn only_https_addresses_make_a_channel() {
        let config = pinned_client_config(Sha256::of(b"any")).unwrap();
        for bad in ["http://127.0.0.1:7443", "unix:/tmp/x"] {
            let url: Url = bad.parse().unwrap();
            assert!(matches!(channel(&url, config.clone()), Err(TlsError::Address(_))), "{bad}");
        }
        for good in ["https://127.0.0.1:7443", "https://backup.example.com", "https://[::1]:7443"] {
            assert!(channel(&good.parse().unwrap(), config.clone()).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_missing_pem_file_is_named() {
        let error = certificates_from_file(Path::new("/nowhere/ca.pem")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    }
}
