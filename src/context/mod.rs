//! Dependencies of services and delivery loop: outbox, transport, clock, vault, metrics, settings.
//!
//! Owns one cheap handle, [`Context`]. Must never know wire formats or its users.

pub(crate) mod access_tokens;
pub mod acts;
pub mod clock;
pub(crate) mod compiled_templates;
pub mod consumer_watch;
pub(crate) mod converted_events;
pub mod environment;
pub mod fair_semaphore;
pub mod folded_states;
pub(crate) mod home;
mod key_uses;
pub(crate) mod overdue;
pub(crate) mod queue_signal;
pub mod rebuilds;
pub(crate) mod records;
pub mod responses;
pub(crate) mod signal;
pub mod source;
pub mod source_board;
mod tenant_rates;
pub mod waiter_limit;
pub(crate) mod waits;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::courier::RequestUrls;
use crate::domain::{KeyId, Now, Party, PolicyDefaults, Position, QuotaExceeded, Quotas, Tenant, Timestamp};
use crate::failpoints::{self, Bound};
use crate::lanes::queue::WaiterNumber;
use crate::limits;
use crate::metrics::Metrics;
use crate::outbox::{DiskShortage, Health, Outbox, Stall};
use crate::rules::handshake::AskingPolicy;
use crate::rules::verdict::RefusedStatuses;
use crate::vault::Vault;
use access_tokens::AccessTokens;
use acts::Act;
use clock::Clock;
use compiled_templates::CompiledTemplates;
use consumer_watch::ConsumerWatch;
use converted_events::ConvertedEvents;
use environment::{Environment, Transport};
use fair_semaphore::{FairSemaphore, FairTurn};
use folded_states::FoldedStates;
use home::Home;
use key_uses::KeyUses;
use rebuilds::Rebuilds;
use signal::Signal;
use source_board::SourceBoard;
use tenant_rates::TenantRates;
use waits::Waits;

/// Settings that an operator can change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Maximum number of concurrent requests over all endpoints.
    pub max_in_flight: usize,
    /// Maximum number of concurrent requests to one host and port over all endpoints; 0: unlimited.
    pub host_max_in_flight: usize,
    /// An endpoint is disabled after failing for this time without a success.
    pub disable_after: Duration,
    pub refused_statuses: RefusedStatuses,
    pub breaker_failures: u32,
    pub breaker_probe_initial: Duration,
    pub breaker_probe_max: Duration,
    pub asking: AskingPolicy,
    /// Timeout of a handshake request.
    pub handshake_timeout: Duration,
    pub defaults: PolicyDefaults,
    /// Prefix of the callback URL of a handshake; endpoint and token follow. `None`: no callbacks.
    pub callback_base: Option<Arc<str>>,
    /// Quotas of tenants without their own.
    pub quotas: Quotas,
}

/// Cheap handle to the shared dependencies.
#[derive(Clone)]
pub struct Context {
    shared: Arc<Shared>,
    /// The act of an operator that the commits of this handle belong to.
    act: Option<Arc<Act>>,
}

struct Shared {
    outbox: Outbox,
    environment: Environment,
    vault: Arc<Vault>,
    clock: Clock,
    metrics: Arc<Metrics>,
    settings: ArcSwap<Settings>,
    signals: mpsc::UnboundedSender<Signal>,
    tenant_rates: TenantRates,
    /// Held from a read of deliveries to the commit of a change that depends on the read.
    exclusive: FairSemaphore<Party>,
    /// Long computations for requests have turns on half of the processors.
    processors: FairSemaphore<Party>,
    /// Changes of resources that were interrupted by others have one turn.
    changes: FairSemaphore<Party>,
    waits: Waits,
    consumers: Arc<ConsumerWatch>,
    erasure_requested: Notify,
    retention_requested: Notify,
    rebuilds: Rebuilds,
    /// Number of the last receive.
    waiters: AtomicU64,
    /// Held during the change of an event type, and during a comparison of schemas, which may
    /// outlast it.
    type_changes: Arc<Semaphore>,
    comparisons: Arc<Semaphore>,
    converted_events: ConvertedEvents,
    folded_states: FoldedStates,
    compiled_templates: CompiledTemplates,
    request_urls: RequestUrls,
    access_tokens: AccessTokens,
    key_uses: KeyUses,
    job_started: Notify,
    job_ended: Notify,
    source_board: SourceBoard,
}

impl Context {
    /// Returns the handle and the delivery loop's signal receiver.
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
        outbox.set_default_quotas(settings.quotas);
        let settings = ArcSwap::from_pointee(settings);
        let (tenant_rates, exclusive) = (TenantRates::default(), FairSemaphore::new(1));
        let waits = Waits::default();
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let turns = failpoints::bound(Bound::ComputeTurns, processors.div_ceil(2));
        let shared = Shared {
            outbox,
            environment,
            vault,
            clock,
            metrics,
            settings,
            signals,
            tenant_rates,
            exclusive,
            processors: FairSemaphore::new(turns),
            changes: FairSemaphore::new(1),
            waits,
            consumers: Arc::default(),
            erasure_requested: Notify::new(),
            retention_requested: Notify::new(),
            rebuilds: Rebuilds::default(),
            waiters: AtomicU64::new(0),
            type_changes: Arc::new(Semaphore::new(1)),
            comparisons: Arc::new(Semaphore::new(1)),
            converted_events: ConvertedEvents::default(),
            folded_states: FoldedStates::default(),
            compiled_templates: CompiledTemplates::default(),
            request_urls: RequestUrls::default(),
            access_tokens: AccessTokens::default(),
            key_uses: KeyUses::default(),
            job_started: Notify::new(),
            job_ended: Notify::new(),
            source_board: SourceBoard::default(),
        };
        (Self { shared: Arc::new(shared), act: None }, inbox)
    }

    /// Commits pending units and writes a checkpoint, after the delivery loop has ended. Blocks.
    pub fn stop_outbox(&self) {
        self.outbox_of(Home::All).stop();
    }

    /// Callers that wait for a change.
    pub(crate) fn waits(&self) -> &Waits {
        &self.shared.waits
    }

    pub(crate) fn consumers(&self) -> &Arc<ConsumerWatch> {
        &self.shared.consumers
    }

    /// Asks the background task to remove erased content from the disk.
    pub(crate) fn request_erasure_pass(&self) {
        self.shared.erasure_requested.notify_one();
    }

    /// Waits for [`Self::request_erasure_pass`].
    pub(crate) async fn erasure_requested(&self) {
        self.shared.erasure_requested.notified().await;
    }

    /// Asks the background task for a retention pass before its pause ends.
    pub(crate) fn request_retention_pass(&self) {
        self.shared.retention_requested.notify_one();
    }

    /// Waits for [`Self::request_retention_pass`].
    pub(crate) async fn retention_requested(&self) {
        self.shared.retention_requested.notified().await;
    }

    /// A job runs that has further steps.
    pub(crate) fn note_job_started(&self) {
        self.shared.job_started.notify_one();
    }

    /// Waits for [`Self::note_job_started`].
    pub(crate) async fn job_started(&self) {
        self.shared.job_started.notified().await;
    }

    pub(crate) fn note_job_ended(&self) {
        self.shared.job_ended.notify_waiters();
    }

    /// The next end of a job, from this call on.
    pub(crate) fn job_ended(&self) -> tokio::sync::futures::Notified<'_> {
        self.shared.job_ended.notified()
    }

    pub(crate) fn rebuilds(&self) -> &Rebuilds {
        &self.shared.rebuilds
    }

    /// A number for a receive.
    pub(crate) fn next_waiter(&self) -> WaiterNumber {
        WaiterNumber(self.shared.waiters.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Position of the last commit.
    #[must_use]
    pub fn last_position(&self) -> Position {
        self.outbox_of(Home::All).journal().last_position()
    }

    pub(crate) fn source_board(&self) -> &SourceBoard {
        &self.shared.source_board
    }

    pub(crate) fn converted_events(&self) -> &ConvertedEvents {
        &self.shared.converted_events
    }

    /// Waits for the turn of a party to compute. At most half of the processors compute, at least
    /// one.
    pub(crate) async fn processor_turn(&self, party: &Party) -> FairTurn<Party> {
        self.shared.processors.turn(party).await
    }

    /// Waits for the turn of a party to repeat an interrupted change.
    pub(crate) async fn change_turn(&self, party: &Party) -> FairTurn<Party> {
        self.shared.changes.turn(party).await
    }

    pub(crate) fn folded_states(&self) -> &FoldedStates {
        &self.shared.folded_states
    }

    pub(crate) fn compiled_templates(&self) -> &CompiledTemplates {
        &self.shared.compiled_templates
    }

    pub(crate) fn request_urls(&self) -> &RequestUrls {
        &self.shared.request_urls
    }

    pub(crate) fn access_tokens(&self) -> &AccessTokens {
        &self.shared.access_tokens
    }

    /// Excludes other changes of event types.
    pub(crate) fn type_changes(&self) -> &Arc<Semaphore> {
        &self.shared.type_changes
    }

    /// The turn of a comparison of schemas.
    pub(crate) fn comparisons(&self) -> &Arc<Semaphore> {
        &self.shared.comparisons
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

    /// Replaces the settings. Lanes adopt them when the delivery loop receives the signal. Sources
    /// connect again.
    pub fn reconfigure(&self, settings: Settings) {
        self.outbox_of(Home::All).set_default_quotas(settings.quotas);
        self.shared.settings.store(Arc::new(settings));
        self.source_board().restart();
        self.signal(Signal::Reconfigured);
    }

    /// The limits of a tenant. The reserved tenant has none.
    pub(crate) fn quotas(&self, tenant: &Tenant) -> Quotas {
        if tenant.as_str() == Tenant::OPERATOR {
            return Quotas::default();
        }
        self.outbox_of(tenant).registry(|registry| registry.quotas(tenant))
    }

    /// Takes events of this size together from their tenant's rate.
    ///
    /// # Errors
    /// When the rate has no room for it.
    pub(crate) fn take_rate(&self, tenant: &Tenant, events: u64, bytes: u64) -> Result<(), QuotaExceeded> {
        let (quotas, now) = (self.quotas(tenant), self.now().monotonic);
        let taken = self.shared.tenant_rates.take(tenant, &quotas, (events, bytes), now);
        taken.inspect_err(|exceeded| self.metrics().quota_refused(exceeded.quota))
    }

    /// Sends a signal to the delivery loop. After the loop has ended, drops the signal.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.shared.signals.send(signal).is_err() {
            tracing::debug!("signal dropped: the delivery loop has ended");
        }
    }

    /// Locks out other callers that change deliveries, until the turn is dropped. Parties take
    /// turns.
    pub(crate) async fn exclusive(&self, party: &Party) -> FairTurn<Party> {
        self.shared.exclusive.turn(party).await
    }

    /// Whether the outbox can commit.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.outbox_of(Home::All).health()
    }

    /// The activity that keeps the outbox for too long; `None` if it makes progress.
    #[must_use]
    pub fn stall(&self) -> Option<Stall> {
        self.outbox_of(Home::All).stall().filter(|stall| stall.duration > limits::DISK_SILENCE_MAX)
    }

    /// Free space below the disk reserve, if it is.
    #[must_use]
    pub fn disk_shortage(&self) -> Option<DiskShortage> {
        self.outbox_of(Home::All).disk_shortage()
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        self.shared.clock.now()
    }

    /// A request was authenticated with the key.
    pub(crate) fn note_key_use(&self, key: &KeyId) {
        self.shared.key_uses.note(key, self.now().wall);
    }

    /// The hour of the key's last use since the start of the process.
    pub(crate) fn last_key_use(&self, key: &KeyId) -> Option<Timestamp> {
        self.shared.key_uses.last(key)
    }

    /// See [`KeyUses::all`].
    pub(crate) fn key_uses(&self) -> Vec<(KeyId, Timestamp)> {
        self.shared.key_uses.all()
    }

    pub(crate) fn forget_key_use(&self, key: &KeyId) {
        self.shared.key_uses.forget(key);
    }

    /// Both clocks, and the raw wall clock; see [`Clock::now_and_civil`].
    pub(crate) fn now_and_civil(&self) -> (Now, Timestamp) {
        self.shared.clock.now_and_civil()
    }

    /// A new identifier: the prefix and a ULID of the current time.
    pub(crate) fn new_id(&self, prefix: &str) -> String {
        let random = u128::from_be_bytes(self.random_bytes::<16>());
        format!("{prefix}{}", ulid::Ulid::from_parts(self.now().wall.millis(), random))
    }

    /// `N` random bytes, suitable for secrets.
    ///
    /// # Panics
    /// When the operating system provides no random bytes.
    #[must_use]
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.shared.environment.entropy.fill(&mut bytes);
        bytes
    }
}
