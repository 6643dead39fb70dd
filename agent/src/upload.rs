//! Brings packs to the store: several at a time, reported in their order. What the line cannot take in time waits in the
//! spool, where there is one, so that neither memory nor the source has to wait with it.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::pack::ReadyPack;
use crate::spool::folder::Folder;

/// Packs that are on their way at a time, where the coordinator allows as many.
pub const AT_A_TIME: usize = 2;
/// A pack that has waited this long for its turn shows that the line is slower than the source.
pub const SLOW_AFTER: Duration = Duration::from_secs(2);

/// A pack whose turn it is.
#[derive(Debug)]
pub struct Outgoing {
    /// Its place among the new packs of the backup.
    pub number: u32,
    /// The pack; `None` where it waits in the spool.
    pub ready: Option<ReadyPack>,
}

/// Stores every pack that comes with `store`, at most `max_ahead` at a time; gives its results in the order of the packs.
///
/// # Errors
/// The first error of `store`; the others are dropped.
pub async fn run<T, E, F>(
    mut packs: mpsc::Receiver<ReadyPack>,
    max_ahead: usize,
    spool: Option<Arc<Folder>>,
    store: impl Fn(Outgoing) -> F,
) -> Result<Vec<T>, E>
where
    F: Future<Output = Result<T, E>>,
{
    let at_a_time = AT_A_TIME.min(max_ahead.max(1));
    let mut waiting = Waiting { spool, queue: VecDeque::new(), slow: false, full: false };
    let (mut under_way, mut results) = (FuturesUnordered::new(), Vec::new());
    let mut more = true;
    loop {
        while under_way.len() < at_a_time
            && let Some(next) = waiting.next()
        {
            let number = next.number;
            let stored = store(next);
            under_way.push(async move { (number, stored.await) });
        }
        if !more && under_way.is_empty() {
            return Ok(results.into_iter().flatten().collect());
        }
        tokio::select! {
            pack = packs.recv(), if more => match pack {
                Some(ready) => {
                    let number = u32::try_from(results.len()).unwrap_or(u32::MAX);
                    results.push(None);
                    waiting.take(number, ready);
                }
                None => {
                    more = false;
                    waiting.no_more();
                }
            },
            Some((number, result)) = under_way.next() => {
                if let Some(place) = results.get_mut(number as usize) {
                    *place = Some(result?);
                }
                waiting.full = false;
            }
            () = waiting.too_long() => waiting.spill().await,
        }
    }
}

/// Packs whose turn has not come.
struct Waiting {
    spool: Option<Arc<Folder>>,
    queue: VecDeque<(Instant, Outgoing)>,
    /// The line has shown that it is slow; until nothing waits any more, packs go to disk at once.
    slow: bool,
    /// The spool has no room, until another pack is stored.
    full: bool,
}

impl Waiting {
    fn take(&mut self, number: u32, ready: ReadyPack) {
        if let Some(spool) = &self.spool {
            spool.arrived(ready.pack.clone());
        }
        self.queue.push_back((Instant::now(), Outgoing { number, ready: Some(ready) }));
    }

    fn no_more(&self) {
        if let Some(spool) = &self.spool {
            spool.complete();
        }
    }

    /// What goes next: packs in memory first, since they hold back the source.
    fn next(&mut self) -> Option<Outgoing> {
        let at = self.first_in_memory().unwrap_or(0);
        let next = self.queue.remove(at).map(|(_, outgoing)| outgoing);
        self.slow &= !self.queue.is_empty();
        next
    }

    fn first_in_memory(&self) -> Option<usize> {
        self.queue.iter().position(|(_, outgoing)| outgoing.ready.is_some())
    }

    /// Waits until a pack in memory has waited too long for its turn; for ever where none may go to disk.
    async fn too_long(&self) {
        let first = self.first_in_memory().filter(|_| self.spool.is_some() && !self.full);
        match first.and_then(|at| self.queue.get(at)) {
            Some(_) if self.slow => {}
            Some((since, _)) => tokio::time::sleep_until(*since + SLOW_AFTER).await,
            None => std::future::pending().await,
        }
    }

    /// Brings the first pack in memory to disk; its memory is free then.
    async fn spill(&mut self) {
        let Some(spool) = self.spool.clone() else { return };
        let Some((_, outgoing)) = self.first_in_memory().and_then(|at| self.queue.get_mut(at)) else {
            return;
        };
        let number = outgoing.number;
        let spilled = tokio::task::spawn_blocking(move || spool.spill(number)).await;
        match spilled {
            Ok(Ok(true)) => {
                outgoing.ready = None;
                self.slow = true;
            }
            Ok(Ok(false)) => {
                tracing::info!("the spool is full: the source waits for the store");
                self.full = true;
            }
            Ok(Err(error)) => {
                tracing::warn!(error = crate::source::whole_chain(&error), "the spool cannot be used now");
                self.full = true;
            }
            Err(_) => self.full = true, // cancelled with the program
        }
    }
}
