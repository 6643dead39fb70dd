//! Where the bucket is and how it is reached. Parsed once at the edge: whoever holds these types knows them well-formed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sealift_common::secret::Secret;
use url::{Host, Url};

/// Everything the coordinator needs to know about the object store.
#[derive(Debug, Clone)]
pub struct StorageSettings {
    /// The server; `None` means AWS, found by region.
    pub endpoint: Option<Endpoint>,
    /// Region that requests are signed for.
    pub region: String,
    /// The bucket.
    pub bucket: BucketName,
    /// Where in the bucket the repository lives.
    pub prefix: Prefix,
    /// Whether the bucket goes into the path rather than the host name.
    pub path_style: bool,
    /// The coordinator's own credential (deploy/iam/coordinator.json).
    pub credentials: Credentials,
    /// A credential that may only put series objects, for what is signed for agents (deploy/iam/put-only.json).
    pub put_only: Option<Credentials>,
    /// Server-side encryption asked for on every object.
    pub encryption: ServerSideEncryption,
    /// Lock put on every object of a backup, where the bucket has Object Lock.
    pub object_lock: Option<ObjectLock>,
    /// PEM of the CA to trust for the endpoint instead of the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// PEM of client certificate and key, for gateways that speak mTLS.
    pub client_identity_pem: Option<Secret<Vec<u8>>>,
}

/// An access key.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The access key id: public.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: Secret<String>,
    /// The session token of a temporary credential.
    pub session_token: Option<Secret<String>>,
}

/// Server-side encryption asked for on every object; the bytes are sealed by the agent in any case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ServerSideEncryption {
    /// Whatever the bucket's default is.
    #[default]
    BucketDefault,
    /// SSE-S3.
    Aes256,
    /// SSE-KMS with this key.
    Kms(String),
}

/// A lock that is put on every object of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    /// Who may lift it.
    pub mode: LockMode,
    /// How long whatever a backup refers to is locked from that backup on, at least.
    pub period: Duration,
}

impl ObjectLock {
    /// How long an object is locked when it is uploaded: twice the period, so that the packs of a series need not be
    /// extended for each of its backups.
    pub fn at_upload(&self) -> Duration {
        self.period.saturating_mul(2)
    }
}

/// Modes of S3 Object Lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Those with a special permission may lift it.
    Governance,
    /// Nobody may lift it.
    Compliance,
}

impl LockMode {
    /// The mode as S3 headers spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetting {
    /// Not a bucket name.
    #[error(
        "bucket {0:?}: use 3 to 63 of a-z, 0-9, '-' and '.', starting and ending with a letter or digit, no '..', not an IP address"
    )]
    Bucket(String),
    /// Not a prefix.
    #[error(
        "prefix {0:?}: use up to 200 of letters, digits, '-', '_', '.' and '/', without empty parts, '.' or '..'"
    )]
    Prefix(String),
    /// Not an endpoint.
    #[error("endpoint {0:?}: write https://HOST[:PORT], without user, path or query")]
    Endpoint(String),
    /// Unencrypted, to somewhere else.
    #[error(
        "endpoint {0:?} is not encrypted: use https:// (or set allow_http = true if the network between is yours)"
    )]
    Unencrypted(String),
}

/// Cuts what goes into an error message.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The name of a bucket, by S3's general-purpose rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketName(String);

impl BucketName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BucketName {
    type Err = InvalidSetting;
    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let end = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let fits = (3..=63).contains(&text.len())
            && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.')
            && end(text.bytes().next())
            && end(text.bytes().last())
            && !text.contains("..")
            && text.parse::<std::net::Ipv4Addr>().is_err();
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidSetting::Bucket(shown(text))) }
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where in the bucket the repository lives: empty, or path parts without slashes at either end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// The prefix as text, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full key of what is called `relative` below this prefix.
    pub fn key(&self, relative: &str) -> String {
        if self.0.is_empty() { relative.to_owned() } else { format!("{}/{relative}", self.0) }
    }

    /// What `key` is called below this prefix, if it lies there.
    pub fn relative<'a>(&self, key: &'a str) -> Option<&'a str> {
        if self.0.is_empty() { Some(key) } else { key.strip_prefix(&self.0)?.strip_prefix('/') }
    }
}

impl FromStr for Prefix {
    type Err = InvalidSetting;
    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let trimmed = text.strip_suffix('/').unwrap_or(text);
        let fits =
            trimmed.is_empty() || (trimmed.len() <= 200 && trimmed.split('/').all(super::key::is_part));
        if fits { Ok(Self(trimmed.to_owned())) } else { Err(InvalidSetting::Prefix(shown(text))) }
    }
}

/// A server's base URL: encrypted, or on this machine, or expressly allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

impl Endpoint {
    /// Parses an endpoint. `allow_http` is the admin's word that the network between is theirs.
    ///
    /// # Errors
    /// [`InvalidSetting`] where it is not a plain base URL, or unencrypted towards another machine.
    pub fn parse(text: &str, allow_http: bool) -> Result<Self, InvalidSetting> {
        let bad = || InvalidSetting::Endpoint(shown(text));
        let url = Url::parse(text).map_err(|_| bad())?;
        let plain = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        let anonymous = url.username().is_empty() && url.password().is_none();
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !plain || !anonymous {
            return Err(bad());
        }
        let endpoint = Self(url);
        if endpoint.0.scheme() == "http" && !allow_http && !endpoint.is_loopback() {
            return Err(InvalidSetting::Unencrypted(shown(text)));
        }
        Ok(endpoint)
    }

    /// Whether the server is on this machine.
    pub fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        }
    }

    /// The base URL.
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl StorageSettings {
    /// The base URL that object keys are appended to, without a slash at the end.
    pub fn base_url(&self) -> String {
        let bucket = self.bucket.as_str();
        match (&self.endpoint, self.path_style) {
            (None, true) => format!("https://s3.{}.amazonaws.com/{bucket}", self.region),
            (None, false) => format!("https://{bucket}.s3.{}.amazonaws.com", self.region),
            (Some(endpoint), true) => format!("{endpoint}/{bucket}"),
            (Some(endpoint), false) => {
                let text = endpoint.to_string();
                text.split_once("://")
                    .map_or(text.clone(), |(scheme, host)| format!("{scheme}://{bucket}.{host}"))
            }
        }
    }

    /// The endpoint as people read it in `status`.
    pub fn shown_endpoint(&self) -> String {
        self.endpoint.as_ref().map_or_else(|| format!("AWS {}", self.region), Endpoint::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_follow_s3s_rules() {
        for good in ["abc", "my-bucket.1", &"x".repeat(63)] {
            assert!(good.parse::<BucketName>().is_ok(), "{good}");
        }
        for bad in ["", "ab", "Bucket", "-abc", "abc-", "a..b", "127.0.0.1", "a/b", "bücket", &"x".repeat(64)]
        {
            assert!(bad.parse::<BucketName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_cannot_climb() {
        assert_eq!("fleet/eu/".parse::<Prefix>().unwrap().key("trust/1"), "fleet/eu/trust/1");
        assert_eq!("".parse::<Prefix>().unwrap().key("trust/1"), "trust/1");
        for bad in ["/a", "//", "a//b", "..", "a/../b", "a/./b", "a b", "a?b"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        let prefix: Prefix = "fleet".parse().unwrap();
        assert_eq!(prefix.relative("fleet/x"), Some("x"));
        assert_eq!(prefix.relative("fleet2/x"), None);
    }

    #[test]
    fn endpoints_are_encrypted_unless_here() {
        for good in
            ["https://s3.example.com", "http://127.0.0.1:9000", "http://localhost:1/", "http://[::1]:9"]
        {
            assert!(Endpoint::parse(good, false).is_ok(), "{good}");
        }
        assert_eq!(
            Endpoint::parse("http://s3.example.com", false),
            Err(InvalidSetting::Unencrypted("http://s3.example.com".into()))
        );
        assert!(Endpoint::parse("http://s3.example.com", true).is_ok());
        for bad in
            ["s3.example.com", "ftp://x", "https://u:p@x", "https://x/path", "https://x/?q", "https://"]
        {
            assert!(Endpoint::parse(bad, true).is_err(), "{bad}");
        }
    }
}
