//! `balto demo`: a tour with a daemon of this executable and two receivers.
//!
//! Owns: the child process, the temporary directory and the receivers, which end with the tour,
//! also after a failure. Every step checks its result, so the tour is a test of the installation,
//! too.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::client::Client;
use super::listen::{ListenOptions, Receiver, Report, Signed};
use super::output::{clean, colour, line_async};
use super::stop::Stop;

/// Time limit of the tour.
const TOUR_MAX: Duration = Duration::from_secs(60);
/// Time limit until the daemon is ready.
const READY_MAX: Duration = Duration::from_secs(30);
/// Time limit of a step.
const STEP_MAX: Duration = Duration::from_secs(20);
/// Time limit of the daemon's end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Pause between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Lines of the daemon's log that are shown after a failure.
const LOG_LINES_MAX: usize = 15;
/// Lines of metrics that are shown.
const METRICS_LINES_MAX: usize = 8;
/// Failures of the first receiver before it recovers.
const SHOP_FAILURES: u32 = 2;
/// Attempts after which the delivery to the second receiver becomes a dead letter.
const LEDGER_ATTEMPTS: usize = 3;

/// Runs the tour.
///
/// # Errors
/// The first failed check, with the end of the daemon's log.
pub(super) async fn run() -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    let tour = async {
        let mut tour = Tour::start().await?;
        match tour.run().await {
            Ok(()) => tour.stop().await,
            Err(error) => Err(error.context(tour.daemon.log_tail())),
        }
    };
    tokio::select! {
        outcome = timeout(TOUR_MAX, tour) => outcome.context("the tour took longer than a minute")?,
        () = stop.signal() => bail!("interrupted by a signal"),
    }
}

/// Prints the tour, with colours on a terminal.
#[derive(Clone, Copy)]
struct Narrator {
    coloured: bool,
}

impl Narrator {
    fn paint(self, text: &str, code: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    async fn chapter(self, text: &str) -> anyhow::Result<()> {
        Ok(line_async(self.paint(&format!("\n> {text}"), "1;36")).await?)
    }

    async fn say(self, text: &str) -> anyhow::Result<()> {
        Ok(line_async(format!("  {text}")).await?)
    }

    /// Prints a webhook that a receiver got.
    async fn webhook(self, receiver: &str, report: &Report) -> anyhow::Result<()> {
        let shown = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), clean);
        let good = (200..300).contains(&report.status);
        self.say(&format!(
            "{receiver:<6}  attempt {}  {:<15}  {}  signature {}  answered {}",
            shown(&report.attempt),
            shown(&report.event_type),
            shown(&report.id),
            self.paint(&report.signed.to_string(), if report.signed == Signed::Ok { "32" } else { "31" }),
            self.paint(&report.status.to_string(), if good { "32" } else { "31" }),
        ))
        .await
    }
}

/// The daemon as a child process. Dropping this kills it.
struct Daemon {
    child: Child,
    log: PathBuf,
    api: SocketAddr,
    ops: SocketAddr,
}

impl Daemon {
    fn start(directory: &Path) -> anyhow::Result<Self> {
        let [api, ops] = free_addresses().context("cannot find free ports")?;
        let log = directory.join("daemon.log");
        let output = File::create(&log).context("cannot create the daemon's log")?;
        let mut command = Command::new(std::env::current_exe().context("cannot find this executable")?);
        // Settings in the environment of the shell are for another daemon.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BALTO_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(["serve", "--dev", "--data-dir"])
            .arg(directory.join("data"))
            .env("BALTO__SERVER__API_LISTEN", api.to_string())
            .env("BALTO__SERVER__OPS_LISTEN", ops.to_string())
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the daemon's log")?)
            .stderr(output)
            .spawn()
            .context("cannot start the daemon")?;
        Ok(Self { child, log, api, ops })
    }

    async fn wait_until_ready(&mut self, ops: &Client) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_MAX;
        while ops.get(&["readyz"], &[]).await.is_err() {
            if let Some(status) = self.child.try_wait().context("cannot watch the daemon")? {
                bail!("the daemon ended before it was ready: {status}");
            }
            ensure!(Instant::now() < deadline, "the daemon was not ready within {READY_MAX:?}");
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Sends SIGTERM, as a service manager does, and waits for the end.
    async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        if !asked.is_ok_and(|status| status.success()) {
            self.child.kill().context("cannot stop the daemon")?;
        }
        let deadline = Instant::now() + STOP_MAX;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot watch the daemon")? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the daemon did not stop within {STOP_MAX:?} of SIGTERM");
            sleep(POLL_INTERVAL).await;
        }
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<String> = text.lines().map(clean).collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES_MAX)..];
        format!("the tour failed; the daemon's log ends with\n  {}\nand the reason is", tail.join("\n  "))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail when the process has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Two free ports. Both are bound at once, so that they differ.
fn free_addresses() -> std::io::Result<[SocketAddr; 2]> {
    let api = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let ops = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok([api.local_addr()?, ops.local_addr()?])
}

fn new_secret() -> anyhow::Result<String> {
    let mut key = [0_u8; 32];
    getrandom::fill(&mut key).context("the system gives no random numbers")?;
    Ok(format!("whsec_{}", BASE64.encode(key)))
}

/// Daemon and receivers of the tour. Fields drop in order: the daemon before its directory.
struct Tour {
    narrator: Narrator,
    daemon: Daemon,
    api: Client,
    ops: Client,
    /// Fails first, then recovers.
    shop: Receiver,
    shop_secret: String,
    /// Fails until the tour repairs it.
    ledger: Receiver,
    ledger_secret: String,
    _directory: tempfile::TempDir,
}

impl Tour {
    async fn start() -> anyhow::Result<Self> {
        let narrator = Narrator { coloured: colour() };
        let directory = tempfile::Builder::new()
            .prefix("balto-demo-")
            .tempdir()
            .context("cannot create a temporary directory")?;
        narrator.chapter("A daemon starts with free ports and an empty directory").await?;
        let mut daemon = Daemon::start(directory.path())?;
        let api = Client::new(&format!("http://{}", daemon.api), None)?;
        let ops = Client::new(&format!("http://{}", daemon.ops), None)?;
        let ready = daemon.wait_until_ready(&ops).await;
        ready.map_err(|error| error.context(daemon.log_tail()))?;
        narrator
            .say(&format!("API on http://{}, metrics and health on http://{}", daemon.api, daemon.ops))
            .await?;
        let (shop_secret, ledger_secret) = (new_secret()?, new_secret()?);
        let options = ListenOptions {
            secret: Some(shop_secret.clone()),
            fail_first: SHOP_FAILURES,
            ..ListenOptions::default()
        };
        let shop = Receiver::start(options).await?;
        let options =
            ListenOptions { secret: Some(ledger_secret.clone()), status: 500, ..ListenOptions::default() };
        let ledger = Receiver::start(options).await?;
        Ok(Self {
            narrator,
            daemon,
            api,
            ops,
            shop,
            shop_secret,
            ledger,
            ledger_secret,
            _directory: directory,
        })
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let ledger_endpoint = self.subscribe().await?;
        let events = self.publish().await?;
        let refunded = events.last().context("no event was posted")?.clone();
        self.watch_retries(events).await?;
        let dead = self.watch_dead_letter(&ledger_endpoint, &refunded).await?;
        self.redrive(&dead, &refunded).await?;
        self.show_metrics().await
    }

    async fn create(&self, path: &[&str], body: Value) -> anyhow::Result<Value> {
        let answer = self.api.create(path, body.to_string(), None).await?;
        serde_json::from_str(&answer).context("the daemon's answer is not JSON")
    }

    async fn get(&self, path: &[&str], query: &[(&'static str, String)]) -> anyhow::Result<Value> {
        let answer = self.api.get(path, query).await?;
        serde_json::from_str(&answer).context("the daemon's answer is not JSON")
    }

    /// Registers both receivers. Returns the id of the second endpoint.
    async fn subscribe(&self) -> anyhow::Result<String> {
        self.narrator.chapter("Two receivers subscribe").await?;
        let retry = |attempts: usize| json!({"initial": "300ms", "multiplier": 2.0, "maxInterval": "1s", "maxAttempts": attempts, "jitter": 0.0});
        let shop = json!({"url": format!("http://{}/hooks", self.shop.address()), "description": "shop",
            "secret": self.shop_secret, "retry": retry(8)});
        let shop = text(&self.create(&["v1", "endpoints"], shop).await?, "id")?;
        self.narrator
            .say(&format!("shop    {shop}  all events; the first {SHOP_FAILURES} answers will be 500"))
            .await?;
        let ledger = json!({"url": format!("http://{}/hooks", self.ledger.address()), "description": "ledger",
            "secret": self.ledger_secret, "eventTypes": ["order.refunded"], "retry": retry(LEDGER_ATTEMPTS)});
        let ledger = text(&self.create(&["v1", "endpoints"], ledger).await?, "id")?;
        self.narrator
            .say(&format!(
                "ledger  {ledger}  order.refunded; always 500, a dead letter after {LEDGER_ATTEMPTS} attempts"
            ))
            .await?;
        Ok(ledger)
    }

    async fn publish(&self) -> anyhow::Result<Vec<String>> {
        self.narrator.chapter("Three events are posted; a 202 means that an event is on disk").await?;
        let mut ids = Vec::new();
        for event_type in ["order.paid", "order.shipped", "order.refunded"] {
            let body = json!({"type": event_type, "data": {"orderId": 42, "amount": "19.90"}});
            let accepted = self.create(&["v1", "events"], body).await?;
            let id = text(&accepted, "id")?;
            self.narrator
                .say(&format!("{event_type:<15}  {id}  deliveries: {}", accepted["deliveries"]))
                .await?;
            ids.push(id);
        }
        Ok(ids)
    }

    async fn watch_retries(&mut self, events: Vec<String>) -> anyhow::Result<()> {
        self.narrator
            .chapter("Signed webhooks arrive; a failed delivery is retried with the same id")
            .await?;
        let mut missing: BTreeSet<String> = events.into_iter().collect();
        let mut failures = 0;
        while !missing.is_empty() {
            let report = next(&mut self.shop, "the shop's webhooks").await?;
            self.narrator.webhook("shop", &report).await?;
            ensure!(report.signed == Signed::Ok, "a webhook's signature is {}", report.signed);
            let id = report.id.context("a webhook came without webhook-id")?;
            if report.status == 200 {
                missing.remove(&id);
            } else {
                failures += 1;
            }
        }
        ensure!(failures == SHOP_FAILURES, "{SHOP_FAILURES} failures were expected, {failures} happened");
        self.narrator.say("The shop has all three.").await
    }

    /// Waits until the ledger's delivery is a dead letter. Returns the id of the delivery.
    async fn watch_dead_letter(&mut self, endpoint: &str, event: &str) -> anyhow::Result<String> {
        self.narrator.chapter("The ledger still fails, so its delivery becomes a dead letter").await?;
        for _ in 0..LEDGER_ATTEMPTS {
            let report = next(&mut self.ledger, "the ledger's webhooks").await?;
            self.narrator.webhook("ledger", &report).await?;
            ensure!(report.id.as_deref() == Some(event), "the ledger got another event than {event}");
        }
        let query = [("endpointId", endpoint.to_owned())];
        let deadline = Instant::now() + STEP_MAX;
        let letter = loop {
            let list = self.get(&["v1", "dead-letters"], &query).await?;
            if let Some(letter) = list.pointer("/data/0") {
                break letter.clone();
            }
            ensure!(Instant::now() < deadline, "no dead letter appeared within {STEP_MAX:?}");
            sleep(POLL_INTERVAL).await;
        };
        let id = text(&letter, "deliveryId")?;
        let letter = self.get(&["v1", "dead-letters", &id], &[]).await?;
        let reason = text(&letter, "reason")?;
        self.narrator.say(&format!("{id}  reason: {}", self.narrator.paint(&clean(&reason), "33"))).await?;
        let attempts = letter["attempts"].as_array().context("the dead letter has no attempts")?;
        for attempt in attempts {
            self.narrator
                .say(&format!(
                    "  attempt {}  {}  answered {}",
                    attempt["number"],
                    attempt["startedAt"].as_str().map_or_else(|| "-".to_owned(), clean),
                    attempt["statusCode"],
                ))
                .await?;
        }
        ensure!(reason == "attemptsExhausted", "the reason should be attemptsExhausted, not {reason}");
        let count = attempts.len();
        ensure!(
            count == LEDGER_ATTEMPTS,
            "the dead letter has {count} attempts instead of {LEDGER_ATTEMPTS}"
        );
        Ok(id)
    }

    async fn redrive(&mut self, delivery: &str, event: &str) -> anyhow::Result<()> {
        self.narrator.chapter("The ledger is repaired, and the dead letter is redriven").await?;
        self.ledger.answer_with(200);
        self.api.post(&["v1", "dead-letters", delivery, "redrive"], None).await?;
        let report = next(&mut self.ledger, "the redriven webhook").await?;
        self.narrator.webhook("ledger", &report).await?;
        ensure!(report.id.as_deref() == Some(event), "the redriven webhook has another id than {event}");
        ensure!(report.signed == Signed::Ok, "the redriven webhook's signature is {}", report.signed);
        let deadline = Instant::now() + STEP_MAX;
        loop {
            let status = text(&self.get(&["v1", "deliveries", delivery], &[]).await?, "status")?;
            if status == "delivered" {
                break;
            }
            ensure!(Instant::now() < deadline, "the redriven delivery is still {status} after {STEP_MAX:?}");
            sleep(POLL_INTERVAL).await;
        }
        self.narrator.say(&format!("{delivery}  status: {}", self.narrator.paint("delivered", "32"))).await
    }

    async fn show_metrics(&self) -> anyhow::Result<()> {
        self.narrator.chapter("The metrics").await?;
        let metrics = self.ops.get(&["metrics"], &[]).await?;
        let lines = moved_counters(&metrics);
        ensure!(!lines.is_empty(), "/metrics has no balto_ counters of deliveries");
        for line in lines {
            self.narrator.say(&clean(line)).await?;
        }
        Ok(())
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.narrator.chapter("SIGTERM: the daemon finishes its requests and stops").await?;
        let status = self.daemon.stop().await?;
        if !status.success() {
            return Err(
                anyhow::anyhow!("it ended with {status} instead of 0").context(self.daemon.log_tail())
            );
        }
        self.narrator.say("The daemon ended with exit code 0. All temporary files are deleted.").await?;
        self.narrator
            .say("Next: `balto serve --dev`, `balto listen`, `balto endpoints add`, `balto send`.")
            .await
    }
}

/// A text member of an answer.
fn text(value: &Value, name: &str) -> anyhow::Result<String> {
    let member = value.get(name).and_then(Value::as_str);
    Ok(member.with_context(|| format!("the daemon's answer has no `{name}`: {value}"))?.to_owned())
}

async fn next(receiver: &mut Receiver, awaited: &str) -> anyhow::Result<Report> {
    let report = timeout(STEP_MAX, receiver.next()).await;
    report.with_context(|| format!("waited {STEP_MAX:?} for {awaited}"))?.context("the receiver stopped")
}

/// The counters of events, deliveries and attempts that are not 0. Gauges are updated once a
/// second, so they may be out of date.
fn moved_counters(metrics: &str) -> Vec<&str> {
    let counts = |line: &&str| {
        ["balto_events_", "balto_deliveries_", "balto_attempts_"].iter().any(|start| line.starts_with(start))
            && line.contains("_total")
            && !line.ends_with(" 0")
    };
    metrics.lines().filter(counts).take(METRICS_LINES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_metrics_are_the_counters_of_the_tour() {
        let metrics = "# HELP balto_events_total x\n# TYPE balto_events_total counter\n\
            balto_events_total{outcome=\"accepted\"} 3\nbalto_deliveries_total{outcome=\"cancelled\"} 0\n\
            balto_attempt_duration_seconds_bucket{le=\"1\"} 4\nprocess_threads 4\nbalto_dead_letters 1\n";
        assert_eq!(moved_counters(metrics), ["balto_events_total{outcome=\"accepted\"} 3"]);
    }

    #[test]
    fn ports_differ_and_secrets_are_fresh() {
        let [api, ops] = free_addresses().unwrap();
        assert_ne!(api, ops);
        let secret = new_secret().unwrap();
        assert!(secret.starts_with("whsec_") && secret != new_secret().unwrap());
    }

    #[test]
    fn missing_member_is_named() {
        let error = text(&json!({"a": 1}), "id").unwrap_err().to_string();
        assert!(error.contains("`id`"), "{error}");
    }
}
