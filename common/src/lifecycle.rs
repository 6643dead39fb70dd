//! How a program stops: first softly (finish what is signed and can be buffered), then hard.
//!
//! The first SIGTERM or SIGINT cancels [`Lifecycle::soft`]; a second one, or the grace period's end, cancels
//! [`Lifecycle::hard`]. Tasks are spawned on [`Lifecycle::tracker`], so that `main` can wait for them.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The stop tokens and the tasks of one program.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// Take no new work; finish what is under way.
    pub soft: CancellationToken,
    /// Drop everything now.
    pub hard: CancellationToken,
    /// Every long-lived task of the program.
    pub tracker: TaskTracker,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { soft: CancellationToken::new(), hard: CancellationToken::new(), tracker: TaskTracker::new() }
    }
}

impl Lifecycle {
    /// Watches SIGTERM and SIGINT for the life of the program.
    ///
    /// # Errors
    /// When the process may not install signal handlers.
    pub fn watch_signals(&self, grace: Duration) -> std::io::Result<()> {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            tracing::info!(grace_s = grace.as_secs(), "stopping: finishing what is under way");
            this.soft.cancel();
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {}, () = tokio::time::sleep(grace) => {} }
            this.hard.cancel();
        });
        Ok(())
    }

    /// Waits until every tracked task has ended, or the hard stop came.
    pub async fn finished(&self) {
        self.tracker.close();
        tokio::select! { () = self.tracker.wait() => {}, () = self.hard.cancelled() => {} }
    }
}
