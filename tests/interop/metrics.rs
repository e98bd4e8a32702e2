//! Metrics for scrapers and operators: Prometheus's own programs read the exposition and the alert
//! rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::support::judges::{promtool, python, root, run};
use crate::support::{Daemon, Receiver, WAIT_MAX, answer, say};
use serde_json::{Value, json};

/// The value of a sample, given as name and labels.
fn value(metrics: &str, sample: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == sample))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

/// Names and labels.
fn samples(metrics: &str) -> BTreeSet<&str> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect()
}

/// The metrics, once a sample has a wanted value.
async fn until(daemon: &Daemon, sample: &str, wanted: impl Fn(f64) -> bool) -> String {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let metrics = daemon.metrics().await;
        if value(&metrics, sample).is_some_and(&wanted) {
            return metrics;
        }
        assert!(Instant::now() < deadline, "{sample} does not reach its value:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The metrics, once every sample has its expected value.
///
/// The metrics of one occurrence are counted one after the other, and a scrape can fall between
/// them. A value above the expected one never falls again, so counting twice still fails.
async fn until_all(daemon: &Daemon, expected: &[(&str, f64)]) -> String {
    for (sample, expected) in expected {
        until(daemon, sample, |value| value >= *expected).await;
    }
    let metrics = daemon.metrics().await;
    for (sample, expected) in expected {
        assert_eq!(value(&metrics, sample), Some(*expected), "{sample} in\n{metrics}");
    }
    metrics
}

#[tokio::test]
async fn prometheus_reads_the_metrics_without_complaints() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|number, _| answer(if number == 0 { 500 } else { 200 })).await;
    let endpoint = json!({"url": receiver.url, "retry": {"schedule": ["10ms"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    let metrics =
        until(&daemon, r#"balto_deliveries_total{outcome="delivered"}"#, |value| value == 1.0).await;

    let judge = |text: &str| run(python("python").arg("tests/judges/metrics.py"), text);
    let (good, words) = judge(&metrics);
    assert!(good && words.contains("balto_accept_to_delivered_seconds histogram"), "{words}");
    for broken in [
        metrics.replacen(
            "# TYPE balto_events_accepted_total counter",
            "# TYPE balto_events_accepted_total untyped",
            1,
        ),
        metrics.replacen("# HELP balto_ready", "# HULP balto_ready", 1),
        format!("{metrics}{metrics}"),
    ] {
        assert!(!judge(&broken).0, "the judge accepted invalid metrics");
    }
    match promtool() {
        Some(mut promtool) => {
            let (good, words) = run(promtool.args(["check", "metrics"]), &metrics);
            assert!(good && words.trim().is_empty(), "promtool says: {words}");
        }
        None => say("SKIPPED: promtool, which neither the machine nor Debian's mirror has"),
    }
}

#[tokio::test]
async fn metrics_count_each_occurrence_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let fresh = daemon.metrics().await;
    for (name, labels) in [
        ("balto_authentications_refused_total", r#"reason="missing""#),
        ("balto_authentications_refused_total", r#"reason="wrong""#),
        ("balto_authentications_refused_total", r#"reason="tooMany""#),
        ("balto_handshakes_total", r#"outcome="agreed""#),
        ("balto_handshakes_total", r#"outcome="refused""#),
        ("balto_events_refused_total", r#"reason="disk_full""#),
        ("balto_deliveries_dead_total", r#"reason="attemptsExhausted""#),
        ("balto_attempts_total", r#"error="dns",status="none""#),
        ("balto_lanes", r#"reason="circuitOpen""#),
    ] {
        assert_eq!(value(&fresh, &format!("{name}{{{labels}}}")), Some(0.0), "{name} {labels} in\n{fresh}");
    }
    let receiver = Receiver::start(|number, _| answer([500, 410, 200, 200][number.min(3)])).await;
    let endpoint = json!({"url": receiver.url, "maxInFlight": 1, "retry": {"schedule": ["10ms"]}, "ordering": "endpoint"});
    let made = daemon.post("/endpoints", &endpoint.to_string()).await;
    let key = [("idempotency-key", "k")];
    let event = r#"{"type":"a","data":1,"stream":"s","expectedVersion":"none"}"#;
    for expected in [202, 202] {
        assert_eq!(daemon.call("POST", "/events", &key, event).await.0, expected);
    }
    assert_eq!(daemon.call("POST", "/events", &[], event).await.0, 409);
    assert_eq!(daemon.call("POST", "/events", &key, r#"{"type":"a","data":2}"#).await.0, 422);
    assert_eq!(daemon.call("POST", "/events", &[], "{").await.0, 400);
    assert_eq!(daemon.call("GET", "/events/evt_none", &[], "").await.0, 404);
    let batch = r#"{"events":[{"type":"a b","data":1},{"type":"c","data":1}]}"#;
    assert_eq!(daemon.call("POST", "/events/batch", &[], batch).await.0, 202);
    until(&daemon, r#"balto_deliveries_dead_total{reason="gone"}"#, |value| value == 1.0).await;
    // Metrics are counted before the commit: wait for the committed state.
    let endpoint = format!("/endpoints/{}", made["id"].as_str().unwrap());
    daemon.until(&endpoint, |endpoint| endpoint["status"] == "disabled").await;
    daemon.post(&format!("{endpoint}/resume"), "").await;
    let letters = daemon.until("/dead-letters", |letters| letters["data"][0].is_object()).await;
    let letter = letters["data"][0]["deliveryId"].as_str().unwrap();
    daemon.post(&format!("/dead-letters/{letter}/redrive"), "").await;
    let expected = [
        (r#"balto_deliveries_total{outcome="delivered"}"#, 2.0),
        ("balto_ready", 1.0),
        ("balto_events_accepted_total", 2.0),
        ("balto_events_duplicate_total", 1.0),
        (r#"balto_events_refused_total{reason="version_conflict"}"#, 1.0),
        (r#"balto_events_refused_total{reason="idempotency_mismatch"}"#, 1.0),
        (r#"balto_events_refused_total{reason="malformed"}"#, 1.0),
        (r#"balto_events_refused_total{reason="validation_failed"}"#, 1.0),
        (r#"balto_deliveries_total{outcome="dead"}"#, 1.0),
        (r#"balto_attempts_total{error="status",status="5xx"}"#, 1.0),
        (r#"balto_attempts_total{error="status",status="4xx"}"#, 1.0),
        (r#"balto_attempts_total{error="none",status="2xx"}"#, 2.0),
        ("balto_attempt_duration_seconds_count", 4.0),
        ("balto_accept_to_first_attempt_seconds_count", 2.0),
        // A redriven delivery does not count in the delivery time.
        ("balto_accept_to_delivered_seconds_count", 1.0),
        ("balto_retry_wait_seconds_count", 1.0),
    ];
    let metrics = until_all(&daemon, &expected).await;
    assert_eq!(
        value(&metrics, r#"balto_events_refused_total{reason="not_found"}"#),
        None,
        "a GET was counted as an event"
    );
    let appeared: Vec<_> = samples(&metrics).difference(&samples(&fresh)).copied().collect();
    assert!(appeared.is_empty(), "series without an initial zero: {appeared:?}");
    // Sampled once per second.
    for sample in
        ["balto_disk_free_bytes", r#"balto_store_bytes{part="journal"}"#, "process_resident_memory_bytes"]
    {
        until(&daemon, sample, |value| value > 0.0).await;
    }
}

#[tokio::test]
async fn alerts_are_valid_rules_over_existing_metrics() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let exist: BTreeSet<String> = daemon
        .metrics()
        .await
        .lines()
        .filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned()))
        .collect();
    let load = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let (good, words) = run(python("python").args(["-c", load, "docs/alerts.yml"]), "");
    assert!(good, "{words}");
    let rules: Value = serde_json::from_str(&words).unwrap();
    let rules: BTreeMap<&str, &str> = rules["groups"][0]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| {
            assert!(
                rule["annotations"]["do"].is_string() && rule["labels"]["severity"].is_string(),
                "{rule}"
            );
            (rule["alert"].as_str().unwrap(), rule["expr"].as_str().unwrap())
        })
        .collect();
    let tests = std::fs::read_to_string(root().join("tests/judges/alerts_test.yml")).unwrap();
    for (alert, expression) in &rules {
        let names = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let used: Vec<_> = names.filter(|name| name.starts_with("balto_")).collect();
        assert!(!used.is_empty() || expression.starts_with("up{"), "{alert} looks at nothing of ours");
        for name in used {
            let family = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(exist.contains(family), "{alert} uses {name}, which is not in /metrics");
        }
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} has no test in alerts_test.yml");
    }
    assert_eq!(rules.len(), 11, "{rules:?}");
    match promtool() {
        Some(_) => {
            for arguments in
                [["check", "rules", "docs/alerts.yml"], ["test", "rules", "tests/judges/alerts_test.yml"]]
            {
                let (good, words) = run(promtool().unwrap().current_dir(root()).args(arguments), "");
                assert!(good, "promtool {arguments:?}:\n{words}");
            }
        }
        None => say("SKIPPED: promtool, which neither the machine nor Debian's mirror has"),
    }
}

/// Metrics of the exposition, with their labels. A histogram has its series, too.
fn families(metrics: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut families = BTreeMap::new();
    for line in metrics.lines() {
        if let Some((name, _)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_insert_with(BTreeSet::new);
        }
    }
    for sample in samples(metrics) {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let labels = labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0.to_owned()));
        families.entry(name.to_owned()).or_default().extend(labels);
    }
    families
}

/// The metrics of a query, and the labels that it selects or groups them by.
fn used_by(query: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = |text: &str| text.split(move |c| !is_word(c)).map(str::to_owned).collect::<Vec<_>>();
    let names =
        words(query).into_iter().filter(|word| word.starts_with("balto_") || word.starts_with("process_"));
    let mut labels = BTreeSet::new();
    for selector in query.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()) {
        labels.extend(selector.split(',').map(|matcher| words(matcher.trim())[0].clone()));
    }
    for grouping in query.split("by (").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        labels.extend(grouping.split(',').map(|label| label.trim().to_owned()));
    }
    (names.collect(), labels)
}

#[tokio::test]
async fn dashboard_queries_the_metrics_that_exist() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let families = families(&daemon.metrics().await);
    let text = std::fs::read_to_string(root().join("docs/operating/grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}: its id is there twice", panel["title"]);
        let place = &panel["gridPos"];
        let (x, width) = (place["x"].as_u64().unwrap(), place["w"].as_u64().unwrap());
        assert!(x + width <= 24, "{} is too wide", panel["title"]);
        if panel["type"] == "row" {
            continue;
        }
        for target in panel["targets"].as_array().unwrap() {
            queries.push((panel["title"].as_str().unwrap(), target["expr"].as_str().unwrap()));
        }
    }
    assert!(queries.len() > 30, "only {} queries", queries.len());
    for (title, query) in &queries {
        let (names, labels) = used_by(query);
        assert!(!names.is_empty(), "{title} looks at nothing of ours: {query}");
        for name in &names {
            let found = families.get(name).unwrap_or_else(|| panic!("{title}: {name} is not in /metrics"));
            // Prometheus adds the labels of the target.
            let known =
                |label: &String| ["job", "instance"].contains(&label.as_str()) || found.contains(label);
            let unknown = labels.iter().find(|label| !known(label));
            assert!(unknown.is_none(), "{title}: {name} has no label {unknown:?}: {query}");
        }
        assert!(
            !query.contains("histogram_quantile") || names.iter().all(|name| name.ends_with("_bucket")),
            "{query}"
        );
    }
    let rules: Vec<_> = queries
        .iter()
        .enumerate()
        .map(|(index, (_, query))| {
            let query =
                query.replace("$__rate_interval", "5m").replace("$job", "balto").replace("$instance", ".*");
            assert!(!query.contains('$'), "an unknown variable: {query}");
            json!({"record": format!("dashboard:query:{index}"), "expr": query})
        })
        .collect();
    let rules = json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string();
    match promtool() {
        Some(mut promtool) => {
            let file = data.path().join("rules.yml");
            std::fs::write(&file, rules).unwrap();
            let (good, words) = run(promtool.args(["check", "rules"]).arg(&file), "");
            assert!(good, "promtool says: {words}");
        }
        None => say("SKIPPED: promtool, which neither the machine nor Debian's mirror has"),
    }
}
