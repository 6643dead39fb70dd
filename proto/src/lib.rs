//! What goes over the wire and what lies in the bucket, as generated from the schemas in `proto/sealift`.
//!
//! Nothing beyond the edges of each program should handle these types: they are full of `Option`s that must be there
//! and byte strings that must be ids. The programs' `api` and `session` modules turn them into domain types on arrival.

pub mod codec;

/// Structures of storage format 1 (docs/format.md).
pub mod format {
    tonic::include_proto!("sealift.format.v1");
}

/// The gRPC protocol, version 1: agents and admins on one side, coordinators on the other.
pub mod v1 {
    tonic::include_proto!("sealift.v1");
}
