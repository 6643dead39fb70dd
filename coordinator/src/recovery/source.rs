//! The bucket as the restore engine wants it: the coordinator reads its own backups, and manifests, like any restorer.

use std::ops::Range;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use sealift_common::format::names::ObjectName;
use sealift_common::restore::{ObjectError as Unread, ObjectSource};

use crate::objects::{ByteRange, ObjectError, ObjectErrorKind, ObjectStore};

/// Objects of the coordinator's own bucket.
#[derive(Debug, Clone)]
pub struct BucketSource(pub ObjectStore);

fn unread(error: ObjectError) -> Unread {
    let object = error.object.clone();
    match error.kind {
        ObjectErrorKind::NotFound => Unread::NotFound { object },
        ObjectErrorKind::TooLarge { limit } => Unread::TooLong { object, cap: limit },
        _ if error.is_retryable() => Unread::Unreachable { object, attempts: 1, answer: error.to_string() },
        _ => Unread::Refused { object, answer: error.to_string() },
    }
}

impl ObjectSource for BucketSource {
    fn get<'a>(&'a self, object: &'a ObjectName, cap: u64) -> BoxFuture<'a, Result<Bytes, Unread>> {
        async move { self.0.get(&(*object).into(), ByteRange::All, cap).await.map_err(unread) }.boxed()
    }

    fn get_range<'a>(
        &'a self,
        object: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes, Unread>> {
        let len = range.end.saturating_sub(range.start);
        let part = ByteRange::From { offset: range.start, len };
        async move { self.0.get(&(*object).into(), part, len).await.map_err(unread) }.boxed()
    }

    fn announce(&self, _: &[ObjectName]) {}
}
