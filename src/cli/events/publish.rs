//! `balto events publish`: posts many events from a file or standard input, in batches.
//!
//! Holds one batch at a time. Each event is sent byte for byte.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cli::output::{ProgressLine, Session, clean, json_line, line, note};
use crate::cli::usage;
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::quantity::quantity;

/// Bytes of a batch besides its events: the member `events` and its brackets.
const FRAME_BYTES: usize = 64;
/// Rejected events that are shown.
const SHOWN_MAX: usize = 20;

/// Post many events.
#[derive(Debug, Args)]
#[command(
    after_help = "The input is a sequence of JSON objects, for example one on each line (NDJSON), or arrays of \
    them. Each object is an event as `POST /v1/events` takes it.\n\n\
    Examples:\n  \
    balto events publish orders.ndjson\n  \
    jq -c '{type: \"order.paid\", data: .}' orders.json | balto events publish -\n  \
    balto events publish --atomic transfer.json"
)]
pub(crate) struct PublishArgs {
    /// A file with events; `-` is standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Accept all events or none; at most 1,000.
    #[arg(long)]
    atomic: bool,
}

#[derive(Deserialize)]
struct BatchResults {
    results: Vec<Box<RawValue>>,
}

/// The members of a result that are shown.
#[derive(Deserialize)]
struct BatchResult {
    status: u16,
    #[serde(default)]
    code: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<MemberError>,
}

#[derive(Deserialize)]
struct MemberError {
    #[serde(default)]
    pointer: String,
    #[serde(default)]
    detail: String,
}

/// Counts of the posted events.
#[derive(Default)]
struct PostedCounts {
    accepted: u64,
    rejected: u64,
}

impl PublishArgs {
    pub(super) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let source: Box<dyn Read> = if self.file.as_os_str() == "-" {
            Box::new(std::io::stdin())
        } else {
            let file = File::open(&self.file);
            Box::new(file.map_err(|error| usage(format!("cannot open {}: {error}", self.file.display())))?)
        };
        let mut events = EventReader::new(source);
        let (mut posted, progress) = (PostedCounts::default(), ProgressLine::start());
        while let Some(batch) = events.next_batch()? {
            if self.atomic && (posted.accepted > 0 || events.has_more()?) {
                return Err(usage(format!(
                    "--atomic takes at most {BATCH_EVENTS_MAX} events and {BATCH_BYTES_MAX} bytes"
                )));
            }
            post(session, &batch, self.atomic, &mut posted).await.with_context(|| {
                format!("after {}", quantity(posted.accepted, "accepted event", "accepted events"))
            })?;
            progress.show(quantity(posted.accepted + posted.rejected, "event", "events"));
        }
        drop(progress);
        if !session.json {
            let accepted = quantity(posted.accepted, "event is", "events are");
            line(&format!("{accepted} accepted, {} rejected", quantity(posted.rejected, "is", "are")))?;
        }
        let rejected = quantity(posted.rejected, "event is", "events are");
        anyhow::ensure!(posted.rejected == 0, "{rejected} rejected");
        Ok(())
    }
}

async fn post(
    session: &Session,
    batch: &[Box<RawValue>],
    atomic: bool,
    posted: &mut PostedCounts,
) -> anyhow::Result<()> {
    let events: Vec<&str> = batch.iter().map(|event| event.get()).collect();
    let atomic = if atomic { r#","atomic":true"# } else { "" };
    let body = format!(r#"{{"events":[{}]{atomic}}}"#, events.join(","));
    let answer = session.client.post(&["v1", "events", "batch"], Some(body)).await?;
    let BatchResults { results } = serde_json::from_str(&answer).context("the answer is not a batch's")?;
    for raw in results {
        if session.json {
            json_line(raw.get())?;
        }
        let result: BatchResult = serde_json::from_str(raw.get()).context("a result is not a result's")?;
        if result.status < 300 {
            posted.accepted += 1;
            continue;
        }
        posted.rejected += 1;
        if !session.json && posted.rejected <= SHOWN_MAX as u64 {
            note(&rejection(posted.accepted + posted.rejected, &result));
        }
    }
    Ok(())
}

/// `number` counts from 1.
fn rejection(number: u64, result: &BatchResult) -> String {
    let mut text = format!("event {number}: {} ({})", clean(&result.detail), clean(&result.code));
    for error in &result.errors {
        text.push_str(&format!("\n  {}: {}", clean(&error.pointer), clean(&error.detail)));
    }
    text
}

/// Reads events one by one, and groups them into batches.
struct EventReader<R: Read> {
    values: serde_json::StreamDeserializer<'static, serde_json::de::IoRead<BufReader<R>>, Box<RawValue>>,
    /// EventReader of an array that are not taken yet.
    rest: std::vec::IntoIter<Box<RawValue>>,
    /// The event that did not fit into the last batch.
    held: Option<Box<RawValue>>,
    read: u64,
}

impl<R: Read> EventReader<R> {
    fn new(source: R) -> Self {
        let values = serde_json::Deserializer::from_reader(BufReader::new(source)).into_iter();
        Self { values, rest: Vec::new().into_iter(), held: None, read: 0 }
    }

    fn next(&mut self) -> anyhow::Result<Option<Box<RawValue>>> {
        loop {
            if let Some(event) = self.held.take().or_else(|| self.rest.next()) {
                return Ok(Some(event));
            }
            let Some(value) = self.values.next() else { return Ok(None) };
            self.read += 1;
            let value = value.map_err(|error| usage(format!("value {} is not JSON: {error}", self.read)))?;
            if !value.get().starts_with('[') {
                return Ok(Some(value));
            }
            let list: Vec<Box<RawValue>> = serde_json::from_str(value.get())?;
            self.rest = list.into_iter();
        }
    }

    fn next_batch(&mut self) -> anyhow::Result<Option<Vec<Box<RawValue>>>> {
        let (mut batch, mut bytes) = (Vec::new(), FRAME_BYTES);
        while batch.len() < BATCH_EVENTS_MAX {
            let Some(event) = self.next()? else { break };
            bytes += event.get().len() + 1;
            // An event that is too large alone is sent, and the daemon rejects it.
            if bytes > BATCH_BYTES_MAX && !batch.is_empty() {
                self.held = Some(event);
                break;
            }
            batch.push(event);
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    fn has_more(&mut self) -> anyhow::Result<bool> {
        self.held = self.next()?;
        Ok(self.held.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::{Client, fake};

    #[test]
    fn lines_and_arrays_become_batches() {
        let text = "{\"n\": 1}\n\n[{\"n\":2}, {\"n\": 3}]\n{\"n\":4}";
        let mut events = EventReader::new(text.as_bytes());
        let batch = events.next_batch().unwrap().unwrap();
        let texts: Vec<_> = batch.iter().map(|event| event.get()).collect();
        assert_eq!(texts, [r#"{"n": 1}"#, r#"{"n":2}"#, r#"{"n": 3}"#, r#"{"n":4}"#]);
        assert!(events.next_batch().unwrap().is_none());
        let many = "1\n".repeat(BATCH_EVENTS_MAX + 1);
        let mut events = EventReader::new(many.as_bytes());
        assert_eq!(events.next_batch().unwrap().unwrap().len(), BATCH_EVENTS_MAX);
        assert!(events.has_more().unwrap());
        assert_eq!(events.next_batch().unwrap().unwrap().len(), 1);
        let large = format!("\"{}\" ", "x".repeat(BATCH_BYTES_MAX / 2)).repeat(2);
        let mut events = EventReader::new(large.as_bytes());
        assert_eq!(events.next_batch().unwrap().unwrap().len(), 1);
        assert_eq!(events.next_batch().unwrap().unwrap().len(), 1);
        assert!(EventReader::new("{} {oops".as_bytes()).next_batch().is_err());
    }

    #[tokio::test]
    async fn rejected_events_fail_the_command() {
        let answer = r#"{"results":[{"status":202},{"status":422}]}"#.to_owned();
        let (url, task) = fake::serve(vec![("202 Accepted", answer)]).await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("events");
        std::fs::write(&file, "{\"a\": 1.0}\n2").unwrap();
        let session = Session { client: Client::new(&url, None).unwrap(), json: false };
        let error = PublishArgs { file, atomic: true }.run(&session).await.unwrap_err();
        assert_eq!(error.to_string(), "1 event is rejected");
        let request = task.await.unwrap().remove(0);
        assert!(request.ends_with(r#"{"events":[{"a": 1.0},2],"atomic":true}"#), "{request}");
    }
}
