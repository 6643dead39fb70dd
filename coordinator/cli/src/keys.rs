//! `sealift keys generate|test`: identities and root keys, and the proof that an identity really opens the fleet's backups.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use sealift_common::crypto::SigningKey;
use sealift_common::crypto::key_file;
use sealift_common::id::Random;
use sealift_common::restore::RestoreError;
use sealift_common::secret::Secret;
use sealift_proto::v1;
use serde::Serialize;

use crate::agent::selector;
use crate::app::App;
use crate::coordinator::{Limit, pages};
use crate::error::{Error, Exit, Result, because, chain, said};
use crate::identity::{IdentityArgs, passphrase};
use crate::progress::Bar;
use crate::restore::{Pins, online};
use crate::ui;

/// `sealift keys …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an identity (opens backups) or a root key (signs who may)
    #[command(
        after_help = "Examples:\n  sealift keys generate --kind identity --out anna.key\n  sealift keys generate --kind root --out root.key --passphrase"
    )]
    Generate(GenerateArgs),
    /// Open the newest backup of every source with an identity, before the day it must
    #[command(
        after_help = "Examples:\n  sealift keys test --identity anna.key\n  sealift keys test --identity anna.key -l role=pos"
    )]
    Test(TestArgs),
}

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Opens backups; its public half is a recipient (age1…)
    Identity,
    /// Signs the trust policy: who may open backups
    Root,
}

/// `sealift keys generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What the key is for
    #[arg(long, value_enum)]
    kind: Kind,
    /// The file to write, 0600; an existing file is never overwritten
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Protect the file with a passphrase, which the terminal is asked for
    #[arg(long)]
    passphrase: bool,
    /// Protect the file with the passphrase in this file's first line
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// `sealift keys test`
#[derive(Debug, Args)]
pub struct TestArgs {
    #[command(flatten)]
    identity: IdentityArgs,
    /// Only hosts with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    #[command(flatten)]
    pins: Pins,
}

#[derive(Serialize)]
struct Generated {
    kind: &'static str,
    path: PathBuf,
    /// For identities: the public key to give to `trust set --recipient`.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<String>,
    /// For root keys: the fingerprint that hosts pin.
    #[serde(skip_serializing_if = "Option::is_none")]
    root_key_sha256: Option<String>,
}

/// Runs `sealift keys …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Generate(args) => generate(app, args),
        Command::Test(args) => test(app, args).await,
    }
}

fn generate(app: &App, args: GenerateArgs) -> Result<Exit> {
    if args.out.exists() {
        return Err(Error::failed(format!(
            "{} exists already and is never overwritten: name another file",
            args.out.display()
        )));
    }
    let protect = args.passphrase || args.passphrase_file.is_some();
    let secret = if protect { Some(new_passphrase(&args)?) } else { None };
    let (text, kind, recipient, root) = match args.kind {
        Kind::Identity => {
            let (text, recipient) = key_file::generate_identity(app.clock.now());
            (text, "identity", Some(recipient.to_string()), None)
        }
        Kind::Root => {
            let key = SigningKey::generate(&Random::from_os());
            (key_file::root_key_text(&key), "root", None, Some(key.verifying_key().fingerprint().to_string()))
        }
    };
    let bytes = match &secret {
        Some(secret) => Secret::new(key_file::protect(&text, secret)),
        None => Secret::new(text.expose().clone().into_bytes()),
    };
    key_file::write_new(&args.out, bytes.expose()).map_err(because(Exit::Failed, "cannot keep the key"))?;
    let generated = Generated { kind, path: args.out, recipient, root_key_sha256: root };
    match app.ui.format {
        ui::Format::Json => app.ui.json(&generated)?,
        ui::Format::Table => {
            let public = generated
                .recipient
                .iter()
                .chain(&generated.root_key_sha256)
                .next()
                .cloned()
                .unwrap_or_default();
            ui::print(&format!("{public}\n"))?;
            let what = if kind == "root" {
                "the fingerprint that hosts pin"
            } else {
                "the recipient for `sealift trust set`"
            };
            app.ui.note(format!(
                "above: {what}; the key is in {}: keep it, and a copy, away from the fleet",
                generated.path.display()
            ));
        }
    }
    Ok(Exit::Done)
}

fn new_passphrase(args: &GenerateArgs) -> Result<Secret<String>> {
    let ask = |question: &str| {
        passphrase(args.passphrase_file.as_deref(), question)
            .map_err(because(Exit::Usage, "cannot get a passphrase"))
    };
    let first = ask("passphrase for the new key: ")?;
    if args.passphrase_file.is_none() && ask("the same again: ")?.expose() != first.expose() {
        return Err(Error::usage("the two passphrases differ: nothing was written"));
    }
    if first.expose().is_empty() {
        return Err(Error::usage("an empty passphrase protects nothing: nothing was written"));
    }
    Ok(first)
}

#[derive(Serialize)]
struct Tested {
    source: String,
    backup: Option<String>,
    ok: bool,
    problem: Option<String>,
}

async fn test(app: &App, args: TestArgs) -> Result<Exit> {
    let identities = Arc::new(args.identity.load(&app.ui)?);
    let coordinator = app.connect().await?;
    let selector = args.selector.clone().unwrap_or_default();
    let sources = pages(&app.ui, Limit::all(), async |page| {
        let request =
            v1::ListSourcesRequest { page: Some(page), selector: selector.clone(), ..Default::default() };
        let reply =
            coordinator.agents().list_sources(request).await.map_err(said("list sources"))?.into_inner();
        Ok((reply.sources, reply.next))
    })
    .await?;
    if sources.is_empty() {
        return Err(crate::run::nothing_selected());
    }
    let mut tested = Vec::with_capacity(sources.len());
    let mut bar = Bar::new(&app.ui, "opening", 0);
    for state in &sources {
        let source = format!("{}/{}", state.agent, state.name);
        bar.say(&source);
        // Without a good one, what a restore of the latest would take.
        let latest = (state.backups > 0).then(|| format!("latest:{source}"));
        let good = state.last_good.as_ref().map(|b| b.id.clone()).filter(|id| !id.is_empty());
        let Some(backup) = good.or(latest) else {
            tested.push(Tested {
                source,
                backup: None,
                ok: true,
                problem: Some("has no backup yet".to_owned()),
            });
            continue;
        };
        let problem =
            match online::test_keys(app, &coordinator, &backup, identities.clone(), &args.pins).await {
                Ok(()) => None,
                Err(error) if error.exit() == Exit::Unreachable => return Err(error),
                Err(Error::Restore(RestoreError::Slot { source, .. })) => Some(source.to_string()),
                Err(error) => Some(chain(&error)),
            };
        bar.set(tested.len() as u64);
        tested.push(Tested { source, backup: Some(backup), ok: problem.is_none(), problem });
    }
    bar.finish();
    report(app, &tested)
}

fn report(app: &App, tested: &[Tested]) -> Result<Exit> {
    app.ui.list(tested, &["source", "backup", "result", "why"], |view| {
        let result = match view {
            _ if !view.ok => "CANNOT OPEN",
            _ if view.backup.is_none() => "-",
            _ => "opens",
        };
        vec![
            view.source.clone(),
            view.backup.clone().unwrap_or_default(),
            result.to_owned(),
            view.problem.clone().unwrap_or_default(),
        ]
    })?;
    let bad = tested.iter().filter(|view| !view.ok).count();
    if bad == 0 {
        return Ok(Exit::Done);
    }
    app.ui.error(format!(
        "this identity does not open the newest backup of {bad} of {}",
        ui::count(tested.len(), "source")
    ));
    Ok(Exit::Failed)
}
