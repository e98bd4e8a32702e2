//! `GET /v1/stats` and `GET /v1/lanes`.

use std::time::Duration;

use super::model::{BucketBody, ListedLaneBody, OverviewBody};
use crate::api::Call;
use crate::api::http::problem::Problem;
use crate::api::http::response::Json;
use crate::api::text::Time;
use crate::api::v1::PercentilesBody;
use crate::api::v1::endpoints::reports::stats_window;
use crate::api::v1::lists::{self, List, ListBody};
use crate::domain::{EndpointNumber, Tenant, Timestamp};
use crate::limits;
use crate::service::Overview;
use crate::service::overview::{LaneOrder, LanePlace, OverviewHour};
use crate::service::types::{Scope, WaitReason};

const HOUR: Duration = Duration::from_secs(3600);

/// The tenant of the request, within the key's scope.
fn scope(call: &Call) -> Result<Scope, Problem> {
    Ok(Scope(call.principal.tenant_filter(call.query.owner()?)?))
}

/// `GET /v1/stats`
pub async fn stats(call: &Call) -> Result<Json<OverviewBody>, Problem> {
    let scope = scope(call)?;
    let (since, until) = stats_window(call)?;
    if until.since(since).as_secs() > limits::STATS_HOURS_MAX * HOUR.as_secs() {
        let days = limits::STATS_HOURS_MAX / 24;
        return Err(Problem::parameter("since", format!("must be at most {days} days before `until`")));
    }
    let with_buckets = call.query.word("bucket", lists::BUCKETS)?.is_some();
    let stats = Overview(&call.api.context).stats(&scope, since, until).await?;
    let sum = &stats.sum;
    let body = OverviewBody {
        tenant: scope.0.as_ref().map(Tenant::to_string),
        since: Time(since),
        until: Time(until),
        events: stats.events,
        attempts: sum.attempts,
        delivered: sum.delivered,
        failed_attempts: sum.failed(),
        dead: sum.dead,
        cancelled: sum.cancelled,
        success_rate: sum.success_rate(),
        latency: PercentilesBody::of_millis([0.50, 0.95, 0.99].map(|part| sum.percentile(part))),
        backlog: stats.pending,
        dead_letters: stats.dead_letters,
        buckets: with_buckets.then(|| stats.hours.iter().map(bucket).collect()),
    };
    Ok(Json::new(&body))
}

fn bucket(hour: &OverviewHour) -> BucketBody {
    let OverviewHour { number, events, counts } = hour;
    let hour_millis = u64::try_from(HOUR.as_millis()).unwrap_or(u64::MAX);
    BucketBody {
        start: Time(Timestamp::from_millis(number.saturating_mul(hour_millis))),
        events: *events,
        attempts: counts.attempts,
        delivered: counts.delivered,
        failed_attempts: counts.failed(),
        dead: counts.dead,
        cancelled: counts.cancelled,
    }
}

/// `GET /v1/lanes`
pub async fn lanes(call: &Call) -> Result<Json<ListBody<ListedLaneBody>>, Problem> {
    let scope = scope(call)?;
    let reason = call.query.word("reason", lists::WAIT_REASONS)?.and_then(WaitReason::from_word);
    let order = match call.query.word("sort", lists::LANE_ORDERS)? {
        Some(_) => LaneOrder::OldestDue,
        None => LaneOrder::Endpoint,
    };
    let limit = call.query.limit()?;
    let after = call.query.text("cursor").map(|cursor| decode_place(cursor, order)).transpose()?;
    let (lanes, more) = Overview(&call.api.context).lanes(&scope, reason, order, after, limit).await?;
    let next = lanes.last().filter(|_| more).map(|last| encode_place(last.place, order));
    let data = lanes.iter().map(ListedLaneBody::new);
    Ok(lists::list_reply(&call.path, &call.query, data.collect(), next))
}

/// The cursor behind a lane. A lane whose due time changes moves in the order by due times.
fn encode_place(place: LanePlace, order: LaneOrder) -> String {
    let mut key = vec![order as u8];
    key.extend_from_slice(&place.due.millis().to_be_bytes());
    key.extend_from_slice(&place.endpoint.0.to_be_bytes());
    lists::encode(List::Lanes, &key)
}

/// # Errors
/// 422 for a cursor of another list, or of another order.
fn decode_place(cursor: &str, order: LaneOrder) -> Result<LanePlace, Problem> {
    let key = lists::decode(List::Lanes, cursor)?;
    let (tag, rest) = key.split_first().ok_or_else(lists::bad_cursor)?;
    let (due, endpoint) = rest.split_first_chunk().ok_or_else(lists::bad_cursor)?;
    let endpoint: [u8; 4] = endpoint.try_into().map_err(|_| lists::bad_cursor())?;
    if *tag != order as u8 {
        return Err(lists::bad_cursor());
    }
    let due = Timestamp::from_millis(u64::from_be_bytes(*due));
    Ok(LanePlace { due, endpoint: EndpointNumber(u32::from_be_bytes(endpoint)) })
}
