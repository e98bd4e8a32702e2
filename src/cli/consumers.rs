//! `balto consumers`.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::args::{self, Paging, QueryArgs};
use super::output::{Column, Session};
use crate::domain::ConsumerName;

const COLUMNS: &[Column] = &[
    Column("CONSUMER", &["/name"]),
    Column("TENANT", &["/tenant"]),
    Column("POSITION", &["/position"]),
    Column("OLDEST", &["/oldest"]),
    Column("LAG", &["/lag/events"]),
    Column("SECONDS", &["/lag/seconds"]),
    Column("COMMITTED", &["/committedAt"]),
    Column("CONNECTIONS", &["/connections"]),
];

/// Manage consumers: named positions in the log of events.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto consumers create pet-search --type 'pet.#' --start oldest\n  \
    balto consumers list\n  \
    balto consumers reset pet-search --to 2026-03-13T00:00:00Z\n  \
    balto consumers rm pet-search")]
pub(crate) enum ConsumersCommand {
    /// List consumers with their lag, by tenant and name.
    List {
        /// Only of this tenant.
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a consumer.
    Show(Target),
    /// Create a consumer, or change what it reads. An existing one keeps its position.
    Create {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        options: Box<ConsumerOptions>,
    },
    /// Move a consumer forward or back.
    Reset {
        #[command(flatten)]
        target: Target,
        /// `oldest`, `now`, a cursor of the feed, or an RFC 3339 time.
        #[arg(long, value_name = "POSITION")]
        to: String,
    },
    /// Move a consumer forward, as its program does after its work.
    Commit {
        #[command(flatten)]
        target: Target,
        /// A cursor of the feed, at least the present position.
        #[arg(long, value_name = "CURSOR")]
        position: String,
        /// The position that the consumer must have now.
        #[arg(long, value_name = "CURSOR")]
        from: Option<String>,
    },
    /// Delete a consumer.
    Rm(Target),
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    /// The tenant of the consumer.
    #[arg(long)]
    tenant: Option<String>,
}

impl Target {
    fn query(&self) -> QueryArgs {
        QueryArgs::default().with("tenant", self.tenant.clone())
    }
}

/// A name becomes a segment of a path.
pub(super) fn name(text: &str) -> Result<String, String> {
    text.parse::<ConsumerName>().map(|name| name.to_string()).map_err(|error| error.to_string())
}

#[derive(Debug, Default, Args)]
pub(crate) struct ConsumerOptions {
    /// Only events of types that match this pattern (`order.*`, `pet.#`). Repeatable.
    #[arg(long = "type", value_name = "PATTERN")]
    types: Vec<String>,
    /// Only events of this stream.
    #[arg(long, value_name = "NAME", conflicts_with = "stream_prefix")]
    stream: Option<String>,
    /// Only events of streams whose name begins with this text.
    #[arg(long, value_name = "TEXT")]
    stream_prefix: Option<String>,
    /// Where a new consumer begins: `oldest`, `now`, a cursor of the feed, or an RFC 3339 time.
    #[arg(long, value_name = "POSITION")]
    start: Option<String>,
    /// A text for people.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Convert events of a type to a version: TYPE:VERSION, or TYPE:latest. Repeatable.
    #[arg(long = "pin", value_name = "TYPE:VERSION", value_parser = args::pin)]
    pins: Vec<String>,
}

impl ConsumerOptions {
    fn body(&self, tenant: Option<&String>) -> anyhow::Result<Value> {
        args::check_pins(&self.pins)?;
        let mut body = Map::new();
        let texts = [
            ("tenant", tenant),
            ("stream", self.stream.as_ref()),
            ("streamPrefix", self.stream_prefix.as_ref()),
            ("start", self.start.as_ref()),
            ("description", self.description.as_ref()),
        ];
        for (name, text) in texts {
            body.extend(text.map(|text| (name.to_owned(), json!(text))));
        }
        if !self.types.is_empty() {
            body.insert("types".to_owned(), json!(self.types));
        }
        if !self.pins.is_empty() {
            body.insert("versions".to_owned(), args::pins(&self.pins));
        }
        Ok(Value::Object(body))
    }
}

impl ConsumersCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        match self {
            Self::List { tenant, paging } => {
                let query = QueryArgs::default().with("tenant", tenant.clone());
                session.list(&["v1", "consumers"], query, paging, COLUMNS).await
            }
            Self::Show(target) => {
                session.show(&client.get(&["v1", "consumers", &target.name], &target.query().0).await?)
            }
            Self::Create { target, options } => {
                let body = options.body(target.tenant.as_ref())?.to_string();
                session.show(&client.put(&["v1", "consumers", &target.name], &[], body).await?)
            }
            Self::Reset { target, to } => {
                let (path, body) = (["v1", "consumers", &target.name, "reset"], json!({"to": to}));
                session.show(&client.post_to(&path, &target.query().0, body.to_string()).await?)
            }
            Self::Commit { target, position, from } => {
                let path = ["v1", "consumers", &target.name, "commit"];
                let mut body = json!({"position": position});
                if let Some(from) = from {
                    body["from"] = json!(from);
                }
                session.show(&client.post_to(&path, &target.query().0, body.to_string()).await?)
            }
            Self::Rm(target) => {
                let path = ["v1", "consumers", &target.name];
                let answer = client.delete_at(&path, &target.query().0).await?;
                session.done(&answer, &format!("deleted {}", target.name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_a_body() {
        let options = ConsumerOptions {
            types: vec!["pet.*".to_owned()],
            start: Some("now".to_owned()),
            ..ConsumerOptions::default()
        };
        let expected = json!({"tenant": "acme", "types": ["pet.*"], "start": "now"});
        assert_eq!(options.body(Some(&"acme".to_owned())).unwrap(), expected);
        assert_eq!(ConsumerOptions::default().body(None).unwrap(), json!({}));
    }

    #[test]
    fn name_is_one_path_segment() {
        assert_eq!(name("pet-search.v2"), Ok("pet-search.v2".to_owned()));
        for wrong in ["", ".", "..", "a/b", "a b", "ä"] {
            assert!(name(wrong).is_err(), "{wrong:?}");
        }
    }
}
