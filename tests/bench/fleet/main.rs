//! The coordinator under load: the table "Coordinator" of docs/performance.md. Run it with `make fleet-bench`.
//!
//! | part | what is measured, and how |
//! |---|---|
//! | `sessions` | Simulated hosts ([`sealift_tests::simulated`]) enrol with real tokens, hold real mTLS sessions to one real `sealift-coordinator dev` and send heartbeats. Its memory; reconnects after SIGTERM and after SIGKILL; dispatch beside idle hosts; runs asked for at once; signatures at a fixed rate; lists |
//! | `reconnects` | Of these only what hosts cost that do nothing, and how fast they are back after SIGKILL; not part of all |
//! | `store` | A database with generated hosts, runs and backups ([`sealift_tests::generated`]) under a coordinator that serves it: every list of the command and the status page, on SQLite and PostgreSQL |
//! | `packs` | Prepare and Commit of one backup with 100,000 packs |
//!
//! Set by environment: `SEALIFT_FLEET_PARTS` (all; names separated by commas), `SEALIFT_FLEET_AGENTS` (10,000),
//! `SEALIFT_FLEET_BACKUPS` (1,000,000, over 10,000 hosts; fewer hosts where it is less), `SEALIFT_FLEET_PACKS` (100,000).
//! Hosts and coordinator share the machine: what the hosts cost is in every figure. 10,000 hosts need 10,500 file
//! descriptors in each of the two processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod bare;
mod packs;
mod sessions;
mod store;
mod table;

use sealift_tests::measure;

fn number(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => {
            text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}"))
        }
        Err(_) => default,
    }
}

fn main() {
    let parts = std::env::var("SEALIFT_FLEET_PARTS").unwrap_or_else(|_| "sessions,store,packs".to_owned());
    let wanted = |part: &str| parts.split(',').any(|name| name.trim() == part);
    println!("{}\n", measure::machine());
    table::head();
    if wanted("sessions") {
        sessions::measure(number("SEALIFT_FLEET_AGENTS", 10_000));
    }
    if wanted("reconnects") {
        sessions::reconnects(number("SEALIFT_FLEET_AGENTS", 10_000));
    }
    if wanted("store") {
        store::measure(number("SEALIFT_FLEET_BACKUPS", 1_000_000));
    }
    if wanted("packs") {
        packs::measure(number("SEALIFT_FLEET_PACKS", 100_000));
    }
}
