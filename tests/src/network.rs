//! What lies between the programs: a line of a given speed, a proxy, TLS in front of a plain server. Each serves from a
//! thread of its own until it is dropped.

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::services::free_port;

/// Bytes that pass a line in one go.
const PIECE: usize = 4 * 1024;

/// A listener with its thread.
#[derive(Debug)]
struct Server {
    port: u16,
    runtime: Option<Runtime>,
    /// `true` ends all connections.
    cut: Arc<watch::Sender<bool>>,
}

impl Server {
    #[track_caller]
    fn start<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let port = free_port();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime for the network");
        let listener =
            runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, port))).expect("listen on loopback");
        let cut = Arc::new(watch::Sender::new(false));
        let cutting = cut.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if *cutting.borrow() {
                    continue;
                }
                let (connection, mut cut) = (serve(stream), cutting.subscribe());
                tokio::spawn(async move {
                    // A connection that breaks is what these are for: both ends notice.
                    tokio::select! { _ = connection => {}, _ = cut.wait_for(|cut| *cut) => {} }
                });
            }
        });
        Self { port, runtime: Some(runtime), cut }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A line to a server on this machine. What is sent up it goes at a given speed, all connections together.
#[derive(Debug)]
pub struct Line {
    server: Server,
    pace: Arc<Pace>,
}

#[derive(Debug)]
struct Pace {
    bytes_per_s: AtomicU64,
    carried: AtomicU64,
    free_at: Mutex<Instant>,
}

impl Pace {
    async fn pass(&self, bytes: usize) {
        self.carried.fetch_add(bytes as u64, Relaxed);
        let rate = self.bytes_per_s.load(Relaxed);
        if rate == 0 {
            return;
        }
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = (*free_at).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *free_at
        };
        tokio::time::sleep_until(until).await;
    }
}

impl Line {
    /// A line to `port` that carries so many bytes a second; 0: as many as come.
    #[track_caller]
    pub fn to(port: u16, bytes_per_s: u64) -> Self {
        let pace = Arc::new(Pace {
            bytes_per_s: AtomicU64::new(bytes_per_s),
            carried: AtomicU64::new(0),
            free_at: Mutex::new(Instant::now()),
        });
        let shared = pace.clone();
        let server = Server::start(move |stream| carry(stream, port, shared.clone()));
        Self { server, pace }
    }

    /// Its near end.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Another speed from now on.
    pub fn set_speed(&self, bytes_per_s: u64) {
        self.pace.bytes_per_s.store(bytes_per_s, Relaxed);
    }

    /// Bytes that went up it.
    pub fn carried(&self) -> u64 {
        self.pace.carried.load(Relaxed)
    }

    /// Cuts it: connections end, and new ones end at once.
    pub fn cut(&self) {
        self.server.cut.send_replace(true);
    }

    /// Mends it: new connections pass again.
    pub fn mend(&self) {
        self.server.cut.send_replace(false);
    }
}

async fn carry(near: TcpStream, port: u16, pace: Arc<Pace>) -> std::io::Result<()> {
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
        (near.into_split(), far.into_split());
    let up = async {
        let mut piece = vec![0; PIECE];
        loop {
            let read = near_read.read(&mut piece).await?;
            if read == 0 {
                return far_write.shutdown().await;
            }
            pace.pass(read).await;
            far_write.write_all(&piece[..read]).await?;
        }
    };
    let down = async {
        tokio::io::copy(&mut far_read, &mut near_write).await?;
        near_write.shutdown().await
    };
    tokio::try_join!(up, down).map(drop)
}

/// An HTTPS proxy that speaks CONNECT and wants a user and a password.
#[derive(Debug)]
pub struct ConnectProxy {
    server: Server,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// A proxy for this user.
    #[track_caller]
    pub fn start(user: &str, password: &str) -> Self {
        use base64::Engine;
        let encoded = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"));
        let wanted = format!("Basic {encoded}");
        let asked = Arc::new(Mutex::default());
        let shared: Arc<Mutex<Vec<String>>> = asked.clone();
        let server = Server::start(move |stream| tunnel(stream, wanted.clone(), shared.clone()));
        Self { server, asked }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// What it was asked to connect to (`HOST:PORT`), each time; refused ones are not among them.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends all tunnels, and makes no more.
    pub fn cut(&self) {
        self.server.cut.send_replace(true);
    }
}

async fn tunnel(mut near: TcpStream, wanted: String, asked: Arc<Mutex<Vec<String>>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 * 1024 {
        head.push(near.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let place = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let answer = match place {
        None => "HTTP/1.1 405 Method Not Allowed\r\n\r\n",
        Some(_) if authorization(&head) != Some(&wanted) => {
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"till\"\r\n\
             Content-Length: 0\r\n\r\n"
        }
        Some(place) => {
            let mut far = TcpStream::connect(place).await?;
            asked.lock().unwrap_or_else(PoisonError::into_inner).push(place.to_owned());
            near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            return both_ways(&mut near, &mut far).await;
        }
    };
    near.write_all(answer.as_bytes()).await
}

fn authorization(head: &str) -> Option<&str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization")).map(|(_, value)| value)
}

/// TLS in front of a plain server on this machine, with a certificate of its own making.
#[derive(Debug)]
pub struct TlsFront {
    server: Server,
    /// The certificate, which is its own CA, as PEM.
    pub ca_pem: String,
}

impl TlsFront {
    /// TLS for 127.0.0.1 in front of `port`.
    #[track_caller]
    pub fn before(port: u16) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("parameters");
        let certificate = params.self_signed(&key).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let der = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], der)
            .expect("certificate and key");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let server = Server::start(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let mut near = acceptor.accept(stream).await?;
                let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                both_ways(&mut near, &mut far).await
            }
        });
        Self { server, ca_pem: certificate.pem() }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.server.port
    }
}

async fn both_ways(
    near: &mut (impl AsyncRead + AsyncWrite + Unpin),
    far: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> std::io::Result<()> {
    tokio::io::copy_bidirectional(near, far).await.map(drop)
}
