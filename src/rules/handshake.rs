//! Consent of receivers, by CloudEvents' "HTTP 1.1 Web Hooks for Event Delivery", section 4.
//!
//! Only an explicit `WebHook-Allowed-Origin` is consent. A status, an ambiguous answer or a missing
//! answer is not.

use std::time::Duration;

use super::retry;
use crate::domain::{
    Asked, Consent, Endpoint, EndpointStatus, ErrorClass, Handshake, Network, RateLimit, Timestamp,
};
use crate::failpoints::{self, Mutation};
use crate::limits;

/// Period of the rates in a handshake.
const MINUTE: Duration = Duration::from_secs(60);
/// Stored text of an answer with consent.
pub const AGREED: &str = "agreed";
const INTERVAL_MULTIPLIER: f64 = 2.0;

/// Facts of the answer to a request for consent.
#[derive(Clone, Copy, Debug)]
pub struct AnswerFacts<'a> {
    pub outcome: Result<u16, (ErrorClass, &'a str)>,
    /// All values of `WebHook-Allowed-Origin`.
    pub allowed_origin: Option<&'a str>,
    /// All values of `WebHook-Allowed-Rate`.
    pub allowed_rate: Option<&'a str>,
}

/// Intervals between requests to a receiver without consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskingPolicy {
    pub initial: Duration,
    pub max_interval: Duration,
}

/// Judges an answer. Returns the granted rate; `None`: any.
///
/// # Errors
/// The reason without consent, as a text for the receiver's operator.
pub fn judge(handshake: &Handshake, facts: &AnswerFacts<'_>) -> Result<Option<u32>, String> {
    let status = facts.outcome.map_err(|(class, detail)| format!("{}: {detail}", class.as_str()))?;
    let refused = |reason: &str| format!("status {status}: {reason}");
    if (300..400).contains(&status) {
        // The target of a redirect did not get the request.
        return Err(refused("a redirect is not followed"));
    }
    let origin = facts.allowed_origin.ok_or_else(|| refused("no WebHook-Allowed-Origin"))?;
    // A DNS name, which is case-insensitive (RFC 4343).
    if origin != "*" && !origin.eq_ignore_ascii_case(handshake.origin.as_str()) {
        return Err(refused("WebHook-Allowed-Origin is neither our origin nor `*`"));
    }
    allowed_rate(facts.allowed_rate, handshake.rate).map_err(refused)
}

/// The rate that `WebHook-Allowed-Rate` grants, or the `requested` one if the header is missing.
/// `None`: any rate.
///
/// # Errors
/// When the value is neither a positive number nor `*`: a malformed limit must not become no limit.
pub fn allowed_rate(header: Option<&str>, requested: Option<u32>) -> Result<Option<u32>, &'static str> {
    match header {
        None => Ok(requested),
        Some("*") => Ok(None),
        Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            match digits.parse().unwrap_or(u32::MAX) {
                0 => Err("WebHook-Allowed-Rate is 0"),
                rate => Ok(Some(rate)),
            }
        }
        Some(_) => Err("WebHook-Allowed-Rate is neither a positive number nor `*`"),
    }
}

/// Records an answer: its judgement, the network that it came from, and its `Retry-After` as
/// `wait`.
#[must_use]
pub fn record_answer(
    handshake: &Handshake,
    judged: Result<Option<u32>, String>,
    network: Network,
    policy: &AskingPolicy,
    wait: Option<Duration>,
    at: Timestamp,
) -> Handshake {
    let (since, count) = match &handshake.asked {
        Some(asked) => (asked.since, asked.count.saturating_add(1)),
        None => (at, 1),
    };
    let interval = retry::interval(policy.initial, INTERVAL_MULTIPLIER, policy.max_interval, count);
    let wait = wait.unwrap_or_default().min(limits::RETRY_AFTER_MAX);
    let next_at = at.plus(interval.max(wait));
    let (answer, agreed) = match judged {
        Ok(rate) => (AGREED.to_owned(), Some(rate)),
        Err(reason) => (reason, None),
    };
    let asked = Some(Asked { since, count, at, answer: answer.into(), network, next_at });
    let asked = Handshake { asked, ..handshake.clone() };
    match agreed {
        Some(rate) => grant_consent(asked, rate, at),
        None => asked,
    }
}

/// Total time of asking, by planned intervals. Time without requests does not count: the daemon was
/// down, or the endpoint was paused.
#[must_use]
pub fn asking_time(asked: &Asked, policy: &AskingPolicy) -> Duration {
    let interval = |count| retry::interval(policy.initial, INTERVAL_MULTIPLIER, policy.max_interval, count);
    let waits = asked.count.saturating_sub(1);
    // The intervals grow up to here.
    let growing = waits.min(limits::ATTEMPTS_MAX);
    let planned: Duration = (1..=growing).map(interval).sum();
    let rest = interval(growing).saturating_mul(waits - growing);
    planned.saturating_add(rest).min(asked.at.since(asked.since))
}

/// Records consent. Invalidates all callbacks: a leaked one must not change the granted rate.
#[must_use]
pub fn grant_consent(handshake: Handshake, rate: Option<u32>, at: Timestamp) -> Handshake {
    Handshake { consent: Some(Consent { at, rate }), callbacks: Vec::new(), ..handshake }
}

/// Adds a callback. Removes the oldest above [`limits::CALLBACKS_MAX`].
#[must_use]
pub fn add_callback(handshake: &Handshake, hash: [u8; 32]) -> Handshake {
    let mut handshake = handshake.clone();
    handshake.callbacks.push(hash);
    let over = handshake.callbacks.len().saturating_sub(limits::CALLBACKS_MAX);
    handshake.callbacks.drain(..over);
    handshake
}

/// Revokes consent and restarts the handshake. Callbacks remain valid.
#[must_use]
pub fn restart_handshake(handshake: &Handshake) -> Handshake {
    Handshake { consent: None, asked: None, ..handshake.clone() }
}

/// The handshake after a change of the endpoint. An answer holds only for its URL, origin and
/// requested rate.
#[must_use]
pub fn apply_change(
    present: Option<&Handshake>,
    wanted: Option<Handshake>,
    same_url: bool,
) -> Option<Handshake> {
    let wanted = wanted?;
    match present.filter(|present| same_url && present.has_same_terms(&wanted)) {
        Some(present) if wanted.callback => Some(Handshake { callback: true, ..present.clone() }),
        Some(present) => Some(Handshake { callback: false, callbacks: Vec::new(), ..present.clone() }),
        None => Some(wanted),
    }
}

/// Whether the handshake permits deliveries to the endpoint.
#[must_use]
pub fn allows(endpoint: &Endpoint) -> bool {
    endpoint.has_consent() || failpoints::is_active(Mutation::SendUnasked)
}

/// Time of the next request for consent. `None`: consent was given, or the endpoint is not active.
#[must_use]
pub fn next_request(endpoint: &Endpoint) -> Option<Timestamp> {
    let handshake = endpoint.handshake.as_ref().filter(|handshake| handshake.consent.is_none())?;
    let next = handshake.asked.as_ref().map_or(Timestamp::ZERO, |asked| asked.next_at);
    (endpoint.status == EndpointStatus::Active).then_some(next)
}

/// The endpoint's effective rate: the lower one of the configured and the consented rate.
#[must_use]
pub fn rate(endpoint: &Endpoint) -> Option<RateLimit> {
    let consent = endpoint.handshake.as_ref().and_then(|handshake| handshake.consent);
    let Some(allowed) = consent.and_then(|consent| consent.rate) else { return endpoint.rate_limit };
    // Without a burst, which would exceed the consented rate within a minute.
    let allowed = RateLimit { limit: allowed, per: MINUTE, burst: 1 };
    match endpoint.rate_limit {
        Some(own) if !is_faster(&own, &allowed) => {
            Some(RateLimit { burst: own.burst.min(allowed.burst), ..own })
        }
        Some(_) | None => Some(allowed),
    }
}

fn is_faster(one: &RateLimit, other: &RateLimit) -> bool {
    u128::from(one.limit) * other.per.as_nanos() > u128::from(other.limit) * one.per.as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tests::endpoint;

    const POLICY: AskingPolicy =
        AskingPolicy { initial: Duration::from_secs(60), max_interval: Duration::from_secs(6 * 3_600) };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn handshake(rate: Option<u32>) -> Handshake {
        Handshake::new("events.example.com".parse().unwrap(), rate, true)
    }

    fn answer(status: u16, origin: Option<&str>, rate: Option<&str>) -> Result<Option<u32>, String> {
        let facts = AnswerFacts { outcome: Ok(status), allowed_origin: origin, allowed_rate: rate };
        judge(&handshake(Some(120)), &facts)
    }

    #[test]
    fn only_our_origin_or_any_is_consent_at_any_status() {
        for status in [200, 204, 400, 401, 404, 405, 410, 429, 500, 503] {
            for origin in ["events.example.com", "Events.Example.COM", "*"] {
                assert_eq!(answer(status, Some(origin), Some("*")), Ok(None), "WH-9 {status} {origin}");
            }
            for origin in [
                "",
                "example.com",
                "other.example.com",
                "events.example.com.",
                "*.example.com",
                "**",
                "https://events.example.com",
                "events.example.com, *",
                "events.example.com, events.example.com",
                "null",
                "true",
            ] {
                let reason = answer(status, Some(origin), Some("*")).unwrap_err();
                assert!(reason.contains("neither our origin"), "WH-9 {status} {origin}: {reason}");
            }
            let reason = answer(status, None, Some("120")).unwrap_err();
            assert_eq!(reason, format!("status {status}: no WebHook-Allowed-Origin"), "WH-9");
        }
    }

    #[test]
    fn redirect_or_missing_answer_is_not_consent() {
        for status in [300, 301, 302, 303, 307, 308] {
            assert!(answer(status, Some("*"), Some("*")).is_err(), "WH-3 {status}");
        }
        let facts = AnswerFacts {
            outcome: Err((ErrorClass::Timeout, "no reply within the timeout")),
            allowed_origin: Some("*"),
            allowed_rate: None,
        };
        assert_eq!(judge(&handshake(None), &facts), Err("timeout: no reply within the timeout".to_owned()));
    }

    #[test]
    fn allowed_rate_is_a_positive_number_or_any() {
        for (header, allowed) in [
            (Some("1"), Ok(Some(1))),
            (Some("007"), Ok(Some(7))),
            (Some("120"), Ok(Some(120))),
            (Some("99999999999999999999"), Ok(Some(u32::MAX))),
            (Some("*"), Ok(None)),
            (None, Ok(Some(120))),
        ] {
            assert_eq!(answer(200, Some("*"), header), allowed, "WH-10 {header:?}");
        }
        for header in ["0", "00", "-1", "+1", "abc", "", "1.5", "1e3", "60, 120", "60;", "**", "٣"] {
            assert!(answer(200, Some("*"), Some(header)).is_err(), "WH-10 {header:?}");
        }
        // No rate was requested and none was given: any rate is allowed.
        assert_eq!(allowed_rate(None, None), Ok(None), "WH-10");
    }

    #[test]
    fn requests_back_off_and_respect_retry_after() {
        let no = || Err("no".to_owned());
        let (mut handshake, mut now, mut waits) = (handshake(None), at(1_000), Vec::new());
        for _ in 0..12 {
            handshake = record_answer(&handshake, no(), Network::Public, &POLICY, None, now);
            let asked = handshake.asked.as_ref().unwrap();
            waits.push(asked.next_at.since(now).as_secs() / 60);
            now = asked.next_at;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360]);
        let asked = handshake.asked.as_ref().unwrap();
        assert_eq!((asked.since, asked.count), (at(1_000), 12));
        let wait = |seconds| Some(Duration::from_secs(seconds));
        let next = |wait| {
            let asked =
                record_answer(&self::handshake(None), no(), Network::Public, &POLICY, wait, at(0)).asked;
            asked.unwrap().next_at
        };
        assert_eq!(next(wait(30)), at(60), "WH-5");
        assert_eq!(next(wait(3_600)), at(3_600), "WH-5");
        assert_eq!(next(wait(u64::MAX)), at(24 * 3_600), "WH-5, bounded");
    }

    #[test]
    fn time_without_requests_does_not_count_as_asking() {
        let no = || Err("no".to_owned());
        let mut handshake = record_answer(&handshake(None), no(), Network::Public, &POLICY, None, at(0));
        let asking_time =
            |handshake: &Handshake| super::asking_time(handshake.asked.as_ref().unwrap(), &POLICY);
        assert_eq!(asking_time(&handshake), Duration::ZERO);
        // The daemon was down for days.
        handshake = record_answer(&handshake, no(), Network::Public, &POLICY, None, at(900_000));
        assert_eq!(asking_time(&handshake), Duration::from_secs(60));
        for _ in 0..200 {
            let next = handshake.asked.as_ref().unwrap().next_at;
            handshake = record_answer(&handshake, no(), Network::Public, &POLICY, None, next);
        }
        let minutes = (1 + 2 + 4 + 8 + 16 + 32 + 64 + 128 + 256) + 360 * (201 - 9);
        assert_eq!(asking_time(&handshake), Duration::from_secs(60 * minutes));
    }

    #[test]
    fn consent_invalidates_callbacks_and_their_number_is_bounded() {
        let mut handshake = handshake(Some(5));
        for number in 0..40 {
            handshake = add_callback(&handshake, [number; 32]);
        }
        let good: Vec<_> = handshake.callbacks.iter().map(|hash| hash[0]).collect();
        assert_eq!(good, (24..40).collect::<Vec<_>>());
        let agreed = record_answer(&handshake, Ok(Some(3)), Network::Public, &POLICY, None, at(9));
        assert_eq!(agreed.consent, Some(Consent { at: at(9), rate: Some(3) }));
        assert_eq!((agreed.callbacks.len(), &*agreed.asked.unwrap().answer), (0, "agreed"));
        assert_eq!(restart_handshake(&handshake).callbacks, handshake.callbacks);
    }

    #[test]
    fn consent_holds_for_the_same_url_origin_and_rate() {
        let agreed = grant_consent(handshake(Some(5)), Some(5), at(1));
        let with = |origin: &str, rate| Some(Handshake::new(origin.parse().unwrap(), rate, false));
        let same = apply_change(Some(&agreed), with("events.example.com", Some(5)), true).unwrap();
        assert_eq!(
            (same.consent, same.callback),
            (agreed.consent, false),
            "removing the callback keeps consent"
        );
        for (wanted, same_url, change) in [
            (with("events.example.com", Some(5)), false, "another URL"),
            (with("other.example.com", Some(5)), true, "another origin"),
            (with("events.example.com", Some(6)), true, "another rate"),
            (with("events.example.com", None), true, "no rate"),
        ] {
            assert_eq!(apply_change(Some(&agreed), wanted.clone(), same_url), wanted, "{change}");
        }
        let pending = add_callback(&handshake(None), [1; 32]);
        let moved = apply_change(Some(&pending), Some(handshake(None)), false).unwrap();
        assert_eq!(moved.callbacks.len(), 0, "a callback of the old URL is invalid for the new one");
        assert_eq!(apply_change(Some(&agreed), None, true), None);
        assert_eq!(apply_change(None, with("a", None), true), with("a", None));
    }

    #[test]
    fn only_active_endpoints_without_consent_get_requests() {
        let mut one = endpoint(1, "default", &[]);
        assert_eq!((next_request(&one), allows(&one)), (None, true), "no handshake");
        one.handshake = Some(handshake(None));
        assert_eq!((next_request(&one), allows(&one)), (Some(Timestamp::ZERO), false));
        let no = Err("no".to_owned());
        let refused = record_answer(&handshake(None), no, Network::Public, &POLICY, None, at(60));
        one.handshake = Some(refused);
        assert_eq!(next_request(&one), Some(at(120)));
        one.status = EndpointStatus::Paused;
        assert_eq!((next_request(&one), allows(&one)), (None, false));
        one.status = EndpointStatus::Active;
        one.handshake = Some(grant_consent(handshake(None), None, at(1)));
        assert_eq!((next_request(&one), allows(&one)), (None, true));
    }

    #[test]
    fn stricter_rate_and_burst_apply() {
        let second = Duration::from_secs(1);
        let own = |limit, per, burst| Some(RateLimit { limit, per, burst });
        let rows = [
            (None, None, None),
            (None, Some(90), own(90, MINUTE, 1)),
            (own(100, second, 50), None, own(100, second, 50)),
            (own(100, second, 50), Some(90), own(90, MINUTE, 1)),
            (own(1, second, 50), Some(90), own(1, second, 1)),
            (own(1, 10 * second, 5), Some(10), own(1, 10 * second, 1)),
            (own(1, second, 1), Some(60), own(1, second, 1)),
            (own(u32::MAX, Duration::from_nanos(1), u32::MAX), Some(u32::MAX), own(u32::MAX, MINUTE, 1)),
        ];
        for (rate_limit, allowed, effective) in rows {
            let handshake = Some(grant_consent(handshake(None), allowed, at(1)));
            let one = Endpoint { rate_limit, handshake, ..endpoint(1, "default", &[]) };
            assert_eq!(rate(&one), effective, "{rate_limit:?} and {allowed:?}");
        }
    }
}
