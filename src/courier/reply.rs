//! The reply to an outbound request.
//!
//! Owns how much of a reply is read and kept. The status decides the outcome. A body that is
//! endless, truncated, too long or malformed does not change it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::maybe_done;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use hyper::{Response, StatusCode};

use super::deadline::{running_timer, with_deadline};
use super::pool::PooledConnection;
use crate::domain::text::truncated;
use crate::domain::{ConnectionFacts, ErrorClass, Network, ReceiverAnswer};
use crate::limits;

/// The result of a request.
#[derive(Clone, Debug)]
pub struct ReceiverReply {
    /// The status, or the error without a valid status.
    pub outcome: Result<ReceiverAnswer, (ErrorClass, String)>,
    pub retry_after: Option<String>,
    pub webhook_delivery: Option<String>,
    /// `WebHook-Allowed-Origin`. Several lines are joined with a comma (RFC 9110, section 5.3).
    pub allowed_origin: Option<String>,
    /// `WebHook-Allowed-Rate`, joined in the same way.
    pub allowed_rate: Option<String>,
    /// Target of a redirect, for display only: at most [`limits::LOCATION_BYTES_MAX`] bytes.
    pub location: Option<String>,
    /// The first [`limits::REPLY_BYTES_MAX`] bytes of the body.
    pub body: Bytes,
    pub network: Network,
    pub connection: ConnectionFacts,
    /// The headers of a reply that is not a success, in order: names in lower case, and values. At
    /// most [`limits::REPLY_HEADERS_BYTES_KEPT_MAX`].
    pub headers: Vec<(Box<str>, Box<str>)>,
    pub duration: Duration,
    /// Policy forbids the URL itself. No request was sent, and later attempts cannot succeed.
    pub url_is_forbidden: bool,
}

impl ReceiverReply {
    /// A failed request.
    #[must_use]
    pub fn failed(class: ErrorClass, message: String) -> Self {
        Self::new::<ReceiverAnswer>(Err((class, truncated(&message, limits::ERROR_BYTES_MAX).to_owned())))
    }

    /// A reply with the given head and no body.
    pub(super) fn with_headers(status: u16, headers: &HeaderMap, network: Network) -> Self {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        Self {
            retry_after: header("retry-after"),
            webhook_delivery: header("webhook-delivery"),
            allowed_origin: joined_header(headers, "webhook-allowed-origin"),
            allowed_rate: joined_header(headers, "webhook-allowed-rate"),
            location: header("location")
                .map(|location| truncated(&location, limits::LOCATION_BYTES_MAX).to_owned()),
            headers: if (200..300).contains(&status) { Vec::new() } else { kept_headers(headers) },
            network,
            ..Self::new(Ok(ReceiverAnswer::Status(status)))
        }
    }

    /// The status, or the failure in its place.
    ///
    /// # Errors
    /// Without an HTTP reply.
    pub fn status(&self) -> Result<u16, (ErrorClass, &str)> {
        match &self.outcome {
            Ok(ReceiverAnswer::Status(status)) => Ok(*status),
            // Only messages are confirmed.
            Ok(ReceiverAnswer::Confirmed) => Err((ErrorClass::Protocol, "not an HTTP reply")),
            Err((class, text)) => Err((*class, text)),
        }
    }

    /// A reply without headers and body.
    #[must_use]
    pub fn new<A: Into<ReceiverAnswer>>(outcome: Result<A, (ErrorClass, String)>) -> Self {
        Self {
            outcome: outcome.map(Into::into),
            retry_after: None,
            webhook_delivery: None,
            allowed_origin: None,
            allowed_rate: None,
            location: None,
            body: Bytes::new(),
            network: Network::Public,
            connection: ConnectionFacts::default(),
            headers: Vec::new(),
            duration: Duration::ZERO,
            url_is_forbidden: false,
        }
    }
}

/// Reads a reply's body. Also returns whether the connection can be reused: whether the end of this
/// reply, and so the start of the next one, is unambiguous.
pub(super) async fn read_reply(
    mut response: Response<Incoming>,
    connection: &mut PooledConnection,
    started: Instant,
    mut deadline: Pin<&mut impl Future<Output = ()>>,
) -> (ReceiverReply, bool) {
    let status = response.status().as_u16();
    let mut reply = ReceiverReply::with_headers(status, response.headers(), connection.network);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let message = "the receiver switched protocols".to_owned();
        reply.outcome = Err((ErrorClass::Protocol, message));
        reply.duration = started.elapsed();
        return (reply, false);
    }
    let is_reusable = connection.has_regular_reply() && has_unambiguous_length(&response);
    let mut body_deadline = pin!(maybe_done(running_timer(limits::REPLY_BODY_TIMEOUT)));
    let mut body_deadline = pin!(poll_fn(|cx| match deadline.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => body_deadline.as_mut().poll(cx),
    }));
    let mut body = BytesMut::new();
    while body.len() < limits::REPLY_BYTES_MAX {
        let frame = pin!(response.body_mut().frame());
        let frame = with_deadline(body_deadline.as_mut(), pin!(connection.drive(frame))).await;
        let Some(Some(Ok(frame))) = frame else { break };
        let chunk = frame.into_data().unwrap_or_default(); // trailers are skipped
        let room = limits::REPLY_BYTES_MAX - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    drop(response);
    reply.body = body.freeze();
    reply.duration = started.elapsed();
    if (200..300).contains(&status) {
        // A receiver may accept a request before it has read all of it. Give it time for the rest.
        let _finished = with_deadline(body_deadline, pin!(connection.finish())).await;
    }
    (reply, is_reusable)
}

/// The first headers within [`limits::REPLY_HEADERS_BYTES_KEPT_MAX`]. A longer one is left out.
fn kept_headers(headers: &HeaderMap) -> Vec<(Box<str>, Box<str>)> {
    let mut room = limits::REPLY_HEADERS_BYTES_KEPT_MAX;
    let mut kept = Vec::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        if let Some(rest) = room.checked_sub(name.as_str().len() + value.len()) {
            room = rest;
            kept.push((name.as_str().into(), value.into()));
        }
    }
    kept
}

/// All lines of a header, joined with commas.
fn joined_header(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines = headers.get_all(name).iter();
    let lines: Vec<_> = lines.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

/// Whether every reader finds the end of the body at the same place. With both a length and a
/// transfer coding, readers differ (RFC 9112, section 6.3). A 204 or 304 reply has no body to read,
/// so if it announces one, those bytes might be taken for the next reply.
fn has_unambiguous_length(response: &Response<Incoming>) -> bool {
    let length = response.headers().get(CONTENT_LENGTH);
    let is_coded = response.headers().contains_key(TRANSFER_ENCODING);
    if matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return !is_coded && length.is_none_or(|length| length == "0");
    }
    !is_coded || length.is_none()
}
