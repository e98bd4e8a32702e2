//! Consumers: definition, commits, resets, waits, and the positions of answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::Daemon;
use super::{ADMIN, call_as, is_problem, key, keyed, list, text};

async fn ask(daemon: &Daemon, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    call_as(daemon, ADMIN, method, path, &body).await
}

async fn done(daemon: &Daemon, method: &str, path: &str, body: Value) -> Value {
    let (status, answer) = ask(daemon, method, path, body).await;
    assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
    answer
}

/// Publishes an event and returns its position.
async fn publish(daemon: &Daemon, more: Value) -> u64 {
    let mut event = json!({"type": "pet.created", "data": 1});
    for (name, value) in more.as_object().unwrap() {
        event[name] = value.clone();
    }
    done(daemon, "POST", "/events", event).await["position"].as_u64().unwrap()
}

async fn commit(daemon: &Daemon, name: &str, body: Value) -> (u16, Value) {
    ask(daemon, "POST", &format!("/consumers/{name}/commit"), body).await
}

#[tokio::test]
async fn consumer_keeps_its_place_through_changes_and_restarts() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    let body = json!({"types": ["pet.*"], "start": "oldest", "description": "Search"});
    let (status, made) = ask(&daemon, "PUT", "/consumers/pet-search", body.clone()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["position"], &made["committedAt"]), (&json!("0"), &Value::Null));
    assert_eq!((&made["name"], &made["types"]), (&json!("pet-search"), &json!(["pet.*"])));
    assert_eq!((&made["tenant"], &made["connections"]), (&Value::Null, &json!(0)));
    assert_eq!(made["lag"], json!({"events": 0, "atLeast": false, "seconds": 0.0}));
    let position = publish(&daemon, json!({})).await;
    publish(&daemon, json!({"type": "order.paid"})).await;
    let last = publish(&daemon, json!({})).await;
    let shown = done(&daemon, "GET", "/consumers/pet-search", Value::Null).await;
    assert_eq!(shown["lag"]["events"], 2, "{shown}");
    let placed = commit(&daemon, "pet-search", json!({"position": position.to_string()})).await;
    assert_eq!((placed.0, &placed.1["position"]), (200, &json!(position.to_string())), "{placed:?}");
    assert!(placed.1["committedAt"].is_string(), "{placed:?}");

    let (status, same) = ask(&daemon, "PUT", "/consumers/pet-search", body).await;
    assert_eq!((status, &same["updatedAt"]), (200, &made["updatedAt"]), "an equal definition is no change");
    let changed = json!({"types": ["order.#"], "start": "now"});
    let (status, changed) = ask(&daemon, "PUT", "/consumers/pet-search", changed).await;
    assert_eq!((status, &changed["position"]), (200, &json!(position.to_string())), "{changed}");
    assert_eq!((&changed["types"], &changed["lag"]["events"]), (&json!(["order.#"]), &json!(1)));
    assert_eq!((&changed["createdAt"], &changed["description"]), (&made["createdAt"], &json!("")));

    daemon.kill();
    let daemon = keyed(data.path()).await;
    let mut after = done(&daemon, "GET", "/consumers/pet-search", Value::Null).await;
    after["lag"] = changed["lag"].clone();
    assert_eq!(after, changed, "a crash changes nothing");
    let (status, placed) = commit(&daemon, "pet-search", json!({"position": last})).await;
    assert_eq!((status, &placed["position"]), (200, &json!(last.to_string())), "a number is a cursor too");
    assert_eq!(ask(&daemon, "DELETE", "/consumers/pet-search", Value::Null).await.0, 204);
    for (method, path, body) in [
        ("GET", "/consumers/pet-search", Value::Null),
        ("DELETE", "/consumers/pet-search", Value::Null),
        ("POST", "/consumers/pet-search/commit", json!({"position": "1"})),
        ("POST", "/consumers/pet-search/reset", json!({"to": "now"})),
    ] {
        is_problem(&ask(&daemon, method, path, body).await, 404, "not_found", path);
    }
}

/// Changes at the same time all succeed, one after the other.
#[tokio::test]
async fn parallel_changes_of_a_resource_succeed() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(keyed(data.path()).await);
    let hook = json!({"url": "http://127.0.0.1:9000/"});
    let made = ask(&daemon, "POST", "/endpoints", hook).await.1;
    let endpoint = format!("/endpoints/{}", text(&made, "id"));
    assert_eq!(ask(&daemon, "POST", "/queues", json!({"name": "jobs"})).await.0, 201);
    assert_eq!(ask(&daemon, "PUT", "/tenants/acme", json!({})).await.0, 201);
    for (method, path, member, before) in [
        ("PATCH", endpoint.clone(), "description", ""),
        ("POST", format!("{endpoint}/secret/rotate"), "overlap", "s"),
        ("PATCH", "/queues/jobs".to_owned(), "description", ""),
        ("PATCH", "/tenants/acme".to_owned(), "name", ""),
        ("PUT", "/tenants/acme".to_owned(), "name", ""),
    ] {
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..16 {
            let (daemon, path) = (Arc::clone(&daemon), path.clone());
            // An overlap of 0 s leaves one secret, so that their number stays below its limit.
            let value = if before == "s" { "0s".to_owned() } else { format!("{number}") };
            requests.spawn(async move { ask(&daemon, method, &path, json!({ member: value })).await.0 });
        }
        assert_eq!(requests.join_all().await, [200; 16], "{method} {path}");
    }
}

/// Of requests at the same time, one creates the resource, and the others replace it.
#[tokio::test]
async fn resource_of_parallel_puts_is_created_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(keyed(data.path()).await);
    for path in ["/consumers/search", "/tenants/acme", "/event-types/pet.adopted"] {
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..8 {
            let daemon = Arc::clone(&daemon);
            let body = match path {
                "/tenants/acme" => json!({"name": format!("{number}")}),
                "/consumers/search" => json!({"description": format!("{}", number / 2)}),
                _ => json!({"versions": {"1.0": {"schema": {}}}}),
            };
            requests.spawn(async move { ask(&daemon, "PUT", path, body).await.0 });
        }
        let mut answers = requests.join_all().await;
        answers.sort_unstable();
        assert_eq!(answers, [200, 200, 200, 200, 200, 200, 200, 201], "{path}");
    }
}

#[tokio::test]
async fn commit_moves_forward_from_where_the_instance_was() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for _ in 0..5 {
        publish(&daemon, json!({})).await;
    }
    done(&daemon, "PUT", "/consumers/c", json!({})).await;
    assert_eq!(commit(&daemon, "c", json!({"position": "2", "from": "0"})).await.0, 200);
    let late = commit(&daemon, "c", json!({"position": "3", "from": "0"})).await;
    is_problem(&late, 409, "consumer_moved", "the slower instance");
    assert_eq!(late.1["actual"], "2");
    // A repetition of the same commit is refused too: the caller sees that its position holds.
    let again = commit(&daemon, "c", json!({"position": "2", "from": "0"})).await;
    assert_eq!((again.0, &again.1["actual"]), (409, &json!("2")));
    let back = commit(&daemon, "c", json!({"position": "1"})).await;
    is_problem(&back, 409, "consumer_moved", "back without a reset");
    let same = commit(&daemon, "c", json!({"position": "2"})).await;
    assert_eq!(same.0, 200, "{same:?}");
    let beyond = commit(&daemon, "c", json!({"position": "999999"})).await;
    is_problem(&beyond, 422, "validation_failed", "beyond the head");
    assert_eq!(beyond.1["errors"][0]["pointer"], "/position");
    for (to, expected) in [("4", "4"), ("oldest", "0"), ("1970-01-01T00:00:00Z", "0")] {
        let reset = done(&daemon, "POST", "/consumers/c/reset", json!({"to": to})).await;
        assert_eq!(reset["position"], expected, "{to}");
    }
    let now = done(&daemon, "POST", "/consumers/c/reset", json!({"to": "now"})).await;
    assert_eq!(now["lag"]["events"], 0, "{now}");
    let later = done(&daemon, "POST", "/consumers/c/reset", json!({"to": "9999-01-01T00:00:00Z"})).await;
    assert!(later["position"].as_str().unwrap().parse::<u64>().unwrap() >= 5, "{later}");
}

#[tokio::test]
async fn concurrent_commits_from_one_position_have_one_winner() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(keyed(data.path()).await);
    for _ in 0..20 {
        publish(&daemon, json!({})).await;
    }
    done(&daemon, "PUT", "/consumers/c", json!({})).await;
    for step in 1..=5_u64 {
        let (from, to) = ((step - 1).to_string(), step.to_string());
        let commits: Vec<_> = (0..8)
            .map(|_| {
                let (daemon, body) = (daemon.clone(), json!({"position": to, "from": from}));
                tokio::spawn(async move { commit(&daemon, "c", body).await.0 })
            })
            .collect();
        let mut won = 0;
        for status in commits {
            let status = status.await.unwrap();
            assert!([200, 409].contains(&status), "{status}");
            won += usize::from(status == 200);
        }
        assert_eq!(won, 1, "step {step}");
    }
}

#[tokio::test]
async fn invalid_consumers_are_rejected_with_a_pointer() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for (body, pointer) in [
        (json!({"types": []}), "/types"),
        (json!({"types": ["a..b"]}), "/types/0"),
        (json!({"stream": "a", "streamPrefix": "b"}), "/streamPrefix"),
        (json!({"stream": ""}), "/stream"),
        (json!({"streamPrefix": "a\nb"}), "/streamPrefix"),
        (json!({"start": "yesterday"}), "/start"),
        (json!({"start": -1}), "/start"),
        (json!({"start": "77"}), "/start"),
        (json!({"tenant": "a b"}), "/tenant"),
        (json!({"description": "x".repeat(1_025)}), "/description"),
        (json!({"name": "c"}), "/name"),
    ] {
        let answer = ask(&daemon, "PUT", "/consumers/c", body.clone()).await;
        is_problem(&answer, 422, "validation_failed", &body.to_string());
        assert_eq!(answer.1["errors"][0]["pointer"], pointer, "{body}: {}", answer.1);
    }
    for name in ["a%20b", "a%2Fb", &"x".repeat(65), "%C3%A4"] {
        let answer = ask(&daemon, "PUT", &format!("/consumers/{name}"), json!({})).await;
        is_problem(&answer, 422, "validation_failed", name);
        assert_eq!(answer.1["errors"][0]["parameter"], "name", "{name}: {}", answer.1);
    }
    done(&daemon, "PUT", "/consumers/c", json!({})).await;
    for position in [json!(""), json!("-1"), json!(-1), json!(1.5), json!("1e3"), json!([1]), Value::Null] {
        let answer = commit(&daemon, "c", json!({"position": position})).await;
        is_problem(&answer, 422, "validation_failed", &position.to_string());
        assert_eq!(answer.1["errors"][0]["pointer"], "/position", "{position}: {}", answer.1);
    }
    for query in ["waitPosition=x", "wait=1s", "waitPosition=1&wait=2m", "waitPosition=1&wait=x"] {
        let answer = ask(&daemon, "GET", &format!("/consumers/c?{query}"), Value::Null).await;
        is_problem(&answer, 422, "validation_failed", query);
    }
}

#[tokio::test]
async fn names_are_separate_per_tenant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let (acme, other) =
        (key(&daemon, "admin", Some("acme")).await, key(&daemon, "admin", Some("other")).await);
    publish(&daemon, json!({"tenant": "acme"})).await;
    publish(&daemon, json!({"tenant": "acme"})).await;
    let (status, made) = call_as(&daemon, &acme, "PUT", "/consumers/search", "{}").await;
    assert_eq!((status, &made["tenant"], &made["lag"]["events"]), (201, &json!("acme"), &json!(2)), "{made}");
    // Foreign and unknown names get the same answer.
    for (method, path, body) in [
        ("GET", "", ""),
        ("GET", "/events", ""),
        ("DELETE", "", ""),
        ("POST", "/commit", r#"{"position":"1"}"#),
        ("POST", "/reset", r#"{"to":"now"}"#),
    ] {
        let foreign = call_as(&daemon, &other, method, &format!("/consumers/search{path}"), body).await;
        let unknown = call_as(&daemon, &other, method, &format!("/consumers/nobody{path}"), body).await;
        is_problem(&foreign, 404, "not_found", path);
        assert_eq!(
            foreign.1.to_string().replace("search", "nobody"),
            unknown.1.to_string(),
            "{method} {path}"
        );
        let named = format!("/consumers/search{path}?tenant=acme");
        is_problem(&call_as(&daemon, &other, method, &named, body).await, 403, "forbidden", &named);
    }
    assert_eq!(list(&call_as(&daemon, &other, "GET", "/consumers", "").await.1).len(), 0);
    let own = call_as(&daemon, &other, "PUT", "/consumers/search", "{}").await;
    assert_eq!((own.0, &own.1["lag"]["events"]), (201, &json!(0)), "{own:?}");
    is_problem(
        &call_as(&daemon, &other, "PUT", "/consumers/x", r#"{"tenant":"acme"}"#).await,
        403,
        "forbidden",
        "another tenant",
    );
    // The operator names the tenant, unless the name is unique.
    let answer = ask(&daemon, "GET", "/consumers/search", Value::Null).await;
    is_problem(&answer, 404, "not_found", "two tenants");
    assert!(text(&answer.1, "detail").contains("?tenant="), "{}", answer.1);
    let shown = done(&daemon, "GET", "/consumers/search?tenant=acme", Value::Null).await;
    assert_eq!(shown["tenant"], "acme");
    assert_eq!(call_as(&daemon, &other, "DELETE", "/consumers/search", "").await.0, 204);
    assert_eq!(done(&daemon, "GET", "/consumers/search", Value::Null).await["tenant"], "acme");
    // The operator's own consumer reads all tenants.
    let all = done(&daemon, "PUT", "/consumers/search", json!({})).await;
    assert_eq!((&all["tenant"], &all["lag"]["events"]), (&Value::Null, &json!(2)), "{all}");
    let page = done(&daemon, "GET", "/consumers?limit=1", Value::Null).await;
    assert_eq!((list(&page).len(), &page["data"][0]["tenant"]), (1, &Value::Null));
    let path = format!("/consumers?limit=1&cursor={}", text(&page, "next"));
    let next = done(&daemon, "GET", &path, Value::Null).await;
    assert_eq!((&next["data"][0]["tenant"], &next["next"]), (&json!("acme"), &Value::Null), "{next}");
    // A tenant's deletion ends its consumers.
    let deleted = done(&daemon, "DELETE", "/tenants/acme", json!({"confirm": "acme"})).await;
    assert_eq!(deleted["consumers"], 1, "{deleted}");
    assert_eq!(list(&done(&daemon, "GET", "/consumers?tenant=acme", Value::Null).await).len(), 0);
}

#[tokio::test]
async fn number_of_consumers_is_limited_per_tenant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    done(&daemon, "PUT", "/tenants/acme", json!({"quotas": {"consumers": 2}})).await;
    let acme = key(&daemon, "admin", Some("acme")).await;
    for name in ["a", "b", "a"] {
        let (status, answer) = call_as(&daemon, &acme, "PUT", &format!("/consumers/{name}"), "{}").await;
        assert!([200, 201].contains(&status), "{answer}");
    }
    let third = call_as(&daemon, &acme, "PUT", "/consumers/c", "{}").await;
    is_problem(&third, 403, "quota_exceeded", "a third");
    assert_eq!((&third.1["quota"], &third.1["limit"]), (&json!("consumers"), &json!(2)));
    let usage = done(&daemon, "GET", "/tenants/acme", Value::Null).await["usage"].take();
    assert_eq!(usage["consumers"], 2, "{usage}");
}

#[tokio::test]
async fn worker_commits_and_reads_but_changes_no_consumer() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    publish(&daemon, json!({})).await;
    done(&daemon, "PUT", "/consumers/c", json!({"tenant": "default"})).await;
    let worker = key(&daemon, "worker", Some("default")).await;
    let viewer = key(&daemon, "viewer", Some("default")).await;
    let allowed = [
        ("GET", "/consumers/c", ""),
        ("GET", "/consumers/c/events", ""),
        ("GET", "/consumers", ""),
        ("GET", "/events", ""),
        ("POST", "/consumers/c/commit", r#"{"position":"1"}"#),
    ];
    for (method, path, body) in allowed {
        assert_eq!(call_as(&daemon, &worker, method, path, body).await.0, 200, "{path}");
    }
    let refused = [
        ("PUT", "/consumers/c", "{}"),
        ("DELETE", "/consumers/c", ""),
        ("POST", "/consumers/c/reset", r#"{"to":"now"}"#),
        ("POST", "/events", r#"{"type":"a","data":1}"#),
        ("GET", "/endpoints", ""),
    ];
    for (method, path, body) in refused {
        is_problem(&call_as(&daemon, &worker, method, path, body).await, 403, "forbidden", path);
    }
    let commit = call_as(&daemon, &viewer, "POST", "/consumers/c/commit", r#"{"position":"1"}"#).await;
    is_problem(&commit, 403, "forbidden", "a viewer commits");
}

#[tokio::test]
async fn wait_ends_when_the_consumer_has_come() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(keyed(data.path()).await);
    done(&daemon, "PUT", "/consumers/search", json!({})).await;
    let position = publish(&daemon, json!({})).await;
    let path = format!("/consumers/search?waitPosition={position}");
    let started = Instant::now();
    let shown = done(&daemon, "GET", &format!("{path}&wait=100ms"), Value::Null).await;
    assert!(shown["position"] == "0" && started.elapsed() >= Duration::from_millis(100), "{shown}");
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let (daemon, path) = (daemon.clone(), format!("{path}&wait=60s"));
            tokio::spawn(async move { done(&daemon, "GET", &path, Value::Null).await })
        })
        .collect();
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting >= 10.0).await;
    assert!(waiting.iter().all(|answer| !answer.is_finished()), "answered before the commit");
    assert_eq!(commit(&daemon, "search", json!({"position": position})).await.0, 200);
    for answer in waiting {
        assert_eq!(answer.await.unwrap()["position"], position.to_string());
    }
    // At once, when it is there already.
    let started = Instant::now();
    done(&daemon, "GET", &format!("{path}&wait=60s"), Value::Null).await;
    assert!(started.elapsed() < Duration::from_secs(20));
    // The end of the consumer ends the wait.
    let gone = {
        let daemon = daemon.clone();
        tokio::spawn(async move {
            ask(&daemon, "GET", "/consumers/search?waitPosition=999999&wait=60s", Value::Null).await
        })
    };
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting >= 1.0).await;
    assert_eq!(ask(&daemon, "DELETE", "/consumers/search", Value::Null).await.0, 204);
    is_problem(&gone.await.unwrap(), 404, "not_found", "deleted");
}

#[tokio::test]
async fn answers_name_the_position_that_they_reflect() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(keyed(data.path()).await);
    let bearer = format!("Bearer {ADMIN}");
    let get = async |path: &str, more: &[(&str, &str)]| {
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend(more);
        daemon.call("GET", path, &headers, "").await
    };
    let published = done(&daemon, "POST", "/events", json!({"type": "a", "data": 1})).await;
    let position = published["position"].as_u64().unwrap();
    let event = format!("/events/{}", text(&published, "id"));
    for path in [
        event.as_str(),
        "/events",
        "/endpoints",
        "/deliveries",
        "/dead-letters",
        "/keys",
        "/tenants",
        "/stats",
        "/lanes",
        "/consumers",
        "/projections",
    ] {
        let (status, answer, headers) = get(path, &[("balto-wait-position", &position.to_string())]).await;
        assert_eq!(status, 200, "{path}: {answer}");
        let reflected: u64 = headers["balto-position"].parse().unwrap();
        assert!(reflected >= position, "{path}: {reflected} is before {position}");
    }
    let late = get("/events", &[("balto-wait-position", "999999"), ("balto-wait", "50ms")]).await;
    is_problem(&(late.0, late.1), 503, "not_caught_up", "a position of the future");
    assert!(late.2.contains_key("retry-after"));
    // The request that waits is answered when the position exists.
    let wanted = (position + 1).to_string();
    let waiting = {
        let (daemon, bearer, wanted) = (daemon.clone(), bearer.clone(), wanted.clone());
        tokio::spawn(async move {
            let headers =
                [("authorization", bearer.as_str()), ("balto-wait-position", &wanted), ("balto-wait", "30s")];
            daemon.call("GET", "/events", &headers, "").await
        })
    };
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting >= 1.0).await;
    publish(&daemon, json!({})).await;
    let (status, answer, headers) = waiting.await.unwrap();
    assert_eq!((status, list(&answer).len()), (200, 2), "{answer}");
    assert!(headers["balto-position"].parse::<u64>().unwrap() > position);
    for (name, value) in [
        ("balto-wait-position", "x"),
        ("balto-wait-position", "-1"),
        ("balto-wait", "31s"),
        ("balto-wait", "x"),
    ] {
        let (status, answer, _) = get("/events", &[(name, value)]).await;
        is_problem(&(status, answer.clone()), 422, "validation_failed", value);
        assert_eq!(answer["errors"][0]["header"], name, "{answer}");
    }
}

#[tokio::test]
async fn projections_show_the_state_and_the_consumers() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let first = publish(&daemon, json!({"tenant": "acme"})).await;
    let last = publish(&daemon, json!({"tenant": "acme"})).await;
    done(&daemon, "PUT", "/consumers/search", json!({"tenant": "acme"})).await;
    assert_eq!(commit(&daemon, "search", json!({"position": first})).await.0, 200);
    let shown = done(&daemon, "GET", "/projections", Value::Null).await;
    let [state, consumer] = &list(&shown)[..] else { panic!("{shown}") };
    assert_eq!((&state["name"], &state["kind"]), (&json!("state"), &json!("state")));
    assert!(state["position"].as_u64().unwrap() >= last, "{state}");
    assert_eq!(state["lag"], json!({"records": 0, "seconds": 0.0}));
    assert_eq!((&state["rows"]["acceptedEvents"], &state["rows"]["consumers"]), (&json!(2), &json!(1)));
    assert_eq!((&consumer["name"], &consumer["kind"]), (&json!("search"), &json!("consumer")));
    assert_eq!((&consumer["position"], &consumer["tenant"]), (&json!(first), &json!("acme")));
    assert!(consumer["lag"]["records"].as_u64().unwrap() >= 1, "{consumer}");
    done(&daemon, "PUT", "/consumers/audit", json!({"tenant": "acme"})).await;
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = done(&daemon, "GET", &format!("/projections?limit=1{cursor}"), Value::Null).await;
        assert_eq!(list(&page).len(), 1, "{page}");
        names.push(text(&list(&page)[0], "name"));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(names, ["state", "audit", "search"]);
    let other = key(&daemon, "viewer", Some("other")).await;
    let (status, shown) = call_as(&daemon, &other, "GET", "/projections", "").await;
    assert_eq!((status, list(&shown).len()), (200, 1), "{shown}");
    assert!(shown["data"][0].get("rows").is_none(), "numbers of other tenants: {shown}");
}

#[tokio::test]
async fn consumer_reads_each_event_once_in_order() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(keyed(data.path()).await);
    done(&daemon, "PUT", "/consumers/c", json!({"types": ["pet.*"]})).await;
    let mut published = Vec::new();
    for number in 0..30 {
        let kind = if number % 3 == 0 { "order.paid" } else { "pet.created" };
        let position = publish(&daemon, json!({"type": kind})).await;
        if kind == "pet.created" {
            published.push(position);
        }
    }
    let mut read = Vec::new();
    let mut from = "0".to_owned();
    loop {
        let page = done(&daemon, "GET", "/consumers/c/events?limit=7", Value::Null).await;
        read.extend(list(&page).iter().map(|event| event["position"].as_u64().unwrap()));
        // Without a commit the next page is the same.
        let again = done(&daemon, "GET", "/consumers/c/events?limit=7", Value::Null).await;
        assert_eq!(again["data"], page["data"]);
        let next = text(&page, "next");
        assert_eq!(commit(&daemon, "c", json!({"position": next, "from": from})).await.0, 200);
        from = next;
        if page["caughtUp"] == true {
            break;
        }
    }
    assert_eq!(read, published);
    // The next event ends a wait, and the open request is counted.
    let waiting = {
        let daemon = daemon.clone();
        tokio::spawn(async move { done(&daemon, "GET", "/consumers/c/events?wait=60s", Value::Null).await })
    };
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting >= 1.0).await;
    assert_eq!(done(&daemon, "GET", "/consumers/c", Value::Null).await["connections"], 1);
    let position = publish(&daemon, json!({})).await;
    assert_eq!(waiting.await.unwrap()["data"][0]["position"], position);
    let shown = done(&daemon, "GET", "/consumers/c", Value::Null).await;
    assert_eq!((&shown["connections"], &shown["lag"]["events"]), (&json!(0), &json!(1)), "{shown}");
    for query in ["limit=0", "limit=1001", "wait=2m", "after=1"] {
        let answer = ask(&daemon, "GET", &format!("/consumers/c/events?{query}"), Value::Null).await;
        is_problem(&answer, 422, "validation_failed", query);
    }
    is_problem(&ask(&daemon, "GET", "/consumers/x/events", Value::Null).await, 404, "not_found", "unknown");
}

/// `GET /v1/feed?consumer=` is the feed of the consumer.
#[tokio::test]
async fn feed_reads_a_consumer_by_name() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let first = publish(&daemon, json!({"type": "pet.created"})).await;
    let second = publish(&daemon, json!({"type": "pet.created"})).await;
    publish(&daemon, json!({"type": "order.paid"})).await;
    let body = json!({"types": ["pet.*"], "tenant": "default"});
    assert_eq!(ask(&daemon, "PUT", "/consumers/search", body).await.0, 201);
    assert_eq!(commit(&daemon, "search", json!({"position": first})).await.0, 200);
    let positions = |page: &Value| -> Vec<u64> {
        list(page).iter().map(|event| event["position"].as_u64().unwrap()).collect()
    };
    for path in ["/feed?consumer=search", "/feed?consumer=search&tenant=default&limit=5&wait=1s"] {
        assert_eq!(positions(&done(&daemon, "GET", path, Value::Null).await), [second], "{path}");
    }
    for (query, name) in [
        ("consumer=search&after=0", "after"),
        ("consumer=search&types=a", "types"),
        ("consumer=search&stream=a", "stream"),
        ("consumer=search&streamPrefix=a", "streamPrefix"),
        ("consumer=search&versions=latest", "versions"),
        ("consumer=a%20b", "consumer"),
    ] {
        let answer = ask(&daemon, "GET", &format!("/feed?{query}"), Value::Null).await;
        is_problem(&answer, 422, "validation_failed", query);
        assert_eq!(answer.1["errors"][0]["parameter"], name, "{}", answer.1);
    }
    for query in ["consumer=none", "consumer=search&tenant=other"] {
        let answer = ask(&daemon, "GET", &format!("/feed?{query}"), Value::Null).await;
        is_problem(&answer, 404, "not_found", query);
    }
}
