//! How much of the line uploads may take: a token bucket that bodies pass in small pieces.

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::Stream;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Largest piece of a body, in bytes. Small against a second's worth, so that the line stays even.
const PIECE: u32 = 64 * 1024;

/// A limit on bytes a second.
#[derive(Debug)]
pub struct Bandwidth {
    bytes_per_s: NonZeroU64,
    piece: NonZeroU32,
    limiter: DefaultDirectRateLimiter,
}

impl Bandwidth {
    /// At most `bytes_per_s`, evenly.
    pub fn new(bytes_per_s: NonZeroU64) -> Self {
        let rate = NonZeroU32::try_from(bytes_per_s).unwrap_or(NonZeroU32::MAX);
        // A tenth of a second's worth at most, so that slow limits are even too.
        let piece = NonZeroU32::new((rate.get() / 10).min(PIECE)).unwrap_or(NonZeroU32::MIN);
        let limiter = RateLimiter::direct(Quota::per_second(rate).allow_burst(piece));
        Self { bytes_per_s, piece, limiter }
    }

    /// Waits until `bytes` may pass.
    async fn pass(&self, bytes: NonZeroU32) {
        // Refused only above the burst, and pieces are never larger.
        let _ = self.limiter.until_n_ready(bytes.min(self.piece)).await;
    }
}

/// The limits that one upload is under: this host's, and its policy's.
#[derive(Debug, Clone, Default)]
pub struct Limits(Vec<Arc<Bandwidth>>);

impl Limits {
    /// All of these hold.
    pub fn new(limits: impl IntoIterator<Item = Arc<Bandwidth>>) -> Self {
        Self(limits.into_iter().collect())
    }

    /// `body` in small pieces, each given when its time has come. Nothing is copied.
    pub fn paced(
        &self,
        body: Vec<Bytes>,
    ) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + use<> {
        let limits = self.0.clone();
        let piece = limits.iter().map(|limit| limit.piece.get()).min().unwrap_or(u32::MAX) as usize;
        let body: VecDeque<Bytes> = body.into();
        futures::stream::unfold((body, limits), move |(mut body, limits)| async move {
            let next = next_piece(&mut body, piece)?;
            if let Some(bytes) = NonZeroU32::new(u32::try_from(next.len()).unwrap_or(u32::MAX)) {
                for limit in &limits {
                    limit.pass(bytes).await;
                }
            }
            Some((Ok(next), (body, limits)))
        })
    }

    /// The slowest of the limits, in bytes a second.
    pub fn slowest(&self) -> Option<u64> {
        self.0.iter().map(|limit| limit.bytes_per_s.get()).min()
    }
}

/// At most `most` bytes from the front.
fn next_piece(body: &mut VecDeque<Bytes>, most: usize) -> Option<Bytes> {
    let front = body.front_mut()?;
    if front.len() > most { Some(front.split_to(most)) } else { body.pop_front() }
}

/// This host's limit, which all its uploads share.
#[derive(Debug, Default)]
pub struct HostBandwidth(Mutex<Option<Arc<Bandwidth>>>);

impl HostBandwidth {
    /// The limit that the configuration wants now; a changed one replaces the old for uploads that start later.
    pub fn get(&self, configured: Option<NonZeroU64>) -> Option<Arc<Bandwidth>> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().map(|limit| limit.bytes_per_s) != configured {
            *current = configured.map(|rate| Arc::new(Bandwidth::new(rate)));
        }
        current.clone()
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn pacing_keeps_every_byte() {
        let rate = |n| Arc::new(Bandwidth::new(NonZeroU64::new(n).unwrap()));
        let limits = Limits::new([rate(1 << 40), rate(50_000_000)]);
        let body: Bytes = (0..300_000u32).map(|n| n as u8).collect::<Vec<_>>().into();
        let pieces: Vec<Bytes> = limits.paced(vec![body.clone(), body.clone()]).try_collect().await.unwrap();
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE as usize));
        assert_eq!(pieces.concat(), [body.clone(), body].concat());
        assert_eq!(limits.slowest(), Some(50_000_000));
    }

    #[test]
    fn uploads_of_one_host_share_a_limit_until_it_changes() {
        let host = HostBandwidth::default();
        let (slow, fast) = (NonZeroU64::new(1_000), NonZeroU64::new(2_000));
        let first = host.get(slow).unwrap();
        assert!(Arc::ptr_eq(&first, &host.get(slow).unwrap()));
        assert!(!Arc::ptr_eq(&first, &host.get(fast).unwrap()));
        assert!(host.get(None).is_none());
    }
}
