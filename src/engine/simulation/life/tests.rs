//! A life that does what a test says.

#![cfg(test)]

use super::*;
use crate::domain::{
    DisabledReason, Endpoint, EndpointNumber, EndpointStatus, Handshake, Ordering, RetryPolicy, Tenant,
};
use crate::engine::types::EventDraft;
use crate::lanes::WaitReason;

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
        max_in_flight: 1,
        ordering: Ordering::None,
        retry: RetryPolicy::Schedule(Vec::new()),
        handshake: None,
        ..drawn
    });
    let engine = life.engine.clone();
    let created = tokio::spawn(async move { engine.create_endpoint(endpoint, None).await });
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
    let engine = life.engine.clone();
    let published = tokio::spawn(async move { engine.publish_batch(vec![draft.clone(), draft]).await });
    tokio::task::yield_now().await;
    life.take_writers_turn();
    life.hear_held();
    assert!(published.await.unwrap().iter().all(Result::is_ok));
    // Nothing is durable from here on, so nobody can be told that the first delivery is dead.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lane = life.engine.explain(number).await.unwrap();
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
    let (engine, draft) = (life.engine.clone(), draft(&world));
    see_through(&mut life, async move { engine.publish(draft).await }).await.unwrap();
    assert_eq!(life.engine.explain(number).await.unwrap().in_flight, 1);
    let engine = life.engine.clone();
    let paused = async move {
        let known = engine.outbox().directory(|directory| directory.endpoint(number).cloned()).unwrap();
        let status = EndpointStatus::Paused;
        engine.update_endpoint(Endpoint { status, ..Endpoint::clone(&known) }).await
    };
    see_through(&mut life, paused).await.unwrap();
    life.run_for(Duration::from_secs(2)).await;
    let lane = life.engine.explain(number).await.unwrap();
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
    let known = life.engine.outbox().directory(|directory| directory.endpoint(number).cloned()).unwrap();
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
    let number = subscribe_with(life, Tenant::DEFAULT, |endpoint| Endpoint { retry, ..endpoint }).await;
    life.world.with(|inner| inner.exhausted = true);
    let (engine, draft) = (life.engine.clone(), draft(&life.world));
    see_through(life, async move { engine.publish(draft).await }).await.unwrap();
    let engine = life.engine.clone();
    see_through(life, async move { engine.disable(number, DisabledReason::Gone).await }).await;
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
