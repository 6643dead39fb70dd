//! The way out of networks that have a proxy: HTTPS by CONNECT (RFC 9110, 9.3.6), with a user and password where it wants
//! them. TLS runs through it end to end: the proxy sees names, ports and sealed bytes.
//!
//! [`Proxy::covers`] decides for gRPC and for PUTs alike, so that one `NO_PROXY` means one thing.

use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use crate::secret::Secret;

/// Longest answer to CONNECT that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024;
/// An idle connection is probed after this: NAT boxes forget it after a minute or more.
pub const TCP_KEEPALIVE: Duration = Duration::from_secs(25);
/// A probe that nobody answers is sent again after this …
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// … this many times, then the connection is dead.
const PROBES: u32 = 4;

/// An address that is not a proxy's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProxy {
    /// Not `http://HOST:PORT`.
    #[error("{0:?} is not the address of a proxy: write http://HOST:PORT")]
    Address(String),
    /// A user without a password, or the other way round, or one with a colon.
    #[error("a proxy takes user and password together, and no colon in the user")]
    Credentials,
}

/// A proxy, and what it is not used for.
#[derive(Debug, Clone)]
pub struct Proxy {
    host: String,
    port: u16,
    authorization: Option<Secret<String>>,
    direct: NoProxy,
}

impl Proxy {
    /// The proxy at `address` (`http://HOST:PORT`; without a port 80, as for curl).
    ///
    /// # Errors
    /// [`InvalidProxy`].
    pub fn new(address: &str, direct: NoProxy) -> Result<Self, InvalidProxy> {
        // What is shown holds no password: only what stands behind the last '@'.
        let shown = || {
            InvalidProxy::Address(address.rsplit('@').next().unwrap_or_default().chars().take(200).collect())
        };
        let with_scheme =
            if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let url: Url = with_scheme.parse().map_err(|_| shown())?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(shown)?;
        if url.scheme() != "http" || !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(shown());
        }
        let proxy =
            Self { host: bare(host).to_owned(), port: url.port().unwrap_or(80), authorization: None, direct };
        match (url.username(), url.password()) {
            ("", None) => Ok(proxy),
            (user, Some(password)) => {
                let decoded =
                    |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
                proxy.with_credentials(&decoded(user), &Secret::new(decoded(password)))
            }
            _ => Err(InvalidProxy::Credentials),
        }
    }

    /// The same proxy, told who asks (basic authentication).
    ///
    /// # Errors
    /// [`InvalidProxy::Credentials`].
    pub fn with_credentials(mut self, user: &str, password: &Secret<String>) -> Result<Self, InvalidProxy> {
        if user.is_empty() || user.contains(':') {
            return Err(InvalidProxy::Credentials);
        }
        let both = Secret::new(format!("{user}:{}", password.expose()));
        self.authorization = Some(Secret::new(format!("Basic {}", BASE64_STANDARD.encode(both.expose()))));
        Ok(self)
    }

    /// `http://HOST:PORT`, without credentials.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("http://[{}]:{}", self.host, self.port)
        } else {
            format!("http://{}:{}", self.host, self.port)
        }
    }

    /// The value of `Proxy-Authorization`, where the proxy wants one.
    pub fn authorization(&self) -> Option<&Secret<String>> {
        self.authorization.as_ref()
    }

    /// Whether connections to this host and port go through the proxy.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        !self.direct.covers(host, port)
    }

    async fn tunnel(&self, host: &str, port: u16) -> Result<TcpStream, Error> {
        let failed = |error: Error| Error::new(error.kind(), format!("proxy {}: {error}", self.address()));
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        let place = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
        if let Some(authorization) = &self.authorization {
            request.extend(["Proxy-Authorization: ", authorization.expose(), "\r\n"]);
        }
        let request = Secret::new(request + "\r\n");
        stream.write_all(request.expose().as_bytes()).await.map_err(failed)?;
        let answer = read_answer(&mut stream).await.map_err(failed)?;
        match verdict(&answer, &place) {
            Ok(()) => Ok(stream),
            Err(problem) => Err(failed(Error::new(ErrorKind::ConnectionRefused, problem))),
        }
    }
}

/// Reads the head of the answer, and not a byte more: what follows is the other end's.
async fn read_answer(stream: &mut TcpStream) -> Result<Vec<u8>, Error> {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_ANSWER {
            return Err(Error::new(ErrorKind::InvalidData, "its answer to CONNECT does not end"));
        }
        answer.push(stream.read_u8().await?);
    }
    Ok(answer)
}

fn verdict(answer: &[u8], place: &str) -> Result<(), String> {
    let text = String::from_utf8_lossy(answer);
    let line: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
    let mut words = line.split(' ');
    let version = words.next().unwrap_or_default();
    match words.next().and_then(|status| status.parse::<u16>().ok()) {
        Some(200..300) if version.starts_with("HTTP/1.") => Ok(()),
        Some(407) => {
            Err("it wants a user and a password, or others than it was given: see [proxy] in the agent's \
                          configuration, or HTTPS_PROXY"
                .to_owned())
        }
        Some(_) => Err(format!("it does not connect to {place}: {line}")),
        None => Err("it does not speak HTTP: is this its port?".to_owned()),
    }
}

/// Connects to `host`, through `proxy` where it covers that host. Idle connections are kept alive.
///
/// # Errors
/// Those of the network; what the proxy said, where it refuses.
pub async fn connect(host: &str, port: u16, proxy: Option<&Proxy>) -> Result<TcpStream, Error> {
    let stream = match proxy.filter(|proxy| proxy.covers(host, port)) {
        Some(proxy) => proxy.tunnel(host, port).await?,
        None => TcpStream::connect((host, port)).await?,
    };
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(PROBE_INTERVAL).with_retries(PROBES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

/// What is reached without the proxy: the list that `NO_PROXY` holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Exception>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everything,
    /// A name, and all below it.
    Name(String, Option<u16>),
    /// A network: address and length of its prefix.
    Network(IpAddr, u8),
}

impl NoProxy {
    /// Reads entries: `example.com` (and all below it), `.example.com`, `host:port`, `10.0.0.0/8`, `*`. As everywhere,
    /// what cannot be read matches nothing.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        Self(
            entries
                .into_iter()
                .map(str::trim)
                .filter(|entry| !entry.is_empty())
                .filter_map(exception)
                .collect(),
        )
    }

    /// Whether this host is reached without the proxy.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        let host = bare(host).trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        self.0.iter().any(|exception| match exception {
            Exception::Everything => true,
            Exception::Network(network, prefix) => {
                address.is_some_and(|address| is_in(address, *network, *prefix))
            }
            Exception::Name(name, only) => {
                only.is_none_or(|only| only == port)
                    && (host == *name
                        || host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.')))
            }
        })
    }
}

fn exception(entry: &str) -> Option<Exception> {
    if entry == "*" {
        return Some(Exception::Everything);
    }
    if let Some((address, prefix)) = entry.split_once('/') {
        let (address, prefix) = (address.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
        let longest = if address.is_ipv4() { 32 } else { 128 };
        return (prefix <= longest).then_some(Exception::Network(address, prefix));
    }
    if let Ok(address) = bare(entry).parse::<IpAddr>() {
        return Some(Exception::Network(address, if address.is_ipv4() { 32 } else { 128 }));
    }
    let (name, port) = match entry.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok()?)),
        None => (entry, None),
    };
    let name = name.trim_start_matches("*.").trim_matches('.').to_ascii_lowercase();
    (!name.is_empty()).then_some(Exception::Name(name, port))
}

fn is_in(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        _ => false,
    }
}

/// An IPv6 literal without its brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn no_proxy_means_what_it_means_elsewhere() {
        let list = "localhost, .example.com ,*.shop.test,10.0.0.0/8,192.168.7.1,s3.other.test:9000,fd00::/8,bad/99,/8,:x";
        let direct = NoProxy::parse(list.split(','));
        for (host, port) in [
            ("localhost", 1),
            ("example.com", 1),
            ("Backup.Example.com.", 7443),
            ("a.b.shop.test", 1),
            ("10.200.3.4", 1),
            ("192.168.7.1", 1),
            ("s3.other.test", 9000),
            ("[fd12::1]", 443),
        ] {
            assert!(direct.covers(host, port), "{host}:{port}");
        }
        for (host, port) in [
            ("badexample.com", 1),
            ("11.0.0.1", 1),
            ("192.168.7.2", 1),
            ("s3.other.test", 443),
            ("fe80::1", 1),
            ("localhost.evil.test", 1),
        ] {
            assert!(!direct.covers(host, port), "{host}:{port}");
        }
        assert!(NoProxy::parse(["*"]).covers("anything", 1));
        assert!(!NoProxy::default().covers("anything", 1));
        assert!(NoProxy::parse(["0.0.0.0/0"]).covers("8.8.8.8", 1));
    }

    #[test]
    fn addresses_are_read_as_curl_reads_them_and_passwords_are_not_shown() {
        let address = |text| Proxy::new(text, NoProxy::default()).map(|proxy| proxy.address());
        assert_eq!(address("http://proxy.test:3128").unwrap(), "http://proxy.test:3128");
        assert_eq!(address("proxy.test:3128").unwrap(), "http://proxy.test:3128");
        assert_eq!(address("http://[::1]/").unwrap(), "http://[::1]:80");
        for bad in ["socks5://x:1", "https://x:1", "http://", "http://x/path", "http://user@x"] {
            assert!(address(bad).is_err(), "{bad}");
        }
        let proxy = Proxy::new("http://till:hunter%202@proxy.test:1", NoProxy::default()).unwrap();
        assert_eq!(proxy.authorization().unwrap().expose(), "Basic dGlsbDpodW50ZXIgMg==");
        assert!(!format!("{proxy:?}").contains("hunter"));
        let error = Proxy::new("ftp://till:hunter2@proxy.test", NoProxy::default()).unwrap_err().to_string();
        assert!(!error.contains("hunter2") && error.contains("proxy.test"), "{error}");
    }

    /// A proxy that gives one answer; what it was asked.
    async fn answers(answer: &'static str) -> (Proxy, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let asked = read_answer(&mut stream).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        (Proxy::new(&address, NoProxy::default()).unwrap(), asked)
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_and_what_follows_the_answer_is_the_other_ends() {
        let (proxy, asked) = answers("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhello").await;
        let proxy = proxy.with_credentials("till", &Secret::new("secret".to_owned())).unwrap();
        let mut stream = connect("backup.test", 7443, Some(&proxy)).await.unwrap();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
        let asked = asked.await.unwrap();
        assert!(
            asked.starts_with("CONNECT backup.test:7443 HTTP/1.1\r\nHost: backup.test:7443\r\n"),
            "{asked}"
        );
        assert!(asked.contains("Proxy-Authorization: Basic dGlsbDpzZWNyZXQ=\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_refusal_says_what_to_do() {
        for (answer, says) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "user and a password"),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", "does not connect to backup.test:7443: HTTP/1.1 403"),
            ("SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP"),
        ] {
            let (proxy, _asked) = answers(answer).await;
            let error = connect("backup.test", 7443, Some(&proxy)).await.unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(&proxy.address()), "{error}");
        }
    }
}
