//! A whole coordinator on loopback ports, with its real database, CA and embedded S3 server; callers over real mTLS gRPC.

#![allow(clippy::unwrap_used, clippy::panic)]

mod access;
mod enrolment;
mod fleetlife;
mod harness;
mod runs;
mod schedules;
mod sessions;
#[path = "../support"]
mod support {
    pub mod database;
}
