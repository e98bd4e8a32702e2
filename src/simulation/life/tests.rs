//! Scripted lives.

#![cfg(test)]

mod checks;
mod replays;
mod stops;
mod windows;

use super::*;
use crate::context::home::Home;
use crate::context::responses::{Answer, Keyed, Remember, Remembered};
use crate::delivery::retention;
use crate::domain::{
    ApiKey, DeadReason, DeliveryKey, DeliveryState, DisabledReason, Endpoint, EndpointNumber, EndpointStatus,
    EventSelection, Handshake, Idempotency, JobKind, JobSelection, JobStatus, Ordering, RetryPolicy, Role,
    Tenant,
};
use crate::failpoints::{Bound, TestOverrides};
use crate::lanes::WaitReason;
use crate::outbox::draft::{ChangeError, EventDraft};
use crate::service::jobs::NewJob;
use crate::service::types::Scope;
use crate::service::{DeadLetters, Deliveries, Endpoints, Events, Jobs, Keys, Replays};

/// Creates an endpoint of this tenant for all event types, without retries.
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
        selection: EventSelection::default(),
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

/// An event of the default tenant without id, key, stream or due time.
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

/// Runs the life until the task has ended.
async fn run_task<T: Send + 'static>(life: &mut Life, task: impl Future<Output = T> + Send + 'static) -> T {
    let task = tokio::spawn(task);
    life.run_for(Duration::from_millis(500)).await;
    assert!(task.is_finished(), "the task has not ended");
    task.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn retry_after_of_a_last_attempt_holds_before_its_commit() {
    world::reset_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    subscribe(&mut life, Tenant::OPERATOR).await;
    let number = subscribe(&mut life, Tenant::DEFAULT).await;
    world.with(|inner| inner.receivers.entry(number).or_default().behavior = Behavior::Asks);
    let draft = draft(&world);
    let context = life.context.clone();
    let published =
        tokio::spawn(async move { Events(&context).publish_batch(vec![draft.clone(), draft], None).await });
    tokio::task::yield_now().await;
    life.step_writer();
    life.deliver_held_notices();
    assert!(published.await.unwrap().unwrap().results.iter().all(Result::is_ok));
    // Nothing is committed from here on, so the first delivery is not yet dead.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lane = Endpoints(&life.context).explain(number).await.unwrap();
    assert_eq!((lane.reason, lane.in_flight), (Some(WaitReason::RetryAfter), 0));
    assert_eq!(world.with(|inner| inner.happened["sent"]), 1, "the second delivery was sent");
    assert!(!world.has_violation());
}

/// An attempt must read the endpoint again after a shortage of file descriptors.
#[tokio::test(start_paused = true)]
async fn endpoint_paused_during_descriptor_shortage_gets_nothing() {
    world::reset_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    let number = subscribe(&mut life, Tenant::DEFAULT).await;
    world.with(|inner| inner.exhausted = true);
    let (context, draft) = (life.context.clone(), draft(&world));
    run_task(&mut life, async move { Events(&context).publish(draft).await }).await.unwrap();
    assert_eq!(Endpoints(&life.context).explain(number).await.unwrap().in_flight, 1);
    let context = life.context.clone();
    let paused = async move {
        let known = context.outbox_of(number).endpoint(number).unwrap();
        let status = EndpointStatus::Paused;
        Endpoints(&context).update(Endpoint { status, ..Endpoint::clone(&known) }, None).await
    };
    run_task(&mut life, paused).await.unwrap();
    life.run_for(Duration::from_secs(2)).await;
    let lane = Endpoints(&life.context).explain(number).await.unwrap();
    assert_eq!((lane.reason, lane.in_flight), (Some(WaitReason::Paused), 0), "the slot is not free");
    world.with(|inner| inner.exhausted = false);
    life.run_for(Duration::from_secs(5)).await;
    assert_eq!(world.with(|inner| inner.happened.get("sent").copied()), None, "request to a paused endpoint");
    assert!(!world.has_violation());
}

#[tokio::test(start_paused = true)]
async fn descriptor_shortage_keeps_the_callback_of_a_handshake() {
    world::reset_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    world.with(|inner| inner.exhausted = true);
    let handshake = Some(Handshake::new("balto.test".parse().unwrap(), None, true));
    let number =
        subscribe_with(&mut life, Tenant::DEFAULT, |endpoint| Endpoint { handshake, ..endpoint }).await;
    life.run_for(Duration::from_secs(60)).await;
    let tries = world.with(|inner| inner.happened["exhausted"]);
    assert!((30..=61).contains(&tries), "{tries} tries in a minute");
    let known = life.context.outbox_of(number).endpoint(number).unwrap();
    assert_eq!(known.handshake.as_ref().unwrap().callbacks.len(), 1, "unsent callbacks were committed");
    world.with(|inner| inner.exhausted = false);
    life.run_for(Duration::from_secs(2)).await;
    assert!(world.with(|inner| inner.happened["handshakeRequests"]) >= 1, "no request after the shortage");
    assert!(!world.has_violation());
}

/// Creates a disabled endpoint with a delivery that is about to expire.
async fn expiring_delivery(life: &mut Life) {
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
    run_task(life, async move { Events(&context).publish(draft).await }).await.unwrap();
    let context = life.context.clone();
    run_task(life, async move { Endpoints(&context).disable(number, DisabledReason::Gone, |_| true).await })
        .await;
    life.run_for(Duration::from_secs(2)).await;
}

/// Number of `DeliveriesDied` records.
fn death_records(world: &World) -> usize {
    world.with(|inner| inner.trace.lines().filter(|line| line.contains("DeliveriesDied")).count())
}

#[tokio::test(start_paused = true)]
async fn expired_delivery_dies_once_while_the_journal_hangs() {
    world::reset_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    expiring_delivery(&mut life).await;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        life.step_state();
    }
    assert_eq!(death_records(&world), 0, "committed while the writer hangs");
    life.run_for(Duration::from_secs(5)).await;
    assert_eq!(death_records(&world), 1);
    assert!(!world.has_violation());
}

#[tokio::test(start_paused = true)]
async fn hanging_state_accumulates_no_tasks() {
    world::reset_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    expiring_delivery(&mut life).await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = alive();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(alive() <= before + 2, "{before} tasks before, {} now", alive());
    life.run_for(Duration::from_secs(5)).await;
    assert_eq!(death_records(&world), 1, "the delivery must die after the state resumes");
    assert!(!world.has_violation());
}

/// Requests that take an idempotency key.
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

/// Creates a paused endpoint with a pending or dead delivery.
async fn with_delivery(life: &mut Life, is_dead: bool) -> DeliveryKey {
    let paused = |endpoint| Endpoint { status: EndpointStatus::Paused, ..endpoint };
    let endpoint = subscribe_with(life, Tenant::DEFAULT, paused).await;
    let (context, draft) = (life.context.clone(), draft(&life.world));
    let event = run_task(life, async move { Events(&context).publish(draft).await }).await.unwrap().position;
    let delivery = DeliveryKey { event, endpoint };
    if is_dead {
        let context = life.context.clone();
        let died = async move {
            Deliveries(&context).give_up(DeadReason::AttemptsExhausted, move |_| (vec![delivery], ())).await
        };
        run_task(life, died).await.unwrap();
    }
    delivery
}

/// Performs a request like a handler, unless its response is stored.
async fn request(
    context: Context,
    act: Act,
    new: Endpoint,
    delivery: DeliveryKey,
) -> Result<(), ChangeError> {
    let all = Scope(None);
    let remember: Remember = keyed().response_for(&());
    match context.stored_response(&remember.idempotency).await? {
        Remembered::Nothing => {}
        Remembered::Same(answer) if answer == remember.answer => return Ok(()),
        other => panic!("{act:?}: unexpected stored response {other:?}"),
    }
    let known = context.outbox_of(delivery.endpoint).endpoint(delivery.endpoint).unwrap();
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
            let key =
                ApiKey { id, role, tenant: None, description, hash: [3; 32], created_at, expires_at: None };
            Keys(&context).create(key, Some(remember)).await
        }
        Act::Retry => Deliveries(&context).retry(&all, delivery, Some(keyed())).await.map(drop),
        Act::Cancel => Deliveries(&context).cancel(&all, delivery, Some(keyed())).await.map(drop),
        Act::Redrive => DeadLetters(&context).redrive(&all, delivery, Some(keyed())).await.map(drop),
        Act::ReplayEvent => {
            let event = context.event_at(delivery.event).await?.unwrap();
            Replays(&context).of_event(&all, &event.tenant, &event.id, None, Some(keyed())).await.map(drop)
        }
        Act::ReplayEndpoint => start(&context, replay_of(&known)).await,
        Act::RedriveAll => start(&context, bulk(JobKind::RedriveDeadLetters)).await,
        Act::PurgeAll => start(&context, bulk(JobKind::PurgeDeadLetters)).await,
    }
}

/// Starts a job with the key of the request.
async fn start(context: &Context, new: NewJob) -> Result<(), ChangeError> {
    Jobs(context).start(&new, Some(keyed())).await.map(drop)
}

fn bulk(kind: JobKind) -> NewJob {
    NewJob { kind, tenant: None, selection: JobSelection::default(), rate: None }
}

fn replay_of(endpoint: &Endpoint) -> NewJob {
    let selection = JobSelection { endpoint: Some(endpoint.number), ..JobSelection::default() };
    NewJob { tenant: Some(endpoint.tenant.clone()), selection, ..bulk(JobKind::ReplayEndpoint) }
}

/// Runs a life on a separate runtime, and leaves the surviving disk for the next one.
fn run_life<T>(world: &World, seed: u64, life: impl AsyncFnOnce(&mut Life) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let done = runtime.unwrap().block_on(async {
        let mut started = Life::begin(world).unwrap();
        let done = life(&mut started).await;
        world::end_life();
        done
    });
    let disk = world.disk();
    world.set_disk(disk.disk_after_power_cut().unwrap_or_else(|| disk.crash(seed)));
    done
}

/// The power fails at each disk operation in turn, until the response comes first.
#[test]
fn request_repeated_after_power_failure_is_done_once() {
    for act in Act::ALL {
        let mut cuts = 0;
        for operations in 0.. {
            world::reset_time();
            let world = World::new(1);
            let new = Endpoint { handshake: None, ..world.with(operations::new_endpoint) };
            let is_dead = !matches!(act, Act::Retry | Act::Cancel);
            let (delivery, before, answered) = run_life(&world, operations, async |life| {
                let delivery = with_delivery(life, is_dead).await;
                let before = world.with(|inner| inner.model.last());
                world.disk().cut_power_after(operations, operations);
                let first = tokio::spawn(request(life.context.clone(), act, new.clone(), delivery));
                life.run_for(Duration::from_millis(500)).await;
                (delivery, before, first.is_finished() && first.await.unwrap().is_ok())
            });
            let again = run_life(&world, operations, async |life| {
                let again = request(life.context.clone(), act, new.clone(), delivery);
                run_task(life, again).await
            });
            again.unwrap_or_else(|error| panic!("{act:?} repeated after {operations} operations: {error}"));
            let done = world.with(|inner| {
                let since = inner.model.records.iter().filter(|(position, _)| *position > before);
                since.map(|(_, record)| record.clone()).collect::<Vec<_>>()
            });
            let is_once = matches!(
                &done[..],
                [_, Record::RequestAnswered { .. }] | [Record::JobPut(_), _, Record::RequestAnswered { .. }]
            );
            assert!(is_once, "{act:?} after {operations} disk operations: {done:#?}");
            assert!(!world.has_violation());
            if answered {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 0, "the power never failed before the response to {act:?}");
    }
}

/// Runs everything but the writer.
async fn run_without_writer(life: &mut Life, time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < end {
        life.step_state();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn late_cancellation_stores_no_response() {
    world::reset_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    let endpoint = subscribe(&mut life, Tenant::DEFAULT).await;
    world.with(|inner| inner.receivers.entry(endpoint).or_default().behavior = Behavior::Healthy);
    let (context, draft) = (life.context.clone(), draft(&world));
    let published = tokio::spawn(async move { Events(&context).publish(draft).await });
    tokio::task::yield_now().await;
    life.step_writer();
    life.deliver_held_notices();
    // The receiver replies, and the outcome waits for its commit.
    run_without_writer(&mut life, Duration::from_secs(2)).await;
    let delivery = DeliveryKey { event: published.await.unwrap().unwrap().position, endpoint };
    assert_eq!(world.with(|inner| inner.happened["sent"]), 1);
    assert_eq!(life.context.outbox_of(Home::All).pending_commits().0, 1, "the outcome waits");
    let context = life.context.clone();
    let cancelled =
        tokio::spawn(async move { Deliveries(&context).cancel(&Scope(None), delivery, Some(keyed())).await });
    run_without_writer(&mut life, Duration::from_millis(100)).await;
    life.run_for(Duration::from_millis(500)).await;
    assert!(matches!(cancelled.await.unwrap(), Err(ChangeError::NotAllowed(_))));
    let context = life.context.clone();
    let seen = async move {
        let now = Deliveries(&context).get(&Scope(None), delivery).await?.expect("it exists").delivery.state;
        Ok::<_, Unavailable>((now, context.stored_response(&keyed::<()>().idempotency).await?))
    };
    let (now, stored) = run_task(&mut life, seen).await.unwrap();
    assert_eq!(now, DeliveryState::Delivered);
    assert!(matches!(stored, Remembered::Nothing), "a response was stored: {stored:?}");
    assert!(!world.has_violation());
}

/// Number of `DeliveriesReordered` records.
fn reorder_records(world: &World) -> u64 {
    world.with(|inner| inner.happened.get("reordered").copied().unwrap_or(0))
}

/// Numbers of pending deliveries and of those behind others.
async fn pending_and_waiting(life: &mut Life, endpoint: EndpointNumber) -> (u64, u64) {
    let context = life.context.clone();
    let lane = run_task(life, async move { Endpoints(&context).lane(endpoint).await }).await.unwrap();
    (lane.pending, lane.waiting_for_order)
}

/// Ends the life while a job removes the ordering of five deliveries. Returns their endpoint.
async fn start_reordering(life: &mut Life, is_killed: bool) -> EndpointNumber {
    let ordered =
        |endpoint| Endpoint { ordering: Ordering::Endpoint, status: EndpointStatus::Paused, ..endpoint };
    let number = subscribe_with(life, Tenant::DEFAULT, ordered).await;
    let (context, drafts) = (life.context.clone(), vec![draft(&life.world); 5]);
    run_task(life, async move { Events(&context).publish_batch(drafts, None).await }).await.unwrap();
    assert_eq!(pending_and_waiting(life, number).await, (5, 4));
    let known = life.context.outbox_of(number).endpoint(number).unwrap();
    let changed = Endpoint { ordering: Ordering::None, ..Endpoint::clone(&known) };
    let context = life.context.clone();
    let changing = tokio::spawn(async move { Endpoints(&context).update(changed, None).await });
    for _ in 0..1_000 {
        if reorder_records(&life.world) > 0 {
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
fn interrupted_reorder_job_continues_at_the_next_start() {
    TestOverrides { bounds: [(Bound::BulkDeliveries, 1)].into(), mutation: None }.activate();
    for is_killed in [true, false] {
        world::reset_time();
        let world = World::new(1);
        let endpoint = run_life(&world, 1, async |life| start_reordering(life, is_killed).await);
        let records = reorder_records(&world);
        assert!((1..5).contains(&records), "{records} of 5 records before the stop");
        run_life(&world, 1, async |life| {
            life.run_for(Duration::from_secs(1)).await;
            assert_eq!(pending_and_waiting(life, endpoint).await, (5, 0));
        });
        assert_eq!(reorder_records(&world), 5);
        assert!(!world.has_violation());
    }
}

#[tokio::test(start_paused = true)]
async fn delivery_retried_during_a_retention_pass_does_not_expire() {
    world::reset_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    let paused = |endpoint| Endpoint { status: EndpointStatus::Paused, ..endpoint };
    let endpoint = subscribe_with(&mut life, Tenant::DEFAULT, paused).await;
    // More events than one step of retention examines.
    let mut events = Vec::new();
    for _ in 0..3 {
        let (context, drafts) = (life.context.clone(), vec![draft(&world); 500]);
        let published =
            run_task(&mut life, async move { Events(&context).publish_batch(drafts, None).await }).await;
        events.extend(published.unwrap().results.into_iter().map(|accepted| accepted.unwrap().position));
    }
    life.run_for(Duration::from_secs(2_000)).await;
    let context = life.context.clone();
    let passing = tokio::spawn(async move {
        let keep = retention::Keep { events: Some(Duration::from_secs(60)), ..Default::default() };
        retention::pass(&context, keep, &mut retention::retention(&context, keep)).await
    });
    // The pass has read the deliveries, and the first deaths wait for their commit.
    while life.context.outbox_of(Home::All).pending_commits().0 == 0 {
        tokio::task::yield_now().await;
        life.step_state();
    }
    let delivery = DeliveryKey { event: events[1_005], endpoint };
    let context = life.context.clone();
    let retrying =
        tokio::spawn(async move { Deliveries(&context).retry(&Scope(None), delivery, None).await });
    run_without_writer(&mut life, Duration::from_millis(100)).await;
    life.run_for(Duration::from_secs(5)).await;
    assert!(retrying.await.unwrap().is_ok() && passing.await.unwrap().is_ok());
    let context = life.context.clone();
    let seen = async move { Deliveries(&context).get(&Scope(None), delivery).await };
    let now = run_task(&mut life, seen).await.unwrap().unwrap().delivery.state;
    assert_eq!(now, DeliveryState::Pending, "a retried delivery has expired");
    assert!(!world.has_violation());
}
