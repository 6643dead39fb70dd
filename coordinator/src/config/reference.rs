//! Secrets by reference: `${VAR}`, `file:/path`, `credential:name` (systemd). The configuration itself never holds one.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sealift_common::secret::Secret;

use super::ConfigError;

/// Longest secret, in bytes: a PEM key and more.
const MAX_SECRET: u64 = 64 * 1024;

/// The value that `text` refers to; one line break at its end is not part of it.
///
/// # Errors
/// [`ConfigError::Secret`], which never shows the secret.
pub fn resolve(key: &'static str, text: &str) -> Result<Secret<String>, ConfigError> {
    let fail = |problem: String| ConfigError::Secret { key, problem };
    let value = if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
        std::env::var(name).map_err(|_| fail(format!("the environment variable {name} is not set")))?
    } else if let Some(path) = text.strip_prefix("file:") {
        read(Path::new(path), true).map_err(fail)?
    } else if let Some(name) = text.strip_prefix("credential:") {
        read(&credential(name).map_err(fail)?, false).map_err(fail)?
    } else {
        let problem = "a secret is not written into the configuration: refer to it as ${VAR}, file:/path or credential:name";
        return Err(fail(problem.to_owned()));
    };
    let value = zeroize::Zeroizing::new(value);
    match value.strip_suffix('\n').unwrap_or(&value) {
        "" => Err(fail(format!("{text} is empty"))),
        value => Ok(Secret::new(value.to_owned())),
    }
}

fn credential(name: &str) -> Result<PathBuf, String> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(format!("{name:?} is not the name of a systemd credential"));
    }
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        format!("credential:{name}: there are no credentials (LoadCredential= in the systemd unit)")
    })?;
    Ok(Path::new(&dir).join(name))
}

fn read(path: &Path, must_be_private: bool) -> Result<String, String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let mode = metadata.permissions().mode() & 0o777;
    if must_be_private && mode & 0o037 != 0 {
        return Err(format!("{shown} has mode {mode:04o}: others may read it; run `chmod 0600 {shown}`"));
    }
    if metadata.len() > MAX_SECRET {
        return Err(format!("{shown} is larger than {MAX_SECRET} bytes: that is no secret"));
    }
    std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_the_configuration_is_refused_without_being_shown() {
        let error = resolve("storage.secret_access_key", "hunter2").unwrap_err().to_string();
        assert!(error.contains("storage.secret_access_key") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_secret_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "hunter2\n").unwrap();
        let reference = format!("file:{}", path.display());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = resolve("k", &reference).unwrap_err().to_string();
        assert!(error.contains("0644") && error.contains("chmod"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(resolve("k", &reference).unwrap().expose(), "hunter2");
        assert!(resolve("k", "${SEALIFT_SURELY_NOT_SET}").is_err());
        assert!(resolve("k", "credential:../x").is_err());
    }
}
