//! `sealift keys generate|test`: identities and root keys, and the proof that an identity really opens the fleet's backups.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use sealift_common::crypto::SigningKey;
use sealift_common::crypto::key_file;
use sealift_common::id::Random;
use sealift_common::secret::Secret;
use serde::Serialize;

use crate::app::App;
use crate::error::{Error, Exit, Result, because};
use crate::identity::passphrase;
use crate::ui;

/// `sealift keys …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an identity (opens backups) or a root key (signs who may)
    #[command(
        after_help = "Examples:\n  sealift keys generate --kind identity --out anna.key\n  sealift keys generate --kind root --out root.key --passphrase"
    )]
    Generate(GenerateArgs),
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
