//! Objects through GETs that the coordinator has signed: bytes come from the store, permission from the coordinator.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::StatusCode;
use sealift_common::clock::Clock;
use sealift_common::format::names::ObjectName;
use sealift_common::restore::{ObjectError, ObjectSource};
use sealift_common::tls::certificate_problem;
use sealift_proto::v1;

use super::http;
use crate::coordinator::Coordinator;
use crate::error::{Error, Result};

/// Most objects in one request for signatures (`SignGetsRequest`).
const SIGN_AT_ONCE: usize = 256;
/// Signatures are used up to so long before they end.
const MARGIN: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Reads the objects of one restore's lease.
pub struct SignedSource {
    coordinator: Coordinator,
    lease: Vec<u8>,
    http: reqwest::Client,
    clock: Clock,
    signed: Mutex<Signatures>,
    /// One request for signatures at a time: whoever waits finds his own among those of the one before.
    signing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Signatures {
    ready: HashMap<ObjectName, v1::SignedRequest>,
    upcoming: VecDeque<ObjectName>,
}

impl std::fmt::Debug for SignedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignedSource")
    }
}

/// What one attempt came to.
enum Failure {
    /// For good.
    Final(ObjectError),
    /// Worth another attempt.
    Transient(String),
}

impl SignedSource {
    /// Reads under the lease of an opened restore.
    ///
    /// # Errors
    /// Exit code 2 where `AWS_CA_BUNDLE`, or the client certificate for the store, cannot be used.
    pub fn new(coordinator: Coordinator, lease: Vec<u8>, clock: Clock) -> Result<Self> {
        let http = http::client(http::client_identity()?)?;
        let signing = tokio::sync::Mutex::new(());
        Ok(Self { coordinator, lease, http, clock, signed: Mutex::default(), signing })
    }

    async fn attempt(
        &self,
        object: &ObjectName,
        range: Option<&Range<u64>>,
        cap: u64,
    ) -> Result<Bytes, Failure> {
        let signed = self.signature(object).await?;
        let mut request = self.http.get(&signed.url);
        for header in &signed.headers {
            request = request.header(&header.name, &header.value);
        }
        if let Some(range) = range {
            // Not part of the signature, and no store minds.
            request =
                request.header("range", format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        let response = request.send().await.map_err(|error| unanswered(object, &error))?;
        match response.status() {
            // Some servers (rclone) give the range and say 200; what they give, `Content-Range` tells.
            StatusCode::OK if !response.headers().contains_key("content-range") => {
                let whole = body(object, response, cap).await?;
                // A store that does not know ranges gives everything.
                Ok(range.map_or(whole.clone(), |range| cut(&whole, range)))
            }
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => body(object, response, cap).await,
            // The object is shorter than the range: there are no such bytes.
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(Bytes::new()),
            status => Err(self.refused(object, status, response).await),
        }
    }

    async fn refused(&self, object: &ObjectName, status: StatusCode, response: reqwest::Response) -> Failure {
        let text = response.text().await.unwrap_or_default();
        let code =
            text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map_or("", |(c, _)| c);
        let answer = format!("{status} {code}").trim_end().to_owned();
        match status {
            StatusCode::NOT_FOUND => Failure::Final(ObjectError::NotFound { object: object.to_string() }),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                // Perhaps the signature has ended; a fresh one tells.
                self.signed.lock().unwrap_or_else(PoisonError::into_inner).ready.remove(object);
                Failure::Transient(answer)
            }
            _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Failure::Transient(answer)
            }
            _ => Failure::Final(ObjectError::Refused { object: object.to_string(), answer }),
        }
    }

    fn ready(&self, object: &ObjectName) -> Option<v1::SignedRequest> {
        let signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let good_until = self.clock.now().plus(MARGIN).0;
        signed.ready.get(object).filter(|request| request.expires_ms > good_until).cloned()
    }

    /// The signed request for `object`; asks for those announced next along with it.
    async fn signature(&self, object: &ObjectName) -> Result<v1::SignedRequest, Failure> {
        if let Some(ready) = self.ready(object) {
            return Ok(ready);
        }
        let _one_at_a_time = self.signing.lock().await;
        if let Some(ready) = self.ready(object) {
            return Ok(ready);
        }
        let wanted = self.next_to_sign(object);
        let request = v1::SignGetsRequest {
            lease_id: self.lease.clone(),
            objects: wanted.iter().map(ToString::to_string).collect(),
        };
        let reply =
            self.coordinator.backups().sign_gets(request).await.map_err(|status| match status.code() {
                tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::ResourceExhausted => {
                    Failure::Transient(format!("the coordinator: {}", status.message()))
                }
                _ => Failure::Final(ObjectError::Refused {
                    object: object.to_string(),
                    answer: format!("the coordinator: {}", status.message()),
                }),
            })?;
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        signed.ready.extend(wanted.into_iter().zip(reply.into_inner().requests));
        let ready = signed.ready.get(object).cloned();
        ready.ok_or_else(|| Failure::Transient("the coordinator signed nothing".to_owned()))
    }

    fn next_to_sign(&self, object: &ObjectName) -> Vec<ObjectName> {
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that were read long ago need no signature any more.
        let good_until = self.clock.now().plus(MARGIN).0;
        signed.ready.retain(|_, request| request.expires_ms > good_until);
        let mut wanted = vec![*object];
        while wanted.len() < SIGN_AT_ONCE {
            let Some(next) = signed.upcoming.pop_front() else { break };
            if next != *object && !signed.ready.contains_key(&next) {
                wanted.push(next);
            }
        }
        wanted
    }

    async fn read(
        &self,
        object: &ObjectName,
        range: Option<Range<u64>>,
        cap: u64,
    ) -> Result<Bytes, ObjectError> {
        let mut pause = FIRST_PAUSE;
        let mut answer = String::new();
        for attempt in 1..=ATTEMPTS {
            match self.attempt(object, range.as_ref(), cap).await {
                Ok(bytes) => return Ok(bytes),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient(what)) => answer = what,
            }
            if attempt < ATTEMPTS {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
        if answer.starts_with("403") || answer.starts_with("401") {
            return Err(ObjectError::Refused { object: object.to_string(), answer });
        }
        Err(ObjectError::Unreachable { object: object.to_string(), attempts: ATTEMPTS, answer })
    }
}

fn unanswered(object: &ObjectName, error: &reqwest::Error) -> Failure {
    if let Some(said) = certificate_problem(error) {
        let answer = format!("{said}; {}", http::ABOUT_CERTIFICATES);
        return Failure::Final(ObjectError::Refused { object: object.to_string(), answer });
    }
    // The URL is long and says nothing more than the object's name.
    let mut text = "no connection".to_owned();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    Failure::Transient(text)
}

async fn body(object: &ObjectName, mut response: reqwest::Response, cap: u64) -> Result<Bytes, Failure> {
    let too_long = || Failure::Final(ObjectError::TooLong { object: object.to_string(), cap });
    let announced = response.content_length().unwrap_or(0);
    if announced > cap {
        return Err(too_long());
    }
    let mut whole = BytesMut::with_capacity(usize::try_from(announced).unwrap_or(0));
    while let Some(piece) = response.chunk().await.map_err(|error| unanswered(object, &error))? {
        if whole.len() as u64 + piece.len() as u64 > cap {
            return Err(too_long());
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// The part of `whole` that `range` names, as far as it is there.
pub fn cut(whole: &Bytes, range: &Range<u64>) -> Bytes {
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(whole.len());
    whole.slice(at(range.start)..at(range.end))
}

/// Whole packs are the longest thing that a store without ranges may give.
const MAX_WHOLE: u64 = sealift_common::format::pack::MAX_STORED;

impl ObjectSource for SignedSource {
    fn get<'a>(&'a self, object: &'a ObjectName, cap: u64) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        self.read(object, None, cap).boxed()
    }

    fn get_range<'a>(
        &'a self,
        object: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        self.read(object, Some(range), MAX_WHOLE).boxed()
    }

    fn announce(&self, objects: &[ObjectName]) {
        self.signed.lock().unwrap_or_else(PoisonError::into_inner).upcoming =
            objects.iter().copied().collect();
    }
}

/// Ends a lease, best effort: one that is not closed ends by itself.
pub async fn close(coordinator: &Coordinator, lease: Vec<u8>, outcome: Result<(), &Error>) {
    let outcome = outcome.map_or_else(crate::error::chain_of, |()| "done".to_owned());
    let request = v1::CloseRestoreRequest { lease_id: lease, outcome };
    if let Err(status) = coordinator.backups().close_restore(request).await {
        tracing::debug!(%status, "the restore's lease was not closed");
    }
}
