//! Erasure of one event, or of a stream.

use super::model::{ErasureBody, ErasureInput};
use crate::api::Call;
use crate::api::http::problem::Problem;
use crate::api::http::request::Required;
use crate::api::http::response::Accepted;
use crate::domain::{EventId, StreamName};
use crate::service::Erasure;
use crate::service::types::ChangeError;

/// `POST /v1/events/{id}/erase`
pub async fn event(
    call: &Call,
    Required(input): Required<ErasureInput>,
) -> Result<Accepted<ErasureBody>, Problem> {
    let id: EventId = call.parse_id("event")?;
    let (scope, tenant) = call.event_scope()?;
    match Erasure(&call.api.context).of_event(&scope, &tenant, &id, input.reason()?).await {
        Ok(view) => Ok(Accepted::new(&view.into())),
        Err(ChangeError::NotFound) => Err(call.event_not_found(&tenant)),
        Err(error) => Err(error.into()),
    }
}

/// `POST /v1/streams/{stream}/erase`
pub async fn stream(
    call: &Call,
    Required(input): Required<ErasureInput>,
) -> Result<Accepted<ErasureBody>, Problem> {
    let stream: StreamName = call.parse_id("stream")?;
    let tenant = call.stream_tenant()?;
    let scope = &call.principal.scope;
    match Erasure(&call.api.context).of_stream(scope, &tenant, &stream, input.reason()?).await {
        Ok(view) => Ok(Accepted::new(&view.into())),
        Err(ChangeError::NotFound) => Err(call.stream_not_found()),
        Err(error) => Err(error.into()),
    }
}
