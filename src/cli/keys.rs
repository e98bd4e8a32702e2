//! `balto keys`: creates, lists, shows, changes and deletes API keys.

use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::args::{self, Paging, QueryArgs, TimeArg};
use super::output::{Column, Session, note};
use crate::domain::time::Timestamp;

const COLUMNS: &[Column] = &[
    Column("ID", &["/id"]),
    Column("ROLE", &["/role"]),
    Column("TENANT", &["/tenant"]),
    Column("CREATED", &["/createdAt"]),
    Column("EXPIRES", &["/expiresAt"]),
    Column("LAST USED", &["/lastUsedAt"]),
    Column("DESCRIPTION", &["/description"]),
];

/// Manage API keys. Needs an admin key without a tenant.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto keys create --role publisher --tenant acme --description 'order service'\n  \
    balto keys create --role admin --expires 90d\n  \
    balto keys list\n  \
    balto keys rm key_01J...")]
pub(crate) enum KeysCommand {
    /// Create a key. The answer shows its secret once.
    Create {
        /// The rights of the key.
        #[arg(long)]
        role: KeyRole,
        /// The only tenant that the key can access [default: all tenants].
        #[arg(long)]
        tenant: Option<String>,
        /// A text for people.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// From this time on the key is rejected: RFC 3339, or a duration from now (90d).
        #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
        expires: Option<TimeArg>,
    },
    /// List keys, newest first, without their secrets.
    List {
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a key, without its secret.
    Show {
        #[arg(value_name = "KEY_ID", value_parser = args::id)]
        id: String,
    },
    /// Change the description of a key.
    Update {
        #[arg(value_name = "KEY_ID", value_parser = args::id)]
        id: String,
        /// Text for people; empty: none.
        #[arg(long, value_name = "TEXT")]
        description: String,
    },
    /// Delete a key. Requests with it are rejected from then on.
    #[command(alias = "revoke")]
    Rm {
        #[arg(value_name = "KEY_ID", value_parser = args::id)]
        id: String,
    },
}

/// The role of a new key.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum KeyRole {
    /// Everything.
    Admin,
    /// Publishes events, and reads events and deliveries.
    Publisher,
    /// Reads everything but secrets.
    Viewer,
    /// Receives and ends messages of queues, and commits consumers.
    Worker,
}

impl KeyRole {
    fn word(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Publisher => "publisher",
            Self::Viewer => "viewer",
            Self::Worker => "worker",
        }
    }
}

fn creation(
    role: KeyRole,
    tenant: Option<&str>,
    description: Option<&str>,
    expires: Option<&TimeArg>,
    now: Timestamp,
) -> Value {
    let mut members = Map::new();
    members.insert("role".to_owned(), json!(role.word()));
    let expires = expires.map(|moment| moment.after(now));
    for (name, text) in [("tenant", tenant), ("description", description), ("expiresAt", expires.as_deref())]
    {
        members.extend(text.map(|text| (name.to_owned(), json!(text))));
    }
    Value::Object(members)
}

impl KeysCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        match self {
            Self::Create { role, tenant, description, expires } => {
                let (tenant, description) = (tenant.as_deref(), description.as_deref());
                let body = creation(*role, tenant, description, expires.as_ref(), args::now());
                session.show(&client.create(&["v1", "keys"], body.to_string(), None).await?)?;
                if !session.json {
                    note("Store the secret: it is not shown again.");
                }
                Ok(())
            }
            Self::List { paging } => {
                session.list(&["v1", "keys"], QueryArgs::default(), paging, COLUMNS).await
            }
            Self::Show { id } => session.show(&client.get(&["v1", "keys", id], &[]).await?),
            Self::Update { id, description } => {
                let patch = json!({"description": description}).to_string();
                session.show(&client.patch(&["v1", "keys", id], patch).await?)
            }
            Self::Rm { id } => {
                let answer = client.delete(&["v1", "keys", id]).await?;
                session.done(&answer, &format!("{id} is deleted."))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creation_has_the_given_members_alone() {
        let now = Timestamp::from_millis(1_773_398_100_000);
        assert_eq!(creation(KeyRole::Admin, None, None, None, now), json!({"role": "admin"}));
        let expires = TimeArg::parse("5m").unwrap();
        let body = creation(KeyRole::Worker, Some("acme"), Some("d"), Some(&expires), now);
        let expected = json!({"role": "worker", "tenant": "acme", "description": "d",
            "expiresAt": "2026-03-13T10:40:00.000Z"});
        assert_eq!(body, expected);
    }
}
