//! What the manifest of a backup says: its streams as pieces of packs, and the packs that these are in.

use std::collections::BTreeMap;

use sealift_common::clock::UnixMillis;
use sealift_common::format::extent::Extent;
use sealift_common::format::manifest::{
    Content, ManifestObject, Outcome, PackRef, PublicDraft, Source, Status, Stream, StreamKind,
};
use sealift_common::id::Random;

use super::begin::Binding;
use super::failure::AttemptError;
use super::indexes::KnownPacks;
use super::job::Job;
use super::run::Read;
use crate::chunk::StreamRecord;
use crate::identity::Identity;
use crate::session::host_name;
use crate::source;
use crate::state::series::Epoch;

/// Everything of a manifest that does not depend on the session it is written in.
#[derive(Debug, Clone)]
pub struct Plan {
    content: Content,
    packs: Vec<PackRef>,
    new_stored_bytes: u64,
    status: Status,
}

impl Plan {
    /// Turns the raw line into packs, and leaves out those that nothing refers to.
    pub fn new(job: &Job, epoch: &Epoch, identity: &Identity, known: &KnownPacks, read: &Read) -> Self {
        let new = &read.streamed.packs;
        let mut ends = known.ends.clone();
        let line_end = |ends: &[u64]| ends.last().copied().unwrap_or_default();
        for pack in new {
            ends.push(line_end(&ends) + pack.raw_len);
        }
        let refs = known.packs.iter().map(|pack| (pack.meta, pack.origin));
        let refs: Vec<_> = refs.chain(new.iter().map(|pack| (pack.meta, pack.origin))).collect();

        // Positions on the raw line become positions in the manifest, given out as they are first needed.
        let mut position: BTreeMap<usize, u32> = BTreeMap::new();
        let mut packs = Vec::new();
        let mut extents = |record: &StreamRecord| {
            let pieces = record.extents.in_packs(&ends);
            let piece = pieces.iter().map(|piece| {
                let pack = *position.entry(piece.pack).or_insert_with(|| {
                    let (meta, origin) = refs[piece.pack];
                    packs.push(PackRef { meta, origin, referenced_raw: 0 });
                    u32::try_from(packs.len() - 1).unwrap_or(u32::MAX)
                });
                Extent { pack, raw_offset: piece.raw_offset, raw_len: piece.raw_len }
            });
            piece.collect::<Vec<_>>()
        };
        let chunked = &read.streamed.chunked;
        let streams: Vec<_> = chunked.streams.iter().map(|s| stream(s, extents(s))).collect();
        let partial = !chunked.warnings.is_empty() || chunked.streams.iter().any(|stream| stream.partial);
        Self {
            content: Content {
                chunking: epoch.class.to_wire(),
                source: described(job, identity, read),
                streams,
            },
            packs,
            new_stored_bytes: new.iter().map(|pack| pack.meta.size).sum(),
            status: if partial { Status::Partial } else { Status::Complete },
        }
    }

    /// Whether the backup is partial.
    pub fn is_partial(&self) -> bool {
        self.status == Status::Partial
    }

    /// How many of the packs may not be referred to in this session.
    pub fn packs_gone(&self, binding: &Binding) -> usize {
        let written_now = |pack: &&PackRef| pack.origin == binding.backup();
        let gone = self.packs.iter().filter(|pack| !written_now(pack));
        gone.filter(|pack| binding.pack(pack.meta.sha256).is_none()).count()
    }

    /// The manifest, sealed for one session. Hashes and compresses: keep it off the async threads.
    ///
    /// # Errors
    /// [`AttemptError::Build`] for a content that readers would refuse.
    pub fn seal(
        &self,
        binding: &Binding,
        identity: &Identity,
        created: UnixMillis,
        random: &Random,
    ) -> Result<ManifestObject, AttemptError> {
        let draft = PublicDraft {
            agent: identity.agent,
            sequence: binding.sequence,
            previous: binding.previous,
            created,
            session_nonce: binding.session_nonce,
            trust_version: binding.trust_version,
            trust_sha256: binding.trust_sha256,
            status: self.status,
            new_stored_bytes: self.new_stored_bytes,
            packs: self.packs.clone(),
        };
        ManifestObject::seal(draft, &self.content, &binding.keys, &identity.signing_key, random).map_err(
            |problem| AttemptError::Build { what: "the manifest", problem: source::whole_chain(&problem) },
        )
    }
}

fn described(job: &Job, identity: &Identity, read: &Read) -> Source {
    let mut attributes = read.summary.attributes.clone();
    attributes.insert("hostname".to_owned(), host_name());
    Source {
        kind: job.source.kind_name().to_owned(),
        name: job.source.name.to_string(),
        host: identity.name.clone(),
        tool_version: read.summary.tool_version.clone(),
        server_version: read.summary.server_version.clone(),
        attributes,
    }
}

fn stream(record: &StreamRecord, extents: Vec<Extent>) -> Stream {
    Stream {
        name: record.head.name.clone(),
        kind: match record.head.kind {
            source::StreamKind::Dump => StreamKind::Dump,
            source::StreamKind::PaxTar => StreamKind::PaxTar,
            source::StreamKind::Catalog => StreamKind::Catalog,
        },
        raw_len: record.raw_len,
        blake3: record.blake3,
        extents,
        outcome: if record.partial { Outcome::Partial } else { Outcome::Success },
        catalog_of: record.head.catalog_of.clone(),
        attributes: record.head.attributes.clone(),
    }
}
