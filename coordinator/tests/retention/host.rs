//! A host that makes real packs of small chunks, refers to those that it may, and seals real manifests.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use sealift_common::crypto::{AgentKeyObject, KeyOwner, Recipient, SeriesSecret};
use sealift_common::format::chunk::{Chunk, ChunkClass, ChunkId};
use sealift_common::format::extent::ExtentBuilder;
use sealift_common::format::frame::{FrameCompressor, RawFrame};
use sealift_common::format::manifest::{
    Content, ManifestObject, Outcome, PackRef, PublicDraft, Source, Status, Stream, StreamKind,
};
use sealift_common::format::pack::BackupKeys;
use sealift_common::id::{Random, Sha256};
use sealift_coordinator::backups::begin::Begun;
use sealift_coordinator::store::packs::PackFacts;
use sealift_coordinator::uploads::NewPack;

use crate::support::{Agent, TestPack, World};

/// Chunks of one pack, at most.
const CHUNKS_PER_PACK: usize = 4;
/// The one stream of each backup.
pub const STREAM: &str = "data";

/// What a host has to back up: chunks by number, each with bytes of its own.
pub type Data = Vec<u64>;

/// The bytes of a chunk: a few hundred, so that many fit in a test.
pub fn chunk(number: u64) -> Vec<u8> {
    let random = Random::from_seed(number);
    let mut bytes = vec![0; 200 + (number % 7) as usize * 100];
    random.fill(&mut bytes);
    bytes
}

/// The bytes of a stream.
pub fn bytes_of(data: &Data) -> Vec<u8> {
    data.iter().flat_map(|number| chunk(*number)).collect()
}

/// A host with its cache of what is in which pack.
pub struct Host {
    pub agent: Agent,
    pub recipient: Recipient,
    pub data: Data,
    /// By pack: the chunks in it, where they lie, and how long they are.
    index: HashMap<Sha256, Vec<(u64, u64, u64)>>,
}

/// A backup on its way: what it refers to, and what is not stored yet.
pub struct Making {
    pub data: Data,
    known: HashMap<u64, (Sha256, u64, u64)>,
    facts: HashMap<Sha256, PackFacts>,
    pub new: Vec<MadePack>,
    keys: BackupKeys,
}

/// A pack that was made, and what is in it.
pub struct MadePack {
    pub pack: TestPack,
    chunks: Vec<(u64, u64, u64)>,
}

impl Host {
    pub async fn new(world: &World, name: &str, recipient: Recipient) -> Self {
        let agent = world.agent(name).await;
        let key = AgentKeyObject::first(agent.id, &agent.signing, world.clock.now());
        let body = Bytes::from(key.bytes().to_vec());
        let put = sealift_coordinator::objects::Put::New;
        world.objects.put(&key.name().into(), body, put).await.unwrap();
        Self { agent, recipient, data: Vec::new(), index: HashMap::new() }
    }

    /// A host that lost its state starts a new epoch.
    pub fn new_epoch(&mut self, random: &Random) {
        self.agent.secret = SeriesSecret::generate(random);
    }

    /// Looks up what is known, makes packs of what is not.
    pub fn make(&self, world: &World, begun: &Begun, referable: &[PackFacts]) -> Making {
        let backup = &begun.backup;
        let owner = KeyOwner { repository: world.core.repository, series: backup.series, backup: backup.id };
        let recipients = std::slice::from_ref(&self.recipient);
        let (random, nonce, secret) = (&world.core.random, &backup.session_nonce, self.agent.secret.clone());
        let keys = BackupKeys::generate(random, nonce, owner, secret, recipients).unwrap();
        let mut making = Making {
            data: self.data.clone(),
            known: HashMap::new(),
            facts: HashMap::new(),
            new: Vec::new(),
            keys,
        };
        for facts in referable {
            let sha256 = facts.meta.sha256;
            making.facts.insert(sha256, *facts);
            for (number, offset, len) in self.index.get(&sha256).into_iter().flatten() {
                making.known.insert(*number, (sha256, *offset, *len));
            }
        }
        let mut missing: Vec<u64> = Vec::new();
        for number in &making.data {
            if !making.known.contains_key(number) && !missing.contains(number) {
                missing.push(*number);
            }
        }
        for numbers in missing.chunks(CHUNKS_PER_PACK) {
            making.add_pack(world, numbers);
        }
        making
    }

    /// The cache learns what a stored pack holds.
    pub fn stored(&mut self, made: &MadePack) {
        self.index.insert(made.pack.new.facts.meta.sha256, made.chunks.clone());
    }
}

impl Making {
    fn add_pack(&mut self, world: &World, numbers: &[u64]) {
        let mut compressor = FrameCompressor::new(1).unwrap();
        let mut writer = self.keys.begin_pack(&world.core.random);
        let (mut frame, mut chunks, mut offset) = (RawFrame::new(), Vec::new(), 0);
        for number in numbers {
            let data = chunk(*number);
            chunks.push((*number, offset, data.len() as u64));
            offset += data.len() as u64;
            frame.push(&Chunk { id: ChunkId([0; 16]), data: data.into() });
        }
        let (sealed, _) = writer.assign(frame).ok().unwrap().seal(&mut compressor);
        writer.complete(sealed).unwrap();
        let pack = writer.finish().unwrap();
        let facts = PackFacts { meta: *pack.meta(), origin: self.keys.owner.backup };
        let new = NewPack { pack: pack.id(), facts, raw_len: pack.raw_len() };
        for (number, offset, len) in &chunks {
            self.known.insert(*number, (facts.meta.sha256, *offset, *len));
        }
        self.facts.insert(facts.meta.sha256, facts);
        self.new.push(MadePack { pack: TestPack { new, bytes: pack.body().concat().into() }, chunks });
    }

    /// The manifest over all of it.
    pub fn manifest(&self, world: &World, host: &Host, begun: &Begun, partial: bool) -> ManifestObject {
        let mut positions: BTreeMap<Sha256, u32> = BTreeMap::new();
        let (mut packs, mut extents) = (Vec::new(), ExtentBuilder::new());
        for number in &self.data {
            let (sha256, offset, len) = self.known[number];
            let position = *positions.entry(sha256).or_insert_with(|| {
                let facts = self.facts[&sha256];
                packs.push(PackRef { meta: facts.meta, origin: facts.origin, referenced_raw: 0 });
                packs.len() as u32 - 1
            });
            extents.push(position, offset, len);
        }
        let bytes = bytes_of(&self.data);
        let stream = Stream {
            name: STREAM.to_owned(),
            kind: StreamKind::Dump,
            raw_len: bytes.len() as u64,
            blake3: *blake3::hash(&bytes).as_bytes(),
            extents: extents.finish(),
            outcome: Outcome::Success,
            catalog_of: None,
            attributes: BTreeMap::new(),
        };
        let content = Content {
            chunking: ChunkClass::Avg16KiB.to_wire(),
            source: Source::default(),
            streams: vec![stream],
        };
        let backup = &begun.backup;
        let draft = PublicDraft {
            agent: host.agent.id,
            sequence: backup.sequence,
            previous: backup.previous,
            created: world.clock.now(),
            session_nonce: backup.session_nonce,
            trust_version: begun.trust.version,
            trust_sha256: begun.trust.sha256,
            status: if partial { Status::Partial } else { Status::Complete },
            new_stored_bytes: 0,
            packs,
        };
        ManifestObject::seal(draft, &content, &self.keys, &host.agent.signing, &world.core.random).unwrap()
    }
}
