//! Everything that reads bytes of others, as functions that must return whatever they are given: shared
//! by `tests/faults/fuzz.rs` (seeded mutations, in every test run) and `fuzz/` (guided by coverage).
//!
//! A target panics when a promise is broken: a panic below it, an answer that is none, a value that does not read back as
//! it was written.

use std::collections::BTreeMap;
use std::io::Cursor as IoCursor;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, header};
use balto::api::v1::lists::{self, List};
use balto::api::{self, Api, text};
use balto::config::{AdminKey, Config, Overrides, PortRange, SecretsKey, units};
use balto::context::Context;
use balto::context::clock::{Clock, SystemSource};
use balto::context::environment::Environment;
use balto::courier::guard::EgressPolicy;
use balto::courier::{Courier, CourierSettings, Resolver};
use balto::daemon;
use balto::delivery::assemble;
use balto::domain::{
    Attempt, DeadReason, DeliveryId, DeliveryKey, EndpointId, EndpointNumber, EventId, EventType, KeyId,
    Next, Pattern, Position, Record, Sealed, SignaturePreset, StreamName, Tenant, Timestamp, Trigger,
};
use balto::maintenance::backup;
use balto::metrics::Metrics;
use balto::outbox::{Admission, Outbox};
use balto::projections::reads::{self, Cursor, Filter};
use balto::projections::{Fold, Rows, counters, idempotency, pages, pending, retention, stats, streams};
use balto::rules::matching::pattern_matches;
use balto::rules::signature::{self, SigningKey};
use balto::rules::verdict::parse_retry_after;
use balto::storage::disk::{Disk, MemoryDisk};
use balto::storage::format as codec;
use balto::storage::journal::{self, Journal, JournalOptions, Restorer};
use balto::vault::{Place, Vault};
use bytes::Bytes;
use tower::ServiceExt;

/// A target's name, what it does with bytes, and bytes to begin with.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&[u8]),
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "texts", run: texts, seeds: text_seeds },
    Target { name: "patterns", run: patterns, seeds: pattern_seeds },
    Target { name: "configuration", run: configuration, seeds: configuration_seeds },
    Target { name: "requests", run: requests, seeds: request_seeds },
    Target { name: "records", run: records, seeds: record_seeds },
    Target { name: "journals", run: journals, seeds: journal_seeds },
    Target { name: "backups", run: backups, seeds: backup_seeds },
    Target { name: "rows", run: rows, seeds: row_seeds },
    Target { name: "secrets", run: secrets, seeds: secret_seeds },
];

/// Words of the languages that are read here: what a mutation alone would take long to find.
pub(crate) const WORDS: &[&str] = &[
    "\"type\"",
    "\"data\"",
    "\"id\"",
    "\"tenant\"",
    "\"stream\"",
    "\"expectedVersion\"",
    "\"deliverAt\"",
    "\"events\"",
    "\"retry\"",
    "\"schedule\"",
    "\"eventTypes\"",
    "\"rateLimit\"",
    "\"secret\"",
    "null",
    "true",
    "\\ud800",
    "\\u0000",
    "1e309",
    "-0",
    "18446744073709551616",
    "9223372036854775807",
    "{}",
    "[]",
    "[[[[",
    "\u{feff}",
    "\u{202e}",
    "\u{0}",
    "whsec_",
    "whsk_",
    "250ms",
    "3650d",
    "72h",
    "2026-03-13T10:35:00.000Z",
    "9999-12-31T23:59:59.999Z",
    "1969-12-31T23:59:59Z",
    "*",
    "#",
    "a.#.b",
    "evt_01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "dlv_00000000000000010000000001",
    "ep_",
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "= true",
    "[server]",
    "\n",
    "\t",
    "\r\n",
    "%00",
    "%ff",
    "&cursor=",
    "&limit=250",
    "idempotency-key:",
    "ce-id:",
    "ce-source:",
    "ce-type:",
    "ce-specversion:1.0",
    "content-length:",
    "end 0 0",
    "c 0 0",
];

/// It came back, which is all that is asked of it.
fn came_back<T>(_: T) {}

fn lines(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

// ---- small texts -----------------------------------------------------------------------------------------------

const LISTS: [List; 5] = [List::Events, List::Endpoints, List::Deliveries, List::DeadLetters, List::Keys];

fn text_seeds() -> Vec<Vec<u8>> {
    let cursor = lists::cursor_text(List::Deliveries, Cursor::at(Position(7)));
    let mut seeds = lines(&[
        "15s",
        "250ms",
        "3650d",
        "99999999999999999999d",
        "256KiB",
        "64MiB",
        "443",
        "8000-8999",
        "a.b-c._d",
        "acme",
        "2026-03-13T10:35:00.000Z",
        "2026-03-13T11:35:00.1239+01:00",
        "9999-12-31T23:59:59.999Z",
        "120",
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "evt_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "ep_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "dlv_000000000000054c00000001",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ]);
    seeds.push(cursor.into_bytes());
    seeds
}

/// Every parser of a short text. What is accepted reads back as it was written.
fn texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(duration) = text::parse_duration(text) {
        assert_eq!(text::parse_duration(&text::format_duration(duration)), Ok(duration), "{text}");
    }
    if let Ok(time) = text::parse_time(text) {
        assert_eq!(text::parse_time(time.rfc3339().as_str()), Ok(time), "{text}");
    }
    if let Some(duration) = units::parse_duration(text) {
        assert_eq!(units::parse_duration(&units::format_duration(duration)), Some(duration), "{text}");
    }
    if let Some(size) = units::parse_size(text) {
        assert_eq!(units::parse_size(&units::format_size(size)), Some(size), "{text}");
    }
    for list in LISTS {
        if let Ok(place) = lists::decode(list, text) {
            assert_eq!(lists::encode(list, &place), text);
        }
    }
    if let Ok(id) = text.parse::<DeliveryId>() {
        assert_eq!(id.to_string().parse::<DeliveryId>().expect("it is one").0, id.0, "{text}");
    }
    if let Ok(name) = text.parse::<EventId>() {
        assert_eq!(name.as_str(), text);
    }
    let legal = text.parse::<EventType>().is_ok();
    assert!(!legal || text.parse::<Pattern>().is_ok(), "{text} is a type and no pattern");
    came_back((
        text.parse::<EndpointId>(),
        text.parse::<KeyId>(),
        text.parse::<Tenant>(),
        text.parse::<StreamName>(),
    ));
    came_back((PortRange::parse(text), AdminKey::parse(text), SecretsKey::parse(text)));
    if let Some(wait) = parse_retry_after(text, Timestamp::from_millis(784_111_777_000)) {
        assert!(wait <= balto::limits::RETRY_AFTER_MAX, "{text} holds a lane for {wait:?}");
    }
}

// ---- patterns --------------------------------------------------------------------------------------------------

fn pattern_seeds() -> Vec<Vec<u8>> {
    lines(&[
        "order.*\norder.paid",
        "#\na.b.c",
        "a.#.b\na.b",
        "*.*.#\na.b.c.d",
        "#.#.#.#.#.#.#.x\na.a.a.a.a.a.a.a.a",
        "a\nb",
    ])
}

/// What a pattern means, by its definition, without any of the cleverness.
fn matches(pattern: &[&str], words: &[&str]) -> bool {
    // Row by row: whether the first `i` words of the pattern match the first `j` words.
    let mut row: Vec<bool> = (0..=words.len()).map(|count| count == 0).collect();
    for part in pattern {
        let before = row.clone();
        for count in 0..=words.len() {
            row[count] = match *part {
                "#" => before[count] || (count > 0 && row[count - 1]),
                _ if count == 0 => false,
                "*" => before[count - 1],
                word => before[count - 1] && words[count - 1] == word,
            };
        }
    }
    row[words.len()]
}

fn patterns(bytes: &[u8]) {
    let Some((pattern, kind)) = std::str::from_utf8(bytes).ok().and_then(|text| text.split_once('\n')) else {
        return;
    };
    let (Ok(parsed), Ok(event_type)) = (pattern.parse::<Pattern>(), kind.parse::<EventType>()) else {
        return;
    };
    let wanted = matches(&pattern.split('.').collect::<Vec<_>>(), &kind.split('.').collect::<Vec<_>>());
    assert_eq!(pattern_matches(&parsed, &event_type), wanted, "{pattern} and {kind}");
}

// ---- configuration ---------------------------------------------------------------------------------------------

fn configuration_seeds() -> Vec<Vec<u8>> {
    let shipped = include_str!("../config/balto.toml");
    let active: String =
        shipped.lines().map(|line| line.strip_prefix("#= ").unwrap_or(line).to_owned() + "\n").collect();
    lines(&[
        shipped,
        &active.replace("admin_key_file", "#").replace("key_file", "#"),
        "[delivery]\ntimeout = \"15s\"\0DELIVERY__TIMEOUT=1m\0EGRESS__ALLOW_PORTS=443,8000-8999",
        "[retry]\njitter = 0.2\nmultiplier = inf\n[egress]\nallow_networks = [\"10.0.0.0/8\", \"::1\"]",
        "server = { api_listen = \"[::1]:1\" }\0LOG__LEVEL=info,balto=debug",
        "\0LOG__LEVEL=\u{e9}=debug",
        "a.b.c = 1979-05-27T07:32:00Z\n[[x]]\n",
    ])
}

/// A file, then variables, separated by NUL.
fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let variables = parts.filter_map(|part| part.split_once('='));
    let env = variables.map(|(name, value)| (format!("BALTO__{name}"), value.to_owned()));
    match Config::parse(Some((Path::new("f"), file)), env, Overrides::default()) {
        Ok(config) => {
            // What was accepted is within what everything else relies on.
            assert!(config.retry.initial <= config.retry.max_interval && config.retry.multiplier >= 1.0);
            assert!((0.0..=1.0).contains(&config.retry.jitter));
            assert_eq!(config.reloadable_diff(&config), Ok(vec![]));
            let shown = format!("{config:?}");
            let secret = config.auth.admin_key.as_ref().map(|key| format!("\"{}\"", key.expose()));
            assert!(
                secret.is_none_or(|secret| secret.len() < 12 || !shown.contains(&secret)),
                "a key is shown"
            );
        }
        Err(errors) => {
            assert!(
                !errors.0.is_empty() && errors.0.iter().all(|error| !error.reason.is_empty()),
                "{errors}"
            );
        }
    }
}

// ---- requests --------------------------------------------------------------------------------------------------

/// Every name has one public address: nothing of this asks the network.
struct OneAddress;

#[async_trait::async_trait]
impl Resolver for OneAddress {
    async fn lookup(&self, _: String) -> std::io::Result<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([93, 184, 216, 34])])
    }
}

struct Server {
    runtime: tokio::runtime::Runtime,
    context: Context,
    router: axum::Router,
    directory: tempfile::TempDir,
    served: u32,
}

/// Requests that one server answers before a fresh one takes its place: what they leave behind stays small.
const SERVED_MAX: u32 = 20_000;

impl Server {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let directory = tempfile::tempdir().expect("a directory");
        let admission = Admission { bytes: 1 << 26, commands: 10_000 };
        let observer = Arc::new(|_, _| ());
        let opened = Outbox::open(directory.path(), admission, Box::new(SystemSource), observer, &mut |_| ());
        let courier = Courier::new(CourierSettings {
            policy: EgressPolicy::default(),
            connect_timeout: Duration::from_secs(1),
            roots: Arc::new(rustls::RootCertStore::empty()),
            proxy: None,
            resolver: Arc::new(OneAddress),
        });
        let mut config = Config::default();
        config.ingest.max_event_bytes = 4_096;
        let metrics = Arc::new(Metrics::new());
        let vault = Arc::new(Vault::new([]));
        let (opened, courier) = (opened.expect("it opens"), courier.expect("it is built"));
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
        let options = daemon::Options { dev: true, ..daemon::Options::default() };
        let config = daemon::api_config(&options, &config).expect("it needs no key");
        let router = api::router(Api::new(context.clone(), config, metrics));
        Self { runtime, context, router, directory, served: 0 }
    }
}

static SERVER: LazyLock<Mutex<Server>> = LazyLock::new(|| Mutex::new(Server::new()));

fn request_seeds() -> Vec<Vec<u8>> {
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

/// What the API may answer to whatever it is sent, as long as nothing is wrong with the daemon. 503: there is no delivery
/// loop here that could say what a lane does.
const ANSWERS: [u16; 13] = [200, 201, 202, 204, 400, 404, 405, 409, 413, 415, 422, 429, 503];

fn requests(bytes: &[u8]) {
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
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("it is in memory");
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

// ---- what lies on disk -----------------------------------------------------------------------------------------

/// A store that has seen a bit of everything: its records, and the files of its journal.
struct Sample {
    records: Vec<(Position, Timestamp, Vec<u8>)>,
    backup: String,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

static SAMPLE: LazyLock<Sample> = LazyLock::new(sample);

fn delivery(event: u64) -> DeliveryKey {
    DeliveryKey { event: Position(event), endpoint: EndpointNumber(1) }
}

/// Records that nothing but a delivery loop and an operator would write.
fn made_up() -> Vec<Record> {
    let at = Timestamp::from_millis(1_773_398_100_000);
    let attempt = |number, next| Attempt {
        number,
        trigger: Trigger::Retry,
        started_at: at,
        duration: Duration::from_millis(1_234),
        status: Some(503),
        error: Some((balto::domain::ErrorClass::Status, "status 503".into())),
        reply: Bytes::from_static(b"no \xff"),
        network: balto::domain::Network::Public,
        next,
        hold: None,
        uptime: Some(Duration::from_secs(60)),
    };
    let finished = |event, number, next| Record::AttemptFinished {
        delivery: delivery(event),
        due: at,
        attempt: Arc::new(attempt(number, next)),
    };
    vec![
        finished(3, 1, Next::RetryAt(at)),
        finished(3, 2, Next::Dead(DeadReason::AttemptsExhausted)),
        finished(4, 1, Next::Delivered),
        Record::DeliveriesRevived {
            deliveries: vec![delivery(3), delivery(4)],
            trigger: Trigger::Redrive,
            at,
        },
        Record::DeliveriesReordered { deliveries: vec![delivery(3), delivery(4)], at },
        Record::DeliveriesCancelled { deliveries: vec![delivery(4)], at },
        Record::DeliveriesDied { deliveries: vec![delivery(3)], reason: DeadReason::MaxAge, at },
        Record::DeadLettersPurged { deliveries: vec![delivery(3)], at },
        Record::EndpointDeleted { endpoint: EndpointNumber(2), at },
    ]
}

fn sample() -> Sample {
    for seed in request_seeds() {
        requests(&seed);
        requests(&seed);
    }
    let server = SERVER.lock().expect("it works");
    // What is answered is in the journal; a backup shows it.
    let mut records = Vec::new();
    let (mut text, mut after) = (String::new(), 0);
    loop {
        let request =
            Request::get(format!("/v1/backup?after={after}")).body(Body::empty()).expect("a request");
        let response = server.runtime.block_on(server.router.clone().oneshot(request)).expect("infallible");
        let body =
            server.runtime.block_on(axum::body::to_bytes(response.into_body(), usize::MAX)).expect("a body");
        let part: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        text.push_str(part["text"].as_str().expect("text"));
        match part["next"].as_u64() {
            Some(next) => after = next,
            None => break,
        }
    }
    drop(server);
    let directory = tempfile::tempdir().expect("a directory");
    backup::restore(&mut IoCursor::new(&text), &directory.path().join("data"), 1, backup::Trust::default())
        .expect("it is whole");
    let disk: Arc<dyn Disk> =
        Arc::new(balto::storage::disk::RealDisk::new(directory.path().join("data/journal")).expect("a disk"));
    let (journal, _) = Journal::open(disk, JournalOptions::new(1)).expect("it opens");
    let mut at = Position(1);
    while let Ok(Some(step)) = journal.reader().raw_from(at) {
        at = step.next;
        records.extend(step.records.into_iter().map(|raw| (raw.position, raw.time, raw.bytes)));
    }
    let (mut position, time) = records.last().map(|(at, time, _)| (*at, *time)).expect("there are some");
    for record in made_up() {
        position = position.next();
        let mut bytes = Vec::new();
        codec::encode(&record, &mut bytes);
        records.push((position, time, bytes));
    }
    let mut rows = BTreeMap::new();
    fold(&records, &mut rows);
    Sample { records, backup: text, rows }
}

fn fold(records: &[(Position, Timestamp, Vec<u8>)], rows: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut fold = Fold::default();
    for (position, _, bytes) in records {
        let record = codec::decode(bytes).expect("it was encoded");
        fold.apply(rows, *position, &record, false, &mut Vec::new());
    }
}

fn record_seeds() -> Vec<Vec<u8>> {
    SAMPLE.records.iter().map(|(.., bytes)| bytes.clone()).collect()
}

/// A record that can be read has one way to be written, and is that record.
fn records(bytes: &[u8]) {
    let Ok(record) = codec::decode(bytes) else { return };
    let mut again = Vec::new();
    codec::encode(&record, &mut again);
    // Numbers that are none differ from themselves.
    let has_nan = format!("{record:?}").contains("NaN");
    assert!(has_nan || codec::decode(&again).as_ref() == Ok(&record), "{record:?}");
    assert!(again.len() <= bytes.len() + 64, "it grows when it is written");
}

fn journal_seeds() -> Vec<Vec<u8>> {
    let disk = MemoryDisk::new();
    let mut restorer = Restorer::new(Arc::new(disk.clone()), 7);
    for (position, time, bytes) in &SAMPLE.records {
        restorer.push(*position, *time, bytes.clone()).expect("memory");
    }
    restorer.finish(Position(SAMPLE.records.len() as u64 + 1)).expect("memory");
    let mut seeds: Vec<_> =
        disk.list().expect("memory").iter().filter_map(|name| disk.contents(name)).collect();
    // And what a crash leaves of a commit under way.
    let disk = MemoryDisk::new();
    let options = JournalOptions { segment_bytes: 4_096, frame_bytes: 256, ..JournalOptions::new(9) };
    let (mut journal, _) = Journal::open(Arc::new(disk.clone()), options).expect("it opens");
    for (_, time, bytes) in &SAMPLE.records {
        let record = codec::decode(bytes).expect("it was encoded");
        journal.append(*time, &[vec![record]]).expect("memory");
    }
    seeds.extend(disk.list().expect("memory").iter().filter_map(|name| disk.contents(name)));
    seeds
}

/// A file in place of a journal's first one: it is opened, or refused; what is read is what is there.
fn journals(bytes: &[u8]) {
    let disk = MemoryDisk::new();
    disk.put("journal-00000000000000000001.log", bytes);
    let _report = journal::verify(&disk, &mut |_| ());
    let Ok((mut journal, report)) = Journal::open(Arc::new(disk), JournalOptions::new(3)) else {
        return;
    };
    let reader = journal.reader();
    let (mut read, mut at) = (0_usize, Position(1));
    while let Ok(Some(step)) = reader.raw_from(at) {
        assert!(step.next > at, "a walk that stands still");
        at = step.next;
        for raw in step.records {
            assert!(raw.position <= report.last, "a record behind the last");
            read += 1;
            let _may_be_undecodable = reader.read(raw.position);
        }
    }
    assert!(read <= bytes.len(), "more records than bytes");
    let fresh = Record::EndpointDeleted { endpoint: EndpointNumber(1), at: Timestamp::ZERO };
    let range =
        journal.append(Timestamp::ZERO, &[vec![fresh.clone()]]).expect("an open journal takes records");
    assert!(range.start > report.last, "a position is given twice");
    assert_eq!(journal.reader().read(range.start).expect("it is there"), Some(fresh));
}

fn backup_seeds() -> Vec<Vec<u8>> {
    vec![
        SAMPLE.backup.clone().into_bytes(),
        b"balto-backup 1\nend 0 0 5c7ad6d8\n".to_vec(),
        b"balto-backup 2 000102030405060708090a0b0c0d0e0f 9c5230e7\nend 0 0 5c7ad6d8 00\n".to_vec(),
    ]
}

/// A backup as it is, and once more with checksums that fit, since mutations hardly find those.
fn backups(bytes: &[u8]) {
    let fitting: Vec<u8> = bytes
        .split(|byte| *byte == b'\n')
        .flat_map(|line| {
            let content = match line.iter().rposition(|byte| *byte == b' ') {
                Some(end) if line.first() != Some(&b'b') => &line[..end],
                _ => return [line, b"\n"].concat(),
            };
            [content, format!(" {:08x}\n", crc32fast::hash(content)).as_bytes()].concat()
        })
        .collect();
    for text in [bytes, &fitting] {
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().join("data");
        let trust = backup::Trust { keys: &[], unauthenticated: true };
        let Ok(restored) = backup::restore(&mut IoCursor::new(text), &data, 1, trust) else { continue };
        let disk: Arc<dyn Disk> =
            Arc::new(balto::storage::disk::RealDisk::new(data.join("journal")).expect("a disk"));
        let (journal, report) = Journal::open(disk, JournalOptions::new(1)).expect("what was restored opens");
        assert!(report.damage.is_empty(), "restored with damage: {:?}", report.damage);
        assert_eq!(journal.reader().last_position(), restored.last);
    }
}

// ---- rows of the state -----------------------------------------------------------------------------------------

fn row_seeds() -> Vec<Vec<u8>> {
    vec![vec![], vec![0, 0, 0, 255], (0..=255).collect(), vec![7; 40]]
}

/// Rows with some bytes of their values changed, cut off or added: row, place, what, value, four bytes each.
fn rows(bytes: &[u8]) {
    let mut rows = SAMPLE.rows.clone();
    let keys: Vec<_> = rows.keys().cloned().collect();
    for edit in bytes.chunks_exact(4) {
        let key = &keys[usize::from(u16::from_le_bytes([edit[0], edit[1] & 3])) % keys.len()];
        let value = rows.get_mut(key).expect("it is there");
        let place = usize::from(edit[2]) % (value.len() + 1);
        match edit[1] >> 6 {
            0 if place < value.len() => value[place] = edit[3],
            1 => value.truncate(place),
            2 => value.insert(place, edit[3]),
            _ => value.extend([edit[2], edit[3]]),
        }
    }
    read_everything(&rows);
    let mut again = rows.clone();
    retention::forget(
        &mut again,
        &mut pages::Blocks::default(),
        1,
        retention::Cutoffs { events: Some(Timestamp::MAX), stream_events: Some(Timestamp::MAX) },
        0,
        100,
    );
    idempotency::forget_expired(&mut again, Timestamp::MAX);
}

fn read_everything(rows: &dyn Rows) {
    let filter = Filter::default();
    let status =
        |states: &mut dyn Iterator<Item = _>| balto::rules::event_status::event_status(states).as_str();
    for event in (0..40).step_by(7).map(Position) {
        came_back((reads::delivery(rows, delivery(event.0)), reads::deliveries_of(rows, event)));
        came_back((reads::dead_letter(rows, delivery(event.0)), reads::knows(rows, event)));
        came_back((pending::detail(rows, delivery(event.0)), pages::state_of(rows, delivery(event.0))));
    }
    came_back((reads::events(rows, &filter, None, 100, status), reads::deliveries(rows, &filter, None, 100)));
    came_back((reads::dead_letters(rows, &filter, None, 100), counters::all(rows)));
    for endpoint in (0..4).map(EndpointNumber) {
        let hours = stats::window(rows, endpoint, Timestamp::ZERO, Timestamp::MAX);
        came_back((hours.percentile(0.5), reads::oldest_pending(rows, endpoint)));
        came_back((pending::refill(rows, endpoint, None, 100), pending::of_endpoint(rows, endpoint, 100)));
    }
    for scope in [[0; 16], [7; 16]] {
        came_back(idempotency::known(rows, &scope));
    }
    let (tenant, stream) = ("acme".parse().expect("a tenant"), "order-42".parse().expect("a stream"));
    came_back(streams::head(rows, &tenant, &stream));
}

// ---- secrets ---------------------------------------------------------------------------------------------------

const PRESETS: [SignaturePreset; 3] =
    [SignaturePreset::Standard, SignaturePreset::Stripe, SignaturePreset::Github];

fn secret_seeds() -> Vec<Vec<u8>> {
    let mut seeds = lines(&[
        "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy",
        "whsk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "whpk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "plain text of a preset",
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1a,AAAA v2,x",
    ]);
    let Sealed::Encrypted(sealed) = vault().seal(b"secret", Place::Answer(&[1; 16]), [2; 24]) else {
        return seeds;
    };
    seeds.push(sealed.to_vec());
    seeds
}

fn vault() -> Vault {
    Vault::new([&[9; 32]])
}

fn secrets(bytes: &[u8]) {
    let opened = vault().open(&Sealed::Encrypted(bytes.into()), Place::Answer(&[1; 16]));
    assert!(opened.is_err() || opened.is_ok_and(|plain| plain == b"secret"), "what was never sealed opens");
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for preset in PRESETS {
        let Ok(key) = SigningKey::parse(text, preset) else { continue };
        assert!(!format!("{key:?}").contains(text), "a key is shown");
        let again = SigningKey::parse(&key.text(), preset).expect("what is shown is read");
        assert_eq!(again.text(), key.text());
        assert_eq!(again.sign("m", 1, b"{}"), key.sign("m", 1, b"{}"));
    }
    let at = Timestamp::from_millis(1_614_265_330_000);
    assert!(!signature::verify(b"a secret that nobody knows", "msg", "1614265330", b"{}", text, at));
    came_back(signature::verify(b"key", "msg", text, b"{}", "v1,AAAA", at));
}
