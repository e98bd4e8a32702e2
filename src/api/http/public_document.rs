//! A document that needs no key, with a compressed copy.
//!
//! The copy is made once, so that a request without a key costs no compression.

use std::io::Write as _;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::api::http::reply::Reply;

pub struct PublicDocument {
    plain: Bytes,
    /// `None`: compression failed.
    gzip: Option<Bytes>,
}

impl PublicDocument {
    /// `plain` is serialised JSON.
    #[must_use]
    pub fn new(plain: Bytes) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let gzip = encoder.write_all(&plain).and_then(|()| encoder.finish()).ok().map(Bytes::from);
        Self { plain, gzip }
    }

    #[must_use]
    pub fn reply(&self, headers: &HeaderMap) -> Reply {
        let reply = match &self.gzip {
            Some(gzip) if accepts_gzip(headers) => {
                Reply::bytes(200, gzip.clone()).with_header("content-encoding", "gzip")
            }
            _ => Reply::bytes(200, self.plain.clone()),
        };
        reply.with_header("vary", "accept-encoding")
    }
}

/// Whether `Accept-Encoding` names gzip with a weight above 0 (RFC 9110, section 12.5.3). `*` does
/// not count: the plain form is always allowed.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let is_allowed = weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|weight| weight > 0.0));
        (name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip")) && is_allowed
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use axum::http::HeaderValue;

    use super::*;

    fn accepting(value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn gzip_is_sent_only_to_clients_that_accept_it() {
        for value in ["gzip", "GZIP;q=0.5", "br, gzip", "deflate, x-gzip;q=1"] {
            assert!(accepts_gzip(&accepting(value)), "{value}");
        }
        for value in ["", "br", "gzip;q=0", "gzip; q=0.000", "gzip;q=x", "*", "identity"] {
            assert!(!accepts_gzip(&accepting(value)), "{value}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn both_forms_have_the_same_content() {
        let plain = Bytes::from("{\"a\":1}".repeat(1_000));
        let document = PublicDocument::new(plain.clone());
        let reply = document.reply(&accepting("gzip"));
        assert_eq!(reply.header("content-encoding"), Some("gzip"));
        assert!(reply.body().len() < plain.len() / 10);
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&reply.body()[..]).read_to_end(&mut read).unwrap();
        assert_eq!(read, plain);
        let reply = document.reply(&HeaderMap::new());
        assert_eq!((reply.header("content-encoding"), reply.body()), (None, &plain));
        assert_eq!(reply.header("vary"), Some("accept-encoding"));
    }
}
