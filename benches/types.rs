//! Event types: the cost of a schema check and of a conversion, and ingest with a registered type
//! beside ingest without.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark ends on an error, and prints its results"
)]

mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balto::domain::{
    Compatibility, EventType, EventVersion, Position, Timestamp, TypeDefinition, TypeMigration, TypeVersion,
};
use balto::schemas::registered::RegisteredType;
use support::{Subject, connect, judge, median, posts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const RUN: Duration = Duration::from_secs(1);
const WRITERS: usize = 64;
const EVENTS: usize = 10_000;
const ROUNDS: usize = 9;

const CHECK_MICROS_MAX: f64 = 5.0;
const CONVERT_MICROS_MAX: f64 = 10.0;
const INGEST_RATIO_MIN: f64 = 0.90;

/// The members that both versions have, and their definitions.
const COMMON: &str = r##"
    "order":{"type":"string","minLength":1,"maxLength":64},
    "items":{"type":"array","minItems":1,"items":{"$ref":"#/$defs/item"}},
    "total":{"type":"number","minimum":0},
    "note":{"type":"string","maxLength":1000}},
  "$defs":{
    "person":{"type":"object","required":["name","email"],"properties":{
        "name":{"type":"string"},"email":{"type":"string"},"city":{"type":"string"}}},
    "item":{"type":"object","required":["sku","quantity"],"properties":{
        "sku":{"type":"string"},"quantity":{"type":"integer","minimum":1},"price":{"type":"number"}}}}"##;
/// Version 1.0 has a customer; version 2.0 has a buyer and a currency.
const OWN: [&str; 2] = [
    r##""required":["order","customer","items","total"],"properties":{"customer":{"$ref":"#/$defs/person"},"##,
    r##""required":["order","buyer","items","total","currency"],"properties":{"buyer":{"$ref":"#/$defs/person"},"currency":{"enum":["EUR","USD","GBP"]},"##,
];
const UP: &str =
    r#"[{"op":"move","from":"/customer","path":"/buyer"},{"op":"add","path":"/currency","value":"EUR"}]"#;
const DOWN: &str = r#"[{"op":"move","from":"/buyer","path":"/customer"},{"op":"remove","path":"/currency"}]"#;

fn main() {
    costs();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(ingest());
}

/// An order of 700 bytes.
fn data() -> String {
    let items: Vec<_> = (0..4)
        .map(|number| format!(r#"{{"sku":"pet-food-{number:04}","quantity":{},"price":12.5}}"#, number + 1))
        .collect();
    let order = format!(
        r#"{{"order":"ord-2026-000017","customer":{{"name":"Ada Lovelace","email":"ada@example.com","city":"London"}},"items":[{}],"total":125,"note":""#,
        items.join(",")
    );
    let note = "x".repeat(700 - order.len() - 2);
    format!(r#"{order}{note}"}}"#)
}

fn schemas() -> [String; 2] {
    OWN.map(|own| format!(r#"{{"type":"object",{own}{COMMON}}}"#))
}

fn definition() -> TypeDefinition {
    let version = |text: &str| text.parse::<EventVersion>().unwrap();
    let ([first, second], schemas) = (["1.0", "2.0"].map(version), schemas());
    let typed = |version: &EventVersion, schema: &str| TypeVersion {
        version: version.clone(),
        schema: schema.into(),
        deprecated: false,
        sunset: None,
        examples: Vec::new(),
    };
    let migration = |from: &EventVersion, to: &EventVersion, patch: &str| TypeMigration {
        from: from.clone(),
        to: to.clone(),
        patch: patch.into(),
    };
    TypeDefinition {
        name: "order.paid".parse::<EventType>().unwrap(),
        description: "".into(),
        compatibility: Compatibility::Forward,
        transitive: false,
        versions: vec![typed(&first, &schemas[0]), typed(&second, &schemas[1])],
        migrations: vec![migration(&first, &second, UP), migration(&second, &first, DOWN)],
        state: None,
        created_at: Timestamp::from_millis(0),
        updated_at: Timestamp::from_millis(0),
        revision: Position(1),
    }
}

fn costs() {
    let registered = RegisteredType::new(Arc::new(definition()));
    let [first, second] = [0, 1].map(|at: usize| registered.definition().versions[at].version.clone());
    let data = data();
    registered.check(&first, data.as_bytes()).unwrap();
    let check = micros(|| registered.check(&first, black_box(data.as_bytes())).unwrap());
    let newer = registered.convert(&first, &second, data.as_bytes()).unwrap();
    registered.check(&second, &newer.data).unwrap();
    let convert = micros(|| {
        black_box(registered.convert(&first, &second, black_box(data.as_bytes())).unwrap());
    });
    let parse = micros(|| {
        black_box(serde_json::from_slice::<serde_json::Value>(black_box(data.as_bytes())).unwrap());
    });
    println!("parsing of {} bytes alone: {parse:.1} us", data.len());
    judge(check < CHECK_MICROS_MAX, &format!("a schema check: {check:.1} us, below {CHECK_MICROS_MAX}"));
    judge(
        convert < CONVERT_MICROS_MAX,
        &format!("a conversion with its check: {convert:.1} us, below {CONVERT_MICROS_MAX}"),
    );
}

/// Mean time of one call.
fn micros(mut call: impl FnMut()) -> f64 {
    let (started, mut calls) = (Instant::now(), 0_u32);
    while started.elapsed() < RUN {
        for _ in 0..100 {
            call();
        }
        calls += 100;
    }
    started.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
}

async fn ingest() {
    let subject = Subject::start().await;
    let port = subject.port;
    register(port).await;
    let event = |name: &str| format!(r#"{{"type":"{name}","version":"1.0","data":{}}}"#, data());
    let (known, unknown) = (event("order.paid"), event("order.sent"));
    let (mut ratios, mut rates) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        let without = posts(port, "/v1/events", std::slice::from_ref(&unknown), WRITERS, EVENTS).await;
        let with = posts(port, "/v1/events", std::slice::from_ref(&known), WRITERS, EVENTS).await;
        ratios.push(with / without);
        rates[0].push(without);
        rates[1].push(with);
    }
    let (ratio, [without, with]) = (median(ratios), rates.map(median));
    judge(
        ratio >= INGEST_RATIO_MIN,
        &format!(
            "ingest with a registered type: {with:.0} events/s of {without:.0} without, {ratio:.2}, at least {INGEST_RATIO_MIN}"
        ),
    );
}

async fn register(port: u16) {
    let schemas = schemas();
    let body = format!(
        r#"{{"versions":{{"1.0":{{"schema":{}}},"2.0":{{"schema":{}}}}},"migrations":[{{"from":"1.0","to":"2.0","patch":{UP}}},{{"from":"2.0","to":"1.0","patch":{DOWN}}}]}}"#,
        schemas[0], schemas[1]
    );
    let mut stream = connect(port).await;
    let request = format!(
        "PUT /v1/event-types/order.paid HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}
