//! Patterns of event types, against bindings of the broker's topic exchange.

use std::collections::BTreeSet;

use balto::domain::{EventType, Pattern};
use balto::rules::matching::pattern_matches;
use serde_json::{Value, json};

use super::broker::broker;
use crate::support::{Daemon, number, seed};

/// Distinct names of 1 to 5 words, which are legal in event types and in routing keys.
fn names(chance: &mut fastrand::Rng, words: &[&str], count: usize) -> Vec<String> {
    let mut names = BTreeSet::new();
    while names.len() < count {
        let name: Vec<_> = (0..chance.usize(1..=5)).map(|_| words[chance.usize(..words.len())]).collect();
        names.insert(name.join("."));
    }
    names.into_iter().collect()
}

fn types(events: impl IntoIterator<Item = Value>) -> BTreeSet<String> {
    events.into_iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

/// The types of the messages in a queue, which are at least `count`.
async fn received(daemon: &Daemon, queue: &str, count: usize) -> BTreeSet<String> {
    let mut found = Vec::new();
    while found.len() < count {
        let page = daemon.post(&format!("/queues/{queue}/receive"), r#"{"max":100,"wait":"20s"}"#).await;
        let messages = page["messages"].as_array().unwrap();
        assert!(!messages.is_empty(), "{queue} has {} of {count} messages", found.len());
        found.extend(messages.iter().map(|message| message["event"].clone()));
    }
    types(found)
}

/// The rule itself, the targets of accepted events, and the filter of the feed.
#[tokio::test]
async fn topic_patterns_agree_with_the_broker() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let mut chance = fastrand::Rng::with_seed(seed());
    // 50 patterns and 100 keys.
    let pairs = number("BALTO_TEST_TOPIC_PAIRS").unwrap_or(5_000) as f64;
    let count = (pairs / 2.0).sqrt().ceil() as usize;
    let patterns = names(&mut chance, &["a", "B_2", "c-1", "*", "*", "#"], count);
    let keys = names(&mut chance, &["a", "B_2", "c-1"], 2 * count);
    let routed = broker.ask(&json!({"op": "topics", "patterns": patterns, "keys": keys}));
    let routed: Vec<BTreeSet<String>> = serde_json::from_value(routed).unwrap();
    let (matches, pairs) = (routed.iter().map(BTreeSet::len).sum::<usize>(), keys.len() * patterns.len());
    assert!((pairs / 50..pairs).contains(&matches), "{matches} of {pairs} pairs match");

    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for (number, pattern) in patterns.iter().enumerate() {
        let queue = json!({"name": format!("q-{number}"), "eventTypes": [pattern]});
        daemon.post("/queues", &queue.to_string()).await;
    }
    let events: Vec<_> = keys.iter().map(|key| json!({"type": key, "data": 1})).collect();
    let published = daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
    for (key, result) in keys.iter().zip(published["results"].as_array().unwrap()) {
        let expected = routed.iter().filter(|keys| keys.contains(key)).count();
        assert_eq!(result["deliveries"], expected, "{key}: {result}");
    }
    for (number, (pattern, routed)) in patterns.iter().zip(&routed).enumerate() {
        let parsed: Pattern = pattern.parse().unwrap();
        let is_match = |key: &&String| pattern_matches(&parsed, &key.parse::<EventType>().unwrap());
        let ours: BTreeSet<_> = keys.iter().filter(is_match).cloned().collect();
        assert_eq!(ours, *routed, "the rule for {pattern}");
        let queue = format!("q-{number}");
        assert_eq!(received(&daemon, &queue, routed.len()).await, *routed, "the queue with {pattern}");
        let path = format!("/feed?after=oldest&limit=1000&types={}", pattern.replace('#', "%23"));
        let feed = daemon.get(&path).await["data"].as_array().unwrap().clone();
        assert_eq!(types(feed), *routed, "the feed with {pattern}");
    }
}
