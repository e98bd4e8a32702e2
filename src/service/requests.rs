//! The request of an attempt, to send it, to show it later, and to try it out.
//!
//! A past request is built again from its event and from the endpoint's revision of that time, both
//! in the journal, by the code that built it first. So an attempt stores neither URL nor headers.
//! Secrets are not opened for it: their headers have the value [`MASK`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;

use crate::context::Context;
use crate::courier::{OutboundRequest, body};
use crate::domain::{
    Attempt, DeliveryKey, Endpoint, EndpointAuth, Event, Position, Record, RequestMethod, SentRequest,
    Timestamp, attribute,
};
use crate::outbox::draft::Unavailable;
use crate::outbox::registry::Registry;
use crate::projections::reads::DeliveryFacts;
use crate::rules::headers::is_secret;
use crate::rules::signature::{SigningKey, masked_signature_headers, signature_headers};
use crate::rules::trace;
use crate::service::conversions::{Conversions, OutgoingEvent};
use crate::service::messages;
use crate::service::pages::Pages;
use crate::service::secrets::Secrets;
use crate::service::types::Scope;
use crate::templates::{BodyTemplate, TemplateError};

/// Value of a header that holds a credential or a signature, where it is shown.
pub const MASK: &str = "***";

/// The media type of a rendered body without a content type.
const JSON: &str = "application/json";

/// Builds requests.
#[derive(Clone, Copy)]
pub struct Requests<'a>(pub &'a Context);

/// Which secrets a shown request has. The headers of the others have the value [`MASK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestSecrets {
    /// Signatures. No reader sees credentials.
    Signed,
    Masked,
}

/// The secrets of a request.
#[derive(Clone, Copy)]
pub(super) enum Secrecy<'a> {
    /// To be sent, with this value of `Authorization`.
    Open(Option<&'a str>),
    Shown(RequestSecrets),
}

/// Why a request cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("{0}")]
    Template(TemplateError),
    #[error("{0}")]
    Other(String),
}

impl From<String> for BuildError {
    fn from(reason: String) -> Self {
        Self::Other(reason)
    }
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

/// An HTTP request or a message to a broker, as it is shown.
#[derive(Clone, Debug)]
pub struct RequestView {
    pub method: String,
    pub url: Box<str>,
    /// In the order of sending; names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// The part of a request that all attempts of a delivery share while the endpoint stays the same.
pub(super) struct Content<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) outgoing: &'a OutgoingEvent,
    pub(super) body: Bytes,
    /// Of the body; `None` without one.
    pub(super) media: Option<Cow<'a, str>>,
}

/// The part of a request that differs between the attempts of a delivery.
#[derive(Clone, Copy)]
pub(super) struct Stamp {
    pub(super) delivery: DeliveryKey,
    /// Number of the attempt.
    pub(super) number: u32,
    /// Time of the signature.
    pub(super) at: Timestamp,
}

/// Checks the template of a body with this content type.
///
/// # Errors
/// The first error, with its line.
pub fn check_template(source: &str, content_type: Option<&str>) -> Result<(), TemplateError> {
    BodyTemplate::compile(source, content_type.unwrap_or(JSON)).map(drop)
}

impl Requests<'_> {
    /// The request of one attempt. `now` is the time of the signature, `authorization` the value of
    /// that header.
    ///
    /// # Errors
    /// When the template fails for the event, a secret cannot be opened, or a stored setting is
    /// invalid.
    pub(crate) fn build(
        self,
        endpoint: &Endpoint,
        outgoing: &OutgoingEvent,
        delivery: DeliveryKey,
        number: u32,
        now: Timestamp,
        authorization: Option<&str>,
    ) -> Result<OutboundRequest, BuildError> {
        let content = self.content(endpoint, outgoing)?;
        let stamp = Stamp { delivery, number, at: now };
        let request = self.request(&content, stamp, Secrecy::Open(authorization))?;
        let identity = Secrets(self.0).identity(endpoint).map_err(|error| error.to_string())?;
        Ok(request.with_identity(identity).for_tenant(endpoint.tenant.as_str()))
    }

    pub(super) fn content<'a>(
        self,
        endpoint: &'a Endpoint,
        outgoing: &'a OutgoingEvent,
    ) -> Result<Content<'a>, BuildError> {
        let (body, media) = self.body(endpoint, &outgoing.event)?;
        Ok(Content { endpoint, outgoing, body, media })
    }

    /// The body and its media type; none for `GET`.
    fn body<'a>(
        self,
        endpoint: &'a Endpoint,
        event: &'a Event,
    ) -> Result<(Bytes, Option<Cow<'a, str>>), BuildError> {
        let shape = &endpoint.request;
        if shape.method == RequestMethod::Get {
            return Ok((Bytes::new(), None));
        }
        let chosen = shape.content_type.as_deref().map(Cow::Borrowed);
        if let Some(source) = &shape.body {
            let media = chosen.unwrap_or(Cow::Borrowed(JSON));
            let template = self.template(endpoint, source, &media).map_err(BuildError::Template)?;
            return Ok((template.render(event).map_err(BuildError::Template)?, Some(media)));
        }
        let deprecation = Conversions(self.0).deprecation(event);
        let (body, media) = body::body(endpoint, event, deprecation);
        Ok((body, Some(chosen.unwrap_or(Cow::Borrowed(media)))))
    }

    fn template(
        self,
        endpoint: &Endpoint,
        source: &str,
        media: &str,
    ) -> Result<Arc<BodyTemplate>, TemplateError> {
        let cache = self.0.compiled_templates();
        if let Some(known) = cache.get(endpoint.number, endpoint.revision) {
            return Ok(known);
        }
        let template = Arc::new(BodyTemplate::compile(source, media)?);
        cache.insert(endpoint.number, endpoint.revision, template.clone());
        Ok(template)
    }

    fn request(
        self,
        content: &Content<'_>,
        stamp: Stamp,
        secrecy: Secrecy<'_>,
    ) -> Result<OutboundRequest, BuildError> {
        let headers = self.headers(content, stamp, secrecy)?;
        let Content { endpoint, body, .. } = content;
        let timeout = endpoint.timeout(&self.0.settings().defaults);
        let url = self.0.request_urls().get(&endpoint.url)?;
        let request = OutboundRequest::new(url, headers, body.clone(), timeout);
        Ok(request.with_method(endpoint.request.method))
    }

    pub(super) fn headers(
        self,
        content: &Content<'_>,
        stamp: Stamp,
        secrecy: Secrecy<'_>,
    ) -> Result<HeaderMap, BuildError> {
        let Content { endpoint, outgoing, media, .. } = content;
        let Stamp { delivery, number, at } = stamp;
        let event = &*outgoing.event;
        let mut generated = self.signatures(content, at, secrecy)?;
        if endpoint.trace {
            let parent = trace::traceparent(event, delivery, number);
            generated.extend(parent.map(|parent| (attribute::TRACE_PARENT.into(), parent.to_string())));
        }
        if let Some(handshake) = &endpoint.handshake {
            generated.push((body::REQUEST_ORIGIN.into(), handshake.origin.to_string()));
        }
        let stored = outgoing.stored_version.as_ref();
        generated.extend(stored.map(|version| (body::STORED_VERSION.into(), version.to_string())));
        let (custom, authorization) = match secrecy {
            Secrecy::Open(authorization) => {
                let custom = Secrets(self.0).open_headers(endpoint).map_err(|error| error.to_string())?;
                (custom, authorization.map(ToOwned::to_owned))
            }
            Secrecy::Shown(_) => {
                // The credentials of a broker are not in the message.
                let auth = endpoint.auth.as_ref().filter(|_| endpoint.amqp().is_none());
                (masked_headers(endpoint), auth.map(masked_authorization))
            }
        };
        generated.extend(authorization.map(|value| (body::AUTHORIZATION.into(), value)));
        Ok(body::headers(&custom, media.as_deref(), event, number, at, generated)?)
    }

    fn signatures(
        self,
        content: &Content<'_>,
        at: Timestamp,
        secrecy: Secrecy<'_>,
    ) -> Result<Vec<(Cow<'static, str>, String)>, BuildError> {
        let Content { endpoint, outgoing, body, .. } = content;
        let id = outgoing.event.id.as_str();
        if let Secrecy::Shown(RequestSecrets::Masked) = secrecy {
            return Ok(masked_signature_headers(&endpoint.signatures, at, id, MASK));
        }
        let keys = Secrets(self.0).live_keys(endpoint, at).map_err(|error| error.to_string())?;
        let keys: Vec<SigningKey> = keys.into_iter().map(|(key, _)| key).collect();
        Ok(signature_headers(&endpoint.signatures, &keys, at, id, body))
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
            .filter_map(|(revision, (endpoint, outgoing))| {
                Some((revision, self.content(endpoint, outgoing).ok()?))
            })
            .collect();
        let view = |attempt: &Arc<Attempt>| {
            let sent = attempt.exchange.request?;
            let content = contents.get(&sent.revision)?;
            let at = sent.signed_at.unwrap_or(attempt.started_at);
            let stamp = Stamp { delivery, number: attempt.number, at };
            self.view(content, stamp, RequestSecrets::Masked).ok()
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
        let facts =
            self.0.outbox_of(key.event).read_of(scope.0.as_ref(), move |state| state.delivery(key)).await?;
        let is_its = |facts: &DeliveryFacts| Pages(self.0).covers(scope, &facts.tenant, key.endpoint);
        let facts = facts.filter(is_its).ok_or(RequestError::NotFound)?;
        let event = self.0.event_at(key.event).await?.ok_or(RequestError::NotFound)?;
        if event.erased_at.is_some() {
            return Err(RequestError::Erased);
        }
        let refused = |why: &str| RequestError::NotAllowed(why.to_owned());
        // Also a deleted one.
        let is_queue = |registry: &Registry| registry.queue_name(key.endpoint).is_some();
        if self.0.outbox_of(key.endpoint).registry(is_queue) {
            return Err(refused("a message of a queue has no request"));
        }
        let endpoint = self.0.outbox_of(key.endpoint).endpoint(key.endpoint);
        let endpoint = endpoint.ok_or_else(|| refused("the endpoint was deleted"))?;
        let outgoing = Conversions(self.0).convert(&endpoint.versions, key.event, &event);
        let outgoing = outgoing.map_err(|error| RequestError::NotAllowed(error.to_string()))?;
        let built = self.shown(&endpoint, &outgoing, key, facts.attempts_made.max(1), secrets);
        built.map_err(|error| RequestError::NotAllowed(error.to_string()))
    }

    /// The request that a first attempt would send now, with real signatures. No request is sent,
    /// also not to a token server.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn preview(
        self,
        endpoint: &Endpoint,
        outgoing: &OutgoingEvent,
        delivery: DeliveryKey,
    ) -> Result<RequestView, BuildError> {
        self.shown(endpoint, outgoing, delivery, 1, RequestSecrets::Signed)
    }

    /// The request that this attempt would send now.
    fn shown(
        self,
        endpoint: &Endpoint,
        outgoing: &OutgoingEvent,
        delivery: DeliveryKey,
        number: u32,
        secrets: RequestSecrets,
    ) -> Result<RequestView, BuildError> {
        let (_, at) = self.0.now_and_civil();
        let content = self.content(endpoint, outgoing)?;
        self.view(&content, Stamp { delivery, number, at }, secrets)
    }

    fn view(
        self,
        content: &Content<'_>,
        stamp: Stamp,
        secrets: RequestSecrets,
    ) -> Result<RequestView, BuildError> {
        if let Some(target) = content.endpoint.amqp() {
            let message = self.built_message(content, target, stamp, Secrecy::Shown(secrets))?;
            return Ok(messages::view(message));
        }
        let built = self.request(content, stamp, Secrecy::Shown(secrets))?;
        RequestView::of(built).ok_or_else(|| BuildError::Other("the URL cannot be requested".to_owned()))
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

fn masked_authorization(auth: &EndpointAuth) -> String {
    match auth {
        EndpointAuth::Basic { .. } => format!("Basic {MASK}"),
        EndpointAuth::OAuth2(_) => format!("Bearer {MASK}"),
    }
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
        let headers = shown_header_values(&parts.headers).collect();
        Some(Self { method: parts.method.to_string(), url, headers, body })
    }
}

/// Names in lower case, and values.
pub(super) fn shown_header_values(headers: &HeaderMap) -> impl Iterator<Item = (String, String)> {
    headers.iter().map(|(name, value)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    })
}
