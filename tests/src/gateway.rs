//! A gateway in front of an S3 server: it refuses, swallows or loses what a test tells it to, and may speak TLS that demands a
//! client certificate.
//!
//! Signatures stay good: they cover the `Host` that the client named, which is passed on as it came. One request per
//! connection, read and answered whole: slow, and simple.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::scratch::Scratch;
use crate::services::free_port;

/// What is done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Passed on, and answered.
    Pass,
    /// Answered with 403, not passed on.
    Refuse,
    /// Answered with 200, not passed on.
    Swallow,
    /// Passed on; the answer is lost.
    LoseAnswer,
}

/// `METHOD /path` of a request.
type Rule = Box<dyn Fn(&str, &str) -> Verdict + Send>;

struct Shared {
    upstream: String,
    rule: Mutex<Rule>,
    seen: Mutex<Vec<(String, Verdict)>>,
    tls: Option<Arc<ServerConfig>>,
    stop: AtomicBool,
}

/// A gateway that runs.
pub struct Gateway {
    shared: Arc<Shared>,
    port: u16,
    certificates: Option<Certificates>,
}

/// Files with what a client of a TLS gateway needs.
#[derive(Debug)]
pub struct Certificates {
    /// The private CA of the gateway.
    pub ca: PathBuf,
    /// A client certificate that it accepts.
    pub client: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    _scratch: Scratch,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway before `endpoint` (`http://HOST:PORT`) that passes everything on, until told otherwise.
    #[track_caller]
    pub fn before(endpoint: &str) -> Self {
        Self::start(endpoint, None)
    }

    /// As [`Gateway::before`], over TLS with a certificate of a private CA; clients must show one too.
    #[track_caller]
    pub fn with_tls(endpoint: &str) -> Self {
        let (config, certificates) = make_certificates();
        Self::start(endpoint, Some((config, certificates)))
    }

    #[track_caller]
    fn start(endpoint: &str, tls: Option<(ServerConfig, Certificates)>) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port of the gateway's own");
        let (config, certificates) = tls.unzip();
        let shared = Arc::new(Shared {
            upstream: endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned(),
            rule: Mutex::new(Box::new(|_, _| Verdict::Pass)),
            seen: Mutex::default(),
            tls: config.map(Arc::new),
            stop: AtomicBool::new(false),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = serving.clone();
                // A client that goes away, or shows no good certificate, is its own business.
                std::thread::spawn(move || shared.serve(client));
            }
        });
        Self { shared, port, certificates }
    }

    /// Where clients reach it.
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// What clients need, where the gateway speaks TLS.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// From now on, what `rule` says of method and path is done.
    pub fn set(&self, rule: impl Fn(&str, &str) -> Verdict + Send + 'static) {
        *self.shared.rule.lock().expect("not poisoned") = Box::new(rule);
    }

    /// `METHOD /path` of the requests that came to this end.
    pub fn seen(&self, verdict: Verdict) -> Vec<String> {
        let seen = self.shared.seen.lock().expect("not poisoned");
        seen.iter().filter(|(_, was)| *was == verdict).map(|(what, _)| what.clone()).collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // The listener wakes, sees the word, and goes.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> Option<()> {
        let Some(config) = &self.tls else { return self.answer(client) };
        let mut connection = ServerConnection::new(config.clone()).ok()?;
        if connection.complete_io(&mut client).is_err() {
            // The alert is on its way. Who closes with something unread takes it back; so the client's end is read first.
            client.shutdown(Shutdown::Write).ok()?;
            std::io::copy(&mut client, &mut std::io::sink()).ok()?;
            return None;
        }
        self.answer(StreamOwned::new(connection, client))
    }

    fn answer(&self, mut client: impl Read + Write) -> Option<()> {
        let (head, mut body) = read_head(&mut client)?;
        let mut words = head.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let header = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(':'));
            lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned()).next()
        };
        if header("expect").is_some() {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        let length: usize = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let missing = length.saturating_sub(body.len());
        Read::by_ref(&mut client).take(missing as u64).read_to_end(&mut body).ok()?;
        let verdict = (self.rule.lock().expect("not poisoned"))(&method, &path);
        self.seen.lock().expect("not poisoned").push((format!("{method} {path}"), verdict));
        let answer = match verdict {
            Verdict::Refuse => plain("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>"),
            Verdict::Swallow => plain("200 OK", ""),
            Verdict::Pass | Verdict::LoseAnswer => {
                let mut upstream = TcpStream::connect(&self.upstream).ok()?;
                // One request per connection: the answer ends where the connection does.
                let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
                upstream.write_all(head.as_bytes()).ok()?;
                upstream.write_all(&body).ok()?;
                let mut answer = Vec::new();
                upstream.read_to_end(&mut answer).ok()?;
                answer
            }
        };
        if verdict != Verdict::LoseAnswer {
            client.write_all(&answer).ok()?;
        }
        client.flush().ok()
    }
}

fn plain(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).into()
}

/// A request's head, without a `Connection` of its own, and what came of its body already.
fn read_head(client: &mut impl Read) -> Option<(String, Vec<u8>)> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 16 << 10]);
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let body = bytes.split_off(at + 4);
            let head = String::from_utf8(bytes).ok()?;
            let kept = head.split_inclusive("\r\n");
            let kept = kept.filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
            return Some((kept.collect(), body));
        }
        match client.read(&mut buffer).ok()? {
            0 => return None,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

/// A private CA, the gateway's certificate, and a client's.
fn make_certificates() -> (ServerConfig, Certificates) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = || KeyPair::generate().expect("a key");
    let (ca_key, server_key, client_key) = (key(), key(), key());
    let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("a CA");
    let issuer = Issuer::new(ca, ca_key);
    let issue = |name: &str, key: &KeyPair| {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.signed_by(key, &issuer).expect("a certificate")
    };
    let (server, client) = (issue("127.0.0.1", &server_key), issue("client", &client_key));

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca_certificate.der().clone()).expect("a CA");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(
            vec![server.der().clone()],
            rustls_pki_types::PrivateKeyDer::Pkcs8(server_key.serialize_der().into()),
        )
        .expect("a server configuration");
    let scratch = Scratch::new("gateway");
    let certificates = Certificates {
        ca: scratch.file("ca.pem", ca_certificate.pem(), 0o644),
        client: scratch.file("client.pem", client.pem(), 0o644),
        key: scratch.file("client.key", client_key.serialize_pem(), 0o600),
        _scratch: scratch,
    };
    (config, certificates)
}
