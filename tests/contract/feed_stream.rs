//! `GET /v1/feed` as a stream of events, and the horizon of the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::keys::in_seconds;
use crate::support::raw::Raw;
use crate::support::{Daemon, WAIT_MAX};
use crate::{ADMIN, call_as, is_problem, key, keyed, list, text};

/// One block of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Block {
    id: Option<String>,
    event: Option<String>,
    pub(super) data: Option<String>,
    retry: Option<String>,
    is_comment: bool,
}

/// A reader of one stream.
pub(super) struct Stream {
    response: reqwest::Response,
    unread: String,
}

impl Stream {
    async fn open(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client.get(format!("{}{path}", daemon.api)).header("accept", "text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    /// The feed with this query.
    pub(super) async fn begin(daemon: &Daemon, query: &str, headers: &[(&str, &str)]) -> Self {
        Self::begin_at(daemon, &format!("/feed{query}"), headers).await
    }

    pub(super) async fn begin_at(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> Self {
        let response = Self::open(daemon, path, headers).await;
        assert_eq!(response.status(), 200);
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "text/event-stream");
        assert_eq!((header("cache-control"), header("x-accel-buffering")), ("no-store".into(), "no".into()));
        assert_eq!(header("balto-log").len(), 32);
        let mut stream = Self { response, unread: String::new() };
        let retry = stream.next().await.unwrap().retry.unwrap().parse::<u64>().unwrap();
        assert!((2_000..=4_000).contains(&retry), "{retry}");
        stream
    }

    /// The next block; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Option<Block> {
        loop {
            if let Some((block, rest)) = self.unread.split_once("\n\n") {
                let (block, rest) = (parse(block), rest.to_owned());
                self.unread = rest;
                return Some(block);
            }
            let chunk = tokio::time::timeout(WAIT_MAX, self.response.chunk()).await.expect("no bytes");
            self.unread.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }

    /// The data of the next events, until there are as many.
    async fn events(&mut self, count: usize) -> Vec<u64> {
        let mut events = Vec::new();
        while events.len() < count {
            let block = self.next().await.expect("the stream ended");
            if let Some(data) = block.data.filter(|_| block.event.is_none()) {
                let event: Value = serde_json::from_str(&data).unwrap();
                assert_eq!(Some(event["position"].to_string()), block.id);
                events.push(event["data"].as_u64().unwrap());
            }
        }
        events
    }

    /// The next block with this type.
    async fn control(&mut self, name: &str) -> Block {
        loop {
            let block = self.next().await.expect("the stream ended");
            if block.event.as_deref() == Some(name) {
                return block;
            }
        }
    }
}

fn parse(text: &str) -> Block {
    let mut block = Block::default();
    for line in text.lines() {
        match line.split_once(": ").unwrap_or((line, "")) {
            ("id", id) => block.id = Some(id.to_owned()),
            ("event", event) => block.event = Some(event.to_owned()),
            ("retry", retry) => block.retry = Some(retry.to_owned()),
            ("data", data) => {
                let before = block.data.take().map(|before| before + "\n").unwrap_or_default();
                block.data = Some(before + data);
            }
            (":", _) => block.is_comment = true,
            other => panic!("a line {other:?} in {text:?}"),
        }
    }
    block
}

async fn publish(daemon: &Daemon, numbers: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let event =
        |number: u64| json!({"type": if number.is_multiple_of(2) { "a.b" } else { "c" }, "data": number});
    let events: Vec<_> = numbers.into_iter().map(event).collect();
    let answer = daemon.post("/events/batch", &json!({ "events": events }).to_string()).await;
    answer["results"].as_array().unwrap().iter().map(|one| one["position"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn stream_has_every_event_and_goes_on_after_its_last_one() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let positions = publish(&daemon, 0..5).await;
    let mut stream = Stream::begin(&daemon, "?after=oldest", &[]).await;
    assert_eq!(stream.events(5).await, [0, 1, 2, 3, 4]);
    let caught_up = stream.control("balto.caughtup").await;
    assert_eq!(caught_up.id, Some(positions[4].to_string()));
    publish(&daemon, 5..8).await;
    assert_eq!(stream.events(3).await, [5, 6, 7]);
    // The header of a client that connects again replaces the start in its URL.
    let last = positions[2].to_string();
    let headers = [("last-event-id", last.as_str())];
    let mut again = Stream::begin(&daemon, "?after=oldest&types=a.*", &headers).await;
    assert_eq!(again.events(2).await, [4, 6]);
    let mut now = Stream::begin(&daemon, "?after=now&types=c", &[]).await;
    now.control("balto.caughtup").await;
    publish(&daemon, 8..10).await;
    assert_eq!(now.events(1).await, [9]);
    // Where nothing matches, the cursor moves on.
    let none = Stream::begin(&daemon, "?after=now&types=nothing", &[]).await;
    let mut none = none;
    none.control("balto.caughtup").await;
    let moved = publish(&daemon, 10..11).await;
    let told = none.next().await.unwrap();
    assert_eq!(told, Block { id: Some(moved[0].to_string()), ..Block::default() });
}

#[tokio::test]
async fn pretty_printed_data_is_the_same_json() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let body = "{\"type\": \"a\", \"data\": {\r\n  \"a\": [1,\n 2],\r \"b\": \"x\\ny\"\n}}";
    daemon.post("/events", body).await;
    let mut stream = Stream::begin(&daemon, "", &[]).await;
    let block = stream.next().await.unwrap();
    let event: Value = serde_json::from_str(&block.data.unwrap()).unwrap();
    assert_eq!(event["data"], json!({"a": [1, 2], "b": "x\ny"}));
    assert_eq!(daemon.get("/feed").await["data"][0], event);
}

#[tokio::test]
async fn wrong_last_event_id_is_rejected() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for (id, status, code) in [
        ("x", 422, "validation_failed"),
        ("oldest", 422, "validation_failed"),
        ("999", 409, "position_ahead"),
    ] {
        let response = Stream::open(&daemon, "/feed", &[("last-event-id", id)]).await;
        let got = response.status().as_u16();
        let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        is_problem(&(got, problem), status, code, id);
    }
}

#[tokio::test]
async fn shutdown_ends_streams_with_a_block() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let mut stream = Stream::begin(&daemon, "?after=now", &[]).await;
    stream.control("balto.caughtup").await;
    let started = Instant::now();
    let end = tokio::spawn(async move {
        let end = stream.control("balto.end").await;
        (end, stream.next().await)
    });
    assert_eq!(daemon.terminate(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(8), "the shutdown waited for the stream");
    let (end, after) = end.await.unwrap();
    assert_eq!((end.data.as_deref(), after), (Some(r#"{"reason":"shutdown"}"#), None));
}

#[tokio::test]
async fn streams_have_a_limit_and_end_with_their_clients() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(data.path(), &["--dev"], &[("BALTO__SERVER__MAX_STREAMS", "4")]).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(Stream::begin(&daemon, "?after=now", &[]).await);
    }
    let refused = Stream::open(&daemon, "/feed?after=now", &[]).await;
    let (status, retry) = (refused.status().as_u16(), refused.headers().contains_key("retry-after"));
    let problem: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
    is_problem(&(status, problem), 429, "too_many_waiters", "a fourth stream of one party");
    assert!(retry);
    // Streams take no turns of the reads, and pages need no stream.
    assert_eq!(daemon.get("/feed?after=now").await["caughtUp"], true);
    daemon.until_metric("balto_api_streams", "", |streams| streams == 3.0).await;
    drop(streams);
    daemon.until_metric("balto_api_streams", "", |streams| streams == 0.0).await;
    Stream::begin(&daemon, "?after=now", &[]).await;
}

/// Publishes events of 100 KB until the stop.
fn publish_much(daemon: &Arc<Daemon>) -> tokio::task::JoinHandle<()> {
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        let event = json!({"type": "large", "data": "x".repeat(100_000)});
        let batch = json!({"events": vec![event; 20]}).to_string();
        loop {
            daemon.post("/events/batch", &batch).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

#[tokio::test]
async fn reader_that_takes_nothing_is_cut_and_a_slow_one_stays() {
    let data = tempfile::tempdir().unwrap();
    let environment = [("BALTO__SERVER__ANSWER_TIMEOUT", "2s"), ("BALTO__RETENTION__EVENTS", "1m")];
    let daemon = Arc::new(Daemon::start_in(data.path(), &["--dev"], &environment).await);
    let request = "GET /v1/feed?after=now HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
    let mut idle = Raw::connect(daemon.address()).await;
    idle.send(request.as_bytes()).await;
    let mut slow = Raw::connect(daemon.address()).await;
    slow.send(request.as_bytes()).await;
    daemon.until_metric("balto_api_streams", "", |streams| streams == 2.0).await;
    let publishing = publish_much(&daemon);
    let began = Instant::now();
    let mut read = 0;
    // Reads less than is published, for longer than the timeout.
    while began.elapsed() < Duration::from_secs(9) {
        let mut bytes = vec![0; 200_000];
        let count = tokio::io::AsyncReadExt::read(&mut slow.stream, &mut bytes).await.unwrap();
        assert!(count > 0, "a reader with progress was cut after {read} bytes");
        read += count;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    publishing.abort();
    daemon.until_metric("balto_api_streams", "", |streams| streams == 1.0).await;
    assert!(idle.is_closed_within(WAIT_MAX).await);
}

/// Reads a stream whose next events were forgotten: a prefix of the events, and then the news.
async fn assert_gone_without_a_gap(mut slow: Stream, positions: &[u64], oldest: &str) {
    let mut read = 0;
    let last = loop {
        let block = slow.next().await.expect("the stream ended without a reason");
        if block.event.is_some() {
            break block;
        }
        if block.data.is_some() {
            assert_eq!(block.id, Some(positions[read].to_string()), "event {read}");
            read += 1;
        }
    };
    assert!((1..positions.len()).contains(&read), "{read} events were read");
    let data = serde_json::from_str::<Value>(&last.data.unwrap()).unwrap();
    assert_eq!((last.event.as_deref(), &data["oldest"]), (Some("balto.gone"), &json!(oldest)));
    assert!(slow.next().await.is_none(), "the stream goes on");
}

/// Retention has forgotten events of the consumer `search`, which has not read since.
async fn assert_lost_consumer_is_reported(daemon: &Daemon, oldest: &str) {
    daemon.until_metric("balto_consumers_gone_total", "", |gone| gone == 1.0).await;
    assert_eq!(daemon.get("/consumers/search").await["oldest"], oldest);
    assert_eq!(daemon.get("/consumers/pets").await["oldest"], Value::Null, "it reads streams only");
    let reset = |to: &'static str| async move {
        let body = json!({"to": to}).to_string();
        let (status, answer, _) = daemon.call("POST", "/consumers/search/reset", &[], &body).await;
        (status, answer)
    };
    let refused = reset("0").await;
    is_problem(&refused, 410, "position_gone", "a reset to forgotten events");
    assert_eq!(refused.1["oldest"], oldest);
    let (status, answer, _) = daemon.call("PUT", "/consumers/new", &[], r#"{"start": "0"}"#).await;
    is_problem(&(status, answer), 410, "position_gone", "a start at forgotten events");
    assert_eq!(daemon.call("GET", "/consumers/new", &[], "").await.0, 404);
    // From a time on: the first event that is kept.
    let (status, at) = reset("2000-01-01T00:00:00Z").await;
    assert_eq!((status, &at["position"], &at["oldest"]), (200, &json!(oldest), &Value::Null), "{at}");
    assert_eq!(list(&daemon.get("/consumers/search/events").await).len(), 0);
}

/// Retention forgets events. Readers before the horizon learn it, also after the loss of the state.
#[tokio::test]
async fn forgotten_events_are_gone_and_never_missed() {
    let data = tempfile::tempdir().unwrap();
    let environment = [
        ("BALTO__RETENTION__EVENTS", "1m"),
        ("BALTO__INGEST__IDEMPOTENCY_TTL", "1m"),
        ("BALTO__SERVER__ANSWER_TIMEOUT", "10m"),
    ];
    let start = || Daemon::start_in(data.path(), &["--dev"], &environment);
    let mut daemon = start().await;
    let stream = json!({"type": "a", "data": 100, "stream": "pet-1"});
    let of_stream = daemon.post("/events", &stream.to_string()).await["position"].as_u64().unwrap();
    let mut large = vec![of_stream];
    // More than the buffers of a connection hold.
    for _ in 0..80 {
        let event = json!({"type": "a", "data": "x".repeat(200_000)}).to_string();
        large.push(daemon.post("/events", &event).await["position"].as_u64().unwrap());
    }
    let slow = Stream::begin(&daemon, "?after=oldest", &[]).await;
    for (name, more) in [("search", json!({})), ("pets", json!({"streamPrefix": ""}))] {
        assert_eq!(daemon.call("PUT", &format!("/consumers/{name}"), &[], &more.to_string()).await.0, 201);
    }
    let positions = publish(&daemon, 0..10).await;
    let mut waiting = Stream::begin(&daemon, "?after=now", &[]).await;
    let (last, before) = (positions[9].to_string(), positions[4].to_string());
    let deadline = Instant::now() + 3 * WAIT_MAX;
    let oldest = loop {
        let (status, answer, _) = daemon.call("GET", &format!("/feed?after={before}"), &[], "").await;
        if status != 200 {
            let oldest = text(&answer, "oldest");
            is_problem(&(status, answer), 410, "position_gone", "an old position");
            break oldest;
        }
        assert!(Instant::now() < deadline, "nothing was forgotten");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(oldest, last, "all events without a stream are forgotten");
    assert_gone_without_a_gap(slow, &large, &oldest).await;
    assert_lost_consumer_is_reported(&daemon, &oldest).await;
    for restart in ["none", "kill", "rebuild"] {
        if restart != "none" {
            daemon.kill();
            if restart == "rebuild" {
                std::fs::remove_dir_all(data.path().join("state")).unwrap();
            }
            daemon = start().await;
        }
        let gone = daemon.call("GET", "/feed?after=0", &[], "").await;
        assert_eq!((gone.0, &gone.1["oldest"]), (410, &json!(oldest)), "{restart}");
        let response = Stream::open(&daemon, "/feed?after=oldest", &[("last-event-id", &before)]).await;
        assert_eq!(response.status(), 410, "{restart}: before the first byte");
        assert_eq!(list(&daemon.get(&format!("/feed?after={oldest}")).await).len(), 0, "{restart}");
        assert_eq!(list(&daemon.get("/feed?after=oldest").await).len(), 0, "{restart}");
        // Events of streams are kept, so a feed of streams is complete from the beginning.
        let kept = daemon.get("/feed?after=0&streamPrefix=").await;
        assert_eq!(kept["data"][0]["position"], of_stream, "{restart}: {kept}");
        assert_eq!(list(&daemon.get("/feed?stream=pet-1").await).len(), 1, "{restart}");
    }
    // The reader at the end of the log missed nothing.
    waiting.control("balto.caughtup").await;
    let (status, fresh) =
        (daemon.post("/events", r#"{"type":"a","data":7}"#).await, daemon.get("/feed").await);
    assert_eq!(fresh["data"][0]["position"], status["position"]);
}

#[tokio::test]
async fn streams_of_tenants_have_only_their_own_events() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let acme = key(&daemon, "worker", Some("acme")).await;
    let bearer = format!("Bearer {acme}");
    let headers = [("authorization", bearer.as_str())];
    let mut stream = Stream::begin(&daemon, "", &headers).await;
    for (tenant, number) in [("other", 1), ("acme", 2), ("other", 3), ("acme", 4)] {
        let event = json!({"type": "a", "data": number, "tenant": tenant}).to_string();
        assert_eq!(call_as(&daemon, ADMIN, "POST", "/events", &event).await.0, 202);
    }
    assert_eq!(stream.events(2).await, [2, 4]);
    assert_eq!(Stream::open(&daemon, "/feed?tenant=other", &headers).await.status(), 403);
    assert_eq!(Stream::open(&daemon, "/feed", &[("authorization", "Bearer wrong")]).await.status(), 401);
}

#[tokio::test]
async fn consumer_streams_from_its_place_and_is_counted() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let mut positions = Vec::new();
    for number in 1..=3 {
        let event = json!({"type": "a", "data": number}).to_string();
        positions.push(daemon.post("/events", &event).await["position"].clone());
    }
    assert_eq!(daemon.call("PUT", "/consumers/search", &[], "{}").await.0, 201);
    daemon.post("/consumers/search/commit", &json!({"position": positions[0]}).to_string()).await;
    let mut stream = Stream::begin_at(&daemon, "/consumers/search/events", &[]).await;
    assert_eq!(stream.events(2).await, [2, 3]);
    assert_eq!(daemon.get("/consumers/search").await["connections"], 1);
    let last = positions[1].to_string();
    let mut again = Stream::begin_at(&daemon, "/consumers/search/events", &[("last-event-id", &last)]).await;
    assert_eq!(again.events(1).await, [3]);
    assert_eq!(daemon.get("/consumers/search").await["connections"], 2);
    drop((stream, again));
    daemon.until("/consumers/search", |consumer| consumer["connections"] == 0).await;
}

#[tokio::test]
async fn readers_follow_a_reset_and_a_deletion() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for number in 1..=3 {
        daemon.post("/events", &json!({"type": "a", "data": number}).to_string()).await;
    }
    let make = || async { daemon.call("PUT", "/consumers/search", &[], r#"{"start":"now"}"#).await.0 };
    let reset = || async { daemon.post("/consumers/search/reset", r#"{"to":"oldest"}"#).await };
    let wait = "/consumers/search/events?wait=60s";
    assert_eq!(make().await, 201);
    let mut stream = Stream::begin_at(&daemon, "/consumers/search/events", &[]).await;
    stream.control("balto.caughtup").await;
    // The reset ends the wait with the events after the new position.
    let page = {
        let change = async {
            daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting >= 1.0).await;
            reset().await
        };
        tokio::join!(daemon.get(wait), change).0
    };
    let numbers: Vec<_> = list(&page).iter().map(|event| event["data"].clone()).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let again = stream.control("balto.reset").await;
    assert_eq!((again.id.as_deref(), again.data.as_deref()), (Some("0"), Some(r#"{"position":"0"}"#)));
    assert_eq!(stream.events(3).await, [1, 2, 3]);
    stream.control("balto.caughtup").await;
    // The deletion ends both.
    daemon.post("/consumers/search/reset", r#"{"to":"now"}"#).await;
    stream.control("balto.reset").await;
    let change = async {
        daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting >= 1.0).await;
        assert_eq!(daemon.call("DELETE", "/consumers/search", &[], "").await.0, 204);
    };
    let started = Instant::now();
    let ((status, answer, _), ()) = tokio::join!(daemon.call("GET", wait, &[], ""), change);
    assert!(started.elapsed() < Duration::from_secs(50), "the deletion does not end the wait");
    is_problem(&(status, answer), 404, "not_found", "a wait for events of a deleted consumer");
    let end = stream.control("balto.end").await;
    assert_eq!(end.data.as_deref(), Some(r#"{"reason":"deleted"}"#));
    assert_eq!(stream.next().await, None);
    // Another consumer of the name, and another definition of it.
    assert_eq!(make().await, 201);
    let mut first = Stream::begin_at(&daemon, "/consumers/search/events", &[]).await;
    first.control("balto.caughtup").await;
    assert_eq!(daemon.call("DELETE", "/consumers/search", &[], "").await.0, 204);
    assert_eq!(make().await, 201);
    assert_eq!(first.control("balto.end").await.data.as_deref(), Some(r#"{"reason":"deleted"}"#));
    let mut second = Stream::begin_at(&daemon, "/consumers/search/events", &[]).await;
    second.control("balto.caughtup").await;
    assert_eq!(make().await, 200, "the same definition");
    daemon.post("/events", &json!({"type": "a", "data": 4}).to_string()).await;
    assert_eq!(second.events(1).await, [4]);
    assert_eq!(daemon.call("PUT", "/consumers/search", &[], r#"{"types":["b"]}"#).await.0, 200);
    daemon.post("/events", &json!({"type": "a", "data": 5}).to_string()).await;
    assert_eq!(second.control("balto.end").await.data.as_deref(), Some(r#"{"reason":"redefined"}"#));
}

/// The key and its secret.
async fn new_key(daemon: &Daemon, role: &str, more: Value) -> (String, String) {
    let mut body = json!({"role": role, "tenant": "acme"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let (status, made) = call_as(daemon, ADMIN, "POST", "/keys", &body.to_string()).await;
    assert_eq!(status, 201, "{made}");
    (text(&made, "id"), text(&made, "secret"))
}

async fn publish_job(daemon: &Daemon) {
    let event = json!({"type": "job", "tenant": "acme", "data": 1}).to_string();
    assert_eq!(call_as(daemon, ADMIN, "POST", "/events", &event).await.0, 202);
}

#[tokio::test]
async fn deleted_key_ends_its_streams_and_waits() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let queue = json!({"name": "jobs", "tenant": "acme"}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/queues", &queue).await.0, 201);
    let (viewer, secret) = new_key(&daemon, "viewer", json!({})).await;
    let (worker, workers) = new_key(&daemon, "worker", json!({})).await;
    let bearer = format!("Bearer {secret}");
    let mut stream = Stream::begin(&daemon, "?after=now", &[("authorization", &bearer)]).await;
    stream.control("balto.caughtup").await;
    let changes = async {
        daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting >= 2.0).await;
        for id in [viewer, worker] {
            assert_eq!(call_as(&daemon, ADMIN, "DELETE", &format!("/keys/{id}"), "").await.0, 204);
        }
        publish_job(&daemon).await;
    };
    let (page, messages, ()) = tokio::join!(
        call_as(&daemon, &secret, "GET", "/feed?after=now&wait=30s", ""),
        call_as(&daemon, &workers, "POST", "/queues/jobs/receive", r#"{"wait":"30s"}"#),
        changes,
    );
    is_problem(&page, 401, "unauthorized", "a wait with a deleted key");
    is_problem(&messages, 401, "unauthorized", "a worker with a deleted key");
    let end = stream.next().await.unwrap();
    assert_eq!(
        (end.event.as_deref(), end.data.as_deref()),
        (Some("balto.end"), Some(r#"{"reason":"unauthorized"}"#))
    );
    assert_eq!(stream.next().await, None);
    let (_, workers) = new_key(&daemon, "worker", json!({})).await;
    let (_, received) = call_as(&daemon, &workers, "POST", "/queues/jobs/receive", r#"{"wait":"30s"}"#).await;
    assert_eq!(received["messages"][0]["deliveryCount"], 1, "{received}");
}

/// The position at the end is before the event that was not sent.
#[tokio::test]
async fn expired_key_ends_its_stream() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let expires = json!({"expiresAt": in_seconds(3)});
    let (_, secret) = new_key(&daemon, "viewer", expires).await;
    let bearer = format!("Bearer {secret}");
    let mut stream = Stream::begin(&daemon, "?after=now", &[("authorization", &bearer)]).await;
    let caught_up = stream.control("balto.caughtup").await;
    let end = stream.control("balto.end").await;
    assert_eq!((end.id, end.data.as_deref()), (caught_up.id, Some(r#"{"reason":"unauthorized"}"#)));
}
