//! The trust policy that this host obeys: who may open its backups. The coordinator only delivers it; root keys pinned at
//! enrolment (or named by an earlier policy) must have signed it, and an older one is refused.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use sealift_common::crypto::trust::{RootsInForce, verify_chain};
use sealift_common::crypto::{
    KnownTrust, Recipient, RootPin, TrustError, TrustObject, TrustState, VerifyingKey,
};
use sealift_common::id::{RepositoryId, Sha256};

use super::dir::{StateDir, StateError};
use crate::identity::Identity;

const FILE: &str = "trust.json";
const ADVICE: &str = "remove it: the policy is then checked against the root key pinned at enrolment";

/// Why a trust policy is not obeyed.
#[derive(Debug, thiserror::Error)]
pub enum TrustKeeperError {
    /// It is not to be believed.
    #[error("the coordinator's trust policy is refused")]
    Refused(#[from] TrustError),
    /// The coordinator wants another version used than the one it proved.
    #[error("the coordinator names version {named} of the trust policy, but proved version {proved}")]
    NotProved {
        /// What it named.
        named: u64,
        /// What it proved.
        proved: u64,
    },
    /// No rule is for this host.
    #[error(
        "version {version} of the trust policy has no rule for scope {scope:?}: set one with `sealift trust set --scope {scope}`"
    )]
    NoRule {
        /// The policy's version.
        version: u64,
        /// This host's scope.
        scope: String,
    },
    /// State directory.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The form on disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u64,
    sha256: String,
    roots: Option<StoredRoots>,
    object: String,
}

/// Root keys that a policy named; absent while the pinned ones are in force.
#[derive(Serialize, Deserialize)]
struct StoredRoots {
    keys: Vec<String>,
    threshold: u32,
}

/// Verifies and remembers trust policies.
#[derive(Debug)]
pub struct TrustKeeper {
    state: StateDir,
    pin: RootPin,
    repository: RepositoryId,
    scope: String,
    current: Option<TrustState>,
}

impl TrustKeeper {
    /// Reads what was trusted last, and checks it again.
    ///
    /// # Errors
    /// [`TrustKeeperError`].
    pub fn open(state: StateDir, identity: &Identity) -> Result<Self, TrustKeeperError> {
        let pin = RootPin::any_of(identity.root_pins.clone());
        let mut keeper = Self {
            state,
            pin,
            repository: identity.repository,
            scope: identity.scope.clone(),
            current: None,
        };
        if let Some(stored) = keeper.state.read_json::<Stored>(FILE, ADVICE)? {
            let damaged = |problem: String| StateError::Damaged {
                path: keeper.state.path(FILE),
                problem,
                advice: ADVICE,
            };
            let (known, object) = keeper.parse(&stored).map_err(damaged)?;
            keeper.current = Some(verify_chain(&keeper.pin, Some(&known), keeper.repository, &[object])?);
        }
        Ok(keeper)
    }

    /// Trusts nothing yet: what an earlier identity of this host trusted does not count.
    ///
    /// # Errors
    /// [`TrustKeeperError::State`].
    pub fn start_over(state: StateDir, identity: &Identity) -> Result<Self, TrustKeeperError> {
        state.remove(FILE)?;
        Self::open(state, identity)
    }

    /// Takes in trust objects that are newer than [`TrustKeeper::version`]; none is fine.
    ///
    /// # Errors
    /// [`TrustKeeperError::Refused`]: what was trusted before stays.
    pub fn accept(&mut self, chain: &[Vec<u8>]) -> Result<(), TrustKeeperError> {
        if chain.is_empty() {
            return Ok(());
        }
        let objects: Vec<_> =
            chain.iter().map(|bytes| TrustObject::parse(bytes)).collect::<Result<_, _>>()?;
        let known = self.current.as_ref().map(|state| &state.known);
        let state = verify_chain(&self.pin, known, self.repository, &objects)?;
        let object = objects.iter().find(|object| object.sha256() == state.known.sha256);
        let object = object.ok_or(TrustError::Missing)?;
        self.state.write_json(FILE, &stored(&state.known, object))?;
        self.current = Some(state);
        Ok(())
    }

    /// The root keys whose word counts now.
    pub fn roots(&self) -> RootsInForce {
        match &self.current {
            Some(state) => state.known.roots.clone(),
            None => RootsInForce::Pinned(self.pin.clone()),
        }
    }

    /// The version in force; 0 where there is none yet.
    pub fn version(&self) -> u64 {
        self.current.as_ref().map_or(0, |state| state.known.version)
    }

    /// To whom this host's backups are sealed under the policy that the coordinator names.
    ///
    /// # Errors
    /// [`TrustKeeperError`] where that policy was not proved, or has no rule for this host's scope.
    pub fn recipients(
        &self,
        version: u64,
        sha256: Sha256,
    ) -> Result<(KnownTrust, Vec<Recipient>), TrustKeeperError> {
        let state = self.current.as_ref().ok_or(TrustError::Missing)?;
        if (state.known.version, state.known.sha256) != (version, sha256) {
            return Err(TrustKeeperError::NotProved { named: version, proved: state.known.version });
        }
        let recipients = state.policy.recipients_for(&self.scope);
        let recipients =
            recipients.ok_or_else(|| TrustKeeperError::NoRule { version, scope: self.scope.clone() })?;
        Ok((state.known.clone(), recipients))
    }

    fn parse(&self, stored: &Stored) -> Result<(KnownTrust, TrustObject), String> {
        let roots = match &stored.roots {
            None => RootsInForce::Pinned(self.pin.clone()),
            Some(roots) => RootsInForce::Named {
                keys: roots.keys.iter().map(|hex| parse_key(hex)).collect::<Result<_, _>>()?,
                threshold: roots.threshold,
            },
        };
        let sha256 = stored.sha256.parse().map_err(|error| format!("sha256: {error}"))?;
        let bytes =
            BASE64_STANDARD.decode(&stored.object).map_err(|_| "the policy is not base64".to_owned())?;
        let object = TrustObject::parse(&bytes).map_err(|error| error.to_string())?;
        Ok((KnownTrust { version: stored.version, sha256, roots }, object))
    }
}

fn stored(known: &KnownTrust, object: &TrustObject) -> Stored {
    let roots = match &known.roots {
        RootsInForce::Pinned(_) => None,
        RootsInForce::Named { keys, threshold } => Some(StoredRoots {
            keys: keys.iter().map(|key| hex::encode(key.as_bytes())).collect(),
            threshold: *threshold,
        }),
    };
    Stored {
        version: known.version,
        sha256: known.sha256.to_string(),
        roots,
        object: BASE64_STANDARD.encode(object.bytes()),
    }
}

fn parse_key(hex: &str) -> Result<VerifyingKey, String> {
    let bytes = hex::decode(hex).map_err(|_| "a root key is not hex".to_owned())?;
    VerifyingKey::try_from(bytes.as_slice()).map_err(|error| error.to_string())
}
