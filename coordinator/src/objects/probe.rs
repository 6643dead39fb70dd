//! Finds out what a store really does with the requests Sealift makes. Servers that call themselves S3 differ in what they
//! verify and in what they let ride along unsigned on a signed PUT; a 200 says nothing about either. So each promise is
//! tried out on small objects below `coordinator/probe/`, which are removed afterwards.
//!
//! What is found is shown by `status` in plain sentences ([`Finding`]) and acted on ([`Abilities`]): for one, packs are
//! read back and hashed where the store does not verify the signed hash.
//!
//! To add a check: a method on [`Prober`], a line in [`run`], and, if the coordinator should act on it, a field of
//! [`Abilities`].

use std::time::Duration;

use aws_sdk_s3::types::{BucketVersioningStatus, ObjectLockEnabled};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use sealift_common::clock::UnixMillis;
use sealift_common::format::names::ObjectName;
use sealift_common::id::{Random, SeriesId, Sha256};

use super::error::{ObjectError, ObjectErrorKind};
use super::key::ObjectKey;
use super::settings::Credentials;
use super::signing::{SignedRequest, Unsigned};
use super::store::{ByteRange, ObjectStore, Put, failed};

/// Below this, relative to the prefix, lies what probes leave behind if they are cut short.
const DIR: &str = "coordinator/probe/";
/// Length of probe objects in bytes.
const PROBE_LEN: usize = 512;
/// How long an object is locked by the lock checks, at most.
const PROBE_LOCK: Duration = Duration::from_secs(60);
/// Clock differences above this are reported: signatures are good for a quarter of an hour.
const SKEW_WARNING_MS: i64 = 60_000;

/// What the coordinator relies on. The default is what is assumed of a store that was never probed: nothing good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// A body that is not the signed one is refused. Where not, packs are read back and hashed.
    pub verifies_body_hash: bool,
    /// `x-amz-checksum-sha256` is compared with the body.
    pub verifies_checksum: bool,
    /// `if-none-match: *` is honoured.
    pub if_none_match: bool,
    /// The bucket has Object Lock, and a lock that is asked for is there afterwards.
    pub object_lock: bool,
    /// The bucket locks every object by itself, asked or not.
    pub default_lock: bool,
    /// The bucket keeps versions.
    pub versioning: bool,
    /// An unsigned `x-amz-copy-source` turns a signed PUT into a copy.
    pub unsigned_copy_source: bool,
    /// An unsigned `x-amz-acl` is obeyed.
    pub unsigned_acl: bool,
    /// Unsigned lock headers are obeyed.
    pub unsigned_lock: bool,
    /// Unsigned SSE-C headers are obeyed.
    pub unsigned_sse_c: bool,
}

/// One thing the probe looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in snake case.
    pub check: &'static str,
    /// What was found, in a word or two.
    pub result: String,
    /// What that means for the admin, in a plain sentence.
    pub meaning: &'static str,
    /// Whether the admin should do something about it.
    pub warning: bool,
}

/// Everything a probe found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// When it was made; `None` before the first.
    pub probed: Option<UnixMillis>,
    /// Whether objects can be written, read and listed.
    pub usable: bool,
    /// Why not.
    pub error: Option<String>,
    /// What was looked at.
    pub findings: Vec<Finding>,
    /// What the coordinator relies on from now on.
    pub abilities: Abilities,
}

/// Probes the store and makes the coordinator act on what was found. A store that is down keeps the abilities last seen.
pub async fn run(store: &ObjectStore, random: &Random) -> ProbeReport {
    let prober = Prober::new(store, random);
    // Nothing is written into what may be another bucket.
    let checked = async {
        store.look().await?;
        prober.check_all().await
    };
    let report = match checked.await {
        Ok((findings, abilities)) => {
            ProbeReport { probed: Some(store.clock().now()), usable: true, error: None, findings, abilities }
        }
        Err(error) => unusable(store, &error),
    };
    if report.usable {
        prober.clean_up().await;
    }
    store.set_report(report.clone());
    report
}

/// What is known of a store that cannot be used: why, and what was found before.
pub(super) fn unusable(store: &ObjectStore, error: &dyn std::error::Error) -> ProbeReport {
    ProbeReport {
        probed: Some(store.clock().now()),
        usable: false,
        error: Some(chain(error)),
        findings: store.report().findings.clone(),
        abilities: store.abilities(),
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What an answer to an odd request shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Yes,
    No,
    Unknown,
}

impl From<bool> for Seen {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// What a finding says for yes and for no. The opposite of `good` is a warning; where that is `Unknown`, both are fine.
struct Wording {
    check: &'static str,
    good: Seen,
    yes: (&'static str, &'static str),
    no: (&'static str, &'static str),
}

impl Wording {
    fn finding(&self, seen: Seen) -> Finding {
        let ((result, meaning), warning) = match seen {
            Seen::Yes => (self.yes, self.good == Seen::No),
            Seen::No => (self.no, self.good == Seen::Yes),
            Seen::Unknown => {
                (("unknown", "the store's answer did not tell; the careful case is assumed"), true)
            }
        };
        Finding { check: self.check, result: result.to_owned(), meaning, warning }
    }
}

struct Prober<'a> {
    store: &'a ObjectStore,
    dir: String,
    bytes: [Bytes; 2],
}

impl<'a> Prober<'a> {
    fn new(store: &'a ObjectStore, random: &Random) -> Self {
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

    async fn check_all(&self) -> Result<(Vec<Finding>, Abilities), ObjectError> {
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
        let signer = |e: super::signing::SigningError| self.signer_failed(&name, e);
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

    fn bucket(&self) -> &str {
        self.store.settings().bucket.as_str()
    }

    fn lock_headers(&self) -> Vec<(&'static str, String)> {
        // Whole seconds: some servers do not read fractions.
        let until = self.store.clock().now().plus(PROBE_LOCK);
        let until = UnixMillis(until.0 - until.0.rem_euclid(1_000));
        vec![
            ("x-amz-object-lock-mode", "GOVERNANCE".to_owned()),
            ("x-amz-object-lock-retain-until-date", until.rfc3339()),
        ]
    }

    /// A PUT signed over `signed_body`, as an agent would get it.
    fn sign(
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

    fn signer_failed(&self, name: &ObjectKey, error: super::signing::SigningError) -> ObjectError {
        ObjectError {
            operation: "sign",
            object: name.to_string(),
            kind: ObjectErrorKind::Refused { status: 0, code: "the signer failed".to_owned() },
            source: Some(Box::new(error)),
        }
    }

    /// Sends a PUT with a good signature and these headers riding along unsigned; whether it was accepted.
    async fn send_unsigned(&self, name: &ObjectKey, extra: &[(&str, String)]) -> Result<bool, ObjectError> {
        let signed = self.sign(name, Vec::new(), &self.bytes[1])?;
        Ok((200..300).contains(&self.send(&signed, extra, &self.bytes[1]).await?))
    }

    /// Sends a request as it is and returns the answer's status.
    async fn send(
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
    async fn clean_up(&self) {
        let result = if self.store.abilities().versioning || self.store.settings().object_lock.is_some() {
            self.remove_versions().await
        } else {
            self.remove_objects().await
        };
        if let Err(error) = result {
            tracing::debug!(error = %chain(&error), "objects of a storage probe are left behind");
        }
    }

    async fn remove_objects(&self) -> Result<(), ObjectError> {
        for object in self.store.list(DIR, None).await?.objects {
            self.store.delete(&object.name, None).await?;
        }
        Ok(())
    }

    async fn remove_versions(&self) -> Result<(), ObjectError> {
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

/// A feature whose question the server does not know is not there; a question we may not ask stays open.
fn absent_or_unknown(error: &ObjectError) -> Seen {
    match error.kind {
        ObjectErrorKind::NotFound | ObjectErrorKind::Refused { .. } => Seen::No,
        ObjectErrorKind::Unavailable => Seen::No, // 501 Not Implemented
        _ => Seen::Unknown,
    }
}

const SSE_C_KEY_MD5: &str = "Ils8RzjhwE8QqGNWZe30aA==";

const BODY_HASH: Wording = Wording {
    check: "body_hash_verified",
    good: Seen::Yes,
    yes: ("yes", "the store refuses bytes that are not those that were signed"),
    no: (
        "no",
        "the store accepts other bytes than were signed, so every new object is read back and hashed before it counts: \
         slower, and twice the traffic",
    ),
};
const CHECKSUM: Wording = Wording {
    check: "checksum_verified",
    good: Seen::Unknown,
    yes: ("yes", "the store compares x-amz-checksum-sha256 with what it received"),
    no: ("no", "the store ignores x-amz-checksum-sha256; the signed body hash is what protects uploads here"),
};
const IF_NONE_MATCH: Wording = Wording {
    check: "if_none_match",
    good: Seen::Unknown,
    yes: ("honoured", "an object that is there cannot be written again"),
    no: ("ignored", "an object can be written again, with the same bytes only"),
};
const VERSIONING: Wording = Wording {
    check: "versioning",
    good: Seen::Unknown,
    yes: ("on", "the bucket keeps replaced and deleted objects as versions"),
    no: ("off", "the bucket keeps no versions"),
};
const OBJECT_LOCK: Wording = Wording {
    check: "object_lock",
    good: Seen::Unknown,
    yes: ("yes", "objects can be locked against deletion"),
    no: ("no", "nothing in this bucket can be locked: whoever takes over the coordinator can delete backups"),
};
const COPY_SOURCE: Wording = Wording {
    check: "unsigned_copy_source",
    good: Seen::No,
    yes: (
        "honoured",
        "a hostile host could fill an object of its own series with a copy of another object; configure a put-only \
         credential, which cannot read",
    ),
    no: ("refused or ignored", "a signed upload cannot be turned into a copy"),
};
const ACL: Wording = Wording {
    check: "unsigned_acl",
    good: Seen::No,
    yes: (
        "honoured",
        "a hostile host could make its own uploads public (they are sealed); Sealift signs a private ACL here, which \
         prevents it",
    ),
    no: ("refused or ignored", "a signed upload cannot be made public"),
};
const LOCK: Wording = Wording {
    check: "unsigned_lock",
    good: Seen::No,
    yes: (
        "honoured",
        "a hostile host could lock its own uploads for years; such objects are refused when they are confirmed",
    ),
    no: ("refused or ignored", "a signed upload cannot be given a lock of the host's choice"),
};
const SSE_C: Wording = Wording {
    check: "unsigned_sse_c",
    good: Seen::No,
    yes: (
        "honoured",
        "a hostile host could encrypt its own uploads with a key of its own; such objects are refused when they are \
         confirmed",
    ),
    no: ("refused or ignored", "a signed upload cannot be encrypted with a key of the host's"),
};
const PUT_ONLY_WORKS: Wording = Wording {
    check: "put_only_credential",
    good: Seen::Yes,
    yes: ("works", "uploads are signed with a credential that may only put"),
    no: (
        "refused",
        "the put-only credential cannot put below series/: no backup can be stored; check its policy",
    ),
};
const PUT_ONLY_READS: Wording = Wording {
    check: "put_only_can_read",
    good: Seen::No,
    yes: ("yes", "the put-only credential can also read; give it the policy of deploy/iam/put-only.json"),
    no: ("no", "the credential that signs uploads cannot read"),
};
