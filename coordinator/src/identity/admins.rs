//! Certificates of admins, for whoever administers the machine that the coordinator runs on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::FutureExt as _;
use rustls_pki_types::PrivateKeyDer;
use sealift_common::clock::UnixMillis;
use sealift_common::name::Name;
use sealift_common::tls;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ca::{Ca, CaError};
use super::files;
use super::peer::{ClientCertificate, Subject};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::core::Core;
use crate::store::StoreError;

/// How long an admin's certificate is good.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3_600);
/// One that is good for less than this is replaced.
const SPARE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Why an admin's files were not written.
#[derive(Debug, thiserror::Error)]
pub enum AdminFilesError {
    /// The certificate.
    #[error("cannot issue the admin's certificate")]
    Ca(#[from] CaError),
    /// The audit.
    #[error("cannot record that an admin's certificate is issued, so it was not")]
    Store(#[from] StoreError),
    /// One of the files.
    #[error("cannot write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Writes `admin.pem` and `admin.key` (0600) into `dir`. What is there stays, unless it is someone else's, of another CA,
/// about to expire, or is to be replaced.
///
/// # Errors
/// [`AdminFilesError`].
pub async fn write(
    core: &Core,
    ca: &Ca,
    name: &Name,
    dir: &Path,
    replace: bool,
) -> Result<(), AdminFilesError> {
    let subject = Subject::Admin(name.clone());
    let paths = (dir.join("admin.pem"), dir.join("admin.key"));
    if !replace && paths.1.exists() && is_good(&paths.0, ca, &subject, core.clock.now()) {
        return Ok(());
    }
    let (issued, identity) = ca.issue_admin(&subject, LIFE)?;
    let ctx = &OpContext::coordinator(core);
    let (entity, said) = (format!("admin:{name}"), Details::none().with("serial", issued.serial.as_str()));
    // Recorded before it exists: a certificate nobody knows of would be worse than a record of none.
    core.store
        .run_tx("issue an admin's certificate", |tx, _| {
            let (entity, said) = (entity.clone(), said.clone());
            async move {
                ctx.record(tx, Action::AdminIssue, &entity, Outcome::Intended, Details::none()).await?;
                ctx.record(tx, Action::AdminIssue, &entity, Outcome::Done, said).await?;
                Ok::<_, StoreError>(())
            }
            .boxed()
        })
        .await?;
    let chain: String = identity.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    let key = match &identity.key {
        PrivateKeyDer::Pkcs8(key) => pem("PRIVATE KEY", key.secret_pkcs8_der()),
        other => pem("PRIVATE KEY", other.secret_der()),
    };
    let write = |path: &Path, text: &str| {
        files::write_whole(path, text.as_bytes(), 0o600)
            .map_err(|source| AdminFilesError::File { path: path.to_owned(), source })
    };
    write(&paths.1, &zeroize::Zeroizing::new(key))?;
    write(&paths.0, &chain)
}

fn is_good(path: &Path, ca: &Ca, subject: &Subject, now: UnixMillis) -> bool {
    let Ok(chain) = tls::certificates_from_file(path) else { return false };
    let (Some(leaf), true) = (chain.first(), chain.contains(ca.certificate())) else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return false };
    let not_after = UnixMillis(parsed.validity().not_after.timestamp().saturating_mul(1_000));
    let whose = ClientCertificate::read(leaf, ca.domain());
    whose.is_ok_and(|certificate| certificate.subject == *subject) && not_after > now.plus(SPARE)
}

/// PEM by RFC 7468: 64 characters a line.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<String> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
