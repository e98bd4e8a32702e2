//! The options that select deliveries or dead letters, of lists and of bulk work.

use clap::Args;
use serde_json::{Map, Value};

use super::args::{self, QueryArgs, Window};
use crate::domain::time::Timestamp;

#[derive(Debug, Default, Args)]
pub(super) struct DeliverySearchArgs {
    /// Only to this endpoint.
    #[arg(long, value_name = "ENDPOINT_ID", value_parser = args::id)]
    endpoint: Option<String>,
    /// Only in this queue, of --tenant, or of the tenant of the key.
    #[arg(long, value_name = "QUEUE", conflicts_with = "endpoint")]
    queue: Option<String>,
    /// Only of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Only for events whose type matches this topic pattern, such as order.*
    #[arg(long = "type", value_name = "PATTERN")]
    event_type: Option<String>,
    /// Only those whose last attempt got this HTTP status.
    #[arg(long, value_name = "CODE")]
    status_code: Option<u16>,
    /// Only those whose last attempt failed with this error class, such as connect or timeout.
    #[arg(long, value_name = "CLASS")]
    error_class: Option<String>,
    /// Only with this id of a delivery, an event or an endpoint, or with an id that starts so.
    #[arg(long = "id", value_name = "ID_START", value_parser = args::id)]
    id_start: Option<String>,
    #[command(flatten)]
    window: Window,
}

impl DeliverySearchArgs {
    pub(super) fn query(&self, now: Timestamp) -> QueryArgs {
        let query = QueryArgs::default()
            .with("endpointId", self.endpoint.clone())
            .with("queue", self.queue.clone())
            .with("tenant", self.tenant.clone())
            .with("type", self.event_type.clone())
            .with("statusCode", self.status_code.map(|code| code.to_string()))
            .with("errorClass", self.error_class.clone())
            .with("q", self.id_start.clone());
        self.window.add_to(query, now)
    }

    /// The members of a request for bulk work.
    pub(super) fn members(&self, now: Timestamp) -> Map<String, Value> {
        let mut members = self.query(now).into_object();
        members.extend(self.status_code.map(|code| ("statusCode".to_owned(), Value::from(code))));
        members
    }
}
