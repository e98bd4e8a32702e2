//! `balto send` and `balto events`: posts, lists, shows, replays and erases events.
//!
//! Owns: the request bodies of events. `data` is sent byte for byte as given, after a check that it
//! is JSON.

mod publish;

use std::io::Read as _;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::args::{self, Paging, QueryArgs, TimeArg, Window};
use super::output::{Column, Session};
use crate::limits::EVENT_BYTES_MAX;

const COLUMNS: &[Column] = &[
    Column("ID", &["/id"]),
    Column("TYPE", &["/type"]),
    Column("TENANT", &["/tenant"]),
    Column("STATUS", &["/status"]),
    Column("STREAM", &["/stream"]),
    Column("VERSION", &["/streamVersion"]),
    Column("TIMESTAMP", &["/timestamp"]),
];

/// Columns of the deliveries of an event.
const DELIVERIES: &[Column] = &[
    Column("ID", &["/id"]),
    Column("ENDPOINT", &["/endpointId"]),
    Column("STATUS", &["/status"]),
    Column("REASON", &["/reason"]),
    Column("ATTEMPTS", &["/attempts"]),
    Column("NEXT ATTEMPT", &["/nextAttemptAt"]),
    Column("CODE", &["/lastStatusCode"]),
    Column("LAST ERROR", &["/lastError"]),
];

/// Post an event.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    balto send --type order.paid --data '{\"orderId\": 42}'\n  \
    balto send --type order.paid --data @order.json --tenant acme --idempotency-key payment-42\n  \
    balto send --type order.shipped --stream order-42 --expected-version 6 --data - < shipped.json\n  \
    balto send --type trial.ended --deliver-at 72h")]
pub(crate) struct SendArgs {
    /// Dot-separated words, such as order.paid.
    #[arg(long = "type", value_name = "TYPE")]
    event_type: String,
    /// The event's data: JSON, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON|@FILE|-", default_value = "{}")]
    data: String,
    /// The event's tenant [default: default].
    #[arg(long)]
    tenant: Option<String>,
    /// The event's stream.
    #[arg(long)]
    stream: Option<String>,
    /// Repeating the command with the same key posts no second event and returns the original
    /// answer.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// An id of your own, unique per tenant.
    #[arg(long, value_parser = args::id)]
    id: Option<String>,
    /// Deliver no earlier than this time: RFC 3339, or a duration from now (10m).
    #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
    deliver_at: Option<TimeArg>,
    /// The required version of the stream: a number, none, exists or any.
    #[arg(long, value_name = "N|none|exists|any", requires = "stream", value_parser = ExpectedVersion::parse)]
    expected_version: Option<ExpectedVersion>,
    /// Endpoints with an ordering deliver events with the same key in order [default: the stream].
    #[arg(long, value_name = "KEY")]
    ordering_key: Option<String>,
    /// The version of the event type's schema [default: 1.0].
    #[arg(long, value_name = "VERSION")]
    schema_version: Option<String>,
    /// Labels by which endpoints select events.
    #[arg(long, value_name = "LABEL,...", value_delimiter = ',')]
    labels: Vec<String>,
}

/// The stream version that an append requires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum ExpectedVersion {
    Number(u64),
    Word(&'static str),
}

impl ExpectedVersion {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::Word("none")),
            "exists" => Ok(Self::Word("exists")),
            "any" => Ok(Self::Word("any")),
            _ => {
                text.parse().map(Self::Number).map_err(|_| "must be a number, none, exists or any".to_owned())
            }
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventBody<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_version: Option<&'a ExpectedVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ordering_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliver_at: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    labels: &'a [String],
}

impl SendArgs {
    fn body(&self, data: &str, now: crate::domain::time::Timestamp) -> anyhow::Result<String> {
        let data: &RawValue = serde_json::from_str(data)
            .map_err(|error| super::usage(format!("--data is not JSON: {error}")))?;
        let body = EventBody {
            event_type: &self.event_type,
            data,
            id: self.id.as_deref(),
            tenant: self.tenant.as_deref(),
            version: self.schema_version.as_deref(),
            stream: self.stream.as_deref(),
            expected_version: self.expected_version.as_ref(),
            ordering_key: self.ordering_key.as_deref(),
            deliver_at: self.deliver_at.as_ref().map(|moment| moment.after(now)),
            labels: &self.labels,
        };
        serde_json::to_string(&body).context("cannot write the event as JSON")
    }

    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let body = self.body(&read_data(&self.data, EVENT_BYTES_MAX)?, args::now())?;
        let answer = session.client.create(&["v1", "events"], body, self.idempotency_key.as_deref()).await?;
        session.show(&answer)
    }
}

/// Reads the text of `JSON`, `@FILE` or `-`, up to a bound.
pub(super) fn read_data(argument: &str, bytes_max: usize) -> anyhow::Result<String> {
    let source: Box<dyn std::io::Read> = match argument.strip_prefix('@') {
        Some(path) => Box::new(std::fs::File::open(path).with_context(|| format!("cannot open {path}"))?),
        None if argument == "-" => Box::new(std::io::stdin()),
        None => return Ok(argument.to_owned()),
    };
    let mut text = String::new();
    source.take(bytes_max as u64 + 1).read_to_string(&mut text).context("cannot read the event's data")?;
    if text.len() > bytes_max {
        return Err(super::usage(format!("the data is longer than {bytes_max} bytes")));
    }
    Ok(text)
}

/// Publish many, list, show, replay and erase events.
#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// Post many events from a file or standard input.
    Publish(publish::PublishArgs),
    /// List events, newest first.
    List(Box<EventListArgs>),
    /// Show an event with its status and deliveries.
    Show {
        #[arg(value_parser = args::id)]
        id: String,
        /// The tenant of an id that the publisher chose [default: default].
        #[arg(long)]
        tenant: Option<String>,
        /// Wait until no delivery is pending, for at most this time (60s).
        #[arg(long, value_name = "DURATION")]
        wait: Option<String>,
    },
    /// Deliver an event again, to the given endpoints or to all that match now.
    Replay {
        #[arg(value_parser = args::id)]
        id: String,
        /// The tenant of an id that the publisher chose [default: default].
        #[arg(long)]
        tenant: Option<String>,
        /// Only to this endpoint; may be given several times.
        #[arg(long = "endpoint", value_name = "ENDPOINT_ID", value_parser = args::id)]
        endpoints: Vec<String>,
    },
    /// Erase an event's content: from all reads at once, and from the disk soon after. Repeat it to
    /// see whether the content has left the disk.
    Erase {
        #[arg(value_parser = args::id)]
        id: String,
        /// The tenant of an id that the publisher chose [default: default].
        #[arg(long)]
        tenant: Option<String>,
        /// Why, for the record. It must not repeat the erased content.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct EventListArgs {
    /// Only events of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Only events of this type.
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only events of this stream.
    #[arg(long)]
    stream: Option<String>,
    /// pending, delivered, partial, failed or unmatched.
    #[arg(long)]
    status: Option<String>,
    #[command(flatten)]
    window: Window,
    #[command(flatten)]
    paging: Paging,
}

impl EventsCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        match self {
            Self::Publish(arguments) => arguments.run(session).await,
            Self::List(list) => {
                let query = QueryArgs::default()
                    .with("tenant", list.tenant.clone())
                    .with("type", list.event_type.clone())
                    .with("stream", list.stream.clone())
                    .with("status", list.status.clone());
                let query = list.window.add_to(query, args::now());
                session.list(&["v1", "events"], query, &list.paging, COLUMNS).await
            }
            Self::Show { id, tenant, wait } => {
                let query = QueryArgs::default().with("tenant", tenant.clone()).with("wait", wait.clone());
                let answer = session.client.get(&["v1", "events", id], &query.0).await?;
                session.show_with(&answer, ("deliveries", DELIVERIES))
            }
            Self::Replay { id, tenant, endpoints } => {
                let query = QueryArgs::default().with("tenant", tenant.clone());
                let path = ["v1", "events", id, "replay"];
                let answer = session.client.post_to(&path, &query.0, replay_body(endpoints)).await?;
                session.done(&answer, &format!("{id} is replayed."))
            }
            Self::Erase { id, tenant, reason } => {
                let query = QueryArgs::default().with("tenant", tenant.clone());
                let path = ["v1", "events", id, "erase"];
                let body = json!({"reason": reason}).to_string();
                let answer = session.client.post_to(&path, &query.0, body).await?;
                session.show(&answer)
            }
        }
    }
}

fn replay_body(endpoints: &[String]) -> String {
    // An empty list would mean no endpoint; without a list the event goes to all endpoints that
    // match now.
    if endpoints.is_empty() { "{}".to_owned() } else { json!({"endpointIds": endpoints}).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::domain::time::Timestamp;
    use clap::Parser as _;

    fn body(arguments: &[&str]) -> String {
        let cli = Cli::parse_from(["balto", "send"].iter().chain(arguments));
        let Command::Send(args) = cli.command else { panic!("not send") };
        args.body(&args.data, Timestamp::from_millis(1_773_398_100_000)).unwrap()
    }

    #[test]
    fn plain_event_has_type_and_data_alone() {
        assert_eq!(body(&["--type", "a.b"]), r#"{"type":"a.b","data":{}}"#);
    }

    #[test]
    fn data_keeps_its_bytes() {
        let text = body(&["--type", "a", "--data", r#"{"z": 1.00,  "a": 12345678901234567890123}"#]);
        assert_eq!(text, r#"{"type":"a","data":{"z": 1.00,  "a": 12345678901234567890123}}"#);
    }

    #[test]
    fn every_option_has_its_member() {
        let arguments = "--type a --data 1 --tenant t --stream s --id i --deliver-at 10m --expected-version 6 \
            --ordering-key k --schema-version 2.0";
        let expected = r#"{"type":"a","data":1,"id":"i","tenant":"t","version":"2.0","stream":"s","expectedVersion":6,"orderingKey":"k","deliverAt":"2026-03-13T10:45:00.000Z"}"#;
        assert_eq!(body(&arguments.split_whitespace().collect::<Vec<_>>()), expected);
        let none = body(&["--type", "a", "--stream", "s", "--expected-version", "none"]);
        assert!(none.contains(r#""expectedVersion":"none""#), "{none}");
    }

    #[test]
    fn data_other_than_json_is_wrong_usage() {
        let cli = Cli::parse_from(["balto", "send", "--type", "a", "--data", "{oops"]);
        let Command::Send(args) = cli.command else { panic!("not send") };
        let error = args.body(&args.data, Timestamp::default()).unwrap_err();
        assert!(error.is::<crate::cli::UsageError>(), "{error}");
    }

    #[test]
    fn data_is_read_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.json");
        std::fs::write(&path, "[1]\n").unwrap();
        assert_eq!(read_data(&format!("@{}", path.display()), 9).unwrap(), "[1]\n");
        assert!(read_data(&format!("@{}", path.display()), 3).is_err(), "longer than the bound");
        assert!(read_data("@/no/such/file", 9).is_err());
    }

    #[test]
    fn replay_names_the_given_endpoints_alone() {
        assert_eq!(replay_body(&[]), "{}");
        assert_eq!(replay_body(&["ep_1".to_owned()]), r#"{"endpointIds":["ep_1"]}"#);
    }
}
