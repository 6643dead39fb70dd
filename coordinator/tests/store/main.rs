//! The store on both databases: one schema, and what counts or chooses stays right when many do it at once.

#![allow(clippy::unwrap_used, clippy::panic)]

mod leading;
mod opening;
mod races;
mod schema;
#[path = "../support/mod.rs"]
mod support;
