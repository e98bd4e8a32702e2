//! The events that a feed wants: by tenant, type and stream.

use std::collections::HashMap;

use crate::domain::{Consumer, Event, Pattern, StreamChoice, StreamName, Tenant};
use crate::rules::matching::pattern_matches_text;

/// The streams of a feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FeedStreams {
    /// All events, also those without a stream.
    #[default]
    All,
    One(StreamName),
    /// Events of a stream whose name begins with this text, which may be empty.
    Prefix(Box<str>),
}

/// The filter of a feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedFilter {
    /// `None`: all tenants but the reserved one.
    pub tenant: Option<Tenant>,
    /// Canonical patterns; empty: all types.
    pub types: Vec<Pattern>,
    pub streams: FeedStreams,
}

/// A filter in use. It remembers the types that it has compared with the patterns, so one lives
/// only as long as one look at a bounded number of events.
#[derive(Debug)]
pub struct FeedSieve<'a> {
    filter: &'a FeedFilter,
    types: HashMap<Box<str>, bool>,
    /// Work so far: one for each event, and one for each comparison with a pattern.
    pub work: usize,
}

/// The events that a consumer reads.
impl From<&Consumer> for FeedFilter {
    fn from(consumer: &Consumer) -> Self {
        let streams = match &consumer.filter.streams {
            StreamChoice::Any => FeedStreams::All,
            StreamChoice::One(stream) => FeedStreams::One(stream.clone()),
            StreamChoice::Prefix(prefix) => FeedStreams::Prefix(prefix.clone()),
        };
        let types = consumer.filter.types.clone();
        Self { tenant: consumer.key.tenant.clone(), types, streams }
    }
}

impl FeedFilter {
    #[must_use]
    pub fn sieve(&self) -> FeedSieve<'_> {
        FeedSieve { filter: self, types: HashMap::new(), work: 0 }
    }

    /// The stream of all events of the feed, if they are of one.
    #[must_use]
    pub fn only_stream(&self) -> Option<&str> {
        match &self.streams {
            FeedStreams::One(stream) => Some(stream.as_str()),
            FeedStreams::All | FeedStreams::Prefix(_) => None,
        }
    }

    /// Whether the feed has only events of streams.
    #[must_use]
    pub fn has_only_streams(&self) -> bool {
        self.streams != FeedStreams::All
    }
}

impl FeedSieve<'_> {
    pub fn wants(&mut self, event: &Event) -> bool {
        let stream = event.stream.as_ref().map(|(name, _)| name.as_str());
        self.wants_named(event.tenant.as_str(), event.event_type.as_str(), stream)
    }

    /// As [`Self::wants`], for an event with these names.
    pub fn wants_named(&mut self, tenant: &str, event_type: &str, stream: Option<&str>) -> bool {
        self.work += 1;
        let is_of_tenant = match &self.filter.tenant {
            Some(wanted) => wanted.as_str() == tenant,
            None => tenant != Tenant::OPERATOR,
        };
        is_of_tenant && self.wants_stream(stream) && self.wants_type(event_type)
    }

    fn wants_stream(&self, stream: Option<&str>) -> bool {
        match &self.filter.streams {
            FeedStreams::All => true,
            FeedStreams::One(name) => stream == Some(name.as_str()),
            FeedStreams::Prefix(prefix) => stream.is_some_and(|stream| stream.starts_with(&**prefix)),
        }
    }

    fn wants_type(&mut self, event_type: &str) -> bool {
        if self.filter.types.is_empty() {
            return true;
        }
        if let Some(wanted) = self.types.get(event_type) {
            return *wanted;
        }
        self.work += self.filter.types.len();
        let wanted = self.filter.types.iter().any(|pattern| pattern_matches_text(pattern, event_type));
        self.types.insert(event_type.into(), wanted);
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(tenant: &str, types: &[&str], streams: FeedStreams) -> FeedFilter {
        FeedFilter {
            tenant: Some(tenant).filter(|name| !name.is_empty()).map(|name| name.parse().unwrap()),
            types: types.iter().map(|text| text.parse().unwrap()).collect(),
            streams,
        }
    }

    #[test]
    fn filters_by_tenant_type_and_stream() {
        let prefix = |text: &str| FeedStreams::Prefix(text.into());
        let one = FeedStreams::One("pet-1".parse().unwrap());
        let rows: [(FeedFilter, &[usize]); 9] = [
            (FeedFilter::default(), &[0, 1, 2, 3]),
            (filter("acme", &[], FeedStreams::All), &[0, 1]),
            (filter("balto", &[], FeedStreams::All), &[4]),
            (filter("", &["pet.*"], FeedStreams::All), &[0, 2]),
            (filter("", &["pet.#", "order.paid"], FeedStreams::All), &[0, 1, 2, 3]),
            (filter("", &[], one), &[0]),
            (filter("", &[], prefix("pet-")), &[0, 2]),
            (filter("", &[], prefix("")), &[0, 2]),
            (filter("other", &["pet.*"], prefix("pet-1")), &[2]),
        ];
        let events = [
            ("acme", "pet.sold", Some("pet-1")),
            ("acme", "order.paid", None),
            ("other", "pet.sold", Some("pet-10")),
            ("other", "pet.food.sold", None),
            ("balto", "balto.endpoint.disabled", None),
        ];
        for (filter, wanted) in rows {
            let mut sieve = filter.sieve();
            let found: Vec<_> = (0..events.len())
                .filter(|at| sieve.wants_named(events[*at].0, events[*at].1, events[*at].2))
                .collect();
            assert_eq!(found, wanted, "{filter:?}");
        }
    }

    #[test]
    fn known_type_is_compared_once() {
        let filter = filter("", &["a.*", "b"], FeedStreams::All);
        let mut sieve = filter.sieve();
        for _ in 0..10 {
            assert!(sieve.wants_named("acme", "b", None) && !sieve.wants_named("acme", "c", None));
        }
        assert_eq!(sieve.work, 20 + 2 * 2);
    }
}
