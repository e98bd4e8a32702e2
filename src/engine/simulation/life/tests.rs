//! A life that does what a test says.

#![cfg(test)]

use super::*;
use crate::domain::{Endpoint, EndpointNumber, Ordering, RetryPolicy, Tenant};
use crate::engine::types::EventDraft;
use crate::lanes::WaitReason;

/// An endpoint of this tenant that wants all, and of which the first attempt is the last.
async fn subscribe(life: &mut Life, tenant: &str) -> EndpointNumber {
    let drawn = life.world.with(operations::new_endpoint);
    let endpoint = Endpoint {
        tenant: tenant.parse().unwrap(),
        event_types: Vec::new(),
        rate_limit: None,
        max_in_flight: 1,
        ordering: Ordering::None,
        retry: RetryPolicy::Schedule(Vec::new()),
        handshake: None,
        ..drawn
    };
    let engine = life.engine.clone();
    let created = tokio::spawn(async move { engine.create_endpoint(endpoint, None).await });
    life.run_for(Duration::from_millis(100)).await;
    created.await.unwrap().unwrap().number
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_asks_at_a_last_attempt_is_left_alone_before_the_operator_is_told() {
    world::begin_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    subscribe(&mut life, Tenant::OPERATOR).await;
    let number = subscribe(&mut life, Tenant::DEFAULT).await;
    world.with(|inner| inner.receivers.entry(number).or_default().manner = Manner::Asks);
    let draft = EventDraft {
        tenant: Tenant::DEFAULT.parse().unwrap(),
        stream: None,
        idempotency: None,
        id: None,
        deliver_at: None,
        ..world.with(operations::draw_post).draft
    };
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
