//! A local S3 server in this process, for `sealift-coordinator dev`: s3s and s3s-fs behind a loopback listener, with
//! credentials of its own.
//!
//! On top of what they do: a request with an `x-amz-*` header that is not signed is refused, as AWS does (s3s-fs would
//! honour it); and the put-only credential can do nothing but put series objects. Objects are written to a temporary file
//! and renamed once their hash was verified, so that a crash leaves a whole object or none.
//!
//! The server's directory holds one directory per bucket, and s3s-fs's notes on objects beside them. The notes' file names
//! carry the base64 of bucket and key and must fit in 255 bytes, so bucket and prefix are fixed here.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::path::S3Path;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};
use sealift_common::id::Random;
use sealift_common::lifecycle::Lifecycle;
use sealift_common::secret::Secret;
use tokio::net::{TcpListener, TcpStream};

use super::embedded_files::Files;
use super::settings::{
    BucketName, Credentials, Endpoint, InvalidSetting, Prefix, ServerSideEncryption, StorageSettings,
};

/// The bucket of the embedded server.
const BUCKET: &str = "sealift";
/// The region it answers for.
const REGION: &str = "us-east-1";
/// What the put-only credential may put.
const PUT_ONLY_BELOW: &str = "series/";

/// The embedded server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// It would be reachable from elsewhere, unencrypted.
    #[error("the embedded S3 server listens on this machine only: {0} is not a loopback address")]
    NotLoopback(SocketAddr),
    /// A file or directory.
    #[error("cannot {operation} {path} for the embedded S3 server")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The port.
    #[error("cannot listen on {addr} for the embedded S3 server")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file with its access keys is not what this program wrote.
    #[error("{0} does not hold the embedded S3 server's access keys; remove it to have new ones made")]
    Keys(PathBuf),
    /// s3s-fs does not take the directory.
    #[error("cannot serve {path} over S3")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The settings to reach it do not parse.
    #[error("the embedded S3 server's own settings are wrong")]
    Settings(#[source] InvalidSetting),
}

/// Starts the server below `data_dir` (`s3/` and `s3.env`) and returns how to reach it. It ends with `lifecycle`.
///
/// `s3.env` holds the access keys as shell assignments, for `sealift restore --offline`.
///
/// # Errors
/// [`EmbeddedError`], naming what to do about it.
pub async fn start(
    data_dir: &Path,
    listen: SocketAddr,
    random: &Random,
    lifecycle: &Lifecycle,
) -> Result<StorageSettings, EmbeddedError> {
    if !listen.ip().is_loopback() {
        return Err(EmbeddedError::NotLoopback(listen));
    }
    let root = data_dir.join("s3");
    make_private_dir(&root.join(BUCKET))?;
    let keys = AccessKeys::load_or_create(&data_dir.join("s3.env"), random)?;
    let service = service(&root, &keys)?;
    let listener =
        TcpListener::bind(listen).await.map_err(|source| EmbeddedError::Listen { addr: listen, source })?;
    let addr = listener.local_addr().map_err(|source| EmbeddedError::Listen { addr: listen, source })?;
    // Not tracked: it ends after all that is.
    tokio::spawn(accept(listener, service, lifecycle.clone()));
    settings(addr, keys).map_err(EmbeddedError::Settings)
}

/// The address `dev` listens on unless told otherwise.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7445);

fn settings(addr: SocketAddr, keys: AccessKeys) -> Result<StorageSettings, InvalidSetting> {
    Ok(StorageSettings {
        endpoint: Some(Endpoint::parse(&format!("http://{addr}"), false)?),
        region: REGION.to_owned(),
        bucket: BUCKET.parse::<BucketName>()?,
        prefix: Prefix::default(),
        path_style: true,
        credentials: keys.full,
        put_only: Some(keys.put_only),
        encryption: ServerSideEncryption::BucketDefault,
        object_lock: None,
        ca_pem: None,
        client_identity_pem: None,
    })
}

fn service(root: &Path, keys: &AccessKeys) -> Result<S3Service, EmbeddedError> {
    let files =
        Files::new(root).map_err(|source| EmbeddedError::Directory { path: root.to_owned(), source })?;
    let mut auth = SimpleAuth::new();
    for key in [&keys.full, &keys.put_only] {
        auth.register(key.access_key_id.clone(), key.secret_access_key.expose().clone().into());
    }
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(auth);
    builder.set_access(Access { put_only: keys.put_only.access_key_id.clone() });
    Ok(builder.build())
}

/// Takes connections until everything else has stopped: what stops may have a last word to store.
async fn accept(listener: TcpListener, service: S3Service, lifecycle: Lifecycle) {
    loop {
        let accepted = tokio::select! {
            () = ended(&lifecycle) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) if lifecycle.soft.is_cancelled() => {
                tokio::spawn(serve_last(socket, service.clone(), lifecycle.clone()));
            }
            Ok((socket, _)) => {
                lifecycle.tracker.spawn(serve(socket, service.clone(), lifecycle.clone()));
            }
            Err(error) => {
                // Out of file descriptors, mostly: others have to finish first.
                tracing::warn!(%error, "the embedded S3 server cannot take a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Every tracked task has ended, or must.
async fn ended(lifecycle: &Lifecycle) {
    tokio::select! { () = lifecycle.tracker.wait() => {}, () = lifecycle.hard.cancelled() => {} }
}

/// A connection that came during the stop: nobody waits for it.
async fn serve_last(socket: TcpStream, service: S3Service, lifecycle: Lifecycle) {
    let builder = Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    tokio::select! { _ = connection => {}, () = ended(&lifecycle) => {} }
}

async fn serve(socket: TcpStream, service: S3Service, lifecycle: Lifecycle) {
    let _ = socket.set_nodelay(true);
    let builder = Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = lifecycle.soft.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! { _ = connection => {}, () = lifecycle.hard.cancelled() => {} }
}

/// Who may do what, checked after the signature.
struct Access {
    put_only: String,
}

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(who) = cx.credentials() else { return Err(s3_error!(AccessDenied)) };
        let signed = signed_headers(cx.headers(), cx.uri());
        let unsigned =
            cx.headers().keys().map(http::HeaderName::as_str).find(|name| {
                name.starts_with("x-amz-") && signed.iter().all(|s| !s.eq_ignore_ascii_case(name))
            });
        if unsigned.is_some() {
            return Err(s3_error!(
                AccessDenied,
                "There were headers present in the request which were not signed"
            ));
        }
        if who.access_key == self.put_only && !puts_series_object(cx) {
            return Err(s3_error!(AccessDenied));
        }
        Ok(())
    }
}

fn puts_series_object(cx: &S3AccessContext<'_>) -> bool {
    let below = matches!(cx.s3_path(), S3Path::Object { key, .. } if key.starts_with(PUT_ONLY_BELOW));
    cx.s3_op().name() == "PutObject" && below
}

/// The headers that a request's signature covers: named in its `authorization` header, or in its query.
fn signed_headers(headers: &http::HeaderMap, uri: &http::Uri) -> Vec<String> {
    let authorization = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let in_header = authorization
        .and_then(|text| text.split("SignedHeaders=").nth(1))
        .and_then(|text| text.split(',').next())
        .map(|list| list.trim().split(';').map(str::to_owned).collect());
    in_header.unwrap_or_else(|| {
        let query = url::form_urlencoded::parse(uri.query().unwrap_or("").as_bytes());
        let mut lists = query.filter(|(name, _)| name == "X-Amz-SignedHeaders").map(|(_, list)| list);
        lists.next().map(|list| list.split(';').map(str::to_owned).collect()).unwrap_or_default()
    })
}

/// The embedded server's two access keys, made at its first start.
struct AccessKeys {
    full: Credentials,
    put_only: Credentials,
}

impl AccessKeys {
    fn load_or_create(path: &Path, random: &Random) -> Result<Self, EmbeddedError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).ok_or_else(|| EmbeddedError::Keys(path.to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let keys = Self::generate(random);
                keys.write(path).map_err(|source| EmbeddedError::Io {
                    operation: "write",
                    path: path.to_owned(),
                    source,
                })?;
                Ok(keys)
            }
            Err(source) => Err(EmbeddedError::Io { operation: "read", path: path.to_owned(), source }),
        }
    }

    fn generate(random: &Random) -> Self {
        let key = |kind: &str| Credentials {
            access_key_id: format!("{kind}{}", hex::encode_upper(random.bytes::<8>())),
            secret_access_key: Secret::new(hex::encode(random.bytes::<32>())),
            session_token: None,
        };
        Self { full: key("SEAL"), put_only: key("PUTS") }
    }

    /// Whole or not at all: a key half written would lock everyone out of what is stored.
    fn write(&self, path: &Path) -> std::io::Result<()> {
        let temporary = path.with_extension("env.new");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        for (prefix, key) in [("", &self.full), ("PUT_ONLY_", &self.put_only)] {
            writeln!(file, "export {prefix}AWS_ACCESS_KEY_ID={}", key.access_key_id)?;
            writeln!(file, "export {prefix}AWS_SECRET_ACCESS_KEY={}", key.secret_access_key.expose())?;
        }
        file.sync_all()?;
        std::fs::rename(temporary, path)
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            let found = text
                .lines()
                .find_map(|line| line.strip_prefix("export ")?.strip_prefix(name)?.strip_prefix('='));
            found.filter(|v| !v.is_empty()).map(str::to_owned)
        };
        let key = |prefix: &str| {
            Some(Credentials {
                access_key_id: value(&format!("{prefix}AWS_ACCESS_KEY_ID"))?,
                secret_access_key: Secret::new(value(&format!("{prefix}AWS_SECRET_ACCESS_KEY"))?),
                session_token: None,
            })
        };
        Some(Self { full: key("")?, put_only: key("PUT_ONLY_")? })
    }
}

fn make_private_dir(path: &Path) -> Result<(), EmbeddedError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| EmbeddedError::Io {
        operation: "create",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_keys_survive_their_file_and_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s3.env");
        let first = AccessKeys::load_or_create(&path, &Random::from_os()).unwrap();
        let again = AccessKeys::load_or_create(&path, &Random::from_os()).unwrap();
        assert_eq!(first.full.access_key_id, again.full.access_key_id);
        assert_eq!(first.put_only.secret_access_key.expose(), again.put_only.secret_access_key.expose());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "rubbish").unwrap();
        assert!(matches!(AccessKeys::load_or_create(&path, &Random::from_os()), Err(EmbeddedError::Keys(_))));
    }
}
