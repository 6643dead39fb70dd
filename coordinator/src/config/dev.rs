//! The embedded default: everything in one directory, for a first look and for tests.
//!
//! ```text
//! DIR/coordinator.db  DIR/ca/  DIR/s3/  DIR/s3.env  DIR/root.key  DIR/context.toml  DIR/admin.pem  DIR/admin.key
//! ```
//! Starting again with the same directory finds everything as it was.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use sealift_common::crypto::SigningKey;
use sealift_common::crypto::key_file::{self, KeyFileError};
use sealift_common::id::{Random, Sha256};
use url::Url;

use super::{ConfigError, SchedulerSettings, SessionSettings, Settings};
use crate::identity::IdentitySettings;
use crate::identity::files;
use crate::identity::peer::TrustDomain;
use crate::objects::StorageSettings;
use crate::runtime::leader::Timing;
use crate::store::DatabaseUrl;

/// Where `dev` listens unless told otherwise.
#[derive(Debug, Clone, Copy)]
pub struct DevListen {
    /// gRPC.
    pub grpc: SocketAddr,
    /// HTTPS.
    pub http: SocketAddr,
    /// S3.
    pub s3: SocketAddr,
}

/// An address on this machine only.
pub const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

impl Default for DevListen {
    fn default() -> Self {
        Self { grpc: loopback(7443), http: loopback(7444), s3: loopback(7480) }
    }
}

/// The directory of one `dev` coordinator.
#[derive(Debug, Clone)]
pub struct DevDir(PathBuf);

impl DevDir {
    /// Opens the directory, which is made (0700) where it is missing.
    ///
    /// # Errors
    /// [`ConfigError::Write`].
    pub fn open(dir: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Write { path: dir.to_owned(), source };
        files::make_private_dir(dir).map_err(failed)?;
        Ok(Self(std::fs::canonicalize(dir).map_err(failed)?))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The fingerprint of `root.key`, which is made where it is missing.
    ///
    /// # Errors
    /// [`KeyFileError`], naming the file.
    pub fn root(&self, random: &Random) -> Result<Sha256, KeyFileError> {
        let path = self.0.join("root.key");
        if !path.exists() {
            key_file::write_new(
                &path,
                key_file::root_key_text(&SigningKey::generate(random)).expose().as_bytes(),
            )?;
        }
        let no_prompt =
            || Err(io::Error::other("dev reads no passphrase: keep a protected root key elsewhere"));
        Ok(key_file::load_root_key(&path, no_prompt)?.verifying_key().fingerprint())
    }

    /// The settings of a coordinator in this directory.
    pub fn settings(
        &self,
        listen: DevListen,
        root: Sha256,
        storage: StorageSettings,
        domain: TrustDomain,
    ) -> Settings {
        Settings {
            listen: listen.grpc,
            http_listen: listen.http,
            dns_names: vec!["localhost".to_owned()],
            addresses: vec![
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
                listen.grpc.ip(),
                listen.http.ip(),
            ],
            database: DatabaseUrl::file(self.0.join("coordinator.db")),
            ca_dir: self.0.join("ca"),
            trust_domain: domain,
            identity: IdentitySettings {
                agent_life: std::time::Duration::from_secs(24 * 3_600),
                roots: vec![root],
                coordinators: Vec::new(),
            },
            storage,
            sessions: SessionSettings::default(),
            leader: Timing::default(),
            scheduler: SchedulerSettings::default(),
        }
    }

    /// Where the CLI is told to connect to: what `context.toml` says; nothing where there is none.
    pub fn coordinators(&self) -> Vec<Url> {
        let text = std::fs::read_to_string(self.0.join("context.toml")).unwrap_or_default();
        let file: toml::Table = toml::from_str(&text).unwrap_or_default();
        let list = file.get("context").and_then(|context| context.get("coordinators")?.as_array().cloned());
        list.unwrap_or_default().iter().filter_map(|url| url.as_str()?.parse().ok()).collect()
    }

    /// Writes `context.toml` for the CLI, with the addresses that are really listened on, and the root key pinned.
    ///
    /// # Errors
    /// [`ConfigError::Write`].
    pub fn write_context(&self, coordinator: &Url, root: Sha256) -> Result<PathBuf, ConfigError> {
        let path = self.0.join("context.toml");
        write_context(
            &path,
            "dev",
            std::slice::from_ref(coordinator),
            "ca/ca.pem",
            &[root],
            Some("root.key"),
        )?;
        Ok(path)
    }
}

/// Writes a context file for the CLI; certificate and key are `admin.pem` and `admin.key` beside it.
///
/// # Errors
/// [`ConfigError::Write`].
pub fn write_context(
    path: &Path,
    name: &str,
    coordinators: &[Url],
    ca: &str,
    roots: &[Sha256],
    root_key: Option<&str>,
) -> Result<(), ConfigError> {
    let urls = coordinators.iter().map(|url| url.as_str().trim_end_matches('/'));
    let mut context = toml::Table::new();
    context.insert("name".into(), name.into());
    context.insert("coordinators".into(), urls.collect::<Vec<_>>().into());
    context.insert("ca".into(), ca.into());
    context.insert("certificate".into(), "admin.pem".into());
    context.insert("key".into(), "admin.key".into());
    if !roots.is_empty() {
        let roots: Vec<String> = roots.iter().map(Sha256::to_string).collect();
        context.insert("root_key_sha256".into(), roots.into());
    }
    if let Some(root_key) = root_key {
        context.insert("root_key".into(), root_key.into());
    }
    let mut file = toml::Table::new();
    file.insert("context".into(), context.into());
    let text = format!(
        "# Written by sealift-coordinator for the sealift command. Paths are relative to this file.\n{file}"
    );
    files::write_whole(path, text.as_bytes(), 0o600)
        .map_err(|source| ConfigError::Write { path: path.to_owned(), source })
}
