//! `balto endpoints preview`: the request that an event would become.

use clap::Args;
use serde_json::json;
use serde_json::value::RawValue;

use super::EndpointName;
use crate::cli::args;
use crate::cli::events::read_data;
use crate::cli::output::Session;
use crate::cli::usage;
use crate::limits::EVENT_BYTES_MAX;

/// A stored event, or one that is not published.
#[derive(Debug, Args)]
pub(crate) struct PreviewArgs {
    #[command(flatten)]
    id: EndpointName,
    /// A stored event of the endpoint's tenant.
    #[arg(long, value_name = "EVENT_ID", value_parser = args::id, required_unless_present = "event_type",
        conflicts_with_all = ["event_type", "data"])]
    event: Option<String>,
    /// The type of an event that is not published.
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The data of that event: JSON, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON|@FILE|-", default_value = "{}")]
    data: String,
}

impl PreviewArgs {
    fn body(&self) -> anyhow::Result<String> {
        let Some(event_type) = &self.event_type else {
            return Ok(json!({"eventId": self.event}).to_string());
        };
        let data = read_data(&self.data, EVENT_BYTES_MAX)?;
        let data: &RawValue =
            serde_json::from_str(&data).map_err(|error| usage(format!("--data is not JSON: {error}")))?;
        // The data byte for byte, as a delivery has it.
        Ok(format!(r#"{{"event":{{"type":{},"data":{data}}}}}"#, json!(event_type)))
    }

    pub(super) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let path = ["v1", "endpoints", self.id.as_str(), "preview"];
        session.show(&session.client.post(&path, Some(self.body()?)).await?)
    }
}
