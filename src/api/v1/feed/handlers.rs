//! `GET /v1/feed`

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use bytes::Bytes;

use super::model::{FeedBody, batch_json, page_json};
use super::query;
use super::reader::FeedReader;
use super::stream::EventStream;
use crate::api::Call;
use crate::api::http::heavy_work::off_thread;
use crate::api::http::problem::{FieldError, Problem};
use crate::api::http::reply::Reply;
use crate::api::http::response::{OperationResponse, ReadTurn};
use crate::api::routes::{SchemaOf, schema};
use crate::api::v1::cloudevents::BATCHED;
use crate::api::v1::consumers;
use crate::context::consumer_watch::ConsumerConnection;
use crate::domain::VersionChoice;
use crate::limits;
use crate::rules::feed::FeedFilter;
use crate::service::Feed;
use crate::service::feed::FeedBounds;
use crate::service::types::FeedStart;

/// The name of the log, in every response of the feed.
pub const LOG_HEADER: &str = "balto-log";
/// The position after which a stream goes on, from the client that lost its connection.
const LAST_EVENT_ID: &str = "last-event-id";
pub const EVENT_STREAM: &str = "text/event-stream";

/// A page or a stream of the feed.
pub struct FeedResponse(Reply);

impl OperationResponse for FeedResponse {
    const STATUS: u16 = 200;
    const SCHEMA: Option<SchemaOf> = Some(schema::<FeedBody<'static>>);
    const TURN: ReadTurn = ReadTurn::Handler;
    const OTHER_MEDIA: &'static [&'static str] = &[EVENT_STREAM, BATCHED];

    fn into_reply(self) -> Reply {
        self.0
    }
}

/// The form of the response, by `Accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForm {
    Page,
    Stream,
    /// A batch of CloudEvents, as in HTTP Feeds.
    Batch,
}

impl FeedForm {
    /// The first known media type that the client accepts; without one, a page.
    #[must_use]
    pub fn accepted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let form = |range: &str| {
            let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
            let media = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=").map(str::to_owned));
            if weight.is_some_and(|weight| weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0)) {
                return None;
            }
            match media.as_str() {
                "application/json" => Some(Self::Page),
                EVENT_STREAM => Some(Self::Stream),
                BATCHED => Some(Self::Batch),
                _ => None,
            }
        };
        values.flat_map(|value| value.split(',')).find_map(form).unwrap_or(Self::Page)
    }
}

/// `GET /v1/feed`
pub async fn get(call: &Call) -> Result<FeedResponse, Problem> {
    if let Some(consumer) = call.query.get("consumer")? {
        return consumers::handlers::events_of_named(call, &consumer).await;
    }
    let filter = query::filter(call)?;
    let start = query::start(call, FeedForm::accepted(&call.headers)).await?;
    let wanted = FeedRequest { filter, versions: query::versions(call)?, start };
    answer(call, wanted, None).await
}

/// The events that a caller wants.
pub struct FeedRequest {
    pub filter: FeedFilter,
    pub versions: VersionChoice,
    pub start: FeedStart,
}

/// Answers with the feed from a start on, in the form that the client accepts. `connection`: of the
/// consumer that reads.
///
/// # Errors
/// 410 and 409 for a position that the log does not have, 422 for wrong parameters, 429.
pub async fn answer(
    call: &Call,
    FeedRequest { filter, versions, start }: FeedRequest,
    connection: Option<ConsumerConnection>,
) -> Result<FeedResponse, Problem> {
    let form = FeedForm::accepted(&call.headers);
    let (wait, events) = (query::wait(call, form)?, call.query.feed_limit()?);
    let start = if form == FeedForm::Stream { last_event_id(&call.headers)?.unwrap_or(start) } else { start };
    let feed = Feed(&call.api.context);
    let position = feed.begin(&filter, start)?;
    let bytes = if form == FeedForm::Stream { limits::STREAM_PAGE_BYTES } else { limits::PAGE_BYTES_TARGET };
    let bounds = FeedBounds { events, bytes };
    let reader = FeedReader {
        api: Arc::clone(&call.api),
        party: call.party.clone(),
        filter,
        versions,
        position,
        bounds,
        key: call.principal.key.clone(),
        connection,
    };
    let reply = match form {
        FeedForm::Page => page(call, reader, wait).await?,
        FeedForm::Batch => batch(call, reader, wait).await?,
        FeedForm::Stream => stream(call, reader)?,
    };
    Ok(FeedResponse(reply.with_header(LOG_HEADER, feed.log_id())))
}

async fn page(call: &Call, mut reader: FeedReader, wait: Duration) -> Result<Reply, Problem> {
    let page = reader.wait_for_page(wait, call.gone()).await?;
    let is_long = page.events.len() >= limits::HEAVY_PAGE_ITEMS;
    let body = if is_long { off_thread(|| page_json(&page)) } else { page_json(&page) };
    Ok(Reply::bytes(200, Bytes::from(body)))
}

/// A page as a batch of CloudEvents. A consumer's position moves by commits, so its page has no
/// `Link`.
async fn batch(call: &Call, mut reader: FeedReader, wait: Duration) -> Result<Reply, Problem> {
    let page = reader.wait_for_page(wait, call.gone()).await?;
    let body = off_thread(|| batch_json(Feed(&call.api.context), &page));
    let reply = Reply::bytes(200, Bytes::from(body)).with_content_type(BATCHED);
    if reader.connection.is_some() {
        return Ok(reply);
    }
    let next = format!("{:020}", page.next.0);
    let link = call.query.link(&call.path, (query::LAST_EVENT, &next), &["after"]);
    Ok(reply.with_header("link", &link))
}

fn stream(call: &Call, reader: FeedReader) -> Result<Reply, Problem> {
    let place = Feed(&call.api.context).enter_stream(call.party.clone(), call.config.max_streams);
    let place = place.map_err(crate::service::types::FeedError::from)?;
    // Clients that lost their connections at the same time do not connect again at the same time.
    let spread = (limits::STREAM_RETRY_MAX - limits::STREAM_RETRY_MIN).as_millis() as u64;
    let random = u64::from_be_bytes(call.api.context.random_bytes::<8>());
    let retry = limits::STREAM_RETRY_MIN + Duration::from_millis(random % (spread + 1));
    let seat = call.seat.begin_stream(&call.party);
    let stream = EventStream::new(reader, call.client.clone(), place, seat, retry);
    // Proxies with this header do not buffer.
    let reply = Reply::stream(stream.into_body()).with_header("x-accel-buffering", "no");
    Ok(reply.with_content_type(EVENT_STREAM))
}

/// The position of a client that connects again. It replaces `after` of its URL.
fn last_event_id(headers: &HeaderMap) -> Result<Option<FeedStart>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else { return Ok(None) };
    match value.to_str().map_err(|_| "not a cursor").and_then(query::parse_cursor) {
        Ok(position) => Ok(Some(FeedStart::After(position))),
        Err(detail) => Err(Problem::Validation(vec![FieldError::header(LAST_EVENT_ID, detail)])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_known_media_type_decides_the_form() {
        for (accept, form) in [
            ("", FeedForm::Page),
            ("*/*", FeedForm::Page),
            ("text/event-stream", FeedForm::Stream),
            ("Text/Event-Stream; charset=utf-8", FeedForm::Stream),
            ("text/event-stream;q=0, application/json", FeedForm::Page),
            ("text/html, text/event-stream;q=0.9, application/json", FeedForm::Stream),
            ("application/json, text/event-stream", FeedForm::Page),
            ("application/cloudevents-batch+json", FeedForm::Batch),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(FeedForm::accepted(&headers), form, "{accept}");
        }
        assert_eq!(FeedForm::accepted(&HeaderMap::new()), FeedForm::Page);
    }
}
