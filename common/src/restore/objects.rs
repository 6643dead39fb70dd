//! Where objects come from. Two sources exist: GETs signed by the coordinator, and the bucket itself with S3 credentials
//! of one's own; both are in the CLI, which keeps their clients out of this crate.

use std::ops::Range;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::ObjectError;
use crate::format::names::ObjectName;

/// Reads objects by their names. Nothing that it gives is believed before it was checked.
pub trait ObjectSource: Send + Sync + std::fmt::Debug {
    /// The whole object, if it has at most `cap` bytes.
    ///
    /// Where the store keeps versions, the one whose bytes hash to the name is taken.
    fn get<'a>(&'a self, object: &'a ObjectName, cap: u64) -> BoxFuture<'a, Result<Bytes, ObjectError>>;

    /// Exactly these bytes of the object; an object that is shorter is [`ObjectError::NotFound`] for that range.
    fn get_range<'a>(
        &'a self,
        object: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes, ObjectError>>;

    /// Says which objects will be read soon, in this order, so that preparations can be made for many at once.
    fn announce(&self, objects: &[ObjectName]);
}
