//! HTTP requests to the API.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use super::lines;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, header};
use balto::api::Api;
use balto::config::Config;
use balto::context::Context;
use balto::context::clock::{Clock, SystemSource};
use balto::context::environment::Environment;
use balto::courier::guard::EgressPolicy;
use balto::courier::{Courier, CourierSettings, Resolver};
use balto::delivery::assemble;
use balto::metrics::Metrics;
use balto::outbox::{AdmissionLimits, Outbox};
use balto::vault::Vault;
use balto::{api, daemon};
use bytes::Bytes;
use tower::ServiceExt;

/// Resolves every name to one public address, without network access.
struct OneAddress;

#[async_trait::async_trait]
impl Resolver for OneAddress {
    async fn lookup(&self, _: String) -> std::io::Result<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([93, 184, 216, 34])])
    }
}

pub(super) struct Server {
    pub(super) runtime: tokio::runtime::Runtime,
    context: Context,
    pub(super) router: axum::Router,
    directory: tempfile::TempDir,
    served: u32,
}

/// Requests that one server answers before it is replaced, so that its stored data stays small.
const SERVED_MAX: u32 = 20_000;

impl Server {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let directory = tempfile::tempdir().expect("a directory");
        let admission = AdmissionLimits { bytes: 1 << 26, commands: 10_000 };
        let observer = Arc::new(|_, _| ());
        let opened = Outbox::open(directory.path(), admission, Box::new(SystemSource), observer, &mut |_| ());
        let courier = Courier::new(CourierSettings {
            policy: EgressPolicy::default(),
            connect_timeout: Duration::from_secs(1),
            address_max_in_flight: 0,
            roots: Arc::new(rustls::RootCertStore::empty()),
            proxy: None,
            resolver: Arc::new(OneAddress),
        });
        let mut config = Config::default();
        config.ingest.max_event_bytes = 4_096;
        let metrics = Arc::new(Metrics::new());
        let vault = Arc::new(Vault::new([]));
        let (opened, courier) = (opened.expect("the outbox opens"), courier.expect("the courier starts"));
        let settings = daemon::settings(&config);
        let context = assemble(
            opened,
            Environment::system(courier),
            vault,
            Clock::default(),
            metrics.clone(),
            settings,
        )
        .0;
        let options = daemon::ServeOptions { dev: true, ..daemon::ServeOptions::default() };
        let config = daemon::api_config(&options, &config).expect("the document needs no key");
        let router = api::router(Api::new(context.clone(), config, metrics));
        Self { runtime, context, router, directory, served: 0 }
    }
}

pub(super) static SERVER: LazyLock<Mutex<Server>> = LazyLock::new(|| Mutex::new(Server::new()));

pub(super) fn request_seeds() -> Vec<Vec<u8>> {
    let endpoint = r#"{"url":"https://example.com/hooks","tenant":"acme","eventTypes":["order.*","pet.#"],"headers":{"X-Env":"prod"},"rateLimit":{"limit":100,"per":"1s","burst":100},"maxInFlight":16,"timeout":"15s","ordering":"key","retry":{"initial":"5s","multiplier":3.0,"maxInterval":"6h","maxAttempts":12,"maxAge":"72h","jitter":0.2},"format":"cloudevents","signature":"standard","metadata":{"a":1}}"#;
    lines(&[
        "POST\t/v1/events\tcontent-type:application/json\tidempotency-key:k\n{\"type\":\"order.paid\",\"data\":{\"a\":[1,2.5e3,\"\\u00e9\"]},\"id\":\"n1\",\"tenant\":\"acme\",\"timestamp\":\"2026-03-13T10:35:00.000Z\",\"version\":\"1.0\",\"stream\":\"order-42\",\"expectedVersion\":\"none\",\"orderingKey\":\"o\",\"deliverAt\":null,\"metadata\":{\"t\":\"x\"}}",
        "POST\t/v1/events/batch\tcontent-type:application/json\n{\"events\":[{\"type\":\"a\",\"data\":1},{\"type\":1}]}",
        "POST\t/v1/events/batch\tcontent-type:application/x-ndjson\n{\"type\":\"a\",\"data\":1}\r\n\n{\"type\":\"b\",\"data\":null}",
        "POST\t/v1/events?tenant=acme\tcontent-type:application/cloudevents+json\n{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"a.b\",\"time\":\"2026-03-13T10:35:00.000Z\",\"subject\":\"s\",\"datacontenttype\":\"text/xml\",\"dataschema\":\"http://x/\",\"ext\":true,\"data_base64\":\"AAEC\"}",
        "POST\t/v1/events\tcontent-type:application/cloudevents-batch+json\n[{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"a.b\",\"data\":{}}]",
        "POST\t/v1/events\tcontent-type:text/plain; charset=utf-8\tce-specversion:1.0\tce-id:%E2%82%AC\tce-source:/s\tce-type:a.b\tce-ext:\"q\\\"x\"\nwords",
        "POST\t/v1/events\tcontent-type:application/json\ttraceparent:00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n{\"type\":\"a\",\"data\":1}",
        &format!(
            "POST\t/v1/endpoints\tcontent-type:application/json\tidempotency-key:\"e\\\"1\"\n{endpoint}"
        ),
        "POST\t/v1/endpoints\tcontent-type:application/json\n{\"url\":\"https://example.com/\",\"retry\":{\"schedule\":[\"5s\",\"5m\"]},\"secret\":\"whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy\"}",
        "PATCH\t/v1/endpoints/ep_01ARZ3NDEKTSV4RRFFQ69G5FAV\tcontent-type:application/merge-patch+json\n{\"timeout\":null}",
        "GET\t/v1/events?limit=2&type=a&status=pending&since=2026-03-13T10:35:00Z&cursor=AQEAAAAAAAAABwAAAAAAAAAAAAAAAA\n",
        "GET\t/v1/deliveries?endpointId=ep_1&eventId=evt_1&status=dead&limit=250\n",
        "GET\t/v1/dead-letters?reason=gone\n",
        "GET\t/v1/backup?after=1&until=3\n",
        "POST\t/v1/dead-letters/redrive\tcontent-type:application/json\n{\"endpointId\":\"ep_1\",\"since\":\"2026-03-13T10:35:00Z\"}",
        "POST\t/v1/keys\tcontent-type:application/json\n{\"role\":\"publisher\",\"tenant\":\"acme\",\"description\":\"d\"}",
        "POST\t/v1/events/evt_01ARZ3NDEKTSV4RRFFQ69G5FAV/replay\tcontent-type:application/json\n{\"endpointIds\":[\"ep_1\"]}",
        "GET\t/v1/events/%2e%2e%2f?tenant=%ff\n",
        "OPTIONS\t/v1/events\n",
    ])
}

/// Method, path and headers separated by tabs, a line feed, the body. The body comes in pieces.
fn parse_request(bytes: &[u8]) -> Option<Request<Body>> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let mut parts = bytes[..end].split(|byte| *byte == b'\t');
    let mut request = Request::builder().method(Method::from_bytes(parts.next()?).ok()?).uri(parts.next()?);
    for part in parts {
        let colon = part.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&part[..colon]).ok()?;
        request = request.header(name, HeaderValue::from_bytes(&part[colon + 1..]).ok()?);
    }
    let body = &bytes[end + 1..];
    let size = 1 + usize::from(bytes[end.saturating_sub(1)]) * 3;
    let pieces: Vec<Result<Bytes, std::convert::Infallible>> =
        body.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    request.body(Body::from_stream(futures_util::stream::iter(pieces))).ok()
}

/// The statuses of a healthy daemon for arbitrary requests. 503: no delivery loop runs here to
/// report on lanes.
const ANSWERS: [u16; 13] = [200, 201, 202, 204, 400, 404, 405, 409, 413, 415, 422, 429, 503];

pub(super) fn requests(bytes: &[u8]) {
    let Some(request) = parse_request(bytes) else { return };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut server = SERVER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    server.served += 1;
    if server.served > SERVED_MAX {
        server.context.stop_outbox();
        *server = Server::new();
    }
    assert!(server.directory.path().exists());
    let router = server.router.clone();
    let (status, headers, body) = server.runtime.block_on(async move {
        let response = router.oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("the file is in memory");
        (parts.status.as_u16(), parts.headers, body)
    });
    assert!(ANSWERS.contains(&status), "{method} {path} is answered {status}");
    assert!(status != 503 || path.ends_with("/lane"), "{method} {path}: {}", String::from_utf8_lossy(&body));
    if status >= 400 && method != Method::HEAD {
        assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json", "{method} {path} {status}");
    }
    if !body.is_empty() {
        let answer: serde_json::Value = serde_json::from_slice(&body).expect("answers are JSON");
        assert!(status < 400 || answer["code"].is_string() && answer["status"] == status, "{answer}");
    }
}
