//! Sealing, signing, parsing and opening manifests.

use std::io::Read;

use super::{
    Content, MAX_PUBLIC, MAX_SEALED, ManifestError, ManifestProblem, ManifestPublic, PackRef, Status,
};
use crate::clock::UnixMillis;
use crate::crypto::slots::MAX_SLOTS;
use crate::crypto::{DataKey, Identities, KeySlots, SigningKey, SlotError};
use crate::format::extent::referenced_raw;
use crate::format::names::ObjectName;
use crate::format::pack::BackupKeys;
use crate::format::{PartReader, push_part};
use crate::id::{AgentId, Random, RepositoryId, Sha256};

const MAGIC: &str = "SLFTMAN1";
const CONTEXT: &str = "sealift/1/manifest";
const SEALED_NONCE: [u8; 12] = [0; 12];
const SEALED: u8 = 0x04;
const LEVEL: i32 = 3;
/// log2 of the largest zstd window that readers accept: 16 MiB.
const WINDOW_LOG: u32 = 24;

/// What the writer decides of the public part; keys, content and randomness give the rest.
#[derive(Debug, Clone)]
pub struct PublicDraft {
    /// The agent.
    pub agent: AgentId,
    /// Its place in the series, as Begin gave it.
    pub sequence: u64,
    /// The newest manifest of the series, as Begin gave it.
    pub previous: Option<Sha256>,
    /// Now.
    pub created: UnixMillis,
    /// The nonce that went into the data key.
    pub session_nonce: [u8; 32],
    /// The trust policy in force.
    pub trust_version: u64,
    /// Its object.
    pub trust_sha256: Sha256,
    /// Whether the backup is complete.
    pub status: Status,
    /// Bytes stored for it that were not there before.
    pub new_stored_bytes: u64,
    /// The packs that extents refer to, by position. What is referred to of each is counted here.
    pub packs: Vec<PackRef>,
}

/// A finished manifest, and what Prepare tells the coordinator of it.
#[derive(Debug, Clone)]
pub struct ManifestObject {
    /// The object's name.
    pub name: ObjectName,
    /// The object's bytes.
    pub bytes: Vec<u8>,
    /// Of the object's bytes.
    pub sha256: Sha256,
    /// What the public part says.
    pub public: ManifestPublic,
    /// The public part's bytes.
    pub public_bytes: Vec<u8>,
    /// Of the public part.
    pub public_sha256: Sha256,
    /// Of the slots.
    pub slots_sha256: Sha256,
    /// Of the sealed part.
    pub sealed_sha256: Sha256,
    /// The agent's signature.
    pub signature: [u8; 64],
}

impl ManifestObject {
    /// Seals and signs the manifest of a backup.
    ///
    /// # Errors
    /// [`ManifestProblem`] for a content that readers would refuse: extents that lie in no pack, streams of one name, parts
    /// beyond the caps.
    pub fn seal(
        draft: PublicDraft,
        content: &Content,
        keys: &BackupKeys,
        signing_key: &SigningKey,
        random: &Random,
    ) -> Result<Self, ManifestProblem> {
        let public = public_part(draft, content, keys, signing_key, random);
        public.check()?;
        content.check(&public)?;
        let public_bytes = public.encode();
        if public_bytes.len() > MAX_PUBLIC {
            return Err(ManifestProblem::TooLarge("public"));
        }
        let slots = keys.slots.encode();
        let (public_sha256, slots_sha256) = (Sha256::of(&public_bytes), Sha256::of(&slots));

        let content = content.encode();
        if content.len() > MAX_SEALED {
            return Err(ManifestProblem::TooLarge("sealed"));
        }
        let mut sealed = zstd::bulk::compress(&content, LEVEL).map_err(|_| ManifestProblem::Compression)?;
        let aad = sealed_aad(&public_sha256, &slots_sha256);
        keys.data_key.manifest_key(&public_sha256).seal(SEALED_NONCE, &aad, &mut sealed);
        let sealed_sha256 = Sha256::of(&sealed);
        let hashes =
            [&public_sha256, &slots_sha256, &sealed_sha256].map(|sha256| sha256.as_bytes().as_slice());
        let signature = signing_key.sign(CONTEXT, &hashes);

        let mut bytes = Vec::with_capacity(public_bytes.len() + slots.len() + sealed.len() + 84);
        bytes.extend_from_slice(MAGIC.as_bytes());
        [public_bytes.as_slice(), &slots, &sealed].iter().for_each(|part| push_part(&mut bytes, part));
        bytes.extend_from_slice(&signature);
        let sha256 = Sha256::of(&bytes);
        let name = ObjectName::Manifest { series: public.owner.series, sequence: public.sequence, sha256 };
        Ok(Self {
            name,
            bytes,
            sha256,
            public,
            public_bytes,
            public_sha256,
            slots_sha256,
            sealed_sha256,
            signature,
        })
    }
}

fn public_part(
    draft: PublicDraft,
    content: &Content,
    keys: &BackupKeys,
    signing_key: &SigningKey,
    random: &Random,
) -> ManifestPublic {
    let seal_id = random.bytes();
    let mut packs = draft.packs;
    let extents = content.streams.iter().flat_map(|stream| &stream.extents);
    let referenced = referenced_raw(packs.len(), extents);
    packs.iter_mut().zip(referenced).for_each(|(pack, referenced_raw)| pack.referenced_raw = referenced_raw);
    ManifestPublic {
        owner: keys.owner,
        agent: draft.agent,
        sequence: draft.sequence,
        previous: draft.previous,
        created: draft.created,
        seal_id,
        session_nonce: draft.session_nonce,
        trust_version: draft.trust_version,
        trust_sha256: draft.trust_sha256,
        recipients: keys.slots.recipients(),
        epoch: keys.secret.epoch_id(),
        signing_key: signing_key.verifying_key(),
        key_commitment: keys.data_key.commitment(&seal_id),
        status: draft.status,
        raw_bytes: content.raw_bytes(),
        new_stored_bytes: draft.new_stored_bytes,
        packs,
    }
}

fn sealed_aad(public_sha256: &Sha256, slots_sha256: &Sha256) -> Vec<u8> {
    [public_sha256.as_bytes().as_slice(), slots_sha256.as_bytes(), &[SEALED]].concat()
}

/// What a coordinator checks at Prepare, before the object exists: that the public part reads, and that the agent has signed
/// it together with these slots and this sealed part. Compare the rest (series, sequence, packs, recipients, the agent's
/// key) with what you know.
///
/// # Errors
/// [`ManifestProblem`].
pub fn verify_prepared(
    public_bytes: &[u8],
    slots_sha256: &Sha256,
    sealed_sha256: &Sha256,
    signature: &[u8],
) -> Result<ManifestPublic, ManifestProblem> {
    if public_bytes.len() > MAX_PUBLIC {
        return Err(ManifestProblem::TooLarge("public"));
    }
    let public = ManifestPublic::decode(public_bytes)?;
    let public_sha256 = Sha256::of(public_bytes);
    let hashes = [&public_sha256, slots_sha256, sealed_sha256].map(|sha256| sha256.as_bytes().as_slice());
    let verified = public.signing_key.verify(CONTEXT, &hashes, signature);
    verified.map_err(|_| ManifestProblem::Signature)?;
    Ok(public)
}

/// A manifest whose name, shape and signature hold. Its signing key may still be anyone's.
#[derive(Debug, Clone)]
pub struct Manifest {
    name: ObjectName,
    public: ManifestPublic,
    public_sha256: Sha256,
    slots: KeySlots,
    slots_sha256: Sha256,
    sealed: Vec<u8>,
}

impl Manifest {
    /// Checks an object that was read under `name`, in the repository that the trust policy names.
    ///
    /// # Errors
    /// [`ManifestError`]: not one byte of it is to be used then.
    pub fn parse(repository: RepositoryId, name: &ObjectName, bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::check(repository, name, bytes).map_err(|problem| ManifestError { name: *name, problem })
    }

    fn check(repository: RepositoryId, name: &ObjectName, bytes: &[u8]) -> Result<Self, ManifestProblem> {
        let ObjectName::Manifest { series, sequence, sha256 } = *name else {
            return Err(ManifestProblem::Name);
        };
        if Sha256::of(bytes) != sha256 {
            return Err(ManifestProblem::Hash);
        }
        let mut reader = PartReader::new(bytes);
        reader.magic(MAGIC).map_err(ManifestProblem::Shape)?;
        let public_bytes = reader.part("public", MAX_PUBLIC).map_err(ManifestProblem::Shape)?;
        let slots = reader.part("slots", MAX_SLOTS).map_err(ManifestProblem::Shape)?;
        let sealed = reader.part("sealed", MAX_SEALED).map_err(ManifestProblem::Shape)?;
        let signature = reader.fixed::<64>("signature").map_err(ManifestProblem::Shape)?;
        reader.end().map_err(ManifestProblem::Shape)?;
        let slots_sha256 = Sha256::of(slots);
        let public = verify_prepared(public_bytes, &slots_sha256, &Sha256::of(sealed), signature)?;
        if public.owner.repository != repository {
            return Err(ManifestProblem::Repository);
        }
        if public.owner.series != series {
            return Err(ManifestProblem::NameDiffers("series"));
        }
        if public.sequence != sequence {
            return Err(ManifestProblem::NameDiffers("sequence"));
        }
        Ok(Self {
            name: *name,
            public,
            public_sha256: Sha256::of(public_bytes),
            slots: KeySlots::parse(slots).map_err(ManifestProblem::Slots)?,
            slots_sha256,
            sealed: sealed.to_vec(),
        })
    }

    /// The object's name.
    pub fn name(&self) -> ObjectName {
        self.name
    }

    /// The public part.
    pub fn public(&self) -> &ManifestPublic {
        &self.public
    }

    /// Of the public part's bytes, as they lie in the object.
    pub fn public_sha256(&self) -> Sha256 {
        self.public_sha256
    }

    /// Opens the data key with private keys: from the manifest's own slots, or from `further` ones (`slots/` objects of this
    /// backup).
    ///
    /// # Errors
    /// [`ManifestProblem::Slots`].
    pub fn unlock(&self, identities: &Identities, further: &[KeySlots]) -> Result<DataKey, ManifestError> {
        let commits = |key: &DataKey| key.commits_to(&self.public.seal_id, &self.public.key_commitment);
        let all = std::iter::once(&self.slots).chain(further);
        KeySlots::open_any(all, identities, &self.public.owner, commits).map_err(|error: SlotError| {
            ManifestError { name: self.name, problem: ManifestProblem::Slots(error) }
        })
    }

    /// Checks the commitment, decrypts and checks the content.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn open(&self, data_key: &DataKey) -> Result<Content, ManifestError> {
        self.open_content(data_key).map_err(|problem| ManifestError { name: self.name, problem })
    }

    fn open_content(&self, data_key: &DataKey) -> Result<Content, ManifestProblem> {
        if !data_key.commits_to(&self.public.seal_id, &self.public.key_commitment) {
            return Err(ManifestProblem::Commitment);
        }
        let aad = sealed_aad(&self.public_sha256, &self.slots_sha256);
        let compressed = data_key.manifest_key(&self.public_sha256).open(SEALED_NONCE, &aad, &self.sealed);
        let compressed = compressed.map_err(|_| ManifestProblem::Sealed)?;
        Content::decode(&decompress(&compressed)?, &self.public)
    }
}

fn decompress(compressed: &[u8]) -> Result<Vec<u8>, ManifestProblem> {
    let read = || {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)?.single_frame();
        decoder.window_log_max(WINDOW_LOG)?;
        let mut content = Vec::new();
        decoder.take(MAX_SEALED as u64 + 1).read_to_end(&mut content)?;
        std::io::Result::Ok(content)
    };
    read().ok().filter(|content| content.len() <= MAX_SEALED).ok_or(ManifestProblem::Compression)
}
