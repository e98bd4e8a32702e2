//! `balto streams`: lists streams, shows their events and states, appends.
//!
//! Owns: the request body of an append. Data is sent byte for byte as given. An append always has
//! an idempotency key, so that a client that sends it twice appends once.

use anyhow::Context as _;
use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;
use serde_json::value::RawValue;

use super::args::{self, Paging, QueryArgs, TimeArg};
use super::client::Error;
use super::events::{ExpectedVersion, read_data};
use super::output::{Column, Session};
use crate::domain::StreamName;
use crate::limits::BATCH_BYTES_MAX;

const COLUMNS: &[Column] = &[
    Column("STREAM", &["/stream"]),
    Column("VERSION", &["/version"]),
    Column("FIRST VERSION", &["/firstVersion"]),
    Column("FIRST AT", &["/firstAt"]),
    Column("LAST AT", &["/lastAt"]),
    Column("POSITION", &["/position"]),
];

/// Columns of the events of a stream.
const EVENTS: &[Column] = &[
    Column("VERSION", &["/streamVersion"]),
    Column("ID", &["/id"]),
    Column("TYPE", &["/type"]),
    Column("TIMESTAMP", &["/timestamp"]),
    Column("DATA", &["/data"]),
];

/// List streams, show their events and states, append.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto streams list --prefix order-\n  \
    balto streams show order-42 --backwards --limit 10\n  \
    balto streams state pet-7 --until-version 3\n  \
    balto streams append order-42 --type order.paid --data '{\"amount\": 9}' --expected-version 6\n  \
    balto streams append order-42 --events @events.json --check customer-7=exists")]
pub(crate) enum StreamsCommand {
    /// List the streams of a tenant, by name.
    List {
        /// The tenant [default: that of the key, or default].
        #[arg(long)]
        tenant: Option<String>,
        /// Only streams whose names begin with this text.
        #[arg(long)]
        prefix: Option<String>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a stream with a page of its events.
    Show(Box<StreamShowArgs>),
    /// Show the version of a stream.
    Version {
        #[arg(value_parser = stream)]
        stream: String,
        /// The tenant [default: that of the key, or default].
        #[arg(long)]
        tenant: Option<String>,
        /// Wait until the version is above this one, for at most --wait.
        #[arg(long, value_name = "VERSION", requires = "wait")]
        after: Option<u64>,
        /// Time to wait for an event, at most 60s.
        #[arg(long, value_name = "DURATION", requires = "after", value_parser = args::duration_text)]
        wait: Option<String>,
    },
    /// Show the state of a stream: what the rules of its event types make of its events.
    State {
        #[arg(value_parser = stream)]
        stream: String,
        /// The tenant [default: that of the key, or default].
        #[arg(long)]
        tenant: Option<String>,
        /// The state at this version.
        #[arg(long, value_name = "VERSION")]
        until_version: Option<u64>,
        /// The state before this time: RFC 3339, or a duration before now (15m).
        #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
        until: Option<TimeArg>,
    },
    /// Append events: all of them, or none.
    Append(Box<AppendArgs>),
    /// Erase the content of all events that a stream has now: from all reads at once, and from the
    /// disk soon after. Repeat it to see whether the content has left the disk.
    Erase {
        #[arg(value_parser = stream)]
        stream: String,
        /// The tenant [default: that of the key, or default].
        #[arg(long)]
        tenant: Option<String>,
        /// Why, for the record. It must not repeat the erased content.
        #[arg(long)]
        reason: String,
    },
}

fn stream(text: &str) -> Result<String, String> {
    text.parse::<StreamName>().map(|stream| stream.to_string()).map_err(|error| error.to_string())
}

#[derive(Debug, Args)]
pub(crate) struct StreamShowArgs {
    #[arg(value_parser = stream)]
    stream: String,
    /// The tenant [default: that of the key, or default].
    #[arg(long)]
    tenant: Option<String>,
    /// The first version, or oldest.
    #[arg(long, value_name = "VERSION|oldest")]
    from: Option<String>,
    /// From the last event to the first.
    #[arg(long)]
    backwards: bool,
    /// Only events up to this version.
    #[arg(long, value_name = "VERSION")]
    until_version: Option<u64>,
    /// Only events before this time: RFC 3339, or a duration before now (15m).
    #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
    until: Option<TimeArg>,
    /// Only types that match these topic patterns, separated by commas.
    #[arg(long, value_name = "PATTERNS")]
    types: Option<String>,
    /// Events of the page.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: Option<u16>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["event_type", "events"]))]
pub(crate) struct AppendArgs {
    #[arg(value_parser = stream)]
    stream: String,
    /// The type of a single event: dot-separated words, such as order.paid.
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "events")]
    event_type: Option<String>,
    /// The data of a single event: JSON, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON|@FILE|-", default_value = "{}", conflicts_with = "events")]
    data: String,
    /// An id of your own for a single event, unique per tenant.
    #[arg(long, value_parser = args::id, conflicts_with = "events")]
    id: Option<String>,
    /// Several events: a JSON array of objects with `type` and `data`, @FILE, or - for standard
    /// input.
    #[arg(long, value_name = "JSON|@FILE|-")]
    events: Option<String>,
    /// The required version of the stream: a number, none, exists or any.
    #[arg(long, value_name = "N|none|exists|any", value_parser = ExpectedVersion::parse)]
    expected_version: Option<ExpectedVersion>,
    /// The required version of another stream. Repeatable.
    #[arg(long = "check", value_name = "STREAM=N|none|exists", value_parser = check)]
    checks: Vec<Check>,
    /// The tenant [default: that of the key, or default].
    #[arg(long)]
    tenant: Option<String>,
    /// Repeating the command with the same key appends nothing and returns the original answer
    /// [default: a random key].
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// A condition on another stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    stream: String,
    expected_version: ExpectedVersion,
}

fn check(text: &str) -> Result<Check, String> {
    let (name, version) = text.rsplit_once('=').ok_or("must be STREAM=N, STREAM=none or STREAM=exists")?;
    Ok(Check { stream: stream(name)?, expected_version: ExpectedVersion::parse(version)? })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AppendBody<'a> {
    events: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_version: Option<&'a ExpectedVersion>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    checks: &'a [Check],
}

#[derive(Serialize)]
struct SingleEvent<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

impl AppendArgs {
    fn body(&self) -> anyhow::Result<String> {
        let parse = |text: &str, option: &str| -> anyhow::Result<Box<RawValue>> {
            serde_json::from_str(text).map_err(|error| super::usage(format!("{option} is not JSON: {error}")))
        };
        let events = match (&self.events, &self.event_type) {
            (Some(events), _) => parse(&read_data(events, BATCH_BYTES_MAX)?, "--events")?,
            (None, event_type) => {
                let data = parse(&read_data(&self.data, BATCH_BYTES_MAX)?, "--data")?;
                let event_type = event_type.as_deref().unwrap_or_default();
                let event = SingleEvent { event_type, data: &data, id: self.id.as_deref() };
                let events = serde_json::to_string(&[event]).context("cannot write the event as JSON")?;
                RawValue::from_string(events).context("cannot write the event as JSON")?
            }
        };
        let body = AppendBody {
            events: &events,
            expected_version: self.expected_version.as_ref(),
            checks: &self.checks,
        };
        serde_json::to_string(&body).context("cannot write the events as JSON")
    }

    async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let key = match &self.idempotency_key {
            Some(key) => key.clone(),
            None => random_key()?,
        };
        let query = QueryArgs::default().with("tenant", self.tenant.clone());
        let path = ["v1", "streams", &self.stream, "events"];
        let answer = session.client.create_with(&path, &query.0, self.body()?, Some(&key)).await?;
        session.show(&answer)
    }
}

fn random_key() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).context("the system gives no random numbers")?;
    Ok(format!("balto-{:032x}", u128::from_be_bytes(bytes)))
}

impl StreamsCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        match self {
            Self::Erase { stream, tenant, reason } => {
                let query = QueryArgs::default().with("tenant", tenant.clone());
                let body = serde_json::json!({"reason": reason}).to_string();
                let path = ["v1", "streams", stream, "erase"];
                let answer = session.client.post_to(&path, &query.0, body).await?;
                session.show(&answer)
            }
            Self::List { tenant, prefix, paging } => {
                let query =
                    QueryArgs::default().with("tenant", tenant.clone()).with("prefix", prefix.clone());
                session.list(&["v1", "streams"], query, paging, COLUMNS).await
            }
            Self::Version { stream, tenant, after, wait } => {
                let query = QueryArgs::default()
                    .with("tenant", tenant.clone())
                    .with("afterVersion", after.map(|version| version.to_string()))
                    .with("wait", wait.clone());
                match session.client.get(&["v1", "streams", stream], &query.0).await {
                    Err(Error::Refused(problem)) if problem.status == 304 => {
                        anyhow::bail!("the stream got no event within this time")
                    }
                    answer => session.show(&answer?),
                }
            }
            Self::State { stream, tenant, until_version, until } => {
                let query = QueryArgs::default()
                    .with("tenant", tenant.clone())
                    .with("untilVersion", until_version.map(|version| version.to_string()))
                    .with("until", until.as_ref().map(|moment| moment.before(args::now())));
                session.show(&session.client.get(&["v1", "streams", stream, "state"], &query.0).await?)
            }
            Self::Show(show) => {
                let query = show.query();
                let path = ["v1", "streams", &show.stream, "events"];
                let answer = session.client.get(&path, &query.0).await?;
                session.show_with(&answer, ("data", EVENTS))
            }
            Self::Append(append) => append.run(session).await,
        }
    }
}

impl StreamShowArgs {
    fn query(&self) -> QueryArgs {
        QueryArgs::default()
            .with("tenant", self.tenant.clone())
            .with("fromVersion", self.from.clone())
            .with("direction", self.backwards.then_some("backwards"))
            .with("untilVersion", self.until_version.map(|version| version.to_string()))
            .with("until", self.until.as_ref().map(|moment| moment.before(args::now())))
            .with("types", self.types.clone())
            .with("limit", self.limit.map(|limit| limit.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    fn append(arguments: &[&str]) -> AppendArgs {
        let cli = Cli::parse_from(["balto", "streams", "append", "order-1"].iter().chain(arguments));
        let Command::Streams(StreamsCommand::Append(args)) = cli.command else { panic!("not append") };
        *args
    }

    #[test]
    fn single_event_is_a_list_of_one() {
        let args =
            append(&["--type", "a", "--data", "{\"z\": 1.00}", "--id", "i", "--expected-version", "6"]);
        let body = r#"{"events":[{"type":"a","data":{"z": 1.00},"id":"i"}],"expectedVersion":6}"#;
        assert_eq!(args.body().unwrap(), body);
    }

    #[test]
    fn events_and_checks_are_passed_on() {
        let events = r#"[{"type":"a","data":1}, {"type":"b","data":2}]"#;
        let args = append(&["--events", events, "--check", "a=b=exists", "--check", "c=3"]);
        let checks = r#"[{"stream":"a=b","expectedVersion":"exists"},{"stream":"c","expectedVersion":3}]"#;
        assert_eq!(args.body().unwrap(), format!("{{\"events\":{events},\"checks\":{checks}}}"));
    }

    #[test]
    fn append_without_an_event_is_wrong_usage() {
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from(["balto", "streams", "append", "s"].iter().chain(arguments)).is_err()
        };
        assert!(parse(&[]) && parse(&["--data", "1"]) && parse(&["--type", "a", "--events", "[]"]));
        assert!(parse(&["--type", "a", "--check", "no-version"]));
        assert!(append(&["--events", "[1"]).body().unwrap_err().is::<crate::cli::UsageError>());
    }

    #[test]
    fn random_keys_differ() {
        assert_ne!(random_key().unwrap(), random_key().unwrap());
    }
}
