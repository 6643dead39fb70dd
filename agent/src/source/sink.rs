//! The sending end of a source: every wait in it ends when the backup is cancelled.

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::error::SourceError;
use super::{SourceEvent, SourceOutput, StreamHead, Warning};

/// Where a source sends its events.
#[derive(Debug, Clone)]
pub struct Sink {
    out: SourceOutput,
    cancel: CancellationToken,
}

impl Sink {
    /// Sends to `out` until `cancel`.
    pub fn new(out: SourceOutput, cancel: CancellationToken) -> Self {
        Self { out, cancel }
    }

    /// The same until `cancel` instead.
    pub fn until(&self, cancel: CancellationToken) -> Self {
        Self { out: self.out.clone(), cancel }
    }

    /// What ends every wait.
    pub fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Sends one event, when there is room for it.
    pub async fn send(&self, event: SourceEvent) -> Result<(), SourceError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(SourceError::Cancelled),
            sent = self.out.send(event) => sent.map_err(|_| SourceError::Closed),
        }
    }

    /// The same from a thread that is not the runtime's.
    pub fn send_blocking(&self, runtime: &Handle, event: SourceEvent) -> Result<(), SourceError> {
        runtime.block_on(self.send(event))
    }

    /// Starts a stream.
    pub async fn begin(&self, head: StreamHead) -> Result<(), SourceError> {
        self.send(SourceEvent::Begin(head)).await
    }

    /// Sends bytes of the open stream; nothing where there are none.
    pub async fn data(&self, bytes: Bytes) -> Result<(), SourceError> {
        if bytes.is_empty() { Ok(()) } else { self.send(SourceEvent::Data(bytes)).await }
    }

    /// Ends the open stream.
    pub async fn end(&self, partial: bool) -> Result<(), SourceError> {
        self.send(SourceEvent::End { partial }).await
    }

    /// Names something that makes the backup partial.
    pub async fn warn(&self, item: impl Into<String>, problem: impl Into<String>) -> Result<(), SourceError> {
        self.send(SourceEvent::Warning(Warning { item: item.into(), problem: problem.into() })).await
    }
}
