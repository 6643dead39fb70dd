//! Reads the coordinator's own backups: which there are, whose they are, and what is in the newest that opens.
//!
//! Slots are encrypted to public keys, so whoever can write to the bucket can make something that opens. What tells is who
//! signed it: a key that the trust policy attests, or else one key for all of them; two signers are refused unless one is
//! named.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::BytesMut;
use futures::StreamExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::{Identities, KeyStanding, RootPin, TrustObject};
use sealift_common::format::coordinator::{CA, CATALOGUE, DATABASE};
use sealift_common::format::manifest::Stream;
use sealift_common::format::names::{
    ObjectName, SERIES_PREFIX, TRUST_PREFIX, agent_prefix, manifests_prefix,
};
use sealift_common::id::{SeriesId, Sha256};
use sealift_common::restore::{
    Beliefs, Located, OpenBackup, RestoreError, SignedBackup, StreamReader, Trust,
};

use super::generation::Mark;
use super::lines::{self, Line, MAX_LINE};
use super::names::Names;
use super::source::BucketSource;
use super::{RecoveryError, backup};
use crate::core::Core;
use crate::objects::{ByteRange, ObjectStore};
use crate::store::recovery;

/// Agent keys of the coordinator's that are looked at.
const MAX_KEYS: usize = 1_000;
/// Largest trust object that is read.
const MAX_TRUST: u64 = 20 * 1024 * 1024;
/// Series, or manifests of one, at most.
const MAX_SERIES: usize = 5_000_000;
/// Manifests that are opened side by side.
const PARALLEL: usize = 16;
/// Largest CA that is read.
const MAX_CA: usize = 1024 * 1024;

/// One backup of the coordinator's that opens.
pub struct Own {
    backup: OpenBackup,
    /// Its manifest.
    pub name: ObjectName,
    /// When it was made.
    pub created: UnixMillis,
    /// How new its database is.
    pub mark: Mark,
}

/// Finds the newest that opens; `None` where there is none at all.
///
/// # Errors
/// [`RecoveryError::Restore`] where there are some and none opens, [`RecoveryError::Signers`].
pub async fn newest(
    objects: &ObjectStore,
    roots: &[Sha256],
    identities: Arc<Identities>,
    signer: Option<Sha256>,
) -> Result<Option<Own>, RecoveryError> {
    let names = backup::manifests(objects).await?;
    if names.is_empty() {
        return Ok(None);
    }
    let trust = trust(objects, roots).await?;
    let source = Arc::new(BucketSource(objects.clone()));
    let (mut signed, mut failure) = (Vec::new(), None);
    for name in names.into_iter().rev() {
        match load(objects, &source, &trust, name).await {
            Ok(backup) => signed.push((name, backup)),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let signers: BTreeSet<Sha256> =
        signed.iter().map(|(_, b)| b.public().signing_key.fingerprint()).collect();
    for (name, backup) in signed {
        let key = backup.public().signing_key.fingerprint();
        let believed = match signer {
            Some(wanted) => key == wanted,
            None => signers.len() == 1 || backup.standing() == KeyStanding::Attested,
        };
        if !believed {
            failure = failure.or(Some(RecoveryError::Signers(signers.iter().copied().collect())));
            continue;
        }
        let created = backup.public().created;
        match backup.open(source.clone(), identities.clone()).await {
            Ok(backup) => {
                let mark = head(&backup).await?.mark();
                return Ok(Some(Own { backup, name, created, mark }));
            }
            Err(error) => failure = failure.or(Some(error.into())),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Opens the newest manifest of each series that neither the database nor `names` knows: it says host and source.
///
/// # Errors
/// Those of bucket and database; a manifest that does not open says nothing, and that is no error.
pub async fn open_names(
    core: &Core,
    objects: &ObjectStore,
    roots: &[Sha256],
    identities: Arc<Identities>,
    names: &mut Names,
) -> Result<(), RecoveryError> {
    let known = recovery::all_series(&mut *core.store.reader().await?).await?;
    let folders = objects.folders(SERIES_PREFIX, MAX_SERIES).await?;
    let all = folders.iter().filter_map(|folder| folder.parse::<SeriesId>().ok());
    let unknown: Vec<SeriesId> = all.filter(|id| !known.contains(id) && !names.knows(*id)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let (trust, source) = (trust(objects, roots).await?, Arc::new(BucketSource(objects.clone())));
    let (trust, source, identities) = (&trust, &source, &identities);
    let mut opened = futures::stream::iter(unknown)
        .map(|series| async move {
            let listed = objects.list_all(&manifests_prefix(series), MAX_SERIES).await?;
            let Some(name) = listed.last().and_then(|object| object.name.as_str().parse().ok()) else {
                return Ok(None);
            };
            let Ok(signed) = load(objects, source, trust, name).await else { return Ok(None) };
            let agent = signed.public().agent;
            let opened = signed.open(source.clone(), identities.clone()).await.ok();
            Ok::<_, RecoveryError>(opened.map(|backup| (series, agent, backup.content().source.clone())))
        })
        .buffer_unordered(PARALLEL);
    while let Some(found) = opened.next().await {
        if let Some((series, agent, source)) = found? {
            names.opened(series, agent, &source);
        }
    }
    Ok(())
}

async fn trust(objects: &ObjectStore, roots: &[Sha256]) -> Result<Trust, RecoveryError> {
    let mut all = Vec::new();
    for listed in objects.list_all(TRUST_PREFIX, MAX_KEYS * 100).await? {
        let Ok(name @ ObjectName::Trust { .. }) = listed.name.as_str().parse() else { continue };
        let bytes = objects.get(&listed.name, ByteRange::All, MAX_TRUST).await?;
        all.push(TrustObject::parse_named(&name, &bytes).map_err(RestoreError::Trust)?);
    }
    if roots.is_empty() {
        return Err(crate::identity::IdentityError::NoRoots.into());
    }
    let repository = Trust::repository_of(&all)?;
    Ok(Trust::verify(&RootPin::any_of(roots.to_vec()), repository, &all)?)
}

async fn load(
    objects: &ObjectStore,
    source: &BucketSource,
    trust: &Trust,
    manifest: ObjectName,
) -> Result<SignedBackup, RecoveryError> {
    let repository = trust.policy().repository;
    // The keys of which agent, only the manifest says: it is looked at twice, unbelieved the first time.
    let located = Located { repository, manifest, slots: Vec::new(), agent_keys: Vec::new() };
    let first = SignedBackup::load(source, &located, Beliefs { trust, accept_unknown_key: true }).await?;
    let listed = objects.list_all(&agent_prefix(first.public().agent), MAX_KEYS).await?;
    let agent_keys = listed.iter().filter_map(|object| object.name.as_str().parse().ok()).collect();
    let located = Located { agent_keys, ..located };
    Ok(SignedBackup::load(source, &located, Beliefs { trust, accept_unknown_key: false }).await?)
}

async fn head(backup: &OpenBackup) -> Result<lines::Head, RecoveryError> {
    let mut reader = Lines::new(backup, DATABASE)?;
    match reader.next().await? {
        Some((number, line)) => match lines::parse(number, &line)? {
            Line::Head(head) => Ok(head),
            _ => Err(RecoveryError::Content("it does not begin as it must".to_owned())),
        },
        None => Err(RecoveryError::Content("it is empty".to_owned())),
    }
}

impl Own {
    /// The lines of its database.
    ///
    /// # Errors
    /// [`RecoveryError::Restore`] where it has none.
    pub fn database(&self) -> Result<Lines, RecoveryError> {
        Lines::new(&self.backup, DATABASE)
    }

    /// What series and hosts are called.
    ///
    /// # Errors
    /// [`RecoveryError`]
    pub async fn names(&self) -> Result<Names, RecoveryError> {
        let (mut names, mut lines) = (Names::default(), Lines::new(&self.backup, CATALOGUE)?);
        while let Some((number, line)) = lines.next().await? {
            let entry = serde_json::from_slice(&line)
                .map_err(|_| RecoveryError::Content(format!("line {number} of its catalogue is no entry")))?;
            names.take(&entry);
        }
        Ok(names)
    }

    /// The CA's files, as JSON.
    ///
    /// # Errors
    /// [`RecoveryError`]
    pub async fn ca(&self) -> Result<zeroize::Zeroizing<Vec<u8>>, RecoveryError> {
        let mut whole = Whole::new(&self.backup, CA)?;
        let mut all = zeroize::Zeroizing::new(Vec::new());
        while let Some(bytes) = whole.next().await? {
            all.extend_from_slice(&bytes);
            if all.len() > MAX_CA {
                return Err(RecoveryError::Content("its CA is too long".to_owned()));
            }
        }
        Ok(all)
    }
}

/// A stream's bytes, with length and hash checked at its end.
struct Whole {
    reader: StreamReader,
    stream: Stream,
    hasher: blake3::Hasher,
}

impl Whole {
    fn new(backup: &OpenBackup, name: &str) -> Result<Self, RecoveryError> {
        let stream = backup.stream(name)?.clone();
        Ok(Self { reader: backup.read(&stream)?, stream, hasher: blake3::Hasher::new() })
    }

    async fn next(&mut self) -> Result<Option<bytes::Bytes>, RecoveryError> {
        match self.reader.next().await {
            Some(bytes) => {
                let bytes = bytes?;
                self.hasher.update(&bytes);
                Ok(Some(bytes))
            }
            None if self.hasher.count() == self.stream.raw_len
                && self.hasher.finalize() == self.stream.blake3 =>
            {
                Ok(None)
            }
            None => Err(RecoveryError::Content(format!("its {} is not whole", self.stream.name))),
        }
    }
}

/// A stream's lines. Only when the last one was taken is it known that all were right.
pub struct Lines {
    whole: Whole,
    rest: BytesMut,
    number: u64,
    ended: bool,
}

impl Lines {
    fn new(backup: &OpenBackup, name: &str) -> Result<Self, RecoveryError> {
        Ok(Self { whole: Whole::new(backup, name)?, rest: BytesMut::new(), number: 0, ended: false })
    }

    /// The next line with its number, without its end.
    ///
    /// # Errors
    /// [`RecoveryError`]; nothing that came before is to be used then.
    pub async fn next(&mut self) -> Result<Option<(u64, BytesMut)>, RecoveryError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let mut line = self.rest.split_to(end + 1);
                line.truncate(end);
                self.number += 1;
                return Ok(Some((self.number, line)));
            }
            if self.ended {
                let whole = self.rest.is_empty();
                return if whole {
                    Ok(None)
                } else {
                    Err(RecoveryError::Content("its last line is cut".to_owned()))
                };
            }
            match self.whole.next().await? {
                Some(bytes) if self.rest.len() + bytes.len() <= MAX_LINE => {
                    self.rest.extend_from_slice(&bytes)
                }
                Some(_) => return Err(RecoveryError::Content("one of its lines is too long".to_owned())),
                None => self.ended = true,
            }
        }
    }
}
