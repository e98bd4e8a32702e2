//! Authorization of deliveries: HTTP Basic and OAuth 2.0 client credentials.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::{Daemon, Receiver, answer};
use super::{ADMIN, endpoint, is_problem, keyed, publish, settled, text};

fn oauth(token_url: &str) -> Value {
    json!({"oauth2": {"tokenUrl": token_url, "clientId": "the client", "clientSecret": "hush:hush", "scope": "a b"}})
}

fn token_reply(token: &str, expires_in: u64) -> String {
    let body = json!({"access_token": token, "token_type": "Bearer", "expires_in": expires_in}).to_string();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A token server whose tokens are numbered from 0.
async fn token_server(expires_in: u64) -> Receiver {
    Receiver::start(move |number, _| token_reply(&format!("token-{number}"), expires_in)).await
}

async fn patched(daemon: &Daemon, made: &Value, patch: Value) -> (u16, Value) {
    let path = format!("/endpoints/{}", text(made, "id"));
    let (status, shown, _) = daemon.call("PATCH", &path, &[], &patch.to_string()).await;
    (status, shown)
}

#[tokio::test]
async fn basic_credentials_are_sent_and_never_shown() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let auth = json!({"basic": {"username": "ü", "password": "hush:1"}});
    let made = endpoint(&daemon, &receiver, json!({"auth": auth})).await;
    assert_eq!(made["auth"], json!({"basic": {"username": "ü"}}));
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    let expected = format!("Basic {}", STANDARD.encode("ü:hush:1"));
    assert_eq!(receiver.until(1).await[0].headers["authorization"], expected);
    // A change of another member, or of the user name, keeps the password.
    let (status, shown) = patched(&daemon, &made, json!({"auth": {"basic": {"username": "v"}}})).await;
    assert_eq!((status, &shown["auth"]), (200, &json!({"basic": {"username": "v"}})));
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    let expected = format!("Basic {}", STANDARD.encode("v:hush:1"));
    assert_eq!(receiver.until(2).await[1].headers["authorization"], expected);
    for shown in [made.clone(), shown, daemon.get("/endpoints").await] {
        assert!(!shown.to_string().contains("hush"), "{shown}");
    }
    let (_, shown) = patched(&daemon, &made, json!({"auth": null})).await;
    assert_eq!(shown["auth"], Value::Null);
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    assert!(!receiver.until(3).await[2].headers.contains_key("authorization"));
}

#[tokio::test]
async fn authorization_does_not_follow_the_url_to_another_host() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (first, second, tokens) =
        (Receiver::status(204).await, Receiver::status(204).await, token_server(60).await);
    for auth in [json!({"basic": {"username": "u", "password": "hush"}}), oauth(&tokens.url)] {
        let made = endpoint(&daemon, &first, json!({"auth": auth})).await;
        let (status, shown) = patched(&daemon, &made, json!({"url": second.url})).await;
        assert_eq!((status, &shown["auth"]), (200, &Value::Null), "{shown}");
        let without_secret = patched(&daemon, &made, json!({"url": first.url, "auth": made["auth"]})).await;
        is_problem(&without_secret, 422, "validation_failed", "a secret is needed again");
    }
    // A client secret does not go to another token server.
    let made = endpoint(&daemon, &first, json!({"auth": oauth(&tokens.url)})).await;
    let elsewhere = json!({"auth": {"oauth2": {"tokenUrl": second.url}}});
    let refused = patched(&daemon, &made, elsewhere).await;
    is_problem(&refused, 422, "validation_failed", "another token server");
    assert_eq!(refused.1["errors"][0]["pointer"], "/auth/oauth2/clientSecret");
    let same_server = json!({"auth": {"oauth2": {"tokenUrl": format!("{}?a=b", tokens.url), "scope": null}}});
    assert_eq!(patched(&daemon, &made, same_server).await.0, 200);
}

#[tokio::test]
async fn access_token_is_fetched_once_and_renewed_after_a_401() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let tokens = token_server(3_600).await;
    let revoked = Arc::new(AtomicUsize::new(usize::MAX));
    let rule = revoked.clone();
    let receiver = Receiver::start(move |_, got| {
        let is_revoked =
            got.headers["authorization"] == format!("Bearer token-{}", rule.load(Ordering::SeqCst));
        answer(if is_revoked { 401 } else { 204 })
    })
    .await;
    let made = endpoint(&daemon, &receiver, json!({"auth": oauth(&tokens.url)})).await;
    assert_eq!(made["auth"]["oauth2"]["clientId"], "the client");
    assert!(!made.to_string().contains("hush"), "{made}");
    let events: Vec<_> = (0..10).map(|_| json!({"type": "a", "data": 1})).collect();
    daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
    for got in receiver.until(10).await {
        assert_eq!(got.headers["authorization"], "Bearer token-0");
    }
    let asked = tokens.got();
    assert_eq!(asked.len(), 1, "one request for all deliveries");
    assert_eq!(asked[0].body, "grant_type=client_credentials&scope=a+b");
    // RFC 6749, section 2.3.1: both parts are form-encoded first.
    let expected = format!("Basic {}", STANDARD.encode("the+client:hush%3Ahush"));
    assert_eq!(asked[0].headers["authorization"], expected);
    assert_eq!(asked[0].headers["content-type"], "application/x-www-form-urlencoded");
    revoked.store(0, Ordering::SeqCst);
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    let delivery = settled(&daemon, &event).await;
    assert_eq!(delivery["attempts"].as_array().unwrap().len(), 1, "the renewal is part of the attempt");
    let got = receiver.until(12).await;
    assert_eq!(got[11].headers["authorization"], "Bearer token-1");
    // A fresh token that is rejected is a failed attempt, without a loop.
    revoked.store(2, Ordering::SeqCst);
    patched(&daemon, &made, json!({"description": "a new revision", "retry": {"maxAttempts": 1}})).await;
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    let dead = settled(&daemon, &event).await;
    assert_eq!(dead["attempts"][0]["statusCode"], 401, "{dead}");
    assert_eq!((receiver.count(), tokens.count()), (13, 3));
}

/// The secret goes into the body, and no header has it.
#[tokio::test]
async fn client_may_authenticate_in_the_body() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (tokens, receiver) = (token_server(3_600).await, Receiver::status(204).await);
    let mut auth = oauth(&tokens.url);
    auth["oauth2"]["clientAuthentication"] = json!("post");
    auth["oauth2"]["audience"] = json!("https://hooks.example/");
    auth["oauth2"]["resource"] = json!("urn:a b");
    auth["oauth2"]["parameters"] = json!({"organization": "a&b", "X.login-hint": "c"});
    let made = endpoint(&daemon, &receiver, json!({"auth": auth})).await;
    let shown = &made["auth"]["oauth2"];
    assert_eq!((&shown["clientAuthentication"], &shown["resource"]), (&json!("post"), &json!("urn:a b")));
    assert_eq!(shown["parameters"], json!({"X.login-hint": "c", "organization": "a&b"}));
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    assert_eq!(receiver.until(1).await[0].headers["authorization"], "Bearer token-0");
    let asked = tokens.got();
    assert_eq!(
        asked[0].body,
        "grant_type=client_credentials&scope=a+b&audience=https%3A%2F%2Fhooks.example%2F&resource=urn%3Aa+b\
         &X.login-hint=c&organization=a%26b&client_id=the+client&client_secret=hush%3Ahush"
    );
    assert!(!asked[0].headers.contains_key("authorization"));
    // A change to Basic keeps the secret and drops the token.
    let basic = json!({"auth": {"oauth2": {"clientAuthentication": null, "resource": null, "audience": null,
        "parameters": {"X.login-hint": null, "organization": null, "audience": "urn:c"}}}});
    let (status, shown) = patched(&daemon, &made, basic).await;
    assert_eq!((status, &shown["auth"]["oauth2"]["clientAuthentication"]), (200, &json!("basic")), "{shown}");
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    assert_eq!(receiver.until(2).await[1].headers["authorization"], "Bearer token-1");
    let again = &tokens.got()[1];
    assert_eq!(again.body, "grant_type=client_credentials&scope=a+b&audience=urn%3Ac");
    assert!(again.headers["authorization"].starts_with("Basic "));
}

#[tokio::test]
async fn token_server_failure_is_a_failed_attempt() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let tokens = Receiver::start(|number, _| match number {
        0 => answer(503),
        1 => {
            let body = r#"{"error":"invalid_client","error_description":"private"}"#;
            format!("HTTP/1.1 401 x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        }
        _ => token_reply("good", 60),
    })
    .await;
    let receiver = Receiver::status(204).await;
    let more = json!({"auth": oauth(&tokens.url), "retry": {"schedule": ["10ms", "10ms", "10ms"]}});
    endpoint(&daemon, &receiver, more).await;
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    let delivery = settled(&daemon, &event).await;
    let attempts = delivery["attempts"].as_array().unwrap();
    let errors: Vec<_> = attempts.iter().map(|attempt| (&attempt["errorClass"], &attempt["error"])).collect();
    assert_eq!(
        errors,
        [
            (&json!("token"), &json!("the token server answered status 503")),
            (&json!("token"), &json!("the token server answered status 401 (invalid_client)")),
            (&Value::Null, &Value::Null),
        ]
    );
    assert_eq!((&delivery["status"], receiver.count()), (&json!("delivered"), 1));
}

#[tokio::test]
async fn forbidden_token_url_is_rejected_and_never_requested() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    let (receiver, tokens) = (Receiver::status(204).await, token_server(60).await);
    for url in ["http://169.254.169.254/token", "http://10.0.0.1/token", "ftp://example.com/"] {
        let body = json!({"url": receiver.url, "auth": oauth(url)}).to_string();
        let (status, problem, _) = daemon.call("POST", "/endpoints", &[], &body).await;
        is_problem(&(status, problem.clone()), 422, "forbidden_url", url);
        assert!(text(&problem, "detail").contains("tokenUrl"), "{problem}");
        assert_eq!(problem["errors"][0]["pointer"], "/auth/oauth2/tokenUrl", "{problem}");
    }
    let made = endpoint(&daemon, &receiver, json!({"auth": oauth(&tokens.url)})).await;
    let bad = json!({"auth": {"oauth2": {"tokenUrl": "http://169.254.169.254/", "clientSecret": "x"}}});
    is_problem(&patched(&daemon, &made, bad).await, 422, "forbidden_url", "a change");
    // The policy changes after the endpoint was saved.
    assert_eq!(daemon.terminate(), Some(0));
    let port = tokens.url.trim_end_matches("/hook").rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let ports = format!("1-{},{}-65535", port - 1, port + 1);
    let environment = [
        ("BALTO__AUTH__ADMIN_KEY", ADMIN),
        ("BALTO__EGRESS__ALLOW_HTTP", "true"),
        ("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8"),
        ("BALTO__EGRESS__ALLOW_PORTS", ports.as_str()),
    ];
    let mut daemon = Daemon::start_in(data.path(), &[], &environment).await;
    daemon.key = Some(ADMIN.to_owned());
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    let dead = settled(&daemon, &event).await;
    assert_eq!((&dead["status"], &dead["reason"]), (&json!("dead"), &json!("blockedAddress")), "{dead}");
    assert_eq!(dead["attempts"][0]["errorClass"], "blockedAddress", "{dead}");
    assert_eq!((receiver.count(), tokens.count()), (0, 0));
}

#[tokio::test]
async fn bad_authorization_error_points_to_the_member() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let basic =
        |username: &str, password: &str| json!({"basic": {"username": username, "password": password}});
    let long = "x".repeat(1_025);
    let rows = [
        (json!({}), "/auth"),
        (
            json!({"basic": {"username": "u", "password": "p"}, "oauth2": {"tokenUrl": "http://127.0.0.1:9000/", "clientId": "a", "clientSecret": "b"}}),
            "/auth",
        ),
        (json!({"digest": {}}), "/auth/digest"),
        (basic("a:b", "p"), "/auth/basic/username"),
        (basic("a\nb", "p"), "/auth/basic/username"),
        (basic("a", "p\r\nX-A: b"), "/auth/basic/password"),
        (basic("a", &long), "/auth/basic/password"),
        (json!({"basic": {"username": "u"}}), "/auth/basic/password"),
        (
            json!({"oauth2": {"tokenUrl": "http://127.0.0.1:9000/", "clientId": "a"}}),
            "/auth/oauth2/clientSecret",
        ),
        (
            json!({"oauth2": {"tokenUrl": "http://127.0.0.1:9000/", "clientId": "", "clientSecret": "b"}}),
            "/auth/oauth2/clientId",
        ),
        (
            json!({"oauth2": {"tokenUrl": "http://127.0.0.1:9000/", "clientId": "a", "clientSecret": "b",
                "clientAuthentication": "none"}}),
            "/auth/oauth2/clientAuthentication",
        ),
        (
            json!({"oauth2": {"tokenUrl": "http://127.0.0.1:9000/", "clientId": "a", "clientSecret": "b",
                "resource": ""}}),
            "/auth/oauth2/resource",
        ),
        (
            json!({"oauth2": {"tokenUrl": "nope", "clientId": "a", "clientSecret": "b"}}),
            "/auth/oauth2/tokenUrl",
        ),
    ];
    for (auth, place) in rows {
        let body = json!({"url": "http://127.0.0.1:9000/", "auth": auth}).to_string();
        let (status, problem, _) = daemon.call("POST", "/endpoints", &[], &body).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!(place)), "{auth}: {problem}");
        assert!(!problem.to_string().contains(&long), "{problem}");
    }
    refuse_bad_parameters(&daemon).await;
    for headers in ["headers", "sensitiveHeaders"] {
        let body = json!({"url": "http://127.0.0.1:9000/", headers: {"Authorization": "x"}, "auth": basic("u", "p")});
        let (status, problem, _) = daemon.call("POST", "/endpoints", &[], &body.to_string()).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/auth")), "{problem}");
    }
}

/// Parameters that Balto sets itself, in any case, and those out of bounds.
async fn refuse_bad_parameters(daemon: &Daemon) {
    let place = |name: &str| format!("/auth/oauth2/parameters/{name}");
    let many: serde_json::Map<_, _> = (0..17).map(|number| (format!("n{number}"), json!("v"))).collect();
    let large: serde_json::Map<_, _> =
        (0..5).map(|number| (format!("n{number}"), json!("v".repeat(1_000)))).collect();
    let all = place("").trim_end_matches('/').to_owned();
    let mut rows = vec![(json!(many), all.clone()), (json!(large), all.clone()), (json!([]), all)];
    let long = "n".repeat(65);
    let own = ["grant_type", "Client_ID", "client_secret", "scope", "RESOURCE", "client_assertion_type"];
    for name in own.into_iter().chain(["audience", "", "a b", "a=b", "ü", &long]) {
        rows.push((json!({name: "v"}), place(name)));
    }
    for value in [json!(""), json!("a\nb"), json!("v".repeat(1_025)), json!(1), json!(null)] {
        rows.push((json!({"name": value}), place("name")));
    }
    for (parameters, expected) in rows {
        let client = json!({"tokenUrl": "http://127.0.0.1:9000/", "clientId": "a", "clientSecret": "b",
            "audience": "c", "parameters": parameters});
        let body = json!({"url": "http://127.0.0.1:9000/", "auth": {"oauth2": client}}).to_string();
        let (status, problem, _) = daemon.call("POST", "/endpoints", &[], &body).await;
        assert_eq!(
            (status, &problem["errors"][0]["pointer"]),
            (422, &json!(expected)),
            "{parameters}: {problem}"
        );
    }
}
