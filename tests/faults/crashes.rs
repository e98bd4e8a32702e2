//! The real daemon, killed repeatedly at random moments under load in one directory: acknowledged
//! events survive.
//!
//! `BALTO_TEST_ROUNDS` sets the number of kills (default 24), `BALTO_TEST_SEED` the random choices;
//! a failure prints its seed. The timing depends on the machine, so a seed repeats the choices, not
//! the instants.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::load::{Ledger, check_stored, publish, publishers, stored_events};
use crate::support::{Daemon, Receiver, answer, number, say, seed};
use fastrand::Rng;
use serde_json::json;

/// Repeats unanswered requests with the same key.
async fn retry_unanswered(ledger: &Mutex<Ledger>, daemon: &Daemon) {
    let unsure = std::mem::take(&mut ledger.lock().unwrap().unsure);
    for event_type in unsure {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let id = publish(&client, &daemon.api, &event_type, true).await.unwrap();
        ledger.lock().unwrap().accepted.insert(event_type, id);
    }
}

/// One run of the daemon: load, and a kill at a random moment, possibly during recovery.
async fn round(ledger: &Arc<Mutex<Ledger>>, data: &std::path::Path, random: &mut Rng) {
    let mut daemon = Daemon::spawn(crate::support::serve(data, &["--dev"]));
    if random.u8(0..6) == 0 {
        tokio::time::sleep(Duration::from_millis(random.u64(0..150))).await;
        return daemon.kill();
    }
    daemon.until_ready().await;
    retry_unanswered(ledger, &daemon).await;
    let publishers = publishers(ledger, &daemon, random);
    tokio::time::sleep(Duration::from_millis(random.u64(5..600))).await;
    daemon.kill();
    for publisher in publishers {
        publisher.await.unwrap();
    }
}

/// Asserts that every stored event was delivered, no other request was sent, and no delivery
/// repeated an earlier attempt number.
fn check_received(receiver: &Receiver, stored: &[(String, String)]) {
    let mut attempts: HashMap<String, u32> = HashMap::new();
    for got in receiver.got() {
        let attempt = got.headers["balto-attempt"].parse().unwrap();
        let last = attempts.insert(got.headers["webhook-id"].clone(), attempt);
        assert!(last.is_none_or(|last| last <= attempt), "attempt {attempt} after {last:?}");
    }
    let stored: HashSet<_> = stored.iter().map(|(_, id)| id.clone()).collect();
    let sent: HashSet<_> = attempts.into_keys().collect();
    assert_eq!(stored.difference(&sent).next(), None, "an event was stored and not sent");
    assert_eq!(sent.difference(&stored).next(), None, "an event was sent before it was durable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_events_survive_repeated_kills() {
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let data = tempfile::tempdir().unwrap();
    let moods = Mutex::new(random.fork());
    let receiver =
        Receiver::start(move |_, _| answer(if moods.lock().unwrap().u8(0..20) == 0 { 500 } else { 200 }))
            .await;
    let endpoint = json!({"url": receiver.url, "maxInFlight": 32, "retry": {"schedule": ["20ms", "40ms", "80ms", "80ms", "80ms", "80ms", "80ms", "80ms"]}});
    Daemon::start(data.path()).await.post("/endpoints", &endpoint.to_string()).await;
    let ledger = Arc::<Mutex<Ledger>>::default();
    let rounds = number("BALTO_TEST_ROUNDS").unwrap_or(24);
    for _ in 0..rounds {
        round(&ledger, data.path(), &mut random).await;
    }

    let mut daemon = Daemon::start(data.path()).await;
    retry_unanswered(&ledger, &daemon).await;
    let stored = stored_events(&daemon).await;
    check_stored(&ledger.lock().unwrap(), &stored);
    daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
    assert_eq!(daemon.get("/dead-letters").await["data"], json!([]), "a delivery died");
    check_received(&receiver, &stored);
    assert_eq!(daemon.terminate(), Some(0));
    let verified = std::process::Command::new(env!("CARGO_BIN_EXE_balto"))
        .args(["verify", "--data-dir"])
        .arg(data.path())
        .status()
        .unwrap();
    assert!(verified.success(), "verify finds damage");
    let ledger = ledger.lock().unwrap();
    say(&format!(
        "{rounds} kills, {} acknowledged, {} stored, {} requests received",
        ledger.accepted.len(),
        stored.len(),
        receiver.got().len()
    ));
}
