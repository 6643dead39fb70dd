//! Single requests, signed for someone who holds no credential (AWS Signature Version 4, in headers).
//!
//! A signature is a capability: whoever has it may send exactly one object's bytes to exactly one name, for a quarter of
//! an hour. The body's hash and length are part of it (docs/format.md, Writing), so a store that verifies hashes refuses
//! anything else. Stores differ in what they let ride along unsigned; [`super::probe`] finds out, and what it finds is
//! signed with a harmless value here where that closes the gap.

use std::time::Duration;

use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sealift_common::clock::UnixMillis;
use sealift_common::id::Sha256;

use super::http::system_time;
use super::key::ObjectKey;
use super::probe::Abilities;
use super::settings::{Credentials, ServerSideEncryption, StorageSettings};

/// How long stores accept a signature in headers: it is bound to its date, not to an expiry of its own.
pub const SIGNATURE_LIFE: Duration = Duration::from_secs(15 * 60);
/// Nothing that Sealift stores is shorter. Short lengths are never signed: an empty body with a copy-source header riding
/// along would be a copy.
pub const MIN_SIGNED: u64 = 256;
/// Longest pack: 64 MiB (docs/format.md, Pack).
pub const MAX_PACK: u64 = 64 << 20;
/// Longest manifest: public and sealed parts of a backup at the format's caps, stored.
pub const MAX_MANIFEST: u64 = 256 << 20;

/// A request that anyone may send once it is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRequest {
    /// `PUT` or `GET`.
    pub method: &'static str,
    /// Where to.
    pub url: String,
    /// Headers to send exactly; `host` follows from the URL.
    pub headers: Vec<(String, String)>,
    /// After this the store refuses it.
    pub expires: UnixMillis,
}

/// A request that is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// A length that nothing Sealift stores can have.
    #[error("{name}: {size} bytes is not a length that is signed; it must be {MIN_SIGNED} to {limit} bytes")]
    Size {
        /// The object.
        name: ObjectKey,
        /// The length asked for.
        size: u64,
        /// The longest allowed.
        limit: u64,
    },
    /// The signer itself failed.
    #[error("cannot sign a request for {name}")]
    Signer {
        /// The object.
        name: ObjectKey,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a PUT is signed over.
#[derive(Debug, Clone, Copy)]
pub struct PutTerms<'a> {
    /// The one name it is good for.
    pub name: &'a ObjectKey,
    /// Hash of the bytes.
    pub sha256: Sha256,
    /// Length of the bytes.
    pub size: u64,
    /// Longest length allowed for this kind of object.
    pub limit: u64,
}

/// Signs a PUT of exactly these bytes, with the put-only credential where there is one.
///
/// # Errors
/// [`SigningError::Size`] for lengths outside of [`MIN_SIGNED`] to the limit.
pub fn sign_put(
    settings: &StorageSettings,
    abilities: &Abilities,
    terms: PutTerms<'_>,
    now: UnixMillis,
) -> Result<SignedRequest, SigningError> {
    if !(MIN_SIGNED..=terms.limit).contains(&terms.size) {
        return Err(SigningError::Size { name: terms.name.clone(), size: terms.size, limit: terms.limit });
    }
    let mut headers = vec![
        ("content-length", terms.size.to_string()),
        ("x-amz-checksum-sha256", BASE64.encode(terms.sha256.as_bytes())),
    ];
    if abilities.if_none_match {
        headers.push(("if-none-match", "*".to_owned()));
    }
    if abilities.unsigned_acl {
        // Signed, it cannot be overridden by an unsigned one.
        headers.push(("x-amz-acl", "private".to_owned()));
    }
    headers.extend(encryption_headers(&settings.encryption));
    if let Some(lock) = settings.object_lock.filter(|_| abilities.object_lock) {
        headers.push(("x-amz-object-lock-mode", lock.mode.as_str().to_owned()));
        headers.push(("x-amz-object-lock-retain-until-date", lock_date(now.plus(lock.at_upload()))));
    }
    let credentials = settings.put_only.as_ref().unwrap_or(&settings.credentials);
    let request = Unsigned { method: "PUT", name: terms.name, headers, body_sha256: terms.sha256, now };
    request.sign(settings, credentials)
}

/// A moment as servers read it in `x-amz-object-lock-retain-until-date`: with a fraction only where there is one, as some of
/// them do not read any.
pub(super) fn lock_date(until: UnixMillis) -> String {
    jiff::Timestamp::from_millisecond(until.0).map_or_else(|_| until.to_string(), |t| t.to_string())
}

/// Signs a GET of one object. A `range` header may be added by the sender: it is not part of the signature.
///
/// # Errors
/// Where the signer fails.
pub fn sign_get(
    settings: &StorageSettings,
    name: &ObjectKey,
    now: UnixMillis,
) -> Result<SignedRequest, SigningError> {
    let request = Unsigned { method: "GET", name, headers: Vec::new(), body_sha256: Sha256::of(b""), now };
    request.sign(settings, &settings.credentials)
}

fn encryption_headers(encryption: &ServerSideEncryption) -> Vec<(&'static str, String)> {
    const ALGORITHM: &str = "x-amz-server-side-encryption";
    match encryption {
        ServerSideEncryption::BucketDefault => Vec::new(),
        ServerSideEncryption::Aes256 => vec![(ALGORITHM, "AES256".to_owned())],
        ServerSideEncryption::Kms(key) => vec![
            (ALGORITHM, "aws:kms".to_owned()),
            ("x-amz-server-side-encryption-aws-kms-key-id", key.clone()),
        ],
    }
}

/// A request before its signature. [`super::probe`] makes odd ones on purpose; everyone else uses [`sign_put`] and
/// [`sign_get`].
pub(super) struct Unsigned<'a> {
    pub(super) method: &'static str,
    pub(super) name: &'a ObjectKey,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body_sha256: Sha256,
    pub(super) now: UnixMillis,
}

impl Unsigned<'_> {
    pub(super) fn sign(
        self,
        settings: &StorageSettings,
        by: &Credentials,
    ) -> Result<SignedRequest, SigningError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| SigningError::Signer {
            name: self.name.clone(),
            source,
        };
        let url = format!("{}/{}", settings.base_url(), settings.prefix.key(self.name.as_str()));
        let identity: Identity = aws_credentials(by).into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&settings.region)
            .name("s3")
            .time(system_time(self.now))
            .settings(s3_settings())
            .build()
            .map_err(|e| failed(e.into()))?;
        let headers = self.headers.iter().map(|(name, value)| (*name, value.as_str()));
        let body = SignableBody::Precomputed(self.body_sha256.to_string());
        let signable =
            SignableRequest::new(self.method, url.as_str(), headers, body).map_err(|e| failed(e.into()))?;
        let (instructions, _) = sign(signable, &params.into()).map_err(|e| failed(e.into()))?.into_parts();
        let signed = instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let headers = self.headers.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).chain(signed).collect();
        Ok(SignedRequest { method: self.method, url, headers, expires: self.now.plus(SIGNATURE_LIFE) })
    }
}

/// S3's variant of Signature Version 4: paths as they are, the payload's hash in a header.
fn s3_settings() -> SigningSettings {
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings
}

/// The credential in the SDK's own type.
pub(super) fn aws_credentials(from: &Credentials) -> aws_credential_types::Credentials {
    aws_credential_types::Credentials::new(
        from.access_key_id.clone(),
        from.secret_access_key.expose().clone(),
        from.session_token.as_ref().map(|t| t.expose().clone()),
        None,
        "sealift",
    )
}

#[cfg(test)]
#[path = "signing_tests.rs"]
mod tests;
