//! Cuts the source's streams into chunks, and keeps those apart that are stored already: the first stage, on a thread of its
//! own.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use sealift_common::format::chunk::Chunker;
use sealift_common::format::frame::RawFrame;

use crate::dedup::{ChunkTable, Extents};
use crate::progress::{Meters, Stage};
use crate::source::{SourceEvent, StreamHead, Warning};

/// Most warnings that are kept; the others are counted.
pub const MAX_WARNINGS: usize = 1_000;
/// Most streams in one backup.
const MAX_STREAMS: usize = 100_000;

/// Why the source's streams could not be taken in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The source said nothing for too long.
    #[error("the source sent nothing for {} s and was ended (stall_timeout)", .0.as_secs())]
    Stalled(Duration),
    /// The source broke its protocol.
    #[error("the source sent {0}: this is a mistake in sealift-agent")]
    Protocol(&'static str),
    /// A later stage has ended.
    #[error("the backup ended before its source did")]
    Closed,
}

/// One stream, cut.
#[derive(Debug)]
pub struct StreamRecord {
    /// What it started with.
    pub head: StreamHead,
    /// Its length, in bytes.
    pub raw_len: u64,
    /// BLAKE3 of all of it.
    pub blake3: [u8; 32],
    /// Where its bytes are.
    pub extents: Extents,
    /// Whether warnings concern it.
    pub partial: bool,
}

/// All streams of a source, cut.
#[derive(Debug, Default)]
pub struct Chunked {
    /// In the order they came.
    pub streams: Vec<StreamRecord>,
    /// What makes the backup partial; the first [`MAX_WARNINGS`].
    pub warnings: Vec<Warning>,
    /// How many more there were.
    pub warnings_omitted: u64,
}

/// The stage's inputs.
pub struct ChunkStage {
    /// Cuts and names chunks.
    pub chunker: Chunker,
    /// What is stored already; new chunks are added.
    pub table: ChunkTable,
    /// Counters.
    pub meters: Arc<Meters>,
    /// A source silent for this long is given up. The wait for later stages does not count.
    pub stall_timeout: Duration,
}

struct OpenStream {
    head: StreamHead,
    raw_len: u64,
    blake3: blake3::Hasher,
    extents: Extents,
}

impl ChunkStage {
    /// Reads `first`, then events until the source closes its channel. Every new chunk goes into a frame, every full frame to `frames`, which gives an empty one back.
    ///
    /// # Errors
    /// [`ChunkError`].
    pub fn run(
        mut self,
        runtime: &Handle,
        mut first: Option<SourceEvent>,
        mut events: mpsc::Receiver<SourceEvent>,
        mut frames: impl FnMut(RawFrame) -> Result<RawFrame, ChunkError>,
    ) -> Result<Chunked, ChunkError> {
        let mut done = Chunked::default();
        let mut open: Option<OpenStream> = None;
        let mut frame = RawFrame::new();
        while let Some(event) = next(&mut first, || self.next_event(runtime, &mut events))? {
            match event {
                SourceEvent::Begin(head) => {
                    if open.is_some() || done.streams.len() >= MAX_STREAMS {
                        return Err(ChunkError::Protocol("a stream within a stream, or too many"));
                    }
                    open = Some(OpenStream::new(head));
                }
                SourceEvent::Data(bytes) => {
                    let stream = open.as_mut().ok_or(ChunkError::Protocol("bytes outside of a stream"))?;
                    self.take(stream, bytes, &mut frame, &mut frames)?;
                }
                SourceEvent::End { partial } => {
                    let mut stream = open.take().ok_or(ChunkError::Protocol("an end without a stream"))?;
                    self.chunker.end();
                    self.drain(&mut stream, &mut frame, &mut frames)?;
                    done.streams.push(stream.finish(partial));
                }
                SourceEvent::Warning(warning) if done.warnings.len() < MAX_WARNINGS => {
                    done.warnings.push(warning);
                }
                SourceEvent::Warning(_) => done.warnings_omitted += 1,
                SourceEvent::Expected(bytes) => self.meters.expected_raw_bytes.store(bytes, Relaxed),
            }
        }
        // Where the source failed, it closes its channel in the middle: the pipeline asks it, and uses nothing of this.
        if !frame.is_empty() {
            frames(frame)?;
        }
        self.meters.enter(Stage::Uploading);
        Ok(done)
    }

    fn next_event(
        &self,
        runtime: &Handle,
        events: &mut mpsc::Receiver<SourceEvent>,
    ) -> Result<Option<SourceEvent>, ChunkError> {
        match events.try_recv() {
            Ok(event) => return Ok(Some(event)),
            Err(mpsc::error::TryRecvError::Disconnected) => return Ok(None),
            Err(mpsc::error::TryRecvError::Empty) => {}
        }
        let waiting = async { tokio::time::timeout(self.stall_timeout, events.recv()).await };
        runtime.block_on(waiting).map_err(|_| ChunkError::Stalled(self.stall_timeout))
    }

    fn take(
        &mut self,
        stream: &mut OpenStream,
        bytes: Bytes,
        frame: &mut RawFrame,
        frames: &mut impl FnMut(RawFrame) -> Result<RawFrame, ChunkError>,
    ) -> Result<(), ChunkError> {
        stream.raw_len += bytes.len() as u64;
        stream.blake3.update(&bytes);
        self.meters.raw_bytes.fetch_add(bytes.len() as u64, Relaxed);
        self.chunker.push(bytes);
        self.drain(stream, frame, frames)
    }

    fn drain(
        &mut self,
        stream: &mut OpenStream,
        frame: &mut RawFrame,
        frames: &mut impl FnMut(RawFrame) -> Result<RawFrame, ChunkError>,
    ) -> Result<(), ChunkError> {
        while let Some(chunk) = self.chunker.next_chunk() {
            let record = chunk.record();
            let start = match self.table.find(&record) {
                Some(start) => start,
                None => {
                    if !frame.has_room_for(chunk.data.len()) {
                        *frame = frames(std::mem::take(frame))?;
                    }
                    frame.push(&chunk);
                    self.meters.new_raw_bytes.fetch_add(chunk.data.len() as u64, Relaxed);
                    self.table.append_chunk(record)
                }
            };
            stream.extents.push(start, u64::from(record.raw_len));
        }
        Ok(())
    }
}

/// What was read ahead, then what comes.
fn next<E>(
    first: &mut Option<SourceEvent>,
    rest: impl FnOnce() -> Result<Option<SourceEvent>, E>,
) -> Result<Option<SourceEvent>, E> {
    match first.take() {
        Some(event) => Ok(Some(event)),
        None => rest(),
    }
}

impl OpenStream {
    fn new(head: StreamHead) -> Self {
        Self { head, raw_len: 0, blake3: blake3::Hasher::new(), extents: Extents::default() }
    }

    fn finish(self, partial: bool) -> StreamRecord {
        StreamRecord {
            head: self.head,
            raw_len: self.raw_len,
            blake3: *self.blake3.finalize().as_bytes(),
            extents: self.extents,
            partial,
        }
    }
}
