//! Tenants, hosts and addresses share the daemon's requests: the real process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::support::{Daemon, Receiver, answer};

/// A receiver that takes requests and answers them when it is released. It counts connections.
struct Holding {
    port: u16,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    release: watch::Sender<bool>,
}

impl Holding {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (now, most): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let (release, released) = watch::channel(false);
        let counts = (now.clone(), most.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let ((now, most), mut released) = (counts.clone(), released.clone());
                tokio::spawn(async move {
                    let mut bytes = [0; 4_096];
                    if !matches!(stream.read(&mut bytes).await, Ok(1..)) {
                        return;
                    }
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let _sender_is_kept = released.wait_for(|released| *released).await.is_ok();
                    now.fetch_sub(1, Ordering::SeqCst);
                    let reply = "HTTP/1.1 204 x\r\nconnection: close\r\n\r\n";
                    let _the_client_may_be_gone = stream.write_all(reply.as_bytes()).await.is_err();
                });
            }
        });
        Self { port, now, most, release }
    }

    async fn until_held(&self, count: usize) {
        let deadline = Instant::now() + crate::support::WAIT_MAX;
        while self.now.load(Ordering::SeqCst) < count {
            assert!(Instant::now() < deadline, "{} of {count} requests", self.now.load(Ordering::SeqCst));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn create(daemon: &Daemon, url: &str, tenant: &str, more: Value) -> Value {
    let mut body = json!({"url": url, "tenant": tenant});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    daemon.post("/endpoints", &body.to_string()).await
}

async fn publish(daemon: &Daemon, tenant: &str) {
    daemon.post("/events", &json!({"type": "a", "data": 1, "tenant": tenant}).to_string()).await;
}

#[tokio::test]
async fn slow_receivers_do_not_delay_another_tenant() {
    let data = tempfile::tempdir().unwrap();
    let limit = [("BALTO__DELIVERY__MAX_IN_FLIGHT", "16")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &limit).await;
    let (slow, fast) = (Holding::start().await, Receiver::status(204).await);
    create(&daemon, &fast.url, "good", json!({})).await;
    for number in 0..40 {
        let url = format!("http://127.0.0.1:{}/{number}", slow.port);
        create(&daemon, &url, "evil", json!({"timeout": "60s"})).await;
    }
    publish(&daemon, "evil").await;
    slow.until_held(14).await;
    for count in 1..=10 {
        publish(&daemon, "good").await;
        fast.until(count).await;
    }
    // A receiver of which nothing is known yet.
    let new = Receiver::status(204).await;
    create(&daemon, &new.url, "good", json!({})).await;
    publish(&daemon, "good").await;
    new.until(1).await;
    assert_eq!(slow.most.load(Ordering::SeqCst), 14, "all slots but the reserve");
    slow.release.send_replace(true);
    daemon.until("/deliveries?status=pending", |all| all["data"].as_array().unwrap().is_empty()).await;
}

#[tokio::test]
async fn silent_handshakes_do_not_delay_another_tenant() {
    let data = tempfile::tempdir().unwrap();
    let timeout = [("BALTO__HANDSHAKE__TIMEOUT", "60s")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &timeout).await;
    let silent = [Holding::start().await, Holding::start().await];
    for number in 0..80 {
        let url = format!("http://127.0.0.1:{}/{number}", silent[number % 2].port);
        create(&daemon, &url, "evil", json!({"handshake": {}})).await;
    }
    for silent in &silent {
        silent.until_held(32).await;
    }
    let grant = "HTTP/1.1 200 x\r\nWebHook-Allowed-Origin: *\r\ncontent-length: 0\r\n\r\n";
    let receiver =
        Receiver::start(move |_, got| if got.method == "OPTIONS" { grant.to_owned() } else { answer(204) });
    let made = create(&daemon, &receiver.await.url, "good", json!({"handshake": {}})).await;
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    daemon.until(&path, |endpoint| !endpoint["handshake"]["consentedAt"].is_null()).await;
    let most = silent.each_ref().map(|silent| silent.most.load(Ordering::SeqCst));
    assert_eq!(most, [32, 32], "the limit of handshakes per host");
}

#[tokio::test]
async fn silent_handshake_ends_by_its_own_timeout() {
    let data = tempfile::tempdir().unwrap();
    let timeout = [("BALTO__HANDSHAKE__TIMEOUT", "200ms")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &timeout).await;
    let silent = Holding::start().await;
    let url = format!("http://127.0.0.1:{}/", silent.port);
    let made = create(&daemon, &url, "evil", json!({"timeout": "60s", "handshake": {}})).await;
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    daemon.until(&path, |endpoint| !endpoint["handshake"]["lastAnswer"].is_null()).await;
}

#[tokio::test]
async fn address_limit_holds_over_many_host_names() {
    let data = tempfile::tempdir().unwrap();
    let limit = [("BALTO__EGRESS__ADDRESS_MAX_IN_FLIGHT", "8")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &limit).await;
    let victim = Holding::start().await;
    let mut lanes = Vec::new();
    for number in 0..40 {
        let url = format!("http://h{number}.localhost:{}/", victim.port);
        let made = create(&daemon, &url, "evil", json!({})).await;
        lanes.push(format!("/endpoints/{}/lane", made["id"].as_str().unwrap()));
    }
    publish(&daemon, "evil").await;
    victim.until_held(7).await;
    daemon.until_metric("balto_address_limit_total", "", |count| count >= 33.0).await;
    daemon.until_metric("balto_lanes", r#"reason="addressLimit""#, |lanes| lanes >= 30.0).await;
    daemon.until_metric("balto_deliveries_in_flight", "", |count| count == 7.0).await;
    assert_eq!(victim.most.load(Ordering::SeqCst), 7, "all requests to the address but the reserve");
    // Another tenant's endpoint at the same address.
    create(&daemon, &format!("http://other.localhost:{}/", victim.port), "good", json!({})).await;
    publish(&daemon, "good").await;
    victim.until_held(8).await;
    victim.release.send_replace(true);
    daemon.until("/deliveries?status=pending", |all| all["data"].as_array().unwrap().is_empty()).await;
    assert_eq!(victim.most.load(Ordering::SeqCst), 8);
    let attempts = daemon.get("/deliveries?limit=100").await;
    assert!(
        attempts["data"].as_array().unwrap().iter().all(|delivery| delivery["attemptCount"] == 1),
        "{attempts}"
    );
}

#[tokio::test]
async fn test_events_are_limited_per_endpoint() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let ids = [
        create(&daemon, &receiver.url, "default", json!({})).await,
        create(&daemon, &receiver.url, "default", json!({})).await,
    ];
    let path = |at: usize| format!("/endpoints/{}/test", ids[at]["id"].as_str().unwrap());
    let key = [("idempotency-key", "once")];
    for sent in 0..10 {
        let headers = if sent == 0 { &key[..] } else { &[] };
        assert_eq!(daemon.call("POST", &path(0), headers, "").await.0, 202, "{sent}");
    }
    let (status, problem, headers) = daemon.call("POST", &path(0), &[], "").await;
    assert_eq!((status, &problem["code"]), (429, &json!("too_many_tests")), "{problem}");
    let seconds: u64 = headers["retry-after"].parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert_eq!(daemon.call("POST", &path(1), &[], "").await.0, 202, "another endpoint");
    receiver.until(11).await;
    assert_eq!(receiver.count(), 11);
}

#[tokio::test]
async fn required_handshake_is_checked_for_new_endpoints_and_urls() {
    let data = tempfile::tempdir().unwrap();
    let receiver = Receiver::status(204).await;
    let url = receiver.url.clone();
    let daemon = Daemon::start(data.path()).await;
    let old = create(&daemon, &url, "default", json!({})).await;
    let old = format!("/endpoints/{}", old["id"].as_str().unwrap());
    drop(daemon);
    let required = [("BALTO__HANDSHAKE__REQUIRED", "true")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &required).await;
    let refused = async |method: &str, path: &str, body: Value| {
        let (status, problem, _) = daemon.call(method, path, &[], &body.to_string()).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/handshake")), "{problem}");
    };
    refused("POST", "/endpoints", json!({"url": url})).await;
    refused("POST", "/endpoints", json!({"url": url, "handshake": null})).await;
    refused("PATCH", &old, json!({"url": format!("{url}/moved")})).await;
    let unrelated = json!({"description": "without a handshake as before"}).to_string();
    assert_eq!(daemon.call("PATCH", &old, &[], &unrelated).await.0, 200);
    let made = create(&daemon, &url, "default", json!({"handshake": {}})).await;
    let made = format!("/endpoints/{}", made["id"].as_str().unwrap());
    refused("PATCH", &made, json!({"handshake": null})).await;
    let moved = json!({"url": format!("{url}/moved"), "handshake": {}}).to_string();
    assert_eq!(daemon.call("PATCH", &old, &[], &moved).await.0, 200);
}
