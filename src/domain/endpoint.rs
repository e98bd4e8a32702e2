//! An endpoint: a registered subscriber URL with its policy.

use std::fmt;
use std::time::Duration;

use url::Url;

use super::closed_list::closed_list;
use super::{
    DeadReason, EndpointId, EndpointNumber, Network, Pattern, Position, SenderName, Tenant, Timestamp,
};

/// Requests per time, with what may go out at once after a quiet spell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per `per`, at least 1.
    pub limit: u32,
    pub per: Duration,
    /// At least 1.
    pub burst: u32,
}

/// What an endpoint has reserved of its rate: it is durable before the requests leave that rest on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The endpoint's revision at the time.
    pub revision: Position,
    pub rate: RateLimit,
    /// When the whole burst is available again, if all that is reserved was sent.
    pub full_at: Timestamp,
}

impl Reservation {
    /// Whether it was made after another one of the same endpoint.
    #[must_use]
    pub fn is_after(&self, other: &Self) -> bool {
        (self.revision, self.full_at) > (other.revision, other.full_at)
    }
}

closed_list! {
    /// In which order an endpoint's deliveries go out.
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
    /// The body that the endpoint receives.
    #[derive(Default)]
    pub enum Format {
        #[default]
        Standard = 1 => "standard",
        /// CloudEvents 1.0, structured mode.
        CloudEvents = 2 => "cloudevents",
    }
}

closed_list! {
    /// How the endpoint's requests are signed.
    #[derive(Default)]
    pub enum SignaturePreset {
        /// Standard Webhooks: `webhook-signature`.
        #[default]
        Standard = 1 => "standard",
        /// `Stripe-Signature`.
        Stripe = 2 => "stripe",
        /// `X-Hub-Signature-256`.
        Github = 3 => "github",
    }
}

/// When a failed delivery is tried again.
#[derive(Clone, Debug, PartialEq)]
pub enum RetryPolicy {
    Exponential {
        initial: Duration,
        /// At least 1.0.
        multiplier: f64,
        max_interval: Duration,
        /// Including the first.
        max_attempts: u32,
        /// From the first attempt of the series: time spent waiting is no failure.
        max_age: Duration,
        /// Part of the interval by which it may be longer or shorter, 0.0 to 1.0.
        jitter: f64,
    },
    /// One retry after each of these; nothing after the last.
    Schedule(Vec<Duration>),
}

closed_list! {
    /// What a secret is a key of.
    pub enum SecretKind {
        /// HMAC-SHA256, written `whsec_`.
        Hmac = 1 => "hmac",
        /// Ed25519, written `whsk_`; held as its seed.
        Ed25519 = 2 => "ed25519",
        /// Characters that a signature preset other than the standard one takes as they are.
        Text = 3 => "text",
    }
}

/// Bytes that whoever finds the disk should not read: encrypted under the operator's key, or plain where there is none.
/// Deliberately without a `Debug` that shows them.
#[derive(Clone, PartialEq, Eq)]
pub enum Sealed {
    Plain(Box<[u8]>),
    Encrypted(Box<[u8]>),
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
    /// `None` for the current secret; a rotated one signs until then.
    pub expires_at: Option<Timestamp>,
}

/// What an endpoint's connections present in TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and those that lead from it to its authority, each in DER.
    pub chain: Vec<Box<[u8]>>,
    /// Its private key, in DER.
    pub key: Sealed,
    /// Whom it names (RFC 4514).
    pub subject: Box<str>,
    pub expires_at: Timestamp,
}

/// The handshake of CloudEvents' "HTTP 1.1 Web Hooks for Event Delivery": the receiver is asked before anything is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// What the sender goes by.
    pub origin: SenderName,
    /// Requests per minute that are asked for, at least 1.
    pub rate: Option<u32>,
    /// Whether the receiver may answer later, at a URL of ours.
    pub callback: bool,
    /// Nothing is sent without it.
    pub consent: Option<Consent>,
    /// The last request, and what came of it.
    pub asked: Option<Asked>,
    /// SHA-256 of the tokens in the callback URLs that are good, oldest first: those of the last requests, at most
    /// [`limits::CALLBACKS_MAX`](crate::limits::CALLBACKS_MAX), and none once there is a consent.
    pub callbacks: Vec<[u8; 32]>,
}

impl Handshake {
    /// One in which nobody has been asked yet.
    #[must_use]
    pub fn new(origin: SenderName, rate: Option<u32>, callback: bool) -> Self {
        Self { origin, rate, callback, consent: None, asked: None, callbacks: Vec::new() }
    }

    /// Whether an answer to the one would be an answer to the other.
    #[must_use]
    pub fn asks_as(&self, other: &Self) -> bool {
        self.origin == other.origin && self.rate == other.rate
    }
}

/// What a receiver has agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consent {
    pub at: Timestamp,
    /// Requests per minute, at least 1; `None` is any number.
    pub rate: Option<u32>,
}

/// Requests for consent, as far as they have gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// When the first of these requests was made.
    pub since: Timestamp,
    /// How many there were, at least 1.
    pub count: u32,
    /// When the last was made.
    pub at: Timestamp,
    /// What came of it, in words.
    pub answer: Box<str>,
    /// Where the receiver was: an answer from inside is told to operators only.
    pub network: Network,
    /// When the next one is due, as long as there is no consent.
    pub next_at: Timestamp,
}

closed_list! {
    /// Why the daemon (not the operator) stopped sending to an endpoint.
    pub enum DisabledReason {
        /// The receiver answered 410.
        Gone = 1 => "gone",
        /// It failed without one success for the configured time.
        Failing = 2 => "failing",
        /// It asked for it with `webhook-delivery: disable`.
        Requested = 3 => "requested",
    }
}

impl DisabledReason {
    /// The reason of the delivery whose reply disabled the endpoint.
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

/// What the operator has set for endpoints that do not say it themselves.
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
    pub tenant: Tenant,
    /// Canonical form of the URL, as parsed.
    pub url: Box<str>,
    pub description: Box<str>,
    /// Empty means every type.
    pub event_types: Vec<Pattern>,
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// Headers whose values are shown to nobody. Sorted by name.
    pub sensitive_headers: Vec<(Box<str>, Sealed)>,
    pub rate_limit: Option<RateLimit>,
    /// Requests at once, at least 1; `None` here, in `timeout` and in `retry`: as [`PolicyDefaults`] say at the time.
    pub max_in_flight: Option<u32>,
    pub timeout: Option<Duration>,
    pub ordering: Ordering,
    pub retry: Option<RetryPolicy>,
    pub format: Format,
    pub signature: SignaturePreset,
    pub handshake: Option<Handshake>,
    pub client_certificate: Option<ClientCertificate>,
    /// The current secret first, then those in their overlap.
    pub secrets: Vec<Secret>,
    /// Whether deliveries continue the event's `traceparent`.
    pub trace: bool,
    /// A JSON object, as text.
    pub metadata: Option<Box<str>>,
    pub status: EndpointStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Position of the record that made it what it is; an update names the revision that it read.
    pub revision: Position,
}

impl Endpoint {
    /// Whether its receiver has agreed to be sent to, where it has to.
    #[must_use]
    pub fn has_consent(&self) -> bool {
        self.handshake.as_ref().is_none_or(|handshake| handshake.consent.is_some())
    }

    /// Whether deliveries may be sent to it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.status == EndpointStatus::Active && self.has_consent()
    }

    /// Host and port of its URL: which receiver it is. A trailing dot of the host makes no other.
    #[must_use]
    pub fn destination(&self) -> String {
        let parsed = Url::parse(&self.url).ok();
        let destination = parsed.as_ref().and_then(|url| {
            let host = url.host_str()?;
            Some(format!("{}:{}", host.strip_suffix('.').unwrap_or(host), url.port_or_known_default()?))
        });
        // Not reached: what is stored was parsed.
        destination.unwrap_or_else(|| self.url.to_string())
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
