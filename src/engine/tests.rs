//! An engine for tests that need little of one.

use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;

use super::types::{ChangeError, EventDraft, Filter};
use super::*;
use crate::courier::CourierSettings;
use crate::domain::{DeadReason, DeliveryKey, Record, Tenant};
use crate::engine::clock::SystemSource;
use crate::engine::dispatcher::Dispatcher;
use crate::outbox::Admission;

/// An engine over an empty directory, which goes when the third is dropped.
pub(crate) fn engine() -> (Engine, Dispatcher, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let admission = Admission { bytes: 1 << 26, commands: 10_000 };
    let opened =
        Outbox::open(directory.path(), admission, Box::new(SystemSource), Arc::new(|_, _| ()), &mut |_| ())
            .unwrap();
    let courier = Courier::new(CourierSettings::for_tests()).unwrap();
    let settings = Settings {
        max_in_flight: 1,
        host_max_in_flight: 0,
        disable_after: Duration::from_secs(60),
        refused_statuses: RefusedStatuses::default(),
        breaker_failures: 5,
        breaker_probe_initial: Duration::from_secs(1),
        breaker_probe_max: Duration::from_secs(1),
        asking: AskingPolicy { initial: Duration::from_secs(1), max_interval: Duration::from_secs(1) },
        defaults: PolicyDefaults {
            max_in_flight: 1,
            timeout: Duration::from_secs(1),
            retry: crate::domain::RetryPolicy::Schedule(Vec::new()),
        },
        callback_base: None,
    };
    let metrics = Arc::new(Metrics::new());
    let (engine, dispatcher) =
        Engine::new(opened, courier, Arc::new(Vault::new([])), Clock::default(), metrics, settings);
    (engine, dispatcher, directory)
}

#[tokio::test]
async fn another_tenants_ids_are_unknown_before_the_journal_is_read() {
    let (engine, _dispatcher, _directory) = engine();
    let endpoint = crate::rules::tests::endpoint(1, "acme", &[]);
    let number = engine.create_endpoint(endpoint, None).await.unwrap().number;
    let draft = EventDraft::new("acme".parse().unwrap(), "a".parse().unwrap(), Bytes::from_static(b"1"));
    let accepted = engine.publish(draft).await.unwrap();
    let (event, delivery) =
        (accepted.event.id.clone(), DeliveryKey { event: accepted.position, endpoint: number });
    let (reason, at) = (DeadReason::Refused, engine.now().wall);
    engine.write(Record::DeliveriesDied { deliveries: vec![delivery], reason, at }).await.unwrap();
    let reads = || engine.shared.journal_reads.load(SeqCst);
    let before = reads();

    let (own, other): (Tenant, Tenant) = ("acme".parse().unwrap(), "other".parse().unwrap());
    let scope = Scope(Some(other.clone()));
    assert!(matches!(engine.delivery(&scope, delivery).await, Ok(None)));
    assert!(matches!(engine.dead_letter(&scope, delivery).await, Ok(None)));
    assert!(matches!(engine.event(&scope, &other, &event).await, Ok(None)));
    let not_found = Err(ChangeError::NotFound);
    assert_eq!(engine.retry_delivery(&scope, delivery, None).await.map(drop), not_found);
    assert_eq!(engine.cancel_delivery(&scope, delivery, None).await.map(drop), not_found);
    assert_eq!(engine.redrive(&scope, delivery, None).await.map(drop), not_found);
    assert_eq!(engine.purge(&scope, delivery).await, not_found);
    assert_eq!(engine.replay_event(&scope, &other, &event, None, None).await.map(drop), not_found);
    let of_endpoint = Filter { endpoint: Some(delivery.endpoint), ..Filter::default() };
    for filter in [of_endpoint, Filter { event: Some(delivery.event), ..Filter::default() }] {
        assert_eq!(engine.deliveries(&scope, filter.clone(), None, 5).await.unwrap().items.len(), 0);
        assert_eq!(engine.dead_letters(&scope, filter, None, 5).await.unwrap().items.len(), 0);
    }
    assert_eq!(reads(), before, "the journal was read for another tenant's id");

    let scope = Scope(Some(own.clone()));
    assert!(matches!(engine.delivery(&scope, delivery).await, Ok(Some(_))));
    assert!(matches!(engine.event(&scope, &own, &event).await, Ok(Some(_))));
    assert!(reads() > before, "the reads are not counted");
}
