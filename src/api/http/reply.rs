//! A response as plain data, so that it can be stored and replayed.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde::Serialize;

use crate::context::responses::{Answer, Remember};
use crate::domain::Idempotency;

/// The response of a handler.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub body: Bytes,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Reply {
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
    pub fn hold_until_written(mut self, permit: impl Send + 'static) -> Self {
        if !self.body.is_empty() {
            self.body = Bytes::from_owner(PermitBody { body: self.body, _permit: permit });
        }
        self
    }

    #[must_use]
    pub fn answer(&self) -> Answer {
        Answer { status: self.status, body: Arc::from(self.body.as_ref()) }
    }

    /// The stored response for this key; `None` without a key.
    #[must_use]
    pub fn to_stored(&self, idempotency: Option<Idempotency>) -> Option<Remember> {
        Some(Remember { idempotency: idempotency?, answer: self.answer() })
    }

    /// Replays a stored response. `path` is the request's path, below which `Location` is.
    #[must_use]
    pub fn replay(answer: &Answer, path: &str) -> Self {
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

struct PermitBody<T> {
    body: Bytes,
    _permit: T,
}

impl<T> AsRef<[u8]> for PermitBody<T> {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[derive(serde::Deserialize)]
struct Created {
    id: String,
}
