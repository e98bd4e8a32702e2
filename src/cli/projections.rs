//! `balto projections`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::Value;

use super::args::{Paging, QueryArgs};
use super::output::{Column, ProgressLine, Session};
use crate::quantity::quantity;

const COLUMNS: &[Column] = &[
    Column("NAME", &["/name"]),
    Column("KIND", &["/kind"]),
    Column("TENANT", &["/tenant"]),
    Column("POSITION", &["/position"]),
    Column("LAG", &["/lag/records"]),
    Column("SECONDS", &["/lag/seconds"]),
    Column("REBUILD", &["/rebuild/status"]),
];

/// Pause between two looks at a rebuild.
const PAUSE: Duration = Duration::from_millis(300);

/// Show how far the state and the consumers have come, or rebuild the state.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto projections\n  \
    balto projections rebuild state")]
pub(crate) enum ProjectionsCommand {
    /// List the state and the consumers with their positions and lags.
    List {
        #[command(flatten)]
        paging: Paging,
    },
    /// Build a new state from the journal while the old one serves, and wait for the end.
    Rebuild {
        /// The projection.
        #[arg(value_name = "NAME", value_parser = ["state"])]
        name: String,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
}

impl Default for ProjectionsCommand {
    fn default() -> Self {
        Self::List { paging: Paging::default() }
    }
}

impl ProjectionsCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        match self {
            Self::List { paging } => {
                session.list(&["v1", "projections"], QueryArgs::default(), paging, COLUMNS).await
            }
            Self::Rebuild { name, no_wait } => {
                let answer = session.client.post(&["v1", "projections", name, "rebuild"], None).await?;
                if *no_wait { session.show(&answer) } else { until_rebuilt(session, name).await }
            }
        }
    }
}

async fn projections(session: &Session) -> anyhow::Result<String> {
    Ok(session.client.get(&["v1", "projections"], &[]).await?)
}

/// Shows the projection when its rebuild has ended.
async fn until_rebuilt(session: &Session, name: &str) -> anyhow::Result<()> {
    let progress = ProgressLine::start();
    loop {
        let listed: Value = serde_json::from_str(&projections(session).await?)?;
        let all = listed["data"].as_array().into_iter().flatten();
        let known = all.clone().find(|known| known["kind"] == "state" && known["name"] == name);
        let known = known.with_context(|| format!("the daemon does not list the {name}"))?;
        let rebuild = &known["rebuild"];
        match rebuild["status"].as_str() {
            Some("running") => {
                let total = quantity(rebuild["total"].as_u64().unwrap_or_default(), "record", "records");
                progress.show(format!("rebuilding: {} of {total}", rebuild["done"]));
            }
            Some("completed") => return session.show(&known.to_string()),
            Some(_) => bail!("the rebuild failed: {}", rebuild["error"].as_str().unwrap_or("unknown cause")),
            None => bail!("the daemon was restarted during the rebuild; it serves with a valid state"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
