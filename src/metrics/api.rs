//! Metrics of the API listener.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::register;

/// Metrics of the API listener.
#[derive(Clone)]
pub(super) struct ApiMetrics {
    pub(super) authentications_refused: IntCounterVec,
    pub(super) connections: IntGauge,
    pub(super) connections_displaced: IntCounter,
    pub(super) waiting: IntGauge,
    pub(super) streams: IntGauge,
    pub(super) consumers_gone: IntCounter,
}

impl ApiMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let refused = Opts::new(
            "balto_authentications_refused_total",
            "Requests with a rejected key: missing, wrong, or from an address with too many wrong keys.",
        );
        let connections = IntGauge::new("balto_api_connections", "Open connections to the API.");
        let displaced = IntCounter::new(
            "balto_api_connections_displaced_total",
            "API connections, idle or slow to read, that were closed at the limit in favour of new ones.",
        );
        let consumers_gone = IntCounter::new(
            "balto_consumers_gone_total",
            "Consumers whose next events were removed by retention.",
        );
        let waiting = IntGauge::new(
            "balto_api_waiting_requests",
            "Requests that wait for a change, such as the next event.",
        );
        let streams = IntGauge::new(
            "balto_api_streams",
            "Streams of events that clients read (GET /v1/feed as text/event-stream).",
        );
        Self {
            waiting: register(registry, waiting),
            streams: register(registry, streams),
            consumers_gone: register(registry, consumers_gone),
            authentications_refused: register(registry, IntCounterVec::new(refused, &["reason"])),
            connections: register(registry, connections),
            connections_displaced: register(registry, displaced),
        }
    }
}
