//! Responses of the feed.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::v1::events::model::LogEventBody;
use crate::service::Feed;
use crate::service::types::{FeedEvent, FeedPage};

/// The JSON of an event. All readers share it.
#[must_use]
pub fn json(entry: &FeedEvent) -> &Bytes {
    entry.json.get_or_init(|| {
        let body = serde_json::to_vec(&LogEventBody::of_feed(entry));
        // Strings, numbers and JSON that was checked before: this cannot fail.
        body.unwrap_or_else(|_| b"null".to_vec()).into()
    })
}

/// A page of the feed.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeedBody<'a> {
    /// Oldest first.
    pub data: Vec<LogEventBody<'a>>,
    /// The cursor after this page. It moves on even if no event matched.
    pub next: String,
    /// The cursor of the log's end.
    pub head: String,
    /// Whether this page ends at `head`.
    pub caught_up: bool,
}

/// The JSON of a page: that of [`FeedBody`], from the shared encodings of its events.
#[must_use]
pub fn page_json(page: &FeedPage) -> Vec<u8> {
    let bytes: usize = page.events.iter().map(|event| json(event).len() + 1).sum();
    let mut body = Vec::with_capacity(bytes + 96);
    body.extend_from_slice(b"{\"data\":[");
    for (number, event) in page.events.iter().enumerate() {
        if number > 0 {
            body.push(b',');
        }
        body.extend_from_slice(json(event));
    }
    let (next, head, caught_up) = (page.next, page.head, page.is_caught_up());
    let rest = format!("],\"next\":\"{next}\",\"head\":\"{head}\",\"caughtUp\":{caught_up}}}");
    body.extend_from_slice(rest.as_bytes());
    body
}

/// The JSON of a page as a batch of CloudEvents (JSON Event Format, section 4).
#[must_use]
pub fn batch_json(feed: Feed<'_>, page: &FeedPage) -> Vec<u8> {
    let mut body = vec![b'['];
    for (number, event) in page.events.iter().enumerate() {
        if number > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&feed.cloudevent(event));
    }
    body.push(b']');
    body
}
