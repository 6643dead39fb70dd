//! `sealift-coordinator`: commands, and nothing else; what they do is in the library.

mod ca_command;
mod recover_command;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sealift_common::clock::Clock;
use sealift_common::id::Random;
use sealift_common::lifecycle::Lifecycle;
use sealift_common::name::Name;
use sealift_common::telemetry::{self, LogTarget};
use sealift_common::tls;
use sealift_coordinator::app::{Coordinator, Listeners};
use sealift_coordinator::config::LogSettings;
use sealift_coordinator::config::dev::{DevDir, DevListen, write_context};
use sealift_coordinator::config::file::ConfigFile;
use sealift_coordinator::objects::embedded;
use sealift_coordinator::store::Store;

use ca_command::CaCommand;
use recover_command::{Output, Place, Recover};

/// How long a soft stop may take before the hard one.
const GRACE: Duration = Duration::from_secs(15);

/// What `dev` logs. The embedded S3 server would complain loudly about each thing that the probe tries and it refuses.
const DEV_LOG: &str = "info,s3s=off,s3s_fs=off";

/// The coordinator of Sealift: what is backed up when, where it went, and who did what.
#[derive(Debug, Parser)]
#[command(name = "sealift-coordinator", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve with everything embedded in one directory: database, CA, and a local S3 server.
    #[command(
        after_help = "Example:\n  sealift-coordinator dev --data-dir ~/sealift-dev\n  sealift --context ~/sealift-dev/context.toml status"
    )]
    Dev {
        /// Where everything lives; made if it is missing
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// Where agents and admins connect to
        #[arg(long, value_name = "ADDR", default_value_t = DevListen::default().grpc)]
        listen: SocketAddr,
        /// Where HTTPS is served
        #[arg(long, value_name = "ADDR", default_value_t = DevListen::default().http)]
        http_listen: SocketAddr,
        /// Where the embedded S3 server listens
        #[arg(long, value_name = "ADDR", default_value_t = DevListen::default().s3)]
        s3_listen: SocketAddr,
    },
    /// Serve as a configuration file says.
    #[command(after_help = "Example:\n  sealift-coordinator serve --config /etc/sealift/coordinator.toml")]
    Serve {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a configuration file without starting anything.
    #[command(after_help = "Example:\n  sealift-coordinator check --config /etc/sealift/coordinator.toml")]
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Bring the database's schema up to date; `serve` does so by itself.
    #[command(after_help = "Example:\n  sealift-coordinator migrate --config /etc/sealift/coordinator.toml")]
    Migrate {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Store a backup of the coordinator itself in the bucket, sealed to the recipients; it also makes one every day.
    #[command(
        after_help = "Examples:\n  sealift-coordinator backup --config /etc/sealift/coordinator.toml\n  sealift-coordinator backup --data-dir ~/sealift-dev"
    )]
    Backup {
        #[command(flatten)]
        place: Place,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Bring a database that was set back, or is lost, in step with the bucket (docs/recovery.md).
    #[command(
        after_help = "Examples:\n  sealift-coordinator recover --from-bucket --config /etc/sealift/coordinator.toml\n  sealift-coordinator recover --from-bucket --config /etc/sealift/coordinator.toml --identity key.txt"
    )]
    Recover(Recover),
    /// The CA that hosts know the coordinator by.
    Ca {
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Issue an admin's certificate, with a context for the sealift command. The coordinator must not be running.
    #[command(
        after_help = "Example:\n  sealift-coordinator admin --config /etc/sealift/coordinator.toml --name eve --out ./eve\n  sealift --context ./eve/context.toml status"
    )]
    Admin {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The admin's name
        #[arg(long)]
        name: Name,
        /// Where to write context.toml, ca.pem, admin.pem and admin.key
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Every session is a file descriptor, and Debian gives a process 1,024 unless it asks for more.
fn allow_many_sessions() {
    // What the system does not allow is found when connections are not taken any more, and logged then.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn main() -> ExitCode {
    tls::install_provider();
    allow_many_sessions();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let done = runtime.block_on(async {
        match cli.command {
            Command::Dev { data_dir, listen, http_listen, s3_listen } => {
                Box::pin(dev(&data_dir, DevListen { grpc: listen, http: http_listen, s3: s3_listen })).await
            }
            Command::Serve { config } => serve(&config).await,
            Command::Check { config } => check(&config),
            Command::Migrate { config } => migrate(&config).await,
            Command::Backup { place, output } => {
                Box::pin(recover_command::store_backup(&place, output)).await
            }
            Command::Recover(recover) => Box::pin(recover.run()).await,
            Command::Ca { command: CaCommand::Reset(reset) } => Box::pin(reset.run()).await,
            Command::Admin { config, name, out } => admin(&config, &name, &out).await,
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[allow(clippy::print_stderr)]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("sealift-coordinator: {error:#}");
    ExitCode::FAILURE
}

fn start_telemetry(settings: LogSettings) -> anyhow::Result<telemetry::Guard> {
    let LogSettings { level, target, otlp_endpoint } = settings;
    Ok(telemetry::init(&telemetry::Settings {
        program: "sealift-coordinator",
        level,
        log: target,
        otlp_endpoint,
    })?)
}

async fn dev(data_dir: &Path, listen: DevListen) -> anyhow::Result<()> {
    let _telemetry = start_telemetry(LogSettings {
        level: std::env::var("SEALIFT_LOG").unwrap_or_else(|_| DEV_LOG.to_owned()),
        target: LogTarget::Stderr,
        otlp_endpoint: std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok(),
    })?;
    let (random, lifecycle) = (Random::from_os(), Lifecycle::default());
    lifecycle.watch_signals(GRACE)?;
    let dir = DevDir::open(data_dir)?;
    let root = dir.root(&random)?;
    let listeners = Listeners::bind(listen.grpc, listen.http).await?;
    let url = listeners.url()?;
    let storage = embedded::start(dir.path(), listen.s3, &random, &lifecycle).await?;
    let mut settings = dir.settings(listen, root, storage, "sealift.dev".parse()?);
    settings.identity.coordinators = vec![url.clone()];
    let coordinator = Coordinator::open(settings, Clock::system(), random).await?;
    coordinator.write_admin(&"admin".parse()?, dir.path(), false).await?;
    dir.write_context(&url, root)?;
    run(coordinator, listeners, &lifecycle).await
}

async fn serve(config: &Path) -> anyhow::Result<()> {
    let file = ConfigFile::read(config)?;
    let _telemetry = start_telemetry(file.log_settings()?)?;
    let settings = file.settings()?;
    let lifecycle = Lifecycle::default();
    lifecycle.watch_signals(GRACE)?;
    let listeners = Listeners::bind(settings.listen, settings.http_listen).await?;
    let coordinator = Coordinator::open(settings, Clock::system(), Random::from_os()).await?;
    run(coordinator, listeners, &lifecycle).await
}

/// Serves, says so, and waits for the end.
async fn run(coordinator: Coordinator, listeners: Listeners, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let (addresses, store) = (listeners.addresses(), coordinator.core.store.clone());
    coordinator.serve(listeners, lifecycle)?;
    tracing::info!(grpc = %addresses.grpc, http = %addresses.http, "serving");
    let mut out = std::io::stdout();
    writeln!(out, "ready").and_then(|()| out.flush()).context("cannot write to standard output")?;
    // Fails only where systemd is not there.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    lifecycle.soft.cancelled().await;
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    lifecycle.finished().await;
    store.close().await;
    Ok(())
}

#[allow(clippy::print_stdout)]
fn check(config: &Path) -> anyhow::Result<()> {
    let file = ConfigFile::read(config)?;
    file.log_settings()?;
    file.settings()?;
    println!("{} is good", config.display());
    Ok(())
}

#[allow(clippy::print_stdout)]
async fn migrate(config: &Path) -> anyhow::Result<()> {
    let settings = ConfigFile::read(config)?.settings()?;
    Store::open(&settings.database).await?.close().await;
    println!("{} is up to date", settings.database);
    Ok(())
}

#[allow(clippy::print_stdout)]
async fn admin(config: &Path, name: &Name, out: &Path) -> anyhow::Result<()> {
    let settings = ConfigFile::read(config)?.settings()?;
    let (ca_dir, identity) = (settings.ca_dir.clone(), settings.identity.clone());
    let coordinator = Coordinator::open(settings, Clock::system(), Random::from_os()).await?;
    let dir = DevDir::open(out)?;
    coordinator.write_admin(name, dir.path(), true).await?;
    std::fs::copy(ca_dir.join("ca.pem"), dir.path().join("ca.pem"))
        .context("cannot copy the CA's certificate")?;
    let context = dir.path().join("context.toml");
    write_context(&context, name.as_str(), &identity.coordinators, "ca.pem", &identity.roots, None)?;
    coordinator.core.store.close().await;
    println!("{}", context.display());
    Ok(())
}
