//! Filters of tests, with their meaning in plain code.

use serde_json::{Value, json};

use crate::domain::{EventSelection, EventType, Label};

/// A filter, and its meaning.
pub(crate) struct SampleFilter {
    pub(crate) text: &'static str,
    accepts: fn(&Value, &EventType) -> bool,
}

/// For the events of the simulation and of the conformance suite.
pub(crate) const SAMPLES: [SampleFilter; 4] = [
    SampleFilter {
        text: r#"{"data":{"body":{"$gte":100}}}"#,
        accepts: |data, _| data["body"].as_u64().is_some_and(|body| body >= 100),
    },
    SampleFilter {
        text: r#"{"data":{"more":{"$startsWith":"xx"}}}"#,
        accepts: |data, _| data["more"].as_str().is_some_and(|more| more.len() > 1),
    },
    SampleFilter {
        text: r#"{"$or":[{"type":"order.paid"},{"data.body":{"$in":[0,1,2]}}]}"#,
        accepts: |data, kind| {
            kind.as_str() == "order.paid" || data["body"].as_u64().is_some_and(|body| body < 3)
        },
    },
    SampleFilter {
        text: r#"{"data":{"body":{"$not":{"$lt":50}},"more":{"$ne":""}},"type":{"$endsWith":"d"}}"#,
        accepts: |data, kind| {
            let is_small = data["body"].as_u64().is_some_and(|body| body < 50);
            !is_small && data["more"] != "" && kind.as_str().ends_with('d')
        },
    },
];

/// Whether the labels and the content of an event are wanted, by plain code.
pub(crate) fn wants(
    selection: &EventSelection,
    event_type: &EventType,
    labels: &[Label],
    data: &[u8],
) -> bool {
    let shared = selection.labels.iter().filter(|label| labels.contains(label)).count();
    if !selection.labels.is_empty() && shared == 0 {
        return false;
    }
    let Some(text) = selection.filter.as_deref() else { return true };
    let sample = SAMPLES.iter().find(|sample| sample.text == text).expect("a filter of these");
    (sample.accepts)(&serde_json::from_slice(data).expect("data of tests"), event_type)
}

/// A selection for this number: often everything.
pub(crate) fn selection(number: u64) -> EventSelection {
    let filter = SAMPLES.get((number % 9) as usize).map(|sample| sample.text.into());
    let labels: &[&str] = match number / 9 % 8 {
        0 => &["eu"],
        1 => &["eu", "us"],
        _ => &[],
    };
    EventSelection { filter, labels: parse_labels(labels) }
}

/// Labels of an event for this number: often none.
pub(crate) fn labels(number: u64) -> Vec<Label> {
    let labels: &[&str] = match number % 6 {
        0 => &["eu"],
        1 => &["asia", "us"],
        2 => &["asia"],
        _ => &[],
    };
    parse_labels(labels)
}

fn parse_labels(labels: &[&str]) -> Vec<Label> {
    labels.iter().map(|label| label.parse().expect("a legal label")).collect()
}

/// Mostly legal filters, and some with mistakes.
pub(crate) fn random_filter(random: &mut fastrand::Rng, depth: u32) -> Value {
    let names = ["data", "data.a", "data.a.b", "data.0", "metadata", "type", "labels", "a", "b", "$", "x..y"];
    let operators = [
        "$eq",
        "$ne",
        "$in",
        "$nin",
        "$gt",
        "$gte",
        "$lt",
        "$lte",
        "$exists",
        "$startsWith",
        "$endsWith",
        "$or",
        "$and",
        "$not",
        "$regex",
    ];
    match random.u32(0..if depth == 0 { 5 } else { 10 }) {
        0 => json!(null),
        1 => json!(random.bool()),
        2 => json!(random.i64(-9..9)),
        3 => json!(random.f64() * 1e300),
        4 => json!((0..random.usize(0..5)).map(|_| random.char(..)).collect::<String>()),
        5 => (0..random.usize(0..4)).map(|_| random_filter(random, depth - 1)).collect(),
        _ => {
            let member = |random: &mut fastrand::Rng| {
                let name = if random.bool() { random.choice(names) } else { random.choice(operators) };
                (name.expect("a list").to_owned(), random_filter(random, depth - 1))
            };
            Value::Object((0..random.usize(0..4)).map(|_| member(random)).collect())
        }
    }
}
