//! Manifests: one per backup. A backup exists if and only if its manifest is in the bucket (docs/format.md, Manifest).
//!
//! ```text
//! "SLFTMAN1" | u32 | public | u32 | slots | u32 | sealed | signature 64
//! ```
//!
//! Writing: [`ManifestObject::seal`]. Reading: [`Manifest::parse`] checks name, shape and signature; whether its signing key is
//! to be believed is [`AgentKeyring::standing`]'s to say; [`Manifest::unlock`] and [`Manifest::open`] give the content.
//!
//! [`AgentKeyring::standing`]: crate::crypto::AgentKeyring::standing

mod content;
mod object;
mod public;

#[cfg(test)]
mod tests;

pub use content::{Content, Outcome, Source, Stream, StreamKind};
pub use object::{Manifest, ManifestObject, PublicDraft, verify_prepared};
pub use public::{ManifestPublic, PackRef, Status};

use super::PartError;
use crate::crypto::SlotError;
use crate::format::names::ObjectName;

/// Most bytes of the public part.
pub const MAX_PUBLIC: usize = 64 * 1024 * 1024;
/// Most bytes of the sealed part, also when decompressed.
pub const MAX_SEALED: usize = 1024 * 1024 * 1024;

/// A manifest that is not to be used. Names the object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("manifest {name}: {problem}")]
pub struct ManifestError {
    /// The object's name.
    pub name: ObjectName,
    /// What is wrong with it.
    #[source]
    pub problem: ManifestProblem,
}

/// What is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestProblem {
    /// Its bytes do not hash to its name.
    #[error("its bytes do not hash to its name")]
    Hash,
    /// Its name is no manifest's.
    #[error("its name is not that of a manifest")]
    Name,
    /// Its name says something else than its public part.
    #[error("its name and its public part differ in the {0}")]
    NameDiffers(&'static str),
    /// Its outer shape is wrong.
    #[error("it {0}")]
    Shape(#[source] PartError),
    /// The public part is malformed.
    #[error("its public part is malformed: {0}")]
    Public(String),
    /// It needs features that this version does not have.
    #[error("it requires {0:?}: use a newer version of Sealift")]
    RequiredFeatures(Vec<String>),
    /// It is of another repository than the trust policy.
    #[error("it belongs to another repository than the trust policy")]
    Repository,
    /// The signature is not that of the key it names.
    #[error("its signature does not hold")]
    Signature,
    /// The slots do not give the key.
    #[error("{0}")]
    Slots(#[source] SlotError),
    /// The data key is not the one it was sealed under.
    #[error("it was not sealed under this data key")]
    Commitment,
    /// The sealed part does not decrypt.
    #[error("its sealed part does not decrypt: its bytes were altered")]
    Sealed,
    /// The sealed part does not decompress within the limits.
    #[error("its sealed part does not decompress, or to more than {MAX_SEALED} bytes")]
    Compression,
    /// The content is malformed or contradicts the public part.
    #[error("its content is malformed: {0}")]
    Content(String),
    /// A part is larger than readers accept: the backup cannot be written like this.
    #[error("its {0} part would be larger than readers accept")]
    TooLarge(&'static str),
}
