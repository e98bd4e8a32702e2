//! An answer as plain data: status, headers and bytes, so that it can be remembered and given again.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde::Serialize;

use crate::context::responses::{Answer, Remember};
use crate::domain::Idempotency;

/// What a handler answers.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub body: Bytes,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Reply {
    /// A JSON body. Our own types always serialise; should one not, the client gets a 500 and the log says why.
    pub fn json<T: Serialize + ?Sized>(status: u16, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::bytes(status, body.into()),
            Err(error) => {
                tracing::error!(%error, "an answer could not be serialised");
                Self::bytes(500, Bytes::from_static(b"{\"status\":500,\"code\":\"internal\"}"))
            }
        }
    }

    /// A body that is JSON already.
    #[must_use]
    pub fn bytes(status: u16, body: Bytes) -> Self {
        Self { status, body, headers: Vec::new() }.with_content_type("application/json")
    }

    /// 204.
    #[must_use]
    pub fn empty() -> Self {
        Self { status: 204, body: Bytes::new(), headers: Vec::new() }
    }

    #[must_use]
    pub fn with_content_type(mut self, media: &'static str) -> Self {
        self.headers.retain(|(name, _)| name != header::CONTENT_TYPE);
        self.headers.push((header::CONTENT_TYPE, HeaderValue::from_static(media)));
        self
    }

    /// A value that cannot be a header (it never happens with values of our own) is left out.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((HeaderName::from_static(name), value));
        }
        self
    }

    /// The first header of this name, for tests and for answers that are remembered.
    #[must_use]
    pub fn header(&self, wanted: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| value.to_str().ok())
    }

    /// Keeps something for as long as the body has not been written.
    #[must_use]
    pub fn holding(mut self, turn: impl Send + 'static) -> Self {
        if !self.body.is_empty() {
            self.body = Bytes::from_owner(Holding { body: self.body, _turn: turn });
        }
        self
    }

    #[must_use]
    pub fn answer(&self) -> Answer {
        Answer { status: self.status, body: Arc::from(self.body.as_ref()) }
    }

    /// This answer, to be given again to whoever comes with the key.
    #[must_use]
    pub fn remembered(&self, idempotency: Option<Idempotency>) -> Option<Remember> {
        Some(Remember { idempotency: idempotency?, answer: self.answer() })
    }

    /// An earlier answer, given again. `path` is where the request went: a created thing lives below it.
    #[must_use]
    pub fn again(answer: &Answer, path: &str) -> Self {
        let body = Bytes::copy_from_slice(&answer.body);
        let mut reply = if body.is_empty() { Self::empty() } else { Self::bytes(answer.status, body) };
        reply.status = answer.status;
        if answer.status == 201
            && let Ok(Created { id }) = serde_json::from_slice(&answer.body)
        {
            reply = reply.with_header("location", &format!("{path}/{id}"));
        }
        reply.with_header("idempotent-replayed", "true")
    }

    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // What receivers replied stands in some answers, and a browser may be what reads them.
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // Answers show secrets and payloads, and change at any time: no cache may keep one.
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

struct Holding<T> {
    body: Bytes,
    _turn: T,
}

impl<T> AsRef<[u8]> for Holding<T> {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[derive(serde::Deserialize)]
struct Created {
    id: String,
}
