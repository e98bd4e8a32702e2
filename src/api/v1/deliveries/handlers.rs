//! Deliveries: list, get, retry and cancel.

use std::sync::Arc;
use std::time::Duration;

use super::curl;
use super::model::{DeliveryBody, DeliveryDetailBody};
use crate::api::http::auth::Access;
use crate::api::http::problem::Problem;
use crate::api::http::request::Nothing;
use crate::api::http::response::{Accepted, Json, PlainText};
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::{Call, not_found};
use crate::domain::{DeliveryId, EndpointId, EndpointNumber, EndpointUid, EventId, QueueName, Tenant};
use crate::limits;
use crate::service::types::{EndpointChoice, Filter, Page, RequestError, RequestSecrets, Scope};
use crate::service::{Deliveries, Endpoints, Events, Queues, Requests, Searches};

/// `GET /v1/deliveries`
pub async fn list(call: &Call) -> Result<Json<ListBody<DeliveryBody>>, Problem> {
    let tenant = call.principal.tenant_filter(call.query.owner()?)?;
    let mut filter = call.query.delivery_filters(tenant)?;
    let (mut after, limit) = (call.query.cursor(List::Deliveries)?, call.query.limit()?);
    let search = call.query.delivery_search(call.principal.audience())?;
    filter.delivery_state = call.query.word("status", lists::DELIVERY_STATUSES)?;
    let event_id: Option<EventId> = call.query.get("eventId")?;
    let (scope, lookup) = scope_of_events(call)?;
    if !filter_by_endpoint(call, &mut filter)? {
        return Ok(lists::empty_reply());
    }
    if let Some(id) = event_id {
        match Events(&call.api.context).get(&scope, &lookup, &id).await? {
            Some(view) => filter.event = Some(view.position),
            None => return Ok(lists::empty_reply()),
        }
    }
    let filter = Searches(&call.api.context).narrow(&search, filter).await?;
    let Some(filter) = filter else { return Ok(lists::empty_reply()) };
    let audience = call.principal.audience();
    let scope = &call.principal.scope;
    let pages = PageSearch::start(call);
    let page = loop {
        let page = Deliveries(&call.api.context).list(scope, filter.clone(), after, limit).await?;
        if pages.is_done(call, &page) {
            break page;
        }
        after = page.next;
    };
    let data = page.items.iter().map(|view| DeliveryBody::new(view, audience)).collect();
    Ok(lists::page_reply(&call.path, &call.query, List::Deliveries, &page, data))
}

/// Where the events of the wanted deliveries are. Those of an endpoint of all tenants are
/// anywhere.
fn scope_of_events(call: &Call) -> Result<(Scope, Tenant), Problem> {
    match call.query.owner()? {
        Some(owner) if owner.is_every() => {
            call.principal.tenant_filter(Some(owner))?;
            Ok((call.principal.scope.clone(), call.principal.tenant(None)?))
        }
        _ => call.event_scope(),
    }
}

/// A search page by page. A page can be empty without being the last one when `q` is the start of
/// an event's id, which the state does not have.
pub struct PageSearch {
    started: Duration,
}

impl PageSearch {
    #[must_use]
    pub fn start(call: &Call) -> Self {
        Self { started: call.api.context.now().monotonic }
    }

    /// Whether to answer with this page: it has an item, or is the last one, or
    /// [`limits::LIST_SEARCH_MAX`] has passed.
    #[must_use]
    pub fn is_done<T>(&self, call: &Call, page: &Page<T>) -> bool {
        let searched = call.api.context.now().monotonic.saturating_sub(self.started);
        !page.items.is_empty() || page.next.is_none() || searched >= limits::LIST_SEARCH_MAX
    }
}

/// Filters by `endpointId`, an id or a uid, or by `queue`. A name also means deleted ones that had
/// it. Returns false if there is none.
///
/// # Errors
/// 422 for a malformed id or name, or both parameters.
pub fn filter_by_endpoint(call: &Call, filter: &mut Filter) -> Result<bool, Problem> {
    if let Some(name) = call.query.get::<QueueName>("queue")? {
        if call.query.text("endpointId").is_some() {
            return Err(Problem::parameter("queue", "cannot be combined with `endpointId`"));
        }
        let tenant = call.principal.tenant(call.query.owner()?)?;
        let found = Queues(&call.api.context).named(&call.principal.scope, &tenant, &name);
        return Ok(choose(filter, &found));
    }
    let Some(text) = call.query.text("endpointId") else { return Ok(true) };
    let found = endpoint_numbers(call, filter.tenant.as_ref(), text);
    Ok(choose(filter, &found.map_err(|detail| Problem::parameter("endpointId", detail))?))
}

/// Filters by some endpoints. Returns false if there are none.
fn choose(filter: &mut Filter, endpoints: &[EndpointNumber]) -> bool {
    match endpoints {
        [] => return false,
        [one] => filter.endpoint = Some(*one),
        several => {
            let listed = Arc::new(several.iter().copied().collect());
            filter.endpoints = Some(EndpointChoice::Listed(listed));
        }
    }
    true
}

/// The numbers of the endpoints with this id, or with this uid, also of deleted ones.
///
/// # Errors
/// The detail, for a malformed text, or a uid of several tenants.
pub fn endpoint_numbers(
    call: &Call,
    tenant: Option<&Tenant>,
    text: &str,
) -> Result<Vec<EndpointNumber>, String> {
    let endpoints = Endpoints(&call.api.context);
    let id = text.parse::<EndpointId>();
    if let Some(number) = id.as_ref().ok().and_then(|id| endpoints.number(&call.principal.scope, id)) {
        return Ok(vec![number]);
    }
    let uid = match (id, text.parse::<EndpointUid>()) {
        (_, Ok(uid)) => uid,
        (Ok(_), Err(_)) => return Ok(Vec::new()),
        (Err(error), Err(_)) => return Err(error.to_string()),
    };
    let scope = Scope(tenant.cloned().or_else(|| call.principal.scope.0.clone()));
    endpoints.with_uid(&scope, &uid).map_err(|error| error.to_string())
}

/// `GET /v1/deliveries/{id}`
pub async fn get(call: &Call) -> Result<Json<DeliveryDetailBody>, Problem> {
    let DeliveryId(key) = call.parse_id("delivery")?;
    match Deliveries(&call.api.context).get(&call.principal.scope, key).await? {
        Some(detail) => Ok(Json::new(&DeliveryDetailBody::new(&detail, call.principal.audience()))),
        None => Err(not_found("delivery", &call.id)),
    }
}

/// `GET /v1/deliveries/{id}/curl`. Signing uses the secret, so only a reader of secrets may ask.
pub async fn curl_command(call: &Call) -> Result<PlainText, Problem> {
    let DeliveryId(key) = call.parse_id("delivery")?;
    let is_signed = call.query.word("signed", lists::BOOLEANS)? == Some("true");
    if is_signed {
        call.principal.check(Access::Admin)?;
    }
    let secrets = if is_signed { RequestSecrets::Signed } else { RequestSecrets::Masked };
    let found = Requests(&call.api.context).of_delivery(&call.principal.scope, key, secrets).await;
    let request = found.map_err(|error| match error {
        RequestError::NotFound => not_found("delivery", &call.id),
        RequestError::Erased => Problem::EventErased,
        RequestError::NotAllowed(why) => Problem::Conflict(why),
        RequestError::Unavailable(unavailable) => unavailable.into(),
    })?;
    let title = format!("Delivery {}: the request that an attempt would send now", DeliveryId(key));
    Ok(PlainText::new(curl::command(&title, &request)))
}

/// `POST /v1/deliveries/{id}/retry`
pub async fn retry(call: &Call, _: Nothing) -> Result<Accepted<DeliveryBody>, Problem> {
    let DeliveryId(key) = call.parse_id("delivery")?;
    call.run_once(call.principal.scope_text(), async |idempotency| {
        let keyed = DeliveryBody::keyed::<202>(idempotency, call.principal.audience());
        let retried = Deliveries(&call.api.context).retry(&call.principal.scope, key, keyed).await;
        let view = retried.map_err(|error| call.change_problem(error, "delivery"))?;
        Ok(DeliveryBody::response(&view, call.principal.audience()))
    })
    .await
}

/// `POST /v1/deliveries/{id}/cancel`
pub async fn cancel(call: &Call, _: Nothing) -> Result<Json<DeliveryBody>, Problem> {
    let DeliveryId(key) = call.parse_id("delivery")?;
    call.run_once(call.principal.scope_text(), async |idempotency| {
        let keyed = DeliveryBody::keyed::<200>(idempotency, call.principal.audience());
        let cancelled = Deliveries(&call.api.context).cancel(&call.principal.scope, key, keyed).await;
        let view = cancelled.map_err(|error| call.change_problem(error, "delivery"))?;
        Ok(DeliveryBody::response(&view, call.principal.audience()))
    })
    .await
}
