//! Relays received requests to a server of the developer, and its answers back.
//!
//! Owns: the connection to that server. Never retries: the sender of the webhook does. Answers are
//! bounded in size and time.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::BODY_BYTES_MAX;
use crate::cli::client::{http_client, root_cause};
use crate::cli::usage;

/// Time limit of an answer.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(60);

/// Headers of one connection (RFC 9110, section 7.6.1), and those that the client sets itself.
const CONNECTION_HEADERS: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::CONTENT_LENGTH,
];

/// A relayed request, and the answer.
#[derive(Clone, Debug)]
pub struct Forwarded {
    pub url: String,
    /// The status of the answer, or why there was none.
    pub outcome: Result<u16, String>,
    pub took: Duration,
    /// The body of the answer.
    pub body: Bytes,
}

/// The target of relayed requests.
#[derive(Clone, Debug)]
pub struct Forwarder {
    client: reqwest::Client,
    target: Url,
}

impl Forwarder {
    /// `text` is a URL, whose scheme may be missing.
    pub(super) fn new(text: &str, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let target: Url = full.parse().map_err(|error| usage(format!("`{text}` is not a URL: {error}")))?;
        if !matches!(target.scheme(), "http" | "https") {
            return Err(usage(format!("`{text}` is not an http or https URL")));
        }
        Ok(Self { client: http_client(&target, ca_file, FORWARD_TIMEOUT)?, target })
    }

    /// The URL of the target, with the path and query of the request added.
    fn url(&self, request: &hyper::Uri) -> Url {
        let mut url = self.target.clone();
        let path = request.path().trim_start_matches('/');
        if !path.is_empty() {
            url.set_path(&format!("{}/{path}", self.target.path().trim_end_matches('/')));
        }
        match (self.target.query(), request.query()) {
            (_, None) => {}
            (None, Some(query)) => url.set_query(Some(query)),
            (Some(own), Some(query)) => url.set_query(Some(&format!("{own}&{query}"))),
        }
        url
    }

    /// Sends the request, and returns its answer. Without an answer it is 502 or 504.
    pub(super) async fn relay(&self, head: &Parts, body: Bytes) -> (Forwarded, Response<Full<Bytes>>) {
        let url = self.url(&head.uri);
        let started = Instant::now();
        let mut request = self.client.request(head.method.clone(), url.clone());
        request = request.headers(end_to_end(&head.headers));
        if !body.is_empty() {
            request = request.body(body);
        }
        let answer = fetch(request).await;
        let (outcome, response) = match answer {
            Ok(response) => (Ok(response.status().as_u16()), response),
            Err((status, cause)) => {
                let mut response = Response::new(Bytes::from(format!("balto listen: {cause}\n")));
                *response.status_mut() = status;
                (Err(cause), response)
            }
        };
        let body = if outcome.is_ok() { response.body().clone() } else { Bytes::new() };
        let forwarded = Forwarded { url: url.to_string(), outcome, took: started.elapsed(), body };
        (forwarded, response.map(Full::new))
    }
}

async fn fetch(request: reqwest::RequestBuilder) -> Result<Response<Bytes>, (StatusCode, String)> {
    let failed = |error: reqwest::Error| {
        let status = if error.is_timeout() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
        (status, root_cause(&error))
    };
    let mut answer = request.send().await.map_err(failed)?;
    let mut body = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            let cause = format!("the answer is longer than {BODY_BYTES_MAX} bytes");
            return Err((StatusCode::BAD_GATEWAY, cause));
        }
        body.extend_from_slice(&chunk);
    }
    let mut response = Response::new(body.freeze());
    *response.status_mut() = answer.status();
    *response.headers_mut() = end_to_end(answer.headers());
    Ok(response)
}

/// The headers that are relayed. A `Connection` header names further ones that are not.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in named.flat_map(|value| value.split(',')) {
        kept.remove(name.trim());
    }
    for name in &CONNECTION_HEADERS {
        kept.remove(name);
    }
    kept.remove("keep-alive");
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_are_added_to_the_target() {
        for (target, request, expected) in [
            ("localhost:3000", "/", "http://localhost:3000/"),
            ("http://h/hooks", "/", "http://h/hooks"),
            ("http://h/hooks/", "/a/b?c=d", "http://h/hooks/a/b?c=d"),
            ("http://h/?x=1", "/?y=2", "http://h/?x=1&y=2"),
        ] {
            let forwarder = Forwarder::new(target, None).unwrap();
            assert_eq!(forwarder.url(&request.parse().unwrap()).as_str(), expected, "{target} {request}");
        }
        for wrong in ["ftp://h/", "http://", ""] {
            assert!(Forwarder::new(wrong, None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn headers_of_the_connection_are_not_relayed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("webhook-id", "evt_1"),
            ("x-private", "1"),
            ("connection", "keep-alive, x-private"),
            ("keep-alive", "timeout=5"),
            ("content-length", "3"),
            ("host", "h"),
        ] {
            headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        }
        let kept = end_to_end(&headers);
        assert_eq!(kept.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["webhook-id"]);
    }
}
