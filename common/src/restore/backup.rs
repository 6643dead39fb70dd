//! Opening one backup: every check between the trust policy and the first byte (docs/format.md, Restoring).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::engine::{Counters, Engine, StreamReader};
use super::keys::KeyCache;
use super::trust::{Trust, Witness};
use super::{ObjectSource, RestoreError};
use crate::crypto::{AgentKeyObject, AgentKeyring, DataKey, Identities, KeySlots, KeyStanding};
use crate::format::manifest::{
    Content, MAX_PUBLIC, MAX_SEALED, Manifest, ManifestError, ManifestProblem, ManifestPublic, Outcome,
    Stream,
};
use crate::format::names::ObjectName;
use crate::id::{AgentId, BackupId, RepositoryId};

/// Most bytes of a manifest: its parts at their caps. Sealed parts are compressed, and refused beyond this.
const MAX_MANIFEST: u64 = (MAX_PUBLIC + MAX_SEALED) as u64;
/// Most bytes of an `agents/` object.
const MAX_AGENT_KEY: u64 = 64 * 1024;

/// The objects of one backup.
#[derive(Debug, Clone)]
pub struct Located {
    /// The repository, as the trust policy names it.
    pub repository: RepositoryId,
    /// The manifest.
    pub manifest: ObjectName,
    /// `slots/` objects of the series.
    pub slots: Vec<ObjectName>,
    /// `agents/` objects of the agent that made it; those of others are ignored.
    pub agent_keys: Vec<ObjectName>,
}

/// What is believed.
#[derive(Debug, Clone, Copy)]
pub struct Beliefs<'a> {
    /// The verified trust policy.
    pub trust: &'a Trust,
    /// Take a manifest whose key nothing vouches for.
    pub accept_unknown_key: bool,
}

/// A manifest whose signature, signer and place hold; still sealed.
#[derive(Debug, Clone)]
pub struct SignedBackup {
    manifest: Manifest,
    standing: KeyStanding,
    slots: Vec<ObjectName>,
}

impl SignedBackup {
    /// Reads and checks the manifest: name hash, path, repository, series, sequence, signature, and who signed.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn load(
        source: &dyn ObjectSource,
        located: &Located,
        beliefs: Beliefs<'_>,
    ) -> Result<Self, RestoreError> {
        let bytes = source.get(&located.manifest, MAX_MANIFEST).await?;
        let (repository, name) = (located.repository, located.manifest);
        // Hashing up to a gigabyte is not for the async threads.
        let parsed = tokio::task::spawn_blocking(move || Manifest::parse(repository, &name, &bytes)).await;
        let manifest =
            parsed.map_err(|_| RestoreError::Cancelled)?.map_err(|error| manifest_error(&error))?;
        let public = manifest.public();
        if !beliefs.trust.knows(public.trust_version, &public.trust_sha256) {
            let problem = format!(
                "it refers to a version {} of the trust policy that was never in force",
                public.trust_version
            );
            return Err(RestoreError::Manifest { object: name.to_string(), problem });
        }
        let keyring = keyring(source, public.agent, &located.agent_keys).await?;
        let standing = keyring.standing(&public.signing_key, beliefs.trust.policy());
        if standing == KeyStanding::Unknown && !beliefs.accept_unknown_key {
            return Err(RestoreError::UnknownKey { object: name.to_string(), standing });
        }
        Ok(Self { manifest, standing, slots: located.slots.clone() })
    }

    /// The public part.
    pub fn public(&self) -> &ManifestPublic {
        self.manifest.public()
    }

    /// How far the key that signed it is believed.
    pub fn standing(&self) -> KeyStanding {
        self.standing
    }

    /// With these `slots/` objects, for recipients that were added later.
    #[must_use]
    pub fn with_slots(mut self, slots: Vec<ObjectName>) -> Self {
        self.slots = slots;
        self
    }

    /// Checks against what somebody else has seen, where only this manifest is at hand.
    ///
    /// # Errors
    /// [`RestoreError::Forked`]; that this is not the newest is no fault.
    pub fn compare(&self, witness: &Witness) -> Result<(), RestoreError> {
        let public = self.public();
        let own = self.manifest.name().sha256();
        witness.compare(public.sequence.max(witness.sequence), |sequence| {
            own.filter(|_| sequence == public.sequence).into_iter().collect()
        })
    }

    /// Opens a slot, checks the commitment and opens the sealed part.
    ///
    /// # Errors
    /// [`RestoreError::Slot`] with a wrong identity; [`RestoreError::Manifest`].
    pub async fn open(
        self,
        source: Arc<dyn ObjectSource>,
        identities: Arc<Identities>,
    ) -> Result<OpenBackup, RestoreError> {
        let keys = KeyCache::new(source.clone(), identities, &self.slots);
        let public = self.manifest.public().clone();
        let (seal_id, commitment) = (public.seal_id, public.key_commitment);
        let manifest = Arc::new(self.manifest);
        let locked = manifest.clone();
        let unlock = move |identities: &Identities, further: &[KeySlots]| {
            locked.unlock(identities, further).map_err(|error| manifest_error(&error))
        };
        let commits = move |key: &DataKey| key.commits_to(&seal_id, &commitment);
        let key = keys.open(public.owner.backup, commits, unlock).await?;
        let sealed = manifest.clone();
        let content = tokio::task::spawn_blocking(move || sealed.open(&key)).await;
        let content =
            content.map_err(|_| RestoreError::Cancelled)?.map_err(|error| manifest_error(&error))?;
        let content = Arc::new(content);
        let engine = Arc::new(Engine::new(source, public.clone(), content.clone(), keys));
        Ok(OpenBackup { name: manifest.name(), public, content, standing: self.standing, engine })
    }
}

async fn keyring(
    source: &dyn ObjectSource,
    agent: AgentId,
    names: &[ObjectName],
) -> Result<AgentKeyring, RestoreError> {
    let mut objects = Vec::new();
    for name in names {
        if matches!(name, ObjectName::AgentKey { agent: of, .. } if *of == agent) {
            let bytes = source.get(name, MAX_AGENT_KEY).await?;
            objects.push(AgentKeyObject::parse_named(name, &bytes).map_err(RestoreError::AgentKey)?);
        }
    }
    AgentKeyring::new(agent, objects).map_err(RestoreError::AgentKey)
}

fn manifest_error(error: &ManifestError) -> RestoreError {
    let object = error.name.to_string();
    match &error.problem {
        ManifestProblem::Slots(source) => RestoreError::Slot { object, source: source.clone() },
        problem => RestoreError::Manifest { object, problem: problem.to_string() },
    }
}

/// A backup whose content is known and can be read.
#[derive(Debug, Clone)]
pub struct OpenBackup {
    name: ObjectName,
    public: ManifestPublic,
    content: Arc<Content>,
    standing: KeyStanding,
    engine: Arc<Engine>,
}

impl OpenBackup {
    /// Name of the manifest.
    pub fn name(&self) -> ObjectName {
        self.name
    }

    /// The public part of its manifest.
    pub fn public(&self) -> &ManifestPublic {
        &self.public
    }

    /// What was backed up.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// How far the key that signed it is believed.
    pub fn standing(&self) -> KeyStanding {
        self.standing
    }

    /// What was read so far.
    pub fn counters(&self) -> &Arc<Counters> {
        self.engine.counters()
    }

    /// The stream of this name.
    ///
    /// # Errors
    /// [`RestoreError::NotInBackup`], naming those there are.
    pub fn stream(&self, name: &str) -> Result<&Stream, RestoreError> {
        self.content.stream(name).ok_or_else(|| RestoreError::NotInBackup {
            what: "stream",
            name: name.to_owned(),
            has: self.content.streams.iter().map(|stream| stream.name.clone()).collect(),
        })
    }

    /// Refuses a stream that is not whole, unless told otherwise.
    ///
    /// # Errors
    /// [`RestoreError::Outcome`].
    pub fn check_outcome(&self, stream: &Stream, accept_partial: bool) -> Result<(), RestoreError> {
        let outcome = match stream.outcome {
            Outcome::Success => return Ok(()),
            Outcome::Partial => "partial: something is missing from it",
            Outcome::Failed => "broken off",
        };
        if accept_partial {
            Ok(())
        } else {
            Err(RestoreError::Outcome { stream: stream.name.clone(), outcome })
        }
    }

    /// Reads ranges of a stream, one after the other; their frames are verified, what is in them is for the caller to check.
    ///
    /// # Errors
    /// [`RestoreError::Content`] where a range leaves the stream.
    pub fn read_ranges(
        &self,
        stream: &Stream,
        ranges: Vec<Range<u64>>,
    ) -> Result<StreamReader, RestoreError> {
        if ranges.iter().any(|range| range.end > stream.raw_len || range.start > range.end) {
            return Err(RestoreError::Content {
                item: stream.name.clone(),
                problem: "its catalog points beyond its end".to_owned(),
            });
        }
        let at = self.content.streams.iter().position(|known| known.name == stream.name);
        let at = at.ok_or(RestoreError::Cancelled)?;
        Ok(self.engine.read(at, ranges))
    }

    /// Reads a whole stream. Wrap it in [`super::VerifiedReader`] to have length and hash checked.
    ///
    /// # Errors
    /// As [`OpenBackup::read_ranges`].
    pub fn read(&self, stream: &Stream) -> Result<StreamReader, RestoreError> {
        self.read_ranges(stream, std::iter::once(0..stream.raw_len).filter(|range| range.end > 0).collect())
    }

    /// Opens one pack of each backup that wrote some of this one: whether the identities open all of it.
    ///
    /// # Errors
    /// [`RestoreError`] of the first that does not open.
    pub async fn test_keys(&self) -> Result<(), RestoreError> {
        let mut one_of_each: BTreeMap<BackupId, u32> = BTreeMap::new();
        for (number, pack) in (0u32..).zip(&self.public.packs) {
            one_of_each.entry(pack.origin).or_insert(number);
        }
        for number in one_of_each.into_values() {
            self.engine.probe(number).await?;
        }
        Ok(())
    }
}
