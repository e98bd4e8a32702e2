//! The oracle's answers to the questions of the read model.

use std::ops::RangeInclusive;

use super::*;
use crate::domain::{HeldLease, OnDisk};
use crate::projections::acts::AuditFilter;
use crate::projections::erasures::ErasureFacts;
use crate::projections::tenant_hours::TenantHour;

impl ReadModel for Oracle {
    fn applied(&self) -> Position {
        self.last
    }

    fn totals(&self) -> Totals {
        let count = |wanted: fn(DeliveryState) -> bool| {
            self.deliveries.values().filter(|known| wanted(known.state)).count() as u64
        };
        Totals {
            pending: count(|state| state == DeliveryState::Pending),
            dead: count(|state| matches!(state, DeliveryState::Dead(_))),
            events: self.events.len() as u64,
        }
    }

    fn horizon(&self) -> Horizon {
        self.horizon.horizon
    }

    fn size_bytes(&self) -> u64 {
        0
    }

    fn lane(&self, endpoint: EndpointNumber) -> Lane {
        let count = |wanted: fn(&Delivery) -> bool| {
            let own = self.deliveries.iter().filter(|(key, _)| key.endpoint == endpoint);
            own.filter(|(_, known)| wanted(known)).count() as u64
        };
        let health = self.health.get(&endpoint).cloned().unwrap_or_default();
        Lane {
            pending: count(|known| known.state == DeliveryState::Pending),
            waiting: count(|known| known.state == DeliveryState::Pending && !known.is_first()),
            dead: count(|known| matches!(known.state, DeliveryState::Dead(_))),
            failing: health.failures.iter().fold(None, |known, attempt| Some(Failing::after(known, attempt))),
            last_success: health.last_success,
            hold: longest(&health.holds),
            opened: health.opened,
        }
    }

    fn reservation(&self, endpoint: EndpointNumber) -> Option<Reservation> {
        self.latest_reservation(endpoint).map(|(reservation, _)| reservation)
    }

    fn lanes(&self) -> Vec<(EndpointNumber, Lane)> {
        let of_deliveries = self.deliveries.keys().map(|key| key.endpoint);
        let all: BTreeSet<_> = of_deliveries.chain(self.health.keys().copied()).collect();
        all.into_iter().map(|endpoint| (endpoint, self.lane(endpoint))).collect()
    }

    fn sendable(
        &self,
        endpoint: EndpointNumber,
        after: Option<DueKey>,
        limit: usize,
    ) -> (Vec<(DueKey, Progress)>, bool) {
        let own = self.deliveries.iter().filter(|(key, known)| key.endpoint == endpoint && known.sendable);
        let mut all: Vec<_> = own
            .map(|(key, known)| (DueKey { due: known.due, event: key.event }, known.progress))
            .filter(|(key, _)| after.is_none_or(|after| *key > after))
            .collect();
        all.sort_by_key(|(key, _)| *key);
        let is_all = all.len() <= limit;
        all.truncate(limit);
        (all, is_all)
    }

    fn pending(&self, endpoint: EndpointNumber, limit: usize) -> Vec<DeliveryKey> {
        let own = self
            .deliveries
            .iter()
            .filter(|(key, known)| key.endpoint == endpoint && known.state == DeliveryState::Pending);
        own.map(|(key, _)| *key).take(limit).collect()
    }

    fn misplaced(
        &self,
        endpoint: EndpointNumber,
        ordering: Ordering,
        _: Option<Spot>,
        _: usize,
    ) -> Misplaced {
        let own = self
            .deliveries
            .iter()
            .filter(|(key, known)| key.endpoint == endpoint && known.state == DeliveryState::Pending);
        let misplaced =
            own.filter(|(key, known)| known.lease.is_none() && known.queue != self.queue_by(ordering, **key));
        Misplaced { deliveries: misplaced.map(|(key, _)| *key).collect(), next: None }
    }

    fn due_behind(&self, endpoint: EndpointNumber, _: OrderId, now: Timestamp, _: usize) -> DueBehind {
        let mut first = BTreeMap::new();
        for (key, known) in &self.deliveries {
            let waits = known.state == DeliveryState::Pending && !known.is_first() && known.due <= now;
            if key.endpoint == endpoint && waits {
                first.entry(&known.queue).or_insert(known.due);
            }
        }
        DueBehind { oldest: first.into_values().min(), ..DueBehind::default() }
    }

    fn leases(&self, queue: EndpointNumber, after: Position, limit: usize) -> Vec<(Position, HeldLease)> {
        let own = self.deliveries.iter().filter(|(key, _)| key.endpoint == queue && key.event > after);
        own.filter_map(|(key, known)| Some((key.event, known.held()?))).take(limit).collect()
    }

    fn oldest_pending(&self, endpoint: EndpointNumber) -> Option<Timestamp> {
        let sendable = self.sendable(endpoint, None, 1).0.first().map(|(key, _)| key.event);
        let leased = self.leases(endpoint, Position(0), 1).first().map(|(event, _)| *event);
        sendable.into_iter().chain(leased).map(|event| self.events[&event].accepted_at).min()
    }

    fn statistics(&self, endpoint: EndpointNumber, since: Timestamp, until: Timestamp) -> Hour {
        let hour = |at: Timestamp| at.millis() / u64::try_from(HOUR.as_millis()).expect("an hour");
        let within = |at: Timestamp| {
            (hour(since)..=hour(until)).contains(&hour(at)) && hour(at) >= hour(self.hours_from)
        };
        let mut sum = Hour::default();
        let of_endpoint = |(other, at): &&(EndpointNumber, Timestamp)| *other == endpoint && within(*at);
        sum.delivered = self.successes.iter().filter(of_endpoint).count() as u64;
        for one in &self.tries {
            if one.endpoint == endpoint && within(one.at) {
                sum.attempts += 1;
                let millis = one.duration.as_millis();
                let class = LATENCY_CLASSES.iter().position(|end| u128::from(*end) >= millis);
                sum.latency[class.unwrap_or(LATENCY_CLASSES.len())] += 1;
            }
        }
        for (_, _, state) in self.ends.iter().filter(|(other, at, _)| *other == endpoint && within(*at)) {
            sum.dead += u64::from(matches!(state, DeliveryState::Dead(_)));
            sum.cancelled += u64::from(*state == DeliveryState::Cancelled);
        }
        sum
    }

    fn hours(&self, endpoint: EndpointNumber, since: Timestamp, until: Timestamp) -> Vec<(u64, Hour)> {
        let length = u64::try_from(HOUR.as_millis()).expect("an hour");
        let start = |hour: u64| Timestamp::from_millis(hour * length);
        let tries = self.tries.iter().map(|one| one.at);
        let successes = self.successes.iter().map(|(_, at)| *at);
        let times = tries.chain(successes).chain(self.ends.iter().map(|(_, at, _)| *at));
        let hours: BTreeSet<u64> = times.map(|at| at.millis() / length).collect();
        let within = (since.millis() / length)..=(until.millis() / length);
        let counted = hours.into_iter().filter(|hour| within.contains(hour));
        counted
            .map(|hour| (hour, self.statistics(endpoint, start(hour), start(hour))))
            .filter(|(_, counts)| *counts != Hour::default())
            .collect()
    }

    fn tenant_hours(
        &self,
        tenant: Option<&Tenant>,
        since: Timestamp,
        until: Timestamp,
    ) -> Vec<(u64, TenantHour)> {
        let hour = |at: Timestamp| at.millis() / u64::try_from(HOUR.as_millis()).expect("an hour");
        let is_its = |other: &Tenant| tenant.is_none_or(|tenant| tenant == other);
        let mut hours = BTreeMap::<u64, TenantHour>::new();
        for event in self.events.values().filter(|event| is_its(&event.tenant)) {
            hours.entry(hour(event.accepted_at)).or_default().events += 1;
        }
        let of_tenant = |number| self.tenants.get(number).is_some_and(is_its);
        for one in self.tries.iter().filter(|one| of_tenant(&one.endpoint)) {
            hours.entry(hour(one.at)).or_default().attempts += 1;
        }
        let is_kept =
            |number: u64| (hour(since)..=hour(until)).contains(&number) && number >= hour(self.hours_from);
        hours.into_iter().filter(|(number, _)| is_kept(*number)).collect()
    }

    fn type_usage(&self, name: &EventType) -> Vec<(EventVersion, TypeUsage)> {
        let Some(since) = self.types.get(name) else { return Vec::new() };
        let mut usage = BTreeMap::<EventVersion, TypeUsage>::new();
        for event in
            self.events.range(since..).map(|(_, event)| event).filter(|event| event.event_type == *name)
        {
            usage.entry(event.version.clone()).or_default().count(event.accepted_at);
        }
        usage.into_iter().collect()
    }

    fn usage(&self, tenant: &Tenant) -> Usage {
        let own = |number: &EndpointNumber| self.tenants.get(number) == Some(tenant);
        let count = |wanted: fn(DeliveryState) -> bool| {
            let all = self.deliveries.iter().filter(|(key, _)| own(&key.endpoint));
            all.filter(|(_, known)| wanted(known.state)).count() as u64
        };
        let stored: Vec<_> = self.shown().filter(|(_, event)| event.tenant == *tenant).collect();
        Usage {
            endpoints: self.orderings.keys().filter(|number| own(number)).count() as u64,
            keys: self.keys.values().filter(|bound| bound.as_ref() == Some(tenant)).count() as u64,
            pending: count(|state| state == DeliveryState::Pending),
            dead: count(|state| matches!(state, DeliveryState::Dead(_))),
            events: stored.len() as u64,
            bytes: stored.iter().map(|(_, event)| event.stored_bytes()).sum(),
        }
    }

    fn tenants(&self, after: Option<&Tenant>, limit: usize) -> Vec<(Tenant, Usage)> {
        let events = self.shown().map(|(_, event)| &event.tenant);
        let named = self.tenants.values().chain(self.keys.values().flatten()).chain(events);
        let named: BTreeSet<&Tenant> =
            named.filter(|tenant| !tenant.is_every() && after.is_none_or(|after| *tenant > after)).collect();
        let used = named.into_iter().map(|tenant| (tenant.clone(), self.usage(tenant)));
        used.filter(|(_, usage)| *usage != Usage::default()).take(limit).collect()
    }

    fn overdue(&self, cutoffs: Cutoffs, _: u64) -> Overdue {
        let is_overdue = |(key, known): &(&DeliveryKey, &Delivery)| {
            let event = &self.events[&key.event];
            let cutoff = if event.stream.is_some() { cutoffs.stream_events } else { cutoffs.events };
            let pending = known.state == DeliveryState::Pending;
            let due = known.due_or_lease_end();
            pending && cutoff.is_some_and(|cutoff| event.accepted_at < cutoff && due < cutoff)
        };
        let deliveries = self.deliveries.iter().filter(is_overdue).map(|(key, _)| *key).collect();
        Overdue { deliveries, next: None }
    }

    fn knows(&self, event: Position) -> bool {
        self.events.contains_key(&event) && !self.forgotten.contains(&event)
    }

    fn erasure(&self, event: Position) -> Option<ErasureFacts> {
        let at = self.events.get(&event).filter(|_| self.knows(event))?.erased_at?;
        let on_disk = if self.left_disk.contains(&event) { OnDisk::Done } else { OnDisk::Pending };
        Some(ErasureFacts { at, on_disk })
    }

    fn delivery(&self, key: DeliveryKey) -> Option<DeliveryFacts> {
        let known = self.deliveries.get(&key).filter(|_| self.knows(key.event))?;
        Some(self.facts(key, known))
    }

    fn deliveries_of(&self, event: Position) -> Vec<DeliveryFacts> {
        let all = self.of_event(event).filter(|_| self.knows(event));
        all.map(|(key, known)| self.facts(*key, known)).collect()
    }

    fn dead_letter(&self, key: DeliveryKey) -> Option<DeadLetter> {
        let facts = self.delivery(key)?;
        let DeliveryState::Dead(reason) = facts.state else { return None };
        let at = facts.settled_at?;
        Some((facts, reason, at))
    }

    fn events(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<Position> {
        let own =
            |position| self.of_event(position).filter(|(key, _)| !filter.shared.contains(&key.endpoint));
        let status = |position| event_status(own(position).map(|(_, known)| known.state)).as_str();
        let wanted = self.shown().rev().filter(|(position, event)| {
            Self::wants_event(filter, *position, event)
                && filter.event_status.is_none_or(|wanted| wanted == status(*position))
        });
        let all = wanted.map(|(position, _)| position).collect();
        page(all, after, limit, |position| Cursor::at(*position))
    }

    fn feed(&self, filter: &FeedFilter, after: Position, until: Position, limit: usize) -> FeedStep {
        let wanted = |event: &Event| {
            let stream = event.stream.as_ref().map(|(name, _)| name.as_str());
            let of_stream = match &filter.streams {
                FeedStreams::All => true,
                FeedStreams::One(name) => stream == Some(name.as_str()),
                FeedStreams::Prefix(prefix) => stream.is_some_and(|stream| stream.starts_with(&**prefix)),
            };
            let reserved = filter.tenant.is_none() && event.tenant.as_str() == Tenant::OPERATOR;
            let of_tenant = filter.tenant.as_ref().is_none_or(|tenant| *tenant == event.tenant);
            of_stream && of_tenant && !reserved && want(&filter.types, &event.event_type)
        };
        let until = until.min(self.last);
        let events = self.shown().filter(|(at, event)| *at > after && *at <= until && wanted(event));
        let events: Vec<_> = events.map(|(at, _)| at).take(limit).collect();
        let looked_at = if events.len() == limit { events[limit - 1] } else { until.max(after) };
        FeedStep { events, looked_at }
    }

    fn past(
        &self,
        filter: &Filter,
        endpoint: EndpointNumber,
        after: Option<Cursor>,
        limit: usize,
    ) -> Found<Past> {
        let wanted = self.shown().rev().filter(|(at, event)| Self::wants_event(filter, *at, event));
        let wanted: Vec<_> = wanted.map(|(position, _)| position).collect();
        page(self.past_of(endpoint, &wanted), after, limit, |past| Cursor::at(past.position))
    }

    fn past_of(&self, endpoint: EndpointNumber, events: &[Position]) -> Vec<Past> {
        let is_wanted = |position: Position| events.binary_search_by(|one| position.cmp(one)).is_ok();
        let past = |(position, event): (Position, &Arc<Event>)| Past {
            position,
            event_type: event.event_type.as_str().into(),
            state: self.deliveries.get(&DeliveryKey { event: position, endpoint }).map(|known| known.state),
            is_erased: event.erased_at.is_some(),
        };
        self.shown().rev().filter(|(position, _)| is_wanted(*position)).map(past).collect()
    }

    fn deliveries(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<DeliveryFacts> {
        let mut all = Vec::new();
        for (position, event) in self.shown().rev() {
            if !Self::wants_event(filter, position, event) {
                continue;
            }
            let of_event: Vec<_> = self.of_event(position).collect();
            for (key, known) in of_event.into_iter().rev() {
                if Self::wants_owner(filter, key.endpoint)
                    && filter.endpoint.is_none_or(|wanted| wanted == key.endpoint)
                    && filter.delivery_state.is_none_or(|wanted| wanted == known.state.as_str())
                    && self.wants_last_attempt(filter, *key)
                {
                    all.push(self.facts(*key, known));
                }
            }
        }
        page(all, after, limit, |facts| Cursor {
            endpoint: facts.key.endpoint,
            ..Cursor::at(facts.key.event)
        })
    }

    fn dead_letters(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<Letter> {
        let wanted = |letter: &Letter| {
            let of_event = letter.tenant.parse().expect("a legal tenant");
            filter.tenant.as_ref().is_none_or(|wanted| wanted.takes_from(&of_event))
                && Self::wants_owner(filter, letter.delivery.endpoint)
                && filter.event_type.as_ref().is_none_or(|wanted| wanted.as_str() == &*letter.event_type)
                && filter.endpoint.is_none_or(|wanted| wanted == letter.delivery.endpoint)
                && filter.reason.is_none_or(|wanted| wanted == letter.reason)
                && filter.since.is_none_or(|since| letter.died_at >= since)
                && filter.until.is_none_or(|until| letter.died_at < until)
                && self.wants_last_attempt(filter, letter.delivery)
        };
        let all = self.letters().into_iter().filter(wanted).collect();
        page(all, after, limit, |letter| Cursor {
            position: letter.death,
            endpoint: letter.delivery.endpoint,
            event: letter.delivery.event,
        })
    }

    fn audit_entries(&self, filter: &AuditFilter, after: Option<Cursor>, limit: usize) -> Found<Position> {
        let before = after.map_or(Position(u64::MAX), |cursor| cursor.position);
        let newest_first = self.jobs.acts.range(..before).rev();
        let wanted = newest_first.filter(|(_, entry)| filter.wants(entry));
        let mut items: Vec<_> = wanted.map(|(position, _)| *position).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).copied().map(Cursor::at);
        Found { items, next }
    }

    fn request(&self, scope: &[u8; 16]) -> Option<Known> {
        self.requests.get(scope).copied()
    }

    fn stream(&self, tenant: &Tenant, stream: &StreamName) -> Option<Head> {
        let head = self.streams.get(&(tenant.clone(), stream.clone()))?;
        Some(Head { first_version: self.readable(tenant, stream).0, ..*head })
    }

    fn stream_positions(
        &self,
        tenant: &Tenant,
        stream: &StreamName,
        versions: RangeInclusive<u64>,
    ) -> Vec<(u64, Position)> {
        let (_, all) = self.readable(tenant, stream);
        let wanted = all.into_iter().filter(|(version, _)| versions.contains(version));
        wanted.map(|(version, (position, _))| (version, position)).collect()
    }

    fn stream_version_before(&self, tenant: &Tenant, stream: &StreamName, until: Timestamp) -> u64 {
        let (first, all) = self.readable(tenant, stream);
        let Some(head) = self.streams.get(&(tenant.clone(), stream.clone())) else { return 0 };
        if head.last_at < until {
            return head.version;
        }
        let before = all.iter().filter(|(_, (_, event))| event.accepted_at < until);
        before.map(|(version, _)| *version).max().unwrap_or(first - 1)
    }

    fn streams(
        &self,
        tenant: &Tenant,
        prefix: &str,
        after: Option<&StreamName>,
        limit: usize,
    ) -> Vec<(StreamName, Head)> {
        let names = self.streams.keys().filter(|(owner, stream)| {
            owner == tenant && stream.as_str().starts_with(prefix) && after.is_none_or(|after| stream > after)
        });
        let heads = names.filter_map(|(_, stream)| Some((stream.clone(), self.stream(tenant, stream)?)));
        heads.take(limit).collect()
    }
}

impl ConsumerReads for Oracle {
    fn consumer(&self, key: &ConsumerKey) -> Option<ConsumerPlace> {
        self.consumers.all.get(key).map(|(_, place)| *place)
    }

    /// Counts all events. Ignores the limit.
    fn lag(&self, consumer: &Consumer, after: Position, _: usize) -> Lag {
        let ahead =
            self.shown().filter(|(position, event)| *position > after && consumers::reads(consumer, event));
        let times: Vec<_> = ahead.map(|(_, event)| event.accepted_at).collect();
        Lag { events: times.len() as u64, since: times.first().copied(), is_cut: false }
    }
}
