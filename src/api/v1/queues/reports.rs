//! Leases, statistics, lane, purge and replay of a queue.

use schemars::JsonSchema;
use serde::Deserialize;

use super::handlers::{find, find_writable};
use super::model::{LeaseBody, QueueLaneBody, QueueStatsBody};
use crate::api::Call;
use crate::api::http::problem::Problem;
use crate::api::http::request::{Optional, Required};
use crate::api::http::response::{Accepted, Json};
use crate::api::text::Time;
use crate::api::v1::PercentilesBody;
use crate::api::v1::endpoints::reports::{EndpointReplayInput, replay_to, stats_window};
use crate::api::v1::endpoints::selection::{FilterTrialBody, FilterTrialInput, try_filter};
use crate::api::v1::jobs::handlers::start;
use crate::api::v1::jobs::model::StartedBody;
use crate::api::v1::lists::{self, List, ListBody};
use crate::domain::{DeliveryId, Endpoint, JobKind, JobSelection, Position};
use crate::service::jobs::NewJob;
use crate::service::queues::LeaseView;
use crate::service::{Endpoints, Queues};

fn name(queue: &Endpoint) -> String {
    queue.queue().map(|target| target.name.to_string()).unwrap_or_default()
}

/// `GET /v1/queues/{name}/leases`
pub async fn leases(call: &Call) -> Result<Json<ListBody<LeaseBody>>, Problem> {
    let queue = find(call)?;
    let (after, limit) = (call.query.cursor(List::Leases)?, call.query.limit()?);
    let context = &call.api.context;
    let after = after.map_or(Position(0), |cursor| cursor.position);
    let page = Queues(context).leases(queue.number, after, limit).await?;
    let now = context.now().wall;
    let body = |lease: &LeaseView| LeaseBody {
        delivery_id: DeliveryId(lease.delivery).to_string(),
        event_id: lease.event.as_ref().map(|event| event.id.to_string()),
        event_type: lease.event.as_ref().map(|event| event.event_type.to_string()),
        worker: lease.worker.as_ref().map(ToString::to_string),
        delivery_count: lease.delivery_count,
        received_at: Time(lease.received_at),
        leased_until: Time(lease.until),
        state: match (lease.is_released, lease.until <= now) {
            (true, _) => "released",
            (false, true) => "expired",
            (false, false) => "leased",
        },
    };
    let data = page.items.iter().map(body).collect();
    Ok(lists::page_reply(&call.path, &call.query, List::Leases, &page, data))
}

/// `GET /v1/queues/{name}/stats`
pub async fn stats(call: &Call) -> Result<Json<QueueStatsBody>, Problem> {
    let queue = find(call)?;
    let (since, until) = stats_window(call)?;
    let context = &call.api.context;
    let stats = Endpoints(context).stats(queue.number, since, until).await?;
    let lane = Queues(context).lane(queue.number).await?;
    Ok(Json::new(&QueueStatsBody {
        queue: name(&queue),
        tenant: queue.tenant.to_string(),
        since: Time(stats.since),
        until: Time(stats.until),
        deliveries: stats.attempts,
        acked: stats.delivered,
        failed: stats.failed_attempts,
        dead: stats.dead,
        cancelled: stats.cancelled,
        success_rate: stats.success_rate,
        lease_time: PercentilesBody::of_millis([stats.latency_p50, stats.latency_p95, stats.latency_p99]),
        backlog: stats.backlog,
        leased: lane.leased,
        oldest_pending_at: stats.oldest_pending.map(Time),
    }))
}

/// `GET /v1/queues/{name}/lane`
pub async fn lane(call: &Call) -> Result<Json<QueueLaneBody>, Problem> {
    let queue = find(call)?;
    let context = &call.api.context;
    let lane = Queues(context).lane(queue.number).await?;
    Ok(Json::new(&QueueLaneBody {
        queue: name(&queue),
        tenant: queue.tenant.to_string(),
        reason: lane.reason,
        pending: lane.pending,
        waiting_for_order: lane.waiting_for_order,
        leased: lane.leased,
        returned: lane.returned,
        waiters: lane.waiters,
        last_receive_at: lane.last_receive.map(Time),
        next_due_at: lane.next_due.map(Time),
    }))
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueuePurgeInput {
    /// `true`: count only, and change nothing.
    dry_run: Option<bool>,
}

/// `POST /v1/queues/{name}/purge`
pub async fn purge(
    call: &Call,
    Optional(input): Optional<QueuePurgeInput>,
) -> Result<Accepted<StartedBody>, Problem> {
    let queue = find_writable(call)?;
    let selection = JobSelection { endpoint: Some(queue.number), ..JobSelection::default() };
    let tenant = Some(queue.tenant.clone());
    start(call, NewJob { kind: JobKind::PurgeQueue, tenant, selection, rate: None }, input.dry_run).await
}

/// `POST /v1/queues/{name}/replay`
pub async fn replay(
    call: &Call,
    Required(input): Required<EndpointReplayInput>,
) -> Result<Accepted<StartedBody>, Problem> {
    let queue = find_writable(call)?;
    replay_to(call, &queue, input).await
}

/// `POST /v1/queues/{name}/filter/test`
pub async fn test_filter(
    call: &Call,
    Optional(input): Optional<FilterTrialInput>,
) -> Result<Json<FilterTrialBody>, Problem> {
    let queue = find(call)?;
    try_filter(call, &queue, input).await
}
