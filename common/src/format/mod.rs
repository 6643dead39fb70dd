//! The bytes in the bucket, both directions: storage format 1, as `docs/format.md` describes it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`names`] | names of objects |
//! | [`chunk`] | where streams are cut, and what chunks are called |
//! | [`frame`] | runs of new chunks, compressed |
//! | [`pack`] | frames, their directory and the chunk index in one object, sealed |
//! | [`extent`] | where the bytes of a stream lie |
//! | [`catalog`] | what a directory backup holds |
//! | [`manifest`] | one backup: its streams, its packs, signed |
//! | [`coordinator`] | what the coordinator's own backup holds |
//!
//! Everything a reader takes in is hostile until parsed: lengths are capped before anything is allocated, enum values and
//! features that this version does not know are refused, and no byte is handed on before the chain from a signed manifest
//! down to the frame holds.

pub mod catalog;
pub mod chunk;
pub mod coordinator;
pub mod extent;
pub mod frame;
pub mod manifest;
pub mod names;
pub mod pack;
mod parts;

pub use parts::PartError;
pub(crate) use parts::{PartReader, push_part};
