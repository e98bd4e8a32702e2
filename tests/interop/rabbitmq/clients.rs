//! Messages between client libraries of other authors, through a source and a destination.

use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::broker::{Library, broker};
use crate::support::{Daemon, petstore};

/// A message: id, routing key and body.
fn message(library: Library, number: usize) -> [String; 3] {
    let (key, text) = (["pet.sold", "pet.cat.sold"][number % 2], "é 😀");
    // Numbers that a reader of doubles would change.
    let body = format!(r#"{{"n":{number},"price":1.10,"big":{},"by":"{library:?} {text}"}}"#, u64::MAX);
    [format!("{library:?}-{number}"), key.to_owned(), body]
}

/// The messages of both libraries arrive at both, in order, each once.
#[tokio::test]
async fn messages_pass_between_client_libraries() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    broker.bound("clients-out", "to-pika", "#");
    broker.bound("clients-out", "to-amqplib", "pet.#");
    let source = json!({"name": "clients", "url": broker.url("%2F"), "queue": "clients-in",
        "exchange": "clients-in", "bindings": ["pet.#"], "stream": {"header": "x-stream"}});
    daemon.post("/sources", &source.to_string()).await;
    let endpoint =
        json!({"url": broker.url("%2F"), "amqp": {"exchange": "clients-out"}, "ordering": "endpoint"});
    let made = daemon.post("/endpoints", &endpoint.to_string()).await;
    daemon.until("/sources/clients", |source| source["state"] == "connected").await;

    let by_amqplib: Vec<_> = (0..60).map(|number| message(Library::Amqplib, number)).collect();
    let by_pika: Vec<_> = (0..20).map(|number| message(Library::Pika, number)).collect();
    let headers = json!({"x-stream": "pets"});
    let messages: Vec<_> = by_amqplib
        .iter()
        .map(|[id, key, body]| {
            let properties = json!({"messageId": id, "contentType": "application/json", "headers": headers});
            json!({"key": key, "body": body, "properties": properties})
        })
        .collect();
    let publish = json!({"op": "publish", "exchange": "clients-in", "messages": messages});
    assert_eq!(broker.ask_by(Library::Amqplib, &publish), 60, "all are confirmed");
    for [id, key, body] in &by_pika {
        let properties = json!({"message_id": id, "content_type": "application/json", "headers": headers});
        broker.ask(
            &json!({"op": "publish", "exchange": "clients-in", "key": key, "body": body, "properties": properties}),
        );
    }
    let sent = [by_amqplib, by_pika].concat();
    let consume = json!({"op": "consume", "queue": "to-amqplib", "count": sent.len()});
    let at_amqplib = broker.ask_by(Library::Amqplib, &consume).as_array().unwrap().clone();
    let at_pika = broker.take_until("to-pika", sent.len()).await;
    for (library, arrived, names) in [
        (Library::Amqplib, at_amqplib, ["messageId", "contentType", "deliveryMode", "appId"]),
        (Library::Pika, at_pika, ["message_id", "content_type", "delivery_mode", "app_id"]),
    ] {
        assert_eq!(arrived.len(), sent.len(), "{library:?}");
        for (version, (message, [id, key, body])) in (1..).zip(arrived.iter().zip(&sent)) {
            let properties = names.map(|name| &message[name]);
            let expected = [json!(id), json!("application/json"), json!(2), json!("balto")];
            assert_eq!(properties, expected.each_ref(), "{library:?}: {message}");
            assert_eq!(
                (&message["type"], &message["key"]),
                (&json!(key), &json!(key)),
                "{library:?}: {message}"
            );
            let text = message["body"].as_str().unwrap();
            assert!(text.contains(&format!("\"data\":{body}")), "{library:?}: {text}");
            let event: Value = serde_json::from_str(text).unwrap();
            assert_eq!(
                (&event["stream"], &event["streamVersion"]),
                (&json!("pets"), &json!(version)),
                "{text}"
            );
            check_signature(&made, message);
        }
    }
    let source = daemon.get("/sources/clients").await;
    assert_eq!(source["messages"]["accepted"], sent.len(), "{source}");
    for queue in ["to-pika", "to-amqplib", "clients-in"] {
        assert_eq!(broker.ask(&json!({"op": "count", "name": queue})), 0, "{queue} has more");
    }
}

#[tokio::test]
async fn petstore_takes_orders_by_message() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let proofs = ["an order came over RabbitMQ twice and was placed once", "its files are whole"];
    petstore::story(Some(&broker.url("%2F")), &proofs).await;
    assert_eq!(broker.ask(&json!({"op": "count", "name": "petstore-orders"})), 0);
}

fn check_signature(endpoint: &Value, message: &Value) {
    let webhook = standardwebhooks::Webhook::new(endpoint["secret"].as_str().unwrap()).unwrap();
    let mut signed = HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        signed.insert(name, message["headers"][name].as_str().unwrap().parse().unwrap());
    }
    assert!(webhook.verify(message["body"].as_str().unwrap().as_bytes(), &signed).is_ok(), "{message}");
}
