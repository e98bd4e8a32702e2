//! Metrics of queues.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::register;
use crate::domain::LeaseOutcome;

const LEASE_BUCKETS: [f64; 12] =
    [0.001, 0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 43_200.0];

/// Metrics of queues.
#[derive(Clone)]
pub(super) struct QueueMetrics {
    pub(super) messages: IntGaugeVec,
    pub(super) leases: IntCounterVec,
    pub(super) lease_time: Histogram,
    pub(super) waiters: IntGauge,
    pub(super) oldest_due: IntGauge,
}

impl QueueMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let messages = Opts::new("balto_queue_messages", "Messages of queues: waiting in memory or leased.");
        let leases = Opts::new(
            "balto_queue_leases_total",
            "Leases by their end. One that runs out counts when the message is leased again or ends.",
        );
        let lease_time = HistogramOpts::new("balto_queue_lease_seconds", "Time from a lease to its end.");
        let waiters = IntGauge::new("balto_queue_waiters", "Receives that wait for messages.");
        let oldest_due = IntGauge::new(
            "balto_queue_oldest_due_timestamp_seconds",
            "Due time of the oldest message that is due and not leased; 0 without one.",
        );
        let messages = register(registry, IntGaugeVec::new(messages, &["state"]));
        let leases = register(registry, IntCounterVec::new(leases, &["outcome"]));
        for state in ["waiting", "leased"] {
            messages.with_label_values(&[state]).set(0);
        }
        for outcome in LeaseOutcome::ALL.iter().filter(|outcome| **outcome != LeaseOutcome::Leased) {
            leases.with_label_values(&[outcome.as_str()]).inc_by(0);
        }
        Self {
            messages,
            leases,
            lease_time: register(registry, Histogram::with_opts(lease_time.buckets(LEASE_BUCKETS.to_vec()))),
            waiters: register(registry, waiters),
            oldest_due: register(registry, oldest_due),
        }
    }
}
