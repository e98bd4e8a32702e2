//! Details of problems that take more than a line.

use std::time::Duration;

use crate::domain::{Expected, Position, Rejection, Timestamp};

pub(super) fn gone_detail(oldest: Position) -> String {
    format!(
        "retention has removed events after this position; begin again with `after={oldest}` or `after=oldest`"
    )
}

pub(super) fn ahead_detail(head: Position) -> String {
    format!(
        "the log ends at {head}: the position is of another log, or the log was restored from a backup; compare `Balto-Log`"
    )
}

pub(super) fn rejection_detail(rejection: &Rejection) -> String {
    match rejection {
        Rejection::VersionConflict { expected, actual } => {
            format!("expected version {}, found {}", expected_text(*expected), actual_text(*actual))
        }
        Rejection::IdTaken => {
            "an event with this id was published with another body; to repeat it, send exactly the same body"
                .to_owned()
        }
        Rejection::PartialDuplicate => {
            "some of the ids were published before, others were not; nothing was appended".to_owned()
        }
    }
}

pub(super) fn wrong_keys_detail(retry_after: Duration) -> String {
    format!("too many wrong keys from this address; try again in {} s", retry_seconds(retry_after))
}

pub(super) fn expired_detail(at: Timestamp) -> String {
    format!("the API key expired at {}; use another one", at.rfc3339().as_str())
}

pub(super) fn late_detail(position: Position) -> String {
    format!("position {position} was not reached in time; ask again, or without `Balto-Wait-Position`")
}

pub(super) fn retry_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

pub(super) fn expected_text(expected: Expected) -> String {
    match expected {
        Expected::Any => "any".to_owned(),
        Expected::NoStream => "none".to_owned(),
        Expected::Exists => "exists".to_owned(),
        Expected::Version(version) => version.to_string(),
    }
}

fn actual_text(actual: Option<u64>) -> String {
    actual.map_or_else(|| "none".to_owned(), |version| version.to_string())
}
