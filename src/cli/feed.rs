//! `balto feed`: prints all events in order, and follows the log.
//!
//! Owns the cursor: after a lost connection it goes on where it was, so it prints each event once.
//! The daemon keeps the cursor of a consumer. It moves after a page is printed, so after a lost
//! connection that page may be printed twice.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

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
#[derive(Debug, Default, Args)]
#[command(after_help = "Examples:\n  \
    balto feed --follow\n  \
    balto feed --types 'order.*,pet.#' --tenant acme\n  \
    balto feed --follow --after 1240 --json | jq .data\n  \
    balto feed --follow --consumer pet-search")]
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
    /// Only events of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Only events of this stream.
    #[arg(long)]
    stream: Option<String>,
    /// Only events of streams whose name begins with this text.
    #[arg(long, value_name = "TEXT", conflicts_with = "stream")]
    stream_prefix: Option<String>,
    /// Convert events to these versions: `latest`, or TYPE:VERSION joined by commas.
    #[arg(long, value_name = "VERSIONS")]
    versions: Option<String>,
    /// Print the events after the position of this consumer, and move it on after each page.
    #[arg(
        long,
        value_name = "NAME",
        value_parser = super::consumers::name,
        conflicts_with_all = ["after", "types", "stream", "stream_prefix", "versions"]
    )]
    consumer: Option<String>,
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
        let mut after = self.start(session).await?;
        let mut pause = PAUSE_MIN;
        // The first request shows wrong arguments and an unreachable daemon at once.
        let mut is_connected = false;
        loop {
            match self.step(session, &mut after).await {
                Ok(is_caught_up) if is_caught_up && !self.follow => return Ok(()),
                Ok(_) => (is_connected, pause) = (true, PAUSE_MIN),
                Err(error) if self.follow && is_connected && may_pass(&error) => {
                    output::note(&format!("balto: {error:#}; trying again after position {after}"));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    if self.consumer.is_some() {
                        // The answer to its move may have been lost.
                        after = self.start(session).await.unwrap_or(after);
                    }
                }
                Err(error) if self.follow && is_reset(&error, &after) => {
                    after = self.start(session).await?;
                    output::note(&format!("balto: the consumer was reset; going on after position {after}"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The cursor to begin at.
    async fn start(&self, session: &Session) -> anyhow::Result<String> {
        let Some(name) = &self.consumer else {
            let start = if self.follow { "now" } else { "oldest" };
            return Ok(self.after.clone().unwrap_or_else(|| start.to_owned()));
        };
        let query = QueryArgs::default().with("tenant", self.tenant.clone());
        let shown = session.client.get(&["v1", "consumers", name], &query.0).await?;
        let shown: Value = serde_json::from_str(&shown)?;
        shown["position"].as_str().map(str::to_owned).context("the answer is not a consumer")
    }

    /// Prints the next page and moves the cursor. Returns whether no event is left.
    async fn step(&self, session: &Session, after: &mut String) -> anyhow::Result<bool> {
        let page = self.page(session, after).await?;
        for event in &page.data {
            let text = if session.json { event.get().replace(['\n', '\r'], " ") } else { line(event) };
            output::line(&text)?;
        }
        if let Some(name) = self.consumer.as_ref().filter(|_| page.next != *after) {
            let query = QueryArgs::default().with("tenant", self.tenant.clone());
            let body = json!({"position": page.next, "from": after}).to_string();
            session.client.post_to(&["v1", "consumers", name, "commit"], &query.0, body).await?;
        }
        *after = page.next;
        Ok(page.caught_up)
    }

    async fn page(&self, session: &Session, after: &str) -> anyhow::Result<Page> {
        let wait = self.follow.then(|| WAIT.to_owned());
        if let Some(name) = &self.consumer {
            let query = QueryArgs::default().with("tenant", self.tenant.clone()).with("wait", wait);
            let answer = session.client.get(&["v1", "consumers", name, "events"], &query.0).await?;
            return serde_json::from_str(&answer).context("the answer is not a page of the feed");
        }
        let query = QueryArgs::default()
            .with("after", Some(after.to_owned()))
            .with("types", self.types.clone())
            .with("tenant", self.tenant.clone())
            .with("stream", self.stream.clone())
            .with("streamPrefix", self.stream_prefix.clone())
            .with("versions", self.versions.clone())
            .with("wait", wait);
        let answer = session.client.get(&["v1", "feed"], &query.0).await?;
        serde_json::from_str(&answer).context("the answer is not a page of the feed")
    }
}

/// Whether a commit failed because the consumer is before the position that it had here. Commits
/// move forward, so it was reset.
fn is_reset(error: &anyhow::Error, after: &str) -> bool {
    let Some(Error::Refused(problem)) = error.downcast_ref::<Error>() else { return false };
    let number = |text: &str| text.parse::<u64>().ok();
    let actual = problem.actual.as_str().and_then(number);
    problem.code == "consumer_moved"
        && actual.zip(number(after)).is_some_and(|(actual, after)| actual < after)
}

/// Whether the same request may succeed later.
fn may_pass(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Error>() {
        Some(Error::Unreachable { .. }) => true,
        Some(Error::Refused(problem)) => matches!(problem.status, 429 | 500..),
        _ => false,
    }
}

/// An event on one line, always with the same columns.
fn line(event: &RawValue) -> String {
    let event: Value = serde_json::from_str(event.get()).unwrap_or_default();
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let stream = match event["stream"].as_str() {
        Some(stream) => format!("{stream}@{}", event["streamVersion"]),
        None => "-".to_owned(),
    };
    let data = event["data"].to_string();
    let shown: String = data.chars().take(DATA_CHARACTERS_MAX).collect();
    let cut = if shown.len() < data.len() { "..." } else { "" };
    let (at, event_type, tenant) = (text("acceptedAt"), text("type"), text("tenant"));
    let (position, id) = (&event["position"], text("id"));
    output::clean(&format!("{position}  {at}  {event_type}  {tenant}  {stream}  {id}  {shown}{cut}"))
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
        let args = FeedArgs { types: Some("a,b.*".to_owned()), ..FeedArgs::default() };
        args.run(&session).await.unwrap();
        let requests = task.await.unwrap();
        assert!(requests[0].starts_with("GET /v1/feed?after=oldest&types=a%2Cb.* "), "{}", requests[0]);
        assert!(requests[1].starts_with("GET /v1/feed?after=3&types="), "{}", requests[1]);
    }

    #[tokio::test]
    async fn consumer_moves_after_each_printed_page() {
        let first = r#"{"data":[{"position":3,"type":"a"}],"next":"3","head":"9","caughtUp":false}"#;
        let second = r#"{"data":[],"next":"3","head":"3","caughtUp":true}"#;
        let answers = [r#"{"name":"search","position":"1"}"#, first, "{}", second];
        let answers = answers.map(|answer| ("200 OK", answer.to_owned()));
        let (url, task) = fake::serve(answers.into()).await;
        let session = Session { client: Client::new(&url, None).unwrap(), json: true };
        let args = FeedArgs {
            tenant: Some("acme".to_owned()),
            consumer: Some("search".to_owned()),
            ..FeedArgs::default()
        };
        args.run(&session).await.unwrap();
        let requests = task.await.unwrap();
        let begins = |number: usize, with: &str| {
            assert!(requests[number].starts_with(with), "{number}: {}", requests[number]);
        };
        begins(0, "GET /v1/consumers/search?tenant=acme ");
        begins(1, "GET /v1/consumers/search/events?tenant=acme ");
        begins(2, "POST /v1/consumers/search/commit?tenant=acme ");
        let body: Value = serde_json::from_str(requests[2].rsplit("\r\n").next().unwrap()).unwrap();
        assert_eq!(body, json!({"position": "3", "from": "1"}));
        begins(3, "GET /v1/consumers/search/events?tenant=acme ");
        assert_eq!(requests.len(), 4, "an empty page moves nothing");
    }

    #[tokio::test]
    async fn follower_of_a_consumer_goes_on_after_a_reset() {
        let page = |next: &str| format!(r#"{{"data":[],"next":"{next}","head":"9","caughtUp":true}}"#);
        let shown = |position: &str| format!(r#"{{"name":"search","position":"{position}"}}"#);
        let moved = r#"{"title":"moved","code":"consumer_moved","actual":"2"}"#.to_owned();
        let answers = vec![
            ("200 OK", shown("5")),
            ("200 OK", page("7")),
            ("409 Conflict", moved),
            ("200 OK", shown("2")),
            ("200 OK", page("8")),
            ("403 Forbidden", "{}".to_owned()),
        ];
        let (url, task) = fake::serve(answers).await;
        let session = Session { client: Client::new(&url, None).unwrap(), json: true };
        let args = FeedArgs { follow: true, consumer: Some("search".to_owned()), ..FeedArgs::default() };
        args.run(&session).await.unwrap_err();
        let requests = task.await.unwrap();
        let body = |number: usize| requests[number].rsplit("\r\n").next().unwrap().to_owned();
        assert_eq!(
            (body(2), body(5)),
            (r#"{"position":"7","from":"5"}"#.into(), r#"{"position":"8","from":"2"}"#.into())
        );
    }

    #[test]
    fn line_shows_position_type_stream_and_data() {
        let json = r#"{"position":7,"id":"evt_1","type":"pet.sold","tenant":"acme","acceptedAt":"2026-01-01T00:00:00.000Z","stream":"pet-1","streamVersion":2,"data":{"a":1}}"#;
        let event: Box<RawValue> = serde_json::from_str(json).unwrap();
        assert_eq!(line(&event), r#"7  2026-01-01T00:00:00.000Z  pet.sold  acme  pet-1@2  evt_1  {"a":1}"#);
        let json = r#"{"position":8,"id":"evt_2","type":"a","tenant":"acme","acceptedAt":"2026-01-01T00:00:00.000Z","data":1}"#;
        let event: Box<RawValue> = serde_json::from_str(json).unwrap();
        assert_eq!(line(&event), "8  2026-01-01T00:00:00.000Z  a  acme  -  evt_2  1");
    }
}
