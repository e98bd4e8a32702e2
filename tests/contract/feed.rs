//! `GET /v1/feed`: all events in order, from a cursor on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::raw::Raw;
use crate::support::{Daemon, Receiver};
use crate::{ADMIN, call_as, is_problem, key, keyed, list, text};

/// Publishes events with these types, and returns their positions.
async fn publish(daemon: &Daemon, events: &[Value]) -> Vec<u64> {
    let body = json!({ "events": events }).to_string();
    let answer = daemon.post("/events/batch", &body).await;
    let results = answer["results"].as_array().unwrap();
    results.iter().map(|result| result["position"].as_u64().unwrap()).collect()
}

fn numbers(page: &Value) -> Vec<u64> {
    list(page).iter().map(|event| event["data"].as_u64().unwrap()).collect()
}

/// Reads from a cursor to the end. Returns the data of all events.
async fn read_all(daemon: &Daemon, query: &str, after: &str) -> Vec<u64> {
    let (mut all, mut after) = (Vec::new(), after.to_owned());
    loop {
        let page = daemon.get(&format!("/feed?after={after}{query}")).await;
        all.extend(numbers(&page));
        if page["caughtUp"] == true {
            assert_eq!(page["next"], page["head"], "{page}");
            return all;
        }
        assert_ne!(page["next"], after, "no progress: {page}");
        after = text(&page, "next");
    }
}

async fn get(daemon: &Daemon, path: &str) -> (u16, Value, HashMap<String, String>) {
    daemon.call("GET", path, &[], "").await
}

#[tokio::test]
async fn pages_have_every_event_once_in_order() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let event = |number: u64| {
        let kind = if number.is_multiple_of(3) { "pet.sold" } else { "order.paid" };
        let mut event = json!({"type": kind, "data": number, "metadata": {"a": 1}});
        if number.is_multiple_of(2) {
            event["stream"] = format!("pet-{}", number % 4).into();
        }
        event
    };
    let events: Vec<_> = (0..250).map(event).collect();
    let positions = publish(&daemon, &events).await;
    let first = daemon.get("/feed?limit=2").await;
    assert_eq!(numbers(&first), [0, 1]);
    assert_eq!((&first["next"], &first["caughtUp"]), (&json!(positions[1].to_string()), &json!(false)));
    let shown = &first["data"][0];
    assert_eq!(shown["position"], positions[0]);
    assert_eq!((&shown["stream"], &shown["streamVersion"]), (&json!("pet-0"), &json!(1)));
    assert_eq!((&shown["type"], &shown["metadata"]["a"]), (&json!("pet.sold"), &json!(1)));
    assert!(shown["id"].as_str().unwrap().starts_with("evt_") && shown["acceptedAt"].is_string());
    // From memory, then from the disk after a restart.
    for restarted in [false, true] {
        if restarted {
            assert_eq!(daemon.terminate(), Some(0));
            daemon = Daemon::start(data.path()).await;
        }
        let all = |wanted: fn(u64) -> bool| (0..250).filter(move |at| wanted(*at)).collect::<Vec<u64>>();
        for limit in [1, 7, 100, 1000] {
            if limit == 1 && restarted {
                continue;
            }
            let read = read_all(&daemon, &format!("&limit={limit}"), "oldest").await;
            assert_eq!(read, all(|_| true), "limit {limit}");
        }
        for (query, wanted) in [
            ("&types=pet.*", all(|at| at % 3 == 0)),
            ("&types=nothing,pet.%23", all(|at| at % 3 == 0)),
            ("&stream=pet-2", all(|at| at % 4 == 2)),
            ("&streamPrefix=pet-", all(|at| at % 2 == 0)),
            ("&streamPrefix=", all(|at| at % 2 == 0)),
            ("&streamPrefix=pet-2&types=order.paid", all(|at| at % 4 == 2 && at % 3 != 0)),
            ("&tenant=default", all(|_| true)),
            ("&tenant=other", vec![]),
        ] {
            assert_eq!(read_all(&daemon, query, "oldest").await, wanted, "{query}");
            assert_eq!(read_all(&daemon, &format!("{query}&limit=3"), "oldest").await, wanted, "{query}");
        }
        let half = positions[124].to_string();
        assert_eq!(read_all(&daemon, "", &half).await, (125..250).collect::<Vec<_>>());
        let now = daemon.get("/feed?after=now").await;
        assert_eq!((list(&now).len(), &now["caughtUp"]), (0, &json!(true)));
    }
    // Nothing matches, and the cursor moves on.
    let none = daemon.get("/feed?types=nothing&after=0").await;
    assert_eq!((&none["next"], list(&none).len()), (&none["head"], 0));
}

#[tokio::test]
async fn invalid_parameters_and_foreign_positions_are_rejected() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    publish(&daemon, &[json!({"type": "a", "data": 1})]).await;
    let long = format!("types={}", vec!["a"; 33].join(","));
    for (query, name) in [
        ("after=x", "after"),
        ("after=-1", "after"),
        ("after=01", "after"),
        ("after=", "after"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("types=", "types"),
        ("types=a..b", "types"),
        ("types=a,", "types"),
        (&long, "types"),
        ("types=*.*.*.*.*.*.*.*.*.a", "types"),
        ("stream=", "stream"),
        ("stream=a&streamPrefix=a", "streamPrefix"),
        ("streamPrefix=%00", "streamPrefix"),
        ("wait=61s", "wait"),
        ("tenant=a%20b", "tenant"),
        ("cursor=1", "cursor"),
    ] {
        let (status, problem, _) = get(&daemon, &format!("/feed?{query}")).await;
        assert_eq!(problem["errors"][0]["parameter"], name, "{query}: {problem}");
        is_problem(&(status, problem), 422, "validation_failed", query);
    }
    let (status, problem, _) = get(&daemon, "/feed?after=1000000").await;
    assert_eq!(problem["head"], daemon.get("/feed").await["head"], "{problem}");
    is_problem(&(status, problem), 409, "position_ahead", "a position beyond the end");
}

#[tokio::test]
async fn log_has_a_durable_name() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let name = get(&daemon, "/feed").await.2["balto-log"].clone();
    assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    daemon.kill();
    let daemon = Daemon::start(data.path()).await;
    assert_eq!(get(&daemon, "/feed").await.2["balto-log"], name);
    let other = tempfile::tempdir().unwrap();
    let other = Daemon::start(other.path()).await;
    assert_ne!(get(&other, "/feed").await.2["balto-log"], name);
}

#[tokio::test]
async fn wait_ends_with_the_first_event_that_matches() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(Daemon::start(data.path()).await);
    let waiting = |path: &'static str| {
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move { (daemon.get(path).await, Instant::now()) })
    };
    let wanted: Vec<_> = (0..10).map(|_| waiting("/feed?types=b.*&after=now&wait=60s")).collect();
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 10.0).await;
    // Long enough for a busy machine to see it wait.
    let short = waiting("/feed?types=c&after=now&wait=10s");
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 11.0).await;
    publish(&daemon, &[json!({"type": "a", "data": 1})]).await;
    let (page, _) = short.await.unwrap();
    assert_eq!((list(&page).len(), &page["caughtUp"]), (0, &json!(true)));
    assert_eq!(page["next"], page["head"], "the cursor moved over the event that was not wanted");
    assert!(wanted.iter().all(|answer| !answer.is_finished()));
    publish(&daemon, &[json!({"type": "b.c", "data": 2}), json!({"type": "b.d", "data": 3})]).await;
    for answer in wanted {
        assert_eq!(numbers(&answer.await.unwrap().0), [2, 3]);
    }
    // Events that exist already are not waited for.
    let started = Instant::now();
    assert_eq!(numbers(&daemon.get("/feed?after=oldest&wait=60s").await), [1, 2, 3]);
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn wait_ends_at_a_shutdown_and_without_its_client() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(Daemon::start(data.path()).await);
    let request = "GET /v1/feed?after=now&wait=60s HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut gone = Vec::new();
    for _ in 0..5 {
        let mut client = Raw::connect(daemon.address()).await;
        client.send(request.as_bytes()).await;
        gone.push(client);
    }
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 5.0).await;
    drop(gone);
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 0.0).await;
    let last = tokio::spawn({
        let daemon = Arc::clone(&daemon);
        async move { daemon.get("/feed?after=now&wait=60s").await }
    });
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 1.0).await;
    daemon.signal("TERM");
    assert_eq!(last.await.unwrap()["caughtUp"], true);
}

#[tokio::test]
async fn tenants_read_only_their_own_events() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for (tenant, number) in [("acme", 1), ("other", 2), ("acme", 3)] {
        let event = json!({"type": "a", "data": number, "tenant": tenant, "stream": "s"}).to_string();
        assert_eq!(call_as(&daemon, ADMIN, "POST", "/events", &event).await.0, 202);
    }
    for role in ["admin", "publisher", "viewer", "worker"] {
        let acme = key(&daemon, role, Some("acme")).await;
        for query in ["", "?tenant=acme", "?stream=s", "?streamPrefix=", "?types=%23"] {
            let (status, page) = call_as(&daemon, &acme, "GET", &format!("/feed{query}"), "").await;
            assert_eq!((status, numbers(&page)), (200, vec![1, 3]), "{role} {query}");
        }
        let foreign = call_as(&daemon, &acme, "GET", "/feed?tenant=other", "").await;
        is_problem(&foreign, 403, "forbidden", role);
    }
    assert_eq!(numbers(&call_as(&daemon, ADMIN, "GET", "/feed", "").await.1), [1, 2, 3]);
    assert_eq!(call_as(&daemon, "wrong", "GET", "/feed", "").await.0, 401);
    // Operator events are in the feed only when their tenant is named.
    let (receiver, operator) = (Receiver::status(500).await, Receiver::status(200).await);
    let hooks = [
        json!({"url": receiver.url, "tenant": "acme", "retry": {"maxAttempts": 1}}),
        // Operator events are published only to an endpoint.
        json!({"url": operator.url, "tenant": "balto"}),
    ];
    for hook in hooks {
        assert_eq!(call_as(&daemon, ADMIN, "POST", "/endpoints", &hook.to_string()).await.0, 201);
    }
    let event = json!({"type": "dies", "data": 4, "tenant": "acme"}).to_string();
    call_as(&daemon, ADMIN, "POST", "/events", &event).await;
    let path = "/feed?tenant=balto&wait=60s";
    let (_, page) = call_as(&daemon, ADMIN, "GET", path, "").await;
    assert_eq!(page["data"][0]["type"], "balto.delivery.dead", "{page}");
    assert_eq!(numbers(&call_as(&daemon, ADMIN, "GET", "/feed", "").await.1), [1, 2, 3, 4]);
}

#[tokio::test]
async fn page_ends_at_its_bytes() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let large = json!({"type": "a", "data": "x".repeat(200_000)});
    for _ in 0..4 {
        publish(&daemon, &vec![large.clone(); 10]).await;
    }
    for restarted in [false, true] {
        if restarted {
            daemon.kill();
            daemon = Daemon::start(data.path()).await;
        }
        let (mut after, mut count) = ("oldest".to_owned(), 0);
        loop {
            let page = daemon.get(&format!("/feed?limit=1000&after={after}")).await;
            let events = list(&page).len();
            assert!(events <= 10, "{events} large events on a page");
            (count, after) = (count + events, text(&page, "next"));
            if page["caughtUp"] == true {
                break;
            }
            assert!(events > 5, "only {events} events on a page");
        }
        assert_eq!(count, 40);
    }
}

/// Another tenant's events cost a bounded time, and the cursor moves on.
#[tokio::test]
async fn foreign_events_do_not_hold_up_a_page() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let foreign = json!({"type": "a", "data": 0, "tenant": "busy"});
    for _ in 0..30 {
        publish(&daemon, &vec![foreign.clone(); 1_000]).await;
    }
    publish(&daemon, &[json!({"type": "a", "data": 7, "tenant": "rare"})]).await;
    assert_eq!(read_all(&daemon, "&tenant=rare", "oldest").await, [7]);
    daemon.kill();
    let daemon = Daemon::start(data.path()).await;
    assert_eq!(read_all(&daemon, "&tenant=rare", "oldest").await, [7]);
    let page = daemon.get("/feed?tenant=rare&after=now").await;
    assert_eq!(page["caughtUp"], true);
}

/// HTTP Feeds: `Accept: application/cloudevents-batch+json`, `lastEventId` and `timeout`.
#[tokio::test]
async fn batch_of_cloudevents_goes_on_after_the_last_event() {
    const BATCH: &str = "application/cloudevents-batch+json";
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let events: Vec<_> = (0..5).map(|number| json!({"type": "a.b", "data": {"n": number}})).collect();
    let positions = publish(&daemon, &events).await;
    let batch =
        async |query: &str| daemon.call("GET", &format!("/feed{query}"), &[("accept", BATCH)], "").await;
    let (status, first, headers) = batch("?limit=2&types=a.%23").await;
    assert_eq!((status, headers["content-type"].as_str()), (200, BATCH), "{first}");
    let all = |page: &Value| -> Vec<u64> {
        let page = page.as_array().unwrap();
        page.iter().map(|event| event["data"]["n"].as_u64().unwrap()).collect()
    };
    assert_eq!(all(&first), [0, 1], "{first}");
    let last = &first[1];
    let expected = format!("{:020}", positions[1]);
    let members = ["specversion", "type", "source", "sequence"].map(|name| text(last, name));
    assert_eq!(members, ["1.0", "a.b", "/default", &expected], "{last}");
    let next = headers["link"].split(['<', '>']).nth(1).unwrap().strip_prefix("/v1/feed").unwrap();
    for query in [next, &format!("?lastEventId={}&limit=2", text(last, "id"))] {
        assert_eq!(all(&batch(query).await.1), [2, 3], "{query}");
    }
    let (_, end, headers) = batch(&format!("?lastEventId={:020}&timeout=10", positions[4])).await;
    assert_eq!(end, json!([]), "{headers:?}");
    assert_eq!(all(&batch(&format!("?lastEventId={:020}", 0)).await.1), [0, 1, 2, 3, 4]);
    // Other tenants may choose the same id.
    let chosen = json!({"type": "a.b", "id": "inv-1", "data": {"n": 5}});
    daemon.post("/events", &chosen.to_string()).await;
    let (status, problem, _) = batch("?lastEventId=inv-1").await;
    is_problem(&(status, problem), 422, "validation_failed", "a chosen id, over all tenants");
    assert_eq!(batch("?lastEventId=inv-1&tenant=default").await.1, json!([]));
    for (query, name) in [
        ("?lastEventId=none", "lastEventId"),
        ("?lastEventId=0&after=0", "lastEventId"),
        ("?lastEventId=", "lastEventId"),
        ("?timeout=60001", "timeout"),
        ("?timeout=-1", "timeout"),
        ("?timeout=1&wait=1s", "timeout"),
    ] {
        let (status, problem, _) = batch(query).await;
        is_problem(&(status, problem.clone()), 422, "validation_failed", query);
        assert_eq!(problem["errors"][0]["parameter"], name, "{problem}");
    }
    let (status, ahead, _) = batch("?lastEventId=00000000000000999999").await;
    is_problem(&(status, ahead), 409, "position_ahead", "a sequence of another log");
    for (query, name) in [("?lastEventId=0", "lastEventId"), ("?timeout=1", "timeout")] {
        let (status, problem, _) = get(&daemon, &format!("/feed{query}")).await;
        is_problem(&(status, problem.clone()), 422, "validation_failed", query);
        assert_eq!(problem["errors"][0]["parameter"], name, "{problem}");
    }
    let erased = json!({"reason": "a request"}).to_string();
    let path = format!("/events/{}/erase", text(last, "id"));
    assert_eq!(daemon.call("POST", &path, &[], &erased).await.0, 202);
    let page = batch("?limit=2").await.1;
    assert_eq!((&page[1]["data"], page[1]["erasedat"].is_string()), (&Value::Null, true), "{page}");
}
