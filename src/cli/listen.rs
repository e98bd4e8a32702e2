//! A receiver of webhooks on the loopback interface: verifies signatures, reports, answers or
//! relays, and fails on request.
//!
//! Owns: its listener and the tasks of its connections, which end with it. Bodies, connections and
//! queued reports are bounded; while the reports are not read, senders wait. It must never be
//! reachable from another machine.

mod forward;
mod lines;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use clap::Args;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::args;
use super::stop::Stop;
use crate::domain::time::Timestamp;
pub use forward::{Forwarded, Forwarder};

/// Bound of a webhook's body, in bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Limit of connections at once.
const CONNECTIONS_MAX: usize = 256;
/// Bound of the queued reports.
const REPORTS_MAX: usize = 1_024;
/// Time limit of a request's head, and of its body.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Tolerated difference between a signed timestamp and the clock (Standard Webhooks).
const TIMESTAMP_TOLERANCE: Duration = Duration::from_secs(300);
/// Pause after a failed accept, so that a lack of file descriptors causes no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Receive webhooks: verify their signatures, print them, relay them, fail on request.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    balto listen --port 9000 --secret whsec_...\n  \
    balto listen --forward-to localhost:3000/hooks
  \
    balto listen --fail-first 3               answers the first three requests with 500\n  \
    balto listen --status 503 --latency 2s    a slow receiver that fails")]
pub(super) struct ListenArgs {
    /// Port on 127.0.0.1; 0 selects a free one.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// The endpoint's secret. Wrong signatures get a 401 instead of a success, if not relayed.
    #[arg(long, value_name = "WHSEC", env = "BALTO_LISTEN_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// Answer the first N requests with status 500.
    #[arg(long, value_name = "N", default_value_t = 0)]
    fail_first: u32,
    /// Status of the answers.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..=599))]
    status: u16,
    /// Relay each request to this server, and its answer back. The path of a request is added to
    /// the URL.
    #[arg(long, value_name = "URL", conflicts_with = "status")]
    forward_to: Option<String>,
    /// Delay before each answer.
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    latency: Option<Duration>,
    /// Print bodies, too.
    #[arg(long)]
    body: bool,
}

/// Options of a receiver.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Port on 127.0.0.1; 0 selects a free one.
    pub port: u16,
    /// `whsec_` and base64; `None` leaves signatures unchecked.
    pub secret: Option<String>,
    /// Number of first requests that are answered with 500.
    pub fail_first: u32,
    /// Status of the other answers.
    pub status: u16,
    /// Delay before each answer.
    pub latency: Duration,
    /// Answers in place of the receiver, after the first failures.
    pub forward: Option<Forwarder>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { port: 0, secret: None, fail_first: 0, status: 200, latency: Duration::ZERO, forward: None }
    }
}

/// The result of a signature check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    Ok,
    Bad(&'static str),
    Unchecked,
}

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Bad(reason) => write!(f, "BAD ({reason})"),
            Self::Unchecked => f.write_str("unchecked"),
        }
    }
}

/// A received webhook and its answer.
#[derive(Clone, Debug)]
pub struct Report {
    pub at: Timestamp,
    pub method: String,
    /// Path and query of the request.
    pub target: String,
    /// The `balto-attempt` header.
    pub attempt: Option<String>,
    /// The `webhook-id` header.
    pub id: Option<String>,
    /// The body's `type`.
    pub event_type: Option<String>,
    pub signed: Signed,
    /// The status of the answer.
    pub status: u16,
    pub body: Bytes,
    /// The answer of the server that it was relayed to.
    pub forwarded: Option<Forwarded>,
}

/// The behaviour of a running receiver.
#[derive(Debug)]
struct Behaviour {
    key: Option<Vec<u8>>,
    failures_left: AtomicU32,
    status: AtomicU16,
    latency: Duration,
    forward: Option<Forwarder>,
}

impl Behaviour {
    /// The answer to the next request, or `None` if it is relayed; consumes one of the failures.
    fn next_status(&self) -> Option<StatusCode> {
        let failing =
            self.failures_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if failing.is_ok() {
            return Some(StatusCode::INTERNAL_SERVER_ERROR);
        }
        let status = StatusCode::from_u16(self.status.load(Ordering::Relaxed)).unwrap_or(StatusCode::OK);
        self.forward.is_none().then_some(status)
    }
}

/// Why a receiver cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the secret must be `whsec_` followed by base64")]
    Secret,
    #[error(
        "127.0.0.1:{0} is in use by another process: stop that process, or choose another port with --port (0 selects a free one)"
    )]
    Taken(u16),
    #[error("cannot listen on 127.0.0.1:{port}: {error}")]
    Listen { port: u16, error: io::Error },
}

/// A running receiver. Dropping it closes its port and connections.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    reports: mpsc::Receiver<Report>,
    behaviour: Arc<Behaviour>,
    acceptor: JoinHandle<()>,
}

impl Receiver {
    /// Binds the port and starts to answer.
    ///
    /// # Errors
    /// When the secret is invalid or the port cannot be bound.
    pub async fn start(options: ListenOptions) -> Result<Self, StartError> {
        let key = match &options.secret {
            Some(secret) => Some(secret_bytes(secret).ok_or(StartError::Secret)?),
            None => None,
        };
        let port = options.port;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => StartError::Taken(port),
            _ => StartError::Listen { port, error },
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let behaviour = Arc::new(Behaviour {
            key,
            failures_left: AtomicU32::new(options.fail_first),
            status: AtomicU16::new(options.status),
            latency: options.latency,
            forward: options.forward,
        });
        let (sender, reports) = mpsc::channel(REPORTS_MAX);
        let acceptor = tokio::spawn(accept(listener, Arc::clone(&behaviour), sender));
        Ok(Self { address, reports, behaviour, acceptor })
    }

    /// The address of the listener.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next webhook; `None` after the receiver stopped.
    pub async fn next(&mut self) -> Option<Report> {
        self.reports.recv().await
    }

    /// Answers all further requests with `status`.
    pub fn answer_with(&self, status: u16) {
        self.behaviour.failures_left.store(0, Ordering::Relaxed);
        self.behaviour.status.store(status, Ordering::Relaxed);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // The acceptor owns the tasks of the connections, which end with it.
        self.acceptor.abort();
    }
}

async fn accept(listener: TcpListener, behaviour: Arc<Behaviour>, reports: mpsc::Sender<Report>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        // Results of finished tasks stay in the set until they are taken.
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let (behaviour, reports) = (Arc::clone(&behaviour), reports.clone());
                connections.spawn(async move {
                    connection(stream, behaviour, reports).await;
                    drop(slot);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn connection(stream: TcpStream, behaviour: Arc<Behaviour>, reports: mpsc::Sender<Report>) {
    let service = service_fn(move |request| {
        let (behaviour, reports) = (Arc::clone(&behaviour), reports.clone());
        async move { Ok::<_, Infallible>(answer(request, &behaviour, &reports).await) }
    });
    // An error means that the sender went away: complete webhooks were reported before.
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

async fn answer(
    request: Request<Incoming>,
    behaviour: &Behaviour,
    reports: &mpsc::Sender<Report>,
) -> Response<Full<Bytes>> {
    let relays = behaviour.forward.is_some();
    if request.method() == Method::OPTIONS
        && !relays
        && let Some(origin) = request.headers().get("webhook-request-origin")
    {
        return consent(origin.clone());
    }
    if request.method() != Method::POST && !relays {
        let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert("allow", HeaderValue::from_static("POST"));
        return response;
    }
    let (head, body) = request.into_parts();
    let body = match tokio::time::timeout(READ_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return empty(StatusCode::PAYLOAD_TOO_LARGE);
        }
        Ok(Err(_)) => return empty(StatusCode::BAD_REQUEST),
        Err(_) => return empty(StatusCode::REQUEST_TIMEOUT),
    };
    let at = args::now();
    let signed = check(behaviour.key.as_deref(), &head.headers, &body, at);
    let refuses = |status: &StatusCode| status.is_success() && matches!(signed, Signed::Bad(_));
    let status = behaviour
        .next_status()
        .map(|status| if refuses(&status) { StatusCode::UNAUTHORIZED } else { status });
    tokio::time::sleep(behaviour.latency).await;
    let (forwarded, response) = match (status, &behaviour.forward) {
        (None, Some(forwarder)) => {
            let (forwarded, response) = forwarder.relay(&head, body.clone()).await;
            (Some(forwarded), response)
        }
        (status, _) => (None, empty(status.unwrap_or(StatusCode::OK))),
    };
    let target = head.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    let report = Report {
        at,
        method: head.method.to_string(),
        target,
        attempt: text(&head.headers, "balto-attempt"),
        id: text(&head.headers, "webhook-id"),
        event_type: event_type(&body),
        signed,
        status: response.status().as_u16(),
        body,
        forwarded,
    };
    // Sending fails while the receiver is dropped; the sender still gets its answer.
    reports.send(report).await.ok();
    response
}

/// Consents to a handshake of CloudEvents web hooks, at any rate.
fn consent(origin: HeaderValue) -> Response<Full<Bytes>> {
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert("webhook-allowed-origin", origin);
    headers.insert("webhook-allowed-rate", HeaderValue::from_static("*"));
    headers.insert("allow", HeaderValue::from_static("POST"));
    response
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn event_type(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    value.get("type")?.as_str().map(str::to_owned)
}

fn secret_bytes(secret: &str) -> Option<Vec<u8>> {
    BASE64.decode(secret.strip_prefix("whsec_")?).ok().filter(|key| !key.is_empty())
}

/// The checks of Standard Webhooks: all headers, a recent timestamp, a matching signature.
fn check(key: Option<&[u8]>, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Signed {
    let Some(key) = key else { return Signed::Unchecked };
    let (Some(id), Some(timestamp), Some(signatures)) =
        (text(headers, "webhook-id"), text(headers, "webhook-timestamp"), text(headers, "webhook-signature"))
    else {
        return Signed::Bad("headers missing");
    };
    let Ok(seconds) = timestamp.parse::<u64>() else { return Signed::Bad("timestamp unreadable") };
    if seconds.abs_diff(now.seconds()) > TIMESTAMP_TOLERANCE.as_secs() {
        return Signed::Bad("timestamp too far from now");
    }
    if verify_signature(key, &id, &timestamp, body, &signatures) {
        Signed::Ok
    } else {
        Signed::Bad("no match")
    }
}

/// Whether one of the space-separated `v1` signatures is the HMAC-SHA256 of `id.timestamp.body`
/// under `key`.
fn verify_signature(key: &[u8], id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return false };
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    let expected = mac.finalize().into_bytes();
    signatures
        .split(' ')
        .filter_map(|signature| signature.strip_prefix("v1,"))
        .filter_map(|encoded| BASE64.decode(encoded).ok())
        .any(|given| bool::from(given.as_slice().ct_eq(expected.as_slice())))
}

pub(super) async fn run(args: ListenArgs, ca_file: Option<&Path>, as_json: bool) -> anyhow::Result<()> {
    let forward = args.forward_to.as_deref().map(|url| Forwarder::new(url, ca_file)).transpose()?;
    let options = ListenOptions {
        port: args.port,
        secret: args.secret,
        fail_first: args.fail_first,
        status: args.status,
        latency: args.latency.unwrap_or_default(),
        forward,
    };
    let mut receiver = match Receiver::start(options).await {
        Ok(receiver) => receiver,
        Err(error @ StartError::Secret) => return Err(super::usage(error.to_string())),
        Err(error @ (StartError::Taken(_) | StartError::Listen { .. })) => return Err(error.into()),
    };
    let mut stop = Stop::new()?;
    tokio::select! {
        printed = lines::print_reports(&mut receiver, args.body, as_json) => printed,
        () = stop.signal() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: &str = "1614265330";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn headers(signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("webhook-id", ID), ("webhook-timestamp", TIMESTAMP), ("webhook-signature", signature)]
        {
            headers.insert(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn published_vector_verifies() {
        let key = secret_bytes(SECRET).unwrap();
        assert!(verify_signature(&key, ID, TIMESTAMP, BODY, SIGNATURE));
        let several = format!("v1a,AAAA v1,AAAA {SIGNATURE}");
        assert!(verify_signature(&key, ID, TIMESTAMP, BODY, &several));
    }

    #[test]
    fn changed_parts_do_not_verify() {
        let key = secret_bytes(SECRET).unwrap();
        assert!(!verify_signature(&key, "msg_x", TIMESTAMP, BODY, SIGNATURE));
        assert!(!verify_signature(&key, ID, "1614265331", BODY, SIGNATURE));
        assert!(!verify_signature(&key, ID, TIMESTAMP, b"{}", SIGNATURE));
        assert!(!verify_signature(&key[1..], ID, TIMESTAMP, BODY, SIGNATURE));
        for signatures in ["", "v1,", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", "v1,g0hM9SsE"] {
            assert!(!verify_signature(&key, ID, TIMESTAMP, BODY, signatures), "`{signatures}` verified");
        }
    }

    #[test]
    fn failed_check_names_the_reason() {
        let key = secret_bytes(SECRET).unwrap();
        let now = Timestamp::from_millis(1_614_265_330_000);
        let late = now.plus(TIMESTAMP_TOLERANCE).plus(Duration::from_secs(1));
        assert_eq!(check(Some(&key), &headers(SIGNATURE), BODY, now), Signed::Ok);
        assert_eq!(check(None, &headers(SIGNATURE), BODY, now), Signed::Unchecked);
        assert_eq!(check(Some(&key), &headers("v1,AAAA"), BODY, now), Signed::Bad("no match"));
        let too_late = check(Some(&key), &headers(SIGNATURE), BODY, late);
        assert_eq!(too_late, Signed::Bad("timestamp too far from now"));
        assert_eq!(check(Some(&key), &HeaderMap::new(), BODY, now), Signed::Bad("headers missing"));
    }

    #[test]
    fn secrets_have_their_prefix_and_base64() {
        for wrong in ["", "whsec_", "whsec_!!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"] {
            assert!(secret_bytes(wrong).is_none(), "`{wrong}` passed for a secret");
        }
    }

    fn client() -> reqwest::Client {
        crate::courier::tls::install_provider();
        reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap()
    }

    /// A signed request with the current time.
    fn signed(client: &reqwest::Client, url: &str) -> reqwest::RequestBuilder {
        let seconds = args::now().seconds().to_string();
        let body = r#"{"id":"evt_1","type":"order.paid"}"#;
        let mut mac = Hmac::<Sha256>::new_from_slice(&secret_bytes(SECRET).unwrap()).unwrap();
        mac.update(format!("evt_1.{seconds}.{body}").as_bytes());
        let signature = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
        client
            .post(url)
            .header("webhook-id", "evt_1")
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", signature)
            .header("balto-attempt", "2")
            .body(body)
    }

    #[tokio::test]
    async fn receiver_fails_first_and_reports_each_webhook() {
        let options = ListenOptions {
            secret: Some(SECRET.to_owned()),
            fail_first: 1,
            status: 204,
            ..ListenOptions::default()
        };
        let mut receiver = Receiver::start(options).await.unwrap();
        let url = format!("http://{}/hooks", receiver.address());
        let client = client();
        let mut answered = Vec::new();
        for _ in 0..2 {
            answered.push(signed(&client, &url).send().await.unwrap().status().as_u16());
        }
        for status in [410, 204] {
            receiver.answer_with(status);
            answered.push(client.post(&url).body("not json").send().await.unwrap().status().as_u16());
        }
        assert_eq!(answered, [500, 204, 410, 401]);
        let bad = Signed::Bad("headers missing");
        for expected in [(Signed::Ok, 500), (Signed::Ok, 204), (bad, 410), (bad, 401)] {
            let report = receiver.next().await.unwrap();
            assert_eq!((report.signed, report.status), expected);
            if report.signed == Signed::Ok {
                let line = lines::sentence(&report, false);
                let tail = format!("attempt 2  order.paid  evt_1  signature ok  answered {}", report.status);
                assert!(line.ends_with(&tail), "{line}");
            }
        }
    }

    #[tokio::test]
    async fn requests_are_relayed_with_their_bytes_and_answers() {
        let answers = vec![
            ("201 Created\r\nx-answer: yes", "made".to_owned()),
            ("503 Service Unavailable\r\nretry-after: 7", String::new()),
        ];
        let (url, task) = crate::cli::client::fake::serve(answers).await;
        let forward = Some(Forwarder::new(&format!("{url}/hooks"), None).unwrap());
        let options = ListenOptions {
            secret: Some(SECRET.to_owned()),
            fail_first: 1,
            forward,
            ..ListenOptions::default()
        };
        let mut receiver = Receiver::start(options).await.unwrap();
        let (client, own) = (client(), format!("http://{}/in?a=b", receiver.address()));
        assert_eq!(signed(&client, &own).send().await.unwrap().status(), 500);
        let answer = signed(&client, &own).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["x-answer"]), (201, &"yes".parse().unwrap()));
        assert_eq!(answer.text().await.unwrap(), "made");
        let answer = client.put(&own).body("x").send().await.unwrap();
        assert_eq!(answer.headers()["retry-after"], "7");
        let requests = task.await.unwrap();
        assert!(requests[0].starts_with("POST /hooks/in?a=b HTTP/1.1\r\n"), "{}", requests[0]);
        assert!(
            requests[0].ends_with("\r\n\r\n{\"id\":\"evt_1\",\"type\":\"order.paid\"}"),
            "{}",
            requests[0]
        );
        assert!(requests[0].contains("webhook-id: evt_1\r\n"), "{}", requests[0]);
        assert!(requests[1].starts_with("PUT /hooks/in?a=b "), "{}", requests[1]);
        assert!(receiver.next().await.unwrap().forwarded.is_none());
        let lines = lines::sentence(&receiver.next().await.unwrap(), false);
        let (received, relayed) = lines.split_once('\n').unwrap();
        assert!(received.contains("  POST /in?a=b  attempt 2  order.paid  evt_1  signature ok"), "{lines}");
        assert!(relayed.contains(&format!("-> POST {url}/hooks/in?a=b  answered 201 in ")), "{lines}");
        // The server is gone.
        receiver.next().await.unwrap();
        assert_eq!(client.post(&own).body("x").send().await.unwrap().status(), 502);
        let lines = lines::sentence(&receiver.next().await.unwrap(), false);
        assert!(lines.contains("failed after") && lines.ends_with("answered 502"), "{lines}");
    }

    #[tokio::test]
    async fn other_methods_and_large_bodies_are_refused() {
        let mut receiver = Receiver::start(ListenOptions::default()).await.unwrap();
        let url = format!("http://{}/", receiver.address());
        let client = client();
        assert_eq!(client.get(&url).send().await.unwrap().status(), 405);
        let ask = || client.request(Method::OPTIONS, &url);
        assert_eq!(ask().send().await.unwrap().status(), 405, "a browser's preflight is no handshake");
        let agreed = ask().header("webhook-request-origin", "a.example").send().await.unwrap();
        assert_eq!(agreed.headers()["webhook-allowed-origin"], "a.example");
        assert_eq!(agreed.headers()["webhook-allowed-rate"], "*");
        let large = client.post(&url).body(vec![b'x'; BODY_BYTES_MAX + 1]).send().await;
        // The refusal may close the connection before the body is through.
        assert!(large.is_err() || large.is_ok_and(|answer| answer.status() == 413));
        assert_eq!(client.post(&url).body("{}").send().await.unwrap().status(), 200);
        assert_eq!(receiver.next().await.unwrap().body, "{}");
    }
}
