//! `balto queues`: manages queues, and looks at what waits in them.
//!
//! Owns: the translation of options into the members of a queue. A request contains only the given
//! options; the daemon has the defaults. Workers use [`super::work`].

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::args::{self, Paging, QueryArgs};
use super::jobs::{BulkArgs, PastArgs};
use super::output::{Column, Session};
use super::selection::{FilterTrialArgs, SelectionOptions};

const COLUMNS: &[Column] = &[
    Column("NAME", &["/name"]),
    Column("STATUS", &["/status"]),
    Column("TENANT", &["/tenant"]),
    Column("ORDERING", &["/ordering"]),
    Column("EVENT TYPES", &["/eventTypes"]),
    Column("DESCRIPTION", &["/description"]),
];

const LEASES: &[Column] = &[
    Column("DELIVERY", &["/deliveryId"]),
    Column("EVENT", &["/eventId"]),
    Column("WORKER", &["/worker"]),
    Column("COUNT", &["/deliveryCount"]),
    Column("STATE", &["/state"]),
    Column("LEASED UNTIL", &["/leasedUntil"]),
];

/// Manage queues, from which workers receive messages.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto queues create mails --event-types 'order.*' --visibility 2m --max-deliveries 5\n  \
    balto queues update mails --ordering key\n  \
    balto queues replay mails --since 24h          fill the queue from the past\n  \
    balto queues lane mails                        why messages wait\n  \
    balto work mails -- ./send-mail                a worker; see `balto work --help`")]
pub(crate) enum QueuesCommand {
    /// Create a queue. The same name and options again change nothing.
    Create {
        #[command(flatten)]
        queue: Queue,
        #[command(flatten)]
        options: Box<QueueOptions>,
    },
    /// List queues.
    List {
        /// Only of this tenant; `*`: only those of all tenants.
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a queue.
    Show(Queue),
    /// Change the given options.
    Update {
        #[command(flatten)]
        queue: Queue,
        #[command(flatten)]
        options: Box<QueueOptions>,
    },
    /// Hand out no more messages. Leased ones can still be ended.
    Pause(Queue),
    /// Hand out messages again.
    Resume(Queue),
    /// Cancel all waiting and leased messages.
    Purge {
        #[command(flatten)]
        queue: Queue,
        /// The name of the queue again, because this cannot be undone.
        #[arg(long, value_name = "QUEUE")]
        confirm: String,
        #[command(flatten)]
        bulk: BulkArgs,
    },
    /// Fill the queue with past events.
    Replay {
        #[command(flatten)]
        queue: Queue,
        #[command(flatten)]
        past: PastArgs,
    },
    /// Try a filter on an event, or count the stored events that would be delivered.
    TestFilter {
        #[command(flatten)]
        queue: Queue,
        #[command(flatten)]
        trial: FilterTrialArgs,
    },
    /// Show leased messages and their workers.
    Leases {
        #[command(flatten)]
        queue: Queue,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show outcomes and backlog.
    Stats(Queue),
    /// Show the waiting messages and the reason.
    Lane(Queue),
    /// Remove a queue; its waiting messages become dead letters.
    Rm(Queue),
}

/// A queue, by name and tenant.
#[derive(Debug, Args)]
pub(crate) struct Queue {
    #[arg(value_name = "QUEUE", value_parser = queue_name)]
    pub(super) name: String,
    /// The queue's tenant, or `*`, for a key without one [default: default].
    #[arg(long)]
    pub(super) tenant: Option<String>,
}

impl Queue {
    /// The path of the queue, or of one of its resources.
    pub(super) fn path<'a>(&'a self, below: &[&'a str]) -> Vec<&'a str> {
        [&["v1", "queues", self.name.as_str()], below].concat()
    }

    pub(super) fn query(&self) -> QueryArgs {
        QueryArgs::default().with("tenant", self.tenant.clone())
    }
}

/// A segment of a path: other characters (above all `..`) could name another resource.
fn queue_name(text: &str) -> Result<String, String> {
    let is_well_formed = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if is_well_formed && !text.is_empty() && !text.bytes().all(|byte| byte == b'.') {
        Ok(text.to_owned())
    } else {
        Err("a queue's name consists of letters, digits, `_`, `-` and `.`".to_owned())
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum QueueOrdering {
    None,
    Key,
    Queue,
}

/// Options of a queue, for a creation and a change.
#[derive(Debug, Default, Args)]
pub(crate) struct QueueOptions {
    /// A text for people.
    #[arg(long)]
    description: Option<String>,
    /// Topic patterns: * is one word, # any number of them.
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',')]
    event_types: Vec<String>,
    #[command(flatten)]
    selection: SelectionOptions,
    /// Time of a lease: a message that is not ended within it is handed out again.
    #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
    visibility: Option<String>,
    /// Leases of a message until it becomes a dead letter.
    #[arg(long, value_name = "N")]
    max_deliveries: Option<u32>,
    /// Order of messages: none, by ordering key, or of the whole queue.
    #[arg(long)]
    ordering: Option<QueueOrdering>,
    /// Delay of the first return of a message.
    #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
    retry_initial: Option<String>,
    /// Factor between a delay and the next.
    #[arg(long, value_name = "FACTOR", value_parser = args::number)]
    retry_multiplier: Option<f64>,
    /// The longest delay.
    #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
    retry_max_interval: Option<String>,
    /// Messages that may be leased at once.
    #[arg(long, value_name = "N")]
    max_leased: Option<u32>,
    /// Time for which a lease can be extended, from its start.
    #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
    max_lease: Option<String>,
    /// Age at which a message becomes a dead letter, leased or not.
    #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
    max_age: Option<String>,
    /// Convert messages of a type to a version: TYPE:VERSION, or TYPE:latest. Repeatable.
    #[arg(long = "pin", value_name = "TYPE:VERSION", value_parser = args::pin)]
    pins: Vec<String>,
}

impl QueueOptions {
    fn members(&self) -> anyhow::Result<Map<String, Value>> {
        args::check_pins(&self.pins)?;
        let ordering = self.ordering.and_then(|ordering| ordering.to_possible_value());
        let retry = [
            ("initial", self.retry_initial.clone().map(Value::from)),
            ("multiplier", self.retry_multiplier.map(Value::from)),
            ("maxInterval", self.retry_max_interval.clone().map(Value::from)),
        ];
        let retry = present(retry);
        let mut members = present([
            ("description", self.description.clone().map(Value::from)),
            ("eventTypes", (!self.event_types.is_empty()).then(|| json!(self.event_types))),
            ("visibility", self.visibility.clone().map(Value::from)),
            ("maxDeliveries", self.max_deliveries.map(Value::from)),
            ("ordering", ordering.map(|ordering| Value::from(ordering.get_name()))),
            ("retry", (!retry.is_empty()).then_some(Value::Object(retry))),
            ("maxLeased", self.max_leased.map(Value::from)),
            ("maxLease", self.max_lease.clone().map(Value::from)),
            ("maxAge", self.max_age.clone().map(Value::from)),
            ("versions", (!self.pins.is_empty()).then(|| args::pins(&self.pins))),
        ]);
        self.selection.add_to(&mut members);
        Ok(members)
    }
}

/// The members that have a value.
fn present<const N: usize>(members: [(&str, Option<Value>); N]) -> Map<String, Value> {
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

impl QueuesCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        match self {
            Self::Create { queue, options } => {
                let mut body = options.members()?;
                body.insert("name".to_owned(), json!(queue.name));
                body.extend(queue.tenant.as_ref().map(|tenant| ("tenant".to_owned(), json!(tenant))));
                let answer = client.post(&["v1", "queues"], Some(Value::Object(body).to_string())).await?;
                session.show(&answer)
            }
            Self::List { tenant, paging } => {
                let query = QueryArgs::default().with("tenant", tenant.clone());
                session.list(&["v1", "queues"], query, paging, COLUMNS).await
            }
            Self::Show(queue) => session.show(&client.get(&queue.path(&[]), &queue.query().0).await?),
            Self::Update { queue, options } => {
                let patch = options.members()?;
                if patch.is_empty() {
                    return Err(super::usage("nothing to change: give an option"));
                }
                let body = Value::Object(patch).to_string();
                session.show(&client.patch_to(&queue.path(&[]), &queue.query().0, body).await?)
            }
            Self::Pause(queue) => act(session, queue, "pause", json!({})).await,
            Self::Resume(queue) => act(session, queue, "resume", json!({})).await,
            Self::Purge { queue, confirm, bulk } => {
                if *confirm != queue.name {
                    return Err(super::usage(format!("--confirm must be `{}`", queue.name)));
                }
                let mut body = Map::new();
                bulk.add_to(&mut body);
                let answer = post(session, queue, "purge", Value::Object(body)).await?;
                bulk.finish(session, &answer).await
            }
            Self::Replay { queue, past } => {
                let answer = post(session, queue, "replay", Value::Object(past.body())).await?;
                past.bulk.finish(session, &answer).await
            }
            Self::TestFilter { queue, trial } => {
                let path = queue.path(&["filter", "test"]);
                let body = trial.body().to_string();
                session.show(&client.post_to(&path, &queue.query().0, body).await?)
            }
            Self::Leases { queue, paging } => {
                session.list(&queue.path(&["leases"]), queue.query(), paging, LEASES).await
            }
            Self::Stats(queue) => session.show(&client.get(&queue.path(&["stats"]), &queue.query().0).await?),
            Self::Lane(queue) => session.show(&client.get(&queue.path(&["lane"]), &queue.query().0).await?),
            Self::Rm(queue) => {
                let answer = client.delete_from(&queue.path(&[]), &queue.query().0).await?;
                session.done(&answer, "Removed.")
            }
        }
    }
}

async fn act(session: &Session, queue: &Queue, action: &str, body: Value) -> anyhow::Result<()> {
    session.show(&post(session, queue, action, body).await?)
}

async fn post(session: &Session, queue: &Queue, action: &str, body: Value) -> anyhow::Result<String> {
    let (path, query) = (queue.path(&[action]), queue.query());
    Ok(session.client.post_to(&path, &query.0, body.to_string()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_names_contain_no_path_characters() {
        assert_eq!(queue_name("mails-1.eu_x"), Ok("mails-1.eu_x".to_owned()));
        for wrong in ["", ".", "..", "a/b", "a?b", "a b", "ä"] {
            assert!(queue_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_given_options_become_members() {
        assert!(QueueOptions::default().members().unwrap().is_empty());
        let options = QueueOptions {
            event_types: vec!["order.*".to_owned()],
            visibility: Some("2m".to_owned()),
            ordering: Some(QueueOrdering::Key),
            retry_initial: Some("5s".to_owned()),
            max_deliveries: Some(5),
            ..QueueOptions::default()
        };
        let expected = json!({"eventTypes": ["order.*"], "visibility": "2m", "ordering": "key",
            "retry": {"initial": "5s"}, "maxDeliveries": 5});
        assert_eq!(Value::Object(options.members().unwrap()), expected);
        let pins = vec!["a.b:1.0".to_owned(), "a.b:2.0".to_owned()];
        assert!(QueueOptions { pins, ..QueueOptions::default() }.members().is_err());
    }
}
