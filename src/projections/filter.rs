//! Filters of lists.

use std::sync::Arc;

use super::dead::Letter;
use super::pages::EventTraits;
use crate::domain::{
    DeadReason, EndpointNumber, EventType, IdSet, LastAttemptFilter, Pattern, Position, StreamName, Tenant,
    Timestamp,
};

/// Filters of lists; each list documents those that it uses. `since` (inclusive) and `until`
/// (exclusive) bound the acceptance of the event, or the death of a dead letter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The owner of the list: an event's tenant, or `*` for what belongs to all tenants.
    pub tenant: Option<Tenant>,
    /// Only events of this tenant. Their deliveries may have other owners.
    pub events_of: Option<Tenant>,
    pub endpoint: Option<EndpointNumber>,
    pub event: Option<Position>,
    pub event_type: Option<EventType>,
    /// Pattern of event types.
    pub types: Option<Pattern>,
    /// Events from the first to the second position.
    pub positions: Option<(Position, Position)>,
    pub endpoints: Option<EndpointChoice>,
    /// Endpoints and queues of all tenants. Their deliveries are found by the tenant `*`, and not
    /// by a tenant's name.
    pub shared: Arc<IdSet<EndpointNumber>>,
    pub last_attempt: Option<LastAttemptFilter>,
    /// First characters of the event's id. The state has no ids, so the service applies it.
    pub event_id_start: Option<Box<str>>,
    pub stream: Option<StreamName>,
    /// An event's status word.
    pub event_status: Option<&'static str>,
    /// A delivery's state word (`pending`, `delivered`, `dead`, `cancelled`).
    pub delivery_state: Option<&'static str>,
    pub reason: Option<DeadReason>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// Some endpoints.
#[derive(Clone, Debug)]
pub enum EndpointChoice {
    Listed(Arc<IdSet<EndpointNumber>>),
    /// From the first to the second number.
    Range(EndpointNumber, EndpointNumber),
}

impl EndpointChoice {
    /// The endpoints of both choices.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Listed(listed), other) | (other, Self::Listed(listed)) => {
                Self::Listed(Arc::new(listed.iter().copied().filter(|number| other.has(*number)).collect()))
            }
            (Self::Range(first, last), Self::Range(from, to)) => Self::Range(first.max(from), last.min(to)),
        }
    }

    fn has(&self, endpoint: EndpointNumber) -> bool {
        match self {
            Self::Listed(endpoints) => endpoints.contains(&endpoint),
            Self::Range(first, last) => (*first..=*last).contains(&endpoint),
        }
    }
}

impl Filter {
    pub(super) fn wants_type(&self, event_type: &str) -> bool {
        self.event_type.as_ref().is_none_or(|kind| kind.as_str() == event_type)
            && self.types.as_ref().is_none_or(|pattern| pattern.matches(event_type))
    }

    /// Whether the owner of the list takes events of this tenant.
    fn wants_tenant(&self, of_event: &str) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| {
            tenant.as_str() == of_event || tenant.is_every() && of_event != Tenant::OPERATOR
        }) && self.events_of.as_ref().is_none_or(|tenant| tenant.as_str() == of_event)
    }

    /// The tenant of all wanted events, if they are of one.
    pub(super) fn only_tenant(&self) -> Option<&str> {
        let own = self.tenant.as_ref().filter(|tenant| !tenant.is_every());
        own.or(self.events_of.as_ref()).map(Tenant::as_str)
    }

    /// The endpoint of all wanted deliveries, if they are of one.
    pub(crate) fn only_endpoint(&self) -> Option<EndpointNumber> {
        let single = |choice: &EndpointChoice| match choice {
            EndpointChoice::Listed(listed) => listed.iter().next().filter(|_| listed.len() == 1).copied(),
            EndpointChoice::Range(first, last) => Some(*first).filter(|first| first == last),
        };
        self.endpoint.or_else(|| self.endpoints.as_ref().and_then(single))
    }

    /// Whether an event is too old, and with it all earlier ones: acceptance times follow
    /// positions.
    pub(super) fn has_passed(&self, event: &EventTraits<'_>) -> bool {
        self.since.is_some_and(|since| event.accepted_at < since)
            || self.event.is_some_and(|wanted| event.position < wanted)
            || self.positions.is_some_and(|(first, _)| event.position < first)
    }

    pub(super) fn wants_position(&self, event: Position) -> bool {
        self.event.is_none_or(|position| position == event)
            && self.positions.is_none_or(|(first, last)| (first..=last).contains(&event))
    }

    pub(super) fn wants_endpoint(&self, endpoint: EndpointNumber) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| tenant.is_every() == self.shared.contains(&endpoint))
            && self.endpoint.is_none_or(|wanted| wanted == endpoint)
            && self.endpoints.as_ref().is_none_or(|endpoints| endpoints.has(endpoint))
    }

    pub(super) fn wants_event(&self, event: &EventTraits<'_>) -> bool {
        self.wants_tenant(event.tenant)
            && self.wants_type(event.event_type)
            && self.stream.as_ref().is_none_or(|wanted| event.stream == Some(wanted.as_str()))
            && self.wants_position(event.position)
            && self.wants_time(event.accepted_at)
    }

    pub(super) fn wants_time(&self, at: Timestamp) -> bool {
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }

    pub(super) fn wants_letter(&self, letter: &Letter) -> bool {
        self.wants_tenant(&letter.tenant)
            && self.wants_type(&letter.event_type)
            && self.wants_position(letter.delivery.event)
            && self.wants_endpoint(letter.delivery.endpoint)
            && self.reason.is_none_or(|reason| reason == letter.reason)
            && self.wants_time(letter.died_at)
    }
}
