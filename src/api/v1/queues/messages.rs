//! Messages of a queue: receiving them, and ending their leases.

use std::time::Duration;

use serde_json::value::RawValue;

use super::handlers::find_writable;
use super::model::{
    ExtendInput, MessageBody, NackInput, ReceiptResultBody, ReceiptResultsBody, ReceiptsInput, ReceiveInput,
    ReceivedBody,
};
use super::settings::LEASE_MIN;
use crate::api::Call;
use crate::api::http::auth;
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::{Optional, Required};
use crate::api::http::response::Json;
use crate::api::text::Time;
use crate::api::v1::endpoints::settings::{check_integer, parse_duration_within};
use crate::domain::{DeliveryId, Endpoint, WorkerName};
use crate::limits;
use crate::service::Queues;
use crate::service::leases::{LeaseAction, Leases};
use crate::service::queues::{ReceiveError, ReceiveOptions};
use crate::service::receipts::Receipt;

impl From<ReceiveError> for Problem {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::TooManyWaiters => Self::TooManyWaiters,
            ReceiveError::Deleted => Self::NotFound("the queue was deleted".to_owned()),
            ReceiveError::Unavailable(error) => error.into(),
        }
    }
}

fn lease_max(queue: &Endpoint) -> Duration {
    queue.queue().map_or(limits::LEASE_MAX, |target| target.lease_max)
}

/// `POST /v1/queues/{name}/receive`
pub async fn receive(
    call: &Call,
    Optional(input): Optional<ReceiveInput>,
) -> Result<Json<ReceivedBody<'static>>, Problem> {
    let queue = find_writable(call)?;
    let options = receive_options(&queue, &input)?;
    let (context, party) = (&call.api.context, call.party.clone());
    let received = Queues(context).receive(party, &queue, options, call.gone()).await?;
    if received.is_empty() {
        // The wait may have ended because of the key.
        auth::check_again(&call.api, &call.principal)?;
    }
    let messages = received.iter().map(|message| {
        let event: &RawValue = serde_json::from_slice(&message.event)
            .map_err(|_| Problem::Unavailable("an event is not JSON".to_owned()))?;
        Ok(MessageBody {
            receipt: message.receipt.to_string(),
            delivery_id: DeliveryId(message.delivery).to_string(),
            delivery_count: message.progress.attempts_in_series,
            leased_until: Time(message.leased_until),
            event,
        })
    });
    let messages = messages.collect::<Result<Vec<_>, Problem>>()?;
    let response = Json::new(&ReceivedBody { messages }).without_lifetime();
    if received.is_empty() {
        return Ok(response);
    }
    let api = call.api.clone();
    let sent: Vec<_> = received.iter().map(|message| (message.receipt, message.progress)).collect();
    Ok(response.undo_unless_written(move || Queues(&api.context).return_lost(&queue, &sent)))
}

fn receive_options(queue: &Endpoint, input: &ReceiveInput) -> Result<ReceiveOptions, Problem> {
    let mut errors = Errors::default();
    let most = limits::RECEIVE_MESSAGES_MAX as u64;
    let bytes = limits::RECEIVE_BYTES_DEFAULT as u64;
    let waits = (Duration::ZERO, limits::WAIT_MAX);
    let options = ReceiveOptions {
        most: check_integer(&mut errors, "/max", input.max.unwrap_or(10), most) as usize,
        bytes_max: check_integer(
            &mut errors,
            "/maxBytes",
            input.max_bytes.unwrap_or(bytes),
            limits::RECEIVE_BYTES_MAX as u64,
        ) as usize,
        wait: parse_duration_within(&mut errors, "/wait", input.wait.as_deref(), Duration::ZERO, waits),
        visibility: input.visibility.as_deref().map(|text| {
            let bounds = (LEASE_MIN, lease_max(queue));
            parse_duration_within(&mut errors, "/visibility", Some(text), LEASE_MIN, bounds)
        }),
        worker: input.worker.as_deref().and_then(|name| errors.check("/worker", name.parse::<WorkerName>())),
    };
    errors.finish()?;
    Ok(options)
}

/// `POST /v1/queues/{name}/ack`
pub async fn ack(
    call: &Call,
    Required(input): Required<ReceiptsInput>,
) -> Result<Json<ReceiptResultsBody>, Problem> {
    end(call, &input.receipts, LeaseAction::Ack, None, Errors::default()).await
}

/// `POST /v1/queues/{name}/nack`
pub async fn nack(
    call: &Call,
    Required(input): Required<NackInput>,
) -> Result<Json<ReceiptResultsBody>, Problem> {
    let mut errors = Errors::default();
    let delay = input.delay.as_deref().map(|text| {
        let bounds = (Duration::ZERO, limits::NACK_DELAY_MAX);
        parse_duration_within(&mut errors, "/delay", Some(text), Duration::ZERO, bounds)
    });
    let reason = input.reason.as_deref().filter(|reason| !reason.is_empty());
    if reason.is_some_and(|reason| reason.len() > limits::ERROR_BYTES_MAX) {
        errors.push("/reason", format!("at most {} bytes", limits::ERROR_BYTES_MAX));
    }
    let action = if input.requeue.unwrap_or(true) {
        LeaseAction::Requeue(delay)
    } else {
        if delay.is_some() {
            errors.push("/delay", "cannot be combined with `requeue: false`");
        }
        LeaseAction::Reject
    };
    end(call, &input.receipts, action, reason, errors).await
}

/// `POST /v1/queues/{name}/release`
pub async fn release(
    call: &Call,
    Required(input): Required<ReceiptsInput>,
) -> Result<Json<ReceiptResultsBody>, Problem> {
    end(call, &input.receipts, LeaseAction::Release, None, Errors::default()).await
}

/// `POST /v1/queues/{name}/extend`
pub async fn extend(
    call: &Call,
    Required(input): Required<ExtendInput>,
) -> Result<Json<ReceiptResultsBody>, Problem> {
    let queue = find_writable(call)?;
    let mut errors = Errors::default();
    let bounds = (LEASE_MIN, lease_max(&queue));
    let text = Some(input.visibility.as_str());
    let visibility = parse_duration_within(&mut errors, "/visibility", text, LEASE_MIN, bounds);
    end(call, &input.receipts, LeaseAction::Extend(visibility), None, errors).await
}

async fn end(
    call: &Call,
    texts: &[String],
    action: LeaseAction,
    reason: Option<&str>,
    mut errors: Errors,
) -> Result<Json<ReceiptResultsBody>, Problem> {
    let queue = find_writable(call)?;
    if texts.is_empty() || texts.len() > limits::RECEIPTS_MAX {
        errors.push("/receipts", format!("1 to {} receipts", limits::RECEIPTS_MAX));
    }
    let mut receipts = Vec::with_capacity(texts.len().min(limits::RECEIPTS_MAX));
    for (index, text) in texts.iter().take(limits::RECEIPTS_MAX).enumerate() {
        receipts.extend(errors.check(&format!("/receipts/{index}"), text.parse::<Receipt>()));
    }
    errors.finish()?;
    let results = Leases(&call.api.context, &queue).end(&receipts, &action, reason).await?;
    let results = receipts.iter().zip(results);
    let results = results.map(|(receipt, result)| ReceiptResultBody::new(receipt, result)).collect();
    Ok(Json::new(&ReceiptResultsBody { results }))
}
