//! The feed as a stream of events (`text/event-stream`, WHATWG HTML, section 9.2).
//!
//! A stream holds one page at most. It reads the next one when the socket takes bytes, so a slow
//! client buffers nothing here; `server.answer_timeout` ends a client that takes none.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::model::json;
use super::reader::{FeedReader, Followed};
use crate::api::http::client_watch::ClientWatch;
use crate::api::http::connection_limit::StreamSeat;
use crate::api::http::reply::BodyStream;
use crate::context::waiter_limit::WaiterPlace;
use crate::domain::Position;
use crate::limits;
use crate::service::types::{FeedError, FeedEvent, FeedPage};
use crate::service::{Feed, Keys};

/// Why a stream ended, for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// [`limits::STREAM_LIFETIME`] is over.
    Lifetime,
    Shutdown,
    Unavailable,
    /// The party has more than its share of the connections, and another one needs room.
    Connections,
    /// The key was deleted or has expired.
    Unauthorized,
    /// The consumer was deleted.
    Deleted,
    /// The consumer reads other events now.
    Redefined,
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Lifetime => "lifetime",
            Self::Shutdown => "shutdown",
            Self::Unavailable => "unavailable",
            Self::Connections => "connections",
            Self::Unauthorized => "unauthorized",
            Self::Deleted => "deleted",
            Self::Redefined => "redefined",
        }
    }
}

/// A stream of events from the position of its reader.
pub struct EventStream {
    reader: FeedReader,
    client: ClientWatch,
    ended: watch::Receiver<bool>,
    ends_at: Instant,
    /// The last position that the client knows, and the time of its block.
    told: Position,
    told_at: Instant,
    written_at: Instant,
    /// The shortest time to the next write at the end of the log.
    pause: Duration,
    has_said_caught_up: bool,
    /// Sent first.
    preface: Option<Bytes>,
    is_over: bool,
    /// Another party needs the connection.
    is_displaced: bool,
    seat: StreamSeat,
    _place: WaiterPlace,
}

impl EventStream {
    /// `retry`: the client's pause before it connects again.
    #[must_use]
    pub(crate) fn new(
        reader: FeedReader,
        client: ClientWatch,
        place: WaiterPlace,
        seat: StreamSeat,
        retry: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            ended: Feed(&reader.api.context).ended(),
            told: reader.position,
            reader,
            client,
            ends_at: now + limits::STREAM_LIFETIME,
            told_at: now,
            written_at: now,
            pause: limits::STREAM_PAUSE,
            has_said_caught_up: false,
            preface: Some(format!("retry: {}\n\n", retry.as_millis()).into()),
            is_over: false,
            is_displaced: false,
            seat,
            _place: place,
        }
    }

    /// The body of the response.
    #[must_use]
    pub fn into_body(self) -> BodyStream {
        Box::pin(stream::unfold(self, |mut stream| async {
            let bytes = stream.next().await?;
            Some((bytes, stream))
        }))
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.preface.is_some() {
            return self.preface.take();
        }
        while !self.is_over {
            if *self.ended.borrow() {
                return self.end(End::Shutdown);
            }
            if Instant::now() >= self.ends_at {
                return self.end(End::Lifetime);
            }
            if self.is_displaced {
                return self.end(End::Connections);
            }
            match self.reader.follow() {
                Followed::Unchanged => {}
                Followed::Reset => return Some(self.begin_again()),
                Followed::Deleted => return self.end(End::Deleted),
                Followed::Redefined => return self.end(End::Redefined),
            }
            let page = tokio::select! {
                biased;
                () = self.seat.ended() => return self.end(End::Connections),
                page = self.reader.next_page() => page,
            };
            let page = match page {
                Ok(page) => page,
                Err(FeedError::Gone { oldest }) => {
                    self.is_over = true;
                    return Some(control("gone", None, &format!("{{\"oldest\":\"{oldest}\"}}")));
                }
                Err(error) => {
                    tracing::warn!(%error, "stream of events ended");
                    return self.end(End::Unavailable);
                }
            };
            if self.reader.key.as_ref().is_some_and(|key| !Keys(&self.reader.api.context).is_valid(key)) {
                // The client has not got this page.
                self.reader.position = self.told;
                return self.end(End::Unauthorized);
            }
            if let Some(bytes) = self.encode(&page) {
                self.written_at = Instant::now();
                self.pause = pause_after(bytes.len());
                return Some(bytes);
            }
            if page.is_caught_up() && !self.wait(page.head).await {
                return None;
            }
        }
        None
    }

    fn end(&mut self, end: End) -> Option<Bytes> {
        self.is_over = true;
        Some(control("end", Some(self.reader.position), &format!("{{\"reason\":\"{}\"}}", end.as_str())))
    }

    /// The consumer that reads was reset. The events after its new position follow.
    fn begin_again(&mut self) -> Bytes {
        let position = self.reader.position;
        self.tell(position);
        self.has_said_caught_up = false;
        control("reset", Some(position), &format!("{{\"position\":\"{position}\"}}"))
    }

    /// The blocks after a page; `None` if there is nothing to say yet.
    fn encode(&mut self, page: &FeedPage) -> Option<Bytes> {
        let bytes = page.events.iter().map(|event| block(event).len()).sum();
        let mut out = BytesMut::with_capacity(bytes);
        for event in &page.events {
            out.extend_from_slice(block(event));
        }
        if let Some(last) = page.events.last() {
            self.tell(last.position);
        }
        let catches_up = page.is_caught_up() && !self.has_said_caught_up;
        self.has_said_caught_up |= catches_up;
        let now = Instant::now();
        if catches_up {
            let data = format!("{{\"position\":\"{}\"}}", page.next);
            out.extend_from_slice(&control("caughtup", Some(page.next), &data));
            self.tell(page.next);
        } else if page.next.0 >= self.told.0 + limits::STREAM_ID_POSITIONS
            || (page.next > self.told && now >= self.told_at + limits::STREAM_ID_INTERVAL)
        {
            out.extend_from_slice(format!("id: {}\n\n", page.next).as_bytes());
            self.tell(page.next);
        } else if out.is_empty() && now >= self.written_at + limits::STREAM_HEARTBEAT {
            out.extend_from_slice(b":\n\n");
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    fn tell(&mut self, position: Position) {
        (self.told, self.told_at) = (position, Instant::now());
    }

    /// Waits for an event after `head`, or for the time of the next block. Returns false when the
    /// client has gone.
    async fn wait(&mut self, head: Position) -> bool {
        let now = Instant::now();
        if now >= self.told_at + limits::STREAM_ID_INTERVAL {
            // The position was looked at just now, and the client knows it.
            self.told_at = now;
        }
        let next = (self.told_at + limits::STREAM_ID_INTERVAL)
            .min(self.written_at + limits::STREAM_HEARTBEAT)
            .min(self.ends_at);
        let feed = Feed(&self.reader.api.context);
        tokio::select! {
            _ = feed.changed(head) => {
                // Bounds the writes of a busy stream: several commits share one.
                tokio::time::sleep_until(self.written_at + self.pause).await;
                true
            }
            () = tokio::time::sleep_until(next) => true,
            () = self.seat.ended() => {
                self.is_displaced = true;
                true
            }
            () = self.reader.revoked() => true,
            () = self.reader.interrupted() => true,
            () = self.client.gone() => false,
        }
    }
}

/// The shortest time from a write of this many bytes to the next one at the end of the log.
fn pause_after(bytes: usize) -> Duration {
    if bytes >= limits::STREAM_BUSY_BYTES { limits::STREAM_BUSY_PAUSE } else { limits::STREAM_PAUSE }
}

/// The block of an event. All streams share it.
fn block(entry: &FeedEvent) -> &Bytes {
    entry.block.get_or_init(|| {
        let json = json(entry);
        let mut out = BytesMut::with_capacity(json.len() + 40);
        out.extend_from_slice(format!("id: {}\n", entry.position).as_bytes());
        put_data(&mut out, json);
        out.freeze()
    })
}

/// A control block, with the type `balto.<name>`.
fn control(name: &str, id: Option<Position>, data: &str) -> Bytes {
    let mut out = BytesMut::new();
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    out.extend_from_slice(format!("event: balto.{name}\n").as_bytes());
    put_data(&mut out, data.as_bytes());
    out.freeze()
}

/// Adds the data of a block and its end. Each line end of the data begins another `data` line.
fn put_data(out: &mut BytesMut, data: &[u8]) {
    let mut rest = data;
    loop {
        let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let line = &rest[..end.unwrap_or(rest.len())];
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.put_u8(b'\n');
        let Some(end) = end else { break };
        let is_pair = rest[end..].starts_with(b"\r\n");
        rest = &rest[end + if is_pair { 2 } else { 1 }..];
    }
    out.put_u8(b'\n');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::Event;

    fn entry(data: &str) -> FeedEvent {
        let data = data.as_bytes().to_vec().into();
        FeedEvent::new(Position(7), Arc::new(Event { data, ..crate::rules::tests::event() }))
    }

    #[test]
    fn busy_streams_pause_longer() {
        let pauses = [0, 8_191, 8_192, 65_536].map(|bytes| pause_after(bytes).as_millis());
        assert_eq!(pauses, [5, 5, 25, 25]);
    }

    #[test]
    fn block_of_an_event_is_its_id_and_its_json() {
        let entry = entry("{\"a\":1}");
        let text = String::from_utf8(block(&entry).to_vec()).unwrap();
        let expected = format!("id: 7\ndata: {}\n\n", std::str::from_utf8(json(&entry)).unwrap());
        assert_eq!(text, expected);
        assert!(text.contains(r#""data":{"a":1},"position":7"#), "{text}");
    }

    #[test]
    fn line_ends_in_data_begin_new_lines() {
        let entry = entry("{\n\"a\":\r\n1\r}");
        let text = String::from_utf8(block(&entry).to_vec()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(text.ends_with("data: 1\ndata: },\"position\":7}\n\n"), "{text}");
        // A client joins the lines with LF.
        let joined: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("data: ")).collect();
        let value: serde_json::Value = serde_json::from_str(&joined.join("\n")).unwrap();
        assert_eq!((&value["data"]["a"], &value["position"]), (&1.into(), &7.into()));
    }

    #[test]
    fn control_block_has_a_type_and_data() {
        let bytes = control("caughtup", Some(Position(9)), "{}");
        assert_eq!(bytes, "id: 9\nevent: balto.caughtup\ndata: {}\n\n");
        assert_eq!(control("gone", None, "{}"), "event: balto.gone\ndata: {}\n\n");
    }
}
