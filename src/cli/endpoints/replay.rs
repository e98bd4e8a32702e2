//! `balto endpoints replay`: delivers past events as a job.

use clap::Args;
use serde_json::{Value, json};

use super::EndpointName;
use crate::cli::jobs::PastArgs;
use crate::cli::output::Session;

/// Past events for an endpoint.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    id: EndpointName,
    #[command(flatten)]
    past: PastArgs,
    /// Only event types that match this topic pattern; repeatable [default: those of the endpoint].
    #[arg(long = "type", value_name = "PATTERN")]
    event_types: Vec<String>,
}

impl ReplayArgs {
    pub(super) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let mut body = self.past.body();
        if !self.event_types.is_empty() {
            body.insert("eventTypes".to_owned(), json!(self.event_types));
        }
        let path = ["v1", "endpoints", self.id.as_str(), "replay"];
        let answer = session.client.post(&path, Some(Value::Object(body).to_string())).await?;
        self.past.bulk.finish(session, &answer).await
    }
}
