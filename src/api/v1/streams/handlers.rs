//! Streams: head, events, state, list.

use axum::http::header;

use super::model::{StreamBody, StreamPageBody, StreamStateBody};
use super::query::{state_bound, wanted_events};
use crate::api::http::problem::Problem;
use crate::api::http::reply::Reply;
use crate::api::http::response::Json;
use crate::api::v1::feed::query::versions;
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::{Call, not_found};
use crate::domain::{StreamName, Tenant};
use crate::limits;
use crate::service::stream_states::FoldError;
use crate::service::streams::StreamReadError;
use crate::service::{StreamStates, Streams};

const TENANT_HINT: &str = "; name the tenant with `?tenant=`";

impl Call {
    /// The tenant of the stream in the path: of `?tenant=`, or of the key, or `default`.
    ///
    /// # Errors
    /// 422 for a malformed tenant, 403 when the key is bound to another tenant.
    pub(in crate::api::v1) fn stream_tenant(&self) -> Result<Tenant, Problem> {
        self.principal.tenant(self.query.get("tenant")?)
    }

    /// 404 for the stream in the path.
    pub(in crate::api::v1) fn stream_not_found(&self) -> Problem {
        match not_found("stream", &self.id) {
            Problem::NotFound(detail)
                if self.principal.scope.0.is_none() && self.query.text("tenant").is_none() =>
            {
                Problem::NotFound(format!("{detail} in tenant `{}`{TENANT_HINT}", Tenant::DEFAULT))
            }
            problem => problem,
        }
    }
}

/// `GET /v1/streams/{stream}`
pub async fn get(call: &Call) -> Result<Json<StreamBody<'static>>, Problem> {
    let stream: StreamName = call.parse_id("stream")?;
    let tenant = call.stream_tenant()?;
    let (after, wait) = (call.query.number("afterVersion")?, call.query.wait()?);
    if call.waits() && after.is_none() {
        return Err(Problem::parameter("wait", "requires `afterVersion`"));
    }
    let wanted = (after.unwrap_or(0), wait);
    let scope = &call.principal.scope;
    let gone = call.gone();
    let head = Streams(&call.api.context).head_after(scope, &tenant, &stream, wanted, gone).await?;
    let head = head.ok_or_else(|| call.stream_not_found())?;
    let tag = format!("\"{}\"", head.version);
    if has_tag(call, &tag) {
        return Ok(Json::from_reply(Reply::not_modified()).with_header("etag", &tag));
    }
    Ok(Json::new(&StreamBody::new(&tenant, &stream, &head)).with_header("etag", &tag).without_lifetime())
}

/// Whether `If-None-Match` has the tag (RFC 9110, section 13.1.2), by weak comparison.
fn has_tag(call: &Call, tag: &str) -> bool {
    let values = call.headers.get_all(header::IF_NONE_MATCH).iter();
    let tags = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    tags.map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

/// `GET /v1/streams/{stream}/events`
pub async fn read(call: &Call) -> Result<Json<StreamPageBody<'static>>, Problem> {
    let stream: StreamName = call.parse_id("stream")?;
    let tenant = call.stream_tenant()?;
    let wanted = wanted_events(&call.query)?;
    let versions = versions(call)?;
    let streams = Streams(&call.api.context);
    let mut page = match streams.read(&tenant, &stream, wanted).await {
        Ok(page) => page,
        Err(error) => return Err(read_problem(call, error)),
    };
    let bytes = page.events.iter().map(|entry| entry.event.weight()).sum();
    let respond = || {
        streams.convert(&versions, &mut page);
        Json::new(&StreamPageBody::new(&stream, &page)).without_lifetime()
    };
    Ok(call.heavy_work(bytes, respond).await)
}

fn read_problem(call: &Call, error: StreamReadError) -> Problem {
    match error {
        StreamReadError::NotFound => call.stream_not_found(),
        StreamReadError::Gone { first_version } => Problem::VersionGone { first_version },
        StreamReadError::Unavailable(error) => error.into(),
    }
}

/// `GET /v1/streams/{stream}/state`
pub async fn state(call: &Call) -> Result<Json<StreamStateBody<'static>>, Problem> {
    let stream: StreamName = call.parse_id("stream")?;
    let tenant = call.stream_tenant()?;
    let bound = state_bound(&call.query)?;
    let folded = StreamStates(&call.api.context).get(&call.principal.scope, &tenant, &stream, bound).await;
    let folded = folded.map_err(|error| match error {
        FoldError::Read(error) => read_problem(call, error),
        too_long => Problem::StreamTooLong(state_detail(&too_long)),
    })?;
    let respond = || Json::new(&StreamStateBody::new(&stream, &folded)).without_lifetime();
    Ok(call.heavy_work(folded.state.len(), respond).await)
}

fn state_detail(error: &FoldError) -> String {
    match error {
        FoldError::TooSlow { version } => {
            format!(
                "{error}; what was folded is kept for a while: ask again, which continues after version {version}"
            )
        }
        _ => format!(
            "{error}, and at most {} are; ask for earlier versions before, with `untilVersion`",
            limits::STATE_EVENTS_MAX
        ),
    }
}

/// `GET /v1/streams`
pub async fn list(call: &Call) -> Result<Json<ListBody<StreamBody<'static>>>, Problem> {
    let tenant = call.stream_tenant()?;
    let limit = call.query.limit()?;
    let prefix = call.query.text("prefix").unwrap_or_default().to_owned();
    let after = call.query.text("cursor").map(|cursor| lists::decode_name(List::Streams, cursor));
    let (found, has_more) =
        Streams(&call.api.context).list(&tenant, prefix, after.transpose()?, limit).await?;
    let last = found.last().filter(|_| has_more);
    let next = last.map(|(stream, _)| lists::encode(List::Streams, stream.as_str().as_bytes()));
    let data = found.iter().map(|(stream, head)| StreamBody::new(&tenant, stream, head)).collect();
    Ok(lists::list_reply(&call.path, &call.query, data, next).without_lifetime())
}
