//! Walks the extents of what is read, and decides what is fetched when, and in which GETs.
//!
//! A pack that is small, or of which most is needed in few pieces, is read without gaps from its first byte to its last, so
//! that its hash can be compared with its name: then every altered bit is noticed, also in bytes that a restore does not
//! need. Everything else is read frame by frame, each of which proves itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::{Batch, Engine, Pack, Segment, Takers};
use crate::format::extent::{Extent, ExtentMap};
use crate::id::Sha256;
use crate::restore::RestoreError;
use crate::restore::cache::{Pending, start};
use crate::restore::plan::{FrameUse, coalesce, contiguous, frames_of};

/// Extents whose packs are opened ahead of their turn.
const EXTENTS_AHEAD: usize = 64;
/// A pack is read whole if at least so much of its raw space is needed, in percent, …
const WHOLE_FROM_PERCENT: u64 = 60;
/// … in at most so many pieces, …
const WHOLE_PIECES: usize = 256;
/// … or if it has at most so many bytes.
const WHOLE_BELOW: u64 = 1 << 20;

/// Plans one read.
pub(super) struct Planner {
    pub(super) engine: Arc<Engine>,
    pub(super) tx: mpsc::Sender<Result<Vec<Segment>, RestoreError>>,
    pub(super) batch: Batch,
    pub(super) needs: HashMap<u32, Need>,
}

/// What of one pack is still needed.
#[derive(Default)]
pub(super) struct Need {
    raw: u64,
    extents: usize,
    seen: bool,
    audit: Option<Audit>,
}

/// A pack that is read whole.
struct Audit {
    /// Stored bytes up to here were asked for.
    next: u64,
    pieces: mpsc::UnboundedSender<Pending<Bytes>>,
    check: Pending<()>,
}

/// The reader is gone: nothing more is to be done.
struct Gone;

impl Planner {
    /// Plans the ranges of the stream at this position, to the end.
    pub(super) async fn run(mut self, stream: usize, ranges: Vec<Range<u64>>) {
        if let Err(error) = self.plan(stream, &ranges).await {
            // Where the reader is gone, nobody wants to know.
            let _ = self.tx.send(Err(error)).await;
        }
    }

    async fn plan(&mut self, stream: usize, ranges: &[Range<u64>]) -> Result<(), RestoreError> {
        let content = self.engine.content.clone();
        let Some(stream) = content.streams.get(stream) else { return Ok(()) };
        let map = ExtentMap::new(&stream.extents);
        let located = |range: &Range<u64>| map.locate(range.start, range.end.saturating_sub(range.start));
        self.announce(ranges.iter().filter_map(located).flatten());
        let mut extents = ranges.iter().filter_map(located).flatten();
        let mut ahead = VecDeque::new();
        loop {
            while ahead.len() < EXTENTS_AHEAD {
                let Some(extent) = extents.next() else { break };
                ahead.push_back((extent, self.engine.pack(extent.pack)));
            }
            let Some((extent, pack)) = ahead.pop_front() else { break };
            let pack = pack.await?;
            if self.take(&extent, &pack).await?.is_err() {
                return Ok(());
            }
        }
        let _ = self.dispatch().await;
        Ok(())
    }

    /// Says what comes, and counts what is needed of each pack.
    fn announce(&mut self, extents: impl Iterator<Item = Extent>) {
        let (mut seen, mut names) = (HashSet::new(), Vec::new());
        for extent in extents {
            let need = self.needs.entry(extent.pack).or_default();
            need.raw = need.raw.saturating_add(extent.raw_len);
            need.extents += 1;
            if seen.insert(extent.pack)
                && let Some(pack) = self.engine.public.packs.get(extent.pack as usize)
            {
                names.push(pack.meta.name(self.engine.public.owner.series));
            }
        }
        self.engine.source.announce(&names);
    }

    async fn take(&mut self, extent: &Extent, pack: &Arc<Pack>) -> Result<Result<(), Gone>, RestoreError> {
        let uses = frames_of(extent, pack.open.frames()).ok_or_else(|| RestoreError::Pack {
            object: pack.open.name().to_string(),
            problem: "the manifest refers to more than it holds".to_owned(),
        })?;
        self.begin_audit(extent.pack, pack);
        for wanted in uses {
            self.add(extent.pack, pack, wanted);
            if self.batch.is_full() && self.dispatch().await.is_err() {
                return Ok(Err(Gone));
            }
        }
        let Some(need) = self.needs.get_mut(&extent.pack) else { return Ok(Ok(())) };
        need.extents = need.extents.saturating_sub(1);
        if need.extents == 0 && need.audit.is_some() {
            // What was planned of it must be asked for before its rest is.
            let sent = self.dispatch().await;
            self.end_audit(extent.pack, pack);
            return Ok(sent);
        }
        Ok(Ok(()))
    }

    fn begin_audit(&mut self, number: u32, pack: &Arc<Pack>) {
        let Some(need) = self.needs.get_mut(&number).filter(|need| !need.seen) else { return };
        need.seen = true;
        let most = need.raw.saturating_mul(100) >= pack.open.raw_len().saturating_mul(WHOLE_FROM_PERCENT);
        if pack.meta.size <= WHOLE_BELOW || (most && need.extents <= WHOLE_PIECES) {
            let (pieces, rx) = mpsc::unbounded_channel();
            need.audit = Some(Audit { next: 0, pieces, check: start(audit(pack.clone(), rx)) });
        }
    }

    fn end_audit(&mut self, number: u32, pack: &Arc<Pack>) {
        let Some(audit) = self.needs.get_mut(&number).and_then(|need| need.audit.take()) else { return };
        let end = pack.meta.size - pack.meta.suffix_len();
        if audit.next < end {
            let _ = audit.pieces.send(self.engine.get_stored(number, audit.next..end));
        }
        self.batch.segments.push(Segment::Whole(audit.check));
    }

    fn add(&mut self, number: u32, pack: &Arc<Pack>, wanted: FrameUse) {
        let (key, batch) = ((number, wanted.frame), &mut self.batch);
        let frame = self.engine.frames.get(&key).unwrap_or_else(|| {
            let (tx, rx) = oneshot::channel();
            let frame = async move { rx.await.unwrap_or(Err(RestoreError::Cancelled)) }.boxed().shared();
            let raw_len = pack.open.frames().get(wanted.frame).map_or(0, |info| info.raw_len as usize);
            self.engine.frames.put(key, frame.clone(), raw_len);
            batch
                .missing
                .entry(number)
                .or_insert_with(|| (pack.clone(), Vec::new()))
                .1
                .push((wanted.frame, tx));
            batch.missing_frames += 1;
            batch.missing_raw += raw_len;
            frame
        });
        batch.segments.push(Segment::Frame(frame, wanted.bytes));
    }

    /// Starts the GETs of the batch and hands its segments on.
    async fn dispatch(&mut self) -> Result<(), Gone> {
        let batch = std::mem::take(&mut self.batch);
        for (number, (pack, mut takers)) in batch.missing {
            takers.sort_unstable_by_key(|(frame, _)| *frame);
            let audit = self.needs.get_mut(&number).and_then(|need| need.audit.as_mut());
            // Frames before the audit's position were read once and dropped from the cache since.
            let next = audit.as_ref().map_or(u64::MAX, |audit| audit.next);
            let is_behind =
                |frame: usize| pack.open.frames().get(frame).is_none_or(|info| info.offset < next);
            let ahead = takers.split_off(takers.partition_point(|(frame, _)| is_behind(*frame)));
            self.fetch(number, &pack, takers);
            self.fetch_audited(number, &pack, ahead);
        }
        if batch.segments.is_empty() {
            return Ok(());
        }
        self.tx.send(Ok(batch.segments)).await.map_err(|_| Gone)
    }

    fn fetch(&self, number: u32, pack: &Arc<Pack>, takers: Takers) {
        let wanted: Vec<usize> = takers.iter().map(|(frame, _)| *frame).collect();
        let mut takers = takers.into_iter();
        for fetch in coalesce(&wanted, pack.open.frames()) {
            let stored = self.engine.get_stored(number, fetch.range.clone());
            self.hand_out(
                pack,
                fetch.range.start,
                stored,
                takers.by_ref().take(fetch.frames.len()).collect(),
            );
        }
    }

    fn fetch_audited(&mut self, number: u32, pack: &Arc<Pack>, takers: Takers) {
        let Some(audit) = self.needs.get_mut(&number).and_then(|need| need.audit.as_mut()) else { return };
        let wanted: Vec<usize> = takers.iter().map(|(frame, _)| *frame).collect();
        let mut takers = takers.into_iter();
        let mut started = Vec::new();
        for fetch in contiguous(audit.next, &wanted, pack.open.frames()) {
            audit.next = fetch.range.end;
            let stored = self.engine.get_stored(number, fetch.range.clone());
            // Nobody listens only where the audit has failed, and that is told in its turn.
            let _ = audit.pieces.send(stored.clone());
            started.push((
                fetch.range.start,
                stored,
                takers.by_ref().take(fetch.frames.len()).collect::<Vec<_>>(),
            ));
        }
        for (start, stored, takers) in started {
            self.hand_out(pack, start, stored, takers);
        }
    }

    fn hand_out(&self, pack: &Arc<Pack>, start: u64, stored: Pending<Bytes>, takers: Takers) {
        if !takers.is_empty() {
            tokio::spawn(self.engine.clone().hand_out(pack.clone(), start, stored, takers));
        }
    }
}

/// Hashes a pack's bytes as they come in, and compares with its name.
async fn audit(
    pack: Arc<Pack>,
    mut pieces: mpsc::UnboundedReceiver<Pending<Bytes>>,
) -> Result<(), RestoreError> {
    let mut context = digest::Context::new(&digest::SHA256);
    while let Some(piece) = pieces.recv().await {
        let piece = piece.await?;
        let hashed = tokio::task::spawn_blocking(move || {
            context.update(&piece);
            context
        });
        context = hashed.await.map_err(|_| RestoreError::Cancelled)?;
    }
    context.update(&pack.suffix);
    let digest = context.finish();
    let actual = Sha256::try_from(digest.as_ref()).map_err(|_| RestoreError::Cancelled)?;
    if actual == pack.meta.sha256 {
        return Ok(());
    }
    Err(RestoreError::Hash { object: pack.open.name().to_string(), actual })
}
