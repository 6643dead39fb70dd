//! Compresses and seals frames, on as many threads as there are processors: the stage that a first backup waits for.
//!
//! Frames go round the workers in turn and are taken back in the same turn: the order is kept without sorting, and all queues
//! are bounded.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sealift_common::format::frame::{FrameCompressor, RawFrame};
use sealift_common::format::pack::{FrameJob, SealedFrame};

/// Frames that wait at a worker, and sealed ones that wait behind it.
const QUEUE: usize = 2;
/// Most workers: beyond, the source is slower than they are, and memory is dear.
const MAX_WORKERS: usize = 16;

/// A worker has ended before it should have.
#[derive(Debug, thiserror::Error)]
#[error("a compression thread has ended unexpectedly")]
pub struct WorkerGone;

/// The stage's end of one worker.
#[derive(Debug)]
struct Desk {
    jobs: SyncSender<FrameJob>,
    sealed: Receiver<SealedFrame>,
}

/// What one worker runs.
#[derive(Debug)]
pub struct Worker {
    jobs: Receiver<FrameJob>,
    sealed: SyncSender<SealedFrame>,
    empties: SyncSender<RawFrame>,
    level: i32,
}

/// All workers, as the pack stage sees them.
#[derive(Debug)]
pub struct Workers {
    desks: Vec<Desk>,
    given: usize,
    taken: usize,
}

/// Sets up `count` workers at this zstd level. Emptied frames go to `empties`, if there is room.
pub fn workers(count: usize, level: i32, empties: &SyncSender<RawFrame>) -> (Workers, Vec<Worker>) {
    let pair = |_| {
        let (jobs, job_queue) = sync_channel(QUEUE);
        let (sealed_queue, sealed) = sync_channel(QUEUE);
        let worker = Worker { jobs: job_queue, sealed: sealed_queue, empties: empties.clone(), level };
        (Desk { jobs, sealed }, worker)
    };
    let (desks, work) = (0..count.clamp(1, MAX_WORKERS)).map(pair).unzip();
    (Workers { desks, given: 0, taken: 0 }, work)
}

impl Worker {
    /// Works until there are no more jobs.
    ///
    /// # Errors
    /// Where zstd cannot allocate.
    pub fn run(self) -> std::io::Result<()> {
        let mut compressor = FrameCompressor::new(self.level)?;
        for job in self.jobs {
            let (sealed, empty) = job.seal(&mut compressor);
            // A full queue of empties only means that there are enough.
            let _ = self.empties.try_send(empty);
            if self.sealed.send(sealed).is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl Workers {
    /// Frames that are given and not taken back.
    pub fn outstanding(&self) -> usize {
        self.given - self.taken
    }

    /// Whether a frame has to be taken back before the next is given.
    pub fn are_busy(&self) -> bool {
        self.outstanding() >= self.desks.len() * QUEUE * 2
    }

    /// Gives a frame to the worker whose turn it is.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn give(&mut self, job: FrameJob) -> Result<(), WorkerGone> {
        self.desks[self.given % self.desks.len()].jobs.send(job).map_err(|_| WorkerGone)?;
        self.given += 1;
        Ok(())
    }

    /// Takes back the frame that was given longest ago.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn take(&mut self) -> Result<SealedFrame, WorkerGone> {
        let sealed = self.desks[self.taken % self.desks.len()].sealed.recv().map_err(|_| WorkerGone)?;
        self.taken += 1;
        Ok(sealed)
    }
}
