//! The table of all configuration keys, for the file, the environment, reloads and the house tests.
//!
//! Owns: names and bounds of the keys, and which of them a reload can change. Must never read a
//! file. Invariant: a field of [`Config`](super::Config) without a line here cannot be set.

use std::time::Duration;

use super::Config;
use super::value::Value;
use crate::domain::Quota;
use crate::limits;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
const MILLIS_100: Duration = Duration::from_millis(100);

/// When a changed value takes effect: on SIGHUP, or after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Reload,
    Restart,
}

/// One key of the configuration.
pub struct ConfigKey {
    /// `section.key`.
    pub name: &'static str,
    pub change: Change,
    pub(super) set: fn(&mut Config, &Value) -> Result<(), String>,
    pub(super) same: fn(&Config, &Config) -> bool,
    /// Takes the value of the second configuration.
    pub(super) copy: fn(&mut Config, &Config),
}

impl ConfigKey {
    /// The environment variable that overrides the file: `BALTO__SECTION__KEY`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{}{}", super::ENVIRONMENT_PREFIX, self.name.replace('.', "__").to_ascii_uppercase())
    }
}

macro_rules! key {
    ($section:ident . $field:ident, $change:ident, $read:expr) => {
        ConfigKey {
            name: concat!(stringify!($section), ".", stringify!($field)),
            change: Change::$change,
            set: |config, value| {
                let read: fn(&Value) -> Result<_, String> = $read;
                config.$section.$field = read(value)?;
                Ok(())
            },
            same: |one, other| one.$section.$field == other.$section.$field,
            copy: |config, from| config.$section.$field = from.$section.$field.clone(),
        }
    };
}

/// All keys, in the order of `config/balto.toml`.
pub const KEYS: &[ConfigKey] = &[
    key!(server.api_listen, Restart, Value::address),
    key!(server.ops_listen, Restart, Value::address),
    key!(server.public_url, Reload, |value| value.base_url().map(Some)),
    key!(server.tls_certificate_file, Reload, |value| value.path().map(Some)),
    key!(server.tls_key_file, Reload, |value| value.path().map(Some)),
    key!(server.max_connections, Restart, |value| value.count(16, 1_000_000)),
    key!(server.max_connections_per_address, Restart, |value| value.count(8, 1_000_000)),
    key!(server.unlimited_networks, Restart, Value::networks),
    key!(server.header_timeout, Restart, |value| value.duration(SECOND, HOUR)),
    key!(server.body_timeout, Restart, |value| value.duration(SECOND, HOUR)),
    key!(server.min_body_rate, Restart, |value| value.size(0, 1 << 30)),
    key!(server.answer_timeout, Restart, |value| value.duration(SECOND, HOUR)),
    key!(server.max_streams, Reload, |value| value.count(1, 1_000_000)),
    key!(server.max_body_bytes, Restart, |value| value.size(2 * limits::BATCH_BYTES_MAX, 64 << 30)),
    key!(auth.admin_key, Restart, |value| value.admin_key().map(Some)),
    key!(auth.admin_key_file, Restart, |value| value.path().map(Some)),
    key!(secrets.key, Restart, Value::secrets_keys),
    key!(secrets.key_file, Restart, |value| value.path().map(Some)),
    key!(store.kind, Restart, Value::store_kind),
    key!(store.path, Restart, Value::path),
    key!(store.reserve_bytes, Restart, |value| value.size(0, 1 << 40)),
    key!(ingest.max_event_bytes, Restart, |value| value.size(64, limits::EVENT_BYTES_MAX)),
    key!(ingest.idempotency_ttl, Restart, |value| value.duration(SECOND, 30 * DAY)),
    key!(ingest.admission_bytes, Restart, |value| value.size(2 * limits::BATCH_BYTES_MAX, 16 << 30)),
    key!(ingest.admission_events, Restart, |value| value.count(limits::BATCH_EVENTS_MAX, 10_000_000)),
    key!(types.required, Reload, Value::switch),
    key!(delivery.timeout, Reload, |value| value.duration(MILLIS_100, MINUTE)),
    key!(delivery.connect_timeout, Restart, |value| value.duration(MILLIS_100, MINUTE)),
    key!(delivery.max_in_flight, Restart, |value| value.count(1, 65_536)),
    key!(delivery.endpoint_max_in_flight, Reload, |value| value.small(1, limits::IN_FLIGHT_PER_ENDPOINT_MAX)),
    key!(delivery.drain_timeout, Restart, |value| value.duration(Duration::ZERO, HOUR)),
    key!(delivery.disable_after, Reload, |value| value.duration(SECOND, YEAR)),
    key!(delivery.refused_statuses, Reload, Value::statuses),
    key!(delivery.breaker_failures, Restart, |value| value.small(1, 1_000)),
    key!(delivery.breaker_probe_initial, Restart, |value| value.duration(MILLIS_100, HOUR)),
    key!(delivery.breaker_probe_max, Restart, |value| value.duration(MILLIS_100, DAY)),
    key!(retry.initial, Reload, |value| value.duration(Duration::from_millis(1), 30 * DAY)),
    key!(retry.multiplier, Reload, |value| value.number(1.0, 100.0)),
    key!(retry.max_interval, Reload, |value| value.duration(Duration::from_millis(1), 30 * DAY)),
    key!(retry.max_attempts, Reload, |value| value.small(1, limits::ATTEMPTS_MAX)),
    key!(retry.max_age, Reload, |value| value.duration(SECOND, YEAR)),
    key!(retry.jitter, Reload, |value| value.number(0.0, 1.0)),
    key!(egress.allow_http, Reload, Value::switch),
    key!(egress.allow_networks, Reload, Value::networks),
    key!(egress.deny_networks, Reload, Value::networks),
    key!(egress.allow_ports, Reload, Value::ports),
    key!(egress.host_max_in_flight, Reload, |value| value.count(0, 65_536)),
    key!(egress.address_max_in_flight, Reload, |value| value.count(0, 65_536)),
    key!(egress.ca_file, Reload, |value| value.path().map(Some)),
    key!(egress.proxy, Reload, |value| value.proxy().map(Some)),
    key!(egress.nameservers, Reload, Value::nameservers),
    key!(handshake.origin, Reload, |value| value.origin().map(Some)),
    key!(handshake.required, Reload, Value::switch),
    key!(handshake.timeout, Reload, |value| value.duration(MILLIS_100, MINUTE)),
    key!(handshake.retry_initial, Reload, |value| value.duration(MILLIS_100, DAY)),
    key!(handshake.retry_max_interval, Reload, |value| value.duration(MILLIS_100, 30 * DAY)),
    key!(retention.events, Restart, |value| value.keep(MINUTE, 100 * YEAR)),
    key!(retention.stream_events, Restart, |value| value.keep(MINUTE, 100 * YEAR)),
    key!(retention.dead_letters, Restart, |value| value.keep(MINUTE, 100 * YEAR)),
    key!(audit.retention, Restart, |value| value.keep(MINUTE, 100 * YEAR)),
    key!(quotas.endpoints, Reload, |value| value.quota(Quota::Endpoints)),
    key!(quotas.pattern_bytes, Reload, |value| value.quota_bytes(Quota::PatternBytes)),
    key!(quotas.wildcard_parts, Reload, |value| value.quota(Quota::WildcardParts)),
    key!(quotas.header_bytes, Reload, |value| value.quota_bytes(Quota::HeaderBytes)),
    key!(quotas.keys, Reload, |value| value.quota(Quota::Keys)),
    key!(quotas.consumers, Reload, |value| value.quota(Quota::Consumers)),
    key!(quotas.pending_deliveries, Reload, |value| value.quota(Quota::PendingDeliveries)),
    key!(quotas.stored_bytes, Reload, |value| value.quota_bytes(Quota::StoredBytes)),
    key!(quotas.events_per_second, Reload, |value| value.quota(Quota::EventsPerSecond)),
    key!(quotas.bytes_per_second, Reload, |value| value.quota_bytes(Quota::BytesPerSecond)),
    key!(quotas.connections_per_key, Reload, |value| value.quota(Quota::ConnectionsPerKey)),
    key!(quotas.reads_per_key, Reload, |value| value.quota(Quota::ReadsPerKey)),
    key!(log.format, Restart, Value::log_format),
    key!(log.level, Restart, Value::log_level),
];

/// The key with this name.
pub(super) fn find(name: &str) -> Option<&'static ConfigKey> {
    KEYS.iter().find(|key| key.name == name)
}
