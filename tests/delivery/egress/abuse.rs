//! Table G: many endpoints against one host, delivery loops, and information that records reveal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use balto::domain::ErrorClass;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::fixture::{
    BLOCKED, OWN_PORT, courier, delivered, endpoint, failure, no_resolver, open, save, send, until,
};
use crate::support::{Daemon, Receiver, answer, next_request};

/// A receiver that answers after `release`, and counts its concurrent requests.
struct LimitedReceiver {
    url: String,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
    released: Arc<AtomicBool>,
}

impl LimitedReceiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            now: Arc::default(),
            most: Arc::default(),
            answered: Arc::default(),
            released: Arc::default(),
        };
        let (now, most) = (receiver.now.clone(), receiver.most.clone());
        let (answered, released) = (receiver.answered.clone(), receiver.released.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (now, most, answered, released) =
                    (now.clone(), most.clone(), answered.clone(), released.clone());
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    while next_request(&mut stream, &mut buffer).await.is_some() {
                        let here = now.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(here, Ordering::SeqCst);
                        while !released.load(Ordering::SeqCst) {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        // Time for excess requests to arrive, if the limit fails.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        now.fetch_sub(1, Ordering::SeqCst);
                        answered.fetch_add(1, Ordering::SeqCst);
                        if stream.write_all(answer(200).as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        receiver
    }

    fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }
}

const LIMIT: usize = 8;

async fn daemon_with_limit() -> (tempfile::TempDir, Daemon) {
    let data = tempfile::tempdir().unwrap();
    let limit = [("BALTO__EGRESS__HOST_MAX_IN_FLIGHT", "8")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &limit).await;
    (data, daemon)
}

#[tokio::test]
async fn g1_g4_endpoints_of_many_tenants_share_a_host_limit() {
    let (_data, daemon) = daemon_with_limit().await;
    let receiver = LimitedReceiver::start().await;
    let mut some = Vec::new();
    for tenant in 0..10 {
        for number in 0..100 {
            let body = json!({"url": format!("{}/{tenant}/{number}", receiver.url), "tenant": format!("t{tenant}"),
                "timeout": "60s"});
            let made = daemon.post("/endpoints", &body.to_string()).await;
            if number == 99 {
                some.push(format!("/endpoints/{}/lane", made["id"].as_str().unwrap()));
            }
        }
    }
    for tenant in 0..10 {
        let event = json!({"type": "a", "data": 1, "tenant": format!("t{tenant}")});
        assert_eq!(daemon.post("/events", &event.to_string()).await["deliveries"], 100);
    }
    until("the host's limit", || receiver.now.load(Ordering::SeqCst) == LIMIT).await;
    // The waiting lanes report the reason.
    let mut reasons = Vec::new();
    for lane in &some {
        reasons.push(daemon.until(lane, |lane| lane["pending"] == 1).await["reason"].clone());
    }
    assert!(reasons.contains(&json!("globalLimit")), "{reasons:?}");
    // G4: the limited receiver has answered nothing yet, and all other receivers get their events.
    let healthy = Receiver::status(200).await;
    let body = json!({"url": healthy.url, "tenant": "b", "eventTypes": ["b"]});
    daemon.post("/endpoints", &body.to_string()).await;
    for number in 0..50 {
        let event = json!({"type": "b", "data": number, "tenant": "b"});
        daemon.post("/events", &event.to_string()).await;
    }
    healthy.until(50).await;
    assert_eq!(receiver.answered.load(Ordering::SeqCst), 0);
    receiver.release();
    until("the last delivery", || receiver.answered.load(Ordering::SeqCst) == 1_000).await;
    assert_eq!(receiver.most.load(Ordering::SeqCst), LIMIT, "the maximum of concurrent requests");
}

#[tokio::test]
async fn g5_test_sends_have_the_same_guard_and_limit() {
    let (_data, daemon) = daemon_with_limit().await;
    let receiver = LimitedReceiver::start().await;
    receiver.release();
    let mut sent = 0;
    for number in 0..100 {
        let url = format!("{}/{number}", receiver.url);
        let made = daemon.post("/endpoints", &json!({"url": url, "eventTypes": ["x"]}).to_string()).await;
        for _ in 0..2 {
            daemon.post(&format!("/endpoints/{}/test", made["id"].as_str().unwrap()), "").await;
            sent += 1;
        }
    }
    until("the last test", || receiver.answered.load(Ordering::SeqCst) == sent).await;
    assert!(receiver.most.load(Ordering::SeqCst) <= LIMIT, "{:?}", receiver.most);
    let own = save(&daemon, &daemon.api).await;
    assert_eq!(own, Err(OWN_PORT.to_owned()));
    // A host that was forbidden after its endpoint was saved: a test event is blocked like any
    // other delivery.
    let (closed, data) = (Receiver::status(200).await, tempfile::tempdir().unwrap());
    let daemon = Daemon::start(data.path()).await;
    let made = endpoint(&daemon, &closed.url, "a").await;
    drop(daemon);
    let denied = [("BALTO__EGRESS__DENY_NETWORKS", "127.0.0.0/8")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &denied).await;
    let event = daemon.post(&format!("/endpoints/{}/test", made["id"].as_str().unwrap()), "").await;
    let path = format!("/events/{}", event["id"].as_str().unwrap());
    let done = daemon.until(&path, |event| event["deliveries"][0]["status"] != "pending").await;
    assert_eq!(done["deliveries"][0]["reason"], "blockedAddress", "{done}");
    assert_eq!(closed.got().len(), 0);
}

/// A relay with a public name between two engines: it posts each request as a new event.
async fn relay(to: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                let client = reqwest::Client::builder().no_proxy().build().unwrap();
                let mut buffer = Vec::new();
                while let Some(request) = next_request(&mut stream, &mut buffer).await {
                    let mut event: Value = serde_json::from_str(&request.body).unwrap();
                    // With its id, a returning event would be a duplicate.
                    event.as_object_mut().unwrap().remove("id");
                    let onward = client.post(&to).header("content-type", "application/json");
                    let onward = onward.header("balto-hops", &request.headers["balto-hops"]);
                    let reply = onward.body(event.to_string()).send().await.unwrap();
                    let header = reply.headers().get("webhook-delivery").map(|value| value.to_str().unwrap());
                    let header =
                        header.map(|value| format!("webhook-delivery: {value}\r\n")).unwrap_or_default();
                    let status = reply.status().as_u16();
                    let reply = format!("HTTP/1.1 {status} x\r\n{header}content-length: 0\r\n\r\n");
                    if stream.write_all(reply.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

/// All events, once no delivery is pending.
async fn settled_events(daemon: &Daemon, kind: &str) -> Vec<Value> {
    let pending =
        |page: &Value| page["data"].as_array().unwrap().iter().any(|event| event["status"] == "pending");
    let page = daemon.until(&format!("/events?type={kind}&limit=250"), |page| !pending(page)).await;
    page["data"].as_array().unwrap().clone()
}

#[tokio::test]
async fn g2_self_delivery_under_another_name_stops_at_the_hop_limit() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    // An endpoint may not have the daemon's own address.
    let own = format!("{}/events", daemon.api);
    assert_eq!(save(&daemon, &own).await, Err(OWN_PORT.to_owned()));
    let elsewhere = relay(own).await;
    endpoint(&daemon, &elsewhere, "a").await;
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    let dead = daemon.until("/dead-letters", |page| !page["data"].as_array().unwrap().is_empty()).await;
    assert_eq!(dead["data"][0]["reason"], "refused", "given up at once: {dead}");
    let events = settled_events(&daemon, "a").await;
    let mut hops: Vec<_> = events
        .iter()
        .map(|event| event["attributes"]["balto-hops"].as_str().unwrap_or("0").to_owned())
        .collect();
    hops.sort();
    assert_eq!(hops, ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
    // The limit also applies to batches and CloudEvents.
    let many = [("balto-hops", "9")];
    for (path, media, body) in [
        ("/events", "application/json", r#"{"type":"a","data":1}"#),
        ("/events/batch", "application/json", r#"{"events":[{"type":"a","data":1}]}"#),
        ("/events/batch", "application/x-ndjson", r#"{"type":"a","data":1}"#),
        (
            "/events",
            "application/cloudevents+json",
            r#"{"specversion":"1.0","id":"1","source":"/","type":"a"}"#,
        ),
        ("/events", "application/cloudevents-batch+json", "[]"),
    ] {
        let headers = [&many[..], &[("content-type", media)]].concat();
        let (status, problem, headers) = daemon.call("POST", path, &headers, body).await;
        assert_eq!(
            (status, problem["code"].as_str()),
            (422, Some("loop_detected")),
            "{path} {media}: {problem}"
        );
        assert_eq!((&problem["limit"], headers["webhook-delivery"].as_str()), (&json!(8), "abort-message"));
    }
}

#[tokio::test]
async fn g3_two_engines_that_deliver_to_each_other_stop() {
    let (one_data, two_data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (Daemon::start(one_data.path()).await, Daemon::start(two_data.path()).await);
    let (to_one, to_two) = (format!("{}/events", one.api), format!("{}/events", two.api));
    // A plain loop: the event keeps its id, so its return is a duplicate.
    endpoint(&one, &to_two, "plain").await;
    endpoint(&two, &to_one, "plain").await;
    // A loop through a relay that makes each request a new event.
    endpoint(&one, &relay(to_two).await, "changed").await;
    endpoint(&two, &relay(to_one).await, "changed").await;
    for kind in ["plain", "changed"] {
        one.post("/events", &json!({"type": kind, "data": 1}).to_string()).await;
        // No event is pending on either engine, and the counts stay the same over two reads.
        let mut counts = (0, 0);
        loop {
            let now = (settled_events(&one, kind).await.len(), settled_events(&two, kind).await.len());
            if now == counts {
                break;
            }
            counts = now;
        }
        match kind {
            "plain" => assert!(counts.0 <= 2 && counts.1 == 1, "{counts:?}"),
            _ => assert_eq!(counts, (5, 4), "nine events: the first, and one for each hop"),
        }
    }
}

#[tokio::test]
async fn g6_errors_do_not_reveal_whether_a_forbidden_address_is_up() {
    let alive = Receiver::status(200).await;
    let port = alive.url.split([':', '/']).nth(4).unwrap().to_owned();
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hosts = [
        format!("127.0.0.1:{port}"),
        format!("127.0.0.1:{dead}"),
        format!("[::1]:{dead}"),
        "10.255.255.1".to_owned(),
        "169.254.169.254".to_owned(),
        "240.0.0.1".to_owned(),
        "[fe80::1]".to_owned(),
    ];
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let closed = courier(open(&[]), no_resolver());
    for (number, host) in hosts.iter().enumerate() {
        let reply = send(&closed, &format!("http://{host}/")).await;
        assert_eq!(failure(&reply), (ErrorClass::BlockedAddress, BLOCKED), "{host}");
        assert_eq!(reply.body.len(), 0);
        // URLs that this policy allows are saved; the network is closed afterwards.
        if host.starts_with("127") || host.starts_with("[::1") {
            endpoint(&daemon, &format!("http://{host}/"), &format!("row.{number}")).await;
        } else {
            assert_eq!(save(&daemon, &format!("http://{host}/")).await, Err(BLOCKED.to_owned()), "{host}");
        }
    }
    drop(daemon);
    let denied = [("BALTO__EGRESS__DENY_NETWORKS", "127.0.0.0/8,::1")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &denied).await;
    let mut records = Vec::new();
    for (number, host) in hosts.iter().enumerate().take(3) {
        let delivery = delivered(&daemon, &format!("row.{number}")).await;
        let mut attempt = delivery["attempts"][0].clone();
        // The request has the tenant's own URL, and the timing no phase but the total.
        assert_eq!(attempt["timing"].as_object().unwrap().keys().collect::<Vec<_>>(), ["total"]);
        for varying in ["startedAt", "duration", "timing", "request"] {
            attempt.as_object_mut().unwrap().remove(varying);
        }
        records.push((delivery["reason"].clone(), attempt));
        let saved = save(&daemon, &format!("http://{host}/")).await;
        assert_eq!(saved, Err(BLOCKED.to_owned()));
    }
    assert!(records.iter().all(|record| *record == records[0]), "{records:?}");
    assert_eq!(alive.got().len(), 0);
}
