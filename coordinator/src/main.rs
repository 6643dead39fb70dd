//! Sealift coordinator.
fn main() {}
