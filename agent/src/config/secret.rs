//! References to secrets, and where secrets come from.
//!
//! A configuration names a secret, it does not hold it: `${VAR}` (environment), `file:/path` (read anew for each run, so
//! that a password can be rotated without a restart) or `credential:name` (systemd's `LoadCredential=`). A literal is
//! taken too, if nobody but the owner may read the file. Audit sees the [origin](SecretRef::origin), never the value.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sealift_common::secret::Secret;
use serde::Deserialize;

use super::error::ConfigError;
use super::values::AbsolutePath;

/// Longest secret, in bytes.
const MAX_SECRET: u64 = 64 * 1024;

/// Environment variables as an argument: production takes [`Environment::of_process`], tests name what they need.
#[derive(Debug, Clone)]
pub struct Environment(Variables);

#[derive(Debug, Clone)]
enum Variables {
    Process,
    Fixed(BTreeMap<String, Secret<String>>),
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        Self(Variables::Process)
    }

    /// Exactly these variables.
    pub fn fixed<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), Secret::new(value.to_owned()));
        Self(Variables::Fixed(variables.into_iter().map(own).collect()))
    }

    /// The value of `name`, where it is set and UTF-8.
    pub fn get(&self, name: &str) -> Option<Secret<String>> {
        match &self.0 {
            Variables::Process => std::env::var(name).ok().map(Secret::new),
            Variables::Fixed(variables) => variables.get(name).cloned(),
        }
    }
}

/// Where a secret is to be found.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub enum SecretRef {
    /// An environment variable.
    Variable(String),
    /// A file that only its owner may read.
    File(AbsolutePath),
    /// A systemd credential.
    Credential(String),
    /// The value itself, in the configuration.
    Literal(Secret<String>),
}

impl TryFrom<String> for SecretRef {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file:") {
            return AbsolutePath::try_from(path.to_owned()).map(Self::File);
        }
        if let Some(name) = text.strip_prefix("credential:") {
            let fits = !name.is_empty() && name.len() <= 255 && !name.contains('/') && !name.starts_with('.');
            return if fits {
                Ok(Self::Credential(name.to_owned()))
            } else {
                Err(format!("{name:?} is not the name of a systemd credential"))
            };
        }
        if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
            return variable_name(name).map(|name| Self::Variable(name.to_owned()));
        }
        if text.contains("${") {
            return Err("a secret is one ${VARIABLE} as a whole, not part of a longer text".to_owned());
        }
        if text.is_empty() {
            return Err("a secret cannot be empty: leave the key out".to_owned());
        }
        Ok(Self::Literal(Secret::new(text)))
    }
}

/// Checks the name of an environment variable.
pub(super) fn variable_name(name: &str) -> Result<&str, String> {
    let fits = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        && name.bytes().next().is_some_and(|c| !c.is_ascii_digit())
        && name.len() <= 255;
    if fits { Ok(name) } else { Err(format!("{name:?} is not the name of an environment variable")) }
}

impl SecretRef {
    /// Where it comes from, as audit and `check` show it.
    pub fn origin(&self) -> String {
        match self {
            Self::Variable(name) => format!("env:{name}"),
            Self::File(path) => format!("file:{}", path.as_path().display()),
            Self::Credential(name) => format!("credential:{name}"),
            Self::Literal(_) => "config".to_owned(),
        }
    }

    /// Whether the value stands in the configuration itself.
    pub fn is_literal(&self) -> bool {
        matches!(self, Self::Literal(_))
    }

    /// The value as it is now; one line break at its end is not part of it.
    ///
    /// # Errors
    /// [`ConfigError::Secret`] where it is not there, empty, too long, not UTF-8, or readable by others.
    pub fn resolve(&self, environment: &Environment) -> Result<Secret<String>, ConfigError> {
        let fail = |problem: String| ConfigError::Secret { origin: self.origin(), problem };
        let value = match self {
            Self::Literal(value) => value.clone(),
            Self::Variable(name) => environment.get(name).ok_or_else(|| {
                fail("the variable is not set: set it for the service, or name a file".to_owned())
            })?,
            Self::File(path) => read_secret(path.as_path(), true).map_err(fail)?,
            Self::Credential(name) => {
                let directory = environment.get("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    fail("systemd gave no credentials: add LoadCredential= to the unit".to_owned())
                })?;
                read_secret(&PathBuf::from(directory.expose()).join(name), false).map_err(fail)?
            }
        };
        if value.expose().is_empty() {
            return Err(fail("it is empty".to_owned()));
        }
        if value.expose().contains(['\0', '\n']) {
            return Err(fail("it must be a single line".to_owned()));
        }
        Ok(value)
    }
}

/// Refuses a file with credentials that group or others may read.
///
/// # Errors
/// [`ConfigError::Secret`] where they may, or where the file is not there.
pub fn require_private(path: &Path) -> Result<(), ConfigError> {
    let fail = |problem| ConfigError::Secret { origin: format!("file:{}", path.display()), problem };
    let metadata = path.metadata().map_err(|e| fail(format!("cannot look at it: {e}")))?;
    check_private(path, metadata.mode()).map_err(fail)
}

fn check_private(path: &Path, mode: u32) -> Result<(), String> {
    let mode = mode & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!("others may read it (mode {mode:04o}): run `chmod 0600 {}`", path.display()));
    }
    Ok(())
}

/// Reads a secret; `private`: refuses what group or others may read (systemd guards its credentials itself).
fn read_secret(path: &Path, private: bool) -> Result<Secret<String>, String> {
    let file = File::open(path).map_err(|e| format!("cannot open {}: {e}", path.display()))?;
    let metadata = file.metadata().map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    if !metadata.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    if private {
        check_private(path, metadata.mode())?;
    }
    if metadata.len() > MAX_SECRET {
        return Err(format!("{} is longer than {MAX_SECRET} bytes", path.display()));
    }
    let mut text = String::new();
    let read = file.take(MAX_SECRET).read_to_string(&mut text);
    let text = Secret::new(text);
    read.map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let trimmed = text.expose().strip_suffix('\n').unwrap_or(text.expose());
    Ok(Secret::new(trimmed.strip_suffix('\r').unwrap_or(trimmed).to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn parse(text: &str) -> Result<SecretRef, String> {
        SecretRef::try_from(text.to_owned())
    }

    #[test]
    fn each_origin_is_read_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pw");
        fs::write(&path, "from file\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let environment =
            Environment::fixed([("PW", "from env"), ("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap())]);
        let file = format!("file:{}", path.display());
        for (text, value, origin) in [
            ("${PW}", "from env", "env:PW"),
            (file.as_str(), "from file", file.as_str()),
            ("credential:pw", "from file", "credential:pw"),
            ("plain", "plain", "config"),
        ] {
            let reference = parse(text).unwrap();
            assert_eq!(reference.resolve(&environment).unwrap().expose(), value);
            assert_eq!(reference.origin(), origin);
            assert!(!format!("{reference:?}").contains("plain"));
        }
    }

    #[test]
    fn what_others_may_read_is_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pw");
        fs::write(&path, "hunter2").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error =
            parse(&format!("file:{}", path.display())).unwrap().resolve(&Environment::fixed([])).unwrap_err();
        assert!(error.to_string().contains("chmod 0600"), "{error}");
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn references_that_lead_nowhere_are_refused() {
        for bad in [
            "",
            "${",
            "pre${X}",
            "${1X}",
            "${A B}",
            "file:rel",
            "file:/a/../b",
            "credential:../x",
            "credential:",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("${MISSING}").unwrap().resolve(&Environment::fixed([])).is_err());
        assert!(parse("credential:x").unwrap().resolve(&Environment::fixed([])).is_err());
    }
}
