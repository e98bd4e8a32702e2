//! A context for tests, and a test that other tenants' identifiers cause no file reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::jobs::NewJob;
use super::types::Scope;
use super::{DeadLetters, Deliveries, Endpoints, Events, Jobs, Replays};
use crate::context::clock::{Clock, SystemSource};
use crate::context::environment::{BlockingPool, Environment, FileReads};
use crate::context::{Context, Settings};
use crate::courier::{Courier, CourierSettings};
use crate::delivery::{Dispatcher, assemble};
use crate::domain::{
    DeadReason, DeliveryKey, JobKind, JobSelection, PolicyDefaults, Quotas, Record, RetryPolicy, Tenant,
};
use crate::metrics::Metrics;
use crate::outbox::draft::{ChangeError, EventDraft};
use crate::outbox::{AdmissionLimits, Outbox};
use crate::projections::reads::Filter;
use crate::rules::handshake::AskingPolicy;
use crate::rules::verdict::RefusedStatuses;
use crate::vault::Vault;

/// Counts the file reads.
#[derive(Default)]
struct CountedReads(AtomicUsize);

#[async_trait]
impl FileReads for CountedReads {
    async fn run(&self, read: Box<dyn FnOnce() + Send>) {
        self.0.fetch_add(1, SeqCst);
        BlockingPool.run(read).await;
    }
}

/// Counts the blocking calls at once.
#[derive(Default)]
struct ConcurrentReads {
    now: AtomicUsize,
    most: AtomicUsize,
}

#[async_trait]
impl FileReads for ConcurrentReads {
    async fn run(&self, read: Box<dyn FnOnce() + Send>) {
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        BlockingPool.run(read).await;
        self.now.fetch_sub(1, SeqCst);
    }
}

/// A context over an empty directory. Dropping the third value removes the directory.
pub(crate) fn context() -> (Context, Dispatcher, tempfile::TempDir) {
    context_with_reads(Arc::new(BlockingPool))
}

fn context_with_reads(reads: Arc<dyn FileReads>) -> (Context, Dispatcher, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let admission = AdmissionLimits { bytes: 1 << 26, commands: 10_000 };
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
        handshake_timeout: Duration::from_secs(5),
        asking: AskingPolicy { initial: Duration::from_secs(1), max_interval: Duration::from_secs(1) },
        defaults: PolicyDefaults {
            max_in_flight: 1,
            timeout: Duration::from_secs(1),
            retry: RetryPolicy::Schedule(Vec::new()),
        },
        callback_base: None,
        quotas: Quotas::default(),
    };
    let environment = Environment { reads, ..Environment::system(courier) };
    let (vault, metrics) = (Arc::new(Vault::new([])), Arc::new(Metrics::new()));
    let (context, dispatcher) = assemble(opened, environment, vault, Clock::default(), metrics, settings);
    (context, dispatcher, directory)
}

#[tokio::test]
async fn replays_at_once_take_turns() {
    let calls = 8 * std::thread::available_parallelism().unwrap().get();
    let reads = Arc::new(ConcurrentReads::default());
    let (context, _dispatcher, _directory) = context_with_reads(reads.clone());
    let endpoint = crate::rules::tests::endpoint(1, "acme", &[]);
    let number = Endpoints(&context).create(endpoint, None).await.unwrap().number;
    let selection = JobSelection { endpoint: Some(number), ..JobSelection::default() };
    let tenant = Some("acme".parse().unwrap());
    let replay = NewJob { kind: JobKind::ReplayEndpoint, tenant, selection, rate: None };
    let counts = (0..calls).map(|_| Jobs(&context).count(&replay));
    for count in futures_util::future::join_all(counts).await {
        assert_eq!(count, Ok(0));
    }
    // A call counts until its caller has seen the end, and further turns may have begun by then.
    // Without turns all calls begin at once.
    let most = reads.most.load(SeqCst);
    assert!((1..=calls / 2).contains(&most), "{most} of {calls} at once");
}

#[tokio::test]
async fn other_tenants_ids_are_unknown_without_a_read() {
    let counted = Arc::new(CountedReads::default());
    let (context, _dispatcher, _directory) = context_with_reads(counted.clone());
    let endpoint = crate::rules::tests::endpoint(1, "acme", &[]);
    let number = Endpoints(&context).create(endpoint, None).await.unwrap().number;
    let draft = EventDraft::new("acme".parse().unwrap(), "a".parse().unwrap(), Bytes::from_static(b"1"));
    let accepted = Events(&context).publish(draft).await.unwrap();
    let (event, delivery) =
        (accepted.event.id.clone(), DeliveryKey { event: accepted.position, endpoint: number });
    let (reason, at) = (DeadReason::Refused, context.now().wall);
    context.write(Record::DeliveriesDied { deliveries: vec![delivery], reason, at }).await.unwrap();
    let reads = || counted.0.load(SeqCst);
    let before = reads();

    let (deliveries, letters) = (Deliveries(&context), DeadLetters(&context));
    let (own, other): (Tenant, Tenant) = ("acme".parse().unwrap(), "other".parse().unwrap());
    let scope = Scope(Some(other.clone()));
    assert!(matches!(deliveries.get(&scope, delivery).await, Ok(None)));
    assert!(matches!(letters.get(&scope, delivery).await, Ok(None)));
    assert!(matches!(Events(&context).get(&scope, &other, &event).await, Ok(None)));
    let not_found = Err(ChangeError::NotFound);
    assert_eq!(deliveries.retry(&scope, delivery, None).await.map(drop), not_found);
    assert_eq!(deliveries.cancel(&scope, delivery, None).await.map(drop), not_found);
    assert_eq!(letters.redrive(&scope, delivery, None).await.map(drop), not_found);
    assert_eq!(letters.purge(&scope, delivery).await, not_found);
    let replayed = Replays(&context).of_event(&scope, &other, &event, None, None).await;
    assert_eq!(replayed.map(drop), not_found);
    let of_endpoint = Filter { endpoint: Some(delivery.endpoint), ..Filter::default() };
    for filter in [of_endpoint, Filter { event: Some(delivery.event), ..Filter::default() }] {
        assert_eq!(deliveries.list(&scope, filter.clone(), None, 5).await.unwrap().items.len(), 0);
        assert_eq!(letters.list(&scope, filter, None, 5).await.unwrap().items.len(), 0);
    }
    assert_eq!(reads(), before, "file read for another tenant's id");

    let scope = Scope(Some(own.clone()));
    assert!(matches!(deliveries.get(&scope, delivery).await, Ok(Some(_))));
    assert!(matches!(Events(&context).get(&scope, &own, &event).await, Ok(Some(_))));
    assert!(reads() > before, "file reads are not counted");
}
