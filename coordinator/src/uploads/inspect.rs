//! Looks at an object in the bucket: is it what was signed for, and nothing that rode along?

use std::fmt;

use sealift_common::id::Sha256;

use crate::objects::{ObjectError, ObjectErrorKind, ObjectHead, ObjectKey, ObjectStore};

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    what: String,
    /// The version that was looked at, on versioned buckets.
    pub version: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Looks at the object called `key`; `None` where there is none. Reads it back where the store does not verify what it is
/// sent.
///
/// # Errors
/// Where the store cannot be asked.
pub async fn inspect(
    objects: &ObjectStore,
    key: &ObjectKey,
    sha256: Sha256,
    size: u64,
) -> Result<Option<Result<(), Fault>>, ObjectError> {
    let head = match objects.head(key).await {
        Ok(None) => return Ok(None),
        Ok(Some(head)) => head,
        Err(error) if matches!(error.kind, ObjectErrorKind::Refused { status: 400, .. }) => {
            let what = "it cannot be looked at without its writer's own key (SSE-C)".to_owned();
            return Ok(Some(Err(Fault { what, version: None })));
        }
        Err(error) => return Err(error),
    };
    let version = head.version.clone();
    let fault = |what: String| Ok(Some(Err(Fault { what, version: version.clone() })));
    if let Some(what) = wrong_with(&head, sha256, size, may_be_locked(objects)) {
        return fault(what);
    }
    if !objects.abilities().verifies_body_hash {
        match objects.hash(key, size).await {
            Ok((read, hash)) if read == size && hash == sha256 => {}
            Ok((read, hash)) => return fault(format!("it reads back as {read} bytes with hash {hash}")),
            Err(error) if matches!(error.kind, ObjectErrorKind::TooLarge { .. }) => {
                return fault("it reads back longer than that".to_owned());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Some(Ok(())))
}

/// Whether a lock on an object can be of our own making.
fn may_be_locked(objects: &ObjectStore) -> bool {
    let abilities = objects.abilities();
    abilities.default_lock || (abilities.object_lock && objects.settings().object_lock.is_some())
}

fn wrong_with(head: &ObjectHead, sha256: Sha256, size: u64, may_be_locked: bool) -> Option<String> {
    if head.size != size {
        return Some(format!("it is {} bytes, not {size}", head.size));
    }
    if let Some(other) = head.sha256.filter(|h| *h != sha256) {
        return Some(format!("the store has checksum {other} for it"));
    }
    if let Some(encoding) = &head.content_encoding {
        return Some(format!("it has content-encoding {encoding:?}"));
    }
    if head.legal_hold || (head.locked_until.is_some() && !may_be_locked) {
        return Some("it carries a lock that Sealift did not ask for".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealift_common::clock::UnixMillis;

    fn head() -> ObjectHead {
        ObjectHead {
            size: 300,
            sha256: Some(Sha256::of(b"x")),
            content_encoding: None,
            locked_until: None,
            legal_hold: false,
            version: None,
        }
    }

    #[test]
    fn only_what_was_signed_for_is_right() {
        let sha256 = Sha256::of(b"x");
        let wrong = |head: ObjectHead| wrong_with(&head, sha256, 300, false);
        assert_eq!(wrong(head()), None);
        assert_eq!(wrong(ObjectHead { sha256: None, ..head() }), None, "many stores keep no checksum");
        assert!(wrong(ObjectHead { size: 301, ..head() }).is_some());
        assert!(wrong(ObjectHead { sha256: Some(Sha256::of(b"y")), ..head() }).is_some());
        assert!(wrong(ObjectHead { content_encoding: Some("gzip".into()), ..head() }).is_some());
        assert!(wrong(ObjectHead { legal_hold: true, ..head() }).is_some());
        let locked = ObjectHead { locked_until: Some(UnixMillis(1)), ..head() };
        assert!(wrong(locked.clone()).is_some());
        assert_eq!(wrong_with(&locked, sha256, 300, true), None);
    }
}
