//! The checks, each a small experiment.

use aws_sdk_s3::types::{BucketVersioningStatus, ObjectLockEnabled};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use sealift_common::format::names::ObjectName;
use sealift_common::id::{Random, SeriesId, Sha256};

use super::wording::*;
use super::{Abilities, Finding};
use crate::objects::error::{ObjectError, ObjectErrorKind};
use crate::objects::key::ObjectKey;
use crate::objects::settings::Credentials;
use crate::objects::signing::{SignedRequest, SigningError, Unsigned};
use crate::objects::store::{ByteRange, ObjectStore, Put, failed};

/// Length of probe objects in bytes.
const PROBE_LEN: usize = 512;
/// Clock differences above this are reported: signatures are good for a quarter of an hour.
const SKEW_WARNING_MS: i64 = 60_000;
const SSE_C_KEY_MD5: &str = "Ils8RzjhwE8QqGNWZe30aA==";

/// Tries a store out.
pub(super) struct Prober<'a> {
    pub(super) store: &'a ObjectStore,
    dir: String,
    pub(super) bytes: [Bytes; 2],
}

impl<'a> Prober<'a> {
    pub(super) fn new(store: &'a ObjectStore, random: &Random) -> Self {
        let dir = format!("probe/{}", hex::encode(random.bytes::<8>()));
        let bytes = [(); 2].map(|()| Bytes::copy_from_slice(&random.bytes::<PROBE_LEN>()));
        Self { store, dir, bytes }
    }

    fn name(&self, check: &str) -> Result<ObjectKey, ObjectError> {
        ObjectKey::coordinator(&format!("{}/{check}", self.dir)).map_err(|e| ObjectError {
            operation: "probe",
            object: check.to_owned(),
            kind: ObjectErrorKind::Refused { status: 0, code: "not a name".to_owned() },
            source: Some(Box::new(e)),
        })
    }

    pub(super) async fn check_all(&self) -> Result<(Vec<Finding>, Abilities), ObjectError> {
        self.write_read_list().await?;
        let mut findings = Vec::new();
        let mut found = |wording: &Wording, seen: Seen| {
            findings.push(wording.finding(seen));
            seen
        };
        let body = found(&BODY_HASH, self.body_hash().await?);
        let checksum = found(&CHECKSUM, self.checksum().await?);
        let fresh = found(&IF_NONE_MATCH, self.if_none_match().await?);
        let versioning = found(&VERSIONING, self.versioning().await);
        let lock = found(&OBJECT_LOCK, self.object_lock().await?);
        let copy = found(&COPY_SOURCE, self.unsigned_copy_source().await?);
        let acl = found(&ACL, self.unsigned_acl().await?);
        let foreign_lock = found(&LOCK, self.unsigned_lock().await?);
        let sse_c = found(&SSE_C, self.unsigned_sse_c().await?);
        if let Some(put_only) = &self.store.settings().put_only {
            findings.extend(self.put_only(put_only).await?);
        }
        findings.push(self.clock());
        let abilities = Abilities {
            verifies_body_hash: body == Seen::Yes,
            verifies_checksum: checksum == Seen::Yes,
            if_none_match: fresh == Seen::Yes,
            object_lock: lock == Seen::Yes,
            default_lock: self.default_lock().await?,
            versioning: versioning == Seen::Yes,
            unsigned_copy_source: copy != Seen::No,
            unsigned_acl: acl == Seen::Yes,
            unsigned_lock: foreign_lock != Seen::No,
            unsigned_sse_c: sse_c != Seen::No,
        };
        Ok((findings, abilities))
    }

    /// The least a store must do; anything missing here makes it unusable.
    async fn write_read_list(&self) -> Result<(), ObjectError> {
        let name = self.name("a")?;
        self.store.put(&name, self.bytes[0].clone(), Put::Replace).await?;
        let wrong = |operation, code: &str| ObjectError {
            operation,
            object: name.to_string(),
            kind: ObjectErrorKind::Refused { status: 200, code: code.to_owned() },
            source: None,
        };
        if self.store.get(&name, ByteRange::All, PROBE_LEN as u64).await? != self.bytes[0] {
            return Err(wrong("get", "other bytes than were written"));
        }
        let tail = self.store.get(&name, ByteRange::Suffix(20), PROBE_LEN as u64).await?;
        if tail != self.bytes[0].slice(PROBE_LEN - 20..) {
            return Err(wrong("get", "a range is not the bytes asked for"));
        }
        let listed = self.store.list_all(name.as_str(), 1).await?;
        if listed.first().is_none_or(|o| o.name != name || o.size != PROBE_LEN as u64) {
            return Err(wrong("list", "what was written is not listed"));
        }
        Ok(())
    }

    /// Another body than the signed one.
    async fn body_hash(&self) -> Result<Seen, ObjectError> {
        let name = self.name("body-hash")?;
        let signed = self.sign(&name, Vec::new(), &self.bytes[0])?;
        let status = self.send(&signed, &[], &self.bytes[1]).await?;
        let there = self.store.head(&name).await?.is_some();
        Ok((!there && !(200..300).contains(&status)).into())
    }

    /// The signed body, with the checksum of another.
    async fn checksum(&self) -> Result<Seen, ObjectError> {
        let name = self.name("checksum")?;
        let foreign = BASE64.encode(Sha256::of(&self.bytes[0]).as_bytes());
        let signed = self.sign(&name, vec![("x-amz-checksum-sha256", foreign)], &self.bytes[1])?;
        let status = self.send(&signed, &[], &self.bytes[1]).await?;
        Ok((!(200..300).contains(&status)).into())
    }

    /// The same name twice, each time only if it is not there.
    async fn if_none_match(&self) -> Result<Seen, ObjectError> {
        let name = self.name("if-none-match")?;
        let signed = self.sign(&name, vec![("if-none-match", "*".to_owned())], &self.bytes[0])?;
        let first = self.send(&signed, &[], &self.bytes[0]).await?;
        let second = self.send(&signed, &[], &self.bytes[0]).await?;
        Ok(((200..300).contains(&first) && second == 412).into())
    }

    async fn versioning(&self) -> Seen {
        let request = self.store.client().get_bucket_versioning().bucket(self.bucket());
        match request.send().await {
            Ok(answer) => (answer.status() == Some(&BucketVersioningStatus::Enabled)).into(),
            Err(error) => absent_or_unknown(&failed("versioning", "", error)),
        }
    }

    /// Whether the bucket says it locks, and whether a lock asked for is then there.
    async fn object_lock(&self) -> Result<Seen, ObjectError> {
        let request = self.store.client().get_object_lock_configuration().bucket(self.bucket());
        let enabled = match request.send().await {
            Ok(answer) => {
                let configured = answer.object_lock_configuration().and_then(|c| c.object_lock_enabled());
                configured == Some(&ObjectLockEnabled::Enabled)
            }
            Err(error) => return Ok(absent_or_unknown(&failed("object lock", "", error))),
        };
        if !enabled {
            return Ok(Seen::No);
        }
        let name = self.name("lock")?;
        let signed = self.sign(&name, self.lock_headers(), &self.bytes[0])?;
        self.send(&signed, &[], &self.bytes[0]).await?;
        Ok(self.store.head(&name).await?.is_some_and(|head| head.locked_until.is_some()).into())
    }

    /// Whether an object put without a lock has one.
    async fn default_lock(&self) -> Result<bool, ObjectError> {
        Ok(self.store.head(&self.name("a")?).await?.is_some_and(|head| head.locked_until.is_some()))
    }

    async fn unsigned_copy_source(&self) -> Result<Seen, ObjectError> {
        let source = self.store.settings().prefix.key(self.name("a")?.as_str());
        let extra = [("x-amz-copy-source", format!("/{}/{source}", self.bucket()))];
        let name = self.name("copy")?;
        if !self.send_unsigned(&name, &extra).await? {
            return Ok(Seen::No);
        }
        match self.store.get(&name, ByteRange::All, PROBE_LEN as u64).await {
            Ok(bytes) => Ok((bytes != self.bytes[1]).into()),
            Err(error) if error.is_retryable() => Err(error),
            Err(_) => Ok(Seen::Unknown),
        }
    }

    async fn unsigned_acl(&self) -> Result<Seen, ObjectError> {
        let name = self.name("acl")?;
        if !self.send_unsigned(&name, &[("x-amz-acl", "public-read".to_owned())]).await? {
            return Ok(Seen::No);
        }
        // Whoever comes without a credential: the question that matters, and it needs no permission to ask.
        let anonymous =
            SignedRequest { headers: Vec::new(), ..self.sign(&name, Vec::new(), &self.bytes[1])? };
        let anonymous = SignedRequest { method: "GET", ..anonymous };
        Ok(((200..300).contains(&self.send(&anonymous, &[], &Bytes::new()).await?)).into())
    }

    async fn unsigned_lock(&self) -> Result<Seen, ObjectError> {
        let name = self.name("foreign-lock")?;
        if !self.send_unsigned(&name, &self.lock_headers()).await? {
            return Ok(Seen::No);
        }
        Ok(self.store.head(&name).await?.map_or(Seen::Unknown, |head| head.locked_until.is_some().into()))
    }

    async fn unsigned_sse_c(&self) -> Result<Seen, ObjectError> {
        const PREFIX: &str = "x-amz-server-side-encryption-customer-";
        let name = self.name("sse-c")?;
        // A fixed key: what is encrypted with it is removed at once.
        let extra = [
            ("algorithm", "AES256"),
            ("key", "c2VhbGlmdCBzdG9yYWdlIHByb2JlLCAzMiBieXRlcyE="),
            ("key-md5", SSE_C_KEY_MD5),
        ]
        .map(|(name, value)| (format!("{PREFIX}{name}"), value.to_owned()));
        let extra: Vec<(&str, String)> = extra.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
        if !self.send_unsigned(&name, &extra).await? {
            return Ok(Seen::No);
        }
        match self.store.get(&name, ByteRange::All, PROBE_LEN as u64).await {
            Ok(bytes) => Ok((bytes != self.bytes[1]).into()),
            Err(error) if error.is_retryable() => Err(error),
            Err(_) => Ok(Seen::Yes), // not readable without the key
        }
    }

    /// Whether the credential that signs for agents can put below `series/`, and nothing else.
    async fn put_only(&self, by: &Credentials) -> Result<Vec<Finding>, ObjectError> {
        // Not all zeros: that series is the coordinator's own, and lies elsewhere.
        let series = SeriesId::from_bytes([0xff; 16]);
        let name = ObjectKey::from(ObjectName::Pack { series, sha256: Sha256::of(&self.bytes[1]) });
        let settings = self.store.settings();
        let now = self.store.clock().now();
        let sign = |method: &'static str, body: &Bytes| {
            let body_sha256 = Sha256::of(body);
            Unsigned { method, name: &name, headers: Vec::new(), body_sha256, now }.sign(settings, by)
        };
        let signer = |e: SigningError| self.signer_failed(&name, e);
        let put = self.send(&sign("PUT", &self.bytes[1]).map_err(signer)?, &[], &self.bytes[1]).await?;
        let get = self.send(&sign("GET", &Bytes::new()).map_err(signer)?, &[], &Bytes::new()).await?;
        self.store.delete(&name, None).await?;
        let works = PUT_ONLY_WORKS.finding((200..300).contains(&put).into());
        Ok(vec![works, PUT_ONLY_READS.finding((200..300).contains(&get).into())])
    }

    fn clock(&self) -> Finding {
        let offset = self.store.clock().offset_ms();
        Finding {
            check: "clock",
            result: format!("{:+} s", offset / 1_000),
            meaning: "how far the store's clock is ahead of this machine's; signatures follow the store's",
            warning: offset.abs() > SKEW_WARNING_MS,
        }
    }
}
