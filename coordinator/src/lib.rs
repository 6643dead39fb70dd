//! The coordinator: what is backed up when, where it went, and who did what. It signs uploads and never sees content.
//!
//! | module | what it is for |
//! |---|---|
//! | [`app`] | puts the parts together, starts and stops them |
//! | [`api`] | the edge: gRPC for agents and admins, HTTPS for health; wire types stop here |
//! | [`audit`] | [`audit::OpContext`]: who may do what, and the record of it |
//! | [`config`] | configuration files and the embedded default |
//! | [`core`] | database, time, randomness: what every domain module needs |
//! | [`identity`] | the CA, enrolment, certificates, trust policy |
//! | [`sessions`] | the agents that are connected, and what they say they have |
//! | [`runs`] | what was asked for, its attempts, their leases |
//! | [`store`] | the database |
//!
//! Dependencies run one way: `api` → domain modules → `store` and `objects`.

pub mod api;
pub mod app;
pub mod audit;
pub mod config;
pub mod core;
pub mod identity;
pub mod runs;
pub mod sessions;
pub mod store;

// Objects, uploads, backups and verification have their lines below this one.
pub mod objects;
