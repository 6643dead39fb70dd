//! The agent as a build of before: it speaks an older protocol, and can do less. `SPEAKS` is its newest version, `CAN` its
//! features, with spaces between them. All else is the agent's own, so that tests see how a coordinator treats such a build.

use std::process::ExitCode;

use clap::Parser;
use sealift_agent::app::{self, Cli};
use sealift_common::protocol::{Features, Spoken, Version};

#[allow(clippy::print_stderr)] // for whoever runs the test
fn main() -> ExitCode {
    let given = |name: &str| std::env::var(name).unwrap_or_default();
    let newest: Version = match given("SPEAKS").parse() {
        Ok(version) => version,
        Err(error) => {
            eprintln!("SPEAKS: {error}");
            return ExitCode::from(2);
        }
    };
    let features = Features::known(given("CAN").split(' '));
    sealift_common::tls::install_provider();
    app::main(Cli::parse(), Spoken { least: newest.min(Version::LEAST), newest, features })
}
