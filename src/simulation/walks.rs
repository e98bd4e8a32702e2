//! Operations of several pages or steps during concurrent changes: lists, backups, bulk operations.
//!
//! Each unchanged item must appear exactly once in a list, in a backup or in a bulk operation.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use super::jobs;
use super::operations::{ALL_TENANTS, any_endpoint, check_refusal};
use super::world::{Inner, World};
use crate::context::Context;
use crate::domain::{
    Audience, DeadReason, DeliveryKey, DeliverySearch, DeliveryState, Endpoint, EndpointNumber, Event,
    JobKind, JobSelection, LastAttemptFilter, Position, Record, Tenant,
};
use crate::filters::samples;
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::projections::reads::{Cursor, Filter};
use crate::rules::matching::want;
use crate::service::jobs::NewJob;
use crate::service::types::Page;
use crate::service::{Backups, DeadLetters, Deliveries, Events};

/// Walks through one list or a backup.
pub(super) async fn walk(context: &Context, world: &World) {
    match world.chance(|chance| chance.within(0, 12)) {
        0..3 => walk_events(context, world).await,
        3..6 => walk_deliveries(context, world).await,
        6..9 => walk_dead_letters(context, world).await,
        9 => walk_backup(context, world).await,
        _ => super::feed::read_on(context, world).await,
    }
}

/// Draws a filter. Half of them match everything.
fn draw_filter(inner: &mut Inner) -> Filter {
    let endpoints: Vec<_> = inner.model.endpoints.keys().copied().collect();
    let shared = endpoints.iter().copied().filter(|endpoint| inner.model.is_shared(*endpoint)).collect();
    let chance = &mut inner.chance;
    let mut filter = Filter { shared: Arc::new(shared), ..Filter::default() };
    match chance.within(0, 10) {
        0 => filter.tenant = Some(chance.pick(&[Tenant::DEFAULT, "other"]).parse().expect("a legal tenant")),
        1 => filter.event_type = Some("order.paid".parse().expect("a legal type")),
        2 if !endpoints.is_empty() => filter.endpoint = Some(*chance.pick(&endpoints)),
        3 => {
            let word = |state: DeliveryState| Some(state.as_str());
            filter.delivery_state = *chance.pick(&[
                word(DeliveryState::Pending),
                word(DeliveryState::Delivered),
                word(DeliveryState::Cancelled),
            ]);
            filter.event_status = Some(*chance.pick(&["pending", "delivered", "failed"]));
            filter.reason = Some(DeadReason::AttemptsExhausted);
        }
        4 => filter.stream = Some("order-1".parse().expect("a legal stream")),
        5 => filter.last_attempt = LastAttemptFilter::new(Some(500), None, Audience::Operator),
        _ => {}
    }
    filter
}

/// Reads all pages of a list, and compares them with the model before and after.
async fn walk_list<T, K: Ord + Copy + Debug, F: Future<Output = Result<Page<T>, Unavailable>>>(
    world: &World,
    name: &str,
    page: impl Fn(Option<Cursor>, usize) -> F,
    key: impl Fn(&T) -> K,
    of_model: impl Fn(&Inner) -> BTreeSet<K>,
    event_of: impl Fn(K) -> Position,
) {
    let (limit, began, before) =
        world.with(|inner| (inner.chance.within(1, 5) as usize, inner.model.last(), of_model(inner)));
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), None, 0);
    loop {
        let found = match page(cursor, limit).await {
            Ok(found) => found,
            Err(error) => return check_refusal(world, name, &error),
        };
        pages += 1;
        if found.items.len() > limit {
            return world
                .record_violation(format!("{name}: {} items on a page of {limit}", found.items.len()));
        }
        for item in found.items.iter().map(&key) {
            if !seen.insert(item) {
                return world.record_violation(format!("{name}: {item:?} is listed twice"));
            }
        }
        if found.next.is_none() {
            break;
        }
        if found.next == cursor {
            return world.record_violation(format!("{name}: {cursor:?} leads to itself"));
        }
        cursor = found.next;
    }
    let violation = world.with(|inner| {
        let changed: BTreeSet<_> =
            inner.model.changed_since(began).into_iter().map(|delivery| delivery.event).collect();
        let is_unchanged = |item: &K| {
            let event = event_of(*item);
            // A later event may be on a page that is read after its commit.
            event <= began && !changed.contains(&event) && !inner.model.may_be_removed(event)
        };
        let after = of_model(inner);
        let missing = before.intersection(&after).find(|item| is_unchanged(item) && !seen.contains(*item));
        let unexpected = seen.iter().find(|item| is_unchanged(item) && !before.contains(*item));
        match (missing, unexpected) {
            (Some(missing), _) => Some(format!("{name}: {missing:?} is not listed on {pages} pages")),
            (None, Some(unexpected)) => Some(format!("{name}: {unexpected:?} should not be listed")),
            (None, None) => None,
        }
    });
    match violation {
        Some(violation) => world.record_violation(violation),
        None => world.count(if pages > 1 { "walkedPages" } else { "walked" }),
    }
}

async fn walk_events(context: &Context, world: &World) {
    let filter = world.with(draw_filter);
    // Without a tenant, the status of an event is that of all its deliveries.
    let shared = if filter.tenant.is_some() { filter.shared } else { Arc::default() };
    let filter = Filter { delivery_state: None, reason: None, endpoint: None, shared, ..filter };
    let wanted = filter.clone();
    let of_model =
        move |inner: &Inner| inner.model.oracle.events(&wanted, None, usize::MAX).items.into_iter().collect();
    let page = |cursor, limit| Events(context).list(&ALL_TENANTS, filter.clone(), cursor, limit);
    walk_list(world, "events", page, |view| view.position, of_model, |position| position).await;
}

async fn walk_deliveries(context: &Context, world: &World) {
    let filter = Filter { event_status: None, reason: None, ..world.with(draw_filter) };
    let wanted = filter.clone();
    let of_model = move |inner: &Inner| {
        let found = inner.model.oracle.deliveries(&wanted, None, usize::MAX);
        found.items.into_iter().map(|facts| facts.key).collect()
    };
    let page = |cursor, limit| Deliveries(context).list(&ALL_TENANTS, filter.clone(), cursor, limit);
    walk_list(world, "deliveries", page, |view| view.key, of_model, |key| key.event).await;
}

async fn walk_dead_letters(context: &Context, world: &World) {
    let filter = Filter { event_status: None, delivery_state: None, stream: None, ..world.with(draw_filter) };
    let wanted = filter.clone();
    let of_model = move |inner: &Inner| {
        let found = inner.model.oracle.dead_letters(&wanted, None, usize::MAX);
        found.items.into_iter().map(|letter| letter.delivery).collect()
    };
    let page = |cursor, limit| DeadLetters(context).list(&ALL_TENANTS, filter.clone(), cursor, limit);
    walk_list(world, "dead letters", page, |view| view.delivery.key, of_model, |key| key.event).await;
}

async fn walk_backup(context: &Context, world: &World) {
    let last = world.with(|inner| inner.model.last());
    let (mut after, mut until, mut text) = (Position(0), None, String::new());
    loop {
        let (part, end, _) = match Backups(context).part(after, until, None).await {
            Ok(found) => found,
            Err(error) => return check_refusal(world, "backup", &error),
        };
        if !part.damaged.is_empty() {
            return world.record_violation(format!("a backup reports damage: {:?}", part.damaged));
        }
        text.push_str(&part.text);
        let Some(next) = part.next else { break };
        (after, until) = (next, Some(end));
    }
    let saved: BTreeSet<_> = text
        .split_ascii_whitespace()
        .filter_map(|word| word.split_once(':')?.0.parse().ok().map(Position))
        .collect();
    let missing = world.with(|inner| {
        let all = inner.model.records.iter().take_while(|(position, _)| *position <= last);
        let mut lost = all.filter(|(position, record)| {
            !saved.contains(position) && !inner.model.may_have_left_journal(*position, record)
        });
        lost.next().map(|(position, _)| *position)
    });
    match missing {
        Some(position) => world.record_violation(format!("a backup misses the record at {position}")),
        None => world.count("backups"),
    }
}

/// Runs a bulk operation, and checks that it reached each delivery.
pub(super) async fn operate_in_bulk(context: &Context, world: &World) {
    match world.chance(|chance| chance.within(0, 5)) {
        dice @ 0..4 => {
            let is_redrive = dice < 3;
            let mut filter = world.with(draw_filter);
            (filter.delivery_state, filter.event_status, filter.stream) = (None, None, None);
            let (began, before) = world.with(|inner| (inner.model.last(), letters(inner, &filter)));
            let kind = if is_redrive { JobKind::RedriveDeadLetters } else { JobKind::PurgeDeadLetters };
            let what = if is_redrive { "redrive all" } else { "purge all" };
            let exact =
                filter.event_type.map(|event_type| event_type.as_str().parse().expect("a type is a pattern"));
            let selection = JobSelection {
                endpoint: filter.endpoint,
                types: exact.into_iter().collect(),
                reason: filter.reason,
                search: DeliverySearch { last_attempt: filter.last_attempt, id_start: None },
                ..JobSelection::default()
            };
            let new = NewJob { kind, tenant: filter.tenant, selection, rate: rate(world) };
            if jobs::run(context, world, what, &new).await {
                let is_included = |inner: &Inner, key: DeliveryKey| {
                    let exists = inner.model.subscriber(key.endpoint).is_some_and(|known| !known.deleted);
                    exists || !is_redrive
                };
                check_reached(world, what, began, before, is_included);
            }
        }
        _ => replay_to_endpoint(context, world).await,
    }
}

fn letters(inner: &Inner, filter: &Filter) -> BTreeSet<DeliveryKey> {
    let found = inner.model.oracle.dead_letters(filter, None, usize::MAX);
    found.items.into_iter().map(|letter| letter.delivery).collect()
}

async fn replay_to_endpoint(context: &Context, world: &World) {
    let Some(endpoint) = any_endpoint(context, world) else { return };
    let only_undelivered = world.chance(|chance| chance.percent(70));
    let began = world.with(|inner| inner.model.last());
    let before = world.with(|inner| replayable(inner, &endpoint, only_undelivered));
    let what = format!("replay to {}", endpoint.number.0);
    let selection =
        JobSelection { endpoint: Some(endpoint.number), only_undelivered, ..JobSelection::default() };
    let tenant = Some(endpoint.tenant.clone());
    let new = NewJob { kind: JobKind::ReplayEndpoint, tenant, selection, rate: rate(world) };
    if jobs::run(context, world, &what, &new).await {
        // The job looks at the endpoint as it is at each step, and its patterns may have changed.
        if context.outbox_of(endpoint.number).endpoint(endpoint.number).is_none() {
            return;
        }
        check_reached(world, &what, began, before, |inner, key| {
            let event = inner.model.oracle.events.get(&key.event);
            event.is_some_and(|event| versions(inner, &endpoint).all(|version| wants(version, event)))
        });
    }
}

/// The versions of an endpoint since this one.
fn versions<'a>(inner: &'a Inner, since: &'a Endpoint) -> impl Iterator<Item = &'a Endpoint> {
    let later = inner.model.records.iter().filter(|(position, _)| *position >= since.revision);
    later.filter_map(|(_, record)| match record {
        Record::EndpointPut(endpoint) => Some(endpoint.as_ref()).filter(|put| put.number == since.number),
        _ => None,
    })
}

/// Whether a replay to the endpoint includes the event.
fn wants(endpoint: &Endpoint, event: &Event) -> bool {
    endpoint.tenant.takes_from(&event.tenant)
        && want(&endpoint.event_types, &event.event_type)
        && event.erased_at.is_none()
        && samples::wants(&endpoint.selection, &event.event_type, &event.labels, &event.data)
}

/// Most jobs are paced, so that some are cut by the end of a life.
fn rate(world: &World) -> Option<u32> {
    world.chance(|chance| chance.percent(60).then(|| chance.within(1, 3) as u32))
}

/// Deliveries that a replay to the endpoint must create or revive.
fn replayable(inner: &Inner, endpoint: &Endpoint, only_undelivered: bool) -> BTreeSet<DeliveryKey> {
    let number: EndpointNumber = endpoint.number;
    let wanted = inner.model.oracle.events.iter().filter(|(_, event)| wants(endpoint, event));
    let keys = wanted.map(|(position, _)| DeliveryKey { event: *position, endpoint: number });
    keys.filter(|key| match inner.model.oracle.deliveries.get(key).map(|known| known.state) {
        Some(DeliveryState::Pending) => false,
        Some(DeliveryState::Delivered | DeliveryState::Purged) => !only_undelivered,
        Some(DeliveryState::Dead(_) | DeliveryState::Cancelled) | None => true,
    })
    .collect()
}

pub(super) fn check_reached(
    world: &World,
    what: &str,
    began: Position,
    before: BTreeSet<DeliveryKey>,
    is_included: impl Fn(&Inner, DeliveryKey) -> bool,
) {
    let missed = world.with(|inner| {
        let changed = inner.model.changed_since(began);
        before.iter().copied().find(|key| {
            let is_gone = inner.model.may_be_removed(key.event) || inner.model.is_erased(key.event);
            !changed.contains(key) && is_included(inner, *key) && !is_gone
        })
    });
    match missed {
        Some(key) => world.record_violation(format!("{what}: {key:?} was skipped")),
        None if before.len() > 1 => world.count("reachedInBulk"),
        None => {}
    }
}
