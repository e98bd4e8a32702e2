//! Requests as the receiver wants them: format, signatures, method, template and dry run.

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use super::support::{Daemon, Receiver};
use super::{call_as, endpoint, is_problem, key, keyed, publish, settled, text};

/// A URL that no test requests.
const URL: &str = "http://127.0.0.1:9000/";

/// The error pointers of a rejected creation.
async fn refused(daemon: &Daemon, mut body: Value) -> Vec<String> {
    body["url"] = json!(URL);
    let (status, problem, _) = daemon.call("POST", "/endpoints", &[], &body.to_string()).await;
    assert_eq!(status, 422, "{body}: {problem}");
    let errors = problem["errors"].as_array().unwrap().iter();
    errors.map(|error| text(error, "pointer")).collect()
}

async fn patched(daemon: &Daemon, made: &Value, patch: Value) -> (u16, Value) {
    let path = format!("/endpoints/{}", text(made, "id"));
    let (status, answer, _) = daemon.call("PATCH", &path, &[], &patch.to_string()).await;
    (status, answer)
}

#[tokio::test]
async fn raw_format_sends_the_data_byte_for_byte() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let made = endpoint(&daemon, &receiver, json!({"format": "raw"})).await;
    assert_eq!((&made["format"], &made["request"]), (&json!("raw"), &Value::Null));
    daemon.post("/events", r#"{"type":"a","data":{ "z":1.0,"a":[1e2 ,"\u00e9"],"z":2 }}"#).await;
    let got = receiver.until(1).await.remove(0);
    assert_eq!(got.body, r#"{ "z":1.0,"a":[1e2 ,"\u00e9"],"z":2 }"#);
    assert_eq!(got.headers["content-type"], "application/json");
    let (status, _) =
        patched(&daemon, &made, json!({"request": {"contentType": "application/vnd.a+json"}})).await;
    assert_eq!(status, 200);
    daemon.post("/events", r#"{"type":"a","data":"x"}"#).await;
    let got = receiver.until(2).await.remove(1);
    assert_eq!(
        (got.body.as_str(), got.headers["content-type"].as_str()),
        ("\"x\"", "application/vnd.a+json")
    );
    let queue = json!({"name": "q", "format": "raw"}).to_string();
    let (status, problem, _) = daemon.call("POST", "/queues", &[], &queue).await;
    is_problem(&(status, problem), 422, "validation_failed", "a queue cannot have format raw");
}

/// A CloudEvent in binary mode may have data of any media type.
#[tokio::test]
async fn raw_format_sends_data_of_any_media_type() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    endpoint(&daemon, &receiver, json!({"format": "raw"})).await;
    let sent = [
        ("text/plain; charset=utf-8", "gr\u{fc}n \"quoted\"\n"),
        ("application/xml", "<order id=\"1\"/>"),
        ("application/vnd.acme+json", "{ \"a\": 1 }"),
        ("image/svg", "not text by its type"),
    ];
    for (number, (media, body)) in (1..).zip(sent) {
        let id = number.to_string();
        let attributes =
            [("ce-specversion", "1.0"), ("ce-id", id.as_str()), ("ce-source", "/s"), ("ce-type", "a")];
        let headers: Vec<_> = attributes.into_iter().chain([("content-type", media)]).collect();
        let (status, answer, _) = daemon.call("POST", "/events", &headers, body).await;
        assert_eq!(status, 202, "{media}: {answer}");
        let got = receiver.until(number).await.remove(number - 1);
        assert_eq!((got.body.as_str(), got.headers["content-type"].as_str()), (body, media));
    }
}

fn hmac_hex(secret: &str, signed: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(signed.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn several_signatures_are_sent_at_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let own = json!({"header": "X-Acme-Signature", "template": "v0:{timestamp}:{body}", "value": "v0={signature}",
        "separator": ","});
    let made =
        endpoint(&daemon, &receiver, json!({"signature": ["standard", "svix", "stripe", "github", own]}))
            .await;
    let mut shown = own.clone();
    (shown["algorithm"], shown["encoding"]) = (json!("sha256"), json!("hex"));
    assert_eq!(made["signature"], json!(["standard", "svix", "stripe", "github", shown]));
    let (first, id) = (text(&made, "secret"), text(&made, "id"));
    let second = text(&daemon.post(&format!("/endpoints/{id}/secret/rotate"), "").await, "secret");
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    let got = receiver.until(1).await.remove(0);
    let header = |name: &str| got.headers[name].as_str();
    assert_eq!(header("svix-id"), header("webhook-id"));
    assert_eq!(header("svix-timestamp"), header("webhook-timestamp"));
    assert_eq!(header("svix-signature"), header("webhook-signature"));
    assert_eq!(header("svix-signature").split(' ').count(), 2, "both secrets sign");
    assert_eq!(header("stripe-signature").matches("v1=").count(), 2, "both secrets sign");
    assert_eq!(header("x-hub-signature-256"), format!("sha256={}", hmac_hex(&second, &got.body)));
    let signed = format!("v0:{}:{}", header("webhook-timestamp"), got.body);
    let both = [&second, &first].map(|secret| format!("v0={}", hmac_hex(secret, &signed)));
    assert_eq!(header("x-acme-signature"), both.join(","));
    // A list of one preset is shown as a word, and null restores the default.
    let (_, shown) = patched(&daemon, &made, json!({"signature": ["svix"]})).await;
    assert_eq!(shown["signature"], "svix");
    let (_, shown) = patched(&daemon, &made, json!({"signature": null})).await;
    assert_eq!(shown["signature"], "standard");
}

#[tokio::test]
async fn bad_signature_error_points_to_its_place() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let own = |header: &str| json!({"header": header});
    let rows = [
        (json!("hub"), "/signature"),
        (json!(1), "/signature"),
        (json!({"header": "X-A"}), "/signature"),
        (json!([]), "/signature"),
        (json!(["standard", "standard"]), "/signature/1"),
        (json!([own("X-A"), own("x-a")]), "/signature/1"),
        (json!(["hub"]), "/signature/0"),
        (json!([1]), "/signature/0"),
        (json!([{"algorithm": "md5"}]), "/signature/0"),
        (json!([{"header": "X-A", "algorithm": "md5"}]), "/signature/0/algorithm"),
        (json!([{"header": "X-A", "encoding": "hexa"}]), "/signature/0/encoding"),
        (json!([{"header": "X-A", "template": "{id}"}]), "/signature/0/template"),
        (json!([{"header": "X-A", "template": "{body}{secret}"}]), "/signature/0/template"),
        (json!([{"header": "X-A", "value": "{body}"}]), "/signature/0/value"),
        (json!([{"header": "X-A", "value": "a\r\nX-B: {signature}"}]), "/signature/0/value"),
        (json!([{"header": "X-A", "separator": ""}]), "/signature/0/separator"),
        (json!([{"header": "X-A", "nope": 1}]), "/signature/0"),
        (json!([own("Host")]), "/signature/0/header"),
        (json!([own("Webhook-Signature")]), "/signature/0/header"),
        (json!([own("Svix-Signature")]), "/signature/0/header"),
        (json!([own("X A")]), "/signature/0/header"),
        (json!([own("X-A\r\nX-B: b")]), "/signature/0/header"),
    ];
    for (signature, place) in rows {
        let story = signature.to_string();
        assert_eq!(refused(&daemon, json!({"signature": signature})).await, [place], "{story}");
    }
    let many: Vec<_> = (0..6).map(|n| own(&format!("X-{n}"))).collect();
    assert_eq!(refused(&daemon, json!({"signature": many})).await, ["/signature"]);
    let taken = json!({"signature": [own("X-A")], "headers": {"x-a": "1"}});
    assert_eq!(refused(&daemon, taken).await, ["/signature"]);
    let weak = json!({"signature": ["github", "standard"], "secret": "Quietly-47-otters"});
    assert_eq!(refused(&daemon, weak).await, ["/secret"]);
    let asymmetric = json!({"signature": ["standard", "github"], "secretType": "ed25519"});
    assert_eq!(refused(&daemon, asymmetric).await, ["/secretType"]);
}

#[tokio::test]
async fn methods_and_templates_shape_the_request() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let template = r#"{"text": {{ ("Order " ~ data.id ~ " of " ~ data.who) }}, "event": {{ id }}}"#;
    let made = endpoint(&daemon, &receiver, json!({"request": {"method": "PUT", "body": template}})).await;
    assert_eq!(made["request"], json!({"method": "PUT", "contentType": null, "body": template}));
    let event = publish(&daemon, json!({"type": "a", "data": {"id": 7, "who": "A \"B\""}})).await;
    let got = receiver.until(1).await.remove(0);
    let body: Value = serde_json::from_str(&got.body).unwrap();
    assert_eq!(body, json!({"text": "Order 7 of A \"B\"", "event": event["id"]}));
    assert_eq!((got.method.as_str(), got.headers["content-type"].as_str()), ("PUT", "application/json"));
    // The signature covers the rendered body.
    let (_, secret) = (0, text(&made, "secret"));
    let webhook = standardwebhooks::Webhook::new(&secret).unwrap();
    let mut headers = axum::http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, got.headers[name].parse().unwrap());
    }
    webhook.verify(got.body.as_bytes(), &headers).unwrap();
    // GET has no body and no content type; a merge patch removes the template.
    let (status, shown) = patched(&daemon, &made, json!({"request": {"method": "GET", "body": null}})).await;
    assert_eq!(
        (status, &shown["request"]["method"], &shown["request"]["body"]),
        (200, &json!("GET"), &Value::Null)
    );
    publish(&daemon, json!({"type": "a", "data": {}})).await;
    let got = receiver.until(2).await.remove(1);
    assert_eq!((got.method.as_str(), got.body.as_str()), ("GET", ""));
    assert!(!got.headers.contains_key("content-type"), "{got:?}");
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, got.headers[name].parse().unwrap());
    }
    webhook.verify(b"", &headers).unwrap();
    let (_, shown) = patched(&daemon, &made, json!({"request": null})).await;
    assert_eq!(shown["request"], Value::Null);
}

#[tokio::test]
async fn bad_request_members_are_rejected_when_saved() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let rows = [
        (json!({"method": "DELETE"}), "/request/method"),
        (json!({"method": "post"}), "/request/method"),
        (json!({"method": "GET", "body": "x"}), "/request/body"),
        (json!({"method": "GET", "contentType": "text/plain"}), "/request/contentType"),
        (json!({"contentType": "json"}), "/request/contentType"),
        (json!({"contentType": "text/plain\r\nX-A: b"}), "/request/contentType"),
        (json!({"contentType": "text/plain; charset"}), "/request/contentType"),
        (json!({"contentType": "text/plain\n"}), "/request/contentType"),
        (json!({"contentType": " text/plain"}), "/request/contentType"),
        (json!({"contentType": "text/plain;\r\n charset=utf-8"}), "/request/contentType"),
        (json!({"body": "{{ data. }}"}), "/request/body"),
        (json!({"body": "{{ event.id }}"}), "/request/body"),
        (json!({"body": "{% include 'x' %}"}), "/request/body"),
        (json!({"body": "x".repeat(16 * 1024 + 1)}), "/request/body"),
        (json!({"body": 1}), "/request/body"),
        (json!({"nope": 1}), "/request/nope"),
    ];
    for (request, place) in rows {
        let story = request.to_string();
        assert_eq!(refused(&daemon, json!({"request": request})).await, [place], "{story}");
    }
    let body = json!({"url": URL, "request": {"body": "{\n\n{{ data. }}"}}).to_string();
    let (_, problem, _) = daemon.call("POST", "/endpoints", &[], &body).await;
    assert!(text(&problem["errors"][0], "detail").starts_with("line 3: "), "{problem}");
}

#[tokio::test]
async fn failed_template_is_a_dead_letter_that_can_be_redriven() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let made = endpoint(&daemon, &receiver, json!({"request": {"body": "{{ data.who }}"}})).await;
    let event = publish(&daemon, json!({"type": "a", "data": {}})).await;
    let dead = settled(&daemon, &event).await;
    let attempt = &dead["attempts"][0];
    assert_eq!((&dead["status"], &dead["reason"]), (&json!("dead"), &json!("unconvertible")), "{dead}");
    assert_eq!(attempt["errorClass"], "template", "{dead}");
    assert!(text(attempt, "error").contains("line 1: undefined value"), "{dead}");
    assert_eq!(receiver.count(), 0);
    patched(&daemon, &made, json!({"request": {"body": "{{ data.who|default('?') }}"}})).await;
    daemon.post(&format!("/dead-letters/{}/redrive", text(&dead, "id")), "").await;
    assert_eq!(receiver.until(1).await[0].body, "\"?\"");
}

#[tokio::test]
async fn preview_shows_the_request_without_sending_it() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let more = json!({"request": {"method": "PUT", "body": "[{{ data.n }}, {{ type }}]"}, "headers": {"X-Env": "prod"},
        "sensitiveHeaders": {"X-Token": "hush"}, "auth": {"basic": {"username": "u", "password": "hush"}},
        "eventTypes": ["other"]});
    let made = endpoint(&daemon, &receiver, more).await;
    let path = format!("/endpoints/{}/preview", text(&made, "id"));
    let event = publish(&daemon, json!({"type": "a.b", "data": {"n": 1}})).await;
    let stored = daemon.post(&path, &json!({"eventId": event["id"]}).to_string()).await;
    let posted = json!({"event": {"type": "a.b", "data": {"n": 1}, "id": event["id"]}}).to_string();
    let posted = daemon.post(&path, &posted).await;
    for shown in [&stored, &posted] {
        assert_eq!((&shown["method"], &shown["body"]), (&json!("PUT"), &json!("[1, \"a.b\"]")), "{shown}");
        assert_eq!(shown["url"], json!(receiver.url));
        let headers = shown["headers"].as_array().unwrap();
        let header = |name: &str| {
            let found = headers.iter().find(|header| header["name"] == name);
            found.map(|header| text(header, "value")).unwrap_or_default()
        };
        assert_eq!((header("x-env").as_str(), header("x-token").as_str()), ("prod", "***"));
        assert_eq!(header("authorization"), "Basic ***");
        assert_eq!(header("webhook-id"), text(&event, "id"));
        assert!(
            header("webhook-signature").starts_with("v1,") && !shown.to_string().contains("hush"),
            "{shown}"
        );
    }
    assert_eq!(receiver.count(), 0);
    for (body, status, code) in [
        (json!({}), 422, "validation_failed"),
        (json!({"eventId": "x", "event": {"type": "a", "data": 1}}), 422, "validation_failed"),
        (json!({"event": {"type": "a b", "data": 1}}), 422, "validation_failed"),
        (json!({"event": {"type": "a", "data": {}}}), 422, "validation_failed"),
        (json!({"event": {"type": "a"}}), 422, "validation_failed"),
        (json!({"eventId": "evt_unknown"}), 404, "not_found"),
    ] {
        let (got, problem, _) = daemon.call("POST", &path, &[], &body.to_string()).await;
        is_problem(&(got, problem), status, code, &body.to_string());
    }
}

#[tokio::test]
async fn preview_needs_the_admin_role_and_the_tenant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let body = json!({"url": URL, "tenant": "acme"}).to_string();
    let (_, made) = call_as(&daemon, super::ADMIN, "POST", "/endpoints", &body).await;
    let path = format!("/endpoints/{}/preview", text(&made, "id"));
    let event = json!({"event": {"type": "a", "data": 1}}).to_string();
    let own = key(&daemon, "admin", Some("acme")).await;
    assert_eq!(call_as(&daemon, &own, "POST", &path, &event).await.0, 200);
    let viewer = key(&daemon, "viewer", Some("acme")).await;
    is_problem(&call_as(&daemon, &viewer, "POST", &path, &event).await, 403, "forbidden", "a viewer");
    let other = key(&daemon, "admin", Some("other")).await;
    is_problem(&call_as(&daemon, &other, "POST", &path, &event).await, 404, "not_found", "another tenant");
}
