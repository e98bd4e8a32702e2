//! Streams: atomic appends, reads, heads, lists.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};

use super::support::{Daemon, Receiver, has_program, say};
use super::{ADMIN, call_as, is_problem, key, keyed, publish, text};

pub(crate) async fn append(daemon: &Daemon, stream: &str, body: Value) -> (u16, Value) {
    let path = format!("/streams/{stream}/events");
    let (status, answer, _) = daemon.call("POST", &path, &[], &body.to_string()).await;
    (status, answer)
}

/// As [`append`], with a key; also returns whether the answer is a repetition.
async fn append_with_key(daemon: &Daemon, stream: &str, key: &str, body: Value) -> (u16, Value, bool) {
    let path = format!("/streams/{stream}/events");
    let headers = [("idempotency-key", key)];
    let (status, answer, headers) = daemon.call("POST", &path, &headers, &body.to_string()).await;
    (status, answer, headers.contains_key("idempotent-replayed"))
}

pub(crate) fn events(types: &[&str]) -> Value {
    json!({"events": types.iter().map(|kind| json!({"type": kind, "data": {}})).collect::<Vec<_>>()})
}

/// Versions of the events of a page.
pub(crate) fn versions(page: &Value) -> Vec<u64> {
    page["data"].as_array().unwrap().iter().map(|event| event["streamVersion"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn append_is_answered_exactly_as_designed() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "eventTypes": ["b"]}).to_string()).await;
    let (status, first) = append(&daemon, "order-42", events(&["a", "b"])).await;
    assert_eq!(status, 202, "{first}");
    assert_eq!(
        (&first["stream"], &first["version"], &first["duplicate"]),
        (&json!("order-42"), &json!(2), &json!(false))
    );
    let members: BTreeSet<_> = first.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, BTreeSet::from(["stream", "version", "position", "duplicate", "events"]));
    let both = first["events"].as_array().unwrap();
    assert_eq!(both[1]["position"], first["position"]);
    for (number, event) in (1..).zip(both) {
        let members: BTreeSet<_> = event.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, BTreeSet::from(["id", "streamVersion", "position", "statusUrl"]));
        assert_eq!(event["streamVersion"], number);
        let shown = daemon.get(text(event, "statusUrl").strip_prefix("/v1").unwrap()).await;
        assert_eq!((&shown["id"], &shown["streamVersion"]), (&event["id"], &event["streamVersion"]));
    }
    let sent = receiver.until(1).await;
    assert!(sent[0].body.contains("\"streamVersion\":2"), "{}", sent[0].body);
    // A single event of the same stream gets the next version.
    let third =
        publish(&daemon, json!({"type": "a", "data": 1, "stream": "order-42", "expectedVersion": "exists"}))
            .await;
    assert_eq!(third["streamVersion"], 3);
    let single = json!({"type": "a", "data": 1, "stream": "new", "expectedVersion": "exists"}).to_string();
    let (status, conflict, _) = daemon.call("POST", "/events", &[], &single).await;
    is_problem(&(status, conflict.clone()), 409, "version_conflict", "a stream that never was");
    assert_eq!((&conflict["expected"], &conflict["actual"]), (&json!("exists"), &Value::Null));
}

#[tokio::test]
async fn expected_versions_and_checks_are_judged_together() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    append(&daemon, "customer", events(&["a"])).await;
    let checks = json!([{"stream": "customer", "expectedVersion": "exists"}, {"stream": "other", "expectedVersion": "none"}]);
    let mut body = events(&["a", "b"]);
    body["expectedVersion"] = json!("none");
    body["checks"] = checks;
    assert_eq!(append(&daemon, "order", body.clone()).await.0, 202);
    let cases = [
        (json!("none"), json!(null), "order", json!("none"), json!(2)),
        (json!(1), json!(null), "order", json!(1), json!(2)),
        (json!(3), json!(null), "order", json!(3), json!(2)),
        (json!(2), json!([{"stream": "customer", "expectedVersion": 2}]), "customer", json!(2), json!(1)),
        (
            json!(2),
            json!([{"stream": "customer", "expectedVersion": 1}, {"stream": "nope", "expectedVersion": "exists"}]),
            "nope",
            json!("exists"),
            json!(null),
        ),
        // The checks come first.
        (
            json!(9),
            json!([{"stream": "customer", "expectedVersion": "none"}]),
            "customer",
            json!("none"),
            json!(1),
        ),
    ];
    for (expected, checks, stream, wanted, actual) in cases {
        body["expectedVersion"] = expected;
        body["checks"] = checks;
        let answer = append(&daemon, "order", body.clone()).await;
        is_problem(&answer, 409, "version_conflict", &body.to_string());
        let found = (&answer.1["stream"], &answer.1["expected"], &answer.1["actual"]);
        assert_eq!(found, (&json!(stream), &wanted, &actual), "{body}");
    }
    assert_eq!(daemon.get("/streams/order").await["version"], 2, "a rejected append left events");
    for expected in [json!(2), json!("any"), json!("exists"), json!(null)] {
        let mut body = events(&["c"]);
        body["expectedVersion"] = expected.clone();
        if expected == 2 {
            body["checks"] = json!([{"stream": "order", "expectedVersion": 2}]);
        }
        assert_eq!(append(&daemon, "order", body).await.0, 202, "{expected}");
    }
    assert_eq!(daemon.get("/streams/order").await["version"], 6);
}

#[tokio::test]
async fn repeated_append_gets_its_first_answer_across_restarts() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let mut body = events(&["a", "b", "c"]);
    body["expectedVersion"] = json!("none");
    let (status, first, repeated) = append_with_key(&daemon, "s", "k", body.clone()).await;
    assert_eq!((status, repeated), (202, false), "{first}");
    let with_ids = json!({"events": [{"type": "a", "data": 1, "id": "one"}, {"type": "b", "data": 2, "id": "two"}], "expectedVersion": 3});
    let (status, by_ids) = append(&daemon, "s", with_ids.clone()).await;
    assert_eq!((status, &by_ids["version"]), (202, &json!(5)));
    let mut conflict = events(&["a"]);
    conflict["expectedVersion"] = json!(1);
    let (status, refused, repeated) = append_with_key(&daemon, "s", "conflict", conflict.clone()).await;
    assert_eq!((status, repeated), (409, false), "{refused}");
    for round in 0..3 {
        append(&daemon, "s", events(&["later"])).await;
        let (status, again, repeated) = append_with_key(&daemon, "s", "k", body.clone()).await;
        assert_eq!((status, repeated, &again["duplicate"]), (202, true, &json!(true)), "{again}");
        assert_eq!((&again["events"], &again["position"]), (&first["events"], &first["position"]));
        // By the ids alone, with any expected version.
        for expected in [json!(3), json!("none"), json!(9), json!("any")] {
            let mut body = with_ids.clone();
            body["expectedVersion"] = expected;
            let (status, again) = append(&daemon, "s", body).await;
            assert_eq!((status, &again["events"]), (202, &by_ids["events"]), "round {round}: {again}");
            assert_eq!((&again["version"], &again["duplicate"]), (&json!(5), &json!(true)));
        }
        let (status, again, repeated) = append_with_key(&daemon, "s", "conflict", conflict.clone()).await;
        assert_eq!((status, repeated), (409, true), "round {round}: {again}");
        for member in ["stream", "expected", "actual"] {
            assert_eq!(again[member], refused[member], "{member}");
        }
        let answer = append_with_key(&daemon, "s", "k", events(&["other"])).await;
        is_problem(&(answer.0, answer.1), 422, "idempotency_mismatch", "another body");
        match round {
            0 => drop(daemon.terminate()),
            1 => daemon.kill(),
            _ => break,
        }
        daemon = Daemon::start(data.path()).await;
    }
    assert_eq!(daemon.get("/streams/s").await["version"], 8, "something was appended twice");
}

#[tokio::test]
async fn ids_are_all_known_or_none() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let event = |id: &str, data: u64| json!({"type": "a", "data": data, "id": id});
    let body = |events: Vec<Value>| json!({"events": events});
    assert_eq!(append(&daemon, "s", body(vec![event("a", 1), event("b", 2)])).await.0, 202);
    for (events, status, code) in [
        (vec![event("a", 1), event("c", 3)], 409, "partial_duplicate"),
        (vec![event("c", 3), event("b", 2)], 409, "partial_duplicate"),
        (vec![event("a", 1), json!({"type": "a", "data": 9})], 409, "partial_duplicate"),
        (vec![event("a", 1), event("b", 7)], 422, "idempotency_mismatch"),
        (vec![event("c", 1), event("c", 1)], 422, "validation_failed"),
    ] {
        let story = json!(events).to_string();
        is_problem(&append(&daemon, "s", body(events)).await, status, code, &story);
    }
    // The same event in another stream is another event.
    let answer = append(&daemon, "t", body(vec![event("a", 1), event("b", 2)])).await;
    is_problem(&answer, 422, "idempotency_mismatch", "another stream");
    // In two requests, the ids may be repeated together or apart.
    let (status, again) = append(&daemon, "s", body(vec![event("b", 2)])).await;
    assert_eq!((status, &again["duplicate"], &again["version"]), (202, &json!(true), &json!(2)));
    assert_eq!(daemon.get("/streams/s").await["version"], 2);
}

#[tokio::test]
async fn invalid_append_is_rejected_with_pointers() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let good = json!({"type": "a", "data": 1});
    let deep =
        format!("{{\"events\":[{good},{{\"type\":\"a\",\"data\":{}{}}}]}}", "[".repeat(101), "]".repeat(101));
    let cases = [
        (json!({}).to_string(), "/events"),
        (json!({"events": []}).to_string(), "/events"),
        (json!({"events": vec![&good; 1_001]}).to_string(), "/events"),
        (json!({"events": [good, {"type": "a"}]}).to_string(), "/events/1/data"),
        (json!({"events": [good, good, good, {"type": "a b", "data": 1}]}).to_string(), "/events/3/type"),
        (json!({"events": [{"type": "a", "data": 1, "stream": "x"}]}).to_string(), "/events/0/stream"),
        (json!({"events": [{"type": "a", "data": 1, "tenant": "x"}]}).to_string(), "/events/0/tenant"),
        (
            json!({"events": [{"type": "a", "data": 1, "expectedVersion": 1}]}).to_string(),
            "/events/0/expectedVersion",
        ),
        (json!({"events": [{"type": "a", "data": 1, "metadata": 1}]}).to_string(), "/events/0/metadata"),
        (json!({"events": [{"type": "a", "data": 1, "id": "a b"}]}).to_string(), "/events/0/id"),
        (json!({"events": [{"type": "balto.x", "data": 1}]}).to_string(), "/events/0/type"),
        (json!({"events": [7]}).to_string(), "/events/0"),
        (deep, "/events/1/data"),
        (json!({"events": [good], "expectedVersion": 0}).to_string(), "/expectedVersion"),
        (json!({"events": [good], "expectedVersion": "some"}).to_string(), "/expectedVersion"),
        (json!({"events": [good], "checks": [{"stream": "x"}]}).to_string(), "/checks/0/expectedVersion"),
        (
            json!({"events": [good], "checks": [{"stream": "", "expectedVersion": 1}]}).to_string(),
            "/checks/0/stream",
        ),
        (
            json!({"events": [good], "checks": [{"stream": "x", "expectedVersion": 1, "tenant": "t"}]})
                .to_string(),
            "/checks/0/tenant",
        ),
        (json!({"events": [good], "more": 1}).to_string(), "/more"),
    ];
    for (body, pointer) in cases {
        let (status, answer, _) = daemon.call("POST", "/streams/s/events", &[], &body).await;
        let story = &body[..body.len().min(200)];
        is_problem(&(status, answer.clone()), 422, "validation_failed", story);
        assert_eq!(answer["errors"][0]["pointer"], pointer, "{story}: {answer}");
    }
    let large = json!({"events": [good, {"type": "a", "data": "x".repeat(300_000)}]}).to_string();
    let (status, answer, _) = daemon.call("POST", "/streams/s/events", &[], &large).await;
    is_problem(&(status, answer), 413, "payload_too_large", "an event above its bound");
    let long = "x".repeat(256);
    is_problem(&append(&daemon, &long, events(&["a"])).await, 422, "validation_failed", "a long name");
    for path in [format!("/streams/{long}"), "/streams/s".to_owned(), "/streams/s/events".to_owned()] {
        let (status, answer, _) = daemon.call("GET", &path, &[], "").await;
        is_problem(&(status, answer), 404, "not_found", &path);
    }
}

#[tokio::test]
async fn stream_is_read_in_both_directions() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for batch in 0..3 {
        let kinds: Vec<_> =
            (0..50).map(|at| if (batch * 50 + at) % 10 == 9 { "rare.x" } else { "common" }).collect();
        append(&daemon, "s%2Fä", events(&kinds)).await;
        append(&daemon, "other", events(&["noise"; 30])).await;
    }
    let path = "/streams/s%2Fä/events";
    let page = daemon.get(path).await;
    assert_eq!(
        (&page["stream"], &page["version"], &page["firstVersion"]),
        (&json!("s/ä"), &json!(150), &json!(1))
    );
    assert_eq!((versions(&page), &page["nextVersion"]), ((1..=100).collect(), &json!(101)));
    let event = &page["data"][9];
    assert_eq!(
        (&event["type"], &event["stream"], &event["data"]),
        (&json!("rare.x"), &json!("s/ä"), &json!({}))
    );
    assert!(event["position"].is_u64() && event["id"].is_string() && event["status"].is_null(), "{event}");
    for (query, expected, next) in [
        ("fromVersion=101", (101..=150).collect::<Vec<u64>>(), json!(null)),
        ("fromVersion=oldest&limit=2", vec![1, 2], json!(3)),
        ("limit=1000", (1..=150).collect(), json!(null)),
        ("fromVersion=150", vec![150], json!(null)),
        ("fromVersion=151", vec![], json!(null)),
        ("fromVersion=999", vec![], json!(null)),
        ("fromVersion=4&untilVersion=6", vec![4, 5, 6], json!(null)),
        ("untilVersion=0", vec![], json!(null)),
        ("direction=backwards&limit=3", vec![150, 149, 148], json!(147)),
        ("direction=backwards&fromVersion=2", vec![2, 1], json!(null)),
        ("direction=backwards&fromVersion=999&limit=1", vec![150], json!(149)),
        ("direction=backwards&untilVersion=3", vec![3, 2, 1], json!(null)),
        ("types=rare.*&limit=3", vec![10, 20, 30], json!(31)),
        ("types=%23.x,nothing&fromVersion=141", vec![150], json!(null)),
        ("types=rare.*&direction=backwards&limit=2", vec![150, 140], json!(139)),
        ("types=nothing", vec![], json!(null)),
        ("until=2020-01-01T00:00:00Z", vec![], json!(null)),
        ("until=2120-01-01T00:00:00Z&fromVersion=149", vec![149, 150], json!(null)),
    ] {
        let page = daemon.get(&format!("{path}?{query}")).await;
        assert_eq!((versions(&page), &page["nextVersion"]), (expected, &next), "{query}");
    }
    let middle = text(&daemon.get(&format!("{path}?fromVersion=51&limit=1")).await["data"][0], "acceptedAt");
    let before = daemon.get(&format!("{path}?until={middle}&limit=1000")).await;
    assert!(versions(&before).iter().all(|version| *version <= 50), "{middle}");
    for query in [
        "fromVersion=0",
        "fromVersion=-1",
        "fromVersion=x",
        "limit=0",
        "limit=1001",
        "direction=up",
        "types=a%20b",
        "types=,",
        "until=x",
        "untilVersion=x",
        "cursor=1",
    ] {
        let (status, answer, _) = daemon.call("GET", &format!("{path}?{query}"), &[], "").await;
        is_problem(&(status, answer), 422, "validation_failed", query);
    }
}

#[tokio::test]
async fn page_ends_at_its_bytes() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let event = json!({"type": "a", "data": "x".repeat(200_000)});
    for _ in 0..2 {
        assert_eq!(append(&daemon, "s", json!({"events": vec![&event; 15]})).await.0, 202);
    }
    let (mut next, mut all, mut pages) = (json!(1), Vec::new(), 0);
    while !next.is_null() {
        let page = daemon.get(&format!("/streams/s/events?fromVersion={next}")).await;
        assert!(page.to_string().len() < 3 << 20, "a page of {} bytes", page.to_string().len());
        all.extend(versions(&page));
        next = page["nextVersion"].clone();
        pages += 1;
    }
    assert_eq!(all, (1..=30).collect::<Vec<_>>());
    assert!(pages >= 3, "only {pages} pages");
}

#[tokio::test]
async fn head_has_a_tag_and_waits() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(Daemon::start(data.path()).await);
    let waiting = |query: &str, tag: Option<&'static str>| {
        let (daemon, path) = (Arc::clone(&daemon), format!("/streams/s?{query}"));
        tokio::spawn(async move {
            let headers: Vec<_> = tag.iter().map(|tag| ("if-none-match", *tag)).collect();
            daemon.call("GET", &path, &headers, "").await
        })
    };
    // A stream that does not exist yet can be waited for.
    let first = waiting("afterVersion=0&wait=60s", None);
    let (status, answer, _) = waiting("afterVersion=0&wait=50ms", None).await.unwrap();
    is_problem(&(status, answer), 404, "not_found", "a wait that ends without a stream");
    append(&daemon, "s", events(&["a", "b"])).await;
    let (status, head, headers) = first.await.unwrap();
    assert_eq!((status, &head["version"], headers["etag"].as_str()), (200, &json!(2), "\"2\""));
    let members: BTreeSet<_> = head.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["stream", "tenant", "version", "firstVersion", "firstAt", "lastAt", "position"];
    assert_eq!(members, BTreeSet::from(expected));
    for (tag, status) in
        [("\"2\"", 304), ("W/\"2\"", 304), ("\"1\", \"2\"", 304), ("*", 304), ("\"1\"", 200), ("2", 200)]
    {
        let (found, body, headers) = daemon.call("GET", "/streams/s", &[("if-none-match", tag)], "").await;
        assert_eq!(
            (found, body.is_null(), headers["etag"].as_str()),
            (status, status == 304, "\"2\""),
            "{tag}"
        );
    }
    assert_eq!(waiting("afterVersion=2&wait=50ms", Some("\"2\"")).await.unwrap().0, 304);
    assert_eq!(waiting("afterVersion=1&wait=60s", None).await.unwrap().1["version"], 2);
    let all: Vec<_> = (0..20).map(|_| waiting("afterVersion=2&wait=60s", Some("\"2\""))).collect();
    daemon.until_metric("balto_api_waiting_requests", "", |count| count >= 20.0).await;
    append(&daemon, "other", events(&["a"])).await;
    publish(&daemon, json!({"type": "a", "data": 1, "stream": "s", "tenant": "acme"})).await;
    assert!(all.iter().all(|wait| !wait.is_finished()), "another stream ended a wait");
    publish(&daemon, json!({"type": "a", "data": 1, "stream": "s"})).await;
    for wait in all {
        let (status, head, _) = wait.await.unwrap();
        assert_eq!((status, &head["version"]), (200, &json!(3)));
    }
    for query in ["wait=1s", "afterVersion=x&wait=1s", "afterVersion=1&wait=61s", "afterVersion=-1"] {
        let (status, answer, _) = waiting(query, None).await.unwrap();
        is_problem(&(status, answer), 422, "validation_failed", query);
    }
}

#[tokio::test]
async fn streams_are_listed_by_name() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for name in ["order-2", "order-10", "order-1", "pet-1", "Order-9"] {
        append(&daemon, name, events(&["a"])).await;
    }
    publish(&daemon, json!({"type": "a", "data": 1, "stream": "order-1", "tenant": "acme"})).await;
    let names = |list: &Value| -> Vec<String> {
        list["data"].as_array().unwrap().iter().map(|stream| text(stream, "stream")).collect()
    };
    assert_eq!(names(&daemon.get("/streams").await), ["Order-9", "order-1", "order-10", "order-2", "pet-1"]);
    let first = daemon.get("/streams?prefix=order-&limit=2").await;
    assert_eq!(names(&first), ["order-1", "order-10"]);
    // A stream that is created between two pages does not shift them.
    append(&daemon, "order-0", events(&["a"])).await;
    let next = text(&first, "next");
    let last = daemon.get(&format!("/streams?prefix=order-&limit=2&cursor={next}")).await;
    assert_eq!((names(&last), &last["next"]), (vec!["order-2".to_owned()], &Value::Null));
    let acme = daemon.get("/streams?tenant=acme").await;
    assert_eq!((names(&acme), &acme["data"][0]["tenant"]), (vec!["order-1".to_owned()], &json!("acme")));
    assert_eq!(names(&daemon.get("/streams?prefix=x").await), Vec::<String>::new());
    let (status, answer, _) = daemon.call("GET", "/streams?cursor=AAAA", &[], "").await;
    is_problem(&(status, answer), 422, "validation_failed", "a foreign cursor");
}

#[tokio::test]
async fn atomic_batch_is_all_or_nothing() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    append(&daemon, "a", events(&["x"])).await;
    let event = |stream: &str, expected: Value| json!({"type": "x", "data": 1, "stream": stream, "expectedVersion": expected});
    let post = async |body: &Value| {
        let (status, answer, _) = daemon.call("POST", "/events/batch", &[], &body.to_string()).await;
        (status, answer)
    };
    let good = json!({"atomic": true, "checks": [{"stream": "a", "expectedVersion": 1}],
        "events": [event("a", json!(1)), event("b", json!("none")), event("a", json!(2)), {"type": "x", "data": 1}]});
    let (status, answer) = post(&good).await;
    assert_eq!(status, 202, "{answer}");
    let results = answer["results"].as_array().unwrap();
    assert!(results.iter().all(|result| result["status"] == 202), "{answer}");
    assert_eq!((&results[2]["streamVersion"], &results[1]["streamVersion"]), (&json!(3), &json!(1)));
    let positions: Vec<_> = results.iter().map(|result| result["position"].as_u64().unwrap()).collect();
    assert!(positions.windows(2).all(|two| two[1] == two[0] + 1), "{positions:?}");
    let cases = [
        (
            json!([event("a", json!(3)), event("b", json!("none"))]),
            json!(null),
            409,
            "version_conflict",
            json!(1),
            json!("b"),
        ),
        (
            json!([event("a", json!(3)), event("a", json!(3))]),
            json!(null),
            409,
            "version_conflict",
            json!(1),
            json!("a"),
        ),
        (
            json!([event("a", json!(3))]),
            json!([{"stream": "c", "expectedVersion": "exists"}]),
            409,
            "version_conflict",
            json!(null),
            json!("c"),
        ),
        (
            json!([event("a", json!(3)), {"type": "a b", "data": 1}]),
            json!(null),
            422,
            "validation_failed",
            json!(1),
            json!(null),
        ),
    ];
    for (events, checks, status, code, index, stream) in cases {
        let body = json!({"atomic": true, "events": events, "checks": checks});
        let answer = post(&body).await;
        is_problem(&answer, status, code, &body.to_string());
        assert_eq!((&answer.1["index"], &answer.1["stream"]), (&index, &stream), "{}", answer.1);
        if code == "validation_failed" {
            assert_eq!(answer.1["errors"][0]["pointer"], "/events/1/type");
        }
    }
    assert_eq!(daemon.get("/streams/a").await["version"], 3, "a rejected batch left events");
    let independent = json!({"events": [event("a", json!(3)), event("b", json!("none"))]});
    let (status, answer) = post(&independent).await;
    assert_eq!(
        (status, &answer["results"][0]["status"], &answer["results"][1]["status"]),
        (202, &json!(202), &json!(409))
    );
    let answer = post(&json!({"events": [event("a", json!("any"))], "checks": []})).await;
    is_problem(&answer, 422, "validation_failed", "checks of independent events");
}

#[tokio::test]
async fn streams_belong_to_their_tenant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let acme = key(&daemon, "publisher", Some("acme")).await;
    let other = key(&daemon, "publisher", Some("other")).await;
    let body = events(&["a"]).to_string();
    for key in [&acme, &other, &acme] {
        assert_eq!(call_as(&daemon, key, "POST", "/streams/s/events", &body).await.0, 202);
    }
    let version =
        async |key: &str, path: &str| call_as(&daemon, key, "GET", path, "").await.1["version"].clone();
    assert_eq!(version(&acme, "/streams/s").await, 2);
    assert_eq!(version(&other, "/streams/s/events").await, 1);
    assert_eq!(version(ADMIN, "/streams/s?tenant=acme").await, 2);
    assert_eq!(call_as(&daemon, ADMIN, "GET", "/streams/s", "").await.0, 404, "of the tenant `default`");
    for (method, path) in [
        ("GET", "/streams/s?tenant=acme"),
        ("GET", "/streams/s/events?tenant=acme"),
        ("POST", "/streams/s/events?tenant=acme"),
        ("GET", "/streams?tenant=acme"),
    ] {
        let sent = if method == "POST" { &body } else { "" };
        let answer = call_as(&daemon, &other, method, path, sent).await;
        is_problem(&answer, 403, "forbidden", path);
    }
    // A check looks at streams of the same tenant alone.
    let mut check = events(&["a"]);
    check["checks"] = json!([{"stream": "s", "expectedVersion": 2}]);
    let answer = call_as(&daemon, &other, "POST", "/streams/t/events", &check.to_string()).await;
    assert_eq!((answer.0, &answer.1["actual"]), (409, &json!(1)), "{answer:?}");
    let mut batch = json!({"atomic": true, "events": [{"type": "a", "data": 1}]});
    batch["checks"] = json!([{"stream": "s", "expectedVersion": 2, "tenant": "acme"}]);
    let answer = call_as(&daemon, &other, "POST", "/events/batch", &batch.to_string()).await;
    is_problem(&answer, 403, "forbidden", "a check of another tenant");
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/events/batch", &batch.to_string()).await.0, 202);
    let answer = call_as(&daemon, ADMIN, "POST", "/streams/s/events?tenant=balto", &body).await;
    is_problem(&answer, 403, "forbidden", "the reserved tenant");
}

#[tokio::test]
async fn concurrent_appends_make_dense_versions() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(Daemon::start(data.path()).await);
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let daemon = Arc::clone(&daemon);
            tokio::spawn(async move {
                let (mut won, mut lost) = (0, 0);
                while won < 5 {
                    let (status, head, _) = daemon.call("GET", "/streams/s", &[], "").await;
                    let mut body = events(&["a", "b", "c"]);
                    body["expectedVersion"] =
                        if status == 404 { json!("none") } else { head["version"].clone() };
                    match append(&daemon, "s", body).await.0 {
                        202 => won += 1,
                        409 => lost += 1,
                        status => panic!("{status}"),
                    }
                }
                lost
            })
        })
        .collect();
    let mut lost = 0;
    for writer in writers {
        lost += writer.await.unwrap();
    }
    let page = daemon.get("/streams/s/events?limit=1000").await;
    assert_eq!(versions(&page), (1..=120).collect::<Vec<_>>(), "{lost} conflicts");
    let kinds: Vec<_> = page["data"].as_array().unwrap().iter().map(|event| text(event, "type")).collect();
    assert!(kinds.chunks(3).all(|three| three == ["a", "b", "c"]), "an append was torn");
}

/// The program of docs/streams.md.
#[tokio::test]
async fn documented_aggregate_loses_no_withdrawal() {
    if !has_program("python3") {
        return say("SKIPPED: there is no python3 here");
    }
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let deposit = json!({"events": [{"type": "account.deposited", "data": {"amount": 100}}]});
    append(&daemon, "account%2F1", deposit).await;
    let url = format!("http://{}", daemon.address());
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/streams/account.py");
    let run = move |amount: u32| {
        let mut command = Command::new("python3");
        command.args([program, "account/1", &amount.to_string()]).env("BALTO_URL", &url);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let runs: Vec<_> = (0..6).map(|_| run(10)).collect();
    for run in runs {
        let output = run.await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let output = run(20).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "20", "60 of 100 were withdrawn before");
    let output = run(30).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("the balance is 20"));
    assert_eq!(daemon.get("/streams/account%2F1").await["version"], 8);
}
