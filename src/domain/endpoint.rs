//! An endpoint: a registered subscriber with its policy. A queue is one whose workers pull.

use std::fmt;
use std::time::Duration;

use url::Url;

use super::closed_list::closed_list;
use super::{
    AmqpTarget, DeadReason, EndpointAuth, EndpointId, EndpointNumber, EndpointTransport, EndpointUid,
    EventSelection, EventType, Network, Pattern, Position, QueueTarget, RequestShape, SenderName,
    SignatureScheme, Tenant, Timestamp, VersionPin,
};

/// Requests per time, with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per `per`, at least 1.
    pub limit: u32,
    pub per: Duration,
    /// Requests at once after an idle time, at least 1.
    pub burst: u32,
}

/// Reserved part of an endpoint's rate. It is durable before its requests leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The endpoint's revision at the time.
    pub revision: Position,
    pub rate: RateLimit,
    /// Time at which the whole burst is available again if all reserved requests are sent.
    pub full_at: Timestamp,
}

impl Reservation {
    /// Whether it is later than another reservation of the same endpoint.
    #[must_use]
    pub fn is_after(&self, other: &Self) -> bool {
        (self.revision, self.full_at) > (other.revision, other.full_at)
    }
}

closed_list! {
    /// Order of an endpoint's deliveries.
    #[derive(Default)]
    pub enum Ordering {
        #[default]
        None = 1 => "none",
        /// One at a time per ordering key, in order of acceptance.
        Key = 2 => "key",
        /// One at a time, in order of acceptance.
        Endpoint = 3 => "endpoint",
    }
}

closed_list! {
    /// Format of the request body.
    #[derive(Default)]
    pub enum Format {
        #[default]
        Standard = 1 => "standard",
        /// CloudEvents 1.0, structured mode.
        CloudEvents = 2 => "cloudevents",
        /// The event's data alone, byte for byte.
        Raw = 3 => "raw",
        /// CloudEvents 1.0, binary mode: the data as the body, everything else in headers. Only for
        /// messages to a broker.
        CloudEventsBinary = 4 => "cloudevents-binary",
    }
}

closed_list! {
    /// Signature scheme of an endpoint's requests.
    #[derive(Default)]
    pub enum SignaturePreset {
        /// Standard Webhooks: `webhook-signature`.
        #[default]
        Standard = 1 => "standard",
        /// `Stripe-Signature`.
        Stripe = 2 => "stripe",
        /// `X-Hub-Signature-256`.
        Github = 3 => "github",
        /// As `standard`, with the header names `svix-id`, `svix-timestamp` and `svix-signature`.
        Svix = 4 => "svix",
    }
}

/// Retry times of a failed delivery.
#[derive(Clone, Debug, PartialEq)]
pub enum RetryPolicy {
    Exponential {
        initial: Duration,
        /// At least 1.0.
        multiplier: f64,
        max_interval: Duration,
        /// Including the first.
        max_attempts: u32,
        /// Counts from the first attempt of the series: earlier waiting is not a failure.
        max_age: Duration,
        /// Maximum deviation as a fraction of the interval, 0.0 to 1.0.
        jitter: f64,
    },
    /// One retry after each interval; none after the last.
    Schedule(Vec<Duration>),
}

closed_list! {
    /// Algorithm of a secret's key.
    pub enum SecretKind {
        /// HMAC-SHA256, written `whsec_`.
        Hmac = 1 => "hmac",
        /// Ed25519, written `whsk_`; stored as its seed.
        Ed25519 = 2 => "ed25519",
        /// Text that the other signature presets use as the key.
        Text = 3 => "text",
    }
}

/// Sensitive bytes: encrypted under the operator's key, or plain without one. `Debug` hides them.
#[derive(Clone, PartialEq, Eq)]
pub enum Sealed {
    Plain(Box<[u8]>),
    Encrypted(Box<[u8]>),
}

/// Bytes that sealing adds to a value.
pub const SEALED_OVERHEAD_BYTES: usize = 45;

impl Sealed {
    /// Bytes of the plain value.
    #[must_use]
    pub fn plain_bytes(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::Encrypted(bytes) => bytes.len().saturating_sub(SEALED_OVERHEAD_BYTES),
        }
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(..)")
    }
}

/// A signing secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    pub kind: SecretKind,
    pub key: Sealed,
    /// `None` for the current secret. A rotated secret signs until this time.
    pub expires_at: Option<Timestamp>,
}

/// TLS client certificate of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and its chain to the authority, each in DER.
    pub chain: Vec<Box<[u8]>>,
    /// The private key in DER.
    pub key: Sealed,
    /// Subject (RFC 4514).
    pub subject: Box<str>,
    pub expires_at: Timestamp,
}

/// Handshake of CloudEvents' "HTTP 1.1 Web Hooks for Event Delivery": asks for consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Name of the sender.
    pub origin: SenderName,
    /// Requested rate in requests per minute, at least 1.
    pub rate: Option<u32>,
    /// Whether the receiver may answer later, at a callback URL.
    pub callback: bool,
    /// Required before the first delivery.
    pub consent: Option<Consent>,
    /// The requests so far, with the last result.
    pub asked: Option<Asked>,
    /// SHA-256 of the tokens in valid callback URLs, oldest first. At most
    /// [`limits::CALLBACKS_MAX`](crate::limits::CALLBACKS_MAX); none after a consent.
    pub callbacks: Vec<[u8; 32]>,
}

impl Handshake {
    /// A handshake before its first request.
    #[must_use]
    pub fn new(origin: SenderName, rate: Option<u32>, callback: bool) -> Self {
        Self { origin, rate, callback, consent: None, asked: None, callbacks: Vec::new() }
    }

    /// Whether an answer to one handshake also answers the other.
    #[must_use]
    pub fn has_same_terms(&self, other: &Self) -> bool {
        self.origin == other.origin && self.rate == other.rate
    }
}

/// A receiver's consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consent {
    pub at: Timestamp,
    /// Allowed requests per minute, at least 1; `None` is unlimited.
    pub rate: Option<u32>,
}

/// Requests for consent so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Time of the first request.
    pub since: Timestamp,
    /// Number of requests, at least 1.
    pub count: u32,
    /// Time of the last request.
    pub at: Timestamp,
    /// Description of the last result.
    pub answer: Box<str>,
    /// Network of the receiver. Only operators see answers from an internal one.
    pub network: Network,
    /// Due time of the next request, until there is a consent.
    pub next_at: Timestamp,
}

closed_list! {
    /// Why the daemon (not the operator) stopped sending to an endpoint.
    pub enum DisabledReason {
        /// The receiver answered 410.
        Gone = 1 => "gone",
        /// Attempts failed without a success for the configured time.
        Failing = 2 => "failing",
        /// The receiver sent `webhook-delivery: disable`.
        Requested = 3 => "requested",
    }
}

impl DisabledReason {
    /// Dead reason of the delivery whose reply disabled the endpoint.
    #[must_use]
    pub fn dead_reason(self) -> DeadReason {
        match self {
            Self::Gone => DeadReason::Gone,
            Self::Failing | Self::Requested => DeadReason::EndpointDisabled,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointStatus {
    #[default]
    Active,
    Paused,
    Disabled {
        reason: DisabledReason,
        at: Timestamp,
    },
}

impl EndpointStatus {
    #[must_use]
    pub fn name(self) -> EndpointStatusName {
        match self {
            Self::Active => EndpointStatusName::Active,
            Self::Paused => EndpointStatusName::Paused,
            Self::Disabled { .. } => EndpointStatusName::Disabled,
        }
    }
}

closed_list! {
    /// An endpoint's status without its details.
    pub enum EndpointStatusName {
        Active => "active",
        Paused => "paused",
        Disabled => "disabled",
    }
}

/// The operator's defaults for endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyDefaults {
    /// 1 to [`crate::limits::IN_FLIGHT_PER_ENDPOINT_MAX`].
    pub max_in_flight: u32,
    /// 100 ms to 60 s.
    pub timeout: Duration,
    pub retry: RetryPolicy,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub number: EndpointNumber,
    pub id: EndpointId,
    /// Unique among the live endpoints of the tenant.
    pub uid: Option<EndpointUid>,
    pub tenant: Tenant,
    pub transport: EndpointTransport,
    /// Canonical form of the parsed URL; empty for a queue.
    pub url: Box<str>,
    pub description: Box<str>,
    /// Empty: every type.
    pub event_types: Vec<Pattern>,
    /// Of the events with these types.
    pub selection: EventSelection,
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// Headers with hidden values, sorted by name.
    pub sensitive_headers: Vec<(Box<str>, Sealed)>,
    pub rate_limit: Option<RateLimit>,
    /// Requests at once, at least 1. `None` here, in `timeout` and in `retry`: [`PolicyDefaults`].
    pub max_in_flight: Option<u32>,
    pub timeout: Option<Duration>,
    pub ordering: Ordering,
    pub retry: Option<RetryPolicy>,
    pub format: Format,
    /// 1 to [`crate::limits::SIGNATURES_MAX`], with different headers.
    pub signatures: Vec<SignatureScheme>,
    pub request: RequestShape,
    pub auth: Option<EndpointAuth>,
    pub handshake: Option<Handshake>,
    pub client_certificate: Option<ClientCertificate>,
    /// The current secret first, then rotated secrets that still sign.
    pub secrets: Vec<Secret>,
    /// Whether deliveries continue the event's `traceparent`.
    pub trace: bool,
    /// Versions that deliveries of these types are converted to, sorted by type.
    pub versions: Vec<(EventType, VersionPin)>,
    /// A JSON object, as text.
    pub metadata: Option<Box<str>>,
    pub status: EndpointStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Position of its latest record. An update names the revision that it read.
    pub revision: Position,
}

impl Endpoint {
    /// Whether the receiver has consented, or the endpoint has no handshake.
    #[must_use]
    pub fn has_consent(&self) -> bool {
        self.handshake.as_ref().is_none_or(|handshake| handshake.consent.is_some())
    }

    /// Whether deliveries may be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.status == EndpointStatus::Active && self.has_consent()
    }

    /// The queue's own settings; `None` for an endpoint with a URL.
    #[must_use]
    pub fn queue(&self) -> Option<&QueueTarget> {
        match &self.transport {
            EndpointTransport::Queue(target) => Some(target),
            EndpointTransport::Http | EndpointTransport::Amqp(_) => None,
        }
    }

    /// The exchange of an endpoint with the URL of a broker.
    #[must_use]
    pub fn amqp(&self) -> Option<&AmqpTarget> {
        match &self.transport {
            EndpointTransport::Amqp(target) => Some(target),
            EndpointTransport::Http | EndpointTransport::Queue(_) => None,
        }
    }

    /// Host and port of the URL: the identity of the receiver. Ignores a trailing dot of the host.
    #[must_use]
    pub fn destination(&self) -> String {
        let parsed = Url::parse(&self.url).ok();
        let destination = parsed.as_ref().and_then(|url| {
            let host = url.host_str()?;
            Some(format!("{}:{}", host.strip_suffix('.').unwrap_or(host), url.port_or_known_default()?))
        });
        // A queue has no URL. A stored URL was parsed before.
        destination.unwrap_or_else(|| self.url.to_string())
    }

    /// Bytes of the topic patterns.
    #[must_use]
    pub fn pattern_bytes(&self) -> u64 {
        self.event_types.iter().map(|pattern| pattern.as_str().len() as u64).sum()
    }

    /// Bytes of the custom headers, names and plain values, of the parameters of a token request,
    /// of the body template and the filter.
    #[must_use]
    pub fn header_bytes(&self) -> u64 {
        let plain = self.headers.iter().map(|(name, value)| name.len() + value.len());
        let sensitive = self.sensitive_headers.iter().map(|(name, value)| name.len() + value.plain_bytes());
        let template = self.request.body.as_ref().map(|body| body.len());
        let filter = self.selection.filter.as_ref().map(|filter| filter.len());
        let parameters = match &self.auth {
            Some(EndpointAuth::OAuth2(client)) => &*client.parameters,
            _ => &[],
        };
        let parameters = parameters.iter().map(|(name, value)| name.len() + value.len());
        plain.chain(sensitive).chain(parameters).chain(template).chain(filter).map(|bytes| bytes as u64).sum()
    }

    /// The version that deliveries of a type are converted to.
    #[must_use]
    pub fn pin(&self, name: &EventType) -> Option<&VersionPin> {
        self.versions.iter().find(|(pinned, _)| pinned == name).map(|(_, pin)| pin)
    }

    #[must_use]
    pub fn max_in_flight(&self, defaults: &PolicyDefaults) -> u32 {
        self.max_in_flight.unwrap_or(defaults.max_in_flight)
    }

    #[must_use]
    pub fn timeout(&self, defaults: &PolicyDefaults) -> Duration {
        self.timeout.unwrap_or(defaults.timeout)
    }

    #[must_use]
    pub fn retry<'a>(&'a self, defaults: &'a PolicyDefaults) -> &'a RetryPolicy {
        self.retry.as_ref().unwrap_or(&defaults.retry)
    }
}
