//! Thousands of hosts in one process: the load tool's and the chaos tests' agents.
//!
//! A simulated host is an agent but for its dump: it enrols with a real token, holds a real mTLS session, sends heartbeats,
//! takes offers, and writes real backups (Begin, sealed packs straight to the store, Prepare, manifest, Commit) of a small
//! source that it makes up. It reconnects as the real agent does, goes on with an attempt when its session was lost, and
//! reports as interrupted what a crash cut off. What it committed restores like any other backup.
//!
//! | module | what it is for |
//! |---|---|
//! | [`fleet`] | many hosts on one runtime: enrol, connect, hold at a stage, count |
//! | [`host`] | one host: its keys, its life as a process, its session |
//! | `session` | opens a session and carries its messages |
//! | `backup` | one attempt from Begin to Commit |
//! | [`source`] | what there is to back up, and which of it is stored already |
//! | [`figures`] | what was seen: latencies, offers, backups, refusals |
//! | [`admin`] | the admin's side of the same protocol, without a process per call |
//! | `wire` | connections from addresses of their own |
//!
//! ```no_run
//! # use sealift_tests::{cluster::Cluster, simulated::{Fleet, Invitation, Options}};
//! let cluster = Cluster::dev();
//! let mut fleet = Fleet::new(Options::default());
//! fleet.enrol(&Invitation::of(&cluster, 200, &[("role", "till")]), "host", 200);
//! fleet.connect();
//! fleet.until_connected(200);
//! fleet.host(17).crash();
//! ```

pub mod admin;
mod backup;
pub mod figures;
pub mod fleet;
pub mod host;
mod session;
pub mod source;
mod wire;

pub use admin::Admin;
pub use figures::{Call, Committed, Figures};
pub use fleet::{Fleet, Invitation, Options, Stage};
pub use host::Host;
