//! The requests of deliveries: body, signatures and headers as the endpoint describes them.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::context::Context;
use crate::courier::{OutboundRequest, body};
use crate::domain::{DeliveryKey, Endpoint, EndpointAuth, Event, RequestMethod, Timestamp, attribute};
use crate::rules::headers::is_secret;
use crate::rules::signature::{SigningKey, signature_headers};
use crate::rules::trace;
use crate::service::conversions::{Conversions, OutgoingEvent};
use crate::service::secrets::Secrets;
use crate::templates::{BodyTemplate, TemplateError};

/// The media type of a rendered body without a content type.
const JSON: &str = "application/json";

/// Builds requests.
#[derive(Clone, Copy)]
pub struct Requests<'a>(pub &'a Context);

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

/// A request as a dry run shows it.
#[derive(Clone, Debug)]
pub struct RequestPreview {
    pub method: &'static str,
    pub url: String,
    /// Hidden values are masked.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

const MASK: &str = "***";

/// Checks the template of a body with this content type.
///
/// # Errors
/// The first error, with its line.
pub fn check_template(source: &str, content_type: Option<&str>) -> Result<(), TemplateError> {
    BodyTemplate::compile(source, content_type.unwrap_or(JSON)).map(drop)
}

impl Requests<'_> {
    /// The request of an attempt. `authorization` is the value of that header.
    ///
    /// # Errors
    /// When the template fails for the event, or a secret or header cannot be used.
    pub(crate) fn build(
        self,
        endpoint: &Endpoint,
        outgoing: &OutgoingEvent,
        delivery: DeliveryKey,
        number: u32,
        now: Timestamp,
        authorization: Option<&str>,
    ) -> Result<OutboundRequest, BuildError> {
        let event = &*outgoing.event;
        let (body, media) = self.body(endpoint, event)?;
        let keys = Secrets(self.0).live_keys(endpoint, now).map_err(|error| error.to_string())?;
        let keys: Vec<SigningKey> = keys.into_iter().map(|(key, _)| key).collect();
        let mut generated = signature_headers(&endpoint.signatures, &keys, now, event.id.as_str(), &body);
        if endpoint.trace {
            let parent = trace::traceparent(event, delivery, number);
            generated.extend(parent.map(|parent| (attribute::TRACE_PARENT.into(), parent.to_string())));
        }
        if let Some(handshake) = &endpoint.handshake {
            generated.push((body::REQUEST_ORIGIN.into(), handshake.origin.to_string()));
        }
        let stored = outgoing.stored_version.as_ref();
        generated.extend(stored.map(|version| (body::STORED_VERSION.into(), version.to_string())));
        generated.extend(authorization.map(|value| (body::AUTHORIZATION.into(), value.to_owned())));
        let custom = Secrets(self.0).open_headers(endpoint).map_err(|error| error.to_string())?;
        let headers = body::headers(&custom, media.as_deref(), event, number, now, generated)?;
        let identity = Secrets(self.0).identity(endpoint).map_err(|error| error.to_string())?;
        let timeout = endpoint.timeout(&self.0.settings().defaults);
        let request = OutboundRequest::new(&endpoint.url, headers, body, timeout)?;
        let request = request.with_method(endpoint.request.method).with_identity(identity);
        Ok(request.for_tenant(endpoint.tenant.as_str()))
    }

    /// The body and its media type; none for `GET`.
    fn body<'a>(
        self,
        endpoint: &'a Endpoint,
        event: &Event,
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
    ) -> Result<RequestPreview, BuildError> {
        let authorization = endpoint.auth.as_ref().map(|auth| match auth {
            EndpointAuth::Basic { .. } => format!("Basic {MASK}"),
            EndpointAuth::OAuth2(_) => format!("Bearer {MASK}"),
        });
        let now = self.0.now().wall;
        let request = self.build(endpoint, outgoing, delivery, 1, now, authorization.as_deref())?;
        // Earlier versions stored credentials as plain headers.
        let plain = endpoint.headers.iter().map(|(name, _)| name).filter(|name| is_secret(name));
        let hidden: Vec<_> = endpoint.sensitive_headers.iter().map(|(name, _)| name).chain(plain).collect();
        let is_hidden = |name: &str| hidden.iter().any(|hidden| hidden.eq_ignore_ascii_case(name));
        let (headers, body) = (request.headers(), request.body());
        let shown = headers.iter().map(|(name, value)| {
            let name = name.as_str().to_owned();
            let value =
                if is_hidden(&name) { MASK.into() } else { String::from_utf8_lossy(value.as_bytes()) };
            (name, value.into_owned())
        });
        Ok(RequestPreview {
            method: endpoint.request.method.as_str(),
            url: endpoint.url.to_string(),
            headers: shown.collect(),
            body: body.clone(),
        })
    }
}
