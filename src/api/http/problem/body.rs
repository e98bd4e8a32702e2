//! The body of a problem: its members, and those of its kind.

use serde::{Serialize, ser::SerializeMap};

use super::{FieldError, Problem, expected_text};
use crate::api::v1::event_types::model::IncompatibilityBody;
use crate::domain::{Expected, Position, Rejection};

impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &format!("urn:balto:problem:{}", self.code()))?;
        map.serialize_entry("title", self.title())?;
        map.serialize_entry("status", &self.status())?;
        map.serialize_entry("detail", &self.detail())?;
        map.serialize_entry("code", self.code())?;
        let cause = match self {
            Self::OfPart { part, cause } => {
                part.serialize_into(&mut map)?;
                cause
            }
            other => other,
        };
        match cause {
            Self::Rejected { rejection: Rejection::VersionConflict { expected, actual }, .. } => {
                match expected {
                    Expected::Version(version) => map.serialize_entry("expected", version)?,
                    word => map.serialize_entry("expected", &expected_text(*word))?,
                }
                map.serialize_entry("actual", actual)?;
            }
            Self::VersionGone { first_version } => map.serialize_entry("firstVersion", first_version)?,
            Self::ConsumerMoved { actual } => map.serialize_entry("actual", &actual.to_string())?,
            Self::PayloadTooLarge { limit } => map.serialize_entry("limit", limit)?,
            Self::LoopDetected { limit } => map.serialize_entry("limit", limit)?,
            Self::TooManyDeliveries { limit } | Self::UnreadResponses { limit } => {
                map.serialize_entry("limit", limit)?;
            }
            Self::QuotaExceeded(exceeded) => {
                map.serialize_entry("quota", exceeded.quota.as_str())?;
                map.serialize_entry("limit", &exceeded.limit)?;
                map.serialize_entry("value", &exceeded.value)?;
            }
            Self::PositionGone { oldest } => map.serialize_entry("oldest", &oldest.to_string())?,
            Self::PositionAhead { head } => map.serialize_entry("head", &head.to_string())?,
            Self::UnsupportedMediaType { accepted } => map.serialize_entry("accepted", accepted)?,
            Self::Validation(errors) | Self::SchemaViolation(errors) => {
                map.serialize_entry("errors", errors)?;
            }
            Self::UnknownVersion { known } => map.serialize_entry("known", known)?,
            Self::IncompatibleSchema(differences) => {
                map.serialize_entry("incompatibilities", differences)?;
                let errors = differences.iter().map(IncompatibilityBody::error).collect::<Vec<_>>();
                map.serialize_entry("errors", &errors)?;
            }
            Self::ForbiddenUrl { pointer, detail } => {
                map.serialize_entry("errors", &[FieldError::at(*pointer, detail.as_str())])?;
            }
            _ => {}
        }
        map.end()
    }
}

impl Problem {
    /// The detail of a problem with an event type.
    pub(super) fn type_detail(&self) -> String {
        match self {
            Self::UnknownVersion { known } => {
                format!("the registered versions are {}; send one of them as `version`", known.join(", "))
            }
            Self::UnknownType => {
                "this Balto accepts registered event types only (`types.required`); register the type first"
                    .to_owned()
            }
            _ => "`incompatibilities` says what an earlier version lacks; change the schema, add migrations both ways, or repeat with `?force=true`".to_owned(),
        }
    }
}

pub(super) fn moved_detail(actual: Position) -> String {
    format!("the consumer is at {actual}; another instance may have committed, so read from there")
}
