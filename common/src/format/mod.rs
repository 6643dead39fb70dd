//! The bytes in the bucket, both directions: storage format 1, as `docs/format.md` describes it.
//!
//! Everything a reader takes in is hostile until parsed: lengths are capped before anything is allocated, enum values and
//! features that this version does not know are refused, and no byte is handed on before the chain from a signed manifest
//! down to the frame holds.

pub mod names;
mod parts;

pub use parts::PartError;
pub(crate) use parts::{PartReader, push_part};
