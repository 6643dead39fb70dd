//! Objects straight from the bucket, with S3 credentials of one's own: what is left when there is no coordinator.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig, retry::RetryConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use bytes::{Bytes, BytesMut};
use clap::Args;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use sealift_common::format::names::ObjectName;
use sealift_common::id::Sha256;
use sealift_common::restore::{ObjectError, ObjectSource};
use sealift_common::s3_sdk;
use sealift_common::tls::certificate_problem;
use url::{Host, Url};

use super::http;
use super::signed::cut;
use crate::error::{Error, Exit, Result, because};

const ATTEMPTS: u32 = 5;
/// Versions of one object that are looked through at most.
const MAX_VERSIONS: i32 = 100;
/// Objects that are listed at most below one prefix.
const MAX_LISTED: usize = 1_000_000;

/// Where the bucket is.
#[derive(Debug, Clone, Args)]
pub struct BucketArgs {
    /// The bucket
    #[arg(long, required_if_eq("offline", "true"), value_name = "NAME")]
    bucket: Option<String>,
    /// Where in the bucket the repository lies
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// The S3 server, where it is not AWS
    #[arg(long, value_name = "URL")]
    endpoint: Option<Url>,
    /// The region
    #[arg(long)]
    region: Option<String>,
    /// Let requests travel unencrypted to an endpoint that is not this machine
    #[arg(long)]
    insecure_http: bool,
}

/// A bucket that is read directly.
pub struct S3Source {
    client: Client,
    bucket: String,
    /// With its slash, or empty.
    prefix: String,
    /// Versions that had to be looked for, because the newest was not the right one.
    versions: Mutex<HashMap<ObjectName, String>>,
}

impl std::fmt::Debug for S3Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Source")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl BucketArgs {
    /// The region where it is known without asking the instance's metadata service, which servers that are not AWS's do not
    /// have. They rarely care about regions either.
    fn region(&self) -> Option<String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let given =
            self.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
        given.or_else(|| self.endpoint.as_ref().map(|_| "us-east-1".to_owned()))
    }

    fn check(&self) -> Result<&str> {
        let bucket = self.bucket.as_deref().unwrap_or_default();
        let fits = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-".contains(&c));
        if !fits {
            return Err(Error::usage(format!(
                "{bucket:?} is no bucket: use 3 to 63 of a-z, 0-9, '.' and '-'"
            )));
        }
        if let Some(endpoint) = &self.endpoint {
            let loopback = match endpoint.host() {
                Some(Host::Domain(name)) => name == "localhost",
                Some(Host::Ipv4(ip)) => ip.is_loopback(),
                Some(Host::Ipv6(ip)) => ip.is_loopback(),
                None => false,
            };
            match endpoint.scheme() {
                "https" => {}
                "http" if loopback || self.insecure_http => {}
                "http" => {
                    return Err(Error::usage(format!(
                        "the endpoint {endpoint} is not encrypted: write https://, or say --insecure-http"
                    )));
                }
                _ => {
                    return Err(Error::usage(format!(
                        "{endpoint} is no endpoint: write https://HOST[:PORT]"
                    )));
                }
            }
        }
        Ok(bucket)
    }
}

impl S3Source {
    /// A client with the credentials that the AWS tools would use: environment, profile, web identity, instance.
    ///
    /// # Errors
    /// Exit code 2 where bucket or endpoint cannot be used.
    pub async fn open(args: &BucketArgs) -> Result<Self> {
        let bucket = args.check()?.to_owned();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(sdk_http()?)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS));
        if let Some(region) = args.region() {
            loader = loader.region(Region::new(region));
        }
        if let Some(endpoint) = &args.endpoint {
            loader = loader.endpoint_url(endpoint.to_string());
        }
        let shared = loader.load().await;
        let config = aws_sdk_s3::config::Builder::from(&shared)
            .region(shared.region().cloned().unwrap_or_else(|| Region::new("us-east-1")))
            // Servers that are not AWS rarely have a name per bucket.
            .force_path_style(args.endpoint.is_some())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        let prefix = args.prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { client: Client::from_conf(config), bucket, prefix, versions: Mutex::default() })
    }

    /// All names below `under` (`trust/`, `series/<id>/manifests/`, …); what is no name of Sealift's is left out.
    pub async fn list(&self, under: &str) -> Result<Vec<ObjectName>, ObjectError> {
        let (mut names, mut after) = (Vec::new(), None);
        loop {
            let request = self.client.list_objects_v2().bucket(&self.bucket);
            let request = request.prefix(format!("{}{under}", self.prefix)).set_continuation_token(after);
            let page = request.send().await.map_err(|error| failed(under, &error))?;
            for key in page.contents().iter().filter_map(|object| object.key()) {
                names.extend(key.strip_prefix(&self.prefix).and_then(|name| name.parse::<ObjectName>().ok()));
            }
            after = page.next_continuation_token().map(str::to_owned);
            if after.is_none() || page.is_truncated() != Some(true) {
                return Ok(names);
            }
            if names.len() > MAX_LISTED {
                return Err(ObjectError::TooLong { object: under.to_owned(), cap: MAX_LISTED as u64 });
            }
        }
    }

    /// The parts of names right below `under`: for `series/`, the ids of the series.
    pub async fn list_folders(&self, under: &str) -> Result<Vec<String>, ObjectError> {
        let start = format!("{}{under}", self.prefix);
        let (mut folders, mut after) = (Vec::new(), None);
        loop {
            let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(&start).delimiter("/");
            let page =
                request.set_continuation_token(after).send().await.map_err(|error| failed(under, &error))?;
            for folder in page.common_prefixes().iter().filter_map(|folder| folder.prefix()) {
                folders.extend(folder.strip_prefix(&start).map(|name| name.trim_end_matches('/').to_owned()));
            }
            after = page.next_continuation_token().map(str::to_owned);
            if after.is_none() || page.is_truncated() != Some(true) || folders.len() > MAX_LISTED {
                return Ok(folders);
            }
        }
    }

    async fn read(
        &self,
        object: &ObjectName,
        range: Option<&Range<u64>>,
        version: Option<String>,
        cap: u64,
    ) -> Result<Bytes, ObjectError> {
        let request = self.client.get_object().bucket(&self.bucket).key(format!("{}{object}", self.prefix));
        let range_text = range.map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        let request = request.set_range(range_text).set_version_id(version);
        let name = object.to_string();
        let output = match request.send().await {
            Ok(output) => output,
            Err(error) if status(&error) == Some(416) => return Ok(Bytes::new()),
            Err(error) => return Err(failed(&name, &error)),
        };
        let partial = output.content_range().is_some();
        let (mut whole, mut body) = (BytesMut::new(), output.body);
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| ObjectError::Unreachable {
                object: name.clone(),
                attempts: 1,
                answer: error.to_string(),
            })?;
            if whole.len() as u64 + piece.len() as u64 > cap {
                return Err(ObjectError::TooLong { object: name, cap });
            }
            whole.extend_from_slice(&piece);
        }
        let whole = whole.freeze();
        Ok(range.filter(|_| !partial).map_or(whole.clone(), |range| cut(&whole, range)))
    }

    /// A GET that is tried again where the connection breaks in the middle of the body, which the SDK does not do.
    async fn read_again(
        &self,
        object: &ObjectName,
        range: Option<&Range<u64>>,
        version: Option<String>,
        cap: u64,
    ) -> Result<Bytes, ObjectError> {
        let mut attempt = 1;
        loop {
            match self.read(object, range, version.clone(), cap).await {
                Err(ObjectError::Unreachable { attempts: 1, .. }) if attempt < ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    /// The whole object; on a versioned bucket, the version that hashes to its name.
    async fn get_right(&self, object: &ObjectName, cap: u64) -> Result<Bytes, ObjectError> {
        let newest = self.read_again(object, None, None, cap).await;
        let right = |bytes: &Bytes| object.sha256().is_none_or(|sha256| sha256 == Sha256::of(bytes));
        match &newest {
            Ok(bytes) if right(bytes) => return newest,
            Ok(_) | Err(ObjectError::NotFound { .. }) => {}
            Err(_) => return newest,
        }
        for version in self.versions_of(object).await {
            if let Ok(bytes) = self.read_again(object, None, Some(version), cap).await
                && right(&bytes)
            {
                return Ok(bytes);
            }
        }
        newest
    }

    /// A range; on a versioned bucket where the newest version is a deletion, of the newest version with bytes in it.
    async fn range_right(&self, object: &ObjectName, range: &Range<u64>) -> Result<Bytes, ObjectError> {
        let cap = sealift_common::format::pack::MAX_STORED;
        let known = self.versions.lock().unwrap_or_else(PoisonError::into_inner).get(object).cloned();
        let newest = self.read_again(object, Some(range), known, cap).await;
        let Err(ObjectError::NotFound { .. }) = &newest else { return newest };
        for version in self.versions_of(object).await {
            let Ok(whole) = self.read_again(object, None, Some(version.clone()), cap).await else { continue };
            if object.sha256() == Some(Sha256::of(&whole)) {
                self.versions.lock().unwrap_or_else(PoisonError::into_inner).insert(*object, version);
                return Ok(cut(&whole, range));
            }
        }
        newest
    }

    /// Ids of the object's versions; none on a bucket without versions, or where they may not be listed.
    async fn versions_of(&self, object: &ObjectName) -> Vec<String> {
        let key = format!("{}{object}", self.prefix);
        let request =
            self.client.list_object_versions().bucket(&self.bucket).prefix(&key).max_keys(MAX_VERSIONS);
        let Ok(page) = request.send().await else { return Vec::new() };
        let same = page.versions().iter().filter(|version| version.key() == Some(key.as_str()));
        same.filter_map(|version| version.version_id())
            .filter(|id| *id != "null")
            .map(str::to_owned)
            .collect()
    }
}

/// What the SDK sends with. Its own client cannot show a certificate.
fn sdk_http() -> Result<SharedHttpClient> {
    if let Some(identity) = http::client_identity()? {
        let client = http::client(Some(identity))?;
        return Ok(s3_sdk::http_client(move |request| client.execute(request)));
    }
    let mut trust = TrustStore::default();
    if let Some(bundle) = http::ca_bundle()? {
        trust = trust.with_pem_certificate(bundle);
    }
    let tls = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(because(Exit::Usage, "AWS_CA_BUNDLE holds no certificates"))?;
    let builder = aws_smithy_http_client::Builder::new();
    Ok(builder.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(tls).build_https())
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// Turns what the SDK says into what a restore can act on.
fn failed<E>(object: &str, error: &SdkError<E>) -> ObjectError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let object = object.to_owned();
    let code = error.code().unwrap_or_default().to_owned();
    if let Some(said) = certificate_problem(error) {
        return ObjectError::Refused { object, answer: format!("{said}; {}", http::ABOUT_CERTIFICATES) };
    }
    match status(error) {
        Some(404) if code == "NoSuchBucket" => ObjectError::Refused { object, answer: "there is no such bucket".to_owned() },
        Some(404) => ObjectError::NotFound { object },
        Some(status @ 400..=499) => ObjectError::Refused { object, answer: format!("{status} {code}") },
        Some(status) => ObjectError::Unreachable { object, attempts: ATTEMPTS, answer: format!("{status} {code}") },
        None => match error {
            SdkError::ConstructionFailure(_) => {
                ObjectError::Refused { object, answer: deepest(error) }
            }
            _ if deepest(error).contains("credential") => ObjectError::Refused {
                object,
                answer: "no S3 credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE".to_owned(),
            },
            _ => ObjectError::Unreachable { object, attempts: ATTEMPTS, answer: deepest(error) },
        },
    }
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(inner) = at.source() {
        at = inner;
    }
    at.to_string()
}

impl ObjectSource for S3Source {
    fn get<'a>(&'a self, object: &'a ObjectName, cap: u64) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        self.get_right(object, cap).boxed()
    }

    fn get_range<'a>(
        &'a self,
        object: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        async move { self.range_right(object, &range).await }.boxed()
    }

    fn announce(&self, _: &[ObjectName]) {}
}
