//! Body and headers of the request that a receiver gets.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};

use crate::domain::media::DataKind;
use crate::domain::{
    Endpoint, Event, EventVersion, Format, Position, SenderName, Timestamp, TraceParent, attribute, media,
    normalize_header_name,
};
use crate::limits;

/// The header of a handshake that names the sender.
pub const REQUEST_ORIGIN: &str = "webhook-request-origin";
/// The header with the published version of a converted event.
pub const STORED_VERSION: &str = "balto-version";
/// The header with credentials for the receiver.
pub const AUTHORIZATION: &str = "authorization";
const AGENT: &str = concat!("balto/", env!("CARGO_PKG_VERSION"));

/// The body of format `standard`. `data` is copied byte for byte from the post. It is always
/// present, because receivers read it without checking.
#[must_use]
fn standard_body(event: &Event) -> Vec<u8> {
    let mut body = String::with_capacity(event.data.len() + 256);
    // Ids, types, tenants and versions have only characters that JSON does not escape.
    let head = write!(
        body,
        r#"{{"id":"{}","type":"{}","timestamp":"{}","version":"{}","tenant":"{}""#,
        event.id,
        event.event_type,
        event.timestamp.rfc3339(),
        event.version,
        event.tenant
    );
    head.expect("writing to a string cannot fail");
    if let Some((stream, version)) = &event.stream {
        let name = serde_json::to_string(stream.as_str()).expect("a string is JSON");
        write!(body, r#","stream":{name},"streamVersion":{version}"#)
            .expect("writing to a string cannot fail");
    }
    body.push_str(r#","data":"#);
    let mut body = body.into_bytes();
    body.extend_from_slice(if event.data.is_empty() { b"null" } else { &event.data });
    body.push(b'}');
    body
}

/// The event of a message, in the queue's format. Adds the position, the published version of a
/// converted event, and the ordering key and the trace if there are any. `deprecation`: see
/// [`body`].
#[must_use]
pub fn message_body(
    queue: &Endpoint,
    event: &Event,
    stored_version: Option<&EventVersion>,
    deprecation: Option<Option<Timestamp>>,
    position: Position,
) -> Bytes {
    let mut body = match queue.format {
        // A queue cannot have format `raw`: its workers need the event's id.
        Format::Standard | Format::Raw => standard_body(event),
        Format::CloudEvents | Format::CloudEventsBinary => {
            let is_sent = |name: &str, value: &str| {
                is_extension(name, value, queue.trace)
                    && !MESSAGE_EXTENSIONS.contains(&name.trim_end_matches(attribute::NOT_TEXT))
            };
            cloudevent_body(event, deprecation, is_sent)
        }
    };
    body.pop();
    let text = |text: &str| serde_json::to_string(text).expect("a string is JSON");
    let is_cloudevent = matches!(queue.format, Format::CloudEvents | Format::CloudEventsBinary);
    let names = if is_cloudevent { MESSAGE_EXTENSIONS } else { ["position", "storedVersion", "orderingKey"] };
    let key = event.ordering_key.as_ref().map(|key| text(key.as_str()));
    let values = [Some(position.to_string()), stored_version.map(|version| text(version.as_str())), key];
    for (name, value) in names.into_iter().zip(values) {
        if let Some(value) = value {
            body.extend_from_slice(format!(r#","{name}":{value}"#).as_bytes());
        }
    }
    let trace = event.attribute(attribute::TRACE_PARENT).filter(|trace| TraceParent::parse(trace).is_some());
    if let Some(trace) = trace.filter(|_| queue.format == Format::Standard) {
        body.extend_from_slice(format!(r#","attributes":{{"traceparent":{}}}"#, text(trace)).as_bytes());
    }
    body.push(b'}');
    body.into()
}

/// Extensions of an event in a message, in place of those of its publisher. Their names have only
/// lower-case letters and digits (CloudEvents, section 3.1).
const MESSAGE_EXTENSIONS: [&str; 3] = ["position", "storedversion", attribute::PARTITION_KEY];

/// Extensions of an event in the feed. They replace those of its publisher.
const FEED_EXTENSIONS: [&str; 4] = ["sequence", "storedversion", "conversionerror", "erasedat"];

/// An event of the feed as a CloudEvent: its position is the extension `sequence`, padded so that
/// texts have the order of positions. `stored_version`: the published version of a converted event.
/// `conversion_error`: why an event was not converted.
#[must_use]
pub fn feed_cloudevent(
    position: Position,
    event: &Event,
    stored_version: Option<&str>,
    conversion_error: Option<&str>,
    deprecation: Option<Option<Timestamp>>,
) -> Vec<u8> {
    let is_sent = |name: &str, value: &str| {
        is_extension(name, value, true)
            && !FEED_EXTENSIONS.contains(&name.trim_end_matches(attribute::NOT_TEXT))
    };
    let mut body = cloudevent_body(event, deprecation, is_sent);
    body.pop();
    let sequence = format!("{:020}", position.0);
    let erased = event.erased_at.map(|at| at.rfc3339().to_string());
    let values = [Some(sequence.as_str()), stored_version, conversion_error, erased.as_deref()];
    for (name, value) in FEED_EXTENSIONS.into_iter().zip(values) {
        if let Some(value) = value {
            let value = serde_json::to_string(value).expect("a string is JSON");
            body.extend_from_slice(format!(r#","{name}":{value}"#).as_bytes());
        }
    }
    body.push(b'}');
    body
}

/// The body in the endpoint's format, and its media type. `deprecation` is set for a deprecated
/// version, with the time until which it is published.
#[must_use]
pub fn body<'a>(
    endpoint: &Endpoint,
    event: &'a Event,
    deprecation: Option<Option<Timestamp>>,
) -> (Bytes, &'a str) {
    match endpoint.format {
        Format::Standard => (standard_body(event).into(), media::JSON),
        // Some receivers compare this media type byte for byte.
        Format::CloudEvents => (
            cloudevent_body(event, deprecation, |name, value| is_extension(name, value, endpoint.trace))
                .into(),
            "application/cloudevents+json; charset=utf-8",
        ),
        Format::Raw | Format::CloudEventsBinary => posted_data(event),
    }
}

/// The data of an event and its media type, as its publisher had them.
fn posted_data(event: &Event) -> (Bytes, &str) {
    let given = event.attribute(attribute::CONTENT_TYPE);
    let is_binary = event.attribute(attribute::BINARY).is_some();
    let bytes = posted_bytes(&event.data, given, is_binary);
    let default = if is_binary { media::BYTES } else { media::JSON };
    (bytes.map_or_else(|| event.data.clone(), Bytes::from), given.unwrap_or(default))
}

/// The bytes that were posted, from the stored data of a media type. `None` if they are the stored
/// data.
fn posted_bytes(data: &[u8], media: Option<&str>, is_binary: bool) -> Option<Vec<u8>> {
    // Slashes may be escaped, so the string is parsed. Data of another JSON type is JSON.
    let text = || serde_json::from_slice::<String>(data).ok();
    match media.map(DataKind::of) {
        _ if is_binary => STANDARD.decode(text()?).ok(),
        None | Some(DataKind::Json) => None,
        Some(DataKind::Text | DataKind::Bytes) => Some(text()?.into_bytes()),
    }
}

/// The attributes of a CloudEvent in binary mode, as headers of a message (AMQP Protocol Binding,
/// section 3.1). Readers accept `cloudEvents_` and `cloudEvents:`.
#[must_use]
pub fn cloudevent_headers(endpoint: &Endpoint, event: &Event) -> Vec<(String, String)> {
    let own = |name: &str| event.attribute(name).map(ToOwned::to_owned);
    let source = own(attribute::SOURCE).unwrap_or_else(|| format!("/{}", event.tenant));
    let subject = event.stream.as_ref().map(|(name, _)| name.to_string());
    let mut attributes = vec![
        ("specversion", "1.0".to_owned()),
        ("id", own(attribute::ID).unwrap_or_else(|| event.id.to_string())),
        ("source", source),
        ("type", event.event_type.to_string()),
        ("time", own(attribute::TIME).unwrap_or_else(|| event.timestamp.rfc3339().to_string())),
    ];
    let optional = [
        (attribute::SUBJECT, own(attribute::SUBJECT).or(subject)),
        (attribute::DATA_SCHEMA, own(attribute::DATA_SCHEMA)),
        (attribute::VERSION, added_version(event).map(ToOwned::to_owned)),
    ];
    attributes.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let extensions =
        event.attributes.iter().filter(|(name, value)| is_extension(name, value, endpoint.trace));
    let extensions = extensions.map(|(name, value)| {
        (name.trim_end_matches(attribute::NOT_TEXT), sent_value(event, name, value).to_owned())
    });
    attributes
        .into_iter()
        .chain(extensions)
        .map(|(name, value)| (format!("cloudEvents_{name}"), value))
        .collect()
}

/// CloudEvents 1.0 in structured mode. An event posted as a CloudEvent keeps its id, source and
/// extensions. Other events get Balto's id and the source `/<tenant>`. An event without data has no
/// `data` member, because null is a value (section 3.1).
fn cloudevent_body(
    event: &Event,
    deprecation: Option<Option<Timestamp>>,
    is_sent: impl Fn(&str, &str) -> bool,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(event.data.len() + 512);
    let id = event.attribute(attribute::ID).unwrap_or(event.id.as_str());
    let source =
        event.attribute(attribute::SOURCE).map_or_else(|| format!("/{}", event.tenant), str::to_owned);
    body.extend_from_slice(br#"{"specversion":"1.0""#);
    let mut member = |name: &str, value: &str| {
        let value = serde_json::to_string(value).expect("a string is JSON");
        body.extend_from_slice(format!(r#","{name}":{value}"#).as_bytes());
    };
    member("id", id);
    member("source", &source);
    member("type", event.event_type.as_str());
    let time = event.timestamp.rfc3339();
    member("time", event.attribute(attribute::TIME).unwrap_or(time.as_str()));
    let media = Some("application/json").filter(|_| !event.data.is_empty());
    if let Some(media) = event.attribute(attribute::CONTENT_TYPE).or(media) {
        member("datacontenttype", media);
    }
    let subject = event.stream.as_ref().map(|(name, _)| name.as_str());
    if let Some(subject) = event.attribute(attribute::SUBJECT).or(subject) {
        member(attribute::SUBJECT, subject);
    }
    if let Some(schema) = event.attribute(attribute::DATA_SCHEMA) {
        member(attribute::DATA_SCHEMA, schema);
    }
    if let Some(version) = added_version(event) {
        member(attribute::VERSION, version);
    }
    if let Some(sunset) = deprecation {
        body.extend_from_slice(br#","deprecated":true"#);
        if let Some(sunset) = sunset {
            body.extend_from_slice(format!(r#","deprecationsunset":"{}""#, sunset.rfc3339()).as_bytes());
        }
    }
    let is_own = |name: &str| {
        deprecation.is_some() && name.trim_end_matches(attribute::NOT_TEXT).starts_with("deprecat")
    };
    for (name, value) in event.attributes.iter().filter(|(name, value)| is_sent(name, value) && !is_own(name))
    {
        match name.strip_suffix(attribute::NOT_TEXT) {
            Some(name) => body.extend_from_slice(format!(r#","{name}":{value}"#).as_bytes()),
            None => {
                let value = serde_json::to_string(sent_value(event, name, value)).expect("a string is JSON");
                body.extend_from_slice(format!(r#","{name}":{value}"#).as_bytes());
            }
        }
    }
    if !event.data.is_empty() {
        let binary = event.attribute(attribute::BINARY).is_some();
        body.extend_from_slice(if binary { br#","data_base64":"# } else { br#","data":"# });
        body.extend_from_slice(&event.data);
    }
    body.push(b'}');
    body
}

/// The version of the type, unless it is 1.0 or the publisher has an extension of this name.
fn added_version(event: &Event) -> Option<&str> {
    let mut names = event.attributes.iter().map(|(name, _)| name.trim_end_matches(attribute::NOT_TEXT));
    let has_own = names.any(|name| name == attribute::VERSION);
    (!has_own && event.version != EventVersion::default()).then(|| event.version.as_str())
}

/// The value of an extension. A version of the type is that of the data, which may be converted.
fn sent_value<'a>(event: &'a Event, name: &str, value: &'a str) -> &'a str {
    let is_version = name == attribute::VERSION && value.parse::<EventVersion>().is_ok();
    if is_version { event.version.as_str() } else { value }
}

/// Whether an attribute is sent as an extension. Attributes with a member or header of their kind
/// are not. `trace`: the trace is sent; the extension names the span of the event, not of this
/// attempt.
fn is_extension(name: &str, value: &str, trace: bool) -> bool {
    match name.trim_end_matches(attribute::NOT_TEXT) {
        attribute::TRACE_PARENT => trace && TraceParent::parse(value).is_some(),
        "tracestate" | "baggage" => false,
        _ => !attribute::OWN.contains(&name),
    }
}

/// The headers of one attempt: the endpoint's custom headers, overridden by Balto's. `media` is the
/// type of the body, if there is one. `more` holds Balto's headers that depend on the endpoint,
/// such as the signature.
///
/// # Errors
/// When a custom header of the endpoint is invalid.
pub fn headers(
    custom: &[(Box<str>, Box<str>)],
    media: Option<&str>,
    event: &Event,
    attempt: u32,
    now: Timestamp,
    more: Vec<(Cow<'static, str>, String)>,
) -> Result<HeaderMap, String> {
    let to_value = |text: String| HeaderValue::try_from(text).map_err(|error| error.to_string());
    let mut headers = HeaderMap::with_capacity(12 + custom.len());
    for (name, value) in custom {
        let name = HeaderName::try_from(&**name).map_err(|error| error.to_string())?;
        headers.append(name, HeaderValue::try_from(&**value).map_err(|error| error.to_string())?);
    }
    if let Some(media) = media {
        headers.insert(CONTENT_TYPE, HeaderValue::try_from(media).map_err(|error| error.to_string())?);
    }
    // A name from a static string needs no copy.
    let name = HeaderName::from_static;
    headers.insert(name("webhook-id"), to_value(event.id.to_string())?);
    headers.insert(name("webhook-timestamp"), HeaderValue::from(now.seconds()));
    for (text, value) in more {
        let name = match text {
            Cow::Borrowed(text) => name(text),
            Cow::Owned(text) => HeaderName::try_from(text).map_err(|error| error.to_string())?,
        };
        let mut value = to_value(value)?;
        value.set_sensitive(name == AUTHORIZATION);
        headers.insert(name, value);
    }
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(name("balto-attempt"), HeaderValue::from(attempt));
    headers.insert(name(attribute::HOPS), HeaderValue::from(event.hops().saturating_add(1)));
    Ok(headers)
}

/// The headers of a token request (RFC 6749, section 4.4.2).
///
/// # Errors
/// When the authorization is not a valid header value.
pub fn token_headers(authorization: Option<&str>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::with_capacity(4);
    if let Some(authorization) = authorization {
        let mut value = HeaderValue::try_from(authorization).map_err(|error| error.to_string())?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    Ok(headers)
}

/// The headers of a handshake request (HTTP 1.1 Web Hooks, section 4.1). They exclude the
/// endpoint's custom headers, so that a receiver without consent gets no credentials.
///
/// # Errors
/// When the callback's URL is not a valid header value.
pub fn handshake_headers(
    origin: &SenderName,
    rate: Option<u32>,
    callback: Option<&str>,
) -> Result<HeaderMap, String> {
    let value = |text: &str| HeaderValue::try_from(text).map_err(|error| error.to_string());
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(REQUEST_ORIGIN, value(origin.as_str())?);
    if let Some(callback) = callback {
        headers.insert("webhook-request-callback", value(callback)?);
    }
    if let Some(rate) = rate {
        headers.insert("webhook-request-rate", HeaderValue::from(rate));
    }
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    Ok(headers)
}

/// Headers that an endpoint cannot set, in the form of [`normalize_header_name`]. They control the
/// connection, name the client or target to servers behind a proxy, authorize requests to metadata
/// services, or change the method.
const RESERVED: [&str; 55] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "max-forwards",
    "user-agent",
    "accept-encoding",
    "metadata",
    "x-google-metadata-request",
    "forwarded",
    "via",
    "cdn-loop",
    "client-ip",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-ip",
    "x-real-port",
    "x-remote-addr",
    "x-remote-ip",
    "x-remote-user",
    "remote-addr",
    "remote-user",
    "fastly-client-ip",
    "fly-client-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-host",
    "x-http-host-override",
    "x-original-host",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "tracestate",
    "baggage",
    "traceparent",
    "stripe-signature",
    "x-hub-signature-256",
    "svix-id",
    "svix-timestamp",
    "svix-signature",
];
const RESERVED_PREFIXES: [&str; 11] = [
    "proxy-",
    "webhook-",
    "ce-",
    "metadata-",
    "x-aws-ec2-metadata-token",
    "x-aliyun-ecs-metadata-token",
    "x-forwarded-",
    "x-envoy-",
    // App Engine removes these headers from external requests, so applications trust them.
    "x-appengine-",
    "cf-connecting-ip",
    "balto-",
];

/// Checks a custom header of an endpoint.
///
/// # Errors
/// The reason, as a message for the client.
pub fn validate_header(name: &str, value: &str) -> Result<(), String> {
    if HeaderName::try_from(name).is_err() {
        return Err("a header name is a token of RFC 9110".to_owned());
    }
    if name.contains('_') {
        return Err(
            "a header name must not contain `_`, because many servers read it as `-`; write `-`".to_owned()
        );
    }
    // A name may contain `.`, but some servers read `Content.Length` as `Content-Length`.
    let normal = normalize_header_name(name);
    let is_reserved = RESERVED.contains(&normal.as_str());
    if is_reserved || RESERVED_PREFIXES.iter().any(|prefix| normal.starts_with(prefix)) {
        return Err("this header cannot be set".to_owned());
    }
    if value.len() > limits::HEADER_VALUE_BYTES_MAX {
        return Err(format!("a header value has at most {} bytes", limits::HEADER_VALUE_BYTES_MAX));
    }
    if !value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
        return Err("a header value is printable ASCII".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn posted_bytes_are_those_of_the_publisher() {
        let posted = |data: &str, media, is_binary| posted_bytes(data.as_bytes(), media, is_binary);
        assert_eq!(posted(r#""a\"b\u00e9""#, Some("text/plain"), false), Some("a\"bé".into()));
        assert_eq!(posted(r#""<a/>""#, Some("application/xml"), false), Some("<a/>".into()));
        assert_eq!(posted(r#""a\/8=""#, None, true), Some(vec![0x6b, 0xff]), "escaped slashes");
        assert_eq!(posted(r#""aGk=""#, Some("application/json"), true), Some("hi".into()));
        assert_eq!(posted(r#""a""#, None, false), None, "a JSON string");
        assert_eq!(posted(r#""a""#, Some("application/vnd.a+json"), false), None);
        assert_eq!(posted(r#"{"a":1}"#, Some("text/plain"), false), None, "data that was converted");
        assert_eq!(posted(r#""a\/8""#, None, true), None, "no base64");
    }

    #[test]
    fn reserved_and_malformed_headers_are_rejected() {
        let rows = [
            ("E1", "a b", "x"),
            ("E1", "a:b", "x"),
            ("E1", "", "x"),
            ("E1", "a\r\nb", "x"),
            ("E2", "X-A", "a\r\nb"),
            ("E2", "X-A", "\0"),
            ("E3", "Host", "x"),
            ("E3", "Content-Length", "1"),
            ("E3", "Transfer-Encoding", "chunked"),
            ("E3", "Connection", "close"),
            ("E3", "Proxy-Authorization", "x"),
            ("E3", "Webhook-Id", "x"),
            ("E3", "ce-type", "x"),
            ("E4", "Metadata-Flavor", "Google"),
            ("E4", "X-aws-ec2-metadata-token-ttl-seconds", "1"),
            ("E4", "X-Forwarded-For", "x"),
            ("E4", "Metadata_Flavor", "Google"),
            ("E3", "Content_Length", "1"),
            ("E3", "Content.Length", "1"),
            ("E3", "Transfer.Encoding", "chunked"),
            ("E3", "Webhook.Signature", "x"),
            ("E3", "Balto!Hops", "0"),
            ("E4", "X.Forwarded.For", "x"),
            ("E4", "X-Forwarded.For", "x"),
            ("E4", "Metadata.Flavor", "Google"),
            ("E4", "X-Appengine-User-Ip", "127.0.0.1"),
            ("E4", "X-AppEngine-Cron", "true"),
        ];
        for (row, name, value) in rows {
            assert!(validate_header(name, value).is_err(), "{row} {name:?}: {value:?}");
        }
        assert!(validate_header("X-A", &"x".repeat(4_097)).is_err(), "E2");
        for name in ["X-Env", "X.Env", "a.b", "X-Appengine"] {
            assert_eq!(validate_header(name, "prod"), Ok(()), "{name}");
        }
        assert_eq!(validate_header("Authorization", "Bearer abc"), Ok(()));
    }
}
