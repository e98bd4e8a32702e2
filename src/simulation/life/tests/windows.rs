//! Changes between an await and what follows it, and the same thing done twice.

use super::*;
use crate::domain::Consent;
use crate::rules::handshake::asked_anew;
use crate::service::{Deliveries, Endpoints, Events, Replays};

/// Reads every event from the journal: none stays in memory.
fn without_payloads() {
    TestOverrides { bounds: [(Bound::PayloadBytes, 0)].into(), mutation: None }.activate();
}

fn fresh() -> World {
    world::begin_time();
    World::new(1)
}

fn known(life: &Life, number: EndpointNumber) -> Option<Endpoint> {
    life.context.outbox().registry(|registry| registry.endpoint(number).map(|known| Endpoint::clone(known)))
}

/// Changes an endpoint and sees that this is answered.
async fn change(life: &mut Life, number: EndpointNumber, change: impl FnOnce(Endpoint) -> Endpoint) {
    let changed = change(known(life, number).unwrap());
    let context = life.context.clone();
    see_through(life, async move { Endpoints(&context).update(changed, None).await }).await.unwrap();
}

async fn publish(life: &mut Life) -> crate::domain::Position {
    let (context, draft) = (life.context.clone(), draft(&life.world));
    see_through(life, async move { Events(&context).publish(draft).await }).await.unwrap().position
}

fn sent(world: &World) -> u64 {
    world.with(|inner| inner.happened.get("sent").copied().unwrap_or(0))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Url,
    Secret,
    Pause,
    Disable,
    WithdrawConsent,
    WantConsent,
    Delete,
}

/// While an event is read, an endpoint changes, and that is acknowledged: what is sent then is sent as it is now, or not
/// at all. The receivers check URL, signature and consent of each request.
#[tokio::test(start_paused = true)]
async fn change_during_a_read_holds_for_the_request() {
    use Change::{Delete, Disable, Pause, Secret, Url, WantConsent, WithdrawConsent};
    without_payloads();
    for made in [Url, Secret, Pause, Disable, WithdrawConsent, WantConsent, Delete] {
        let world = fresh();
        let mut life = Life::begin(&world).unwrap();
        let consent = Some(Consent { at: world::wall(), rate: None });
        let handshake = Handshake::new("balto.test".parse().unwrap(), None, false);
        let agreed = Handshake { consent, ..handshake.clone() };
        let number = subscribe_with(&mut life, Tenant::DEFAULT, |endpoint| {
            let url = endpoint.url.clone();
            world.with(|inner| inner.model.agreed.insert((EndpointNumber(1), url)));
            Endpoint { handshake: (made == WithdrawConsent).then_some(agreed), ..endpoint }
        })
        .await;
        assert_eq!(number, EndpointNumber(1));
        // Nobody agrees again.
        world.with(|inner| {
            inner.receivers.entry(number).or_default().manner =
                if made == WithdrawConsent || made == WantConsent { Manner::Resets } else { Manner::Healthy };
            inner.reads_wait = true;
        });
        publish(&mut life).await;
        assert_eq!(
            Endpoints(&life.context).explain(number).await.unwrap().in_flight,
            1,
            "{made:?}: nothing is read"
        );
        if made == Delete {
            let (context, id) = (life.context.clone(), known(&life, number).unwrap().id);
            see_through(&mut life, async move { Endpoints(&context).delete(&Scope(None), &id).await })
                .await
                .unwrap();
        } else {
            change(&mut life, number, |endpoint| match made {
                Url => Endpoint { url: format!("{}?moved", endpoint.url).into(), ..endpoint },
                Secret => {
                    let secrets = life_secrets(&world);
                    Endpoint { secrets, ..endpoint }
                }
                Pause => Endpoint { status: EndpointStatus::Paused, ..endpoint },
                Disable => {
                    let (reason, at) = (DisabledReason::Gone, world::wall());
                    Endpoint { status: EndpointStatus::Disabled { reason, at }, ..endpoint }
                }
                WithdrawConsent => {
                    Endpoint { handshake: endpoint.handshake.as_ref().map(asked_anew), ..endpoint }
                }
                WantConsent => Endpoint { handshake: Some(handshake), ..endpoint },
                Delete => unreachable!("deleted above"),
            })
            .await;
        }
        assert_eq!(sent(&world), 0, "{made:?}: the read has not ended");
        world.with(|inner| inner.reads_wait = false);
        life.run_for(Duration::from_secs(5)).await;
        let broken = world.with(|inner| inner.broken.clone());
        assert_eq!(broken, None, "{made:?}");
        assert_eq!(sent(&world), u64::from(made == Url || made == Secret), "{made:?}");
    }
    TestOverrides::default().activate();
}

fn life_secrets(world: &World) -> Vec<crate::domain::Secret> {
    world.with(operations::new_endpoint).secrets
}

/// The receiver of the former URL agrees after the endpoint has moved. The model knows who agreed where.
#[tokio::test(start_paused = true)]
async fn consent_of_a_former_url_is_dropped() {
    let world = fresh();
    let mut life = Life::begin(&world).unwrap();
    let handshake = Some(Handshake::new("balto.test".parse().unwrap(), None, false));
    world.with(|inner| inner.receivers.entry(EndpointNumber(1)).or_default().manner = Manner::Slow);
    let number =
        subscribe_with(&mut life, Tenant::DEFAULT, |endpoint| Endpoint { handshake, ..endpoint }).await;
    assert!(world.with(|inner| inner.asking.contains(&number)), "it was not asked");
    world.with(|inner| inner.receivers.entry(number).or_default().manner = Manner::Resets);
    change(&mut life, number, |endpoint| Endpoint {
        url: format!("{}?moved", endpoint.url).into(),
        handshake: endpoint.handshake.as_ref().map(asked_anew),
        ..endpoint
    })
    .await;
    publish(&mut life).await;
    life.run_for(Duration::from_secs(20)).await;
    assert!(known(&life, number).unwrap().handshake.unwrap().consent.is_none());
    assert_eq!((sent(&world), world.with(|inner| inner.broken.clone())), (0, None));
}

/// Runs a task to its end while the state does not answer.
async fn without_the_state<T: Send + 'static>(
    life: &mut Life,
    task: impl Future<Output = T> + Send + 'static,
) -> T {
    let task = tokio::spawn(task);
    while !task.is_finished() {
        life.take_writers_turn();
        life.hear_held();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    task.await.unwrap()
}

/// The look for what is too old hangs; meanwhile the operator opens the endpoint, so that it is delivered after all.
#[tokio::test(start_paused = true)]
async fn endpoint_that_is_reopened_during_the_look_loses_nothing() {
    for reopens in [true, false] {
        let world = fresh();
        let mut life = Life::begin(&world).unwrap();
        let retry = RetryPolicy::Exponential {
            initial: Duration::from_secs(1),
            multiplier: 1.0,
            max_interval: Duration::from_secs(1),
            max_attempts: 100,
            max_age: Duration::from_secs(10),
            jitter: 0.0,
        };
        let number = subscribe_with(&mut life, Tenant::DEFAULT, |endpoint| Endpoint {
            retry: Some(retry),
            ..endpoint
        })
        .await;
        world.with(|inner| inner.exhausted = true);
        publish(&mut life).await;
        life.run_for(Duration::from_secs(20)).await;
        let context = life.context.clone();
        let disabling =
            async move { Endpoints(&context).disable(number, DisabledReason::Gone, |_| true).await };
        without_the_state(&mut life, disabling).await;
        // At a disabled endpoint the age counts from its disabling.
        life.run_for(Duration::from_millis(9_900)).await;
        // The state is asked for what is too old, and does not answer.
        tokio::time::sleep(Duration::from_secs(5)).await;
        if reopens {
            let opened = Endpoint { status: EndpointStatus::Active, ..known(&life, number).unwrap() };
            let context = life.context.clone();
            let opening = async move { Endpoints(&context).update(opened, None).await };
            without_the_state(&mut life, opening).await.unwrap();
        }
        world.with(|inner| inner.exhausted = false);
        life.run_for(Duration::from_secs(5)).await;
        // The control: what stays closed is given up.
        let expected = if reopens { (0, 1) } else { (1, 0) };
        assert_eq!((died(&world), sent(&world)), expected);
        assert!(!world.is_broken());
    }
}

/// An endpoint is deleted between two steps of a replay to it, and of a redrive.
#[tokio::test(start_paused = true)]
async fn deletion_between_two_steps_ends_the_replay() {
    TestOverrides { bounds: [(Bound::BulkDeliveries, 1)].into(), mutation: None }.activate();
    let world = fresh();
    let mut life = Life::begin(&world).unwrap();
    let paused = |endpoint| Endpoint { status: EndpointStatus::Paused, ..endpoint };
    for _ in 0..5 {
        publish(&mut life).await;
    }
    let number = subscribe_with(&mut life, Tenant::DEFAULT, paused).await;
    let endpoint = known(&life, number).unwrap();
    let (context, id) = (life.context.clone(), endpoint.id.clone());
    let replaying = tokio::spawn(async move {
        Replays(&context).to_endpoint(&endpoint, Timestamp::ZERO, None, &[], false, None).await
    });
    // Two of five are durable.
    while revived(&world) < 2 {
        tokio::task::yield_now().await;
        life.take_states_turns();
        life.take_writers_turn();
        life.hear_held();
    }
    let context = life.context.clone();
    let deleting = tokio::spawn(async move { Endpoints(&context).delete(&Scope(None), &id).await });
    life.run_for(Duration::from_secs(5)).await;
    assert!(deleting.await.unwrap().is_ok());
    let ended = replaying.await.unwrap();
    assert!(matches!(ended, Err(ChangeError::NotAllowed("the endpoint was deleted"))), "{ended:?}");
    // What was begun until then ends as everything of a deleted endpoint does.
    let left = world.with(|inner| inner.model.pending().count());
    assert_eq!(left, 0);
    assert!(!world.is_broken());
    TestOverrides::default().activate();
}

fn revived(world: &World) -> usize {
    world.with(|inner| {
        let revived = |(_, record): &&(Position, Record)| matches!(record, Record::DeliveriesRevived { .. });
        inner.model.records.iter().filter(revived).count()
    })
}

/// The power fails after each step of a bulk operation in turn; repeated, it reaches all.
#[test]
fn bulk_operation_cut_between_steps_reaches_all_on_repeat() {
    for act in [Act::ReplayEndpoint, Act::RedriveAll, Act::PurgeAll] {
        for steps in 1..=4 {
            TestOverrides { bounds: [(Bound::BulkDeliveries, 1)].into(), mutation: None }.activate();
            let world = fresh();
            let new = Endpoint { handshake: None, ..world.with(operations::new_endpoint) };
            let (first, before) = live(&world, steps, async |life| {
                let first = with_delivery(life, act != Act::ReplayEndpoint).await;
                for _ in 0..3 {
                    let event = publish(life).await;
                    if act != Act::ReplayEndpoint {
                        let context = life.context.clone();
                        let delivery = DeliveryKey { event, ..first };
                        let died = async move {
                            Deliveries(&context)
                                .give_up(DeadReason::AttemptsExhausted, move |_| (vec![delivery], ()))
                                .await
                        };
                        see_through(life, died).await.unwrap();
                    } else {
                        let (context, delivery) = (life.context.clone(), DeliveryKey { event, ..first });
                        let cancelled =
                            async move { Deliveries(&context).cancel(&Scope(None), delivery, None).await };
                        see_through(life, cancelled).await.unwrap();
                    }
                }
                if act == Act::ReplayEndpoint {
                    let context = life.context.clone();
                    let cancelled =
                        async move { Deliveries(&context).cancel(&Scope(None), first, None).await };
                    see_through(life, cancelled).await.unwrap();
                }
                let before = world.with(|inner| inner.model.last());
                let asked = tokio::spawn(request(life.context.clone(), act, new.clone(), first));
                while world.with(|inner| inner.model.last()).0 < before.0 + steps && !asked.is_finished() {
                    life.work().await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                (first, before)
            });
            let changed = world.with(|inner| inner.model.changed_since(before).len() as u64);
            assert!(changed >= steps.min(4), "{act:?}: {changed} after {steps} steps");
            live(&world, steps, async |life| {
                let again = request(life.context.clone(), act, new.clone(), first);
                see_through(life, again).await.unwrap();
            });
            let left = world.with(|inner| {
                let all = inner.model.oracle.deliveries.values();
                let is_left = |state| match act {
                    Act::PurgeAll => state != DeliveryState::Purged,
                    _ => state != DeliveryState::Pending,
                };
                all.filter(|known| is_left(known.state)).count()
            });
            assert_eq!(left, 0, "{act:?} after {steps} steps");
            assert!(!world.is_broken());
        }
    }
    TestOverrides::default().activate();
}

/// What a pass has taken, the next one does not find again; and it takes what has become old since, also out of segments
/// that an earlier pass has looked at and left alone.
#[tokio::test(start_paused = true)]
async fn later_retention_passes_take_what_has_become_old() {
    let world = fresh();
    world.with(|inner| {
        inner.plan.keep = Some(Duration::from_secs(60));
        inner.model.keep = Some(Duration::from_secs(60));
        inner.plan.segment_bytes = 600;
    });
    let mut life = Life::begin(&world).unwrap();
    let number = subscribe(&mut life, Tenant::DEFAULT).await;
    world.with(|inner| inner.receivers.entry(number).or_default().manner = Manner::Healthy);
    let keep = retention::Keep { events: Some(Duration::from_secs(60)), ..Default::default() };
    let mut retention = retention::retention(&life.context, keep);
    for _ in 0..2 {
        for _ in 0..8 {
            publish(&mut life).await;
        }
        // At once, when all is old, and once more.
        for (wait, events) in [(0, 0), (100, 8), (0, 0)] {
            life.run_for(Duration::from_secs(wait)).await;
            let context = life.context.clone();
            let passing = async move {
                let pass = retention::pass(&context, keep, &mut retention).await;
                (pass, retention)
            };
            let (pass, again) = see_through(&mut life, passing).await;
            retention = again;
            let pass = pass.unwrap();
            assert_eq!(pass.events, events);
            assert!(events == 0 || pass.records >= 4, "what was forgotten stays in the journal: {pass:?}");
        }
    }
    assert!(!world.is_broken());
}

/// Retries every five seconds, for up to eighteen: four attempts.
fn short_lived() -> RetryPolicy {
    RetryPolicy::Exponential {
        initial: Duration::from_secs(5),
        multiplier: 1.0,
        max_interval: Duration::from_secs(5),
        max_attempts: 100,
        max_age: Duration::from_secs(18),
        jitter: 0.0,
    }
}

/// Deliveries that have ended, and those that were given up because of their age.
fn ended(world: &World) -> (usize, usize) {
    world.with(|inner| {
        let all = || inner.model.oracle.deliveries.values().map(|known| known.state);
        let is_old = |state: &DeliveryState| *state == DeliveryState::Dead(DeadReason::MaxAge);
        (all().filter(|state| *state != DeliveryState::Pending).count(), all().filter(is_old).count())
    })
}

#[tokio::test(start_paused = true)]
async fn time_paused_between_attempts_is_no_age() {
    let world = fresh();
    let mut life = Life::begin(&world).unwrap();
    let number = subscribe_with(&mut life, Tenant::DEFAULT, |endpoint| Endpoint {
        retry: Some(short_lived()),
        ..endpoint
    })
    .await;
    world.with(|inner| inner.receivers.entry(number).or_default().manner = Manner::Resets);
    publish(&mut life).await;
    for _ in 0..2 {
        change(&mut life, number, |endpoint| Endpoint { status: EndpointStatus::Paused, ..endpoint }).await;
        life.run_for(Duration::from_secs(60)).await;
        change(&mut life, number, |endpoint| Endpoint { status: EndpointStatus::Active, ..endpoint }).await;
    }
    assert_eq!((sent(&world), ended(&world)), (3, (0, 0)));
    // The receiver has failed for ten seconds by now, and fails on.
    life.run_for(Duration::from_secs(30)).await;
    assert_eq!((sent(&world), ended(&world)), (4, (1, 1)));
    assert_eq!(world.with(|inner| inner.broken.clone()), None);
}

#[test]
fn time_the_daemon_is_down_between_attempts_is_no_age() {
    let world = fresh();
    live(&world, 1, async |life| {
        let number = subscribe_with(life, Tenant::DEFAULT, |endpoint| Endpoint {
            retry: Some(short_lived()),
            ..endpoint
        })
        .await;
        world.with(|inner| inner.receivers.entry(number).or_default().manner = Manner::Resets);
        publish(life).await;
        assert_eq!(life.stop().await, End::Stopped);
    });
    world::jump(600_000);
    live(&world, 1, async |life| {
        life.run_for(Duration::from_secs(2)).await;
        assert_eq!((sent(&world), ended(&world)), (2, (0, 0)));
        life.run_for(Duration::from_secs(30)).await;
    });
    assert_eq!((sent(&world), ended(&world)), (4, (1, 1)), "it fails on");
    assert_eq!(world.with(|inner| inner.broken.clone()), None);
}

/// As after a rotation of the key that secrets are sealed under.
#[tokio::test(start_paused = true)]
async fn sealing_secrets_again_does_not_delay_the_disabling() {
    for seals in [false, true] {
        let world = fresh();
        let mut life = Life::begin(&world).unwrap();
        let retry = Some(RetryPolicy::Schedule(vec![Duration::from_secs(2); 100]));
        let number =
            subscribe_with(&mut life, Tenant::DEFAULT, |endpoint| Endpoint { retry, ..endpoint }).await;
        world.with(|inner| inner.receivers.entry(number).or_default().manner = Manner::Resets);
        publish(&mut life).await;
        life.run_for(Duration::from_secs(30)).await;
        if seals {
            let (context, sealed) = (life.context.clone(), known(&life, number).unwrap());
            see_through(&mut life, async move { Endpoints(&context).put(sealed, None).await }).await.unwrap();
        }
        life.run_for(Duration::from_secs(20)).await;
        let status = known(&life, number).unwrap().status;
        let failing = DisabledReason::Failing;
        assert!(
            matches!(status, EndpointStatus::Disabled { reason, .. } if reason == failing),
            "sealed again: {seals}"
        );
        assert_eq!(world.with(|inner| inner.broken.clone()), None);
    }
}
