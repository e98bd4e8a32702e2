//! `balto feed`: prints all events in order, and follows the log.
//!
//! Owns the cursor: after a lost connection it goes on where it was, so it prints each event once.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::args::QueryArgs;
use super::client::Error;
use super::output::{self, Session};

/// Time that a request waits for an event.
const WAIT: &str = "30s";
/// Pauses after a lost connection.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Characters of an event's data on a line.
const DATA_CHARACTERS_MAX: usize = 120;

/// Print all events in the order of the log.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    balto feed --follow\n  \
    balto feed --types 'order.*,pet.#' --tenant acme\n  \
    balto feed --follow --after 1240 --json | jq .data")]
pub(crate) struct FeedArgs {
    /// Wait for further events until interrupted. Goes on after a lost connection.
    #[arg(long, short)]
    follow: bool,
    /// A cursor, oldest or now [default: oldest; with --follow: now].
    #[arg(long, value_name = "CURSOR|oldest|now")]
    after: Option<String>,
    /// Only events whose type matches one of these topic patterns, joined by commas.
    #[arg(long, value_name = "PATTERNS")]
    types: Option<String>,
    #[arg(long)]
    tenant: Option<String>,
    /// Only events of this stream.
    #[arg(long)]
    stream: Option<String>,
    /// Only events of streams whose name begins with this text.
    #[arg(long, value_name = "TEXT", conflicts_with = "stream")]
    stream_prefix: Option<String>,
}

/// A page, with its events as text.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    data: Vec<Box<RawValue>>,
    next: String,
    caught_up: bool,
}

impl FeedArgs {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let mut after = self.after.clone().unwrap_or_else(|| {
            let start = if self.follow { "now" } else { "oldest" };
            start.to_owned()
        });
        let mut pause = PAUSE_MIN;
        // The first request shows wrong arguments and an unreachable daemon at once.
        let mut is_connected = false;
        loop {
            let page = match self.page(session, &after).await {
                Ok(page) => page,
                Err(error) if self.follow && is_connected && may_pass(&error) => {
                    output::note(&format!("balto: {error:#}; trying again after position {after}"));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    continue;
                }
                Err(error) => return Err(error),
            };
            (is_connected, pause) = (true, PAUSE_MIN);
            for event in &page.data {
                output::line(&if session.json {
                    event.get().replace(['\n', '\r'], " ")
                } else {
                    line(event)
                })?;
            }
            after = page.next;
            if page.caught_up && !self.follow {
                return Ok(());
            }
        }
    }

    async fn page(&self, session: &Session, after: &str) -> anyhow::Result<Page> {
        let query = QueryArgs::default()
            .with("after", Some(after.to_owned()))
            .with("types", self.types.clone())
            .with("tenant", self.tenant.clone())
            .with("stream", self.stream.clone())
            .with("streamPrefix", self.stream_prefix.clone())
            .with("wait", self.follow.then(|| WAIT.to_owned()));
        let answer = session.client.get(&["v1", "feed"], &query.0).await?;
        serde_json::from_str(&answer).context("the answer is not a page of the feed")
    }
}

/// Whether the same request may succeed later.
fn may_pass(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Error>() {
        Some(Error::Unreachable { .. }) => true,
        Some(Error::Refused(problem)) => matches!(problem.status, 429 | 500..),
        _ => false,
    }
}

/// An event on one line.
fn line(event: &RawValue) -> String {
    let event: Value = serde_json::from_str(event.get()).unwrap_or_default();
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let mut line =
        format!("{}  {}  {}  {}", event["position"], text("acceptedAt"), text("type"), text("tenant"));
    if let Some(stream) = event["stream"].as_str() {
        line += &format!("  {stream}@{}", event["streamVersion"]);
    }
    let data = event["data"].to_string();
    let shown: String = data.chars().take(DATA_CHARACTERS_MAX).collect();
    let cut = if shown.len() < data.len() { "..." } else { "" };
    output::clean(&format!("{line}  {}  {shown}{cut}", text("id")))
}

#[cfg(test)]
mod tests {
    use super::super::client::{Client, fake};
    use super::*;

    #[tokio::test]
    async fn feed_goes_on_at_its_cursor_until_it_has_caught_up() {
        let first = r#"{"data":[{"position":3,"type":"a"}],"next":"3","head":"9","caughtUp":false}"#;
        let second = r#"{"data":[],"next":"9","head":"9","caughtUp":true}"#;
        let answers = vec![("200 OK", first.to_owned()), ("200 OK", second.to_owned())];
        let (url, task) = fake::serve(answers).await;
        let session = Session { client: Client::new(&url, None).unwrap(), json: true };
        let args = FeedArgs {
            follow: false,
            after: None,
            types: Some("a,b.*".to_owned()),
            tenant: None,
            stream: None,
            stream_prefix: None,
        };
        args.run(&session).await.unwrap();
        let requests = task.await.unwrap();
        assert!(requests[0].starts_with("GET /v1/feed?after=oldest&types=a%2Cb.* "), "{}", requests[0]);
        assert!(requests[1].starts_with("GET /v1/feed?after=3&types="), "{}", requests[1]);
    }

    #[test]
    fn line_shows_position_type_stream_and_data() {
        let json = r#"{"position":7,"id":"evt_1","type":"pet.sold","tenant":"acme","acceptedAt":"2026-01-01T00:00:00.000Z","stream":"pet-1","streamVersion":2,"data":{"a":1}}"#;
        let event: Box<RawValue> = serde_json::from_str(json).unwrap();
        assert_eq!(line(&event), r#"7  2026-01-01T00:00:00.000Z  pet.sold  acme  pet-1@2  evt_1  {"a":1}"#);
    }
}
