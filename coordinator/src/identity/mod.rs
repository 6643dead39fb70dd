//! Who is who: the CA, enrolment of hosts, certificates of agents and admins, the trust policy.
//!
//! | file | what it is for |
//! |---|---|
//! | [`ca`] | signs certificates |
//! | [`peer`] | whose certificate a connection showed |
//! | [`token`] | enrolment tokens |
//! | [`enrol`] | hosts become agents, and stay agents |
//! | [`admins`] | certificates of admins |
//! | [`hosts`] | what admins do with hosts over their life |
//! | [`agents`] | what admins see of agents, and may do to them |
//! | [`trust`] | the chain of signed trust policies |
//! | [`files`] | small files, whole or not at all |

pub mod admins;
pub mod agents;
pub mod ca;
pub mod ca_reset;
pub mod enrol;
pub mod error;
pub mod files;
pub mod hosts;
pub mod peer;
pub mod token;
pub mod trust;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, RepositoryId, Sha256};
use url::Url;

use crate::core::Core;
use crate::objects::ObjectStore;
use ca::Ca;
pub use error::IdentityError;

/// What admins decide about identities, in the configuration.
#[derive(Debug, Clone)]
pub struct IdentitySettings {
    /// How long agents' certificates are good.
    pub agent_life: Duration,
    /// Fingerprints of the root keys that sign the first trust policy.
    pub roots: Vec<Sha256>,
    /// Where agents reach the coordinator, for whoever creates a token.
    pub coordinators: Vec<Url>,
}

impl IdentitySettings {
    /// Where agents reach the coordinator, as a command line takes it.
    pub fn addresses(&self) -> Vec<String> {
        self.coordinators.iter().map(|url| url.as_str().trim_end_matches('/').to_owned()).collect()
    }
}

/// Challenges that are open: whom each was given to, and until when it is good.
type Challenges = HashMap<[u8; 32], (AgentId, UnixMillis)>;

/// Everything about identities. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Identities {
    core: Core,
    ca: Arc<Ca>,
    objects: ObjectStore,
    settings: Arc<IdentitySettings>,
    challenges: Arc<Mutex<Challenges>>,
}

impl Identities {
    /// Identities of the installation of `core`, signed by `ca`.
    pub fn new(core: Core, ca: Arc<Ca>, objects: ObjectStore, settings: IdentitySettings) -> Self {
        Self { core, ca, objects, settings: Arc::new(settings), challenges: Arc::default() }
    }

    /// The CA.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// Which repository this is.
    pub fn repository(&self) -> RepositoryId {
        self.core.repository
    }

    /// What admins decided.
    pub fn settings(&self) -> &IdentitySettings {
        &self.settings
    }
}
