//! Which deliveries and events a filter wants.

use super::*;

impl Oracle {
    /// Whether the endpoint takes the events of all tenants.
    pub(in crate::outbox::conformance) fn is_shared(&self, endpoint: EndpointNumber) -> bool {
        self.tenants.get(&endpoint).is_some_and(Tenant::is_every)
    }

    pub(super) fn wants_last_attempt(&self, filter: &Filter, key: DeliveryKey) -> bool {
        let last = || self.last_attempt(key, &self.deliveries[&key]);
        filter.last_attempt.is_none_or(|wanted| wanted.wants(&last()))
    }

    /// The deliveries of an endpoint of all tenants belong to no tenant.
    pub(super) fn wants_owner(filter: &Filter, endpoint: EndpointNumber) -> bool {
        let is_shared = filter.shared.contains(&endpoint);
        filter.tenant.as_ref().is_none_or(|tenant| tenant.is_every() == is_shared)
    }

    pub(super) fn wants_event(filter: &Filter, position: Position, event: &Event) -> bool {
        let Filter { tenant, events_of, event: wanted, event_type, stream, since, until, .. } = filter;
        tenant.as_ref().is_none_or(|tenant| tenant.takes_from(&event.tenant))
            && events_of.as_ref().is_none_or(|tenant| *tenant == event.tenant)
            && wanted.is_none_or(|wanted| wanted == position)
            && event_type.as_ref().is_none_or(|wanted| *wanted == event.event_type)
            && stream
                .as_ref()
                .is_none_or(|wanted| event.stream.as_ref().is_some_and(|(stream, _)| stream == wanted))
            && since.is_none_or(|since| event.accepted_at >= since)
            && until.is_none_or(|until| event.accepted_at < until)
    }
}
