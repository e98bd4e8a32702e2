//! A life that does what a test says.

#![cfg(test)]

mod windows;

use super::*;
use crate::context::responses::{Answer, Keyed, Remember, Remembered};
use crate::delivery::retention;
use crate::domain::{
    ApiKey, DeadReason, DeliveryKey, DeliveryState, DisabledReason, Endpoint, EndpointNumber, EndpointStatus,
    Handshake, Idempotency, Ordering, RetryPolicy, Role, Tenant,
};
use crate::failpoints::{Bound, TestOverrides};
use crate::lanes::WaitReason;
use crate::outbox::draft::{ChangeError, EventDraft};
use crate::projections::reads::Filter;
use crate::service::types::Scope;
use crate::service::{DeadLetters, Deliveries, Endpoints, Events, Keys, Replays};

/// An endpoint of this tenant that wants all, and of which the first attempt is the last.
async fn subscribe(life: &mut Life, tenant: &str) -> EndpointNumber {
    subscribe_with(life, tenant, |endpoint| endpoint).await
}

async fn subscribe_with(
    life: &mut Life,
    tenant: &str,
    change: impl FnOnce(Endpoint) -> Endpoint,
) -> EndpointNumber {
    let drawn = life.world.with(operations::new_endpoint);
    let endpoint = change(Endpoint {
        tenant: tenant.parse().unwrap(),
        event_types: Vec::new(),
        rate_limit: None,
        max_in_flight: Some(1),
        ordering: Ordering::None,
        retry: Some(RetryPolicy::Schedule(Vec::new())),
        handshake: None,
        ..drawn
    });
    let context = life.context.clone();
    let created = tokio::spawn(async move { Endpoints(&context).create(endpoint, None).await });
    life.run_for(Duration::from_millis(100)).await;
    created.await.unwrap().unwrap().number
}

/// An event for everybody who wants all.
fn draft(world: &World) -> EventDraft {
    EventDraft {
        tenant: Tenant::DEFAULT.parse().unwrap(),
        stream: None,
        idempotency: None,
        id: None,
        deliver_at: None,
        ..world.with(operations::draw_post).draft
    }
}

/// Runs until the task is over.
async fn see_through<T: Send + 'static>(
    life: &mut Life,
    task: impl Future<Output = T> + Send + 'static,
) -> T {
    let task = tokio::spawn(task);
    life.run_for(Duration::from_millis(500)).await;
    assert!(task.is_finished(), "it is not done");
    task.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_asks_at_a_last_attempt_is_left_alone_before_the_operator_is_told() {
    world::begin_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    subscribe(&mut life, Tenant::OPERATOR).await;
    let number = subscribe(&mut life, Tenant::DEFAULT).await;
    world.with(|inner| inner.receivers.entry(number).or_default().manner = Manner::Asks);
    let draft = draft(&world);
    let context = life.context.clone();
    let published =
        tokio::spawn(async move { Events(&context).publish_batch(vec![draft.clone(), draft], None).await });
    tokio::task::yield_now().await;
    life.take_writers_turn();
    life.hear_held();
    assert!(published.await.unwrap().unwrap().results.iter().all(Result::is_ok));
    // Nothing is durable from here on, so nobody can be told that the first delivery is dead.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lane = Endpoints(&life.context).explain(number).await.unwrap();
    assert_eq!((lane.reason, lane.in_flight), (Some(WaitReason::RetryAfter), 0));
    assert_eq!(world.with(|inner| inner.happened["sent"]), 1, "the second delivery was sent");
    assert!(!world.is_broken());
}

/// As long as it lasts, what was read of the endpoint before is not what counts after.
#[tokio::test(start_paused = true)]
async fn who_is_paused_while_no_file_descriptor_is_left_is_not_sent_to() {
    world::begin_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    let number = subscribe(&mut life, Tenant::DEFAULT).await;
    world.with(|inner| inner.exhausted = true);
    let (context, draft) = (life.context.clone(), draft(&world));
    see_through(&mut life, async move { Events(&context).publish(draft).await }).await.unwrap();
    assert_eq!(Endpoints(&life.context).explain(number).await.unwrap().in_flight, 1);
    let context = life.context.clone();
    let paused = async move {
        let known = context.outbox().endpoint(number).unwrap();
        let status = EndpointStatus::Paused;
        Endpoints(&context).update(Endpoint { status, ..Endpoint::clone(&known) }, None).await
    };
    see_through(&mut life, paused).await.unwrap();
    life.run_for(Duration::from_secs(2)).await;
    let lane = Endpoints(&life.context).explain(number).await.unwrap();
    assert_eq!((lane.reason, lane.in_flight), (Some(WaitReason::Paused), 0), "it keeps its slot");
    world.with(|inner| inner.exhausted = false);
    life.run_for(Duration::from_secs(5)).await;
    assert_eq!(
        world.with(|inner| inner.happened.get("sent").copied()),
        None,
        "a paused endpoint was sent to"
    );
    assert!(!world.is_broken());
}

#[tokio::test(start_paused = true)]
async fn a_want_of_file_descriptors_pushes_out_no_callback_and_ends_by_itself() {
    world::begin_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    world.with(|inner| inner.exhausted = true);
    let handshake = Some(Handshake::new("balto.test".parse().unwrap(), None, true));
    let number =
        subscribe_with(&mut life, Tenant::DEFAULT, |endpoint| Endpoint { handshake, ..endpoint }).await;
    life.run_for(Duration::from_secs(60)).await;
    let tries = world.with(|inner| inner.happened["exhausted"]);
    assert!((30..=61).contains(&tries), "{tries} tries in a minute");
    let known = life.context.outbox().endpoint(number).unwrap();
    assert_eq!(known.handshake.as_ref().unwrap().callbacks.len(), 1, "callbacks that nobody was shown");
    world.with(|inner| inner.exhausted = false);
    life.run_for(Duration::from_secs(2)).await;
    assert!(world.with(|inner| inner.happened["asked"]) >= 1, "it is asked no more");
    assert!(!world.is_broken());
}

/// A disabled endpoint at which something is soon too old.
async fn one_that_waits_in_vain(life: &mut Life) {
    let retry = RetryPolicy::Exponential {
        initial: Duration::from_secs(1),
        multiplier: 1.0,
        max_interval: Duration::from_secs(1),
        max_attempts: 100,
        max_age: Duration::from_secs(10),
        jitter: 0.0,
    };
    let number =
        subscribe_with(life, Tenant::DEFAULT, |endpoint| Endpoint { retry: Some(retry), ..endpoint }).await;
    life.world.with(|inner| inner.exhausted = true);
    let (context, draft) = (life.context.clone(), draft(&life.world));
    see_through(life, async move { Events(&context).publish(draft).await }).await.unwrap();
    let context = life.context.clone();
    see_through(
        life,
        async move { Endpoints(&context).disable(number, DisabledReason::Gone, |_| true).await },
    )
    .await;
    life.run_for(Duration::from_secs(2)).await;
}

/// How often the journal says that deliveries died.
fn died(world: &World) -> usize {
    world.with(|inner| inner.trace.lines().filter(|line| line.contains("DeliveriesDied")).count())
}

#[tokio::test(start_paused = true)]
async fn what_waited_too_long_dies_once_however_long_the_journal_hangs() {
    world::begin_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    one_that_waits_in_vain(&mut life).await;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        life.take_states_turns();
    }
    assert_eq!(died(&world), 0, "nothing was to be durable yet");
    life.run_for(Duration::from_secs(5)).await;
    assert_eq!(died(&world), 1);
    assert!(!world.is_broken());
}

#[tokio::test(start_paused = true)]
async fn a_state_that_hangs_gathers_no_tasks() {
    world::begin_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    one_that_waits_in_vain(&mut life).await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = alive();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(alive() <= before + 2, "{before} tasks before, {} now", alive());
    life.run_for(Duration::from_secs(5)).await;
    assert_eq!(died(&world), 1, "it goes on when the state does");
    assert!(!world.is_broken());
}

/// What a request with a key may ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    CreateEndpoint,
    ChangeEndpoint,
    CreateKey,
    Retry,
    Cancel,
    Redrive,
    ReplayEvent,
    ReplayEndpoint,
    RedriveAll,
    PurgeAll,
}

impl Act {
    const ALL: [Self; 10] = [
        Self::CreateEndpoint,
        Self::ChangeEndpoint,
        Self::CreateKey,
        Self::Retry,
        Self::Cancel,
        Self::Redrive,
        Self::ReplayEvent,
        Self::ReplayEndpoint,
        Self::RedriveAll,
        Self::PurgeAll,
    ];
}

fn keyed<T>() -> Keyed<T> {
    let idempotency = Idempotency { scope: [1; 16], fingerprint: [2; 16], expires_at: None };
    Keyed { idempotency, answer: |_| Answer { status: 202, body: Arc::from(&b"{}"[..]) } }
}

/// A paused endpoint, and a delivery to it: pending, or dead.
async fn with_delivery(life: &mut Life, is_dead: bool) -> DeliveryKey {
    let paused = |endpoint| Endpoint { status: EndpointStatus::Paused, ..endpoint };
    let endpoint = subscribe_with(life, Tenant::DEFAULT, paused).await;
    let (context, draft) = (life.context.clone(), draft(&life.world));
    let event =
        see_through(life, async move { Events(&context).publish(draft).await }).await.unwrap().position;
    let delivery = DeliveryKey { event, endpoint };
    if is_dead {
        let context = life.context.clone();
        let died = async move {
            Deliveries(&context).give_up(DeadReason::AttemptsExhausted, move |_| (vec![delivery], ())).await
        };
        see_through(life, died).await.unwrap();
    }
    delivery
}

/// As a handler does it: unless it was answered before.
async fn request(
    context: Context,
    act: Act,
    new: Endpoint,
    delivery: DeliveryKey,
) -> Result<(), ChangeError> {
    let all = Scope(None);
    let remember: Remember = keyed().answered(&());
    match context.remembered(&remember.idempotency).await? {
        Remembered::Nothing => {}
        Remembered::Same(answer) if answer == remember.answer => return Ok(()),
        other => panic!("{act:?} is remembered as {other:?}"),
    }
    let known = context.outbox().endpoint(delivery.endpoint).unwrap();
    match act {
        Act::CreateEndpoint => Endpoints(&context).create(new, Some(remember)).await.map(drop),
        Act::ChangeEndpoint => {
            let changed = Endpoint { description: "changed".into(), ..Endpoint::clone(&known) };
            Endpoints(&context).update(changed, Some(remember)).await.map(drop)
        }
        Act::CreateKey => {
            let id = Keys(&context).new_id();
            let (created_at, description) = (context.now().wall, "".into());
            let role = Role::Viewer;
            let key = ApiKey { id, role, tenant: None, description, hash: [3; 32], created_at };
            Keys(&context).create(key, Some(remember)).await
        }
        Act::Retry => Deliveries(&context).retry(&all, delivery, Some(keyed())).await.map(drop),
        Act::Cancel => Deliveries(&context).cancel(&all, delivery, Some(keyed())).await.map(drop),
        Act::Redrive => DeadLetters(&context).redrive(&all, delivery, Some(keyed())).await.map(drop),
        Act::ReplayEvent => {
            let event = context.event_at(delivery.event).await?.unwrap();
            Replays(&context).of_event(&all, &event.tenant, &event.id, None, Some(keyed())).await.map(drop)
        }
        Act::ReplayEndpoint => {
            let since = Timestamp::ZERO;
            Replays(&context).to_endpoint(&known, since, None, &[], false, Some(keyed())).await.map(drop)
        }
        Act::RedriveAll => {
            DeadLetters(&context).redrive_matching(&all, Filter::default(), Some(keyed())).await.map(drop)
        }
        Act::PurgeAll => {
            DeadLetters(&context).purge_matching(&all, Filter::default(), Some(keyed())).await.map(drop)
        }
    }
}

/// Runs a life on a runtime of its own, and puts what is left of the disk there for the next one.
fn live<T>(world: &World, seed: u64, life: impl AsyncFnOnce(&mut Life) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let done = runtime.unwrap().block_on(async {
        let mut begun = Life::begin(world).unwrap();
        let done = life(&mut begun).await;
        world::end_life();
        done
    });
    let disk = world.disk();
    world.set_disk(disk.disk_after_power_cut().unwrap_or_else(|| disk.crash(seed)));
    done
}

/// The power fails at each operation of the disk in turn, until it is only after the answer that it does.
#[test]
fn whenever_the_power_fails_a_request_that_is_repeated_with_its_key_is_done_once() {
    for act in Act::ALL {
        let mut cuts = 0;
        for operations in 0.. {
            world::begin_time();
            let world = World::new(1);
            let new = Endpoint { handshake: None, ..world.with(operations::new_endpoint) };
            let is_dead = !matches!(act, Act::Retry | Act::Cancel);
            let (delivery, before, answered) = live(&world, operations, async |life| {
                let delivery = with_delivery(life, is_dead).await;
                let before = world.with(|inner| inner.model.last());
                world.disk().cut_power_after(operations, operations);
                let asked = tokio::spawn(request(life.context.clone(), act, new.clone(), delivery));
                life.run_for(Duration::from_millis(500)).await;
                (delivery, before, asked.is_finished() && asked.await.unwrap().is_ok())
            });
            let again = live(&world, operations, async |life| {
                let again = request(life.context.clone(), act, new.clone(), delivery);
                see_through(life, again).await
            });
            again.unwrap_or_else(|error| panic!("{act:?} after {operations} operations, again: {error}"));
            let done = world.with(|inner| {
                let since = inner.model.records.iter().filter(|(position, _)| *position > before);
                since.map(|(_, record)| record.clone()).collect::<Vec<_>>()
            });
            let is_once = matches!(&done[..], [_, Record::RequestAnswered { .. }]);
            assert!(is_once, "{act:?} after {operations} operations of the disk: {done:#?}");
            assert!(!world.is_broken());
            if answered {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 0, "the power never failed before {act:?} was answered");
    }
}

/// Everything goes on but the writer.
async fn without_the_writer(life: &mut Life, time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < end {
        life.take_states_turns();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_that_came_too_late_is_not_remembered_as_done() {
    world::begin_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    let endpoint = subscribe(&mut life, Tenant::DEFAULT).await;
    world.with(|inner| inner.receivers.entry(endpoint).or_default().manner = Manner::Healthy);
    let (context, draft) = (life.context.clone(), draft(&world));
    let published = tokio::spawn(async move { Events(&context).publish(draft).await });
    tokio::task::yield_now().await;
    life.take_writers_turn();
    life.hear_held();
    // The receiver answers, and what came of the attempt waits for its commit.
    without_the_writer(&mut life, Duration::from_secs(2)).await;
    let delivery = DeliveryKey { event: published.await.unwrap().unwrap().position, endpoint };
    assert_eq!(world.with(|inner| inner.happened["sent"]), 1);
    assert_eq!(life.context.outbox().pending_commits().0, 1, "the outcome waits");
    let context = life.context.clone();
    let cancelled =
        tokio::spawn(async move { Deliveries(&context).cancel(&Scope(None), delivery, Some(keyed())).await });
    without_the_writer(&mut life, Duration::from_millis(100)).await;
    life.run_for(Duration::from_millis(500)).await;
    assert!(matches!(cancelled.await.unwrap(), Err(ChangeError::NotAllowed(_))));
    let context = life.context.clone();
    let seen = async move {
        let now =
            Deliveries(&context).get(&Scope(None), delivery).await?.expect("it is there").delivery.state;
        Ok::<_, Unavailable>((now, context.remembered(&keyed::<()>().idempotency).await?))
    };
    let (now, remembered) = see_through(&mut life, seen).await.unwrap();
    assert_eq!(now, DeliveryState::Delivered);
    assert!(
        matches!(remembered, Remembered::Nothing),
        "it is said to be cancelled from now on: {remembered:?}"
    );
    assert!(!world.is_broken());
}

/// How often the journal says that deliveries were put elsewhere.
fn reorders(world: &World) -> u64 {
    world.with(|inner| inner.happened.get("reordered").copied().unwrap_or(0))
}

/// How much is pending at an endpoint, and how much of it behind others.
async fn counted(life: &mut Life, endpoint: EndpointNumber) -> (u64, u64) {
    let context = life.context.clone();
    let lane = see_through(life, async move { Endpoints(&context).lane(endpoint).await }).await.unwrap();
    (lane.pending, lane.waiting_for_order)
}

/// Begins to free five deliveries that wait behind one another, and ends within that; gives their endpoint.
async fn free_some(life: &mut Life, is_killed: bool) -> EndpointNumber {
    let strict =
        |endpoint| Endpoint { ordering: Ordering::Endpoint, status: EndpointStatus::Paused, ..endpoint };
    let number = subscribe_with(life, Tenant::DEFAULT, strict).await;
    let (context, drafts) = (life.context.clone(), vec![draft(&life.world); 5]);
    see_through(life, async move { Events(&context).publish_batch(drafts, None).await }).await.unwrap();
    assert_eq!(counted(life, number).await, (5, 4));
    let known = life.context.outbox().endpoint(number).unwrap();
    let changed = Endpoint { ordering: Ordering::None, ..Endpoint::clone(&known) };
    let context = life.context.clone();
    let changing = tokio::spawn(async move { Endpoints(&context).update(changed, None).await });
    for _ in 0..1_000 {
        if reorders(&life.world) > 0 {
            break;
        }
        life.work().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(changing.await.unwrap().is_ok());
    if !is_killed {
        assert_eq!(life.stop().await, End::Stopped);
    }
    number
}

#[test]
fn a_change_of_ordering_keeps_no_stop_waiting_and_is_gone_on_with_at_the_next_start() {
    TestOverrides { bounds: [(Bound::BulkDeliveries, 1)].into(), mutation: None }.activate();
    for is_killed in [true, false] {
        world::begin_time();
        let world = World::new(1);
        let endpoint = live(&world, 1, async |life| free_some(life, is_killed).await);
        assert!((1..5).contains(&reorders(&world)), "{} of 5 were waited for", reorders(&world));
        live(&world, 1, async |life| {
            life.run_for(Duration::from_secs(1)).await;
            assert_eq!(counted(life, endpoint).await, (5, 0));
        });
        assert_eq!(reorders(&world), 5);
        assert!(!world.is_broken());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_retried_while_retention_looks_does_not_expire() {
    world::begin_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    let paused = |endpoint| Endpoint { status: EndpointStatus::Paused, ..endpoint };
    let endpoint = subscribe_with(&mut life, Tenant::DEFAULT, paused).await;
    // More than one step of retention has.
    let mut events = Vec::new();
    for _ in 0..3 {
        let (context, drafts) = (life.context.clone(), vec![draft(&world); 500]);
        let published =
            see_through(&mut life, async move { Events(&context).publish_batch(drafts, None).await }).await;
        events.extend(published.unwrap().results.into_iter().map(|accepted| accepted.unwrap().position));
    }
    life.run_for(Duration::from_secs(2_000)).await;
    let context = life.context.clone();
    let passing = tokio::spawn(async move {
        let keep = retention::Keep { events: Some(Duration::from_secs(60)), ..Default::default() };
        retention::pass(&context, keep, &mut retention::retention(&context, keep)).await
    });
    // It has looked, and the first deaths wait for their commit.
    while life.context.outbox().pending_commits().0 == 0 {
        tokio::task::yield_now().await;
        life.take_states_turns();
    }
    let delivery = DeliveryKey { event: events[1_005], endpoint };
    let context = life.context.clone();
    let retrying =
        tokio::spawn(async move { Deliveries(&context).retry(&Scope(None), delivery, None).await });
    without_the_writer(&mut life, Duration::from_millis(100)).await;
    life.run_for(Duration::from_secs(5)).await;
    assert!(retrying.await.unwrap().is_ok() && passing.await.unwrap().is_ok());
    let context = life.context.clone();
    let seen = async move { Deliveries(&context).get(&Scope(None), delivery).await };
    let now = see_through(&mut life, seen).await.unwrap().unwrap().delivery.state;
    assert_eq!(now, DeliveryState::Pending, "its retry was accepted");
    assert!(!world.is_broken());
}
