//! The CA's files, as the coordinator's backup carries them, and how they are put back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::RecoveryError;
use crate::identity::ca::STATEMENT;
use crate::identity::files;

/// What belongs to the CA.
pub const FILES: &[&str] = &["ca.key", "ca.pem"];
/// The same, and what belongs to it where it took the place of a lost one.
pub const ALL_FILES: &[&str] = &["ca.key", "ca.pem", STATEMENT];

/// What putting the CA back did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutBack {
    /// It was there.
    Same,
    /// It was missing.
    Written,
    /// Another one was there, and lies now under this name.
    Replaced(PathBuf),
}

/// Writes the CA of a backup into `dir`; another one that is there is set aside, never lost. `stamp` names it.
///
/// # Errors
/// [`RecoveryError::File`]; [`RecoveryError::Content`] for a backup without a CA.
pub fn put_back(dir: &Path, json: &[u8], stamp: &str) -> Result<PutBack, RecoveryError> {
    let files: BTreeMap<String, zeroize::Zeroizing<String>> =
        serde_json::from_slice::<BTreeMap<String, String>>(json)
            .map_err(|_| RecoveryError::Content("its CA is not what this program writes".to_owned()))?
            .into_iter()
            .map(|(name, text)| (name, zeroize::Zeroizing::new(text)))
            .collect();
    if FILES.iter().any(|name| !files.contains_key(*name)) {
        return Err(RecoveryError::Content("it has no CA in it".to_owned()));
    }
    let there = |name: &&&str| std::fs::read_to_string(dir.join(name)).ok();
    let differs =
        ALL_FILES.iter().any(|name| there(&name).as_deref() != files.get(*name).map(|text| text.as_str()));
    if !differs {
        return Ok(PutBack::Same);
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RecoveryError::File { path, source }
    };
    files::make_private_dir(dir).map_err(failed(dir))?;
    let mut outcome = PutBack::Written;
    if ALL_FILES.iter().any(|name| dir.join(name).exists()) {
        let aside = dir.join(format!("set-aside-{stamp}"));
        files::make_private_dir(&aside).map_err(failed(&aside))?;
        for name in ALL_FILES.iter().filter(|name| dir.join(name).exists()) {
            std::fs::rename(dir.join(name), aside.join(name)).map_err(failed(&dir.join(name)))?;
        }
        outcome = PutBack::Replaced(aside);
    }
    for name in ALL_FILES {
        let Some(text) = files.get(*name) else { continue };
        let mode = if name.ends_with(".key") { 0o600 } else { 0o644 };
        let path = dir.join(name);
        files::write_whole(&path, text.as_bytes(), mode).map_err(failed(&path))?;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_ca_is_set_aside_and_the_same_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("ca");
        let json = br#"{"ca.key":"key","ca.pem":"pem"}"#;
        assert_eq!(put_back(&dir, json, "1").unwrap(), PutBack::Written);
        assert_eq!(put_back(&dir, json, "2").unwrap(), PutBack::Same);
        let other = br#"{"ca.key":"other","ca.pem":"pem","ca.statement":"said"}"#;
        assert_eq!(put_back(&dir, other, "3").unwrap(), PutBack::Replaced(dir.join("set-aside-3")));
        assert_eq!(std::fs::read_to_string(dir.join("ca.statement")).unwrap(), "said");
        assert_eq!(put_back(&dir, other, "4").unwrap(), PutBack::Same);
        assert_eq!(std::fs::read_to_string(dir.join("set-aside-3/ca.key")).unwrap(), "key");
        assert_eq!(std::fs::read_to_string(dir.join("ca.key")).unwrap(), "other");
        assert!(put_back(&dir, b"{}", "4").is_err() && put_back(&dir, b"x", "4").is_err());
    }
}
