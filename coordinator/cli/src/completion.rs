//! `sealift completion SHELL`: a completion script on stdout.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::error::{Exit, Result};

/// `sealift completion`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sealift completion bash > /etc/bash_completion.d/sealift\n  sealift completion zsh > ~/.zfunc/_sealift"
)]
pub struct Args {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script for the command line of `C`.
pub fn run<C: CommandFactory>(args: &Args) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut C::command(), "sealift", &mut script);
    crate::ui::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
