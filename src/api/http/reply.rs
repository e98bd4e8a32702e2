//! A response as plain data, so that it can be stored and replayed.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde::Serialize;

use crate::api::http::watched_write::WatchedWrite;
use crate::context::responses::{Answer, Remember};
use crate::domain::Idempotency;

/// Bytes of a body that are handed to the connection at once.
const PART_BYTES: usize = 64 * 1024;

/// Bytes that are made while the client reads them.
pub type BodyStream = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// The body of a response.
enum ReplyBody {
    Bytes(Bytes),
    Stream(BodyStream),
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// Marks a response whose body is a stream: the connection stays busy until it ends, and every
/// written byte renews the deadline of its client.
#[derive(Clone, Copy, Debug)]
pub struct Streaming;

/// Held until a body is written, and informed of its progress.
pub trait WritePermit: fmt::Debug + Send + Sync + 'static {
    /// The connection takes another part: its client has read earlier ones.
    fn on_progress(&self);
}

/// The response of a handler.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    body: ReplyBody,
    headers: Vec<(HeaderName, HeaderValue)>,
    permit: Option<Arc<dyn WritePermit>>,
    watch: Option<Arc<WatchedWrite>>,
}

impl Reply {
    fn new(status: u16, body: ReplyBody) -> Self {
        Self { status, body, headers: Vec::new(), permit: None, watch: None }
    }

    /// A response with a JSON body; a 500 if the serialisation fails, which is a bug.
    pub fn json<T: Serialize + ?Sized>(status: u16, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::bytes(status, body.into()),
            Err(error) => {
                tracing::error!(%error, "response serialisation failed");
                Self::bytes(500, Bytes::from_static(b"{\"status\":500,\"code\":\"internal\"}"))
            }
        }
    }

    /// A response whose body is serialised JSON.
    #[must_use]
    pub fn bytes(status: u16, body: Bytes) -> Self {
        Self::new(status, ReplyBody::Bytes(body)).with_content_type("application/json")
    }

    /// 304: the client has the current representation.
    #[must_use]
    pub fn not_modified() -> Self {
        Self { status: 304, ..Self::empty() }
    }

    /// 200 with a body that is made while the client reads it. It cannot be stored.
    #[must_use]
    pub fn stream(body: BodyStream) -> Self {
        Self::new(200, ReplyBody::Stream(body))
    }

    /// 204.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(204, ReplyBody::Bytes(Bytes::new()))
    }

    /// The bytes of the body; none for a stream.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match &self.body {
            ReplyBody::Bytes(bytes) => bytes,
            ReplyBody::Stream(_) => &NONE,
        }
    }

    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    #[must_use]
    pub fn with_content_type(mut self, media: &'static str) -> Self {
        self.headers.retain(|(name, _)| name != header::CONTENT_TYPE);
        self.headers.push((header::CONTENT_TYPE, HeaderValue::from_static(media)));
        self
    }

    /// Ignores a value that is not a legal header value.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((HeaderName::from_static(name), value));
        }
        self
    }

    /// The first header of this name.
    #[must_use]
    pub fn header(&self, wanted: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| value.to_str().ok())
    }

    /// Keeps the permit until the body is written.
    #[must_use]
    pub fn hold_until_written(mut self, permit: impl WritePermit) -> Self {
        match self.body {
            ReplyBody::Bytes(bytes) if !bytes.is_empty() => {
                let permit = Arc::new(permit);
                let held = HeldBytes { bytes, _permit: permit.clone() };
                self.body = ReplyBody::Bytes(Bytes::from_owner(held));
                self.permit = Some(permit);
            }
            other => self.body = other,
        }
        self
    }

    /// Runs `undo` unless the response is written.
    #[must_use]
    pub fn undo_unless_written(self, undo: impl FnOnce() + Send + 'static) -> Self {
        Self { watch: Some(Arc::new(WatchedWrite::new(undo))), ..self }
    }

    #[must_use]
    pub fn answer(&self) -> Answer {
        Answer { status: self.status, body: Arc::from(self.body().as_ref()) }
    }

    /// The stored response for this key; `None` without a key.
    #[must_use]
    pub fn to_stored(&self, idempotency: Option<Idempotency>) -> Option<Remember> {
        Some(Remember { idempotency: idempotency?, answer: self.answer() })
    }

    /// Replays a stored response. `path` is the request's path, below which the `Location` of a
    /// resource with an id is. Handlers add that of a resource with a name.
    #[must_use]
    pub fn replay(answer: &Answer, path: &str) -> Self {
        let body = Bytes::copy_from_slice(&answer.body);
        let mut reply = if body.is_empty() { Self::empty() } else { Self::bytes(answer.status, body) };
        reply.status = answer.status;
        if answer.status == 201
            && let Ok(Created { id, name: None }) = serde_json::from_slice(&answer.body)
        {
            reply = reply.with_header("location", &format!("{path}/{id}"));
        }
        reply.with_header("idempotent-replayed", "true")
    }

    pub fn into_response(self) -> Response<Body> {
        let is_stream = matches!(self.body, ReplyBody::Stream(_));
        let watch = self.watch.clone();
        let mut response = Response::new(match (self.body, self.permit) {
            (ReplyBody::Bytes(rest), Some(permit)) => Body::new(HeldBody { rest, permit, watch }),
            (ReplyBody::Bytes(bytes), None) => {
                if let Some(watch) = watch {
                    watch.on_taken();
                }
                Body::from(bytes)
            }
            (ReplyBody::Stream(stream), _) => Body::from_stream(stream.map(Ok::<_, Infallible>)),
        });
        if is_stream {
            response.extensions_mut().insert(Streaming);
        }
        if let Some(watch) = self.watch {
            response.extensions_mut().insert(watch);
        }
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Some responses contain replies of receivers, and the client may be a browser.
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // Responses contain secrets and payloads, and change at any time.
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

/// Bytes with the permit that they hold until the last of them is written.
struct HeldBytes {
    bytes: Bytes,
    _permit: Arc<dyn WritePermit>,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body in parts, so that the permit learns of the client's progress.
struct HeldBody {
    rest: Bytes,
    permit: Arc<dyn WritePermit>,
    watch: Option<Arc<WatchedWrite>>,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        self.permit.on_progress();
        let length = self.rest.len().min(PART_BYTES);
        let part = self.rest.split_to(length);
        if let Some(watch) = self.watch.as_ref().filter(|_| self.rest.is_empty()) {
            watch.on_taken();
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[derive(serde::Deserialize)]
struct Created {
    id: String,
    name: Option<serde::de::IgnoredAny>,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt as _;

    use super::*;

    #[derive(Debug, Default)]
    struct CountedPermit(Arc<[AtomicUsize; 2]>);

    impl WritePermit for CountedPermit {
        fn on_progress(&self) {
            self.0[0].fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Drop for CountedPermit {
        fn drop(&mut self) {
            self.0[1].fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn held_body_is_whole_and_reports_its_progress() {
        let bytes: Bytes = (0..5 * PART_BYTES / 2).map(|at| at as u8).collect::<Vec<_>>().into();
        let counts = Arc::<[AtomicUsize; 2]>::default();
        let reply = Reply::bytes(200, bytes.clone()).hold_until_written(CountedPermit(counts.clone()));
        let body = reply.into_response().into_body();
        assert_eq!(HttpBody::size_hint(&body).exact(), Some(bytes.len() as u64));
        let read = body.collect().await.unwrap().to_bytes();
        assert!(read == bytes);
        let [progress, dropped] = [0, 1].map(|at| counts[at].load(Ordering::Relaxed));
        assert_eq!((progress, dropped), (3, 1));
    }
}
