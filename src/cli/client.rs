//! The HTTP client of the client commands, and the text of the daemon's errors.
//!
//! Owns: requests and answers, within bounds of time and size. Never retries: the user decides
//! after a failure.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::{RequestBuilder, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::courier::tls;
use crate::limits;

/// Time limit of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of a whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
const _: () = assert!(limits::WAIT_MAX.as_secs() < ANSWER_TIMEOUT.as_secs());
/// Bound of an answer, in bytes: 250 events of the largest size fit.
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Bound of the text that is shown of a foreign answer, in characters.
const FOREIGN_CHARACTERS_MAX: usize = 200;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "cannot reach {url}: {cause}\n  Start a daemon with `balto serve --dev`, or name another one with BALTO_URL or --server."
    )]
    Unreachable { url: String, cause: String },
    #[error(
        "{url} cannot be trusted: {cause}\n  Name a file with the authority of its certificate in BALTO_CA_FILE or --ca-file."
    )]
    Untrusted { url: String, cause: String },
    #[error("no TLS connection with {url}: {cause}")]
    Tls { url: String, cause: String },
    #[error("{url} does not speak TLS; write http:// in the URL")]
    Plain { url: String },
    #[error("{0}")]
    Refused(ProblemBody),
    #[error("{url} answered with more than {ANSWER_BYTES_MAX} bytes")]
    TooLarge { url: String },
}

/// RFC 9457 problem details: the members that the command line shows.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ProblemBody {
    #[serde(skip)]
    pub(crate) status: u16,
    pub(crate) title: String,
    pub(crate) detail: String,
    pub(crate) code: String,
    pub(crate) errors: Vec<ProblemEntry>,
    /// The part of an atomic request that failed: the index of an event, and a stream.
    index: Option<u64>,
    stream: Option<String>,
    /// The actual position of a consumer that has moved.
    pub(crate) actual: Value,
    #[serde(skip)]
    retry_after: Option<String>,
}

/// One invalid member of the request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ProblemEntry {
    pub(crate) pointer: String,
    /// A parameter of the query, in place of a pointer into the body.
    pub(crate) parameter: Option<String>,
    pub(crate) detail: String,
}

impl ProblemBody {
    fn from_answer(status: StatusCode, retry_after: Option<String>, body: &[u8]) -> Self {
        let mut problem: Self = serde_json::from_slice(body).unwrap_or_else(|_| Self {
            // Not the API: a proxy, or another service at this address. Its text is the best hint.
            detail: String::from_utf8_lossy(body).trim().chars().take(FOREIGN_CHARACTERS_MAX).collect(),
            ..Self::default()
        });
        if problem.title.is_empty() {
            problem.title = status.canonical_reason().unwrap_or("refused").to_owned();
        }
        // The API names its parameter, which is an option here.
        problem.detail = problem.detail.replace("`?tenant=`", "`--tenant`");
        problem.status = status.as_u16();
        problem.retry_after = retry_after;
        problem
    }
}

impl fmt::Display for ProblemBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clean = super::output::clean;
        write!(f, "{}", clean(&self.title))?;
        // The only mistake follows with its place.
        let is_repeated = matches!(&self.errors[..], [only] if only.detail == self.detail);
        if !self.detail.is_empty() && !is_repeated {
            write!(f, ": {}", clean(&self.detail))?;
        }
        write!(f, " ({}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", clean(&self.code))?;
        }
        write!(f, ")")?;
        for fault in &self.errors {
            let place = match (&fault.parameter, fault.pointer.as_str()) {
                (Some(name), _) => name,
                (None, "") => "(body)",
                (None, pointer) => pointer,
            };
            write!(f, "\n  {}: {}", clean(place), clean(&fault.detail))?;
        }
        if let Some(index) = self.index {
            write!(f, "\n  Event: {index} (the first is 0)")?;
        }
        if let Some(stream) = &self.stream {
            write!(f, "\n  Stream: {}", clean(stream))?;
        }
        if self.status == 401 {
            write!(f, "\n  Set BALTO_API_KEY to an API key of this daemon.")?;
        }
        if let Some(wait) = &self.retry_after {
            write!(f, "\n  Retry after: {}", clean(wait))?;
        }
        Ok(())
    }
}

/// A connection to one daemon, with the API key.
pub(crate) struct Client {
    base: Url,
    key: Option<String>,
    http: reqwest::Client,
}

impl Client {
    pub(crate) fn new(base: &str, key: Option<String>) -> anyhow::Result<Self> {
        Self::with_ca_file(base, key, None)
    }

    /// `ca_file` has certificate authorities that are trusted in addition to those of the machine.
    pub(crate) fn with_ca_file(
        base: &str,
        key: Option<String>,
        ca_file: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let url: Url =
            base.parse().map_err(|error| super::usage(format!("`{base}` is not a URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            return Err(super::usage(format!("`{base}` is not an http or https URL")));
        }
        let http = http_client(&url, ca_file, ANSWER_TIMEOUT)?;
        Ok(Self { base: url, key, http })
    }

    /// The URL of a resource. Each segment is percent-encoded.
    fn url(&self, segments: &[&str], query: &[(&'static str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url.set_query(None);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    pub(crate) async fn get(
        &self,
        segments: &[&str],
        query: &[(&'static str, String)],
    ) -> Result<String, Error> {
        self.request(self.http.get(self.url(segments, query))).await
    }

    /// `body` is JSON text, or `None` for an action without arguments.
    pub(crate) async fn post(&self, segments: &[&str], body: Option<String>) -> Result<String, Error> {
        self.request(with_json(self.http.post(self.url(segments, &[])), body)).await
    }

    /// As [`Self::post`], with a query.
    pub(crate) async fn post_to(
        &self,
        segments: &[&str],
        query: &[(&'static str, String)],
        body: String,
    ) -> Result<String, Error> {
        self.request(with_json(self.http.post(self.url(segments, query)), Some(body))).await
    }

    pub(crate) async fn create(
        &self,
        segments: &[&str],
        body: String,
        idempotency_key: Option<&str>,
    ) -> Result<String, Error> {
        self.create_with(segments, &[], body, idempotency_key).await
    }

    /// As [`Self::create`], with a query.
    pub(crate) async fn create_with(
        &self,
        segments: &[&str],
        query: &[(&'static str, String)],
        body: String,
        idempotency_key: Option<&str>,
    ) -> Result<String, Error> {
        let mut request = self.http.post(self.url(segments, query));
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        self.request(with_json(request, Some(body))).await
    }

    /// `body` is a merge patch (RFC 7386).
    pub(crate) async fn patch(&self, segments: &[&str], body: String) -> Result<String, Error> {
        self.request(with_json(self.http.patch(self.url(segments, &[])), Some(body))).await
    }

    /// As [`Self::patch`], with a query.
    pub(crate) async fn patch_to(
        &self,
        segments: &[&str],
        query: &[(&'static str, String)],
        body: String,
    ) -> Result<String, Error> {
        self.request(with_json(self.http.patch(self.url(segments, query)), Some(body))).await
    }

    /// As [`Self::delete`], with a query.
    pub(crate) async fn delete_from(
        &self,
        segments: &[&str],
        query: &[(&'static str, String)],
    ) -> Result<String, Error> {
        self.request(self.http.delete(self.url(segments, query))).await
    }

    pub(crate) async fn delete(&self, segments: &[&str]) -> Result<String, Error> {
        self.request(self.http.delete(self.url(segments, &[]))).await
    }

    /// As [`Self::delete`], with a query.
    pub(crate) async fn delete_at(
        &self,
        segments: &[&str],
        query: &[(&'static str, String)],
    ) -> Result<String, Error> {
        self.request(self.http.delete(self.url(segments, query))).await
    }

    /// `body` is JSON text.
    pub(crate) async fn delete_with(&self, segments: &[&str], body: String) -> Result<String, Error> {
        self.request(with_json(self.http.delete(self.url(segments, &[])), Some(body))).await
    }

    /// `body` is JSON text.
    pub(crate) async fn put(
        &self,
        segments: &[&str],
        query: &[(&'static str, String)],
        body: String,
    ) -> Result<String, Error> {
        self.request(with_json(self.http.put(self.url(segments, query)), Some(body))).await
    }

    /// As [`Self::delete`], with a query.
    pub(crate) async fn delete_where(
        &self,
        segments: &[&str],
        query: &[(&'static str, String)],
    ) -> Result<String, Error> {
        self.request(self.http.delete(self.url(segments, query))).await
    }

    async fn request(&self, request: RequestBuilder) -> Result<String, Error> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let request = request.build().map_err(|error| failed(self.base.to_string(), &error))?;
        let shown = format!("{}{}", request.url().origin().ascii_serialization(), request.url().path());
        let unreachable = |error: reqwest::Error| failed(shown.clone(), &error);
        let mut answer = self.http.execute(request).await.map_err(unreachable)?;
        let status = answer.status();
        let retry_after =
            answer.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Error::TooLarge { url: shown });
            }
            bytes.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            return Err(Error::Refused(ProblemBody::from_answer(status, retry_after, &bytes)));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A client for the server of `url`. It follows no redirects and uses no proxy.
pub(crate) fn http_client(
    url: &Url,
    ca_file: Option<&Path>,
    timeout: Duration,
) -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    let builder = if url.scheme() == "https" {
        builder.tls_backend_preconfigured(tls_config(ca_file)?)
    } else {
        // Plain HTTP needs no certificate authorities: a machine without any can use it.
        tls::install_provider();
        builder.tls_certs_only([])
    };
    builder.build().context("cannot set up the HTTP client")
}

/// The verifier of the courier: it also accepts a trusted self-signed certificate (CA:TRUE) as the
/// server's own, which reqwest's default verifier refuses.
fn tls_config(ca_file: Option<&Path>) -> anyhow::Result<rustls::ClientConfig> {
    let roots = tls::roots(ca_file).map_err(|error| anyhow::anyhow!("cannot use the CA file {error}"))?;
    tls::client_config(Arc::new(roots), None).map_err(anyhow::Error::msg)
}

fn failed(url: String, error: &reqwest::Error) -> Error {
    match tls_error(error) {
        Some(error @ rustls::Error::InvalidCertificate(_)) => {
            Error::Untrusted { url, cause: tls::describe_server(error) }
        }
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            Error::Plain { url }
        }
        Some(error) => Error::Tls { url, cause: tls::describe_server(error) },
        None => Error::Unreachable { url, cause: root_cause(error) },
    }
}

fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An I/O error skips its inner error in `source`.
        cause = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn with_json(request: RequestBuilder, body: Option<String>) -> RequestBuilder {
    match body {
        Some(body) => request.header(header::CONTENT_TYPE, "application/json").body(body),
        None => request,
    }
}

/// The innermost error has the cause ("connection refused"); the outer ones only the place.
pub(crate) fn root_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
pub(crate) mod fake {
    //! A server that gives a prepared answer to each connection and records the requests.

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    /// Answers one connection with each of `answers` (status line and headers, body), then returns
    /// the requests.
    pub(crate) async fn serve(answers: Vec<(&'static str, String)>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            for (head, body) in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                requests.push(read_request(&mut stream).await);
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
            requests
        });
        (url, task)
    }

    async fn read_request(stream: &mut tokio::net::TcpStream) -> String {
        let mut request = Vec::new();
        loop {
            let mut buffer = [0_u8; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            request.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&request).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned))
                .map_or(0, |length| length.parse().unwrap());
            if count == 0 || body.len() >= length {
                return text;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn problem_shows_title_detail_and_pointers() {
        let body = r#"{"title":"Validation failed","detail":"2 members are wrong","code":"validation_failed",
            "errors":[{"pointer":"/type","detail":"has an empty word"},{"pointer":"/id","detail":"is too long"}]}"#;
        let head = "422 Unprocessable Content\r\ncontent-type: application/problem+json";
        let (url, _task) = fake::serve(vec![(head, body.to_owned())]).await;
        let client = Client::new(&url, None).unwrap();
        let error = client.post(&["v1", "events"], Some("{}".to_owned())).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Validation failed: 2 members are wrong (422 validation_failed)\n  /type: has an empty word\n  /id: is too long"
        );
        let one = r#"{"title":"Not valid","detail":"is too long","code":"validation_failed","status":422,
            "errors":[{"pointer":"/id","detail":"is too long"}]}"#;
        let (url, _task) = fake::serve(vec![(head, one.to_owned())]).await;
        let error = Client::new(&url, None).unwrap().get(&["v1"], &[]).await.unwrap_err();
        assert_eq!(error.to_string(), "Not valid (422 validation_failed)\n  /id: is too long");
    }

    #[tokio::test]
    async fn foreign_error_page_is_cut_and_escaped() {
        let page = format!("<html>\x1b[31m{}", "x".repeat(1000));
        let (url, _task) = fake::serve(vec![("502 Bad Gateway\r\nretry-after: 7", page)]).await;
        let error = Client::new(&url, None).unwrap().get(&["v1"], &[]).await.unwrap_err().to_string();
        assert!(error.starts_with("Bad Gateway: <html>\\u{1b}[31mxxx"), "{error}");
        assert!(error.len() < 400 && error.ends_with("Retry after: 7"), "{error}");
    }

    #[tokio::test]
    async fn unreachable_daemon_is_named_with_a_hint() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let client = Client::new(&format!("http://{address}"), None).unwrap();
        let error = client.get(&["v1", "events"], &[]).await.unwrap_err().to_string();
        assert!(error.contains(&format!("cannot reach http://{address}/v1/events")), "{error}");
        assert!(error.contains("BALTO_URL"), "{error}");
    }

    #[tokio::test]
    async fn api_key_and_idempotency_key_are_sent_as_headers() {
        let (url, task) = fake::serve(vec![("202 Accepted", "{}".to_owned())]).await;
        let client = Client::new(&url, Some("s3cret".to_owned())).unwrap();
        client.create(&["v1", "events"], "{\"a\":1}".to_owned(), Some("once")).await.unwrap();
        let request = task.await.unwrap().remove(0);
        assert!(request.starts_with("POST /v1/events HTTP/1.1\r\n"), "{request}");
        for part in ["authorization: Bearer s3cret\r\n", "idempotency-key: once\r\n", "\r\n\r\n{\"a\":1}"] {
            assert!(request.contains(part), "{part} is missing in {request}");
        }
    }

    #[test]
    fn url_keeps_the_base_path_and_encodes_segments() {
        let client = Client::new("https://example.com/balto/", None).unwrap();
        let url = client.url(&["v1", "a b"], &[("type", "x&y".to_owned())]);
        assert_eq!(url.as_str(), "https://example.com/balto/v1/a%20b?type=x%26y");
    }

    #[test]
    fn server_without_an_http_url_is_wrong_usage() {
        for wrong in ["localhost:8400", "ftp://h/", "nonsense"] {
            let error = Client::new(wrong, None).err().unwrap();
            assert!(error.is::<crate::cli::UsageError>(), "{wrong}: {error}");
        }
    }
}
