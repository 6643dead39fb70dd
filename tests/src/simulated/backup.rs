//! One attempt of a simulated host, from Begin to Commit.
//!
//! As in the agent, a lost session costs a new backup id: what is stored stays referable, and a manifest that was on its way
//! is tried again first.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealift_common::clock::Clock;
use sealift_common::crypto::KeyOwner;
use sealift_common::format::chunk::{Chunk, ChunkClass, ChunkId};
use sealift_common::format::extent::ExtentBuilder;
use sealift_common::format::frame::{FrameCompressor, RawFrame};
use sealift_common::format::manifest::{
    Content, ManifestObject, Outcome, PackRef, PublicDraft, Source as Described, Status, Stream, StreamKind,
};
use sealift_common::format::pack::{BackupKeys, Pack, PackMeta};
use sealift_common::id::{BackupId, RunId, SeriesId, Sha256};
use sealift_proto::v1;
use sealift_proto::v1::backup_client::BackupClient;
use sealift_proto::v1::prepare_request::Part;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status as GrpcStatus};

use super::figures::{Call, Committed};
use super::fleet::Stage;
use super::host::{Host, Link};
use super::source::{Block, STREAM, Source};
use super::wire;

/// The agent's own limit for most calls.
const CALL_TIMEOUT: Duration = Duration::from_secs(300);
/// How long to wait before a call is tried again in the same session.
const RETRY: Duration = Duration::from_millis(500);
/// Bytes of the public part per message.
const PIECE: usize = 1 << 20;
/// Data keys that an attempt uses up before it gives up.
const MOST_BEGINS: u32 = 20;

/// An attempt that was accepted.
pub(super) struct Job {
    pub host: Arc<Host>,
    pub source: Arc<Source>,
    pub series: SeriesId,
    pub run: RunId,
    pub attempt: v1::AttemptRef,
}

/// Why a step did not come about.
enum Problem {
    /// The coordinator, the store or the session is away.
    Away(String),
    /// The coordinator said no, and will say so again.
    Refused(String),
}

impl From<GrpcStatus> for Problem {
    fn from(status: GrpcStatus) -> Self {
        let said = format!("{:?}: {}", status.code(), status.message());
        match status.code() {
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Aborted
            | Code::Internal
            | Code::ResourceExhausted => Self::Away(said),
            _ => Self::Refused(said),
        }
    }
}

fn refused(error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::Refused(wire::chain(error))
}

/// What Begin said, and the keys that follow from it.
struct Binding {
    head: v1::BeginHead,
    keys: Arc<BackupKeys>,
    referable: Vec<v1::ReferablePack>,
}

/// A manifest that only has to be written.
struct Written {
    manifest: ManifestObject,
    blocks: Vec<Block>,
    content: [u8; 32],
    new_raw_bytes: u64,
    raw_bytes: u64,
}

impl Job {
    /// Works until the backup is committed, refused or cancelled, or the process ends.
    pub async fn run(self, life: CancellationToken, cancel: CancellationToken) {
        let work = Box::pin(self.back_up());
        let outcome = cancel.run_until_cancelled(work).await;
        if life.is_cancelled() {
            return; // with its process
        }
        let figures = &self.host.world.figures;
        match outcome {
            Some(Ok(backup)) => figures.has_committed(backup),
            Some(Err(why)) => {
                figures.attempt_ended(&why);
                let _ = life.run_until_cancelled(Box::pin(self.fail(&why, false))).await;
            }
            None => {
                figures.attempt_ended("cancelled");
                let _ = life.run_until_cancelled(Box::pin(self.fail("cancelled", true))).await;
            }
        }
        if !life.is_cancelled() {
            self.host.ended(self.run, &self.attempt);
        }
    }

    async fn back_up(&self) -> Result<Committed, String> {
        let (mut written, mut begins, mut refusal) = (None, 0, String::new());
        loop {
            let link = self.host.connected().await;
            let outcome = match &written {
                Some(written) => match self.write(&link, written).await {
                    Ok(()) => return Ok(self.committed(written)),
                    problem => problem,
                },
                None if begins >= MOST_BEGINS => return Err(refusal),
                None => {
                    begins += 1;
                    match Box::pin(self.store(&link)).await {
                        Ok(new) => {
                            written = Some(new);
                            continue;
                        }
                        // Begin itself: the attempt is over.
                        Err(Problem::Refused(why)) => return Err(why),
                        Err(away) => Err(away),
                    }
                }
            };
            match outcome {
                Err(Problem::Refused(why)) => (written, refusal) = (None, why),
                Err(Problem::Away(why)) => {
                    self.host.world.figures.tried_again(&why);
                    self.another(&link).await;
                }
                Ok(()) => {}
            }
        }
    }

    /// Waits for another session, or a moment.
    async fn another(&self, link: &Link) {
        let mut links = self.host.link.subscribe();
        let other = links.wait_for(|now| now.as_ref().is_some_and(|now| now.number != link.number));
        let _ = tokio::time::timeout(RETRY, other).await;
    }

    fn client(&self, link: &Link) -> BackupClient<tonic::transport::Channel> {
        BackupClient::new(link.channel.clone()).max_decoding_message_size(32 << 20)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    /// Begin, and all packs.
    async fn store(&self, link: &Link) -> Result<Written, Problem> {
        let world = &self.host.world;
        let binding = self.begin(link).await?;
        let blocks = self.source.blocks();
        let referable: HashSet<&[u8]> = binding.referable.iter().map(|pack| pack.sha256.as_slice()).collect();
        let missing = |block: &&Block| {
            self.source.pack_of(**block).is_none_or(|pack| !referable.contains(pack.as_bytes().as_slice()))
        };
        let new: Vec<Block> = blocks.iter().filter(missing).copied().collect();
        let packs = self.seal(&binding, &new).await?;
        world.pass(Stage::Begun).await;
        let ahead = usize::try_from(binding.head.max_ahead).unwrap_or(1).max(1);
        for (some, of) in packs.chunks(ahead).zip(new.chunks(ahead)) {
            let mut signed = Vec::with_capacity(some.len());
            for pack in some {
                signed.push(self.sign(link, &binding, pack).await?);
            }
            world.pass(Stage::Signed).await;
            for ((pack, signed), block) in some.iter().zip(&signed).zip(of) {
                self.put(signed, pack.body().concat().into()).await?;
                self.confirm(link, &binding, pack).await?;
                self.source.stored(*block, pack.meta().sha256);
            }
        }
        self.manifest(&binding, blocks, &packs)
    }

    async fn begin(&self, link: &Link) -> Result<Binding, Problem> {
        let started = Instant::now();
        let world = &self.host.world;
        let request = v1::BeginRequest {
            attempt: Some(self.attempt.clone()),
            epoch_id: self.source.secret.epoch_id().to_vec(),
            known_trust_version: 0,
            instance_id: Vec::new(),
        };
        let mut replies = self.client(link).begin(self.request(request)).await?.into_inner();
        let (mut head, mut referable) = (None, Vec::new());
        while let Some(reply) = replies.message().await? {
            head = head.or(reply.head);
            referable.extend(reply.packs.into_iter().filter(|pack| !pack.retiring));
        }
        world.figures.took(Call::Begin, started);
        let head = head.ok_or_else(|| Problem::Away("Begin has no head".to_owned()))?;
        let trust = Sha256::try_from(head.trust_sha256.as_slice()).map_err(|error| refused(&error))?;
        let recipients =
            world.recipients(trust, &self.host.scope, &head.trust_chain).map_err(Problem::Refused)?;
        let backup = BackupId::try_from(head.backup_id.as_slice()).map_err(|error| refused(&error))?;
        let owner = KeyOwner { repository: self.host.repository, series: self.series, backup };
        let nonce: [u8; 32] = head
            .session_nonce
            .as_slice()
            .try_into()
            .map_err(|_| Problem::Refused("a nonce of another length".to_owned()))?;
        let secret = self.source.secret.clone();
        let keys = BackupKeys::generate(&world.options.random, &nonce, owner, secret, &recipients);
        Ok(Binding { head, keys: Arc::new(keys.map_err(|error| refused(&error))?), referable })
    }

    /// One pack for each block.
    async fn seal(&self, binding: &Binding, blocks: &[Block]) -> Result<Vec<Pack>, Problem> {
        let (keys, source, series) = (binding.keys.clone(), self.source.clone(), self.series);
        let (blocks, random) = (blocks.to_vec(), self.host.world.options.random.clone());
        let sealed = tokio::task::spawn_blocking(move || {
            let mut compressor = FrameCompressor::new(1).map_err(|error| wire::chain(&error))?;
            let id_key = source.secret.chunk_id_key(series);
            let seal = |block: Block| {
                let data = source.bytes(block);
                let mut id = [0; 16];
                id.copy_from_slice(&blake3::keyed_hash(id_key.expose(), &data).as_bytes()[..16]);
                let (mut pack, mut frame) = (keys.begin_pack(&random), RawFrame::default());
                frame.push(&Chunk { id: ChunkId(id), data });
                let job = pack.assign(frame).map_err(|_| "a block is too large for a pack".to_owned())?;
                let (frame, _) = job.seal(&mut compressor);
                pack.complete(frame).map_err(|error| wire::chain(&error))?;
                pack.finish().map_err(|error| wire::chain(&error))
            };
            blocks.into_iter().map(seal).collect::<Result<Vec<_>, String>>()
        });
        sealed.await.map_err(|error| refused(&error))?.map_err(Problem::Refused)
    }

    async fn sign(&self, link: &Link, binding: &Binding, pack: &Pack) -> Result<v1::SignedRequest, Problem> {
        let meta = pack.meta();
        let request = v1::AuthorizePackRequest {
            attempt: Some(self.attempt.clone()),
            backup_id: binding.head.backup_id.clone(),
            sha256: meta.sha256.to_vec(),
            size: meta.size,
            meta_sha256: meta.meta_sha256.to_vec(),
            index_len: meta.index_len,
            directory_len: meta.directory_len,
            header_len: meta.header_len,
            pack_id: pack.id().to_vec(),
            raw_bytes: pack.raw_len(),
        };
        let mut client = self.client(link);
        let due = self.host.world.turn().await;
        let signed = client.authorize_pack(self.request(request)).await?.into_inner();
        self.host.world.figures.took(Call::Sign, due);
        Ok(signed)
    }

    async fn put(&self, signed: &v1::SignedRequest, body: Bytes) -> Result<(), Problem> {
        let started = Instant::now();
        let mut request = self.host.world.http.put(&signed.url).body(body);
        for header in &signed.headers {
            if header.name != "host" && header.name != "content-length" {
                request = request.header(&header.name, &header.value);
            }
        }
        let response = request.send().await.map_err(|error| Problem::Away(wire::chain(&error)))?;
        self.host.world.figures.took(Call::Put, started);
        match response.status().as_u16() {
            200..=299 | 412 => Ok(()),
            status => Err(Problem::Away(format!("the store answered {status}"))),
        }
    }

    async fn confirm(&self, link: &Link, binding: &Binding, pack: &Pack) -> Result<(), Problem> {
        let started = Instant::now();
        let request = v1::ConfirmPackRequest {
            attempt: Some(self.attempt.clone()),
            backup_id: binding.head.backup_id.clone(),
            sha256: pack.meta().sha256.to_vec(),
        };
        self.client(link).confirm_pack(self.request(request)).await?;
        self.host.world.figures.took(Call::Confirm, started);
        Ok(())
    }

    fn manifest(&self, binding: &Binding, blocks: Vec<Block>, new: &[Pack]) -> Result<Written, Problem> {
        let (head, host) = (&binding.head, &self.host);
        let (mut packs, mut extents) = (Vec::new(), ExtentBuilder::new());
        let (mut hasher, mut new_raw_bytes) = (blake3::Hasher::new(), 0);
        for block in &blocks {
            let bytes = self.source.bytes(*block);
            hasher.update(&bytes);
            let sha256 =
                self.source.pack_of(*block).ok_or_else(|| Problem::Away("a block is not stored".into()))?;
            let written = new.iter().find(|pack| pack.meta().sha256 == sha256);
            let pack = match written {
                Some(pack) => {
                    new_raw_bytes += bytes.len() as u64;
                    PackRef { meta: *pack.meta(), origin: pack.owner().backup, referenced_raw: 0 }
                }
                None => earlier(&binding.referable, sha256)?,
            };
            let at = u32::try_from(packs.len()).map_err(|error| refused(&error))?;
            extents.push(at, 0, bytes.len() as u64);
            packs.push(pack);
        }
        let mut streams = Vec::new();
        if host.world.options.refer_to_all {
            let mut rest = ExtentBuilder::new();
            for pack in &binding.referable {
                let sha256 = Sha256::try_from(pack.sha256.as_slice()).map_err(|error| refused(&error))?;
                if packs.iter().take(blocks.len()).all(|named| named.meta.sha256 != sha256) {
                    rest.push(u32::try_from(packs.len()).map_err(|error| refused(&error))?, 0, 1);
                    packs.push(described_pack(pack, sha256)?);
                }
            }
            streams.push(stream("rest.bin", rest, [0; 32]));
        }
        let content = *hasher.finalize().as_bytes();
        streams.push(stream(STREAM, extents, content));
        let raw_bytes = streams.iter().map(|stream| stream.raw_len).sum();
        let described = Described {
            kind: "command".to_owned(),
            name: self.source.name.clone(),
            host: host.name().to_owned(),
            ..Described::default()
        };
        let previous = match head.previous_sha256.as_slice() {
            [] => None,
            hash => Some(Sha256::try_from(hash).map_err(|error| refused(&error))?),
        };
        let draft = PublicDraft {
            agent: host.id(),
            sequence: head.sequence,
            previous,
            created: Clock::system().now(),
            session_nonce: head.session_nonce.as_slice().try_into().unwrap_or_default(),
            trust_version: head.trust_version,
            trust_sha256: Sha256::try_from(head.trust_sha256.as_slice()).map_err(|error| refused(&error))?,
            status: Status::Complete,
            new_stored_bytes: new.iter().map(|pack| pack.meta().size).sum(),
            packs,
        };
        let all = Content { chunking: ChunkClass::Avg16KiB.to_wire(), source: described, streams };
        let manifest =
            ManifestObject::seal(draft, &all, &binding.keys, &host.signing, &host.world.options.random)
                .map_err(|error| refused(&error))?;
        Ok(Written { manifest, blocks, content, new_raw_bytes, raw_bytes })
    }

    /// Prepare, the manifest's PUT, Commit.
    async fn write(&self, link: &Link, written: &Written) -> Result<(), Problem> {
        let figures = &self.host.world.figures;
        let manifest = &written.manifest;
        let backup_id = manifest.public.owner.backup.to_vec();
        let head = v1::PrepareHead {
            attempt: Some(self.attempt.clone()),
            backup_id: backup_id.clone(),
            slots_sha256: manifest.slots_sha256.to_vec(),
            sealed_sha256: manifest.sealed_sha256.to_vec(),
            signature: manifest.signature.to_vec(),
            manifest_sha256: manifest.sha256.to_vec(),
            manifest_size: manifest.bytes.len() as u64,
            public_sha256: manifest.public_sha256.to_vec(),
            streams: vec![v1::StreamInfo {
                name: STREAM.to_owned(),
                kind: "dump".to_owned(),
                raw_bytes: written.raw_bytes,
            }],
            new_raw_bytes: written.new_raw_bytes,
            ..Default::default()
        };
        let pieces = manifest.public_bytes.chunks(PIECE).map(|piece| Part::PublicPart(piece.to_vec()));
        let parts: Vec<_> = std::iter::once(Part::Head(head)).chain(pieces).collect();
        let messages = parts.into_iter().map(|part| v1::PrepareRequest { part: Some(part) });
        let started = Instant::now();
        let stream = tokio_stream::iter(messages.collect::<Vec<_>>());
        let prepared = self.client(link).prepare(self.request(stream)).await?.into_inner();
        figures.took(Call::Prepare, started);
        if !prepared.already_committed {
            self.put(&prepared.put.unwrap_or_default(), manifest.bytes.clone().into()).await?;
        }
        let started = Instant::now();
        let request = v1::CommitRequest { attempt: Some(self.attempt.clone()), backup_id };
        self.client(link).commit(self.request(request)).await?;
        figures.took(Call::Commit, started);
        Ok(())
    }

    fn committed(&self, written: &Written) -> Committed {
        let public = &written.manifest.public;
        self.source.committed(&written.blocks, public.sequence, written.manifest.sha256);
        Committed {
            agent: self.host.id(),
            source: self.source.name.clone(),
            series: self.series,
            run: self.run,
            backup: public.owner.backup,
            sequence: public.sequence,
            manifest: written.manifest.sha256,
            content: written.content,
        }
    }

    /// Says that there will be no backup, until somebody hears it.
    async fn fail(&self, why: &str, cancelled: bool) {
        loop {
            let link = self.host.connected().await;
            let request = v1::FailRequest {
                attempt: Some(self.attempt.clone()),
                error: why.to_owned(),
                stderr: String::new(),
                retryable: true,
                cancelled,
            };
            match self.client(&link).fail(self.request(request)).await.map_err(Problem::from) {
                // A refusal: the attempt is over already.
                Ok(_) | Err(Problem::Refused(_)) => return,
                Err(Problem::Away(_)) => self.another(&link).await,
            }
        }
    }
}

fn stream(name: &str, extents: ExtentBuilder, blake3: [u8; 32]) -> Stream {
    Stream {
        name: name.to_owned(),
        kind: StreamKind::Dump,
        raw_len: extents.raw_len(),
        blake3,
        extents: extents.finish(),
        outcome: Outcome::Success,
        catalog_of: None,
        attributes: BTreeMap::new(),
    }
}

/// A pack of an earlier backup.
fn earlier(referable: &[v1::ReferablePack], sha256: Sha256) -> Result<PackRef, Problem> {
    let found = referable.iter().find(|pack| pack.sha256 == sha256.as_bytes());
    let pack = found.ok_or_else(|| Problem::Away("a pack may not be referred to any more".to_owned()))?;
    described_pack(pack, sha256)
}

/// A pack as Begin described it.
fn described_pack(pack: &v1::ReferablePack, sha256: Sha256) -> Result<PackRef, Problem> {
    Ok(PackRef {
        meta: PackMeta {
            sha256,
            size: pack.size,
            meta_sha256: Sha256::try_from(pack.meta_sha256.as_slice()).map_err(|error| refused(&error))?,
            index_len: pack.index_len,
            directory_len: pack.directory_len,
            header_len: pack.header_len,
        },
        origin: BackupId::try_from(pack.origin_backup.as_slice()).map_err(|error| refused(&error))?,
        referenced_raw: 0,
    })
}
