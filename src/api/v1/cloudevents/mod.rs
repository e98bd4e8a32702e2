//! CloudEvents 1.0 in structured, binary and batched mode (HTTP binding, section 3).
//!
//! Owns the mapping of a CloudEvent to an event. Its id and source may have any characters, so they
//! are stored as attributes. Repeating an id and source returns the original event. Extensions keep
//! their names, values and types. A CloudEvent without a required attribute is rejected.

use std::fmt;

use axum::http::{HeaderMap, HeaderName, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::api::http::problem::{ErrorLocation, Errors, FieldError, Problem, pointer};
use crate::api::http::{body, idempotency};
use crate::api::v1::events::batch::Bounded;
use crate::api::v1::events::handlers;
use crate::api::{Call, text};
use crate::domain::media::DataKind;
use crate::domain::{EventVersion, OrderingKey, Tenant, Timestamp, attribute, media};
use crate::limits;
use crate::service::types::EventDraft;

pub const STRUCTURED: &str = "application/cloudevents+json";
pub const BATCHED: &str = "application/cloudevents-batch+json";
/// The media type of a call in binary mode, where `Content-Type` is that of the data.
pub const BINARY: &str = "";

const PREFIX: &str = "ce-";
/// The required headers of binary mode. Any one of them selects it.
const REQUIRED_HEADERS: [&str; 4] = ["ce-specversion", "ce-id", "ce-source", "ce-type"];

/// Whether a request with these headers is a CloudEvent in binary mode.
#[must_use]
pub fn is_binary(headers: &HeaderMap) -> bool {
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let has_cloudevents_type = media.to_ascii_lowercase().starts_with("application/cloudevents");
    !has_cloudevents_type && REQUIRED_HEADERS.iter().any(|name| headers.contains_key(*name))
}

/// The bytes that identify a request in binary mode: sorted `ce-` headers, `Content-Type` and body.
pub fn canonical_bytes(headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    let is_included = |name: &HeaderName| name.as_str().starts_with("ce-") || *name == header::CONTENT_TYPE;
    let mut lines: Vec<_> = headers.iter().filter(|(name, _)| is_included(name)).collect();
    lines.sort_unstable_by_key(|(name, _)| name.as_str());
    let mut bytes = Vec::new();
    for (name, value) in lines {
        bytes.extend([name.as_str().as_bytes(), b":", value.as_bytes(), b"\n"].concat());
    }
    bytes.extend(body);
    bytes
}

/// The value of an attribute. In binary mode every value is text.
#[derive(Clone, Debug, PartialEq)]
enum Scalar {
    Text(String),
    /// A boolean or an integer, as JSON.
    Other(String),
}

/// Names and values.
type Attributes = Vec<(Box<str>, Box<str>)>;

fn scalar(json: &str) -> Option<Scalar> {
    match serde_json::from_str(json).ok()? {
        Value::String(text) => Some(Scalar::Text(text)),
        Value::Bool(value) => Some(Scalar::Other(value.to_string())),
        Value::Number(number) => {
            let number = i32::try_from(number.as_i64()?).ok()?;
            Some(Scalar::Other(number.to_string()))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The context attributes and data of a CloudEvent.
struct Parts {
    attributes: Vec<(String, Scalar)>,
    /// A JSON value; empty without data.
    data: Bytes,
    /// The data is a JSON string with base64.
    binary: bool,
    /// Binary mode: the attributes are headers.
    in_headers: bool,
}

impl Parts {
    fn location(&self, name: &str) -> ErrorLocation {
        if self.in_headers {
            ErrorLocation::Header(format!("{PREFIX}{name}").into())
        } else {
            ErrorLocation::Pointer(pointer("", name))
        }
    }

    /// Records the first error of an attribute.
    fn add_error(&self, errors: &mut Errors, name: &str, detail: impl Into<String>) {
        let location = self.location(name);
        if !errors.0.iter().any(|known| known.location == location) {
            errors.0.push(FieldError { location, detail: detail.into() });
        }
    }

    /// Removes and returns a text attribute, which must not be empty.
    fn take_text(&mut self, errors: &mut Errors, name: &str, required: bool) -> Option<String> {
        let Some(at) = self.attributes.iter().position(|(other, _)| other == name) else {
            if required {
                self.add_error(errors, name, "this attribute is required");
            }
            return None;
        };
        match self.attributes.remove(at).1 {
            Scalar::Text(text) if !text.is_empty() => Some(text),
            _ => {
                self.add_error(errors, name, "must be non-empty text");
                None
            }
        }
    }

    /// As [`Self::take_text`], and parses the text.
    fn take_parsed<T, E: fmt::Display>(
        &mut self,
        errors: &mut Errors,
        name: &str,
        required: bool,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.take_text(errors, name, required)?;
        parse(&text).map_err(|error| self.add_error(errors, name, error.to_string())).ok()
    }
}

/// Members by name, with unparsed values.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a CloudEvent, a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members: Vec<(String, &'de RawValue)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    if members.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom(format_args!("duplicate field `{name}`")));
                    }
                    if members.len() > limits::ATTRIBUTES_MAX {
                        return Err(A::Error::custom(format_args!(
                            "at most {} attributes",
                            limits::ATTRIBUTES_MAX
                        )));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Parses a CloudEvent in structured mode, or one of a batch.
pub fn parse_structured(call: &Call, raw: &[u8]) -> Result<EventDraft, Problem> {
    let Members(members) = body::parse(raw)?;
    let mut errors = Errors::default();
    let mut parts = Parts { attributes: Vec::new(), data: Bytes::new(), binary: false, in_headers: false };
    for (name, value) in members {
        match (name.as_str(), value.get()) {
            // A null attribute counts as absent (JSON format, section 2.2).
            (other, "null") if other != "data" => {}
            ("data" | "data_base64", _) if !parts.data.is_empty() => {
                errors.push(pointer("", &name), "`data` and `data_base64` are mutually exclusive");
            }
            ("data", data) => parts.data = Bytes::copy_from_slice(data.as_bytes()),
            ("data_base64", data) => {
                let decoded =
                    serde_json::from_str::<String>(data).ok().and_then(|text| STANDARD.decode(text).ok());
                if decoded.is_none() {
                    errors.push("/data_base64", "must be base64 in a string");
                }
                parts.data = Bytes::copy_from_slice(data.as_bytes());
                parts.binary = true;
            }
            (_, value) => match scalar(value) {
                Some(scalar) => parts.attributes.push((name, scalar)),
                None => errors.push(pointer("", &name), "must be text, a boolean or a 32-bit integer"),
            },
        }
    }
    build_draft(call, parts, errors)
}

/// Parses a CloudEvent in binary mode.
pub fn parse_binary(call: &Call) -> Result<EventDraft, Problem> {
    let mut errors = Errors::default();
    let mut attributes: Vec<(String, Scalar)> = Vec::new();
    for (name, value) in &call.headers {
        let Some(attribute) = name.as_str().strip_prefix(PREFIX) else { continue };
        let mut add_error = |detail: &str| {
            errors.0.push(FieldError::header(name.as_str().to_owned(), detail));
        };
        if attribute == attribute::CONTENT_TYPE {
            add_error("in binary mode, send the media type of the data in Content-Type");
        } else if attributes.iter().any(|(other, _)| other == attribute) {
            add_error("duplicate header");
        } else {
            match value.to_str().ok().and_then(decode_header) {
                Some(text) => attributes.push((attribute.to_owned(), Scalar::Text(text))),
                None => add_error("must be visible ASCII with percent-encoded UTF-8"),
            }
        }
    }
    if attributes.len() > limits::ATTRIBUTES_MAX {
        errors.0.push(FieldError::header("ce-id", format!("at most {} attributes", limits::ATTRIBUTES_MAX)));
    }
    let media = call.headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let (data, binary) = to_json_data(media, &call.body)?;
    let limit = call.config.max_event_bytes;
    if data.len() > limit {
        return Err(Problem::PayloadTooLarge { limit }); // data that is not JSON grows in the conversion
    }
    if let Some(media) = media {
        attributes.push((attribute::CONTENT_TYPE.to_owned(), Scalar::Text(media.to_owned())));
    }
    build_draft(call, Parts { attributes, data, binary, in_headers: true }, errors)
}

/// Converts the data to a JSON value: JSON unchanged, text as a string, other data as base64.
fn to_json_data(media: Option<&str>, raw: &Bytes) -> Result<(Bytes, bool), Problem> {
    if raw.is_empty() {
        return Ok((Bytes::new(), false));
    }
    match (DataKind::of(media.unwrap_or(media::JSON)), std::str::from_utf8(raw)) {
        (DataKind::Json, _) => {
            let json: &RawValue = body::parse_any(raw)?;
            Ok((Bytes::copy_from_slice(json.get().as_bytes()), false))
        }
        (DataKind::Text, Ok(text)) => Ok((json_text(text), false)),
        (DataKind::Text | DataKind::Bytes, _) => Ok((json_text(&STANDARD.encode(raw)), true)),
    }
}

fn json_text(text: &str) -> Bytes {
    Value::from(text).to_string().into()
}

/// Removes one level of quotes and of percent-encoding (HTTP binding, section 3.1.3.2).
fn decode_header(value: &str) -> Option<String> {
    let mut unquoted = Vec::with_capacity(value.len());
    match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        None => unquoted.extend_from_slice(value.as_bytes()),
        Some(inner) => {
            let mut bytes = inner.bytes();
            while let Some(byte) = bytes.next() {
                unquoted.push(if byte == b'\\' { bytes.next()? } else { byte });
            }
        }
    }
    let mut decoded = Vec::with_capacity(unquoted.len());
    let mut bytes = unquoted.into_iter();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let value = 16 * digit(bytes.next()?)? + digit(bytes.next()?)?;
            decoded.push(u8::try_from(value).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// Checks the characters of a URI reference (RFC 3986).
fn check_reference(text: &str) -> Result<(), &'static str> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    let mut escapes = text.split('%').skip(1);
    let escaped = escapes.all(|rest| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2);
    if text.bytes().all(legal) && escaped { Ok(()) } else { Err("must be a URI reference") }
}

fn check_uri(text: &str) -> Result<(), &'static str> {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(legal) {
        check_reference(text).map_err(|_| "must be an absolute URI")
    } else {
        Err("must be an absolute URI")
    }
}

fn check_media(text: &str) -> Result<(), &'static str> {
    let media = text.split(';').next().unwrap_or_default().trim();
    let token = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    match media.split_once('/') {
        Some((one, other)) if token(one) && token(other) => Ok(()),
        _ => Err("must be a media type such as application/json"),
    }
}

fn check_version(text: &str) -> Result<(), &'static str> {
    if text == "1.0" { Ok(()) } else { Err("must be 1.0") }
}

/// Whether this is a valid name of an extension.
fn is_extension(name: &str) -> bool {
    name != "data"
        && (1..=limits::ATTRIBUTE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The attributes to store: `parsed` and all others that have no field in an event.
fn stored_attributes(
    call: &Call,
    parts: &mut Parts,
    parsed: [(&'static str, Option<String>); 3],
    errors: &mut Errors,
) -> Attributes {
    let schema = parts
        .take_parsed(errors, attribute::DATA_SCHEMA, false, |text| check_uri(text).map(|()| text.to_owned()));
    let media = parts.take_parsed(errors, attribute::CONTENT_TYPE, false, |text| {
        check_media(text).map(|()| text.to_owned())
    });
    let subject = parts.take_text(errors, attribute::SUBJECT, false);
    let mut stored: Attributes = Vec::new();
    let optional = [
        (attribute::DATA_SCHEMA, schema),
        (attribute::SUBJECT, subject),
        (attribute::CONTENT_TYPE, media),
        (attribute::BINARY, parts.binary.then(|| "true".to_owned())),
    ];
    for (name, value) in parsed.into_iter().chain(optional) {
        stored.extend(value.map(|value| (name.into(), value.into())));
    }
    for (name, value) in &stored {
        check_value(parts, name, value, errors);
    }
    for (name, value) in std::mem::take(&mut parts.attributes) {
        if !is_extension(&name) {
            let max = limits::ATTRIBUTE_NAME_BYTES_MAX;
            parts.add_error(
                errors,
                &name,
                format!("the name of an extension must be 1 to {max} lower-case letters and digits"),
            );
            continue;
        }
        stored.push(match value {
            Scalar::Text(text) => {
                check_value(parts, &name, &text, errors);
                (name.into(), text.into())
            }
            Scalar::Other(json) => (format!("{name}{}", attribute::NOT_TEXT).into(), json.into()),
        });
    }
    if !stored.iter().any(|(name, _)| &**name == attribute::TRACE_PARENT) {
        stored.extend(handlers::trace_attribute(&call.headers));
    }
    stored.sort();
    stored
}

/// Text must not contain control characters or non-characters (CloudEvents, section 2.2).
fn check_value(parts: &Parts, name: &str, value: &str, errors: &mut Errors) {
    let illegal = |c: char| {
        let code = u32::from(c);
        c.is_control() || code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code)
    };
    if value.len() > limits::ATTRIBUTE_BYTES_MAX {
        parts.add_error(errors, name, format!("at most {} bytes", limits::ATTRIBUTE_BYTES_MAX));
    } else if value.chars().any(illegal) {
        parts.add_error(errors, name, "must not contain control characters or non-characters");
    }
}

/// The time in milliseconds, and the original text if it is more precise or has another form.
fn take_time(parts: &mut Parts, errors: &mut Errors) -> (Option<Timestamp>, Option<String>) {
    let parse = |original: &str| text::parse_time(original).map(|at| (at, original.to_owned()));
    let parsed = parts.take_parsed(errors, attribute::TIME, false, parse);
    let Some((at, original)) = parsed else { return (None, None) };
    (Some(at), Some(original).filter(|original| original != at.rfc3339().as_str()))
}

/// The ordering key from the extension `partitionkey`, which is also stored as an attribute.
fn ordering_key(parts: &Parts, errors: &mut Errors) -> Option<OrderingKey> {
    let (name, value) = parts.attributes.iter().find(|(name, _)| name == attribute::PARTITION_KEY)?;
    match value {
        Scalar::Text(key) => key.parse().map_err(|error: crate::domain::InvalidName| {
            parts.add_error(errors, name, error.to_string());
        }),
        Scalar::Other(_) => {
            parts.add_error(errors, name, "must be text");
            Err(())
        }
    }
    .ok()
}

/// The version from the extension `version`, which is also stored as an attribute. Publishers use
/// the name for other values, too, which name no version.
fn named_version(parts: &Parts) -> Option<EventVersion> {
    let (_, value) = parts.attributes.iter().find(|(name, _)| name == attribute::VERSION)?;
    if let Scalar::Text(version) = value { version.parse().ok() } else { None }
}

fn build_draft(call: &Call, mut parts: Parts, mut errors: Errors) -> Result<EventDraft, Problem> {
    parts.take_parsed(&mut errors, "specversion", true, check_version);
    let id = parts.take_text(&mut errors, attribute::ID, true);
    let source = parts.take_parsed(&mut errors, attribute::SOURCE, true, |text| {
        check_reference(text).map(|()| text.to_owned())
    });
    let event_type = parts.take_parsed(&mut errors, "type", true, handlers::parse_event_type);
    let (timestamp, original_time) = take_time(&mut parts, &mut errors);
    let ordering_key = ordering_key(&parts, &mut errors);
    let version = named_version(&parts);
    let depth = std::str::from_utf8(&parts.data).map_or(Ok(()), body::check_depth);
    errors.check(if parts.in_headers { "" } else { "/data" }, depth);
    let parsed = [(attribute::ID, id), (attribute::SOURCE, source), (attribute::TIME, original_time)];
    let attributes = stored_attributes(call, &mut parts, parsed, &mut errors);
    let named: Option<Tenant> = call.query.get("tenant")?;
    // A key bound to a tenant gets the 403 of any other tenant.
    let is_unbound = call.principal.scope.0.is_none();
    if is_unbound && named.as_ref().is_some_and(|tenant| tenant.as_str() == Tenant::OPERATOR) {
        errors.0.push(FieldError::parameter("tenant", "the tenant `balto` is reserved"));
    }
    errors.finish()?;
    let Some(event_type) = event_type else {
        return Err(Problem::Validation(Vec::new())); // not reached: `finish` has returned the error
    };
    let tenant = call.principal.tenant(named)?;
    if tenant.as_str() == Tenant::OPERATOR {
        return Err(Problem::Forbidden("the tenant `balto` is reserved".to_owned()));
    }
    let data: &[u8] = if parts.data.is_empty() { b"null" } else { &parts.data };
    Ok(EventDraft {
        version: version.unwrap_or_default(),
        timestamp,
        ordering_key,
        attributes,
        // Type and data distinguish a repetition from another event with the same id and source.
        fingerprint: idempotency::fingerprint(&[event_type.as_str().as_bytes(), b" ", data].concat()),
        ..EventDraft::new(tenant, event_type, parts.data)
    })
}

/// Splits a batch, which may be empty.
///
/// # Errors
/// For any value but an array, or too many items.
pub fn batch_items(raw: &[u8]) -> Result<Vec<&[u8]>, Problem> {
    let items: Bounded<'_> = body::parse_any(raw)?;
    if items.count > limits::BATCH_EVENTS_MAX {
        return Err(Problem::invalid("", format!("at most {} events", limits::BATCH_EVENTS_MAX)));
    }
    Ok(items.items.into_iter().map(|item| item.get().as_bytes()).collect())
}

/// The schema of structured mode, for the OpenAPI document.
#[must_use]
pub fn schema() -> Value {
    let text = json!({"type": "string", "minLength": 1});
    json!({
        "type": "object",
        "description": "A CloudEvent 1.0 in JSON. Other members are extensions.",
        "required": ["specversion", "id", "source", "type"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": text, "source": text, "subject": text, "dataschema": text, "datacontenttype": text,
            "type": {"type": "string", "minLength": 1, "maxLength": limits::EVENT_TYPE_BYTES_MAX},
            "time": {"type": "string", "format": "date-time"},
            "data": {},
            "data_base64": {"type": "string", "contentEncoding": "base64"},
        },
        "additionalProperties": {"type": ["string", "boolean", "integer", "null"]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_are_unquoted_and_decoded_once() {
        for (value, decoded) in [
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", Some("Euro € 😀")),
            ("\"quoted\\\" %22\"", Some("quoted\" \"")),
            ("%2541", Some("%41")),
            ("plain", Some("plain")),
            ("%C0%A0", None),
            ("%E2%82", None),
            ("%zz", None),
            ("%4", None),
        ] {
            assert_eq!(decode_header(value).as_deref(), decoded, "{value}");
        }
    }

    #[test]
    fn malformed_references_and_media_types_are_rejected() {
        for good in ["/", "urn:uuid:1-2", "https://a.example/b?c#d", "a%20b", "1-555-123-4567"] {
            assert_eq!(check_reference(good), Ok(()), "{good}");
        }
        for bad in ["a b", "a\\b", "<x>", "a%2", "a%zz", "é"] {
            assert!(check_reference(bad).is_err(), "{bad}");
        }
        assert_eq!(check_uri("https://a.example/schema"), Ok(()));
        assert!(check_uri("/schema").is_err() && check_uri("1a:b").is_err());
        assert_eq!(check_media("application/json; charset=utf-8"), Ok(()));
        assert!(check_media("json").is_err() && check_media("a/b c").is_err());
    }

    #[test]
    fn data_becomes_a_json_value() {
        let convert = |media, raw: &'static [u8]| {
            to_json_data(media, &Bytes::from_static(raw))
                .map(|(data, binary)| (String::from_utf8(data.to_vec()).unwrap(), binary))
        };
        assert_eq!(convert(None, b" {\"a\": 1e2} "), Ok(("{\"a\": 1e2}".to_owned(), false)));
        assert_eq!(convert(Some("application/x+JSON; v=1"), b"1"), Ok(("1".to_owned(), false)));
        assert_eq!(convert(Some("text/xml"), b"<a/>"), Ok(("\"<a/>\"".to_owned(), false)));
        assert_eq!(convert(Some("text/plain"), b"\xff"), Ok(("\"/w==\"".to_owned(), true)));
        assert_eq!(convert(Some("image/png"), b"abc"), Ok(("\"YWJj\"".to_owned(), true)));
        assert_eq!(convert(Some("image/png"), b""), Ok((String::new(), false)));
        assert_eq!(convert(Some("application/json"), b"{").unwrap_err().status(), 400);
    }
}
