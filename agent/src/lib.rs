//! The light agent on each host: it reads sources and streams sealed, deduplicated backups straight to S3.
//!
//! | module | what it does |
//! |---|---|
//! | [`app`] | commands: `enroll`, `check`, `run` |
//! | [`config`] | what the host's owner says: sources, limits |
//! | [`identity`] | keys, certificate, enrolment |
//! | [`state`] | what is kept between two starts |
//! | [`session`] | the one stream to a coordinator |
//! | [`attempt`] | one backup from offer to commit |
//! | [`source`] | what can be backed up, as streams of bytes |
//! | [`pipeline`] | from those bytes to stored packs: the one file that names every stage |
//! | [`spool`] | packs that wait on disk for a slow or absent store |
//!
//! Stages (`chunk`, `dedup`, `frame`, `pack`, `upload`) know neither their neighbours nor the session.

pub mod agent;
pub mod app;
pub mod attempt;
pub mod bandwidth;
pub mod check;
pub mod chunk;
pub mod config;
pub mod dedup;
pub mod frame;
pub mod identity;
pub mod pack;
pub mod pipeline;
pub mod progress;
pub mod put;
pub mod service;
pub mod session;
pub mod source;
pub mod spool;
pub mod state;
pub mod upload;
