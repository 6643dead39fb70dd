//! From objects back to streams and files, online or offline.
//!
//! No byte is used before the chain holds that leads to it: root keys → trust policy → agent's key → manifest → pack →
//! frame (docs/format.md, Restoring).
mod error;
pub mod extract;
mod objects;
pub mod plan;
pub mod tar;

pub use error::{Class, ObjectError, RestoreError};
pub use objects::ObjectSource;
