//! The destination of outbound requests: a URL, parsed once for all requests to it.

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
pub struct Destination {
    pub(super) url: Url,
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

impl Destination {
    /// # Errors
    /// When the URL does not parse.
    pub fn parse(url: &str) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| error.to_string())?;
        let wire = Wire::of(&url);
        Ok(Self { url, wire })
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

/// A bounded cache of destinations by URL.
#[derive(Debug, Default)]
pub struct Destinations(Mutex<HashMap<Box<str>, Arc<Destination>>>);

impl Destinations {
    /// Parses a URL unless the cache has its destination. A full cache starts again.
    ///
    /// # Errors
    /// When the URL does not parse.
    pub fn get(&self, url: &str) -> Result<Arc<Destination>, String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(destination) = known.get(url) {
            return Ok(destination.clone());
        }
        let destination = Arc::new(Destination::parse(url)?);
        if known.len() >= limits::DESTINATIONS_MAX {
            known.clear();
        }
        known.insert(url.into(), destination.clone());
        Ok(destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_of_destinations_is_exact_and_bounded() {
        let cache = Destinations::default();
        let url = |number: usize| format!("https://receiver-{number}.example/hook");
        let first = cache.get(&url(0)).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.get(&url(0)).unwrap()), "parsed once");
        for number in 0..=limits::DESTINATIONS_MAX {
            assert_eq!(cache.get(&url(number)).unwrap().url.as_str(), url(number));
        }
        assert!(cache.0.lock().unwrap().len() <= limits::DESTINATIONS_MAX);
        assert!(cache.get("no URL").is_err());
    }

    #[test]
    fn url_that_two_parsers_read_differently_is_refused() {
        for url in ["mailto:a@example.com", "https://user@example.com/"] {
            let destination = Destination::parse(url).unwrap();
            assert!(matches!(destination.wire(), Err(RefusedUrl::Malformed(_))), "{url}");
        }
    }
}
