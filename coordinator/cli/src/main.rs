//! `sealift`, the command that fleet admins type.
//!
//! One file per noun (`token.rs`, `agent.rs`, `backup.rs`, …): its arguments, its calls to the coordinator and the JSON
//! shape of what it prints. To add a noun, add a file and an arm in [`app`]. What all of them need is in
//! [`coordinator`] (the connection), [`context`] (where it is and who we are), [`ui`] (what is printed and asked) and
//! [`error`] (what went wrong, and with which exit code the process ends).

mod agent;
mod app;
mod audit;
mod backup;
mod backup_keeping;
mod browse;
mod completion;
mod context;
mod coordinator;
mod error;
mod hosts;
mod identity;
mod keys;
mod pause;
mod policy;
mod progress;
mod restore;
mod retention;
mod run;
mod series;
mod source;
mod status;
mod time;
mod token;
mod trust;
mod ui;

use std::process::ExitCode;

fn main() -> ExitCode {
    app::main()
}
