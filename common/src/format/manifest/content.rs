//! The sealed part of a manifest: what was backed up, and where its bytes lie.

use std::collections::{BTreeMap, HashSet};

use prost::Message;
use sealift_proto::format as wire;

use super::{ManifestProblem, ManifestPublic};
use crate::format::extent::Extent;
use crate::format::pack;

/// Longest name of a stream, in bytes.
const MAX_STREAM_NAME: usize = 1024;

/// What a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Output of a dump tool, or a copied database file.
    Dump,
    /// A directory as a pax tar.
    PaxTar,
    /// The catalog of a tar.
    Catalog,
}

/// How the making of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// All of it is there.
    Success,
    /// Something is missing from it or was not protected.
    Partial,
    /// It broke off.
    Failed,
}

/// One stream of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Unique in the backup; a relative path without `.` and `..`: restores make files of it.
    pub name: String,
    /// What it is.
    pub kind: StreamKind,
    /// Its length, in bytes.
    pub raw_len: u64,
    /// BLAKE3 of its bytes.
    pub blake3: [u8; 32],
    /// Where its bytes lie, in order.
    pub extents: Vec<Extent>,
    /// How its making ended.
    pub outcome: Outcome,
    /// For catalogs: the name of the tar stream.
    pub catalog_of: Option<String>,
    /// What a restore needs to know (`format=custom`, …). Never a credential.
    pub attributes: BTreeMap<String, String>,
}

/// What was backed up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// `postgres`, `mysql`, `sqlite`, `directory`, `command`.
    pub kind: String,
    /// Its name in the host's config.
    pub name: String,
    /// The host.
    pub host: String,
    /// Version of the dump tool.
    pub tool_version: String,
    /// Version of the server that was dumped.
    pub server_version: String,
    /// Anything else worth knowing in a disaster: labels of the host, among others.
    pub attributes: BTreeMap<String, String>,
}

/// The content of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// How streams were cut; restorers do not need it.
    pub chunking: wire::Chunking,
    /// What was backed up.
    pub source: Source,
    /// The streams, in the order in which they were made.
    pub streams: Vec<Stream>,
}

impl Content {
    /// The stream of this name.
    pub fn stream(&self, name: &str) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.name == name)
    }

    /// Raw bytes of all streams.
    pub fn raw_bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.raw_len).sum()
    }

    /// Its bytes before they are compressed and sealed.
    pub fn encode(&self) -> Vec<u8> {
        wire::SealedManifest {
            chunking: Some(self.chunking.clone()),
            source: Some(wire::Source {
                kind: self.source.kind.clone(),
                name: self.source.name.clone(),
                host: self.source.host.clone(),
                tool_version: self.source.tool_version.clone(),
                server_version: self.source.server_version.clone(),
                attributes: self.source.attributes.clone(),
            }),
            streams: self.streams.iter().map(Stream::to_wire).collect(),
            required_features: Vec::new(),
        }
        .encode_to_vec()
    }

    pub(super) fn decode(bytes: &[u8], public: &ManifestPublic) -> Result<Self, ManifestProblem> {
        let content = Self::parse(bytes)?;
        content.check(public)?;
        Ok(content)
    }

    /// Reads what [`Content::encode`] wrote. Whether it fits a public part is another question, which sealing asks.
    ///
    /// # Errors
    /// [`ManifestProblem`] for what this version cannot read.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestProblem> {
        let bad = |problem: &str| ManifestProblem::Content(problem.to_owned());
        let content = wire::SealedManifest::decode(bytes).map_err(|_| bad("not protobuf"))?;
        if !content.required_features.is_empty() {
            return Err(ManifestProblem::RequiredFeatures(content.required_features));
        }
        let source = content.source.ok_or_else(|| bad("it names no source"))?;
        Ok(Self {
            chunking: content.chunking.unwrap_or_default(),
            source: Source {
                kind: source.kind,
                name: source.name,
                host: source.host,
                tool_version: source.tool_version,
                server_version: source.server_version,
                attributes: source.attributes,
            },
            streams: content.streams.into_iter().map(Stream::from_wire).collect::<Result<_, _>>()?,
        })
    }

    /// Checks that the content is consistent in itself and with the public part.
    pub(super) fn check(&self, public: &ManifestPublic) -> Result<(), ManifestProblem> {
        let bad = |problem: String| Err(ManifestProblem::Content(problem));
        let mut names = HashSet::new();
        for stream in &self.streams {
            stream.check(public.packs.len())?;
            if !names.insert(stream.name.as_str()) {
                return bad(format!("it has two streams {:?}", stream.name));
            }
        }
        for stream in &self.streams {
            if let Some(tar) = &stream.catalog_of
                && self.stream(tar).is_none_or(|tar| tar.kind != StreamKind::PaxTar)
            {
                return bad(format!("stream {:?} is the catalog of no tar", stream.name));
            }
        }
        let raw_bytes = self.streams.iter().try_fold(0u64, |sum, stream| sum.checked_add(stream.raw_len));
        if raw_bytes != Some(public.raw_bytes) {
            return bad("its streams are not as long as the public part says".to_owned());
        }
        Ok(())
    }
}

impl Stream {
    fn check(&self, packs: usize) -> Result<(), ManifestProblem> {
        let bad = |problem: &str| Err(ManifestProblem::Content(format!("stream {:?} {problem}", self.name)));
        if !is_stream_name(&self.name) {
            return bad("has a name that is no safe relative path");
        }
        if (self.kind == StreamKind::Catalog) != self.catalog_of.is_some() {
            return bad("is a catalog without a tar, or a tar's catalog that is none");
        }
        let mut raw_len = 0u64;
        for extent in &self.extents {
            let end = extent.raw_offset.checked_add(extent.raw_len);
            if extent.raw_len == 0
                || end.is_none_or(|end| end > pack::MAX_RAW)
                || extent.pack as usize >= packs
            {
                return bad("has an extent that lies in no pack");
            }
            raw_len = raw_len.saturating_add(extent.raw_len);
        }
        if raw_len == self.raw_len { Ok(()) } else { bad("is not as long as its extents") }
    }

    fn to_wire(&self) -> wire::Stream {
        let extent = |extent: &Extent| wire::Extent {
            pack: extent.pack,
            raw_offset: extent.raw_offset,
            raw_len: extent.raw_len,
        };
        wire::Stream {
            name: self.name.clone(),
            kind: match self.kind {
                StreamKind::Dump => wire::StreamKind::Dump.into(),
                StreamKind::PaxTar => wire::StreamKind::PaxTar.into(),
                StreamKind::Catalog => wire::StreamKind::Catalog.into(),
            },
            raw_len: self.raw_len,
            blake3: self.blake3.to_vec(),
            extents: self.extents.iter().map(extent).collect(),
            outcome: match self.outcome {
                Outcome::Success => wire::Outcome::Success.into(),
                Outcome::Partial => wire::Outcome::Partial.into(),
                Outcome::Failed => wire::Outcome::Failed.into(),
            },
            catalog_of: self.catalog_of.clone().unwrap_or_default(),
            attributes: self.attributes.clone(),
        }
    }

    fn from_wire(stream: wire::Stream) -> Result<Self, ManifestProblem> {
        let bad = |problem: &str| ManifestProblem::Content(format!("stream {:?}: {problem}", stream.name));
        let kind = match stream.kind() {
            wire::StreamKind::Dump => StreamKind::Dump,
            wire::StreamKind::PaxTar => StreamKind::PaxTar,
            wire::StreamKind::Catalog => StreamKind::Catalog,
            wire::StreamKind::Unspecified => return Err(bad("its kind is not known to this version")),
        };
        let outcome = match stream.outcome() {
            wire::Outcome::Success => Outcome::Success,
            wire::Outcome::Partial => Outcome::Partial,
            wire::Outcome::Failed => Outcome::Failed,
            wire::Outcome::Unspecified => return Err(bad("its outcome is not known to this version")),
        };
        let extent = |extent: wire::Extent| Extent {
            pack: extent.pack,
            raw_offset: extent.raw_offset,
            raw_len: extent.raw_len,
        };
        Ok(Self {
            blake3: stream.blake3.as_slice().try_into().map_err(|_| bad("its BLAKE3 is not 32 bytes"))?,
            name: stream.name,
            kind,
            raw_len: stream.raw_len,
            extents: stream.extents.into_iter().map(extent).collect(),
            outcome,
            catalog_of: Some(stream.catalog_of).filter(|tar| !tar.is_empty()),
            attributes: stream.attributes,
        })
    }
}

/// Whether a stream may have this name: a relative path of which restores can make a file below their target.
fn is_stream_name(name: &str) -> bool {
    (1..=MAX_STREAM_NAME).contains(&name.len())
        && !name.contains(char::is_control)
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
