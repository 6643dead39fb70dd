//! The data path of one backup, and the one file that names every stage.
//!
//! ```text
//! source ─events→ chunk + dedup ─new chunks→ frame workers ─sealed→ pack ─packs→ upload ⇄ spool
//!  (task)           (thread)                  (threads)             (thread)     (task)   (disk)
//! ```
//!
//! Every arrow is a bounded queue, so memory does not grow with the dump: a slow store fills the spool, and where that is
//! full (or there is none) holds the source back. A stage that fails closes its queues, and the others end by that.

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use sealift_common::format::chunk::Chunker;
use sealift_common::format::frame::RawFrame;
use sealift_common::format::pack::BackupKeys;
use sealift_common::id::Random;

use crate::chunk::{ChunkError, ChunkStage, Chunked};
use crate::dedup::ChunkTable;
use crate::frame::workers;
use crate::pack::{PackStage, PackStageError};
use crate::progress::Meters;
use crate::source::SourceEvent;
use crate::spool::folder::Folder;
use crate::upload::{self, Outgoing};

/// Frames that wait for the pack stage.
const FRAMES_AHEAD: usize = 4;
/// Emptied frames that wait to be filled again.
const EMPTIES: usize = 16;
/// Finished packs that wait for an upload: none, they wait with their memory.
const PACKS_AHEAD: usize = 1;

/// What a backup's data path needs.
pub struct Pipeline {
    /// Cuts and names chunks.
    pub chunker: Chunker,
    /// What is stored already.
    pub table: ChunkTable,
    /// Keys of the current session; packs begun later take newer ones.
    pub keys: watch::Receiver<Arc<BackupKeys>>,
    /// zstd level.
    pub compression_level: i32,
    /// A source silent for this long is given up.
    pub stall_timeout: Duration,
    /// Packs that may be authorised and not confirmed.
    pub max_ahead: usize,
    /// Counters.
    pub meters: Arc<Meters>,
    /// For pack ids.
    pub random: Random,
    /// Where packs wait for a slow store.
    pub spool: Option<Arc<Folder>>,
}

/// What came out: streams as pieces of the raw line, and the new packs at its end, in order.
#[derive(Debug)]
pub struct Streamed<T> {
    /// The streams.
    pub chunked: Arc<Chunked>,
    /// What `store` said of each new pack.
    pub packs: Vec<T>,
}

/// Why the data path ended early.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError<E> {
    /// Taking in the source's streams.
    #[error(transparent)]
    Chunk(ChunkError),
    /// Building packs.
    #[error(transparent)]
    Pack(PackStageError),
    /// Storing packs.
    #[error("a pack could not be stored")]
    Store(E),
    /// A thread could not start, or has panicked.
    #[error("the {0} thread has failed")]
    Thread(&'static str),
}

impl Pipeline {
    /// Runs through `first` and `events` until those close, and every new pack was stored by `store`. `drained` is called
    /// when the last pack is made, and dropped when the last one is stored.
    ///
    /// # Errors
    /// The first cause: where several stages fail, the one that made the others fail.
    pub async fn run<T, E, F, D>(
        self,
        first: Option<SourceEvent>,
        events: mpsc::Receiver<SourceEvent>,
        store: impl Fn(Outgoing) -> F,
        drained: impl FnOnce(Arc<Chunked>) -> D,
    ) -> Result<Streamed<T>, PipelineError<E>>
    where
        F: Future<Output = Result<T, E>>,
        D: Future<Output = ()>,
    {
        let runtime = Handle::current();
        let (frames, frame_queue) = sync_channel::<RawFrame>(FRAMES_AHEAD);
        let (empties, empty_frames) = sync_channel(EMPTIES);
        let (packs, pack_queue) = mpsc::channel(PACKS_AHEAD);

        let stage = ChunkStage {
            chunker: self.chunker,
            table: self.table,
            meters: self.meters,
            stall_timeout: self.stall_timeout,
        };
        let handle = runtime.clone();
        let chunking = thread("sealift-chunk", move || {
            stage.run(&handle, first, events, |frame| {
                frames.send(frame).map_err(|_| ChunkError::Closed)?;
                Ok(empty_frames.try_recv().unwrap_or_default())
            })
        });

        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let (desks, work) = workers(processors, self.compression_level, &empties);
        drop::<SyncSender<_>>(empties);
        for worker in work {
            // A worker that cannot work closes its queues: the pack stage notices.
            drop(thread("sealift-frame", move || worker.run()));
        }
        let stage = PackStage::new(self.keys, self.random, desks, packs, runtime);
        let packing = thread("sealift-pack", move || stage.run(&frame_queue));

        let over = CancellationToken::new();
        let uploading = async {
            let _over = over.clone().drop_guard();
            upload::run(pack_queue, self.max_ahead, self.spool, store).await
        };
        let making = async {
            let (chunked, packed) = tokio::join!(chunking, packing);
            let chunked = chunked.map(|chunked| chunked.map(Arc::new));
            if let (Some(Ok(chunked)), Some(Ok(()))) = (&chunked, &packed) {
                tokio::select! { () = over.cancelled() => {}, () = drained(chunked.clone()) => {} }
            }
            (chunked, packed)
        };
        let ((chunked, packed), stored) = tokio::join!(making, uploading);
        // The last stage first: when it fails, the earlier ones only know that it is gone.
        let packs = stored.map_err(PipelineError::Store)?;
        packed.ok_or(PipelineError::Thread("pack"))?.map_err(PipelineError::Pack)?;
        let chunked = chunked.ok_or(PipelineError::Thread("chunk"))?.map_err(PipelineError::Chunk)?;
        Ok(Streamed { chunked, packs })
    }
}

/// Runs `work` on a thread of its own; `None` where the thread could not start or panicked.
fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Option<T>> {
    let (done, result) = oneshot::channel();
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody waits where the attempt was stopped.
        let _ = done.send(work());
    });
    async move {
        started.ok()?;
        result.await.ok()
    }
}

#[cfg(test)]
mod tests;
