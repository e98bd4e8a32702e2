//! The sections of the configuration: one struct for each, with its defaults.
//!
//! Owns: the fields and their default values. Names, bounds and notation of the keys are in
//! [`super::keys`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::secrets::{AdminKey, ProxyUrl, SecretsKey};
use crate::domain::{Quota, RetryPolicy, SenderName};
use crate::limits;

const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub api_listen: SocketAddr,
    pub ops_listen: SocketAddr,
    /// URL of the API as the outside sees it, without a slash at the end.
    pub public_url: Option<String>,
    /// PEM, the server's own certificate first. Needs `tls_key_file`; without both the API speaks
    /// plain HTTP.
    pub tls_certificate_file: Option<PathBuf>,
    pub tls_key_file: Option<PathBuf>,
    pub max_connections: usize,
    /// Limit of connections without a key from one address.
    pub max_connections_per_address: usize,
    /// Networks without that limit: trusted proxies.
    pub unlimited_networks: Vec<IpNet>,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    /// Minimum rate at which a body arrives, in bytes per second; 0: none.
    pub min_body_rate: usize,
    pub answer_timeout: Duration,
    /// Limit of streams of events at once.
    pub max_streams: usize,
    pub max_body_bytes: usize,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth {
    pub admin_key: Option<AdminKey>,
    pub admin_key_file: Option<PathBuf>,
}

/// The keys that secrets and sensitive headers are encrypted under: the first encrypts, all
/// decrypt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SecretsSection {
    pub key: Vec<SecretsKey>,
    pub key_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    Embedded,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StoreSection {
    pub kind: StoreKind,
    pub path: PathBuf,
    /// Free bytes of the disk that new events leave; 0: none.
    pub reserve_bytes: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Ingest {
    pub max_event_bytes: usize,
    pub idempotency_ttl: Duration,
    pub admission_bytes: usize,
    pub admission_events: usize,
}

/// Event types.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Types {
    /// Whether events of unregistered types are rejected.
    pub required: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DeliverySection {
    /// Time limit of an attempt, for endpoints without their own.
    pub timeout: Duration,
    pub connect_timeout: Duration,
    /// Limit of requests at once, over all endpoints.
    pub max_in_flight: usize,
    /// Limit of requests at once to an endpoint without its own.
    pub endpoint_max_in_flight: u32,
    pub drain_timeout: Duration,
    pub disable_after: Duration,
    /// Status codes that end a delivery without a retry.
    pub refused_statuses: Vec<u16>,
    pub breaker_failures: u32,
    pub breaker_probe_initial: Duration,
    pub breaker_probe_max: Duration,
}

/// The retry policy of endpoints without their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    pub initial: Duration,
    pub multiplier: f64,
    pub max_interval: Duration,
    pub max_attempts: u32,
    pub max_age: Duration,
    pub jitter: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Egress {
    pub allow_http: bool,
    pub allow_networks: Vec<IpNet>,
    pub deny_networks: Vec<IpNet>,
    /// Empty: 80, 443, and all from 1024 on except the well-known ports of other protocols.
    pub allow_ports: Vec<PortRange>,
    /// Limit of requests at once to one host and port, over all endpoints; 0 means no limit.
    pub host_max_in_flight: usize,
    /// Limit of requests at once to one address, over all endpoints; 0: unlimited.
    pub address_max_in_flight: usize,
    /// Certificate authorities that are trusted in addition to those of the machine.
    pub ca_file: Option<PathBuf>,
    pub proxy: Option<ProxyUrl>,
    /// Empty: the name servers of the machine.
    pub nameservers: Vec<SocketAddr>,
}

/// How receivers are asked for consent.
#[derive(Clone, Debug, PartialEq)]
pub struct HandshakeSection {
    /// The name that requests for consent give as their sender, for endpoints without their own.
    pub origin: Option<SenderName>,
    /// Every new endpoint needs a handshake.
    pub required: bool,
    /// Timeout of one request for consent.
    pub timeout: Duration,
    pub retry_initial: Duration,
    pub retry_max_interval: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RetentionSection {
    pub events: KeepFor,
    pub stream_events: KeepFor,
    pub dead_letters: KeepFor,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AuditSection {
    pub retention: KeepFor,
}

/// Limits of each tenant; `None` is off.
#[derive(Clone, Debug, PartialEq)]
pub struct QuotasSection {
    pub endpoints: Option<u64>,
    pub pattern_bytes: Option<u64>,
    pub wildcard_parts: Option<u64>,
    pub header_bytes: Option<u64>,
    pub keys: Option<u64>,
    pub consumers: Option<u64>,
    pub pending_deliveries: Option<u64>,
    pub stored_bytes: Option<u64>,
    pub events_per_second: Option<u64>,
    pub bytes_per_second: Option<u64>,
    pub connections_per_key: Option<u64>,
    pub reads_per_key: Option<u64>,
}

impl QuotasSection {
    /// The limit of a quota.
    #[must_use]
    pub fn limit(&self, quota: Quota) -> Option<u64> {
        match quota {
            Quota::Endpoints => self.endpoints,
            Quota::PatternBytes => self.pattern_bytes,
            Quota::WildcardParts => self.wildcard_parts,
            Quota::HeaderBytes => self.header_bytes,
            Quota::Keys => self.keys,
            Quota::Consumers => self.consumers,
            Quota::PendingDeliveries => self.pending_deliveries,
            Quota::StoredBytes => self.stored_bytes,
            Quota::EventsPerSecond => self.events_per_second,
            Quota::BytesPerSecond => self.bytes_per_second,
            Quota::ConnectionsPerKey => self.connections_per_key,
            Quota::ReadsPerKey => self.reads_per_key,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    /// A level, or directives of `tracing_subscriber::EnvFilter`.
    pub level: String,
}

/// A retention time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepFor {
    Time(Duration),
    Forever,
}

impl KeepFor {
    /// `None`: forever.
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        match self {
            Self::Time(duration) => Some(duration),
            Self::Forever => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// `443` or `8000-8999`; never port 0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = Self { first: first.parse().ok()?, last: last.parse().ok()? };
        (range.first > 0 && range.first <= range.last).then_some(range)
    }

    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl Default for Server {
    fn default() -> Self {
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            api_listen: local(8400),
            ops_listen: local(8401),
            public_url: None,
            tls_certificate_file: None,
            tls_key_file: None,
            max_connections: limits::CONNECTIONS_DEFAULT,
            max_connections_per_address: limits::CONNECTIONS_PER_ADDRESS_DEFAULT,
            unlimited_networks: vec![
                IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
                IpNet::new_assert(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
            ],
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            min_body_rate: limits::BODY_RATE_DEFAULT,
            answer_timeout: Duration::from_secs(30),
            max_streams: limits::STREAMS_DEFAULT,
            max_body_bytes: limits::BODY_BYTES_DEFAULT,
        }
    }
}

impl Default for StoreSection {
    fn default() -> Self {
        Self {
            kind: StoreKind::Embedded,
            path: PathBuf::from("/var/lib/balto"),
            reserve_bytes: limits::DISK_RESERVE_DEFAULT as usize,
        }
    }
}

impl Default for Ingest {
    fn default() -> Self {
        Self {
            max_event_bytes: limits::EVENT_BYTES_DEFAULT,
            idempotency_ttl: 24 * HOUR,
            admission_bytes: limits::ADMISSION_BYTES_DEFAULT,
            admission_events: limits::ADMISSION_EVENTS_DEFAULT,
        }
    }
}

impl Default for DeliverySection {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(5),
            max_in_flight: limits::IN_FLIGHT_DEFAULT,
            endpoint_max_in_flight: 16,
            drain_timeout: Duration::from_secs(30),
            disable_after: 5 * 24 * HOUR,
            refused_statuses: Vec::new(),
            breaker_failures: 5,
            breaker_probe_initial: Duration::from_secs(5),
            breaker_probe_max: Duration::from_secs(300),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(5),
            multiplier: 3.0,
            max_interval: 6 * HOUR,
            max_attempts: 12,
            max_age: 72 * HOUR,
            jitter: 0.2,
        }
    }
}

impl Retry {
    #[must_use]
    pub fn policy(&self) -> RetryPolicy {
        RetryPolicy::Exponential {
            initial: self.initial,
            multiplier: self.multiplier,
            max_interval: self.max_interval,
            max_attempts: self.max_attempts,
            max_age: self.max_age,
            jitter: self.jitter,
        }
    }
}

impl Default for HandshakeSection {
    fn default() -> Self {
        Self {
            origin: None,
            required: false,
            timeout: limits::HANDSHAKE_TIMEOUT_DEFAULT,
            retry_initial: Duration::from_secs(60),
            retry_max_interval: 6 * HOUR,
        }
    }
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            allow_http: false,
            allow_networks: Vec::new(),
            deny_networks: Vec::new(),
            allow_ports: Vec::new(),
            host_max_in_flight: limits::HOST_IN_FLIGHT_DEFAULT,
            address_max_in_flight: limits::ADDRESS_IN_FLIGHT_DEFAULT,
            ca_file: None,
            proxy: None,
            nameservers: Vec::new(),
        }
    }
}

impl Default for RetentionSection {
    fn default() -> Self {
        Self {
            events: KeepFor::Time(30 * 24 * HOUR),
            stream_events: KeepFor::Forever,
            dead_letters: KeepFor::Forever,
        }
    }
}

impl Default for AuditSection {
    fn default() -> Self {
        Self { retention: KeepFor::Time(90 * 24 * HOUR) }
    }
}

impl Default for QuotasSection {
    fn default() -> Self {
        Self {
            endpoints: Some(limits::QUOTA_ENDPOINTS_DEFAULT),
            pattern_bytes: Some(limits::QUOTA_PATTERN_BYTES_DEFAULT),
            wildcard_parts: Some(limits::QUOTA_WILDCARD_PARTS_DEFAULT),
            header_bytes: Some(limits::QUOTA_HEADER_BYTES_DEFAULT),
            keys: Some(limits::QUOTA_KEYS_DEFAULT),
            consumers: Some(limits::QUOTA_CONSUMERS_DEFAULT),
            pending_deliveries: Some(limits::QUOTA_PENDING_DELIVERIES_DEFAULT),
            stored_bytes: None,
            events_per_second: None,
            bytes_per_second: None,
            connections_per_key: None,
            reads_per_key: None,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: "info".to_owned() }
    }
}
