//! Conversion of settings and endpoints into lane configuration.

use crate::context::Context;
use crate::domain::{Endpoint, EndpointStatus, PolicyDefaults, RetryPolicy};
use crate::lanes;
use crate::lanes::queue::QueuePolicy;
use crate::lanes::{Gate, LanePolicy};
use crate::rules::handshake;

pub(super) fn config(context: &Context) -> lanes::LanesConfig {
    let settings = context.settings();
    lanes::LanesConfig {
        max_in_flight: settings.max_in_flight,
        host_max_in_flight: settings.host_max_in_flight,
        breaker: lanes::BreakerConfig {
            failures_to_open: settings.breaker_failures,
            probe_initial: settings.breaker_probe_initial,
            probe_max: settings.breaker_probe_max,
        },
    }
}

pub(super) fn policy(endpoint: &Endpoint, defaults: &PolicyDefaults) -> LanePolicy {
    LanePolicy {
        rate: handshake::rate(endpoint),
        max_in_flight: endpoint.max_in_flight(defaults),
        gate: gate(endpoint),
        tenant: endpoint.tenant.shared(),
        host: endpoint.destination().into(),
        revision: endpoint.revision,
    }
}

pub(super) fn queue_policy(queue: &Endpoint, context: &Context) -> QueuePolicy {
    let defaults = &context.settings().defaults;
    let (deliveries_max, age_max) = match queue.retry(defaults) {
        RetryPolicy::Exponential { max_attempts, max_age, .. } => (*max_attempts, Some(*max_age)),
        RetryPolicy::Schedule(delays) => (u32::try_from(delays.len()).unwrap_or(u32::MAX), None),
    };
    QueuePolicy {
        gate: gate(queue),
        leased_max: queue.max_in_flight(defaults) as usize,
        deliveries_max,
        age_max,
    }
}

/// Whether the endpoint may receive deliveries, and why not.
pub(crate) fn gate(endpoint: &Endpoint) -> Gate {
    match endpoint.status {
        EndpointStatus::Active if !handshake::allows(endpoint) => Gate::Handshake,
        EndpointStatus::Active => Gate::Open,
        EndpointStatus::Paused => Gate::Paused,
        EndpointStatus::Disabled { .. } => Gate::Disabled,
    }
}
