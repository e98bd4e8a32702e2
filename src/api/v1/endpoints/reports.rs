//! Statistics, lane and replays of an endpoint.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::handlers::{find, find_writable};
use super::model::StatsBody;
use super::settings;
use crate::api::Call;
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::Required;
use crate::api::http::response::{Accepted, Json};
use crate::api::text::{self, Time, Word};
use crate::api::v1::PercentilesBody;
use crate::api::v1::jobs::handlers::start;
use crate::api::v1::jobs::model::{StartedBody, check_rate};
use crate::api::v1::lists;
use crate::domain::{Endpoint, EndpointId, JobKind, JobSelection, Tenant, Timestamp};
use crate::service::Endpoints;
use crate::service::jobs::NewJob;
use crate::service::types::{CircuitState, LaneView, WaitReason};

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointReplayInput {
    #[schemars(extend("format" = "date-time"))]
    since: String,
    /// Default: now.
    #[schemars(extend("format" = "date-time"))]
    until: Option<String>,
    /// Topic patterns; default: those of the endpoint.
    #[schemars(
        length(min = 1, max = 256),
        inner(regex(pattern = r"^([A-Za-z0-9_-]+|[*#])(\.([A-Za-z0-9_-]+|[*#]))*$"))
    )]
    event_types: Option<Vec<String>>,
    /// Only events that were not delivered to this endpoint.
    only_undelivered: Option<bool>,
    /// `true`: count only, and change nothing.
    dry_run: Option<bool>,
    /// Most events per second, 1 to 100,000; default: unlimited.
    #[schemars(range(min = 1, max = 100_000))]
    rate: Option<u32>,
}

const STATS_WINDOW: Duration = Duration::from_secs(24 * 3600);

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaneBody {
    pub endpoint_id: String,
    #[serde(flatten)]
    pub state: LaneStateBody,
}

/// The members that lanes of endpoints and of queues have.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaneStateBody {
    pub tenant: String,
    /// Why the lane waits; null if it does not.
    #[schemars(with = "Option<Word<WaitReason>>")]
    pub reason: Option<&'static str>,
    pub pending: u64,
    /// Pending deliveries behind another one of the same ordering key.
    pub waiting_for_order: u64,
    /// Requests in flight; of a queue, messages under a running lease.
    pub in_flight: u64,
    /// Due time of the delivery that goes out next; of a returned message, the end of its lease.
    pub next_due_at: Option<Time>,
    /// When the reason ends without intervention.
    pub until: Option<Time>,
    /// Of a queue: `closed`.
    #[schemars(with = "Word<CircuitState>")]
    pub circuit: &'static str,
    pub consecutive_failures: u32,
}

impl LaneBody {
    #[must_use]
    pub fn new(endpoint_id: &EndpointId, tenant: &Tenant, lane: &LaneView) -> Self {
        Self { endpoint_id: endpoint_id.to_string(), state: LaneStateBody::new(tenant, lane) }
    }
}

impl LaneStateBody {
    #[must_use]
    pub fn new(tenant: &Tenant, lane: &LaneView) -> Self {
        Self {
            tenant: tenant.to_string(),
            reason: lane.reason,
            pending: lane.pending,
            waiting_for_order: lane.waiting_for_order,
            in_flight: lane.in_flight,
            next_due_at: lane.next_due.map(Time),
            until: lane.until.map(Time),
            circuit: lane.circuit,
            consecutive_failures: lane.consecutive_failures,
        }
    }
}

/// The window of statistics: the last day by default.
pub(in crate::api::v1) fn stats_window(call: &Call) -> Result<(Timestamp, Timestamp), Problem> {
    let now = call.api.context.now().wall;
    let (since, until) = call.query.window()?;
    let until = until.unwrap_or(now);
    let since = since.unwrap_or_else(|| until.minus(STATS_WINDOW));
    if since > until {
        return Err(Problem::parameter("since", "must not be after `until`, which is now by default"));
    }
    Ok((since, until))
}

/// `GET /v1/endpoints/{id}/stats`
pub async fn stats(call: &Call) -> Result<Json<StatsBody>, Problem> {
    let endpoint = find(call)?;
    let (since, until) = stats_window(call)?;
    let stats = Endpoints(&call.api.context).stats(endpoint.number, since, until).await?;
    let body = StatsBody {
        endpoint_id: endpoint.id.to_string(),
        since: Time(stats.since),
        until: Time(stats.until),
        attempts: stats.attempts,
        delivered: stats.delivered,
        failed_attempts: stats.failed_attempts,
        dead: stats.dead,
        cancelled: stats.cancelled,
        success_rate: stats.success_rate,
        latency: PercentilesBody::of_millis([stats.latency_p50, stats.latency_p95, stats.latency_p99]),
        backlog: stats.backlog,
        oldest_pending_at: stats.oldest_pending.map(Time),
    };
    Ok(Json::new(&body))
}

/// `GET /v1/endpoints/{id}/lane`
pub async fn lane(call: &Call) -> Result<Json<LaneBody>, Problem> {
    let endpoint = find(call)?;
    let lane: LaneView = Endpoints(&call.api.context).lane(endpoint.number).await?;
    Ok(Json::new(&LaneBody::new(&endpoint.id, &endpoint.tenant, &lane)))
}

/// `POST /v1/endpoints/{id}/replay`
pub async fn replay(
    call: &Call,
    Required(input): Required<EndpointReplayInput>,
) -> Result<Accepted<StartedBody>, Problem> {
    let endpoint = find_writable(call)?;
    replay_to(call, &endpoint, input).await
}

/// Delivers past events to an endpoint or a queue.
pub(in crate::api::v1) async fn replay_to(
    call: &Call,
    endpoint: &Endpoint,
    input: EndpointReplayInput,
) -> Result<Accepted<StartedBody>, Problem> {
    let mut errors = Errors::default();
    let since = errors.check("/since", text::parse_bound(&input.since));
    let until = input.until.and_then(|time| errors.check("/until", text::parse_bound(&time)));
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        errors.push("/until", lists::UNTIL_BEFORE_SINCE);
    }
    let patterns = settings::parse_patterns(input.event_types.as_deref(), "/eventTypes", &mut errors);
    let rate = check_rate(input.rate, &mut errors);
    errors.finish()?;
    let kind = if endpoint.queue().is_some() { JobKind::ReplayQueue } else { JobKind::ReplayEndpoint };
    let selection = JobSelection {
        endpoint: Some(endpoint.number),
        types: patterns,
        since,
        until,
        only_undelivered: input.only_undelivered.unwrap_or(false),
        ..JobSelection::default()
    };
    start(call, NewJob { kind, tenant: Some(endpoint.tenant.clone()), selection, rate }, input.dry_run).await
}
