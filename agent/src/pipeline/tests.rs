//! Bytes go through every stage into packs in memory, and are read back from those.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use proptest::prelude::*;

use sealift_common::clock::UnixMillis;
use sealift_common::crypto::key_file::generate_identity;
use sealift_common::crypto::{KeyOwner, Recipient, SeriesSecret};
use sealift_common::format::chunk::{ChunkClass, ChunkRecord};
use sealift_common::format::frame::FrameDecompressor;
use sealift_common::format::pack::{Pack, PackTail};
use sealift_common::id::{BackupId, RepositoryId, SeriesId};

use super::*;
use crate::source::{EVENTS_AHEAD, StreamHead, StreamKind, Warning};

const SERIES: SeriesId = SeriesId::from_bytes([2; 16]);

fn secret() -> SeriesSecret {
    SeriesSecret::from_bytes([3; 32])
}

fn recipient() -> Recipient {
    generate_identity(UnixMillis(0)).1
}

fn keys(backup: u8, recipient: &Recipient) -> Arc<BackupKeys> {
    let owner = KeyOwner {
        repository: RepositoryId::from_bytes([1; 16]),
        series: SERIES,
        backup: BackupId::from_bytes([backup; 16]),
    };
    let random = Random::from_seed(backup.into());
    let keys = BackupKeys::generate(&random, &[9; 32], owner, secret(), std::slice::from_ref(recipient));
    Arc::new(keys.unwrap())
}

/// A pack as the store and the index cache have it.
#[derive(Debug)]
struct Kept {
    bytes: Vec<u8>,
    keys: Arc<BackupKeys>,
    pack: Pack,
    chunks: Vec<ChunkRecord>,
}

impl Kept {
    fn new(pack: &Pack, keys: Arc<BackupKeys>) -> Self {
        Self { bytes: pack.body().concat(), keys, pack: pack.clone(), chunks: pack.chunks().to_vec() }
    }

    fn raw(&self) -> Vec<u8> {
        let tail = PackTail::parse_whole(&self.keys.owner, self.pack.meta(), &self.bytes).unwrap();
        let open = tail.open(&self.keys.data_key).unwrap();
        let mut decompressor = FrameDecompressor::new().unwrap();
        let frames = open.frames().iter().enumerate().flat_map(|(number, frame)| {
            let at = usize::try_from(frame.offset).unwrap();
            let stored = &self.bytes[at..at + frame.stored_len as usize];
            open.open_frame(number, stored, &mut decompressor).unwrap()
        });
        frames.collect()
    }
}

/// Streams to back up, what lies in the store before, and whether each pack has to be sealed anew on its way.
async fn back_up(
    streams: &[Vec<u8>],
    store: &Mutex<Vec<Kept>>,
    lost_sessions: bool,
) -> (Streamed<u64>, Vec<u64>, u64) {
    let recipient = recipient();
    let (first, second) = (keys(1, &recipient), keys(2, &recipient));
    let mut table = ChunkTable::default();
    let mut ends = Vec::new();
    for kept in store.lock().unwrap().iter() {
        table.append_pack(&kept.chunks);
        ends.push(table.end());
    }
    let meters = Arc::new(Meters::default());
    let (_sender, current) = watch::channel(first.clone());
    let pipeline = Pipeline {
        chunker: Chunker::new(&secret(), SERIES, ChunkClass::Avg16KiB),
        table,
        keys: current,
        compression_level: 1,
        stall_timeout: Duration::from_secs(60),
        max_ahead: 4,
        meters: meters.clone(),
        random: Random::from_seed(7),
        spool: None,
    };
    let (events, receiver) = mpsc::channel(EVENTS_AHEAD);
    let sending = async {
        for (number, stream) in streams.iter().enumerate() {
            let head = StreamHead {
                name: format!("{number}.sql"),
                kind: StreamKind::Dump,
                catalog_of: None,
                attributes: BTreeMap::new(),
            };
            events.send(SourceEvent::Begin(head)).await.unwrap();
            for piece in stream.chunks(100_000) {
                events.send(SourceEvent::Data(Bytes::copy_from_slice(piece))).await.unwrap();
            }
            events.send(SourceEvent::End { partial: false }).await.unwrap();
        }
        drop(events);
    };
    let keep = |outgoing: Outgoing| {
        let ready = outgoing.ready.unwrap();
        let (pack, keys) = if lost_sessions {
            (ready.pack.reseal(&second, &Random::from_seed(8)).unwrap(), second.clone())
        } else {
            (Pack::clone(&ready.pack), first.clone())
        };
        store.lock().unwrap().push(Kept::new(&pack, keys));
        async move { Ok::<_, std::convert::Infallible>(pack.raw_len()) }
    };
    let (streamed, ()) = tokio::join!(pipeline.run(None, receiver, keep, |_| async {}), sending);
    let streamed = streamed.unwrap();
    for raw_len in &streamed.packs {
        ends.push(ends.last().copied().unwrap_or_default() + raw_len);
    }
    (streamed, ends, meters.new_raw_bytes.load(Relaxed))
}

fn restored(streamed: &Streamed<u64>, ends: &[u64], store: &Mutex<Vec<Kept>>) -> Vec<Vec<u8>> {
    let raw: Vec<Vec<u8>> = store.lock().unwrap().iter().map(Kept::raw).collect();
    let stream = |record: &crate::chunk::StreamRecord| {
        let bytes: Vec<u8> = record
            .extents
            .in_packs(ends)
            .iter()
            .flat_map(|piece| {
                let at = usize::try_from(piece.raw_offset).unwrap();
                raw[piece.pack][at..at + usize::try_from(piece.raw_len).unwrap()].to_vec()
            })
            .collect();
        assert_eq!(record.raw_len, bytes.len() as u64);
        assert_eq!(record.blake3, *blake3::hash(&bytes).as_bytes());
        bytes
    };
    streamed.chunked.streams.iter().map(stream).collect()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    Random::from_seed(seed).fill(&mut out);
    out
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn what_goes_in_comes_out_and_is_stored_once(
        seeds in prop::collection::vec((0u64..6, 0usize..900_000), 1..6),
        lost_sessions in prop::bool::ANY,
    ) {
        let mut streams: Vec<Vec<u8>> = seeds.iter().map(|(seed, len)| noise(*seed, *len)).collect();
        let store = Mutex::default();
        let (streamed, ends, new) = runtime().block_on(back_up(&streams, &store, lost_sessions));
        prop_assert_eq!(&restored(&streamed, &ends, &store), &streams);
        // The same seed gives the same bytes: what is new is bounded by the longest stream of each seed.
        let distinct: usize = (0..6u64)
            .map(|seed| seeds.iter().filter(|(s, _)| *s == seed).map(|(_, len)| *len).max().unwrap_or(0))
            .sum();
        let slack = streams.len() as u64 * u64::from(ChunkClass::Avg16KiB.max());
        prop_assert!(new <= distinct as u64 + slack);

        // The next backup: a few bytes more in the first stream.
        let middle = streams[0].len() / 2;
        streams[0].splice(middle..middle, *b"a new row");
        let (streamed, ends, new) = runtime().block_on(back_up(&streams, &store, false));
        prop_assert_eq!(&restored(&streamed, &ends, &store), &streams);
        prop_assert!(new <= 4 * u64::from(ChunkClass::Avg16KiB.max()), "{} new bytes", new);
    }
}

#[tokio::test]
async fn an_incompressible_dump_makes_packs_of_the_intended_size() {
    let stream = noise(77, 50_000_000);
    let store = Mutex::default();
    let (streamed, ends, _) = back_up(std::slice::from_ref(&stream), &store, false).await;
    assert!(restored(&streamed, &ends, &store) == [stream]);
    let sizes: Vec<u64> = store.lock().unwrap().iter().map(|kept| kept.pack.meta().size).collect();
    let (_, full) = sizes.split_last().unwrap();
    assert!(full.iter().all(|size| (16 << 20..18 << 20).contains(size)), "{sizes:?}");
}

#[tokio::test]
async fn nothing_makes_no_pack() {
    let store = Mutex::default();
    let (streamed, _, _) = back_up(&[Vec::new()], &store, false).await;
    assert!(store.lock().unwrap().is_empty());
    assert_eq!(streamed.chunked.streams.len(), 1);
    assert_eq!(streamed.chunked.streams[0].raw_len, 0);
}

/// A pipeline over events that the test sends itself.
async fn run_events(
    events: Vec<SourceEvent>,
    store_fails: bool,
    hang: bool,
) -> Result<Streamed<u64>, PipelineError<&'static str>> {
    let (_sender, current) = watch::channel(keys(1, &recipient()));
    let pipeline = Pipeline {
        chunker: Chunker::new(&secret(), SERIES, ChunkClass::Avg16KiB),
        table: ChunkTable::default(),
        keys: current,
        compression_level: 1,
        stall_timeout: Duration::from_millis(50),
        max_ahead: 4,
        meters: Arc::default(),
        random: Random::from_seed(7),
        spool: None,
    };
    let (sender, receiver) = mpsc::channel(events.len().max(1));
    for event in events {
        sender.try_send(event).unwrap();
    }
    let kept = hang.then_some(sender);
    let ran = pipeline
        .run(
            None,
            receiver,
            |outgoing| async move {
                if store_fails {
                    Err("the store is full")
                } else {
                    Ok(outgoing.ready.unwrap().pack.raw_len())
                }
            },
            |_| async {},
        )
        .await;
    drop(kept);
    ran
}

fn head() -> SourceEvent {
    SourceEvent::Begin(StreamHead {
        name: "x".into(),
        kind: StreamKind::Dump,
        catalog_of: None,
        attributes: BTreeMap::new(),
    })
}

#[tokio::test]
async fn a_silent_source_is_given_up() {
    let ran = run_events(vec![head()], false, true).await;
    assert!(matches!(ran, Err(PipelineError::Chunk(ChunkError::Stalled(_)))));
}

#[tokio::test]
async fn a_store_that_fails_ends_it_with_its_own_error() {
    let data = SourceEvent::Data(noise(1, 500_000).into());
    let ran = run_events(vec![head(), data, SourceEvent::End { partial: false }], true, false).await;
    assert!(matches!(ran, Err(PipelineError::Store("the store is full"))));
}

#[tokio::test]
async fn warnings_beyond_the_first_thousand_are_counted() {
    let warning = |n: usize| {
        SourceEvent::Warning(Warning { item: format!("file {n}"), problem: "cannot be read".into() })
    };
    let ran = run_events((0..1_003).map(warning).collect(), false, false).await.unwrap();
    assert_eq!((ran.chunked.warnings.len(), ran.chunked.warnings_omitted), (1_000, 3));
}
