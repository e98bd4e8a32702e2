//! The settings of each part, from the configuration.
//!
//! Owns: loading the configuration and the files that it names. No other part of the daemon knows
//! configuration keys.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::admin_key::admin_key;
use super::{ServeOptions, descriptors};
use crate::api::http::auth::AdminKeyHash;
use crate::api::http::browser::TrustedSite;
use crate::api::{self, ApiConfig, EndpointDefaults};
use crate::config::{Config, Overrides};
use crate::context::Settings;
use crate::courier::guard::EgressPolicy;
use crate::courier::{CourierSettings, Proxy, SystemResolver, tls};
use crate::delivery::retention::Keep;
use crate::domain::{PolicyDefaults, Quota, Quotas};
use crate::rules::handshake::AskingPolicy;
use crate::rules::verdict::RefusedStatuses;

/// The configuration of file, environment and flags.
pub(super) fn load(options: &ServeOptions) -> anyhow::Result<Config> {
    // All variables of the configuration are UTF-8.
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let flags = Overrides {
        data_dir: options.data_dir.clone(),
        dev: options.dev,
        dev_listen_anywhere: options.dev_listen_anywhere,
    };
    Ok(Config::load(options.config.as_deref(), env, flags)?)
}

/// The configuration, with limits lowered to the available file descriptors. Returns a warning
/// about lowered limits.
pub(super) fn load_to_fit(
    options: &ServeOptions,
    descriptors: usize,
) -> anyhow::Result<(Config, Option<String>)> {
    let mut config = load(options)?;
    let lowered = descriptors::fit(&mut config, descriptors).map_err(anyhow::Error::msg)?;
    Ok((config, lowered))
}

fn policy(options: &ServeOptions, config: &Config) -> EgressPolicy {
    let policy = EgressPolicy {
        allow_http: config.egress.allow_http,
        allow_networks: config.egress.allow_networks.clone(),
        deny_networks: config.egress.deny_networks.clone(),
        allow_ports: config.egress.allow_ports.iter().map(|range| (range.first, range.last)).collect(),
    };
    if options.dev { policy.dev() } else { policy }
}

/// The courier's settings. Reads the files of trusted authorities and name servers.
pub(super) fn courier_settings(options: &ServeOptions, config: &Config) -> anyhow::Result<CourierSettings> {
    let egress = &config.egress;
    let roots =
        tls::roots(egress.ca_file.as_deref()).map_err(|error| anyhow::anyhow!("egress.ca_file: {error}"))?;
    Ok(CourierSettings {
        policy: policy(options, config),
        connect_timeout: config.delivery.connect_timeout,
        address_max_in_flight: config.egress.address_max_in_flight,
        roots: Arc::new(roots),
        proxy: egress.proxy.as_ref().and_then(|proxy| Proxy::new(proxy.expose())),
        resolver: Arc::new(SystemResolver::new(&egress.nameservers).context("DNS cannot be set up")?),
    })
}

/// Retention times. An event stays at least as long as its idempotency key.
pub(super) fn keep(config: &Config) -> Keep {
    let at_least = |keep: Option<Duration>| keep.map(|keep| keep.max(config.ingest.idempotency_ttl));
    Keep {
        events: at_least(config.retention.events.duration()),
        stream_events: at_least(config.retention.stream_events.duration()),
        dead_letters: config.retention.dead_letters.duration(),
        audit: config.audit.retention.duration(),
    }
}

/// Settings of the context.
#[must_use]
pub fn settings(config: &Config) -> Settings {
    Settings {
        max_in_flight: config.delivery.max_in_flight,
        host_max_in_flight: config.egress.host_max_in_flight,
        disable_after: config.delivery.disable_after,
        refused_statuses: RefusedStatuses(config.delivery.refused_statuses.clone()),
        breaker_failures: config.delivery.breaker_failures,
        breaker_probe_initial: config.delivery.breaker_probe_initial,
        breaker_probe_max: config.delivery.breaker_probe_max,
        handshake_timeout: config.handshake.timeout,
        asking: AskingPolicy {
            initial: config.handshake.retry_initial,
            max_interval: config.handshake.retry_max_interval,
        },
        defaults: policy_defaults(config),
        quotas: quotas(config),
        callback_base: config
            .public_url()
            .map(|url| api::v1::handshakes::handlers::callback_base(&url).into()),
    }
}

fn quotas(config: &Config) -> Quotas {
    let limit = |quotas: Quotas, quota| quotas.with(quota, config.quotas.limit(quota));
    Quota::ALL.into_iter().fold(Quotas::default(), limit)
}

fn policy_defaults(config: &Config) -> PolicyDefaults {
    PolicyDefaults {
        max_in_flight: config.delivery.endpoint_max_in_flight,
        timeout: config.delivery.timeout,
        retry: config.retry.policy(),
    }
}

/// The API's settings. Without `--dev` and a configured admin key the first start writes a key.
///
/// # Errors
/// When the admin key cannot be read or written.
pub fn api_config(options: &ServeOptions, config: &Config) -> anyhow::Result<ApiConfig> {
    let admin_key = if options.dev { None } else { Some(AdminKeyHash::new(admin_key(config)?.expose())) };
    Ok(ApiConfig {
        max_event_bytes: config.ingest.max_event_bytes,
        idempotency_ttl: config.ingest.idempotency_ttl,
        types_required: config.types.required,
        defaults: EndpointDefaults {
            policy: policy_defaults(config),
            origin: config.handshake.origin.clone(),
            handshake_required: config.handshake.required,
            callbacks: config.public_url().is_some(),
        },
        body_timeout: config.server.body_timeout,
        body_rate_min: config.server.min_body_rate,
        max_body_bytes: config.server.max_body_bytes,
        max_streams: config.server.max_streams.min(config.server.max_connections * 3 / 4),
        admin_key,
        keyless: trusted_site(options, config, config.server.tls_certificate_file.is_some()),
    })
}

/// The browser rules of the ops listener, which never speaks TLS.
pub(super) fn ops_site(options: &ServeOptions, config: &Config) -> Option<Arc<TrustedSite>> {
    trusted_site(options, config, false).map(Arc::new)
}

/// `None` without `--dev`.
fn trusted_site(options: &ServeOptions, config: &Config, speaks_tls: bool) -> Option<TrustedSite> {
    let public_url = config.public_url();
    options.dev.then(|| TrustedSite::new(speaks_tls, public_url.as_deref(), options.dev_listen_anywhere))
}
