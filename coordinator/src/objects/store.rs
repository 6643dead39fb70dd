//! What the coordinator itself does with objects: put, head, get, list, delete; each bounded in time, size and retries.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use sealift_common::clock::{Clock, UnixMillis};
use sealift_common::format::names::{ObjectName, TRUST_PREFIX};
use sealift_common::id::Sha256;

use super::error::{ObjectError, ObjectErrorKind};
use super::http::{InvalidTls, StoreClock, StoreHttp};
use super::key::ObjectKey;
use super::probe::{Abilities, ProbeReport};
use super::settings::{ServerSideEncryption, StorageSettings};
use super::signing::{self, PutTerms, SignedRequest, SigningError, aws_credentials};

/// Attempts of one operation, the first included.
const ATTEMPTS: u32 = 3;
/// Time for one attempt until its answer begins.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for an operation with all its attempts.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(150);

/// The object store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ObjectStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: StorageSettings,
    client: Client,
    http: StoreHttp,
    report: ArcSwap<ProbeReport>,
    /// Whether what every repository has was once seen in the bucket.
    inhabited: AtomicBool,
}

/// Whether a put may replace what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// Fails with [`ObjectErrorKind::AlreadyThere`] where the store honours `if-none-match`; for names that carry the hash of
    /// their bytes the others replace like with like.
    New,
    /// Replaces what is there.
    Replace,
}

/// Which bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// All of them.
    All,
    /// `len` bytes (at least one) from `offset` on.
    From {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// The last bytes (at least one).
    Suffix(u64),
}

impl ByteRange {
    fn header(self) -> Option<String> {
        match self {
            Self::All => None,
            Self::From { offset, len } => {
                Some(format!("bytes={offset}-{}", offset.saturating_add(len.saturating_sub(1))))
            }
            Self::Suffix(len) => Some(format!("bytes=-{len}")),
        }
    }
}

/// What the store says about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// Stored length in bytes.
    pub size: u64,
    /// SHA-256 of the bytes, where the store keeps it.
    pub sha256: Option<Sha256>,
    /// `content-encoding`, which nothing of Sealift's ever has.
    pub content_encoding: Option<String>,
    /// Until when the object is locked.
    pub locked_until: Option<UnixMillis>,
    /// Whether a legal hold lies on it, which nothing of Sealift's ever sets.
    pub legal_hold: bool,
    /// The version, on versioned buckets.
    pub version: Option<String>,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name, relative to the prefix.
    pub name: ObjectKey,
    /// Stored length in bytes.
    pub size: u64,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage {
    /// Objects, in the order of their names. Keys that are no names of Sealift's are left out.
    pub objects: Vec<Listed>,
    /// Pass this on to get the next page.
    pub next: Option<String>,
}

impl ObjectStore {
    /// A client for the store of `settings`. Nothing is sent yet: a store that is down does not keep a coordinator from
    /// starting.
    ///
    /// # Errors
    /// [`InvalidTls`] where CA or client certificate cannot be used.
    pub fn new(settings: StorageSettings, clock: Clock) -> Result<Self, InvalidTls> {
        let http = StoreHttp::new(&settings, clock)?;
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(settings.region.clone()))
            .credentials_provider(aws_credentials(&settings.credentials))
            .http_client(http.for_sdk())
            .force_path_style(settings.path_style)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint.to_string());
        }
        let client = Client::from_conf(config.build());
        let report = ArcSwap::from_pointee(ProbeReport::default());
        Ok(Self(Arc::new(Inner { settings, client, http, report, inhabited: AtomicBool::new(false) })))
    }

    /// Where the bucket is and how it is reached.
    pub fn settings(&self) -> &StorageSettings {
        &self.0.settings
    }

    /// The store's clock, as its answers show it.
    pub fn clock(&self) -> &StoreClock {
        self.0.http.clock()
    }

    /// What the newest probe found.
    pub fn report(&self) -> Arc<ProbeReport> {
        self.0.report.load_full()
    }

    /// What the newest probe found the store able to do.
    pub fn abilities(&self) -> Abilities {
        self.0.report.load().abilities
    }

    pub(super) fn set_report(&self, report: ProbeReport) {
        self.0.report.store(Arc::new(report));
    }

    pub(super) fn http(&self) -> &StoreHttp {
        &self.0.http
    }

    pub(super) fn client(&self) -> &Client {
        &self.0.client
    }

    /// Signs a PUT of exactly these bytes for an agent.
    ///
    /// # Errors
    /// [`SigningError::Size`] for lengths that are never signed.
    pub fn sign_put(&self, terms: PutTerms<'_>) -> Result<SignedRequest, SigningError> {
        signing::sign_put(self.settings(), &self.abilities(), terms, self.clock().now())
    }

    /// Signs a GET of one object for an admin.
    ///
    /// # Errors
    /// Where the signer fails.
    pub fn sign_get(&self, name: &ObjectKey) -> Result<SignedRequest, SigningError> {
        signing::sign_get(self.settings(), name, self.clock().now())
    }

    pub(super) fn key(&self, name: &ObjectKey) -> String {
        self.0.settings.prefix.key(name.as_str())
    }

    pub(super) fn bucket(&self) -> &str {
        self.0.settings.bucket.as_str()
    }

    /// Stores an object of the coordinator's own.
    ///
    /// # Errors
    /// [`ObjectError`]; [`ObjectErrorKind::AlreadyThere`] only for [`Put::New`].
    pub async fn put(&self, name: &ObjectKey, body: Bytes, put: Put) -> Result<(), ObjectError> {
        let checksum = BASE64.encode(Sha256::of(&body).as_bytes());
        let mut request = self.0.client.put_object().bucket(self.bucket()).key(self.key(name));
        request = request.checksum_sha256(checksum).body(ByteStream::from(body));
        if put == Put::New && self.abilities().if_none_match {
            request = request.if_none_match("*");
        }
        request = match &self.0.settings.encryption {
            ServerSideEncryption::BucketDefault => request,
            ServerSideEncryption::Aes256 => {
                request.server_side_encryption(types::ServerSideEncryption::Aes256)
            }
            ServerSideEncryption::Kms(key) => {
                request.server_side_encryption(types::ServerSideEncryption::AwsKms).ssekms_key_id(key)
            }
        };
        request.send().await.map_err(|e| failed("put", name.as_str(), e))?;
        if name.as_str().starts_with(TRUST_PREFIX) || *name == ObjectName::Repository.into() {
            self.0.inhabited.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What the store says about an object; `None` where it is not there.
    ///
    /// # Errors
    /// [`ObjectError`]; `Refused` with status 400 where the object is encrypted with a key of its writer's (SSE-C).
    pub async fn head(&self, name: &ObjectKey) -> Result<Option<ObjectHead>, ObjectError> {
        let request = self.0.client.head_object().bucket(self.bucket()).key(self.key(name));
        let request = request.checksum_mode(types::ChecksumMode::Enabled);
        let head = match request.send().await.map_err(|e| failed("head", name.as_str(), e)) {
            Err(error) if error.kind == ObjectErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let locked_until = head.object_lock_retain_until_date().and_then(|t| t.to_millis().ok());
        Ok(Some(ObjectHead {
            size: u64::try_from(head.content_length().unwrap_or(0)).unwrap_or(0),
            sha256: head.checksum_sha256().and_then(parse_checksum),
            content_encoding: head.content_encoding().filter(|e| !e.is_empty()).map(str::to_owned),
            locked_until: locked_until.map(UnixMillis),
            legal_hold: head.object_lock_legal_hold_status() == Some(&types::ObjectLockLegalHoldStatus::On),
            version: head.version_id().map(str::to_owned),
        }))
    }

    /// The bytes of an object, or of a range of it, at most `limit` of them.
    ///
    /// # Errors
    /// [`ObjectError`]; [`ObjectErrorKind::TooLarge`] above the limit.
    pub async fn get(&self, name: &ObjectKey, range: ByteRange, limit: u64) -> Result<Bytes, ObjectError> {
        let too_large = || ObjectError {
            operation: "get",
            object: name.to_string(),
            kind: ObjectErrorKind::TooLarge { limit },
            source: None,
        };
        let mut all = BytesMut::new();
        let read = self.read(name, range, |bytes| {
            let fits = (all.len() as u64).saturating_add(bytes.len() as u64) <= limit;
            if fits {
                all.extend_from_slice(&bytes);
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        match read.await? {
            ControlFlow::Continue(()) => Ok(all.freeze()),
            ControlFlow::Break(()) => Err(too_large()),
        }
    }

    /// Reads an object back and hashes it, without keeping it in memory: its length and hash.
    ///
    /// # Errors
    /// [`ObjectError`]; [`ObjectErrorKind::TooLarge`] as soon as it proves longer than `limit`.
    pub async fn hash(&self, name: &ObjectKey, limit: u64) -> Result<(u64, Sha256), ObjectError> {
        let mut size = 0u64;
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let read = self.read(name, ByteRange::All, |bytes| {
            size = size.saturating_add(bytes.len() as u64);
            context.update(&bytes);
            if size > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if read.await?.is_break() {
            return Err(ObjectError {
                operation: "get",
                object: name.to_string(),
                kind: ObjectErrorKind::TooLarge { limit },
                source: None,
            });
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Ok((size, Sha256::from_bytes(digest)))
    }

    /// Hands an object's bytes to `each`, piece by piece, until it breaks off.
    async fn read(
        &self,
        name: &ObjectKey,
        range: ByteRange,
        mut each: impl FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ObjectError> {
        let request = self.0.client.get_object().bucket(self.bucket()).key(self.key(name));
        let request = request.set_range(range.header());
        let mut body = request.send().await.map_err(|e| failed("get", name.as_str(), e))?.body;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|e| ObjectError {
                operation: "get",
                object: name.to_string(),
                kind: ObjectErrorKind::Unreachable,
                source: Some(Box::new(e)),
            })?;
            if each(piece).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// One page (at most 1,000) of the objects whose names start with `below`.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn list(&self, below: &str, after: Option<String>) -> Result<ListPage, ObjectError> {
        let request = self.0.client.list_objects_v2().bucket(self.bucket());
        let request = request.prefix(self.0.settings.prefix.key(below)).set_continuation_token(after);
        let page = request.send().await.map_err(|e| failed("list", below, e))?;
        let listed = |object: &types::Object| {
            let name = self.0.settings.prefix.relative(object.key()?)?.parse().ok()?;
            Some(Listed { name, size: u64::try_from(object.size().unwrap_or(0)).unwrap_or(0) })
        };
        let objects = page.contents().iter().filter_map(listed).collect();
        let next = page.next_continuation_token().filter(|_| page.is_truncated() == Some(true));
        Ok(ListPage { objects, next: next.map(str::to_owned) })
    }

    /// All objects whose names start with `below`, at most `limit` of them.
    ///
    /// # Errors
    /// [`ObjectError`]; [`ObjectErrorKind::TooLarge`] where there are more.
    pub async fn list_all(&self, below: &str, limit: usize) -> Result<Vec<Listed>, ObjectError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = self.list(below, after).await?;
            all.extend(page.objects);
            if all.len() > limit {
                return Err(ObjectError {
                    operation: "list",
                    object: below.to_owned(),
                    kind: ObjectErrorKind::TooLarge { limit: limit as u64 },
                    source: None,
                });
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Looks whether the bucket is still the one that it was: it lists, and what every repository has (a trust policy, and the
    /// word whose it is) did not vanish since an earlier look. A disk that is not mounted, or a folder that was moved away
    /// and is made anew by the first write, looks like an empty bucket.
    ///
    /// # Errors
    /// [`ObjectError`]; [`ObjectErrorKind::Emptied`] where all of it has vanished.
    pub async fn look(&self) -> Result<(), ObjectError> {
        let policies = self.list(TRUST_PREFIX, None).await?;
        let inhabited =
            !policies.objects.is_empty() || self.head(&ObjectName::Repository.into()).await?.is_some();
        if inhabited {
            self.0.inhabited.store(true, Ordering::Relaxed);
        } else if self.0.inhabited.load(Ordering::Relaxed) {
            return Err(ObjectError {
                operation: "list",
                object: TRUST_PREFIX.to_owned(),
                kind: ObjectErrorKind::Emptied,
                source: None,
            });
        }
        Ok(())
    }

    /// The parts of names right below `below` that are followed by a slash, at most `limit` of them.
    ///
    /// # Errors
    /// [`ObjectError`]; [`ObjectErrorKind::TooLarge`] where there are more.
    pub async fn folders(&self, below: &str, limit: usize) -> Result<Vec<String>, ObjectError> {
        let start = self.0.settings.prefix.key(below);
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let request = self.0.client.list_objects_v2().bucket(self.bucket()).prefix(&start).delimiter("/");
            let page =
                request.set_continuation_token(after).send().await.map_err(|e| failed("list", below, e))?;
            for folder in page.common_prefixes().iter().filter_map(|folder| folder.prefix()) {
                all.extend(folder.strip_prefix(&start).map(|name| name.trim_end_matches('/').to_owned()));
            }
            if all.len() > limit {
                return Err(ObjectError {
                    operation: "list",
                    object: below.to_owned(),
                    kind: ObjectErrorKind::TooLarge { limit: limit as u64 },
                    source: None,
                });
            }
            match page.next_continuation_token().filter(|_| page.is_truncated() == Some(true)) {
                Some(next) => after = Some(next.to_owned()),
                None => return Ok(all),
            }
        }
    }

    /// Deletes an object; one that is not there counts as deleted. On versioned buckets without a version named, this
    /// only hides it.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn delete(&self, name: &ObjectKey, version: Option<&str>) -> Result<(), ObjectError> {
        let request = self.0.client.delete_object().bucket(self.bucket()).key(self.key(name));
        match request.set_version_id(version.map(str::to_owned)).send().await {
            Ok(_) => Ok(()),
            Err(error) => match failed("delete", name.as_str(), error) {
                error if error.kind == ObjectErrorKind::NotFound => Ok(()),
                error => Err(error),
            },
        }
    }
}

fn parse_checksum(text: &str) -> Option<Sha256> {
    Sha256::try_from(BASE64.decode(text).ok()?.as_slice()).ok()
}

/// Turns what the SDK says into what callers can act on.
pub(super) fn failed<E>(
    operation: &'static str,
    object: &str,
    error: SdkError<E, HttpResponse>,
) -> ObjectError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let kind = match &error {
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => ObjectErrorKind::Unreachable,
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            ObjectError::kind_of(status, service.err().code().unwrap_or(""))
        }
        SdkError::ResponseError(response) => ObjectError::kind_of(response.raw().status().as_u16(), ""),
        _ => ObjectErrorKind::Refused { status: 0, code: "request could not be built".to_owned() },
    };
    ObjectError { operation, object: object.to_owned(), kind, source: Some(Box::new(error)) }
}
