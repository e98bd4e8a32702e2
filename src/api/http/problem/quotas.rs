//! The text of an exceeded quota.

use crate::domain::{Quota, QuotaExceeded};

/// The exceeded quota and advice.
pub(super) fn detail(exceeded: &QuotaExceeded) -> String {
    let advice = match exceeded.quota {
        Quota::Endpoints => "delete endpoints that are not in use",
        Quota::PatternBytes => "use fewer or shorter patterns",
        Quota::WildcardParts => "use fewer patterns with `*` and `#`",
        Quota::HeaderBytes => "use fewer or shorter headers",
        Quota::Keys => "delete keys that are not in use",
        Quota::Consumers => "delete consumers that are not in use",
        Quota::PendingDeliveries => {
            "wait until deliveries end, cancel some, or delete endpoints that do not accept them"
        }
        Quota::StoredBytes => "wait until retention removes events",
        Quota::EventsPerSecond | Quota::BytesPerSecond if exceeded.retry_after.is_none() => {
            "send less in one request"
        }
        Quota::EventsPerSecond | Quota::BytesPerSecond => "publish more slowly",
        Quota::ConnectionsPerKey => "reuse connections, and close those that are not in use",
        Quota::ReadsPerKey => "wait for the responses of earlier reads",
    };
    format!("{exceeded}; {advice}, or ask the operator for a higher quota")
}
