//! `balto audit`: lists the acts of operators.

use clap::Args;

use super::args::{self, Paging, QueryArgs, Window};
use super::output::{Column, Session};

const COLUMNS: &[Column] = &[
    Column("TIME", &["/at"]),
    Column("ACTION", &["/action"]),
    Column("TARGET", &["/target"]),
    Column("TENANT", &["/tenant"]),
    Column("KEY", &["/actor/keyId"]),
    Column("ROLE", &["/actor/role"]),
    Column("ADDRESS", &["/address"]),
    Column("OUTCOME", &["/outcome"]),
];

/// The acts to list.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    balto audit --since 24h\n  \
    balto audit --action deleteEndpoint --tenant acme\n  \
    balto audit --actor key_01J...")]
pub(crate) struct AuditArgs {
    /// Only acts with this key; `admin`: with the configured admin key.
    #[arg(long, value_name = "KEY_ID", value_parser = args::id)]
    actor: Option<String>,
    /// Only this operation, by its name in the OpenAPI document, such as deleteEndpoint.
    #[arg(long, value_name = "OPERATION")]
    action: Option<String>,
    /// Only acts on the resource with this id or name.
    #[arg(long, value_name = "ID")]
    target: Option<String>,
    /// Only acts that concern this tenant.
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    window: Window,
    #[command(flatten)]
    paging: Paging,
}

impl AuditArgs {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let query = QueryArgs::default()
            .with("actor", self.actor.clone())
            .with("action", self.action.clone())
            .with("target", self.target.clone())
            .with("tenant", self.tenant.clone());
        session.list(&["v1", "audit"], self.window.add_to(query, args::now()), &self.paging, COLUMNS).await
    }
}
