//! How objects are fetched: with the private CA of `AWS_CA_BUNDLE`, and, for a gateway that demands one, the client certificate
//! of `SEALIFT_S3_CLIENT_CERTIFICATE` and `SEALIFT_S3_CLIENT_KEY`.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::error::{Error, Exit, Result, because};

const CERTIFICATE: &str = "SEALIFT_S3_CLIENT_CERTIFICATE";
const KEY: &str = "SEALIFT_S3_CLIENT_KEY";
/// What to do where certificates are in the way.
pub const ABOUT_CERTIFICATES: &str = "set AWS_CA_BUNDLE to the store's CA, and where it demands a client certificate, SEALIFT_S3_CLIENT_CERTIFICATE and SEALIFT_S3_CLIENT_KEY";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte for so long, a GET has failed.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|path| !path.is_empty())
}

fn read(name: &str, path: &OsString) -> Result<Vec<u8>> {
    let problem = format!("cannot read {name} {}", Path::new(path).display());
    std::fs::read(path).map_err(because(Exit::Usage, problem))
}

/// The certificates of `AWS_CA_BUNDLE`, as every AWS tool reads it.
///
/// # Errors
/// Exit code 2 where the file cannot be read.
pub fn ca_bundle() -> Result<Option<Vec<u8>>> {
    variable("AWS_CA_BUNDLE").map(|path| read("AWS_CA_BUNDLE", &path)).transpose()
}

/// The certificate that is shown to the store, where one is named.
///
/// # Errors
/// Exit code 2 where it cannot be used, or only half of it is named.
pub fn client_identity() -> Result<Option<reqwest::Identity>> {
    let (certificate, key) = match (variable(CERTIFICATE), variable(KEY)) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => return Err(Error::usage(format!("{CERTIFICATE} needs its key: set {KEY} too"))),
        (None, Some(_)) => {
            return Err(Error::usage(format!("{KEY} needs its certificate: set {CERTIFICATE} too")));
        }
    };
    let mut pem = Zeroizing::new(read(CERTIFICATE, &certificate)?);
    pem.push(b'\n');
    pem.extend_from_slice(&Zeroizing::new(read(KEY, &key)?));
    let problem = format!("{CERTIFICATE} and {KEY} are not a PEM certificate and its key");
    reqwest::Identity::from_pem(&pem).map(Some).map_err(because(Exit::Usage, problem))
}

/// An HTTP client for objects.
///
/// # Errors
/// Exit code 2 where `AWS_CA_BUNDLE` or the identity cannot be used.
pub fn client(identity: Option<reqwest::Identity>) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .http1_only();
    if let Some(bundle) = ca_bundle()? {
        let certificates = reqwest::Certificate::from_pem_bundle(&bundle)
            .map_err(because(Exit::Usage, "AWS_CA_BUNDLE holds no certificates"))?;
        builder = builder.tls_certs_merge(certificates);
    }
    let shows_one = identity.is_some();
    if let Some(identity) = identity {
        builder = builder.identity(identity);
    }
    let problem = if shows_one {
        format!("{CERTIFICATE} and {KEY} cannot be used: do they belong together?")
    } else {
        "cannot make an HTTP client".to_owned()
    };
    builder.build().map_err(because(if shows_one { Exit::Usage } else { Exit::Failed }, problem))
}
