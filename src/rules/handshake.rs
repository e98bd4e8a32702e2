//! Whether a receiver wants to be sent to, by CloudEvents' "HTTP 1.1 Web Hooks for Event Delivery", section 4.
//!
//! Consent is what says so in so many words. Everything else is none: not the status, not an answer that can be read in
//! two ways, and above all not silence.

use std::time::Duration;

use super::retry;
use crate::domain::{
    Asked, Consent, Endpoint, EndpointStatus, ErrorClass, Handshake, Network, RateLimit, Timestamp,
};
use crate::failpoints::{self, Mutation};
use crate::limits;

/// The time of the rates that a handshake speaks of.
const MINUTE: Duration = Duration::from_secs(60);
/// The text that is kept of an answer by which the receiver agreed.
pub const AGREED: &str = "agreed";
/// Factor from one wait between requests to the next.
const MULTIPLIER: f64 = 2.0;

/// What is known of the answer to a request for consent.
#[derive(Clone, Copy, Debug)]
pub struct AnswerFacts<'a> {
    pub outcome: Result<u16, (ErrorClass, &'a str)>,
    /// `WebHook-Allowed-Origin`, all of them.
    pub allowed_origin: Option<&'a str>,
    /// `WebHook-Allowed-Rate`, all of them.
    pub allowed_rate: Option<&'a str>,
}

/// When a receiver that has not agreed is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskingPolicy {
    pub initial: Duration,
    pub max_interval: Duration,
}

/// The rate that the receiver agrees to (`None`: any), or in what way it does not agree.
///
/// # Errors
/// In words for whoever runs the receiver.
pub fn judge(handshake: &Handshake, facts: &AnswerFacts<'_>) -> Result<Option<u32>, String> {
    let status = facts.outcome.map_err(|(class, words)| format!("{}: {words}", class.as_str()))?;
    let refused = |words: &str| format!("status {status}: {words}");
    if (300..400).contains(&status) {
        // A receiver must not redirect, and who stands at the other end has not been asked.
        return Err(refused("a redirect is not followed"));
    }
    let origin = facts.allowed_origin.ok_or_else(|| refused("no WebHook-Allowed-Origin"))?;
    // It is a DNS name, and those are equal in every case (RFC 4343).
    if origin != "*" && !origin.eq_ignore_ascii_case(handshake.origin.as_str()) {
        return Err(refused("WebHook-Allowed-Origin is neither our origin nor `*`"));
    }
    allowed_rate(facts.allowed_rate, handshake.rate).map_err(refused)
}

/// What `WebHook-Allowed-Rate` allows when `requested` was asked for, which is what holds where the header is missing.
/// `None`: any rate.
///
/// # Errors
/// For what is neither a positive number nor `*`: whoever named a bound is not sent to without one.
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

/// What is known after an answer: `judged` says what it was, `network` where it came from, `wait` how long the receiver wants
/// to be left alone.
#[must_use]
pub fn answered(
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
    let interval = retry::interval(policy.initial, MULTIPLIER, policy.max_interval, count);
    let wait = wait.unwrap_or_default().min(limits::RETRY_AFTER_MAX);
    let next_at = at.plus(interval.max(wait));
    let (answer, agreed) = match judged {
        Ok(rate) => (AGREED.to_owned(), Some(rate)),
        Err(words) => (words, None),
    };
    let asked = Some(Asked { since, count, at, answer: answer.into(), network, next_at });
    let asked = Handshake { asked, ..handshake.clone() };
    match agreed {
        Some(rate) => agreed_to(asked, rate, at),
        None => asked,
    }
}

/// For how long a receiver was asked: by plan, so that time in which nobody could ask (the daemon was
/// down, the endpoint was paused) does not count.
#[must_use]
pub fn asked_for(asked: &Asked, policy: &AskingPolicy) -> Duration {
    let interval = |count| retry::interval(policy.initial, MULTIPLIER, policy.max_interval, count);
    let waits = asked.count.saturating_sub(1);
    // From here on intervals grow no more.
    let growing = waits.min(limits::ATTEMPTS_MAX);
    let planned: Duration = (1..=growing).map(interval).sum();
    let rest = interval(growing).saturating_mul(waits - growing);
    planned.saturating_add(rest).min(asked.at.since(asked.since))
}

/// The receiver has agreed. No callback is good any more: who finds one later must not change what was agreed to.
#[must_use]
pub fn agreed_to(handshake: Handshake, rate: Option<u32>, at: Timestamp) -> Handshake {
    Handshake { consent: Some(Consent { at, rate }), callbacks: Vec::new(), ..handshake }
}

/// One more callback is good; the oldest goes when there are too many.
#[must_use]
pub fn with_callback(handshake: &Handshake, hash: [u8; 32]) -> Handshake {
    let mut handshake = handshake.clone();
    handshake.callbacks.push(hash);
    let over = handshake.callbacks.len().saturating_sub(limits::CALLBACKS_MAX);
    handshake.callbacks.drain(..over);
    handshake
}

/// The receiver is to be asked anew, as if it never had been. Callbacks that are on their way stay good.
#[must_use]
pub fn asked_anew(handshake: &Handshake) -> Handshake {
    Handshake { consent: None, asked: None, ..handshake.clone() }
}

/// What a change of the endpoint makes of its handshake: an answer counts for the URL, the origin and the rate that it
/// was given for, and for nothing else.
#[must_use]
pub fn changed(present: Option<&Handshake>, wanted: Option<Handshake>, same_url: bool) -> Option<Handshake> {
    let wanted = wanted?;
    match present.filter(|present| same_url && present.asks_as(&wanted)) {
        Some(present) if wanted.callback => Some(Handshake { callback: true, ..present.clone() }),
        Some(present) => Some(Handshake { callback: false, callbacks: Vec::new(), ..present.clone() }),
        None => Some(wanted),
    }
}

/// Whether anything may be sent to the endpoint, as far as its handshake goes.
#[must_use]
pub fn allows(endpoint: &Endpoint) -> bool {
    endpoint.has_consent() || failpoints::is_active(Mutation::SendUnasked)
}

/// When the receiver is asked next; `None` when it is not: it has agreed, or nothing is to be sent anyway.
#[must_use]
pub fn next_request(endpoint: &Endpoint) -> Option<Timestamp> {
    let handshake = endpoint.handshake.as_ref().filter(|handshake| handshake.consent.is_none())?;
    let next = handshake.asked.as_ref().map_or(Timestamp::ZERO, |asked| asked.next_at);
    (endpoint.status == EndpointStatus::Active).then_some(next)
}

/// The endpoint's rate: never faster than what it is set to, nor than what its receiver has agreed to.
#[must_use]
pub fn rate(endpoint: &Endpoint) -> Option<RateLimit> {
    let consent = endpoint.handshake.as_ref().and_then(|handshake| handshake.consent);
    let Some(allowed) = consent.and_then(|consent| consent.rate) else { return endpoint.rate_limit };
    // One at a time, evenly: with a burst, more than was agreed to would fall into one minute.
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
    fn consent_is_our_origin_or_any_and_nothing_else_whatever_the_status() {
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
                let words = answer(status, Some(origin), Some("*")).unwrap_err();
                assert!(words.contains("neither our origin"), "WH-9 {status} {origin}: {words}");
            }
            let words = answer(status, None, Some("120")).unwrap_err();
            assert_eq!(words, format!("status {status}: no WebHook-Allowed-Origin"), "WH-9");
        }
    }

    #[test]
    fn a_redirect_and_an_answer_that_never_came_are_no_consent() {
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
    fn a_rate_is_a_positive_number_or_any() {
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
        // Nobody asked for a rate, and none was given: there is no bound.
        assert_eq!(allowed_rate(None, None), Ok(None), "WH-10");
    }

    #[test]
    fn requests_come_ever_less_often_and_never_while_the_receiver_wants_to_be_left_alone() {
        let no = || Err("no".to_owned());
        let (mut handshake, mut now, mut waits) = (handshake(None), at(1_000), Vec::new());
        for _ in 0..12 {
            handshake = answered(&handshake, no(), Network::Public, &POLICY, None, now);
            let asked = handshake.asked.as_ref().unwrap();
            waits.push(asked.next_at.since(now).as_secs() / 60);
            now = asked.next_at;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360]);
        let asked = handshake.asked.as_ref().unwrap();
        assert_eq!((asked.since, asked.count), (at(1_000), 12));
        let wait = |seconds| Some(Duration::from_secs(seconds));
        let next = |wait| {
            let asked = answered(&self::handshake(None), no(), Network::Public, &POLICY, wait, at(0)).asked;
            asked.unwrap().next_at
        };
        assert_eq!(next(wait(30)), at(60), "WH-5");
        assert_eq!(next(wait(3_600)), at(3_600), "WH-5");
        assert_eq!(next(wait(u64::MAX)), at(24 * 3_600), "WH-5, but nobody can keep us waiting for ever");
    }

    #[test]
    fn time_without_requests_is_no_time_of_asking() {
        let no = || Err("no".to_owned());
        let mut handshake = answered(&handshake(None), no(), Network::Public, &POLICY, None, at(0));
        let asked_for = |handshake: &Handshake| super::asked_for(handshake.asked.as_ref().unwrap(), &POLICY);
        assert_eq!(asked_for(&handshake), Duration::ZERO);
        // The daemon was down for days.
        handshake = answered(&handshake, no(), Network::Public, &POLICY, None, at(900_000));
        assert_eq!(asked_for(&handshake), Duration::from_secs(60));
        for _ in 0..200 {
            let next = handshake.asked.as_ref().unwrap().next_at;
            handshake = answered(&handshake, no(), Network::Public, &POLICY, None, next);
        }
        let minutes = (1 + 2 + 4 + 8 + 16 + 32 + 64 + 128 + 256) + 360 * (201 - 9);
        assert_eq!(asked_for(&handshake), Duration::from_secs(60 * minutes));
    }

    #[test]
    fn after_consent_no_callback_is_good_and_before_it_only_the_last_ones_are() {
        let mut handshake = handshake(Some(5));
        for number in 0..40 {
            handshake = with_callback(&handshake, [number; 32]);
        }
        let good: Vec<_> = handshake.callbacks.iter().map(|hash| hash[0]).collect();
        assert_eq!(good, (24..40).collect::<Vec<_>>());
        let agreed = answered(&handshake, Ok(Some(3)), Network::Public, &POLICY, None, at(9));
        assert_eq!(agreed.consent, Some(Consent { at: at(9), rate: Some(3) }));
        assert_eq!((agreed.callbacks.len(), &*agreed.asked.unwrap().answer), (0, "agreed"));
        assert_eq!(asked_anew(&handshake).callbacks, handshake.callbacks);
    }

    #[test]
    fn an_answer_counts_for_what_was_asked_and_where() {
        let agreed = agreed_to(handshake(Some(5)), Some(5), at(1));
        let with = |origin: &str, rate| Some(Handshake::new(origin.parse().unwrap(), rate, false));
        let same = changed(Some(&agreed), with("events.example.com", Some(5)), true).unwrap();
        assert_eq!((same.consent, same.callback), (agreed.consent, false), "a callback can be done without");
        for (wanted, same_url, story) in [
            (with("events.example.com", Some(5)), false, "another URL"),
            (with("other.example.com", Some(5)), true, "another origin"),
            (with("events.example.com", Some(6)), true, "another rate"),
            (with("events.example.com", None), true, "no rate"),
        ] {
            assert_eq!(changed(Some(&agreed), wanted.clone(), same_url), wanted, "{story}");
        }
        let pending = with_callback(&handshake(None), [1; 32]);
        let moved = changed(Some(&pending), Some(handshake(None)), false).unwrap();
        assert_eq!(moved.callbacks.len(), 0, "who was asked before cannot agree for another");
        assert_eq!(changed(Some(&agreed), None, true), None);
        assert_eq!(changed(None, with("a", None), true), with("a", None));
    }

    #[test]
    fn only_an_active_endpoint_without_consent_is_asked() {
        let mut one = endpoint(1, "default", &[]);
        assert_eq!((next_request(&one), allows(&one)), (None, true), "no handshake");
        one.handshake = Some(handshake(None));
        assert_eq!((next_request(&one), allows(&one)), (Some(Timestamp::ZERO), false));
        let no = Err("no".to_owned());
        let refused = answered(&handshake(None), no, Network::Public, &POLICY, None, at(60));
        one.handshake = Some(refused);
        assert_eq!(next_request(&one), Some(at(120)));
        one.status = EndpointStatus::Paused;
        assert_eq!((next_request(&one), allows(&one)), (None, false));
        one.status = EndpointStatus::Active;
        one.handshake = Some(agreed_to(handshake(None), None, at(1)));
        assert_eq!((next_request(&one), allows(&one)), (None, true));
    }

    #[test]
    fn the_stricter_of_two_rates_holds_in_its_mean_and_in_its_burst() {
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
            let handshake = Some(agreed_to(handshake(None), allowed, at(1)));
            let one = Endpoint { rate_limit, handshake, ..endpoint(1, "default", &[]) };
            assert_eq!(rate(&one), effective, "{rate_limit:?} and {allowed:?}");
        }
    }
}
