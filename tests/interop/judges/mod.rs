//! Real deliveries, checked by verifiers in other languages. Each request is captured at a receiver
//! and passed to the existing verifiers for Rust, Python and JavaScript. They must accept the
//! original, and refuse it after a change of any signed part.

mod sdks;

use std::path::Path;
use std::process::Command;

use balto::domain::SignaturePreset;
use balto::rules::signature::SigningKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::judges::{install, python, root, run};
use crate::support::{Daemon, ReceivedRequest, Receiver};

/// One captured request: the signature scheme and the receiver's key.
#[derive(Clone, Debug)]
struct Case {
    story: String,
    scheme: &'static str,
    key: String,
    got: ReceivedRequest,
    good: bool,
}

impl Case {
    fn good(story: &str, scheme: &'static str, key: &str, got: &ReceivedRequest) -> Self {
        Self { story: story.to_owned(), scheme, key: key.to_owned(), got: got.clone(), good: true }
    }

    fn line(&self) -> String {
        let case = json!({
            "scheme": self.scheme, "headers": self.got.headers, "body": STANDARD.encode(&self.got.body), "key": self.key,
        });
        format!("{case}\n")
    }

    /// The same request with one change: the body, each header of `signed`, the key.
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
            // The last base64 character before the padding may carry no information; the one before
            // it always does.
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
    assert_eq!(answers.len(), cases.len(), "output of {judge}:\n{words}");
    for (case, answer) in cases.iter().zip(&answers) {
        assert_eq!(answer["accepted"], case.good, "{}: {judge} says {answer} of {:?}", case.story, case.got);
    }
    answers
}

/// The verdicts of Python and JavaScript, with the parsed requests.
fn judge_all(cases: &[Case]) -> (Vec<Value>, Vec<Value>) {
    install();
    let judges = Path::new("tests/judges");
    let mut python = python("python");
    let mut node = Command::new(root().join("target/judges/node"));
    let python = judge(python.arg(judges.join("judge.py")), cases);
    let node = judge(node.current_dir(root()).arg(judges.join("judge.mjs")), cases);
    (python, node)
}

/// The verdicts of Rust: the standard's library, and plain cryptography where it has no support.
fn judge_in_rust(cases: &[Case]) {
    for case in cases {
        let good = match case.scheme {
            "standard" => standard_in_rust(case),
            "ed25519" => ed25519_in_rust(case),
            "stripe" => stripe_in_rust(case),
            // Only Svix's own libraries read its header names.
            "svix" | "custom" => continue,
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

/// Registers an endpoint, posts one event, and returns the endpoint and the captured request.
async fn delivered(daemon: &Daemon, options: Value, body: &str) -> (Value, ReceivedRequest) {
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
async fn both_secrets_verify_during_a_rotation_the_new_one_after() {
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
        let case = Case::good("the secret after the end of its overlap", "standard", ended, &got[1]);
        cases.push(Case { good: false, ..case });
    }
    judge_in_rust(&cases);
    judge_all(&cases);
}

#[tokio::test]
async fn ed25519_signatures_verify_with_the_shown_public_key() {
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
    // Rotated to an HMAC key: both sign during the overlap, and each verifier checks its own.
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
async fn stripe_and_github_presets_verify_with_the_secrets() {
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

/// The published rejections (TVn), derived from a real delivery; and TV5, which must be accepted.
#[tokio::test]
async fn verifiers_reject_the_published_bad_variants() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (made, got) = delivered(&daemon, json!({}), EVENT).await;
    let secret = made["secret"].as_str().unwrap();
    let good = Case::good("unchanged", "standard", secret, &got);
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
        signed("a truncated signature", false, &signature[..8]),
        signed("another one", false, other),
        signed("a signature without a version", false, &signature[3..]),
        signed("a signature of another version", false, &signature.replace("v1,", "v2,")),
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
    // Signed by the test for other times: the tolerance of the receiver.
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
async fn every_format_verifies_with_every_signature() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let mut cases = Vec::new();
    for format in ["standard", "cloudevents", "raw"] {
        for (signature, kind, scheme) in [
            ("standard", "hmac", "standard"),
            ("standard", "ed25519", "ed25519"),
            ("stripe", "hmac", "stripe"),
            ("github", "hmac", "github"),
            ("svix", "hmac", "svix"),
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
            let media = if format == "cloudevents" {
                "application/cloudevents+json; charset=utf-8"
            } else {
                "application/json"
            };
            assert_eq!(got[0].headers["content-type"], media);
            let member = if kind == "ed25519" { "publicKey" } else { "secret" };
            let [old, new] = [&first, &second].map(|shown| shown[member].as_str().unwrap());
            cases.push(Case::good(&story("before"), scheme, old, &got[0]));
            cases.push(Case::good(&story("the new key"), scheme, new, &got[1]));
            // GitHub's header has room for one signature.
            let old_signs = scheme != "github";
            cases.push(Case { good: old_signs, ..Case::good(&story("the old key"), scheme, old, &got[1]) });
            cases.push(Case {
                good: false,
                ..Case::good(&story("a key of a later rotation"), scheme, new, &got[0])
            });
        }
    }
    assert_eq!(cases.len(), 60);
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

/// One request with all schemes, during a rotation, and with a template and a method.
#[tokio::test]
async fn all_signatures_of_one_request_verify() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let own = json!({"header": "X-Acme-Signature", "algorithm": "sha512", "encoding": "base64",
        "template": "v0:{timestamp}:{body}", "value": "v0={signature}", "separator": ", "});
    let template = r#"{"order": {{ data.orderId }}, "note": {{ data.note }}}"#;
    let body = json!({"url": receiver.url, "signature": ["standard", "svix", "stripe", "github", own],
        "request": {"method": "PUT", "body": template}});
    let first = daemon.post("/endpoints", &body.to_string()).await;
    let rotate = format!("/endpoints/{}/secret/rotate", first["id"].as_str().unwrap());
    let second = daemon.post(&rotate, "").await;
    daemon.post("/events", EVENT).await;
    let got = receiver.until(1).await.remove(0);
    assert_eq!(got.method, "PUT");
    let [first, second] = [&first, &second].map(|shown| shown["secret"].as_str().unwrap());
    let mut cases = Vec::new();
    for scheme in ["standard", "svix", "stripe", "custom", "github"] {
        let case = Case::good(&format!("{scheme}, the new secret"), scheme, second, &got);
        cases.extend(case.tampered(&[], OTHER_SECRET));
        let old_signs = scheme != "github";
        cases.push(Case {
            good: old_signs,
            ..Case::good(&format!("{scheme}, the old secret"), scheme, first, &got)
        });
        cases.push(case);
    }
    judge_in_rust(&cases);
    judge_all(&cases);
}
