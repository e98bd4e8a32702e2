//! Dead letters: list, get, redrive and purge, individually or by filter.

use super::model::{DeadLetterBody, DeadLetterDetailBody, LettersInput};
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::{Nothing, Optional, Required};
use crate::api::http::response::{Accepted, Json, NoContent};
use crate::api::v1::deliveries::handlers::{PageSearch, endpoint_numbers, filter_by_endpoint};
use crate::api::v1::deliveries::model::DeliveryBody;
use crate::api::v1::jobs::handlers::start;
use crate::api::v1::jobs::model::{StartedBody, check_rate};
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::{Call, not_found, text};
use crate::domain::{
    Audience, DeliveryId, DeliverySearch, EndpointId, EndpointNumber, JobKind, JobSelection,
    LastAttemptFilter, Pattern, QueueName, ShownClass, Tenant,
};
use crate::rules::patterns::{canonical, check_pattern};
use crate::service::jobs::NewJob;
use crate::service::{DeadLetters, Endpoints, Queues, Searches};

/// Ids of endpoints with one name that an error shows.
const NAMESAKES_SHOWN: usize = 5;

/// `GET /v1/dead-letters`
pub async fn list(call: &Call) -> Result<Json<ListBody<DeadLetterBody>>, Problem> {
    let tenant = call.principal.tenant_filter(call.query.owner()?)?;
    let mut filter = call.query.delivery_filters(tenant)?;
    let (mut after, limit) = (call.query.cursor(List::DeadLetters)?, call.query.limit()?);
    let search = call.query.delivery_search(call.principal.audience())?;
    filter.reason = call.query.word("reason", lists::REASONS)?.and_then(lists::parse_reason);
    if !filter_by_endpoint(call, &mut filter)? {
        return Ok(lists::empty_reply());
    }
    let filter = Searches(&call.api.context).narrow(&search, filter).await?;
    let Some(filter) = filter else { return Ok(lists::empty_reply()) };
    let audience = call.principal.audience();
    let scope = &call.principal.scope;
    let pages = PageSearch::start(call);
    let page = loop {
        let page = DeadLetters(&call.api.context).list(scope, filter.clone(), after, limit).await?;
        if pages.is_done(call, &page) {
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

/// The one endpoint that a name means in a bulk operation. A redrive needs a live one. Several
/// deleted ones may have had the name, and a job covers one.
fn check_one(
    call: &Call,
    kind: JobKind,
    name: &str,
    found: &[EndpointNumber],
) -> Result<EndpointNumber, String> {
    let endpoints = Endpoints(&call.api.context);
    let live = found.iter().copied().find(|number| endpoints.is_live(*number));
    match (kind, live, found) {
        (_, _, []) => Err(format!("`{name}` not found")),
        (JobKind::RedriveDeadLetters, Some(live), _) => Ok(live),
        (JobKind::RedriveDeadLetters, None, _) => Err(format!(
            "`{name}` was deleted, so nothing can be redriven; replay the events to another endpoint or queue"
        )),
        (_, _, [one]) => Ok(*one),
        _ => {
            let shown = found.iter().rev().take(NAMESAKES_SHOWN);
            let ids: Vec<_> = shown.filter_map(|number| endpoints.id_of(*number)).collect();
            let (count, ids) = (found.len(), ids.join("`, `"));
            Err(format!("{count} have or had the name `{name}`; use `endpointId` with one of: `{ids}`"))
        }
    }
}

/// The endpoint or queue of a bulk operation. It must exist: a typo must not select all letters.
fn check_endpoint(
    call: &Call,
    kind: JobKind,
    input: &LettersInput,
    tenant: Option<&Tenant>,
    errors: &mut Errors,
) -> Result<Option<EndpointNumber>, Problem> {
    let endpoint = input.endpoint_id.as_ref().and_then(|id| {
        let found = endpoint_numbers(call, tenant, id);
        let found = found.and_then(|found| match (id.parse::<EndpointId>(), found.as_slice()) {
            // Also a deleted one: the job covers its letters, and a redrive skips them.
            (Ok(_), [one]) => Ok(*one),
            (_, []) => Err(format!("endpoint `{id}` not found")),
            (_, found) => check_one(call, kind, id, found),
        });
        errors.check("/endpointId", found)
    });
    let Some(name) = &input.queue else { return Ok(endpoint) };
    let owner = call.principal.tenant(tenant.cloned())?;
    let found = name
        .parse()
        .map(|queue: QueueName| Queues(&call.api.context).named(&call.principal.scope, &owner, &queue))
        .unwrap_or_default();
    let found = match found.as_slice() {
        [] => Err(format!("queue `{name}` not found in tenant `{owner}`")),
        found => check_one(call, kind, name, found),
    };
    if endpoint.is_some() {
        errors.push("/queue", "cannot be combined with `endpointId`");
    }
    let queue = errors.check("/queue", found);
    Ok(endpoint.or(queue))
}

/// The search of a bulk operation. The class is as this audience sees it.
fn check_search(input: &LettersInput, audience: Audience, errors: &mut Errors) -> DeliverySearch {
    let status = input.status_code.map(lists::check_status_code);
    let status = status.and_then(|status| errors.check("/statusCode", status));
    let class = input.error_class.as_deref().and_then(|word| {
        let class = ShownClass::from_word(word);
        errors.check(
            "/errorClass",
            class.ok_or_else(|| format!("must be one of {}", lists::ERROR_CLASSES.join(", "))),
        )
    });
    let id_start = input.id_start.as_deref().map(lists::parse_id_start);
    let id_start = id_start.and_then(|start| errors.check("/q", start));
    DeliverySearch { last_attempt: LastAttemptFilter::new(status, class, audience), id_start }
}

/// The job of a bulk operation.
fn bulk(call: &Call, kind: JobKind, input: &LettersInput) -> Result<NewJob, Problem> {
    let mut errors = Errors::default();
    let rate = check_rate(input.rate, &mut errors);
    let owner = lists::check_owner(input.tenant.as_deref(), &mut errors);
    let tenant = call.principal.tenant_filter(owner)?;
    let endpoint = check_endpoint(call, kind, input, tenant.as_ref(), &mut errors)?;
    let types: Option<Pattern> =
        input.event_type.as_ref().and_then(|name| errors.check("/type", name.parse()));
    if let Some(pattern) = &types {
        errors.check("/type", check_pattern(&canonical(pattern)));
    }
    let reason = input.reason.as_ref().and_then(|word| {
        let reason = lists::parse_reason(word);
        errors.check("/reason", reason.ok_or_else(|| format!("must be one of {}", lists::REASONS.join(", "))))
    });
    let search = check_search(input, call.principal.audience(), &mut errors);
    let since = input.since.as_ref().and_then(|time| errors.check("/since", text::parse_bound(time)));
    let until = input.until.as_ref().and_then(|time| errors.check("/until", text::parse_bound(time)));
    if since > until && until.is_some() {
        errors.push("/until", lists::UNTIL_BEFORE_SINCE);
    }
    errors.finish()?;
    let types = types.into_iter().collect();
    let selection = JobSelection { endpoint, types, reason, since, until, search, ..JobSelection::default() };
    Ok(NewJob { kind, tenant, selection, rate })
}

/// `POST /v1/dead-letters/redrive`
pub async fn redrive_matching(
    call: &Call,
    Optional(input): Optional<LettersInput>,
) -> Result<Accepted<StartedBody>, Problem> {
    start(call, bulk(call, JobKind::RedriveDeadLetters, &input)?, input.dry_run).await
}

/// `POST /v1/dead-letters/purge`. Purging is irreversible, so the route requires a body.
pub async fn purge_matching(
    call: &Call,
    Required(input): Required<LettersInput>,
) -> Result<Accepted<StartedBody>, Problem> {
    start(call, bulk(call, JobKind::PurgeDeadLetters, &input)?, input.dry_run).await
}
