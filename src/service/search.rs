//! Search of deliveries by an id, or by the start of one.
//!
//! Owns the meaning of the text. It becomes bounds of the filter that the lists have anyway: a
//! range of positions, or some endpoints. A generated event id has the time of its event, so its
//! start is a range, too. The state does not have the ids of events, so they are compared after the
//! record of the event was read.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use ulid::Ulid;

use crate::context::Context;
use crate::context::home::Home;
use crate::domain::{
    DeliveryKey, DeliverySearch, EndpointNumber, Event, IdMeaning, IdSet, Position, Tenant, Timestamp,
};
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::projections::reads::{EndpointChoice, Filter};
use crate::service::events::Events;
use crate::service::pages::Pages;
use crate::service::types::Scope;

/// Searches deliveries.
#[derive(Clone, Copy)]
pub struct Searches<'a>(pub &'a Context);

/// Digits of an event's position in a delivery's id; those of the endpoint's number follow.
const POSITION_DIGITS: usize = 16;
const ENDPOINT_DIGITS: usize = 8;
/// Characters of a ULID.
const ULID_CHARACTERS: usize = 26;

/// Whether the event's id begins as a filter wants.
pub(crate) fn has_id_start(event: &Event, start: Option<&str>) -> bool {
    start.is_none_or(|start| event.id.as_str().starts_with(start))
}

/// The endpoints of both choices.
fn and(one: Option<EndpointChoice>, other: EndpointChoice) -> Option<EndpointChoice> {
    Some(match one {
        Some(one) => one.and(other),
        None => other,
    })
}

/// The events of an endpoint of all tenants are anywhere.
fn scope_of(filter: &Filter) -> Scope {
    Scope(filter.tenant.clone().filter(|tenant| !tenant.is_every()))
}

impl Searches<'_> {
    /// Adds the conditions of a search to a filter. `None` if no delivery has such an id.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn narrow(
        self,
        search: &DeliverySearch,
        filter: Filter,
    ) -> Result<Option<Filter>, Unavailable> {
        let meaning = self.meaning(search, &filter).await?;
        Ok(self.with_meaning(search, meaning, filter))
    }

    /// Looks an id up. One that a publisher chose is that of the filter's tenant or endpoint, or of
    /// the default tenant. `None` for a search without an id.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub(crate) async fn meaning(
        self,
        search: &DeliverySearch,
        filter: &Filter,
    ) -> Result<Option<IdMeaning>, Unavailable> {
        let Some(text) = &search.id_start else { return Ok(None) };
        let scope = scope_of(filter);
        let tenant = self.tenant_of(filter);
        if let Some((position, _)) = Events(self.0).find(&scope, &tenant, text).await? {
            return Ok(Some(IdMeaning::Event(position)));
        }
        let text = text.as_str();
        if let Some(digits) = text.strip_prefix("dlv_") {
            let is_known = delivery_range(digits).is_some();
            return Ok(Some(if is_known { IdMeaning::Deliveries } else { IdMeaning::Nothing }));
        }
        if let Some(range) = text.strip_prefix("evt_").and_then(ulid_times) {
            let found = self.accepted_between(range).await?;
            let events = |(first, last)| IdMeaning::Events(first, last);
            return Ok(Some(found.map_or(IdMeaning::Nothing, events)));
        }
        let is_known = !self.endpoints(&scope, text).is_empty();
        Ok(Some(if is_known { IdMeaning::Endpoints } else { IdMeaning::Nothing }))
    }

    /// Adds the conditions of a search, whose id has this meaning, to a filter. `None` if no
    /// delivery has such an id.
    pub(crate) fn with_meaning(
        self,
        search: &DeliverySearch,
        meaning: Option<IdMeaning>,
        mut filter: Filter,
    ) -> Option<Filter> {
        filter.last_attempt = search.last_attempt;
        let text = search.id_start.as_ref().map(|start| start.as_str());
        let (Some(text), Some(meaning)) = (text, meaning) else { return Some(filter) };
        match meaning {
            IdMeaning::Event(position) => filter.positions = Some((position, position)),
            IdMeaning::Events(first, last) => {
                filter.positions = Some((first, last));
                filter.event_id_start = Some(text.into());
            }
            IdMeaning::Deliveries => {
                let (events, endpoints) = text.strip_prefix("dlv_").and_then(delivery_range)?;
                filter.positions = Some(events);
                filter.endpoints = and(filter.endpoints, endpoints);
            }
            IdMeaning::Endpoints => {
                let endpoints = self.endpoints(&scope_of(&filter), text);
                filter.endpoints = and(filter.endpoints, EndpointChoice::Listed(Arc::new(endpoints)));
            }
            IdMeaning::Nothing => return None,
        }
        Some(filter)
    }

    fn tenant_of(self, filter: &Filter) -> Tenant {
        let of_endpoint = |number| Pages(self.0).owner_of(number);
        let owner = filter.tenant.clone().or_else(|| filter.endpoint.and_then(of_endpoint));
        owner.unwrap_or_else(Tenant::every).or_default()
    }

    /// The deliveries whose event has an id that begins as the filter wants.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub(crate) async fn with_id_start(
        self,
        deliveries: Vec<DeliveryKey>,
        filter: &Filter,
    ) -> Result<Vec<DeliveryKey>, Unavailable> {
        let Some(start) = filter.event_id_start.as_deref() else { return Ok(deliveries) };
        let mut found = Vec::new();
        let add = |key, event: Option<Arc<Event>>| {
            found.extend(event.filter(|event| has_id_start(event, Some(start))).map(|_| key));
            ControlFlow::Continue(())
        };
        self.0.visit_events(deliveries, |key| key.event, add).await?;
        Ok(found)
    }

    /// Live and deleted endpoints of the scope whose id starts so.
    fn endpoints(self, scope: &Scope, start: &str) -> IdSet<EndpointNumber> {
        self.0.outbox_of(scope.0.as_ref()).registry(|registry| {
            let matches = |number: &EndpointNumber| {
                registry.id_of(*number).is_some_and(|id| id.as_str().starts_with(start))
            };
            registry.numbers_of(scope.0.as_ref()).filter(matches).collect()
        })
    }

    /// The first and the last position of events accepted in this time.
    async fn accepted_between(
        self,
        (since, until): (Timestamp, Timestamp),
    ) -> Result<Option<(Position, Position)>, Unavailable> {
        let found = self
            .0
            .outbox_of(Home::All)
            .read(move |state| (newest_before(state, since), newest_before(state, until)))
            .await?;
        let (before, last) = found;
        Ok(last.filter(|last| Some(*last) > before).map(|last| (before.unwrap_or_default().next(), last)))
    }
}

/// The newest event that was accepted before this time.
fn newest_before(state: &dyn ReadModel, until: Timestamp) -> Option<Position> {
    let filter = Filter { until: Some(until), ..Filter::default() };
    state.events(&filter, None, 1).items.first().copied()
}

/// The events and endpoints of deliveries whose id has these first digits.
fn delivery_range(digits: &str) -> Option<((Position, Position), EndpointChoice)> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() > POSITION_DIGITS + ENDPOINT_DIGITS || !digits.bytes().all(is_digit) {
        return None;
    }
    let (events, endpoints) = digits.split_at(digits.len().min(POSITION_DIGITS));
    let bound = |digits: &str, length: usize, fill: &str| {
        let text = format!("{digits}{}", fill.repeat(length - digits.len()));
        u64::from_str_radix(&text, 16).ok()
    };
    let event = |fill| bound(events, POSITION_DIGITS, fill).map(Position);
    let endpoint = |fill| {
        let number = bound(endpoints, ENDPOINT_DIGITS, fill)?;
        u32::try_from(number).ok().map(EndpointNumber)
    };
    let choice = EndpointChoice::Range(endpoint("0")?, endpoint("f")?);
    Some(((event("0")?, event("f")?), choice))
}

/// The times of ULIDs with these first characters: from, and before.
fn ulid_times(start: &str) -> Option<(Timestamp, Timestamp)> {
    let rest = ULID_CHARACTERS.checked_sub(start.len())?;
    let time = |fill: &str| {
        let ulid = Ulid::from_string(&format!("{start}{}", fill.repeat(rest))).ok()?;
        Some(Timestamp::from_millis(ulid.timestamp_ms()))
    };
    if start.is_empty() {
        return Some((Timestamp::ZERO, Timestamp::MAX));
    }
    // Of the first character, a ULID uses three bits.
    if !matches!(start.as_bytes()[0], b'0'..=b'7') {
        return None;
    }
    Some((time("0")?, time("Z")?.plus(Duration::from_millis(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_of_a_delivery_id_is_a_range() {
        let range = |digits| {
            delivery_range(digits).map(|(events, endpoints)| match endpoints {
                EndpointChoice::Range(first, last) => (events.0.0, events.1.0, first.0, last.0),
                EndpointChoice::Listed(_) => panic!("a list"),
            })
        };
        assert_eq!(range(""), Some((0, u64::MAX, 0, u32::MAX)));
        assert_eq!(range("00000000000000a"), Some((0xa0, 0xaf, 0, u32::MAX)));
        assert_eq!(range("00000000000000a1"), Some((0xa1, 0xa1, 0, u32::MAX)));
        assert_eq!(range("00000000000000a10000000"), Some((0xa1, 0xa1, 0, 0xf)));
        assert_eq!(range("00000000000000a100000007"), Some((0xa1, 0xa1, 7, 7)));
        for bad in ["00000000000000a1000000070", "A", "g", "-"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

    #[test]
    fn start_of_an_event_id_is_a_time_range() {
        let ulid = Ulid::from_parts(1_773_398_100_123, 7).to_string();
        for length in 1..=ULID_CHARACTERS {
            let (since, until) = ulid_times(&ulid[..length]).unwrap();
            assert!((since.millis()..until.millis()).contains(&1_773_398_100_123), "{length}");
            assert_eq!(until.millis() - since.millis() == 1, length >= 10, "{length}");
        }
        assert_eq!(ulid_times("").unwrap().0, Timestamp::ZERO);
        for bad in ["8", "U", "-", &"0".repeat(27)] {
            assert_eq!(ulid_times(bad), None, "{bad}");
        }
    }
}
