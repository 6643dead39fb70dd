//! What can go wrong between the coordinator and the object store.

use std::fmt;

/// An operation on the object store failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {kind}")]
pub struct ObjectError {
    /// What was tried: `put`, `head`, `get`, `list`, `delete`, `sign`.
    pub operation: &'static str,
    /// The object or prefix, relative to the repository's prefix.
    pub object: String,
    /// What went wrong, in kind.
    pub kind: ObjectErrorKind,
    /// What the client or the server said.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of failure that callers treat differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectErrorKind {
    /// No answer, or not in time. Trying again later may help.
    Unreachable,
    /// The store is there but cannot do it now (5xx, slow down). Trying again later may help.
    Unavailable,
    /// The credential may not do this.
    Denied,
    /// The object is not there.
    NotFound,
    /// The bucket is not there: nothing is known of what is in it.
    NoBucket,
    /// The bucket is there, and nothing of what was in it.
    Emptied,
    /// `if-none-match: *` was honoured: an object of that name is already there.
    AlreadyThere,
    /// The store refused the request as wrong.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The S3 error code, where one was given.
        code: String,
    },
    /// The answer is larger than the caller is ready to take.
    TooLarge {
        /// What the caller takes, in bytes.
        limit: u64,
    },
}

impl fmt::Display for ObjectErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => {
                f.write_str("the object store did not answer; check the endpoint and the network")
            }
            Self::Unavailable => f.write_str("the object store cannot do this now"),
            Self::Denied => f.write_str(
                "the object store denied it; check the access key and its policy (deploy/iam shows what is needed)",
            ),
            Self::NotFound => f.write_str("not in the bucket"),
            Self::NoBucket => f.write_str("there is no such bucket"),
            Self::Emptied => f.write_str(
                "the bucket is there, but nothing of what this coordinator had seen in it: is it another one, or was a disk not mounted?",
            ),
            Self::AlreadyThere => f.write_str("an object of that name is already there"),
            Self::Refused { status, code } => write!(f, "the object store refused it ({status} {code})"),
            Self::TooLarge { limit } => write!(f, "larger than the {limit} bytes allowed here"),
        }
    }
}

impl ObjectError {
    /// Whether the same request may succeed later, unchanged.
    pub fn is_retryable(&self) -> bool {
        // A bucket that is gone may come back.
        use ObjectErrorKind as K;
        matches!(self.kind, K::Unreachable | K::Unavailable | K::NoBucket | K::Emptied)
    }

    /// The kind of failure that a status and S3 error code mean.
    pub(super) fn kind_of(status: u16, code: &str) -> ObjectErrorKind {
        match (status, code) {
            (_, "NoSuchBucket") => ObjectErrorKind::NoBucket,
            (_, "NoSuchKey" | "NotFound") | (404, _) => ObjectErrorKind::NotFound,
            (412, _) | (_, "PreconditionFailed") => ObjectErrorKind::AlreadyThere,
            (401 | 403, _) => ObjectErrorKind::Denied,
            (429 | 500..=599, _) => ObjectErrorKind::Unavailable,
            _ => ObjectErrorKind::Refused { status, code: code.to_owned() },
        }
    }
}
