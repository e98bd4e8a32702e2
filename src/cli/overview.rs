//! `balto stats` and `balto lanes`: an overview of all tenants, or of one.

use clap::Args;

use super::args::{self, Paging, QueryArgs, Window};
use super::output::{Column, Session};

const BUCKETS: &[Column] = &[
    Column("HOUR", &["/start"]),
    Column("EVENTS", &["/events"]),
    Column("ATTEMPTS", &["/attempts"]),
    Column("DELIVERED", &["/delivered"]),
    Column("FAILED", &["/failedAttempts"]),
    Column("DEAD", &["/dead"]),
    Column("CANCELLED", &["/cancelled"]),
];

const LANES: &[Column] = &[
    Column("ENDPOINT", &["/endpointId"]),
    Column("QUEUE", &["/queue"]),
    Column("TENANT", &["/tenant"]),
    Column("REASON", &["/reason"]),
    Column("PENDING", &["/pending"]),
    Column("IN FLIGHT", &["/inFlight"]),
    Column("NEXT DUE", &["/nextDueAt"]),
    Column("UNTIL", &["/until"]),
    Column("CIRCUIT", &["/circuit"]),
];

/// Counts and latencies over all endpoints, or those of a tenant.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  balto stats\n  balto stats --tenant acme --since 6h --hourly")]
pub(crate) struct StatsArgs {
    /// Only of this tenant; `*`: only what belongs to all tenants.
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    window: Window,
    /// Also show each hour.
    #[arg(long)]
    hourly: bool,
}

impl StatsArgs {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let query = QueryArgs::default()
            .with("tenant", self.tenant.clone())
            .with("bucket", self.hourly.then(|| "1h".to_owned()));
        let query = self.window.add_to(query, args::now());
        let answer = session.client.get(&["v1", "stats"], &query.0).await?;
        // Without hours the member is null.
        if self.hourly { session.show_with(&answer, ("buckets", BUCKETS)) } else { session.show(&answer) }
    }
}

/// Lanes of endpoints and queues with pending deliveries, and why they wait.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  balto lanes --oldest-due\n  balto lanes --reason circuitOpen --tenant acme\n  balto lanes --reason noWorker"
)]
pub(crate) struct LanesArgs {
    /// Only of this tenant; `*`: only what belongs to all tenants.
    #[arg(long)]
    tenant: Option<String>,
    /// Only lanes that wait for this reason: notDue, rate, inFlightLimit, circuitOpen, retryAfter,
    /// paused, disabled, ordering, globalLimit, addressLimit, brokerBlocked, storeFull, handshake,
    /// noWorker or leaseLimit.
    #[arg(long)]
    reason: Option<String>,
    /// The lane whose next delivery was due first comes first.
    #[arg(long)]
    oldest_due: bool,
    #[command(flatten)]
    paging: Paging,
}

impl LanesArgs {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let query = QueryArgs::default()
            .with("tenant", self.tenant.clone())
            .with("reason", self.reason.clone())
            .with("sort", self.oldest_due.then(|| "oldestDue".to_owned()));
        session.list(&["v1", "lanes"], query, &self.paging, LANES).await
    }
}
