//! The TLS accept loop: bounded handshakes with a time-out, a certificate that can be replaced while it runs, and who is
//! at the other end in the extensions of each request.
//!
//! A client certificate is optional in the handshake, because hosts without one enrol over the same port; one that is
//! shown must be good.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use sealift_common::tls::{self, Identity, TlsError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::identity::ca::Ca;
use crate::identity::peer::{ClientCertificate, Peer, TrustDomain};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many handshakes are under way at a time; further connections wait to be accepted.
const MAX_HANDSHAKES: usize = 256;
/// How many connections wait to be served.
const QUEUE: usize = 64;

/// Who may connect to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Whoever likes; a client certificate of our CA says who it is.
    Certified,
    /// Browsers and probes: no client certificate is asked for.
    Any,
}

/// A TLS configuration that can be replaced while connections are accepted.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ArcSwap<ServerConfig>>,
    clients: Clients,
}

impl ServerTls {
    /// TLS with `identity` as the server's own certificate.
    ///
    /// # Errors
    /// [`TlsError::Config`] where certificates and key do not fit.
    pub fn new(ca: &Ca, identity: &Identity, clients: Clients) -> Result<Self, TlsError> {
        Ok(Self { config: Arc::new(ArcSwap::from_pointee(config(ca, identity, clients)?)), clients })
    }

    /// New connections see this certificate; those that are open go on.
    ///
    /// # Errors
    /// [`TlsError::Config`] where certificates and key do not fit.
    pub fn replace(&self, ca: &Ca, identity: &Identity) -> Result<(), TlsError> {
        self.config.store(Arc::new(config(ca, identity, self.clients)?));
        Ok(())
    }
}

fn config(ca: &Ca, identity: &Identity, clients: Clients) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Config { what: "the protocol versions", source })?;
    let builder = match clients {
        Clients::Any => builder.with_no_client_auth(),
        Clients::Certified => {
            let roots = Arc::new(tls::roots(std::slice::from_ref(ca.certificate()))?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| TlsError::Config {
                    what: "the CA certificate for clients",
                    source: rustls::Error::General(error.to_string()),
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(|source| TlsError::Config { what: "the server certificate and its key", source })?;
    config.alpn_protocols = match clients {
        Clients::Certified => vec![b"h2".to_vec()],
        Clients::Any => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    Ok(config)
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connection {
    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts until `stop`; connections come out of the receiver when their handshake is done.
pub async fn accept(
    listener: TcpListener,
    tls: ServerTls,
    domain: TrustDomain,
    stop: CancellationToken,
    out: mpsc::Sender<io::Result<Connection>>,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let accepted =
            tokio::select! { () = stop.cancelled() => return, accepted = listener.accept() => accepted };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: it must not become a busy loop.
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, domain, out) =
            (TlsAcceptor::from(tls.config.load_full()), domain.clone(), out.clone());
        tokio::spawn(async move {
            let shaken =
                tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, address, acceptor, &domain)).await;
            drop(permit);
            match shaken {
                // The server is gone: nobody serves the connection.
                Ok(Ok(connection)) => drop(out.send(Ok(connection)).await),
                // Somebody looked whether the port is open, or thought better of it.
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    tracing::debug!(%address, "a connection ended before its TLS handshake");
                }
                Ok(Err(error)) => tracing::info!(%address, %error, "a connection was refused"),
                Err(_) => {
                    tracing::info!(%address, "a connection was dropped: its TLS handshake took too long")
                }
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    domain: &TrustDomain,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = leaf.map(|leaf| ClientCertificate::read(leaf, domain)).transpose();
    let certificate = certificate.map_err(|error| io::Error::new(io::ErrorKind::PermissionDenied, error))?;
    Ok(Connection { stream, peer: Peer { address, certificate } })
}

/// A queue of connections between [`accept`] and the server.
pub fn queue() -> (mpsc::Sender<io::Result<Connection>>, mpsc::Receiver<io::Result<Connection>>) {
    mpsc::channel(QUEUE)
}
