//! Registering, changing and looking at endpoints.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::idempotency::{self, Once};
use super::lists::{self, List};
use super::policy::{self, EndpointBody, EndpointInput, Settings};
use super::problem::{Errors, Problem};
use super::reply::Reply;
use super::text::{self, Time};
use super::views::CountBody;
use super::{Call, body, events, not_found};
use crate::domain::{
    Endpoint, EndpointId, EndpointNumber, EndpointStatus, Expected, Position, Secret, Tenant, Timestamp,
};
use crate::engine::types::{ChangeError, EventDraft, LaneView};
use crate::limits;

/// How often a change is tried again when someone else changed the endpoint in between.
const CHANGE_TRIES_MAX: usize = 5;
/// Bytes of a generated secret.
const SECRET_BYTES: usize = 32;
/// The type of test events.
const TEST_TYPE: &str = "balto.test";
const OVERLAP_DEFAULT: Duration = Duration::from_secs(24 * 3600);
const OVERLAP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const STATS_WINDOW: Duration = Duration::from_secs(24 * 3600);

fn settings(call: &Call, input: &EndpointInput, errors: &mut Errors) -> Settings {
    let check = |name: &str, value: &str| call.api.engine.check_header(name, value);
    input.settings(&call.config.defaults, check, errors)
}

/// # Errors
/// `forbidden_url` for what policy refuses.
async fn check_url(call: &Call, url: &str) -> Result<Box<str>, Problem> {
    call.api.engine.check_url(url).await.map_err(Problem::ForbiddenUrl)
}

fn url_text<'a>(input: &'a EndpointInput, errors: &mut Errors) -> &'a str {
    match input.url.as_deref() {
        None => errors.push("/url", "missing field `url`"),
        Some(url) if url.len() > limits::URL_BYTES_MAX => {
            errors.push("/url", format!("at most {} bytes", limits::URL_BYTES_MAX));
        }
        Some(_) => {}
    }
    input.url.as_deref().unwrap_or_default()
}

fn random_secret(call: &Call) -> Vec<u8> {
    call.api.engine.random_bytes::<SECRET_BYTES>().to_vec()
}

/// `POST /v1/endpoints`
pub async fn create(call: &Call) -> Result<Reply, Problem> {
    let input: EndpointInput = body::parse(&call.body)?;
    let mut errors = Errors::default();
    let url = url_text(&input, &mut errors);
    let tenant = input.tenant.as_deref().and_then(|tenant| errors.check("/tenant", tenant.parse::<Tenant>()));
    let secret = input.secret.as_deref().and_then(|text| errors.check("/secret", policy::parse_secret(text)));
    let settings = settings(call, &input, &mut errors);
    errors.finish()?;
    let tenant = call.principal.tenant(tenant)?;
    call.principal.check_reserved(&tenant)?;
    let (idempotency, _guard) = match call.once(tenant.as_str()).await? {
        Once::Again(reply) => return Ok(reply),
        Once::First(idempotency, guard) => (idempotency, guard),
    };
    let url = check_url(call, url).await?;
    let now = call.api.engine.now().wall;
    let secret = secret.unwrap_or_else(|| random_secret(call));
    let endpoint = Endpoint {
        number: EndpointNumber(0),
        id: call.api.engine.new_endpoint_id(),
        tenant,
        url,
        description: settings.description,
        event_types: settings.event_types,
        headers: settings.headers,
        rate_limit: settings.rate_limit,
        max_in_flight: settings.max_in_flight,
        timeout: settings.timeout,
        ordering: settings.ordering,
        retry: settings.retry,
        format: settings.format,
        signature: settings.signature,
        secrets: vec![Secret { bytes: secret.clone(), expires_at: None }],
        trace: settings.trace,
        metadata: settings.metadata,
        status: EndpointStatus::Active,
        created_at: now,
        updated_at: now,
        revision: Position(0),
    };
    let mut body = EndpointBody::new(&endpoint);
    body.secret = Some(policy::secret_text(&secret));
    let reply = Reply::json(201, &body).with_header("location", &format!("/v1/endpoints/{}", endpoint.id));
    let answer = idempotency.map(|idempotency| (idempotency, reply.answer()));
    call.api.engine.create_endpoint(endpoint, answer).await?;
    Ok(reply)
}

fn find(call: &Call) -> Result<Arc<Endpoint>, Problem> {
    let id: EndpointId = call.named("endpoint")?;
    let found = call.api.engine.endpoint(&call.principal.scope, &id);
    found.ok_or_else(|| not_found("endpoint", id.as_str()))
}

fn find_own(call: &Call) -> Result<Arc<Endpoint>, Problem> {
    let endpoint = find(call)?;
    call.principal.check_reserved(&endpoint.tenant)?;
    Ok(endpoint)
}

/// `GET /v1/endpoints`
pub async fn list(call: &Call) -> Result<Reply, Problem> {
    let tenant = call.principal.filter(call.query.get("tenant")?)?;
    let status = call.query.word("status", lists::ENDPOINT_STATUSES)?;
    let (after, limit) = (call.query.cursor(List::Endpoints)?, call.query.limit()?);
    let page = call.api.engine.endpoints(&call.principal.scope, tenant.as_ref(), status, after, limit);
    let data = page.items.iter().map(|endpoint| EndpointBody::new(endpoint)).collect();
    Ok(lists::answer(&call.path, &call.query, List::Endpoints, &page, data))
}

/// `GET /v1/endpoints/{id}`
pub async fn get(call: &Call) -> Result<Reply, Problem> {
    Ok(Reply::json(200, &EndpointBody::new(&*find(call)?)))
}

/// `PATCH /v1/endpoints/{id}`
pub async fn patch(call: &Call) -> Result<Reply, Problem> {
    let patch: Value = body::parse(&call.body)?;
    if !patch.is_object() {
        return Err(Problem::invalid("", "a merge patch of an endpoint is an object"));
    }
    for _ in 0..CHANGE_TRIES_MAX {
        let endpoint = find_own(call)?;
        let changed = apply(call, &endpoint, &patch).await?;
        if let Some(written) = write(call, endpoint, changed).await? {
            return Ok(Reply::json(200, &EndpointBody::new(&written)));
        }
    }
    Err(ChangeError::Conflict.into())
}

async fn apply(call: &Call, endpoint: &Endpoint, patch: &Value) -> Result<Endpoint, Problem> {
    let present = EndpointBody::new(endpoint).into_input();
    let mut value = serde_json::to_value(present)
        .map_err(|_| Problem::Unavailable("the endpoint cannot be shown".to_owned()))?;
    policy::merge(&mut value, patch);
    let input: EndpointInput = body::parse_value(value)?;
    let mut errors = Errors::default();
    let url = url_text(&input, &mut errors);
    if input.tenant.as_deref() != Some(endpoint.tenant.as_str()) {
        errors.push("/tenant", "cannot be changed");
    }
    if patch.get("secret").is_some() {
        errors.push("/secret", "is changed by POST secret/rotate");
    }
    let settings = settings(call, &input, &mut errors);
    errors.finish()?;
    let url = if url == &*endpoint.url { endpoint.url.clone() } else { check_url(call, url).await? };
    Ok(Endpoint {
        url,
        description: settings.description,
        event_types: settings.event_types,
        headers: settings.headers,
        rate_limit: settings.rate_limit,
        max_in_flight: settings.max_in_flight,
        timeout: settings.timeout,
        ordering: settings.ordering,
        retry: settings.retry,
        format: settings.format,
        signature: settings.signature,
        trace: settings.trace,
        metadata: settings.metadata,
        ..endpoint.clone()
    })
}

/// Reads, decides and writes; again when someone else wrote in between.
async fn change(
    call: &Call,
    decide: impl Fn(&Endpoint) -> Result<Endpoint, Problem> + Send,
) -> Result<Arc<Endpoint>, Problem> {
    for _ in 0..CHANGE_TRIES_MAX {
        let endpoint = find_own(call)?;
        let changed = decide(&endpoint)?;
        if let Some(written) = write(call, endpoint, changed).await? {
            return Ok(written);
        }
    }
    Err(ChangeError::Conflict.into())
}

/// Writes a change; `None` when the endpoint is no longer what was read.
async fn write(
    call: &Call,
    endpoint: Arc<Endpoint>,
    mut changed: Endpoint,
) -> Result<Option<Arc<Endpoint>>, Problem> {
    if changed == *endpoint {
        return Ok(Some(endpoint));
    }
    changed.updated_at = call.api.engine.now().wall;
    match call.api.engine.update_endpoint(changed).await {
        Err(ChangeError::Conflict) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// `DELETE /v1/endpoints/{id}`
pub async fn delete(call: &Call) -> Result<Reply, Problem> {
    let endpoint = find_own(call)?;
    call.api.engine.delete_endpoint(&call.principal.scope, &endpoint.id).await?;
    Ok(Reply::empty())
}

/// `POST /v1/endpoints/{id}/pause`
pub async fn pause(call: &Call) -> Result<Reply, Problem> {
    let changed = change(call, |endpoint| match endpoint.status {
        EndpointStatus::Disabled { .. } => {
            Err(Problem::Conflict("the endpoint is disabled; resume it first".to_owned()))
        }
        EndpointStatus::Active | EndpointStatus::Paused => {
            Ok(Endpoint { status: EndpointStatus::Paused, ..endpoint.clone() })
        }
    });
    Ok(Reply::json(200, &EndpointBody::new(&*changed.await?)))
}

/// `POST /v1/endpoints/{id}/resume`
pub async fn resume(call: &Call) -> Result<Reply, Problem> {
    let changed =
        change(call, |endpoint| Ok(Endpoint { status: EndpointStatus::Active, ..endpoint.clone() }));
    Ok(Reply::json(200, &EndpointBody::new(&*changed.await?)))
}

/// `POST /v1/endpoints/{id}/test`
pub async fn test(call: &Call) -> Result<Reply, Problem> {
    let endpoint = find_own(call)?;
    let (idempotency, _guard) = call.idempotency(endpoint.tenant.as_str())?;
    let unreachable = || Problem::Unavailable("the test event's names do not parse".to_owned());
    let data = format!("{{\"endpointId\":\"{}\",\"message\":\"This is a test event.\"}}", endpoint.id);
    let draft = EventDraft {
        id: None,
        tenant: endpoint.tenant.clone(),
        event_type: TEST_TYPE.parse().map_err(|_| unreachable())?,
        version: "1.0".parse().map_err(|_| unreachable())?,
        timestamp: None,
        stream: None,
        expected: Expected::Any,
        ordering_key: None,
        deliver_at: None,
        metadata: None,
        attributes: Vec::new(),
        data: Bytes::from(data),
        idempotency,
        fingerprint: idempotency::fingerprint(&call.body),
        only: Some(endpoint.number),
    };
    let accepted = call.api.engine.publish(draft).await?;
    Ok(events::accepted_reply(call, &accepted))
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretBody {
    pub secret: String,
    /// Rotated secrets that still sign.
    pub previous: Vec<PreviousSecret>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreviousSecret {
    pub secret: String,
    pub expires_at: Option<Time>,
}

fn secret_body(endpoint: &Endpoint, now: Timestamp) -> SecretBody {
    let mut live = endpoint.secrets.iter().filter(|secret| secret.expires_at.is_none_or(|at| at > now));
    SecretBody {
        secret: live.next().map(|secret| policy::secret_text(&secret.bytes)).unwrap_or_default(),
        previous: live
            .map(|secret| PreviousSecret {
                secret: policy::secret_text(&secret.bytes),
                expires_at: secret.expires_at.map(Time),
            })
            .collect(),
    }
}

/// `GET /v1/endpoints/{id}/secret`
pub async fn secret(call: &Call) -> Result<Reply, Problem> {
    let endpoint = find_own(call)?;
    let body = secret_body(&endpoint, call.api.engine.now().wall);
    Ok(Reply::json(200, &body).with_header("cache-control", "no-store"))
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateInput {
    /// `whsec_` and base64 of 24 to 64 bytes; generated without it.
    secret: Option<String>,
    /// How long the old one signs too, 0s to 30d; 24h without it.
    overlap: Option<String>,
}

/// `POST /v1/endpoints/{id}/secret/rotate`
pub async fn rotate(call: &Call) -> Result<Reply, Problem> {
    let input: RotateInput = body::parse_or_default(&call.body)?;
    let mut errors = Errors::default();
    let given = input.secret.and_then(|text| errors.check("/secret", policy::parse_secret(&text)));
    let bounds = (Duration::ZERO, OVERLAP_MAX);
    let overlap = policy::bounded(&mut errors, "/overlap", input.overlap.as_deref(), OVERLAP_DEFAULT, bounds);
    errors.finish()?;
    let bytes = given.unwrap_or_else(|| random_secret(call));
    let now = call.api.engine.now().wall;
    let changed = change(call, |endpoint| {
        if endpoint.secrets.first().is_some_and(|current| current.bytes == bytes) {
            return Err(Problem::invalid("/secret", "this is the current secret"));
        }
        let until = now.plus(overlap);
        let mut secrets = vec![Secret { bytes: bytes.clone(), expires_at: None }];
        for old in &endpoint.secrets {
            let expires_at = old.expires_at.unwrap_or(until);
            if expires_at > now && old.bytes != bytes {
                secrets.push(Secret { bytes: old.bytes.clone(), expires_at: Some(expires_at) });
            }
        }
        if secrets.len() > limits::SECRETS_MAX {
            let why = format!("at most {} secrets sign at once; wait until one expires", limits::SECRETS_MAX);
            return Err(Problem::Conflict(why));
        }
        Ok(Endpoint { secrets, ..endpoint.clone() })
    });
    let body = secret_body(&*changed.await?, now);
    Ok(Reply::json(200, &body).with_header("cache-control", "no-store"))
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatsBody {
    pub endpoint_id: String,
    pub since: Time,
    pub until: Time,
    pub attempts: u64,
    pub delivered: u64,
    pub failed_attempts: u64,
    pub dead: u64,
    /// Successful part of the attempts, 0 to 1; null without one.
    pub success_rate: Option<f64>,
    pub latency: LatencyBody,
    /// Pending deliveries now.
    pub backlog: u64,
    pub oldest_pending_at: Option<Time>,
}

/// Of attempts; null without one.
#[derive(Serialize, JsonSchema)]
pub struct LatencyBody {
    pub p50: Option<text::Span>,
    pub p95: Option<text::Span>,
    pub p99: Option<text::Span>,
}

/// `GET /v1/endpoints/{id}/stats`
pub async fn stats(call: &Call) -> Result<Reply, Problem> {
    let endpoint = find(call)?;
    let now = call.api.engine.now().wall;
    let until = call.query.time("until")?.unwrap_or(now);
    let window_start =
        Timestamp::from_millis(until.since(Timestamp::default().plus(STATS_WINDOW)).as_millis() as u64);
    let since = call.query.time("since")?.unwrap_or(window_start);
    if since >= until {
        return Err(Problem::parameter("since", "must be before `until`"));
    }
    let stats = call.api.engine.endpoint_stats(endpoint.number, since, until).await?;
    let span = |millis: Option<u64>| millis.map(|millis| text::Span(Duration::from_millis(millis)));
    let body = StatsBody {
        endpoint_id: endpoint.id.to_string(),
        since: Time(stats.since),
        until: Time(stats.until),
        attempts: stats.attempts,
        delivered: stats.delivered,
        failed_attempts: stats.failed_attempts,
        dead: stats.dead,
        success_rate: (stats.attempts > 0)
            .then(|| stats.attempts.saturating_sub(stats.failed_attempts) as f64 / stats.attempts as f64),
        latency: LatencyBody {
            p50: span(stats.latency_p50),
            p95: span(stats.latency_p95),
            p99: span(stats.latency_p99),
        },
        backlog: stats.backlog,
        oldest_pending_at: stats.oldest_pending.map(Time),
    };
    Ok(Reply::json(200, &body))
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaneBody {
    pub endpoint_id: String,
    /// Why nothing moves; null when nothing waits.
    pub reason: Option<&'static str>,
    pub pending: u64,
    /// Of `pending`: behind another delivery of the same ordering key.
    pub waiting_for_order: u64,
    pub in_flight: u64,
    pub next_due_at: Option<Time>,
    /// When the reason ends by itself.
    pub until: Option<Time>,
    pub circuit: &'static str,
    pub consecutive_failures: u32,
}

/// `GET /v1/endpoints/{id}/lane`
pub async fn lane(call: &Call) -> Result<Reply, Problem> {
    let endpoint = find(call)?;
    let lane: LaneView = call.api.engine.lane(endpoint.number).await?;
    let body = LaneBody {
        endpoint_id: endpoint.id.to_string(),
        reason: lane.reason,
        pending: lane.pending,
        waiting_for_order: lane.waiting_for_order,
        in_flight: lane.in_flight,
        next_due_at: lane.next_due.map(Time),
        until: lane.until.map(Time),
        circuit: lane.circuit,
        consecutive_failures: lane.consecutive_failures,
    };
    Ok(Reply::json(200, &body))
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplayInput {
    #[schemars(extend("format" = "date-time"))]
    since: String,
    /// Now without it.
    #[schemars(extend("format" = "date-time"))]
    until: Option<String>,
    /// Topic patterns; those of the endpoint without it.
    #[schemars(length(min = 1, max = 256))]
    event_types: Option<Vec<String>>,
    /// Only events that were not delivered to this endpoint.
    only_undelivered: Option<bool>,
}

/// `POST /v1/endpoints/{id}/replay`
pub async fn replay(call: &Call) -> Result<Reply, Problem> {
    let endpoint = find_own(call)?;
    let input: ReplayInput = body::parse(&call.body)?;
    let mut errors = Errors::default();
    let since = errors.check("/since", text::parse_time(&input.since));
    let until = input.until.and_then(|time| errors.check("/until", text::parse_time(&time)));
    if let (Some(since), Some(until)) = (since, until)
        && since >= until
    {
        errors.push("/until", "must be after `since`");
    }
    let patterns = policy::patterns(input.event_types.as_deref(), "/eventTypes", &mut errors);
    errors.finish()?;
    let since = since.unwrap_or_default();
    let only_undelivered = input.only_undelivered.unwrap_or(false);
    let count = call.api.engine.replay_endpoint(&endpoint, since, until, &patterns, only_undelivered).await?;
    Ok(Reply::json(202, &CountBody { count }))
}
