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
//! | [`series`] | one source over time, also under another name, and from which epoch on |
//! | [`sessions`] | the agents that are connected, and what they say they have |
//! | [`runs`] | what was asked for, its attempts, their leases |
//! | [`objects`] | the object store: signed requests, the embedded server, the probe |
//! | [`uploads`] | packs on their way from an agent to the bucket |
//! | [`backups`] | from Begin to Commit; restores |
//! | [`policy`] | who is backed up when, what stays, what is promised |
//! | [`scheduler`] | from policies to runs that are due |
//! | [`retention`] | which backups stay, and what may be deleted from the bucket |
//! | [`verification`] | is what was stored still there, and still what it was |
//! | [`runtime`] | what goes on in the background, here and on the one coordinator that leads |
//! | [`store`] | the database |
//!
//! Dependencies run one way: `api` → domain modules → `store` and `objects`.

pub mod api;
pub mod app;
pub mod audit;
pub mod backups;
pub mod config;
pub mod core;
pub mod identity;
pub mod objects;
pub mod policy;
pub mod recovery;
pub mod retention;
pub mod runs;
pub mod runtime;
pub mod scheduler;
pub mod series;
pub mod sessions;
pub mod store;
pub mod uploads;
pub mod verification;
