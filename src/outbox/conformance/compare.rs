//! Compares every answer of a read model with the oracle's.

mod streams;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use super::jobs::compare_acts;
use super::oracle::Oracle;
use crate::domain::{
    Audience, DeadReason, DeliveryKey, DeliveryState, DeliveryStatus, DueKey, EndpointNumber, ErrorClass,
    EventStatus, EventType, EventVersion, HeldLease, IdSet, LastAttemptFilter, Ordering, Position, Progress,
    ShownClass, StreamName, Tenant, Timestamp,
};
use crate::limits::PAGE_ITEMS_MAX;
use crate::outbox::{ConsumerReads as _, ReadModel};
use crate::projections::counters::Lane;
use crate::projections::reads::{Cursor, Filter, Found};
use crate::projections::retention::Cutoffs;
use crate::projections::stats::Hour;
use crate::projections::tenant_hours::TenantHour;
use crate::projections::type_usage::TypeUsage;
use crate::projections::usage::Usage;

/// Maximum number of pages of one list. More pages indicate an endless list.
const PAGES_MAX: usize = 10_000;

/// Conditions of a comparison.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Current time, at or after the last commit. Rows that expired before it may be deleted.
    pub(crate) now: Timestamp,
    /// The state was rebuilt from a journal without the records that retention removed.
    pub(crate) rebuilt: bool,
    /// Items per page.
    pub(crate) limit: usize,
    /// Compares one of this many events, filters and streams, chosen by the time. 1 compares all.
    pub(crate) share: u64,
}

impl Moment {
    fn picks(&self, number: u64) -> bool {
        number % self.share == self.now.millis() % self.share
    }
}

/// # Errors
/// The first difference.
pub(crate) fn compare(oracle: &Oracle, found: &dyn ReadModel, moment: Moment) -> Result<(), String> {
    // Retention deletes step by step, and a rebuilt state has again what the journal still has.
    let mut oracle = oracle.clone();
    oracle.forgotten.retain(|position| !found.knows(*position));
    if moment.rebuilt {
        oracle.hours_from = Timestamp::ZERO;
    }
    let oracle = &oracle;
    same("the position", &oracle.applied(), &found.applied())?;
    same("the horizon", &oracle.horizon(), &found.horizon())?;
    for position in (0..=oracle.last.0 + 1).filter(|number| moment.picks(*number)).map(Position) {
        event(oracle, found, position, moment)?;
    }
    for endpoint in endpoints(oracle) {
        lane(oracle, found, endpoint, moment)?;
        statistics(oracle, found, endpoint, moment)?;
    }
    overdue(oracle, found, moment)?;
    same("endpoints with counters", &with_counters(oracle), &with_counters(found))?;
    totals(oracle, found, moment)?;
    let filters = filters(oracle).into_iter().enumerate();
    for (number, filter) in filters.filter(|(number, _)| moment.picks(*number as u64)) {
        // Uses small pages for the unfiltered list and for a sample of the others, because they are
        // slow.
        let small = number == 0 || number as u64 % 8 == moment.now.millis() % 8;
        lists(oracle, found, &filter, if small { moment.limit } else { PAGE_ITEMS_MAX })?;
    }
    streams::feeds(oracle, found, moment)?;
    usage(oracle, found)?;
    tenant_hours(oracle, found, moment)?;
    type_usage(oracle, found, moment)?;
    requests(oracle, found, moment)?;
    consumers(oracle, found)?;
    compare_acts(oracle, found, moment)?;
    streams::streams(oracle, found, moment)
}

pub(super) fn same<T: PartialEq + Debug>(what: &str, expected: &T, found: &T) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, not {expected:?}"))
}

fn totals(oracle: &Oracle, found: &dyn ReadModel, moment: Moment) -> Result<(), String> {
    let (expected, found) = (oracle.totals(), found.totals());
    same("pending and dead in all", &(expected.pending, expected.dead), &(found.pending, found.dead))?;
    if moment.rebuilt && found.events <= expected.events {
        return Ok(());
    }
    same("events in all", &expected.events, &found.events)
}

/// Endpoints with deliveries, and one without.
fn endpoints(oracle: &Oracle) -> impl Iterator<Item = EndpointNumber> + use<> {
    let most = oracle.lanes().last().map_or(0, |(endpoint, _)| endpoint.0);
    (1..=most + 1).map(EndpointNumber)
}

fn with_counters(model: &dyn ReadModel) -> Vec<EndpointNumber> {
    let counts = |lane: &Lane| lane.pending + lane.waiting + lane.dead > 0;
    model.lanes().into_iter().filter(|(_, lane)| counts(lane)).map(|(endpoint, _)| endpoint).collect()
}

fn lane(
    oracle: &Oracle,
    found: &dyn ReadModel,
    endpoint: EndpointNumber,
    moment: Moment,
) -> Result<(), String> {
    let (expected, counted) = (oracle.lane(endpoint), found.lane(endpoint));
    let of_all = found.lanes().into_iter().find(|(other, _)| *other == endpoint);
    same("a lane alone and among all", &counted, &of_all.map(|(_, lane)| lane).unwrap_or_default())?;
    let counts =
        |lane: Lane| (lane.pending, lane.waiting, lane.dead, lane.last_success, lane.hold, lane.opened);
    same(&format!("the counts of {endpoint:?}"), &counts(expected), &counts(counted))?;
    // Retention may have removed the failures.
    let is_less = || match (counted.failing, expected.failing) {
        (None, _) => true,
        (Some(counted), Some(expected)) => counted.since >= expected.since,
        (Some(_), None) => false,
    };
    if !(moment.rebuilt && is_less()) {
        same(&format!("the health of {endpoint:?}"), &expected.failing, &counted.failing)?;
    }
    leases(oracle, found, endpoint, moment)?;
    let what = format!("the reservation of {endpoint:?}");
    same(&what, &oracle.reservation(endpoint), &found.reservation(endpoint))?;
    let all = sendable(oracle, found, endpoint, moment)?;
    for limit in [1, 3, usize::MAX] {
        let (mut read, mut after) = (Vec::new(), None);
        loop {
            let (entries, is_all) = found.sendable(endpoint, after, limit);
            after = entries.last().map(|(key, _)| *key).or(after);
            if entries.len() > limit || (entries.is_empty() && !is_all) {
                return Err(format!("{} entries for a limit of {limit}", entries.len()));
            }
            read.extend(entries);
            if is_all {
                break;
            }
        }
        same(&format!("the lane of {endpoint:?} in steps of {limit}"), &all, &read)?;
    }
    let pending: BTreeSet<_> = oracle.pending(endpoint, usize::MAX).into_iter().collect();
    for limit in [2, usize::MAX] {
        let read = found.pending(endpoint, limit);
        let distinct: BTreeSet<_> = read.iter().copied().collect();
        let enough = distinct.len() == read.len() && read.len() == pending.len().min(limit);
        if !enough || !distinct.is_subset(&pending) {
            return Err(format!("pending for {endpoint:?}: {read:?} of {pending:?}"));
        }
    }
    let what = format!("the oldest of {endpoint:?}");
    same(&what, &oracle.oldest_pending(endpoint), &found.oldest_pending(endpoint))?;
    misplaced(oracle, found, endpoint)?;
    due_behind(oracle, found, endpoint, &all, moment)
}

/// Compares the deliveries in the wrong queue, for each ordering.
fn misplaced(oracle: &Oracle, found: &dyn ReadModel, endpoint: EndpointNumber) -> Result<(), String> {
    for ordering in [Ordering::None, Ordering::Key, Ordering::Endpoint] {
        let expected = oracle.misplaced(endpoint, ordering, None, usize::MAX).deliveries;
        for limit in [1, 3, usize::MAX] {
            let (mut all, mut after) = (Vec::new(), None);
            loop {
                let step = found.misplaced(endpoint, ordering, after, limit);
                all.extend(step.deliveries);
                after = step.next;
                if after.is_none() {
                    break;
                }
            }
            all.sort_unstable();
            same(&format!("what {ordering:?} finds misplaced at {endpoint:?}"), &expected, &all)?;
        }
    }
    Ok(())
}

/// Compares the due deliveries behind the sendable ones.
fn due_behind(
    oracle: &Oracle,
    found: &dyn ReadModel,
    endpoint: EndpointNumber,
    sendable: &[(DueKey, Progress)],
    moment: Moment,
) -> Result<(), String> {
    let mut oracle = oracle.clone();
    for (key, known) in oracle.deliveries.iter_mut().filter(|(key, _)| key.endpoint == endpoint) {
        known.sendable = sendable.iter().any(|(other, _)| other.event == key.event);
    }
    for now in [moment.now, moment.now.plus(Duration::from_secs(3_600))] {
        let expected = oracle.due_behind(endpoint, 0, now, usize::MAX).oldest;
        for limit in [1, 5, usize::MAX] {
            let (mut oldest, mut next) = (None, Some(0));
            while let Some(from) = next {
                let step = found.due_behind(endpoint, from, now, limit);
                if step.next.is_some_and(|next| next <= from) {
                    return Err(format!(
                        "a look behind {endpoint:?} goes on at {:?} after {from}",
                        step.next
                    ));
                }
                oldest = oldest.into_iter().chain(step.oldest).min();
                next = step.next;
            }
            same(&format!("what is due behind others at {endpoint:?}"), &expected, &oldest)?;
        }
    }
    Ok(())
}

/// Compares the sendable deliveries of a lane. After a rebuild without removed records, a queue may
/// have a different first delivery: then any one delivery of each queue is valid.
fn sendable(
    oracle: &Oracle,
    found: &dyn ReadModel,
    endpoint: EndpointNumber,
    moment: Moment,
) -> Result<Vec<(DueKey, Progress)>, String> {
    let expected = oracle.sendable(endpoint, None, usize::MAX).0;
    if !moment.rebuilt {
        return Ok(expected);
    }
    let all = found.sendable(endpoint, None, usize::MAX).0;
    let of = |key: &DueKey| oracle.deliveries.get(&DeliveryKey { event: key.event, endpoint });
    for (key, progress) in &all {
        let known = of(key).filter(|known| known.state == DeliveryState::Pending);
        if known.is_none_or(|known| known.due != key.due || known.progress != *progress) {
            return Err(format!("{key:?} is in the lane of {endpoint:?}, and is {known:?}"));
        }
    }
    let queues = |all: &[(DueKey, Progress)]| {
        let mut queues: Vec<_> =
            all.iter().map(|(key, _)| of(key).and_then(|known| known.queue.clone())).collect();
        queues.sort_unstable();
        queues
    };
    same(&format!("the queues of {endpoint:?}"), &queues(&expected), &queues(&all))?;
    Ok(all)
}

fn statistics(
    oracle: &Oracle,
    found: &dyn ReadModel,
    endpoint: EndpointNumber,
    moment: Moment,
) -> Result<(), String> {
    for (back, length) in [(0, 0), (1, 1), (5, 2), (10_000, 10_000)] {
        let since = moment.now.minus(Duration::from_secs(back * 3_600));
        let until = since.plus(Duration::from_secs(length * 3_600));
        let expected = oracle.statistics(endpoint, since, until);
        let counted = found.statistics(endpoint, since, until);
        if !(moment.rebuilt && is_part(&counted, &expected)) {
            same(&format!("what {endpoint:?} did {back} hours ago"), &expected, &counted)?;
            let hours = oracle.hours(endpoint, since, until);
            same("the hours of a window", &hours, &found.hours(endpoint, since, until))?;
        }
        let mut sum = Hour::default();
        found.hours(endpoint, since, until).iter().for_each(|(_, hour)| sum.add(hour));
        same("the sum of the hours", &counted, &sum)?;
    }
    Ok(())
}

/// Compares the usage of each tenant, alone and in a list.
fn type_usage(oracle: &Oracle, found: &dyn ReadModel, moment: Moment) -> Result<(), String> {
    for name in oracle.types.keys() {
        let (expected, found) = (oracle.type_usage(name), found.type_usage(name));
        // A rebuilt state has not seen the events that retention removed.
        let count = |of: &[(EventVersion, TypeUsage)]| of.iter().map(|(_, usage)| usage.events).sum::<u64>();
        if !(moment.rebuilt && count(&found) <= count(&expected)) {
            same(&format!("the usage of event type {name}"), &expected, &found)?;
        }
    }
    let never: EventType = "never".parse().expect("legal");
    same("the usage of an unknown type", &Vec::new(), &found.type_usage(&never))
}

fn usage(oracle: &Oracle, found: &dyn ReadModel) -> Result<(), String> {
    let expected = oracle.tenants(None, usize::MAX);
    for (tenant, usage) in &expected {
        same(&format!("the usage of {tenant}"), usage, &found.usage(tenant))?;
    }
    let never: Tenant = "never".parse().expect("legal");
    same("the usage of an unknown tenant", &Usage::default(), &found.usage(&never))?;
    for limit in [1, usize::MAX] {
        let mut all: Vec<(Tenant, Usage)> = Vec::new();
        loop {
            let after = all.last().map(|(tenant, _)| tenant.clone());
            let page = found.tenants(after.as_ref(), limit);
            if page.is_empty() {
                break;
            }
            all.extend(page);
        }
        same(&format!("the tenants in steps of {limit}"), &expected, &all)?;
    }
    Ok(())
}

/// Compares the hours of each tenant and of all together. A rebuilt state lacks the records that
/// retention removed.
fn tenant_hours(oracle: &Oracle, found: &dyn ReadModel, moment: Moment) -> Result<(), String> {
    let named = oracle.tenants(None, usize::MAX).into_iter().map(|(tenant, _)| Some(tenant));
    for tenant in named.chain([None]) {
        for (back, length) in [(0, 0), (3, 2), (10_000, 10_000)] {
            let since = moment.now.minus(Duration::from_secs(back * 3_600));
            let until = since.plus(Duration::from_secs(length * 3_600));
            let expected = oracle.tenant_hours(tenant.as_ref(), since, until);
            let counted = found.tenant_hours(tenant.as_ref(), since, until);
            let sum = |hours: &[(u64, TenantHour)]| {
                let mut sum = TenantHour::default();
                hours.iter().for_each(|(_, counts)| sum.add(counts));
                sum
            };
            if !(moment.rebuilt && sum(&expected).covers(&sum(&counted))) {
                same(&format!("the hours of {tenant:?} {back} hours ago"), &expected, &counted)?;
            }
        }
    }
    Ok(())
}

fn overdue(oracle: &Oracle, found: &dyn ReadModel, moment: Moment) -> Result<(), String> {
    let hours = |hours: u64| Some(moment.now.minus(Duration::from_secs(hours * 3_600)));
    for (events, stream_events) in [(None, None), (hours(0), None), (hours(1), hours(3)), (None, hours(2))] {
        let cutoffs = Cutoffs { events, stream_events };
        let (mut all, mut page) = (Vec::new(), Some(0));
        while let Some(from) = page {
            let step = found.overdue(cutoffs, from);
            all.extend(step.deliveries);
            if step.next.is_some_and(|next| next <= from) {
                return Err(format!("what is overdue goes on at {:?} after {from}", step.next));
            }
            page = step.next;
        }
        all.sort_unstable();
        same(&format!("what is overdue by {cutoffs:?}"), &oracle.overdue(cutoffs, 0).deliveries, &all)?;
    }
    Ok(())
}

/// Compares the leases of a queue, read in pages.
fn leases(
    oracle: &Oracle,
    found: &dyn ReadModel,
    queue: EndpointNumber,
    moment: Moment,
) -> Result<(), String> {
    let mut read: Vec<(Position, HeldLease)> = Vec::new();
    loop {
        let after = read.last().map_or(Position(0), |(event, _)| *event);
        let page = found.leases(queue, after, moment.limit);
        if page.is_empty() {
            let expected = oracle.leases(queue, Position(0), usize::MAX);
            return same(&format!("the leases of {queue:?}"), &expected, &read);
        }
        read.extend(page);
    }
}

fn is_part(part: &Hour, of: &Hour) -> bool {
    let numbers = |hour: &Hour| {
        let mut all = vec![hour.attempts, hour.delivered, hour.dead, hour.cancelled];
        all.extend(hour.latency);
        all
    };
    numbers(part).iter().zip(numbers(of)).all(|(part, of)| *part <= of)
}

fn event(oracle: &Oracle, found: &dyn ReadModel, position: Position, moment: Moment) -> Result<(), String> {
    same(&format!("whether {position} is known"), &oracle.knows(position), &found.knows(position))?;
    let erased_at = |model: &dyn ReadModel| model.erasure(position).map(|erasure| erasure.at);
    same(&format!("the erasure of {position}"), &erased_at(oracle), &erased_at(found))?;
    let all = found.deliveries_of(position);
    same(&format!("the deliveries of {position}"), &oracle.deliveries_of(position), &all)?;
    // Single lookups for a sample of the events.
    let one_by_one = position.0 % 6 == moment.now.millis() % 6;
    for endpoint in endpoints(oracle).filter(|_| one_by_one) {
        let key = DeliveryKey { event: position, endpoint };
        same(&format!("{key:?}"), &oracle.delivery(key), &found.delivery(key))?;
        same(&format!("the death of {key:?}"), &oracle.dead_letter(key), &found.dead_letter(key))?;
    }
    Ok(())
}

/// One filter of each kind, and some combinations of two.
fn filters(oracle: &Oracle) -> Vec<Filter> {
    let filter = Filter::default;
    let is_shared = |number: &EndpointNumber| oracle.is_shared(*number);
    let shared: Arc<IdSet<_>> = Arc::new(endpoints(oracle).filter(is_shared).collect());
    let mut all =
        vec![filter(), Filter { tenant: Some(Tenant::every()), shared: shared.clone(), ..filter() }];
    let tenants: BTreeSet<&Tenant> = oracle.events.values().map(|event| &event.tenant).collect();
    let types: BTreeSet<&EventType> = oracle.events.values().map(|event| &event.event_type).collect();
    let streams: BTreeSet<&StreamName> = oracle.streams.keys().map(|(_, stream)| stream).collect();
    for tenant in tenants {
        all.push(Filter { tenant: Some(tenant.clone()), shared: shared.clone(), ..filter() });
        // The endpoint has events of several tenants, by replays that the API refuses.
        let (events_of, endpoint) = (Some(tenant.clone()), Some(EndpointNumber(1)));
        all.push(Filter { events_of, endpoint, ..filter() });
    }
    all.extend(types.into_iter().map(|kind| Filter { event_type: Some(kind.clone()), ..filter() }));
    all.extend(streams.into_iter().map(|stream| Filter { stream: Some(stream.clone()), ..filter() }));
    all.extend(endpoints(oracle).map(|endpoint| Filter { endpoint: Some(endpoint), ..filter() }));
    for status in EventStatus::ALL.map(EventStatus::as_str) {
        all.push(Filter { event_status: Some(status), ..filter() });
    }
    for state in DeliveryStatus::ALL.map(DeliveryStatus::as_str) {
        all.push(Filter { delivery_state: Some(state), ..filter() });
        all.extend(all.last().cloned().map(|filter| Filter { endpoint: Some(EndpointNumber(1)), ..filter }));
    }
    for reason in [DeadReason::AttemptsExhausted, DeadReason::Gone, DeadReason::EndpointDeleted] {
        all.push(Filter { reason: Some(reason), ..filter() });
    }
    for (status, class) in
        [(Some(500), None), (None, Some(ErrorClass::Status)), (None, Some(ErrorClass::Timeout))]
    {
        let class = class.map(ShownClass::Class);
        all.push(Filter {
            last_attempt: LastAttemptFilter::new(status, class, Audience::Tenant),
            ..filter()
        });
    }
    let times: Vec<_> = oracle.events.values().map(|event| event.accepted_at).collect();
    if let (Some(early), Some(late)) = (times.get(times.len() / 3), times.get(times.len() * 2 / 3)) {
        let (since, until) = (Some(*early), Some(*late));
        all.push(Filter { since, ..filter() });
        all.push(Filter { until, ..filter() });
        all.push(Filter { since, until, ..filter() });
        all.push(Filter { since, until, delivery_state: Some("delivered"), ..filter() });
    }
    let event = oracle.events.keys().nth(oracle.events.len() / 2).copied();
    all.push(Filter { event, ..filter() });
    all
}

fn lists(oracle: &Oracle, found: &dyn ReadModel, filter: &Filter, limit: usize) -> Result<(), String> {
    let what = |list: &str| format!("{list} of {filter:?} in pages of {limit}");
    type Model<'a> = &'a dyn ReadModel;
    let events = |model: Model<'_>, limit| walk(limit, |after, limit| model.events(filter, after, limit));
    let deliveries =
        |model: Model<'_>, limit| walk(limit, |after, limit| model.deliveries(filter, after, limit));
    let letters =
        |model: Model<'_>, limit| walk(limit, |after, limit| model.dead_letters(filter, after, limit));
    let past = |model: Model<'_>, limit| {
        let endpoint = filter.endpoint.unwrap_or(EndpointNumber(1));
        walk(limit, |after, limit| model.past(filter, endpoint, after, limit))
    };
    // Each list documents the filters that it supports.
    if filter.event_status.is_none() && filter.delivery_state.is_none() && filter.reason.is_none() {
        let listed = past(oracle, usize::MAX)?;
        same(&what("the past"), &listed, &past(found, limit)?)?;
        // Every second event, and one that does not exist.
        let some = std::iter::once(Position(u64::MAX)).chain(listed.iter().map(|past| past.position));
        let some: Vec<_> = some.step_by(2).collect();
        let endpoint = filter.endpoint.unwrap_or(EndpointNumber(1));
        let of = |model: Model<'_>| model.past_of(endpoint, &some);
        same(&what("some of the past"), &of(oracle), &of(found))?;
    }
    if filter.endpoint.is_none() && filter.delivery_state.is_none() && filter.reason.is_none() {
        same(&what("events"), &events(oracle, usize::MAX)?, &events(found, limit)?)?;
    }
    if filter.event_status.is_none() && filter.reason.is_none() {
        same(&what("deliveries"), &deliveries(oracle, usize::MAX)?, &deliveries(found, limit)?)?;
    }
    let read_by_letters = filter.event_status.is_none()
        && filter.delivery_state.is_none()
        && filter.stream.is_none()
        && filter.events_of.is_none()
        && filter.event.is_none();
    if read_by_letters {
        same(&what("dead letters"), &letters(oracle, usize::MAX)?, &letters(found, limit)?)?;
    }
    Ok(())
}

/// Reads a list from its first page to its last.
pub(super) fn walk<T>(
    limit: usize,
    page: impl Fn(Option<Cursor>, usize) -> Found<T>,
) -> Result<Vec<T>, String> {
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        let Found { items, next } = page(after, limit);
        if items.len() > limit {
            return Err(format!("a page of {} items for a limit of {limit}", items.len()));
        }
        all.extend(items);
        match next {
            None => return Ok(all),
            Some(_) => after = next,
        }
    }
    Err("a list does not end".to_owned())
}

fn requests(oracle: &Oracle, found: &dyn ReadModel, moment: Moment) -> Result<(), String> {
    for (scope, expected) in &oracle.requests {
        let expired = expected.expires_at.is_some_and(|at| at <= moment.now);
        // A publisher-chosen id is deleted at some time after its event.
        let gone = expected.expires_at.is_none() && oracle.forgotten.contains(&expected.position);
        match found.request(scope) {
            None if expired || gone => {}
            // Retention removed the record that reused an expired key, and the earlier record is
            // still in the journal.
            Some(known) if expired && moment.rebuilt && known.position < expected.position => {
                same(
                    "an earlier request has expired",
                    &Some(true),
                    &known.expires_at.map(|at| at <= moment.now),
                )?;
            }
            known => same("an answered request", &Some(*expected), &known)?,
        }
    }
    same("a request that never was", &None, &found.request(&[0xee; 16]))
}

/// Compares the places of consumers, and their lags at several positions.
fn consumers(oracle: &Oracle, found: &dyn ReadModel) -> Result<(), String> {
    for (key, (consumer, place)) in &oracle.consumers.all {
        same(&format!("the place of {key:?}"), &Some(*place), &found.consumer(key))?;
        for after in [Position(0), place.position, Position(oracle.last.0 / 2), oracle.last] {
            let expected = oracle.lag(consumer, after, usize::MAX);
            let what = format!("the lag of {key:?} after {after}");
            same(&what, &expected, &found.lag(consumer, after, usize::MAX))?;
            let cut = found.lag(consumer, after, 1);
            if cut.events > expected.events || (!cut.is_cut && cut != expected) {
                return Err(format!("{what}: {cut:?} of {expected:?}"));
            }
        }
    }
    Ok(())
}
