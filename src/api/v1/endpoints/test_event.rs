//! `POST /v1/endpoints/{id}/test`: an event to one endpoint alone, with fixed data or with an
//! example of a registered type.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;

use super::handlers::find_writable;
use crate::api::Call;
use crate::api::http::idempotency;
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::Optional;
use crate::api::http::response::Accepted;
use crate::api::v1::events::{self, model::AcceptedBody};
use crate::domain::{Endpoint, EventType, EventVersion, attribute};
use crate::service::types::EventDraft;
use crate::service::{EventTypes, Events};

/// Which event to send. Without a type: a fixed one of the type `balto.test`.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestInput {
    /// A registered event type with an example, which is sent.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    event_type: Option<String>,
    /// The version of the example; default: the newest version that has one.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    version: Option<String>,
}

/// An example of a registered type.
struct TypeExample {
    event_type: EventType,
    version: EventVersion,
    data: Bytes,
}

impl TestInput {
    /// # Errors
    /// 422 for an unregistered type or version, or one without an example.
    fn example(&self, call: &Call) -> Result<Option<TypeExample>, Problem> {
        let mut errors = Errors::default();
        let name = self.event_type.as_deref().and_then(|name| errors.check("/type", name.parse()));
        let wanted = self.version.as_deref().and_then(|version| errors.check("/version", version.parse()));
        if self.version.is_some() && self.event_type.is_none() {
            errors.push("/version", "requires `type`");
        }
        errors.finish()?;
        let Some(name): Option<EventType> = name else { return Ok(None) };
        let Some(registered) = EventTypes(&call.api.context).registered(&name) else {
            return Err(Problem::invalid("/type", format!("the event type `{name}` is not registered")));
        };
        let definition = registered.definition();
        let wanted: Option<EventVersion> = wanted;
        if let Some(unknown) = wanted.as_ref().filter(|version| definition.version(version).is_none()) {
            let detail = format!("version {unknown} of the event type `{name}` is not registered");
            return Err(Problem::invalid("/version", detail));
        }
        let versions = definition.versions.iter().rev().map(|known| &known.version);
        let mut versions = versions.filter(|known| wanted.as_ref().is_none_or(|wanted| wanted == *known));
        let found = versions.find_map(|version| Some((version, registered.example(version)?)));
        let Some((version, example)) = found else {
            let pointer = if wanted.is_some() { "/version" } else { "/type" };
            return Err(Problem::invalid(pointer, "has no example; add one to the event type"));
        };
        let data = Bytes::copy_from_slice(example.as_bytes());
        Ok(Some(TypeExample { version: version.clone(), data, event_type: name }))
    }
}

fn fixed_data(endpoint: &Endpoint) -> Bytes {
    format!("{{\"endpointId\":\"{}\",\"message\":\"This is a test event.\"}}", endpoint.id).into()
}

/// `POST /v1/endpoints/{id}/test`
pub async fn test(
    call: &Call,
    Optional(input): Optional<TestInput>,
) -> Result<Accepted<AcceptedBody<'static>>, Problem> {
    let endpoint = find_writable(call)?;
    let example = input.example(call)?;
    let (idempotency, _guard) = call.idempotency(endpoint.tenant.as_str())?;
    let unreachable = || Problem::Unavailable("the type of the test event is malformed".to_owned());
    let event_type = EventType::TEST.parse().map_err(|_| unreachable())?;
    let (version, data, attributes) = match example {
        None => (EventVersion::default(), fixed_data(&endpoint), Vec::new()),
        Some(TypeExample { event_type, version, data }) => {
            let tested = (attribute::TEST_TYPE.into(), event_type.as_str().into());
            (version, data, vec![tested])
        }
    };
    let draft = EventDraft {
        version,
        attributes,
        idempotency,
        fingerprint: idempotency::fingerprint(&call.body),
        only: Some(endpoint.number),
        // No tenant sees the test of an endpoint of all tenants.
        ..EventDraft::new(endpoint.tenant.of_own_events(), event_type, data)
    };
    let limit = &call.api.test_limit;
    let now = call.api.context.now().monotonic;
    limit.record(endpoint.number, now).map_err(|retry_after| Problem::TooManyTests { retry_after })?;
    let published = Events(&call.api.context).publish(draft).await;
    if published.as_ref().map_or(true, |accepted| accepted.duplicate) {
        limit.withdraw(endpoint.number);
    }
    let accepted = published?;
    Ok(events::handlers::accepted_response(call, &accepted))
}
