//! Sources: messages of the broker become events.

use serde_json::{Value, json};

use super::broker::{Broker, broker};
use crate::support::Daemon;

/// The source, once it is in this state.
async fn until_state(daemon: &Daemon, name: &str, state: &str) -> Value {
    daemon.until(&format!("/sources/{name}"), |source| source["state"] == state).await
}

/// The events of a tenant, oldest first, once there are `count`.
async fn events(daemon: &Daemon, tenant: &str, count: usize) -> Vec<Value> {
    let path = format!("/feed?after=oldest&limit=1000&tenant={tenant}");
    let page = daemon.until(&path, |page| page["data"].as_array().unwrap().len() >= count).await;
    page["data"].as_array().unwrap().clone()
}

fn publish(broker: &mut Broker, exchange: &str, key: &str, properties: &Value, body: &str) {
    let command =
        json!({"op": "publish", "exchange": exchange, "key": key, "properties": properties, "body": body});
    broker.ask(&command);
}

#[tokio::test]
async fn messages_become_events_once() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let data = tempfile::tempdir().unwrap();
    let key = "BALTO__SECRETS__KEY";
    let environment = [(key, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    let source = json!({"name": "shop", "url": format!("amqp://guest:guest@127.0.0.1:{}", broker.port),
        "queue": "shop-events", "exchange": "shop", "bindings": ["pet.#", "#.paid"],
        "tenant": {"header": "x-tenant"}, "stream": {"header": "x-stream"}});
    let (status, made, headers) = daemon.call("POST", "/sources", &[], &source.to_string()).await;
    assert_eq!((status, headers["location"].as_str()), (201, "/v1/sources/shop"), "{made}");
    assert_eq!((&made["url"], &made["username"]), (&json!(broker.url("%2F")), &json!("guest")));
    assert!(made.get("password").is_none() && made["prefetch"] == 500, "{made}");
    until_state(&daemon, "shop", "connected").await;

    // A confirmed message becomes an event once, also if it is published twice.
    let properties = |id: &str| {
        json!({"message_id": id, "content_type": "application/json",
            "headers": {"x-tenant": "acme", "x-stream": "pet-1", "balto-hops": 2}})
    };
    publish(broker, "shop", "pet.dog.sold", &properties("m-1"), r#"{"n": 1}"#);
    publish(broker, "shop", "pet.dog.sold", &properties("m-1"), r#"{"n": 1}"#);
    publish(broker, "shop", "order.paid", &properties("not/legal"), "[2]");
    publish(broker, "shop", "order.paid", &properties("not/legal"), "[2]");
    let unbound = json!({"op": "publish", "exchange": "shop", "key": "order.lost", "body": "1"});
    assert_eq!(broker.try_ask(&unbound)["error"], "unroutable", "it matches no binding");
    let found = events(&daemon, "acme", 2).await;
    assert_eq!((&found[0]["id"], &found[0]["type"]), (&json!("m-1"), &json!("pet.dog.sold")));
    assert_eq!((&found[0]["data"], &found[0]["stream"]), (&json!({"n": 1}), &json!("pet-1")));
    assert_eq!((&found[0]["attributes"]["balto-hops"], &found[1]["data"]), (&json!("2"), &json!([2])));
    assert_eq!((&found[1]["type"], &found[1]["streamVersion"]), (&json!("order.paid"), &json!(2)));

    // Invalid messages are kept where operators find them.
    publish(broker, "shop", "pet.dog.sold", &json!({"message_id": "m-3"}), "no tenant");
    let mut other = properties("m-1");
    other["headers"]["x-stream"] = json!("pet-2");
    publish(broker, "shop", "pet.dog.sold", &other, "7");
    let parked = events(&daemon, "balto", 2).await;
    let letter = &parked[0]["data"];
    assert_eq!((&parked[0]["type"], &letter["source"]), (&json!("balto.source.rejected"), &json!("shop")));
    assert_eq!((&letter["message"]["messageId"], &letter["body"]), (&json!("m-3"), &json!("bm8gdGVuYW50")));
    assert!(letter["reason"].as_str().unwrap().contains("x-tenant"), "{letter}");
    let other = &parked[1]["data"];
    assert_eq!((&other["message"]["messageId"], &other["bodyBytes"]), (&json!("m-1"), &json!(1)), "{other}");
    let counts = |source: &Value| {
        ["accepted", "duplicates", "parked", "rejected"]
            .map(|name| source["messages"][name].as_u64().unwrap())
    };
    let shown = daemon.until("/sources/shop", |source| counts(source) == [2, 2, 2, 0]).await;
    assert_eq!((&shown["connections"], &shown["lastError"]), (&json!(1), &Value::Null), "{shown}");
    assert_eq!(daemon.metric("balto_source_messages_total", "parked").await, 2.0);
    assert_eq!(daemon.metric("balto_sources", "\"connected\"").await, 1.0);
    assert_eq!(broker.ask(&json!({"op": "count", "name": "shop-events"})), 0);

    // A paused source leaves messages at the broker; the password stays through a restart.
    daemon.post("/sources/shop/pause", "").await;
    until_state(&daemon, "shop", "paused").await;
    publish(broker, "shop", "pet.cat.sold", &properties("m-5"), "5");
    assert_eq!(daemon.get("/sources/shop").await["status"], "paused");
    let mut daemon = daemon;
    assert_eq!(daemon.terminate(), Some(0));
    let journal = std::fs::read_dir(data.path().join("journal")).unwrap();
    for file in journal.map(|entry| entry.unwrap().path()) {
        let bytes = std::fs::read(&file).unwrap();
        let plain = b"guest\x01\x05guest";
        assert!(!bytes.windows(plain.len()).any(|part| part == plain), "a plain password in {file:?}");
    }
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    until_state(&daemon, "shop", "paused").await;
    assert_eq!(broker.ask(&json!({"op": "count", "name": "shop-events"})), 1);
    daemon.post("/sources/shop/resume", "").await;
    assert_eq!(events(&daemon, "acme", 3).await[2]["id"], "m-5");
    let (status, _, _) = daemon.call("DELETE", "/sources/shop", &[], "").await;
    assert_eq!((status, daemon.call("GET", "/sources/shop", &[], "").await.0), (204, 404));
}

#[tokio::test]
async fn loops_between_source_and_endpoint_end() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let source = json!({"name": "loop", "url": broker.url("%2F"), "queue": "loop", "exchange": "loop",
        "dedup": "none", "queueType": "classic", "onInvalid": "reject", "format": "raw"});
    daemon.post("/sources", &source.to_string()).await;
    until_state(&daemon, "loop", "connected").await;
    let endpoint = json!({"url": broker.url("%2F"), "amqp": {"exchange": "loop"}, "format": "raw"});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    daemon.post("/events", r#"{"type":"a.b","data":1}"#).await;
    // The event passes 8 times; its ninth message is rejected.
    daemon.until("/sources/loop", |source| source["messages"]["rejected"] == 1).await;
    assert_eq!(events(&daemon, "default", 9).await.len(), 9);
    let source = daemon.get("/sources/loop").await;
    assert_eq!(source["messages"]["accepted"], 8, "{source}");
}

#[tokio::test]
async fn bad_sources_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let good = json!({"name": "s", "url": "amqp://127.0.0.1:5999/v", "queue": "q"});
    for (change, pointer) in [
        (json!({"name": "a b"}), "/name"),
        (json!({"kind": "kafka"}), "/kind"),
        (json!({"url": "https://a.example/"}), "/url"),
        (json!({"url": "amqp://127.0.0.1:5999/"}), "/url"),
        (json!({"url": "amqp://u:p@127.0.0.1/v", "password": "x"}), "/password"),
        (json!({"username": "me"}), "/password"),
        (json!({"queue": ""}), "/queue"),
        (json!({"queueType": "stream"}), "/queueType"),
        (json!({"bindings": ["#"]}), "/bindings"),
        (json!({"exchange": "x", "bindings": []}), "/bindings"),
        (json!({"exchange": "x".repeat(256)}), "/exchange"),
        (json!({"prefetch": 0}), "/prefetch"),
        (json!({"prefetch": 10_001}), "/prefetch"),
        (json!({"tenant": "balto"}), "/tenant"),
        (json!({"tenant": {"head": "x"}}), "/tenant"),
        (json!({"format": "xml"}), "/format"),
        (json!({"stream": {"header": ""}}), "/stream/header"),
        (json!({"onInvalid": "drop"}), "/onInvalid"),
        (json!({"dedup": "body"}), "/dedup"),
        (json!({"status": "paused"}), "/status"),
    ] {
        let mut body = good.clone();
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (status, problem, _) = daemon.call("POST", "/sources", &[], &body.to_string()).await;
        assert_eq!((status, &problem["code"]), (422, &json!("validation_failed")), "{change}: {problem}");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{change}: {problem}");
    }
    let internal = json!({"name": "s", "url": "amqp://10.0.0.1/v", "queue": "q"}).to_string();
    let (status, problem, _) = daemon.call("POST", "/sources", &[], &internal).await;
    assert_eq!((status, &problem["code"]), (422, &json!("forbidden_url")), "{problem}");
    assert_eq!(daemon.call("POST", "/sources", &[], &good.to_string()).await.0, 201);
    let (status, problem, _) = daemon.call("POST", "/sources", &[], &good.to_string()).await;
    assert_eq!((status, &problem["code"]), (409, &json!("conflict")), "{problem}");
    for (patch, pointer) in [
        (json!({"name": "t"}), "/name"),
        (json!({"queue": null}), "/queue"),
        (json!({"url": "amqp://localhost:5998/v", "username": "me"}), "/password"),
    ] {
        let (status, problem, _) = daemon.call("PATCH", "/sources/s", &[], &patch.to_string()).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!(pointer)), "{patch}: {problem}");
    }
    let failed = until_state(&daemon, "s", "failed").await;
    assert_eq!(failed["lastError"], "connect: no connection could be made", "{failed}");
    let list = daemon.get("/sources?limit=1").await;
    assert_eq!(list["data"][0]["name"], "s", "{list}");
}
