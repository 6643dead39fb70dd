//! What the bucket has of a series, and whether a manifest is to be believed.

use std::collections::BTreeMap;

use sealift_common::crypto::{AgentKeyObject, AgentKeyring, KeyStanding};
use sealift_common::format::manifest::{Manifest, ManifestPublic};
use sealift_common::format::names::{ObjectName, manifests_prefix};
use sealift_common::id::{AgentId, SeriesId};

use super::super::RecoveryError;
use super::{Believed, Known, MAX_KEY, MAX_LISTED, Reconciler, SeriesInBucket};
use crate::objects::ByteRange;
use crate::objects::signing::MAX_MANIFEST;
use crate::store::backups::BackupState;
use crate::store::{agents, recovery};

impl Reconciler {
    /// What the bucket has of a series, and which of it is news.
    pub(super) async fn look(
        &self,
        known: &Known,
        series: SeriesId,
    ) -> Result<SeriesInBucket, RecoveryError> {
        let mut names = Vec::new();
        for listed in self.objects.list_all(&manifests_prefix(series), MAX_LISTED).await? {
            if let Ok(ObjectName::Manifest { sequence, sha256, .. }) = listed.name.as_str().parse() {
                names.push((sequence, sha256));
            }
        }
        let in_database = recovery::known_backups(&mut *self.core.store.reader().await?, series).await?;
        let mut out =
            SeriesInBucket { series, names, unknown: vec![], keys: BTreeMap::new(), left_alone: vec![] };
        for (sequence, sha256) in out.names.clone() {
            let same =
                |row: &recovery::KnownBackup| row.manifest == Some(sha256) && row.state != BackupState::Begun;
            // An abandoned one whose manifest came late is the resolver's, unless it was long ago.
            if in_database.iter().any(|row| same(row) && row.state != BackupState::Abandoned) {
                continue;
            }
            let name = ObjectName::Manifest { series, sequence, sha256 };
            match self.read(known, name, &mut out.keys).await? {
                Ok(believed) => out.unknown.push(believed),
                Err(why) => out.left_alone.push(format!("{name}: {why}")),
            }
        }
        Ok(out)
    }

    /// Reads a manifest; says why it is not to be believed.
    async fn read(
        &self,
        known: &Known,
        name: ObjectName,
        keys: &mut BTreeMap<AgentId, AgentKeyObject>,
    ) -> Result<Result<Believed, String>, RecoveryError> {
        let bytes = self.objects.get(&name.into(), ByteRange::All, MAX_MANIFEST).await?;
        let (repository, size) = (known.repository, bytes.len() as u64);
        let parsed = tokio::task::spawn_blocking(move || Manifest::parse(repository, &name, &bytes)).await;
        let manifest = match parsed {
            Ok(Ok(manifest)) => manifest,
            Ok(Err(error)) => return Ok(Err(error.problem.to_string())),
            Err(_) => return Err(RecoveryError::Seal("the program stops".to_owned())),
        };
        let public = manifest.public().clone();
        let mut reader = self.core.store.reader().await?;
        let agent = agents::get(&mut reader, public.agent).await?;
        let owner = recovery::owner(&mut reader, public.owner.series).await?;
        drop(reader);
        if owner.is_some_and(|owner| owner != public.agent) {
            return Ok(Err(format!("it is signed by host {}, whose series this is not", public.agent)));
        }
        if agent.as_ref().is_none_or(|agent| agent.signing_key != public.signing_key) {
            match self.vouched(known, &public).await? {
                Some(key) => drop(keys.entry(public.agent).or_insert(key)),
                None => {
                    return Ok(Err(format!(
                        "nobody vouches for the key that host {} signed it with",
                        public.agent
                    )));
                }
            }
        }
        Ok(Ok(Believed { name, size, public, public_sha256: manifest.public_sha256() }))
    }

    /// The object of the key that signed a manifest, where it is believed.
    pub(super) async fn vouched(
        &self,
        known: &Known,
        public: &ManifestPublic,
    ) -> Result<Option<AgentKeyObject>, RecoveryError> {
        let Some(trust) = &known.trust else { return Ok(None) };
        let mut objects = Vec::new();
        for name in known.agent_keys.get(&public.agent).into_iter().flatten() {
            let bytes = self.objects.get(&(*name).into(), ByteRange::All, MAX_KEY).await?;
            objects.extend(AgentKeyObject::parse_named(name, &bytes).ok());
        }
        let signer = objects.iter().find(|object| object.signing_key() == public.signing_key).cloned();
        let Ok(keyring) = AgentKeyring::new(public.agent, objects) else { return Ok(None) };
        let standing = keyring.standing(&public.signing_key, &trust.policy);
        Ok(signer.filter(|_| standing != KeyStanding::Unknown))
    }
}
