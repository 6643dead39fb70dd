//! Identity files and passphrases: how a command gets at private keys.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use sealift_common::crypto::Identities;
use sealift_common::secret::Secret;

use crate::error::{Error, Exit, Result, because};
use crate::ui::Ui;

const MAX_PASSPHRASE: u64 = 4096;

/// `--identity FILE`, as every command that decrypts has it.
#[derive(Debug, Args)]
pub struct IdentityArgs {
    /// File with the private key (AGE-SECRET-KEY-1…), as `sealift keys generate` or `age-keygen` writes it; may be repeated
    #[arg(long = "identity", short = 'i', value_name = "FILE")]
    identities: Vec<PathBuf>,
    /// File whose first line is the passphrase of the identity file; without it the terminal is asked
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl IdentityArgs {
    /// Whether any identity was named.
    pub fn given(&self) -> bool {
        !self.identities.is_empty()
    }

    /// Reads the identity files, asking for passphrases where they have one.
    ///
    /// # Errors
    /// Exit code 2 where none was named or one cannot be read or opened.
    pub fn load(&self, ui: &Ui) -> Result<Identities> {
        let mut all: Option<Identities> = None;
        for path in &self.identities {
            warn_if_others_can_read(ui, path);
            let prompt = || {
                passphrase(self.passphrase_file.as_deref(), &format!("passphrase of {}: ", path.display()))
            };
            let more =
                Identities::load(path, prompt).map_err(because(Exit::Usage, "cannot use the identity"))?;
            all = Some(match all {
                Some(before) => before.and(more),
                None => more,
            });
        }
        all.ok_or_else(|| Error::usage("this decrypts: name the file with your private key, --identity FILE"))
    }
}

fn warn_if_others_can_read(ui: &Ui, path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if let Ok(metadata) = path.metadata()
        && metadata.is_file()
        && metadata.permissions().mode() & 0o077 != 0
    {
        ui.warn(format!("{} can be read by others: chmod 600 {}", path.display(), path.display()));
    }
}

/// A passphrase from a file's first line, or from the terminal.
pub fn passphrase(file: Option<&Path>, question: &str) -> io::Result<Secret<String>> {
    let Some(path) = file else {
        if !io::stderr().is_terminal() {
            return Err(io::Error::other("there is no terminal to ask on: say --passphrase-file FILE"));
        }
        return rpassword::prompt_password(question).map(Secret::new);
    };
    first_line(path)
}

/// The first line of a file with a secret in it.
pub fn first_line(path: &Path) -> io::Result<Secret<String>> {
    let mut read = String::new();
    File::open(path)?.take(MAX_PASSPHRASE).read_to_string(&mut read)?;
    let text = Secret::new(read);
    let line = text.expose().lines().next().unwrap_or_default().to_owned();
    if line.is_empty() {
        return Err(io::Error::other(format!("{} holds nothing in its first line", path.display())));
    }
    Ok(Secret::new(line))
}
