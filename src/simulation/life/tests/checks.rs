//! The checks: they accept an answer of an earlier moment, and nothing else.

use super::*;
use crate::delivery::rebuilding;
use crate::domain::{Expected, Horizon};
use crate::service::EventTypes;
use crate::service::event_types::Strictness;
use crate::service::stream_states::StateBound;
use crate::simulation::states::{self, RULES, StreamKey};
use crate::simulation::{feed, types};

/// Runs ready tasks, but neither the writer nor the state.
async fn run_tasks() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Steps the writer alone until it has committed a record.
async fn commit(life: &mut Life) {
    let last = life.reader.last_position();
    while life.reader.last_position() == last {
        run_tasks().await;
        life.step_writer();
        life.deliver_held_notices();
    }
    run_tasks().await;
}

/// A type gets rules and is deleted while its events are folded. The answer is that of the rules,
/// although neither its beginning nor its end has them.
#[tokio::test(start_paused = true)]
async fn state_by_rules_of_a_moment_is_right() {
    world::reset_time();
    let world = World::new(1);
    let mut life = Life::begin(&world).unwrap();
    let (context, draft) = (life.context.clone(), draft(&world));
    let draft = EventDraft { stream: Some("order-1".parse().unwrap()), expected: Expected::Any, ..draft };
    let name = draft.event_type.clone();
    let event = run_task(&mut life, async move { Events(&context).publish(draft).await }).await.unwrap();
    let key = world.with(|inner| StreamKey::of(&inner.model.oracle.events[&event.position])).unwrap();

    let (context, changed, registered) = (life.context.clone(), world.clone(), name.clone());
    let putting = async move { types::register(&context, &changed, registered, Some(RULES[1].0)).await };
    let putting = tokio::spawn(putting);
    while life.context.outbox_of(Home::All).pending_commits().0 == 0 {
        run_tasks().await;
        life.step_state();
    }
    let (context, looked_at) = (life.context.clone(), world.clone());
    let looking = tokio::spawn(async move {
        states::look_at(&context, &looked_at, &key, StateBound::default()).await;
    });
    run_tasks().await;
    commit(&mut life).await;
    // The question has the rules when it reads the events.
    while !putting.is_finished() || life.state.turn_by_hand() {
        run_tasks().await;
    }
    assert!(!looking.is_finished());
    let context = life.context.clone();
    let deleting = tokio::spawn(async move { EventTypes(&context).delete(&name, Strictness::Force).await });
    commit(&mut life).await;
    deleting.await.unwrap().unwrap();
    life.run_for(Duration::from_millis(500)).await;
    assert!(looking.is_finished());
    assert_eq!(world.with(|inner| inner.happened.get("statesDuringChanges").copied()), Some(1));
    assert_eq!(world.with(|inner| inner.violation.clone()), None);
}

/// A rebuild brings back an event that retention has removed, and a retry keeps it. Readers still
/// begin again after it.
#[tokio::test(start_paused = true)]
async fn horizon_stays_at_an_event_that_lives_again() {
    const KEPT: Duration = Duration::from_secs(60);
    world::reset_time();
    let world = World::new(1);
    world.with(|inner| {
        (inner.plan.keep, inner.model.keep) = (Some(KEPT), Some(KEPT));
        inner.plan.segment_bytes = 1 << 20;
    });
    let mut life = Life::begin(&world).unwrap();
    let endpoint = subscribe(&mut life, Tenant::DEFAULT).await;
    world.with(|inner| inner.receivers.entry(endpoint).or_default().behavior = Behavior::Healthy);
    let (context, draft) = (life.context.clone(), draft(&world));
    let publish = move |draft| async move { Events(&context).publish(draft).await.unwrap().position };
    let event = run_task(&mut life, publish.clone()(draft.clone())).await;
    life.run_for(Duration::from_secs(100)).await;
    let young = run_task(&mut life, publish(draft)).await;

    let context = life.context.clone();
    let keep = retention::Keep { events: Some(KEPT), ..Default::default() };
    let passing =
        async move { retention::pass(&context, keep, &mut retention::retention(&context, keep)).await };
    assert_eq!(run_task(&mut life, passing).await.unwrap().events, 1);
    let horizon = world.with(|inner| inner.model.oracle.horizon.horizon);
    assert_eq!(horizon, Horizon { events: event, ..Horizon::default() });

    let context = life.context.clone();
    run_task(&mut life, async move { rebuilding::run_once(&context).await }).await.unwrap();
    world.with(|inner| inner.receivers.entry(endpoint).or_default().behavior = Behavior::Fails);
    let (context, delivery) = (life.context.clone(), DeliveryKey { event, endpoint });
    let retry = async move { Deliveries(&context).retry(&Scope(None), delivery, None).await };
    run_task(&mut life, retry).await.unwrap();
    assert!(world.with(|inner| !inner.model.may_be_removed(event)), "it lives again");
    let (context, reader) = (life.context.clone(), world.clone());
    run_task(&mut life, async move { feed::read_on(&context, &reader).await }).await;
    assert_eq!(world.with(|inner| inner.happened.get("feedGone").copied()), Some(1));
    assert_eq!(world.with(|inner| inner.violation.clone()), None);

    // A horizon never moves to such an event, to a young one, to another kind, or back.
    let check = |horizon| world.with(|inner| inner.model.check_horizon(horizon));
    assert_eq!(check(horizon), Ok(()));
    for events in [young, Position(1), Position(0)] {
        assert!(check(Horizon { events, ..horizon }).is_err(), "{events}");
    }
    assert!(check(Horizon { stream_events: event, ..horizon }).is_err());
}

/// The state that a rebuild makes has again what retention removed.
#[tokio::test(start_paused = true)]
async fn rebuild_asks_for_a_retention_pass() {
    const KEPT: Duration = Duration::from_secs(6_000);
    world::reset_time();
    let world = World::new(1);
    world.with(|inner| (inner.plan.keep, inner.model.keep) = (Some(KEPT), Some(KEPT)));
    let mut life = Life::begin(&world).unwrap();
    let (context, draft) = (life.context.clone(), draft(&world));
    let event = run_task(&mut life, async move { Events(&context).publish(draft).await.unwrap() }).await;
    life.run_for(2 * KEPT).await;
    let keep = retention::Keep { events: Some(KEPT), ..Default::default() };
    let passes = tokio::spawn(retention::run(life.context.clone(), keep));
    let rebuilds = tokio::spawn(rebuilding::run(life.context.clone()));
    let horizon = || world.with(|inner| inner.model.oracle.horizon.horizon.events);
    // The pause before the first pass is ten minutes.
    life.run_for(Duration::from_secs(590)).await;
    assert!(life.context.rebuilds().request(life.context.now().wall, event.position));
    assert_eq!(horizon(), Position(0), "a pass before its time");
    life.run_for(Duration::from_secs(5)).await;
    assert_eq!(horizon(), event.position);
    assert!(!world.has_violation());
    passes.abort();
    rebuilds.abort();
}
