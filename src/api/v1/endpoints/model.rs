//! An endpoint's members: as a request writes them, as they are checked, and as an answer shows them.
//!
//! One type reads a creation and a change: a change is the present members with the merge patch applied.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::settings::{FORMATS, ORDERINGS, SIGNATURES, word_of};
use crate::api::EndpointDefaults;
use crate::api::http::auth::Audience;
use crate::api::http::body::object;
use crate::api::http::unique::members;
use crate::api::text::{Span, Time, Word, format_duration};
use crate::api::v1::disclosure;
use crate::domain::{
    ClientCertificate, DisabledReason, Endpoint, EndpointStatus, EndpointStatusName, Format, Handshake,
    Ordering, RetryPolicy, SignaturePreset,
};
use crate::rules::handshake::next_request;
use crate::rules::headers::is_secret;
use crate::service::types::{CircuitState, WaitReason};

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
    /// carries a credential by its name (`Authorization`, `Cookie`, names with `token`, `secret`, `password`, `api-key`,
    /// `access-key`, `session`, `jwt` or `csrf` in them, names that end in `-Key`) is kept as one of `sensitiveHeaders`;
    /// null removes it from there.
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
    pub(super) origin: Option<String>,
    /// Requests per minute that are asked for (`WebHook-Request-Rate`). None without it.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) rate: Option<u64>,
    /// Whether the receiver may agree later, at a URL that it is shown (`WebHook-Request-Callback`); needs
    /// `server.public_url` in the configuration.
    pub(super) callback: Option<bool>,
}

/// What an endpoint's receiver was asked for, and what it said.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandshakeBody {
    pub origin: String,
    pub rate: Option<u32>,
    pub callback: bool,
    /// `pending`: nothing is sent. `consented`.
    #[schemars(extend("enum" = ["pending", "consented"]))]
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
    pub(super) limit: u64,
    /// 1ms to 24h; `1s` without it.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) per: Option<String>,
    /// What may go out at once after a quiet spell; `limit` without it.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) burst: Option<u64>,
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
    pub(super) initial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(super) multiplier: Option<f64>,
    /// `initial` to 30d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) max_interval: Option<String>,
    /// With the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(super) max_attempts: Option<u64>,
    /// 1s to 365d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) max_age: Option<String>,
    /// Part of the interval by which it varies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub(super) jitter: Option<f64>,
    /// The waits before each retry, 1 to 100 of 0s to 30d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100), inner(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$")))]
    pub(super) schedule: Option<Vec<String>>,
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
    #[schemars(with = "Word<Ordering>")]
    pub ordering: &'static str,
    pub retry: RetryInput,
    #[schemars(with = "Word<Format>")]
    pub format: &'static str,
    #[schemars(with = "Word<SignaturePreset>")]
    pub signature: &'static str,
    pub handshake: Option<HandshakeBody>,
    pub client_certificate: Option<ClientCertificateBody>,
    pub trace: bool,
    pub metadata: Map<String, Value>,
    /// `active`, `paused` or `disabled`.
    #[schemars(with = "Word<EndpointStatusName>")]
    pub status: &'static str,
    #[schemars(with = "Option<Word<DisabledReason>>")]
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
        let disabled = match endpoint.status {
            EndpointStatus::Active | EndpointStatus::Paused => None,
            EndpointStatus::Disabled { reason, at } => Some((reason, at)),
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
            status: endpoint.status.name().as_str(),
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

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretBody {
    pub secret: String,
    /// Of an ed25519 secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Rotated secrets that still sign.
    pub previous: Vec<PreviousSecret>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreviousSecret {
    pub secret: String,
    pub expires_at: Option<Time>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PublicKeysBody {
    /// The current one first; empty when no ed25519 key signs.
    pub public_keys: Vec<PublicKeyBody>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PublicKeyBody {
    /// `whpk_` and base64.
    pub public_key: String,
    /// Of a rotated key: until when it signs too.
    pub expires_at: Option<Time>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateInput {
    /// As when an endpoint is created, with the same rules; generated without it.
    pub(super) secret: Option<String>,
    /// What is generated: `hmac` or `ed25519`; as the current one without it.
    #[schemars(extend("enum" = ["hmac", "ed25519", null]))]
    pub(super) secret_type: Option<String>,
    /// How long the old one signs too, 0s to 30d; 24h without it.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) overlap: Option<String>,
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
    /// Given up, by an attempt or without one; what was redriven since counts, too.
    pub dead: u64,
    /// Cancelled while pending.
    pub cancelled: u64,
    /// Successful part of the attempts, 0 to 1; null without one.
    pub success_rate: Option<f64>,
    pub latency: LatencyBody,
    /// Pending deliveries now.
    pub backlog: u64,
    pub oldest_pending_at: Option<Time>,
}

/// Of attempts; null without one.
#[derive(Serialize, JsonSchema)]
pub struct LatencyBody {
    pub p50: Option<Span>,
    pub p95: Option<Span>,
    pub p99: Option<Span>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaneBody {
    pub endpoint_id: String,
    /// Why nothing moves; null when nothing waits.
    #[schemars(with = "Option<Word<WaitReason>>")]
    pub reason: Option<&'static str>,
    pub pending: u64,
    /// Of `pending`: behind another delivery of the same ordering key.
    pub waiting_for_order: u64,
    pub in_flight: u64,
    pub next_due_at: Option<Time>,
    /// When the reason ends by itself.
    pub until: Option<Time>,
    #[schemars(with = "Word<CircuitState>")]
    pub circuit: &'static str,
    pub consecutive_failures: u32,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplayInput {
    #[schemars(extend("format" = "date-time"))]
    pub(super) since: String,
    /// Now without it.
    #[schemars(extend("format" = "date-time"))]
    pub(super) until: Option<String>,
    /// Topic patterns; those of the endpoint without it.
    #[schemars(
        length(min = 1, max = 256),
        inner(regex(pattern = r"^([A-Za-z0-9_-]+|[*#])(\.([A-Za-z0-9_-]+|[*#]))*$"))
    )]
    pub(super) event_types: Option<Vec<String>>,
    /// Only events that were not delivered to this endpoint.
    pub(super) only_undelivered: Option<bool>,
}
