//! An endpoint's rate, measured at its receiver.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{Daemon, Receiver, answer, number};
use serde_json::json;

const LIMIT: u64 = 20;
const BURST: u64 = 5;

/// `BALTO_TEST_SECONDS=60` for the whole minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rate_of_twenty_per_second_holds_and_affects_no_other() {
    let seconds = number("BALTO_TEST_SECONDS").unwrap_or(6);
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let kept = times.clone();
    let slow = Receiver::start(move |_, _| {
        kept.lock().unwrap().push(Instant::now());
        answer(200)
    })
    .await;
    let fast = Receiver::status(200).await;
    let rate = json!({"limit": LIMIT, "per": "1s", "burst": BURST});
    daemon.post("/endpoints", &json!({"url": slow.url, "rateLimit": rate}).to_string()).await;
    daemon.post("/endpoints", &json!({"url": fast.url}).to_string()).await;
    let events = usize::try_from(LIMIT * seconds + BURST).unwrap();
    let batch: Vec<_> = (0..events).map(|number| json!({"type": "a.b", "data": number})).collect();
    daemon.post("/events/batch", &json!({"events": batch}).to_string()).await;
    fast.until(events).await;
    assert!(times.lock().unwrap().len() < events, "the other endpoint was delayed");
    let lane = daemon.get("/endpoints").await["data"][1]["id"].as_str().unwrap().to_owned();
    let deadline = Instant::now() + Duration::from_secs(seconds) + crate::support::WAIT_MAX;
    loop {
        let lane = daemon.get(&format!("/endpoints/{lane}/lane")).await;
        if lane["reason"] == "rate" {
            break;
        }
        // The lane is about to send twenty times per second.
        assert!(lane["reason"].is_null() && Instant::now() < deadline, "{lane}");
    }
    while times.lock().unwrap().len() < events {
        assert!(Instant::now() < deadline, "{} of {events}", times.lock().unwrap().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let times = times.lock().unwrap();
    // Every interval contains at most the burst plus the rate's share. Receivers see requests after
    // they are sent, on a busy machine much later, so an interval may appear shorter.
    let late = Duration::from_secs(1);
    for (from, start) in times.iter().enumerate() {
        for (to, end) in times.iter().enumerate().skip(from + 1) {
            let allowed = BURST as f64 + LIMIT as f64 * (*end - *start + late).as_secs_f64();
            let seen = to - from + 1;
            assert!(seen as f64 <= allowed + 1.0, "{seen} within {:?}", *end - *start);
        }
    }
    let took = (*times.last().unwrap() - times[0]).as_secs_f64();
    let rate = (events as u64 - BURST) as f64 / took;
    assert!(rate < 1.05 * LIMIT as f64, "{rate} a second");
    crate::support::say(&format!("{rate:.2} a second over {took:.1} s"));
}
