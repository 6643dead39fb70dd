//! Key files on an admin's machine: root keys and age identities, with or without a passphrase.
//!
//! A root key file is one line, `SEALIFT-ROOT-KEY-1:<base64 of the 32-byte seed>`. An identity file is what `age-keygen`
//! writes. Either may be wrapped in an age file under a passphrase, armored or not: stock `age -d` opens it.

use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::secrecy::{ExposeSecret, SecretString};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::sign::SigningKey;
use super::slots::Recipient;
use crate::clock::UnixMillis;
use crate::secret::Secret;

const ROOT_KEY_TAG: &str = "SEALIFT-ROOT-KEY-1:";
const MAX_KEY_FILE: u64 = 1024 * 1024;
/// scrypt's N is 2^18, as stock age has it: about a second.
const WORK_FACTOR: u8 = 18;
/// The most work a file may ask of whoever opens it: about 16 seconds.
const MAX_WORK_FACTOR: u8 = 22;

/// A key file that could not be read, opened or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read the key file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written. An existing file is never overwritten.
    #[error("cannot write the key file {} (an existing file is never overwritten)", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file asks for a passphrase, and none was given.
    #[error("{} is protected by a passphrase, and none could be asked for", path.display())]
    NoPassphrase {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The passphrase is not the file's.
    #[error("the passphrase does not open {}", path.display())]
    WrongPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// An age file that is damaged, or not protected by a passphrase.
    #[error("{} is not a key file protected by a passphrase, or is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Something else than a root key.
    #[error("{} is not a root key file: expected one line {ROOT_KEY_TAG}…, as `sealift keys generate --kind root` writes it", path.display())]
    NotARootKey {
        /// The file.
        path: PathBuf,
    },
    /// Something else than an identity file. The line itself is not shown: it may be a key.
    #[error("{} is not an identity file: line {line} is not an AGE-SECRET-KEY-1…", path.display())]
    NotAnIdentity {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// An identity file without an identity.
    #[error("{} holds no identity", path.display())]
    NoIdentity {
        /// The file.
        path: PathBuf,
    },
}

/// The text of a root key file.
pub fn root_key_text(key: &SigningKey) -> Secret<String> {
    Secret::new(format!("{ROOT_KEY_TAG}{}\n", STANDARD.encode(key.seed().expose())))
}

/// Reads a root key file; `prompt` is asked for the passphrase only where the file has one.
///
/// # Errors
/// [`KeyFileError`], each naming the file.
pub fn load_root_key(
    path: &Path,
    prompt: impl FnOnce() -> io::Result<Secret<String>>,
) -> Result<SigningKey, KeyFileError> {
    let text = read_key_text(path, prompt)?;
    let seed =
        text.expose().trim().strip_prefix(ROOT_KEY_TAG).and_then(|base64| STANDARD.decode(base64).ok());
    let seed = seed.map(Secret::new).and_then(|seed| <[u8; 32]>::try_from(seed.expose().as_slice()).ok());
    seed.map(SigningKey::from_seed).ok_or_else(|| KeyFileError::NotARootKey { path: path.to_owned() })
}

/// Private keys of recipients: what opens key slots.
pub struct Identities(Vec<age::x25519::Identity>);

impl Identities {
    /// Reads an identity file; `prompt` is asked for the passphrase only where the file has one.
    ///
    /// # Errors
    /// [`KeyFileError`], each naming the file.
    pub fn load(
        path: &Path,
        prompt: impl FnOnce() -> io::Result<Secret<String>>,
    ) -> Result<Self, KeyFileError> {
        Self::parse(path, read_key_text(path, prompt)?.expose())
    }

    /// Parses the text of an identity file; `path` is for the errors.
    ///
    /// # Errors
    /// [`KeyFileError::NotAnIdentity`] and [`KeyFileError::NoIdentity`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, KeyFileError> {
        let mut identities = Vec::new();
        for (at, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let identity = age::x25519::Identity::from_str(line)
                .map_err(|_| KeyFileError::NotAnIdentity { path: path.to_owned(), line: at + 1 })?;
            identities.push(identity);
        }
        if identities.is_empty() {
            return Err(KeyFileError::NoIdentity { path: path.to_owned() });
        }
        Ok(Self(identities))
    }

    /// These identities and those of `other`.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// The recipients that these identities are the private half of.
    pub fn recipients(&self) -> Vec<Recipient> {
        self.0.iter().map(|identity| Recipient::of(&identity.to_public())).collect()
    }

    /// In the shape that the age crate takes them.
    pub(super) fn as_age(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|identity| identity as &dyn age::Identity)
    }
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identities").field(&self.recipients()).finish()
    }
}

/// A fresh identity: the text of its file, as `age-keygen` writes it, and its recipient.
pub fn generate_identity(created: UnixMillis) -> (Secret<String>, Recipient) {
    let identity = age::x25519::Identity::generate();
    let recipient = Recipient::of(&identity.to_public());
    let secret = identity.to_string();
    let text = format!("# created: {created}\n# public key: {recipient}\n{}\n", secret.expose_secret());
    (Secret::new(text), recipient)
}

/// Wraps the text of a key file in an armored age file under `passphrase`.
///
/// # Panics
/// Never: nothing is written but memory.
#[allow(clippy::expect_used)]
pub fn protect(text: &Secret<String>, passphrase: &Secret<String>) -> Vec<u8> {
    let mut recipient = age::scrypt::Recipient::new(SecretString::from(passphrase.expose().clone()));
    recipient.set_work_factor(WORK_FACTOR);
    let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
        .expect("one recipient");
    let write = || -> io::Result<Vec<u8>> {
        let armored = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
        let mut writer = encryptor.wrap_output(armored)?;
        writer.write_all(text.expose().as_bytes())?;
        writer.finish()?.finish()
    };
    write().expect("writing to memory does not fail")
}

/// Writes a key file that only its owner may read, durably. An existing file is never overwritten.
///
/// # Errors
/// [`KeyFileError::Write`].
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), KeyFileError> {
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| KeyFileError::Write { path: path.to_owned(), source })
}

fn read_key_text(
    path: &Path,
    prompt: impl FnOnce() -> io::Result<Secret<String>>,
) -> Result<Secret<String>, KeyFileError> {
    let read = |source| KeyFileError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_KEY_FILE).read_to_end(&mut bytes))
        .map_err(read)?;
    let bytes = Secret::new(bytes);
    let plain = if is_age_file(bytes.expose()) {
        let passphrase =
            prompt().map_err(|source| KeyFileError::NoPassphrase { path: path.to_owned(), source })?;
        unprotect(path, bytes.expose(), &passphrase)?
    } else {
        bytes
    };
    let text = std::str::from_utf8(plain.expose()).map(str::to_owned);
    text.map(Secret::new).map_err(|e| read(io::Error::new(io::ErrorKind::InvalidData, e)))
}

fn is_age_file(bytes: &[u8]) -> bool {
    bytes.starts_with(b"age-encryption.org/v1")
        || bytes.trim_ascii_start().starts_with(b"-----BEGIN AGE ENCRYPTED FILE")
}

fn unprotect(
    path: &Path,
    bytes: &[u8],
    passphrase: &Secret<String>,
) -> Result<Secret<Vec<u8>>, KeyFileError> {
    let damaged = || KeyFileError::Damaged { path: path.to_owned() };
    let decryptor =
        age::Decryptor::new(ArmoredReader::new(bytes.trim_ascii_start())).map_err(|_| damaged())?;
    if !decryptor.is_scrypt() {
        return Err(damaged());
    }
    let mut identity = age::scrypt::Identity::new(SecretString::from(passphrase.expose().clone()));
    identity.set_max_work_factor(MAX_WORK_FACTOR);
    let reader = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity));
    let mut plain = Vec::new();
    reader
        .map_err(|error| match error {
            age::DecryptError::DecryptionFailed
            | age::DecryptError::KeyDecryptionFailed
            | age::DecryptError::NoMatchingKeys => KeyFileError::WrongPassphrase { path: path.to_owned() },
            _ => damaged(),
        })?
        .take(MAX_KEY_FILE)
        .read_to_end(&mut plain)
        .map_err(|_| damaged())?;
    Ok(Secret::new(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Random;

    fn no_prompt() -> io::Result<Secret<String>> {
        Err(io::Error::other("not a terminal"))
    }

    #[test]
    fn a_root_key_survives_its_file_with_and_without_passphrase() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate(&Random::from_seed(1));
        let (plain, locked) = (dir.path().join("root.key"), dir.path().join("locked.key"));
        write_new(&plain, root_key_text(&key).expose().as_bytes()).unwrap();
        assert_eq!(load_root_key(&plain, no_prompt).unwrap().verifying_key(), key.verifying_key());
        assert!(matches!(write_new(&plain, b"x"), Err(KeyFileError::Write { .. })));

        let passphrase = Secret::new("correct horse".to_owned());
        write_new(&locked, &protect(&root_key_text(&key), &passphrase)).unwrap();
        let opened = load_root_key(&locked, || Ok(passphrase.clone())).unwrap();
        assert_eq!(opened.verifying_key(), key.verifying_key());
        assert!(matches!(load_root_key(&locked, no_prompt), Err(KeyFileError::NoPassphrase { .. })));
        let wrong = load_root_key(&locked, || Ok(Secret::new("battery staple".to_owned())));
        assert!(matches!(wrong, Err(KeyFileError::WrongPassphrase { .. })), "{wrong:?}");
    }

    #[test]
    fn key_files_are_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_new(&path, b"x").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_no_key_says_so_without_showing_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "hunter2\n").unwrap();
        let error = load_root_key(&path, no_prompt).unwrap_err();
        assert!(matches!(error, KeyFileError::NotARootKey { .. }));
        assert!(!error.to_string().contains("hunter2"));
        let error = Identities::load(&path, no_prompt).unwrap_err();
        assert!(matches!(error, KeyFileError::NotAnIdentity { line: 1, .. }));
        assert!(!error.to_string().contains("hunter2"));
        std::fs::write(&path, "# nothing here\n").unwrap();
        assert!(matches!(Identities::load(&path, no_prompt), Err(KeyFileError::NoIdentity { .. })));
    }

    #[test]
    fn a_generated_identity_reads_back_as_its_recipient() {
        let (text, recipient) = generate_identity(UnixMillis(0));
        assert!(text.expose().starts_with("# created: 1970-01-01T00:00:00.000Z\n# public key: age1"));
        let identities = Identities::parse(Path::new("key.txt"), text.expose()).unwrap();
        assert_eq!(identities.recipients(), [recipient]);
        assert!(!format!("{identities:?}").contains("SECRET"));
    }
}
