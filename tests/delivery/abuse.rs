//! Clients that take what they can get: connections held and never used, answers never taken, more than can be written,
//! more than fits into memory, file descriptors until none is left, keys tried by the thousand. Others are served as
//! before, what was accepted is safe, memory stays within its bounds, and it is over when they are gone.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::raw::{Raw, post};
use crate::support::{Daemon, Interference, PATIENCE, Receiver, answer, has, quiet, say, traced};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};

const EVENT: &str = r#"{"type":"a.b","data":1}"#;
/// The first file of a fresh daemon's journal.
const JOURNAL: &str = "journal/journal-00000000000000000001.log";

/// Waits until something is so.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// ---- connections -----------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_slow_connections_keep_nobody_out() {
    const LIMIT: usize = 64;
    const SOCKETS: usize = 2_000;
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(
        data.path(),
        &["--dev"],
        &[("BALTO__SERVER__MAX_CONNECTIONS", "64"), ("BALTO__SERVER__HEADER_TIMEOUT", "1h")],
    )
    .await;
    // Half of them say nothing, half drip headers for as long as they may.
    let mut sockets = Vec::new();
    for number in 0..SOCKETS {
        let mut raw = Raw::connect(daemon.address()).await;
        if number % 2 == 0 {
            raw.send(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\nx: y").await;
        }
        sockets.push(raw);
        if number % 100 == 99 {
            let (status, answer, _) = daemon.call("POST", "/events", &[], EVENT).await;
            assert_eq!(status, 202, "with {number} sockets: {answer}");
            for drip in sockets.iter_mut().step_by(2) {
                drip.send(b"y").await;
            }
        }
    }
    // A connection counts as made before the daemon takes it in: the last ones may still be on their way.
    until("all but the limit give way", async || {
        let open = daemon.metric("balto_api_connections", "").await;
        let displaced = daemon.metric("balto_api_connections_displaced_total", "").await;
        open <= LIMIT as f64 && displaced >= (SOCKETS - LIMIT) as f64
    })
    .await;
    assert!(daemon.kibibytes("VmHWM") < 200 * 1024);
    drop(sockets);
    until("the places are free again", async || daemon.metric("balto_api_connections", "").await <= 1.0)
        .await;
}

#[tokio::test]
async fn requests_that_do_not_arrive_in_time_are_ended() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(
        data.path(),
        &["--dev"],
        &[("BALTO__SERVER__HEADER_TIMEOUT", "1s"), ("BALTO__SERVER__BODY_TIMEOUT", "1s")],
    )
    .await;
    let silent = Raw::connect(daemon.address()).await;
    let mut dripping = Raw::connect(daemon.address()).await;
    dripping.send(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n").await;
    let mut kept = Raw::connect(daemon.address()).await;
    kept.send(post("/v1/events", "", EVENT).as_bytes()).await;
    assert_eq!(kept.answer().await.unwrap().status, 202);
    let mut slow_body = Raw::connect(daemon.address()).await;
    slow_body
        .send(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        .await;
    // A byte now and then is no reason to wait longer.
    let started = Instant::now();
    let mut headers_open = true;
    let mut body_open = true;
    while headers_open || body_open {
        headers_open = headers_open && dripping.send(b"x: y\r\n").await;
        body_open = body_open && slow_body.send(b" ").await;
        assert!(started.elapsed() < PATIENCE, "headers: {headers_open}, body: {body_open}");
        if body_open
            && tokio::time::timeout(Duration::from_millis(50), slow_body.stream.readable()).await.is_ok()
        {
            assert_eq!(slow_body.answer().await.unwrap().status, 408);
            body_open = false;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (name, mut socket) in [("silent", silent), ("kept alive", kept)] {
        assert!(socket.is_closed_within(PATIENCE).await, "{name} stays open");
    }
}

#[tokio::test]
async fn answers_that_are_not_taken_hold_no_turn_for_ever() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(
        data.path(),
        &["--dev"],
        &[("BALTO__SERVER__ANSWER_TIMEOUT", "1s"), ("BALTO__INGEST__MAX_EVENT_BYTES", "1MiB")],
    )
    .await;
    let large = json!({"type": "a.b", "data": "x".repeat(1_000_000)}).to_string();
    for _ in 0..20 {
        daemon.post("/events", &large).await;
    }
    let page = daemon.get("/events?limit=250").await;
    let shown = page["data"].as_array().unwrap().len();
    assert!((1..=3).contains(&shown) && page["next"].is_string(), "{shown} events of a megabyte on one page");
    // More than there are turns: each asks for pages and takes nothing.
    let mut readers = Vec::new();
    for _ in 0..80 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut raw = Raw::over(socket.connect(daemon.address()).await.unwrap());
        let request = b"GET /v1/events?limit=250 HTTP/1.1\r\nhost: localhost\r\n\r\n";
        raw.send(&request.repeat(4)).await;
        readers.push(raw);
    }
    let all = walk(&daemon).await;
    assert_eq!(all, 20, "pages that end early lead on to the rest");
    assert!(daemon.kibibytes("VmHWM") < 400 * 1024, "{} KiB", daemon.kibibytes("VmHWM"));
    until("the readers are gone", async || daemon.metric("balto_api_connections", "").await <= 2.0).await;
}

/// How many events there are, page by page.
async fn walk(daemon: &Daemon) -> usize {
    crate::support::load::held(daemon).await.len()
}

// ---- load ------------------------------------------------------------------------------------------------------

/// What publishers were told.
#[derive(Default)]
struct Told {
    accepted: std::sync::Mutex<HashSet<String>>,
    offered: AtomicU64,
    refused: AtomicU64,
}

/// Publishes single events and batches by turns until told to stop.
async fn publisher(api: String, told: Arc<Told>, stop: tokio::sync::watch::Receiver<bool>, data: String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let event = json!({"type": "a.b", "data": data}).to_string();
    let batch = format!(r#"{{"events":[{}]}}"#, vec![event.as_str(); 100].join(","));
    for turn in 0.. {
        if *stop.borrow() {
            return;
        }
        let (path, body, count) = if turn % 2 == 0 { ("", &event, 1) } else { ("/batch", &batch, 100) };
        told.offered.fetch_add(count, Ordering::Relaxed);
        let request = client.post(format!("{api}/events{path}")).header("content-type", "application/json");
        let reply = request.body(body.clone()).send().await.unwrap();
        let status = reply.status().as_u16();
        let retry_after = reply.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        let answer: Value = serde_json::from_str(&reply.text().await.unwrap()).unwrap();
        if status == 429 {
            assert!(
                retry_after.is_some_and(|after| after.parse::<u64>().is_ok_and(|after| after > 0)),
                "{answer}"
            );
            assert_eq!(answer["code"], "overloaded");
            told.refused.fetch_add(count, Ordering::Relaxed);
            continue;
        }
        assert_eq!(status, 202, "{answer}");
        let results = answer["results"].as_array().cloned().unwrap_or_else(|| vec![answer]);
        let mut accepted = told.accepted.lock().unwrap();
        for result in results {
            assert!(accepted.insert(result["id"].as_str().expect("accepted").to_owned()), "{result} twice");
        }
    }
}

/// Every sync takes two seconds, so that at most a thousand events can wait for one and be written with it. Ten times as
/// many are offered, also by publishers on a busy machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_times_the_load_is_refused_and_what_is_accepted_is_delivered() {
    if !has("strace") {
        return say("SKIPPED: no strace");
    }
    let data = tempfile::tempdir().unwrap();
    let receiver = Receiver::status(200).await;
    let mut command = crate::support::serve(data.path(), &["--dev"]);
    command.env("BALTO__INGEST__ADMISSION_EVENTS", "1000").env("BALTO__INGEST__ADMISSION_BYTES", "32MiB");
    let slow = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=2000000", "-o", "/dev/null"];
    let mut daemon = Daemon::spawn(traced(&command, &slow));
    daemon.until_ready().await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "maxInFlight": 64}).to_string()).await;
    let told = Arc::<Told>::default();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let publishers: Vec<_> = (0..64)
        .map(|_| tokio::spawn(publisher(daemon.api.clone(), told.clone(), stopped.clone(), "x".repeat(500))))
        .collect();
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (offered, refused) = (told.offered.load(Ordering::Relaxed), told.refused.load(Ordering::Relaxed));
        let accepted = told.accepted.lock().unwrap().len() as u64;
        if accepted >= 2_000 && offered >= 10 * accepted {
            say(&format!("{offered} offered, {accepted} accepted, {refused} refused"));
            break;
        }
        assert!(Instant::now() < deadline, "{offered} offered, {accepted} accepted, {refused} refused");
        assert!(daemon.is_ready().await, "it is not ready any more");
    }
    stop.send_replace(true);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    assert!(daemon.kibibytes("VmHWM") < 200 * 1024, "{} KiB", daemon.kibibytes("VmHWM"));
    let accepted = told.accepted.lock().unwrap().clone();
    until("all are delivered", async || {
        daemon.get("/deliveries?limit=1&status=pending").await["data"] == json!([])
    })
    .await;
    let sent: HashSet<_> = receiver.got().iter().map(|got| got.headers["webhook-id"].clone()).collect();
    assert!(sent == accepted, "{} were accepted and {} delivered", accepted.len(), sent.len());
    assert_eq!(daemon.terminate(), Some(0));
}

/// The state's disk does not answer while large events keep coming.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_hangs_does_not_fill_the_memory() {
    let data = tempfile::tempdir().unwrap();
    let bounds = [("BALTO__INGEST__ADMISSION_BYTES", "32MiB"), ("BALTO__SERVER__MAX_BODY_BYTES", "32MiB")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &bounds).await;
    let hanging = ["-e", "trace=pwrite64", "-e", "inject=pwrite64:delay_enter=600000000"];
    let Some(interference) = Interference::with(&daemon, &data.path().join("state/db"), &hanging).await
    else {
        return say("SKIPPED: strace cannot be had here");
    };
    let told = Arc::<Told>::default();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let publish =
        |data: String| tokio::spawn(publisher(daemon.api.clone(), told.clone(), stopped.clone(), data));
    let publishers: Vec<_> = (0..8).map(|_| publish("x".repeat(100_000))).collect();
    // 64 MiB, and what the state had taken in before it hung; then nothing more, for as long as anybody looks.
    let (mut accepted, mut since) = (0, Instant::now());
    until("it takes no more", async || {
        let now = told.accepted.lock().unwrap().len();
        assert!(now < 5_000, "it takes all that comes");
        if now != accepted {
            (accepted, since) = (now, Instant::now());
        }
        accepted >= 500 && since.elapsed() > Duration::from_secs(2)
    })
    .await;
    until("it is not ready", async || !daemon.is_ready().await).await;
    let peak = daemon.kibibytes("VmHWM") / 1024;
    say(&format!("{accepted} of 100 kB accepted, at most {peak} MiB in memory"));
    assert!(peak < 450, "{peak} MiB");
    stop.send_replace(true);
    drop(interference);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    daemon.until_ready().await;
    let accepted = told.accepted.lock().unwrap().clone();
    let held: HashSet<_> = crate::support::load::held(&daemon).await.into_iter().map(|(_, id)| id).collect();
    assert!(accepted == held, "{} were accepted, {} are held", accepted.len(), held.len());
}

/// The journal's disk does not answer: nobody is told yes, the operator is told, deliveries that are durable go on within
/// a bound, and all of it ends with the silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_makes_it_unready_until_it_answers() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    daemon.post("/events", EVENT).await;
    let hanging = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=600000000"];
    let Some(interference) = Interference::with(&daemon, &data.path().join(JOURNAL), &hanging).await else {
        return say("SKIPPED: strace cannot be had here");
    };
    let mut publisher = Raw::connect(daemon.address()).await;
    publisher.send(post("/v1/events", "", EVENT).as_bytes()).await;
    until("it is not ready", async || !daemon.is_ready().await).await;
    let reason = reqwest::get(format!("{}/readyz", daemon.ops)).await.unwrap().text().await.unwrap();
    assert!(reason.contains("the disk has not answered for"), "{reason}");
    assert!(reqwest::get(format!("{}/healthz", daemon.ops)).await.unwrap().status().is_success());
    let answered = tokio::time::timeout(Duration::from_millis(200), publisher.stream.readable()).await;
    assert!(answered.is_err(), "it was answered before it was durable");
    drop(interference);
    assert_eq!(publisher.answer().await.unwrap().status, 202);
    daemon.until_ready().await;
    assert_eq!(daemon.get("/events").await["data"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_never_finished_take_no_more_room_than_there_is() {
    let data = tempfile::tempdir().unwrap();
    let daemon =
        Daemon::start_in(data.path(), &["--dev"], &[("BALTO__SERVER__MAX_BODY_BYTES", "32MiB")]).await;
    let head = "POST /v1/events/batch HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\ncontent-length: 16000000\r\n\r\n";
    let part = vec![b'x'; 15_000_000];
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::connect(daemon.address()).await;
        raw.send(head.as_bytes()).await;
        assert!(raw.send(&part).await, "it was cut off without a word");
        held.push(raw);
    }
    // Two fit, and wait for the rest of their bodies.
    let mut refused = 0;
    let mut unanswered: Vec<_> = held.iter_mut().collect();
    until("18 of 20 are refused", async || {
        let mut silent = Vec::new();
        for raw in unanswered.drain(..) {
            if tokio::time::timeout(Duration::from_millis(20), raw.stream.readable()).await.is_err() {
                silent.push(raw);
                continue;
            }
            let answer = raw.answer().await.unwrap();
            assert_eq!(answer.status, 429, "{answer:?}");
            assert!(answer.head.contains("retry-after: "), "{answer:?}");
            refused += 1;
        }
        unanswered = silent;
        refused >= 18
    })
    .await;
    assert!(daemon.kibibytes("VmHWM") < 250 * 1024, "{} KiB", daemon.kibibytes("VmHWM"));
    drop(held);
    until("there is room again", async || daemon.call("POST", "/events", &[], EVENT).await.0 == 202).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_posts_with_one_key_make_one_event_also_when_the_process_is_killed_among_them() {
    let mut random = fastrand::Rng::with_seed(crate::support::seed());
    let data = tempfile::tempdir().unwrap();
    let mut kinds = 0;
    for round in 0..8 {
        let key = format!("key-{round}");
        let body = format!(r#"{{"type":"n.{round}","data":1}}"#);
        let mut ids = HashSet::new();
        for kill in [true, true, false] {
            let mut daemon = Daemon::start(data.path()).await;
            let clients: Vec<_> = (0..64)
                .map(|_| {
                    let (url, key, body) = (format!("{}/events", daemon.api), key.clone(), body.clone());
                    tokio::spawn(async move {
                        let client = reqwest::Client::builder().no_proxy().build().unwrap();
                        let request = client.post(url).header("content-type", "application/json");
                        let reply = request.header("idempotency-key", key).body(body).send().await.ok()?;
                        let status = reply.status().as_u16();
                        Some((status, serde_json::from_str::<Value>(&reply.text().await.ok()?).ok()?))
                    })
                })
                .collect();
            if kill {
                tokio::time::sleep(Duration::from_millis(random.u64(0..60))).await;
                daemon.kill();
            }
            for client in clients {
                match client.await.unwrap() {
                    Some((202, accepted)) => {
                        ids.insert(accepted["id"].as_str().unwrap().to_owned());
                    }
                    Some((409, problem)) => assert_eq!(problem["code"], "request_in_flight"),
                    Some((status, other)) => panic!("{status} {other}"),
                    None => assert!(kill, "no answer"),
                }
            }
            if !kill {
                kinds += 1;
                assert_eq!(ids.len(), 1, "one key, and the answers {ids:?}");
                let events = crate::support::load::held(&daemon).await;
                let ours = events.iter().filter(|(kind, _)| *kind == format!("n.{round}"));
                assert_eq!(ours.map(|(_, id)| id).collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
            }
        }
    }
    assert_eq!(kinds, 8);
}

// ---- file descriptors ------------------------------------------------------------------------------------------

/// Sets the process's limit of open files to what it has open now and some more.
fn allow_descriptors(daemon: &Daemon, more: usize) {
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    daemon.limit_descriptors(open + more);
}

/// Time on a processor so far.
fn processor_time(daemon: &Daemon) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_file_descriptors_it_waits_quietly_and_goes_on_by_itself() {
    const EVENTS: usize = 20;
    let data = tempfile::tempdir().unwrap();
    let receiver = Receiver::status(200).await;
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &[("BALTO__LOG__LEVEL", "off")]).await;
    let mut publisher = Raw::connect(daemon.address()).await;
    let publish = post("/v1/events", "", EVENT);
    // Whoever has shown a good key keeps the connection for longest. This first event is for nobody.
    publisher.send(publish.as_bytes()).await;
    assert_eq!(publisher.answer().await.unwrap().status, 202);
    let endpoint = json!({"url": receiver.url, "retry": {"schedule": ["10ms"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    // From here on nothing can be opened: no connection of a client, and none to the receiver, which has had none yet.
    allow_descriptors(&daemon, 0);
    let before = processor_time(&daemon);
    let started = Instant::now();
    let waiting: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(daemon.address()).unwrap()).collect();
    for _ in 0..EVENTS {
        publisher.send(publish.as_bytes()).await;
        assert_eq!(publisher.answer().await.unwrap().status, 202, "the journal needs no further descriptor");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(daemon.is_running());
    }
    let spent = processor_time(&daemon) - before;
    assert!(spent < started.elapsed() / 2, "it spins: {spent:?} of {:?}", started.elapsed());
    allow_descriptors(&daemon, 1_000);
    drop(waiting);
    receiver.until(EVENTS).await;
    let all = daemon.until("/deliveries?limit=250&status=delivered", |page| {
        page["data"].as_array().unwrap().len() == EVENTS
    });
    for delivery in all.await["data"].as_array().unwrap() {
        assert_eq!(delivery["attempts"], 1, "our own want of descriptors was charged: {delivery}");
    }
    assert_eq!(receiver.got().len(), EVENTS);
    assert_eq!(daemon.terminate(), Some(0));
}

/// A receiver that takes connections and says nothing.
async fn silence() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (format!("http://{}/", listener.local_addr().unwrap()), listener)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_file_descriptors_are_shared_so_that_store_and_operator_have_theirs() {
    let data = tempfile::tempdir().unwrap();
    let command = crate::support::serve(data.path(), &["--dev"]);
    let daemon = Daemon::spawn(crate::support::behind(&["prlimit", "--nofile=256:256"], &quiet(command)));
    daemon.until_ready().await;
    let (silent, _held) = silence().await;
    let healthy = Receiver::status(200).await;
    daemon
        .post("/endpoints", &json!({"url": silent, "eventTypes": ["slow"], "maxInFlight": 1000}).to_string())
        .await;
    let events = vec![json!({"type": "slow", "data": 1}); 1_000];
    daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        idle.push(Raw::connect(daemon.address()).await);
    }
    daemon.post("/endpoints", &json!({"url": healthy.url, "eventTypes": ["quick"]}).to_string()).await;
    for number in 0..20 {
        assert!(daemon.is_ready().await, "the ops listener is shut out");
        daemon.post("/events", &json!({"type": "quick", "data": number}).to_string()).await;
        assert!(daemon.metric("process_open_fds", "").await < 256.0);
    }
    until("requests are in flight", async || daemon.metric("balto_deliveries_in_flight", "").await >= 30.0)
        .await;
    drop(idle);
}

#[tokio::test]
async fn too_few_file_descriptors_are_refused_at_the_start() {
    let data = tempfile::tempdir().unwrap();
    let command = crate::support::serve(data.path(), &["--dev"]);
    let mut command = crate::support::behind(&["prlimit", "--nofile=100:100"], &command);
    let output = command.stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("100 files; at least 192"), "{said}");
}

// ---- keys ------------------------------------------------------------------------------------------------------

/// A client with an address of its own.
fn client_at(last: u8) -> reqwest::Client {
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    reqwest::Client::builder().no_proxy().local_address(address).build().unwrap()
}

async fn list_with(
    client: &reqwest::Client,
    daemon: &Daemon,
    authorization: &str,
) -> (u16, Option<String>, String) {
    let request = client.get(format!("{}/events", daemon.api)).header("authorization", authorization);
    let reply = request.send().await.unwrap();
    let retry_after = reply.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    (reply.status().as_u16(), retry_after, reply.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_tries_keys_is_held_off_and_locks_nobody_out() {
    let data = tempfile::tempdir().unwrap();
    // One that could be guessed, given time.
    let admin = "Bearer summer-2026-summer";
    let daemon =
        Daemon::start_in(data.path(), &[], &[("BALTO__AUTH__ADMIN_KEY", "summer-2026-summer")]).await;
    let (status, made, _) =
        daemon.call("POST", "/keys", &[("authorization", admin)], r#"{"role":"viewer"}"#).await;
    assert_eq!(status, 201, "{made}");
    let generated = format!("Bearer {}", made["secret"].as_str().unwrap());
    let attacker = client_at(66);
    let prefix = &generated[..generated.len() - 1];
    let odd = ["Bearer ", "Bearer", "Basic c3VtbWVyLTIwMjY6", "bearer\tx", "", "Bearer \u{e9}"];
    let (_, _, refusal) = list_with(&attacker, &daemon, "Bearer wrong").await;
    for authorization in
        odd.into_iter().chain([prefix, &admin[..16], &format!("{admin}x"), &admin.to_uppercase()])
    {
        let (status, _, body) = list_with(&attacker, &daemon, authorization).await;
        assert_eq!((status, &body), (401, &refusal), "{authorization:?} is answered in another way");
    }
    let mut statuses = std::collections::BTreeMap::<u16, u32>::new();
    for number in 0..1_000 {
        let (status, retry_after, _) = list_with(&attacker, &daemon, &format!("Bearer guess-{number}")).await;
        assert_eq!(retry_after.is_some(), status == 429);
        *statuses.entry(status).or_default() += 1;
    }
    // 300 at once, and one more each second that this took.
    let judged = statuses[&401];
    assert!((200..400).contains(&judged) && statuses[&429] == 1_000 - judged, "{statuses:?}");
    // A second may end just before the key is shown, not ten times.
    let mut held_off = false;
    for _ in 0..10 {
        list_with(&attacker, &daemon, "Bearer guess").await;
        held_off |= list_with(&attacker, &daemon, admin).await.0 == 429;
    }
    assert!(held_off, "a key that can be guessed was judged after a thousand guesses");
    for client in [&client_at(66), &client_at(1)] {
        assert_eq!(list_with(client, &daemon, &generated).await.0, 200, "a good key is locked out");
    }
    assert_eq!(list_with(&client_at(2), &daemon, admin).await.0, 200, "another address is locked out");
    until("the admin key is judged again", async || list_with(&attacker, &daemon, admin).await.0 == 200)
        .await;
    let counted = daemon.metric("balto_authentications_refused_total", "reason=\"tooMany\"").await;
    assert!(counted >= f64::from(statuses[&429]), "{counted}");
    assert!(
        daemon.metric("balto_authentications_refused_total", "reason=\"wrong\"").await >= f64::from(judged)
    );
    assert!(daemon.metric("balto_authentications_refused_total", "reason=\"missing\"").await >= 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_admin_key_is_good_from_wherever_wrong_ones_come() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(data.path(), &[]).await;
    let admin = std::fs::read_to_string(data.path().join("admin.key")).unwrap();
    let admin = format!("Bearer {}", admin.trim());
    let client = client_at(1);
    let mut last = 0;
    for number in 0..400 {
        last = list_with(&client, &daemon, &format!("Bearer guess-{number}")).await.0;
    }
    assert_eq!(last, 429);
    assert_eq!(list_with(&client, &daemon, &admin).await.0, 200);
}

// ---- secrets ---------------------------------------------------------------------------------------------------

fn files(below: &std::path::Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(below).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        } else {
            found.push((entry.path().display().to_string(), std::fs::read(entry.path()).unwrap()));
        }
    }
}

/// Everything that the daemon writes while it does everything, at the most talkative level there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_payloads_are_in_no_log_and_no_metric_and_secrets_in_no_file() {
    use base64::Engine as _;
    let below = tempfile::tempdir().unwrap();
    let (data, log) = (below.path().join("data"), below.path().join("log"));
    let admin = "admin-canary-7f3a9c5e1b8d2604e6a90d53";
    let at_rest = base64::engine::general_purpose::STANDARD.encode([7; 32]);
    let mut command = crate::support::serve(&data, &[]);
    command
        .env("BALTO__AUTH__ADMIN_KEY", admin)
        .env("BALTO__SECRETS__KEY", &at_rest)
        .env("BALTO__LOG__LEVEL", "trace,balto=trace")
        .env("BALTO__EGRESS__ALLOW_HTTP", "true")
        .env("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8")
        .stderr(std::fs::File::create(&log).unwrap());
    let mut daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    let receiver = Receiver::start(|number, _| answer(if number == 0 { 500 } else { 200 })).await;
    let authorization = format!("Bearer {admin}");
    let with = [("authorization", authorization.as_str())];
    let signing = "whsec_Y2FuYXJ5LXNpZ25pbmctc2VjcmV0LWNhbmFyeQ==";
    let endpoint = json!({"url": receiver.url, "secret": signing, "retry": {"schedule": ["10ms", "10ms"]},
        "sensitiveHeaders": {"X-Token": "header-canary"}});
    let (status, made, _) = daemon.call("POST", "/endpoints", &with, &endpoint.to_string()).await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/endpoints/{}/secret/rotate", made["id"].as_str().unwrap());
    let (status, rotated, _) = daemon.call("POST", &path, &with, "").await;
    assert_eq!(status, 200, "{rotated}");
    let (_, key, _) = daemon.call("POST", "/keys", &with, r#"{"role":"publisher"}"#).await;
    let own = key["secret"].as_str().unwrap().to_owned();
    let authorization = format!("Bearer {own}");
    let event = r#"{"type":"a.b","data":"payload-canary","metadata":{"m":"metadata-canary"}}"#;
    let key = [("authorization", authorization.as_str()), ("idempotency-key", "idempotency-canary")];
    assert_eq!(daemon.call("POST", "/events", &key, event).await.0, 202);
    assert_eq!(daemon.call("POST", "/events", &key, &event[1..]).await.0, 400);
    assert_eq!(
        daemon.call("POST", "/events", &[("authorization", "Bearer wrong-canary")], event).await.0,
        401
    );
    receiver.until(2).await;
    let metrics = reqwest::get(format!("{}/metrics", daemon.ops)).await.unwrap().text().await.unwrap();
    daemon.signal("HUP");
    assert_eq!(daemon.terminate(), Some(0));

    let mut newest: Vec<String> = Vec::new();
    let mut collect = |value: &Value| {
        let texts = value.to_string();
        newest.extend(texts.split('"').filter(|text| text.starts_with("whsec_")).map(ToOwned::to_owned));
    };
    collect(&rotated);
    assert!(!newest.is_empty(), "{rotated}");
    let mut secrets: Vec<String> =
        vec![admin.into(), own, at_rest, "header-canary".into(), "wrong-canary".into()];
    for secret in newest.into_iter().chain([signing.to_owned()]) {
        let raw = base64::engine::general_purpose::STANDARD.decode(&secret["whsec_".len()..]).unwrap();
        secrets.push(secret["whsec_".len()..].trim_end_matches('=').to_owned());
        secrets.extend(String::from_utf8(raw));
    }
    let payloads = ["payload-canary", "metadata-canary", "idempotency-canary"].map(str::to_owned);
    let said = std::fs::read(&log).unwrap();
    assert!(said.len() > 10_000, "it hardly logged anything");
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    for canary in secrets.iter().chain(&payloads) {
        assert!(!holds(&said, canary), "{canary} is in the log");
        assert!(!holds(metrics.as_bytes(), canary), "{canary} is in the metrics");
    }
    let mut written = Vec::new();
    files(&data, &mut written);
    assert!(written.iter().any(|(_, bytes)| holds(bytes, "payload-canary")), "the journal is somewhere else");
    for (name, bytes) in &written {
        for secret in &secrets {
            assert!(!holds(bytes, secret), "{secret} is in {name}");
        }
    }
}
