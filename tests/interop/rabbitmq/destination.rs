//! Endpoints with the URL of a broker.

use serde_json::{Value, json};

use super::broker::broker;
use crate::support::Daemon;

/// Publishes an event, and returns its only delivery when it has ended.
async fn delivered(daemon: &Daemon, event: &Value) -> Value {
    let event = daemon.post("/events", &event.to_string()).await;
    let path = format!("/events/{}", event["id"].as_str().unwrap());
    let shown = daemon.until(&path, |event| event["status"] != "pending").await;
    daemon.get(&format!("/deliveries/{}", shown["deliveries"][0]["id"].as_str().unwrap())).await
}

#[tokio::test]
async fn event_is_a_persistent_message_with_its_properties() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let data = tempfile::tempdir().unwrap();
    let authority = broker.directory.path().join("ca.pem").to_str().unwrap().to_owned();
    let environment = [("BALTO__EGRESS__CA_FILE", authority.as_str())];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    broker.bound("pets", "adoptions", "pet.*.adopted");
    let endpoint = json!({"url": format!("amqps://guest:guest@localhost:{}/%2f", broker.tls_port),
        "amqp": {"exchange": "pets"}, "headers": {"X-Team": "dogs"}, "trace": true, "uid": "pets"});
    let made = daemon.post("/endpoints", &endpoint.to_string()).await;
    assert_eq!(made["url"], format!("amqps://localhost:{}/%2F", broker.tls_port));
    let shown = json!({"exchange": "pets", "routingKey": "type", "declare": false, "username": "guest"});
    assert_eq!((&made["amqp"], &made["auth"]), (&shown, &Value::Null), "{made}");

    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let event =
        json!({"type": "pet.dog.adopted", "id": "adopted-1", "data": {"name": "Rex"}, "stream": "pet-1"});
    let headers = [("traceparent", trace), ("balto-hops", "2")];
    assert_eq!(daemon.call("POST", "/events", &headers, &event.to_string()).await.0, 202);
    let delivery = delivered(&daemon, &event).await;
    assert_eq!((&delivery["status"], &delivery["attempts"][0]["error"]), (&json!("delivered"), &Value::Null));
    let message = &broker.take("adoptions")[0];
    for (member, value) in [
        ("content_type", json!("application/json")),
        ("delivery_mode", json!(2)),
        ("message_id", json!("adopted-1")),
        ("type", json!("pet.dog.adopted")),
        ("app_id", json!("balto")),
        ("key", json!("pet.dog.adopted")),
        ("exchange", json!("pets")),
    ] {
        assert_eq!(message[member], value, "{member} of {message}");
    }
    let headers = &message["headers"];
    for (name, value) in
        [("balto-attempt", "1"), ("balto-hops", "3"), ("balto-tenant", "default"), ("x-team", "dogs")]
    {
        assert_eq!(headers[name], value, "{name} of {message}");
    }
    assert!(headers["traceparent"].as_str().unwrap().starts_with(&trace[..35]), "{message}");
    let body: Value = serde_json::from_str(message["body"].as_str().unwrap()).unwrap();
    assert_eq!((&body["data"], &body["stream"]), (&json!({"name": "Rex"}), &json!("pet-1")));
    // The headers are those of a request, so that a consumer can check the signature.
    let webhook = standardwebhooks::Webhook::new(made["secret"].as_str().unwrap()).unwrap();
    let mut signed = axum::http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        signed.insert(name, headers[name].as_str().unwrap().parse().unwrap());
    }
    assert!(webhook.verify(message["body"].as_str().unwrap().as_bytes(), &signed).is_ok());

    let attempt = &delivery["attempts"][0];
    let request = &attempt["request"];
    assert_eq!((&request["method"], &request["url"]), (&json!("PUBLISH"), &made["url"]), "{attempt}");
    assert_eq!(request["headers"]["routing-key"], "pet.dog.adopted", "{attempt}");
    assert!(!delivery.to_string().contains("guest"), "{delivery}");
    assert_eq!(attempt["remoteAddress"], format!("127.0.0.1:{}", broker.tls_port));
    assert!(attempt["timing"]["tls"].is_string() || attempt["timing"]["tls"].is_number(), "{attempt}");
    let lane = daemon.get("/endpoints/pets/lane").await;
    assert_eq!((&lane["circuit"], &lane["pending"]), (&json!("closed"), &json!(0)), "{lane}");
}

#[tokio::test]
async fn formats_and_routing_keys_of_messages() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    broker.bound("formats", "all-formats", "#");
    broker.ask(&json!({"op": "queue", "name": "direct-queue"}));
    let event = json!({"type": "a.b", "version": "2.0", "data": [1, 2], "stream": "s/1",
        "orderingKey": "k 1"});
    for (format, key, routed) in [
        ("standard", json!("stream"), "s/1"),
        ("cloudevents", json!("orderingKey"), "k 1"),
        ("cloudevents-binary", json!("type"), "a.b"),
        ("raw", json!({"literal": "always.this"}), "always.this"),
    ] {
        let amqp = json!({"exchange": "formats", "routingKey": key});
        let endpoint = json!({"url": broker.url("%2F"), "amqp": amqp, "format": format});
        let made = daemon.post("/endpoints", &endpoint.to_string()).await;
        assert_eq!((&made["amqp"]["routingKey"], &made["format"]), (&key, &json!(format)));
        assert_eq!(delivered(&daemon, &event).await["status"], "delivered");
        let message = &broker.take("all-formats")[0];
        let body: Value = serde_json::from_str(message["body"].as_str().unwrap()).unwrap();
        assert_eq!(message["key"], routed, "{format}");
        match format {
            "standard" => assert_eq!(body["type"], "a.b"),
            "cloudevents" => {
                assert_eq!((&body["specversion"], &body["subject"]), (&json!("1.0"), &json!("s/1")));
                assert_eq!(body["version"], "2.0");
                let media = message["content_type"].as_str().unwrap();
                assert!(media.starts_with("application/cloudevents+json"), "{media}");
            }
            "cloudevents-binary" => {
                let headers = &message["headers"];
                assert_eq!((&body, &headers["cloudEvents_type"]), (&json!([1, 2]), &json!("a.b")));
                assert_eq!(headers["cloudEvents_id"], message["message_id"]);
                assert_eq!(headers["cloudEvents_source"], "/default");
                assert_eq!(headers["cloudEvents_version"], "2.0");
            }
            _ => assert_eq!(body, json!([1, 2])),
        }
        let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
        assert_eq!(daemon.call("DELETE", &path, &[], "").await.0, 204);
    }
    // The default exchange, and an exchange that Balto declares in another virtual host.
    let amqp = json!({"exchange": "", "routingKey": {"literal": "direct-queue"}});
    daemon.post("/endpoints", &json!({"url": broker.url("%2F"), "amqp": amqp}).to_string()).await;
    assert_eq!(delivered(&daemon, &event).await["status"], "delivered");
    assert_eq!(broker.take("direct-queue").len(), 1);
}

#[tokio::test]
async fn failures_have_a_class_and_the_brokers_words() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    broker.ask(&json!({"op": "exchange", "name": "unbound"}));
    let port = broker.port;
    let url = |login: &str, vhost: &str| format!("amqp://{login}127.0.0.1:{port}/{vhost}");
    for (url, amqp, class, words) in [
        (url("", "%2F"), json!({"exchange": "unbound"}), "unroutable", "312 NO_ROUTE"),
        (url("", "%2F"), json!({"exchange": "missing"}), "broker", "404 NOT_FOUND - no exchange 'missing'"),
        (url("", "absent"), json!({"exchange": "x"}), "broker", "530 NOT_ALLOWED"),
        (url("guest:wrong@", "%2F"), json!({"exchange": "x"}), "broker", "403 ACCESS_REFUSED"),
        (url("", "%2F"), json!({"exchange": "amq.fanout", "declare": "topic"}), "", ""),
        (
            format!("amqp://127.0.0.1:{}/%2F", broker.tls_port),
            json!({"exchange": "x"}),
            // It depends on what arrives first: the TLS alert or the end of the connection.
            "reset|protocol",
            "closed the connection|does not speak AMQP",
        ),
    ] {
        let endpoint = json!({"url": url, "amqp": amqp, "retry": {"schedule": ["10ms"]}});
        if class.is_empty() {
            let (status, problem, _) = daemon.call("POST", "/endpoints", &[], &endpoint.to_string()).await;
            assert_eq!(
                (status, &problem["errors"][0]["pointer"]),
                (422, &json!("/amqp/declare")),
                "{problem}"
            );
            continue;
        }
        let made = daemon.post("/endpoints", &endpoint.to_string()).await;
        let delivery = delivered(&daemon, &json!({"type": "a", "data": 1})).await;
        let attempts = delivery["attempts"].as_array().unwrap();
        assert_eq!((&delivery["status"], attempts.len()), (&json!("dead"), 2), "{delivery}");
        let attempt = &attempts[0];
        assert_eq!(attempt["statusCode"], Value::Null, "{attempt}");
        assert!(class.split('|').any(|class| attempt["errorClass"] == class), "{attempt}");
        let error = attempt["error"].as_str().unwrap();
        assert!(words.split('|').any(|words| error.contains(words)), "{attempt}");
        assert!(!delivery.to_string().contains("wrong"), "{delivery}");
        let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
        let lane = daemon.get(&format!("{path}/lane")).await;
        let failures = if class == "unroutable" { 0 } else { 2 };
        assert_eq!(lane["consecutiveFailures"], failures, "{class}: {lane}");
        assert_eq!(daemon.call("DELETE", &path, &[], "").await.0, 204);
    }
    // Nothing of the refused endpoint's exchange is used up: the next message passes.
    broker.bound("unbound", "late", "#");
    let amqp = json!({"exchange": "unbound"});
    daemon.post("/endpoints", &json!({"url": url("", "%2F"), "amqp": amqp}).to_string()).await;
    assert_eq!(delivered(&daemon, &json!({"type": "a", "data": 1})).await["status"], "delivered");
}

/// `declare` makes a durable topic exchange, also again after its deletion, and changes no other
/// exchange.
#[tokio::test]
async fn declared_exchange_is_a_durable_topic() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let retry = json!({"schedule": vec!["50ms"; 100]});
    let endpoint =
        json!({"url": broker.url("%2F"), "uid": "own", "amqp": {"exchange": "declared"}, "retry": retry});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let failed_with = |class: &'static str| {
        move |delivery: &Value| {
            let attempts = delivery["attempts"].as_array().unwrap();
            attempts.iter().any(|attempt| attempt["errorClass"] == class)
        }
    };
    for round in 1..=2 {
        let event = daemon.post("/events", r#"{"type":"pet.sold","data":1}"#).await;
        let shown = daemon.get(&format!("/events/{}", event["id"].as_str().unwrap())).await;
        let delivery = format!("/deliveries/{}", shown["deliveries"][0]["id"].as_str().unwrap());
        // Without `declare`, and after the deletion, the exchange does not exist.
        let missing = daemon.until(&delivery, failed_with("broker")).await;
        let error = missing["attempts"][0]["error"].as_str().unwrap();
        assert!(error.contains("404 NOT_FOUND - no exchange 'declared'"), "{missing}");
        let change = json!({"amqp": {"declare": "topic"}}).to_string();
        let (status, changed, _) = daemon.call("PATCH", "/endpoints/own", &[], &change).await;
        assert_eq!((status, &changed["amqp"]["declare"]), (200, &json!("topic")), "{changed}");
        // It exists now, and no queue is bound to it.
        daemon.until(&delivery, failed_with("unroutable")).await;
        // pika declares it as a durable topic exchange; the broker refuses one that differs.
        broker.bound("declared", "declared", "pet.*");
        let ended = daemon.until(&delivery, |delivery| delivery["status"] != "pending").await;
        assert_eq!(ended["status"], "delivered", "round {round}: {ended}");
        assert_eq!(broker.take("declared").len(), 1, "round {round}");
        broker.ask(&json!({"op": "deleteExchange", "name": "declared"}));
    }
    broker.ask(&json!({"op": "exchange", "name": "other-kind", "kind": "fanout"}));
    let amqp = json!({"exchange": "other-kind", "declare": "topic"});
    let endpoint = json!({"url": broker.url("%2F"), "amqp": amqp, "eventTypes": ["other"],
        "retry": {"schedule": ["10ms"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    assert_eq!(daemon.call("DELETE", "/endpoints/own", &[], "").await.0, 204);
    let refused = delivered(&daemon, &json!({"type": "other", "data": 1})).await;
    assert_eq!(
        (&refused["status"], &refused["attempts"][0]["errorClass"]),
        (&json!("dead"), &json!("broker"))
    );
    let error = refused["attempts"][0]["error"].as_str().unwrap();
    assert!(error.contains("406 PRECONDITION_FAILED - inequivalent arg 'type'"), "{refused}");
}

/// Under the name `mutual.localhost` the broker requires a client certificate.
#[tokio::test]
async fn brokers_get_client_certificates() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = broker.directory.path().join("ca.pem").to_str().unwrap().to_owned();
    let trusting = [("BALTO__EGRESS__CA_FILE", authority.as_str())];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &trusting).await;
    broker.bound("mutual", "mutual", "#");
    let read = |name: &str| std::fs::read_to_string(broker.directory.path().join(name)).unwrap();
    let certificate = |owner: &str| json!({"certificate": read(&format!("{owner}.pem")), "key": read(&format!("{owner}-key.pem"))});
    let endpoint = json!({"url": format!("amqps://mutual.localhost:{}/%2F", broker.tls_port), "uid": "mutual",
        "amqp": {"exchange": "mutual"}, "retry": {"schedule": ["10ms", "10ms", "10ms"]}});
    let event = json!({"type": "a", "data": 1});
    let outcome = |delivery: &Value| {
        // A connection that is reset may lose the alert of one attempt.
        let attempts = delivery["attempts"].as_array().unwrap();
        let attempt =
            attempts.iter().find(|attempt| attempt["errorClass"] != "reset").unwrap_or(&attempts[0]);
        let text = |member: &str| attempt[member].as_str().unwrap_or_default().to_owned();
        (delivery["status"].as_str().unwrap().to_owned(), text("errorClass"), text("error"))
    };
    let failed = |error: &str| ("dead".to_owned(), "tls".to_owned(), error.to_owned());
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let missing = outcome(&delivered(&daemon, &event).await);
    assert_eq!(missing, failed("the receiver asks for a client certificate"));
    for (owner, expected) in [
        ("stranger", failed("the receiver did not accept the client certificate")),
        ("client", ("delivered".to_owned(), String::new(), String::new())),
    ] {
        let change = json!({"clientCertificate": certificate(owner)}).to_string();
        let (status, changed, _) = daemon.call("PATCH", "/endpoints/mutual", &[], &change).await;
        assert_eq!(status, 200, "{changed}");
        assert!(!changed.to_string().contains("PRIVATE KEY"), "{changed}");
        assert_eq!(outcome(&delivered(&daemon, &event).await), expected, "the certificate of {owner}");
    }
    assert_eq!(broker.take("mutual").len(), 1);
    // Without the certificate again: its connection is not used.
    let change = json!({"clientCertificate": null}).to_string();
    assert_eq!(daemon.call("PATCH", "/endpoints/mutual", &[], &change).await.0, 200);
    assert_eq!(outcome(&delivered(&daemon, &event).await), missing);

    // A daemon that does not know the authority of the broker.
    let daemon = Daemon::start(other.path()).await;
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let unknown = outcome(&delivered(&daemon, &event).await);
    assert_eq!(unknown, failed("the certificate is not signed by a known authority"));
    assert_eq!(broker.ask(&json!({"op": "count", "name": "mutual"})), 0);
}
