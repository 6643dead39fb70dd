//! The light agent on each host.

pub mod config;
pub mod source;
