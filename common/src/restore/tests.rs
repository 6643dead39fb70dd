//! Whole restores out of a store in memory, which tests can damage.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;

use super::extract::SafePath;
use super::tree::{Progress, TreeOptions, TreeReport, Wanted, restore_tree};
use super::*;
use crate::clock::UnixMillis;
use crate::crypto::key_file::generate_identity;
use crate::crypto::trust::RuleRecipient;
use crate::crypto::{
    AgentKeyObject, Identities, KeyOwner, KeySlots, Recipient, RootPin, Rule, SeriesSecret, SigningKey,
    TrustObject, TrustPolicy,
};
use crate::format::catalog::{CatalogEntry, EntryKind};
use crate::format::chunk::{Chunk, ChunkClass, ChunkId};
use crate::format::extent::ExtentBuilder;
use crate::format::frame::{FrameCompressor, RawFrame};
use crate::format::manifest::{
    Content, ManifestObject, Outcome, PackRef, PublicDraft, Source, Status, Stream, StreamKind,
};
use crate::format::names::ObjectName;
use crate::format::pack::BackupKeys;
use crate::id::{AgentId, BackupId, Random, RepositoryId, SeriesId, Sha256};

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([1; 16]);
const SERIES: SeriesId = SeriesId::from_bytes([2; 16]);
const AGENT: AgentId = AgentId::from_bytes([4; 16]);

#[derive(Debug, Default)]
struct Memory {
    objects: Mutex<HashMap<String, Bytes>>,
    gets: Mutex<Vec<String>>,
}

impl Memory {
    fn put(&self, name: &ObjectName, bytes: impl Into<Bytes>) {
        self.objects.lock().unwrap().insert(name.to_string(), bytes.into());
    }

    fn bytes(&self, name: &str) -> Result<Bytes, ObjectError> {
        self.gets.lock().unwrap().push(name.to_owned());
        let found = self.objects.lock().unwrap().get(name).cloned();
        found.ok_or_else(|| ObjectError::NotFound { object: name.to_owned() })
    }
}

impl ObjectSource for Memory {
    fn get<'a>(&'a self, object: &'a ObjectName, _: u64) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        async move { self.bytes(&object.to_string()) }.boxed()
    }

    fn get_range<'a>(
        &'a self,
        object: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        async move {
            let all = self.bytes(&object.to_string())?;
            let at = |offset: u64| (offset as usize).min(all.len());
            Ok(all.slice(at(range.start)..at(range.end)))
        }
        .boxed()
    }

    fn announce(&self, _: &[ObjectName]) {}
}

/// A repository with one host and one series.
struct Repository {
    store: Arc<Memory>,
    root: SigningKey,
    agent: SigningKey,
    ann: Arc<Identities>,
    recipient: Recipient,
    trust: TrustObject,
    agent_key: ObjectName,
}

struct Input<'a> {
    name: &'a str,
    kind: StreamKind,
    data: &'a [u8],
    outcome: Outcome,
}

fn dump<'a>(name: &'a str, data: &'a [u8]) -> Input<'a> {
    Input { name, kind: StreamKind::Dump, data, outcome: Outcome::Success }
}

fn person() -> (Arc<Identities>, Recipient) {
    let (text, recipient) = generate_identity(UnixMillis(0));
    (Arc::new(Identities::parse(Path::new("key.txt"), text.expose()).unwrap()), recipient)
}

impl Repository {
    fn new() -> Self {
        let (ann, recipient) = person();
        let (root, agent) =
            (SigningKey::generate(&Random::from_seed(1)), SigningKey::generate(&Random::from_seed(2)));
        let recipients = vec![RuleRecipient { recipient: recipient.clone(), label: String::new() }];
        let policy = TrustPolicy {
            repository: REPOSITORY,
            version: 1,
            created: UnixMillis(1),
            previous: None,
            rules: vec![Rule { scope: String::new(), recipients }],
            agents: vec![],
            next_roots: vec![],
            next_threshold: 0,
        };
        let trust = TrustObject::sign(policy, &[&root]).unwrap();
        let key = AgentKeyObject::first(AGENT, &agent, UnixMillis(0));
        let store = Arc::new(Memory::default());
        store.put(&key.name(), key.bytes().to_vec());
        Self { store, root, agent, ann, recipient, trust, agent_key: key.name() }
    }

    fn trust(&self) -> Trust {
        let pin = RootPin::any_of(vec![self.root.verifying_key().fingerprint()]);
        Trust::verify(&pin, REPOSITORY, std::slice::from_ref(&self.trust)).unwrap()
    }

    fn keys(&self, seed: u64) -> BackupKeys {
        let random = Random::from_seed(seed);
        let owner = KeyOwner { repository: REPOSITORY, series: SERIES, backup: BackupId::generate(&random) };
        let secret = SeriesSecret::from_bytes([3; 32]);
        BackupKeys::generate(&random, &[9; 32], owner, secret, std::slice::from_ref(&self.recipient)).unwrap()
    }

    /// Packs of at most `frames` frames of `frame_len` bytes each, and where the data went.
    fn store_packs(
        &self,
        keys: &BackupKeys,
        data: &[u8],
        frame_len: usize,
        frames: usize,
    ) -> Vec<(PackRef, u64)> {
        let mut compressor = FrameCompressor::new(1).unwrap();
        let random = Random::from_seed(data.len() as u64 + 77);
        let mut refs = Vec::new();
        for part in data.chunks(frame_len * frames) {
            let mut writer = keys.begin_pack(&random);
            for piece in part.chunks(frame_len) {
                let mut frame = RawFrame::new();
                frame.push(&Chunk { id: ChunkId([0; 16]), data: Bytes::copy_from_slice(piece) });
                let (sealed, _) = writer.assign(frame).ok().unwrap().seal(&mut compressor);
                writer.complete(sealed).unwrap();
            }
            let pack = writer.finish().unwrap();
            self.store.put(&pack.meta().name(SERIES), pack.body().concat());
            refs.push((
                PackRef { meta: *pack.meta(), origin: keys.owner.backup, referenced_raw: 0 },
                pack.raw_len(),
            ));
        }
        refs
    }

    fn backup(&self, seed: u64, inputs: &[Input<'_>]) -> Located {
        let keys = self.keys(seed);
        let (mut packs, mut streams) = (Vec::new(), Vec::new());
        for input in inputs {
            let mut extents = ExtentBuilder::new();
            for (pack, raw_len) in self.store_packs(&keys, input.data, 1000, 5) {
                extents.push(packs.len() as u32, 0, raw_len);
                packs.push(pack);
            }
            streams.push(stream(input, extents));
        }
        self.manifest(&keys, packs, streams, &self.agent)
    }

    fn manifest(
        &self,
        keys: &BackupKeys,
        packs: Vec<PackRef>,
        streams: Vec<Stream>,
        signer: &SigningKey,
    ) -> Located {
        let draft = PublicDraft {
            agent: AGENT,
            sequence: 1,
            previous: None,
            created: UnixMillis(1_700_000_000_123),
            session_nonce: [9; 32],
            trust_version: 1,
            trust_sha256: self.trust.sha256(),
            status: Status::Complete,
            new_stored_bytes: 1,
            packs,
        };
        let content =
            Content { chunking: ChunkClass::Avg16KiB.to_wire(), source: Source::default(), streams };
        let object = ManifestObject::seal(draft, &content, keys, signer, &Random::from_seed(6)).unwrap();
        self.store.put(&object.name, object.bytes);
        Located {
            repository: REPOSITORY,
            manifest: object.name,
            slots: vec![],
            agent_keys: vec![self.agent_key],
        }
    }

    async fn open(&self, located: &Located) -> Result<OpenBackup, RestoreError> {
        self.open_as(located, &self.ann, false).await
    }

    async fn open_as(
        &self,
        located: &Located,
        who: &Arc<Identities>,
        unknown: bool,
    ) -> Result<OpenBackup, RestoreError> {
        let trust = self.trust();
        let beliefs = Beliefs { trust: &trust, accept_unknown_key: unknown };
        let signed = SignedBackup::load(self.store.as_ref(), located, beliefs).await?;
        signed.open(self.store.clone(), who.clone()).await
    }
}

fn stream(input: &Input<'_>, extents: ExtentBuilder) -> Stream {
    Stream {
        name: input.name.to_owned(),
        kind: input.kind,
        raw_len: input.data.len() as u64,
        blake3: *blake3::hash(input.data).as_bytes(),
        extents: extents.finish(),
        outcome: input.outcome,
        catalog_of: (input.kind == StreamKind::Catalog).then(|| "files.tar".to_owned()),
        attributes: BTreeMap::new(),
    }
}

async fn read(backup: &OpenBackup, name: &str) -> Result<Vec<u8>, RestoreError> {
    let stream = backup.stream(name)?.clone();
    let reader = VerifiedReader::new(backup.read(&stream)?.blocking(Handle::current()), &stream);
    let work = move || {
        let mut out = Vec::new();
        reader.copy_to(&mut out, Path::new("memory")).map(|()| out)
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn data(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    Random::from_seed(len as u64).fill(&mut noise);
    // Half of it compresses.
    noise.iter_mut().skip(1).step_by(2).for_each(|byte| *byte = b'x');
    noise
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_come_back_whole_and_in_ranges() {
    let repository = Repository::new();
    let (one, two) = (data(123_456), data(7));
    let located = repository.backup(1, &[dump("a.sql", &one), dump("b.sql", &two), dump("empty.sql", b"")]);
    let backup = repository.open(&located).await.unwrap();
    assert_eq!(read(&backup, "a.sql").await.unwrap(), one);
    assert_eq!(read(&backup, "b.sql").await.unwrap(), two);
    assert_eq!(read(&backup, "empty.sql").await.unwrap(), b"");
    assert!(matches!(read(&backup, "c.sql").await, Err(RestoreError::NotInBackup { .. })));

    let stream = backup.stream("a.sql").unwrap();
    let mut reader = backup.read_ranges(stream, vec![999..1001, 50_000..62_345, 123_455..123_456]).unwrap();
    let mut got = Vec::new();
    while let Some(bytes) = reader.next().await {
        got.extend_from_slice(&bytes.unwrap());
    }
    assert_eq!(got, [&one[999..1001], &one[50_000..62_345], &one[123_455..]].concat());
    assert!(backup.read_ranges(stream, std::iter::once(0..123_457).collect()).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scattered_stream_fetches_no_frame_twice_in_a_row() {
    let repository = Repository::new();
    let keys = repository.keys(1);
    let all = data(100_000);
    let stored = repository.store_packs(&keys, &all, 1000, 10);
    // Every 50 bytes from another pack, round and round.
    let (mut extents, mut expected) = (ExtentBuilder::new(), Vec::new());
    for at in (0..10_000).step_by(50) {
        for pack in 0..10u32 {
            extents.push(pack, at, 50);
            let start = pack as usize * 10_000 + at as usize;
            expected.extend_from_slice(&all[start..start + 50]);
        }
    }
    let streams = vec![stream(&dump("x", &expected), extents)];
    let packs = stored.into_iter().map(|(pack, _)| pack).collect();
    let located = repository.manifest(&keys, packs, streams, &repository.agent);
    let backup = repository.open(&located).await.unwrap();
    assert_eq!(read(&backup, "x").await.unwrap(), expected);
    let gets = repository.store.gets.lock().unwrap().iter().filter(|name| name.contains("/packs/")).count();
    assert!(gets <= 10 + 100, "{gets} GETs for 10 packs of 10 frames");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_altered_byte_is_refused_and_named() {
    let repository = Repository::new();
    let one = data(2_500);
    let located = repository.backup(1, &[dump("a.sql", &one)]);
    let names: Vec<String> = repository.store.objects.lock().unwrap().keys().cloned().collect();
    let mut frames_named = 0;
    for name in names {
        let good = repository.store.objects.lock().unwrap()[&name].clone();
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1 << (at % 8);
            repository.store.objects.lock().unwrap().insert(name.clone(), bad.into());
            let result = match repository.open(&located).await {
                Ok(backup) => read(&backup, "a.sql").await,
                Err(error) => Err(error),
            };
            let Err(error) = result else { panic!("{name} byte {at} was altered unnoticed") };
            assert_eq!(error.class(), Class::Untrusted, "{name} byte {at}: {error}");
            if let RestoreError::Frame { object, .. } = &error {
                assert_eq!(*object, name);
                frames_named += 1;
            }
        }
        repository.store.objects.lock().unwrap().insert(name, good);
    }
    assert!(frames_named > 1_500, "{frames_named}");
    assert!(repository.open(&located).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_were_swapped_forged_or_copied_are_refused() {
    let repository = Repository::new();
    let located = repository.backup(1, &[dump("a.sql", &data(12_000))]);
    let other = Repository { recipient: repository.recipient.clone(), ..Repository::new() };
    let forger = other.keys(99);
    let forged = other.store_packs(&forger, &data(5_000), 1000, 5);
    let forged = other.store.objects.lock().unwrap()[&forged[0].0.meta.name(SERIES).to_string()].clone();
    let packs: Vec<String> = {
        let objects = repository.store.objects.lock().unwrap();
        objects.keys().filter(|name| name.contains("/packs/")).cloned().collect()
    };
    let good = repository.store.objects.lock().unwrap()[&packs[0]].clone();
    let another = repository.store.objects.lock().unwrap()[&packs[1]].clone();
    for bad in [another, forged] {
        repository.store.objects.lock().unwrap().insert(packs[0].clone(), bad);
        let backup = repository.open(&located).await.unwrap();
        let error = read(&backup, "a.sql").await.unwrap_err();
        assert!(matches!(&error, RestoreError::Pack { object, .. } if *object == packs[0]), "{error}");
    }
    repository.store.objects.lock().unwrap().insert(packs[0].clone(), good);
    let ObjectName::Manifest { sequence, sha256, .. } = located.manifest else { unreachable!() };
    let series = SeriesId::from_bytes([7; 16]);
    let elsewhere = ObjectName::Manifest { series, sequence, sha256 };
    let copied = repository.store.objects.lock().unwrap()[&located.manifest.to_string()].clone();
    repository.store.put(&elsewhere, copied);
    let error = repository.open(&Located { manifest: elsewhere, ..located }).await.unwrap_err();
    assert!(matches!(error, RestoreError::Manifest { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signed_and_who_opens_is_checked() {
    let repository = Repository::new();
    let located = repository.backup(1, &[dump("a.sql", b"select 1;")]);
    let (eve, eve_key) = person();
    let error = repository.open_as(&located, &eve, false).await.unwrap_err();
    assert!(matches!(error, RestoreError::Slot { .. }) && error.class() == Class::Failed, "{error}");

    // Slots that were added for a new recipient open manifest and packs.
    let keys = repository.keys(1);
    let located = {
        let packs = repository.store_packs(&keys, b"select 2;", 1000, 5);
        let mut extents = ExtentBuilder::new();
        extents.push(0, 0, 9);
        let streams = vec![stream(&dump("a.sql", b"select 2;"), extents)];
        repository.manifest(&keys, packs.into_iter().map(|p| p.0).collect(), streams, &repository.agent)
    };
    let slots = KeySlots::seal(&keys.data_key, &keys.owner, &[eve_key]).unwrap().encode();
    let name = ObjectName::Slots { series: SERIES, backup: keys.owner.backup, sha256: Sha256::of(&slots) };
    repository.store.put(&name, slots);
    let located = Located { slots: vec![name], ..located };
    let backup = repository.open_as(&located, &eve, false).await.unwrap();
    backup.test_keys().await.unwrap();
    assert_eq!(read(&backup, "a.sql").await.unwrap(), b"select 2;");

    let stranger = SigningKey::generate(&Random::from_seed(50));
    let located = repository.manifest(&keys, vec![], vec![], &stranger);
    let error = repository.open(&located).await.unwrap_err();
    assert!(matches!(error, RestoreError::UnknownKey { .. }), "{error}");
    assert!(repository.open_as(&located, &repository.ann, true).await.is_ok());
}

/// A tar and its catalog: `d/`, `d/a`, `d/b` (a hard link to `d/a`), `l` (a symlink), `big`.
fn tree() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let big = data(20_000);
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut catalog = Vec::new();
    let mut add = |path: &str, kind: EntryKind, body: &[u8], link: &str| {
        let start = builder.get_ref().len() as u64;
        let mut header = ::tar::Header::new_ustar();
        header.set_entry_type(match kind {
            EntryKind::Directory => ::tar::EntryType::Directory,
            EntryKind::Symlink => ::tar::EntryType::Symlink,
            EntryKind::Hardlink => ::tar::EntryType::Link,
            _ => ::tar::EntryType::Regular,
        });
        header.set_size(body.len() as u64);
        header.set_mode(0o700);
        header.set_uid(nix::unistd::getuid().as_raw().into());
        header.set_gid(nix::unistd::getgid().as_raw().into());
        header.set_mtime(1_234);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        builder.append_data(&mut header, path, body).unwrap();
        let entry = CatalogEntry {
            path: path.as_bytes().to_vec(),
            kind,
            size: body.len() as u64,
            mode: 0o700,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
            tar_offset: start,
            tar_len: builder.get_ref().len() as u64 - start,
            link_target: link.as_bytes().to_vec(),
            blake3: (kind == EntryKind::File).then(|| *blake3::hash(body).as_bytes()),
        };
        entry.encode(&mut catalog);
    };
    add("d", EntryKind::Directory, b"", "");
    add("d/a", EntryKind::File, b"content of a", "");
    add("d/b", EntryKind::Hardlink, b"", "d/a");
    add("l", EntryKind::Symlink, b"", "/outside");
    add("big", EntryKind::File, &big, "");
    (builder.into_inner().unwrap(), catalog, big)
}

async fn restore(
    backup: &OpenBackup,
    target: &Path,
    wanted: Wanted,
    options: TreeOptions,
) -> Result<TreeReport, RestoreError> {
    let (backup, target, handle) = (backup.clone(), target.to_owned(), Handle::current());
    let work = move || restore_tree(&handle, &backup, &target, &wanted, options, &Progress::default());
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn paths(paths: &[&str]) -> Wanted {
    Wanted::Paths(paths.iter().map(|path| SafePath::parse(path.as_bytes()).unwrap()).collect())
}

fn directory_backup(repository: &Repository, outcome: Outcome) -> (Located, Vec<u8>) {
    let (tar, catalog, big) = tree();
    let tar = Input { name: "files.tar", kind: StreamKind::PaxTar, data: &tar, outcome };
    let catalog = Input { name: "files.catalog", kind: StreamKind::Catalog, data: &catalog, outcome };
    (repository.backup(1, &[tar, catalog]), big)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_comes_back_whole_in_parts_and_resumed() {
    let repository = Repository::new();
    let (located, big) = directory_backup(&repository, Outcome::Success);
    let backup = repository.open(&located).await.unwrap();
    let (all, part, link) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = all.path().join("new");
    let report = restore(&backup, &all, Wanted::Everything, TreeOptions::default()).await.unwrap();
    assert_eq!((report.written, report.skipped, report.warnings.len()), (5, 0, 0));
    assert_eq!(std::fs::read(all.join("big")).unwrap(), big);
    assert_eq!(
        std::fs::metadata(all.join("d/a")).unwrap().ino(),
        std::fs::metadata(all.join("d/b")).unwrap().ino()
    );
    assert_eq!(std::fs::read_link(all.join("l")).unwrap(), Path::new("/outside"));

    let refused = restore(&backup, &all, Wanted::Everything, TreeOptions::default()).await.unwrap_err();
    assert!(matches!(refused, RestoreError::Target { .. }), "{refused}");
    std::fs::remove_file(all.join("big")).unwrap();
    std::fs::write(all.join("d/a"), "CONTENT of a").unwrap();
    std::fs::write(all.join("mine"), "stays").unwrap();
    let resume = TreeOptions { resume: true, ..TreeOptions::default() };
    let report = restore(&backup, &all, Wanted::Everything, resume).await.unwrap();
    assert_eq!(report.skipped, 0, "both files were missing or altered");
    let report = restore(&backup, &all, Wanted::Everything, resume).await.unwrap();
    assert_eq!(report.skipped, 2);
    assert_eq!(std::fs::read(all.join("d/a")).unwrap(), b"content of a");
    assert_eq!(std::fs::read(all.join("mine")).unwrap(), b"stays");

    let report = restore(&backup, part.path(), paths(&["d/a"]), TreeOptions::default()).await.unwrap();
    assert_eq!(report.written, 2, "the file and the directory above it");
    assert_eq!(std::fs::read_dir(part.path()).unwrap().count(), 1);
    let missing =
        restore(&backup, &part.path().join("x"), paths(&["d/nothing"]), TreeOptions::default()).await;
    assert_eq!(missing.unwrap_err().class(), Class::NotFound);

    // A hard link whose file is not wanted becomes the file.
    restore(&backup, link.path(), paths(&["d/b"]), TreeOptions::default()).await.unwrap();
    assert_eq!(std::fs::read(link.path().join("d/b")).unwrap(), b"content of a");
    assert!(!link.path().join("d/a").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_reads_little_and_a_partial_stream_needs_force() {
    let repository = Repository::new();
    let (located, _) = directory_backup(&repository, Outcome::Partial);
    let backup = repository.open(&located).await.unwrap();
    let target = tempfile::tempdir().unwrap();
    let refused = restore(&backup, target.path(), paths(&["d/a"]), TreeOptions::default()).await.unwrap_err();
    assert!(matches!(refused, RestoreError::Outcome { .. }), "{refused}");
    let force = TreeOptions { force: true, ..TreeOptions::default() };
    let report = restore(&backup, target.path(), paths(&["d/a"]), force).await.unwrap();
    assert!(report.partial);
    let fetched = backup.counters().fetched_bytes.load(std::sync::atomic::Ordering::Relaxed);
    assert!(fetched < 15_000, "{fetched} bytes were read for a file of 12");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_become_files_below_the_target() {
    let repository = Repository::new();
    let (one, two) = (data(5_000), data(10));
    let located = repository.backup(1, &[dump("globals.sql", &two), dump("db/shop.sql", &one)]);
    let backup = repository.open(&located).await.unwrap();
    let target = tempfile::tempdir().unwrap();
    restore(&backup, target.path(), Wanted::Everything, TreeOptions::default()).await.unwrap();
    assert_eq!(std::fs::read(target.path().join("db/shop.sql")).unwrap(), one);
    assert_eq!(std::fs::metadata(target.path().join("globals.sql")).unwrap().mode() & 0o777, 0o600);
    let resume = TreeOptions { resume: true, ..TreeOptions::default() };
    let report = restore(&backup, target.path(), Wanted::Everything, resume).await.unwrap();
    assert_eq!((report.written, report.skipped), (0, 2));
}
