//! Retention and collection on the real domain modules, a real database and real S3 servers.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests are not tests to clippy
#![allow(clippy::large_futures, clippy::print_stdout)] // whole histories are futures, and say what they did

mod host;
mod locked;
mod model;
mod restore;
mod service;
#[path = "../support/mod.rs"]
mod support;
mod year;
