//! `balto endpoints preview` and `replay`: the request of an event, and deliveries of past events.

use clap::Args;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{EndpointName, set};
use crate::cli::args::{self, TimeArg};
use crate::cli::events::read_data;
use crate::cli::output::{Session, busy};
use crate::cli::usage;
use crate::domain::time::Timestamp;
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

/// The past events that are delivered again.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    id: EndpointName,
    /// From this time on: RFC 3339, or a duration before now (24h).
    #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
    since: TimeArg,
    /// Before this time: RFC 3339, or a duration before now (15m).
    #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
    until: Option<TimeArg>,
    /// Only events that match these topic patterns [default: those of the endpoint].
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',')]
    event_types: Vec<String>,
    /// Only events that were not delivered to this endpoint.
    #[arg(long)]
    only_undelivered: bool,
}

impl ReplayArgs {
    fn body(&self, now: Timestamp) -> Value {
        let mut members = Map::new();
        set(&mut members, "since", Some(self.since.before(now)));
        set(&mut members, "until", self.until.as_ref().map(|moment| moment.before(now)));
        let types = (!self.event_types.is_empty()).then(|| self.event_types.clone());
        set(&mut members, "eventTypes", types);
        set(&mut members, "onlyUndelivered", self.only_undelivered.then_some(true));
        Value::Object(members)
    }

    pub(super) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let path = ["v1", "endpoints", self.id.as_str(), "replay"];
        let body = self.body(args::now()).to_string();
        session.show(&busy("replaying", session.client.post_bulk(&path, body)).await?)
    }
}
