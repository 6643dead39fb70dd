//! Sealift agent.
fn main() {}
