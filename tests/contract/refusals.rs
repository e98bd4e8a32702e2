//! Each kind of bad request, at every operation of the API document to which it applies.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Map, Value, json};

use super::support::{Daemon, Receiver};
use super::{ADMIN, call_as, is_problem, key, keyed, text};

/// One operation of the document.
pub(super) struct Operation {
    pub(super) method: String,
    /// Below `/v1`.
    pub(super) path: String,
    pub(super) id: String,
    roles: Vec<String>,
    /// The documented statuses.
    statuses: BTreeSet<u16>,
    media: Vec<String>,
    /// Whether a body is required.
    needs_body: bool,
    /// Its query parameters.
    pub(super) parameters: Vec<String>,
    /// Members of its JSON body, with their schemas.
    pub(super) members: Map<String, Value>,
    required: Vec<String>,
}

fn document() -> Value {
    let printed = Command::new(env!("CARGO_BIN_EXE_balto")).arg("openapi").output().unwrap();
    serde_json::from_slice(&printed.stdout).unwrap()
}

/// The members of an object's schema, through references and `allOf`.
fn members(document: &Value, schema: &Value, into: &mut (Map<String, Value>, Vec<String>)) {
    if let Some(reference) = schema["$ref"].as_str() {
        members(document, document.pointer(&reference[1..]).unwrap(), into);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        members(document, part, into);
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        into.0.entry(name).or_insert_with(|| member.clone());
    }
    into.1.extend(
        schema["required"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()),
    );
}

pub(super) fn operations() -> Vec<Operation> {
    let document = document();
    let mut list = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let content = operation["requestBody"]["content"].as_object();
            let json = content.and_then(|content| content.get("application/json"));
            let mut found = (Map::new(), Vec::new());
            if let Some(json) = json {
                members(&document, &json["schema"], &mut found);
            }
            let roles = operation["description"].as_str().unwrap_or_default();
            let roles = roles.strip_prefix("Roles: ").and_then(|text| text.strip_suffix('.'));
            list.push(Operation {
                method: method.to_uppercase(),
                path: path.strip_prefix("/v1").unwrap().to_owned(),
                id: operation["operationId"].as_str().unwrap().to_owned(),
                roles: roles.into_iter().flat_map(|text| text.split(", ")).map(str::to_owned).collect(),
                statuses: operation["responses"]
                    .as_object()
                    .unwrap()
                    .keys()
                    .map(|s| s.parse().unwrap())
                    .collect(),
                media: content.into_iter().flat_map(|content| content.keys().cloned()).collect(),
                parameters: operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|parameter| parameter["in"] == "query")
                    .map(|parameter| text(parameter, "name"))
                    .collect(),
                needs_body: operation["requestBody"]["required"] == true,
                members: found.0,
                required: found.1,
            });
        }
    }
    assert!(list.len() >= 34, "the document has only {} operations", list.len());
    list
}

impl Operation {
    pub(super) fn is_public(&self) -> bool {
        self.roles.is_empty()
    }

    pub(super) fn takes_json(&self) -> bool {
        self.media.iter().any(|media| media == "application/json")
    }

    /// Whether the path has an id that the daemon chose. Clients choose the names of tenants and
    /// streams, and the names of consumers.
    pub(super) fn has_id(&self) -> bool {
        let chosen = ["{tenant}", "{stream}", "{name}"];
        self.path.contains('{') && !chosen.iter().any(|name| self.path.contains(name))
    }

    /// The path with the parameter replaced. A tenant is the default one.
    pub(super) fn at(&self, id: &str) -> String {
        let id = if self.path.contains("{tenant}") { "default" } else { id };
        match (self.path.find('{'), self.path.find('}')) {
            (Some(start), Some(end)) => format!("{}{id}{}", &self.path[..start], &self.path[end + 1..]),
            _ => self.path.clone(),
        }
    }

    /// A valid body, apart from the ids in it; empty where none is required.
    pub(super) fn body(&self) -> String {
        let value = |name: &String| match name.as_str() {
            "type" => json!("a.b"),
            "url" => json!("https://example.com/"),
            "since" => json!("2026-01-01T00:00:00Z"),
            "role" => json!("viewer"),
            "name" | "queue" => json!("x"),
            "receipts" => json!(["rcp_AAAAAAAAAAEAAAAAAAAAAQAAAAGYJFsu"]),
            "visibility" => json!("1s"),
            "reason" => json!("x"),
            "confirm" => json!("x"),
            "events" => json!([{"type": "a.b", "data": 1}]),
            "versions" => json!({"1.0": {"schema": true}}),
            _ => json!(1),
        };
        let members: Map<_, _> = self.required.iter().map(|name| (name.clone(), value(name))).collect();
        if self.needs_body { Value::Object(members).to_string() } else { String::new() }
    }

    async fn ask(&self, daemon: &Daemon, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let bearer = format!("Bearer {ADMIN}");
        let mut all = vec![("authorization", bearer.as_str())];
        all.extend(headers);
        let (status, answer, got) = daemon.call(&self.method, &self.at("x"), &all, body).await;
        assert!(self.statuses.contains(&status), "{}: {status} is not in its document: {answer}", self.id);
        assert!(status < 400 || got["content-type"] == "application/problem+json", "{}: {got:?}", self.id);
        (status, answer)
    }
}

#[tokio::test]
async fn missing_or_wrong_key_gets_401_except_for_the_document() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for operation in operations() {
        let wrong = ["", "Bearer wrong", "Basic YTpi", "Bearer", ADMIN, &format!("Bearer {ADMIN}x")]
            .map(str::to_owned);
        for authorization in wrong {
            let headers = [("authorization", authorization.as_str())];
            let headers = if authorization.is_empty() { &[][..] } else { &headers[..] };
            let (status, answer, got) =
                daemon.call(&operation.method, &operation.at("x"), headers, &operation.body()).await;
            let story = format!("{} with `{authorization}`", operation.id);
            if operation.is_public() {
                // The callback of a handshake is authenticated by its token: a wrong token gets
                // 404.
                let expected = if operation.path.starts_with("/handshakes/") { 404 } else { 200 };
                assert_eq!(status, expected, "{story}");
                continue;
            }
            assert_eq!(got["www-authenticate"], "Bearer", "{story}");
            is_problem(&(status, answer), 401, "unauthorized", &story);
        }
    }
    let (status, events) = call_as(&daemon, ADMIN, "GET", "/events", "").await;
    assert_eq!((status, &events["data"]), (200, &json!([])), "something was stored");
}

#[tokio::test]
async fn roles_have_exactly_the_documented_permissions() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for role in ["admin", "publisher", "viewer", "worker"] {
        let secret = key(&daemon, role, None).await;
        for operation in operations().iter().filter(|operation| !operation.is_public()) {
            let answer =
                call_as(&daemon, &secret, &operation.method, &operation.at("x"), &operation.body()).await;
            let story = format!("{} as {role}", operation.id);
            if operation.roles.iter().any(|allowed| allowed == role) {
                assert!(![401, 403].contains(&answer.0), "{story}: {answer:?}");
            } else {
                is_problem(&answer, 403, "forbidden", &story);
            }
        }
    }
}

#[tokio::test]
async fn wrong_method_gets_405_with_the_allowed_methods() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let operations = operations();
    let paths: BTreeSet<_> = operations.iter().map(|operation| &operation.path).collect();
    for path in paths {
        let here: Vec<_> = operations.iter().filter(|operation| operation.path == *path).collect();
        let mut allowed: BTreeSet<_> = here.iter().map(|operation| operation.method.as_str()).collect();
        // Only GET uses up the link of a callback: HEAD must not.
        if allowed.contains("GET") && !path.starts_with("/handshakes/") {
            allowed.insert("HEAD");
        }
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            // Fixed segments beside a parameter can have other methods: `/events/batch` also
            // matches `/events/{id}`.
            if allowed.contains(method) {
                continue;
            }
            let (status, answer, headers) = daemon.call(method, &here[0].at("x"), &[], "").await;
            if method == "HEAD" {
                assert_eq!(status, 405, "{method} {path}");
            } else {
                is_problem(&(status, answer), 405, "method_not_allowed", &format!("{method} {path}"));
            }
            let named: BTreeSet<_> = headers["allow"].split(',').map(str::trim).collect();
            assert_eq!(named, allowed, "{method} {path}");
        }
    }
    for path in ["/nope", "", "/", "/events/", "/events/x/y", "/endpoints/x/nope"] {
        let (status, answer, _) = daemon.call("GET", path, &[], "").await;
        is_problem(&(status, answer), 404, "not_found", path);
    }
}

#[tokio::test]
async fn unknown_or_repeated_parameter_is_named() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for operation in operations() {
        let path = format!("{}?nope=1", operation.at("x"));
        let answer = call_as(&daemon, ADMIN, &operation.method, &path, &operation.body()).await;
        is_problem(&answer, 422, "validation_failed", &operation.id);
        let error = &answer.1["errors"][0];
        assert_eq!(
            (&error["parameter"], &error["pointer"]),
            (&json!("nope"), &json!("/nope")),
            "{}",
            operation.id
        );
    }
    let answer = call_as(&daemon, ADMIN, "GET", "/events?limit=1&limit=2", "").await;
    is_problem(&answer, 422, "validation_failed", "limit twice");
    for (query, name) in [("type=%2z", "type"), ("limit=1&type=a%", "type"), ("tenant=%FF", "tenant")] {
        let answer = call_as(&daemon, ADMIN, "GET", &format!("/events?{query}"), "").await;
        is_problem(&answer, 422, "validation_failed", query);
        assert_eq!(answer.1["errors"][0]["parameter"], name, "{query}");
    }
}

#[tokio::test]
async fn invalid_json_gets_400() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let json = [("content-type", "application/json")];
    for operation in operations().iter().filter(|operation| operation.takes_json()) {
        for body in ["{", "nope", "{\"a\":}", "{} x", "\u{feff}{}", " "] {
            let answer = operation.ask(&daemon, &json, body).await;
            is_problem(&answer, 400, "malformed", &format!("{} {body:?}", operation.id));
        }
        if operation.needs_body {
            is_problem(&operation.ask(&daemon, &json, "").await, 400, "malformed", &operation.id);
        }
    }
}

#[tokio::test]
async fn unknown_member_is_named() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(200).await;
    let body = json!({"url": receiver.url}).to_string();
    let (_, made) = call_as(&daemon, ADMIN, "POST", "/endpoints", &body).await;
    let queue = json!({"name": made["id"]}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/queues", &queue).await.0, 201);
    let source = json!({"name": made["id"], "url": "amqp://127.0.0.1:5672/v", "queue": "q"}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/sources", &source).await.0, 201);
    for operation in operations().iter().filter(|operation| operation.takes_json()) {
        // A patch needs an existing resource.
        let path = operation.at(&text(&made, "id"));
        let answer = call_as(&daemon, ADMIN, &operation.method, &path, r#"{"zz/z":1}"#).await;
        is_problem(&answer, 422, "validation_failed", &operation.id);
        assert_eq!(answer.1["errors"][0]["pointer"], "/zz~1z", "{}: {}", operation.id, answer.1);
        for body in ["[]", "7", "\"x\"", "null"] {
            let answer = call_as(&daemon, ADMIN, &operation.method, &path, body).await;
            is_problem(&answer, 422, "validation_failed", &format!("{} {body}", operation.id));
            assert_eq!(answer.1["errors"][0]["pointer"], "", "{}: {}", operation.id, answer.1);
        }
    }
}

/// Objects within bodies: each member with a value that is valid, or that is checked after the
/// names.
const INNER: [(&str, &[(&str, &str)]); 14] = [
    ("filter", &[("type", "\"a\"")]),
    ("headers", &[("X-A", "\"1\"")]),
    ("sensitiveHeaders", &[("X-A", "\"1\"")]),
    ("rateLimit", &[("limit", "1"), ("per", "\"1s\""), ("burst", "1")]),
    (
        "retry",
        &[
            ("initial", "\"1s\""),
            ("multiplier", "2"),
            ("maxInterval", "\"1s\""),
            ("maxAttempts", "1"),
            ("maxAge", "\"1s\""),
            ("jitter", "0"),
            ("schedule", "[\"1s\"]"),
        ],
    ),
    ("clientCertificate", &[("certificate", "\"x\""), ("key", "\"x\"")]),
    ("handshake", &[("origin", "\"a.example\""), ("rate", "1"), ("callback", "false")]),
    ("versions", &[("1.0", "\"1.0\"")]),
    ("auth", &[("basic", "null"), ("oauth2", "null")]),
    ("amqp", &[("exchange", "\"x\""), ("declare", "false"), ("username", "\"x\"")]),
    ("request", &[("method", "\"PUT\""), ("body", "\"x\"")]),
    ("event", &[("type", "\"a\""), ("data", "1")]),
    ("quotas", &[("endpoints", "1"), ("storedBytes", "\"off\""), ("eventsPerSecond", "1")]),
    ("delivery", &[("maxInFlight", "1"), ("timeout", "\"1s\"")]),
];

#[tokio::test]
async fn repeated_member_is_named() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(200).await;
    let body = json!({"url": receiver.url}).to_string();
    let (_, made) = call_as(&daemon, ADMIN, "POST", "/endpoints", &body).await;
    let queue = json!({"name": made["id"]}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/queues", &queue).await.0, 201);
    let source = json!({"name": made["id"], "url": "amqp://127.0.0.1:5672/v", "queue": "q"}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/sources", &source).await.0, 201);
    let mut asked = 0;
    for operation in operations().iter().filter(|operation| operation.takes_json()) {
        let path = operation.at(&text(&made, "id"));
        let good: Map<String, Value> = serde_json::from_str(&operation.body()).unwrap_or_default();
        let mut bodies = Vec::new();
        for name in operation.members.keys() {
            let value = good.get(name).cloned().unwrap_or_default();
            bodies.push((format!("{{\"{name}\":{value},\"{name}\":{value}}}"), format!("/{name}")));
            let rest = operation.required.iter().map(|name| format!(",\"{name}\":{}", good[name]));
            let rest: String = rest.collect();
            for (inner, value) in INNER.iter().filter(|(outer, _)| outer == name).flat_map(|(_, all)| *all) {
                let inside = format!("{{\"{inner}\":{value},\"{inner}\":{value}}}");
                bodies.push((format!("{{\"{name}\":{inside}{rest}}}"), format!("/{name}/{inner}")));
            }
            let schema = operation.members[name].to_string();
            let has_members = schema.contains("Input\"") || schema.contains("additionalProperties");
            let is_known = INNER.iter().any(|(outer, _)| outer == name)
                || ["metadata", "events", "checks", "migrations", "state"].contains(&&**name);
            assert!(!has_members || is_known, "{}: no sample member for `{name}`: {schema}", operation.id);
        }
        for (body, pointer) in bodies {
            let answer = call_as(&daemon, ADMIN, &operation.method, &path, &body).await;
            is_problem(&answer, 422, "validation_failed", &format!("{} {body}", operation.id));
            assert_eq!(answer.1["errors"][0]["pointer"], pointer, "{} {body}: {}", operation.id, answer.1);
            asked += 1;
        }
    }
    assert!(asked > 70, "only {asked} bodies");
    let (_, shown) = call_as(&daemon, ADMIN, "GET", &format!("/endpoints/{}", text(&made, "id")), "").await;
    assert_eq!(shown["updatedAt"], made["updatedAt"], "something was changed");
}

#[tokio::test]
async fn member_of_wrong_type_is_pointed_to() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(200).await;
    let body = json!({"url": receiver.url}).to_string();
    let (_, made) = call_as(&daemon, ADMIN, "POST", "/endpoints", &body).await;
    let queue = json!({"name": made["id"]}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/queues", &queue).await.0, 201);
    let source = json!({"name": made["id"], "url": "amqp://127.0.0.1:5672/v", "queue": "q"}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/sources", &source).await.0, 201);
    let mut asked = 0;
    for operation in operations().iter().filter(|operation| operation.takes_json()) {
        let path = operation.at(&text(&made, "id"));
        // Any JSON value is valid data.
        for name in operation.members.keys().filter(|name| *name != "data") {
            let schema = &operation.members[name];
            let takes_number = schema.to_string().contains("\"integer\"");
            let wrong = if takes_number { json!([true]) } else { json!(7.5) };
            // The body is otherwise complete, so that the error is about the wrong type.
            let mut body: Value = serde_json::from_str(&operation.body()).unwrap_or_else(|_| json!({}));
            body[name] = wrong;
            let body = body.to_string();
            let answer = call_as(&daemon, ADMIN, &operation.method, &path, &body).await;
            let story = format!("{} {body}", operation.id);
            is_problem(&answer, 422, "validation_failed", &story);
            let pointed = answer.1["errors"][0]["pointer"].as_str().unwrap();
            assert!(pointed.starts_with(&format!("/{name}")), "{story}: {}", answer.1);
            let words = answer.1["detail"].as_str().unwrap();
            assert!(!words.contains("struct") && !words.contains("u64"), "{story}: Rust's words: {words}");
            asked += 1;
        }
    }
    assert!(asked > 50, "only {asked} members");
}

#[tokio::test]
async fn wrong_content_type_gets_415_with_the_right_ones() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for operation in operations().iter().filter(|operation| !operation.media.is_empty()) {
        for media in ["text/plain", "application/xml", "application/x-www-form-urlencoded", "json"] {
            let answer = operation.ask(&daemon, &[("content-type", media)], "{}").await;
            is_problem(&answer, 415, "unsupported_media_type", &format!("{} {media}", operation.id));
            let named: BTreeSet<_> =
                answer.1["accepted"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
            let accepted: BTreeSet<_> = operation.media.iter().map(String::as_str).collect();
            assert_eq!(named, accepted, "{}", operation.id);
        }
        let latin =
            operation.ask(&daemon, &[("content-type", "application/json; charset=latin1")], "{}").await;
        is_problem(&latin, 415, "unsupported_media_type", &operation.id);
        let packed = [("content-type", "application/json"), ("content-encoding", "gzip")];
        let packed = operation.ask(&daemon, &packed, "{}").await;
        is_problem(&packed, 415, "unsupported_content_encoding", &operation.id);
    }
}

#[tokio::test]
async fn oversized_body_gets_413_with_the_bound() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for operation in operations().iter().filter(|operation| !operation.media.is_empty()) {
        let is_batch = ["publishEvents", "appendToStream"].contains(&&*operation.id);
        let bound = if is_batch { 16 * 1024 * 1024 } else { 256 * 1024 };
        let body = format!("\"{}\"", "x".repeat(bound - 1));
        let answer = operation.ask(&daemon, &[("content-type", "application/json")], &body).await;
        is_problem(&answer, 413, "payload_too_large", &operation.id);
        assert_eq!(answer.1["limit"], bound, "{}", operation.id);
        let body = format!("\"{}\"", "x".repeat(bound - 2));
        let answer = operation.ask(&daemon, &[("content-type", "application/json")], &body).await;
        is_problem(&answer, 422, "validation_failed", &format!("{} at its bound", operation.id));
    }
}

#[tokio::test]
async fn unknown_id_gets_404() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let long = "x".repeat(65);
    for operation in operations().iter().filter(|operation| operation.has_id()) {
        let unknown = ["nope", "evt_01ARZ3NDEKTSV4RRFFQ69G5FAV", "dlv_000000000000000100000001"];
        let encoded = ["a%2Fb", "%FF", "%00", "a%2zb", "%"];
        for id in unknown.into_iter().chain(encoded).chain([long.as_str()]) {
            let path = operation.at(id);
            let answer = call_as(&daemon, ADMIN, &operation.method, &path, &operation.body()).await;
            is_problem(&answer, 404, "not_found", &format!("{} {id}", operation.id));
        }
    }
}

#[tokio::test]
async fn foreign_id_gets_404() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(410).await;
    let body = json!({"url": receiver.url, "tenant": "acme"}).to_string();
    let (_, endpoint) = call_as(&daemon, ADMIN, "POST", "/endpoints", &body).await;
    let queue = r#"{"name":"jobs","tenant":"acme","eventTypes":["none"]}"#;
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/queues", queue).await.0, 201);
    let queue = "jobs".to_owned();
    let body = r#"{"type":"a","data":1,"tenant":"acme"}"#;
    let (_, event) = call_as(&daemon, ADMIN, "POST", "/events", body).await;
    let (own, other) =
        (key(&daemon, "admin", Some("acme")).await, key(&daemon, "admin", Some("other")).await);
    let letter = loop {
        let (_, letters) = call_as(&daemon, &own, "GET", "/dead-letters", "").await;
        if let Some(letter) = letters["data"].get(0) {
            break text(letter, "deliveryId");
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let (_, job) = call_as(&daemon, &own, "POST", "/dead-letters/redrive", r#"{"type":"none"}"#).await;
    let (event, endpoint, job) = (text(&event, "id"), text(&endpoint, "id"), text(&job, "id"));
    let mut asked = 0;
    for operation in operations().iter().filter(|operation| operation.has_id()) {
        let id = match operation.path.split('/').nth(1) {
            Some("events") => &event,
            Some("endpoints") => &endpoint,
            Some("deliveries" | "dead-letters") => &letter,
            Some("queues") => &queue,
            Some("jobs") => &job,
            Some("keys") => continue,       // admin only: 403
            Some("handshakes") => continue, // the token is the authorisation
            kind => panic!("the test has no sample of the kind {kind:?}"),
        };
        let path = operation.at(id);
        let answer = call_as(&daemon, &other, &operation.method, &path, &operation.body()).await;
        is_problem(&answer, 404, "not_found", &operation.id);
        if operation.method == "GET" {
            assert_eq!(call_as(&daemon, &own, "GET", &path, "").await.0, 200, "{}", operation.id);
        }
        asked += 1;
    }
    assert!(asked >= 18, "only {asked} operations");
    for path in ["/events", "/endpoints", "/deliveries", "/dead-letters"] {
        let (status, answer) = call_as(&daemon, &other, "GET", path, "").await;
        assert_eq!((status, &answer["data"]), (200, &json!([])), "{path}");
        let named = call_as(&daemon, &other, "GET", &format!("{path}?tenant=acme"), "").await;
        is_problem(&named, 403, "forbidden", path);
    }
    for (path, body) in [
        ("/events", r#"{"type":"a","data":1,"tenant":"acme"}"#.to_owned()),
        ("/endpoints", json!({"url": receiver.url, "tenant": "acme"}).to_string()),
        ("/dead-letters/redrive", r#"{"tenant":"acme"}"#.to_owned()),
        ("/dead-letters/purge", r#"{"tenant":"acme"}"#.to_owned()),
    ] {
        is_problem(&call_as(&daemon, &other, "POST", path, &body).await, 403, "forbidden", path);
    }
    let filter = json!({"endpointId": endpoint}).to_string();
    let answer = call_as(&daemon, &other, "POST", "/dead-letters/purge", &filter).await;
    is_problem(&answer, 422, "validation_failed", "another tenant's endpoint as a filter");
    let (_, letters) = call_as(&daemon, &own, "GET", "/dead-letters", "").await;
    assert_eq!(letters["data"].as_array().unwrap().len(), 1, "something was done to it: {letters}");
}
