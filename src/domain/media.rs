//! Media types of an event's data: they decide how it is stored, and how it is sent as it was
//! posted.

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
    /// The kind of a media type, without its parameters (RFC 6839, section 3.1; RFC 7303, section
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
}
