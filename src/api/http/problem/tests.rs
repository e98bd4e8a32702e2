//! Tests of problems: members, headers, codes.

use super::*;
use crate::service::types::{PublishError, Unavailable};

#[test]
fn version_conflict_contains_both_versions() {
    let rejection = Rejection::VersionConflict { expected: Expected::Version(6), actual: Some(7) };
    let problem = Problem::Rejected { rejection, repeated: false };
    let value = serde_json::to_value(&problem).unwrap();
    assert_eq!(value["expected"], 6);
    assert_eq!(value["actual"], 7);
    assert_eq!(value["code"], "version_conflict");
    assert_eq!(value["status"], 409);
    assert_eq!(value["type"], "urn:balto:problem:version_conflict");
}

#[test]
fn overload_has_a_retry_after() {
    let reply =
        Problem::from(Unavailable::Overloaded { retry_after: Duration::from_millis(1200) }).into_reply();
    assert_eq!(reply.status, 429);
    assert_eq!(reply.header("retry-after"), Some("2"));
    assert_eq!(Problem::from(Unavailable::Stopping).into_reply().header("retry-after"), Some("5"));
    let wide = Problem::from(PublishError::TooManyTargets);
    assert!(wide.detail().contains("at most 1000000 deliveries"), "{}", wide.detail());
    let reply = wide.into_reply();
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")));
}

#[test]
fn request_above_a_rate_is_told_to_be_smaller() {
    let quota = Quota::EventsPerSecond;
    let exceeded =
        |retry_after| Problem::QuotaExceeded(QuotaExceeded { quota, limit: 3, value: 4, retry_after });
    let large = exceeded(None);
    assert!(large.detail().contains("send less in one request"), "{}", large.detail());
    assert_eq!(large.into_reply().header("retry-after"), None);
    let fast = exceeded(Some(Duration::from_millis(300)));
    assert!(fast.detail().contains("publish more slowly"), "{}", fast.detail());
    assert_eq!(fast.into_reply().header("retry-after"), Some("1"));
}

#[test]
fn full_store_is_worth_a_later_try_unless_nothing_fits() {
    for (limit, retry_after) in [(0, None), (1, Some("60"))] {
        let quota = Quota::StoredBytes;
        let exceeded = QuotaExceeded { quota, limit, value: 9, retry_after: None };
        let reply = Problem::QuotaExceeded(exceeded).into_reply();
        assert_eq!((reply.status, reply.header("retry-after")), (507, retry_after), "{limit}");
    }
}

#[test]
fn pointer_escapes_its_members() {
    assert_eq!(pointer("/a", "b/c~d"), "/a/b~1c~0d");
}
