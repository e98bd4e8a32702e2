//! What services and the delivery loop share: the outbox, the outside world, the clock, the vault, metrics and settings.
//!
//! Owns one cheap handle, [`Context`]. Must never know wire formats, nor who uses it.

pub mod clock;
pub mod environment;
pub(crate) mod overdue;
pub(crate) mod records;
pub mod responses;
pub(crate) mod signal;
pub mod source;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, MutexGuard, mpsc, watch};

use crate::domain::{Now, PolicyDefaults, Timestamp};
use crate::metrics::Metrics;
use crate::outbox::{Health, Outbox};
use crate::rules::handshake::AskingPolicy;
use crate::rules::verdict::RefusedStatuses;
use crate::vault::Vault;
use clock::Clock;
use environment::{Environment, Transport};
use signal::Signal;

/// What an operator can change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Maximum number of concurrent requests over all endpoints.
    pub max_in_flight: usize,
    /// Maximum number of concurrent requests to one host and port over all endpoints; 0 is no limit.
    pub host_max_in_flight: usize,
    /// An endpoint is disabled when it failed over this time without one success.
    pub disable_after: Duration,
    pub refused_statuses: RefusedStatuses,
    pub breaker_failures: u32,
    pub breaker_probe_initial: Duration,
    pub breaker_probe_max: Duration,
    pub asking: AskingPolicy,
    pub defaults: PolicyDefaults,
    /// Prefix of the callback URL of a handshake; endpoint and token follow. `None`: no callbacks.
    pub callback_base: Option<Arc<str>>,
}

/// Cheap handle.
#[derive(Clone)]
pub struct Context {
    shared: Arc<Shared>,
}

struct Shared {
    outbox: Outbox,
    environment: Environment,
    vault: Arc<Vault>,
    clock: Clock,
    metrics: Arc<Metrics>,
    settings: ArcSwap<Settings>,
    signals: mpsc::UnboundedSender<Signal>,
    /// Held from reading deliveries until the commit of a change that rests on them.
    exclusive: Mutex<()>,
}

impl Context {
    /// The handle, and the receiver of the signals to the delivery loop.
    #[must_use]
    pub(crate) fn new(
        outbox: Outbox,
        environment: Environment,
        vault: Arc<Vault>,
        clock: Clock,
        metrics: Arc<Metrics>,
        settings: Settings,
    ) -> (Self, mpsc::UnboundedReceiver<Signal>) {
        let (signals, inbox) = mpsc::unbounded_channel();
        let settings = ArcSwap::from_pointee(settings);
        let exclusive = Mutex::default();
        let shared = Shared { outbox, environment, vault, clock, metrics, settings, signals, exclusive };
        (Self { shared: Arc::new(shared) }, inbox)
    }

    /// Stops the outbox after the delivery loop has ended: commits pending units, writes a checkpoint. Blocks.
    pub fn stop_outbox(&self) {
        self.outbox().stop();
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.shared.outbox
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.shared.vault
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.shared.settings.load_full()
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        &*self.shared.environment.transport
    }

    /// Replaces the settings; lanes take them over with their next turn.
    pub fn reconfigure(&self, settings: Settings) {
        self.shared.settings.store(Arc::new(settings));
        self.signal(Signal::Reconfigured);
    }

    /// Sends a signal to the delivery loop, which ends only after all senders.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.shared.signals.send(signal).is_err() {
            tracing::debug!("signal dropped: the delivery loop has ended");
        }
    }

    /// Waits until no other caller changes deliveries; held until the guard is dropped.
    pub(crate) async fn exclusive(&self) -> MutexGuard<'_, ()> {
        self.shared.exclusive.lock().await
    }

    /// Whether the outbox can commit.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.outbox().health()
    }

    /// For how long the disk has not answered; zero when it does.
    #[must_use]
    pub fn disk_silence(&self) -> Duration {
        self.outbox().disk_wait()
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        self.shared.clock.now()
    }

    /// Both clocks, and the wall clock as receivers see it; see [`Clock::now_and_civil`].
    pub(crate) fn now_and_civil(&self) -> (Now, Timestamp) {
        self.shared.clock.now_and_civil()
    }

    /// A new identifier: the prefix and a ULID of the present time.
    pub(crate) fn new_id(&self, prefix: &str) -> String {
        let random = u128::from_be_bytes(self.random_bytes::<16>());
        format!("{prefix}{}", ulid::Ulid::from_parts(self.now().wall.millis(), random))
    }

    /// `N` random bytes, fit for secrets.
    ///
    /// # Panics
    /// When the operating system has no randomness.
    #[must_use]
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.shared.environment.entropy.fill(&mut bytes);
        bytes
    }
}
