//! The engine: decide, commit, then act.
//!
//! Owns tasks, clock and channels; hands out one cheap handle, [`Engine`]. Must never know wire formats. What a request
//! asks is answered by [`queries`]; events are accepted by [`publishing`], other changes made by [`commands`] and, where they
//! are of many deliveries, [`bulk`]; deliveries are driven by [`dispatcher`], one attempt is made by [`delivery`], one
//! request for consent by [`handshake`]; [`gauges`] looks up what metrics show of the store.

mod bulk;
pub mod clock;
mod commands;
mod delivery;
mod dispatcher;
mod gauges;
mod handshake;
mod operator;
mod payloads;
mod publishing;
mod queries;
pub mod resealing;
pub mod retention;
pub mod secrets;
#[cfg(test)]
mod simulation;
pub mod types;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};

use crate::courier::Courier;
use crate::domain::{ApiKey, Endpoint, EndpointId, EndpointNumber, KeyId, Now, PolicyDefaults, Timestamp};
use crate::metrics::Metrics;
use crate::outbox::{Health, Outbox};
use crate::rules::handshake::AskingPolicy;
use crate::rules::verdict::RefusedStatuses;
use crate::vault::Vault;
use clock::Clock;
use types::{RefusedUrl, Scope};

pub use dispatcher::{Dispatcher, Run};

/// What can change while running.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Requests at once over all endpoints.
    pub max_in_flight: usize,
    /// Requests at once to one host and port over all endpoints; 0 is no limit.
    pub host_max_in_flight: usize,
    /// An endpoint that failed over this time without one success is disabled.
    pub disable_after: Duration,
    pub refused_statuses: RefusedStatuses,
    pub breaker_failures: u32,
    pub breaker_probe_initial: Duration,
    pub breaker_probe_max: Duration,
    pub asking: AskingPolicy,
    pub defaults: PolicyDefaults,
    /// What the URL of a handshake's callback begins with; endpoint and token follow. `None`: nobody can be called back.
    pub callback_base: Option<Arc<str>>,
}

/// The handle that everything outside holds.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    outbox: Outbox,
    courier: Courier,
    vault: Arc<Vault>,
    clock: Clock,
    metrics: Arc<Metrics>,
    settings: ArcSwap<Settings>,
    signals: mpsc::UnboundedSender<dispatcher::Signal>,
    /// Taken by whoever acts on deliveries, from looking at them until what is done with them is committed.
    acting: tokio::sync::Mutex<()>,
    /// In a simulation parcels go here instead of to the courier.
    #[cfg(test)]
    receivers: std::sync::OnceLock<simulation::receivers::Receivers>,
    /// Reads of the journal by requests.
    #[cfg(test)]
    journal_reads: std::sync::atomic::AtomicUsize,
}

impl Engine {
    /// The handle and the task that delivers, which the caller runs.
    #[must_use]
    pub fn new(
        opened: crate::outbox::Opened,
        courier: Courier,
        vault: Arc<Vault>,
        clock: Clock,
        metrics: Arc<Metrics>,
        settings: Settings,
    ) -> (Self, Dispatcher) {
        let (signals, inbox) = mpsc::unbounded_channel();
        clock.not_before(opened.last_time);
        let shared = Shared {
            outbox: opened.outbox,
            courier,
            vault,
            clock,
            metrics,
            settings: ArcSwap::from_pointee(settings),
            signals,
            acting: tokio::sync::Mutex::default(),
            #[cfg(test)]
            receivers: std::sync::OnceLock::new(),
            #[cfg(test)]
            journal_reads: std::sync::atomic::AtomicUsize::new(0),
        };
        let engine = Self { shared: Arc::new(shared) };
        let dispatcher = Dispatcher::new(engine.clone(), opened.notices, inbox);
        (engine, dispatcher)
    }

    /// Ends the outbox after the dispatcher has ended: writes what waits, checkpoints. Blocks.
    pub fn stop_outbox(&self) {
        self.outbox().stop();
    }

    fn outbox(&self) -> &Outbox {
        &self.shared.outbox
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    fn settings(&self) -> Arc<Settings> {
        self.shared.settings.load_full()
    }

    /// Takes over new settings; lanes hear of them with their next turn.
    pub fn reconfigure(&self, settings: Settings) {
        self.shared.settings.store(Arc::new(settings));
        self.signal(dispatcher::Signal::Reconfigured);
    }

    /// The dispatcher ends only after everyone who could signal has.
    fn signal(&self, signal: dispatcher::Signal) {
        if self.shared.signals.send(signal).is_err() {
            tracing::debug!("a signal came after the dispatcher had ended");
        }
    }

    /// The courier, so that a reload can change its policy.
    #[must_use]
    pub fn courier(&self) -> &Courier {
        &self.shared.courier
    }

    /// Whether anything can be made durable.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.outbox().health()
    }

    /// For how long the disk has not answered; zero when it does.
    #[must_use]
    pub fn disk_silence(&self) -> Duration {
        self.outbox().busy_for()
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        self.shared.clock.now()
    }

    /// Both clocks, and what a receiver's clock should show at the same time.
    fn now_and_civil(&self) -> (Now, Timestamp) {
        self.shared.clock.now_and_civil()
    }

    #[must_use]
    pub fn new_endpoint_id(&self) -> EndpointId {
        self.new_id("ep_").parse().expect("a ULID is made of letters and digits")
    }

    #[must_use]
    pub fn new_key_id(&self) -> KeyId {
        self.new_id("key_").parse().expect("a ULID is made of letters and digits")
    }

    fn new_id(&self, prefix: &str) -> String {
        let random = u128::from_be_bytes(self.random_bytes::<16>());
        format!("{prefix}{}", ulid::Ulid::from_parts(self.now().wall.millis(), random))
    }

    /// `N` bytes from the system's random source.
    ///
    /// # Panics
    /// When the operating system has no randomness: nothing that needs secrets can go on then.
    #[must_use]
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        #[cfg(test)]
        if let Some(receivers) = self.shared.receivers.get() {
            return receivers.random_bytes();
        }
        clock::random_bytes()
    }

    pub fn endpoint(&self, scope: &Scope, id: &EndpointId) -> Option<Arc<Endpoint>> {
        let found = self.outbox().registry(|registry| registry.endpoint_by_id(id).cloned());
        found.filter(|endpoint| scope.covers(&endpoint.tenant))
    }

    /// What deliveries know an endpoint by, also a deleted one: a filter by it finds what was left behind.
    #[must_use]
    pub fn endpoint_number(&self, scope: &Scope, id: &EndpointId) -> Option<EndpointNumber> {
        self.outbox().registry(|registry| {
            let number = registry.number_of(id)?;
            registry.tenant_of(number).is_some_and(|tenant| scope.covers(tenant)).then_some(number)
        })
    }

    /// The key whose secret has this SHA-256: looking up a hash gives nothing away about secrets.
    #[must_use]
    pub fn key_by_hash(&self, hash: &[u8; 32]) -> Option<Arc<ApiKey>> {
        self.outbox().registry(|registry| registry.key_by_hash(hash).cloned())
    }

    #[must_use]
    pub fn key(&self, id: &KeyId) -> Option<Arc<ApiKey>> {
        self.outbox().registry(|registry| registry.key(id).cloned())
    }

    /// By id, which is the order of creation.
    #[must_use]
    pub fn keys(&self) -> Vec<Arc<ApiKey>> {
        self.outbox().keys()
    }

    /// Judges a URL as it will be judged when it is connected to; gives its canonical form, or why it is forbidden.
    ///
    /// # Errors
    /// The reason, in words for the client.
    pub async fn check_url(&self, url: &str) -> Result<Box<str>, RefusedUrl> {
        self.shared.courier.check_url(url).await
    }

    /// Judges a custom header.
    ///
    /// # Errors
    /// The reason, in words for the client.
    pub fn check_header(&self, name: &str, value: &str) -> Result<(), String> {
        crate::courier::body::validate_header(name, value)
    }
}

#[cfg(test)]
pub(crate) mod tests;
