//! An endpoint's members: as a request writes them, as they are checked, and as an answer shows them.
//!
//! One type reads a creation and a change: a change is the present members with the merge patch applied.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::EndpointDefaults;
use super::auth::Audience;
use super::body::object;
use super::disclosure;
use super::problem::{Errors, pointer};
use super::text::{Time, format_duration, parse_duration};
use super::unique::members;
use crate::domain::{
    ClientCertificate, Endpoint, EndpointStatus, Format, Handshake, Ordering, Pattern, RateLimit,
    RetryPolicy, SecretKind, SignaturePreset,
};
use crate::limits;
use crate::rules::handshake::next_request;
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

/// What a request says of an endpoint. Members that are absent or null have their defaults.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointInput {
    /// Where deliveries are posted to; at most 2,048 bytes.
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// `default` without it. Cannot be changed.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    pub tenant: Option<String>,
    /// At most 1,024 bytes.
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// Topic patterns: `*` is one word, `#` any number of them. All types without it.
    #[schemars(
        length(min = 1, max = 256),
        inner(regex(pattern = r"^([A-Za-z0-9_-]+|[*#])(\.([A-Za-z0-9_-]+|[*#]))*$"))
    )]
    pub event_types: Option<Vec<String>>,
    /// At most 50; those that carry the delivery itself are refused. Sent with each part of a name capitalized. A header that
    /// carries a credential by its name (`Authorization`, `Cookie`, `X-Api-Key`, endings such as `-Token`, `-Secret`, `-Key`)
    /// is kept as one of `sensitiveHeaders`; null removes it from there.
    #[serde(default, deserialize_with = "members")]
    pub headers: Option<BTreeMap<String, String>>,
    /// As `headers`, and counted with them; the values are never shown again, and encrypted at rest under
    /// `secrets.key`. In a change, null removes one and the others stay; a `url` with another scheme, host or port removes
    /// those that are not given with it.
    #[serde(default, deserialize_with = "members")]
    pub sensitive_headers: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "object")]
    pub rate_limit: Option<RateLimitInput>,
    /// Requests at once. Without it, or with null, what the configuration says at the time; so with `timeout` and `retry`.
    #[schemars(range(min = 1, max = 1000))]
    pub max_in_flight: Option<u64>,
    /// Of one attempt, 100ms to 60s.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub timeout: Option<String>,
    /// `none`, `key` or `endpoint`. A change reaches what is pending, too, soon after it was answered: what has no order any
    /// more goes at once, and what gets one goes one by one in order of acceptance, behind what may be sent there already.
    /// An event that is to be delivered later (`deliverAt`) holds up those behind it in its order.
    #[schemars(extend("enum" = ["none", "key", "endpoint", null]))]
    pub ordering: Option<String>,
    #[serde(default, deserialize_with = "object")]
    pub retry: Option<RetryInput>,
    /// `standard`, or `cloudevents` (1.0, structured mode).
    #[schemars(extend("enum" = ["standard", "cloudevents", null]))]
    pub format: Option<String>,
    /// `standard`: Standard Webhooks. `stripe`: `Stripe-Signature`. `github`: `X-Hub-Signature-256`.
    #[schemars(extend("enum" = ["standard", "stripe", "github", null]))]
    pub signature: Option<String>,
    /// `whsec_` and base64 of 24 to 64 bytes, or `whsk_` and base64 of an ed25519 key; for other signatures also 16 to
    /// 255 printable ASCII characters. One that can be guessed (constant, a sequence, common words) is refused. Generated
    /// without it. Changed by `secret/rotate` only.
    pub secret: Option<String>,
    /// What is generated: `hmac` (signs `v1`) or `ed25519` (signs `v1a`).
    #[schemars(extend("enum" = ["hmac", "ed25519", null]))]
    pub secret_type: Option<String>,
    /// What connections of this endpoint present in TLS (https only); never shown again. Null removes it, and so does a
    /// `url` with another scheme, host or port, unless it is given with it.
    #[serde(default, deserialize_with = "object")]
    pub client_certificate: Option<ClientCertificateInput>,
    /// Asks the receiver, by CloudEvents' "HTTP 1.1 Web Hooks", before anything is sent to it. Nobody is asked without it.
    #[serde(default, deserialize_with = "object")]
    pub handshake: Option<HandshakeInput>,
    /// Whether deliveries continue the event's `traceparent`, each attempt as a span of its own.
    pub trace: Option<bool>,
    /// Any object, at most 16 KiB.
    pub metadata: Option<Map<String, Value>>,
}

/// What a receiver is asked for. Changing the URL, `origin` or `rate` asks again.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HandshakeInput {
    /// The DNS name that we go by, sent as `WebHook-Request-Origin` with the request and with each delivery;
    /// `handshake.origin` of the configuration without it.
    #[schemars(length(min = 1, max = 253))]
    origin: Option<String>,
    /// Requests per minute that are asked for (`WebHook-Request-Rate`). None without it.
    #[schemars(range(min = 1, max = 1_000_000))]
    rate: Option<u64>,
    /// Whether the receiver may agree later, at a URL that it is shown (`WebHook-Request-Callback`); needs
    /// `server.public_url` in the configuration.
    callback: Option<bool>,
}

/// What an endpoint's receiver was asked for, and what it said.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandshakeBody {
    pub origin: String,
    pub rate: Option<u32>,
    pub callback: bool,
    /// `pending`: nothing is sent. `consented`.
    pub status: &'static str,
    pub consented_at: Option<Time>,
    /// Requests per minute that the receiver agreed to; null for any.
    pub allowed_rate: Option<u32>,
    /// How often it has been asked, since it was last asked anew.
    pub requests: u32,
    pub last_request_at: Option<Time>,
    /// What came of the last request. Of a receiver inside the operator's network a key that is bound to a tenant sees
    /// only whether it agreed.
    pub last_answer: Option<String>,
    /// Null when no request is to come: it has agreed, or the endpoint is not active.
    pub next_request_at: Option<Time>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitInput {
    /// Requests per `per`.
    #[schemars(range(min = 1, max = 1_000_000))]
    limit: u64,
    /// 1ms to 24h; `1s` without it.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    per: Option<String>,
    /// What may go out at once after a quiet spell; `limit` without it.
    #[schemars(range(min = 1, max = 1_000_000))]
    burst: Option<u64>,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCertificateInput {
    /// PEM: the certificate, then those that lead to its authority.
    #[schemars(length(min = 1, max = 32_768))]
    pub certificate: String,
    /// PEM: its private key, without a passphrase.
    #[schemars(length(min = 1, max = 16_384))]
    pub key: String,
}

impl fmt::Debug for ClientCertificateInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificateInput(..)")
    }
}

/// Either `schedule` alone, or the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryInput {
    /// Before the first retry, 1ms to 30d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    initial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    multiplier: Option<f64>,
    /// `initial` to 30d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    max_interval: Option<String>,
    /// With the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    max_attempts: Option<u64>,
    /// 1s to 365d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    max_age: Option<String>,
    /// Part of the interval by which it varies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    jitter: Option<f64>,
    /// The waits before each retry, 1 to 100 of 0s to 30d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100), inner(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$")))]
    schedule: Option<Vec<String>>,
}

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

impl HandshakeBody {
    fn new(handshake: &Handshake, endpoint: &Endpoint, audience: Audience) -> Self {
        let (consent, asked) = (handshake.consent, handshake.asked.as_ref());
        Self {
            origin: handshake.origin.to_string(),
            rate: handshake.rate,
            callback: handshake.callback,
            status: if consent.is_some() { "consented" } else { "pending" },
            consented_at: consent.map(|consent| Time(consent.at)),
            allowed_rate: consent.and_then(|consent| consent.rate),
            requests: asked.map_or(0, |asked| asked.count),
            last_request_at: asked.map(|asked| Time(asked.at)),
            last_answer: asked.map(|asked| disclosure::handshake_answer(asked, audience)),
            // One that was never made is due since the endpoint has been there.
            next_request_at: next_request(endpoint).map(|at| Time(at.max(endpoint.created_at))),
        }
    }

    fn into_input(self) -> HandshakeInput {
        HandshakeInput {
            origin: Some(self.origin),
            rate: self.rate.map(u64::from),
            callback: Some(self.callback),
        }
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
type Words<T> = &'static [(&'static str, T)];
const ORDERINGS: Words<Ordering> =
    &[("none", Ordering::None), ("key", Ordering::Key), ("endpoint", Ordering::Endpoint)];
const FORMATS: Words<Format> = &[("standard", Format::Standard), ("cloudevents", Format::CloudEvents)];
const SIGNATURES: Words<SignaturePreset> = &[
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

fn word_of<T: PartialEq>(value: T, words: Words<T>) -> &'static str {
    words.iter().find(|(_, one)| *one == value).map_or("", |(word, _)| word)
}

/// What is to be generated; `None` when nothing is said.
pub fn secret_type(given: Option<&str>, errors: &mut Errors) -> Option<SecretKind> {
    given.map(|given| word(errors, "/secretType", Some(given), SECRET_TYPES))
}

/// An endpoint as answers show it: every member with the value in force.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointBody {
    pub id: String,
    pub tenant: String,
    pub url: String,
    pub description: String,
    pub event_types: Vec<String>,
    pub headers: BTreeMap<String, String>,
    /// The values are not shown.
    pub sensitive_header_names: Vec<String>,
    pub rate_limit: Option<RateLimitInput>,
    pub max_in_flight: u32,
    pub timeout: String,
    pub ordering: &'static str,
    pub retry: RetryInput,
    pub format: &'static str,
    pub signature: &'static str,
    pub handshake: Option<HandshakeBody>,
    pub client_certificate: Option<ClientCertificateBody>,
    pub trace: bool,
    pub metadata: Map<String, Value>,
    /// `active`, `paused` or `disabled`.
    pub status: &'static str,
    pub disabled_reason: Option<&'static str>,
    pub disabled_at: Option<Time>,
    pub created_at: Time,
    pub updated_at: Time,
    /// Only when the endpoint is created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Of an ed25519 secret, only when the endpoint is created; later under `public-keys`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// What may be known of a client certificate.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificateBody {
    /// Distinguished name (RFC 4514).
    pub subject: String,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    pub expires_at: Time,
}

impl ClientCertificateBody {
    fn new(certificate: &ClientCertificate) -> Self {
        let own = certificate.chain.first().map(|bytes| &**bytes).unwrap_or_default();
        Self {
            subject: certificate.subject.to_string(),
            fingerprint: Sha256::digest(own).iter().map(|byte| format!("{byte:02x}")).collect(),
            expires_at: Time(certificate.expires_at),
        }
    }
}

impl EndpointBody {
    #[must_use]
    pub fn new(endpoint: &Endpoint, defaults: &EndpointDefaults, audience: Audience) -> Self {
        let defaults = &defaults.policy;
        let (status, disabled) = match endpoint.status {
            EndpointStatus::Active => ("active", None),
            EndpointStatus::Paused => ("paused", None),
            EndpointStatus::Disabled { reason, at } => ("disabled", Some((reason, at))),
        };
        let plain = endpoint.headers.iter().filter(|(name, _)| !is_secret(name));
        Self {
            id: endpoint.id.to_string(),
            tenant: endpoint.tenant.to_string(),
            url: endpoint.url.to_string(),
            description: endpoint.description.to_string(),
            event_types: if endpoint.event_types.is_empty() {
                vec!["#".to_owned()]
            } else {
                endpoint.event_types.iter().map(ToString::to_string).collect()
            },
            headers: plain.map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            sensitive_header_names: sensitive_header_names(endpoint),
            rate_limit: endpoint.rate_limit.map(|rate| RateLimitInput {
                limit: rate.limit.into(),
                per: Some(format_duration(rate.per)),
                burst: Some(rate.burst.into()),
            }),
            max_in_flight: endpoint.max_in_flight(defaults),
            timeout: format_duration(endpoint.timeout(defaults)),
            ordering: word_of(endpoint.ordering, ORDERINGS),
            retry: retry_body(endpoint.retry(defaults)),
            format: word_of(endpoint.format, FORMATS),
            signature: word_of(endpoint.signature, SIGNATURES),
            handshake: endpoint.handshake.as_ref().map(|one| HandshakeBody::new(one, endpoint, audience)),
            client_certificate: endpoint.client_certificate.as_ref().map(ClientCertificateBody::new),
            trace: endpoint.trace,
            metadata: metadata_body(endpoint),
            status,
            disabled_reason: disabled.map(|(reason, _)| reason.as_str()),
            disabled_at: disabled.map(|(_, at)| Time(at)),
            created_at: Time(endpoint.created_at),
            updated_at: Time(endpoint.updated_at),
            secret: None,
            public_key: None,
        }
    }

    /// The members that a request may write, for a merge patch to be applied to. What the endpoint does not say itself is
    /// not among them.
    #[must_use]
    pub fn into_input(self, endpoint: &Endpoint) -> EndpointInput {
        EndpointInput {
            url: Some(self.url),
            tenant: Some(self.tenant),
            description: Some(self.description),
            event_types: Some(self.event_types),
            headers: Some(self.headers),
            sensitive_headers: None,
            rate_limit: self.rate_limit,
            max_in_flight: endpoint.max_in_flight.map(u64::from),
            timeout: endpoint.timeout.map(format_duration),
            ordering: Some(self.ordering.to_owned()),
            retry: endpoint.retry.as_ref().map(retry_body),
            format: Some(self.format.to_owned()),
            signature: Some(self.signature.to_owned()),
            secret: None,
            secret_type: None,
            handshake: self.handshake.map(HandshakeBody::into_input),
            client_certificate: None,
            trace: Some(self.trace),
            metadata: Some(self.metadata),
        }
    }
}

/// With those of an earlier version's plain headers that carry credentials.
fn sensitive_header_names(endpoint: &Endpoint) -> Vec<String> {
    let secret = endpoint.headers.iter().map(|(name, _)| name).filter(|name| is_secret(name));
    let all = endpoint.sensitive_headers.iter().map(|(name, _)| name).chain(secret);
    all.map(|name| name.to_ascii_lowercase()).collect::<BTreeSet<_>>().into_iter().collect()
}

fn metadata_body(endpoint: &Endpoint) -> Map<String, Value> {
    endpoint.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn retry_body(policy: &RetryPolicy) -> RetryInput {
    match policy {
        RetryPolicy::Exponential { initial, multiplier, max_interval, max_attempts, max_age, jitter } => {
            RetryInput {
                initial: Some(format_duration(*initial)),
                multiplier: Some(*multiplier),
                max_interval: Some(format_duration(*max_interval)),
                max_attempts: Some(u64::from(*max_attempts)),
                max_age: Some(format_duration(*max_age)),
                jitter: Some(*jitter),
                schedule: None,
            }
        }
        RetryPolicy::Schedule(steps) => RetryInput {
            schedule: Some(steps.iter().map(|step| format_duration(*step)).collect()),
            ..RetryInput::default()
        },
    }
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
