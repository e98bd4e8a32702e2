//! Checks of an endpoint's members, and merge patches.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::model::{EndpointInput, HandshakeInput, RateLimitInput, RetryInput};
use crate::api::EndpointDefaults;
use crate::api::http::problem::{Errors, pointer};
use crate::api::text::{format_duration, parse_duration};
use crate::domain::{
    Format, Handshake, Ordering, Pattern, RateLimit, RetryPolicy, SecretKind, SignaturePreset,
};
use crate::limits;
use crate::rules::headers::is_secret;

/// Most requests per time, and burst, of a rate.
const RATE_MAX: u64 = 1_000_000;
/// Longest text of a description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 1_024;
/// Longest interval between two attempts.
const INTERVAL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest age of a retry series.
const AGE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Most steps of a retry schedule.
const SCHEDULE_MAX: usize = 100;
const DAY: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

/// What can be checked without asking anyone.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub description: Box<str>,
    pub event_types: Vec<Pattern>,
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// Those that were given with a value, names in lower case.
    pub sensitive_headers: BTreeMap<String, String>,
    pub rate_limit: Option<RateLimit>,
    pub max_in_flight: Option<u32>,
    pub timeout: Option<Duration>,
    pub ordering: Ordering,
    pub retry: Option<RetryPolicy>,
    pub format: Format,
    pub signature: SignaturePreset,
    /// In which nobody has been asked yet.
    pub handshake: Option<Handshake>,
    pub trace: bool,
    pub metadata: Option<Box<str>>,
}

impl EndpointInput {
    /// Checks everything but `url`, `tenant` and `secret`. What is wrong is noted in `errors`, and the value is then
    /// of no use. `check_header` says why a header cannot be one of ours.
    pub fn settings(
        &self,
        defaults: &EndpointDefaults,
        check_header: impl Fn(&str, &str) -> Result<(), String>,
        errors: &mut Errors,
    ) -> Settings {
        let description = self.description.as_deref().unwrap_or_default();
        if description.len() > DESCRIPTION_BYTES_MAX {
            errors.push("/description", format!("at most {DESCRIPTION_BYTES_MAX} bytes"));
        }
        let in_flight_max = u64::from(limits::IN_FLIGHT_PER_ENDPOINT_MAX);
        let given = headers("/headers", self.headers.as_ref(), &check_header, errors);
        let (secret, plain) = given.into_iter().partition(|(name, _)| is_secret(name));
        Settings {
            description: description.into(),
            event_types: self.event_types(errors),
            headers: plain,
            sensitive_headers: self.sensitive_headers(secret, &check_header, errors),
            rate_limit: self.rate_limit.as_ref().map(|rate| rate.check(errors)),
            max_in_flight: self.max_in_flight.map(|most| whole(errors, "/maxInFlight", most, in_flight_max)),
            timeout: self.timeout.as_deref().map(|text| {
                let bounds = (Duration::from_millis(100), Duration::from_secs(60));
                bounded(errors, "/timeout", Some(text), defaults.policy.timeout, bounds)
            }),
            ordering: word(errors, "/ordering", self.ordering.as_deref(), ORDERINGS),
            retry: self
                .retry
                .as_ref()
                .filter(|retry| **retry != RetryInput::default())
                .map(|retry| retry.check(&defaults.policy.retry, errors)),
            format: word(errors, "/format", self.format.as_deref(), FORMATS),
            signature: self.signature(errors),
            handshake: self.handshake.as_ref().and_then(|handshake| handshake.check(defaults, errors)),
            trace: self.trace.unwrap_or(false),
            metadata: self.metadata(errors),
        }
    }

    /// All types are shown as `#`, and kept as no pattern, whichever way they were told.
    fn event_types(&self, errors: &mut Errors) -> Vec<Pattern> {
        let patterns = patterns(self.event_types.as_deref(), "/eventTypes", errors);
        if matches!(patterns.as_slice(), [all] if all.as_str() == "#") { Vec::new() } else { patterns }
    }

    /// The preset alone, which the secret is read by.
    pub fn signature(&self, errors: &mut Errors) -> SignaturePreset {
        word(errors, "/signature", self.signature.as_deref(), SIGNATURES)
    }

    /// The names in lower case, with those of `headers` that carry credentials; one name may not be in both members.
    fn sensitive_headers(
        &self,
        secret: Vec<(Box<str>, Box<str>)>,
        check_header: &impl Fn(&str, &str) -> Result<(), String>,
        errors: &mut Errors,
    ) -> BTreeMap<String, String> {
        let checked = headers("/sensitiveHeaders", self.sensitive_headers.as_ref(), check_header, errors);
        for name in self.headers.iter().flatten().map(|(name, _)| name) {
            if checked.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
                errors.push(pointer("/sensitiveHeaders", name), "the header is in `headers` too");
            }
        }
        let all = checked.into_iter().chain(secret);
        all.map(|(name, value)| (name.to_ascii_lowercase(), value.into())).collect()
    }

    fn metadata(&self, errors: &mut Errors) -> Option<Box<str>> {
        let metadata = self.metadata.as_ref().filter(|metadata| !metadata.is_empty())?;
        let text = errors.check("/metadata", serde_json::to_string(metadata))?;
        if text.len() > limits::METADATA_BYTES_MAX {
            errors.push("/metadata", format!("at most {} bytes", limits::METADATA_BYTES_MAX));
        }
        Some(text.into())
    }
}

fn headers(
    place: &str,
    given: Option<&BTreeMap<String, String>>,
    check_header: &impl Fn(&str, &str) -> Result<(), String>,
    errors: &mut Errors,
) -> Vec<(Box<str>, Box<str>)> {
    let Some(given) = given else { return Vec::new() };
    if given.len() > limits::HEADERS_MAX {
        errors.push(place, format!("at most {} headers", limits::HEADERS_MAX));
    }
    let mut checked: Vec<(Box<str>, Box<str>)> = Vec::new();
    for (name, value) in given {
        let place = pointer(place, name);
        if checked.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            errors.push(place.as_str(), "the header is there twice");
        }
        errors.check(&place, check_header(name, value));
        checked.push((name.as_str().into(), value.as_str().into()));
    }
    checked
}

impl HandshakeInput {
    fn check(&self, defaults: &EndpointDefaults, errors: &mut Errors) -> Option<Handshake> {
        const ORIGIN: &str = "/handshake/origin";
        let origin = match self.origin.as_deref().map(str::to_ascii_lowercase) {
            Some(given) => errors.check(ORIGIN, given.parse()),
            None => defaults.origin.clone().or_else(|| {
                errors.push(ORIGIN, "is needed, because `handshake.origin` is not configured");
                None
            }),
        };
        let rate = self.rate.map(|rate| whole(errors, "/handshake/rate", rate, RATE_MAX));
        let callback = self.callback.unwrap_or(false);
        if callback && !defaults.callbacks {
            errors.push(
                "/handshake/callback",
                "is not possible, because `server.public_url` is not configured",
            );
        }
        Some(Handshake::new(origin?, rate, callback))
    }
}

impl RateLimitInput {
    fn check(&self, errors: &mut Errors) -> RateLimit {
        let second = Duration::from_secs(1);
        let bounds = (Duration::from_millis(1), DAY);
        RateLimit {
            limit: whole(errors, "/rateLimit/limit", self.limit, RATE_MAX),
            per: bounded(errors, "/rateLimit/per", self.per.as_deref(), second, bounds),
            burst: whole(
                errors,
                "/rateLimit/burst",
                self.burst.unwrap_or_else(|| self.limit.clamp(1, RATE_MAX)),
                RATE_MAX,
            ),
        }
    }
}

impl RetryInput {
    fn check(&self, defaults: &RetryPolicy, errors: &mut Errors) -> RetryPolicy {
        if let Some(schedule) = &self.schedule {
            return self.check_schedule(schedule, errors);
        }
        let (mut initial, mut multiplier, mut max_interval, mut max_attempts, mut max_age, mut jitter) =
            (Duration::from_secs(5), 3.0, 6 * HOUR, 12, 72 * HOUR, 0.2);
        if let RetryPolicy::Exponential {
            initial: i,
            multiplier: m,
            max_interval: mi,
            max_attempts: ma,
            max_age: a,
            jitter: j,
        } = defaults
        {
            (initial, multiplier, max_interval, max_attempts, max_age, jitter) = (*i, *m, *mi, *ma, *a, *j);
        }
        let shortest = Duration::from_millis(1);
        let initial =
            bounded(errors, "/retry/initial", self.initial.as_deref(), initial, (shortest, INTERVAL_MAX));
        // A default that the given `initial` exceeds grows with it.
        let max_interval = max_interval.max(initial);
        let attempts = self.max_attempts.unwrap_or_else(|| u64::from(max_attempts));
        RetryPolicy::Exponential {
            initial,
            multiplier: fraction(
                errors,
                "/retry/multiplier",
                self.multiplier.unwrap_or(multiplier),
                (1.0, 100.0),
            ),
            max_interval: bounded(
                errors,
                "/retry/maxInterval",
                self.max_interval.as_deref(),
                max_interval,
                (initial, INTERVAL_MAX),
            ),
            max_attempts: whole(errors, "/retry/maxAttempts", attempts, u64::from(limits::ATTEMPTS_MAX)),
            max_age: bounded(
                errors,
                "/retry/maxAge",
                self.max_age.as_deref(),
                max_age,
                (Duration::from_secs(1), AGE_MAX),
            ),
            jitter: fraction(errors, "/retry/jitter", self.jitter.unwrap_or(jitter), (0.0, 1.0)),
        }
    }

    fn check_schedule(&self, schedule: &[String], errors: &mut Errors) -> RetryPolicy {
        let alone = self.initial.is_none()
            && self.multiplier.is_none()
            && self.max_interval.is_none()
            && self.max_attempts.is_none()
            && self.max_age.is_none()
            && self.jitter.is_none();
        if !alone {
            errors.push("/retry", "`schedule` stands alone");
        }
        if schedule.is_empty() || schedule.len() > SCHEDULE_MAX {
            errors.push("/retry/schedule", format!("1 to {SCHEDULE_MAX} durations"));
        }
        let mut steps = Vec::new();
        for (index, text) in schedule.iter().take(SCHEDULE_MAX).enumerate() {
            let place = format!("/retry/schedule/{index}");
            let bounds = (Duration::ZERO, INTERVAL_MAX);
            steps.push(bounded(errors, &place, Some(text), Duration::ZERO, bounds));
        }
        RetryPolicy::Schedule(steps)
    }
}

/// Topic patterns; empty for all types.
pub fn patterns(texts: Option<&[String]>, place: &str, errors: &mut Errors) -> Vec<Pattern> {
    let Some(texts) = texts else { return Vec::new() };
    if texts.is_empty() || texts.len() > limits::PATTERNS_MAX {
        errors.push(place, format!("1 to {} patterns, or leave it out for all types", limits::PATTERNS_MAX));
    }
    let mut patterns = Vec::new();
    for (index, text) in texts.iter().take(limits::PATTERNS_MAX).enumerate() {
        patterns.extend(errors.check(&format!("{place}/{index}"), text.parse()));
    }
    patterns
}

/// A duration within bounds, both inclusive; `default` without a text.
pub fn bounded(
    errors: &mut Errors,
    place: &str,
    text: Option<&str>,
    default: Duration,
    (min, max): (Duration, Duration),
) -> Duration {
    let Some(text) = text else { return default };
    let Some(duration) = errors.check(place, parse_duration(text)) else { return default };
    if duration < min || duration > max {
        errors.push(place, format!("must be {} to {}", format_duration(min), format_duration(max)));
    }
    duration
}

fn whole(errors: &mut Errors, place: &str, value: u64, max: u64) -> u32 {
    if value == 0 || value > max {
        errors.push(place, format!("must be 1 to {max}"));
    }
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn fraction(errors: &mut Errors, place: &str, value: f64, (min, max): (f64, f64)) -> f64 {
    if !(min..=max).contains(&value) {
        errors.push(place, format!("must be {min} to {max}"));
    }
    value
}

/// The first is the default.
pub(super) type Words<T> = &'static [(&'static str, T)];
pub(super) const ORDERINGS: Words<Ordering> =
    &[("none", Ordering::None), ("key", Ordering::Key), ("endpoint", Ordering::Endpoint)];
pub(super) const FORMATS: Words<Format> =
    &[("standard", Format::Standard), ("cloudevents", Format::CloudEvents)];
pub(super) const SIGNATURES: Words<SignaturePreset> = &[
    ("standard", SignaturePreset::Standard),
    ("stripe", SignaturePreset::Stripe),
    ("github", SignaturePreset::Github),
];
const SECRET_TYPES: Words<SecretKind> = &[("hmac", SecretKind::Hmac), ("ed25519", SecretKind::Ed25519)];

fn word<T: Copy>(errors: &mut Errors, place: &str, given: Option<&str>, words: Words<T>) -> T {
    let default = words[0].1;
    let Some(given) = given else { return default };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == given) {
        return *value;
    }
    let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    errors.push(place, format!("must be one of {}", all.join(", ")));
    default
}

pub(super) fn word_of<T: PartialEq>(value: T, words: Words<T>) -> &'static str {
    words.iter().find(|(_, one)| *one == value).map_or("", |(word, _)| word)
}

/// What is to be generated; `None` when nothing is said.
pub fn secret_type(given: Option<&str>, errors: &mut Errors) -> Option<SecretKind> {
    given.map(|given| word(errors, "/secretType", Some(given), SECRET_TYPES))
}

/// RFC 7396, with one rule of our own: a patch that says `schedule` replaces an exponential policy, and the reverse,
/// because the two cannot be mixed.
pub fn merge(target: &mut Value, patch: &Value) {
    if let Some(change) = patch.get("retry").and_then(Value::as_object)
        && let Some(present) = target.get_mut("retry")
        && change.contains_key("schedule") != present.get("schedule").is_some()
    {
        *present = Value::Object(Map::new());
    }
    merge_plain(target, patch);
}

fn merge_plain(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, change) in changes {
        if change.is_null() {
            members.remove(name);
        } else {
            merge_plain(members.entry(name.as_str()).or_insert(Value::Null), change);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
