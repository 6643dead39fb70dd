//! The one place where errors become gRPC status codes.
//!
//! A caller sees what it can act on. What is wrong inside (a database that fails) is logged with its causes and told as
//! `INTERNAL` with the request's operation only. To add a domain: an `impl From<ItsError> for Status`, matching exhaustively.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::audit::AccessError;
use crate::backups::BackupError;
use crate::backups::current::CurrentError;
use crate::identity::IdentityError;
use crate::identity::ca::CaError;
use crate::objects::ObjectError;
use crate::policy::PolicyError;
use crate::recovery::RecoveryError;
use crate::retention::RetentionError;
use crate::runs::RunError;
use crate::series::SeriesError;
use crate::store::{StoreError, is_unreachable};
use crate::uploads::{AHEAD_RETRY, UploadError};

/// An error inside: logged whole, told without its causes.
pub fn internal(error: &(dyn std::error::Error + 'static)) -> Status {
    if is_unreachable(error) {
        tracing::warn!(error, "a request failed because the database could not be reached");
        return Status::unavailable("the coordinator cannot reach its database at the moment; try again");
    }
    tracing::error!(error, "a request failed inside the coordinator");
    Status::internal("the coordinator failed inside; its log says why. Try again, or tell its admins")
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        internal(&error)
    }
}

impl From<AccessError> for Status {
    fn from(error: AccessError) -> Self {
        match &error {
            AccessError::Unauthenticated { .. } => Self::unauthenticated(error.to_string()),
            AccessError::Denied { .. } => Self::permission_denied(error.to_string()),
            AccessError::NotServing(_) => Self::unavailable(error.to_string()),
            AccessError::Store(_) => internal(&error),
        }
    }
}

impl From<RunError> for Status {
    fn from(error: RunError) -> Self {
        let code = match &error {
            RunError::NotFound { .. } => Code::NotFound,
            RunError::NotYours { .. } => Code::PermissionDenied,
            RunError::Ambiguous(_) => Code::InvalidArgument,
            RunError::Stale { .. }
            | RunError::Over { .. }
            | RunError::Illegal(_)
            | RunError::Protocol(_)
            | RunError::NoTrustPolicy => Code::FailedPrecondition,
            RunError::Access(inner) => return access(inner, &error),
            RunError::Policy(_) | RunError::Store(_) => return internal(&error),
        };
        Self::new(code, error.to_string())
    }
}

impl From<PolicyError> for Status {
    fn from(error: PolicyError) -> Self {
        let code = match &error {
            PolicyError::NotFound(_) => Code::NotFound,
            PolicyError::Invalid(_) | PolicyError::PauseInThePast => Code::InvalidArgument,
            PolicyError::Guarded(_) => Code::FailedPrecondition,
            PolicyError::Access(inner) => return access(inner, &error),
            PolicyError::Unreadable { .. } | PolicyError::Store(_) => return internal(&error),
        };
        Self::new(code, error.to_string())
    }
}

impl From<IdentityError> for Status {
    fn from(error: IdentityError) -> Self {
        use IdentityError as E;
        let code = match &error {
            E::TokenMalformed | E::TokenTerms(_) | E::Name(_) | E::Ambiguous(_) => Code::InvalidArgument,
            E::TokenUnknown
            | E::TokenExpired { .. }
            | E::TokenRevoked { .. }
            | E::TokenUsedUp { .. }
            | E::AgentRevoked(_)
            | E::AgentRetired(_)
            | E::AgentPending(_)
            | E::HostReplaced(_)
            | E::ChallengeSignature(_) => Code::PermissionDenied,
            E::NameTaken { .. } | E::AgentTaken(_) => Code::AlreadyExists,
            E::KeyObject(_) | E::Trust(_) => return whole(Code::PermissionDenied, &error),
            E::AgentUnknown(_) | E::NoToken(_) => Code::NotFound,
            E::OtherRoot { .. }
            | E::ChallengeUnknown
            | E::TrustVersion { .. }
            | E::NoRoots
            | E::NotPending(..) => Code::FailedPrecondition,
            E::TooManyChallenges => Code::ResourceExhausted,
            E::Ca(CaError::Request(_)) => Code::InvalidArgument,
            E::Objects(inner) if inner.is_retryable() => return whole(Code::Unavailable, &error),
            E::Access(inner) => return access(inner, &error),
            E::Ca(_) | E::Objects(_) | E::Store(_) => return internal(&error),
        };
        Self::new(code, error.to_string())
    }
}

impl From<SeriesError> for Status {
    fn from(error: SeriesError) -> Self {
        use SeriesError as E;
        match error {
            E::NotFound { .. } => Self::not_found(error.to_string()),
            E::Ambiguous(_) => Self::invalid_argument(error.to_string()),
            E::StillPresent { .. } | E::HasBackups { .. } | E::Busy(_) | E::Empty(_) | E::TooOld { .. } => {
                Self::failed_precondition(error.to_string())
            }
            E::Identity(inner) => inner.into(),
            E::Access(ref inner) => access(inner, &error),
            E::Store(_) => internal(&error),
        }
    }
}

impl From<RecoveryError> for Status {
    fn from(error: RecoveryError) -> Self {
        use RecoveryError as E;
        match error {
            E::NotServing(_) | E::Busy => Self::unavailable(error.to_string()),
            E::InStep | E::Unused | E::NoRecipients | E::OtherRepository { .. } | E::Signers(_) => {
                Self::failed_precondition(error.to_string())
            }
            E::Content(_) | E::Line(_) | E::Restore(_) => whole(Code::DataLoss, &error),
            E::Objects(ref inner) => objects(inner, &error),
            E::Access(ref inner) => access(inner, &error),
            E::Identity(inner) => inner.into(),
            E::Backup(inner) => inner.into(),
            E::Run(inner) => inner.into(),
            E::Seal(_) | E::File { .. } | E::Key(_) | E::Store(_) => internal(&error),
        }
    }
}

impl From<CurrentError> for Status {
    fn from(error: CurrentError) -> Self {
        match error {
            CurrentError::Run(inner) => inner.into(),
            CurrentError::Backup { .. } => Self::failed_precondition(error.to_string()),
            CurrentError::Store(_) => internal(&error),
        }
    }
}

impl From<UploadError> for Status {
    fn from(error: UploadError) -> Self {
        use UploadError as E;
        match error {
            E::Current(inner) => inner.into(),
            E::TooFarAhead => {
                let details = ErrorDetails::with_retry_info(Some(AHEAD_RETRY));
                Self::with_error_details(Code::ResourceExhausted, error.to_string(), details)
            }
            E::Lengths { .. } => whole(Code::PermissionDenied, &error),
            E::NotAuthorized { .. } => Self::permission_denied(error.to_string()),
            E::Taken { .. } | E::NotThere { .. } | E::Altered { .. } => {
                Self::failed_precondition(error.to_string())
            }
            E::Objects(ref inner) => objects(inner, &error),
            E::Access(ref inner) => access(inner, &error),
            E::Signing(_) | E::Store(_) => internal(&error),
        }
    }
}

impl From<BackupError> for Status {
    fn from(error: BackupError) -> Self {
        use BackupError as E;
        match error {
            E::Current(inner) => inner.into(),
            E::Run(inner) => inner.into(),
            E::NotFound { .. } => Self::not_found(error.to_string()),
            E::Reference(_) | E::Ambiguous(_) => Self::invalid_argument(error.to_string()),
            E::ForeignObject { .. } => Self::permission_denied(error.to_string()),
            E::NoRecipients { .. }
            | E::Manifest { .. }
            | E::OtherManifest { .. }
            | E::NotPrepared { .. }
            | E::NotArrived { .. }
            | E::Altered { .. }
            | E::EpochLeft { .. }
            | E::Expired { .. }
            | E::RestoreOver => Self::failed_precondition(error.to_string()),
            E::Objects(ref inner) => objects(inner, &error),
            E::Access(ref inner) => access(inner, &error),
            E::Trust(_) | E::Signing(_) | E::Store(_) => internal(&error),
        }
    }
}

impl From<RetentionError> for Status {
    fn from(error: RetentionError) -> Self {
        use RetentionError as E;
        match error {
            E::Backup(inner) => inner.into(),
            E::Agent(inner) => inner.into(),
            E::Reason => Self::invalid_argument(error.to_string()),
            E::State { .. } => whole(Code::FailedPrecondition, &error),
            E::LastGood { .. } | E::Held { .. } | E::Hold { .. } | E::InUse { .. } => {
                Self::failed_precondition(error.to_string())
            }
            E::Objects(ref inner) => objects(inner, &error),
            E::Recovery(inner) => (*inner).into(),
            E::Access(ref inner) => access(inner, &error),
            E::Store(_) => internal(&error),
        }
    }
}

/// The status of an object store's error: one that may pass is the caller's to try again.
fn objects(inner: &ObjectError, outer: &(dyn std::error::Error + 'static)) -> Status {
    if !inner.is_retryable() {
        return internal(outer);
    }
    tracing::warn!(error = outer, "the object store does not answer");
    Status::unavailable(format!("{outer}: {inner}"))
}

/// A status that names the causes as well: they are the caller's to act on.
fn whole(code: Code, error: &(dyn std::error::Error + 'static)) -> Status {
    let chain = std::iter::successors(Some(error), |e| e.source());
    Status::new(code, chain.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

/// The status of an [`AccessError`] that came wrapped in a domain's error.
pub fn access(inner: &AccessError, outer: &(dyn std::error::Error + 'static)) -> Status {
    match inner {
        AccessError::Unauthenticated { .. } => Status::unauthenticated(inner.to_string()),
        AccessError::Denied { .. } => Status::permission_denied(inner.to_string()),
        AccessError::NotServing(_) => Status::unavailable(inner.to_string()),
        AccessError::Store(_) => internal(outer),
    }
}
