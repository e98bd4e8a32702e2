//! `balto dead-letters`: lists, shows, redrives and purges dead letters.
//!
//! Owns: the selection. Without an id, a filter or `--all` no request is made, so none redrives
//! or purges all of them by accident.

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::args::{self, Paging, QueryArgs};
use super::deliveries::ATTEMPTS;
use super::jobs::BulkArgs;
use super::output::{Column, Session};
use super::search::DeliverySearchArgs;
use crate::domain::time::Timestamp;

const COLUMNS: &[Column] = &[
    Column("DELIVERY", &["/deliveryId", "/id"]),
    Column("REASON", &["/reason"]),
    Column("TYPE", &["/type", "/eventType", "/event/type"]),
    Column("EVENT", &["/eventId", "/event/id"]),
    Column("ENDPOINT", &["/endpointId"]),
    Column("ATTEMPTS", &["/attempts", "/attemptCount"]),
    Column("SINCE", &["/diedAt", "/deadAt", "/since", "/at"]),
    Column("LAST ERROR", &["/lastError"]),
];

/// List, show, redrive and purge dead letters.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto dead-letters list --reason attemptsExhausted --since 24h\n  \
    balto dead-letters redrive dlv_01J...\n  \
    balto dead-letters redrive --endpoint ep_01J...\n  \
    balto dead-letters redrive --status-code 503 --since 24h\n  \
    balto dead-letters purge --type trial.ended --until 720h\n  \
    balto dead-letters redrive --all --dry-run     how many it would be\n  \
    balto dead-letters redrive --all --rate 50 --wait")]
pub(crate) enum DeadLettersCommand {
    /// List dead letters, newest first.
    List {
        #[command(flatten)]
        filter: Box<FilterArgs>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a dead letter with its event, reason and attempts.
    Show {
        #[arg(value_name = "DELIVERY_ID", value_parser = args::id)]
        id: String,
    },
    /// Deliver again, with the same webhook-id and the full number of attempts.
    Redrive(Box<Selection>),
    /// Delete permanently.
    Purge(Box<Selection>),
}

#[derive(Debug, Default, Args)]
pub(crate) struct FilterArgs {
    #[command(flatten)]
    search: DeliverySearchArgs,
    /// attemptsExhausted, maxAge, gone, refused, endpointDeleted, endpointDisabled, blockedAddress,
    /// expired or unconvertible.
    #[arg(long)]
    reason: Option<String>,
}

impl FilterArgs {
    fn query(&self, now: Timestamp) -> QueryArgs {
        self.search.query(now).with("reason", self.reason.clone())
    }

    fn members(&self, now: Timestamp) -> Map<String, Value> {
        let mut members = self.search.members(now);
        members.extend(self.reason.clone().map(|reason| ("reason".to_owned(), Value::from(reason))));
        members
    }
}

/// One dead letter, those of a filter, or all.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// One dead letter.
    #[arg(value_name = "DELIVERY_ID", value_parser = args::id)]
    id: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// All dead letters.
    #[arg(long)]
    all: bool,
    /// Most dead letters per second [default: unlimited].
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    #[command(flatten)]
    bulk: BulkArgs,
}

/// A valid selection.
#[derive(Debug, PartialEq)]
enum Chosen<'a> {
    One(&'a str),
    Matching(Map<String, Value>),
}

impl Selection {
    fn chosen(&self, now: Timestamp) -> anyhow::Result<Chosen<'_>> {
        let mut filter = self.filter.members(now);
        let is_one = self.id.is_some();
        if is_one && (self.bulk.is_given() || self.rate.is_some()) {
            return Err(super::usage("--dry-run, --wait and --rate apply to a filter or --all"));
        }
        match (&self.id, filter.is_empty(), self.all) {
            (Some(id), true, false) => Ok(Chosen::One(id)),
            (Some(_), ..) => Err(super::usage("give either an id, or a filter or --all, not both")),
            (None, false, true) => Err(super::usage("give either a filter or --all, not both")),
            (None, true, false) => {
                Err(super::usage("no dead letter selected: give an id, a filter or --all"))
            }
            (None, ..) => {
                filter.extend(self.rate.map(|rate| ("rate".to_owned(), Value::from(rate))));
                self.bulk.add_to(&mut filter);
                Ok(Chosen::Matching(filter))
            }
        }
    }
}

impl DeadLettersCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        let now = args::now();
        match self {
            Self::List { filter, paging } => {
                session.list(&["v1", "dead-letters"], filter.query(now), paging, COLUMNS).await
            }
            Self::Show { id } => {
                let answer = client.get(&["v1", "dead-letters", id], &[]).await?;
                session.show_with(&answer, ("attempts", ATTEMPTS))
            }
            Self::Redrive(selection) => match selection.chosen(now)? {
                Chosen::One(id) => {
                    let answer = client.post(&["v1", "dead-letters", id, "redrive"], None).await?;
                    session.done(&answer, &format!("{id} is pending again."))
                }
                Chosen::Matching(filter) => {
                    let body = Value::Object(filter).to_string();
                    let answer = client.post(&["v1", "dead-letters", "redrive"], Some(body)).await?;
                    selection.bulk.finish(session, &answer).await
                }
            },
            Self::Purge(selection) => match selection.chosen(now)? {
                Chosen::One(id) => {
                    let answer = client.delete(&["v1", "dead-letters", id]).await?;
                    session.done(&answer, &format!("{id} is deleted."))
                }
                Chosen::Matching(filter) => {
                    let body = Value::Object(filter).to_string();
                    let answer = client.post(&["v1", "dead-letters", "purge"], Some(body)).await?;
                    selection.bulk.finish(session, &answer).await
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, UsageError};
    use clap::Parser as _;
    use serde_json::json;

    fn selection(arguments: &str) -> Box<Selection> {
        let line = format!("balto dead-letters purge {arguments}");
        match Cli::parse_from(line.split_whitespace()).command {
            Command::DeadLetters(DeadLettersCommand::Purge(selection)) => selection,
            other => panic!("not purge: {other:?}"),
        }
    }

    #[test]
    fn selection_is_one_some_or_explicitly_all() {
        let now = Timestamp::from_millis(1_773_398_100_000);
        assert_eq!(selection("dlv_1").chosen(now).unwrap(), Chosen::One("dlv_1"));
        assert_eq!(selection("--all").chosen(now).unwrap(), Chosen::Matching(Map::new()));
        let filter = selection("--endpoint ep_1 --type a.# --reason gone --tenant t --until 5m");
        let expected = json!({"endpointId": "ep_1", "tenant": "t", "type": "a.#", "reason": "gone",
            "until": "2026-03-13T10:30:00.000Z"});
        let Chosen::Matching(body) = filter.chosen(now).unwrap() else { panic!("one") };
        assert_eq!(Value::Object(body), expected);
        let filter = selection("--queue q --status-code 503 --error-class status --id evt_01 --dry-run");
        let expected = json!({"queue": "q", "statusCode": 503, "errorClass": "status", "q": "evt_01",
            "dryRun": true});
        let Chosen::Matching(body) = filter.chosen(now).unwrap() else { panic!("one") };
        assert_eq!(Value::Object(body), expected);
    }

    #[test]
    fn empty_and_contradictory_selections_are_wrong_usage() {
        for arguments in ["", "dlv_1 --all", "dlv_1 --type a", "--all --type a"] {
            let error = selection(arguments).chosen(Timestamp::default()).unwrap_err();
            assert!(error.is::<UsageError>(), "`{arguments}`: {error}");
        }
    }
}
