//! Attacks of one tenant, or of clients without a key, while another tenant's posts, lists and
//! deliveries are measured.
//!
//! `cargo bench --bench attacks -- NAME...` runs some attacks; without names, all. `scale=N`
//! divides their counts by N, for a short trial. Each attack runs against a new daemon with default
//! limits. A latency holds with a p99 of at most three times the one alone, or 50 ms. After the
//! attack the daemon is killed, and started again in the same data directory.
//!
//! | name | attack |
//! |---|---|
//! | H1 | topic patterns that are expensive to match |
//! | H2 | topic patterns that are replaced again and again |
//! | H3 | events with 10,000 deliveries each |
//! | H3-atomic | 100 of them in one atomic request |
//! | H4 | receivers that answer slowly, more than there are slots |
//! | M1 | a viewer that does not read its lists |
//! | M2 | clients without a key that do not read the OpenAPI document |
//! | M3 | request bodies without an end |
//! | M4 | a publisher that fills the disk |
//! | M4-quota | the same, with a quota `storedBytes` |
//! | M7 | handshakes with silent receivers |
//! | M8 | replays with patterns that are expensive to match |
//! | L1 | thousands of endpoints at one address; test events |
//! | L11 | deletions of endpoints with 10,000 pending deliveries |

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends on an error, and prints its results"
)]

mod support;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use support::stage::{Claim, Meter, Stage, holding, holding_at, slow_reader, unfinished};
use support::tenants::{
    ADMIN, Caller, Daemon, LATEST, Latencies, REQUESTS, is_undisturbed, member, outcome, percentiles,
};
use support::{judge, verdict};
use tokio::net::TcpListener;

const ATTACKS: [&str; 14] =
    ["H1", "H2", "H3", "H3-atomic", "H4", "M1", "M2", "M3", "M4", "M4-quota", "M7", "M8", "L1", "L11"];
const ALONE: Duration = Duration::from_secs(2);
const BESIDE: Duration = Duration::from_secs(4);

/// The promises.
const FLOOR: Duration = Duration::from_millis(50);
const MEMORY_MAX: u64 = 1 << 30;
const OPEN_MAX: Duration = Duration::from_secs(30);

/// A time that no delivery reaches.
const NEVER: &str = "9999-01-01T00:00:00Z";
/// A port without a listener.
const CLOSED: &str = "http://127.0.0.1:39999/";

fn main() {
    let mut names = Vec::new();
    let mut scale = 1;
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.strip_prefix("scale=") {
            Some(number) => scale = number.parse().unwrap(),
            None => {
                assert!(ATTACKS.contains(&&*argument), "{argument} is none of {ATTACKS:?}");
                names.push(argument);
            }
        }
    }
    // Thousands of connections.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let is_chosen = |name: &&str| names.is_empty() || names.iter().any(|chosen| chosen == name);
    let mut broken = Vec::new();
    for name in ATTACKS.into_iter().filter(is_chosen) {
        if runtime.block_on(run(name, scale)) > 0 {
            broken.push(name);
        }
    }
    println!("\n{}: broken are {broken:?}", verdict(broken.is_empty()));
}

/// Runs an attack, and returns the number of broken promises.
async fn run(name: &'static str, scale: usize) -> usize {
    let below = tempfile::tempdir().unwrap();
    let volume = name.starts_with("M4").then(|| SmallVolume::mount(below.path()));
    if matches!(volume, Some(None)) {
        println!("\n{name}: SKIPPED, this machine mounts no tmpfs");
        return 0;
    }
    let data = below.path().join("data");
    let daemon = Daemon::start(&data).await;
    let stage = Stage::new(daemon.port, scale).await;
    let meter = Meter::start(daemon.port, &stage.good);
    let alone = meter.measure(ALONE).await;
    let measuring = async {
        stage.prepared().await;
        let beside = meter.measure(BESIDE).await;
        stage.end();
        beside
    };
    let (mut claims, beside) = tokio::join!(attack(name, &stage), measuring);
    stage.stop();
    claims.extend(common_claims(&stage, daemon).await);
    // A full disk takes no posts; only a quota prevents that.
    let judged = if name == "M4" { [false, false, true, false] } else { [true; 4] };
    let late = report(name, judged, &alone, &beside);
    for Claim { holds, words } in &claims {
        judge(*holds, words);
    }
    late + claims.iter().filter(|claim| !claim.holds).count()
}

/// Refusals, memory and the data directory.
async fn common_claims(stage: &Stage, daemon: Daemon) -> [Claim; 3] {
    let answers = stage.answers();
    let is_clear = |answer: &str| {
        let (status, code) = answer.split_once(' ').unwrap_or((answer, ""));
        status.starts_with('2') || !code.is_empty() && (status.starts_with('4') || status == "507")
    };
    let clear = answers.keys().all(|answer| is_clear(answer));
    let peak = daemon.most_memory();
    let (daemon, took) = daemon.restart().await;
    drop(daemon);
    [
        Claim::new(clear, format!("the attacker's answers are clear: {answers:?}")),
        Claim::new(
            peak <= MEMORY_MAX,
            format!("peak memory of {} MiB is below {} MiB", peak >> 20, MEMORY_MAX >> 20),
        ),
        Claim::new(took <= OPEN_MAX, format!("the data directory opens in {:.1} s", took.as_secs_f64())),
    ]
}

/// Prints the latencies, and returns the number of broken ones.
fn report(name: &str, judged: [bool; 4], alone: &Latencies, beside: &Latencies) -> usize {
    println!("\n| {name} | alone, ms p50 / p99 | beside | p99, times | |");
    println!("|---|---|---|---|---|");
    let mut broken = 0;
    for (at, what) in REQUESTS.into_iter().enumerate() {
        let ((low, high), (low_beside, high_beside)) =
            (percentiles(&alone.taken[at]), percentiles(&beside.taken[at]));
        let holds = is_undisturbed(high, high_beside);
        broken += usize::from(judged[at] && !holds);
        let word = if judged[at] { verdict(holds) } else { "not judged" };
        let times = high_beside / high;
        println!(
            "| {what} | {low:.2} / {high:.2} | {low_beside:.2} / {high_beside:.2} | {times:.1} | {word} |"
        );
    }
    for (failure, count) in alone.failures.iter().chain(&beside.failures) {
        println!("{count} of {} rounds failed: {failure}", beside.taken[0].len());
    }
    broken
}

/// A small file system for the data directory.
struct SmallVolume<'a>(&'a Path);

impl<'a> SmallVolume<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=96m", "balto-bench"]).arg(at).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Drop for SmallVolume<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0).status());
    }
}

async fn attack(name: &'static str, stage: &Arc<Stage>) -> Vec<Claim> {
    match name {
        "H1" => costly_patterns(stage).await,
        "H2" => replaced_patterns(stage).await,
        "H3" => fan_out(stage, false).await,
        "H3-atomic" => fan_out(stage, true).await,
        "H4" => slow_receivers(stage).await,
        "M1" => unread_lists(stage).await,
        "M2" => unread_documents(stage).await,
        "M3" => unfinished_bodies(stage).await,
        "M4" => full_disk(stage).await,
        "M4-quota" => full_quota(stage).await,
        "M7" => silent_handshakes(stage).await,
        "M8" => costly_replays(stage).await,
        "L1" => third_party(stage).await,
        "L11" => deaths_in_bulk(stage).await,
        _ => unreachable!("a name of the list"),
    }
}

/// 256 patterns of wildcards alone, as in the report of the attack.
fn wildcards(seed: usize) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(seed as u64);
    let mut pattern = || {
        let parts = (0..126).map(|_| if random.u8(0..10) < 9 { "#." } else { "*." });
        parts.collect::<String>() + "zz"
    };
    (0..256).map(|_| pattern()).collect()
}

/// The most expensive patterns that an endpoint may have.
fn legal_wildcards(seed: usize) -> Vec<String> {
    (0..64).map(|number| format!("{}zz{seed}x{number}", "#.a.".repeat(8))).collect()
}

/// An event of 128 words.
fn long_event() -> serde_json::Value {
    let name = ["a"; 128].join(".");
    json!({"type": name, "data": 1})
}

fn batch(event: &serde_json::Value, count: usize) -> String {
    json!({"events": vec![event; count]}).to_string()
}

fn endpoint(url: &str, patterns: &[String]) -> String {
    json!({"url": url, "eventTypes": patterns}).to_string()
}

fn is_refused(stage: &Stage, status: &str, what: &str) -> Claim {
    let found = stage.answers().keys().any(|answer| answer.starts_with(status));
    Claim::new(found, format!("{what} is refused with {status}"))
}

async fn costly_patterns(stage: &Arc<Stage>) -> Vec<Claim> {
    stage.prepare(4, "POST /v1/endpoints", |seed| endpoint(CLOSED, &wildcards(seed))).await;
    let refused = is_refused(stage, "422", "an endpoint with 256 patterns of wildcards");
    let count = 128 / stage.scale;
    stage.prepare(count, "POST /v1/endpoints", |seed| endpoint(CLOSED, &legal_wildcards(seed))).await;
    let body = batch(&long_event(), 20);
    stage.flood(4, "POST /v1/events/batch", move |_| body.clone());
    stage.run_until_measured().await;
    vec![refused]
}

async fn replaced_patterns(stage: &Arc<Stage>) -> Vec<Claim> {
    let long = |number: usize, count: usize| {
        let pattern = move |index| {
            let text = format!("{number:x}.{index:x}.{}", "a.".repeat(130));
            text[..251].trim_end_matches('.').to_owned() + ".*"
        };
        (0..count).map(pattern).collect::<Vec<_>>()
    };
    let url = "https://example.com/";
    stage.prepare(4, "POST /v1/endpoints", move |number| endpoint(url, &long(number, 256))).await;
    let refused = is_refused(stage, "422", "an endpoint with 64 KB of patterns");
    let made =
        stage.prepare(60 / stage.scale, "POST /v1/endpoints", move |number| endpoint(url, &long(number, 64)));
    let made = made.await;
    let patched = member(made.last().unwrap(), "id").unwrap().to_owned();
    stage.flood(2, format!("PATCH /v1/endpoints/{patched}"), move |number| {
        json!({"eventTypes": long(1_000 + number, 64)}).to_string()
    });
    stage.run_until_measured().await;
    vec![refused]
}

async fn fan_out(stage: &Arc<Stage>, is_atomic: bool) -> Vec<Claim> {
    let to = json!({"url": CLOSED, "eventTypes": ["big"]}).to_string();
    stage.prepare(10_000 / stage.scale, "POST /v1/endpoints", move |_| to.clone()).await;
    let event = json!({"type": "big", "data": 1, "deliverAt": NEVER});
    let body = json!({"events": vec![event; 100], "atomic": is_atomic}).to_string();
    stage.flood(4, "POST /v1/events/batch", move |_| body.clone());
    stage.run_until_measured().await;
    Vec::new()
}

async fn slow_receivers(stage: &Arc<Stage>) -> Vec<Claim> {
    let mut receivers = Vec::new();
    let mut loads = Vec::new();
    // The requests to one address have a limit.
    for number in 1..=3 {
        let address = Ipv4Addr::new(127, 0, 0, number);
        let (receiver, load) = holding_at(address, Duration::from_secs(15), "200 OK", |_| true).await;
        receivers.push(receiver);
        loads.push(load);
    }
    let count = 1_500 / stage.scale;
    let body = move |number: usize| {
        let url = format!("http://{}/{number}", receivers[number % 3]);
        json!({"url": url, "timeout": "60s"}).to_string()
    };
    stage.prepare(count, "POST /v1/endpoints", body).await;
    stage.prepare(4, "POST /v1/events", |_| json!({"type": "a", "data": 1}).to_string()).await;
    let (mut held, started) = (0, Instant::now());
    while held < 850.min(count) && started.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        held = loads.iter().map(|load| load.lock().unwrap().now).sum::<usize>();
    }
    let (port, new) = holding(Duration::ZERO, "200 OK", |_| true).await;
    let made = std::cell::Cell::new(0);
    let first_delivery = async |caller: &mut Caller| {
        let number = made.get() + 1;
        made.set(number);
        let kind = format!("new{number}");
        let to = json!({"url": format!("http://127.0.0.1:{port}/{number}"), "eventTypes": [kind]});
        let event = json!({"type": kind, "data": 1});
        caller.call_within(LATEST, "POST /v1/endpoints", "", &to.to_string()).await;
        caller.call_within(LATEST, "POST /v1/events", "", &event.to_string()).await;
        let started = Instant::now();
        while new.lock().unwrap().all < number && started.elapsed() < LATEST {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let taken = stage.time(Duration::from_millis(300), first_delivery).await;
    let what = "a new endpoint of the other tenant gets its first delivery";
    vec![
        Claim::new(held >= 850.min(count), format!("{held} slots are held by slow receivers")),
        Claim::within(FLOOR, what, &taken),
    ]
}

async fn unread_lists(stage: &Arc<Stage>) -> Vec<Claim> {
    let body = json!({"type": "a", "data": "x".repeat(250_000)}).to_string();
    stage.prepare(10, "POST /v1/events", move |_| body.clone()).await;
    let key = stage.key("viewer").await;
    let request =
        format!("GET /v1/events?limit=250 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n");
    read_slowly(stage, 160 / stage.scale, request, 4);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut operator = Caller::new(stage.port, ADMIN).await;
    let list = async |_: &mut Caller| drop(operator.call_within(LATEST, "GET /v1/keys", "", "").await);
    let taken = stage.time(Duration::from_millis(20), list).await;
    vec![Claim::within(FLOOR, "the operator lists its keys", &taken)]
}

/// Clients that replace their connections after some seconds.
fn read_slowly(stage: &Arc<Stage>, clients: usize, request: String, times: usize) {
    for client in 0..clients {
        let (own, request) = (stage.clone(), request.clone());
        stage.spawn(async move {
            tokio::time::sleep(Duration::from_millis(client as u64 % 1_000)).await;
            loop {
                let held = slow_reader(own.port, &request, times).await;
                tokio::time::sleep(Duration::from_secs(3)).await;
                drop(held);
            }
        });
    }
}

async fn unread_documents(stage: &Arc<Stage>) -> Vec<Claim> {
    let request = "GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".to_owned();
    read_slowly(stage, 4_400 / stage.scale, request, 60);
    tokio::time::sleep(Duration::from_secs(2)).await;
    stage.run_until_measured().await;
    Vec::new()
}

async fn unfinished_bodies(stage: &Arc<Stage>) -> Vec<Claim> {
    let key = stage.key("publisher").await;
    for number in 0..(16 + 64) / stage.scale {
        let (path, size) = if number < 16 { ("/v1/events/batch", 16 << 20) } else { ("/v1/events", 200_000) };
        let (own, key) = (stage.clone(), key.clone());
        stage.spawn(async move {
            loop {
                let answer = unfinished(own.port, &key, path, size).await;
                own.record(outcome(answer.as_ref()));
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.run_until_measured().await;
    vec![is_refused(stage, "429", "a body above the share")]
}

fn flood_disk(stage: &Arc<Stage>) {
    let event = json!({"type": "a", "data": "x".repeat(9_000), "deliverAt": NEVER});
    let (large, small) = (batch(&event, 500), batch(&event, 5));
    stage.flood(2, "POST /v1/events/batch", move |_| large.clone());
    // These fit when the large ones do not.
    stage.flood(4, "POST /v1/events/batch", move |_| small.clone());
}

/// Events are refused within the answer to their batch.
async fn refusal_of(stage: &Stage) -> String {
    let mut caller = stage.caller(&stage.evil).await;
    let (deadline, body) = (Instant::now() + Duration::from_secs(10), json!({"type": "a", "data": 1}));
    loop {
        let answer = caller.call("POST /v1/events", "", &body.to_string()).await;
        if answer.0 != 202 || Instant::now() > deadline {
            return outcome(Some(&answer));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn full_disk(stage: &Arc<Stage>) -> Vec<Claim> {
    let mut operator = Caller::new(stage.port, ADMIN).await;
    let key = operator.expect(201, "POST /v1/keys", "", r#"{"role":"publisher","tenant":"evil"}"#).await;
    let key = member(&key, "id").unwrap().to_owned();
    flood_disk(stage);
    let refusal = refusal_of(stage).await;
    stage.run_until_measured().await;
    let started = Instant::now();
    let (revoked, _) = operator.call(&format!("DELETE /v1/keys/{key}"), "", "").await;
    vec![
        Claim::new(refusal == "507 disk_full", format!("an event on the full disk: {refusal}")),
        Claim::new(
            revoked == 204,
            format!("the operator revokes a key: {revoked} in {} ms", started.elapsed().as_millis()),
        ),
    ]
}

async fn full_quota(stage: &Arc<Stage>) -> Vec<Claim> {
    let mut operator = Caller::new(stage.port, ADMIN).await;
    let quota = json!({"quotas": {"storedBytes": 16 << 20}}).to_string();
    let (status, answer) = operator.call("PUT /v1/tenants/evil", "", &quota).await;
    assert!((200..300).contains(&status), "{answer}");
    flood_disk(stage);
    let refusal = refusal_of(stage).await;
    stage.run_until_measured().await;
    let words = format!("an event above the quota: {refusal}");
    vec![Claim::new(refusal == "507 quota_exceeded", words)]
}

async fn silent_handshakes(stage: &Arc<Stage>) -> Vec<Claim> {
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    stage.spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            held.push(stream);
        }
    });
    let grant = "200 OK\r\nwebhook-allowed-origin: *";
    let (granting, _) = holding(Duration::ZERO, grant, |_| true).await;
    stage
        .prepare(600 / stage.scale, "POST /v1/endpoints", move |number| {
            let url = format!("http://127.0.0.1:{port}/{number}");
            json!({"url": url, "timeout": "60s", "handshake": {}}).to_string()
        })
        .await;
    let to = json!({"url": format!("http://127.0.0.1:{granting}/"), "eventTypes": ["none"], "handshake": {}});
    let consent = async |caller: &mut Caller| {
        let made = caller.call_within(LATEST, "POST /v1/endpoints", "", &to.to_string()).await;
        let made = made.unwrap_or_default().1;
        let line = format!("GET /v1/endpoints/{}", member(&made, "id").unwrap_or_default());
        let started = Instant::now();
        while started.elapsed() < LATEST {
            let shown = caller.call_within(LATEST, &line, "", "").await.unwrap_or_default().1;
            if member(&shown, "consentedAt").is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let taken = stage.time(Duration::from_millis(300), consent).await;
    vec![Claim::within(FLOOR, "a handshake of the other tenant", &taken)]
}

async fn costly_replays(stage: &Arc<Stage>) -> Vec<Claim> {
    let replaying = endpoint("https://example.com/", &["none".to_owned()]);
    let made = stage.prepare(1, "POST /v1/endpoints", move |_| replaying.clone()).await;
    let line = format!("POST /v1/endpoints/{}/replay", member(&made[0], "id").unwrap());
    let body = batch(&long_event(), 1_000 / stage.scale);
    stage.prepare(3, "POST /v1/events/batch", move |_| body.clone()).await;
    let replay =
        |patterns: Vec<String>| json!({"since": "2000-01-01T00:00:00Z", "eventTypes": patterns}).to_string();
    stage.prepare(1, &line, move |_| replay(wildcards(1))).await;
    let refused = is_refused(stage, "422", "a replay with 256 patterns of wildcards");
    let mut good = stage.caller(&stage.good).await;
    let paused = json!({"url": CLOSED, "eventTypes": ["retried"], "status": "paused"}).to_string();
    good.expect(201, "POST /v1/endpoints", "", &paused).await;
    let event = json!({"type": "retried", "data": 1}).to_string();
    let made = good.expect(202, "POST /v1/events", "", &event).await;
    let list = format!("GET /v1/deliveries?eventId={}", member(&made, "id").unwrap());
    let listed = good.expect(200, &list, "", "").await;
    let retry = format!("POST /v1/deliveries/{}/retry", member(&listed, "id").unwrap());
    stage.flood(30, line, move |_| replay(legal_wildcards(1)));
    let act = async |caller: &mut Caller| drop(caller.call_within(LATEST, &retry, "", "").await);
    let taken = stage.time(Duration::from_millis(20), act).await;
    vec![refused, Claim::within(FLOOR, "a retry of the other tenant", &taken)]
}

async fn third_party(stage: &Arc<Stage>) -> Vec<Claim> {
    let count = 1_200 / stage.scale;
    let mut loads = Vec::new();
    for (kind, many) in [("one-name", false), ("many-names", true)] {
        let (port, load) = holding(Duration::from_secs(4), "500 x", |_| true).await;
        let made = stage.prepare(count, "POST /v1/endpoints", move |number| {
            let host = if many { format!("h{number}.localhost") } else { "a.localhost".to_owned() };
            let url = format!("http://{host}:{port}/");
            json!({"url": url, "eventTypes": [kind], "maxInFlight": 1_000}).to_string()
        });
        loads.push((load, made.await));
    }
    let tested = member(loads[0].1.first().unwrap(), "id").unwrap().to_owned();
    stage.flood(1, "POST /v1/events", |number| {
        let kind = if number % 2 == 0 { "one-name" } else { "many-names" };
        json!({"type": kind, "data": 1}).to_string()
    });
    stage.flood(1, format!("POST /v1/endpoints/{tested}/test"), |_| String::new());
    stage.run_until_measured().await;
    let most = loads.iter().map(|(load, _)| load.lock().unwrap().most).collect::<Vec<_>>();
    vec![
        Claim::new(most[0] <= 512, format!("requests at once to one name: {}", most[0])),
        Claim::new(most[1] <= 640, format!("requests at once to names of one address: {}", most[1])),
        is_refused(stage, "429 too_many_tests", "a flood of test events"),
    ]
}

async fn deaths_in_bulk(stage: &Arc<Stage>) -> Vec<Claim> {
    let is_alert = |request: &[u8]| String::from_utf8_lossy(request).contains("balto.delivery.dead");
    let (port, alerts) = holding(Duration::ZERO, "200 OK", is_alert).await;
    let to = json!({"url": format!("http://127.0.0.1:{port}/"), "tenant": "balto"}).to_string();
    Caller::new(stage.port, ADMIN).await.expect(201, "POST /v1/endpoints", "", &to).await;
    let mut ids = Vec::new();
    for number in 0..4 {
        let to = endpoint(CLOSED, &[format!("kind{number}")]);
        let made = stage.prepare(1, "POST /v1/endpoints", move |_| to.clone()).await;
        ids.push(member(&made[0], "id").unwrap().to_owned());
        let event = json!({"type": format!("kind{number}"), "data": 1, "deliverAt": NEVER});
        let body = batch(&event, 1_000 / stage.scale);
        stage.prepare(10, "POST /v1/events/batch", move |_| body.clone()).await;
    }
    let deleting = async {
        let mut caller = stage.caller(&stage.evil).await;
        for id in ids {
            stage.attack(&mut caller, &format!("DELETE /v1/endpoints/{id}"), "").await;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    };
    tokio::join!(stage.run_until_measured(), deleting);
    let sent = alerts.lock().unwrap().all;
    vec![Claim::new(sent <= 8, format!("alerts about 4 x 10,000 dead letters: {sent}"))]
}
