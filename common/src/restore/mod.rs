//! From objects back to streams and files, online or offline.
//!
//! No byte is used before the chain holds that leads to it: root keys → trust policy → agent's key → manifest → pack →
//! frame (docs/format.md, Restoring). The order of the modules is the order of a restore:
//!
//! | module | what it is for |
//! |---|---|
//! | [`objects`](ObjectSource) | where objects come from: signed GETs or the bucket itself |
//! | [`trust`] | the trust policy, and witnesses of the newest manifest |
//! | [`backup`] | a manifest is read, checked and opened |
//! | [`plan`] | which frames, which ranges; pure |
//! | [`engine`] | fetches, decrypts, decompresses, keeps order |
//! | [`verified`](VerifiedReader) | length and hash of whole streams |
//! | [`tree`] | streams and directories become files below one directory |
//! | [`tar`], [`extract`] | the archive's members, and how they are written safely |

pub mod backup;
mod cache;
pub mod engine;
mod error;
pub mod extract;
mod keys;
mod objects;
pub mod plan;
pub mod tar;
pub mod tree;
pub mod trust;
mod verified;

pub use backup::{Beliefs, Located, OpenBackup, SignedBackup};
pub use engine::StreamReader;
pub use error::{Class, ObjectError, RestoreError};
pub use objects::ObjectSource;
pub use trust::{Trust, Witness};
pub use verified::VerifiedReader;

#[cfg(test)]
mod tests;
