//! `balto keys`: creates, lists, shows and removes API keys.

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::args::{self, Paging, QueryArgs, TimeArg};
use super::output::{Column, Session};

const COLUMNS: &[Column] = &[
    Column("ID", &["/id"]),
    Column("ROLE", &["/role"]),
    Column("TENANT", &["/tenant"]),
    Column("DESCRIPTION", &["/description"]),
    Column("CREATED", &["/createdAt"]),
    Column("EXPIRES", &["/expiresAt"]),
    Column("LAST USED", &["/lastUsedAt"]),
];

/// Manage API keys. Needs an admin key without a tenant.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto keys create --role publisher --tenant acme --description 'shop backend'\n  \
    balto keys create --role viewer --expires 30d\n  \
    balto keys list\n  \
    balto keys rm key_01J...")]
pub(crate) enum KeysCommand {
    /// Create a key. The answer shows its secret once.
    Create {
        /// admin, publisher, viewer or worker.
        #[arg(long)]
        role: String,
        /// The only tenant that the key can access [default: all tenants].
        #[arg(long)]
        tenant: Option<String>,
        /// Text for people, such as the application that uses the key.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// The key is rejected from then on: RFC 3339, or a duration from now (30d).
        #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
        expires: Option<TimeArg>,
    },
    /// List keys, newest first.
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
    /// Delete a key. Requests with it are rejected at once.
    Rm {
        #[arg(value_name = "KEY_ID", value_parser = args::id)]
        id: String,
    },
}

impl KeysCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        match self {
            Self::Create { role, tenant, description, expires } => {
                let mut body = Map::new();
                body.insert("role".to_owned(), json!(role));
                body.extend(tenant.as_ref().map(|tenant| ("tenant".to_owned(), json!(tenant))));
                body.extend(description.as_ref().map(|text| ("description".to_owned(), json!(text))));
                let at = expires.as_ref().map(|time| time.after(args::now()));
                body.extend(at.map(|at| ("expiresAt".to_owned(), json!(at))));
                session.show(&client.post(&["v1", "keys"], Some(Value::Object(body).to_string())).await?)
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
                session.done(&client.delete(&["v1", "keys", id]).await?, &format!("{id} is deleted."))
            }
        }
    }
}
