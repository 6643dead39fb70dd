//! `sealift-agent`: see [`sealift_agent::app`].

use std::process::ExitCode;

use clap::Parser;

use sealift_agent::app::{self, Cli};
use sealift_common::protocol::Spoken;

fn main() -> ExitCode {
    sealift_common::tls::install_provider();
    app::main(Cli::parse(), Spoken::of_this_build())
}
