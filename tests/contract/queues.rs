//! Queues: receiving messages, ending leases, and what a receipt is worth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::Daemon;
use crate::support::raw::{Raw, post};
use serde_json::{Value, json};

use crate::{ADMIN, call_as, is_problem, key, keyed, list, publish, text};

/// A daemon with a queue of all events of the type `job`.
async fn with_queue(data: &std::path::Path, more: Value) -> Daemon {
    let daemon = Daemon::start(data).await;
    let mut queue = json!({"name": "jobs", "eventTypes": ["job"]});
    for (name, value) in more.as_object().unwrap() {
        queue[name] = value.clone();
    }
    daemon.post("/queues", &queue.to_string()).await;
    daemon
}

async fn job(daemon: &Daemon, number: u64) -> Value {
    publish(daemon, json!({"type": "job", "data": {"n": number}})).await
}

async fn receive(daemon: &Daemon, body: Value) -> Vec<Value> {
    let answer = daemon.post("/queues/jobs/receive", &body.to_string()).await;
    answer["messages"].as_array().unwrap().clone()
}

fn receipts(messages: &[Value]) -> Vec<String> {
    messages.iter().map(|message| text(message, "receipt")).collect()
}

fn numbers(messages: &[Value]) -> Vec<u64> {
    messages.iter().map(|message| message["event"]["data"]["n"].as_u64().unwrap()).collect()
}

/// Ends leases; returns the status of each receipt.
async fn end(daemon: &Daemon, action: &str, receipts: &[String], more: Value) -> Vec<String> {
    let mut body = json!({"receipts": receipts});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let answer = daemon.post(&format!("/queues/jobs/{action}"), &body.to_string()).await;
    let results = answer["results"].as_array().unwrap();
    let echoed: Vec<_> = results.iter().map(|result| text(result, "receipt")).collect();
    assert_eq!(echoed, receipts, "results are in order");
    results.iter().map(|result| text(result, "status")).collect()
}

#[tokio::test]
async fn message_is_byte_exact_and_gone_after_its_ack() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({})).await;
    let event = r#"{"type":"job","data":{"n":1, "x" : 1.50},"orderingKey":"k","stream":"s-1"}"#;
    let accepted = daemon.post("/events", event).await;
    let (status, _, _) = daemon.call("POST", "/queues/jobs/receive", &[], "").await;
    assert_eq!(status, 200, "no body is needed");
    let held = daemon.get("/queues/jobs/leases").await;
    assert_eq!(held["data"][0]["eventId"], accepted["id"]);
    assert_eq!(receive(&daemon, json!({})).await, Vec::<Value>::new());
    let delivery = text(&held["data"][0], "deliveryId");
    let shown = daemon.get(&format!("/deliveries/{delivery}")).await;
    assert_eq!(shown["destination"]["name"], "jobs", "{shown}");
    assert_eq!((&shown["endpointId"], &shown["attempts"][0]["outcome"]), (&json!(null), &json!("leased")));
    daemon.post(&format!("/deliveries/{delivery}/cancel"), "").await;
    daemon.post("/events", event).await;
    let messages = receive(&daemon, json!({"worker": "w-1"})).await;
    let message = &messages[0];
    assert_eq!(
        (&message["event"]["orderingKey"], &message["event"]["streamVersion"]),
        (&json!("k"), &json!(2))
    );
    assert_eq!(message["deliveryCount"], 1);
    assert_eq!(end(&daemon, "ack", &receipts(&messages), json!({})).await, ["acked"]);
    let shown = daemon.get(&format!("/deliveries/{}", text(message, "deliveryId"))).await;
    assert_eq!((&shown["status"], &shown["attempts"][0]["worker"]), (&json!("delivered"), &json!("w-1")));
    assert_eq!(shown["attempts"][0]["outcome"], "acked");
    assert_eq!(receive(&daemon, json!({})).await, Vec::<Value>::new());
}

/// Of requests at the same time, one creates the queue; a message is in it once.
#[tokio::test]
async fn queue_is_created_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(Daemon::start(data.path()).await);
    for (name, differs) in [("same", false), ("other", true)] {
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..8 {
            let daemon = Arc::clone(&daemon);
            let description = format!("{}", if differs { number } else { 0 });
            let body = json!({"name": name, "eventTypes": [name], "description": description}).to_string();
            requests.spawn(async move { daemon.call("POST", "/queues", &[], &body).await.0 });
        }
        let mut answers = requests.join_all().await;
        answers.sort_unstable();
        let others = if differs { 409 } else { 200 };
        let mut expected = [others; 8];
        expected[0] = 201;
        expected.sort_unstable();
        assert_eq!(answers, expected);
        let event = publish(&daemon, json!({"type": name, "data": 1})).await;
        let deliveries = daemon.get(&format!("/deliveries?eventId={}", text(&event, "id"))).await;
        assert_eq!(list(&deliveries).len(), 1, "{deliveries}");
    }
}

#[tokio::test]
async fn receipts_follow_the_fence() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = with_queue(data.path(), json!({"retry": {"initial": "1ms", "jitter": 0}})).await;
    for number in 1..=6 {
        job(&daemon, number).await;
    }
    let first = receipts(&receive(&daemon, json!({"max": 6, "visibility": "200ms"})).await);
    tokio::time::sleep(Duration::from_millis(250)).await;
    // The lease has run out, and no other worker has the message: the work is done.
    assert_eq!(end(&daemon, "ack", &first[..1], json!({})).await, ["acked"]);
    let second = receive(&daemon, json!({"max": 1})).await;
    assert_eq!((numbers(&second), &second[0]["deliveryCount"]), (vec![2], &json!(2)));
    let second = receipts(&second);
    for action in ["ack", "nack", "release"] {
        assert_eq!(end(&daemon, action, &first[1..2], json!({})).await, ["stale"], "{action}");
    }
    assert_eq!(end(&daemon, "release", &second, json!({})).await, ["released"]);
    let third = receive(&daemon, json!({"max": 1})).await;
    assert_eq!((numbers(&third), &third[0]["deliveryCount"]), (vec![2], &json!(2)), "released: not counted");
    let third = receipts(&third);
    assert_eq!(end(&daemon, "nack", &third, json!({"requeue": false, "reason": "bad"})).await, ["dead"]);
    let delay = json!({"delay": "1h"});
    assert_eq!(end(&daemon, "nack", &first[2..3], delay.clone()).await, ["requeued"]);
    assert_eq!(end(&daemon, "extend", &first[3..4], json!({"visibility": "60s"})).await, ["extended"]);
    let both = [first[0].clone(), first[0].clone(), third[0].clone(), first[2].clone(), first[3].clone()];
    for run in ["before", "after"] {
        let acked = end(&daemon, "ack", &both[..2], json!({})).await;
        assert_eq!(acked, ["acked", "acked"], "{run} the restart");
        assert_eq!(end(&daemon, "nack", &both[3..4], delay.clone()).await, ["requeued"], "{run}");
        assert_eq!(end(&daemon, "nack", &both[2..3], json!({"requeue": false})).await, ["dead"], "{run}");
        assert_eq!(end(&daemon, "ack", &both[2..4], json!({})).await, ["gone", "stale"], "{run}");
        assert_eq!(end(&daemon, "extend", &both[4..], json!({"visibility": "60s"})).await, ["extended"]);
        daemon.kill();
        daemon = Daemon::start(data.path()).await;
    }
    let letters = daemon.get("/dead-letters?queue=jobs").await;
    assert_eq!(list(&letters).len(), 1);
    let letter = daemon.get(&format!("/dead-letters/{}", text(&letters["data"][0], "deliveryId"))).await;
    let attempts = letter["attempts"].as_array().unwrap();
    let outcomes: Vec<_> = attempts.iter().map(|lease| text(lease, "outcome")).collect();
    assert_eq!(outcomes, ["expired", "released", "dead"]);
    assert_eq!(attempts[2]["reason"], "bad");
}

#[tokio::test]
async fn ack_of_a_cancelled_or_purged_message_counts() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({})).await;
    for (number, how) in [(1, "cancel"), (2, "purge")] {
        job(&daemon, number).await;
        let messages = receive(&daemon, json!({})).await;
        let delivery = format!("/deliveries/{}", text(&messages[0], "deliveryId"));
        match how {
            "cancel" => daemon.post(&format!("{delivery}/cancel"), "").await,
            _ => daemon.post("/queues/jobs/purge", "").await,
        };
        for action in ["nack", "release"] {
            assert_eq!(end(&daemon, action, &receipts(&messages), json!({})).await, ["gone"], "{action}");
        }
        assert_eq!(daemon.get(&delivery).await["status"], "cancelled", "{how}");
        for run in ["first", "repeated"] {
            assert_eq!(end(&daemon, "ack", &receipts(&messages), json!({})).await, ["acked"], "{how}, {run}");
            assert_eq!(daemon.get(&delivery).await["status"], "delivered", "{how}, {run}");
        }
        assert_eq!(counts(&daemon).await, (number, number, 0), "{how}");
    }
}

/// A repetition gets the first answer again, and does not touch the lease of another worker.
#[tokio::test]
async fn repeated_end_of_a_lease_gets_the_first_answer() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({"retry": {"initial": "1ms", "jitter": 0}})).await;
    for (number, action, answer) in [(1, "ack", "acked"), (2, "nack", "requeued"), (3, "release", "released")]
    {
        job(&daemon, number).await;
        let first = receipts(&receive(&daemon, json!({})).await);
        assert_eq!(end(&daemon, action, &first, json!({})).await, [answer]);
        if action == "ack" {
            daemon.post("/queues/jobs/replay", r#"{"since": "2026-01-01T00:00:00Z"}"#).await;
            assert_eq!(end(&daemon, action, &first, json!({})).await, [answer], "replayed");
        }
        let second = receive(&daemon, json!({"wait": "10s"})).await;
        assert_eq!(numbers(&second), [number]);
        assert_eq!(end(&daemon, action, &first, json!({})).await, [answer], "leased again");
        assert_eq!(end(&daemon, "ack", &receipts(&second), json!({})).await, ["acked"], "untouched");
    }
}

/// Leases that ended, those that were acknowledged, and the failed ones.
async fn counts(daemon: &Daemon) -> (u64, u64, u64) {
    let stats = daemon.get("/queues/jobs/stats").await;
    let [ended, acked, failed] = ["deliveries", "acked", "failed"].map(|name| stats[name].as_u64().unwrap());
    (ended, acked, failed)
}

#[tokio::test]
async fn late_ack_of_a_dead_message_counts_its_lease_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({"visibility": "100ms", "maxDeliveries": 2})).await;
    job(&daemon, 1).await;
    let wait = json!({"wait": "10s"});
    receive(&daemon, wait.clone()).await;
    let last = receive(&daemon, wait).await;
    assert_eq!(last[0]["deliveryCount"], 2);
    daemon.until("/dead-letters", |page| list(page).len() == 1).await;
    assert_eq!(counts(&daemon).await, (2, 0, 2));
    for run in ["first", "repeated"] {
        assert_eq!(end(&daemon, "ack", &receipts(&last), json!({})).await, ["acked"], "{run}");
        assert_eq!(counts(&daemon).await, (2, 1, 1), "{run}");
    }
    assert_eq!(daemon.get("/dead-letters").await["data"], json!([]));
    let overview = daemon.get("/stats").await;
    assert_eq!((&overview["attempts"], &overview["delivered"]), (&json!(2), &json!(1)));
}

/// The history has the end that a lease really had, and its last extension.
#[tokio::test]
async fn history_shows_how_and_when_each_lease_ended() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({})).await;
    job(&daemon, 1).await;
    let mut until = Vec::new();
    let mut delivery = String::new();
    for how in ["cancel", "ack", "delete"] {
        let messages = receive(&daemon, json!({"wait": "10s"})).await;
        delivery = format!("/deliveries/{}", text(&messages[0], "deliveryId"));
        let body = json!({"receipts": receipts(&messages), "visibility": "10m"}).to_string();
        let extended = daemon.post("/queues/jobs/extend", &body).await;
        until.push(extended["results"][0]["leasedUntil"].clone());
        match how {
            "cancel" => drop(daemon.post(&format!("{delivery}/cancel"), "").await),
            "ack" => drop(end(&daemon, "ack", &receipts(&messages), json!({})).await),
            _ => assert_eq!(daemon.call("DELETE", "/queues/jobs", &[], "").await.0, 204),
        }
        if how != "delete" {
            daemon.post(&format!("{delivery}/retry"), "").await;
        }
    }
    let shown = daemon.until(&delivery, |shown| shown["status"] == "dead").await;
    let leases = shown["attempts"].as_array().unwrap();
    let outcomes: Vec<_> = leases.iter().map(|lease| text(lease, "outcome")).collect();
    assert_eq!(outcomes, ["cancelled", "acked", "dead"], "{shown}");
    for (lease, until) in leases.iter().zip(&until) {
        assert_eq!(&lease["until"], until, "{lease}");
        let ended_at = text(lease, "endedAt");
        assert!(ended_at >= text(lease, "receivedAt") && ended_at < text(lease, "until"), "{lease}");
    }
}

#[tokio::test]
async fn each_lease_is_in_the_metrics_by_its_outcome() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({"visibility": "100ms", "maxDeliveries": 2})).await;
    job(&daemon, 1).await;
    let wait = json!({"wait": "10s"});
    receive(&daemon, wait.clone()).await;
    let last = receive(&daemon, wait).await;
    daemon.until("/dead-letters", |page| list(page).len() == 1).await;
    end(&daemon, "ack", &receipts(&last), json!({})).await;
    for (number, action) in [(2, "ack"), (3, "release"), (4, "cancel")] {
        job(&daemon, number).await;
        let messages = receive(&daemon, json!({"visibility": "1m"})).await;
        match action {
            "cancel" => drop(daemon.post("/queues/jobs/purge", "").await),
            _ => drop(end(&daemon, action, &receipts(&messages), json!({})).await),
        }
        if action == "release" {
            let again = receive(&daemon, json!({"visibility": "1m"})).await;
            end(&daemon, "nack", &receipts(&again), json!({"requeue": false})).await;
        }
    }
    for (outcome, count) in [
        ("expired", 2.0),
        ("acked", 1.0),
        ("released", 1.0),
        ("dead", 1.0),
        ("cancelled", 1.0),
        ("requeued", 0.0),
    ] {
        let label = format!("outcome=\"{outcome}\"");
        let found = daemon.until_metric("balto_queue_leases_total", &label, |found| found >= count).await;
        assert_eq!(found, count, "{outcome}");
    }
    assert_eq!(daemon.metric("balto_queue_lease_seconds_count", "").await, 6.0);
}

/// The message is in the queue again, so another worker will do the work.
#[tokio::test]
async fn ack_of_a_redriven_message_is_stale() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({"visibility": "100ms", "maxDeliveries": 1})).await;
    job(&daemon, 1).await;
    let last = receipts(&receive(&daemon, json!({})).await);
    let letters = daemon.until("/dead-letters", |page| list(page).len() == 1).await;
    let letter = text(&letters["data"][0], "deliveryId");
    daemon.post(&format!("/dead-letters/{letter}/redrive"), "").await;
    for run in ["first", "repeated"] {
        assert_eq!(end(&daemon, "ack", &last, json!({})).await, ["stale"], "{run}");
    }
    assert_eq!(numbers(&receive(&daemon, json!({})).await), [1]);
    assert_eq!(counts(&daemon).await, (1, 0, 1));
}

#[tokio::test]
async fn next_receive_finds_the_messages_beyond_max_bytes() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({})).await;
    for number in 1..=3 {
        job(&daemon, number).await;
    }
    for round in 0..20 {
        let first = receive(&daemon, json!({"max": 3, "maxBytes": 1})).await;
        let others = receive(&daemon, json!({"max": 3})).await;
        assert_eq!((numbers(&first), numbers(&others)), (vec![1], vec![2, 3]), "round {round}");
        assert_eq!(others[0]["deliveryCount"], 1);
        end(&daemon, "release", &receipts(&[first, others].concat()), json!({})).await;
    }
}

#[tokio::test]
async fn key_order_has_one_message_at_a_time() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({"ordering": "key"})).await;
    for number in 1..=4 {
        let key = if number == 4 { "b" } else { "a" };
        publish(&daemon, json!({"type": "job", "data": {"n": number}, "orderingKey": key})).await;
    }
    let messages = receive(&daemon, json!({"max": 10})).await;
    assert_eq!(numbers(&messages), [1, 4]);
    assert_eq!(receive(&daemon, json!({})).await, Vec::<Value>::new());
    end(&daemon, "release", &receipts(&messages)[..1], json!({})).await;
    let again = receive(&daemon, json!({"max": 10})).await;
    assert_eq!(numbers(&again), [1]);
    end(&daemon, "ack", &receipts(&again), json!({})).await;
    assert_eq!(numbers(&receive(&daemon, json!({"max": 10})).await), [2]);
}

#[tokio::test]
async fn parked_worker_gets_the_next_message_and_exhausted_ones_die() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(with_queue(data.path(), json!({"maxDeliveries": 1, "visibility": "100ms"})).await);
    let parked = tokio::spawn({
        let daemon = Arc::clone(&daemon);
        async move { receive(&daemon, json!({"wait": "60s"})).await }
    });
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 1.0).await;
    let started = Instant::now();
    job(&daemon, 7).await;
    assert_eq!(numbers(&parked.await.unwrap()), [7]);
    assert!(started.elapsed() < Duration::from_secs(30));
    let dead = daemon.until("/dead-letters?queue=jobs", |page| !list(page).is_empty()).await;
    assert_eq!(dead["data"][0]["reason"], "attemptsExhausted", "without another worker");
    let counted = daemon.post("/dead-letters/purge", r#"{"queue":"jobs","dryRun":true}"#).await;
    assert_eq!(counted["count"], list(&dead).len(), "{counted}");
}

/// A client that closes its sending side, or the connection, takes no message.
#[tokio::test]
async fn client_that_has_gone_takes_no_message() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({})).await;
    let request = post("/v1/queues/jobs/receive", "content-type: application/json\r\n", r#"{"wait":"60s"}"#);
    let mut clients = Vec::new();
    for closes in [true, false].repeat(10) {
        let mut client = Raw::connect(daemon.address()).await;
        client.send(request.as_bytes()).await;
        clients.push((client, closes));
    }
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 20.0).await;
    for (client, closes) in &mut clients {
        if !*closes {
            client.half_close().await;
        }
    }
    clients.retain(|(_, closes)| !closes);
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 0.0).await;
    job(&daemon, 1).await;
    let messages = receive(&daemon, json!({})).await;
    assert_eq!((numbers(&messages), &messages[0]["deliveryCount"]), (vec![1], &json!(1)));
}

#[tokio::test]
async fn queue_is_created_changed_paused_purged_and_deleted() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({})).await;
    let same = json!({"name": "jobs", "eventTypes": ["job"], "visibility": "30s"}).to_string();
    assert_eq!(daemon.call("POST", "/queues", &[], &same).await.0, 200);
    let (status, problem, _) = daemon.call("POST", "/queues", &[], r#"{"name":"jobs"}"#).await;
    is_problem(&(status, problem), 409, "queue_exists", "another queue with the name");
    let (status, changed, _) =
        daemon.call("PATCH", "/queues/jobs", &[], r#"{"maxDeliveries":3,"maxAge":"1h"}"#).await;
    assert_eq!((status, &changed["maxDeliveries"], &changed["maxAge"]), (200, &json!(3), &json!("1h")));
    assert_eq!(daemon.get("/endpoints").await["data"], json!([]));
    assert_eq!(daemon.get("/queues").await["data"][0]["name"], "jobs");
    job(&daemon, 1).await;
    job(&daemon, 2).await;
    daemon.post("/queues/jobs/pause", "").await;
    assert_eq!(receive(&daemon, json!({})).await, Vec::<Value>::new());
    assert_eq!(daemon.get("/queues/jobs/lane").await["reason"], "paused");
    daemon.post("/queues/jobs/resume", "").await;
    assert_eq!(daemon.get("/queues/jobs/lane").await["reason"], "noWorker");
    let held = receive(&daemon, json!({"max": 1})).await;
    assert_eq!(daemon.post("/queues/jobs/purge", "").await["count"], 2);
    assert_eq!(end(&daemon, "nack", &receipts(&held), json!({})).await, ["gone"]);
    let replayed = daemon.post("/queues/jobs/replay", r#"{"since":"2020-01-01T00:00:00Z"}"#).await;
    assert_eq!(replayed["count"], 2);
    let stats = daemon.get("/queues/jobs/stats").await;
    assert_eq!((&stats["backlog"], &stats["cancelled"]), (&json!(2), &json!(2)));
    receive(&daemon, json!({"max": 1})).await;
    assert_eq!(daemon.call("DELETE", "/queues/jobs", &[], "").await.0, 204);
    let letters = daemon.until("/dead-letters", |page| list(page).len() == 2).await;
    assert_eq!(letters["data"][0]["reason"], "endpointDeleted", "the leased one too");
    assert_eq!(daemon.call("POST", "/queues/jobs/receive", &[], "").await.0, 404);
    assert_eq!(daemon.call("POST", "/queues", &[], &same).await.0, 201, "the name is free again");
}

#[tokio::test]
async fn queue_is_among_the_lanes_with_its_reason() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({"maxLeased": 1})).await;
    assert_eq!(daemon.get("/lanes").await["data"], json!([]));
    job(&daemon, 1).await;
    job(&daemon, 2).await;
    let due = daemon.get("/deliveries").await["data"][1]["nextAttemptAt"].clone();
    for (reason, in_flight) in [("noWorker", 0), ("leaseLimit", 1)] {
        for query in [String::new(), format!("?reason={reason}&tenant=default"), "?sort=oldestDue".into()] {
            let lanes = daemon.get(&format!("/lanes{query}")).await;
            let lane = &lanes["data"][0];
            assert_eq!((&lane["queue"], &lane["endpointId"]), (&json!("jobs"), &json!(null)), "{lanes}");
            let counts = [&lane["pending"], &lane["inFlight"]].map(|count| count.as_u64().unwrap());
            assert_eq!((&lane["reason"], counts), (&json!(reason), [2, in_flight]), "{query}");
            assert!(lane["nextDueAt"].as_str() >= due.as_str(), "{lane}");
        }
        assert_eq!(list(&daemon.get("/lanes?reason=paused").await).len(), 0);
        let label = format!("reason=\"{reason}\"");
        daemon.until_metric("balto_lanes", &label, |lanes| lanes == 1.0).await;
        receive(&daemon, json!({"max": 2, "visibility": "1h"})).await;
    }
}

#[tokio::test]
async fn bad_input_is_named_and_changes_nothing() {
    let data = tempfile::tempdir().unwrap();
    let daemon = with_queue(data.path(), json!({})).await;
    job(&daemon, 1).await;
    let held = receipts(&receive(&daemon, json!({})).await);
    let last = if held[0].ends_with('A') { "B" } else { "A" };
    let damaged = format!("{}{last}", &held[0][..held[0].len() - 1]);
    let many = vec![held[0].clone(); 1_001];
    for (path, body, pointer) in [
        ("/queues", json!({}), "/name"),
        ("/queues", json!({"name": "a b"}), "/name"),
        ("/queues", json!({"name": "x".repeat(65)}), "/name"),
        ("/queues", json!({"name": "x", "visibilty": "1s"}), "/visibilty"),
        ("/queues", json!({"name": "x", "visibility": "13h"}), "/visibility"),
        ("/queues", json!({"name": "x", "visibility": "0s"}), "/visibility"),
        ("/queues", json!({"name": "x", "maxLease": "25h"}), "/maxLease"),
        ("/queues", json!({"name": "x", "maxDeliveries": 0}), "/maxDeliveries"),
        ("/queues", json!({"name": "x", "maxLeased": 100_001}), "/maxLeased"),
        ("/queues", json!({"name": "x", "ordering": "endpoint"}), "/ordering"),
        ("/queues", json!({"name": "x", "retry": {"maxAttempts": 1}}), "/retry/maxAttempts"),
        ("/queues", json!({"name": "x", "retry": {"multiplier": 0}}), "/retry/multiplier"),
        ("/queues/jobs/receive", json!({"max": 0}), "/max"),
        ("/queues/jobs/receive", json!({"max": 101}), "/max"),
        ("/queues/jobs/receive", json!({"wait": "61s"}), "/wait"),
        ("/queues/jobs/receive", json!({"wait": "x"}), "/wait"),
        ("/queues/jobs/receive", json!({"visibility": "13h"}), "/visibility"),
        ("/queues/jobs/receive", json!({"maxBytes": 0}), "/maxBytes"),
        ("/queues/jobs/receive", json!({"worker": ""}), "/worker"),
        ("/queues/jobs/ack", json!({"receipts": []}), "/receipts"),
        ("/queues/jobs/ack", json!({"receipts": many}), "/receipts"),
        ("/queues/jobs/ack", json!({"receipts": [held[0], "rcp_x"]}), "/receipts/1"),
        ("/queues/jobs/ack", json!({"receipts": [damaged]}), "/receipts/0"),
        ("/queues/jobs/nack", json!({"receipts": held, "delay": "13h"}), "/delay"),
        ("/queues/jobs/nack", json!({"receipts": held, "requeue": false, "delay": "1s"}), "/delay"),
        ("/queues/jobs/nack", json!({"receipts": held, "reason": "x".repeat(513)}), "/reason"),
        ("/queues/jobs/extend", json!({"receipts": held, "visibility": "0s"}), "/visibility"),
    ] {
        let (status, problem, _) = daemon.call("POST", path, &[], &body.to_string()).await;
        is_problem(&(status, problem.clone()), 422, "validation_failed", path);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{path} {body}: {problem}");
    }
    for (path, body) in [("/queues/jobs/ack", ""), ("/queues/jobs/ack", "{"), ("/queues/jobs/receive", "[")] {
        let (status, problem, _) = daemon.call("POST", path, &[], body).await;
        assert!(matches!(status, 400 | 415 | 422), "{path} {body:?}: {problem}");
    }
    let patched = daemon.call("PATCH", "/queues/jobs", &[], r#"{"name":"other"}"#).await;
    is_problem(&(patched.0, patched.1), 422, "validation_failed", "the name");
    assert_eq!(list(&daemon.get("/queues").await).len(), 1);
    assert_eq!(end(&daemon, "ack", &held, json!({})).await, ["acked"], "nothing had happened");
}

#[tokio::test]
async fn receipts_of_other_queues_and_tenants_end_nothing() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let (acme, evil) =
        (key(&daemon, "admin", Some("acme")).await, key(&daemon, "worker", Some("evil")).await);
    let evil_admin = key(&daemon, "admin", Some("evil")).await;
    for (key, name) in [(&acme, "jobs"), (&acme, "other"), (&evil_admin, "jobs")] {
        let queue = json!({"name": name}).to_string();
        assert_eq!(call_as(&daemon, key, "POST", "/queues", &queue).await.0, 201);
    }
    let event = r#"{"type":"job","data":1}"#;
    for key in [&acme, &evil_admin] {
        assert_eq!(call_as(&daemon, key, "POST", "/events", event).await.0, 202);
    }
    let worker = key(&daemon, "worker", Some("acme")).await;
    let got = call_as(&daemon, &worker, "POST", "/queues/jobs/receive", "{}").await.1;
    let acks = json!({"receipts": receipts(got["messages"].as_array().unwrap())}).to_string();
    for (key, path) in
        [(&acme, "/queues/other/ack"), (&evil, "/queues/jobs/ack"), (&evil, "/queues/jobs/release")]
    {
        let (status, answer) = call_as(&daemon, key, "POST", path, &acks).await;
        assert_eq!((status, &answer["results"][0]["status"]), (200, &json!("gone")), "{path}");
    }
    for path in ["/queues/jobs/receive?tenant=acme", "/queues/jobs?tenant=acme"] {
        let method = if path.contains("receive") { "POST" } else { "GET" };
        assert_eq!(call_as(&daemon, &evil, method, path, "").await.0, 403, "{path}");
    }
    assert_eq!(call_as(&daemon, &evil, "POST", "/queues/other/receive", "").await.0, 404);
    let publisher = key(&daemon, "publisher", Some("acme")).await;
    assert_eq!(call_as(&daemon, &publisher, "POST", "/queues/jobs/receive", "").await.0, 403);
    assert_eq!(call_as(&daemon, &worker, "POST", "/queues/jobs/purge", "").await.0, 403);
    let answer = call_as(&daemon, ADMIN, "POST", "/queues/jobs/ack?tenant=acme", &acks).await.1;
    assert_eq!(answer["results"][0]["status"], "acked", "the lease was untouched");
}

/// The dead letters of deleted queues are found by their name, beside those of a live one.
#[tokio::test]
async fn dead_letters_of_deleted_queues_keep_their_name() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = with_queue(data.path(), json!({})).await;
    let letters = "/dead-letters?queue=jobs";
    job(&daemon, 1).await;
    assert_eq!(daemon.call("DELETE", "/queues/jobs", &[], "").await.0, 204);
    let first = daemon.until(letters, |letters| list(letters).len() == 1).await;
    let destination = &first["data"][0]["destination"];
    assert_eq!((&destination["name"], &destination["deleted"]), (&json!("jobs"), &json!(true)), "{first}");
    // Nothing can be redriven; the other filters still work.
    let by_name = json!({"queue": "jobs"}).to_string();
    let refused = daemon.call("POST", "/dead-letters/redrive", &[], &by_name).await;
    is_problem(&(refused.0, refused.1), 422, "validation_failed", "redrive of a deleted queue");
    let letter = text(&first["data"][0], "deliveryId");
    let refused = daemon.call("POST", &format!("/dead-letters/{letter}/redrive"), &[], "").await;
    is_problem(&(refused.0, refused.1.clone()), 409, "conflict", "redrive of one");
    assert!(text(&refused.1, "detail").starts_with("the queue was deleted: "), "{}", refused.1);
    let refused = daemon.call("POST", &format!("/deliveries/{letter}/retry"), &[], "").await;
    assert!(text(&refused.1, "detail").starts_with("the queue was deleted: "), "{}", refused.1);
    let refused = daemon.call("GET", &format!("/deliveries/{letter}/curl"), &[], "").await;
    assert_eq!((refused.0, &refused.1["detail"]), (409, &json!("a message of a queue has no request")));
    assert_eq!(daemon.post("/dead-letters/purge", r#"{"queue":"jobs","dryRun":true}"#).await["count"], 1);
    let id = text(destination, "id");
    assert_eq!(list(&daemon.get(&format!("{letters}&q={id}")).await).len(), 1);
    assert_eq!(list(&daemon.get(&format!("{letters}&q=que_0000")).await).len(), 0);
    // A new queue of the name; both are found, also after a restart.
    daemon.post("/queues", r#"{"name": "jobs", "eventTypes": ["job"]}"#).await;
    job(&daemon, 2).await;
    let messages = receive(&daemon, json!({})).await;
    end(&daemon, "nack", &receipts(&messages), json!({"requeue": false})).await;
    daemon.terminate();
    let daemon = Daemon::start(data.path()).await;
    let both = daemon.until(letters, |letters| list(letters).len() == 2).await;
    let deleted: Vec<_> = list(&both).iter().map(|letter| letter["destination"]["deleted"].clone()).collect();
    assert_eq!(deleted, [json!(null), json!(true)], "{both}");
    assert_eq!(list(&daemon.get("/deliveries?queue=jobs").await).len(), 2);
    assert_eq!(list(&daemon.get("/deliveries?queue=other").await).len(), 0);
    assert_eq!(list(&daemon.get(&format!("{letters}&tenant=acme")).await).len(), 0);
    let (status, refused, _) = daemon.call("POST", "/dead-letters/purge", &[], &by_name).await;
    is_problem(&(status, refused.clone()), 422, "validation_failed", "purge of two");
    assert!(refused.to_string().contains(&id), "{refused}");
    // The live queue is redriven, and the events of the deleted one are replayed to it.
    assert_eq!(daemon.post("/dead-letters/redrive", &by_name).await["count"], 1);
    assert_eq!(numbers(&receive(&daemon, json!({})).await), [2]);
    daemon.post("/queues/jobs/replay", r#"{"since": "2026-01-01T00:00:00Z"}"#).await;
    let replayed = receive(&daemon, json!({"wait": "10s"})).await;
    assert_eq!(numbers(&replayed), [1]);
    let purge = json!({"endpointId": id}).to_string();
    assert_eq!(daemon.post("/dead-letters/purge", &purge).await["count"], 1);
    assert_eq!(list(&daemon.get(letters).await).len(), 0);
}
