//! The TOML file of `serve`. deploy/examples/coordinator.toml shows every key; a test reads it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sealift_common::id::Sha256;
use sealift_common::secret::Secret;
use sealift_common::telemetry::LogTarget;
use serde::Deserialize;
use url::{Host, Url};

use super::{ConfigError, LogSettings, SchedulerSettings, SessionSettings, Settings, reference};
use crate::identity::IdentitySettings;
use crate::objects::StorageSettings;
use crate::objects::settings::{Credentials, Endpoint, LockMode, ObjectLock, ServerSideEncryption};
use crate::runtime::leader::Timing;
use crate::store::DatabaseUrl;

/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// The file, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    #[serde(default)]
    listen: Listen,
    public: Public,
    database: Database,
    ca: CaSection,
    #[serde(default)]
    trust: Trust,
    storage: Storage,
    #[serde(default)]
    scheduler: Scheduler,
    #[serde(default)]
    log: Log,
    #[serde(default)]
    telemetry: Telemetry,
}

/// How much is started.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Scheduler {
    concurrent: Option<u32>,
}

impl Scheduler {
    fn settings(&self) -> Result<SchedulerSettings, ConfigError> {
        let default = SchedulerSettings::default();
        match self.concurrent {
            Some(0) => Err(ConfigError::Value {
                key: "scheduler.concurrent".to_owned(),
                value: "0".to_owned(),
                problem: "must be at least 1; `sealift pause` stops schedules".to_owned(),
            }),
            concurrent => Ok(SchedulerSettings { concurrent: concurrent.unwrap_or(default.concurrent) }),
        }
    }
}

/// Where to listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Listen {
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        let any = IpAddr::from([0, 0, 0, 0]);
        Self { grpc: SocketAddr::new(any, 7443), http: SocketAddr::new(any, 7444) }
    }
}

/// How agents and admins reach the coordinator.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Public {
    coordinators: Vec<String>,
    #[serde(default)]
    names: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Database {
    url: String,
    password: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaSection {
    dir: PathBuf,
    #[serde(default = "default_trust_domain")]
    trust_domain: String,
    #[serde(default = "default_agent_certificate")]
    agent_certificate: String,
}

fn default_trust_domain() -> String {
    "sealift".to_owned()
}

fn default_agent_certificate() -> String {
    "24h".to_owned()
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Trust {
    root_sha256: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Storage {
    endpoint: Option<String>,
    region: String,
    bucket: String,
    #[serde(default)]
    prefix: String,
    path_style: Option<bool>,
    #[serde(default)]
    allow_http: bool,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    put_only: Option<PutOnly>,
    sse: Option<String>,
    kms_key: Option<String>,
    object_lock: Option<Lock>,
    ca_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_key: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct PutOnly {
    access_key_id: String,
    secret_access_key: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    mode: String,
    period: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Log {
    level: String,
    format: String,
    file: Option<PathBuf>,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: "text".to_owned(), file: None }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Telemetry {
    otlp_endpoint: Option<String>,
}

fn bad(key: &str, value: &str, problem: impl std::fmt::Display) -> ConfigError {
    let value = value.chars().take(120).collect();
    ConfigError::Value { key: key.to_owned(), value, problem: problem.to_string() }
}

fn duration(key: &str, text: &str) -> Result<Duration, ConfigError> {
    humantime::parse_duration(text).map_err(|_| bad(key, text, "write a duration like 30m, 24h or 30d"))
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

impl ConfigFile {
    /// Reads a file; secrets are not looked at yet.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Syntax`] with the line and the key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let size = std::fs::metadata(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?
            .len();
        let syntax = |problem: String| ConfigError::Syntax { path: path.to_owned(), problem };
        if size > MAX_FILE {
            return Err(syntax(format!("is larger than {MAX_FILE} bytes")));
        }
        let text = String::from_utf8(read(path)?).map_err(|_| syntax("is not UTF-8".to_owned()))?;
        toml::from_str(&text).map_err(|error| syntax(error.to_string().trim_end().to_owned()))
    }

    /// Checks all of it and fetches the secrets it refers to.
    ///
    /// # Errors
    /// The first [`ConfigError`] there is.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let coordinators = self.public.coordinators()?;
        let (dns_names, addresses) = self.public.all_names(&coordinators)?;
        let domain = &self.ca.trust_domain;
        let root = |text: &String| text.parse::<Sha256>().map_err(|e| bad("trust.root_sha256", text, e));
        let agent_life = duration("ca.agent_certificate", &self.ca.agent_certificate)?;
        if !(Duration::from_secs(60)..=Duration::from_secs(90 * 24 * 3_600)).contains(&agent_life) {
            return Err(bad("ca.agent_certificate", &self.ca.agent_certificate, "use one minute to 90 days"));
        }
        Ok(Settings {
            listen: self.listen.grpc,
            http_listen: self.listen.http,
            dns_names,
            addresses,
            database: self.database.settings()?,
            ca_dir: self.ca.dir.clone(),
            trust_domain: domain.parse().map_err(|e| bad("ca.trust_domain", domain, e))?,
            identity: IdentitySettings {
                agent_life,
                roots: self.trust.root_sha256.iter().map(root).collect::<Result<_, _>>()?,
                coordinators,
            },
            storage: self.storage.settings()?,
            sessions: SessionSettings::default(),
            leader: Timing::default(),
            scheduler: self.scheduler.settings()?,
        })
    }

    /// Logs and traces.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn log_settings(&self) -> Result<LogSettings, ConfigError> {
        let target = match (&self.log.file, self.log.format.as_str()) {
            (Some(path), _) => LogTarget::File(path.clone()),
            (None, "text") => LogTarget::Stderr,
            (None, "json") => LogTarget::StderrJson,
            (None, other) => return Err(bad("log.format", other, "use text or json")),
        };
        if let Some(endpoint) = &self.telemetry.otlp_endpoint {
            Url::parse(endpoint)
                .map_err(|_| bad("telemetry.otlp_endpoint", endpoint, "write http(s)://HOST:4317"))?;
        }
        Ok(LogSettings {
            level: self.log.level.clone(),
            target,
            otlp_endpoint: self.telemetry.otlp_endpoint.clone(),
        })
    }
}

impl Public {
    fn coordinators(&self) -> Result<Vec<Url>, ConfigError> {
        let key = "public.coordinators";
        if self.coordinators.is_empty() {
            return Err(bad(
                key,
                "[]",
                "name at least one address that agents reach, like https://backup.example.com:7443",
            ));
        }
        let one = |text: &String| match Url::parse(text) {
            Ok(url) if url.scheme() == "https" && url.has_host() && matches!(url.path(), "" | "/") => Ok(url),
            _ => Err(bad(key, text, "write https://HOST:PORT")),
        };
        self.coordinators.iter().map(one).collect()
    }

    /// The names that the certificate must have: those of the URLs, and further ones.
    fn all_names(&self, coordinators: &[Url]) -> Result<(Vec<String>, Vec<IpAddr>), ConfigError> {
        let further = self.names.iter().map(|name| {
            Host::parse(name).map_err(|_| bad("public.names", name, "write a DNS name or an IP address"))
        });
        let of_urls = coordinators.iter().filter_map(|url| url.host().map(|host| Ok(host.to_owned())));
        let (mut dns, mut ips) = (Vec::new(), Vec::new());
        for host in of_urls.chain(further) {
            match host? {
                Host::Domain(name) => dns.push(name),
                Host::Ipv4(ip) => ips.push(IpAddr::V4(ip)),
                Host::Ipv6(ip) => ips.push(IpAddr::V6(ip)),
            }
        }
        dns.sort();
        dns.dedup();
        ips.sort();
        ips.dedup();
        Ok((dns, ips))
    }
}

impl Database {
    fn settings(&self) -> Result<DatabaseUrl, ConfigError> {
        let password = self.password.as_deref().map(|text| reference::resolve("database.password", text));
        // A URL with a password in it, which is a mistake, must not be shown.
        let shown = Url::parse(&self.url).map_or_else(
            |_| self.url.clone(),
            |mut url| {
                // There is none to hide where it cannot be set.
                let _ = url.password().is_some().then(|| url.set_password(Some("…")));
                url.to_string()
            },
        );
        DatabaseUrl::parse(&self.url, password.transpose()?).map_err(|e| bad("database.url", &shown, e))
    }
}

impl Storage {
    fn settings(&self) -> Result<StorageSettings, ConfigError> {
        let endpoint =
            self.endpoint.as_deref().map(|text| Endpoint::parse(text, self.allow_http)).transpose();
        let secret = |key, text: &str| reference::resolve(key, text);
        let token = self.session_token.as_deref();
        let put_only = self.put_only.as_ref().map(|pair| {
            Ok(Credentials {
                access_key_id: plain_or_reference("storage.put_only.access_key_id", &pair.access_key_id)?,
                secret_access_key: secret("storage.put_only.secret_access_key", &pair.secret_access_key)?,
                session_token: None,
            })
        });
        Ok(StorageSettings {
            endpoint: endpoint.map_err(ConfigError::Storage)?,
            region: self.region.clone(),
            bucket: self.bucket.parse().map_err(ConfigError::Storage)?,
            prefix: self.prefix.parse().map_err(ConfigError::Storage)?,
            // Servers of one's own rarely have a DNS name for each bucket.
            path_style: self.path_style.unwrap_or(self.endpoint.is_some()),
            credentials: Credentials {
                access_key_id: plain_or_reference("storage.access_key_id", &self.access_key_id)?,
                secret_access_key: secret("storage.secret_access_key", &self.secret_access_key)?,
                session_token: token.map(|text| secret("storage.session_token", text)).transpose()?,
            },
            put_only: put_only.transpose()?,
            encryption: self.encryption()?,
            object_lock: self.object_lock.as_ref().map(Lock::settings).transpose()?,
            ca_pem: self.ca_file.as_deref().map(read).transpose()?,
            client_identity_pem: self.client_identity()?,
        })
    }

    fn encryption(&self) -> Result<ServerSideEncryption, ConfigError> {
        match (self.sse.as_deref(), &self.kms_key) {
            (None, None) => Ok(ServerSideEncryption::BucketDefault),
            (Some("aes256"), None) => Ok(ServerSideEncryption::Aes256),
            (Some("kms"), Some(key)) => Ok(ServerSideEncryption::Kms(key.clone())),
            (Some("kms"), None) => Err(bad("storage.sse", "kms", "name the key: kms_key = \"…\"")),
            (other, _) => {
                Err(bad("storage.sse", other.unwrap_or_default(), "use aes256, or kms with kms_key"))
            }
        }
    }

    fn client_identity(&self) -> Result<Option<Secret<Vec<u8>>>, ConfigError> {
        match (&self.client_certificate, &self.client_key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => {
                let mut pem = read(certificate)?;
                pem.push(b'\n');
                pem.extend_from_slice(reference::resolve("storage.client_key", key)?.expose().as_bytes());
                Ok(Some(Secret::new(pem)))
            }
            _ => Err(bad("storage.client_certificate", "", "client_certificate and client_key go together")),
        }
    }
}

impl Lock {
    fn settings(&self) -> Result<ObjectLock, ConfigError> {
        let mode = match self.mode.as_str() {
            "governance" => LockMode::Governance,
            "compliance" => LockMode::Compliance,
            other => return Err(bad("storage.object_lock.mode", other, "use governance or compliance")),
        };
        Ok(ObjectLock { mode, period: duration("storage.object_lock.period", &self.period)? })
    }
}

/// An access key id is public: it may stand in the file, or be referred to like its secret.
fn plain_or_reference(key: &'static str, text: &str) -> Result<String, ConfigError> {
    if ["${", "file:", "credential:"].iter().any(|start| text.starts_with(start)) {
        return Ok(reference::resolve(key, text)?.expose().clone());
    }
    if text.is_empty() { Err(bad(key, text, "is empty")) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/coordinator.toml");

    /// The example, with secrets that are there.
    fn example(dir: &Path) -> String {
        let secret = dir.join("secret");
        std::fs::write(&secret, "s3cret").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let text = std::fs::read_to_string(EXAMPLE).unwrap();
        let reference = format!("file:{}", secret.display());
        text.replace("credential:s3-secret-key", &reference)
            .replace("credential:s3-put-only-secret-key", &reference)
    }

    fn check(dir: &Path, text: &str) -> Result<Settings, ConfigError> {
        let path = dir.join("coordinator.toml");
        std::fs::write(&path, text).unwrap();
        let file = ConfigFile::read(&path)?;
        file.log_settings()?;
        file.settings()
    }

    #[test]
    fn the_example_is_good_and_says_what_it_seems_to() {
        let dir = tempfile::tempdir().unwrap();
        let settings = check(dir.path(), &example(dir.path())).unwrap();
        assert_eq!(settings.dns_names, ["backup.example.com"]);
        assert_eq!(settings.storage.bucket.as_str(), "example-backups");
        assert!(settings.storage.put_only.is_some());
        assert!(!format!("{settings:?}").contains("s3cret"));
    }

    #[test]
    fn each_mistake_gets_one_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let good = example(dir.path());
        for (from, to, says) in [
            ("region =", "reigon =", "reigon"),
            ("bucket = \"example-backups\"", "bucket = \"Example_Backups\"", "Example_Backups"),
            ("https://s3.example.com", "http://s3.example.com", "not encrypted"),
            ("https://backup.example.com:7443", "http://backup.example.com:7443", "https://HOST:PORT"),
            ("agent_certificate = \"24h\"", "agent_certificate = \"soon\"", "24h"),
            ("format = \"json\"", "format = \"xml\"", "text or json"),
            ("prefix = \"sealift\"", "prefix = \"../other\"", "../other"),
            ("url = \"sqlite:/var", "url = \"mysql:/var", "postgres://USER@HOST"),
            ("url = \"sqlite:/var", "path = \"/var", "unknown field `path`"),
        ] {
            assert!(good.contains(from), "the example has no {from}");
            let error = check(dir.path(), &good.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(says), "{to}: {error}");
        }
    }
}
