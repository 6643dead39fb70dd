//! The object store: S3 as Sealift needs it, and what a given server really does with the requests Sealift makes.
//!
//! | file | what it is for |
//! |---|---|
//! | [`settings`] | where the bucket is and how it is reached, parsed and checked once |
//! | [`key`] | keys of objects, relative to the prefix |
//! | [`store`] | what the coordinator itself does: put, head, get, list, delete |
//! | [`versions`] | deleting for good, and locks, on buckets that keep versions |
//! | [`signing`] | single requests signed for agents and admins: they never hold a credential |
//! | [`probe`] | finds out what the server verifies and honours; never trust a 200 |
//! | [`monitor`] | probes at start and again, with back-off while the store is down |
//! | [`http`] | the HTTP client beneath all of it; it also reads the store's clock |
//! | [`embedded`] | a local S3 server in this process, for `sealift-coordinator dev` |
//! | [`conformance`] | one suite that every server has to pass |
//!
//! Bytes of backups never pass through here, except where a store does not verify what it is sent and they have to be
//! read back.
//!
//! To support a server with a behaviour of its own, add a check to [`probe`] that detects it and a field to
//! [`probe::Abilities`] that says so; never a switch on the server's name.

pub mod conformance;
pub mod embedded;
mod embedded_files;
pub mod error;
pub mod http;
pub mod key;
pub mod monitor;
pub mod probe;
pub mod settings;
pub mod signing;
pub mod store;
pub mod versions;

pub use error::{ObjectError, ObjectErrorKind};
pub use key::ObjectKey;
pub use settings::StorageSettings;
pub use store::{ByteRange, ObjectHead, ObjectStore, Put};
pub use versions::Deletion;
