//! The request of an attempt, to send it, and to show it later.
//!
//! A past request is built again from its event and from the endpoint's revision of that time, both
//! in the journal, by the code that built it first. So an attempt stores neither URL nor headers.
//! Secrets are not opened for it: their headers have the value [`MASK`].

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::context::Context;
use crate::courier::{OutboundRequest, body};
use crate::domain::{
    Attempt, DeliveryKey, Endpoint, Event, Position, Record, SentRequest, Timestamp, attribute,
};
use crate::outbox::draft::Unavailable;
use crate::rules::headers::is_secret;
use crate::rules::signature::{SigningKey, signature_header};
use crate::rules::trace;
use crate::service::conversions::{Conversions, OutgoingEvent};
use crate::service::secrets::Secrets;
use crate::service::types::Scope;

/// Value of a header that holds a credential or a signature, where it is shown.
pub const MASK: &str = "***";

/// Builds requests.
#[derive(Clone, Copy)]
pub struct Requests<'a>(pub &'a Context);

/// Which secrets a request has. The headers of the others have the value [`MASK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestSecrets {
    /// Signatures and credentials, to be sent.
    Open,
    /// Signatures. No reader sees credentials.
    Signed,
    Masked,
}

/// Why a delivery has no request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("not found")]
    NotFound,
    #[error("the event was erased")]
    Erased,
    #[error("{0}")]
    NotAllowed(String),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// An HTTP request as it is shown.
#[derive(Clone, Debug)]
pub struct RequestView {
    pub method: String,
    pub url: Box<str>,
    /// In the order of sending; names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// The part of a request that all attempts of a delivery share while the endpoint stays the same.
struct Content<'a> {
    endpoint: &'a Endpoint,
    outgoing: &'a OutgoingEvent,
    body: Bytes,
    media: &'static str,
}

impl Requests<'_> {
    /// The request of one attempt. `now` is the time of the signature.
    ///
    /// # Errors
    /// When a secret cannot be opened, or a stored setting is no longer valid.
    pub(crate) fn build(
        self,
        endpoint: &Endpoint,
        outgoing: &OutgoingEvent,
        delivery: DeliveryKey,
        number: u32,
        now: Timestamp,
    ) -> Result<OutboundRequest, String> {
        let content = self.content(endpoint, outgoing);
        let request = self.request(&content, delivery, number, now, RequestSecrets::Open)?;
        let identity = Secrets(self.0).identity(endpoint).map_err(|error| error.to_string())?;
        Ok(request.with_identity(identity).for_tenant(endpoint.tenant.as_str()))
    }

    fn content<'a>(self, endpoint: &'a Endpoint, outgoing: &'a OutgoingEvent) -> Content<'a> {
        let deprecation = Conversions(self.0).deprecation(&outgoing.event);
        let (body, media) = body::body(endpoint, &outgoing.event, deprecation);
        Content { endpoint, outgoing, body, media }
    }

    fn request(
        self,
        content: &Content<'_>,
        delivery: DeliveryKey,
        number: u32,
        now: Timestamp,
        secrets: RequestSecrets,
    ) -> Result<OutboundRequest, String> {
        let Content { endpoint, outgoing, body, media } = content;
        let event = &*outgoing.event;
        let mut generated = vec![self.signature(content, now, secrets)?];
        if endpoint.trace {
            let parent = trace::traceparent(event, delivery, number);
            generated.extend(parent.map(|parent| (attribute::TRACE_PARENT, parent.to_string())));
        }
        if let Some(handshake) = &endpoint.handshake {
            generated.push((body::REQUEST_ORIGIN, handshake.origin.to_string()));
        }
        let stored = outgoing.stored_version.as_ref();
        generated.extend(stored.map(|version| (body::STORED_VERSION, version.to_string())));
        let custom = match secrets {
            RequestSecrets::Open => {
                Secrets(self.0).open_headers(endpoint).map_err(|error| error.to_string())?
            }
            RequestSecrets::Signed | RequestSecrets::Masked => masked_headers(endpoint),
        };
        let headers = body::headers(&custom, media, event, number, now, generated)?;
        let timeout = endpoint.timeout(&self.0.settings().defaults);
        OutboundRequest::new(&endpoint.url, headers, body.clone(), timeout)
    }

    fn signature(
        self,
        content: &Content<'_>,
        now: Timestamp,
        secrets: RequestSecrets,
    ) -> Result<(&'static str, String), String> {
        let Content { endpoint, outgoing, body, .. } = content;
        let preset = endpoint.signature;
        let id = outgoing.event.id.as_str();
        if secrets == RequestSecrets::Masked {
            return Ok((signature_header(preset, &[], now, id, &[]).0, MASK.to_owned()));
        }
        let keys = Secrets(self.0).live_keys(endpoint, now).map_err(|error| error.to_string())?;
        let keys: Vec<SigningKey> = keys.into_iter().map(|(key, _)| key).collect();
        Ok(signature_header(preset, &keys, now, id, body))
    }

    /// The requests of these attempts of one delivery, in order. `None` for an attempt without a
    /// request, and where the request cannot be built again.
    pub(crate) async fn past(
        self,
        delivery: DeliveryKey,
        event: &Arc<Event>,
        attempts: &[Arc<Attempt>],
    ) -> Vec<Option<RequestView>> {
        let mut revisions = HashMap::new();
        for attempt in attempts {
            let Some(SentRequest { revision, .. }) = attempt.exchange.request else { continue };
            if event.erased_at.is_none() && !revisions.contains_key(&revision) {
                revisions.insert(revision, self.revision(revision, delivery, event).await);
            }
        }
        let contents: HashMap<_, _> = revisions
            .iter()
            .filter_map(|(revision, found)| Some((*revision, found.as_ref()?)))
            .map(|(revision, (endpoint, outgoing))| (revision, self.content(endpoint, outgoing)))
            .collect();
        let view = |attempt: &Arc<Attempt>| {
            let sent = attempt.exchange.request?;
            let content = contents.get(&sent.revision)?;
            let at = sent.signed_at.unwrap_or(attempt.started_at);
            let built = self.request(content, delivery, attempt.number, at, RequestSecrets::Masked);
            RequestView::of(built.ok()?)
        };
        attempts.iter().map(view).collect()
    }

    /// The request that an attempt of this delivery would send now, with the number of its last
    /// attempt.
    ///
    /// # Errors
    /// When the scope lacks the delivery, its event was erased, it goes to a queue or to a deleted
    /// endpoint, or the request cannot be built.
    pub async fn of_delivery(
        self,
        scope: &Scope,
        key: DeliveryKey,
        secrets: RequestSecrets,
    ) -> Result<RequestView, RequestError> {
        let facts = self.0.outbox().read_of(scope.0.as_ref(), move |state| state.delivery(key)).await?;
        let facts = facts.filter(|facts| scope.covers_name(&facts.tenant)).ok_or(RequestError::NotFound)?;
        let event = self.0.event_at(key.event).await?.ok_or(RequestError::NotFound)?;
        if event.erased_at.is_some() {
            return Err(RequestError::Erased);
        }
        let refused = |why: &str| RequestError::NotAllowed(why.to_owned());
        let endpoint = self.0.outbox().endpoint(key.endpoint);
        let endpoint = endpoint.ok_or_else(|| refused("the endpoint was deleted"))?;
        if endpoint.queue().is_some() {
            return Err(refused("a message of a queue has no request"));
        }
        let outgoing = Conversions(self.0).convert(&endpoint.versions, key.event, &event);
        let outgoing = outgoing.map_err(|error| RequestError::NotAllowed(error.to_string()))?;
        let (_, now) = self.0.now_and_civil();
        let content = self.content(&endpoint, &outgoing);
        let built = self.request(&content, key, facts.attempts_made.max(1), now, secrets);
        let view = RequestView::of(built.map_err(RequestError::NotAllowed)?);
        view.ok_or_else(|| refused("the URL cannot be requested"))
    }

    /// The endpoint of a delivery at an earlier revision, and the event for it.
    async fn revision(
        self,
        revision: Position,
        delivery: DeliveryKey,
        event: &Arc<Event>,
    ) -> Option<(Arc<Endpoint>, OutgoingEvent)> {
        let record = self.0.record_at(revision).await.ok().flatten()?;
        let Record::EndpointPut(endpoint) = record else { return None };
        let outgoing = Conversions(self.0).convert(&endpoint.versions, delivery.event, event).ok()?;
        Some((endpoint, outgoing)).filter(|(endpoint, _)| endpoint.number == delivery.endpoint)
    }
}

/// The facts from which [`Requests::past`] builds a request again.
pub(crate) fn sent_request(endpoint: &Endpoint, started_at: Timestamp, signed_at: Timestamp) -> SentRequest {
    let signed_at = Some(signed_at).filter(|at| at.seconds() != started_at.seconds());
    SentRequest { revision: endpoint.revision, signed_at }
}

/// The endpoint's custom headers without the values of credentials.
fn masked_headers(endpoint: &Endpoint) -> Vec<(Box<str>, Box<str>)> {
    let plain = endpoint.headers.iter().map(|(name, value)| {
        // Earlier versions stored credentials as plain headers.
        let value = if is_secret(name) { MASK.into() } else { value.clone() };
        (name.clone(), value)
    });
    let sensitive = endpoint.sensitive_headers.iter().map(|(name, _)| (name.clone(), MASK.into()));
    plain.chain(sensitive).collect()
}

/// The headers of a reply without the values of credentials, such as `Set-Cookie`.
#[must_use]
pub(crate) fn masked_reply_headers(mut headers: Vec<(Box<str>, Box<str>)>) -> Vec<(Box<str>, Box<str>)> {
    for (_, value) in headers.iter_mut().filter(|(name, _)| is_secret(name)) {
        *value = MASK.into();
    }
    headers
}

impl RequestView {
    fn of(request: OutboundRequest) -> Option<Self> {
        let url = request.url_text().into();
        let (parts, body) = request.into_wire()?;
        let headers = parts.headers.iter().map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        Some(Self { method: parts.method.to_string(), url, headers: headers.collect(), body })
    }
}
