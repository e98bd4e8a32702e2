//! Race windows: changes during an await, and repeated operations.

use super::*;
use crate::domain::{Consent, RateLimit};
use crate::rules::handshake::restart_handshake;
use crate::service::{Deliveries, Endpoints, Events, Jobs};

/// Disables the payload cache, so that every event is read from the journal.
fn disable_payload_cache() {
    TestOverrides { bounds: [(Bound::PayloadBytes, 0)].into(), mutation: None }.activate();
}

pub(super) fn new_world() -> World {
    world::reset_time();
    World::new(1)
}

pub(super) fn known(life: &Life, number: EndpointNumber) -> Option<Endpoint> {
    life.context
        .outbox_of(number)
        .registry(|registry| registry.endpoint(number).map(|known| Endpoint::clone(known)))
}

/// Changes an endpoint and waits for the result.
async fn change(life: &mut Life, number: EndpointNumber, change: impl FnOnce(Endpoint) -> Endpoint) {
    let changed = change(known(life, number).unwrap());
    let context = life.context.clone();
    run_task(life, async move { Endpoints(&context).update(changed, None).await }).await.unwrap();
}

pub(super) async fn publish(life: &mut Life) -> crate::domain::Position {
    let (context, draft) = (life.context.clone(), draft(&life.world));
    run_task(life, async move { Events(&context).publish(draft).await }).await.unwrap().position
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

/// An endpoint changes during the read of an event. The request must follow the change, or not be
/// sent. The receivers check URL, signature and consent of each request.
#[tokio::test(start_paused = true)]
async fn change_during_a_read_holds_for_the_request() {
    use Change::{Delete, Disable, Pause, Secret, Url, WantConsent, WithdrawConsent};
    disable_payload_cache();
    for made in [Url, Secret, Pause, Disable, WithdrawConsent, WantConsent, Delete] {
        let world = new_world();
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
        // No receiver consents again.
        world.with(|inner| {
            inner.receivers.entry(number).or_default().behavior =
                if made == WithdrawConsent || made == WantConsent {
                    Behavior::Resets
                } else {
                    Behavior::Healthy
                };
            inner.reads_wait = true;
        });
        publish(&mut life).await;
        assert_eq!(
            Endpoints(&life.context).explain(number).await.unwrap().in_flight,
            1,
            "{made:?}: the read has not begun"
        );
        if made == Delete {
            let (context, id) = (life.context.clone(), known(&life, number).unwrap().id);
            run_task(&mut life, async move { Endpoints(&context).delete(&Scope(None), &id).await })
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
                    Endpoint { handshake: endpoint.handshake.as_ref().map(restart_handshake), ..endpoint }
                }
                WantConsent => Endpoint { handshake: Some(handshake), ..endpoint },
                Delete => unreachable!("deleted above"),
            })
            .await;
        }
        assert_eq!(sent(&world), 0, "{made:?}: request before the end of the read");
        world.with(|inner| inner.reads_wait = false);
        life.run_for(Duration::from_secs(5)).await;
        let violation = world.with(|inner| inner.violation.clone());
        assert_eq!(violation, None, "{made:?}");
        assert_eq!(sent(&world), u64::from(made == Url || made == Secret), "{made:?}");
    }
    TestOverrides::default().activate();
}

fn life_secrets(world: &World) -> Vec<crate::domain::Secret> {
    world.with(operations::new_endpoint).secrets
}

/// The receiver of the former URL consents after the endpoint has moved. The model checks consents.
#[tokio::test(start_paused = true)]
async fn consent_of_a_former_url_is_dropped() {
    let world = new_world();
    let mut life = Life::begin(&world).unwrap();
    let handshake = Some(Handshake::new("balto.test".parse().unwrap(), None, false));
    world.with(|inner| inner.receivers.entry(EndpointNumber(1)).or_default().behavior = Behavior::Slow);
    let number =
        subscribe_with(&mut life, Tenant::DEFAULT, |endpoint| Endpoint { handshake, ..endpoint }).await;
    assert!(world.with(|inner| inner.asking.contains(&number)), "no handshake request");
    world.with(|inner| inner.receivers.entry(number).or_default().behavior = Behavior::Resets);
    change(&mut life, number, |endpoint| Endpoint {
        url: format!("{}?moved", endpoint.url).into(),
        handshake: endpoint.handshake.as_ref().map(restart_handshake),
        ..endpoint
    })
    .await;
    publish(&mut life).await;
    life.run_for(Duration::from_secs(20)).await;
    assert!(known(&life, number).unwrap().handshake.unwrap().consent.is_none());
    assert_eq!((sent(&world), world.with(|inner| inner.violation.clone())), (0, None));
}

/// Runs a task to its end while the state does not respond.
async fn run_without_state<T: Send + 'static>(
    life: &mut Life,
    task: impl Future<Output = T> + Send + 'static,
) -> T {
    let task = tokio::spawn(task);
    while !task.is_finished() {
        life.step_writer();
        life.deliver_held_notices();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    task.await.unwrap()
}

/// The operator resumes the endpoint while the read of expired deliveries hangs.
#[tokio::test(start_paused = true)]
async fn endpoint_resumed_during_the_expiry_read_loses_nothing() {
    for reopens in [true, false] {
        let world = new_world();
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
        run_without_state(&mut life, disabling).await;
        // At a disabled endpoint, the age counts from the time of disabling.
        life.run_for(Duration::from_millis(9_900)).await;
        // The expiry task reads the state, which does not respond.
        tokio::time::sleep(Duration::from_secs(5)).await;
        if reopens {
            let opened = Endpoint { status: EndpointStatus::Active, ..known(&life, number).unwrap() };
            let context = life.context.clone();
            let opening = async move { Endpoints(&context).update(opened, None).await };
            run_without_state(&mut life, opening).await.unwrap();
        }
        world.with(|inner| inner.exhausted = false);
        life.run_for(Duration::from_secs(5)).await;
        // The control: deliveries of a closed endpoint are given up.
        let expected = if reopens { (0, 1) } else { (1, 0) };
        assert_eq!((death_records(&world), sent(&world)), expected);
        assert!(!world.has_violation());
    }
}

/// Reads fail for some seconds. Each attempt needs a turn of its endpoint's rate after that, also
/// if it had one before.
#[tokio::test(start_paused = true)]
async fn failed_reads_save_up_no_turns_of_the_rate() {
    disable_payload_cache();
    let world = new_world();
    let mut life = Life::begin(&world).unwrap();
    let rate = RateLimit { limit: 1, per: Duration::from_secs(1), burst: 1 };
    let limited = |endpoint| Endpoint { rate_limit: Some(rate), max_in_flight: Some(10), ..endpoint };
    subscribe_with(&mut life, Tenant::DEFAULT, limited).await;
    world.disk().inject(Fault { count: 12, ..Fault::once(Operation::Read, Fault::EIO) });
    for _ in 0..8 {
        publish(&mut life).await;
    }
    let mut before = sent(&world);
    for second in 0..30 {
        life.run_for(Duration::from_secs(1)).await;
        let now = sent(&world);
        assert!(now - before <= 2, "{} requests in second {second}", now - before);
        before = now;
    }
    assert_eq!(before, 8, "all are sent in the end");
    assert!(!world.has_violation());
    TestOverrides::default().activate();
}

/// The state is behind the journal when a purge commits. Its answer waits: a receipt of a purged
/// message that comes after the answer must be `gone`.
#[tokio::test(start_paused = true)]
async fn answer_of_a_purge_waits_for_its_effects() {
    let world = new_world();
    let mut life = Life::begin(&world).unwrap();
    let paused = |endpoint| Endpoint { status: EndpointStatus::Paused, ..endpoint };
    let number = subscribe_with(&mut life, Tenant::DEFAULT, paused).await;
    publish(&mut life).await;
    let selection = JobSelection { endpoint: Some(number), ..JobSelection::default() };
    let new = NewJob { selection, ..bulk(JobKind::PurgeQueue) };
    let context = life.context.clone();
    let purging = tokio::spawn(async move { start(&context, new).await });
    let is_purged = |world: &World| {
        let cancels = |(_, record): &(Position, Record)| matches!(record, Record::DeliveriesCancelled { .. });
        world.with(|inner| inner.model.records.iter().any(cancels))
    };
    while !is_purged(&world) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        life.step_writer();
        if !is_purged(&world) {
            life.step_state();
        }
        life.deliver_held_notices();
    }
    run_without_state(&mut life, tokio::time::sleep(Duration::from_secs(1))).await;
    assert!(!purging.is_finished(), "the answer came before its effects");
    life.run_for(Duration::from_secs(1)).await;
    assert!(purging.is_finished() && purging.await.unwrap().is_ok());
}

/// The read of one event fails during a step: the job goes on.
#[tokio::test(start_paused = true)]
async fn job_continues_after_a_failed_read() {
    TestOverrides { bounds: [(Bound::BulkDeliveries, 1)].into(), mutation: None }.activate();
    let world = new_world();
    let mut life = Life::begin(&world).unwrap();
    let filter = Some(r#"{"data":{"$exists":true}}"#.into());
    let selective = |endpoint| Endpoint {
        status: EndpointStatus::Paused,
        selection: EventSelection { filter, ..EventSelection::default() },
        ..endpoint
    };
    for _ in 0..3 {
        publish(&mut life).await;
    }
    let number = subscribe_with(&mut life, Tenant::DEFAULT, selective).await;
    let endpoint = known(&life, number).unwrap();
    let context = life.context.clone();
    let replaying = tokio::spawn(async move {
        let job = Jobs(&context).start(&replay_of(&endpoint), None).await.unwrap();
        Jobs(&context).wait(job, Duration::from_secs(60)).await
    });
    while revival_records(&world) < 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        life.step_state();
        life.step_writer();
        life.deliver_held_notices();
    }
    world.disk().inject(Fault::once(Operation::Read, Fault::EIO));
    life.run_for(Duration::from_secs(10)).await;
    assert!(replaying.is_finished(), "the job stopped");
    assert_eq!(replaying.await.unwrap().progress.status, JobStatus::Completed);
    assert_eq!(revival_records(&world), 3);
    TestOverrides::default().activate();
}

pub(super) fn revival_records(world: &World) -> usize {
    world.with(|inner| {
        let revived = |(_, record): &&(Position, Record)| matches!(record, Record::DeliveriesRevived { .. });
        inner.model.records.iter().filter(revived).count()
    })
}

/// The power fails after each step of a job in turn. The next life continues the job, and a
/// repeated request starts no other.
#[test]
fn job_cut_between_steps_continues_after_a_restart() {
    for act in [Act::ReplayEndpoint, Act::RedriveAll, Act::PurgeAll] {
        for steps in 1..=4 {
            TestOverrides { bounds: [(Bound::BulkDeliveries, 1)].into(), mutation: None }.activate();
            let world = new_world();
            let new = Endpoint { handshake: None, ..world.with(operations::new_endpoint) };
            let (first, before) = run_life(&world, steps, async |life| {
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
                        run_task(life, died).await.unwrap();
                    } else {
                        let (context, delivery) = (life.context.clone(), DeliveryKey { event, ..first });
                        let cancelled =
                            async move { Deliveries(&context).cancel(&Scope(None), delivery, None).await };
                        run_task(life, cancelled).await.unwrap();
                    }
                }
                if act == Act::ReplayEndpoint {
                    let context = life.context.clone();
                    let cancelled =
                        async move { Deliveries(&context).cancel(&Scope(None), first, None).await };
                    run_task(life, cancelled).await.unwrap();
                }
                let before = world.with(|inner| inner.model.last());
                let asked = tokio::spawn(request(life.context.clone(), act, new.clone(), first));
                while world.with(|inner| inner.model.changed_since(before).len() as u64) < steps {
                    if asked.is_finished() && Jobs(&life.context).running().is_empty() {
                        break;
                    }
                    life.work().await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                (first, before)
            });
            let changed = world.with(|inner| inner.model.changed_since(before).len() as u64);
            assert!(changed >= steps.min(4), "{act:?}: {changed} after {steps} steps");
            run_life(&world, steps, async |life| {
                let again = request(life.context.clone(), act, new.clone(), first);
                run_task(life, again).await.unwrap();
                life.run_for(Duration::from_secs(5)).await;
                assert!(Jobs(&life.context).running().is_empty());
            });
            let jobs = world.with(|inner| inner.model.oracle.jobs.known());
            let [job] = &jobs[..] else { panic!("{act:?} after {steps} steps: {jobs:?}") };
            assert_eq!((job.progress.status, job.progress.done), (JobStatus::Completed, 4), "{act:?}");
            let left = world.with(|inner| {
                let all = inner.model.oracle.deliveries.values();
                let is_left = |state| match act {
                    Act::PurgeAll => state != DeliveryState::Purged,
                    _ => state != DeliveryState::Pending,
                };
                all.filter(|known| is_left(known.state)).count()
            });
            assert_eq!(left, 0, "{act:?} after {steps} steps");
            assert!(!world.has_violation());
        }
    }
    TestOverrides::default().activate();
}

/// A pass removes each event once. It also removes newly expired events from segments that an
/// earlier pass examined.
#[tokio::test(start_paused = true)]
async fn later_retention_passes_remove_newly_expired_events() {
    let world = new_world();
    world.with(|inner| {
        inner.plan.keep = Some(Duration::from_secs(60));
        inner.model.keep = Some(Duration::from_secs(60));
        inner.plan.segment_bytes = 600;
    });
    let mut life = Life::begin(&world).unwrap();
    let number = subscribe(&mut life, Tenant::DEFAULT).await;
    world.with(|inner| inner.receivers.entry(number).or_default().behavior = Behavior::Healthy);
    let keep = retention::Keep { events: Some(Duration::from_secs(60)), ..Default::default() };
    let mut retention = retention::retention(&life.context, keep);
    for _ in 0..2 {
        for _ in 0..8 {
            publish(&mut life).await;
        }
        // At once, after all events have expired, and once more.
        for (wait, events) in [(0, 0), (100, 8), (0, 0)] {
            life.run_for(Duration::from_secs(wait)).await;
            let context = life.context.clone();
            let passing = async move {
                let pass = retention::pass(&context, keep, &mut retention).await;
                (pass, retention)
            };
            let (pass, again) = run_task(&mut life, passing).await;
            retention = again;
            let pass = pass.unwrap();
            assert_eq!(pass.events, events);
            assert!(events == 0 || pass.records >= 4, "expired records stay in the journal: {pass:?}");
        }
    }
    assert!(!world.has_violation());
}

/// Retries every five seconds for up to eighteen seconds: four attempts.
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

/// Numbers of ended deliveries and of those that reached their maximum age.
fn ended(world: &World) -> (usize, usize) {
    world.with(|inner| {
        let all = || inner.model.oracle.deliveries.values().map(|known| known.state);
        let is_old = |state: &DeliveryState| *state == DeliveryState::Dead(DeadReason::MaxAge);
        (all().filter(|state| *state != DeliveryState::Pending).count(), all().filter(is_old).count())
    })
}

#[tokio::test(start_paused = true)]
async fn paused_time_does_not_count_as_age() {
    let world = new_world();
    let mut life = Life::begin(&world).unwrap();
    let number = subscribe_with(&mut life, Tenant::DEFAULT, |endpoint| Endpoint {
        retry: Some(short_lived()),
        ..endpoint
    })
    .await;
    world.with(|inner| inner.receivers.entry(number).or_default().behavior = Behavior::Resets);
    publish(&mut life).await;
    for _ in 0..2 {
        change(&mut life, number, |endpoint| Endpoint { status: EndpointStatus::Paused, ..endpoint }).await;
        life.run_for(Duration::from_secs(60)).await;
        change(&mut life, number, |endpoint| Endpoint { status: EndpointStatus::Active, ..endpoint }).await;
    }
    assert_eq!((sent(&world), ended(&world)), (3, (0, 0)));
    // The receiver has failed for ten seconds, and continues to fail.
    life.run_for(Duration::from_secs(30)).await;
    assert_eq!((sent(&world), ended(&world)), (4, (1, 1)));
    assert_eq!(world.with(|inner| inner.violation.clone()), None);
}

#[test]
fn downtime_of_the_daemon_does_not_count_as_age() {
    let world = new_world();
    run_life(&world, 1, async |life| {
        let number = subscribe_with(life, Tenant::DEFAULT, |endpoint| Endpoint {
            retry: Some(short_lived()),
            ..endpoint
        })
        .await;
        world.with(|inner| inner.receivers.entry(number).or_default().behavior = Behavior::Resets);
        publish(life).await;
        assert_eq!(life.stop().await, End::Stopped);
    });
    world::jump(600_000);
    run_life(&world, 1, async |life| {
        life.run_for(Duration::from_secs(2)).await;
        assert_eq!((sent(&world), ended(&world)), (2, (0, 0)));
        life.run_for(Duration::from_secs(30)).await;
    });
    assert_eq!((sent(&world), ended(&world)), (4, (1, 1)), "after further failures");
    assert_eq!(world.with(|inner| inner.violation.clone()), None);
}

/// Resealing happens after a rotation of the vault key.
#[tokio::test(start_paused = true)]
async fn resealing_secrets_does_not_delay_the_disabling() {
    for reseals in [false, true] {
        let world = new_world();
        let mut life = Life::begin(&world).unwrap();
        let retry = Some(RetryPolicy::Schedule(vec![Duration::from_secs(2); 100]));
        let number =
            subscribe_with(&mut life, Tenant::DEFAULT, |endpoint| Endpoint { retry, ..endpoint }).await;
        world.with(|inner| inner.receivers.entry(number).or_default().behavior = Behavior::Resets);
        publish(&mut life).await;
        life.run_for(Duration::from_secs(30)).await;
        if reseals {
            let (context, sealed) = (life.context.clone(), known(&life, number).unwrap());
            run_task(&mut life, async move { Endpoints(&context).put(sealed, None).await }).await.unwrap();
        }
        life.run_for(Duration::from_secs(20)).await;
        let status = known(&life, number).unwrap().status;
        let failing = DisabledReason::Failing;
        assert!(
            matches!(status, EndpointStatus::Disabled { reason, .. } if reason == failing),
            "resealed: {reseals}"
        );
        assert_eq!(world.with(|inner| inner.violation.clone()), None);
    }
}
