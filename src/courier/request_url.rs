//! URLs of outbound requests, each parsed once for all requests to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::Uri;
use hyper::header::HeaderValue;
use url::Url;

use super::connect::Target;
use super::guard::{self, RefusedUrl};
use crate::limits;

/// A parsed URL.
#[derive(Debug)]
pub struct RequestUrl {
    pub(super) parsed: Url,
    wire: Result<Wire, RefusedUrl>,
}

/// The parts of a URL that a request needs.
#[derive(Debug)]
pub(super) struct Wire {
    /// Key of the connections in the pool.
    pub(super) target: Target,
    pub(super) request_target: Uri,
    /// The value of `Host`.
    pub(super) host: HeaderValue,
}

impl RequestUrl {
    /// # Errors
    /// When the URL does not parse.
    pub fn parse(url: &str) -> Result<Self, String> {
        let parsed = Url::parse(url).map_err(|error| error.to_string())?;
        let wire = Wire::of(&parsed);
        Ok(Self { parsed, wire })
    }

    /// # Errors
    /// When the URL cannot be requested.
    pub(super) fn wire(&self) -> Result<&Wire, RefusedUrl> {
        self.wire.as_ref().map_err(|refused| *refused)
    }
}

impl Wire {
    fn of(url: &Url) -> Result<Self, RefusedUrl> {
        let target = Target::new(url).ok_or(RefusedUrl::Malformed("the URL needs a host"))?;
        let (request_target, host) = guard::request_line(url)?;
        Ok(Self { target, request_target, host })
    }
}

/// A bounded cache of parsed URLs.
#[derive(Debug, Default)]
pub struct RequestUrls(Mutex<HashMap<Box<str>, Arc<RequestUrl>>>);

impl RequestUrls {
    /// Parses a URL unless the cache has it. A full cache starts again.
    ///
    /// # Errors
    /// When the URL does not parse.
    pub fn get(&self, url: &str) -> Result<Arc<RequestUrl>, String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parsed) = known.get(url) {
            return Ok(parsed.clone());
        }
        let parsed = Arc::new(RequestUrl::parse(url)?);
        if known.len() >= limits::REQUEST_URLS_MAX {
            known.clear();
        }
        known.insert(url.into(), parsed.clone());
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_of_destinations_is_exact_and_bounded() {
        let cache = RequestUrls::default();
        let url = |number: usize| format!("https://receiver-{number}.example/hook");
        let first = cache.get(&url(0)).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.get(&url(0)).unwrap()), "parsed once");
        for number in 0..=limits::REQUEST_URLS_MAX {
            assert_eq!(cache.get(&url(number)).unwrap().parsed.as_str(), url(number));
        }
        assert!(cache.0.lock().unwrap().len() <= limits::REQUEST_URLS_MAX);
        assert!(cache.get("no URL").is_err());
    }

    #[test]
    fn url_that_two_parsers_read_differently_is_refused() {
        for text in ["mailto:a@example.com", "https://user@example.com/"] {
            let url = RequestUrl::parse(text).unwrap();
            assert!(matches!(url.wire(), Err(RefusedUrl::Malformed(_))), "{text}");
        }
    }
}
