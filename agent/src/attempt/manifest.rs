//! What the manifest of a backup says: its streams as pieces of packs, and the packs that these are in.
//!
//! A [`Draft`] is known once the source is through; it can wait on disk while its packs are on their way. When all of them
//! are stored it becomes a [`Plan`], which is sealed for one session.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use sealift_common::clock::UnixMillis;
use sealift_common::format::extent::Extent;
use sealift_common::format::manifest::{
    Content, ManifestObject, Outcome, PackRef, PublicDraft, Source, Status, Stream, StreamKind,
};
use sealift_common::format::pack::PackMeta;
use sealift_common::id::{BackupId, Random};

use super::begin::Binding;
use super::failure::AttemptError;
use super::indexes::KnownPacks;
use super::job::Job;
use crate::chunk::{Chunked, StreamRecord};
use crate::identity::Identity;
use crate::pack::StoredPack;
use crate::session::host_name;
use crate::source::{self, SourceSummary};
use crate::spool::PackRecord;
use crate::state::series::Epoch;

/// Longest warning that is sent, in characters.
const MAX_WARNING: usize = 500;

/// A pack that the manifest will name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    /// It was stored before.
    Known(PackMeta, BackupId),
    /// The new pack of this number.
    New(u32),
}

/// What the coordinator is told of a backup beside its manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Why it is partial; each is one line.
    pub warnings: Vec<String>,
    /// How many more there were.
    pub warnings_omitted: u64,
    /// Its streams: name, kind, raw bytes.
    pub streams: Vec<(String, String, u64)>,
    /// Version of the dump tool.
    pub tool_version: String,
    /// Version of the server that was dumped.
    pub server_version: String,
    /// Read from the source.
    pub raw_bytes: u64,
    /// Of these, not found in earlier backups.
    pub new_raw_bytes: u64,
}

/// Everything of a manifest that is known when the source is through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    content: Content,
    packs: Vec<Named>,
    partial: bool,
    read_at: UnixMillis,
    /// Raw bytes of each new pack.
    pub new_packs: Vec<u64>,
    /// For the coordinator.
    pub report: Report,
}

/// What was read from the source.
#[derive(Debug, Clone, Copy)]
pub struct ReadOut<'a> {
    /// Its streams, cut.
    pub chunked: &'a Chunked,
    /// What it knows of itself.
    pub summary: &'a SourceSummary,
    /// Raw bytes that earlier backups did not have.
    pub new_raw_bytes: u64,
    /// When it was through.
    pub read_at: UnixMillis,
}

impl Draft {
    /// Turns the raw line into packs, and leaves out those that nothing refers to. `new_packs` are the raw bytes of the
    /// new ones.
    pub fn new(
        job: &Job,
        epoch: &Epoch,
        identity: &Identity,
        known: &KnownPacks,
        new_packs: Vec<u64>,
        read: ReadOut<'_>,
    ) -> Self {
        let mut ends = known.ends.clone();
        for raw_len in &new_packs {
            ends.push(ends.last().copied().unwrap_or_default() + raw_len);
        }
        // Positions on the raw line become positions in the manifest, given out as they are first needed.
        let mut position: BTreeMap<usize, u32> = BTreeMap::new();
        let mut packs = Vec::new();
        let mut extents = |record: &StreamRecord| {
            let pieces = record.extents.in_packs(&ends);
            let piece = pieces.iter().map(|piece| {
                let pack = *position.entry(piece.pack).or_insert_with(|| {
                    packs.push(match known.packs.get(piece.pack) {
                        Some(known) => Named::Known(known.meta, known.origin),
                        None => Named::New(u32::try_from(piece.pack - known.packs.len()).unwrap_or(u32::MAX)),
                    });
                    u32::try_from(packs.len() - 1).unwrap_or(u32::MAX)
                });
                Extent { pack, raw_offset: piece.raw_offset, raw_len: piece.raw_len }
            });
            piece.collect::<Vec<_>>()
        };
        let chunked = read.chunked;
        let streams: Vec<_> = chunked.streams.iter().map(|s| stream(s, extents(s))).collect();
        let partial = !chunked.warnings.is_empty() || chunked.streams.iter().any(|stream| stream.partial);
        Self {
            content: Content {
                chunking: epoch.class.to_wire(),
                source: described(job, identity, read.summary),
                streams,
            },
            packs,
            partial,
            read_at: read.read_at,
            new_packs,
            report: report(read),
        }
    }

    /// The manifest of these packs, of which `stored` are the new ones.
    ///
    /// # Errors
    /// [`AttemptError::Build`] where one of them is not there.
    pub fn into_plan(self, stored: &[StoredPack]) -> Result<Plan, AttemptError> {
        let missing =
            || AttemptError::Build { what: "the manifest", problem: "a new pack is missing".to_owned() };
        let packs = self.packs.iter().map(|pack| {
            let (meta, origin) = match pack {
                Named::Known(meta, origin) => (*meta, *origin),
                Named::New(number) => {
                    let stored = stored.get(*number as usize).ok_or_else(missing)?;
                    (stored.meta, stored.origin)
                }
            };
            Ok(PackRef { meta, origin, referenced_raw: 0 })
        });
        Ok(Plan {
            packs: packs.collect::<Result<_, AttemptError>>()?,
            content: self.content,
            new_stored_bytes: stored.iter().map(|pack| pack.meta.size).sum(),
            status: if self.partial { Status::Partial } else { Status::Complete },
            read_at: self.read_at,
            report: self.report,
        })
    }

    /// How many of the packs that were there before may not be referred to in this session.
    pub fn packs_gone(&self, binding: &Binding) -> usize {
        let known = self.packs.iter().filter_map(|pack| match pack {
            Named::Known(meta, _) => Some(meta.sha256),
            Named::New(_) => None,
        });
        known.filter(|sha256| binding.pack(*sha256).is_none()).count()
    }

    /// Its bytes, to be sealed and kept.
    pub fn encode(&self) -> Vec<u8> {
        let pack = |pack: &Named| match pack {
            Named::Known(meta, origin) => StoredPackRef::Known(PackRecord::new(meta, *origin, 0)),
            Named::New(number) => StoredPackRef::New(*number),
        };
        let stored = StoredDraft {
            content: BASE64_STANDARD.encode(self.content.encode()),
            packs: self.packs.iter().map(pack).collect(),
            partial: self.partial,
            read_at_ms: self.read_at,
            new_packs: self.new_packs.clone(),
            report: self.report.clone(),
        };
        // Texts and numbers: there is nothing in it that JSON could not hold.
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    /// Reads what [`Draft::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let stored: StoredDraft =
            serde_json::from_slice(bytes).map_err(|error| format!("column {}", error.column()))?;
        let content = BASE64_STANDARD.decode(&stored.content).map_err(|_| "not base64".to_owned())?;
        let pack = |pack: StoredPackRef| match pack {
            StoredPackRef::Known(record) => {
                let (meta, origin) = record.pack().ok_or("a pack's hash is none")?;
                Ok(Named::Known(meta, origin))
            }
            StoredPackRef::New(number) => Ok(Named::New(number)),
        };
        Ok(Self {
            content: Content::parse(&content).map_err(|error| error.to_string())?,
            packs: stored.packs.into_iter().map(pack).collect::<Result<_, &str>>()?,
            partial: stored.partial,
            read_at: stored.read_at_ms,
            new_packs: stored.new_packs,
            report: stored.report,
        })
    }
}

/// The form on disk, before it is sealed.
#[derive(Serialize, Deserialize)]
struct StoredDraft {
    /// The manifest's content as it is sealed there (docs/format.md), in base64.
    content: String,
    packs: Vec<StoredPackRef>,
    partial: bool,
    read_at_ms: UnixMillis,
    new_packs: Vec<u64>,
    report: Report,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredPackRef {
    Known(PackRecord),
    New(u32),
}

fn report(read: ReadOut<'_>) -> Report {
    let chunked = read.chunked;
    let warning = |warning: &source::Warning| {
        format!("{}: {}", warning.item, warning.problem).chars().take(MAX_WARNING).collect()
    };
    let stream = |stream: &StreamRecord| {
        let kind = match stream.head.kind {
            source::StreamKind::Dump => "dump",
            source::StreamKind::PaxTar => "pax-tar",
            source::StreamKind::Catalog => "catalog",
        };
        (stream.head.name.clone(), kind.to_owned(), stream.raw_len)
    };
    Report {
        warnings: chunked.warnings.iter().map(warning).collect(),
        warnings_omitted: chunked.warnings_omitted,
        streams: chunked.streams.iter().map(stream).collect(),
        tool_version: read.summary.tool_version.clone(),
        server_version: read.summary.server_version.clone(),
        raw_bytes: chunked.streams.iter().map(|stream| stream.raw_len).sum(),
        new_raw_bytes: read.new_raw_bytes,
    }
}

/// Everything of a manifest that does not depend on the session it is written in.
#[derive(Debug, Clone)]
pub struct Plan {
    content: Content,
    packs: Vec<PackRef>,
    new_stored_bytes: u64,
    status: Status,
    read_at: UnixMillis,
    /// For the coordinator.
    pub report: Report,
}

impl Plan {
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
        random: &Random,
    ) -> Result<ManifestObject, AttemptError> {
        let draft = PublicDraft {
            agent: identity.agent,
            sequence: binding.sequence,
            previous: binding.previous,
            created: self.read_at,
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

fn described(job: &Job, identity: &Identity, summary: &SourceSummary) -> Source {
    let mut attributes = summary.attributes.clone();
    attributes.insert("hostname".to_owned(), host_name());
    Source {
        kind: job.source.kind_name().to_owned(),
        name: job.source.name.to_string(),
        host: identity.name.clone(),
        tool_version: summary.tool_version.clone(),
        server_version: summary.server_version.clone(),
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
