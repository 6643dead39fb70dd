//! Builds the golden repository: one series with two backups, the second of which refers to packs of the first.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::trust::{AttestedAgent, RuleRecipient};
use sealift_common::crypto::{
    AgentKeyObject, DataKey, Identities, KeyOwner, KeySlots, RootPin, Rule, SeriesSecret, SigningKey,
    TrustObject, TrustPolicy,
};
use sealift_common::format::catalog::{CatalogEntry, EntryKind};
use sealift_common::format::chunk::{ChunkClass, ChunkId, ChunkRecord, Chunker};
use sealift_common::format::extent::ExtentBuilder;
use sealift_common::format::frame::{FrameCompressor, RawFrame};
use sealift_common::format::manifest::{
    Content, ManifestObject, Outcome, PackRef, PublicDraft, Source, Status, Stream, StreamKind,
};
use sealift_common::format::names::{ObjectName, manifests_prefix};
use sealift_common::format::pack::{BackupKeys, Pack};
use sealift_common::id::{AgentId, BackupId, Random, RepositoryId, SeriesId, Sha256};

/// Objects by name.
pub type Objects = BTreeMap<String, Vec<u8>>;

/// The fixed inputs.
pub struct Golden {
    pub identities: Identities,
    pub root: SigningKey,
    pub second_root: SigningKey,
    pub agent_key: SigningKey,
    pub repository: RepositoryId,
    pub series: SeriesId,
    pub agent: AgentId,
    pub secret: SeriesSecret,
}

/// What came out.
pub struct Built {
    pub objects: Objects,
    /// Streams of the newest backup.
    pub streams: Objects,
}

/// Bytes that do not compress, from a definition that any language can follow.
pub fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    Random::from_seed(0).fill(&mut out);
    out
}

/// A dump that compresses, of `rows` rows.
fn dump(rows: u32) -> Vec<u8> {
    let row = |n: u32| {
        format!("INSERT INTO orders VALUES ({n}, 'customer {}', {});\n", n * 7919 % 1000, n * 31 % 977)
    };
    (0..rows).map(row).collect::<String>().into_bytes()
}

/// What the packs of earlier backups hold.
#[derive(Default)]
struct Known {
    chunks: HashMap<ChunkId, (Sha256, u64)>,
    packs: HashMap<Sha256, PackRef>,
}

impl Golden {
    pub fn new(identity: String) -> Self {
        let random = Random::from_seed(1);
        Self {
            identities: Identities::parse(Path::new("identity.txt"), &identity).unwrap(),
            root: SigningKey::generate(&random),
            second_root: SigningKey::generate(&random),
            agent_key: SigningKey::generate(&random),
            repository: RepositoryId::generate(&random),
            series: SeriesId::generate(&random),
            agent: AgentId::generate(&random),
            secret: SeriesSecret::generate(&random),
        }
    }

    pub fn pin(&self) -> RootPin {
        RootPin::any_of(vec![self.root.verifying_key().fingerprint()])
    }

    pub fn data_key(&self, sequence: u64) -> DataKey {
        DataKey::derive(&Random::from_seed(sequence + 100), &[9; 32], &self.secret)
    }

    pub fn chunks(&self, class: ChunkClass, bytes: &[u8]) -> Vec<ChunkRecord> {
        let mut chunker = Chunker::new(&self.secret, self.series, class);
        chunker.push(Bytes::copy_from_slice(bytes));
        chunker.end();
        std::iter::from_fn(|| chunker.next_chunk()).map(|chunk| chunk.record()).collect()
    }

    pub fn catalog(&self) -> Vec<CatalogEntry> {
        let file = CatalogEntry {
            path: b"caf\xe9/menu.txt".to_vec(),
            kind: EntryKind::File,
            size: 5,
            mode: 0o640,
            uid: 1000,
            gid: 100,
            mtime_ns: -1_500_000_001,
            tar_offset: 1024,
            tar_len: 2048,
            link_target: Vec::new(),
            blake3: Some(*blake3::hash(b"menu\n").as_bytes()),
        };
        let folder = CatalogEntry {
            path: b"caf\xe9".to_vec(),
            kind: EntryKind::Directory,
            blake3: None,
            ..file.clone()
        };
        let link = CatalogEntry {
            path: b"link".to_vec(),
            kind: EntryKind::Symlink,
            link_target: b"/etc/passwd".to_vec(),
            ..folder.clone()
        };
        vec![folder, file, link]
    }

    /// Builds the repository. The slots are taken from `stored`, as nothing makes the same ones again.
    pub fn build(&self, stored: Option<&Objects>) -> Built {
        let mut objects = Objects::new();
        let hint = format!(
            "{{\"format\": 1, \"repository_id\": \"{}\", \"created\": \"2026-01-01T00:00:00Z\"}}\n",
            self.repository
        );
        objects.insert("sealift.json".to_owned(), hint.into_bytes());
        let trust = self.trust(&mut objects);
        let key = AgentKeyObject::first(self.agent, &self.agent_key, UnixMillis(1_767_225_600_000));
        objects.insert(key.name().to_string(), key.bytes().to_vec());

        let mut known = Known::default();
        let (before, mut now) = (dump(4_000), dump(4_000));
        now[60_000..60_008].copy_from_slice(b"CHANGED!");
        let first = [("db/shop.sql", before), ("noise.bin", noise(20_000))];
        let first = self.backup(1, None, &trust, &first, &mut known, &mut objects, stored);
        let second = [("db/shop.sql", now), ("noise.bin", noise(20_000)), ("empty.sql", Vec::new())];
        self.backup(2, Some(first), &trust, &second, &mut known, &mut objects, stored);
        let streams = second.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        Built { objects, streams }
    }

    /// Two versions: the first names both roots as next, with a threshold of two; the second is signed by both.
    fn trust(&self, objects: &mut Objects) -> TrustObject {
        let recipient = self.identities.recipients().remove(0);
        let rule = Rule {
            scope: String::new(),
            recipients: vec![RuleRecipient { recipient, label: "golden".to_owned() }],
        };
        let first = TrustPolicy {
            repository: self.repository,
            version: 1,
            created: UnixMillis(1_767_225_600_000),
            previous: None,
            rules: vec![rule],
            agents: vec![],
            next_roots: vec![self.root.verifying_key(), self.second_root.verifying_key()],
            next_threshold: 2,
        };
        let one = TrustObject::sign(first.clone(), &[&self.root]).unwrap();
        let second = TrustPolicy {
            version: 2,
            previous: Some(one.sha256()),
            next_roots: vec![],
            next_threshold: 0,
            agents: vec![AttestedAgent {
                agent: AgentId::from_bytes([0xaa; 16]),
                signing_key: self.second_root.verifying_key(),
                created: UnixMillis(0),
            }],
            ..first
        };
        let two = TrustObject::sign(second, &[&self.root, &self.second_root]).unwrap();
        for object in [&one, &two] {
            objects.insert(object.name().to_string(), object.bytes().to_vec());
        }
        two
    }

    #[allow(clippy::too_many_arguments)] // a fixture, not an interface
    fn backup(
        &self,
        sequence: u64,
        previous: Option<Sha256>,
        trust: &TrustObject,
        streams: &[(&str, Vec<u8>)],
        known: &mut Known,
        objects: &mut Objects,
        stored: Option<&Objects>,
    ) -> Sha256 {
        let random = Random::from_seed(sequence);
        let owner = KeyOwner {
            repository: self.repository,
            series: self.series,
            backup: BackupId::generate(&random),
        };
        let data_key = self.data_key(sequence);
        let slots = match stored {
            Some(stored) => stored_slots(stored, &manifests_prefix(self.series), sequence),
            None => KeySlots::seal(&data_key, &owner, &self.identities.recipients()).unwrap(),
        };
        let keys = BackupKeys { owner, data_key, slots, secret: self.secret.clone() };

        let pack = self.pack(&keys, streams, known, &random);
        let mut new_stored_bytes = 0;
        if let Some(pack) = &pack {
            let name = ObjectName::Pack { series: self.series, sha256: pack.meta().sha256 };
            objects.insert(name.to_string(), pack.body().concat());
            new_stored_bytes = pack.meta().size;
        }
        let mut packs: Vec<PackRef> = Vec::new();
        let streams =
            streams.iter().map(|(name, bytes)| self.stream(name, bytes, known, &mut packs)).collect();
        let source = Source {
            kind: "postgres".to_owned(),
            name: "main-db".to_owned(),
            host: "store-0042".to_owned(),
            tool_version: "pg_dump 15.0".to_owned(),
            server_version: "15.0".to_owned(),
            attributes: BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]),
        };
        let content = Content { chunking: ChunkClass::Avg16KiB.to_wire(), source, streams };
        let draft = PublicDraft {
            agent: self.agent,
            sequence,
            previous,
            created: UnixMillis(1_767_225_600_000 + i64::try_from(sequence).unwrap()),
            session_nonce: [9; 32],
            trust_version: trust.policy().version,
            trust_sha256: trust.sha256(),
            status: Status::Complete,
            new_stored_bytes,
            packs,
        };
        let manifest = ManifestObject::seal(draft, &content, &keys, &self.agent_key, &random).unwrap();
        objects.insert(manifest.name.to_string(), manifest.bytes);
        manifest.sha256
    }

    /// A pack of the chunks that are not known yet.
    fn pack(
        &self,
        keys: &BackupKeys,
        streams: &[(&str, Vec<u8>)],
        known: &mut Known,
        random: &Random,
    ) -> Option<Pack> {
        let mut writer = keys.begin_pack(random);
        let mut compressor = FrameCompressor::new(3).unwrap();
        let mut frame = RawFrame::new();
        let mut fresh: HashMap<ChunkId, u64> = HashMap::new();
        let mut at = 0;
        let mut chunker = Chunker::new(&self.secret, self.series, ChunkClass::Avg16KiB);
        let mut seal = |frame: RawFrame, writer: &mut sealift_common::format::pack::PackWriter| {
            let (sealed, empty) = writer.assign(frame).ok().unwrap().seal(&mut compressor);
            writer.complete(sealed).unwrap();
            empty
        };
        for (_, bytes) in streams {
            chunker.push(Bytes::copy_from_slice(bytes));
            chunker.end();
            while let Some(chunk) = chunker.next_chunk() {
                if known.chunks.contains_key(&chunk.id) || fresh.contains_key(&chunk.id) {
                    continue;
                }
                // Smaller frames than an agent makes, so that there are several.
                if frame.data().len() + chunk.data.len() > 64 * 1024 && !frame.is_empty() {
                    frame = seal(frame, &mut writer);
                }
                frame.push(&chunk);
                fresh.insert(chunk.id, at);
                at += chunk.data.len() as u64;
            }
        }
        if !frame.is_empty() {
            seal(frame, &mut writer);
        }
        let pack = writer.finish().ok()?;
        let sha256 = pack.meta().sha256;
        known.chunks.extend(fresh.into_iter().map(|(id, at)| (id, (sha256, at))));
        known
            .packs
            .insert(sha256, PackRef { meta: *pack.meta(), origin: keys.owner.backup, referenced_raw: 0 });
        Some(pack)
    }

    fn stream(&self, name: &str, bytes: &[u8], known: &Known, packs: &mut Vec<PackRef>) -> Stream {
        let mut extents = ExtentBuilder::new();
        for chunk in self.chunks(ChunkClass::Avg16KiB, bytes) {
            let (sha256, at) = known.chunks[&chunk.id];
            let pack = packs.iter().position(|pack| pack.meta.sha256 == sha256).unwrap_or_else(|| {
                packs.push(known.packs[&sha256]);
                packs.len() - 1
            });
            extents.push(u32::try_from(pack).unwrap(), at, chunk.raw_len.into());
        }
        Stream {
            name: name.to_owned(),
            kind: StreamKind::Dump,
            raw_len: extents.raw_len(),
            blake3: *blake3::hash(bytes).as_bytes(),
            extents: extents.finish(),
            outcome: Outcome::Success,
            catalog_of: None,
            attributes: BTreeMap::new(),
        }
    }
}

/// The slots of the stored manifest of this sequence: its second part.
fn stored_slots(stored: &Objects, manifests: &str, sequence: u64) -> KeySlots {
    let prefix = format!("{manifests}{sequence:020}-");
    let manifest = stored.iter().find(|(name, _)| name.starts_with(&prefix)).unwrap().1;
    let len = |at: usize| u32::from_le_bytes(manifest[at..at + 4].try_into().unwrap()) as usize;
    let slots = 12 + len(8);
    KeySlots::parse(&manifest[slots + 4..slots + 4 + len(slots)]).unwrap()
}
