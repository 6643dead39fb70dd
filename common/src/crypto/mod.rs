//! Keys, slots and signatures of the storage format (docs/format.md, Keys).
//!
//! | module | what it is for |
//! |---|---|
//! | [`keys`] | the data key of a backup, the series secret of a host, and every key derived from them |
//! | [`aead`] | AES-256-GCM |
//! | [`sign`] | Ed25519: root keys and agents' signing keys |
//! | [`slots`] | a data key encrypted to the recipients (age) |
//! | [`key_file`] | root key files and age identity files, with or without a passphrase |
//! | [`trust`] | the trust policy that root keys sign: who may open backups, which agents are attested |
//! | [`ca_statement`] | which CA coordinators have from now on, said by root keys where the old one is lost |
//! | [`agent_key`] | the `agents/` objects: an agent's signing keys, each signed by the one before |
//!
//! One provider, aws-lc-rs, does the primitives; age files are made and read by the age crate.
//!
//! To add a kind of slot: a variant in the schema's `SlotKind`, an arm in [`slots::KeySlots::open`] and one in
//! [`slots::KeySlots::seal`]; readers of before refuse it unless an age slot is beside it.

pub mod aead;
pub mod agent_key;
pub mod ca_statement;
pub mod key_file;
pub mod keys;
pub mod sign;
pub mod slots;
pub mod trust;

pub use agent_key::{AgentKeyError, AgentKeyObject, AgentKeyring, KeyStanding};
pub use ca_statement::{CaStatement, CaStatementError};
pub use key_file::{Identities, KeyFileError};
pub use keys::{DataKey, EpochId, SeriesSecret};
pub use sign::{SigningKey, VerifyingKey};
pub use slots::{KeyOwner, KeySlots, Recipient, SlotError};
pub use trust::{KnownTrust, RootPin, Rule, TrustError, TrustObject, TrustPolicy, TrustState};
