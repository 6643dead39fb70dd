//! The command line as a whole: global arguments, the nouns, and how the process ends.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sealift_common::clock::Clock;
use sealift_common::telemetry;
use tracing::Instrument as _;

use crate::context::Context;
use crate::coordinator::Coordinator;
use crate::error::{Error, Exit, Result, because, chain};
use crate::ui::{Format, Ui};
use crate::{
    agent, audit, backup, browse, completion, context, keys, pause, policy, restore, retention, run, series,
    source, status, token, trust,
};

/// Back up a fleet of hosts into S3, and get it back.
#[derive(Debug, Parser)]
#[command(name = "sealift", version, max_term_width = 110, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 partial, 4 not found, 5 refused, 6 unreachable, 7 verification failed\n\n\
    Examples:\n  sealift status\n  sealift backup run store-0042/main-db --wait\n  sealift restore latest:store-0042/main-db --identity key.txt --to ./restored"
)]
pub struct Cli {
    /// Which coordinator to talk to: the name of a context, or a context file
    #[arg(long, global = true, env = "SEALIFT_CONTEXT", value_name = "NAME|FILE")]
    context: Option<String>,
    /// How to print data
    #[arg(long, global = true, value_enum, default_value_t = Format::Table, value_name = "table|json")]
    output: Format,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// The fleet at a glance
    Status(Box<status::Args>),
    /// Hosts
    #[command(subcommand)]
    Agent(agent::Command),
    /// What the hosts can back up
    #[command(subcommand)]
    Source(source::Command),
    /// One source over time: also under another name, or on another host
    #[command(subcommand)]
    Series(series::Command),
    /// Policies: who is backed up when, what stays, what is promised
    #[command(subcommand)]
    Policy(policy::Command),
    /// Stop the schedules of some or all hosts for a while
    Pause(pause::PauseArgs),
    /// Let paused schedules go on
    Resume(pause::ResumeArgs),
    /// Backups: start, list, show, verify, hold, delete
    #[command(subcommand)]
    Backup(backup::Command),
    /// Runs: planned, running and past
    #[command(subcommand)]
    Run(run::Command),
    /// Which backups stay, and why
    #[command(subcommand)]
    Retention(retention::Command),
    /// Get a backup back: to files, to stdout, into a database; with or without a coordinator
    Restore(Box<restore::Args>),
    /// Streams and files of a backup
    Browse(browse::Args),
    /// Identities and root keys
    #[command(subcommand)]
    Keys(keys::Command),
    /// Who can open the backups
    #[command(subcommand)]
    Trust(trust::Command),
    /// Enrolment tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Who did what
    #[command(subcommand)]
    Audit(audit::Command),
    /// Which coordinator to talk to
    #[command(subcommand)]
    Context(context::Command),
    /// Completion for a shell
    Completion(completion::Args),
}

/// What a command works with.
pub struct App {
    /// What is printed and asked.
    pub ui: Ui,
    /// The time.
    pub clock: Clock,
    context: Option<String>,
}

impl App {
    /// The context that was chosen.
    pub fn context(&self) -> Result<Context> {
        Context::load(self.context.as_deref())
    }

    /// The connection to a coordinator of that context.
    pub async fn connect(&self) -> Result<Coordinator> {
        Coordinator::connect(&self.context()?).await
    }
}

/// Parses the command line, runs the command and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let app = App { ui: Ui::new(cli.output), clock: Clock::system(), context: cli.context };
    let exit = match start(&app, cli.noun) {
        Ok(exit) => exit,
        Err(error) => {
            app.ui.error(chain(&error));
            error.exit()
        }
    };
    exit.into()
}

fn start(app: &App, noun: Noun) -> Result<Exit> {
    sealift_common::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(because(Exit::Failed, "cannot start the runtime"))?;
    let exit = runtime.block_on(async {
        let _traces =
            telemetry::init(&telemetry_settings()).map_err(because(Exit::Usage, "cannot start telemetry"))?;
        tokio::select! {
            result = dispatch(app, noun).instrument(tracing::info_span!("sealift")) => result,
            _ = tokio::signal::ctrl_c() => Err(Error::failed("interrupted")),
        }
    });
    // Threads that still read or decode for a command that is over must not hold up its end.
    runtime.shutdown_background();
    exit
}

/// Traces go to the endpoint that the OpenTelemetry variable names; what is logged is only what went wrong.
fn telemetry_settings() -> telemetry::Settings {
    let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    telemetry::Settings {
        program: "sealift",
        level: text("SEALIFT_LOG").unwrap_or_else(|| "error,sealift=info,sealift_common=warn".to_owned()),
        log: telemetry::LogTarget::Stderr,
        otlp_endpoint: text("OTEL_EXPORTER_OTLP_ENDPOINT"),
    }
}

async fn dispatch(app: &App, noun: Noun) -> Result<Exit> {
    match noun {
        Noun::Status(args) => status::run(app, *args).await,
        Noun::Agent(command) => agent::run(app, command).await,
        Noun::Source(command) => source::run(app, command).await,
        Noun::Series(command) => series::run(app, command).await,
        Noun::Policy(command) => policy::run(app, command).await,
        Noun::Pause(args) => pause::pause(app, args).await,
        Noun::Resume(args) => pause::resume(app, args).await,
        Noun::Backup(command) => backup::run(app, command).await,
        Noun::Run(command) => run::run(app, command).await,
        Noun::Retention(command) => retention::run(app, command).await,
        Noun::Restore(args) => restore::run(app, *args).await,
        Noun::Browse(args) => browse::run(app, &args).await,
        Noun::Keys(command) => keys::run(app, command).await,
        Noun::Trust(command) => trust::run(app, command).await,
        Noun::Token(command) => token::run(app, command).await,
        Noun::Audit(command) => audit::run(app, command).await,
        Noun::Context(command) => context::run(&app.ui, command),
        Noun::Completion(args) => completion::run::<Cli>(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        fn visit(command: &clap::Command, path: &str, bad: &mut Vec<String>) {
            if command.has_subcommands() {
                command
                    .get_subcommands()
                    .for_each(|sub| visit(sub, &format!("{path} {}", sub.get_name()), bad));
                return;
            }
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            if command.get_about().is_none() || !help.contains("Example") || !help.contains(path) {
                bad.push(path.to_owned());
            }
        }
        let mut bad = Vec::new();
        visit(&Cli::command(), "sealift", &mut bad);
        assert!(bad.is_empty(), "no example with the command itself in the help of: {bad:?}");
    }
}
