//! Messages as drafts of events.

use super::*;
use crate::domain::{OnInvalid, Position, Sealed, SourceQueueType, SourceStatus};

pub(crate) fn source(format: SourceFormat) -> Source {
    Source {
        name: "shop".parse().unwrap(),
        url: "amqp://127.0.0.1:5672/%2F".into(),
        username: "guest".into(),
        password: Sealed::Plain((*b"guest").into()),
        queue: "events".into(),
        queue_type: SourceQueueType::default(),
        exchange: None,
        bindings: Vec::new(),
        declares: true,
        prefetch: 1,
        tenant: SourceTenant::Header("x-tenant".into()),
        format,
        stream_header: Some("x-stream".into()),
        ordering_key_header: Some("x-key".into()),
        on_invalid: OnInvalid::default(),
        dedup: Dedup::MessageId,
        status: SourceStatus::Active,
        created_at: Timestamp::ZERO,
        updated_at: Timestamp::ZERO,
        revision: Position(1),
    }
}

fn message(body: &str) -> Message {
    let headers = [("x-tenant".to_owned(), "acme".to_owned())].into();
    Message {
        routing_key: "pet.sold".to_owned(),
        headers,
        body: body.as_bytes().to_vec(),
        ..Message::default()
    }
}

fn draft(format: SourceFormat, message: &Message) -> Result<EventDraft, String> {
    message.draft(&source(format), 1_000)
}

fn text(draft: &EventDraft) -> (&str, &str) {
    (draft.event_type.as_str(), std::str::from_utf8(&draft.data).unwrap())
}

#[test]
fn body_becomes_data_by_its_media_type() {
    for (media, body, data, is_binary) in [
        (None, &b"{\"a\": 1}"[..], "{\"a\": 1}", false),
        (None, b"hello", "\"hello\"", false),
        (None, b"\xff", "\"/w==\"", true),
        (Some("application/json; charset=utf-8"), b" [1] ", "[1]", false),
        (Some("text/plain"), b"1", "\"1\"", false),
        (Some("image/png"), b"abc", "\"YWJj\"", true),
        (Some("application/json"), b"", "", false),
    ] {
        let mut message = message("");
        (message.body, message.content_type) = (body.to_vec(), media.map(ToOwned::to_owned));
        let draft = draft(SourceFormat::Auto, &message).unwrap();
        assert_eq!(text(&draft), ("pet.sold", data), "{media:?}");
        let kept = |name| attribute::find(&draft.attributes, name);
        assert_eq!(kept(attribute::BINARY).is_some(), is_binary, "{media:?}");
        let other = media.filter(|media| !media.starts_with("application/json"));
        assert_eq!(kept(attribute::CONTENT_TYPE), other, "JSON is the default");
    }
}

#[test]
fn automatic_format_knows_envelopes_and_cloudevents() {
    let envelope =
        r#"{"id":"a-1","type":"pet.lost","data":{"n":1},"timestamp":"2026-01-01T00:00:00Z","tenant":"x"}"#;
    let found = draft(SourceFormat::Auto, &message(envelope)).unwrap();
    assert_eq!(text(&found), ("pet.lost", r#"{"n":1}"#));
    assert_eq!((found.id.unwrap().as_str(), found.tenant.as_str()), ("a-1", "acme"));
    assert_eq!(found.timestamp.unwrap().rfc3339().as_str(), "2026-01-01T00:00:00.000Z");
    // Without an id it may be data that looks like an envelope.
    let data = r#"{"type":"pet.lost","data":1}"#;
    assert_eq!(text(&draft(SourceFormat::Auto, &message(data)).unwrap()), ("pet.sold", data));
    assert_eq!(text(&draft(SourceFormat::Envelope, &message(data)).unwrap()), ("pet.lost", "1"));
    assert_eq!(text(&draft(SourceFormat::Raw, &message(envelope)).unwrap()), ("pet.sold", envelope));

    let mut structured =
        message(r#"{"specversion":"1.0","id":"1","source":"/a","type":"x.y","n":3,"data":[1]}"#);
    structured.content_type = Some("application/cloudevents+json".to_owned());
    let found = draft(SourceFormat::Auto, &structured).unwrap();
    assert_eq!(text(&found), ("x.y", "[1]"));
    assert_eq!(attribute::find(&found.attributes, "n#"), Some("3"));
    for prefix in PREFIXES {
        let mut binary = message("[2]");
        for (name, value) in [("specversion", "1.0"), ("id", "1"), ("source", "/a"), ("type", "x.y")] {
            binary.headers.insert(format!("{prefix}{name}"), value.to_owned());
        }
        binary.message_id = Some("another".to_owned());
        let found = draft(SourceFormat::Auto, &binary).unwrap();
        assert_eq!((text(&found), &found.id), (("x.y", "[2]"), &None), "{prefix}");
        assert_eq!(attribute::find(&found.attributes, "source"), Some("/a"));
    }
}

#[test]
fn message_id_identifies_the_event() {
    let with_id = |id: &str| {
        let message = Message { message_id: Some(id.to_owned()), ..message("1") };
        draft(SourceFormat::Auto, &message).unwrap()
    };
    assert_eq!(with_id("order-1").id.unwrap().as_str(), "order-1");
    let hashed = with_id("not a legal id!");
    assert!(hashed.id.is_none());
    let key = hashed.idempotency.unwrap();
    assert_eq!((key.expires_at, key.fingerprint), (None, hashed.fingerprint));
    assert_ne!(key.scope, with_id("not a legal id?").idempotency.unwrap().scope);
    let again = Message { redelivered: true, ..message("1") };
    let found = draft(SourceFormat::Auto, &again).unwrap();
    assert_eq!(attribute::find(&found.attributes, REDELIVERED), Some("true"));
    let source = Source { dedup: Dedup::None, ..source(SourceFormat::Auto) };
    let message = Message { message_id: Some("order-1".to_owned()), ..message("1") };
    assert!(message.draft(&source, 1_000).unwrap().id.is_none());
}

#[test]
fn unrecognised_repetition_is_marked() {
    let is_marked = |dedup, id: &str, body: &str| {
        let message = Message { message_id: Some(id.to_owned()), redelivered: true, ..message(body) };
        let source = Source { dedup, ..source(SourceFormat::Auto) };
        let found = message.draft(&source, 1_000).unwrap();
        attribute::find(&found.attributes, REDELIVERED).is_some()
    };
    assert!(is_marked(Dedup::MessageId, "", "1") && is_marked(Dedup::None, "order-1", "1"));
    assert!(!is_marked(Dedup::MessageId, "order-1", "1"));
    assert!(!is_marked(Dedup::MessageId, "not a legal id!", "1"));
    assert!(!is_marked(Dedup::None, "", r#"{"id":"a-1","type":"pet.lost","data":1}"#));
}

#[test]
fn envelope_keeps_its_id_beside_an_illegal_message_id() {
    let envelope = r#"{"id":"a-1","type":"pet.lost","data":1}"#;
    for (id, expected) in [("not a legal id!", "a-1"), ("order-1", "order-1")] {
        let message = Message { message_id: Some(id.to_owned()), ..message(envelope) };
        let found = draft(SourceFormat::Auto, &message).unwrap();
        assert_eq!(found.id.unwrap().as_str(), expected);
        assert!(found.idempotency.is_none());
    }
}

#[test]
fn illegal_cloudevents_attributes_are_refused() {
    let structured = |member: &str| {
        let body = format!(r#"{{"specversion":"1.0","id":"1","source":"/a","type":"x.y",{member}}}"#);
        let media = Some("application/cloudevents+json".to_owned());
        draft(SourceFormat::Auto, &Message { content_type: media, ..message(&body) })
    };
    for member in [r#""n#":"1,\"id\":2""#, r#""n#":1"#, r#""N":"1""#, r#""subject":1"#, r#""n":[1]"#] {
        assert!(structured(member).unwrap_err().contains("is not legal"), "{member}");
    }
    let found = structured(r#""data_base64":"a\/8=""#).unwrap();
    assert_eq!(text(&found).1, r#""a\/8=""#);
    assert!(structured(r#""data_base64":"a""#).unwrap_err().contains("base64"));

    let binary = |headers: &[(&str, &str)]| {
        let mut binary = message("[2]");
        let required = [("specversion", "1.0"), ("id", "1"), ("source", "/a"), ("type", "x.y")];
        for (name, value) in required.iter().chain(headers) {
            binary.headers.insert(format!("cloudEvents_{name}"), (*value).to_owned());
        }
        binary.headers.insert("cloudEvents:n".to_owned(), "1".to_owned());
        draft(SourceFormat::Auto, &binary)
    };
    for name in ["n#", "data", "data_base64", "N", ""] {
        assert!(binary(&[(name, "1")]).unwrap_err().contains("is not legal"), "{name}");
    }
    let twice = binary(&[("n", "2")]).unwrap();
    assert_eq!(twice.attributes.iter().filter(|(name, _)| **name == *"n").count(), 1);
}

#[test]
fn headers_name_tenant_stream_key_trace_and_hops() {
    let mut message = message("1");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (name, value) in [("x-stream", "pet 1"), ("x-key", "k"), ("traceparent", trace), ("balto-hops", "8")]
    {
        message.headers.insert(name.to_owned(), value.to_owned());
    }
    let found = draft(SourceFormat::Raw, &message).unwrap();
    assert_eq!((found.tenant.as_str(), found.stream.unwrap().as_str()), ("acme", "pet 1"));
    assert_eq!(found.ordering_key.unwrap().as_str(), "k");
    assert_eq!(attribute::find(&found.attributes, attribute::TRACE_PARENT), Some(trace));
    assert_eq!(attribute::find(&found.attributes, attribute::HOPS), Some("8"));
}

#[test]
fn invalid_messages_have_a_reason() {
    let header = |name: &str, value: &str| {
        let mut message = message("1");
        message.headers.insert(name.to_owned(), value.to_owned());
        message
    };
    let typed = |key: &str| Message { routing_key: key.to_owned(), ..message("1") };
    let media = |media: &str, body: &str| Message { content_type: Some(media.to_owned()), ..message(body) };
    for (message, reason) in [
        (Message { headers: BTreeMap::new(), ..message("1") }, "no header `x-tenant`"),
        (header("x-tenant", "balto"), "reserved"),
        (header("x-tenant", "a b"), "tenant"),
        (header("balto-hops", "9"), "passed more than 8"),
        (header("balto-hops", "x"), "not a number"),
        (header("x-stream", ""), "stream"),
        (typed("two words"), "routing key"),
        (typed("balto.endpoint.failing"), "reserved"),
        (media("application/json", "{"), "not JSON"),
        (media("application/cloudevents+json", "{}"), "specversion"),
        (media("application/cloudevents+json", r#"{"specversion":"1.0","id":"1"}"#), "source"),
        (message(&"x".repeat(1_001)), "max_event_bytes"),
    ] {
        let found = draft(SourceFormat::Auto, &message).unwrap_err();
        assert!(found.contains(reason), "{reason}: {found}");
    }
    let kind = Message { kind: Some("pet.sold".to_owned()), ..typed("two words") };
    assert_eq!(text(&draft(SourceFormat::Raw, &kind).unwrap()).0, "pet.sold");
    assert!(draft(SourceFormat::Envelope, &message("1")).unwrap_err().contains("envelope"));
}
