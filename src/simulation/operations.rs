//! Random operations of publishers and operators through the services, with checks of the results.

mod appends;
mod erasing;
mod posts;

use std::time::Duration;

use super::chance::Chance;
use super::life::check_files;
use super::world::{ATTEMPT_SECONDS_MAX, Inner, Posted, World, wall};
use super::{consumers, sources, states, tenants, types, walks, workers};
use crate::context::Context;
use crate::context::home::Home;
use crate::delivery::rebuilding;
use crate::delivery::retention::{self, Keep};
use crate::domain::{
    DeliveryKey, DeliveryState, Endpoint, EndpointNumber, EndpointStatus, EndpointTransport, EventId,
    Expected, Format, Handshake, Idempotency, Ordering, PolicyDefaults, Position, RateLimit, Record,
    Rejection, RequestShape, RetryPolicy, Sealed, Secret, SecretKind, SignatureScheme, Tenant, Timestamp,
};
use crate::outbox::draft::{AcceptedEvent, ChangeError, EventDraft, PublishError, Unavailable};
use crate::outbox::rebuild::RebuildError;
use crate::service::types::Scope;
use crate::service::{DeadLetters, Deliveries, Endpoints, Events, Handshakes, Replays};

use crate::filters::samples;
use crate::outbox::ReadModel;
use crate::projections::retention::Cutoffs;
use crate::rules::handshake::restart_handshake;

/// Upper bound of an attempt's duration. Retention expires deliveries after it.
const ATTEMPT_GRACE: Duration = Duration::from_secs(ATTEMPT_SECONDS_MAX);

pub(super) use appends::{Append, part_of};
pub(super) use posts::draw_post;
use posts::{publish, publish_batch};

pub(super) static ALL_TENANTS: Scope = Scope(None);

/// Performs one operation and waits for its result.
pub(super) async fn operate(context: Context, world: World) {
    let dice = world.chance(|chance| chance.within(0, 115));
    if world.plan().queues && world.chance(|chance| chance.percent(30)) {
        return workers::work(&context, &world).await;
    }
    if world.plan().source && world.chance(|chance| chance.percent(25)) {
        return sources::work(&context, &world).await;
    }
    match dice {
        0..38 => publish(&context, &world).await,
        38..48 => appends::append(&context, &world).await,
        48..53 => publish_batch(&context, &world).await,
        53..56 => create_endpoint(&context, &world).await,
        56..60 => change_ordering(&context, &world).await,
        60..68 => {
            // Often several changes in a row.
            change_endpoint(&context, &world).await;
            while world.chance(|chance| chance.percent(30)) {
                change_endpoint(&context, &world).await;
            }
        }
        68..71 => use_callback(&context, &world).await,
        71..73 => delete_endpoint(&context, &world).await,
        73..82 => operate_on_delivery(&context, &world).await,
        82..90 if world.plan().keep.is_some() => run_retention_pass(&context, &world).await,
        92..94 => tenants::change_tenant(&context, &world).await,
        94..96 | 107 => {
            while world.chance(|chance| chance.percent(80)) {
                consumers::change_consumer(&context, &world).await;
            }
        }
        96 | 97 => erasing::erase(&context, &world).await,
        98 => erasing::remove_from_disk(&context, &world).await,
        99 => types::change_type(&context, &world).await,
        100 => rebuild(&context, &world).await,
        108..115 => states::look(&context, &world).await,
        115 => types::change_type(&context, &world).await,
        82..92 => walks::operate_in_bulk(&context, &world).await,
        _ => walks::walk(&context, &world).await,
    }
}

pub(super) fn tenant(inner: &mut Inner) -> Tenant {
    let (crowded, chance) = (inner.plan.crowded, &mut inner.chance);
    let name = match (crowded, chance.percent(if crowded { 60 } else { 85 })) {
        (_, true) => Tenant::DEFAULT,
        (true, false) if chance.percent(40) => "third",
        (_, false) => "other",
    };
    name.parse().expect("a legal tenant")
}

fn seconds(low: u64, high: u64, chance: &mut Chance) -> Duration {
    Duration::from_millis(chance.within(low * 1_000, high * 1_000))
}

/// Defaults for endpoints without their own policy.
pub(super) fn policy_defaults() -> PolicyDefaults {
    PolicyDefaults {
        max_in_flight: 2,
        timeout: Duration::from_secs(2),
        retry: RetryPolicy::Schedule(vec![Duration::from_secs(1); 4]),
    }
}

fn in_flight(chance: &mut Chance) -> Option<u32> {
    Some(chance.within(1, 4) as u32).filter(|most| *most != 2)
}

fn timeout(chance: &mut Chance) -> Option<Duration> {
    Some(seconds(1, 4, chance)).filter(|timeout| *timeout > Duration::from_secs(2))
}

fn retry(chance: &mut Chance) -> Option<RetryPolicy> {
    if chance.percent(30) {
        let count = chance.within(0, 4);
        let steps: Vec<_> = (0..count).map(|_| seconds(0, 8, chance)).collect();
        return Some(RetryPolicy::Schedule(steps)).filter(|_| count < 4);
    }
    Some(RetryPolicy::Exponential {
        initial: Duration::from_millis(chance.within(50, 2_000)),
        multiplier: 2.0,
        max_interval: Duration::from_secs(8),
        max_attempts: chance.within(2, 6) as u32,
        max_age: seconds(15, 90, chance),
        jitter: 0.2,
    })
}

fn rate(chance: &mut Chance) -> Option<RateLimit> {
    let limit = RateLimit {
        limit: chance.within(1, 5) as u32,
        // 20 s is longer than a restart.
        per: Duration::from_secs(*chance.pick(&[1, 1, 20])),
        burst: chance.within(1, 3) as u32,
    };
    chance.percent(30).then_some(limit)
}

fn ordering(chance: &mut Chance) -> Ordering {
    *chance.pick(&[Ordering::None, Ordering::Key, Ordering::Endpoint])
}

fn handshake(chance: &mut Chance) -> Option<Handshake> {
    let origin = "balto.test".parse().expect("a DNS name");
    let rate = *chance.pick(&[None, Some(120), Some(1_200)]);
    let callback = chance.percent(60);
    chance.percent(40).then(|| Handshake::new(origin, rate, callback))
}

fn secret(chance: &mut Chance) -> Secret {
    let key = (0..24).map(|_| chance.next() as u8).collect();
    Secret { kind: SecretKind::Hmac, key: Sealed::Plain(key), expires_at: None }
}

fn patterns(chance: &mut Chance) -> Vec<crate::domain::Pattern> {
    let choices: [&[&str]; 5] = [&[], &[], &["order.*"], &["order.paid", "user.#"], &["#.paid"]];
    let patterns = chance.pick(&choices);
    patterns.iter().map(|pattern| pattern.parse().expect("a legal pattern")).collect()
}

pub(super) fn new_endpoint(inner: &mut Inner) -> Endpoint {
    let number = inner.model.endpoints.len() + 1;
    let (orders, operators) = (inner.plan.orders, inner.plan.operator && number == 2);
    let tenant = tenant(inner);
    let (crowded, queues) = (inner.plan.crowded, inner.plan.queues);
    let chance = &mut inner.chance;
    let drawn = chance.next();
    let id = format!("ep_{number}_{drawn:x}");
    let queue = (queues && !operators && chance.percent(50))
        .then(|| (Duration::from_millis(chance.within(200, 3_000)), chance.within(2, 8) as u32));
    let endpoint = Endpoint {
        number: EndpointNumber(0),
        tenant: if operators { Tenant::OPERATOR.parse().expect("a legal tenant") } else { tenant },
        transport: EndpointTransport::Http,
        url: format!("http://receiver.test/{id}").into(),
        id: id.parse().expect("a legal id"),
        description: "".into(),
        event_types: patterns(chance),
        selection: samples::selection(chance.next()),
        headers: Vec::new(),
        sensitive_headers: Vec::new(),
        rate_limit: rate(chance),
        max_in_flight: if crowded { Some(8) } else { in_flight(chance) },
        timeout: timeout(chance),
        ordering: if orders { ordering(chance) } else { Ordering::None },
        retry: retry(chance),
        format: Format::Standard,
        signatures: SignatureScheme::standard(),
        request: RequestShape::default(),
        auth: None,
        secrets: vec![secret(chance)],
        handshake: handshake(chance),
        client_certificate: None,
        trace: false,
        uid: None,
        versions: Vec::new(),
        metadata: None,
        status: EndpointStatus::Active,
        created_at: wall(),
        updated_at: wall(),
        revision: Position(0),
    };
    match queue {
        Some((visibility, deliveries_max)) => {
            let is_shared = chance.percent(25);
            let tenant = if is_shared { Tenant::every() } else { endpoint.tenant.clone() };
            workers::as_queue(Endpoint { tenant, ..endpoint }, visibility, deliveries_max)
        }
        None if !operators && drawn.is_multiple_of(7) => Endpoint { tenant: Tenant::every(), ..endpoint },
        None => endpoint,
    }
}

/// Whether the current faults of the world explain an error.
fn is_explained(world: &World, error: &Unavailable) -> bool {
    world.with(|inner| inner.stopping || inner.failing || inner.unreadable || inner.sick_until > wall())
        && !matches!(error, Unavailable::Overloaded { .. })
}

pub(super) fn check_refusal(world: &World, what: &str, error: &Unavailable) {
    if is_explained(world, error) {
        world.note(format_args!("{what}: refused: {error}"));
        world.count("refused");
    } else {
        world.record_violation(format!("{what}: unexplained error: {error}"));
    }
}

pub(super) fn check_change<T>(world: &World, what: &str, result: &Result<T, ChangeError>) {
    match result {
        Ok(_) => world.note(format_args!("{what}: done")),
        Err(ChangeError::Store(error)) => check_refusal(world, what, error),
        Err(error) => world.note(format_args!("{what}: {error}")),
    }
}

pub(super) async fn create_endpoint(context: &Context, world: &World) {
    let endpoint = world.with(new_endpoint);
    let created = Endpoints(context).create(endpoint, None).await;
    check_change(world, "create endpoint", &created);
    let Ok(created) = created else { return };
    if !world.is_alive() {
        return;
    }
    let is_durable = world.with(|inner| inner.model.endpoints.contains_key(&created.number));
    if !is_durable {
        world.record_violation(format!("{}: response before the commit was durable", created.id));
    }
}

pub(super) fn any_endpoint(context: &Context, world: &World) -> Option<Endpoint> {
    let all: Vec<_> = context.outbox_of(Home::All).endpoints();
    if all.is_empty() {
        return None;
    }
    Some(Endpoint::clone(world.chance(|chance| chance.pick(&all).clone()).as_ref()))
}

/// Sometimes picks an endpoint with a running request.
fn busy_endpoint(context: &Context, world: &World) -> Option<Endpoint> {
    let busy = world.with(|inner| {
        let sent = inner.in_flight.keys().map(|key| key.endpoint);
        let busy: Vec<_> = inner.asking.iter().copied().chain(sent).collect();
        let chosen = !busy.is_empty() && inner.chance.percent(50);
        chosen.then(|| *inner.chance.pick(&busy))
    })?;
    context.outbox_of(busy).registry(|registry| registry.endpoint(busy).map(|known| Endpoint::clone(known)))
}

async fn change_endpoint(context: &Context, world: &World) {
    let Some(mut endpoint) = busy_endpoint(context, world).or_else(|| any_endpoint(context, world)) else {
        return;
    };
    let what = world.with(|inner| {
        let chance = &mut inner.chance;
        let dice = chance.within(0, 9);
        let is_queue = endpoint.queue().is_some();
        match dice {
            5.. if is_queue => {
                endpoint.event_types = patterns(chance);
                endpoint.max_in_flight = in_flight(chance);
                "queue"
            }
            0 | 1 => {
                endpoint.status = EndpointStatus::Paused;
                "pause"
            }
            2..=4 => {
                endpoint.status = EndpointStatus::Active;
                "resume"
            }
            5 => {
                let mut old = std::mem::replace(&mut endpoint.secrets, vec![secret(chance)]);
                old.truncate(1);
                for old in &mut old {
                    old.expires_at = Some(wall().plus(Duration::from_secs(10)));
                }
                endpoint.secrets.extend(old);
                "rotate"
            }
            6 => {
                // A new URL, or only a new handshake.
                let moves = chance.percent(60);
                if moves {
                    endpoint.url = format!("http://receiver.test/{}?{}", endpoint.id, chance.next()).into();
                }
                let pending =
                    |known: &Handshake| Handshake::new(known.origin.clone(), known.rate, known.callback);
                endpoint.handshake = match endpoint.handshake.as_ref() {
                    Some(known) if moves => Some(pending(known)),
                    Some(known) => Some(restart_handshake(known)),
                    None => None,
                };
                "move"
            }
            7 => {
                endpoint.handshake = handshake(chance);
                "handshake"
            }
            8 => {
                endpoint.rate_limit = rate(chance);
                endpoint.max_in_flight = in_flight(chance);
                "limits"
            }
            _ => {
                endpoint.event_types = patterns(chance);
                endpoint.selection = samples::selection(chance.next());
                endpoint.retry = retry(chance);
                "policy"
            }
        }
    });
    let number = endpoint.number.0;
    let result = Endpoints(context).update(endpoint, None).await;
    check_change(world, &format!("{what} {number}"), &result);
}

/// Changes the ordering of endpoints with pending deliveries, sometimes several times in a row.
async fn change_ordering(context: &Context, world: &World) {
    loop {
        let drawn = world.with(|inner| {
            let pending: Vec<_> = inner.model.pending().map(|(key, _)| key.endpoint).collect();
            let is_wanted = inner.plan.orders && !pending.is_empty();
            is_wanted.then(|| (*inner.chance.pick(&pending), ordering(&mut inner.chance)))
        });
        let Some((number, ordering)) = drawn else { return };
        let known = context.outbox_of(number).endpoint(number);
        let Some(known) = known else { return };
        let result = Endpoints(context).update(Endpoint { ordering, ..Endpoint::clone(&known) }, None).await;
        check_change(world, &format!("order {} by {ordering:?}", number.0), &result);
        if world.chance(|chance| chance.percent(70)) {
            return;
        }
    }
}

/// Grants consent by callback, sometimes with an invalid token.
async fn use_callback(context: &Context, world: &World) {
    let drawn = world.with(|inner| {
        let forged = inner.chance.percent(20);
        let at = inner.chance.next() as usize % inner.callbacks.len().max(1);
        let mut callback = inner.callbacks.get(at)?.clone();
        if forged {
            callback.token = callback.token.chars().rev().collect();
        }
        Some((at, callback, forged))
    });
    let Some((at, callback, forged)) = drawn else { return };
    if !forged {
        world.with(|inner| {
            let number = inner.model.number_of(callback.endpoint.as_str());
            inner.model.agreed.extend(number.map(|number| (number, callback.url.as_str().into())));
        });
    }
    let result = Handshakes(context).grant(&callback.endpoint, &callback.token, Some("600")).await;
    check_change(world, "call back", &result);
    if result.is_err() || !world.is_alive() {
        return;
    }
    world.count("callbacksUsed");
    let violation = world.with(|inner| {
        let known = inner.model.number_of(callback.endpoint.as_str());
        let known = known.and_then(|number| inner.model.subscriber(number));
        let agreed =
            |endpoint: &Endpoint| endpoint.handshake.as_ref().is_some_and(|known| known.consent.is_some());
        let durable =
            known.is_some_and(|known| agreed(&known.endpoint) || known.before.iter().any(|one| agreed(one)));
        let used = std::mem::replace(&mut inner.callbacks[at].used, true);
        if forged || used {
            Some(format!("an invalid callback was accepted: forged {forged}, used {used}"))
        } else {
            (!durable).then(|| "callback response before the consent was durable".to_owned())
        }
    });
    if let Some(violation) = violation {
        world.record_violation(violation);
    }
}

async fn delete_endpoint(context: &Context, world: &World) {
    let Some(endpoint) = any_endpoint(context, world) else { return };
    let result = Endpoints(context).delete(&ALL_TENANTS, &endpoint.id).await;
    check_change(world, &format!("delete {}", endpoint.number.0), &result);
    if result.is_ok() {
        world.count("endpointsDeleted");
    }
}

/// Resumes every closed endpoint, like an operator after an outage. Workers and the source empty
/// the queues.
pub(super) async fn reopen(context: &Context, world: &World) {
    let all: Vec<_> = context.outbox_of(Home::All).endpoints();
    for endpoint in all {
        if endpoint.status != EndpointStatus::Active {
            let mut endpoint = Endpoint::clone(&endpoint);
            endpoint.status = EndpointStatus::Active;
            endpoint.handshake = endpoint.handshake.map(|known| match known.consent {
                Some(_) => known,
                None => restart_handshake(&known),
            });
            let number = endpoint.number.0;
            check_change(
                world,
                &format!("reopen {number}"),
                &Endpoints(context).update(endpoint, None).await,
            );
        }
    }
    workers::finish(context, world).await;
    sources::finish(context, world).await;
}

fn any_delivery(world: &World, wanted: fn(DeliveryState) -> bool) -> Option<DeliveryKey> {
    world.with(|inner| {
        let all: Vec<_> =
            inner.model.oracle.deliveries.iter().filter(|(_, known)| wanted(known.state)).collect();
        if all.is_empty() { None } else { Some(*inner.chance.pick(&all).0) }
    })
}

/// Often picks a delivery that is in flight.
fn in_flight_delivery(world: &World) -> Option<DeliveryKey> {
    world.with(|inner| {
        let sent: Vec<_> = inner.in_flight.keys().copied().collect();
        let chosen = !sent.is_empty() && inner.chance.percent(60);
        chosen.then(|| *inner.chance.pick(&sent))
    })
}

async fn operate_on_delivery(context: &Context, world: &World) {
    let dead = |state| matches!(state, DeliveryState::Dead(_));
    let pending = |state| state == DeliveryState::Pending;
    let dice = world.chance(|chance| chance.within(0, 9));
    let key = match dice {
        0..3 => any_delivery(world, dead),
        3..6 => in_flight_delivery(world).or_else(|| any_delivery(world, pending)),
        _ => any_delivery(world, |_| true),
    };
    let Some(key) = key else { return };
    let name = format!("{}/{}", key.event, key.endpoint.0);
    if world.with(|inner| inner.in_flight.contains_key(&key)) {
        world.count("changedInFlight");
    }
    match dice {
        0 | 1 => {
            let result = DeadLetters(context).redrive(&ALL_TENANTS, key, None).await;
            check_change(world, &format!("redrive {name}"), &result);
            world.count("redriven");
        }
        2 => check_change(
            world,
            &format!("purge {name}"),
            &DeadLetters(context).purge(&ALL_TENANTS, key).await,
        ),
        3 | 4 => {
            let result = Deliveries(context).cancel(&ALL_TENANTS, key, None).await;
            check_change(world, &format!("cancel {name}"), &result);
            world.count("cancelled");
        }
        5 | 6 => {
            let result = Deliveries(context).retry(&ALL_TENANTS, key, None).await;
            check_change(world, &format!("retry {name}"), &result);
        }
        7 => match Endpoints(context).lane(key.endpoint).await {
            Ok(lane) => world.note(format_args!("lane {}: {:?}", key.endpoint.0, lane.reason)),
            Err(error) => check_refusal(world, "lane", &error),
        },
        8 => replay(context, world, key).await,
        _ => match Deliveries(context).get(&ALL_TENANTS, key).await {
            Ok(Some(found)) => world.note(format_args!("delivery {name}: {:?}", found.delivery.state)),
            Ok(None) if world.with(|inner| inner.model.may_be_removed(key.event)) => world.count("forgotten"),
            Ok(None) => world.record_violation(format!("delivery {name} is not found")),
            Err(error) => check_refusal(world, "delivery", &error),
        },
    }
}

async fn replay(context: &Context, world: &World, key: DeliveryKey) {
    let Some(event) = world.with(|inner| inner.model.oracle.events.get(&key.event).cloned()) else { return };
    let id = context.outbox_of(key.endpoint).registry(|registry| registry.id_of(key.endpoint).cloned());
    let chosen = id.filter(|_| world.chance(|chance| chance.percent(50))).map(|id| vec![id]);
    let result = Replays(context).of_event(&ALL_TENANTS, &event.tenant, &event.id, chosen, None).await;
    check_change(world, &format!("replay {}", key.event), &result);
    world.count("replayed");
}

async fn rebuild(context: &Context, world: &World) {
    match rebuilding::run_once(context).await {
        Ok(position) => {
            world.note(format_args!("rebuild up to {position}"));
            world.count("rebuilt");
            states::look(context, world).await;
        }
        Err(RebuildError::Outbox(error)) => check_refusal(world, "rebuild", &error),
        Err(error) => world.note(format_args!("rebuild: {error}")),
    }
}

async fn run_retention_pass(context: &Context, world: &World) {
    let Some(keep_for) = world.plan().keep else { return };
    let keep = Keep {
        events: Some(keep_for),
        stream_events: Some(keep_for),
        dead_letters: Some(keep_for * 2),
        audit: None,
    };
    let mut retention = retention::retention(context, keep);
    let now = context.now().wall;
    let before = Some(now.minus(keep_for + ATTEMPT_GRACE));
    let cutoffs = Cutoffs { events: before, stream_events: before };
    let (began, overdue) = world.with(|inner| {
        inner.model.latest = inner.model.latest.max(now);
        (inner.model.last(), inner.model.oracle.overdue(cutoffs, 0).deliveries)
    });
    let result = retention::pass(context, keep, &mut retention).await;
    check_change(world, "retention", &result);
    let Ok(pass) = result else { return };
    world.note(format_args!("retention: {pass:?}"));
    walks::check_reached(world, "retention", began, overdue.into_iter().collect(), |_, _| true);
    // The files after a power failure now.
    let left = world.disk().crash(world.chance(Chance::next));
    if let Err(violation) = check_files(&left) {
        world.record_violation(violation);
    }
    if pass.events > 0 {
        world.count("retained");
    }
}
