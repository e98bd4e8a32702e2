//! Streams of events, followed by SSE libraries of other authors: npm `eventsource` and PyPI
//! `httpx-sse`. A proxy cuts, splits and delays the responses, and the daemon is killed.
//! Each reader must see each event of its stream once and in order, or learn what was forgotten.

use std::collections::{BTreeMap, VecDeque};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::clock::Clock;
use crate::support::judges::{install, python, root, run};
use crate::support::proxy::{Fault, Proxy, Target};
use crate::support::{Daemon, Progress, say, seed};

/// The type of the event after which readers stop.
const LAST: &str = "all.last";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Library {
    EventSource,
    HttpxSse,
}

/// Starts a library with these readers; returns their reports.
fn follow(library: Library, readers: Vec<Value>) -> JoinHandle<Vec<Value>> {
    tokio::task::spawn_blocking(move || {
        install();
        let mut command = match library {
            Library::EventSource => Command::new(root().join("target/judges/node")),
            Library::HttpxSse => python("python"),
        };
        let script = if library == Library::EventSource { "sse.mjs" } else { "sse.py" };
        let input = json!({"readers": readers}).to_string();
        let (good, words) = run(command.arg(root().join("tests/judges").join(script)), &input);
        assert!(good, "{library:?} failed:\n{words}");
        let reports: Vec<Value> = words.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(reports.len(), readers.len(), "output of {library:?}:\n{words}");
        reports
    })
}

fn events(report: &Value) -> Vec<Value> {
    report["events"].as_array().unwrap().iter().map(|read| read["event"].clone()).collect()
}

/// Asserts that a reader saw exactly these events, each under its cursor.
fn check(report: &Value, wanted: &[Value], story: &str) {
    for read in report["events"].as_array().unwrap() {
        assert_eq!(read["id"], read["event"]["position"].to_string(), "{story}: the cursor of {read}");
    }
    let (read, count) = (events(report), wanted.len());
    let first = read.iter().zip(wanted).position(|(read, wanted)| read != wanted);
    let first = first.unwrap_or_else(|| read.len().min(count));
    let differ = (read.get(first), wanted.get(first));
    assert!(read == wanted, "{story}: {} events, not {count}; number {first}: {differ:?}", read.len());
}

/// All events of a feed, by pages.
async fn feed(daemon: &Daemon, query: &str) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), "oldest".to_owned());
    loop {
        let page = daemon.get(&format!("/feed?limit=100&after={after}{query}")).await;
        all.extend(page["data"].as_array().unwrap().iter().cloned());
        after = page["next"].as_str().unwrap().to_owned();
        if page["caughtUp"] == true {
            return all;
        }
    }
}

/// Text that parsers of lines and of UTF-8 split wrongly.
const TEXT: &str = "é 😀 \u{2028}\u{2029}\u{85} : data: id: 7\\n\\r";

fn body(number: u64) -> String {
    let event_type = ["a.b", "c"][number as usize % 2];
    let data = format!("{{\"number\": {number},\n \"text\":\r\n \"{TEXT}\"\r}}");
    format!(r#"{{"id": "event-{number}", "type": "{event_type}", "data": {data}}}"#)
}

fn last() -> String {
    json!({"type": LAST, "data": 1}).to_string()
}

/// Length of the first response up to the block of this event.
async fn length_until(daemon: &Daemon, position: &Value) -> usize {
    let mut stream = TcpStream::connect(daemon.address()).await.unwrap();
    let request = "GET /v1/feed HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut read, mark) = (Vec::new(), format!("id: {position}\n").into_bytes());
    loop {
        if let Some(at) = read.windows(mark.len()).position(|part| part == mark) {
            return at;
        }
        assert!(stream.read_buf(&mut read).await.unwrap() > 0, "the stream ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_continue_after_a_cut_at_every_byte() {
    let data = tempfile::tempdir().unwrap();
    let environment =
        [("BALTO__SERVER__MAX_CONNECTIONS_PER_ADDRESS", "4000"), ("BALTO__SERVER__MAX_STREAMS", "3000")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    assert_eq!(daemon.call("PUT", "/consumers/all", &[], "{}").await.0, 201);
    let mut positions = Vec::new();
    for number in 0..3 {
        positions.push(daemon.post("/events", &body(number)).await["position"].clone());
    }
    daemon.post("/events", &last()).await;
    let wanted = feed(&daemon, "").await;
    assert_eq!(wanted.len(), 4);
    // The response's head, the retry time, one event, and half of the next one.
    let bytes = length_until(&daemon, &positions[1]).await;
    let bytes = bytes + (length_until(&daemon, &positions[2]).await - bytes) / 2;
    let target: Target = Arc::new(Mutex::new(daemon.address()));
    let (mut proxies, mut libraries) = (Vec::new(), Vec::new());
    for library in [Library::EventSource, Library::HttpxSse] {
        let mut readers = Vec::new();
        for after in 0..bytes {
            let fault = move |connection| match connection {
                0 => Fault::Cut { after, reset: after % 3 == 0 },
                1 => Fault::Split { after },
                _ => Fault::None,
            };
            let proxy = Proxy::start(&target, fault).await;
            let is_feed = (after % 2 == 0) == (library == Library::HttpxSse);
            let path = if is_feed { "feed?after=oldest" } else { "consumers/all/events" };
            readers.push(json!({"url": format!("http://{}/v1/{path}", proxy.address)}));
            proxies.push(proxy);
        }
        libraries.push((library, follow(library, readers)));
    }
    for (library, reports) in libraries {
        for (after, report) in reports.await.unwrap().iter().enumerate() {
            check(report, &wanted, &format!("{library:?} after a cut at byte {after}"));
        }
    }
    assert!(proxies.iter().all(|proxy| proxy.connections() >= 2), "a response was not cut");
    say(&format!("{bytes} bytes, {} readers", proxies.len()));
}

/// Events to publish, and the positions of the acknowledged ones.
#[derive(Default)]
struct Published {
    next: u64,
    unanswered: VecDeque<u64>,
    positions: BTreeMap<u64, Value>,
    is_over: bool,
}

/// Publishes until the daemon dies, or until all is published.
async fn publish(published: Arc<Mutex<Published>>, daemon: Arc<Daemon>) {
    loop {
        let number = {
            let mut published = published.lock().unwrap();
            if published.is_over {
                return;
            }
            let repeated = published.unanswered.pop_front();
            repeated.unwrap_or_else(|| {
                published.next += 1;
                published.next
            })
        };
        match daemon.try_post("/events", &body(number)).await {
            Some(answer) => {
                let known = published.lock().unwrap().positions.insert(number, answer["position"].clone());
                assert!(known.is_none_or(|known| known == answer["position"]), "another position: {answer}");
            }
            None => return published.lock().unwrap().unanswered.push_back(number),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The readers of a library: each path through its own proxy.
async fn readers(
    target: &Target,
    paths: &[&str],
    fault: impl Fn(usize, usize) -> Fault + Clone + Send + Sync + 'static,
) -> (Vec<Proxy>, Vec<Value>) {
    let (mut proxies, mut readers) = (Vec::new(), Vec::new());
    for (number, path) in paths.iter().enumerate() {
        let fault = fault.clone();
        let proxy = Proxy::start(target, move |connection| fault(number, connection)).await;
        let base = format!("http://{}/v1", proxy.address);
        let mut reader = json!({"url": format!("{base}{path}")});
        if let Some(consumer) = path.strip_suffix("/events") {
            reader["reset"] = json!(format!("{base}{consumer}/reset"));
        }
        readers.push(reader);
        proxies.push(proxy);
    }
    (proxies, readers)
}

/// Waits until a counter of every proxy is above these numbers.
async fn until_above(before: &[usize], proxies: &[Proxy], counter: impl Fn(&Proxy) -> usize) {
    let mut progress = Progress::from(0);
    loop {
        let above = proxies.iter().zip(before).filter(|(proxy, before)| counter(proxy) > **before).count();
        if above == proxies.len() {
            return;
        }
        assert!(progress.goes_on(above), "only {above} of {} readers go on", proxies.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const PATHS: [(&str, &str); 4] = [
    ("/feed?after=oldest", ""),
    ("/feed?types=a.*,all.last", "&types=a.*,all.last"),
    ("/consumers/all/events", ""),
    ("/consumers/some/events", "&types=a.*,all.last"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_follow_through_kills_and_cuts() {
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Arc::new(Daemon::start(data.path()).await);
    for (name, definition) in [("all", json!({})), ("some", json!({"types": ["a.*", LAST]}))] {
        let (status, ..) =
            daemon.call("PUT", &format!("/consumers/{name}"), &[], &definition.to_string()).await;
        assert_eq!(status, 201);
    }
    let target: Target = Arc::new(Mutex::new(daemon.address()));
    let paths = PATHS.map(|(path, _)| path);
    let slow = |number: usize, _| match number {
        0 => Fault::None,
        number => Fault::Slow { step: 150 * number },
    };
    let (sources, followed) = readers(&target, &paths, slow).await;
    let cut = move |number: usize, connection: usize| {
        let mut random = Rng::with_seed(seed ^ (number << 32 | connection) as u64);
        Fault::Cut { after: random.usize(300..10_000) + 30 * connection, reset: random.bool() }
    };
    let (others, cut_often) = readers(&target, &paths.repeat(2), cut).await;
    let reports = [follow(Library::EventSource, followed), follow(Library::HttpxSse, cut_often)];
    let published = Arc::<Mutex<Published>>::default();
    let mut before = vec![0; sources.len()];
    for end in ["kill", "stop", "kill", "last"] {
        // `eventsource` waits for 2 to 4 seconds before it connects again.
        until_above(&before, &sources, Proxy::connections).await;
        let goal = published.lock().unwrap().positions.len() + random.usize(30..80);
        let mut publishers: JoinSet<()> =
            (0..3).map(|_| publish(Arc::clone(&published), Arc::clone(&daemon))).collect();
        let mut progress = Progress::from(0);
        loop {
            let count = published.lock().unwrap().positions.len();
            if count >= goal {
                break;
            }
            assert!(progress.goes_on(count), "only {count} events are acknowledged");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        match end {
            "kill" => daemon.signal("KILL"),
            "stop" => daemon.signal("TERM"),
            _ => published.lock().unwrap().is_over = true,
        }
        while let Some(publisher) = publishers.join_next().await {
            publisher.unwrap();
        }
        if end == "last" {
            break;
        }
        let Some(mut ended) = Arc::into_inner(daemon) else { panic!("a publisher goes on") };
        assert!(ended.ended_within(crate::support::WAIT_MAX).await == Some(0) || end == "kill");
        daemon = Arc::new(Daemon::start(data.path()).await);
        before = sources.iter().map(Proxy::connections).collect();
        *target.lock().unwrap() = daemon.address();
    }
    daemon.post("/events", &last()).await;
    let log = feed(&daemon, "").await;
    let by_id: BTreeMap<_, _> = log.iter().map(|event| (event["id"].as_str(), event)).collect();
    assert_eq!(by_id.len(), log.len(), "an event is in the log twice");
    for (number, position) in &published.lock().unwrap().positions {
        let event = by_id[&Some(format!("event-{number}").as_str())];
        assert_eq!(event["position"], *position, "BALTO_TEST_SEED={seed}: event {number}");
    }
    let mut opened = 0;
    for (library, reports) in [Library::EventSource, Library::HttpxSse].into_iter().zip(reports) {
        for (report, (path, query)) in reports.await.unwrap().iter().zip(PATHS.iter().cycle()) {
            let wanted = feed(&daemon, query).await;
            check(report, &wanted, &format!("BALTO_TEST_SEED={seed}: {library:?} of {path}"));
            opened += report["opened"].as_u64().unwrap();
        }
    }
    let cuts: usize = others.iter().map(Proxy::connections).sum();
    assert!(cuts > 2 * others.len(), "only {cuts} connections of cut readers");
    say(&format!("{} events, {opened} streams", log.len()));
}

/// Readers lose their connections, and retention forgets events that they have not seen yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_before_the_horizon_learn_the_oldest_position() {
    let below = tempfile::tempdir().unwrap();
    let Some(clock) = Clock::new(below.path()) else {
        return say("SKIPPED: libfaketime is not available");
    };
    let data = below.path().join("data");
    let environment = [("BALTO__RETENTION__EVENTS", "1m"), ("BALTO__INGEST__IDEMPOTENCY_TTL", "1m")];
    let mut daemon = clock.start(&data, &environment).await;
    assert_eq!(daemon.call("PUT", "/consumers/all", &[], "{}").await.0, 201);
    for number in 0..12 {
        if number % 4 == 3 {
            let event = json!({"type": "a.b", "stream": "pet-1", "data": number});
            daemon.post("/events", &event.to_string()).await;
        }
        daemon.post("/events", &body(number)).await;
    }
    let (all, kept) = (feed(&daemon, "").await, feed(&daemon, "&streamPrefix=").await);
    let target: Target = Arc::new(Mutex::new(daemon.address()));
    let paths = ["/feed?after=oldest", "/consumers/all/events", "/feed?streamPrefix="];
    let cut = |_, connection| match connection {
        0 => Fault::Cut { after: 1_700, reset: false },
        _ => Fault::None,
    };
    let (sources, followed) = readers(&target, &paths, cut).await;
    let (others, by_httpx) = readers(&target, &paths, cut).await;
    let reports = [follow(Library::EventSource, followed), follow(Library::HttpxSse, by_httpx)];
    for proxies in [&sources, &others] {
        // The feed of streams is shorter than the cut.
        until_above(&[0; 2], &proxies[..2], Proxy::ended).await;
        for proxy in proxies {
            proxy.set_open(false);
        }
    }
    // A process that runs does not follow a clock that is set.
    clock.set(3_600);
    daemon.kill();
    daemon = clock.start(&data, &environment).await;
    let mut progress = Progress::from(Value::Null);
    let oldest = loop {
        let (status, answer, _) = daemon.call("GET", "/feed?after=0", &[], "").await;
        let last = all.last().unwrap()["position"].to_string();
        if status == 410 && answer["oldest"].as_str() == Some(&*last) {
            break answer["oldest"].clone();
        }
        assert!(progress.goes_on(answer.clone()), "retention forgets nothing: {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    daemon.kill();
    daemon = clock.start(&data, &environment).await;
    *target.lock().unwrap() = daemon.address();
    for number in 12..15 {
        daemon.post("/events", &body(number)).await;
    }
    let event = json!({"type": LAST, "stream": "pet-1", "data": 1});
    daemon.post("/events", &event.to_string()).await;
    let (fresh, streams) = (feed(&daemon, "").await, feed(&daemon, "&streamPrefix=").await);
    assert_eq!(fresh.len(), 4, "{fresh:?}");
    assert_eq!(streams[..kept.len()], kept, "events of streams are kept");
    sources.iter().chain(&others).for_each(|proxy| proxy.set_open(true));
    for (library, reports) in [Library::EventSource, Library::HttpxSse].into_iter().zip(reports) {
        for (report, path) in reports.await.unwrap().iter().zip(paths) {
            let story = format!("{library:?} of {path}");
            if path.ends_with("streamPrefix=") {
                check(report, &streams, &story);
                assert_eq!(report["gone"], json!([]), "{story}");
                continue;
            }
            let seen = report["gone"][0]["events"].as_u64().unwrap() as usize;
            let gone = json!([{"events": seen, "code": "position_gone", "oldest": oldest}]);
            assert_eq!(report["gone"], gone, "{story}");
            assert!(seen > 0 && seen < all.len(), "{story}: cut after {seen} events");
            check(report, &[&all[..seen], &fresh[..]].concat(), &story);
        }
    }
}
