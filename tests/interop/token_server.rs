//! Deliveries with access tokens of an OAuth 2.0 server, `oidc-provider`.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::Daemon;
use crate::support::judges::{install, root};

/// The server with its receiver; ends with the test.
struct TokenServer {
    child: Child,
    url: String,
}

impl TokenServer {
    /// Tokens are valid for this many seconds. The client must authenticate by this method.
    fn start(lifetime: u64, method: &str) -> Self {
        install();
        let mut command = Command::new(root().join("target/judges/node"));
        command
            .current_dir(root())
            .arg("tests/judges/token_server.mjs")
            .args([&lifetime.to_string(), method]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut port = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        while port.trim().parse::<u16>().is_err() {
            port.clear();
            assert_ne!(lines.read_line(&mut port).unwrap(), 0, "the token server has ended");
        }
        Self { child, url: format!("http://127.0.0.1:{}", port.trim()) }
    }

    async fn log(&self) -> Value {
        let reply = reqwest::get(format!("{}/log", self.url)).await.unwrap();
        serde_json::from_str(&reply.text().await.unwrap()).unwrap()
    }

    async fn revoke(&self) {
        reqwest::Client::new().post(format!("{}/revoke", self.url)).send().await.unwrap();
    }

    fn endpoint(&self, secret: &str) -> Value {
        let client = json!({"tokenUrl": format!("{}/token", self.url), "clientId": "the client: 1",
            "clientSecret": secret, "scope": "hooks"});
        json!({"url": format!("{}/hook", self.url), "auth": {"oauth2": client}, "retry": {"schedule": ["10ms"]}})
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        // The test has its result already.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

const SECRET: &str = "a secret & more: +/%";

/// Publishes an event, and returns its delivery when it has ended.
async fn delivered(daemon: &Daemon) -> Value {
    let event = daemon.post("/events", r#"{"type":"order.paid","data":1}"#).await;
    let path = format!("/events/{}", event["id"].as_str().unwrap());
    let shown = daemon.until(&path, |event| event["status"] != "pending").await;
    daemon.get(&format!("/deliveries/{}", shown["deliveries"][0]["id"].as_str().unwrap())).await
}

#[tokio::test]
async fn kept_token_is_shared_and_renewed_after_a_revocation() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let server = TokenServer::start(600, "client_secret_basic");
    daemon.post("/endpoints", &server.endpoint(SECRET).to_string()).await;
    for _ in 0..3 {
        assert_eq!(delivered(&daemon).await["status"], "delivered");
    }
    let log = server.log().await;
    assert_eq!(
        (&log["tokens"], &log["accepted"], &log["rejected"]),
        (&json!(1), &json!(3), &json!(0)),
        "{log}"
    );
    assert_eq!(log["scopes"], json!(["hooks"]));
    server.revoke().await;
    let delivery = delivered(&daemon).await;
    assert_eq!(
        (&delivery["status"], delivery["attempts"].as_array().unwrap().len()),
        (&json!("delivered"), 1)
    );
    let log = server.log().await;
    assert_eq!(
        (&log["tokens"], &log["accepted"], &log["rejected"]),
        (&json!(2), &json!(4), &json!(1)),
        "{log}"
    );
}

/// The token expires between two deliveries; the receiver sees no expired one.
#[tokio::test]
async fn expired_token_is_renewed_before_the_request() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let server = TokenServer::start(4, "client_secret_basic");
    daemon.post("/endpoints", &server.endpoint(SECRET).to_string()).await;
    assert_eq!(delivered(&daemon).await["status"], "delivered");
    tokio::time::sleep(std::time::Duration::from_millis(4_100)).await;
    assert_eq!(delivered(&daemon).await["status"], "delivered");
    let log = server.log().await;
    assert_eq!((&log["tokens"], &log["rejected"]), (&json!(2), &json!(0)), "{log}");
}

#[tokio::test]
async fn client_secret_in_the_body_is_accepted() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let server = TokenServer::start(600, "client_secret_post");
    let mut endpoint = server.endpoint(SECRET);
    endpoint["auth"]["oauth2"]["clientAuthentication"] = json!("post");
    endpoint["auth"]["oauth2"]["parameters"] = json!({"organization": "a&b=c+ü"});
    let made = daemon.post("/endpoints", &endpoint.to_string()).await;
    assert_eq!(delivered(&daemon).await["status"], "delivered");
    let log = server.log().await;
    assert_eq!(
        (&log["tokens"], &log["accepted"], &log["headers"]),
        (&json!(1), &json!(1), &json!(0)),
        "{log}"
    );
    assert_eq!(log["organizations"], json!(["a&b=c+ü"]), "{log}");
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    let wrong = json!({"auth": {"oauth2": {"clientSecret": "another secret"}}}).to_string();
    assert_eq!(daemon.call("PATCH", &path, &[], &wrong).await.0, 200);
    let dead = delivered(&daemon).await;
    let error = &dead["attempts"][0]["error"];
    assert_eq!(error, "the token server answered status 401 (invalid_client)", "{dead}");
}

#[tokio::test]
async fn wrong_client_secret_and_outage_are_failed_attempts() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let server = TokenServer::start(600, "client_secret_basic");
    let made = daemon.post("/endpoints", &server.endpoint("another secret").to_string()).await;
    let dead = delivered(&daemon).await;
    let attempt = &dead["attempts"][0];
    assert_eq!(attempt["errorClass"], "token", "{dead}");
    assert_eq!(attempt["error"], "the token server answered status 401 (invalid_client)", "{dead}");
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    let patch = json!({"auth": {"oauth2": {"clientSecret": SECRET}}}).to_string();
    assert_eq!(daemon.call("PATCH", &path, &[], &patch).await.0, 200);
    assert_eq!(delivered(&daemon).await["status"], "delivered");
    drop(server);
    // A new revision drops the kept token.
    assert_eq!(daemon.call("PATCH", &path, &[], r#"{"description":"new"}"#).await.0, 200);
    let dead = delivered(&daemon).await;
    assert_eq!(dead["attempts"][0]["errorClass"], "token", "{dead}");
    assert!(dead["attempts"][0]["error"].as_str().unwrap().contains("gave no answer: connect"), "{dead}");
}
