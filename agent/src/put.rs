//! One object, one PUT: exactly the request that the coordinator signed, and nothing that it could be misused for.
//!
//! The agent does not trust the coordinator with where it connects: HTTPS unless the store is on this machine (or the host's
//! owner says otherwise), no redirects, only headers that an S3 PUT has.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use url::{Host, Url};

use sealift_common::proxy::{Proxy, TCP_KEEPALIVE};
use sealift_common::tls;
use sealift_proto::v1;

use crate::bandwidth::Limits;
use crate::config::sections::S3;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes that the store does not acknowledge for this long mean that the connection is dead.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);
/// What a PUT may take beyond its bytes …
const PUT_TIMEOUT: Duration = Duration::from_secs(120);
/// … which may come as slowly as this, in bytes a second.
const SLOWEST_LINE: u64 = 16 * 1024;
/// How much of a refusal's body is read for the error.
const REFUSAL_BYTES: usize = 4096;

/// Headers of a PUT that a coordinator may sign, besides `x-amz-*`.
const HEADERS: [&str; 9] = [
    "authorization",
    "cache-control",
    "content-length",
    "content-md5",
    "content-type",
    "expect",
    "host",
    "if-none-match",
    "user-agent",
];

/// A store's answer that means the object is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was written.
    Written,
    /// It was there before, under the name that is its hash.
    AlreadyThere,
}

/// Why an object is not there.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The client for S3 cannot be made from `[s3]`.
    #[error("[{section}] {key}: {problem}")]
    Config {
        /// The section of the configuration.
        section: &'static str,
        /// The key of the configuration.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The coordinator asked for something that a PUT of a backup never is.
    #[error("refused to send what the coordinator signed: {0}")]
    Unsafe(String),
    /// The store or the network is away: worth another try.
    #[error("the store is away: {0}")]
    Away(String),
    /// The two do not accept each other's certificates: nothing was sent, and time alone does not mend it.
    #[error(
        "no certificate that both this host and the store accept: {0}; see ca, client_certificate and client_key in [s3]"
    )]
    Certificate(String),
    /// The signature has expired, or the clocks differ: worth a new signature.
    #[error("the store does not take the signature ({status}): {body}")]
    Signature {
        /// Its answer.
        status: StatusCode,
        /// What it said.
        body: String,
    },
    /// The store said no, and will say so again.
    #[error("the store refused the object ({status}): {body}")]
    Refused {
        /// Its answer.
        status: StatusCode,
        /// What it said.
        body: String,
    },
}

/// A client for single PUTs.
#[derive(Debug, Clone)]
pub struct PutClient {
    http: reqwest::Client,
    allow_plain_http: bool,
    limits: Limits,
}

impl PutClient {
    /// A client that trusts what `[s3]` says and goes through `proxy` where that covers the store, under these limits.
    ///
    /// # Errors
    /// [`PutError::Config`], naming the key.
    pub fn new(config: &S3, proxy: Option<Proxy>, limits: Limits) -> Result<Self, PutError> {
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(UNACKNOWLEDGED)
            .tcp_keepalive(TCP_KEEPALIVE)
            // What the environment says of proxies is in `proxy` already.
            .no_proxy()
            .user_agent(concat!("sealift-agent/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = proxy {
            builder = builder.proxy(through(proxy)?);
        }
        if let Some(path) = &config.ca {
            let pem = read("ca", path.as_path())?;
            let bad = |error: reqwest::Error| PutError::Config {
                section: "s3",
                key: "ca",
                problem: error.to_string(),
            };
            builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(&pem).map_err(bad)?);
        }
        if let (Some(certificate), Some(key)) = (&config.client_certificate, &config.client_key) {
            let mut pem = zeroize::Zeroizing::new(read("client_certificate", certificate.as_path())?);
            pem.push(b'\n');
            pem.extend_from_slice(&zeroize::Zeroizing::new(read("client_key", key.as_path())?));
            let bad = |error: reqwest::Error| PutError::Config {
                section: "s3",
                key: "client_key",
                problem: error.to_string(),
            };
            builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(bad)?);
        }
        let http = builder.build().map_err(|error| PutError::Config {
            section: "s3",
            key: "ca",
            problem: describe(&error),
        })?;
        Ok(Self { http, allow_plain_http: config.allow_plain_http, limits })
    }

    /// Sends `body`, given in pieces, as `signed` says.
    ///
    /// # Errors
    /// [`PutError`].
    pub async fn put(&self, signed: &v1::SignedRequest, body: &[Bytes]) -> Result<Put, PutError> {
        let length: usize = body.iter().map(Bytes::len).sum();
        let (url, headers) = check(signed, length, self.allow_plain_http)?;
        let slowest = self.limits.slowest().map_or(SLOWEST_LINE, |limit| (limit / 2).clamp(1, SLOWEST_LINE));
        let timeout = PUT_TIMEOUT + Duration::from_secs(length as u64 / slowest);
        let paced = reqwest::Body::wrap_stream(self.limits.paced(body.to_vec()));
        // The body's length is known: with this header it goes out in one piece, not in HTTP chunks.
        let request = self.http.put(url).headers(headers).header(CONTENT_LENGTH, length).timeout(timeout);
        let sent = request.body(paced).send().await;
        let response = sent.map_err(|error| unsent(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(Put::Written);
        }
        if status == StatusCode::PRECONDITION_FAILED {
            return Ok(Put::AlreadyThere);
        }
        Err(refusal(status, refusal_text(response).await))
    }
}

/// The proxy as the HTTP client wants it: a tunnel for what it covers, and for HTTPS only.
fn through(proxy: Proxy) -> Result<reqwest::Proxy, PutError> {
    let bad = |problem: String| PutError::Config { section: "proxy", key: "url", problem };
    let address: Url = proxy.address().parse().map_err(|_| bad("it is no address".to_owned()))?;
    let authorization = proxy.authorization().map(|value| HeaderValue::from_str(value.expose()));
    let choose = move |url: &Url| {
        let (host, port) = (url.host_str()?, url.port_or_known_default()?);
        (url.scheme() == "https" && proxy.covers(host, port)).then(|| address.clone())
    };
    let mut chosen = reqwest::Proxy::custom(choose);
    if let Some(authorization) = authorization {
        let mut value = authorization.map_err(|_| bad("user or password cannot be sent".to_owned()))?;
        value.set_sensitive(true);
        chosen = chosen.custom_http_auth(value);
    }
    Ok(chosen)
}

/// What follows from a request that got no answer.
fn unsent(error: &reqwest::Error) -> PutError {
    let text = describe(error);
    match tls::certificate_problem(error) {
        Some(_) => PutError::Certificate(text),
        None => PutError::Away(text),
    }
}

/// What follows from an answer that is not a success.
fn refusal(status: StatusCode, body: String) -> PutError {
    let expired = ["RequestTimeTooSkewed", "RequestExpired", "ExpiredToken", "Request has expired"];
    match status {
        // A conditional write that lost a race against itself (AWS): the object will be there.
        StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            PutError::Away(format!("{status}: {body}"))
        }
        StatusCode::NOT_IMPLEMENTED => PutError::Refused { status, body },
        status if status.is_server_error() => PutError::Away(format!("{status}: {body}")),
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => PutError::Signature { status, body },
        _ if expired.iter().any(|code| body.contains(code)) => PutError::Signature { status, body },
        _ => PutError::Refused { status, body },
    }
}

/// The start of a refusal's body in one line: S3's code and message are in it.
async fn refusal_text(mut response: reqwest::Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < REFUSAL_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            _ => break,
        }
    }
    bytes.truncate(REFUSAL_BYTES);
    let text = String::from_utf8_lossy(&bytes);
    let part = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once("</")?.0.to_owned())
    };
    match (part("Code"), part("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect(),
    }
}

/// Makes sure that the request is a PUT of these bytes to a place that may see it.
fn check(
    signed: &v1::SignedRequest,
    length: usize,
    allow_plain_http: bool,
) -> Result<(Url, HeaderMap), PutError> {
    let refuse = |problem: String| PutError::Unsafe(problem);
    if signed.method != "PUT" {
        return Err(refuse(format!("the method is {:?}, not PUT", signed.method)));
    }
    let url: Url = signed.url.parse().map_err(|_| refuse("its URL cannot be parsed".to_owned()))?;
    let plain_is_fine = allow_plain_http || is_loopback(&url);
    if url.scheme() != "https" && !(url.scheme() == "http" && plain_is_fine) {
        let host = url.host_str().unwrap_or_default();
        return Err(refuse(format!(
            "{}://{host} is not HTTPS: use an https:// endpoint, or set allow_plain_http in [s3] of this host",
            url.scheme()
        )));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("its URL holds a password".to_owned()));
    }
    let mut headers = HeaderMap::new();
    for header in &signed.headers {
        let lower = header.name.to_ascii_lowercase();
        if !lower.starts_with("x-amz-") && !HEADERS.contains(&lower.as_str()) {
            return Err(refuse(format!("{lower:?} is not a header of an S3 PUT")));
        }
        let name = HeaderName::from_bytes(lower.as_bytes());
        let name = name.map_err(|_| refuse(format!("{lower:?} is not a header's name")))?;
        let value = HeaderValue::from_str(&header.value);
        let value = value.map_err(|_| refuse(format!("the value of {lower} cannot be sent")))?;
        if name == CONTENT_LENGTH && value.to_str().ok() != Some(length.to_string().as_str()) {
            return Err(refuse(format!("it is signed for {value:?} bytes, the object has {length}")));
        }
        // The HTTP client writes these two from the URL and the body, to the same effect.
        if name != CONTENT_LENGTH && name != HOST {
            headers.insert(name, value);
        }
    }
    Ok((url, headers))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        None => false,
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, PutError> {
    let failed = |error: std::io::Error| PutError::Config {
        section: "s3",
        key,
        problem: format!("cannot read {}: {error}", path.display()),
    };
    std::fs::read(path).map_err(failed)
}

/// An HTTP error with its causes, without the URL (which holds a signature where it is presigned).
fn describe(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "timed out".to_owned() } else { "cannot send".to_owned() };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(url: &str, headers: &[(&str, &str)]) -> v1::SignedRequest {
        let header = |(name, value): &(&str, &str)| v1::Header {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        };
        v1::SignedRequest {
            method: "PUT".to_owned(),
            url: url.to_owned(),
            headers: headers.iter().map(header).collect(),
            expires_ms: 0,
        }
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for good in [
            "https://s3.example.com/b/k",
            "http://127.0.0.1:9000/b/k",
            "http://[::1]:9000/b",
            "http://localhost/b",
        ] {
            assert!(check(&signed(good, &[]), 5, false).is_ok(), "{good}");
        }
        for bad in [
            "http://s3.example.com/b/k",
            "http://10.0.0.1/b",
            "file:///etc/passwd",
            "https://u:p@s3.example.com/b",
        ] {
            let error = check(&signed(bad, &[]), 5, false).unwrap_err();
            assert!(matches!(error, PutError::Unsafe(_)), "{bad}");
        }
        assert!(check(&signed("http://s3.example.com/b/k", &[]), 5, true).is_ok());
    }

    #[test]
    fn only_a_put_of_these_bytes_is_sent() {
        let url = "https://s3.example.com/b/k";
        let good = [
            ("Host", "s3.example.com"),
            ("Content-Length", "5"),
            ("x-amz-date", "now"),
            ("If-None-Match", "*"),
        ];
        let (_, headers) = check(&signed(url, &good), 5, false).unwrap();
        assert_eq!(headers.len(), 2);
        assert!(check(&signed(url, &good), 6, false).is_err(), "another length");
        assert!(check(&signed(url, &[("Cookie", "a=b")]), 5, false).is_err(), "another header");
        let mut get = signed(url, &good);
        get.method = "GET".to_owned();
        assert!(check(&get, 5, false).is_err(), "another method");
    }

    #[test]
    fn answers_are_sorted_by_what_follows_from_them() {
        let of = |status: u16, body: &str| refusal(StatusCode::from_u16(status).unwrap(), body.to_owned());
        assert!(matches!(of(503, "SlowDown"), PutError::Away(_)));
        assert!(matches!(of(403, "RequestTimeTooSkewed"), PutError::Signature { .. }));
        assert!(matches!(of(400, "ExpiredToken"), PutError::Signature { .. }));
        assert!(matches!(of(400, "BadDigest"), PutError::Refused { .. }));
        assert!(matches!(of(501, "NotImplemented"), PutError::Refused { .. }));
        assert!(matches!(of(307, ""), PutError::Refused { .. }), "a redirect is not followed");
    }
}
