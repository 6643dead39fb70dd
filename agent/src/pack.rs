//! Gathers sealed frames into packs, in order, and hands each finished pack on together with its right to take up memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use sealift_common::format::frame::RawFrame;
use sealift_common::format::pack::{BackupKeys, Pack, PackMeta, PackWriteError, PackWriter};
use sealift_common::id::{BackupId, Random};

use crate::frame::{WorkerGone, Workers};

/// Packs that may exist at a time, from their first frame to their last byte at the store. This bounds the memory of a
/// backup, whatever its size.
pub const MAX_PACKS: usize = 4;

/// Why no pack could be made.
#[derive(Debug, thiserror::Error)]
pub enum PackStageError {
    /// The format's limits.
    #[error(transparent)]
    Write(PackWriteError),
    /// A frame that no pack takes.
    #[error("a frame of {0} bytes fits into no pack")]
    FrameTooLarge(usize),
    /// A worker has ended.
    #[error(transparent)]
    Worker(WorkerGone),
    /// Uploading has ended: its error says why.
    #[error("uploading has ended")]
    Closed,
}

/// A finished pack. Its memory is given back when this is dropped.
#[derive(Debug)]
pub struct ReadyPack {
    /// The pack.
    pub pack: Arc<Pack>,
    /// One of [`MAX_PACKS`]; none for a pack that was on disk meanwhile.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// A new pack that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPack {
    /// Hash and lengths.
    pub meta: PackMeta,
    /// The backup it is sealed for (an earlier one of this attempt where the session was lost after it).
    pub origin: BackupId,
    /// Raw bytes in it.
    pub raw_len: u64,
}

/// The stage's inputs.
pub struct PackStage {
    /// What packs are sealed with: the newest, for each new pack.
    pub keys: watch::Receiver<Arc<BackupKeys>>,
    /// For pack ids.
    pub random: Random,
    /// Compress and seal.
    pub workers: Workers,
    /// Where finished packs go.
    pub packs: mpsc::Sender<ReadyPack>,
    /// Waits on async things from this thread.
    pub runtime: Handle,
    permits: Arc<Semaphore>,
    /// Packs with frames at the workers; frames go into the last one.
    open: VecDeque<(PackWriter, OwnedSemaphorePermit)>,
}

impl PackStage {
    /// A stage that has seen no frame.
    pub fn new(
        keys: watch::Receiver<Arc<BackupKeys>>,
        random: Random,
        workers: Workers,
        packs: mpsc::Sender<ReadyPack>,
        runtime: Handle,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_PACKS));
        Self { keys, random, workers, packs, runtime, permits, open: VecDeque::new() }
    }

    /// Packs all frames.
    ///
    /// # Errors
    /// [`PackStageError`].
    pub fn run(mut self, frames: &Receiver<RawFrame>) -> Result<(), PackStageError> {
        for frame in frames {
            while self.workers.are_busy() {
                self.take_one()?;
            }
            self.give(frame)?;
        }
        while self.workers.outstanding() > 0 {
            self.take_one()?;
        }
        self.hand_on(0)
    }

    fn give(&mut self, mut frame: RawFrame) -> Result<(), PackStageError> {
        let length = frame.data().len();
        for fresh in [false, true] {
            if fresh || self.open.back().is_none_or(|(writer, _)| writer.is_full()) {
                self.begin_pack()?;
            }
            let Some((writer, _)) = self.open.back_mut() else { continue };
            match writer.assign(frame) {
                Ok(job) => return self.workers.give(job).map_err(PackStageError::Worker),
                Err(refused) => frame = refused,
            }
        }
        Err(PackStageError::FrameTooLarge(length))
    }

    fn begin_pack(&mut self) -> Result<(), PackStageError> {
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                // All memory is taken. Some of it by our own open packs: those have to go first.
                while self.workers.outstanding() > 0 {
                    self.take_one()?;
                }
                self.hand_on(0)?;
                let acquired = self.runtime.block_on(self.permits.clone().acquire_owned());
                acquired.map_err(|_| PackStageError::Closed)?
            }
        };
        let writer = self.keys.borrow().begin_pack(&self.random);
        self.open.push_back((writer, permit));
        Ok(())
    }

    /// Takes back the oldest frame: it belongs to the oldest pack that still waits for one.
    fn take_one(&mut self) -> Result<(), PackStageError> {
        let sealed = self.workers.take().map_err(PackStageError::Worker)?;
        if let Some((writer, _)) = self.open.iter_mut().find(|(writer, _)| writer.pending() > 0) {
            writer.complete(sealed).map_err(PackStageError::Write)?;
        }
        self.hand_on(1)
    }

    /// Finishes the packs that wait for nothing, all but the youngest `keep`.
    fn hand_on(&mut self, keep: usize) -> Result<(), PackStageError> {
        while self.open.len() > keep && self.open.front().is_some_and(|(writer, _)| writer.pending() == 0) {
            let Some((writer, permit)) = self.open.pop_front() else { break };
            let pack = writer.finish().map_err(PackStageError::Write)?;
            let ready = ReadyPack { pack: Arc::new(pack), permit: Some(permit) };
            self.packs.blocking_send(ready).map_err(|_| PackStageError::Closed)?;
        }
        Ok(())
    }
}
