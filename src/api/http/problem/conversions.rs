//! The exhaustive mapping from the errors of the services.

use super::{FieldError, Problem};
use crate::api::v1::event_types::model::IncompatibilityBody;
use crate::limits;
use crate::service::event_types::TypeChangeError;
use crate::service::types::{ChangeError, FeedError, PublishError, TypeRefusal, Unavailable, WaitError};

impl From<WaitError> for Problem {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TooManyWaiters => Self::TooManyWaiters,
            WaitError::Unavailable(error) => error.into(),
        }
    }
}

impl From<FeedError> for Problem {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Gone { oldest } => Self::PositionGone { oldest },
            FeedError::Ahead { head } => Self::PositionAhead { head },
            FeedError::Wait(error) => error.into(),
        }
    }
}

impl From<Unavailable> for Problem {
    fn from(error: Unavailable) -> Self {
        match error {
            Unavailable::Overloaded { retry_after } => Self::Overloaded { retry_after },
            Unavailable::DiskFull => Self::DiskFull,
            Unavailable::Stopping => Self::Unavailable("the daemon is shutting down".to_owned()),
            Unavailable::Failed(reason) => {
                tracing::error!(%reason, "store request failed");
                Self::Unavailable("the store failed; see the daemon's log".to_owned())
            }
        }
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Rejected { rejection, repeated } => Self::Rejected { rejection, repeated },
            PublishError::IdempotencyMismatch => Self::IdempotencyMismatch,
            PublishError::Refused(refusal) => (*refusal).into(),
            PublishError::TooManyTargets => Self::TooManyDeliveries { limit: limits::REQUEST_TARGETS_MAX },
            PublishError::QuotaExceeded(exceeded) => Self::QuotaExceeded(exceeded),
            PublishError::Store(unavailable) => unavailable.into(),
        }
    }
}

impl From<TypeRefusal> for Problem {
    fn from(refusal: TypeRefusal) -> Self {
        match refusal {
            TypeRefusal::UnknownType => Self::UnknownType,
            TypeRefusal::UnknownVersion { known } => {
                Self::UnknownVersion { known: known.iter().map(ToString::to_string).collect() }
            }
            TypeRefusal::Violations(violations) => Self::SchemaViolation(
                violations
                    .into_iter()
                    .map(|violation| FieldError::at(format!("/data{}", violation.pointer), violation.detail))
                    .collect(),
            ),
        }
    }
}

impl From<TypeChangeError> for Problem {
    fn from(error: TypeChangeError) -> Self {
        match error {
            TypeChangeError::Definition(errors) => Self::Validation(
                errors.into_iter().map(|error| FieldError::at(error.pointer, error.detail)).collect(),
            ),
            TypeChangeError::InUse(detail) => Self::VersionInUse(detail),
            TypeChangeError::Incompatible(found) => {
                Self::IncompatibleSchema(found.iter().map(IncompatibilityBody::new).collect())
            }
            TypeChangeError::Change(error) => error.into(),
        }
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotFound => Self::NotFound("the resource no longer exists".to_owned()),
            ChangeError::Conflict => {
                Self::Conflict("the resource was changed by another request; try again".to_owned())
            }
            ChangeError::NotAllowed(why) => Self::Conflict(why.to_owned()),
            ChangeError::Erased => Self::EventErased,
            ChangeError::UidTaken => Self::UidTaken,
            ChangeError::TooManyJobs => Self::Conflict(error.to_string()),
            ChangeError::QuotaExceeded(exceeded) => Self::QuotaExceeded(exceeded),
            ChangeError::Repeated => Self::RequestInFlight,
            ChangeError::Store(unavailable) => unavailable.into(),
        }
    }
}
