//! The commands of `sealift-agent`, and the life of the daemon.

use std::error::Error;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::sync::watch;
use url::Url;

use sealift_common::clock::Clock;
use sealift_common::id::{AgentId, InstanceId, Random, Sha256};
use sealift_common::lifecycle::Lifecycle;
use sealift_common::protocol::{Feature, Spoken};
use sealift_common::secret::Secret;
use sealift_common::telemetry::{self, LogTarget};

use crate::agent::Agent;
use crate::attempt::Attempts;
use crate::bandwidth::HostBandwidth;
use crate::config::Config;
use crate::config::secret::Environment;
use crate::config::sections::proxy::of_environment;
use crate::identity::enroll::{EnrollError, Enrolment, enroll};
use crate::identity::keeper::IdentityKeeper;
use crate::session::link::LinkOwner;
use crate::source::priority::lower_this_thread;
use crate::source::whole_chain;
use crate::spool::Spool;
use crate::state::dir::StateDir;
use crate::{check, service, session};

/// How long attempts may take to end and to be reported when the agent is stopped.
const STOP_GRACE: Duration = Duration::from_secs(60);
/// How long threads may take to end after that.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// Threads of the runtime: it only waits for networks; the work is done by the pipeline's own threads.
const RUNTIME_THREADS: usize = 2;
/// Largest token file, in bytes.
const MAX_TOKEN_FILE: u64 = 4096;

/// Backs up this host's databases and directories, sealed, straight to S3.
#[derive(Debug, Parser)]
#[command(name = "sealift-agent", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes this host an agent: exchanges a token for an identity.
    #[command(
        after_help = "Example:\n  sealift-agent enroll --coordinator https://backup.example.com:7443 \\\n    --token-file /root/token --ca-sha256 3f1c… --root-key-sha256 9ab0… --state-dir /var/lib/sealift-agent\n\n\
        `sealift token create` prints the token and both fingerprints. If the reply was lost, run the same command again."
    )]
    Enroll(EnrollArgs),
    /// Checks configuration, permissions, identity, and the connection to each source.
    #[command(after_help = "Example:\n  sealift-agent check --config /etc/sealift/agent.toml")]
    Check(ConfigArgs),
    /// Runs the agent until it is stopped (SIGTERM); SIGHUP reads the configuration again.
    #[command(after_help = "Example:\n  sealift-agent run --config /etc/sealift/agent.toml")]
    Run(ConfigArgs),
}

#[derive(Debug, Args)]
struct EnrollArgs {
    /// Address of a coordinator; repeat it for several.
    #[arg(long, value_name = "URL", required = true)]
    coordinator: Vec<Url>,
    /// File with the token; `-` reads it from standard input.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// SHA-256 of the coordinator's CA certificate.
    #[arg(long, value_name = "HEX")]
    ca_sha256: Sha256,
    /// SHA-256 of a root key that signs trust policies; repeat it for several.
    #[arg(long, value_name = "HEX", required = true)]
    root_key_sha256: Vec<Sha256>,
    /// Where the agent keeps its state.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sealift-agent")]
    state_dir: PathBuf,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/sealift/agent.toml")]
    config: PathBuf,
}

/// A command that failed: what to print, and the exit code (cli.md).
#[derive(Debug)]
pub struct Failed {
    message: String,
    code: u8,
}

impl Failed {
    fn with(code: u8, error: &dyn Error) -> Self {
        Self { message: whole_chain(error), code }
    }
}

impl<E: Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::with(1, &error)
    }
}

/// Runs one command to its end, as a build that speaks so.
#[allow(clippy::print_stderr)] // the error of a command is for whoever typed it
pub fn main(cli: Cli, speaks: Spoken) -> ExitCode {
    let done = match cli.command {
        Command::Enroll(args) => run_enroll(&args),
        Command::Check(args) => run_check(&args.config),
        Command::Run(args) => run_agent(&args.config, speaks),
    };
    match done {
        Ok(code) => code,
        Err(failed) => {
            eprintln!("sealift-agent: {}", failed.message);
            ExitCode::from(failed.code)
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("sealift-io")
        .enable_all()
        .build()
}

#[allow(clippy::print_stdout)] // the command's result
fn run_enroll(args: &EnrollArgs) -> Result<ExitCode, Failed> {
    let token = read_token(&args.token_file).map_err(|source| Failed {
        message: format!("cannot read the token from {}: {source}", args.token_file.display()),
        code: 1,
    })?;
    let enrolment = Enrolment {
        coordinators: args.coordinator.clone(),
        token,
        ca_sha256: args.ca_sha256,
        root_pins: args.root_key_sha256.clone(),
        host: session::host_name(),
        proxy: of_environment(&Environment::of_process())?,
    };
    let state = StateDir::create(&args.state_dir)?;
    let (clock, random) = (Clock::system(), Random::from_os());
    let work = enroll(&state, &enrolment, &clock, &random);
    let identity = runtime()?.block_on(work).map_err(|error| {
        let code = match &error {
            EnrollError::Unreachable(_) => 6,
            EnrollError::Refused(_) => 5,
            EnrollError::WrongCa { .. } | EnrollError::OtherRoot(_) | EnrollError::WrongRoot(_) => 7,
            EnrollError::Identity(_) => 1,
        };
        Failed::with(code, &error)
    })?;
    println!("enrolled as {} ({})", identity.name, identity.agent);
    Ok(ExitCode::SUCCESS)
}

fn read_token(path: &Path) -> std::io::Result<Secret<String>> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_TOKEN_FILE).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)?.take(MAX_TOKEN_FILE).read_to_string(&mut text)?;
    }
    let text = Secret::new(text);
    Ok(Secret::new(text.expose().trim().to_owned()))
}

fn load(path: &Path) -> Result<(Config, Environment), Failed> {
    let environment = Environment::of_process();
    let config = Config::load(path, &environment)?;
    Ok((config, environment))
}

fn run_check(path: &Path) -> Result<ExitCode, Failed> {
    let (config, environment) = load(path)?;
    let all_good = runtime()?.block_on(check::check(&config, environment));
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_agent(path: &Path, speaks: Spoken) -> Result<ExitCode, Failed> {
    let (config, environment) = load(path)?;
    // Before any other thread starts: threads inherit the priority.
    let lowered = lower_this_thread(&config.process);
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let _telemetry = telemetry::init(&telemetry_settings(&config))?;
        if let Err(error) = lowered {
            tracing::warn!(%error, "cannot lower the priority");
        }
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        serve(path, config, environment, speaks).await
    });
    // A thread that still reads a slow disk must not keep the process.
    runtime.shutdown_timeout(SHUTDOWN);
    served
}

fn telemetry_settings(config: &Config) -> telemetry::Settings {
    let log = match &config.log.file {
        Some(path) => LogTarget::BoundedFile {
            path: path.as_path().to_owned(),
            max_bytes: usize::try_from(config.log.max_size.0).unwrap_or(usize::MAX),
            kept: config.log.keep.into(),
        },
        None if std::io::stderr().is_terminal() => LogTarget::Stderr,
        None => LogTarget::StderrJson,
    };
    telemetry::Settings {
        program: "sealift-agent",
        level: config.log.level.as_str().to_owned(),
        log,
        otlp_endpoint: config.telemetry.otlp_endpoint.as_ref().map(|endpoint| endpoint.url().to_string()),
    }
}

/// The spool, in a folder of this agent's own: several may share a directory.
fn open_spool(config: &Config, agent: AgentId) -> Option<Arc<Spool>> {
    let default = config.state_dir.as_path().join("spool");
    let dir = config.spool.dir.as_ref().map_or(default, |dir| dir.as_path().to_owned());
    Some(Spool::new(dir.join(agent.to_string()), config.spool.max_bytes()?, config.spool.min_free()))
}

/// The daemon, from its first to its last breath.
async fn serve(
    path: &Path,
    config: Config,
    environment: Environment,
    speaks: Spoken,
) -> Result<ExitCode, Failed> {
    let (clock, random) = (Clock::system(), Random::from_os());
    let state = StateDir::open(config.state_dir.as_path())?;
    let identity = IdentityKeeper::open(state.clone(), clock.clone(), random.clone())?;
    let lifecycle = Lifecycle::default();
    lifecycle.watch_signals(STOP_GRACE)?;
    let (link_owner, link) = LinkOwner::new();
    let may_spool = speaks.features.has(Feature::Spool);
    let spool = if may_spool { open_spool(&config, identity.current().agent) } else { None };
    let agent = Arc::new(Agent {
        instance: InstanceId::generate(&random),
        speaks,
        identity,
        state,
        config: watch::Sender::new(Arc::new(config)),
        environment,
        link,
        bandwidth: HostBandwidth::default(),
        spool,
        clock,
        random,
    });
    let who = agent.identity.current();
    tracing::info!(agent = %who.agent, name = who.name, version = env!("CARGO_PKG_VERSION"), "starting");
    let attempts = Attempts::new(agent.clone(), lifecycle.clone())?;
    attempts.resume();

    service::reload_on_sighup(agent.clone(), path.to_owned())?;
    service::keep_watchdog_quiet();
    let keeper = agent.clone();
    tokio::spawn(async move { keeper.identity.run(keeper.link.clone()).await });
    let session = session::run(agent, attempts, link_owner, lifecycle.clone());
    lifecycle.tracker.spawn(session);
    service::ready();

    lifecycle.soft.cancelled().await;
    service::stopping();
    lifecycle.finished().await;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
