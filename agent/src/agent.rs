//! What the parts of a running agent share.

use std::sync::Arc;

use tokio::sync::watch;
use url::Url;

use sealift_common::clock::Clock;
use sealift_common::id::{InstanceId, Random};
use sealift_common::protocol::Spoken;
use sealift_common::proxy::Proxy;
use sealift_proto::v1;

use crate::bandwidth::HostBandwidth;
use crate::config::secret::Environment;
use crate::config::{Config, ConfigError};
use crate::identity::keeper::IdentityKeeper;
use crate::session::link::Link;
use crate::spool::Spool;
use crate::state::dir::StateDir;
use crate::state::journal::Journal;
use crate::state::series::SeriesStore;
use crate::state::waiting::Tickets;

/// The agent of this process.
#[derive(Debug)]
pub struct Agent {
    /// One start of the process.
    pub instance: InstanceId,
    /// What this build speaks with coordinators.
    pub speaks: Spoken,
    /// Who this host is.
    pub identity: IdentityKeeper,
    /// Where it keeps its state.
    pub state: StateDir,
    /// What it was told by its owner; replaced on SIGHUP.
    pub config: watch::Sender<Arc<Config>>,
    /// Environment variables, for credentials.
    pub environment: Environment,
    /// The session with a coordinator.
    pub link: Link,
    /// How much of the line all uploads together may take.
    pub bandwidth: HostBandwidth,
    /// Where packs wait for a slow store; `None` where the owner wants none.
    pub spool: Option<Arc<Spool>>,
    /// Time.
    pub clock: Clock,
    /// Randomness.
    pub random: Random,
}

impl Agent {
    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// The journal.
    pub fn journal(&self) -> Journal {
        Journal::new(self.state.clone())
    }

    /// Backups that wait in the spool.
    pub fn tickets(&self) -> Tickets {
        Tickets::new(self.state.clone())
    }

    /// The series of this host.
    pub fn series(&self) -> SeriesStore {
        SeriesStore::new(self.state.clone())
    }

    /// The coordinators to try, in the order of the configuration.
    pub fn coordinators(&self) -> Vec<Url> {
        self.config().coordinators.iter().map(|endpoint| endpoint.url().clone()).collect()
    }

    /// The proxy to go through, as the configuration and the environment say now.
    ///
    /// # Errors
    /// [`ConfigError`] where its password cannot be had.
    pub fn proxy(&self) -> Result<Option<Proxy>, ConfigError> {
        self.config().proxy.resolve(&self.environment)
    }

    /// The sources of this host, as the coordinator may know them: no credentials, no paths beyond what `detail` says.
    pub fn source_list(&self) -> v1::SourceList {
        let known = self.series().all().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read what is known of the series");
            Vec::new()
        });
        let epoch = |name| {
            let series = known.iter().find(|series| series.source == name)?;
            Some(series.epoch.as_ref()?.secret.epoch_id().to_vec())
        };
        let config = self.config();
        let sources = config.sources.iter().map(|source| v1::SourceInfo {
            name: source.name.to_string(),
            kind: source.kind_name().to_owned(),
            detail: source.detail(),
            epoch_id: epoch(source.name.clone()).unwrap_or_default(),
            credential_origins: source.credential_origins(&self.environment),
        });
        v1::SourceList { sources: sources.collect() }
    }

    /// The newest manifests that this host knows of.
    pub fn series_heads(&self) -> Vec<v1::SeriesHead> {
        let known = self.series().all().unwrap_or_default();
        let head = |series: &crate::state::series::Series| {
            let head = series.head?;
            Some(v1::SeriesHead {
                series_id: series.id.to_vec(),
                sequence: head.sequence,
                manifest_sha256: head.manifest.to_vec(),
            })
        };
        known.iter().filter_map(head).collect()
    }
}
