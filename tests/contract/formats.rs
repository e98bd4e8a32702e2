//! Secrets, headers and formats of the real daemon.

use std::path::Path;

use crate::support::{Daemon, Receiver, WAIT_MAX};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const HMAC: &str = "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy";
const ED25519: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
/// A secret that is not a Standard Webhooks key.
const TEXT: &str = "Quietly-47-otters";
const PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
const STORE_KEY: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I=";
const URL: &str = "http://127.0.0.1:9000/";

/// The error pointers of the response.
async fn refused(daemon: &Daemon, method: &str, path: &str, body: &Value) -> Vec<String> {
    let (status, problem, _) = daemon.call(method, path, &[], &body.to_string()).await;
    assert_eq!(status, 422, "{method} {path} {body}: {problem}");
    let errors = problem["errors"].as_array().unwrap().iter();
    errors.map(|error| error["pointer"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn bad_secret_header_or_preset_error_points_to_the_member() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let rows = [
        (json!({"secret": "wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy"}), "/secret"),
        (json!({"secret": "whsec_c2hvcnQ="}), "/secret"),
        (json!({"secret": format!("whsec_{}", "A".repeat(88))}), "/secret"),
        (json!({"secret": "whsec_!!"}), "/secret"),
        (json!({"secret": PUBLIC}), "/secret"),
        (json!({"secret": "whsk_c2hvcnQ="}), "/secret"),
        (json!({"secret": ""}), "/secret"),
        (json!({"secretType": "rsa"}), "/secretType"),
        (json!({"secretType": "hmac", "secret": HMAC}), "/secretType"),
        (json!({"secretType": "ed25519", "signature": "stripe"}), "/secretType"),
        (json!({"secret": ED25519, "signature": "github"}), "/secret"),
        (json!({"secret": "short", "signature": "github"}), "/secret"),
        (json!({"secret": "password", "signature": "github"}), "/secret"),
        (json!({"secret": "passwordpassword", "signature": "github"}), "/secret"),
        (json!({"secret": "a".repeat(16), "signature": "stripe"}), "/secret"),
        (json!({"secret": format!("whsec_{}", STANDARD.encode([0; 24]))}), "/secret"),
        (json!({"secret": format!("whsk_{}", STANDARD.encode([0; 32]))}), "/secret"),
        (json!({"signature": "hub"}), "/signature"),
        (json!({"format": "xml"}), "/format"),
        (json!({"headers": {"Stripe-Signature": "x"}}), "/headers/Stripe-Signature"),
        (json!({"headers": {"X-Hub-Signature-256": "x"}}), "/headers/X-Hub-Signature-256"),
        (json!({"sensitiveHeaders": {"Host": "x"}}), "/sensitiveHeaders/Host"),
        (json!({"sensitiveHeaders": {"X-A": "a\r\nX-B: b"}}), "/sensitiveHeaders/X-A"),
        (json!({"sensitiveHeaders": {"X-A": 1}}), "/sensitiveHeaders/X-A"),
        (json!({"sensitiveHeaders": {"X-A": "1"}, "headers": {"x-a": "1"}}), "/sensitiveHeaders/x-a"),
    ];
    for (mut body, place) in rows {
        body["url"] = json!(URL);
        assert_eq!(refused(&daemon, "POST", "/endpoints", &body).await, [place], "{body}");
    }
    let text = json!({"url": URL, "signature": "github", "secret": TEXT});
    let made = daemon.post("/endpoints", &text.to_string()).await;
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    for (patch, place) in [
        (json!({"signature": "standard"}), "/signature"),
        (json!({"secret": HMAC}), "/secret"),
        (json!({"secretType": "hmac"}), "/secretType"),
        (json!({"sensitiveHeaders": {"X-A": 1}}), "/sensitiveHeaders/X-A"),
        (json!({"sensitiveHeaders": {"Via": "1"}}), "/sensitiveHeaders/Via"),
    ] {
        assert_eq!(refused(&daemon, "PATCH", &path, &patch).await, [place], "{patch}");
    }
    let rotate = format!("{path}/secret/rotate");
    for (body, place) in [
        (json!({"secret": ED25519}), "/secret"),
        (json!({"secret": TEXT}), "/secret"),
        (json!({"secret": "password"}), "/secret"),
        (json!({"secret": "my-webhook-secret"}), "/secret"),
        (json!({"secretType": "ed25519"}), "/secretType"),
        (json!({"secretType": "hmac", "secret": HMAC}), "/secretType"),
        (json!({"overlap": "31d"}), "/overlap"),
    ] {
        assert_eq!(refused(&daemon, "POST", &rotate, &body).await, [place], "{body}");
    }
    // With a standard secret in place of the text, the preset can change once the text has expired.
    daemon.post(&rotate, &json!({"secret": HMAC}).to_string()).await;
    let (status, answer, _) = daemon.call("PATCH", &path, &[], r#"{"signature":["standard"]}"#).await;
    assert_eq!(status, 422, "{answer}");
    assert!(
        answer["errors"][0]["detail"].as_str().unwrap().contains("an older secret, which signs until 20"),
        "{answer}"
    );
    daemon.post(&rotate, &json!({"overlap": "0s"}).to_string()).await;
    let (status, changed, _) = daemon.call("PATCH", &path, &[], r#"{"signature":"standard"}"#).await;
    assert_eq!((status, &changed["signature"]), (200, &json!("standard")));
    assert_eq!(daemon.get("/endpoints").await["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn sensitive_headers_are_sent_and_never_shown() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let body = json!({"url": receiver.url, "headers": {"X-Env": "prod"},
        "sensitiveHeaders": {"Authorization": "Bearer hush-1", "X-Token": "hush-2"}});
    let made = daemon.post("/endpoints", &body.to_string()).await;
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    assert_eq!(made["sensitiveHeaderNames"], json!(["authorization", "x-token"]));
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    let got = receiver.until(1).await;
    let sent = |index: usize, name: &str| receiver.got()[index].headers.get(name).cloned();
    assert_eq!(got[0].headers["authorization"], "Bearer hush-1");
    assert_eq!((sent(0, "x-token").as_deref(), sent(0, "x-env").as_deref()), (Some("hush-2"), Some("prod")));
    // A patch keeps the headers that it does not name.
    let patch = r#"{"sensitiveHeaders":{"x-token":null,"X-New":"hush-3"},"description":"d"}"#;
    let (status, changed, _) = daemon.call("PATCH", &path, &[], patch).await;
    assert_eq!((status, &changed["sensitiveHeaderNames"]), (200, &json!(["authorization", "x-new"])));
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    receiver.until(2).await;
    assert_eq!(sent(1, "authorization").as_deref(), Some("Bearer hush-1"));
    assert_eq!((sent(1, "x-token"), sent(1, "x-new").as_deref()), (None, Some("hush-3")));
    for shown in [made, changed, daemon.get(&path).await, daemon.get("/endpoints").await] {
        assert!(!shown.to_string().contains("hush"), "{shown}");
    }
    let (status, cleared, _) = daemon.call("PATCH", &path, &[], r#"{"sensitiveHeaders":null}"#).await;
    assert_eq!((status, &cleared["sensitiveHeaderNames"]), (200, &json!([])));
}

/// Whether any file of the data directory contains the text.
fn is_on_disk(directory: &Path, text: &str) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_on_disk(&path, text);
        }
        std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[tokio::test]
async fn encrypted_secrets_are_unreadable_on_disk_without_the_key() {
    let data = tempfile::tempdir().unwrap();
    let key = [("BALTO__SECRETS__KEY", STORE_KEY)];
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &key).await;
    let receiver = Receiver::status(200).await;
    let body = json!({"url": receiver.url, "signature": "github", "secret": TEXT,
        "sensitiveHeaders": {"X-Token": "hush-hush-hush"}});
    let made = daemon.call("POST", "/endpoints", &[("idempotency-key", "k")], &body.to_string()).await;
    assert_eq!(made.0, 201, "{made:?}");
    let again = daemon.call("POST", "/endpoints", &[("idempotency-key", "k")], &body.to_string()).await;
    assert_eq!((again.0, &again.1), (201, &made.1), "the stored response can be decrypted");
    let path = format!("/endpoints/{}/secret", made.1["id"].as_str().unwrap());
    assert_eq!(daemon.terminate(), Some(0));
    assert!(is_on_disk(data.path(), "x-token"), "the test looks at the wrong place");
    for hidden in [TEXT, "hush-hush-hush"] {
        assert!(!is_on_disk(data.path(), hidden), "{hidden}");
    }
    let other_key = STORE_KEY.replace("c2Vj", "b3Ro");
    for (other, words) in [(other_key.as_str(), "which is not configured"), ("", "no key is configured")] {
        let mut command = crate::support::serve(data.path(), &["--dev"]);
        if !other.is_empty() {
            command.env("BALTO__SECRETS__KEY", other);
        }
        let output = command.stderr(std::process::Stdio::piped()).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(words), "{message}");
    }
    let daemon = Daemon::start_in(data.path(), &["--dev"], &key).await;
    assert_eq!(daemon.get(&path).await["secret"], TEXT);
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    assert_eq!(receiver.until(1).await[0].headers["x-token"], "hush-hush-hush");
}

#[tokio::test]
async fn new_key_reads_secrets_that_were_stored_in_plain_text() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let made = daemon.post("/endpoints", &json!({"url": URL, "secret": HMAC}).to_string()).await;
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = Daemon::start_in(data.path(), &["--dev"], &[("BALTO__SECRETS__KEY", STORE_KEY)]).await;
    let path = format!("/endpoints/{}/secret", made["id"].as_str().unwrap());
    assert_eq!(daemon.get(&path).await["secret"], HMAC);
}

/// A caller who may change the URL must not read hidden headers at a host under their control.
#[tokio::test]
async fn write_only_headers_are_dropped_when_the_url_moves() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (first, second) = (Receiver::status(200).await, Receiver::status(200).await);
    let body = json!({"url": first.url, "headers": {"X-Env": "prod"},
        "sensitiveHeaders": {"Authorization": "Bearer 7", "X-Key": "hush"}});
    let path =
        format!("/endpoints/{}", daemon.post("/endpoints", &body.to_string()).await["id"].as_str().unwrap());
    let changed = async |patch: Value| {
        let (status, shown, _) = daemon.call("PATCH", &path, &[], &patch.to_string()).await;
        assert_eq!(status, 200, "{patch}: {shown}");
        daemon.post("/events", r#"{"type":"a","data":1}"#).await;
        shown["sensitiveHeaderNames"].clone()
    };
    let both = json!(["authorization", "x-key"]);
    let elsewhere_on_the_host = first.url.replace("/hook", "/other?a=b");
    assert_eq!(changed(json!({"url": elsewhere_on_the_host})).await, both);
    let got = first.until(1).await;
    assert_eq!(got[0].headers["authorization"], "Bearer 7");
    // Another port counts as another receiver.
    assert_eq!(
        changed(json!({"url": second.url, "sensitiveHeaders": {"X-Key": "new"}})).await,
        json!(["x-key"])
    );
    let got = second.until(1).await;
    assert_eq!((got[0].headers.get("authorization"), &*got[0].headers["x-key"]), (None, "new"));
    assert_eq!(got[0].headers["x-env"], "prod", "what is shown anyway stays");
    let by_name = second.url.replace("127.0.0.1", "localhost");
    assert_eq!(changed(json!({"url": by_name})).await, json!([]), "another host");
    assert!(!second.until(2).await[1].headers.contains_key("x-key"));
    assert_eq!(changed(json!({"sensitiveHeaders": {"X-Key": "again"}})).await, json!(["x-key"]));
    let secure = by_name.replace("http:", "https:");
    assert_eq!(changed(json!({"url": secure})).await, json!([]), "another scheme");
}

/// Reads one request from the wire, head and body, and answers it with 204.
async fn raw_request(listener: &TcpListener) -> (String, Vec<u8>) {
    let (mut stream, _) = tokio::time::timeout(WAIT_MAX, listener.accept()).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    loop {
        stream.read_buf(&mut bytes).await.unwrap();
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        if bytes.len() == end + 4 + length.parse::<usize>().unwrap() {
            stream.write_all(b"HTTP/1.1 204 x\r\nconnection: close\r\n\r\n").await.unwrap();
            return (head, bytes.split_off(end + 4));
        }
    }
}

/// The untrimmed values of all header lines with this name.
fn lines_of(head: &str, name: &str) -> Vec<String> {
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
}

/// Traps of Standard Webhooks. Several verifiers read only the first line of a header. Python's
/// fails on a second space, C#'s on an element without a comma, Rust's and JavaScript's on a body
/// that is not text or not JSON.
#[tokio::test]
async fn trap_signed_headers_are_sent_once_without_variations() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let made = daemon.post("/endpoints", &json!({"url": url, "headers": {"X-Own": "1"}}).to_string()).await;
    let rotate = format!("/endpoints/{}/secret/rotate", made["id"].as_str().unwrap());
    let mut versions = vec!["v1"];
    let cloudevent = r#"{"specversion":"1.0","id":"a.1 / 2","source":"/s","type":"a","data":{"é":1}}"#;
    let rows = [
        (None, r#"{"type":"a","data":{"e":"\u00e9","raw":"é 😀"}}"#),
        (None, r#"{"type":"a","data":[1.0,1e2],"id":"Chosen_by-me-9"}"#),
        (Some("application/cloudevents+json"), cloudevent),
        (None, r#"{"type":"a","data":null}"#),
    ];
    for round in 0..10 {
        let (media, event) = rows[round % rows.len()];
        let event =
            if round < rows.len() { event.to_owned() } else { event.replace("Chosen", &format!("{round}")) };
        let event = event.replace("a.1", &format!("a.{round}"));
        let headers: Vec<_> = media.map(|media| ("content-type", media)).into_iter().collect();
        let (status, accepted, _) = daemon.call("POST", "/events", &headers, &event).await;
        assert_eq!(status, 202, "{event}: {accepted}");
        let (head, body) = raw_request(&listener).await;
        let field = |name: &str| {
            let lines = lines_of(&head, name);
            assert_eq!(lines.len(), 1, "{name} in {head}");
            let value = lines[0].strip_prefix(' ').unwrap();
            assert_eq!(value, value.trim(), "{name} in {head}");
            value.to_owned()
        };
        let id = field("webhook-id");
        assert_eq!(id, accepted["id"]);
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)), "{id}");
        let timestamp = field("webhook-timestamp");
        assert!(
            timestamp.len() == 10 && timestamp.parse::<u32>().unwrap().to_string() == timestamp,
            "{timestamp}"
        );
        let signature = field("webhook-signature");
        let signatures: Vec<_> = signature.split(' ').map(|part| part.split_once(',').unwrap()).collect();
        let signed: Vec<_> = signatures.iter().map(|(version, _)| *version).collect();
        assert_eq!(signed, versions, "the signature of the current key is first: {signature}");
        for (version, encoded) in signatures {
            let bytes = STANDARD.decode(encoded).unwrap();
            assert_eq!(bytes.len(), if version == "v1" { 32 } else { 64 }, "{signature}");
        }
        for name in ["host", "content-type", "content-length", "user-agent", "balto-attempt", "x-own"] {
            field(name);
        }
        assert_eq!(lines_of(&head, "transfer-encoding"), [""; 0]);
        serde_json::from_slice::<Value>(std::str::from_utf8(&body).unwrap().as_bytes()).unwrap();
        if round < 9 {
            let (kind, version) = if round % 2 == 0 { ("ed25519", "v1a") } else { ("hmac", "v1") };
            daemon.post(&rotate, &json!({"secretType": kind}).to_string()).await;
            versions.insert(0, version);
        }
    }
    assert_eq!(versions.len(), 10, "the maximum number of live secrets");
}

/// JavaScript, Go, Java and Rust read only standard, padded base64.
#[tokio::test]
async fn trap_secrets_and_public_keys_are_shown_in_padded_base64() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let strict = |text: &Value, prefix: &str| STANDARD.decode(text.as_str()?.strip_prefix(prefix)?).ok();
    for round in 0..16 {
        for (kind, prefix, length) in [("hmac", "whsec_", 24..=64), ("ed25519", "whsk_", 64..=64)] {
            let made = daemon.post("/endpoints", &json!({"url": URL, "secretType": kind}).to_string()).await;
            let bytes = strict(&made["secret"], prefix).unwrap_or_else(|| panic!("round {round}: {made}"));
            assert!(length.contains(&bytes.len()), "{made}");
            let public = strict(&made["publicKey"], "whpk_");
            assert_eq!(public.map(|bytes| bytes.len()), (kind == "ed25519").then_some(32), "{made}");
        }
    }
}

/// The signed text contains the id and joins its parts by dots.
#[tokio::test]
async fn trap_id_with_a_dot_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for id in ["a.b", ".", "a b", "a\tb", "", "é", "a/b", "a,b"] {
        let event = json!({"type": "a", "data": 1, "id": id});
        assert_eq!(refused(&daemon, "POST", "/events", &event).await, ["/id"], "{id:?}");
    }
}

/// Python, Rust and C# read bodies as UTF-8: the API refuses other bytes, or sends them in base64.
#[tokio::test]
async fn trap_body_is_always_text() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let made = daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |headers: &[(&str, &str)], body: &[u8]| {
        let mut request = client.post(format!("{}/events", daemon.api)).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap().status().as_u16()
    };
    let json = ("content-type", "application/json");
    for bad in [&b"\xff"[..], b"\xc3\x28", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"] {
        let body = [&br#"{"type":"a","data":""#[..], bad, br#""}"#].concat();
        assert_eq!(post(&[json], &body).await, 400, "{bad:?}");
    }
    let binary = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "a")];
    let octets = [&binary[..], &[("content-type", "application/octet-stream")]].concat();
    assert_eq!(post(&octets, b"\xff\xfe\0").await, 202);
    let got = receiver.until(1).await.remove(0);
    assert!(got.body.ends_with(r#""data":"//4A"}"#), "{}", got.body);
    let webhook = standardwebhooks::Webhook::new(made["secret"].as_str().unwrap()).unwrap();
    let mut headers = axum::http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, got.headers[name].parse().unwrap());
    }
    webhook.verify(got.body.as_bytes(), &headers).unwrap();
}
