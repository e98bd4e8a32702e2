//! Prometheus metrics of the daemon.
//!
//! Owns the registry. Names have one prefix and base units. No label's values grow with the number
//! of tenants or endpoints. `docs/reference/metrics.md` is generated from the help texts.

use std::time::Duration;

use prometheus::{
    Counter, Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

mod api;
mod queues;
mod sources;

use api::ApiMetrics;
use queues::QueueMetrics;
use sources::SourceMetrics;

use crate::domain::closed_list::closed_list;
use crate::domain::{
    DeadReason, ErrorClass, JobKind, LeaseOutcome, Quota, SourceOutcome, SourceState, Timestamp,
};
use crate::lanes::queue::QueueReport;
use crate::lanes::{LanesSummary, WaitReason};

/// The exposition format that Prometheus 3 accepts.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const LATENCY_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const COMMIT_BUCKETS: [f64; 10] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 1.0];
const WAIT_BUCKETS: [f64; 10] = [0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 21_600.0, 86_400.0];
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 8192.0];

/// Problem codes that an event post can return.
const REFUSALS: [&str; 19] = [
    "disk_full",
    "forbidden",
    "idempotency_mismatch",
    "loop_detected",
    "malformed",
    "overloaded",
    "payload_too_large",
    "quota_exceeded",
    "request_in_flight",
    "request_timeout",
    "too_many_deliveries",
    "too_many_wrong_keys",
    "unauthorized",
    "unavailable",
    "unsupported_content_encoding",
    "unsupported_media_type",
    "untrusted_origin",
    "validation_failed",
    "version_conflict",
];

closed_list! {
    /// Work in the background that begins again when it panics.
    pub enum BackgroundTask {
        Retention => "retention",
        /// The content of erased events leaves the disk.
        Erasure => "erasure",
        /// A new state is built from the journal.
        Rebuild => "rebuild",
        /// Endpoint secrets are sealed again, under the first key.
        Resealing => "resealing",
        /// A lane's next deliveries are read.
        Refill => "refill",
        /// The deliveries of a deleted endpoint end.
        Sweep => "sweep",
        /// Deliveries are put into the order of their endpoint.
        Reorder => "reorder",
        /// Deliveries that wait at disabled endpoints for too long end.
        Expiry => "expiry",
        /// A failing endpoint is disabled.
        Disabling => "disabling",
        /// Operator events about endpoints.
        OperatorEvent => "operatorEvent",
        /// Steps of bulk work.
        Jobs => "jobs",
        /// The hours in which API keys were used are recorded.
        KeyUses => "keyUses",
        Gauges => "gauges",
    }
}

#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    ready: IntGauge,
    accepted: IntCounter,
    duplicates: IntCounter,
    deprecated: IntCounter,
    refused: IntCounterVec,
    quota_refusals: IntCounterVec,
    api: ApiMetrics,
    commit_duration: Histogram,
    commit_records: Histogram,
    checkpoint_duration: Histogram,
    background_panics: IntCounterVec,
    deliveries: IntCounterVec,
    /// The `delivered` series of `deliveries`, looked up once because it changes most often.
    deliveries_delivered: IntCounter,
    dead: IntCounterVec,
    attempts: IntCounterVec,
    /// The `2xx` series of `attempts`, looked up once as well.
    attempts_succeeded: IntCounter,
    attempt_duration: Histogram,
    first_attempt: Histogram,
    delivered: Histogram,
    retry_wait: Histogram,
    rate_wait: Counter,
    address_limit_hits: IntCounter,
    handshakes: IntCounterVec,
    removed_events: IntCounter,
    erased_events: IntCounter,
    pending_erasures: IntGauge,
    removed_bytes: IntCounter,
    pending: IntGauge,
    in_flight: IntGauge,
    dead_letters: IntGauge,
    oldest_due: IntGauge,
    lanes: IntGaugeVec,
    projection_lag: IntGauge,
    store_bytes: IntGaugeVec,
    disk_free: IntGauge,
    endpoints_to_reseal: IntGauge,
    log_lines_dropped: IntCounter,
    jobs_running: IntGauge,
    job_steps: IntCounterVec,
    queues: QueueMetrics,
    sources: SourceMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// # Panics
    /// Never: the names are constants, and each is registered once.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "a flat list of metrics")]
    pub fn new() -> Self {
        let registry = Registry::new();
        let build = IntGaugeVec::new(Opts::new("balto_build_info", "Version of the daemon."), &["version"]);
        let build = register(&registry, build);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).expect("registered once");
        let counter = |name, help| register(&registry, IntCounter::new(name, help));
        let counters = |name, help, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name, help| register(&registry, IntGauge::new(name, help));
        let gauges = |name, help, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let histogram = |name, help, buckets: &[f64]| {
            register(
                &registry,
                Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())),
            )
        };
        let deliveries =
            counters("balto_deliveries_total", "Completed deliveries, by outcome.", &["outcome"]);
        let attempts = counters(
            "balto_attempts_total",
            "Attempts, by status class and error class.",
            &["status", "error"],
        );
        let metrics = Self {
            ready: gauge("balto_ready", "1 while the daemon is ready, else 0; /readyz returns the reason."),
            accepted: counter("balto_events_accepted_total", "Events accepted and durable."),
            duplicates: counter(
                "balto_events_duplicate_total",
                "Events posted again and answered with the original event.",
            ),
            deprecated: counter(
                "balto_events_deprecated_total",
                "Events accepted in a deprecated version of their type.",
            ),
            refused: counters(
                "balto_events_refused_total",
                "Rejected event posts, and rejected events within batches, by problem code.",
                &["reason"],
            ),
            quota_refusals: counters(
                "balto_quota_refusals_total",
                "Refused requests, and refused events within batches, that exceed a quota of their tenant.",
                &["quota"],
            ),
            api: ApiMetrics::new(&registry),
            queues: QueueMetrics::new(&registry),
            sources: SourceMetrics::new(&registry),
            commit_duration: histogram(
                "balto_commit_duration_seconds",
                "Duration of a group commit, including fdatasync.",
                &COMMIT_BUCKETS,
            ),
            commit_records: histogram("balto_commit_records", "Records in a group commit.", &BATCH_BUCKETS),
            checkpoint_duration: histogram(
                "balto_checkpoint_duration_seconds",
                "Duration of a checkpoint: writing changed state rows to disk.",
                &COMMIT_BUCKETS,
            ),
            deliveries_delivered: deliveries.with_label_values(&["delivered"]),
            deliveries,
            dead: counters(
                "balto_deliveries_dead_total",
                "Dead-lettered deliveries, by reason.",
                &["reason"],
            ),
            attempts_succeeded: attempts.with_label_values(&["2xx", "none"]),
            attempts,
            attempt_duration: histogram(
                "balto_attempt_duration_seconds",
                "Duration of an attempt.",
                &LATENCY_BUCKETS,
            ),
            first_attempt: histogram(
                "balto_accept_to_first_attempt_seconds",
                "Time from acceptance, or deliverAt, to the start of the first attempt.",
                &LATENCY_BUCKETS,
            ),
            delivered: histogram(
                "balto_accept_to_delivered_seconds",
                "Time from acceptance, or deliverAt, to delivery; excludes replayed, manually retried and redriven deliveries.",
                &LATENCY_BUCKETS,
            ),
            retry_wait: histogram(
                "balto_retry_wait_seconds",
                "Time from a failed attempt to the due time of the next one.",
                &WAIT_BUCKETS,
            ),
            rate_wait: register(
                &registry,
                Counter::new(
                    "balto_rate_wait_seconds_total",
                    "Time that lanes waited for their endpoint's rate.",
                ),
            ),
            address_limit_hits: counter(
                "balto_address_limit_total",
                "Requests postponed because their address was at its limit.",
            ),
            handshakes: counters("balto_handshakes_total", "Endpoint handshakes, by outcome.", &["outcome"]),
            background_panics: counters(
                "balto_background_panics_total",
                "Panics of background tasks, each of which began again.",
                &["task"],
            ),
            jobs_running: gauge("balto_jobs_running", "Jobs that run: bulk work with further steps."),
            job_steps: counters("balto_job_steps_total", "Steps of jobs, of one commit each.", &["kind"]),
            erased_events: counter("balto_events_erased_total", "Events whose content was erased."),
            pending_erasures: gauge(
                "balto_erasures_pending",
                "Erased events whose content is still on the disk.",
            ),
            removed_events: counter("balto_retention_events_total", "Events removed by retention."),
            removed_bytes: counter("balto_retention_bytes_total", "Journal bytes removed by retention."),
            pending: gauge("balto_deliveries_pending", "Pending deliveries, including those in flight."),
            in_flight: gauge("balto_deliveries_in_flight", "Attempts in flight."),
            dead_letters: gauge("balto_dead_letters", "Dead letters."),
            oldest_due: gauge(
                "balto_oldest_due_timestamp_seconds",
                "Due time of the oldest overdue delivery, including those blocked by their ordering queue; 0 without one.",
            ),
            lanes: gauges("balto_lanes", "Waiting lanes of endpoints and queues, by reason.", &["reason"]),
            projection_lag: gauge(
                "balto_projection_lag_records",
                "Journal records not yet applied to the state.",
            ),
            store_bytes: gauges("balto_store_bytes", "Bytes on disk, by part.", &["part"]),
            endpoints_to_reseal: gauge(
                "balto_endpoints_to_reseal",
                "Endpoints and sources whose secrets are not yet encrypted under the first key.",
            ),
            disk_free: gauge("balto_disk_free_bytes", "Free bytes on the data directory's file system."),
            log_lines_dropped: counter(
                "balto_log_lines_dropped_total",
                "Log lines dropped because standard error was too slow.",
            ),
            registry,
        };
        metrics.create_series();
        metrics
    }

    /// Creates every series at zero. A counter whose first sample is already above zero shows no
    /// increase in `rate()`.
    fn create_series(&self) {
        for reason in DeadReason::ALL {
            self.dead.with_label_values(&[reason.as_str()]);
        }
        for outcome in ["dead", "cancelled"] {
            self.deliveries.with_label_values(&[outcome]);
        }
        for class in ErrorClass::ALL {
            let statuses: &[_] = if class == ErrorClass::Status { &["3xx", "4xx", "5xx"] } else { &["none"] };
            for status in statuses {
                self.attempts.with_label_values(&[status, class.as_str()]);
            }
        }
        for task in BackgroundTask::ALL {
            self.background_panics.with_label_values(&[task.as_str()]);
        }
        for kind in JobKind::ALL {
            self.job_steps.with_label_values(&[kind.as_str()]);
        }
        for reason in REFUSALS {
            self.refused.with_label_values(&[reason]);
        }
        for quota in Quota::ALL {
            self.quota_refusals.with_label_values(&[quota.as_str()]);
        }
        for reason in ["missing", "wrong", "expired", "tooMany", "untrustedOrigin"] {
            self.api.authentications_refused.with_label_values(&[reason]);
        }
        for outcome in ["agreed", "refused"] {
            self.handshakes.with_label_values(&[outcome]);
        }
        for reason in WaitReason::ALL {
            self.lanes.with_label_values(&[reason.as_str()]);
        }
        for part in ["journal", "state"] {
            self.store_bytes.with_label_values(&[part]);
        }
    }

    /// Encodes all metrics in the text exposition format.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut bytes) {
            tracing::error!(%error, "metrics encoding failed");
        }
        bytes
    }

    /// The counter of dropped log lines, which the log itself increments.
    #[must_use]
    pub fn log_lines_dropped(&self) -> IntCounter {
        self.log_lines_dropped.clone()
    }

    /// Sets the number of endpoints with secrets that are not encrypted under the first key.
    pub fn secrets_to_reseal(&self, count: u64) {
        self.endpoints_to_reseal.set(signed(count));
    }

    /// Adds the events and bytes that one retention pass removed.
    pub fn retention_removed(&self, events: u64, bytes: u64) {
        self.removed_events.inc_by(events);
        self.removed_bytes.inc_by(bytes);
    }

    /// Counts events whose content was erased.
    pub fn erased(&self, events: u64) {
        self.erased_events.inc_by(events);
        self.pending_erasures.add(signed(events));
    }

    /// Sets the number of erased events whose content is still on the disk.
    pub fn set_pending_erasures(&self, events: u64) {
        self.pending_erasures.set(signed(events));
    }

    /// Sets the gauges that are read at scrape time only.
    pub fn on_scrape(&self, ready: bool, disk_free: u64) {
        self.ready.set(i64::from(ready));
        self.disk_free.set(signed(disk_free));
    }

    pub fn accepted(&self) {
        self.accepted.inc();
    }

    pub fn deprecated(&self) {
        self.deprecated.inc();
    }

    pub fn source_messages(&self, outcome: SourceOutcome, count: u64) {
        self.sources.count(outcome, count);
    }

    pub fn source_states(&self, states: &[SourceState]) {
        self.sources.set_states(states);
    }

    pub fn duplicate(&self) {
        self.duplicates.inc();
    }

    pub fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    pub fn quota_refused(&self, quota: Quota) {
        self.quota_refusals.with_label_values(&[quota.as_str()]).inc();
    }

    /// `reason` is `missing`, `wrong`, `expired` or `tooMany` for a key, or `untrustedOrigin`.
    pub fn authentication_refused(&self, reason: &str) {
        self.api.authentications_refused.with_label_values(&[reason]).inc();
    }

    /// Sets the number of open connections and adds those evicted since the last call.
    pub fn connections(&self, open: usize, evicted: u64) {
        self.api.connections.set(signed(open as u64));
        self.api.connections_displaced.inc_by(evicted);
    }

    /// A consumer lost events to retention.
    pub fn consumer_gone(&self) {
        self.api.consumers_gone.inc();
    }

    pub fn waiting(&self, requests: usize) {
        self.api.waiting.set(signed(requests as u64));
    }

    pub fn streams(&self, streams: usize) {
        self.api.streams.set(signed(streams as u64));
    }

    pub fn committed(&self, records: usize, duration: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "a count of records")]
        self.commit_records.observe(records as f64);
        self.commit_duration.observe(duration.as_secs_f64());
    }

    pub fn checkpointed(&self, duration: Duration) {
        self.checkpoint_duration.observe(duration.as_secs_f64());
    }

    /// Counts an attempt. `error` is `None` exactly for a 2xx reply.
    pub fn attempt(&self, status: Option<u16>, error: Option<ErrorClass>, duration: Duration) {
        self.attempt_duration.observe(duration.as_secs_f64());
        if error.is_none() {
            return self.attempts_succeeded.inc();
        }
        let status = match status {
            Some(100..200) => "1xx",
            Some(200..300) => "2xx",
            Some(300..400) => "3xx",
            Some(400..500) => "4xx",
            Some(_) => "5xx",
            None => "none",
        };
        self.attempts.with_label_values(&[status, error.map_or("none", ErrorClass::as_str)]).inc();
    }

    pub fn first_attempt(&self, waited: Duration) {
        self.first_attempt.observe(waited.as_secs_f64());
    }

    /// Counts a successful delivery. `latency` is `None` for a replayed, manually retried or
    /// redriven delivery, whose time since acceptance is meaningless.
    pub fn delivered(&self, latency: Option<Duration>) {
        self.deliveries_delivered.inc();
        if let Some(latency) = latency {
            self.delivered.observe(latency.as_secs_f64());
        }
    }

    pub fn dead_lettered(&self, reason: DeadReason, count: u64) {
        self.deliveries.with_label_values(&["dead"]).inc_by(count);
        self.dead.with_label_values(&[reason.as_str()]).inc_by(count);
    }

    /// Counts a lease that ended.
    pub fn lease_ended(&self, outcome: LeaseOutcome, duration: Duration) {
        self.queues.leases.with_label_values(&[outcome.as_str()]).inc();
        self.queues.lease_time.observe(duration.as_secs_f64());
    }

    /// Sets the gauges of queues from the reports of their lanes.
    pub fn queues(&self, reports: impl Iterator<Item = QueueReport>, now: Timestamp) {
        let mut sum = QueueReport::default();
        for report in reports {
            sum.leased += report.leased;
            sum.returned += report.returned;
            sum.window += report.window;
            sum.waiters += report.waiters;
            let due = report.oldest_due().filter(|due| *due <= now);
            sum.next_due = sum.next_due.into_iter().chain(due).min();
        }
        self.queues.messages.with_label_values(&["leased"]).set(signed(sum.leased as u64));
        let waiting = (sum.window + sum.returned) as u64;
        self.queues.messages.with_label_values(&["waiting"]).set(signed(waiting));
        self.queues.waiters.set(signed(sum.waiters as u64));
        self.queues.oldest_due.set(sum.next_due.map_or(0, |due| signed(due.seconds())));
    }

    pub fn cancelled(&self, count: u64) {
        self.deliveries.with_label_values(&["cancelled"]).inc_by(count);
    }

    pub fn retry(&self, wait: Duration) {
        self.retry_wait.observe(wait.as_secs_f64());
    }

    pub fn jobs_running(&self, count: usize) {
        self.jobs_running.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A step of a job is committed.
    pub fn job_step(&self, kind: JobKind) {
        self.job_steps.with_label_values(&[kind.as_str()]).inc();
    }

    pub fn task_panicked(&self, task: BackgroundTask) {
        self.background_panics.with_label_values(&[task.as_str()]).inc();
    }

    pub fn rate_waited(&self, time: Duration) {
        self.rate_wait.inc_by(time.as_secs_f64());
    }

    /// A request was postponed, because its address was at its limit.
    pub fn address_limit_reached(&self) {
        self.address_limit_hits.inc();
    }

    /// Counts a handshake; `outcome` is `agreed` or `refused`.
    pub fn handshake(&self, outcome: &str) {
        self.handshakes.with_label_values(&[outcome]).inc();
    }

    pub fn lanes(&self, summary: &LanesSummary) {
        for (reason, count) in WaitReason::ALL.iter().zip(summary.waiting) {
            self.lanes.with_label_values(&[reason.as_str()]).set(signed(count));
        }
        self.in_flight.set(signed(summary.in_flight as u64));
        self.oldest_due.set(signed(summary.oldest_due.map_or(0, crate::domain::Timestamp::seconds)));
    }

    /// Sets the storage gauges: sizes in bytes, lag in records.
    pub fn store(&self, pending: u64, dead: u64, journal: u64, state: u64, lag: u64) {
        self.pending.set(signed(pending));
        self.dead_letters.set(signed(dead));
        self.store_bytes.with_label_values(&["journal"]).set(signed(journal));
        self.store_bytes.with_label_values(&["state"]).set(signed(state));
        self.projection_lag.set(signed(lag));
    }
}

fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("the name is legal");
    registry.register(Box::new(metric.clone())).expect("registered once");
    metric
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
