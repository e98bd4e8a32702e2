//! Dead letters: list, get, redrive and purge, individually or by filter.

use super::model::{DeadLetterBody, DeadLetterDetailBody, LettersInput};
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::{Nothing, Optional, Required};
use crate::api::http::response::{Accepted, Json, NoContent};
use crate::api::v1::deliveries::handlers::{PageSearch, filter_by_endpoint, limit_by_id, owner};
use crate::api::v1::deliveries::model::DeliveryBody;
use crate::api::v1::jobs::handlers::start;
use crate::api::v1::jobs::model::{StartedBody, check_rate};
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::{Call, not_found, text};
use crate::domain::{DeliveryId, EndpointId, JobKind, JobSelection, Pattern, QueueName, QueueOwner};
use crate::rules::patterns::{canonical, check_pattern};
use crate::service::jobs::NewJob;
use crate::service::types::Filter;
use crate::service::{DeadLetters, Endpoints, Queues};

/// `GET /v1/dead-letters`
pub async fn list(call: &Call) -> Result<Json<ListBody<DeadLetterBody>>, Problem> {
    let tenant = call.principal.tenant_filter(owner(call)?)?;
    let mut filter = call.query.delivery_filters(tenant)?;
    let (mut after, limit) = (call.query.cursor(List::DeadLetters)?, call.query.limit()?);
    filter.last_attempt = call.query.last_attempt(call.principal.audience())?;
    filter.reason = call.query.word("reason", lists::REASONS)?.and_then(lists::parse_reason);
    if !filter_by_endpoint(call, &mut filter)? {
        return Ok(lists::empty_reply());
    }
    let Some(filter) = limit_by_id(call, filter).await? else { return Ok(lists::empty_reply()) };
    let audience = call.principal.audience();
    let scope = &call.principal.scope;
    let search = PageSearch::start(call);
    let page = loop {
        let page = DeadLetters(&call.api.context).list(scope, filter.clone(), after, limit).await?;
        if search.is_done(call, &page) {
            break page;
        }
        after = page.next;
    };
    let data = page.items.iter().map(|view| DeadLetterBody::new(view, audience)).collect();
    Ok(lists::page_reply(&call.path, &call.query, List::DeadLetters, &page, data))
}

/// `GET /v1/dead-letters/{deliveryId}`
pub async fn get(call: &Call) -> Result<Json<DeadLetterDetailBody<'static>>, Problem> {
    let DeliveryId(key) = call.parse_id("dead letter")?;
    match DeadLetters(&call.api.context).get(&call.principal.scope, key).await? {
        Some(detail) => {
            let body = DeadLetterDetailBody::new(&detail, call.principal.audience());
            Ok(Json::new(&body).without_lifetime())
        }
        None => Err(not_found("dead letter", &call.id)),
    }
}

/// `POST /v1/dead-letters/{deliveryId}/redrive`
pub async fn redrive(call: &Call, _: Nothing) -> Result<Accepted<DeliveryBody>, Problem> {
    let DeliveryId(key) = call.parse_id("dead letter")?;
    call.run_once(call.principal.scope_text(), async |idempotency| {
        let keyed = DeliveryBody::keyed::<202>(idempotency, call.principal.audience());
        let redriven = DeadLetters(&call.api.context).redrive(&call.principal.scope, key, keyed).await;
        let view = redriven.map_err(|error| call.change_problem(error, "dead letter"))?;
        Ok(DeliveryBody::response(&view, call.principal.audience()))
    })
    .await
}

/// `DELETE /v1/dead-letters/{deliveryId}`
pub async fn purge(call: &Call) -> Result<NoContent, Problem> {
    let DeliveryId(key) = call.parse_id("dead letter")?;
    let purged = DeadLetters(&call.api.context).purge(&call.principal.scope, key).await;
    purged.map_err(|error| call.change_problem(error, "dead letter"))?;
    Ok(NoContent::empty())
}

/// The filter of a bulk operation. Its endpoint must exist: a typo must not select all letters.
fn parse_filter(call: &Call, input: LettersInput) -> Result<Filter, Problem> {
    let mut errors = Errors::default();
    let endpoint = input.endpoint_id.and_then(|id| {
        let found = id.parse::<EndpointId>().ok();
        let found = found.and_then(|id| Endpoints(&call.api.context).number(&call.principal.scope, &id));
        errors.check("/endpointId", found.ok_or_else(|| format!("endpoint `{id}` not found")))
    });
    let tenant = input.tenant.and_then(|tenant| errors.check("/tenant", tenant.parse()));
    let tenant = tenant.map(|QueueOwner(owner)| owner);
    let queue = match input.queue {
        Some(name) => {
            let owner = call.principal.tenant(tenant.clone())?;
            let found = name.parse().ok().and_then(|queue: QueueName| {
                Queues(&call.api.context).get(&call.principal.scope, &owner, &queue)
            });
            let found = found.ok_or_else(|| format!("queue `{name}` not found in tenant `{owner}`"));
            if endpoint.is_some() {
                errors.push("/queue", "cannot be combined with `endpointId`");
            }
            errors.check("/queue", found).map(|queue| queue.number)
        }
        None => None,
    };
    let types: Option<Pattern> = input.event_type.and_then(|name| errors.check("/type", name.parse()));
    if let Some(pattern) = &types {
        errors.check("/type", check_pattern(&canonical(pattern)));
    }
    let reason = input.reason.and_then(|word| {
        let reason = lists::parse_reason(&word);
        errors.check("/reason", reason.ok_or_else(|| format!("must be one of {}", lists::REASONS.join(", "))))
    });
    let since = input.since.and_then(|time| errors.check("/since", text::parse_bound(&time)));
    let until = input.until.and_then(|time| errors.check("/until", text::parse_bound(&time)));
    if since > until && until.is_some() {
        errors.push("/until", lists::UNTIL_BEFORE_SINCE);
    }
    errors.finish()?;
    Ok(Filter {
        tenant: call.principal.tenant_filter(tenant)?,
        endpoint: endpoint.or(queue),
        types,
        reason,
        since,
        until,
        ..Filter::default()
    })
}

/// The job of a bulk operation.
fn bulk(call: &Call, kind: JobKind, input: LettersInput) -> Result<NewJob, Problem> {
    let mut errors = Errors::default();
    let rate = check_rate(input.rate, &mut errors);
    errors.finish()?;
    let Filter { tenant, endpoint, types, reason, since, until, .. } = parse_filter(call, input)?;
    let types = types.into_iter().collect();
    let selection = JobSelection { endpoint, types, reason, since, until, only_undelivered: false };
    Ok(NewJob { kind, tenant, selection, rate })
}

/// `POST /v1/dead-letters/redrive`
pub async fn redrive_matching(
    call: &Call,
    Optional(input): Optional<LettersInput>,
) -> Result<Accepted<StartedBody>, Problem> {
    let dry_run = input.dry_run;
    start(call, bulk(call, JobKind::RedriveDeadLetters, input)?, dry_run).await
}

/// `POST /v1/dead-letters/purge`. Purging is irreversible, so the route requires a body.
pub async fn purge_matching(
    call: &Call,
    Required(input): Required<LettersInput>,
) -> Result<Accepted<StartedBody>, Problem> {
    let dry_run = input.dry_run;
    start(call, bulk(call, JobKind::PurgeDeadLetters, input)?, dry_run).await
}
