//! Validation of an endpoint's members, and merge patches.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::model::{EndpointInput, HandshakeInput, RateLimitInput, RetryInput};
use super::outgoing::{AuthSettings, parse_signatures};
use super::selection::{check_selection, replace_filter};
use crate::api::EndpointDefaults;
use crate::api::http::problem::{Errors, pointer};
use crate::api::text::{format_duration, parse_duration};
use crate::domain::{
    EndpointStatus, EndpointUid, EventSelection, EventType, Format, Handshake, Ordering, Pattern, RateLimit,
    RequestShape, RetryPolicy, SecretKind, SignaturePreset, SignatureScheme, VersionPin,
};
use crate::limits;
use crate::rules::headers::is_secret;
use crate::rules::patterns::{canonical, canonical_list, check_list, check_pattern};

/// Maximum `limit` and `burst` of a rate.
const RATE_MAX: u64 = 1_000_000;
const DESCRIPTION_BYTES_MAX: usize = 1_024;
/// Longest interval between two attempts.
const INTERVAL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest age of a retry series.
const AGE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Maximum number of steps in a retry schedule.
const SCHEDULE_MAX: usize = 100;
const DAY: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

/// The validated members, except `url`, `tenant`, `secret`, `clientCertificate` and the token URL.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSettings {
    pub uid: Option<EndpointUid>,
    /// Active or paused.
    pub status: EndpointStatus,
    pub description: Box<str>,
    pub event_types: Vec<Pattern>,
    pub selection: EventSelection,
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// The headers in the request, with lower-case names.
    pub sensitive_headers: BTreeMap<String, String>,
    pub rate_limit: Option<RateLimit>,
    pub max_in_flight: Option<u32>,
    pub timeout: Option<Duration>,
    pub ordering: Ordering,
    pub retry: Option<RetryPolicy>,
    pub format: Format,
    pub signatures: Vec<SignatureScheme>,
    pub request: RequestShape,
    pub auth: Option<AuthSettings>,
    /// Without requests or consent.
    pub handshake: Option<Handshake>,
    pub trace: bool,
    /// Sorted by type. The caller checks that they are registered.
    pub versions: Vec<(EventType, VersionPin)>,
    pub metadata: Option<Box<str>>,
}

impl EndpointInput {
    /// Validates the members. Records problems in `errors`; the result is then meaningless.
    /// `check_header` returns the reason why a header is not allowed.
    pub fn settings(
        &self,
        defaults: &EndpointDefaults,
        check_header: impl Fn(&str, &str) -> Result<(), String>,
        errors: &mut Errors,
    ) -> EndpointSettings {
        let in_flight_max = u64::from(limits::IN_FLIGHT_PER_ENDPOINT_MAX);
        let given = headers("/headers", self.headers.as_ref(), &check_header, errors);
        let (secret, plain) = given.into_iter().partition(|(name, _)| is_secret(name));
        EndpointSettings {
            uid: self.uid.as_deref().and_then(|uid| errors.check("/uid", uid.parse())),
            status: parse_word(errors, "/status", self.status.as_deref(), STATUSES),
            description: check_description(self.description.as_deref(), errors),
            event_types: canonical_patterns(self.event_types.as_deref(), errors),
            selection: check_selection(self.filter.as_ref(), self.labels.as_deref(), errors),
            headers: plain,
            sensitive_headers: self.sensitive_headers(secret, &check_header, errors),
            rate_limit: self.rate_limit.as_ref().map(|rate| rate.check(errors)),
            max_in_flight: self
                .max_in_flight
                .map(|max| check_integer(errors, "/maxInFlight", max, in_flight_max)),
            timeout: self.timeout.as_deref().map(|text| {
                let bounds = (Duration::from_millis(100), Duration::from_secs(60));
                parse_duration_within(errors, "/timeout", Some(text), defaults.policy.timeout, bounds)
            }),
            ordering: parse_word(errors, "/ordering", self.ordering.as_deref(), ORDERINGS),
            retry: self
                .retry
                .as_ref()
                .filter(|retry| **retry != RetryInput::default())
                .map(|retry| retry.check(&defaults.policy.retry, errors)),
            format: parse_word(errors, "/format", self.format.as_deref(), FORMATS),
            signatures: parse_signatures(self.signature.as_ref(), &check_header, errors),
            request: self.request.as_ref().map(|request| request.check(errors)).unwrap_or_default(),
            auth: self.auth.as_ref().and_then(|auth| auth.check(errors)),
            handshake: self.handshake.as_ref().and_then(|handshake| handshake.check(defaults, errors)),
            trace: self.trace.unwrap_or(false),
            versions: check_versions(self.versions.as_ref(), errors),
            metadata: check_metadata(self.metadata.as_ref(), errors),
        }
    }

    /// Validates `sensitiveHeaders` and adds `secret`, the credentials from `headers`.
    fn sensitive_headers(
        &self,
        secret: Vec<(Box<str>, Box<str>)>,
        check_header: &impl Fn(&str, &str) -> Result<(), String>,
        errors: &mut Errors,
    ) -> BTreeMap<String, String> {
        let checked = headers("/sensitiveHeaders", self.sensitive_headers.as_ref(), check_header, errors);
        for name in self.headers.iter().flatten().map(|(name, _)| name) {
            if checked.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
                errors.push(pointer("/sensitiveHeaders", name), "the header is also in `headers`");
            }
        }
        let all = checked.into_iter().chain(secret);
        all.map(|(name, value)| (name.to_ascii_lowercase(), value.into())).collect()
    }
}

pub(in crate::api::v1) fn check_versions(
    versions: Option<&BTreeMap<String, String>>,
    errors: &mut Errors,
) -> Vec<(EventType, VersionPin)> {
    if versions.is_some_and(|given| given.len() > limits::PINS_MAX) {
        errors.push("/versions", format!("at most {} types", limits::PINS_MAX));
    }
    let parse = |(name, version): (&String, &String)| {
        let location = pointer("/versions", name);
        let name = errors.check(&location, name.parse::<EventType>());
        let pin = match version.as_str() {
            VersionPin::LATEST => Some(VersionPin::Latest),
            version => errors.check(&location, version.parse()).map(VersionPin::Version),
        };
        Some((name?, pin?))
    };
    let mut pins: Vec<_> = versions.into_iter().flatten().filter_map(parse).collect();
    pins.sort_by(|(one, _), (other, _)| one.cmp(other));
    pins
}

pub(in crate::api::v1) fn check_description(description: Option<&str>, errors: &mut Errors) -> Box<str> {
    let description = description.unwrap_or_default();
    if description.len() > DESCRIPTION_BYTES_MAX {
        errors.push("/description", format!("at most {DESCRIPTION_BYTES_MAX} bytes"));
    }
    description.into()
}

/// A list with the pattern `#` is stored as an empty list: all types.
pub(in crate::api::v1) fn canonical_patterns(texts: Option<&[String]>, errors: &mut Errors) -> Vec<Pattern> {
    canonical_list(&parse_patterns(texts, "/eventTypes", errors))
}

pub(in crate::api::v1) fn check_metadata(
    metadata: Option<&Map<String, Value>>,
    errors: &mut Errors,
) -> Option<Box<str>> {
    let metadata = metadata.filter(|metadata| !metadata.is_empty())?;
    let text = errors.check("/metadata", serde_json::to_string(metadata))?;
    if text.len() > limits::METADATA_BYTES_MAX {
        errors.push("/metadata", format!("at most {} bytes", limits::METADATA_BYTES_MAX));
    }
    Some(text.into())
}

fn headers(
    location: &str,
    given: Option<&BTreeMap<String, String>>,
    check_header: &impl Fn(&str, &str) -> Result<(), String>,
    errors: &mut Errors,
) -> Vec<(Box<str>, Box<str>)> {
    let Some(given) = given else { return Vec::new() };
    if given.len() > limits::HEADERS_MAX {
        errors.push(location, format!("at most {} headers", limits::HEADERS_MAX));
    }
    let mut checked: Vec<(Box<str>, Box<str>)> = Vec::new();
    for (name, value) in given {
        let location = pointer(location, name);
        if checked.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            errors.push(location.as_str(), "duplicate header");
        }
        errors.check(&location, check_header(name, value));
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
                errors.push(ORIGIN, "is required, because `handshake.origin` is not configured");
                None
            }),
        };
        let rate = self.rate.map(|rate| check_integer(errors, "/handshake/rate", rate, RATE_MAX));
        let callback = self.callback.unwrap_or(false);
        if callback && !defaults.callbacks {
            errors.push("/handshake/callback", "requires `server.public_url` in the configuration");
        }
        Some(Handshake::new(origin?, rate, callback))
    }
}

impl RateLimitInput {
    fn check(&self, errors: &mut Errors) -> RateLimit {
        let second = Duration::from_secs(1);
        let bounds = (Duration::from_millis(1), DAY);
        RateLimit {
            limit: check_integer(errors, "/rateLimit/limit", self.limit, RATE_MAX),
            per: parse_duration_within(errors, "/rateLimit/per", self.per.as_deref(), second, bounds),
            burst: check_integer(
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
        let bounds = (Duration::from_millis(1), INTERVAL_MAX);
        let initial =
            parse_duration_within(errors, "/retry/initial", self.initial.as_deref(), initial, bounds);
        // The default must not be below the given `initial`.
        let max_interval = max_interval.max(initial);
        let attempts = self.max_attempts.unwrap_or_else(|| u64::from(max_attempts));
        RetryPolicy::Exponential {
            initial,
            multiplier: check_number(
                errors,
                "/retry/multiplier",
                self.multiplier.unwrap_or(multiplier),
                (1.0, 100.0),
            ),
            max_interval: parse_duration_within(
                errors,
                "/retry/maxInterval",
                self.max_interval.as_deref(),
                max_interval,
                (initial, INTERVAL_MAX),
            ),
            max_attempts: check_integer(
                errors,
                "/retry/maxAttempts",
                attempts,
                u64::from(limits::ATTEMPTS_MAX),
            ),
            max_age: parse_duration_within(
                errors,
                "/retry/maxAge",
                self.max_age.as_deref(),
                max_age,
                (Duration::from_secs(1), AGE_MAX),
            ),
            jitter: check_number(errors, "/retry/jitter", self.jitter.unwrap_or(jitter), (0.0, 1.0)),
        }
    }

    fn check_schedule(&self, schedule: &[String], errors: &mut Errors) -> RetryPolicy {
        let is_alone = self.initial.is_none()
            && self.multiplier.is_none()
            && self.max_interval.is_none()
            && self.max_attempts.is_none()
            && self.max_age.is_none()
            && self.jitter.is_none();
        if !is_alone {
            errors.push("/retry", "`schedule` cannot be combined with other members");
        }
        if schedule.is_empty() || schedule.len() > SCHEDULE_MAX {
            errors.push("/retry/schedule", format!("1 to {SCHEDULE_MAX} durations"));
        }
        let mut steps = Vec::new();
        for (index, text) in schedule.iter().take(SCHEDULE_MAX).enumerate() {
            let location = format!("/retry/schedule/{index}");
            let bounds = (Duration::ZERO, INTERVAL_MAX);
            steps.push(parse_duration_within(errors, &location, Some(text), Duration::ZERO, bounds));
        }
        RetryPolicy::Schedule(steps)
    }
}

/// Parses topic patterns into their canonical form, and checks their bounds. Empty when there are
/// none.
pub fn parse_patterns(texts: Option<&[String]>, location: &str, errors: &mut Errors) -> Vec<Pattern> {
    let Some(texts) = texts else { return Vec::new() };
    if texts.is_empty() || texts.len() > limits::PATTERNS_MAX {
        errors.push(location, format!("1 to {} patterns; omit it for all types", limits::PATTERNS_MAX));
    }
    let mut parsed = Vec::new();
    for (index, text) in texts.iter().take(limits::PATTERNS_MAX).enumerate() {
        let location = format!("{location}/{index}");
        if let Some(pattern) = errors.check(&location, text.parse().map(|pattern| canonical(&pattern))) {
            errors.check(&location, check_pattern(&pattern));
            parsed.push(pattern);
        }
    }
    errors.check(location, check_list(&parsed));
    parsed
}

/// Parses a duration within inclusive bounds; `default` without a text.
pub fn parse_duration_within(
    errors: &mut Errors,
    location: &str,
    text: Option<&str>,
    default: Duration,
    (min, max): (Duration, Duration),
) -> Duration {
    let Some(text) = text else { return default };
    let Some(duration) = errors.check(location, parse_duration(text)) else { return default };
    if duration < min || duration > max {
        errors.push(location, format!("must be {} to {}", format_duration(min), format_duration(max)));
    }
    duration
}

pub(in crate::api::v1) fn check_integer(errors: &mut Errors, location: &str, value: u64, max: u64) -> u32 {
    if value == 0 || value > max {
        errors.push(location, format!("must be 1 to {max}"));
    }
    u32::try_from(value).unwrap_or(u32::MAX)
}

pub(in crate::api::v1) fn check_number(
    errors: &mut Errors,
    location: &str,
    value: f64,
    (min, max): (f64, f64),
) -> f64 {
    if !(min..=max).contains(&value) {
        errors.push(location, format!("must be {min} to {max}"));
    }
    value
}

/// The values of a member by word. The first is the default.
pub(in crate::api::v1) type Words<T> = &'static [(&'static str, T)];
pub(super) const ORDERINGS: Words<Ordering> =
    &[("none", Ordering::None), ("key", Ordering::Key), ("endpoint", Ordering::Endpoint)];
pub(in crate::api::v1) const FORMATS: Words<Format> = &[
    ("standard", Format::Standard),
    ("cloudevents", Format::CloudEvents),
    ("raw", Format::Raw),
    ("cloudevents-binary", Format::CloudEventsBinary),
];
pub(super) const SIGNATURES: Words<SignaturePreset> = &[
    ("standard", SignaturePreset::Standard),
    ("stripe", SignaturePreset::Stripe),
    ("github", SignaturePreset::Github),
    ("svix", SignaturePreset::Svix),
];
const STATUSES: Words<EndpointStatus> =
    &[("active", EndpointStatus::Active), ("paused", EndpointStatus::Paused)];
const SECRET_TYPES: Words<SecretKind> = &[("hmac", SecretKind::Hmac), ("ed25519", SecretKind::Ed25519)];

pub(in crate::api::v1) fn parse_word<T: Copy>(
    errors: &mut Errors,
    location: &str,
    given: Option<&str>,
    words: Words<T>,
) -> T {
    let default = words[0].1;
    let Some(given) = given else { return default };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == given) {
        return *value;
    }
    let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    errors.push(location, format!("must be one of {}", all.join(", ")));
    default
}

pub(in crate::api::v1) fn word_of<T: PartialEq>(value: T, words: Words<T>) -> &'static str {
    words.iter().find(|(_, one)| *one == value).map_or("", |(word, _)| word)
}

/// Parses the type of the secret to generate.
pub fn parse_secret_type(given: Option<&str>, errors: &mut Errors) -> Option<SecretKind> {
    given.map(|given| parse_word(errors, "/secretType", Some(given), SECRET_TYPES))
}

/// Applies a merge patch (RFC 7396). In addition, a patch with `schedule` replaces an exponential
/// retry policy, and the reverse: the two cannot be combined. So does the other kind of `auth`. A
/// `filter` is replaced as a whole, and a header also if the case of its name differs.
pub fn merge(target: &mut Value, patch: &Value) {
    drop_replaced_headers(target, patch);
    reset_retry(target, patch);
    reset_auth(target, patch);
    merge_rfc7396(target, patch);
    replace_filter(target, patch);
}

/// Empties `retry` if the patch changes its kind.
pub fn reset_retry(target: &mut Value, patch: &Value) {
    if let Some(change) = patch.get("retry").and_then(Value::as_object)
        && let Some(current) = target.get_mut("retry")
        && change.contains_key("schedule") != current.get("schedule").is_some()
    {
        *current = Value::Object(Map::new());
    }
}

/// Empties `auth` if the patch changes its kind.
fn reset_auth(target: &mut Value, patch: &Value) {
    if let Some(change) = patch.get("auth").and_then(Value::as_object)
        && let Some(current) = target.get_mut("auth")
        && change.iter().any(|(kind, value)| !value.is_null() && current.get(kind).is_none())
    {
        *current = Value::Object(Map::new());
    }
}

/// Removes headers that the patch names in another case.
fn drop_replaced_headers(target: &mut Value, patch: &Value) {
    if let Some(change) = patch.get("headers").and_then(Value::as_object)
        && let Some(current) = target.get_mut("headers").and_then(Value::as_object_mut)
    {
        let is_named = |name: &String, other: &String| name != other && name.eq_ignore_ascii_case(other);
        current.retain(|name, _| !change.keys().any(|other| is_named(name, other)));
    }
}

fn merge_rfc7396(target: &mut Value, patch: &Value) {
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
            merge_rfc7396(members.entry(name.as_str()).or_insert(Value::Null), change);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
