//! The daemon: selects and orders the parts; start and shutdown.
//!
//! Start: configuration, store (recovery), listeners, delivery, then `READY=1`. Stop: no new
//! requests, attempts under way within the drain limit, then the store writes its queue and
//! checkpoints. A second signal ends the wait.

mod admin_key;
mod certificate;
mod descriptors;
mod log;
mod notify;
mod ops;
mod progress;
mod reload;
mod restore;
mod settings;
mod signals;
mod supervisor;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::api::http::connection_limit::{AddressLimit, ConnectionLimit};
use crate::api::http::server::Bounds;
use crate::api::{self, Api};
use crate::config::{Config, ConfigError, Origin, SecretsKey, Server};
use crate::context::Context;
use crate::context::clock::Clock;
use crate::context::environment::Environment;
use crate::context::source::SealingSource;
use crate::courier::Courier;
use crate::delivery::{Dispatcher, Run, assemble};
use crate::delivery::{erasure, jobs, key_uses, rebuilding, resealing, retention};
use crate::metrics::Metrics;
use crate::outbox::draft::Unavailable;
use crate::outbox::{AdmissionLimits, DiskWrite, Outbox};
use crate::service::event_types::Unregistered;
use crate::service::{Secrets, Sources};
use crate::sources::{self, SourceOptions};
use crate::vault::Vault;
use certificate::{ListenerCertificate, ListenerTls};
use log::{LogSink, NOTICE};
use progress::Meter;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use settings::{courier_settings, keep, load_to_fit, ops_site};
use signals::{Delivered, Hangup, Signals};
use supervisor::{DaemonState, Supervisor};

pub use restore::{RestoreKeys, restore};
pub use settings::{api_config, settings};
pub use verify::verify;

/// Options of `balto serve`.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    pub config: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    pub dev: bool,
    /// With `dev`: listeners beyond loopback are allowed.
    pub dev_listen_anywhere: bool,
}

/// The result of a command that works on files, as text and as JSON.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Text without a final line break.
    pub words: String,
    pub json: serde_json::Value,
    pub is_good: bool,
    /// A warning, for standard error.
    pub remark: Option<String>,
}

/// The settings and resources of a start.
struct Setup {
    options: ServeOptions,
    config: Config,
    /// Limit of file descriptors at the start.
    descriptors: usize,
    metrics: Arc<Metrics>,
    log: LogSink,
    /// TLS of the API listener.
    tls: Option<ListenerTls>,
    /// Browser rules of the ops listener.
    ops_site: api::ops::Site,
}

/// Exit code after a failure of the store. A restart begins with recovery.
const STORE_FAILED: u8 = 74;
/// Exit code after a fatal panic: `EX_SOFTWARE` of sysexits.h.
const INTERNAL_ERROR: u8 = 70;
/// Longest wait for the tasks of a daemon that has ended. One in a blocking call may take longer.
const BLOCKED_TASKS_WAIT_MAX: Duration = Duration::from_secs(1);

/// Runs until a signal ends it.
///
/// # Errors
/// When the configuration is invalid, or the log cannot be started. Later failures are logged, and
/// reported by the exit code.
pub fn serve(options: &ServeOptions) -> anyhow::Result<ExitCode> {
    make_files_private();
    // In development a debugger may read the memory.
    if !options.dev {
        hide_memory()?;
    }
    let descriptors = descriptors::available();
    let (config, lowered) = load_to_fit(options, descriptors)?;
    let metrics = Arc::new(Metrics::new());
    let log = LogSink::start(&config, metrics.log_lines_dropped())?;
    log.end_process_on_panic(INTERNAL_ERROR);
    if let Some(lowered) = lowered {
        tracing::warn!("{lowered}");
    }
    if options.dev {
        tracing::warn!(target: NOTICE, "--dev is INSECURE: no API key is needed, plain http and loopback targets are allowed");
    }
    let setup = Setup {
        options: options.clone(),
        ops_site: Arc::new(ArcSwapOption::new(ops_site(options, &config))),
        config,
        descriptors,
        metrics,
        log: log.clone(),
        tls: None,
    };
    let code = run_to_the_end(setup).unwrap_or_else(|error| {
        log.text(&format!("balto: {error:#}\n"));
        ExitCode::FAILURE
    });
    log.flush();
    Ok(code)
}

/// Forbids core dumps, and access to the memory for other processes of the same user: both contain
/// keys.
fn hide_memory() -> anyhow::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot forbid core dumps (PR_SET_DUMPABLE)")
}

fn run_to_the_end(mut setup: Setup) -> anyhow::Result<ExitCode> {
    setup.tls = listener_certificate(&setup.config.server)?.as_ref().map(ListenerTls::new);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (supervisor, supervisor_thread) = Supervisor::new()?;
    let ended = runtime.block_on(run(setup, supervisor));
    supervisor_thread.end();
    // Waits for its tasks, because they hold the lock of the data directory.
    runtime.shutdown_timeout(BLOCKED_TASKS_WAIT_MAX);
    ended
}

/// Makes all new files of this process accessible to its user alone, also the files of libraries.
fn make_files_private() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

async fn run(setup: Setup, supervisor: Supervisor) -> anyhow::Result<ExitCode> {
    let started = Started::default();
    let setup = Arc::new(setup);
    let Setup { options, config, metrics, log, .. } = &*setup;
    let courier = Courier::new(courier_settings(options, config)?).map_err(anyhow::Error::msg)?;
    let hangup = Hangup::new()?;
    supervisor.tell(DaemonState::Recovering);
    let run = watch::Sender::new(Run::On);
    let per_address = AddressLimit {
        connections: config.server.max_connections_per_address,
        unlimited: config.server.unlimited_networks.clone(),
    };
    let connections = ConnectionLimit::with_address_limit(config.server.max_connections, per_address);
    let (mut ops, ops_address) = ops::serve(&setup, &courier, &started, &run, &connections).await?;

    let (context, dispatcher) = open(&courier, config, metrics, log)?;
    let shown_config = api_config(options, config)?;
    let mut signals = Signals::new(hangup)?;
    let api_listener = listen(config.server.api_listen, "server.api_listen")?;
    resealing::count(&context);
    let context = started.get_or_init(|| context).clone();
    let api_address = api_listener.local_addr()?;
    courier.set_listening(vec![api_address.port(), ops_address.port()]);
    warn_of_plain_http(&setup, api_address);
    tracing::info!(api = %api_address, ops = %ops_address, data = %config.store.path.display(), "ready");

    let api = Api::new(context.clone(), shown_config, metrics.clone());
    let mut serving = JoinSet::new();
    let bounds = bounds(&setup, connections, &courier)?;
    serving.spawn(api::http::server::serve(
        api_listener,
        api::router(api.clone()),
        bounds,
        until_draining(&run),
    ));
    let (mut delivery, background) = spawn_tasks(&setup, &context, dispatcher, &run, &supervisor);
    let sources = tokio::spawn(sources::run(
        context.clone(),
        courier.clone(),
        source_options(config),
        until_draining(&run),
    ));
    supervisor.tell(DaemonState::Ready(None));

    let on_hangup = || reload::begin(&setup, &courier, &context, &api, &supervisor);
    let early = signals.until_end(on_hangup, &mut delivery).await;
    supervisor.tell(DaemonState::Stopping);
    tracing::info!("stopping");
    let delivered = drain(&run, &mut signals, serving, sources, early, delivery).await;
    drop(background);
    let has_failed = report_delivery_end(delivered);
    if !has_failed {
        key_uses::finish(&context).await;
    }
    let is_stopped = signals.stop_store(context, has_failed).await;
    ops.abort_all();
    tracing::info!("stopped");
    Ok(if has_failed || !is_stopped { ExitCode::from(STORE_FAILED) } else { ExitCode::SUCCESS })
}

/// Starts the delivery loop, and the tasks in the background, which end when their set is dropped.
fn spawn_tasks(
    setup: &Setup,
    context: &Context,
    dispatcher: Dispatcher,
    run: &watch::Sender<Run>,
    supervisor: &Supervisor,
) -> (JoinHandle<Result<(), Unavailable>>, JoinSet<()>) {
    let mut background = JoinSet::new();
    let supervisor = supervisor.clone();
    background.spawn(beat(dispatcher.heartbeat(), move || supervisor.tell(DaemonState::Alive)));
    background.spawn(retention::run(context.clone(), keep(&setup.config)));
    background.spawn(erasure::run(context.clone()));
    background.spawn(jobs::run(context.clone()));
    background.spawn(rebuilding::run(context.clone()));
    background.spawn(resealing::run(context.clone()));
    background.spawn(key_uses::run(context.clone()));
    let delivery = tokio::spawn(dispatcher.run(run.subscribe(), setup.config.delivery.drain_timeout));
    (delivery, background)
}

/// Begins nothing new, and waits for requests and attempts under way. A second signal cuts them
/// off.
async fn drain(
    run: &watch::Sender<Run>,
    signals: &mut Signals,
    serving: JoinSet<()>,
    sources: JoinHandle<()>,
    early: Option<Delivered>,
    delivery: JoinHandle<Result<(), Unavailable>>,
) -> Delivered {
    run.send_replace(Run::Draining);
    let mut drained = std::pin::pin!(async {
        end_serving(serving, run.subscribe()).await;
        end_sources(sources, run.subscribe()).await;
        match early {
            Some(ended) => ended,
            None => delivery.await,
        }
    });
    tokio::select! {
        delivered = &mut drained => delivered,
        () = signals.end() => {
            tracing::warn!("second signal, ending without waiting for requests and attempts");
            run.send_replace(Run::Cut);
            drained.await
        }
    }
}

/// Logs an abnormal end of the delivery loop. Returns whether it was one.
fn report_delivery_end(delivered: Delivered) -> bool {
    match delivered {
        Ok(Ok(())) => return false,
        Ok(Err(error)) => tracing::error!(%error, "delivery ended"),
        Err(error) => tracing::error!(%error, "delivery ended"),
    }
    true
}

/// Waits until the daemon drains.
fn until_draining(run: &watch::Sender<Run>) -> impl Future<Output = ()> + Send + use<> {
    let mut run = run.subscribe();
    // A dropped sender means the same.
    async move { drop(run.wait_for(|run| *run != Run::On).await) }
}

/// Waits for requests under way, until the daemon is cut off.
async fn end_serving(mut serving: JoinSet<()>, mut run: watch::Receiver<Run>) {
    let ended = async { while serving.join_next().await.is_some() {} };
    tokio::select! {
        () = ended => {}
        _ = run.wait_for(|run| *run == Run::Cut) => {}
    }
}

/// Waits for the messages that sources have taken, until the daemon is cut off.
async fn end_sources(sources: JoinHandle<()>, mut run: watch::Receiver<Run>) {
    tokio::select! {
        // A panic is logged where it happens.
        _ = sources => {}
        _ = run.wait_for(|run| *run == Run::Cut) => {}
    }
}

fn source_options(config: &Config) -> SourceOptions {
    SourceOptions {
        max_event_bytes: config.ingest.max_event_bytes,
        unregistered: if config.types.required { Unregistered::Refused } else { Unregistered::Accepted },
    }
}

/// Reports turns of the delivery loop to the supervisor, at most once a second. A loop that hangs
/// is not reported.
async fn beat(mut heartbeat: watch::Receiver<()>, tell: impl Fn()) {
    while heartbeat.changed().await.is_ok() {
        tell();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn bounds(setup: &Setup, connections: Arc<ConnectionLimit>, courier: &Courier) -> anyhow::Result<Bounds> {
    let server = &setup.config.server;
    Ok(Bounds {
        connections,
        header_timeout: server.header_timeout,
        answer_timeout: server.answer_timeout,
        on_shortage: on_shortage(courier),
        tls: setup.tls.as_ref().map(ListenerTls::acceptor).transpose()?,
    })
}

fn on_shortage(courier: &Courier) -> Arc<dyn Fn() + Send + Sync> {
    let courier = courier.clone();
    Arc::new(move || courier.on_shortage())
}

/// The context, once recovery is complete.
type Started = Arc<OnceLock<Context>>;

impl api::Observer for Metrics {
    fn on_rejected(&self, code: &'static str) {
        self.refused(code);
    }

    fn on_authentication_failed(&self, reason: &'static str) {
        self.authentication_refused(reason);
    }
}

fn open(
    courier: &Courier,
    config: &Config,
    metrics: &Arc<Metrics>,
    log: &LogSink,
) -> anyhow::Result<(Context, Dispatcher)> {
    let admission =
        AdmissionLimits { bytes: config.ingest.admission_bytes, commands: config.ingest.admission_events };
    let observer = {
        let metrics = metrics.clone();
        Arc::new(move |written, took| match written {
            DiskWrite::Commit { records } => metrics.committed(records, took),
            DiskWrite::Checkpoint => metrics.checkpointed(took),
        })
    };
    let keys = config.secrets_keys()?;
    for warning in config.weak_keys()? {
        tracing::warn!(%warning, "configured key is weak");
    }
    let vault = Arc::new(Vault::new(keys.iter().map(SecretsKey::expose)));
    let source = Box::new(SealingSource(vault.clone()));
    let mut meter = Meter::of_the_daemon("reading the journal", log);
    let opened = Outbox::open(&config.store.path, admission, source, observer, &mut |at| meter.on(at))?;
    drop(meter);
    opened.outbox.set_disk_reserve(config.store.reserve_bytes as u64);
    if opened.journal.torn_bytes > 0 {
        tracing::warn!(
            bytes = opened.journal.torn_bytes,
            "incomplete commit removed from the end of the journal; it was never acknowledged"
        );
    }
    for damage in &opened.journal.damage {
        let (first, last) = damage.positions.map(|(first, last)| (first.0, last.0)).unzip();
        let (segment, cause) = (damage.segment.0, damage.cause);
        tracing::error!(first, last, segment, bytes = ?damage.bytes, ?cause, "journal damaged, records at these positions are lost; run `balto verify`");
    }
    tracing::info!(
        last = opened.journal.last.0,
        replayed = opened.replayed,
        rebuilt = opened.rebuilt.as_deref(),
        "store open"
    );
    let environment = Environment::system(courier.clone());
    let made = assemble(opened, environment, vault, Clock::default(), metrics.clone(), settings(config));
    Secrets(&made.0).check().map_err(anyhow::Error::msg)?;
    Sources(&made.0).check().map_err(anyhow::Error::msg)?;
    Ok(made)
}

fn warn_of_plain_http(setup: &Setup, api: std::net::SocketAddr) {
    if setup.tls.is_none() && !api.ip().is_loopback() {
        tracing::warn!(
            address = %api,
            "API listens with plain HTTP beyond loopback, API keys can be read on the network: set \
            server.tls_certificate_file and server.tls_key_file, or listen on 127.0.0.1 behind a proxy that speaks TLS"
        );
    }
}

/// The certificate of the API listener, if it speaks TLS. Logs its subject and end.
fn listener_certificate(server: &Server) -> Result<Option<ListenerCertificate>, ConfigError> {
    let loaded = ListenerCertificate::load(server)?;
    if let Some(certificate) = &loaded {
        let (subject, expires_at) = (&certificate.subject, certificate.expires_at.rfc3339());
        match certificate.expiry_warning(Clock::default().now().wall) {
            None => tracing::info!(subject, expires = expires_at.as_str(), "certificate loaded"),
            Some(warning) => tracing::warn!(subject, "{warning}"),
        }
    }
    Ok(loaded)
}

/// Checks certificate and key of the API listener. Returns a warning when clients will refuse the
/// certificate.
///
/// # Errors
/// The file that cannot be used, and the reason.
pub fn check_certificate(server: &Server) -> Result<Option<ConfigError>, ConfigError> {
    let loaded = ListenerCertificate::load(server)?;
    let warning = loaded.and_then(|certificate| certificate.expiry_warning(Clock::default().now().wall));
    Ok(warning.map(|reason| ConfigError {
        origin: Origin::Default,
        key: Some(certificate::CERTIFICATE_KEY.to_owned()),
        reason,
    }))
}

/// `key` is the configuration key of the address.
fn listen(address: std::net::SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    api::http::server::bind(address).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{address} is in use by another process: stop that process, or choose another address with {key}"
        ),
        _ => anyhow::Error::new(error).context(format!("cannot listen on {address} ({key})")),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn hanging_delivery_loop_sends_no_heartbeat() {
        let turns = watch::Sender::new(());
        let told = Arc::new(AtomicU32::new(0));
        let count = told.clone();
        let beating = tokio::spawn(beat(turns.subscribe(), move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        for _ in 0..100 {
            turns.send_replace(());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let while_turning = told.load(Ordering::Relaxed);
        assert!((9..=11).contains(&while_turning), "told {while_turning} times in 10 s");
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        let then = told.load(Ordering::Relaxed);
        assert!(then <= while_turning + 1, "an hour without a turn, and {} times told", then - while_turning);
        drop(turns);
        beating.await.expect("it ends with the loop");
    }
}
