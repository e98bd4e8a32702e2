//! The real daemon, killed repeatedly while two instances of one consumer keep a read model. Its
//! rows and its cursor change together, by the rename of one file.
//!
//! An instance reads from the committed position, commits with `from`, and then adds the rows. An
//! instance that dies in between leaves a gap between cursor and position, which the next one fills
//! from the feed. Each event must be in the read model once, in the order of the log.
//!
//! `BALTO_TEST_ROUNDS` sets the number of kills (default 8), `BALTO_TEST_SEED` the random choices.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::support::{Daemon, Progress, number, say, seed, serve};

const INSTANCES: usize = 2;
const PUBLISHERS: usize = 2;

/// A cursor, and the positions of the events up to it.
type Rows = (u64, Vec<u64>);

/// A commit whose answer did not come, and the events that it covers.
struct Held {
    from: u64,
    to: u64,
    rows: Vec<u64>,
}

#[derive(Default)]
struct Observed {
    /// The highest position of an acknowledged commit.
    committed: u64,
    commits: u64,
    fenced: u64,
    repaired: u64,
    published: Vec<u64>,
    violations: Vec<String>,
}

struct Shared {
    file: PathBuf,
    /// One transaction at a time.
    transaction: Mutex<()>,
    observed: Mutex<Observed>,
}

impl Shared {
    fn rows(&self) -> Rows {
        std::fs::read(&self.file).map_or((0, Vec::new()), |bytes| serde_json::from_slice(&bytes).unwrap())
    }

    /// Adds the rows after `from`, unless another instance has done so.
    fn add(&self, from: u64, rows: &[u64], to: u64) -> bool {
        let _transaction = self.transaction.lock().unwrap();
        let (cursor, mut all) = self.rows();
        if cursor != from {
            return false;
        }
        all.extend(rows);
        let next = self.file.with_extension("next");
        std::fs::write(&next, serde_json::to_vec(&(to, all)).unwrap()).unwrap();
        std::fs::rename(&next, &self.file).unwrap();
        true
    }

    fn observe(&self, change: impl FnOnce(&mut Observed)) {
        change(&mut self.observed.lock().unwrap());
    }

    fn committed(&self) -> u64 {
        self.observed.lock().unwrap().committed
    }

    /// Waits for this many more acknowledged commits.
    async fn until_commits(&self, more: u64) {
        let count = || self.observed.lock().unwrap().commits;
        let (goal, mut progress) = (count() + more, Progress::from(0));
        while count() < goal {
            assert!(progress.goes_on(count()), "only {} of {goal} commits", count());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// One instance in one life of the daemon.
struct Instance {
    shared: Arc<Shared>,
    client: reqwest::Client,
    api: String,
    random: Rng,
}

/// The daemon died.
struct Died;

impl Instance {
    async fn call(&self, path: &str, body: Option<Value>) -> Result<(u16, Value), Died> {
        let url = format!("{}{path}", self.api);
        let request = match body {
            Some(body) => {
                let request = self.client.post(url).header("content-type", "application/json");
                request.body(body.to_string())
            }
            None => self.client.get(url),
        };
        let answer = request.send().await.map_err(|_| Died)?;
        let status = answer.status().as_u16();
        let text = answer.text().await.map_err(|_| Died)?;
        Ok((status, serde_json::from_str(&text).unwrap()))
    }

    async fn get(&self, path: &str) -> Result<Value, Died> {
        let (status, answer) = self.call(path, None).await?;
        assert_eq!(status, 200, "GET {path}: {answer}");
        Ok(answer)
    }

    /// The committed position. It is never before an acknowledged commit.
    async fn place(&self) -> Result<u64, Died> {
        let before = self.shared.committed();
        let place = position(&self.get("/consumers/balances").await?["position"]);
        if place < before {
            self.shared.observe(|seen| seen.violations.push(format!("{place} after a commit of {before}")));
        }
        Ok(place)
    }

    /// Works until the daemon dies, or until the end of the log if `until_head`. Returns a commit
    /// without an answer.
    async fn run(mut self, held: Option<Held>, until_head: bool) -> Option<Held> {
        let mut next = held;
        loop {
            if let Some(held) = next.take()
                && self.commit(&held).await.is_err()
            {
                return Some(held);
            }
            match self.read(until_head).await {
                Ok(Some(held)) => next = Some(held),
                Ok(None) if until_head => return None,
                Ok(None) => {}
                Err(Died) => return None,
            }
        }
    }

    /// Adds rows that a commit covers without them. Then reads a page. `None`: no event.
    async fn read(&mut self, until_head: bool) -> Result<Option<Held>, Died> {
        let from = self.place().await?;
        self.repair(from).await?;
        let limit = self.random.usize(1..60);
        let wait = if until_head { "0s" } else { "50ms" };
        let page = self.get(&format!("/consumers/balances/events?limit={limit}&wait={wait}")).await?;
        let (to, rows) = (position(&page["next"]), positions(&page));
        // A commit is a record of the log as well, so `next` never stays.
        let is_over = until_head && rows.is_empty() && page["caughtUp"] == true;
        // Another instance may commit first.
        tokio::time::sleep(Duration::from_millis(self.random.u64(0..6))).await;
        Ok((to > from && !is_over).then_some(Held { from, to, rows }))
    }

    async fn repair(&self, place: u64) -> Result<(), Died> {
        loop {
            let (cursor, _) = self.shared.rows();
            if cursor >= place {
                return Ok(());
            }
            let page = self.get(&format!("/feed?types=account.*&after={cursor}&limit=100")).await?;
            let rows: Vec<_> = positions(&page).into_iter().filter(|position| *position <= place).collect();
            if self.shared.add(cursor, &rows, position(&page["next"]).min(place)) {
                self.shared.observe(|seen| seen.repaired += 1);
            }
        }
    }

    async fn commit(&mut self, held: &Held) -> Result<(), Died> {
        let Held { from, to, rows } = held;
        let body = json!({"position": to.to_string(), "from": from.to_string()});
        let (status, answer) = self.call("/consumers/balances/commit", Some(body)).await?;
        match status {
            200 => {
                assert_eq!(position(&answer["position"]), *to, "{answer}");
                self.shared.observe(|seen| {
                    seen.commits += 1;
                    seen.committed = seen.committed.max(*to);
                });
                // Sometimes the instance dies here: another one adds its rows.
                if self.random.u8(0..8) > 0 {
                    self.shared.add(*from, rows, *to);
                }
            }
            409 => {
                assert_eq!(answer["code"], "consumer_moved", "{answer}");
                let actual = position(&answer["actual"]);
                assert!(actual > *from, "a commit from {from} was refused: {answer}");
                self.shared.observe(|seen| seen.fenced += 1);
            }
            429 | 503 => {}
            other => panic!("{other}: {answer}"),
        }
        Ok(())
    }
}

fn position(cursor: &Value) -> u64 {
    cursor.as_str().unwrap().parse().unwrap()
}

fn positions(page: &Value) -> Vec<u64> {
    page["data"].as_array().unwrap().iter().map(|event| event["position"].as_u64().unwrap()).collect()
}

/// Publishes batches until the daemon dies. Half of the events are not for the consumer.
async fn publish(shared: Arc<Shared>, api: String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let event =
        |number| json!({"type": if number % 2 == 0 { "account.credited" } else { "other" }, "data": number});
    let body = json!({"events": (0..10).map(event).collect::<Vec<_>>()}).to_string();
    loop {
        let request = client.post(format!("{api}/events/batch")).header("content-type", "application/json");
        let Ok(answer) = request.body(body.clone()).send().await else { return };
        let Ok(text) = answer.text().await else { return };
        let answer: Value = serde_json::from_str(&text).unwrap();
        let results = answer["results"].as_array().into_iter().flatten().step_by(2);
        let published: Vec<_> = results.filter_map(|one| one["position"].as_u64()).collect();
        shared.observe(|seen| seen.published.extend(published));
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_model_of_two_instances_survives_repeated_kills() {
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let below = tempfile::tempdir().unwrap();
    let data = below.path().join("data");
    let first = Daemon::start(&data).await;
    let (status, ..) = first.call("PUT", "/consumers/balances", &[], r#"{"types": ["account.*"]}"#).await;
    assert_eq!(status, 201);
    drop(first);
    let shared = Arc::new(Shared {
        file: below.path().join("balances.json"),
        transaction: Mutex::default(),
        observed: Mutex::default(),
    });
    let instance = |daemon: &Daemon, random: &mut Rng| Instance {
        shared: Arc::clone(&shared),
        client: reqwest::Client::builder().no_proxy().build().unwrap(),
        api: daemon.api.clone(),
        random: random.fork(),
    };
    let mut held: Vec<Option<Held>> = (0..INSTANCES).map(|_| None).collect();
    let rounds = number("BALTO_TEST_ROUNDS").unwrap_or(8);
    for _ in 0..rounds {
        let mut daemon = Daemon::spawn(serve(&data, &["--dev"]));
        daemon.until_ready().await;
        let publishers: Vec<_> =
            (0..PUBLISHERS).map(|_| tokio::spawn(publish(Arc::clone(&shared), daemon.api.clone()))).collect();
        // A commit of an earlier life comes late.
        let instances: Vec<_> = held
            .drain(..)
            .map(|held| tokio::spawn(instance(&daemon, &mut random).run(held, false)))
            .collect();
        shared.until_commits(random.u64(1..10)).await;
        tokio::time::sleep(Duration::from_millis(random.u64(0..30))).await;
        daemon.kill();
        for publisher in publishers {
            publisher.await.unwrap();
        }
        for instance in instances {
            held.push(instance.await.unwrap());
        }
    }
    let mut daemon = Daemon::start(&data).await;
    for held in held {
        instance(&daemon, &mut random).run(held, true).await;
    }
    let log = whole_feed(&daemon).await;
    let (_, rows) = shared.rows();
    let seen = std::mem::take(&mut *shared.observed.lock().unwrap());
    assert_eq!(seen.violations, Vec::<String>::new(), "BALTO_TEST_SEED={seed}");
    assert!(rows == log, "BALTO_TEST_SEED={seed}: {}", first_difference(&rows, &log));
    for position in &seen.published {
        assert!(log.binary_search(position).is_ok(), "BALTO_TEST_SEED={seed}: {position} is lost");
    }
    let Observed { commits, fenced, repaired, .. } = seen;
    assert!(fenced > 0 && repaired > 0, "{commits} commits, {fenced} fenced, {repaired} repaired");
    assert_eq!(daemon.terminate(), Some(0));
    let verified = std::process::Command::new(env!("CARGO_BIN_EXE_balto"))
        .args(["verify", "--data-dir"])
        .arg(&data)
        .status()
        .unwrap();
    assert!(verified.success(), "BALTO_TEST_SEED={seed}: verify finds damage");
    let count = rows.len();
    say(&format!("{rounds} kills, {count} rows, {commits} commits, {fenced} fenced, {repaired} repaired"));
}

/// The positions of the consumer's events in the log.
async fn whole_feed(daemon: &Daemon) -> Vec<u64> {
    let (mut all, mut after) = (Vec::new(), "oldest".to_owned());
    loop {
        let page = daemon.get(&format!("/feed?types=account.*&after={after}&limit=1000")).await;
        all.extend(positions(&page));
        after = page["next"].as_str().unwrap().to_owned();
        if page["caughtUp"] == true {
            return all;
        }
    }
}

fn first_difference(rows: &[u64], log: &[u64]) -> String {
    let at = rows
        .iter()
        .zip(log)
        .position(|(row, event)| row != event)
        .unwrap_or_else(|| rows.len().min(log.len()));
    format!(
        "row {at} is {:?}, the log has {:?} ({} and {})",
        rows.get(at),
        log.get(at),
        rows.len(),
        log.len()
    )
}
