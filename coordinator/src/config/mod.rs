//! Configuration: one TOML file for `serve`, or one directory for `dev`; both become the same [`Settings`].
//!
//! What is written is checked whole before anything starts: unknown keys are refused by name, secrets are references
//! ([`reference`]), and every value is parsed into the type that the rest of the program uses. To add a section: a struct
//! in [`file`], its place in [`file::ConfigFile`], its part of [`Settings`].

pub mod dev;
pub mod file;
pub mod reference;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use sealift_common::telemetry::LogTarget;

use crate::identity::IdentitySettings;
use crate::identity::peer::TrustDomain;
use crate::objects::StorageSettings;
use crate::objects::settings::InvalidSetting;
use crate::runtime::leader::Timing;
use crate::store::DatabaseUrl;

/// Everything the coordinator needs to know to start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where gRPC listens.
    pub listen: SocketAddr,
    /// Where HTTPS listens.
    pub http_listen: SocketAddr,
    /// DNS names in the coordinator's certificate.
    pub dns_names: Vec<String>,
    /// Addresses in the coordinator's certificate.
    pub addresses: Vec<IpAddr>,
    /// The database.
    pub database: DatabaseUrl,
    /// The CA's directory.
    pub ca_dir: PathBuf,
    /// What all certificates have in common.
    pub trust_domain: TrustDomain,
    /// Certificates and root keys.
    pub identity: IdentitySettings,
    /// The bucket.
    pub storage: StorageSettings,
    /// How agents behave while they are connected.
    pub sessions: SessionSettings,
    /// How long leadership lasts without being renewed.
    pub leader: Timing,
    /// How much is started.
    pub scheduler: SchedulerSettings,
}

/// How much this coordinator starts for policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerSettings {
    /// Runs at the same time.
    pub concurrent: u32,
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        Self { concurrent: 1_000 }
    }
}

/// How agents are to behave while they are connected.
#[derive(Debug, Clone, Copy)]
pub struct SessionSettings {
    /// How often an agent is to be heard of.
    pub heartbeat: Duration,
    /// Longest pause before an agent tries again after it lost its session.
    pub reconnect_cap: Duration,
}

impl SessionSettings {
    /// Without a word for so long, a session is over.
    pub fn silence(&self) -> Duration {
        self.heartbeat * 3
    }

    /// How long an attempt outlives the last word of its agent.
    pub fn lease(&self) -> Duration {
        self.silence() + self.reconnect_cap * 2
    }
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(10), reconnect_cap: Duration::from_secs(30) }
    }
}

/// Logs and traces.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Least level or a filter.
    pub level: String,
    /// Where lines go.
    pub target: LogTarget,
    /// Where traces go.
    pub otlp_endpoint: Option<String>,
}

/// A configuration that cannot be used; says what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type; the message shows the line.
    #[error("{}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        problem: String,
    },
    /// A value that cannot be used.
    #[error("{key} = {value:?}: {problem}")]
    Value {
        /// Section and key.
        key: String,
        /// What was given.
        value: String,
        /// What would be right.
        problem: String,
    },
    /// A value of the object store's section.
    #[error("storage: {0}")]
    Storage(InvalidSetting),
    /// A secret that is not there, or not safe where it is.
    #[error("{key}: {problem}")]
    Secret {
        /// Section and key.
        key: &'static str,
        /// What is wrong; never the secret.
        problem: String,
    },
}
