//! An outbound request before it is sent.
//!
//! Owns the conversion of a URL, headers and body into an HTTP/1.1 request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request};
use url::Url;

use super::broker_url::BrokerUrl;
use super::guard::RefusedUrl;
use super::pool::HttpRequest;
use super::request_url::RequestUrl;
use super::tls::ClientIdentity;
use crate::domain::RequestMethod;

/// One outbound request, with the timeout of its attempt.
#[derive(Debug)]
pub struct OutboundRequest {
    method: Method,
    pub(super) url: Arc<RequestUrl>,
    headers: HeaderMap,
    body: Bytes,
    pub(super) timeout: Duration,
    pub(super) identity: Option<ClientIdentity>,
    /// The request counts at its address for this tenant. `None`: it does not count.
    pub(super) tenant: Option<Arc<str>>,
}

impl OutboundRequest {
    /// A `POST`.
    #[must_use]
    pub fn new(url: Arc<RequestUrl>, headers: HeaderMap, body: Bytes, timeout: Duration) -> Self {
        Self { method: Method::POST, url, headers, body, timeout, identity: None, tenant: None }
    }

    /// An `OPTIONS` request of a handshake, without a body.
    #[must_use]
    pub fn options(url: Arc<RequestUrl>, headers: HeaderMap, timeout: Duration) -> Self {
        Self { method: Method::OPTIONS, ..Self::new(url, headers, Bytes::new(), timeout) }
    }

    /// Sends the request by another method.
    #[must_use]
    pub fn with_method(self, method: RequestMethod) -> Self {
        let method = match method {
            RequestMethod::Post => Method::POST,
            RequestMethod::Put => Method::PUT,
            RequestMethod::Patch => Method::PATCH,
            RequestMethod::Get => Method::GET,
        };
        Self { method, ..self }
    }

    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Sends the request over connections that present this client certificate.
    #[must_use]
    pub fn with_identity(self, identity: Option<ClientIdentity>) -> Self {
        Self { identity, ..self }
    }

    /// Counts the request in the limit of its address, for this tenant.
    #[must_use]
    pub fn for_tenant(self, tenant: &str) -> Self {
        Self { tenant: Some(tenant.into()), ..self }
    }

    /// The URL as it is requested.
    #[must_use]
    pub fn url_text(&self) -> &str {
        self.url.parsed.as_str()
    }

    /// Method, headers and body as they are sent. `None` if the URL cannot be requested.
    #[must_use]
    pub fn into_wire(self) -> Option<(Parts, Bytes)> {
        let body = self.body.clone();
        let mut request = self.into_http().ok()?;
        // The HTTP library adds it when it writes the request.
        if !body.is_empty() || request.method() == Method::POST {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        Some((request.into_parts().0, body))
    }

    /// # Errors
    /// When the URL cannot be requested.
    pub(super) fn into_http(self) -> Result<HttpRequest, RefusedUrl> {
        let wire = self.url.wire()?;
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = wire.request_target.clone();
        *request.headers_mut() = self.headers;
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        request.headers_mut().insert(HOST, wire.host.clone());
        Ok(request)
    }
}

#[cfg(test)]
impl OutboundRequest {
    pub(crate) fn is_options(&self) -> bool {
        self.method == Method::OPTIONS
    }

    /// URL, headers, body and timeout.
    pub(crate) fn contents(&self) -> (&Url, &HeaderMap, &[u8], Duration) {
        (&self.url.parsed, &self.headers, &self.body, self.timeout)
    }
}

/// Whether two URLs have the same scheme, host and port. A malformed URL matches no other.
#[must_use]
pub fn is_same_origin(one: &str, other: &str) -> bool {
    if let (Ok((one, _)), Ok((other, _))) = (BrokerUrl::parse(one), BrokerUrl::parse(other)) {
        return one.has_same_origin(&other);
    }
    let origin = |text| Url::parse(text).map(|url| url.origin());
    matches!((origin(one), origin(other)), (Ok(one), Ok(other)) if one == other)
}
