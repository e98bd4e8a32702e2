//! Responses of the overview.

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::text::Time;
use crate::api::v1::PercentilesBody;
use crate::api::v1::endpoints::reports::LaneStateBody;
use crate::service::overview::ListedLane;

/// Statistics over all endpoints of a tenant, or of all tenants.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OverviewBody {
    /// Null: all tenants.
    pub tenant: Option<String>,
    pub since: Time,
    pub until: Time,
    /// Accepted events.
    pub events: u64,
    pub attempts: u64,
    pub delivered: u64,
    pub failed_attempts: u64,
    /// Deliveries that died. Includes those that were redriven since.
    pub dead: u64,
    /// Pending deliveries that were cancelled.
    pub cancelled: u64,
    /// Share of successful attempts, 0 to 1; null without attempts.
    pub success_rate: Option<f64>,
    /// Percentiles of the latency of attempts; null without attempts.
    pub latency: PercentilesBody,
    /// Pending deliveries now.
    pub backlog: u64,
    /// Dead letters now.
    pub dead_letters: u64,
    /// Each hour with a count, oldest first; null without `bucket`.
    pub buckets: Option<Vec<BucketBody>>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BucketBody {
    /// Start of the hour.
    pub start: Time,
    /// Accepted events.
    pub events: u64,
    pub attempts: u64,
    pub delivered: u64,
    pub failed_attempts: u64,
    pub dead: u64,
    pub cancelled: u64,
}

/// The lane of an endpoint or of a queue.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedLaneBody {
    /// Null for a queue.
    pub endpoint_id: Option<String>,
    /// Name of the queue; null for an endpoint.
    pub queue: Option<String>,
    #[serde(flatten)]
    pub state: LaneStateBody,
}

impl ListedLaneBody {
    #[must_use]
    pub fn new(listed: &ListedLane) -> Self {
        let ListedLane { endpoint_id, queue, tenant, lane, .. } = listed;
        Self {
            endpoint_id: queue.is_none().then(|| endpoint_id.to_string()),
            queue: queue.as_ref().map(ToString::to_string),
            state: LaneStateBody::new(tenant, lane),
        }
    }
}
