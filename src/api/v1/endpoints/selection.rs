//! The members `filter` and `labels`, and trials of a filter.

use schemars::JsonSchema;
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::handlers::find;
use super::preview::{PreviewEventInput, stored_event, unpublished_event};
use crate::api::http::body::object;
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::Optional;
use crate::api::http::response::Json;
use crate::api::text::{self, Time};
use crate::api::{Call, v1};
use crate::domain::{Endpoint, EventSelection, Label, Tenant};
use crate::service::Filters;
use crate::service::filters::{FilterTrial, TRIAL_EVENTS_MAX};
use crate::unique_json::Unique;
use crate::{filters, limits};

/// Deserializes a filter: an object without duplicate members, absent or null.
///
/// # Errors
/// For any other value.
pub(in crate::api::v1) fn filter_member<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Map<String, Value>>, D::Error> {
    match Option::<Unique>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Unique(Value::Object(members))) => Ok(Some(members)),
        Some(_) => Err(D::Error::invalid_type(Unexpected::Other("another value"), &"an object")),
    }
}

/// Validates the members of an endpoint or a queue.
pub(in crate::api::v1) fn check_selection(
    filter: Option<&Map<String, Value>>,
    labels: Option<&[String]>,
    errors: &mut Errors,
) -> EventSelection {
    let filter = filter.and_then(|members| {
        let filter = Value::Object(members.clone());
        match filters::parse(&filter) {
            Ok(_) => Some(filter.to_string().into()),
            Err(error) => {
                errors.push(format!("/filter{}", error.pointer), error.detail);
                None
            }
        }
    });
    EventSelection { filter, labels: check_labels(labels, "/labels", errors) }
}

/// Validates labels. Sorts them, and removes duplicates.
pub(in crate::api::v1) fn check_labels(
    labels: Option<&[String]>,
    location: &str,
    errors: &mut Errors,
) -> Vec<Label> {
    let labels = labels.unwrap_or_default();
    if labels.len() > limits::LABELS_MAX {
        errors.push(location, format!("at most {} labels", limits::LABELS_MAX));
    }
    let parse =
        |(index, label): (usize, &String)| errors.check(&format!("{location}/{index}"), label.parse());
    let mut parsed: Vec<Label> =
        labels.iter().take(limits::LABELS_MAX).enumerate().filter_map(parse).collect();
    parsed.sort();
    parsed.dedup();
    parsed
}

/// Checks that the tenant's filters together stay within their bound.
pub(in crate::api::v1) fn check_filter_room(
    call: &Call,
    tenant: &Tenant,
    selection: &EventSelection,
    replaced: Option<&Endpoint>,
    errors: &mut Errors,
) {
    errors.check("/filter", Filters(&call.api.context).check_room(tenant, selection, replaced));
}

/// A merge patch replaces a filter as a whole: null is also a value in it.
pub(in crate::api::v1) fn replace_filter(target: &mut Value, patch: &Value) {
    if let (Some(members), Some(filter)) = (target.as_object_mut(), patch.get("filter")) {
        members.insert("filter".to_owned(), filter.clone());
    }
}

pub(in crate::api::v1) fn filter_body(endpoint: &Endpoint) -> Option<Map<String, Value>> {
    serde_json::from_str(endpoint.selection.filter.as_deref()?).ok()
}

pub(in crate::api::v1) fn labels_body(endpoint: &Endpoint) -> Vec<String> {
    endpoint.selection.labels.iter().map(ToString::to_string).collect()
}

/// A trial of a filter: on an event that is not published, on a stored one, or on the newest stored
/// events.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilterTrialInput {
    /// Default: the saved filter.
    #[serde(default, deserialize_with = "filter_member")]
    filter: Option<Map<String, Value>>,
    /// Default: the saved labels.
    #[schemars(length(max = 10), inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_.:-]+$")))]
    labels: Option<Vec<String>>,
    #[serde(default, deserialize_with = "object")]
    event: Option<PreviewEventInput>,
    /// The id of an event of the same tenant; for all tenants, an id that Balto made, or one of the
    /// tenant `default`.
    #[schemars(length(min = 1, max = 64))]
    event_id: Option<String>,
    /// Only events accepted at or after this time. Default: any.
    #[schemars(extend("format" = "date-time"))]
    since: Option<String>,
    /// Number of stored events to look at, the newest first; default 100.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub enum FilterTrialBody {
    Event(EventTrialBody),
    Scan(ScanTrialBody),
}

/// The result for one event.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventTrialBody {
    /// Whether the filter accepts the event.
    pub matched: bool,
    /// Whether `eventTypes` accept it.
    pub event_types: bool,
    /// Whether `labels` accept it.
    pub labels: bool,
    /// Whether it would be delivered: all three.
    pub delivered: bool,
}

/// The result for stored events.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScanTrialBody {
    /// Number of events that were looked at. Erased events are skipped.
    pub scanned: usize,
    /// Number of them that would be delivered.
    pub count: usize,
    /// The newest ten of them.
    pub event_ids: Vec<String>,
    /// When the oldest event that was looked at was accepted; null if there are none.
    pub oldest_at: Option<Time>,
}

/// `POST /v1/endpoints/{id}/filter/test`
pub async fn test_filter(
    call: &Call,
    Optional(input): Optional<FilterTrialInput>,
) -> Result<Json<FilterTrialBody>, Problem> {
    let endpoint = find(call)?;
    try_filter(call, &endpoint, input).await
}

/// Tries a filter of an endpoint or a queue.
pub(in crate::api::v1) async fn try_filter(
    call: &Call,
    endpoint: &Endpoint,
    input: FilterTrialInput,
) -> Result<Json<FilterTrialBody>, Problem> {
    let mut errors = Errors::default();
    let given = check_selection(input.filter.as_ref(), input.labels.as_deref(), &mut errors);
    let since = input.since.and_then(|time| errors.check("/since", text::parse_bound(&time)));
    let most = TRIAL_EVENTS_MAX as u64;
    let limit =
        v1::endpoints::settings::check_integer(&mut errors, "/limit", input.limit.unwrap_or(100), most);
    let has_event = input.event.is_some() || input.event_id.is_some();
    if input.event.is_some() && input.event_id.is_some() {
        errors.push("", "needs either `event` or `eventId`");
    }
    if has_event && (since.is_some() || input.limit.is_some()) {
        errors.push("", "`since` and `limit` are for stored events; omit `event` and `eventId`");
    }
    errors.finish()?;
    let selection = EventSelection {
        filter: given.filter.or_else(|| endpoint.selection.filter.clone()),
        labels: input.labels.map_or_else(|| endpoint.selection.labels.clone(), |_| given.labels),
    };
    let tried = Endpoint { selection, ..endpoint.clone() };
    let filters = Filters(&call.api.context);
    let event = match (input.event, input.event_id) {
        (Some(event), _) => unpublished_event(call, &tried, event)?,
        (None, Some(id)) => stored_event(call, &tried, &id).await?.1,
        (None, None) => {
            let FilterTrial { scanned, count, examples, oldest } =
                filters.scan(&tried, since, limit as usize).await?;
            return Ok(Json::new(&FilterTrialBody::Scan(ScanTrialBody {
                scanned,
                count,
                event_ids: examples.iter().map(ToString::to_string).collect(),
                oldest_at: oldest.map(Time),
            })));
        }
    };
    let verdict = call.heavy_work(event.data.len(), || filters.judge(&tried, &event)).await;
    Ok(Json::new(&FilterTrialBody::Event(EventTrialBody {
        matched: verdict.filter,
        event_types: verdict.types,
        labels: verdict.labels,
        delivered: verdict.is_wanted(),
    })))
}
