//! Abusive clients: idle connections, unread responses, excess load, exhausted file descriptors,
//! thousands of guessed keys, workers that wait or die. Other clients are still served, accepted
//! events are durable, memory stays within its bounds, and the daemon recovers afterwards.

mod connections;
mod descriptors;
mod keys;
mod load;
mod secrets;
mod workers;

use std::time::{Duration, Instant};

use crate::support::WAIT_MAX;

const EVENT: &str = r#"{"type":"a.b","data":1}"#;
/// The first file of a fresh daemon's journal.
const JOURNAL: &str = "journal/journal-00000000000000000001.log";

/// Waits for a condition.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
