//! Requests as agents send them, odd ones included, and tidying up after them.

use std::time::Duration;

use bytes::Bytes;
use sealift_common::clock::UnixMillis;
use sealift_common::id::Sha256;

use super::chain;
use super::checks::Prober;
use crate::objects::error::{ObjectError, ObjectErrorKind};
use crate::objects::key::ObjectKey;
use crate::objects::signing::{SignedRequest, SigningError, Unsigned, lock_date};
use crate::objects::store::failed;

/// Below this, relative to the prefix, lies what probes leave behind if they are cut short.
const DIR: &str = "coordinator/probe/";
/// How long an object is locked by the lock checks, at most.
const PROBE_LOCK: Duration = Duration::from_secs(60);

impl Prober<'_> {
    pub(super) fn bucket(&self) -> &str {
        self.store.settings().bucket.as_str()
    }

    pub(super) fn lock_headers(&self) -> Vec<(&'static str, String)> {
        // Whole seconds: some servers do not read fractions.
        let until = self.store.clock().now().plus(PROBE_LOCK);
        let until = UnixMillis(until.0 - until.0.rem_euclid(1_000));
        vec![
            ("x-amz-object-lock-mode", "GOVERNANCE".to_owned()),
            ("x-amz-object-lock-retain-until-date", lock_date(until)),
        ]
    }

    /// A PUT signed over `signed_body`, as an agent would get it.
    pub(super) fn sign(
        &self,
        name: &ObjectKey,
        headers: Vec<(&'static str, String)>,
        signed_body: &Bytes,
    ) -> Result<SignedRequest, ObjectError> {
        let settings = self.store.settings();
        let (body_sha256, now) = (Sha256::of(signed_body), self.store.clock().now());
        Unsigned { method: "PUT", name, headers, body_sha256, now }
            .sign(settings, &settings.credentials)
            .map_err(|e| self.signer_failed(name, e))
    }

    pub(super) fn signer_failed(&self, name: &ObjectKey, error: SigningError) -> ObjectError {
        ObjectError {
            operation: "sign",
            object: name.to_string(),
            kind: ObjectErrorKind::Refused { status: 0, code: "the signer failed".to_owned() },
            source: Some(Box::new(error)),
        }
    }

    /// Sends a PUT with a good signature and these headers riding along unsigned; whether it was accepted.
    pub(super) async fn send_unsigned(
        &self,
        name: &ObjectKey,
        extra: &[(&str, String)],
    ) -> Result<bool, ObjectError> {
        let signed = self.sign(name, Vec::new(), &self.bytes[1])?;
        Ok((200..300).contains(&self.send(&signed, extra, &self.bytes[1]).await?))
    }

    /// Sends a request as it is and returns the answer's status.
    pub(super) async fn send(
        &self,
        signed: &SignedRequest,
        extra: &[(&str, String)],
        body: &Bytes,
    ) -> Result<u16, ObjectError> {
        let build = || {
            let mut request = http::Request::builder().method(signed.method).uri(&signed.url);
            for (name, value) in &signed.headers {
                request = request.header(name, value);
            }
            for (name, value) in extra {
                request = request.header(*name, value);
            }
            request.body(reqwest::Body::from(body.clone()))
        };
        let failed = |kind, source: Box<dyn std::error::Error + Send + Sync>| ObjectError {
            operation: "probe",
            object: signed.url.clone(),
            kind,
            source: Some(source),
        };
        let odd = |e: Box<dyn std::error::Error + Send + Sync>| {
            failed(ObjectErrorKind::Refused { status: 0, code: "request could not be built".to_owned() }, e)
        };
        let mut last = None;
        for _ in 0..2 {
            let request = build().map_err(|e| odd(e.into()))?;
            let request = reqwest::Request::try_from(request).map_err(|e| odd(e.into()))?;
            match self.store.http().send(request).await {
                Ok(response) => return Ok(response.status().as_u16()),
                Err(error) => last = Some(error), // a server may hang up instead of refusing: once more
            }
        }
        Err(failed(ObjectErrorKind::Unreachable, last.map_or_else(|| "no answer".into(), Into::into)))
    }

    /// Removes what this probe, and probes that were cut short, left behind. What is still locked goes the next time.
    pub(super) async fn clean_up(&self) {
        let result = if self.store.abilities().versioning || self.store.settings().object_lock.is_some() {
            self.remove_versions().await
        } else {
            self.remove_objects().await
        };
        if let Err(error) = result {
            tracing::debug!(error = %chain(&error), "objects of a storage probe are left behind");
        }
    }

    pub(super) async fn remove_objects(&self) -> Result<(), ObjectError> {
        for object in self.store.list(DIR, None).await?.objects {
            self.store.delete(&object.name, None).await?;
        }
        Ok(())
    }

    pub(super) async fn remove_versions(&self) -> Result<(), ObjectError> {
        let prefix = self.store.settings().prefix.key(DIR);
        let request = self.store.client().list_object_versions().bucket(self.bucket()).prefix(prefix);
        let page = request.send().await.map_err(|e| failed("list", DIR, e))?;
        let versions = page.versions().iter().map(|v| (v.key(), v.version_id()));
        let markers = page.delete_markers().iter().map(|m| (m.key(), m.version_id()));
        for (key, version) in versions.chain(markers) {
            let name = key.and_then(|k| self.store.settings().prefix.relative(k)?.parse().ok());
            if let Some(name) = name
                && let Err(error) = self.store.delete(&name, version).await
                && error.is_retryable()
            {
                return Err(error);
            }
        }
        Ok(())
    }
}
