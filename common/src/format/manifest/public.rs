//! The public part of a manifest: what coordinator and bucket may see. No names of hosts, databases or files.

use std::collections::HashSet;

use prost::Message;
use sealift_proto::format as wire;

use super::ManifestProblem;
use crate::clock::UnixMillis;
use crate::crypto::{EpochId, KeyOwner, VerifyingKey};
use crate::format::pack::{self, PackMeta};
use crate::id::{AgentId, BackupId, RepositoryId, SeriesId, Sha256};

/// Whether a backup holds all that it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// All of it.
    Complete,
    /// Something could not be read or was not protected; warnings name it.
    Partial,
}

/// One pack that a backup refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackRef {
    /// Hash and lengths of the object.
    pub meta: PackMeta,
    /// The backup that wrote it, whose data key it is sealed under.
    pub origin: BackupId,
    /// Distinct raw bytes of it that this backup refers to.
    pub referenced_raw: u64,
}

/// The public part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestPublic {
    /// Repository, series and backup.
    pub owner: KeyOwner,
    /// The agent that made it.
    pub agent: AgentId,
    /// Its place in the series, from 1; never reissued.
    pub sequence: u64,
    /// The newest manifest of the series before it; `None` for the first.
    pub previous: Option<Sha256>,
    /// When it was sealed.
    pub created: UnixMillis,
    /// Fresh for each sealing.
    pub seal_id: [u8; 16],
    /// The coordinator's nonce that went into the data key.
    pub session_nonce: [u8; 32],
    /// Version of the trust policy that named the recipients.
    pub trust_version: u64,
    /// Its object.
    pub trust_sha256: Sha256,
    /// Fingerprints of the recipients.
    pub recipients: Vec<Sha256>,
    /// The dedup epoch.
    pub epoch: EpochId,
    /// The agent's key that signed it.
    pub signing_key: VerifyingKey,
    /// What commits it to its data key.
    pub key_commitment: [u8; 32],
    /// Whether it is complete.
    pub status: Status,
    /// Raw bytes of all streams.
    pub raw_bytes: u64,
    /// Bytes stored for it that were not there before.
    pub new_stored_bytes: u64,
    /// The packs; extents name them by position.
    pub packs: Vec<PackRef>,
}

impl ManifestPublic {
    /// Whose data key a pack of this backup is sealed under.
    pub fn owner_of(&self, pack: &PackRef) -> KeyOwner {
        KeyOwner { backup: pack.origin, ..self.owner }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        wire::ManifestPublic {
            repository_id: self.owner.repository.to_vec(),
            series_id: self.owner.series.to_vec(),
            backup_id: self.owner.backup.to_vec(),
            agent_id: self.agent.to_vec(),
            sequence: self.sequence,
            previous_sha256: self.previous.map(|sha256| sha256.to_vec()).unwrap_or_default(),
            created_ms: self.created.0,
            seal_id: self.seal_id.to_vec(),
            session_nonce: self.session_nonce.to_vec(),
            trust_version: self.trust_version,
            trust_sha256: self.trust_sha256.to_vec(),
            recipients: self.recipients.iter().map(Sha256::to_vec).collect(),
            epoch_id: self.epoch.to_vec(),
            signing_key: self.signing_key.to_vec(),
            key_commitment: self.key_commitment.to_vec(),
            status: match self.status {
                Status::Complete => wire::Status::Complete.into(),
                Status::Partial => wire::Status::Partial.into(),
            },
            raw_bytes: self.raw_bytes,
            new_stored_bytes: self.new_stored_bytes,
            packs: self.packs.iter().map(|pack| pack.to_wire()).collect(),
            required_features: Vec::new(),
        }
        .encode_to_vec()
    }

    /// Reads the bytes of a public part. Proves nothing: the signature does.
    ///
    /// # Errors
    /// [`ManifestProblem::Public`] and [`ManifestProblem::RequiredFeatures`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestProblem> {
        let bad = |problem: &str| ManifestProblem::Public(problem.to_owned());
        let public = wire::ManifestPublic::decode(bytes).map_err(|_| bad("not protobuf"))?;
        if !public.required_features.is_empty() {
            return Err(ManifestProblem::RequiredFeatures(public.required_features));
        }
        let status = match public.status() {
            wire::Status::Complete => Status::Complete,
            wire::Status::Partial => Status::Partial,
            wire::Status::Unspecified => return Err(bad("its status is not known to this version")),
        };
        let public = Self {
            owner: KeyOwner {
                repository: field::<RepositoryId>(&public.repository_id)?,
                series: field::<SeriesId>(&public.series_id)?,
                backup: field::<BackupId>(&public.backup_id)?,
            },
            agent: field(&public.agent_id)?,
            sequence: public.sequence,
            previous: match public.previous_sha256.as_slice() {
                [] => None,
                sha256 => Some(field(sha256)?),
            },
            created: UnixMillis(public.created_ms),
            seal_id: public.seal_id.try_into().map_err(|_| bad("its seal id is not 16 bytes"))?,
            session_nonce: public.session_nonce.try_into().map_err(|_| bad("its nonce is not 32 bytes"))?,
            trust_version: public.trust_version,
            trust_sha256: field(&public.trust_sha256)?,
            recipients: public.recipients.iter().map(|sha256| field(sha256)).collect::<Result<_, _>>()?,
            epoch: field(&public.epoch_id)?,
            signing_key: field(&public.signing_key)?,
            key_commitment: public
                .key_commitment
                .try_into()
                .map_err(|_| bad("its key commitment is not 32 bytes"))?,
            status,
            raw_bytes: public.raw_bytes,
            new_stored_bytes: public.new_stored_bytes,
            packs: public.packs.iter().map(PackRef::from_wire).collect::<Result<_, _>>()?,
        };
        public.check()?;
        Ok(public)
    }

    pub(super) fn check(&self) -> Result<(), ManifestProblem> {
        let bad = |problem: &str| Err(ManifestProblem::Public(problem.to_owned()));
        if self.sequence == 0 {
            return bad("sequences count from 1");
        }
        if self.recipients.is_empty() {
            return bad("it names no recipient");
        }
        let mut names = HashSet::with_capacity(self.packs.len());
        if !self.packs.iter().all(|pack| names.insert(pack.meta.sha256)) {
            return bad("it names a pack twice");
        }
        Ok(())
    }
}

/// An id, hash or key out of a field.
fn field<'a, T: TryFrom<&'a [u8], Error: std::fmt::Display>>(bytes: &'a [u8]) -> Result<T, ManifestProblem> {
    T::try_from(bytes).map_err(|error| ManifestProblem::Public(error.to_string()))
}

impl PackRef {
    fn to_wire(self) -> wire::PackRef {
        wire::PackRef {
            sha256: self.meta.sha256.to_vec(),
            size: self.meta.size,
            origin_backup: self.origin.to_vec(),
            meta_sha256: self.meta.meta_sha256.to_vec(),
            index_len: self.meta.index_len,
            directory_len: self.meta.directory_len,
            header_len: self.meta.header_len,
            referenced_raw: self.referenced_raw,
        }
    }

    fn from_wire(pack: &wire::PackRef) -> Result<Self, ManifestProblem> {
        let meta = PackMeta {
            sha256: field(&pack.sha256)?,
            size: pack.size,
            meta_sha256: field(&pack.meta_sha256)?,
            index_len: pack.index_len,
            directory_len: pack.directory_len,
            header_len: pack.header_len,
        };
        let bad = |problem: String| ManifestProblem::Public(format!("pack {}: {problem}", meta.sha256));
        meta.trailer().check(meta.size).map_err(|problem| bad(problem.to_string()))?;
        if pack.referenced_raw > pack::MAX_RAW {
            return Err(bad("more is referred to than a pack can hold".to_owned()));
        }
        Ok(Self { meta, origin: field(&pack.origin_backup)?, referenced_raw: pack.referenced_raw })
    }
}
