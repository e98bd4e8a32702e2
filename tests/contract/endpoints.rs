//! Endpoints: create, change, pause, test, read.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver, answer};
use super::{endpoint, is_problem, list, publish, settled, text};

#[tokio::test]
async fn endpoint_shows_its_settings_always_and_its_secret_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let secret = "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy";
    let settings = json!({"url": "https://example.com/hooks", "tenant": "acme", "description": "d",
        "eventTypes": ["order.*", "pet.#"], "headers": {"X-Env": "prod"},
        "rateLimit": {"limit": 100, "per": "1s", "burst": 100}, "maxInFlight": 16, "timeout": "15s", "ordering": "none",
        "retry": {"initial": "5s", "multiplier": 3.0, "maxInterval": "6h", "maxAttempts": 12, "maxAge": "72h", "jitter": 0.2},
        "format": "standard", "signature": "standard", "metadata": {"a": {"b": 1}}});
    let mut body = settings.clone();
    body["secret"] = json!(secret);
    let (status, made, headers) = daemon.call("POST", "/endpoints", &[], &body.to_string()).await;
    let path = format!("/endpoints/{}", text(&made, "id"));
    assert_eq!((status, headers["location"].as_str()), (201, format!("/v1{path}").as_str()));
    assert_eq!((&made["secret"], headers["cache-control"].as_str()), (&json!(secret), "no-store"));
    let shown = daemon.get(&path).await;
    for (name, value) in settings.as_object().unwrap() {
        assert_eq!((&made[name], &shown[name]), (value, value), "{name}");
    }
    assert_eq!(
        (&shown["status"], &shown["disabledReason"], &shown["disabledAt"]),
        (&json!("active"), &Value::Null, &Value::Null)
    );
    for answer in [&shown, &daemon.get("/endpoints").await] {
        assert!(!answer.to_string().contains("whsec_"), "{answer}");
    }
    assert_eq!(daemon.get(&format!("{path}/secret")).await["secret"], secret);
}

#[tokio::test]
async fn endpoint_needs_only_a_url_and_has_documented_defaults() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let made = daemon.post("/endpoints", r#"{"url":"https://no-such-host.invalid/"}"#).await;
    let expected = json!({"tenant": "default", "description": "", "eventTypes": ["#"], "headers": {}, "rateLimit": null,
        "maxInFlight": 16, "timeout": "15s", "ordering": "none", "format": "standard", "signature": "standard", "metadata": {},
        "retry": {"initial": "5s", "multiplier": 3.0, "maxInterval": "6h", "maxAttempts": 12, "maxAge": "72h", "jitter": 0.2}});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&made[name], value, "{name}");
    }
    assert!(text(&made, "secret").starts_with("whsec_"), "a secret is generated: {made}");
    let schedule =
        json!({"url": "https://example.com/", "retry": {"schedule": ["5s", "5m", "30m"]}}).to_string();
    assert_eq!(daemon.post("/endpoints", &schedule).await["retry"], json!({"schedule": ["5s", "5m", "30m"]}));
}

#[tokio::test]
async fn invalid_endpoint_is_refused_with_pointers_and_not_stored() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let rows = [
        (json!({"url": null}), "validation_failed", "/url"),
        (json!({"url": "nope"}), "validation_failed", "/url"),
        (json!({"url": ""}), "validation_failed", "/url"),
        (json!({"url": "example.com/hooks"}), "validation_failed", "/url"),
        (json!({"url": "https:example.com"}), "validation_failed", "/url"),
        (json!({"url": "https:///hooks"}), "validation_failed", "/url"),
        (json!({"url": "https://exa mple.com/"}), "validation_failed", "/url"),
        (json!({"url": "https://example.com/\n"}), "validation_failed", "/url"),
        (json!({"url": "https://example..com/"}), "validation_failed", "/url"),
        (json!({"url": "https://example.com:99999/"}), "validation_failed", "/url"),
        (json!({"url": "https://example.com/#part"}), "forbidden_url", "/url"),
        (json!({"url": "https://example.com:22/"}), "forbidden_url", "/url"),
        (json!({"url": "ftp://example.com/"}), "forbidden_url", "/url"),
        (json!({"url": "https://user:password@example.com/"}), "forbidden_url", "/url"),
        (json!({"url": "http://169.254.169.254/"}), "forbidden_url", "/url"),
        (json!({"url": "https://10.0.0.1/"}), "forbidden_url", "/url"),
        (json!({"eventTypes": []}), "validation_failed", "/eventTypes"),
        (json!({"eventTypes": ["a", "a..b"]}), "validation_failed", "/eventTypes/1"),
        (json!({"timeout": "15 miles"}), "validation_failed", "/timeout"),
        (json!({"timeout": "61s"}), "validation_failed", "/timeout"),
        (json!({"maxInFlight": 0}), "validation_failed", "/maxInFlight"),
        (json!({"rateLimit": {}}), "validation_failed", "/rateLimit/limit"),
        (json!({"rateLimit": {"limit": 0}}), "validation_failed", "/rateLimit/limit"),
        (json!({"rateLimit": [5]}), "validation_failed", "/rateLimit"),
        (json!({"ordering": "strict"}), "validation_failed", "/ordering"),
        (json!({"format": "xml"}), "validation_failed", "/format"),
        (json!({"signature": "hmac"}), "validation_failed", "/signature"),
        (json!({"retry": {"schedule": []}}), "validation_failed", "/retry/schedule"),
        (json!({"retry": {"schedule": ["1s"], "maxAttempts": 2}}), "validation_failed", "/retry"),
        (json!({"retry": {"jitter": 2}}), "validation_failed", "/retry/jitter"),
        (json!({"retry": {"zz": 2}}), "validation_failed", "/retry/zz"),
        (json!({"secret": "whsec_c2hvcnQ="}), "validation_failed", "/secret"),
        (json!({"headers": {"Host": "x"}}), "validation_failed", "/headers/Host"),
        (json!({"headers": {"X-A": "x".repeat(4_097)}}), "validation_failed", "/headers/X-A"),
        (
            json!({"sensitiveHeaders": {"X-A": "x".repeat(4_097)}}),
            "validation_failed",
            "/sensitiveHeaders/X-A",
        ),
        (json!({"status": "disabled"}), "validation_failed", "/status"),
        (json!({"id": "ep_x"}), "validation_failed", "/id"),
    ];
    for (mut body, code, pointer) in rows {
        if body.get("url").is_none() {
            body["url"] = json!("https://example.com/");
        }
        let (status, problem, _) = daemon.call("POST", "/endpoints", &[], &body.to_string()).await;
        is_problem(&(status, problem.clone()), 422, code, &body.to_string());
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
        let errors = problem["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1, "one fault, several errors: {problem}");
    }
    let (_, problem, _) = daemon.call("POST", "/endpoints", &[], r#"{"url":"nope"}"#).await;
    assert!(text(&problem, "detail").contains("not an absolute URL"), "{problem}");
    assert_eq!(list(&daemon.get("/endpoints").await).len(), 0);
}

#[tokio::test]
async fn merge_patch_changes_named_members_and_null_resets() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let more = json!({"description": "d", "rateLimit": {"limit": 5}, "headers": {"A": "1", "B": "2"},
        "metadata": {"a": 1, "b": {"c": 2}}, "timeout": "3s"});
    let made = endpoint(&daemon, &receiver, more).await;
    let path = format!("/endpoints/{}", text(&made, "id"));
    let patch = |body: Value| {
        let (daemon, path) = (&daemon, &path);
        async move {
            let headers = [("content-type", "application/merge-patch+json")];
            let (status, answer, _) = daemon.call("PATCH", path, &headers, &body.to_string()).await;
            (status, answer)
        }
    };
    // Without a burst, a change of the limit changes it, too.
    let (_, limited) = patch(json!({"rateLimit": {"limit": 7}})).await;
    assert_eq!(limited["rateLimit"], json!({"limit": 7, "per": "1s", "burst": 7}));
    patch(json!({"rateLimit": {"limit": 5}})).await;
    let (status, changed) =
        patch(json!({"headers": {"A": null, "C": "3"}, "metadata": {"b": null}, "rateLimit": {"burst": 9}}))
            .await;
    assert_eq!((status, &changed["headers"]), (200, &json!({"B": "2", "C": "3"})));
    assert_eq!((&changed["metadata"], &changed["timeout"]), (&json!({"a": 1}), &json!("3s")));
    assert_eq!(changed["rateLimit"], json!({"limit": 5, "per": "1s", "burst": 9}));
    let (_, limited) = patch(json!({"rateLimit": {"limit": 6}})).await;
    assert_eq!(limited["rateLimit"], json!({"limit": 6, "per": "1s", "burst": 9}));
    let (_, reset) = patch(
        json!({"description": null, "timeout": null, "rateLimit": null, "retry": null, "eventTypes": null}),
    )
    .await;
    assert_eq!(
        (&reset["description"], &reset["timeout"], &reset["rateLimit"]),
        (&json!(""), &json!("15s"), &Value::Null)
    );
    assert_eq!((&reset["retry"]["maxAttempts"], &reset["eventTypes"]), (&json!(12), &json!(["#"])));
    assert_eq!(patch(json!({})).await.1, reset, "nothing named, nothing changed");
    for (body, pointer) in [
        (json!({"url": null}), "/url"),
        (json!({"tenant": "x"}), "/tenant"),
        (json!({"secret": "whsec_x"}), "/secret"),
    ] {
        let refused = patch(body).await;
        is_problem(&refused, 422, "validation_failed", pointer);
        assert_eq!(refused.1["errors"][0]["pointer"], pointer, "{refused:?}");
    }
    is_problem(&patch(json!({"url": "http://10.0.0.1/"})).await, 422, "forbidden_url", "a change of the URL");
    assert_eq!(daemon.get(&path).await, reset);
}

#[tokio::test]
async fn deleted_endpoint_is_gone_and_its_deliveries_remain() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let made = endpoint(&daemon, &receiver, json!({})).await;
    let id = text(&made, "id");
    let done = publish(&daemon, json!({"type": "a", "data": 1})).await;
    settled(&daemon, &done).await;
    daemon.post(&format!("/endpoints/{id}/pause"), "").await;
    let left = publish(&daemon, json!({"type": "a", "data": 2})).await;
    let path = format!("/endpoints/{id}");
    assert_eq!(daemon.call("DELETE", &path, &[], "").await.0, 204);
    for (method, path) in [("DELETE", &path), ("GET", &path), ("POST", &format!("{path}/resume"))] {
        let (status, problem, _) = daemon.call(method, path, &[], "").await;
        is_problem(&(status, problem), 404, "not_found", method);
    }
    assert_eq!(settled(&daemon, &left).await["reason"], "endpointDeleted");
    // The same holds after a restart.
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = Daemon::start(data.path()).await;
    let deliveries = daemon.get(&format!("/deliveries?endpointId={id}")).await;
    assert_eq!(list(&deliveries).len(), 2, "{deliveries}");
    assert!(list(&deliveries).iter().all(|delivery| delivery["endpointId"] == id.as_str()), "{deliveries}");
    let letters = daemon.get(&format!("/dead-letters?endpointId={id}")).await;
    let letter = text(&letters["data"][0], "deliveryId");
    let (status, problem, _) = daemon.call("POST", &format!("/dead-letters/{letter}/redrive"), &[], "").await;
    is_problem(&(status, problem), 409, "conflict", "there is nowhere to send it");
    let filter = json!({"endpointId": id}).to_string();
    assert_eq!(daemon.post("/dead-letters/redrive", &filter).await["count"], 0);
    assert_eq!(daemon.post("/dead-letters/purge", &filter).await["count"], 1);
    assert_eq!(list(&daemon.get("/dead-letters").await).len(), 0);
    assert_eq!(list(&daemon.get("/deliveries?endpointId=ep_nobody").await).len(), 0);
}

#[tokio::test]
async fn endpoints_are_listed_by_tenant_and_status() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (good, gone) = (Receiver::status(200).await, Receiver::status(410).await);
    let active = endpoint(&daemon, &good, json!({"eventTypes": ["x"]})).await;
    let paused = endpoint(&daemon, &good, json!({"tenant": "acme", "eventTypes": ["x"]})).await;
    daemon.post(&format!("/endpoints/{}/pause", text(&paused, "id")), "{}").await;
    let disabled = endpoint(&daemon, &gone, json!({"eventTypes": ["a"]})).await;
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    daemon.until("/endpoints?status=disabled", |found| list(found).len() == 1).await;
    for (query, wanted) in [
        ("status=active", &active),
        ("status=paused", &paused),
        ("status=disabled", &disabled),
        ("tenant=acme", &paused),
    ] {
        let found = daemon.get(&format!("/endpoints?{query}")).await;
        assert_eq!((list(&found).len(), &found["data"][0]["id"]), (1, &wanted["id"]), "{query}: {found}");
    }
    let (status, problem, _) =
        daemon.call("POST", &format!("/endpoints/{}/pause", text(&disabled, "id")), &[], "").await;
    is_problem(&(status, problem), 409, "conflict", "it is disabled");
    let shown = daemon.post(&format!("/endpoints/{}/resume", text(&disabled, "id")), "").await;
    assert_eq!((&shown["status"], &shown["disabledAt"]), (&json!("active"), &Value::Null), "{shown}");
}

#[tokio::test]
async fn test_event_goes_to_this_endpoint_only() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (mine, other) = (Receiver::status(200).await, Receiver::status(200).await);
    let made = endpoint(&daemon, &mine, json!({"eventTypes": ["never"]})).await;
    endpoint(&daemon, &other, json!({})).await;
    let (status, event, headers) =
        daemon.call("POST", &format!("/endpoints/{}/test", text(&made, "id")), &[], "").await;
    assert_eq!((status, &event["deliveries"]), (202, &json!(1)), "{event}");
    assert_eq!(headers["location"], text(&event, "statusUrl"));
    assert_eq!(settled(&daemon, &event).await["endpointId"], made["id"]);
    assert_eq!((mine.got().len(), other.got().len()), (1, 0));
}

#[tokio::test]
async fn statistics_count_the_attempts_in_their_window() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|number, _| answer(if number < 3 { 500 } else { 200 })).await;
    let made = endpoint(&daemon, &receiver, json!({"maxInFlight": 1})).await;
    let path = format!("/endpoints/{}", text(&made, "id"));
    for number in 0..3 {
        let event = publish(&daemon, json!({"type": "a", "data": number})).await;
        settled(&daemon, &event).await;
    }
    daemon.post(&format!("{path}/pause"), "").await;
    publish(&daemon, json!({"type": "a", "data": 9})).await;
    let stats = daemon.get(&format!("{path}/stats")).await;
    let counts = ["attempts", "delivered", "failedAttempts", "dead", "backlog"]
        .map(|name| stats[name].as_u64().unwrap());
    assert_eq!(counts, [5, 2, 3, 1, 1], "{stats}");
    assert_eq!(stats["successRate"], 0.4);
    assert!(stats["latency"]["p99"].is_string() && stats["oldestPendingAt"].is_string(), "{stats}");
    let before =
        daemon.get(&format!("{path}/stats?since=2026-01-01T00:00:00Z&until=2026-01-02T00:00:00Z")).await;
    assert_eq!(
        (&before["attempts"], &before["successRate"], &before["backlog"]),
        (&json!(0), &Value::Null, &json!(1))
    );
    let (status, problem, _) =
        daemon.call("GET", &format!("{path}/stats?since=2100-01-01T00:00:00Z"), &[], "").await;
    is_problem(&(status, problem), 422, "validation_failed", "a window that ends before it begins");
}

#[tokio::test]
async fn replay_sends_older_events_to_a_newer_endpoint() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for number in 0..5 {
        publish(&daemon, json!({"type": if number < 3 { "a" } else { "b" }, "data": number})).await;
    }
    publish(&daemon, json!({"type": "a", "data": 99, "tenant": "acme"})).await;
    let receiver = Receiver::status(200).await;
    let made = endpoint(&daemon, &receiver, json!({})).await;
    let path = format!("/endpoints/{}/replay", text(&made, "id"));
    let replay = async |more: Value| {
        let mut body = json!({"since": "2026-01-01T00:00:00Z"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer, _) = daemon.call("POST", &path, &[], &body.to_string()).await;
        assert_eq!(status, 202, "{answer}");
        answer["count"].as_u64().unwrap()
    };
    assert_eq!(replay(json!({"until": "2026-01-02T00:00:00Z"})).await, 0);
    assert_eq!(replay(json!({"eventTypes": ["b"]})).await, 2);
    receiver.until(2).await;
    daemon.until("/events?status=pending", |events| list(events).is_empty()).await;
    assert_eq!(replay(json!({"onlyUndelivered": true})).await, 3, "two have it already");
    let got = receiver.until(5).await;
    let order: Vec<_> = got[2..].iter().map(|got| got.body.rsplit(':').next().unwrap().to_owned()).collect();
    let mut sorted = order.clone();
    sorted.sort();
    assert_eq!(sorted, ["0}", "1}", "2}"]);
    daemon.until("/events?status=pending", |events| list(events).is_empty()).await;
    assert_eq!(replay(json!({"onlyUndelivered": false})).await, 5);
}

/// An endpoint without a policy follows the configuration, also after a reload.
#[tokio::test]
async fn reload_reaches_endpoints_without_a_policy() {
    let below = tempfile::tempdir().unwrap();
    let file = below.path().join("balto.toml");
    let configure = |in_flight: u32, timeout: &str, attempts: u32| {
        let text = format!(
            "[delivery]\nendpoint_max_in_flight = {in_flight}\ntimeout = \"{timeout}\"\n[retry]\nmax_attempts = {attempts}\n"
        );
        std::fs::write(&file, text).unwrap();
    };
    configure(7, "9s", 5);
    let daemon =
        Daemon::start_with(&below.path().join("data"), &["--dev", "--config", file.to_str().unwrap()]).await;
    let receiver = Receiver::status(500).await;
    let open = endpoint(&daemon, &receiver, json!({"retry": null})).await;
    let own = endpoint(
        &daemon,
        &receiver,
        json!({"maxInFlight": 3, "timeout": "4s", "retry": {"maxAttempts": 2}, "eventTypes": ["none"]}),
    )
    .await;
    let path = |endpoint: &Value| format!("/endpoints/{}", text(endpoint, "id"));
    let policy = |endpoint: &Value| {
        (
            endpoint["maxInFlight"].clone(),
            endpoint["timeout"].clone(),
            endpoint["retry"]["maxAttempts"].clone(),
        )
    };
    assert_eq!(policy(&open), (json!(7), json!("9s"), json!(5)));
    // A patch of other members, or with an empty policy, does not give the endpoint its own policy.
    let change = r#"{"description": "x", "retry": {}}"#;
    let (status, changed, _) = daemon.call("PATCH", &path(&open), &[], change).await;
    assert_eq!((status, policy(&changed)), (200, policy(&open)));
    // A key that needs a restart does not keep the others from changing.
    configure(8, "10s", 1);
    let changed = std::fs::read_to_string(&file).unwrap() + "[server]\napi_listen = \"127.0.0.1:1\"\n";
    std::fs::write(&file, changed).unwrap();
    daemon.signal("HUP");
    let new = (json!(8), json!("10s"), json!(1));
    daemon.until(&path(&open), |shown| policy(shown) == new).await;
    assert_eq!(policy(&daemon.get(&path(&own)).await), policy(&own));
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    let delivery = settled(&daemon, &event).await;
    assert_eq!((&delivery["status"], delivery["attempts"].as_array().unwrap().len()), (&json!("dead"), 1));
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let hanging = daemon.post("/endpoints", &json!({"url": url, "eventTypes": ["hang"]}).to_string()).await;
    for number in 0..20 {
        publish(&daemon, json!({"type": "hang", "data": number})).await;
    }
    let lane = format!("{}/lane", path(&hanging));
    daemon.until(&lane, |lane| lane["inFlight"] == 8).await;
    configure(9, "10s", 1);
    daemon.signal("HUP");
    daemon.until(&lane, |lane| lane["inFlight"] == 9).await;
    let new = (json!(9), json!("10s"), json!(1));
    // The lanes have the configuration before the API shows it.
    daemon.until(&path(&open), |shown| policy(shown) == new).await;
    // Null returns the endpoint to the configuration's policy.
    let back = r#"{"maxInFlight": null, "timeout": null, "retry": null}"#;
    let (status, changed, _) = daemon.call("PATCH", &path(&own), &[], back).await;
    assert_eq!((status, policy(&changed)), (200, new));
}

#[tokio::test]
async fn patterns_are_canonical_and_bounded() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let create = async |types: Value| {
        let body = json!({"url": "https://example.com/", "eventTypes": types}).to_string();
        let (status, answer, _) = daemon.call("POST", "/endpoints", &[], &body).await;
        (status, answer)
    };
    let (status, made) = create(json!(["a.#.*.#", "a.*.#.#", "b"])).await;
    assert_eq!((status, &made["eventTypes"]), (201, &json!(["a.*.#", "b"])));
    assert_eq!(create(json!(["a", "*.#"])).await.1["eventTypes"], json!(["#"]));
    let many: Vec<_> = (0..65).map(|n| format!("{}x{n}", "*.a.".repeat(8))).collect();
    let long: Vec<_> = (0..66).map(|n| format!("{}{n}", "x".repeat(250))).collect();
    let cases = [
        (json!(["b", "*.a.".repeat(9) + "x"]), "/eventTypes/1", "has 9 wildcards, at most 8"),
        (json!(many), "/eventTypes", "520 wildcards in total, at most 512"),
        (json!(long), "/eventTypes", "in total, at most 16384"),
    ];
    for (types, pointer, detail) in cases {
        let refused = create(types).await;
        is_problem(&refused, 422, "validation_failed", detail);
        let error = &refused.1["errors"][0];
        assert_eq!(error["pointer"], pointer);
        assert!(error["detail"].as_str().unwrap().contains(detail), "{error}");
    }
}
