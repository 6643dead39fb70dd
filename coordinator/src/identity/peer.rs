//! Who is at the other end of a connection, as the certificate says.
//!
//! The TLS handshake has verified the certificate against the CA; whether its holder may still do anything is asked again
//! with each call.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use sealift_common::id::AgentId;
use sealift_common::name::Name;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// What certificates of one installation have in common: the authority of their SPIFFE ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomain(Name);

impl TrustDomain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for TrustDomain {
    type Err = sealift_common::name::InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whom a client certificate was issued to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// `spiffe://<trust domain>/agent/<uuid>`
    Agent(AgentId),
    /// `spiffe://<trust domain>/admin/<name>`
    Admin(Name),
}

impl Subject {
    /// The SPIFFE id that certificates carry.
    pub fn spiffe_id(&self, domain: &TrustDomain) -> String {
        match self {
            Self::Agent(id) => format!("spiffe://{domain}/agent/{id}"),
            Self::Admin(name) => format!("spiffe://{domain}/admin/{name}"),
        }
    }

    fn parse(uri: &str, domain: &TrustDomain) -> Option<Self> {
        let path = uri.strip_prefix("spiffe://")?.strip_prefix(domain.as_str())?.strip_prefix('/')?;
        match path.split_once('/')? {
            ("agent", id) => id.parse().ok().map(Self::Agent),
            ("admin", name) => name.parse().ok().map(Self::Admin),
            _ => None,
        }
    }
}

/// A verified client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Whom it was issued to.
    pub subject: Subject,
    /// Its serial number, hex.
    pub serial: String,
    /// Which host of an agent it was issued to: 0 for the first, one more for each that replaced it.
    pub key_epoch: u32,
}

/// A certificate that our CA signed and that is nobody's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the client certificate is no agent's and no admin's of trust domain {0}")]
pub struct NobodysCertificate(String);

impl ClientCertificate {
    /// Reads whose certificate this is: it has exactly one URI as its alternative name.
    ///
    /// # Errors
    /// [`NobodysCertificate`].
    pub fn read(der: &CertificateDer<'_>, domain: &TrustDomain) -> Result<Self, NobodysCertificate> {
        let nobodys = || NobodysCertificate(domain.to_string());
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| nobodys())?;
        let names = certificate.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        });
        match names.map(Vec::as_slice) {
            Some([GeneralName::URI(uri)]) => Ok(Self {
                subject: Subject::parse(uri, domain).ok_or_else(nobodys)?,
                serial: hex::encode(certificate.raw_serial()),
                key_epoch: key_epoch(&certificate),
            }),
            _ => Err(nobodys()),
        }
    }
}

/// "agent ID" or "agent ID EPOCH", as the CA writes it.
fn key_epoch(certificate: &X509Certificate<'_>) -> u32 {
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    name.and_then(|name| name.split(' ').nth(2)).and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}

/// The other end of a connection; in the extensions of each request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// From where.
    pub address: SocketAddr,
    /// Who, if a certificate was shown.
    pub certificate: Option<ClientCertificate>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_ids_round_trip_and_foreign_ones_are_nobodys() {
        let domain: TrustDomain = "backup.example.com".parse().unwrap();
        let agent = Subject::Agent(AgentId::from_bytes([3; 16]));
        let admin = Subject::Admin("eve".parse().unwrap());
        for subject in [agent, admin] {
            assert_eq!(Subject::parse(&subject.spiffe_id(&domain), &domain), Some(subject));
        }
        for foreign in [
            "spiffe://backup.example.com.evil/admin/eve",
            "spiffe://backup.example.comx/admin/eve",
            "spiffe://other/admin/eve",
            "spiffe://backup.example.com/root/eve",
            "spiffe://backup.example.com/admin/eve/agent",
            "spiffe://backup.example.com/agent/eve",
            "https://backup.example.com/admin/eve",
        ] {
            assert_eq!(Subject::parse(foreign, &domain), None, "{foreign}");
        }
    }
}
