//! What a restore believes in: the root keys that the trust policy must lead back to; and how backups are named.

use clap::Args;
use sealift_common::crypto::{RootPin, key_file};
use sealift_common::id::Sha256;

use crate::app::App;
use crate::context::Context;
use crate::error::{Error, Exit, Result, because};
use crate::time::parse_moment;
use crate::ui::Ui;

/// Which root keys and agents' keys are believed.
#[derive(Debug, Clone, Args)]
pub struct Pins {
    /// Fingerprint of a root key that the trust policy must be signed by; may be repeated. Without it: those of the context
    #[arg(long = "root-key-sha256", value_name = "HEX")]
    roots: Vec<Sha256>,
    /// How many of these root keys must have signed
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    root_threshold: u32,
    /// Believe a backup that is signed with a key that nothing vouches for
    #[arg(long)]
    pub accept_unknown_key: bool,
    /// Believe the store although a witness has seen something newer
    #[arg(long)]
    pub accept_rollback: bool,
}

impl Pins {
    /// The pins given on the command line, else those of the context; empty where there are none.
    pub fn resolve(&self, app: &App) -> Result<RootPin> {
        match self.given() {
            Some(pin) => Ok(pin),
            None => app.context()?.root_pin(&app.ui),
        }
    }

    /// The pins given on the command line, if any.
    pub fn given(&self) -> Option<RootPin> {
        let pin = RootPin { fingerprints: self.roots.clone(), threshold: self.root_threshold };
        (!pin.fingerprints.is_empty()).then_some(pin)
    }
}

impl Context {
    /// The root keys that this context pins: by fingerprint, else by the root key file itself.
    ///
    /// # Errors
    /// Exit code 2 where a fingerprint is none.
    pub fn root_pin(&self, ui: &Ui) -> Result<RootPin> {
        let parse = |text: &String| text.parse::<Sha256>();
        let mut fingerprints = self
            .root_key_sha256
            .iter()
            .map(parse)
            .collect::<Result<Vec<_>, _>>()
            .map_err(because(Exit::Usage, "root_key_sha256 in the context is not as it must be"))?;
        if fingerprints.is_empty()
            && let Some(path) = &self.root_key
        {
            // Nobody is asked for a passphrase only to learn a public key.
            let no_prompt = || Err(std::io::Error::other("protected by a passphrase"));
            match key_file::load_root_key(path, no_prompt) {
                Ok(key) => fingerprints.push(key.verifying_key().fingerprint()),
                Err(error) => {
                    ui.warn(format!("{error}: pin its fingerprint with root_key_sha256 in the context"))
                }
            }
        }
        Ok(RootPin { fingerprints, threshold: self.root_threshold.unwrap_or(1).max(1) })
    }
}

/// Checks how a backup is named, and gives a time in it the form that the wire wants:
/// an id or prefix, `latest:AGENT/SOURCE`, or `AGENT/SOURCE@TIME`.
pub fn backup_name(text: &str) -> Result<String, String> {
    let bad = || {
        format!(
            "{text:?} names no backup: write an id or its beginning, latest:AGENT/SOURCE, or AGENT/SOURCE@TIME"
        )
    };
    let source = |text: &str| text.parse::<sealift_common::name::SourceRef>().map_err(|_| bad());
    if let Some(latest) = text.strip_prefix("latest:") {
        return source(latest).map(|source| format!("latest:{source}"));
    }
    if let Some((of, at)) = text.split_once('@') {
        let moment = parse_moment(at)?;
        return source(of).map(|source| format!("{source}@{}", moment.rfc3339()));
    }
    let plain =
        !text.is_empty() && text.len() <= 36 && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
    if plain { Ok(text.to_ascii_lowercase()) } else { Err(bad()) }
}

/// An error for a restore that nothing pins: said once, clearly.
pub fn warn_unpinned(ui: &Ui) {
    ui.warn(
        "no root key is pinned: whoever controls the bucket or the coordinator could have made this backup; \
         --root-key-sha256 HEX checks (it is printed by `sealift keys generate --kind root` and `sealift token create`)",
    );
}

/// The error for `--root-threshold` beyond the number of pins.
pub fn check_threshold(pin: &RootPin) -> Result<()> {
    if pin.threshold as usize > pin.fingerprints.len() && !pin.fingerprints.is_empty() {
        return Err(Error::usage(format!(
            "{} signatures are asked for, but only {} root keys are pinned",
            pin.threshold,
            pin.fingerprints.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_named_in_three_ways() {
        for (text, sent) in [
            ("0190C5E1", "0190c5e1"),
            ("latest:store-1/main-db", "latest:store-1/main-db"),
            ("store-1/main-db@2026-11-22T03:00:00+01:00", "store-1/main-db@2026-11-22T02:00:00.000Z"),
        ] {
            assert_eq!(backup_name(text).as_deref(), Ok(sent));
        }
        for bad in
            ["", "store-1/main-db", "latest:store-1", "../x@2026-11-22", "a/b@noon", "xyz", "0190c5e1/.."]
        {
            assert!(backup_name(bad).is_err(), "{bad}");
        }
    }
}
