//! The HTTP client beneath the S3 client, the probe and the monitor: one set of TLS settings for all of them (a private
//! CA, a client certificate), no redirects, and a look at every answer's `Date`, so that what is signed for agents
//! follows the *store's* clock and not this machine's.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use aws_smithy_runtime_api::client::http::SharedHttpClient;
use sealift_common::clock::{Clock, UnixMillis};
use sealift_common::s3_sdk;

use super::settings::StorageSettings;

/// Time to get a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without a byte after which an answer is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Differences below this are the `Date` header's own coarseness and the way of the answer.
const IGNORED_SKEW_MS: i64 = 5_000;

/// TLS material that no connection can be made with.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS towards the object store: {what}")]
pub struct InvalidTls {
    what: &'static str,
    #[source]
    source: reqwest::Error,
}

/// The store's clock, as its answers show it.
#[derive(Debug, Clone)]
pub struct StoreClock {
    clock: Clock,
    offset_ms: Arc<AtomicI64>,
}

impl StoreClock {
    /// A store whose clock is thought to agree with `clock` until an answer says otherwise.
    pub fn new(clock: Clock) -> Self {
        Self { clock, offset_ms: Arc::default() }
    }

    /// The time at the store.
    pub fn now(&self) -> UnixMillis {
        UnixMillis(self.clock.now().0.saturating_add(self.offset_ms()))
    }

    /// How far the store is ahead of this machine, in milliseconds.
    pub fn offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed)
    }

    /// Takes note of an answer's `Date` (RFC 9110, IMF-fixdate, whole seconds).
    fn observe(&self, date: &str) {
        let Ok(parsed) = jiff::fmt::rfc2822::parse(date) else { return };
        let offset = parsed.timestamp().as_millisecond().saturating_sub(self.clock.now().0);
        let offset = if offset.abs() < IGNORED_SKEW_MS { 0 } else { offset };
        if self.offset_ms.swap(offset, Ordering::Relaxed) == 0 && offset != 0 {
            tracing::warn!(offset_ms = offset, "the object store's clock differs from this machine's");
        }
    }
}

/// The HTTP client for one object store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StoreHttp {
    client: reqwest::Client,
    clock: StoreClock,
}

impl StoreHttp {
    /// A client with the TLS material of `settings`.
    ///
    /// # Errors
    /// [`InvalidTls`] where a PEM does not hold what it should.
    pub fn new(settings: &StorageSettings, clock: Clock) -> Result<Self, InvalidTls> {
        // Twice is harmless; whoever embeds this may have installed it already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let because = |what| move |source| InvalidTls { what, source };
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .http1_only();
        if let Some(pem) = &settings.ca_pem {
            let roots = reqwest::Certificate::from_pem_bundle(pem)
                .map_err(because("the CA file is not a PEM certificate"))?;
            builder = builder.tls_certs_only(roots);
        }
        if let Some(pem) = &settings.client_identity_pem {
            let identity = reqwest::Identity::from_pem(pem.expose())
                .map_err(because("the client identity is not a PEM certificate and key"))?;
            builder = builder.identity(identity);
        }
        if settings.endpoint.as_ref().is_some_and(super::settings::Endpoint::is_loopback) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(because("no client can be built from these settings"))?;
        Ok(Self { client, clock: StoreClock::new(clock) })
    }

    /// The store's clock.
    pub fn clock(&self) -> &StoreClock {
        &self.clock
    }

    /// Sends one request as it is: no retry, no redirect, no header added.
    ///
    /// # Errors
    /// Where no answer came.
    pub async fn send(&self, request: reqwest::Request) -> Result<reqwest::Response, reqwest::Error> {
        let response = self.client.execute(request).await?;
        if let Some(date) = response.headers().get(http::header::DATE).and_then(|v| v.to_str().ok()) {
            self.clock.observe(date);
        }
        Ok(response)
    }

    /// The same beneath the S3 SDK.
    pub fn for_sdk(&self) -> SharedHttpClient {
        let this = self.clone();
        s3_sdk::http_client(move |request| {
            let this = this.clone();
            async move { this.send(request).await }
        })
    }
}

/// `at` as the standard library's clock counts.
pub(super) fn system_time(at: UnixMillis) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(at.0).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_clock_follows_the_date_header() {
        let clock = StoreClock::new(Clock::manual(UnixMillis(1_700_000_000_000)));
        clock.observe("Tue, 14 Nov 2023 22:13:22 GMT"); // two seconds: noise
        assert_eq!(clock.offset_ms(), 0);
        clock.observe("Tue, 14 Nov 2023 22:43:20 GMT");
        assert_eq!(clock.offset_ms(), 30 * 60 * 1_000);
        assert_eq!(clock.now(), UnixMillis(1_700_001_800_000));
        clock.observe("not a date");
        assert_eq!(clock.offset_ms(), 30 * 60 * 1_000);
    }
}
