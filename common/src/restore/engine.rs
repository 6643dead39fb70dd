//! Fetches, decrypts and decompresses: from byte ranges of a stream to its bytes, in order, with much in flight and
//! little in memory.
//!
//! The planner walks the extents, asks the [`PendingCache`]s for packs and frames, joins what is missing into few ranged
//! GETs, and hands handles of frames, in order, through a bounded channel. GETs run on the async threads, decryption and
//! decompression on blocking ones. The reader at the other end waits for each handle in turn: order costs no copying.

mod planner;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::planner::Planner;
use super::cache::{Pending, PendingCache, start};
use super::keys::KeyCache;
use super::{ObjectSource, RestoreError};
use crate::format::frame::FrameDecompressor;
use crate::format::manifest::{Content, ManifestPublic, PackRef};
use crate::format::pack::{OpenPack, PackError, PackMeta, PackProblem, PackTail};

/// Decoded frames that are kept, in bytes: 384 frames of the usual size.
pub const FRAME_CACHE_BYTES: usize = 96 << 20;
/// Opened packs whose directories are kept.
const PACK_CACHE: usize = 2_048;
/// GETs of frames at a time.
const FRAME_GETS: usize = 8;
/// GETs of pack tails at a time.
const TAIL_GETS: usize = 8;
/// A batch is handed on when it has so many frames to fetch, …
const BATCH_FRAMES: usize = 48;
/// … so many frames to hand on, …
const BATCH_USES: usize = 512;
/// … or so many raw bytes to fetch.
const BATCH_RAW: usize = 12 << 20;
/// Batches between planner and reader.
const BATCHES_AHEAD: usize = 2;

/// What has been done so far, for progress and reports.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of streams that were handed out.
    pub raw_bytes: AtomicU64,
    /// Bytes that were read from the store.
    pub fetched_bytes: AtomicU64,
}

/// Reads the packs of one backup.
pub struct Engine {
    source: Arc<dyn ObjectSource>,
    public: ManifestPublic,
    content: Arc<Content>,
    keys: KeyCache,
    counters: Arc<Counters>,
    opened: PendingCache<u32, Arc<Pack>>,
    frames: PendingCache<(u32, usize), Bytes>,
    frame_gets: Arc<Semaphore>,
    tail_gets: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    /// zstd contexts of the worker threads, to be used again.
    decompressors: Mutex<Vec<FrameDecompressor>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("backup", &self.public.owner.backup).finish_non_exhaustive()
    }
}

/// A pack that was opened, and what it takes to check it as a whole.
struct Pack {
    open: OpenPack,
    meta: PackMeta,
    suffix: Bytes,
}

/// What comes next in a stream.
enum Segment {
    /// A part of a frame that is on its way.
    Frame(Pending<Bytes>, Range<usize>),
    /// A whole pack was read: whether it hashes to its name.
    Whole(Pending<()>),
}

type Taker = oneshot::Sender<Result<Bytes, RestoreError>>;

/// Frames of a pack to fetch: number and who waits for it.
type Takers = Vec<(usize, Taker)>;

/// What is handed on together.
#[derive(Default)]
struct Batch {
    segments: Vec<Segment>,
    /// Frames to fetch, by pack.
    missing: BTreeMap<u32, (Arc<Pack>, Takers)>,
    missing_frames: usize,
    missing_raw: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.missing_frames >= BATCH_FRAMES
            || self.segments.len() >= BATCH_USES
            || self.missing_raw >= BATCH_RAW
    }
}

impl Engine {
    /// An engine for the packs of one verified manifest.
    pub fn new(
        source: Arc<dyn ObjectSource>,
        public: ManifestPublic,
        content: Arc<Content>,
        keys: KeyCache,
    ) -> Self {
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            source,
            public,
            content,
            keys,
            counters: Arc::default(),
            opened: PendingCache::new(PACK_CACHE),
            frames: PendingCache::new(FRAME_CACHE_BYTES),
            frame_gets: Arc::new(Semaphore::new(FRAME_GETS)),
            tail_gets: Arc::new(Semaphore::new(TAIL_GETS)),
            workers: Arc::new(Semaphore::new(workers)),
            decompressors: Mutex::default(),
        }
    }

    /// What has been done so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Reads these ranges of the stream at this position, one after the other. The ranges must lie within the stream.
    pub fn read(self: &Arc<Self>, stream: usize, ranges: Vec<Range<u64>>) -> StreamReader {
        let (tx, rx) = mpsc::channel(BATCHES_AHEAD);
        let left = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        let planner = Planner { engine: self.clone(), tx, batch: Batch::default(), needs: HashMap::new() };
        tokio::spawn(planner.run(stream, ranges));
        StreamReader {
            rx,
            batch: Vec::new().into_iter(),
            counters: self.counters.clone(),
            left,
            ended: false,
        }
    }

    /// Opens one pack, to see whether it can be: directory and key, no frames.
    pub async fn probe(self: &Arc<Self>, pack: u32) -> Result<(), RestoreError> {
        self.pack(pack).await.map(drop)
    }

    /// Decodes the frames of one GET, each for whoever waits for it.
    async fn hand_out(self: Arc<Self>, pack: Arc<Pack>, start: u64, stored: Pending<Bytes>, takers: Takers) {
        let stored = match stored.await {
            Ok(stored) => stored,
            Err(error) => {
                takers.into_iter().for_each(|(_, taker)| drop(taker.send(Err(error.clone()))));
                return;
            }
        };
        for (frame, taker) in takers {
            let Some(place) = pack.open.frames().get(frame) else { continue };
            let from = usize::try_from(place.offset - start).unwrap_or(usize::MAX);
            let sealed = stored.slice(from..from + place.stored_len as usize);
            let (engine, pack) = (self.clone(), pack.clone());
            // Closes only with the engine.
            let Ok(permit) = self.workers.clone().acquire_owned().await else { return };
            tokio::task::spawn_blocking(move || {
                let _ = taker.send(engine.decode(&pack.open, frame, &sealed));
                drop(permit);
            });
        }
    }

    fn decode(&self, pack: &OpenPack, frame: usize, sealed: &[u8]) -> Result<Bytes, RestoreError> {
        let bad = |problem: String| RestoreError::Frame { object: pack.name().to_string(), frame, problem };
        let spare = self.decompressors.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decompressor = match spare {
            Some(spare) => spare,
            None => FrameDecompressor::new().map_err(|error| bad(error.to_string()))?,
        };
        let opened = pack.open_frame(frame, sealed, &mut decompressor);
        self.decompressors.lock().unwrap_or_else(PoisonError::into_inner).push(decompressor);
        opened.map(Bytes::from).map_err(|error| pack_error(&error))
    }

    /// The opened pack with this position in the manifest.
    fn pack(self: &Arc<Self>, number: u32) -> Pending<Arc<Pack>> {
        if let Some(pack) = self.opened.get(&number) {
            return pack;
        }
        let engine = self.clone();
        let pack = start(async move { engine.open(number).await });
        self.opened.put(number, pack.clone(), 1);
        pack
    }

    /// Suffix GET, lengths, `meta_sha256`, slot, commitment, directory: in this order.
    async fn open(self: Arc<Self>, number: u32) -> Result<Arc<Pack>, RestoreError> {
        let pack = self.pack_ref(number)?;
        let from = pack.meta.size.saturating_sub(pack.meta.suffix_len());
        let suffix = self.get(number, from..pack.meta.size, &self.tail_gets).await?;
        let owner = self.public.owner_of(&pack);
        let tail = PackTail::parse(&owner, &pack.meta, &suffix).map_err(|error| pack_error(&error))?;
        let (id, commitment) = (*tail.header().pack.as_bytes(), tail.header().commitment.clone());
        let locked = tail.clone();
        let key = self
            .keys
            .open(
                owner.backup,
                move |key| key.commits_to(&id, &commitment),
                move |identities, further| {
                    locked.unlock(identities, further).map_err(|error| pack_error(&error))
                },
            )
            .await?;
        let open = tail.open(&key).map_err(|error| pack_error(&error))?;
        Ok(Arc::new(Pack { open, meta: pack.meta, suffix }))
    }

    /// Starts a GET of stored bytes that hold frames.
    fn get_stored(self: &Arc<Self>, number: u32, range: Range<u64>) -> Pending<Bytes> {
        let engine = self.clone();
        start(async move { engine.get(number, range, &engine.frame_gets).await })
    }

    async fn get(&self, number: u32, range: Range<u64>, gets: &Semaphore) -> Result<Bytes, RestoreError> {
        let name = self.pack_ref(number)?.meta.name(self.public.owner.series);
        let expected = range.end.saturating_sub(range.start);
        let _permit = gets.acquire().await.map_err(|_| RestoreError::Cancelled)?;
        let bytes = self.source.get_range(&name, range).await?;
        if bytes.len() as u64 != expected {
            let problem = format!("the store gave {} bytes of {expected}", bytes.len());
            return Err(RestoreError::Pack { object: name.to_string(), problem });
        }
        self.counters.fetched_bytes.fetch_add(expected, Ordering::Relaxed);
        Ok(bytes)
    }

    fn pack_ref(&self, number: u32) -> Result<PackRef, RestoreError> {
        // Positions were checked when the manifest was read; a wrong one here is a bug that must not panic.
        self.public.packs.get(number as usize).copied().ok_or(RestoreError::Cancelled)
    }
}

/// A pack's problem, as a restore reports it: a bad frame names object and frame.
fn pack_error(error: &PackError) -> RestoreError {
    let object = error.name.to_string();
    match &error.problem {
        PackProblem::Frame { number, problem } => {
            RestoreError::Frame { object, frame: *number, problem: (*problem).to_owned() }
        }
        PackProblem::Slots(source) => RestoreError::Slot { object, source: source.clone() },
        problem => RestoreError::Pack { object, problem: problem.to_string() },
    }
}

/// The bytes of a stream, in order. Dropping it stops the restore.
pub struct StreamReader {
    rx: mpsc::Receiver<Result<Vec<Segment>, RestoreError>>,
    batch: std::vec::IntoIter<Segment>,
    counters: Arc<Counters>,
    /// Bytes that are still to come.
    left: u64,
    ended: bool,
}

impl std::fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamReader").finish_non_exhaustive()
    }
}

impl StreamReader {
    /// The next bytes; `None` at the end. Their frame was verified; the stream as a whole was not yet.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing follows it.
    pub async fn next(&mut self) -> Option<Result<Bytes, RestoreError>> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(segment) = self.batch.next() {
                let result = match segment {
                    Segment::Frame(frame, bytes) => frame.await.map(|frame| frame.slice(bytes)),
                    Segment::Whole(check) => match check.await {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    },
                };
                match &result {
                    Ok(bytes) => {
                        self.left = self.left.saturating_sub(bytes.len() as u64);
                        self.counters.raw_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    }
                    Err(_) => self.ended = true,
                }
                return Some(result);
            }
            match self.rx.recv().await {
                Some(Ok(batch)) => self.batch = batch.into_iter(),
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                None => {
                    self.ended = true;
                    // The planner is gone before its time: its runtime is shutting down.
                    return (self.left > 0).then_some(Err(RestoreError::Cancelled));
                }
            }
        }
    }

    /// The same bytes for threads that may block.
    pub fn blocking(self, runtime: Handle) -> BlockingReader {
        BlockingReader { inner: self, runtime, current: Bytes::new() }
    }
}

/// A [`StreamReader`] as [`Read`]. Errors of the restore travel inside of [`io::Error`].
#[derive(Debug)]
pub struct BlockingReader {
    inner: StreamReader,
    runtime: Handle,
    current: Bytes,
}

impl BlockingReader {
    /// The next bytes without a copy; `None` at the end. Not to be called on an async thread.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn next_bytes(&mut self) -> Option<Result<Bytes, RestoreError>> {
        if !self.current.is_empty() {
            return Some(Ok(std::mem::take(&mut self.current)));
        }
        self.runtime.block_on(self.inner.next())
    }
}

/// [`Read::read`] over pieces: from what is left of the `current` one, else from the `next`.
pub(super) fn read_bytes(
    current: &mut Bytes,
    buffer: &mut [u8],
    next: impl FnOnce() -> Option<Result<Bytes, RestoreError>>,
) -> io::Result<usize> {
    if current.is_empty() {
        match next() {
            None => return Ok(0),
            Some(bytes) => *current = bytes.map_err(io::Error::other)?,
        }
    }
    let n = buffer.len().min(current.len());
    buffer[..n].copy_from_slice(&current.split_to(n));
    Ok(n)
}

impl Read for BlockingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut current = std::mem::take(&mut self.current);
        let read = read_bytes(&mut current, buffer, || self.next_bytes());
        self.current = current;
        read
    }
}
