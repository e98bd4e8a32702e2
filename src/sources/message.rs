//! Messages of AMQP as drafts of events.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::domain::media::DataKind;
use crate::domain::{
    Dedup, EventId, EventType, Idempotency, Source, SourceFormat, SourceTenant, Tenant, Timestamp,
    TraceParent, attribute,
};
use crate::limits;
use crate::outbox::draft::EventDraft;

const CLOUDEVENTS: &str = "application/cloudevents";
/// Prefixes of CloudEvents attributes in headers (AMQP Protocol Binding, section 3.1).
const PREFIXES: [&str; 2] = ["cloudEvents_", "cloudEvents:"];
/// Says that a message without an id may be a repetition.
const REDELIVERED: &str = "redelivered";

/// The parts of a message that an event is made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) routing_key: String,
    pub(crate) exchange: String,
    pub(crate) message_id: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) content_type: Option<String>,
    /// Seconds since 1970.
    pub(crate) timestamp: Option<u64>,
    /// Headers with a text, a number or a boolean.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) redelivered: bool,
    pub(crate) body: Vec<u8>,
}

/// An event in an envelope.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    id: Option<String>,
    #[serde(rename = "type")]
    event_type: String,
    #[serde(borrow)]
    data: &'a RawValue,
    timestamp: Option<String>,
    version: Option<String>,
    stream: Option<String>,
    ordering_key: Option<String>,
}

impl Message {
    /// The message as an operator event shows it.
    pub(crate) fn shown(&self) -> Map<String, Value> {
        let mut shown = Map::new();
        let mut put = |name: &str, value: Value| drop(shown.insert(name.to_owned(), value));
        put("exchange", self.exchange.as_str().into());
        put("routingKey", self.routing_key.as_str().into());
        put("messageId", self.message_id.as_deref().into());
        put("type", self.kind.as_deref().into());
        put("contentType", self.content_type.as_deref().into());
        put("redelivered", self.redelivered.into());
        let mut room = limits::broker::PARKED_HEADERS_BYTES_MAX;
        let headers = self.headers.iter().take_while(|(name, value)| {
            let needed = name.len() + value.len();
            let fits = needed <= room;
            room = room.saturating_sub(needed);
            fits
        });
        let headers: Map<_, _> = headers.map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        put("headers", headers.into());
        shown
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The draft of the message's event.
    ///
    /// # Errors
    /// Why the message is not an event.
    pub(crate) fn draft(&self, source: &Source, max_bytes: usize) -> Result<EventDraft, String> {
        if self.body.len() > max_bytes {
            let found = self.body.len();
            return Err(format!("the body has {found} bytes; ingest.max_event_bytes is {max_bytes}"));
        }
        let tenant = self.tenant(source)?;
        let mut draft = match source.format {
            SourceFormat::Raw => self.raw(tenant)?,
            SourceFormat::Envelope => self.envelope(tenant)?,
            SourceFormat::Auto => self.any(tenant)?,
        };
        if draft.event_type.is_reserved() {
            return Err("types with the prefix `balto.` are reserved".to_owned());
        }
        if draft.data.len() > max_bytes {
            return Err(format!("the data has {} bytes; the bound is {max_bytes}", draft.data.len()));
        }
        if let Some(stream) = source.stream_header.as_deref().and_then(|name| self.header(name)) {
            draft.stream = Some(stream.parse().map_err(|error| format!("stream: {error}"))?);
        }
        if let Some(key) = source.ordering_key_header.as_deref().and_then(|name| self.header(name)) {
            draft.ordering_key = Some(key.parse().map_err(|error| format!("ordering key: {error}"))?);
        }
        self.identify(source, &mut draft);
        self.add_attributes(&mut draft)?;
        let content = [draft.event_type.as_str().as_bytes(), b" ", &draft.data].concat();
        draft.fingerprint.copy_from_slice(&Sha256::digest(content)[..16]);
        if let Some(idempotency) = &mut draft.idempotency {
            idempotency.fingerprint = draft.fingerprint;
        }
        Ok(draft)
    }

    fn tenant(&self, source: &Source) -> Result<Tenant, String> {
        let tenant = match &source.tenant {
            SourceTenant::Fixed(tenant) => return Ok(tenant.clone()),
            SourceTenant::Header(name) => {
                self.header(name).ok_or_else(|| format!("no header `{name}` with the tenant"))?
            }
        };
        let tenant: Tenant = tenant.parse().map_err(|error| format!("tenant: {error}"))?;
        if tenant.as_str() == Tenant::OPERATOR {
            return Err("the tenant `balto` is reserved".to_owned());
        }
        Ok(tenant)
    }

    /// A CloudEvent, an envelope with id, type and data, or the data alone.
    fn any(&self, tenant: Tenant) -> Result<EventDraft, String> {
        let media = self.content_type.as_deref().unwrap_or_default().to_ascii_lowercase();
        if media.starts_with(CLOUDEVENTS) {
            return self.structured(tenant);
        }
        let has_attributes =
            self.headers.keys().any(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
        if has_attributes {
            return self.binary(tenant);
        }
        match serde_json::from_slice::<Envelope<'_>>(&self.body) {
            Ok(envelope) if envelope.id.is_some() => of_envelope(tenant, envelope),
            _ => self.raw(tenant),
        }
    }

    fn envelope(&self, tenant: Tenant) -> Result<EventDraft, String> {
        let envelope = serde_json::from_slice(&self.body).map_err(|error| format!("envelope: {error}"))?;
        of_envelope(tenant, envelope)
    }

    fn raw(&self, tenant: Tenant) -> Result<EventDraft, String> {
        let routed = self.routing_key.parse::<EventType>();
        let named = self.kind.as_deref().and_then(|kind| kind.parse().ok());
        let event_type = match (routed, named) {
            (Ok(routed), _) => routed,
            (Err(_), Some(named)) => named,
            (Err(error), None) => return Err(format!("the routing key is not an event type: {error}")),
        };
        let (data, is_binary) = self.data()?;
        let mut draft = EventDraft::new(tenant, event_type, data);
        draft.timestamp = self.timestamp.and_then(|at| at.checked_mul(1_000)).map(Timestamp::from_millis);
        draft.timestamp = draft.timestamp.filter(|at| *at <= Timestamp::MAX);
        if is_binary {
            draft.attributes.push((attribute::BINARY.into(), "true".into()));
        }
        // Of JSON it says nothing new.
        let media = self.content_type.as_deref().filter(|media| DataKind::of(media) != DataKind::Json);
        if let Some(media) = media.filter(|media| media.bytes().all(|byte| (b' '..=b'~').contains(&byte))) {
            draft.attributes.push((attribute::CONTENT_TYPE.into(), media.into()));
        }
        draft.attributes.sort();
        Ok(draft)
    }

    /// The body as JSON: JSON unchanged, text as a string, other bytes as base64.
    fn data(&self) -> Result<(Bytes, bool), String> {
        let kind = self.content_type.as_deref().map(DataKind::of);
        if self.body.is_empty() {
            return Ok((Bytes::new(), false));
        }
        if kind.is_none_or(|kind| kind == DataKind::Json) {
            match serde_json::from_slice::<&RawValue>(&self.body) {
                Ok(json) => return Ok((Bytes::copy_from_slice(json.get().as_bytes()), false)),
                Err(error) if kind.is_some() => return Err(format!("the body is not JSON: {error}")),
                Err(_) => {}
            }
        }
        let text = |text: &str| Bytes::from(Value::from(text).to_string());
        match std::str::from_utf8(&self.body) {
            Ok(body) if kind != Some(DataKind::Bytes) => Ok((text(body), false)),
            _ => Ok((text(&STANDARD.encode(&self.body)), true)),
        }
    }

    fn structured(&self, tenant: Tenant) -> Result<EventDraft, String> {
        let members: BTreeMap<String, &RawValue> =
            serde_json::from_slice(&self.body).map_err(|error| format!("CloudEvent: {error}"))?;
        let (mut data, mut is_binary) = (Bytes::new(), false);
        let mut attributes = Vec::new();
        for (name, value) in members {
            match (name.as_str(), value.get()) {
                ("data", json) => data = Bytes::copy_from_slice(json.as_bytes()),
                (_, "null") => {}
                ("data_base64", json) => {
                    let decoded = serde_json::from_str::<String>(json).ok();
                    decoded
                        .and_then(|text| STANDARD.decode(text).ok())
                        .ok_or("CloudEvent: data_base64 is not base64")?;
                    (data, is_binary) = (Bytes::copy_from_slice(json.as_bytes()), true);
                }
                (_, json) => {
                    check_attribute_name(&name)?;
                    match serde_json::from_str(json) {
                        Ok(Value::String(text)) => attributes.push((name, text)),
                        Ok(value @ (Value::Bool(_) | Value::Number(_)))
                            if !attribute::OWN.contains(&name.as_str()) =>
                        {
                            attributes.push((format!("{name}{}", attribute::NOT_TEXT), value.to_string()));
                        }
                        _ => return Err(format!("CloudEvent: the type of `{name}` is not legal")),
                    }
                }
            }
        }
        of_cloudevent(tenant, attributes, data, is_binary)
    }

    fn binary(&self, tenant: Tenant) -> Result<EventDraft, String> {
        let (data, is_binary) = self.data()?;
        // Both prefixes and the property may name the same attribute. The property wins.
        let mut attributes = BTreeMap::new();
        for (name, value) in &self.headers {
            let bare = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
            let Some(bare) = bare else { continue };
            check_attribute_name(bare)?;
            attributes.insert(bare.to_owned(), value.clone());
        }
        if let Some(media) = &self.content_type {
            attributes.insert(attribute::CONTENT_TYPE.to_owned(), media.clone());
        }
        of_cloudevent(tenant, attributes.into_iter().collect(), data, is_binary)
    }

    fn add_attributes(&self, draft: &mut EventDraft) -> Result<(), String> {
        if let Some(trace) = self.header(attribute::TRACE_PARENT)
            && TraceParent::parse(trace).is_some()
            && attribute::find(&draft.attributes, attribute::TRACE_PARENT).is_none()
        {
            draft.attributes.push((attribute::TRACE_PARENT.into(), trace.into()));
        }
        if let Some(hops) = self.header(attribute::HOPS) {
            match hops.parse::<u32>() {
                Ok(0) => {}
                Ok(hops) if hops <= limits::HOPS_MAX => {
                    draft.attributes.push((attribute::HOPS.into(), hops.to_string().into()));
                }
                Ok(_) => return Err(format!("the event has passed more than {} engines", limits::HOPS_MAX)),
                Err(_) => return Err("`balto-hops` is not a number".to_owned()),
            }
        }
        let is_recognised = draft.idempotency.is_some() || draft.publisher_id_key().is_some();
        if self.redelivered && !is_recognised && attribute::find(&draft.attributes, REDELIVERED).is_none() {
            draft.attributes.push((REDELIVERED.into(), "true".into()));
        }
        draft.attributes.sort();
        Ok(())
    }

    /// The id that identifies repetitions of the message.
    pub(super) fn dedup_id(&self, source: &Source) -> Option<&str> {
        self.message_id.as_deref().filter(|id| source.dedup == Dedup::MessageId && !id.is_empty())
    }

    /// Recognises a repeated message: by its id as the event's, if it is a legal one, then by the
    /// id of an envelope, and otherwise by a hash. The id and source of a CloudEvent identify it
    /// already.
    fn identify(&self, source: &Source, draft: &mut EventDraft) {
        let Some(id) = self.dedup_id(source) else { return };
        if attribute::find(&draft.attributes, attribute::SOURCE).is_some() {
            return;
        }
        match id.parse::<EventId>() {
            Ok(id) => draft.id = Some(id),
            Err(_) if draft.id.is_some() => {}
            Err(_) => {
                let mut hasher = Sha256::new();
                for part in ["source-message", source.name.as_str(), draft.tenant.as_str(), id] {
                    hasher.update((part.len() as u64).to_be_bytes());
                    hasher.update(part.as_bytes());
                }
                let mut scope = [0; 16];
                scope.copy_from_slice(&hasher.finalize()[..16]);
                draft.idempotency = Some(Idempotency { scope, fingerprint: [0; 16], expires_at: None });
            }
        }
    }
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "the time is not RFC 3339".to_owned())?;
    let millis = u64::try_from(moment.unix_timestamp_nanos().div_euclid(1_000_000));
    let at = millis.ok().map(Timestamp::from_millis).filter(|at| *at <= Timestamp::MAX);
    at.ok_or_else(|| "the time is out of range".to_owned())
}

fn of_envelope(tenant: Tenant, envelope: Envelope<'_>) -> Result<EventDraft, String> {
    let event_type = envelope.event_type.parse().map_err(|error| format!("type: {error}"))?;
    let data = Bytes::copy_from_slice(envelope.data.get().as_bytes());
    let mut draft = EventDraft::new(tenant, event_type, data);
    let of = |name: &'static str| move |error| format!("{name}: {error}");
    draft.id = envelope.id.map(|id| id.parse().map_err(of("id"))).transpose()?;
    draft.timestamp = envelope.timestamp.as_deref().map(parse_time).transpose()?;
    if let Some(version) = envelope.version {
        draft.version = version.parse().map_err(of("version"))?;
    }
    draft.stream = envelope.stream.map(|stream| stream.parse().map_err(of("stream"))).transpose()?;
    draft.ordering_key =
        envelope.ordering_key.map(|key| key.parse().map_err(of("ordering key"))).transpose()?;
    Ok(draft)
}

/// Checks the name of a CloudEvents attribute as its sender wrote it.
fn check_attribute_name(name: &str) -> Result<(), String> {
    let is_legal = (1..=limits::ATTRIBUTE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        && name != "data";
    if is_legal { Ok(()) } else { Err(format!("CloudEvent: the attribute `{name}` is not legal")) }
}

/// `attributes` have legal names, plus [`attribute::NOT_TEXT`] for a number or a boolean.
fn of_cloudevent(
    tenant: Tenant,
    attributes: Vec<(String, String)>,
    data: Bytes,
    is_binary: bool,
) -> Result<EventDraft, String> {
    if attributes.len() > limits::ATTRIBUTES_MAX {
        return Err(format!("CloudEvent: more than {} attributes", limits::ATTRIBUTES_MAX));
    }
    let find =
        |wanted: &str| attributes.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let required = |name: &str| {
        find(name).filter(|value| !value.is_empty()).ok_or_else(|| format!("CloudEvent: `{name}` is missing"))
    };
    if required("specversion")? != "1.0" {
        return Err("CloudEvent: `specversion` is not 1.0".to_owned());
    }
    required(attribute::ID)?;
    required(attribute::SOURCE)?;
    let event_type = required("type")?.parse().map_err(|error| format!("CloudEvent type: {error}"))?;
    let timestamp = find(attribute::TIME).map(parse_time).transpose()?;
    let ordering_key = find("partitionkey").map(|key| key.parse()).transpose();
    let ordering_key = ordering_key.map_err(|error| format!("CloudEvent partitionkey: {error}"))?;
    for (name, value) in &attributes {
        if value.len() > limits::ATTRIBUTE_BYTES_MAX || value.chars().any(char::is_control) {
            return Err(format!("CloudEvent: the attribute `{name}` is not legal"));
        }
    }
    let mut draft = EventDraft::new(tenant, event_type, data);
    let posted = timestamp.map(|at| at.rfc3339());
    let is_kept = |name: &str, value: &str| match name {
        "specversion" | "type" => false,
        attribute::TIME => posted.as_ref().is_none_or(|posted| posted.as_str() != value),
        _ => true,
    };
    draft.attributes = attributes
        .iter()
        .filter(|(name, value)| is_kept(name, value))
        .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
        .collect();
    if is_binary {
        draft.attributes.push((attribute::BINARY.into(), "true".into()));
    }
    draft.attributes.sort();
    Ok(EventDraft { timestamp, ordering_key, ..draft })
}

#[cfg(test)]
pub(crate) mod tests;
