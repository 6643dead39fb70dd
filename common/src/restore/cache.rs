//! Work that is done once and waited for at many places: packs being opened, frames being fetched and decoded.

use std::future::Future;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;

use super::RestoreError;

/// A value in the making. Clones wait for the same value.
pub type Pending<T> = Shared<BoxFuture<'static, Result<T, RestoreError>>>;

/// Starts making a value, whether or not anybody waits yet.
pub fn start<T: Clone + Send + Sync + 'static>(
    work: impl Future<Output = Result<T, RestoreError>> + Send + 'static,
) -> Pending<T> {
    let task = tokio::spawn(work);
    // A task that panicked or was dropped with its runtime made nothing.
    async move { task.await.unwrap_or(Err(RestoreError::Cancelled)) }.boxed().shared()
}

/// Pending values by key, the least recently used ones dropped beyond a weight. A dropped value stays good for those who
/// hold it.
pub struct PendingCache<K: Hash + Eq, T: Clone> {
    inner: Mutex<Inner<K, T>>,
    capacity: usize,
}

struct Inner<K: Hash + Eq, T: Clone> {
    entries: LruCache<K, (Pending<T>, usize)>,
    weight: usize,
}

impl<K: Hash + Eq + Copy, T: Clone> PendingCache<K, T> {
    /// A cache of values that weigh `capacity` together.
    pub fn new(capacity: usize) -> Self {
        Self { inner: Mutex::new(Inner { entries: LruCache::unbounded(), weight: 0 }), capacity }
    }

    /// The value for `key`, if it is there; it counts as used now.
    pub fn get(&self, key: &K) -> Option<Pending<T>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.entries.get(key).map(|(value, _)| value.clone())
    }

    /// Keeps a value, dropping others where it gets too much. A single value beyond the capacity is kept until the next.
    pub fn put(&self, key: K, value: Pending<T>, weight: usize) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, old)) = inner.entries.put(key, (value, weight)) {
            inner.weight -= old;
        }
        inner.weight += weight;
        while inner.weight > self.capacity && inner.entries.len() > 1 {
            let Some((_, (_, old))) = inner.entries.pop_lru() else { break };
            inner.weight -= old;
        }
    }
}

impl<K: Hash + Eq, T: Clone> std::fmt::Debug for PendingCache<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingCache").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(n: u32) -> Pending<u32> {
        async move { Ok(n) }.boxed().shared()
    }

    #[test]
    fn the_least_recently_used_goes_first_and_weights_are_kept() {
        let cache = PendingCache::new(10);
        cache.put(1, ready(1), 4);
        cache.put(2, ready(2), 4);
        assert!(cache.get(&1).is_some());
        cache.put(3, ready(3), 4);
        assert!(cache.get(&2).is_none(), "2 was used longest ago");
        assert!(cache.get(&1).is_some() && cache.get(&3).is_some());
        cache.put(3, ready(3), 6);
        assert!(cache.get(&1).is_some(), "the old weight of 3 must be given back");
        cache.put(4, ready(4), 99);
        assert!(cache.get(&4).is_some() && cache.get(&1).is_none() && cache.get(&3).is_none());
    }

    #[test]
    fn at_least_256_frames_of_the_usual_size_are_kept() {
        use crate::format::frame::TARGET_RAW;
        let cache = PendingCache::new(super::super::engine::FRAME_CACHE_BYTES);
        for n in 0..256u32 {
            cache.put(n, ready(n), TARGET_RAW);
        }
        assert!(cache.get(&0).is_some());
    }

    #[tokio::test]
    async fn work_runs_once_for_all_who_wait() {
        let (tx, rx) = tokio::sync::oneshot::channel::<u32>();
        let value = start(async move { rx.await.map_err(|_| RestoreError::Cancelled) });
        let twin = value.clone();
        tx.send(7).unwrap();
        assert_eq!((value.await.unwrap(), twin.await.unwrap()), (7, 7));
    }
}
