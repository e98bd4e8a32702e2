//! Whether an event may be appended: optimistic concurrency and idempotency.

use crate::domain::{Expected, Position, Rejection, Timestamp};
use crate::failpoints::{self, Mutation};
use crate::projections::idempotency::Known;

/// Version of the next event of a stream whose version is `actual`. Versions are dense from 1.
///
/// # Errors
/// When `actual` differs from the expected version.
pub fn judge_version(expected: Expected, actual: Option<u64>) -> Result<u64, Rejection> {
    let agrees = match expected {
        Expected::Any => true,
        Expected::NoStream => actual.is_none(),
        Expected::Exists => actual.is_some(),
        Expected::Version(version) => actual == Some(version),
    };
    let step = if failpoints::is_active(Mutation::SkipVersion) { 2 } else { 1 };
    if agrees { Ok(actual.unwrap_or(0) + step) } else { Err(Rejection::VersionConflict { expected, actual }) }
}

/// Result of checking an idempotency key or a publisher-chosen id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    Fresh,
    /// The record at this position is the result of the same request.
    Duplicate(Position),
    /// The record at this position is the result of another request.
    Mismatch(Position),
}

/// Checks a request against the record of its key. An expired record counts as none.
#[must_use]
pub fn judge_idempotency(found: Option<&Known>, fingerprint: &[u8; 16], now: Timestamp) -> Judged {
    match found.filter(|known| known.expires_at.is_none_or(|at| at > now)) {
        None => Judged::Fresh,
        Some(known) if known.fingerprint == *fingerprint => Judged::Duplicate(known.position),
        Some(known) => Judged::Mismatch(known.position),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_dense_and_conflicts_carry_both_numbers() {
        assert_eq!(judge_version(Expected::Any, None), Ok(1));
        assert_eq!(judge_version(Expected::Any, Some(6)), Ok(7));
        assert_eq!(judge_version(Expected::NoStream, None), Ok(1));
        assert_eq!(judge_version(Expected::Version(6), Some(6)), Ok(7));
        assert_eq!(judge_version(Expected::Exists, Some(6)), Ok(7));
        for (expected, actual) in [
            (Expected::NoStream, Some(1)),
            (Expected::Exists, None),
            (Expected::Version(6), None),
            (Expected::Version(6), Some(7)),
        ] {
            assert_eq!(judge_version(expected, actual), Err(Rejection::VersionConflict { expected, actual }));
        }
    }

    #[test]
    fn idempotency_key_applies_until_it_expires() {
        let at = Timestamp::from_millis;
        let known = Known { position: Position(5), fingerprint: [1; 16], expires_at: Some(at(100)) };
        assert_eq!(judge_idempotency(None, &[1; 16], at(0)), Judged::Fresh);
        assert_eq!(judge_idempotency(Some(&known), &[1; 16], at(99)), Judged::Duplicate(Position(5)));
        assert_eq!(judge_idempotency(Some(&known), &[2; 16], at(99)), Judged::Mismatch(Position(5)));
        assert_eq!(judge_idempotency(Some(&known), &[2; 16], at(100)), Judged::Fresh);
    }
}
