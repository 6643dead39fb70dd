//! Brings packs to the store: several at a time, reported in their order.

use std::future::Future;

use futures::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::pack::ReadyPack;

/// Packs that are on their way at a time, where the coordinator allows as many.
const AT_A_TIME: usize = 2;

/// Stores every pack that comes with `store`, at most `max_ahead` at a time; gives its results in the order of the packs.
///
/// # Errors
/// The first error of `store`; the others are dropped.
pub async fn run<T, E, F>(
    packs: mpsc::Receiver<ReadyPack>,
    max_ahead: usize,
    store: impl Fn(ReadyPack) -> F,
) -> Result<Vec<T>, E>
where
    F: Future<Output = Result<T, E>>,
{
    ReceiverStream::new(packs).map(store).buffered(AT_A_TIME.min(max_ahead.max(1))).try_collect().await
}
