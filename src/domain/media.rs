//! Media types of an event's data: they decide how it is stored, and how it is sent as it was
//! posted.

use std::borrow::Cow;

/// Media type of JSON, and of data whose publisher gave none.
pub const JSON: &str = "application/json";
/// Media type of bytes whose publisher gave none (RFC 2046, section 4.5.1).
pub const BYTES: &str = "application/octet-stream";

/// How the data of a media type is stored: always as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// As it is.
    Json,
    /// As a string.
    Text,
    /// As a string with base64.
    Bytes,
}

impl DataKind {
    /// The kind of a media type, whatever its parameters (RFC 6839, section 3.1; RFC 7303, section
    /// 4.2).
    #[must_use]
    pub fn of(media: &str) -> Self {
        let essence = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence.ends_with("/json") || essence.ends_with("+json") {
            Self::Json
        } else if essence.starts_with("text/") || essence.ends_with("/xml") || essence.ends_with("+xml") {
            Self::Text
        } else {
            Self::Bytes
        }
    }
}

/// The bytes that were posted, from the stored data of a media type. `None` if they are the stored
/// data.
#[must_use]
pub fn posted_bytes(data: &[u8], media: Option<&str>, is_binary: bool) -> Option<Vec<u8>> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    // Slashes may be escaped, so the string is parsed. Data of another JSON type is JSON.
    let text = || serde_json::from_slice::<Cow<'_, str>>(data).ok();
    match media.map(DataKind::of) {
        _ if is_binary => STANDARD.decode(text()?.as_bytes()).ok(),
        None | Some(DataKind::Json) => None,
        Some(DataKind::Text | DataKind::Bytes) => Some(text()?.into_owned().into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_of_a_media_type_ignores_case_and_parameters() {
        let rows = [
            ("application/json", DataKind::Json),
            ("Application/JSON; charset=utf-8", DataKind::Json),
            ("text/json", DataKind::Json),
            ("application/vnd.acme.order+json", DataKind::Json),
            ("text/plain; charset=utf-8", DataKind::Text),
            ("application/xml", DataKind::Text),
            ("application/atom+xml;type=entry", DataKind::Text),
            ("application/octet-stream", DataKind::Bytes),
            ("image/jsonp", DataKind::Bytes),
            ("", DataKind::Bytes),
        ];
        for (media, kind) in rows {
            assert_eq!(DataKind::of(media), kind, "{media:?}");
        }
    }

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
}
