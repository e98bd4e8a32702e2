//! The real daemon killed at random moments, under load, again and again on one directory: what it acknowledged holds.
//!
//! `BALTO_TEST_ROUNDS` says how many kills (default 24), `BALTO_TEST_SEED` which; a failure prints its seed. Moments are
//! those of the machine, so a seed repeats the choices, not the instant.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::load::{Book, check_held, held, publish, publishers};
use crate::support::{Daemon, Receiver, answer, number, say, seed};
use fastrand::Rng;
use serde_json::json;

/// Asks again for what was not answered, as a client with a key may.
async fn ask_again(book: &Mutex<Book>, daemon: &Daemon) {
    let unsure = std::mem::take(&mut book.lock().unwrap().unsure);
    for event_type in unsure {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let id = publish(&client, &daemon.api, &event_type, true).await.unwrap();
        book.lock().unwrap().accepted.insert(event_type, id);
    }
}

/// A life of the daemon: load, and a kill at a random moment, maybe while it still recovers.
async fn round(book: &Arc<Mutex<Book>>, data: &std::path::Path, random: &mut Rng) {
    let mut daemon = Daemon::spawn(crate::support::serve(data, &["--dev"]));
    if random.u8(0..6) == 0 {
        tokio::time::sleep(Duration::from_millis(random.u64(0..150))).await;
        return daemon.kill();
    }
    daemon.until_ready().await;
    ask_again(book, &daemon).await;
    let publishers = publishers(book, &daemon, random);
    tokio::time::sleep(Duration::from_millis(random.u64(5..600))).await;
    daemon.kill();
    for publisher in publishers {
        publisher.await.unwrap();
    }
}

/// Every event held was delivered, nothing else was sent, and no delivery went back to an earlier attempt.
fn check_received(receiver: &Receiver, held: &[(String, String)]) {
    let mut attempts: HashMap<String, u32> = HashMap::new();
    for got in receiver.got() {
        let attempt = got.headers["balto-attempt"].parse().unwrap();
        let last = attempts.insert(got.headers["webhook-id"].clone(), attempt);
        assert!(last.is_none_or(|last| last <= attempt), "attempt {attempt} after {last:?}");
    }
    let held: HashSet<_> = held.iter().map(|(_, id)| id.clone()).collect();
    let sent: HashSet<_> = attempts.into_keys().collect();
    assert_eq!(held.difference(&sent).next(), None, "held and never sent");
    assert_eq!(sent.difference(&held).next(), None, "sent and not held: it went out before it was durable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed_again_and_again() {
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let data = tempfile::tempdir().unwrap();
    let moods = Mutex::new(random.fork());
    let receiver =
        Receiver::start(move |_, _| answer(if moods.lock().unwrap().u8(0..20) == 0 { 500 } else { 200 }))
            .await;
    let endpoint = json!({"url": receiver.url, "maxInFlight": 32, "retry": {"schedule": ["20ms", "40ms", "80ms", "80ms", "80ms", "80ms", "80ms", "80ms"]}});
    Daemon::start(data.path()).await.post("/endpoints", &endpoint.to_string()).await;
    let book = Arc::<Mutex<Book>>::default();
    let rounds = number("BALTO_TEST_ROUNDS").unwrap_or(24);
    for _ in 0..rounds {
        round(&book, data.path(), &mut random).await;
    }

    let mut daemon = Daemon::start(data.path()).await;
    ask_again(&book, &daemon).await;
    let held = held(&daemon).await;
    check_held(&book.lock().unwrap(), &held);
    daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
    assert_eq!(daemon.get("/dead-letters").await["data"], json!([]), "a delivery died");
    check_received(&receiver, &held);
    assert_eq!(daemon.terminate(), Some(0));
    let verified = std::process::Command::new(env!("CARGO_BIN_EXE_balto"))
        .args(["verify", "--data-dir"])
        .arg(data.path())
        .status()
        .unwrap();
    assert!(verified.success(), "verify finds damage");
    let book = book.lock().unwrap();
    say(&format!(
        "{rounds} kills, {} acknowledged, {} held, {} requests received",
        book.accepted.len(),
        held.len(),
        receiver.got().len()
    ));
}
