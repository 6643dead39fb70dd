//! What is seen of a store, and how that is said to people.

use super::Finding;
use crate::objects::error::{ObjectError, ObjectErrorKind};

/// What an answer to an odd request shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Yes,
    No,
    Unknown,
}

impl From<bool> for Seen {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// What a finding says for yes and for no. The opposite of `good` is a warning; where that is `Unknown`, both are fine.
pub(super) struct Wording {
    check: &'static str,
    good: Seen,
    yes: (&'static str, &'static str),
    no: (&'static str, &'static str),
}

impl Wording {
    pub(super) fn finding(&self, seen: Seen) -> Finding {
        let ((result, meaning), warning) = match seen {
            Seen::Yes => (self.yes, self.good == Seen::No),
            Seen::No => (self.no, self.good == Seen::Yes),
            Seen::Unknown => {
                (("unknown", "the store's answer did not tell; the careful case is assumed"), true)
            }
        };
        Finding { check: self.check, result: result.to_owned(), meaning, warning }
    }
}

/// A feature whose question the server does not know is not there; a question we may not ask stays open.
pub(super) fn absent_or_unknown(error: &ObjectError) -> Seen {
    match error.kind {
        ObjectErrorKind::NotFound | ObjectErrorKind::Refused { .. } => Seen::No,
        ObjectErrorKind::Unavailable => Seen::No, // 501 Not Implemented
        _ => Seen::Unknown,
    }
}

pub(super) const BODY_HASH: Wording = Wording {
    check: "body_hash_verified",
    good: Seen::Yes,
    yes: ("yes", "the store refuses bytes that are not those that were signed"),
    no: (
        "no",
        "the store accepts other bytes than were signed, so every new object is read back and hashed before it counts: \
         slower, and twice the traffic",
    ),
};
pub(super) const CHECKSUM: Wording = Wording {
    check: "checksum_verified",
    good: Seen::Unknown,
    yes: ("yes", "the store compares x-amz-checksum-sha256 with what it received"),
    no: ("no", "the store ignores x-amz-checksum-sha256; the signed body hash is what protects uploads here"),
};
pub(super) const IF_NONE_MATCH: Wording = Wording {
    check: "if_none_match",
    good: Seen::Unknown,
    yes: ("honoured", "an object that is there cannot be written again"),
    no: ("ignored", "an object can be written again, with the same bytes only"),
};
pub(super) const VERSIONING: Wording = Wording {
    check: "versioning",
    good: Seen::Unknown,
    yes: ("on", "the bucket keeps replaced and deleted objects as versions"),
    no: ("off", "the bucket keeps no versions"),
};
pub(super) const OBJECT_LOCK: Wording = Wording {
    check: "object_lock",
    good: Seen::Unknown,
    yes: ("yes", "objects can be locked against deletion"),
    no: ("no", "nothing in this bucket can be locked: whoever takes over the coordinator can delete backups"),
};
pub(super) const COPY_SOURCE: Wording = Wording {
    check: "unsigned_copy_source",
    good: Seen::No,
    yes: (
        "honoured",
        "a hostile host could fill an object of its own series with a copy of another object; configure a put-only \
         credential, which cannot read",
    ),
    no: ("refused or ignored", "a signed upload cannot be turned into a copy"),
};
pub(super) const ACL: Wording = Wording {
    check: "unsigned_acl",
    good: Seen::No,
    yes: (
        "honoured",
        "a hostile host could make its own uploads public (they are sealed); Sealift signs a private ACL here, which \
         prevents it",
    ),
    no: ("refused or ignored", "a signed upload cannot be made public"),
};
pub(super) const LOCK: Wording = Wording {
    check: "unsigned_lock",
    good: Seen::No,
    yes: (
        "honoured",
        "a hostile host could lock its own uploads for years; such objects are refused when they are confirmed",
    ),
    no: ("refused or ignored", "a signed upload cannot be given a lock of the host's choice"),
};
pub(super) const SSE_C: Wording = Wording {
    check: "unsigned_sse_c",
    good: Seen::No,
    yes: (
        "honoured",
        "a hostile host could encrypt its own uploads with a key of its own; such objects are refused when they are \
         confirmed",
    ),
    no: ("refused or ignored", "a signed upload cannot be encrypted with a key of the host's"),
};
pub(super) const PUT_ONLY_WORKS: Wording = Wording {
    check: "put_only_credential",
    good: Seen::Yes,
    yes: ("works", "uploads are signed with a credential that may only put"),
    no: (
        "refused",
        "the put-only credential cannot put below series/: no backup can be stored; check its policy",
    ),
};
pub(super) const PUT_ONLY_READS: Wording = Wording {
    check: "put_only_can_read",
    good: Seen::No,
    yes: ("yes", "the put-only credential can also read; give it the policy of deploy/iam/put-only.json"),
    no: ("no", "the credential that signs uploads cannot read"),
};
