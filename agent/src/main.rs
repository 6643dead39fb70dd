//! `sealift-agent`: see [`sealift_agent::app`].

use std::process::ExitCode;

use clap::Parser;

use sealift_agent::app::{self, Cli};

fn main() -> ExitCode {
    sealift_common::tls::install_provider();
    app::main(Cli::parse())
}
