//! One suite for every S3 server: what Sealift needs of a store, through [`ObjectStore`] and signed requests alone. Tests run
//! it against each real server; what servers may do differently is [`super::probe`]'s business.

use bytes::Bytes;
use sealift_common::format::names::ObjectName;
use sealift_common::id::{Random, SeriesId, Sha256};

use super::error::ObjectErrorKind;
use super::key::ObjectKey;
use super::signing::{MAX_PACK, PutTerms, SignedRequest};
use super::store::{ByteRange, ObjectStore, Put};
use super::{ObjectError, probe};

/// A server that cannot hold Sealift's objects, or does so wrongly.
#[derive(Debug, thiserror::Error)]
pub enum Nonconformance {
    /// An operation failed that must not.
    #[error("an operation failed that must not")]
    Failed(#[source] ObjectError),
    /// A signed request was not even sent.
    #[error("a signed request could not be sent: {0}")]
    Unsent(String),
    /// The server did something else than it must.
    #[error("{0}")]
    Wrong(String),
}

impl From<ObjectError> for Nonconformance {
    fn from(error: ObjectError) -> Self {
        Self::Failed(error)
    }
}

fn must(holds: bool, what: &str) -> Result<(), Nonconformance> {
    if holds { Ok(()) } else { Err(Nonconformance::Wrong(what.to_owned())) }
}

/// Runs the whole suite below a series of its own, and removes what it wrote.
///
/// # Errors
/// The first [`Nonconformance`].
pub async fn run(store: &ObjectStore, random: &Random) -> Result<(), Nonconformance> {
    let report = probe::run(store, random).await;
    must(
        report.usable,
        &format!("the probe finds the store unusable: {}", report.error.unwrap_or_default()),
    )?;
    let series = SeriesId::generate(random);
    own_operations(store, series, random).await?;
    listing(store, series, random).await?;
    signed_puts(store, series, random).await?;
    signed_gets(store, series, random).await?;
    remove_all(store, &format!("series/{series}/")).await
}

/// A versioned bucket shows the version before, once the newest is gone: so more than one round.
async fn remove_all(store: &ObjectStore, below: &str) -> Result<(), Nonconformance> {
    for _ in 0..8 {
        let left = store.list_all(below, 10_000).await?;
        if left.is_empty() {
            return Ok(());
        }
        for object in left {
            let version = store.head(&object.name).await?.and_then(|head| head.version);
            store.delete(&object.name, version.as_deref()).await?;
        }
    }
    Err(Nonconformance::Wrong("deleted objects are still listed".to_owned()))
}

fn random_bytes(random: &Random, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes.into()
}

async fn own_operations(
    store: &ObjectStore,
    series: SeriesId,
    random: &Random,
) -> Result<(), Nonconformance> {
    let body = random_bytes(random, 100_000);
    let name = ObjectKey::from(ObjectName::Pack { series, sha256: Sha256::of(&body) });
    must(store.head(&name).await?.is_none(), "head finds what was never written")?;
    let missing = store.get(&name, ByteRange::All, 1).await;
    must(
        matches!(&missing, Err(e) if e.kind == ObjectErrorKind::NotFound),
        "get of what was never written is not `not found`",
    )?;
    store.put(&name, body.clone(), Put::New).await?;
    let head = store.head(&name).await?;
    must(head.as_ref().is_some_and(|h| h.size == 100_000), "head does not show the length")?;
    must(
        head.and_then(|h| h.sha256).is_none_or(|sha256| sha256 == Sha256::of(&body)),
        "head shows another checksum",
    )?;
    must(store.get(&name, ByteRange::All, 100_000).await? == body, "get returns other bytes")?;
    let range = ByteRange::From { offset: 70_000, len: 1_234 };
    must(store.get(&name, range, 1_234).await? == body.slice(70_000..71_234), "a range returns other bytes")?;
    must(
        store.get(&name, ByteRange::Suffix(20), 20).await? == body.slice(99_980..),
        "a suffix range returns other bytes",
    )?;
    let too_large = store.get(&name, ByteRange::All, 99_999).await;
    must(matches!(too_large, Err(e) if e.kind == ObjectErrorKind::TooLarge { limit: 99_999 }), "no limit")?;
    must(store.hash(&name, 100_000).await? == (100_000, Sha256::of(&body)), "hash of other bytes")?;
    let again = store.put(&name, body, Put::New).await;
    let refused = matches!(&again, Err(e) if e.kind == ObjectErrorKind::AlreadyThere);
    must(refused == store.abilities().if_none_match, "if-none-match is not as the probe found it")
}

async fn listing(store: &ObjectStore, series: SeriesId, random: &Random) -> Result<(), Nonconformance> {
    let mut names = Vec::new();
    for sequence in 1..=25 {
        let body = random_bytes(random, 300);
        let name = ObjectKey::from(ObjectName::Manifest { series, sequence, sha256: Sha256::of(&body) });
        store.put(&name, body, Put::New).await?;
        names.push(name);
    }
    let below = format!("series/{series}/manifests/");
    let listed = store.list_all(&below, 1_000).await?;
    must(listed.iter().map(|o| &o.name).eq(names.iter()), "a listing is not complete, or not in order")?;
    must(listed.iter().all(|o| o.size == 300), "a listing shows other lengths")
}

async fn signed_puts(store: &ObjectStore, series: SeriesId, random: &Random) -> Result<(), Nonconformance> {
    let body = random_bytes(random, 1 << 20);
    let name = ObjectKey::from(ObjectName::Pack { series, sha256: Sha256::of(&body) });
    let terms = PutTerms { name: &name, sha256: Sha256::of(&body), size: body.len() as u64, limit: MAX_PACK };
    let signed = store.sign_put(terms).map_err(|e| Nonconformance::Unsent(e.to_string()))?;

    let longer = random_bytes(random, (1 << 20) + 1);
    must(send(store, &signed, &longer).await?.0 >= 300, "a longer body than the signed one was accepted")?;
    let other_name = signed.url.replace(&name.to_string(), &format!("{name}0"));
    let elsewhere = SignedRequest { url: other_name, ..signed.clone() };
    must(send(store, &elsewhere, &body).await?.0 == 403, "a signature is good for another name")?;
    let mut tampered = signed.clone();
    for (header, value) in &mut tampered.headers {
        if header == "x-amz-content-sha256" {
            *value = Sha256::of(&longer).to_string();
        }
    }
    must(send(store, &tampered, &body).await?.0 >= 400, "a signature is good for another hash")?;
    must(store.head(&name).await?.is_none(), "a refused upload left an object")?;

    if store.abilities().verifies_body_hash {
        let other = random_bytes(random, 1 << 20);
        must(send(store, &signed, &other).await?.0 >= 400, "other bytes than the signed ones were accepted")?;
        must(store.head(&name).await?.is_none(), "a refused upload left an object")?;
    }
    let (status, _) = send(store, &signed, &body).await?;
    must((200..300).contains(&status), &format!("the signed upload was refused: {status}"))?;
    must(store.hash(&name, MAX_PACK).await?.1 == Sha256::of(&body), "the upload stored other bytes")?;
    let again = send(store, &signed, &body).await?.0;
    let expected = if store.abilities().if_none_match { 412 } else { 200 };
    must(again == expected, &format!("the same upload again: {again} instead of {expected}"))
}

async fn signed_gets(store: &ObjectStore, series: SeriesId, random: &Random) -> Result<(), Nonconformance> {
    let body = random_bytes(random, 5_000);
    let name = ObjectKey::from(ObjectName::Pack { series, sha256: Sha256::of(&body) });
    store.put(&name, body.clone(), Put::New).await?;
    let mut signed = store.sign_get(&name).map_err(|e| Nonconformance::Unsent(e.to_string()))?;
    must(
        send(store, &signed, &Bytes::new()).await? == (200, body.clone()),
        "a signed get returns other bytes",
    )?;
    signed.headers.push(("range".to_owned(), "bytes=10-19".to_owned()));
    let ranged = send(store, &signed, &Bytes::new()).await?;
    must(
        ranged.1 == body.slice(10..20),
        &format!("a signed get with a range returns {} bytes, status {}", ranged.1.len(), ranged.0),
    )
}

async fn send(
    store: &ObjectStore,
    signed: &SignedRequest,
    body: &Bytes,
) -> Result<(u16, Bytes), Nonconformance> {
    let unsent = |e: &dyn std::error::Error| Nonconformance::Unsent(e.to_string());
    let mut request = http::Request::builder().method(signed.method).uri(&signed.url);
    for (name, value) in signed.headers.iter().filter(|(name, _)| name != "content-length") {
        request = request.header(name, value);
    }
    let request = request.body(reqwest::Body::from(body.clone())).map_err(|e| unsent(&e))?;
    let request = reqwest::Request::try_from(request).map_err(|e| unsent(&e))?;
    match store.http().send(request).await {
        Ok(response) => {
            let status = response.status().as_u16();
            Ok((status, response.bytes().await.map_err(|e| unsent(&e))?))
        }
        // A server may hang up on a body it does not want.
        Err(error) if !error.is_connect() && !error.is_builder() => Ok((400, Bytes::new())),
        Err(error) => Err(unsent(&error)),
    }
}
