//! `balto sources`.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::args::{Paging, QueryArgs};
use super::output::{Column, Session};
use crate::domain::SourceName;

const COLUMNS: &[Column] = &[
    Column("SOURCE", &["/name"]),
    Column("STATUS", &["/status"]),
    Column("URL", &["/url"]),
    Column("QUEUE", &["/queue"]),
    Column("STATE", &["/state"]),
    Column("LAST ERROR", &["/lastError"]),
];

/// Manage sources: queues of a RabbitMQ broker whose messages become events.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto sources create shop --url amqps://rabbit.example.com/%2F --username balto --password-file FILE \\\n  \
        --queue to-balto --exchange shop --binding 'pet.#'\n  \
    balto sources list\n  \
    balto sources pause shop")]
pub(crate) enum SourcesCommand {
    /// List sources by name.
    List {
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a source and its connection.
    Show(SourceTarget),
    /// Create a source.
    Create {
        #[command(flatten)]
        source: SourceTarget,
        #[command(flatten)]
        options: Box<SourceMembers>,
    },
    /// Change members of a source.
    Update {
        #[command(flatten)]
        source: SourceTarget,
        #[command(flatten)]
        options: Box<SourceMembers>,
    },
    /// Stop taking messages. The broker keeps them.
    Pause(SourceTarget),
    /// Take messages again.
    Resume(SourceTarget),
    /// Delete a source. The queue of the broker stays.
    Rm(SourceTarget),
}

#[derive(Debug, Args)]
pub(crate) struct SourceTarget {
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
}

/// A name becomes a segment of a path.
fn name(text: &str) -> Result<String, String> {
    text.parse::<SourceName>().map(|name| name.to_string()).map_err(|error| error.to_string())
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SourceDataFormat {
    Auto,
    Envelope,
    Raw,
}

#[derive(Debug, Default, Args)]
pub(crate) struct SourceMembers {
    /// amqps://host:port/vhost
    #[arg(long)]
    url: Option<String>,
    /// The user name at the broker.
    #[arg(long)]
    username: Option<String>,
    /// A file with the password; - for standard input.
    #[arg(long, value_name = "FILE")]
    password_file: Option<String>,
    /// The queue to consume.
    #[arg(long)]
    queue: Option<String>,
    /// The topic exchange that the queue is bound to.
    #[arg(long)]
    exchange: Option<String>,
    /// A topic pattern of a binding. Repeatable.
    #[arg(long = "binding", value_name = "PATTERN")]
    bindings: Vec<String>,
    /// Most unacknowledged messages.
    #[arg(long, value_name = "N")]
    prefetch: Option<u32>,
    /// The tenant of the events.
    #[arg(long)]
    tenant: Option<String>,
    /// How a message becomes an event.
    #[arg(long)]
    format: Option<SourceDataFormat>,
}

impl SourceMembers {
    fn members(&self, name: Option<&str>) -> anyhow::Result<Value> {
        let password = match &self.password_file {
            Some(file) => Some(read_password(file)?),
            None => None,
        };
        let format = self.format.map(|format| match format {
            SourceDataFormat::Auto => "auto",
            SourceDataFormat::Envelope => "envelope",
            SourceDataFormat::Raw => "raw",
        });
        let texts = [
            ("name", name),
            ("url", self.url.as_deref()),
            ("username", self.username.as_deref()),
            ("password", password.as_deref()),
            ("queue", self.queue.as_deref()),
            ("exchange", self.exchange.as_deref()),
            ("tenant", self.tenant.as_deref()),
            ("format", format),
        ];
        let given = texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), json!(text?))));
        let mut members: Map<String, Value> = given.collect();
        members.extend(self.prefetch.map(|count| ("prefetch".to_owned(), json!(count))));
        if !self.bindings.is_empty() {
            members.insert("bindings".to_owned(), json!(self.bindings));
        }
        if members.is_empty() {
            return Err(super::usage("nothing to change: give an option"));
        }
        Ok(Value::Object(members))
    }
}

/// The content of a file without its last line break.
fn read_password(file: &str) -> anyhow::Result<String> {
    let text = match file {
        "-" => std::io::read_to_string(std::io::stdin())?,
        path => std::fs::read_to_string(path).map_err(|error| anyhow::anyhow!("{path}: {error}"))?,
    };
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl SourcesCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        match self {
            Self::List { paging } => {
                session.list(&["v1", "sources"], QueryArgs::default(), paging, COLUMNS).await
            }
            Self::Show(source) => session.show(&client.get(&["v1", "sources", &source.name], &[]).await?),
            Self::Create { source, options } => {
                let body = options.members(Some(&source.name))?.to_string();
                session.show(&client.post(&["v1", "sources"], Some(body)).await?)
            }
            Self::Update { source, options } => {
                let body = options.members(None)?.to_string();
                session.show(&client.patch(&["v1", "sources", &source.name], body).await?)
            }
            Self::Pause(source) => act(session, source, "pause", "is paused").await,
            Self::Resume(source) => act(session, source, "resume", "is active").await,
            Self::Rm(SourceTarget { name }) => {
                session.done(&client.delete(&["v1", "sources", name]).await?, &format!("{name} is deleted."))
            }
        }
    }
}

async fn act(session: &Session, source: &SourceTarget, verb: &str, result: &str) -> anyhow::Result<()> {
    let name = &source.name;
    let answer = session.client.post(&["v1", "sources", name, verb], None).await?;
    session.done(&answer, &format!("{name} {result}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_the_given_ones_and_the_password_of_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "s ecret\n").unwrap();
        let options = SourceMembers {
            queue: Some("q".to_owned()),
            password_file: Some(file.to_str().unwrap().to_owned()),
            bindings: vec!["pet.#".to_owned()],
            ..SourceMembers::default()
        };
        let expected = json!({"name": "shop", "queue": "q", "password": "s ecret", "bindings": ["pet.#"]});
        assert_eq!(options.members(Some("shop")).unwrap(), expected);
        let refused = SourceMembers::default().members(None).unwrap_err();
        assert!(refused.is::<crate::cli::UsageError>(), "{refused}");
        assert!(read_password("/nowhere/at/all").unwrap_err().to_string().starts_with("/nowhere/at/all: "));
    }
}
