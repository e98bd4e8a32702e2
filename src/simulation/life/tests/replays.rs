//! Replays whose endpoint or events change while they run.

use super::windows::{known, new_world, publish, revival_records};
use super::*;
use crate::projections::reads::Filter;
use crate::service::filters::StoredSelection;
use crate::service::replays::PastRange;
use crate::service::{Endpoints, Erasure, Jobs, Replays};

/// An event is erased between the scan of a replay's step and its decision. Its page then has more
/// entries, and a second scan would end before the oldest event.
#[tokio::test(start_paused = true)]
async fn step_of_a_replay_keeps_the_events_that_it_found() {
    let bounds = [(Bound::ScanEntries, 5), (Bound::PagePositions, 1)];
    TestOverrides { bounds: bounds.into(), mutation: None }.activate();
    let world = new_world();
    let mut life = Life::begin(&world).unwrap();
    for _ in 0..3 {
        publish(&mut life).await;
    }
    let paused = |endpoint| Endpoint { status: EndpointStatus::Paused, ..endpoint };
    let number = subscribe_with(&mut life, Tenant::DEFAULT, paused).await;
    let endpoint = known(&life, number).unwrap();
    let range = PastRange {
        filter: Filter { tenant: Some(endpoint.tenant.clone()), ..Filter::default() },
        endpoint: number,
        after: None,
        limit: 10,
        most: usize::MAX,
        only_undelivered: false,
        selection: Arc::new(StoredSelection::new(&life.context, &endpoint, &[])),
    };
    let scan = |life: &Life| {
        let (context, range) = (life.context.clone(), range.clone());
        async move { Replays(&context).find(&range).await.unwrap().0 }
    };
    let scanning = scan(&life);
    let found = run_task(&mut life, scanning).await;
    assert_eq!(found.len(), 3);

    let (context, tenant) = (life.context.clone(), endpoint.tenant.clone());
    let newest = world.with(|inner| inner.model.oracle.events[&found[0]].id.clone());
    let erasing = async move { Erasure(&context).of_event(&Scope(None), &tenant, &newest, "test").await };
    run_task(&mut life, erasing).await.unwrap();
    let scanning = scan(&life);
    assert_eq!(run_task(&mut life, scanning).await, [found[1]], "the control: a scan ends earlier");

    let (context, oldest) = (life.context.clone(), found[1..].to_vec());
    let deciding = async move { Replays(&context).confirm(&range, found).await.unwrap() };
    let left = run_task(&mut life, deciding).await;
    assert_eq!(left.iter().map(|key| key.event).collect::<Vec<_>>(), oldest);
    assert!(!world.has_violation());
    TestOverrides::default().activate();
}

/// An endpoint is deleted between two steps of a replay to it.
#[tokio::test(start_paused = true)]
async fn deletion_between_two_steps_ends_the_replay() {
    TestOverrides { bounds: [(Bound::BulkDeliveries, 1)].into(), mutation: None }.activate();
    let world = new_world();
    let mut life = Life::begin(&world).unwrap();
    let paused = |endpoint| Endpoint { status: EndpointStatus::Paused, ..endpoint };
    for _ in 0..5 {
        publish(&mut life).await;
    }
    let number = subscribe_with(&mut life, Tenant::DEFAULT, paused).await;
    let endpoint = known(&life, number).unwrap();
    let (context, id) = (life.context.clone(), endpoint.id.clone());
    let replaying = tokio::spawn(async move {
        let job = Jobs(&context).start(&replay_of(&endpoint), None).await.unwrap();
        Jobs(&context).wait(job, Duration::from_secs(60)).await
    });
    // Two of five steps are durable.
    while revival_records(&world) < 2 {
        // Simulated time: a step also works on a blocking thread.
        tokio::time::sleep(Duration::from_millis(1)).await;
        life.step_state();
        life.step_writer();
        life.deliver_held_notices();
    }
    let context = life.context.clone();
    let deleting = tokio::spawn(async move { Endpoints(&context).delete(&Scope(None), &id).await });
    life.run_for(Duration::from_secs(5)).await;
    assert!(deleting.await.unwrap().is_ok());
    let ended = replaying.await.unwrap();
    let (status, error) = (ended.progress.status, ended.progress.error.as_deref());
    assert_eq!((status, error), (JobStatus::Failed, Some("the endpoint was deleted")));
    // Already replayed deliveries end like all deliveries of a deleted endpoint.
    let left = world.with(|inner| inner.model.pending().count());
    assert_eq!(left, 0);
    assert!(!world.has_violation());
    TestOverrides::default().activate();
}
