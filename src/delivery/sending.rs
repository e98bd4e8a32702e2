//! The request of one attempt: authorize, build and send it.

use crate::context::Context;
use crate::courier::{NotSent, ReceiverReply};
use crate::domain::{DeliveryKey, Endpoint, ErrorClass, ReceiverAnswer, SentRequest, Timestamp};
use crate::service::authorization::{AuthorizationError, Authorizations};
use crate::service::conversions::OutgoingEvent;
use crate::service::requests::{BuildError, Requests, sent_request};

/// A reply, and the facts of its request.
type SentReply = (ReceiverReply, Option<SentRequest>);

/// A delivery on its way to its receiver.
pub(super) struct Sending<'a> {
    pub(super) context: &'a Context,
    pub(super) endpoint: &'a Endpoint,
    pub(super) outgoing: &'a OutgoingEvent,
    pub(super) delivery: DeliveryKey,
    /// Number of the attempt.
    pub(super) number: u32,
    pub(super) started_at: Timestamp,
    pub(super) signed_at: Timestamp,
}

impl Sending<'_> {
    /// The reply, or a failure of the attempt in its place; and the facts of the request, if there
    /// was one. A receiver that rejects a kept access token gets the request once more, with a new
    /// token.
    pub(super) async fn reply(&self) -> Result<SentReply, NotSent> {
        if self.endpoint.amqp().is_some() {
            // Boxed, because it is rare; every attempt would reserve its size otherwise.
            return Box::pin(self.publish()).await;
        }
        let authorizations = Authorizations(self.context);
        let authorization = match authorizations.header(self.endpoint, None).await {
            Ok(authorization) => authorization,
            Err(AuthorizationError::NotSent(reason)) => return Err(reason),
            Err(AuthorizationError::Failed(reply)) => return Ok((*reply, None)),
        };
        let value = authorization.as_ref().map(|authorization| authorization.value.as_str());
        let reply = self.send(value).await?;
        let kept = authorization.and_then(|authorization| authorization.kept);
        let Some(rejected) = kept.filter(|_| matches!(reply.0.outcome, Ok(ReceiverAnswer::Status(401))))
        else {
            return Ok(reply);
        };
        // Boxed, because it is rare; every attempt would reserve its size otherwise.
        let renewed = Box::pin(async {
            let renewed = match authorizations.header(self.endpoint, Some(&rejected)).await {
                Ok(renewed) => renewed,
                Err(AuthorizationError::NotSent(_)) => return None,
                Err(AuthorizationError::Failed(failed)) => return Some((*failed, None)),
            };
            let value = renewed.as_ref().map(|renewed| renewed.value.as_str());
            self.send(value).await.ok()
        });
        Ok(renewed.await.unwrap_or(reply))
    }

    /// Publishes the message of an endpoint with the URL of a broker.
    async fn publish(&self) -> Result<SentReply, NotSent> {
        let Self { context, endpoint, outgoing, delivery, number, started_at, signed_at } = *self;
        match Requests(context).message(endpoint, outgoing, delivery, number, signed_at) {
            Ok(message) => {
                let reply = context.transport().publish(message).await?;
                Ok((reply, Some(sent_request(endpoint, started_at, signed_at))))
            }
            Err(error) => Ok((not_built(&error), None)),
        }
    }

    async fn send(&self, authorization: Option<&str>) -> Result<SentReply, NotSent> {
        let Self { context, endpoint, outgoing, delivery, number, started_at, signed_at } = *self;
        let built = Requests(context).build(endpoint, outgoing, delivery, number, signed_at, authorization);
        match built {
            Ok(request) => {
                let reply = context.transport().send(request).await?;
                Ok((reply, Some(sent_request(endpoint, started_at, signed_at))))
            }
            Err(error) => Ok((not_built(&error), None)),
        }
    }
}

/// The failure of an attempt whose request could not be built.
fn not_built(error: &BuildError) -> ReceiverReply {
    let class = match error {
        BuildError::Template(_) => ErrorClass::Template,
        BuildError::Other(_) => ErrorClass::Request,
    };
    ReceiverReply::failed(class, error.to_string())
}
