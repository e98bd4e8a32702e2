//! `GET /v1/feed`

use std::sync::Arc;

use bytes::Bytes;

use super::model::{FeedBody, page_json};
use super::query;
use super::reader::FeedReader;
use crate::api::Call;
use crate::api::http::heavy_work::off_thread;
use crate::api::http::problem::Problem;
use crate::api::http::reply::Reply;
use crate::api::http::response::{OperationResponse, ReadTurn};
use crate::api::routes::{SchemaOf, schema};
use crate::limits;
use crate::service::Feed;
use crate::service::feed::FeedBounds;

/// The name of the log, in every response of the feed.
pub const LOG_HEADER: &str = "balto-log";

/// A page of the feed.
pub struct FeedResponse(Reply);

impl OperationResponse for FeedResponse {
    const STATUS: u16 = 200;
    const SCHEMA: Option<SchemaOf> = Some(schema::<FeedBody<'static>>);
    const TURN: ReadTurn = ReadTurn::Handler;

    fn into_reply(self) -> Reply {
        self.0
    }
}

/// `GET /v1/feed`
pub async fn get(call: &Call) -> Result<FeedResponse, Problem> {
    let filter = query::filter(call)?;
    let start = query::parse_start(call.query.text("after").unwrap_or("oldest"));
    let start = start.map_err(|detail| Problem::parameter("after", detail))?;
    let (wait, events) = (call.query.wait()?, call.query.feed_limit()?);
    let feed = Feed(&call.api.context);
    let position = feed.begin(&filter, start)?;
    let bounds = FeedBounds { events, bytes: limits::PAGE_BYTES_TARGET };
    let mut reader =
        FeedReader { api: Arc::clone(&call.api), party: call.party.clone(), filter, position, bounds };
    let page = reader.wait_for_page(wait, call.client.gone()).await?;
    let is_long = page.events.len() >= limits::HEAVY_PAGE_ITEMS;
    let body = if is_long { off_thread(|| page_json(&page)) } else { page_json(&page) };
    Ok(FeedResponse(Reply::bytes(200, Bytes::from(body)).with_header(LOG_HEADER, feed.log_id())))
}
