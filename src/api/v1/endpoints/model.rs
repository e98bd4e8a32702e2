//! Requests and responses of endpoints.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::amqp::AmqpInput;
use super::outgoing::{AuthInput, RequestMembers, SignatureMember, signature_member};
use super::selection::{filter_body, filter_member, labels_body};
use super::settings::{FORMATS, ORDERINGS, word_of};
use crate::api::EndpointDefaults;
use crate::api::http::body::object;
use crate::api::http::unique::members;
use crate::api::text::{Time, Word, format_duration};
use crate::api::v1::event_types::pins;
use crate::api::v1::lists::OWNER_WORDS;
use crate::api::v1::{PercentilesBody, disclosure};
use crate::domain::{
    Audience, ClientCertificate, DisabledReason, Endpoint, EndpointStatus, EndpointStatusName, Format,
    Handshake, Ordering, RetryPolicy,
};
use crate::rules::handshake::next_request;
use crate::rules::headers::is_secret;

/// The input of a creation. Unlike a change, it requires `url`.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct NewEndpointInput(pub EndpointInput);

impl JsonSchema for NewEndpointInput {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "NewEndpointInput".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let url =
            json_schema!({"type": "object", "required": ["url"], "properties": {"url": {"type": "string"}}});
        json_schema!({"allOf": [generator.subschema_for::<EndpointInput>(), url]})
    }
}

/// The members of a new or patched endpoint. Absent and null members have their defaults.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointInput {
    /// The target of deliveries; at most 2,048 bytes. `amqps://host:port/vhost` is a broker, and
    /// needs `amqp`; user name and password in it are moved there.
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// The exchange to publish to, for the URL of a broker.
    #[serde(default, deserialize_with = "object")]
    pub amqp: Option<AmqpInput>,
    /// Your name of the endpoint: 1 to 64 characters of `[A-Za-z0-9_.-]` that do not begin with
    /// `ep_`, unique in the tenant. Paths accept it in place of the id.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_.-]+$"))]
    pub uid: Option<String>,
    /// Default: `default`. `*`: the endpoint takes the events of all tenants but `balto`; only for
    /// keys without a tenant. Cannot be changed.
    #[schemars(length(min = 1, max = 255), regex(pattern = OWNER_WORDS))]
    pub tenant: Option<String>,
    /// At most 1,024 bytes.
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// Topic patterns: `*` is one word, `#` is any number of words. Default: all types.
    #[schemars(
        length(min = 1, max = 256),
        inner(regex(pattern = r"^([A-Za-z0-9_-]+|[*#])(\.([A-Za-z0-9_-]+|[*#]))*$"))
    )]
    pub event_types: Option<Vec<String>>,
    /// Conditions on the content of events: an object with paths that begin with `data`,
    /// `metadata`, `type`, `version`, `stream`, `orderingKey`, `labels` or `attributes`, and the
    /// operators `$eq $ne $in $nin $gt $gte $lt $lte $exists $startsWith $endsWith $or $and $not`;
    /// at most 8 KiB. Decided when an event is accepted. A change replaces it as a whole.
    #[serde(default, deserialize_with = "filter_member")]
    pub filter: Option<Map<String, Value>>,
    /// Only events with one of these labels. Default: all events.
    #[schemars(length(max = 10), inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_.:-]+$")))]
    pub labels: Option<Vec<String>>,
    /// At most 50 headers of deliveries; headers that Balto sets itself are rejected. Each part of
    /// a name is sent capitalized. Headers with the name of a credential are stored as
    /// `sensitiveHeaders`, where null removes them: for example `Authorization`, `Cookie`, names
    /// that contain `token`, `secret`, `password` or `api-key`, and names that end in `-Key`.
    #[serde(default, deserialize_with = "members")]
    pub headers: Option<BTreeMap<String, String>>,
    /// Like `headers`, with the same limit for both. The values are write-only, and encrypted at
    /// rest with `secrets.key`. In a change, null removes a header and the others remain. A `url`
    /// with another scheme, host or port removes all headers that the change does not set.
    #[serde(default, deserialize_with = "members")]
    pub sensitive_headers: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "object")]
    pub rate_limit: Option<RateLimitInput>,
    /// Maximum number of concurrent requests. Defaults to the current configuration.
    #[schemars(range(min = 1, max = 1000))]
    pub max_in_flight: Option<u64>,
    /// Timeout of one attempt, 100ms to 60s. Defaults to the current configuration.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub timeout: Option<String>,
    /// `none`, `key` or `endpoint`. A change also applies to pending deliveries, soon after the
    /// response. Deliveries that lose their order become due at once. Deliveries that gain an order
    /// are sent one by one in order of acceptance, after those already released for sending. In an
    /// order, an event with a later `deliverAt` blocks the events behind it.
    #[schemars(extend("enum" = ["none", "key", "endpoint", null]))]
    pub ordering: Option<String>,
    /// Defaults to the current configuration.
    #[serde(default, deserialize_with = "object")]
    pub retry: Option<RetryInput>,
    /// `standard`, `cloudevents` (1.0, structured mode), or `raw`: the event's data alone, byte for
    /// byte. For a broker also `cloudevents-binary`: the data alone, and attributes as headers.
    #[schemars(extend("enum" = ["standard", "cloudevents", "raw", "cloudevents-binary", null]))]
    pub format: Option<String>,
    /// `standard` (Standard Webhooks), `svix`, `stripe`, or `github` (`X-Hub-Signature-256`); or a
    /// list of at most 5 of these words and of custom signatures.
    #[schemars(with = "Option<SignatureMember>")]
    pub signature: Option<Value>,
    /// Method and body of requests. Default: the body in the endpoint's `format` by `POST`.
    #[serde(default, deserialize_with = "object")]
    pub request: Option<RequestMembers>,
    /// Authorization of requests. Its secrets are write-only, and encrypted at rest with
    /// `secrets.key`. A `url` with another scheme, host or port removes it, unless the change sets
    /// it; another token server needs the client secret again.
    #[serde(default, deserialize_with = "object")]
    pub auth: Option<AuthInput>,
    /// `whsec_` and base64 of 24 to 64 bytes, or `whsk_` and base64 of an ed25519 key; without
    /// `standard` and `svix` also 16 to 255 printable ASCII characters. Guessable secrets
    /// (constant, a sequence, common words) are rejected. Default: generated. Only `secret/rotate`
    /// changes it.
    pub secret: Option<String>,
    /// Type of the generated secret: `hmac` (signs `v1`) or `ed25519` (signs `v1a`).
    #[schemars(extend("enum" = ["hmac", "ed25519", null]))]
    pub secret_type: Option<String>,
    /// The TLS client certificate for this endpoint (https only); the key is write-only. Null
    /// removes it. A `url` with another scheme, host or port removes it, unless the change sets it.
    #[serde(default, deserialize_with = "object")]
    pub client_certificate: Option<ClientCertificateInput>,
    /// Requires the receiver's consent before deliveries (CloudEvents, "HTTP 1.1 Web Hooks").
    #[serde(default, deserialize_with = "object")]
    pub handshake: Option<HandshakeInput>,
    /// Whether deliveries carry the event's `traceparent`, with a new span per attempt.
    pub trace: Option<bool>,
    /// Versions of event types that deliveries are converted to: a registered version, or `latest`.
    /// Types without an entry are delivered as published.
    #[serde(default, deserialize_with = "members")]
    pub versions: Option<BTreeMap<String, String>>,
    /// Any object, at most 16 KiB.
    pub metadata: Option<Map<String, Value>>,
    /// `active` or `paused`; a change is the same as `pause` or `resume`. Default: `active`.
    #[schemars(extend("enum" = ["active", "paused", null]))]
    pub status: Option<String>,
}

/// The handshake request. A change of the URL, `origin` or `rate` repeats the handshake.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HandshakeInput {
    /// The DNS name of this Balto, sent as `WebHook-Request-Origin` with the request and each
    /// delivery. Default: `handshake.origin` of the configuration.
    #[schemars(length(min = 1, max = 253))]
    pub(super) origin: Option<String>,
    /// The requested rate in requests per minute (`WebHook-Request-Rate`). Default: no rate.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) rate: Option<u64>,
    /// Whether the receiver may consent later, through `WebHook-Request-Callback`. Requires
    /// `server.public_url` in the configuration.
    pub(super) callback: Option<bool>,
}

/// The handshake request of an endpoint, and its result.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandshakeBody {
    pub origin: String,
    pub rate: Option<u32>,
    pub callback: bool,
    /// `pending` (no deliveries are sent) or `consented`.
    #[schemars(extend("enum" = ["pending", "consented"]))]
    pub status: &'static str,
    pub consented_at: Option<Time>,
    /// The rate that the receiver allows, in requests per minute; null for any.
    pub allowed_rate: Option<u32>,
    /// Number of handshake requests since the last restart.
    pub requests: u32,
    pub last_request_at: Option<Time>,
    /// The result of the last request. For a receiver in the operator's network, keys bound to a
    /// tenant only see whether it consented.
    pub last_answer: Option<String>,
    /// Null if no request is scheduled: the receiver has consented, or the endpoint is not active.
    pub next_request_at: Option<Time>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitInput {
    /// Requests per `per`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) limit: u64,
    /// 1ms to 24h; default `1s`.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) per: Option<String>,
    /// Maximum number of requests at once after an idle period; default `limit`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) burst: Option<u64>,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCertificateInput {
    /// PEM: the certificate and its intermediate certificates.
    #[schemars(length(min = 1, max = 32_768))]
    pub certificate: String,
    /// PEM: the private key, without a passphrase.
    #[schemars(length(min = 1, max = 16_384))]
    pub key: String,
}

impl fmt::Debug for ClientCertificateInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificateInput(..)")
    }
}

/// A retry policy: either `schedule` alone, or the other members.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryInput {
    /// Delay before the first retry, 1ms to 30d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) initial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(super) multiplier: Option<f64>,
    /// Maximum delay, `initial` to 30d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) max_interval: Option<String>,
    /// Including the first attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(super) max_attempts: Option<u64>,
    /// Maximum age of a delivery, 1s to 365d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) max_age: Option<String>,
    /// Random variation of a delay, as a fraction of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub(super) jitter: Option<f64>,
    /// The delay before each retry: 1 to 100 durations of 0s to 30d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100), inner(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$")))]
    pub(super) schedule: Option<Vec<String>>,
}

/// An endpoint. Every member has its value in effect.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointBody {
    pub id: String,
    pub uid: Option<String>,
    pub tenant: String,
    pub url: String,
    /// Without its password. Null for an http URL.
    pub amqp: Option<AmqpInput>,
    pub description: String,
    pub event_types: Vec<String>,
    /// Null: any content.
    pub filter: Option<Map<String, Value>>,
    /// Empty: all events.
    pub labels: Vec<String>,
    pub headers: BTreeMap<String, String>,
    /// Names of `sensitiveHeaders`; the values are write-only.
    pub sensitive_header_names: Vec<String>,
    pub rate_limit: Option<RateLimitInput>,
    pub max_in_flight: u32,
    pub timeout: String,
    #[schemars(with = "Word<Ordering>")]
    pub ordering: &'static str,
    pub retry: RetryInput,
    #[schemars(with = "Word<Format>")]
    pub format: &'static str,
    /// A word for a single preset, otherwise a list.
    #[schemars(with = "SignatureMember")]
    pub signature: Value,
    /// Null for a `POST` of the body in the endpoint's `format`.
    pub request: Option<RequestMembers>,
    /// Without its secrets.
    pub auth: Option<AuthInput>,
    pub handshake: Option<HandshakeBody>,
    pub client_certificate: Option<ClientCertificateBody>,
    pub trace: bool,
    /// Versions that deliveries are converted to, by event type.
    pub versions: BTreeMap<String, String>,
    pub metadata: Map<String, Value>,
    /// `active`, `paused` or `disabled`.
    #[schemars(with = "Word<EndpointStatusName>")]
    pub status: &'static str,
    #[schemars(with = "Option<Word<DisabledReason>>")]
    pub disabled_reason: Option<&'static str>,
    pub disabled_at: Option<Time>,
    pub created_at: Time,
    pub updated_at: Time,
    /// Only in the response to the creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Of an ed25519 secret. Only in the response to the creation; later use `public-keys`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// The public data of a client certificate.
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

impl RateLimitInput {
    /// Omits a burst that equals the limit, which is its default. So a change of the limit changes
    /// it, too.
    fn without_default(self) -> Self {
        Self { burst: self.burst.filter(|burst| *burst != self.limit), ..self }
    }
}

impl EndpointBody {
    #[must_use]
    pub fn new(endpoint: &Endpoint, defaults: &EndpointDefaults, audience: Audience) -> Self {
        let defaults = &defaults.policy;
        let disabled = match endpoint.status {
            EndpointStatus::Active | EndpointStatus::Paused => None,
            EndpointStatus::Disabled { reason, at } => Some((reason, at)),
        };
        let plain = endpoint.headers.iter().filter(|(name, _)| !is_secret(name));
        Self {
            id: endpoint.id.to_string(),
            uid: endpoint.uid.as_ref().map(ToString::to_string),
            tenant: endpoint.tenant.to_string(),
            url: endpoint.url.to_string(),
            amqp: AmqpInput::new(endpoint),
            description: endpoint.description.to_string(),
            event_types: if endpoint.event_types.is_empty() {
                vec!["#".to_owned()]
            } else {
                endpoint.event_types.iter().map(ToString::to_string).collect()
            },
            filter: filter_body(endpoint),
            labels: labels_body(endpoint),
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
            signature: signature_member(&endpoint.signatures),
            request: RequestMembers::new(&endpoint.request),
            auth: endpoint.auth.as_ref().filter(|_| endpoint.amqp().is_none()).map(AuthInput::new),
            handshake: endpoint.handshake.as_ref().map(|one| HandshakeBody::new(one, endpoint, audience)),
            client_certificate: endpoint.client_certificate.as_ref().map(ClientCertificateBody::new),
            trace: endpoint.trace,
            versions: pins::body(&endpoint.versions),
            metadata: metadata_body(endpoint),
            status: endpoint.status.name().as_str(),
            disabled_reason: disabled.map(|(reason, _)| reason.as_str()),
            disabled_at: disabled.map(|(_, at)| Time(at)),
            created_at: Time(endpoint.created_at),
            updated_at: Time(endpoint.updated_at),
            secret: None,
            public_key: None,
        }
    }

    /// The members to which a merge patch is applied. Omits defaults from the configuration.
    #[must_use]
    pub fn into_input(self, endpoint: &Endpoint) -> EndpointInput {
        EndpointInput {
            uid: self.uid,
            // A disabled endpoint has neither of the words that a change accepts.
            status: None,
            url: Some(self.url),
            amqp: self.amqp,
            tenant: Some(self.tenant),
            description: Some(self.description),
            event_types: Some(self.event_types),
            filter: self.filter,
            labels: Some(self.labels),
            headers: Some(self.headers),
            sensitive_headers: None,
            rate_limit: self.rate_limit.map(RateLimitInput::without_default),
            max_in_flight: endpoint.max_in_flight.map(u64::from),
            timeout: endpoint.timeout.map(format_duration),
            ordering: Some(self.ordering.to_owned()),
            retry: endpoint.retry.as_ref().map(retry_body),
            format: Some(self.format.to_owned()),
            signature: Some(self.signature),
            request: self.request,
            auth: self.auth,
            secret: None,
            secret_type: None,
            handshake: self.handshake.map(HandshakeBody::into_input),
            client_certificate: None,
            trace: Some(self.trace),
            versions: Some(self.versions),
            metadata: Some(self.metadata),
        }
    }
}

/// Includes credentials that an earlier version stored as plain headers.
fn sensitive_header_names(endpoint: &Endpoint) -> Vec<String> {
    let secret = endpoint.headers.iter().map(|(name, _)| name).filter(|name| is_secret(name));
    let all = endpoint.sensitive_headers.iter().map(|(name, _)| name).chain(secret);
    all.map(|name| name.to_ascii_lowercase()).collect::<BTreeSet<_>>().into_iter().collect()
}

fn metadata_body(endpoint: &Endpoint) -> Map<String, Value> {
    endpoint.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

pub(in crate::api::v1) fn retry_body(policy: &RetryPolicy) -> RetryInput {
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
            // The first request is due from the creation on.
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

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatsBody {
    pub endpoint_id: String,
    pub since: Time,
    pub until: Time,
    pub attempts: u64,
    pub delivered: u64,
    pub failed_attempts: u64,
    /// Deliveries that died. Includes those that were redriven since.
    pub dead: u64,
    /// Pending deliveries that were cancelled.
    pub cancelled: u64,
    /// Share of successful attempts, 0 to 1; null without attempts.
    pub success_rate: Option<f64>,
    /// Percentiles of the latency of attempts; null without attempts.
    pub latency: PercentilesBody,
    /// Pending deliveries now.
    pub backlog: u64,
    pub oldest_pending_at: Option<Time>,
}
