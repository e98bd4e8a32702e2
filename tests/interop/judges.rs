//! What subscribers of other languages say of real deliveries: each is captured at a receiver and put before the
//! verifiers that exist for Rust, Python and JavaScript. They must accept what the daemon sent, and refuse it when any
//! signed part of it was changed.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use crate::support::judges::{install, python, root, run};
use crate::support::{Daemon, Got, Receiver};
use balto::domain::SignaturePreset;
use balto::rules::signature::SigningKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

/// One request to be judged: the scheme that it is read by, and the receiver's key.
#[derive(Clone, Debug)]
struct Case {
    story: String,
    scheme: &'static str,
    key: String,
    got: Got,
    good: bool,
}

impl Case {
    fn good(story: &str, scheme: &'static str, key: &str, got: &Got) -> Self {
        Self { story: story.to_owned(), scheme, key: key.to_owned(), got: got.clone(), good: true }
    }

    fn line(&self) -> String {
        let case = json!({
            "scheme": self.scheme, "headers": self.got.headers, "body": STANDARD.encode(&self.got.body), "key": self.key,
        });
        format!("{case}\n")
    }

    /// The same request with one thing changed: the body, each header of `signed`, the key.
    fn tampered(&self, signed: &[&str], other_key: &str) -> Vec<Self> {
        let refused = |what: &str| Self {
            story: format!("{}, another {what}", self.story),
            good: false,
            ..self.clone()
        };
        let mut cases = vec![refused("body"), Self { key: other_key.to_owned(), ..refused("key") }];
        cases[0].got.body = self.got.body.replacen("order", "0rder", 1);
        assert_ne!(cases[0].got.body, self.got.body);
        for header in signed {
            let mut case = refused(header);
            let value = case.got.headers.get_mut(*header).unwrap();
            // The last character of base64 before its padding may carry no information; the one before always does.
            let at = value.trim_end_matches('=').len() - 2;
            let other = if value.as_bytes()[at] == b'1' { "2" } else { "1" };
            value.replace_range(at..=at, other);
            cases.push(case);
        }
        cases
    }
}

fn judge(command: &mut Command, cases: &[Case]) -> Vec<Value> {
    let input: String = cases.iter().map(Case::line).collect();
    let (good, words) = run(command, &input);
    let judge = format!("{command:?}");
    assert!(good, "{judge} failed:\n{words}");
    let answers: Vec<Value> = words.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), cases.len(), "{judge} said:\n{words}");
    for (case, answer) in cases.iter().zip(&answers) {
        assert_eq!(answer["accepted"], case.good, "{}: {judge} says {answer} of {:?}", case.story, case.got);
    }
    answers
}

/// What Python and JavaScript say, with what they read.
fn judge_all(cases: &[Case]) -> (Vec<Value>, Vec<Value>) {
    install();
    let judges = Path::new("tests/judges");
    let mut python = python("python");
    let mut node = Command::new(root().join("target/judges/node"));
    let python = judge(python.arg(judges.join("judge.py")), cases);
    let node = judge(node.current_dir(root()).arg(judges.join("judge.mjs")), cases);
    (python, node)
}

/// What Rust says of the same cases: the library of the standard, and plain cryptography where it has none.
fn judge_in_rust(cases: &[Case]) {
    for case in cases {
        let good = match case.scheme {
            "standard" => standard_in_rust(case),
            "ed25519" => ed25519_in_rust(case),
            "stripe" => stripe_in_rust(case),
            "github" => {
                let expected = format!("sha256={}", hmac_in_rust(&case.key, case.got.body.as_bytes()));
                case.got.headers["x-hub-signature-256"] == expected
            }
            other => unreachable!("{other}"),
        };
        assert_eq!(good, case.good, "{}: Rust of {:?}", case.story, case.got);
    }
}

fn standard_in_rust(case: &Case) -> bool {
    let mut headers = axum::http::HeaderMap::new();
    for (name, value) in &case.got.headers {
        headers.insert(axum::http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
    }
    let webhook = standardwebhooks::Webhook::new(&case.key).unwrap();
    webhook.verify(case.got.body.as_bytes(), &headers).is_ok()
}

fn ed25519_in_rust(case: &Case) -> bool {
    let public = STANDARD.decode(case.key.strip_prefix("whpk_").unwrap()).unwrap();
    let public = VerifyingKey::from_bytes(&public.try_into().unwrap()).unwrap();
    let header = |name: &str| case.got.headers[name].as_str();
    let signed = format!("{}.{}.{}", header("webhook-id"), header("webhook-timestamp"), case.got.body);
    let signatures = header("webhook-signature").split(' ').filter_map(|part| part.strip_prefix("v1a,"));
    let mut signatures =
        signatures.map(|text| Signature::from_slice(&STANDARD.decode(text).unwrap()).unwrap());
    signatures.any(|signature| public.verify_strict(signed.as_bytes(), &signature).is_ok())
}

fn stripe_in_rust(case: &Case) -> bool {
    let header = &case.got.headers["stripe-signature"];
    let time = header.split(',').find_map(|part| part.strip_prefix("t=")).unwrap();
    let expected = hmac_in_rust(&case.key, format!("{time}.{}", case.got.body).as_bytes());
    header.split(',').any(|part| part.strip_prefix("v1=") == Some(&expected))
}

fn hmac_in_rust(key: &str, signed: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(signed);
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

const OTHER_SECRET: &str = "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy";
const SIGNED: [&str; 3] = ["webhook-id", "webhook-timestamp", "webhook-signature"];

/// Registers an endpoint, posts one event and gives the endpoint with the captured request.
async fn delivered(daemon: &Daemon, options: Value, body: &str) -> (Value, Got) {
    let receiver = Receiver::status(204).await;
    let mut endpoint = options;
    endpoint["url"] = json!(receiver.url);
    let made = daemon.post("/endpoints", &endpoint.to_string()).await;
    daemon.post("/events", body).await;
    let got = receiver.until(1).await.remove(0);
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    let (status, ..) = daemon.call("DELETE", &path, &[], "").await;
    assert_eq!(status, 204);
    (made, got)
}

const EVENT: &str = r#"{"type":"order.paid","data":{ "orderId":42, "note":"\u00e9 é 😀", "sum":1.0e2 }}"#;

#[tokio::test]
async fn deliveries_verify_in_rust_python_and_javascript() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let mut cases = Vec::new();
    for length in [0, 24, 25, 26, 64] {
        let bytes: Vec<u8> = (0..length).map(|at| 0xfb ^ (at * at) as u8).collect();
        let secret = format!("whsec_{}", STANDARD.encode(bytes));
        let options = if length == 0 { json!({}) } else { json!({"secret": secret}) };
        let (made, got) = delivered(&daemon, options, EVENT).await;
        let secret = made["secret"].as_str().unwrap();
        let good = Case::good(&format!("a secret of {length} bytes"), "standard", secret, &got);
        cases.extend(good.tampered(&SIGNED, OTHER_SECRET));
        cases.push(good);
    }
    judge_in_rust(&cases);
    judge_all(&cases);
}

#[tokio::test]
async fn during_a_rotation_both_secrets_verify_and_after_it_the_new_one_alone() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let made = daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    let rotate = format!("/endpoints/{}/secret/rotate", made["id"].as_str().unwrap());
    let second = daemon.post(&rotate, "").await;
    daemon.post("/events", EVENT).await;
    receiver.until(1).await;
    let third = daemon.post(&rotate, r#"{"overlap":"0s"}"#).await;
    daemon.post("/events", EVENT).await;
    let got = receiver.until(2).await;
    let [first, second, third] = [&made, &second, &third].map(|shown| shown["secret"].as_str().unwrap());
    let mut cases = vec![
        Case::good("the old secret", "standard", first, &got[0]),
        Case::good("the new secret", "standard", second, &got[0]),
        Case::good("the newest secret", "standard", third, &got[1]),
    ];
    for ended in [first, second] {
        let case = Case::good("a secret whose overlap ended", "standard", ended, &got[1]);
        cases.push(Case { good: false, ..case });
    }
    judge_in_rust(&cases);
    judge_all(&cases);
}

#[tokio::test]
async fn ed25519_signatures_verify_with_the_public_key_that_the_api_shows() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let body = json!({"url": receiver.url, "secretType": "ed25519"});
    let made = daemon.post("/endpoints", &body.to_string()).await;
    assert!(made["secret"].as_str().unwrap().starts_with("whsk_"), "{made}");
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    let first = daemon.get(&format!("{path}/public-keys")).await["publicKeys"][0]["publicKey"].clone();
    assert_eq!(first, made["publicKey"]);
    daemon.post("/events", EVENT).await;
    receiver.until(1).await;
    // Rotated to an HMAC key: during the overlap both sign, each read by those who know it.
    let hmac = daemon.post(&format!("{path}/secret/rotate"), r#"{"secretType":"hmac"}"#).await;
    daemon.post("/events", EVENT).await;
    let got = receiver.until(2).await;
    let other = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
    let public = first.as_str().unwrap();
    let alone = Case::good("v1a alone", "ed25519", public, &got[0]);
    let mut cases = alone.tampered(&SIGNED, other);
    let beside = Case::good("v1a beside v1", "ed25519", public, &got[1]);
    let v1 = Case::good("v1 beside v1a", "standard", hmac["secret"].as_str().unwrap(), &got[1]);
    cases.extend([alone, beside, v1]);
    judge_in_rust(&cases);
    judge_all(&cases);
}

#[tokio::test]
async fn the_presets_of_stripe_and_github_verify_with_the_secrets_that_receivers_have() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let mut cases = Vec::new();
    for (preset, header) in [("stripe", "stripe-signature"), ("github", "x-hub-signature-256")] {
        for secret in
            [Some("whsec_abc123DEF456"), Some("It's no Secret to My Cat 42"), Some(OTHER_SECRET), None]
        {
            let options = json!({"signature": preset, "secret": secret});
            let (made, got) = delivered(&daemon, options, EVENT).await;
            assert!(!got.headers.contains_key("webhook-signature"), "{got:?}");
            let good =
                Case::good(&format!("{preset} {secret:?}"), preset, made["secret"].as_str().unwrap(), &got);
            cases.extend(good.tampered(&[header], "another secret"));
            cases.push(good);
        }
    }
    judge_in_rust(&cases);
    judge_all(&cases);
}

/// The published rejections (TVn), made of a real delivery; and TV5, which has to be accepted.
#[tokio::test]
async fn what_the_standard_rejects_is_rejected_of_our_deliveries() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (made, got) = delivered(&daemon, json!({}), EVENT).await;
    let secret = made["secret"].as_str().unwrap();
    let good = Case::good("as it came", "standard", secret, &got);
    let signature = &got.headers["webhook-signature"];
    let other = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=";
    let with = |story: &str, accepted: bool, header: &str, value: &str| {
        let mut case = Case { story: story.to_owned(), good: accepted, ..good.clone() };
        case.got.headers.insert(header.to_owned(), value.to_owned());
        case
    };
    let signed = |story: &str, accepted: bool, value: &str| with(story, accepted, "webhook-signature", value);
    let mut cases = vec![
        good.clone(),
        signed("an empty signature", false, "v1,"),
        signed("a part of it", false, &signature[..8]),
        signed("another one", false, other),
        signed("it without a version", false, &signature[3..]),
        signed("it as another version", false, &signature.replace("v1,", "v2,")),
        signed("TV5", true, &format!("{other} {} {signature} {other}", other.replace("v1,", "v2,"))),
        signed("beside v1a", true, &format!("v1a,{} {signature}", &other[3..])),
    ];
    for header in SIGNED {
        let mut case = Case { story: format!("no {header}"), good: false, ..good.clone() };
        case.got.headers.remove(header);
        cases.push(case);
    }
    for text in ["", "soon", "-1", "1.5", "99999999999999999999"] {
        cases.push(with(&format!("at {text:?}"), false, "webhook-timestamp", text));
    }
    // Signed by ourselves for other times: what a receiver's tolerance is for.
    let key = SigningKey::parse(secret, SignaturePreset::Standard).unwrap();
    let now: u64 = got.headers["webhook-timestamp"].parse().unwrap();
    for (at, accepted) in
        [(now - 240, true), (now + 240, true), (now - 301, false), (now + 360, false), (1_000 * now, false)]
    {
        let signature = key.sign(&got.headers["webhook-id"], at, got.body.as_bytes());
        let mut case = with(&format!("signed for {at} at {now}"), accepted, "webhook-signature", &signature);
        case.got.headers.insert("webhook-timestamp".to_owned(), at.to_string());
        cases.push(case);
    }
    judge_in_rust(&cases);
    judge_all(&cases);
}

/// Both formats with each kind of signature, before and during a rotation.
#[tokio::test]
async fn every_format_verifies_with_every_signature_in_three_languages() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let mut cases = Vec::new();
    for format in ["standard", "cloudevents"] {
        for (signature, kind, scheme) in [
            ("standard", "hmac", "standard"),
            ("standard", "ed25519", "ed25519"),
            ("stripe", "hmac", "stripe"),
            ("github", "hmac", "github"),
        ] {
            let story = |what: &str| format!("{format}, {signature}, {kind}: {what}");
            let receiver = Receiver::status(204).await;
            let options =
                json!({"url": receiver.url, "format": format, "signature": signature, "secretType": kind});
            let first = daemon.post("/endpoints", &options.to_string()).await;
            let path = format!("/endpoints/{}", first["id"].as_str().unwrap());
            daemon.post("/events", EVENT).await;
            receiver.until(1).await;
            let rotate = json!({"secretType": kind}).to_string();
            let second = daemon.post(&format!("{path}/secret/rotate"), &rotate).await;
            daemon.post("/events", EVENT).await;
            let got = receiver.until(2).await;
            daemon.call("DELETE", &path, &[], "").await;
            let media = if format == "standard" {
                "application/json"
            } else {
                "application/cloudevents+json; charset=utf-8"
            };
            assert_eq!(got[0].headers["content-type"], media);
            let member = if kind == "ed25519" { "publicKey" } else { "secret" };
            let [old, new] = [&first, &second].map(|shown| shown[member].as_str().unwrap());
            cases.push(Case::good(&story("before"), scheme, old, &got[0]));
            cases.push(Case::good(&story("the new key"), scheme, new, &got[1]));
            // GitHub's header has room for one signature.
            let old_signs = scheme != "github";
            cases.push(Case { good: old_signs, ..Case::good(&story("the old key"), scheme, old, &got[1]) });
            cases.push(Case { good: false, ..Case::good(&story("a key to come"), scheme, new, &got[0]) });
        }
    }
    assert_eq!(cases.len(), 32);
    judge_in_rust(&cases);
    judge_all(&cases);
}

#[tokio::test]
async fn both_secrets_of_a_rotation_verify_for_stripe() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let body = json!({"url": receiver.url, "signature": "stripe", "secret": "the_first_secret"});
    let made = daemon.post("/endpoints", &body.to_string()).await;
    let rotate = format!("/endpoints/{}/secret/rotate", made["id"].as_str().unwrap());
    daemon.post(&rotate, r#"{"secret":"the_second_secret"}"#).await;
    daemon.post("/events", EVENT).await;
    let got = receiver.until(1).await.remove(0);
    judge_all(&["the_first_secret", "the_second_secret"].map(|key| Case::good(key, "stripe", key, &got)));
}

/// A request that a publisher's SDK made.
struct Made {
    story: String,
    headers: Vec<(String, String)>,
    body: String,
    /// What an SDK must read of it in the end.
    read: Value,
}

/// Each CloudEvent as Python and as JavaScript post it, in both modes; each with a source of its own.
fn made(events: &[(Value, Value)]) -> Vec<Made> {
    let mut cases = Vec::new();
    for (asked, _) in events {
        for mode in ["structured", "binary"] {
            let got = Got { body: asked.to_string(), ..Got::default() };
            cases.push(Case::good(mode, "make-cloudevent", mode, &got));
        }
    }
    let (python, node) = judge_all(&cases);
    let mut all = Vec::new();
    for (judge, answers) in [("Python", python), ("JavaScript", node)] {
        for (number, (case, answer)) in cases.iter().zip(answers).enumerate() {
            let (asked, data) = &events[number / 2];
            let source = format!("https://a.example/{judge}/{number}");
            let own = |text: &str| text.replace("https://a.example/source", &source);
            let headers = answer["read"]["headers"].as_object().unwrap().iter();
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), own);
            let headers = headers.map(|(name, value)| (name.clone(), text(value)));
            let body = STANDARD.decode(answer["read"]["body"].as_str().unwrap()).unwrap();
            let mut attributes = asked["attributes"].clone();
            attributes["source"] = json!(source);
            attributes.as_object_mut().unwrap().remove("time");
            all.push(Made {
                story: format!("{judge}, {}", case.key),
                headers: headers.collect(),
                body: own(&String::from_utf8(body).unwrap()),
                read: json!({"attributes": attributes, "data": data}),
            });
        }
    }
    all
}

#[tokio::test]
async fn cloudevents_that_the_sdks_post_are_read_by_the_sdks_as_they_were() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let endpoint = json!({"url": receiver.url, "format": "cloudevents"});
    let secret =
        daemon.post("/endpoints", &endpoint.to_string()).await["secret"].as_str().unwrap().to_owned();
    let event = |media: &str, data: Value| {
        let attributes = json!({"specversion": "1.0", "id": "a.1/2", "source": "https://a.example/source",
            "type": "com.example.order.paid", "subject": "orders/42", "time": "2026-03-13T10:35:00.123+00:00",
            "datacontenttype": media, "dataschema": "https://a.example/schema", "traceid": "abc", "sequence": "0007"});
        (json!({"attributes": attributes, "data": data}), data)
    };
    let events = [
        event("application/json", json!({"order": 42, "note": "é 😀"})),
        event("text/xml", json!("<order/>")),
    ];
    let made = made(&events);
    let mut cases = Vec::new();
    for made in &made {
        let headers: Vec<_> =
            made.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (status, answer, _) = daemon.call("POST", "/events", &headers, &made.body).await;
        assert_eq!(status, 202, "{}: {headers:?} {} {answer}", made.story, made.body);
        let got = receiver.until(cases.len() + 1).await.pop().unwrap();
        let sent: Value = serde_json::from_str(&got.body).unwrap();
        assert!(sent["time"].as_str().unwrap().starts_with("2026-03-13T10:35:00.123"), "{sent}");
        cases.push(Case::good(&made.story, "cloudevent", "", &got));
    }
    // The signature is over the CloudEvent as it is sent.
    let signed: Vec<_> =
        cases.iter().map(|case| Case { scheme: "standard", key: secret.clone(), ..case.clone() }).collect();
    judge_in_rust(&signed);
    cases.extend(signed);
    let (python, node) = judge_all(&cases);
    for (made, answers) in made.iter().zip(python.iter().zip(&node)) {
        assert_eq!((&answers.0["read"], &answers.1["read"]), (&made.read, &made.read), "{}", made.story);
    }
}

/// A CloudEvent as an SDK is asked to make it, and its data.
fn asked_event(changes: Value, data: Value) -> (Value, Value) {
    let mut attributes = json!({"specversion": "1.0", "id": "a.1/2", "source": "https://a.example/source",
        "type": "com.example.order.paid", "datacontenttype": "application/json"});
    for (name, value) in changes.as_object().unwrap() {
        attributes[name] = value.clone();
    }
    (json!({"attributes": attributes, "data": data}), data)
}

/// Posts what SDKs have made, and puts what is delivered before the SDKs.
async fn go_through(daemon: &Daemon, receiver: &Receiver, made: &[Made]) {
    let mut cases = Vec::new();
    for made in made {
        let headers: Vec<_> =
            made.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (status, answer, _) = daemon.call("POST", "/events", &headers, &made.body).await;
        assert_eq!(status, 202, "{}: {headers:?} {} {answer}", made.story, made.body);
        let got = receiver.until(cases.len() + 1).await.pop().unwrap();
        cases.push(Case::good(&made.story, "cloudevent", "", &got));
    }
    let (python, node) = judge_all(&cases);
    for (made, (python, node)) in made.iter().zip(python.iter().zip(&node)) {
        assert_eq!((&python["read"], &node["read"]), (&made.read, &made.read), "{}", made.story);
    }
}

#[tokio::test]
async fn what_the_sdks_cannot_write_plainly_comes_out_as_it_was() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "format": "cloudevents"}).to_string()).await;
    // Percent-encoded by Python in binary mode; JavaScript writes such headers raw, which no HTTP client sends.
    let foreign = asked_event(json!({"subject": "Euro € 😀", "note": "100% \"x\""}), json!({"order": "é"}));
    let typed = asked_event(json!({"id": "typed", "count": -7, "flag": true, "text": "7"}), json!([1, 2]));
    let mut made = made(&[foreign, typed]);
    // Types are lost in headers, and so are in the SDKs.
    made.retain(|made| made.story.ends_with("structured") || made.read["attributes"]["flag"].is_null());
    made.retain(|made| made.story != "JavaScript, binary");
    assert_eq!(made.len(), 5);
    let encoded = made
        .iter()
        .flat_map(|made| &made.headers)
        .any(|(name, value)| name == "ce-subject" && value == "Euro%20%E2%82%AC%20%F0%9F%98%80");
    assert!(encoded, "nobody has percent-encoded anything");
    go_through(&daemon, &receiver, &made).await;
}

#[tokio::test]
async fn a_batch_that_the_sdks_read_is_taken_and_each_event_delivered_as_it_was_read() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let endpoint = json!({"url": receiver.url, "format": "cloudevents", "ordering": "endpoint"});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let events = [
        asked_event(json!({"subject": "Euro € 😀", "count": 7}), json!({"order": 42})),
        asked_event(json!({"id": "2", "traceid": "abc"}), json!("text")),
    ];
    let mut made = made(&events);
    made.retain(|made| made.story.ends_with("structured"));
    let bodies: Vec<_> = made.iter().map(|made| made.body.as_str()).collect();
    let body = format!("[{}]", bodies.join(","));
    let media = ("content-type", "application/cloudevents-batch+json");
    let headers = HashMap::from([(media.0.to_owned(), media.1.to_owned())]);
    let batch = Case::good(
        "a batch",
        "cloudevents-batch",
        "",
        &Got { headers, body: body.clone(), ..Got::default() },
    );
    let (python, node) = judge_all(&[batch]);
    let read: Vec<_> = made.iter().map(|made| made.read.clone()).collect();
    assert_eq!((&python[0]["read"], &node[0]["read"]), (&json!(read), &json!(read)));
    let (status, answer, _) = daemon.call("POST", "/events", &[media], &body).await;
    let results = answer["results"].as_array().unwrap();
    assert!(status == 202 && results.iter().all(|result| result["status"] == 202), "{answer}");
    let cases: Vec<_> = receiver
        .until(4)
        .await
        .iter()
        .map(|got| Case::good("one of a batch", "cloudevent", "", got))
        .collect();
    let (python, node) = judge_all(&cases);
    for answers in [python, node] {
        let delivered: Vec<_> = answers.iter().map(|answer| answer["read"].clone()).collect();
        assert_eq!(delivered, read);
    }
}

/// Nothing that the JSON Schema of the specification refuses is taken.
#[tokio::test]
async fn what_the_schema_of_cloudevents_refuses_is_refused() {
    install();
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let event = json!({"specversion": "1.0", "id": "1", "source": "/x", "type": "a", "subject": "s", "time": "2026-03-13T10:35:00Z",
        "dataschema": "https://a.example/s", "datacontenttype": "text/xml", "data": {"a": 1}, "extension": "x"});
    let mut rows: Vec<(Value, bool)> = vec![(event.clone(), true)];
    for name in [
        "specversion",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "dataschema",
        "datacontenttype",
        "data",
        "extension",
    ] {
        let mut without = event.clone();
        without.as_object_mut().unwrap().remove(name);
        rows.push((without, !["specversion", "id", "source", "type"].contains(&name)));
        if name != "data" && name != "extension" {
            for value in [json!(""), json!(7), json!({}), json!([]), json!(true)] {
                let mut wrong = event.clone();
                wrong[name] = value;
                rows.push((wrong, false));
            }
        }
    }
    for (name, value) in
        [("time", "yesterday"), ("time", "2026-13-13T10:35:00Z"), ("dataschema", "a b"), ("source", "a b")]
    {
        let mut wrong = event.clone();
        wrong[name] = json!(value);
        rows.push((wrong, false));
    }
    let case = |(event, good): &(Value, bool)| {
        let got = Got { body: event.to_string(), ..Got::default() };
        Case { good: *good, ..Case::good(&event.to_string(), "cloudevent-schema", "", &got) }
    };
    let cases: Vec<_> = rows.iter().map(case).collect();
    let mut python = Command::new(root().join("target/judges/venv/bin/python"));
    judge(python.current_dir(root()).arg("tests/judges/judge.py"), &cases);
    for (event, good) in rows {
        let headers = [("content-type", "application/cloudevents+json")];
        let (status, answer, _) = daemon.call("POST", "/events?tenant=t", &headers, &event.to_string()).await;
        // The same id and source with other data is another matter.
        let known = answer["code"] == "idempotency_mismatch";
        assert_eq!(status == 202 || known, good, "{event}: {answer}");
    }
}

#[tokio::test]
async fn our_own_events_are_cloudevents_where_an_endpoint_wants_them() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let event = r#"{"type":"order.paid","tenant":"acme","stream":"order-42","timestamp":"2026-03-13T10:35:00.000Z","data":{"order":1.5}}"#;
    let options = json!({"format": "cloudevents", "tenant": "acme"});
    let (_, got) = delivered(&daemon, options, event).await;
    assert_eq!(got.headers["content-type"], "application/cloudevents+json; charset=utf-8");
    let good = Case::good("our own event", "cloudevent", "", &got);
    let broken = |from: &str, to: &str| {
        let mut case = Case { good: false, story: format!("{from} changed"), ..good.clone() };
        case.got.body = case.got.body.replacen(from, to, 1);
        assert_ne!(case.got.body, good.got.body);
        case
    };
    let cases = [
        good.clone(),
        broken(r#""source":"/acme""#, r#""source":"""#),
        broken(r#""type":"order.paid""#, r#""type":7"#),
    ];
    let (python, node) = judge_all(&cases);
    let expected = json!({"attributes": {"specversion": "1.0", "id": got.headers["webhook-id"], "source": "/acme",
        "type": "order.paid", "subject": "order-42", "datacontenttype": "application/json"}, "data": {"order": 1.5}});
    assert_eq!((&python[0]["read"], &node[0]["read"]), (&expected, &expected));
}

/// What a publisher sends, put to the SDKs of OpenTelemetry as a receiver would; and what Balto made of it, likewise.
#[tokio::test]
async fn traces_go_on_as_the_sdks_of_opentelemetry_read_them() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "trace": true}).to_string()).await;
    const TRACE: &str = "12345678901234567890123456789012";
    const SPAN: &str = "1234567890123456";
    let vectors = [
        (format!("00-{TRACE}-{SPAN}-00"), true),
        (format!("00-{TRACE}-{SPAN}-01"), true),
        (format!("00-{TRACE}-{SPAN}-02"), true),
        (format!("00-{TRACE}-{SPAN}-03"), true),
        (format!("cc-{TRACE}-{SPAN}-01"), true),
        (format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"), true),
        (format!("cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like"), false),
        (format!("00-{TRACE}-{SPAN}-01-what-the-future-will-be-like"), false),
        (format!("00-{TRACE}-{SPAN}-01."), false),
        (format!("ff-{TRACE}-{SPAN}-01"), false),
        (format!("0-{TRACE}-{SPAN}-01"), false),
        (format!("00-{}-{SPAN}-01", "0".repeat(32)), false),
        (format!("00-{TRACE}-{}-01", "0".repeat(16)), false),
        (format!("00-{TRACE}3-{SPAN}-01"), false),
        (format!("00-{TRACE}-{SPAN}7-01"), false),
        (format!("00-{TRACE}-{SPAN}-1"), false),
        (format!("00-.{}-{SPAN}-01", &TRACE[1..]), false),
    ];
    let case = |story: String, good: bool, got: Got| Case { good, ..Case::good(&story, "trace", "", &got) };
    let mut asked = Vec::new();
    let mut sent = Vec::new();
    for (number, (vector, good)) in vectors.iter().enumerate() {
        let headers = HashMap::from([("traceparent".to_owned(), vector.clone())]);
        asked.push(case(format!("{vector} as it came"), *good, Got { headers, ..Got::default() }));
        let body = r#"{"type":"a","data":1}"#;
        let (status, ..) = daemon.call("POST", "/events", &[("traceparent", vector)], body).await;
        assert_eq!(status, 202, "{vector}");
        let got = receiver.until(number + 1).await.pop().unwrap();
        sent.push(case(format!("{vector} as it was sent on"), *good, got));
    }
    let (python, node) = judge_all(&[asked, sent].concat());
    let count = vectors.len();
    for answers in [&python, &node] {
        let mut spans = vec![json!(SPAN)];
        for (before, after) in
            answers[..count].iter().zip(&answers[count..]).filter(|(one, _)| one["accepted"] == true)
        {
            let (before, after) = (&before["read"], &after["read"]);
            assert_eq!((&before["trace"], &before["flags"]), (&after["trace"], &after["flags"]));
            assert!(!spans.contains(&after["span"]), "{after}");
            spans.push(after["span"].clone());
        }
        assert_eq!(spans.len(), 7);
    }
}
