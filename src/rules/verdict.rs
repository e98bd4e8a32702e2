//! The verdict on the result of an attempt.

use std::time::{Duration, UNIX_EPOCH};

use crate::domain::{DeadReason, DisabledReason, ErrorClass, ReceiverAnswer, Timestamp, Verdict};
use crate::failpoints::{self, Bound};
use crate::limits;

/// Configured statuses that dead-letter a delivery at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedStatuses(pub Vec<u16>);

/// Facts of a reply that its verdict depends on.
#[derive(Clone, Copy, Debug)]
pub struct ReplyFacts<'a> {
    pub outcome: Result<ReceiverAnswer, ErrorClass>,
    /// The address policy forbids the URL itself. `false` for a name with a forbidden address: that
    /// may change.
    pub url_is_forbidden: bool,
    pub retry_after: Option<&'a str>,
    /// The header `webhook-delivery`, which can end the delivery or the endpoint's subscription.
    pub webhook_delivery: Option<&'a str>,
    pub received_at: Timestamp,
}

/// Judges a reply. Only 2xx and a broker's confirm are a success.
#[must_use]
pub fn verdict(reply: &ReplyFacts<'_>, refused: &RefusedStatuses) -> Verdict {
    if reply.url_is_forbidden {
        return Verdict::Refused(DeadReason::BlockedAddress);
    }
    let status = match reply.outcome {
        Ok(ReceiverAnswer::Confirmed | ReceiverAnswer::Status(200..300)) => return Verdict::Delivered,
        Ok(ReceiverAnswer::Status(410)) => return Verdict::Gone(DisabledReason::Gone),
        Ok(ReceiverAnswer::Status(status)) => status,
        // A repetition would fail in the same way.
        Err(ErrorClass::Template) => return Verdict::Refused(DeadReason::Unconvertible),
        Err(_) => return Verdict::Retry,
    };
    match reply.webhook_delivery.map(str::trim) {
        Some("disable") => return Verdict::Gone(DisabledReason::Requested),
        Some("abort-message") => return Verdict::Refused(DeadReason::Refused),
        Some(_) | None => {}
    }
    if refused.0.contains(&status) {
        return Verdict::Refused(DeadReason::Refused);
    }
    match (status, reply.retry_after.and_then(|text| parse_retry_after(text, reply.received_at))) {
        (429 | 503, Some(wait)) => Verdict::RetryAfter(wait),
        _ => Verdict::Retry,
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date in any of its three forms. At most
/// [`limits::RETRY_AFTER_MAX`]; a date in the past is zero; anything else is ignored.
#[must_use]
pub fn parse_retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(wait_max()));
    }
    let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let at = Timestamp::from_millis(u64::try_from(date.as_millis()).ok()?);
    Some(at.since(now).min(wait_max()))
}

fn wait_max() -> Duration {
    let seconds = limits::RETRY_AFTER_MAX.as_secs() as usize;
    Duration::from_secs(failpoints::bound(Bound::RetryAfterSeconds, seconds) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(status: u16, retry_after: Option<&str>, header: Option<&str>) -> Verdict {
        let now = Timestamp::from_millis(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT
        let facts = ReplyFacts {
            outcome: Ok(ReceiverAnswer::Status(status)),
            url_is_forbidden: false,
            retry_after,
            webhook_delivery: header,
            received_at: now,
        };
        verdict(&facts, &RefusedStatuses(vec![422]))
    }

    #[test]
    fn only_2xx_is_success() {
        for status in 100..600 {
            assert_eq!(
                judge(status, None, None) == Verdict::Delivered,
                (200..300).contains(&status),
                "{status}"
            );
        }
        assert_eq!(judge(301, None, None), Verdict::Retry);
        assert_eq!(judge(410, None, None), Verdict::Gone(DisabledReason::Gone));
        assert_eq!(judge(422, None, None), Verdict::Refused(DeadReason::Refused));
        assert_eq!(judge(500, None, Some("disable")), Verdict::Gone(DisabledReason::Requested));
        assert_eq!(judge(500, None, Some("abort-message")), Verdict::Refused(DeadReason::Refused));
        assert_eq!(judge(200, None, Some("disable")), Verdict::Delivered);
    }

    #[test]
    fn retry_after_holds_on_429_and_503_only() {
        let wait = |seconds| Verdict::RetryAfter(Duration::from_secs(seconds));
        assert_eq!(judge(429, Some("120"), None), wait(120));
        assert_eq!(judge(503, Some("0"), None), wait(0));
        assert_eq!(judge(500, Some("120"), None), Verdict::Retry);
        for date in
            ["Sun, 06 Nov 1994 08:50:37 GMT", "Sunday, 06-Nov-94 08:50:37 GMT", "Sun Nov  6 08:50:37 1994"]
        {
            assert_eq!(judge(429, Some(date), None), wait(60), "{date}");
        }
        assert_eq!(judge(429, Some("Sun, 06 Nov 1994 08:40:37 GMT"), None), wait(0));
        assert_eq!(judge(429, Some("99999999999999999999999"), None), wait(86_400));
        for junk in ["", "-1", "120.5", "soon", "1e3"] {
            assert_eq!(judge(429, Some(junk), None), Verdict::Retry, "{junk:?}");
        }
    }

    #[test]
    fn forbidden_url_is_final_and_blocked_name_is_retried() {
        let judge = |class, url_is_forbidden| {
            let facts = ReplyFacts {
                outcome: Err(class),
                url_is_forbidden,
                retry_after: None,
                webhook_delivery: None,
                received_at: Timestamp::default(),
            };
            verdict(&facts, &RefusedStatuses::default())
        };
        let refused = Verdict::Refused(DeadReason::BlockedAddress);
        assert_eq!(judge(ErrorClass::BlockedAddress, true), refused);
        assert_eq!(judge(ErrorClass::Template, false), Verdict::Refused(DeadReason::Unconvertible));
        for class in ErrorClass::ALL.into_iter().filter(|class| *class != ErrorClass::Template) {
            assert_eq!(judge(class, false), Verdict::Retry, "{class:?}");
        }
    }
}
