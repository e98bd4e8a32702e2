//! The message of an attempt to an endpoint with the URL of a broker.
//!
//! It has the body and the headers of a request, except those that describe an HTTP connection.

use crate::context::Context;
use crate::courier::{BrokerCredentials, BrokerUrl, OutboundMessage, body};
use crate::domain::{AmqpTarget, DeliveryKey, Endpoint, EndpointAuth, Format, Timestamp};
use crate::limits;
use crate::service::conversions::OutgoingEvent;
use crate::service::requests::{
    BuildError, Content, RequestView, Requests, Secrecy, Stamp, shown_header_values,
};
use crate::service::secrets::Secrets;

/// The header with the tenant of the event.
const TENANT: &str = "balto-tenant";
/// Headers of a request that are properties of a message, or describe the HTTP client.
const LEFT_OUT: [&str; 3] = ["content-type", "user-agent", "authorization"];
/// The method of a message where requests are shown.
const PUBLISH: &str = "PUBLISH";

impl Requests<'_> {
    /// The message of one attempt. `now` is the time of the signature.
    ///
    /// # Errors
    /// As [`Requests::build`], and when a name or the headers are too long for AMQP.
    pub(crate) fn message(
        self,
        endpoint: &Endpoint,
        outgoing: &OutgoingEvent,
        delivery: DeliveryKey,
        number: u32,
        now: Timestamp,
    ) -> Result<OutboundMessage, BuildError> {
        let target = endpoint.amqp().ok_or_else(|| "the endpoint has no exchange".to_owned())?;
        let content = self.content(endpoint, outgoing)?;
        let stamp = Stamp { delivery, number, at: now };
        let message = self.built_message(&content, target, stamp, Secrecy::Open(None))?;
        let credentials = credentials(self.0, endpoint).map_err(|error| error.to_string())?;
        let identity = Secrets(self.0).identity(endpoint).map_err(|error| error.to_string())?;
        Ok(OutboundMessage { credentials, identity, ..message })
    }

    /// The message without the credentials of its connection.
    pub(super) fn built_message(
        self,
        content: &Content<'_>,
        target: &AmqpTarget,
        stamp: Stamp,
        secrecy: Secrecy<'_>,
    ) -> Result<OutboundMessage, BuildError> {
        let Content { endpoint, outgoing, body, media } = content;
        let event = &*outgoing.event;
        let built = self.headers(content, stamp, secrecy)?;
        let mut headers: Vec<_> =
            shown_header_values(&built).filter(|(name, _)| !LEFT_OUT.contains(&name.as_str())).collect();
        headers.push((TENANT.to_owned(), event.tenant.to_string()));
        let content_type = media.as_deref().map(Box::from);
        if endpoint.format == Format::CloudEventsBinary {
            headers.extend(body::cloudevent_headers(endpoint, event));
        }
        let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
        if bytes > limits::broker::HEADERS_BYTES_MAX {
            return Err(format!("the headers have {bytes} bytes; one frame of AMQP holds 100,000").into());
        }
        let routing_key = target.routing_key.of(event);
        let names = headers.iter().map(|(name, _)| ("name of a header", name.as_str()));
        let names = names.chain([("routing key", routing_key)]);
        check_names(names.chain(content_type.as_deref().map(|media| ("content type", media))))?;
        let (url, _) = BrokerUrl::parse(&endpoint.url).map_err(|error| error.to_string())?;
        Ok(OutboundMessage {
            url,
            credentials: BrokerCredentials::guest(),
            identity: None,
            exchange: target.exchange.clone(),
            declares: target.declares,
            routing_key: routing_key.into(),
            content_type,
            message_id: event.id.as_str().into(),
            kind: event.event_type.as_str().into(),
            timestamp: event.timestamp.seconds(),
            headers,
            body: body.clone(),
            timeout: endpoint.timeout(&self.0.settings().defaults),
        })
    }
}

/// Checks that texts are short strings of AMQP.
fn check_names<'a>(names: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), String> {
    for (kind, name) in names {
        let length = name.len();
        if length > limits::broker::NAME_BYTES_MAX {
            return Err(format!("the {kind} has {length} bytes; AMQP allows 255"));
        }
    }
    Ok(())
}

fn credentials(
    context: &Context,
    endpoint: &Endpoint,
) -> Result<BrokerCredentials, crate::vault::VaultError> {
    match &endpoint.auth {
        Some(auth @ EndpointAuth::Basic { username, .. }) => {
            let password = Secrets(context).open_auth(endpoint, auth)?;
            Ok(BrokerCredentials { username: username.clone(), password: password.into() })
        }
        Some(EndpointAuth::OAuth2(_)) | None => Ok(BrokerCredentials::guest()),
    }
}

/// A message as it is shown: its properties come before its headers.
pub(super) fn view(message: OutboundMessage) -> RequestView {
    let mut headers = vec![
        ("exchange".to_owned(), message.exchange.to_string()),
        ("routing-key".to_owned(), message.routing_key.to_string()),
        ("mandatory".to_owned(), "true".to_owned()),
        ("delivery-mode".to_owned(), "2".to_owned()),
        ("message-id".to_owned(), message.message_id.to_string()),
        ("type".to_owned(), message.kind.to_string()),
        ("timestamp".to_owned(), message.timestamp.to_string()),
        ("app-id".to_owned(), OutboundMessage::APP.to_owned()),
    ];
    headers.extend(message.content_type.map(|media| ("content-type".to_owned(), media.into())));
    headers.extend(message.headers);
    RequestView {
        method: PUBLISH.to_owned(),
        url: message.url.to_string().into(),
        headers,
        body: message.body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_of_a_message_are_errors() {
        let (fits, long) = ("x".repeat(255), "x".repeat(256));
        assert_eq!(check_names([("content type", fits.as_str())]), Ok(()));
        let error = check_names([("routing key", "a"), ("content type", long.as_str())]).unwrap_err();
        assert_eq!(error, "the content type has 256 bytes; AMQP allows 255");
    }
}
