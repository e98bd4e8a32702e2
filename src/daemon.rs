//! The daemon: choosing and ordering the parts; start and shutdown.
//!
//! Start: configuration, store (recovery), listeners, delivery, then `READY=1`. Stop: no new requests, running attempts
//! within the drain limit, then the store writes what waits and checkpoints. A second signal ends the waiting.

mod admin_key;
mod certificate;
mod descriptors;
mod log;
mod notify;
mod progress;
mod restore;
mod settings;
mod supervisor;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::api::http::connection_limit::ConnectionLimit;
use crate::api::http::server::Bounds;
use crate::api::{self, Api};
use crate::config::{Config, ConfigError, Origin, SecretsKey, Server};
use crate::courier::Courier;
use crate::engine::clock::Clock;
use crate::engine::secrets::SealingSource;
use crate::engine::types::Unavailable;
use crate::engine::{Engine, Run};
use crate::engine::{resealing, retention};
use crate::limits;
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::outbox::{Admission, Health, Outbox, Written};
use crate::vault::Vault;
use certificate::{ListenerCertificate, ListenerTls};
use log::{LogSink, NOTICE};
use progress::Meter;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use settings::{courier_settings, keep, load_to_fit, ops_site};
use supervisor::{Supervisor, Word};

pub use restore::{RestoreKeys, restore};
pub use settings::{api_config, settings};
pub use verify::verify;

/// What `balto serve` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub config: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    pub dev: bool,
    /// With `dev`: listeners beyond loopback are allowed.
    pub dev_listen_anywhere: bool,
}

/// What a command that works on files has found or done, for people and for programs.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Lines without the last one's end.
    pub words: String,
    pub json: serde_json::Value,
    pub is_good: bool,
    /// A line for standard error.
    pub remark: Option<String>,
}

/// What the daemon was started with.
struct Setup {
    options: Options,
    config: Config,
    /// File descriptors that there were for it.
    descriptors: usize,
    metrics: Arc<Metrics>,
    log: LogSink,
    /// Of the API listener.
    tls: Option<ListenerTls>,
    /// Of the ops listener.
    ops_site: api::ops::Site,
}

/// Time of a request's headers, and of an answer, at the ops listener.
const OPS_TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever is told again to stop waits this long for the store's last writes.
const STORE_PATIENCE: Duration = Duration::from_secs(5);
/// Exit code after a failure of the store: the supervisor should start again, and recovery begins there.
const STORE_FAILED: u8 = 74;
/// Exit code after a panic that is not contained: `EX_SOFTWARE` of sysexits.h.
const INTERNAL_ERROR: u8 = 70;

/// Runs until a signal ends it.
///
/// # Errors
/// When the configuration is bad, or there can be no log. A failure after that is logged, and told by the exit code.
pub fn serve(options: &Options) -> anyhow::Result<ExitCode> {
    make_files_private();
    // In development a debugger may look.
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
        tracing::warn!(target: NOTICE, "--dev: no key is needed, plain http and loopback targets are allowed: INSECURE");
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

/// A core dump would hold the keys, and so does the memory that another process of the same user can read.
fn hide_memory() -> anyhow::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot forbid core dumps (PR_SET_DUMPABLE)")
}

fn run_to_the_end(mut setup: Setup) -> anyhow::Result<ExitCode> {
    setup.tls = listener_certificate(&setup.config.server)?.as_ref().map(ListenerTls::new);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (supervisor, telling) = Supervisor::new()?;
    let ended = runtime.block_on(run(setup, supervisor));
    telling.end();
    // Whoever still waits for a name server is not waited for.
    runtime.shutdown_background();
    ended
}

/// From here on, files of this process are accessible to its user alone, also those that libraries make.
fn make_files_private() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

async fn run(setup: Setup, supervisor: Supervisor) -> anyhow::Result<ExitCode> {
    let started = Started::default();
    let setup = Arc::new(setup);
    let Setup { options, config, metrics, log, .. } = &*setup;
    // From here on a reload that comes too early waits; by default it would end the process.
    let hangup = signal(SignalKind::hangup())?;
    supervisor.tell(Word::Recovering);
    let told = watch::Sender::new(Run::On);
    let connections = ConnectionLimit::new(config.server.max_connections);
    // The ops listener answers from before recovery until the very end, so that both can be watched.
    let ops_listener = listen(config.server.ops_listen, "server.ops_listen").await?;
    let ops_address = ops_listener.local_addr()?;
    let mut ops = JoinSet::new();
    let router = ops_router(&setup, &started, &told, &connections);
    ops.spawn(api::http::server::serve(ops_listener, router, ops_bounds(&started), std::future::pending()));

    let (engine, dispatcher) = open(options, config, metrics, log)?;
    let shown_config = api_config(options, config)?;
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        hangup,
    };
    let api_listener = listen(config.server.api_listen, "server.api_listen").await?;
    let engine = started.get_or_init(|| engine).clone();
    let api_address = api_listener.local_addr()?;
    engine.courier().set_listening(vec![api_address.port(), ops_address.port()]);
    warn_of_plain_http(&setup, api_address);
    tracing::info!(api = %api_address, ops = %ops_address, data = %config.store.path.display(), "ready");

    let api = Api::new(engine.clone(), shown_config, metrics.clone());
    let mut serving = JoinSet::new();
    let bounds = bounds(&setup, connections, &started)?;
    serving.spawn(api::http::server::serve(api_listener, api::router(api.clone()), bounds, stopping(&told)));

    let beating = tokio::spawn(beat(dispatcher.heartbeat(), {
        let supervisor = supervisor.clone();
        move || supervisor.tell(Word::Alive)
    }));
    let mut delivering = tokio::spawn(dispatcher.run(told.subscribe(), config.delivery.drain_timeout));
    let retaining = tokio::spawn(retention::run(engine.clone(), keep(config)));
    let resealing = tokio::spawn(resealing::run(engine.clone()));
    supervisor.tell(Word::Ready(None));
    let on_hangup = || begin_reload(&setup, &engine, &api, &supervisor);
    let early = signals.until_the_end(on_hangup, &mut delivering).await;
    supervisor.tell(Word::Stopping);
    tracing::info!("stopping");
    told.send_replace(Run::Draining);
    let mut drained = std::pin::pin!(async {
        end_serving(serving, told.subscribe()).await;
        match early {
            Some(ended) => ended,
            None => delivering.await,
        }
    });
    let delivered = tokio::select! {
        delivered = &mut drained => delivered,
        () = signals.end() => {
            tracing::warn!("told to stop again: nothing is waited for any more");
            told.send_replace(Run::Cut);
            drained.await
        }
    };
    beating.abort();
    retaining.abort();
    resealing.abort();
    let failed = match delivered {
        Ok(Ok(())) => false,
        Ok(Err(error)) => {
            tracing::error!(%error, "delivery ended");
            true
        }
        Err(error) => {
            tracing::error!(%error, "delivery ended");
            true
        }
    };
    let unanswered = !signals.store_stops(engine, failed).await;
    ops.abort_all();
    let code = if failed || unanswered { ExitCode::from(STORE_FAILED) } else { ExitCode::SUCCESS };
    tracing::info!("stopped");
    Ok(code)
}

/// Is ready when nothing more is to be begun.
fn stopping(told: &watch::Sender<Run>) -> impl Future<Output = ()> + Send + use<> {
    let mut told = told.subscribe();
    // A sender that is gone means the same.
    async move { drop(told.wait_for(|run| *run != Run::On).await) }
}

/// Lets the requests that are being answered end, unless nothing is waited for any more.
async fn end_serving(mut serving: JoinSet<()>, mut told: watch::Receiver<Run>) {
    let ended = async { while serving.join_next().await.is_some() {} };
    tokio::select! {
        () = ended => {}
        _ = told.wait_for(|run| *run == Run::Cut) => {}
    }
}

/// Tells the supervisor that the delivery loop turns, at most once a second. A loop that hangs says nothing.
async fn beat(mut heartbeat: watch::Receiver<()>, tell: impl Fn()) {
    while heartbeat.changed().await.is_ok() {
        tell();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn bounds(setup: &Setup, connections: Arc<ConnectionLimit>, started: &Started) -> anyhow::Result<Bounds> {
    let server = &setup.config.server;
    Ok(Bounds {
        connections,
        header_timeout: server.header_timeout,
        answer_timeout: server.answer_timeout,
        on_shortage: on_shortage(started),
        tls: setup.tls.as_ref().map(ListenerTls::acceptor).transpose()?,
    })
}

fn ops_bounds(started: &Started) -> Bounds {
    Bounds {
        connections: ConnectionLimit::new(limits::OPS_CONNECTIONS_MAX),
        header_timeout: OPS_TIMEOUT,
        answer_timeout: OPS_TIMEOUT,
        on_shortage: on_shortage(started),
        tls: None,
    }
}

fn on_shortage(started: &Started) -> Arc<dyn Fn() + Send + Sync> {
    let started = started.clone();
    Arc::new(move || {
        if let Some(engine) = started.get() {
            engine.courier().on_shortage();
        }
    })
}

/// Empty until recovery is done.
type Started = Arc<OnceLock<Engine>>;

fn ops_router(
    setup: &Setup,
    started: &Started,
    told: &watch::Sender<Run>,
    connections: &Arc<ConnectionLimit>,
) -> axum::Router {
    let directory = setup.config.store.path.clone();
    let (started, told, connections) = (started.clone(), told.subscribe(), connections.clone());
    let ready = Arc::new(move || match (*told.borrow(), started.get()) {
        (Run::Draining | Run::Cut, _) => Err("draining".to_owned()),
        (Run::On, None) => Err("recovering".to_owned()),
        (Run::On, Some(engine)) => works(engine),
    });
    let (metrics, is_ready) = (setup.metrics.clone(), ready.clone());
    let shown = Arc::new(move || {
        metrics.look(is_ready().is_ok(), free_bytes(&directory));
        metrics.connections(connections.taken(), connections.take_evicted());
        (CONTENT_TYPE, metrics.encode())
    });
    api::ops::router(shown, ready, setup.ops_site.clone())
}

/// Whether anything can be made durable, else why not.
fn works(engine: &Engine) -> Result<(), String> {
    let silence = engine.disk_silence();
    match &*engine.health().borrow() {
        Health::Good if silence > limits::DISK_SILENCE_MAX => {
            Err(format!("the disk has not answered for {} s", silence.as_secs()))
        }
        Health::Good => Ok(()),
        Health::DiskFull => Err("the disk is full".to_owned()),
        Health::Failed(reason) => Err(reason.to_string()),
    }
}

impl api::Observer for Metrics {
    fn refused(&self, code: &'static str) {
        self.refused(code);
    }

    fn authentication_refused(&self, reason: &'static str) {
        self.authentication_refused(reason);
    }
}

/// What an unprivileged process may still write to the disk that holds `directory`.
fn free_bytes(directory: &Path) -> u64 {
    rustix::fs::statvfs(directory).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn open(
    options: &Options,
    config: &Config,
    metrics: &Arc<Metrics>,
    log: &LogSink,
) -> anyhow::Result<(Engine, crate::engine::Dispatcher)> {
    let admission =
        Admission { bytes: config.ingest.admission_bytes, commands: config.ingest.admission_events };
    let observer = {
        let metrics = metrics.clone();
        Arc::new(move |written, took| match written {
            Written::Commit { records } => metrics.committed(records, took),
            Written::Checkpoint => metrics.checkpointed(took),
        })
    };
    let keys = config.secrets_keys()?;
    let vault = Arc::new(Vault::new(keys.iter().map(SecretsKey::expose)));
    let source = Box::new(SealingSource(vault.clone()));
    let mut meter = Meter::of_the_daemon("reading the journal", log);
    let opened = Outbox::open(&config.store.path, admission, source, observer, &mut |at| meter.on(at))?;
    drop(meter);
    if opened.journal.torn_bytes > 0 {
        tracing::warn!(
            bytes = opened.journal.torn_bytes,
            "an unfinished commit was cut from the journal's end"
        );
    }
    for damage in &opened.journal.damage {
        let (first, last) = damage.positions.map(|(first, last)| (first.0, last.0)).unzip();
        let (segment, cause) = (damage.segment.0, damage.cause);
        tracing::error!(first, last, segment, bytes = ?damage.bytes, ?cause, "the journal is damaged; the records named are lost");
    }
    tracing::info!(
        last = opened.journal.last.0,
        replayed = opened.replayed,
        rebuilt = opened.rebuilt.as_deref(),
        "store open"
    );
    let courier = Courier::new(courier_settings(options, config)?).map_err(anyhow::Error::msg)?;
    let made = Engine::new(opened, courier, vault, Clock::default(), metrics.clone(), settings(config));
    made.0.check_secrets().map_err(anyhow::Error::msg)?;
    Ok(made)
}

/// How the delivery loop ended.
type Delivered = Result<Result<(), Unavailable>, tokio::task::JoinError>;

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// SIGTERM or SIGINT.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// The store writes what waits. Gives whether it did. It is not waited for much longer after another signal, or when it
    /// has failed already.
    async fn store_stops(&mut self, engine: Engine, failed: bool) -> bool {
        let patience = async {
            if !failed {
                self.end().await;
            }
            tokio::time::sleep(STORE_PATIENCE).await;
        };
        let mut stopping = tokio::task::spawn_blocking(move || engine.stop_outbox());
        tokio::select! {
            stopped = &mut stopping => {
                if let Err(error) = &stopped {
                    tracing::error!(%error, "the store did not stop");
                }
                stopped.is_ok()
            }
            () = patience => {
                tracing::error!("the disk does not answer, and is not waited for; what was acknowledged is on it");
                false
            }
        }
    }

    /// Waits for a signal that ends the daemon; begins a reload on SIGHUP, one at a time. A reload
    /// reads files, which may take for ever: a signal that ends the daemon does not wait for it.
    /// Gives the delivery loop's end when that came first.
    async fn until_the_end(
        &mut self,
        on_hangup: impl Fn() -> JoinHandle<()>,
        delivering: &mut JoinHandle<Result<(), Unavailable>>,
    ) -> Option<Delivered> {
        let mut reload: Option<JoinHandle<()>> = None;
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return None,
                _ = self.interrupt.recv() => return None,
                ended = &mut *delivering => return Some(ended),
                _ = async { reload.as_mut()?.await.ok() }, if reload.is_some() => reload = None,
                _ = self.hangup.recv(), if reload.is_none() => reload = Some(on_hangup()),
            }
        }
    }
}

/// Beside the loop that waits for signals, since files may take for ever to be read.
fn begin_reload(
    setup: &Arc<Setup>,
    engine: &Engine,
    api: &Arc<Api>,
    supervisor: &Supervisor,
) -> JoinHandle<()> {
    let (setup, engine, api) = (setup.clone(), engine.clone(), api.clone());
    let supervisor = supervisor.clone();
    tokio::task::spawn_blocking(move || {
        supervisor.tell(Word::Reloading);
        supervisor.tell(Word::Ready(on_hangup(&setup, &engine, &api).err()));
    })
}

/// Does what SIGHUP asks for; tells the log. The error says why nothing changed.
fn on_hangup(setup: &Setup, engine: &Engine, api: &Arc<Api>) -> Result<(), String> {
    let reloaded = reload(setup, engine, api);
    match &reloaded {
        Ok(()) => tracing::info!("configuration reloaded"),
        Err(error) => tracing::error!(%error, "the new configuration is bad; the old one stays"),
    }
    reloaded.map_err(|error| error.to_string())
}

/// Takes over the new configuration, when it is good and differs only in what can change while running.
fn reload(setup: &Setup, engine: &Engine, api: &Arc<Api>) -> anyhow::Result<()> {
    let options = &setup.options;
    let (config, _) = load_to_fit(options, setup.descriptors)?;
    if let Err(keys) = setup.config.reloadable_diff(&config) {
        anyhow::bail!("these keys need a restart: {}", keys.join(", "));
    }
    let certificate = listener_certificate(&config.server)?;
    if certificate.is_some() != setup.tls.is_some() {
        anyhow::bail!("turning TLS of the API listener on or off needs a restart");
    }
    let shown = api_config(options, &config)?;
    engine.courier().reconfigure(courier_settings(options, &config)?).map_err(anyhow::Error::msg)?;
    if let (Some(tls), Some(certificate)) = (&setup.tls, &certificate) {
        tls.replace(certificate);
    }
    engine.reconfigure(settings(&config));
    api.reconfigure(shown);
    setup.ops_site.store(ops_site(options, &config));
    Ok(())
}

fn warn_of_plain_http(setup: &Setup, api: std::net::SocketAddr) {
    if setup.tls.is_none() && !api.ip().is_loopback() {
        tracing::warn!(
            address = %api,
            "the API speaks plain HTTP beyond loopback: keys can be read on the network; set \
            server.tls_certificate_file and server.tls_key_file, or listen on 127.0.0.1 behind a proxy that speaks TLS"
        );
    }
}

/// The certificate of the API listener, if it speaks TLS. Tells the log about it.
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

/// Whether the API listener's certificate and key can be used; gives a warning when clients will refuse them.
///
/// # Errors
/// Which file is wrong, and how.
pub fn check_certificate(server: &Server) -> Result<Option<ConfigError>, ConfigError> {
    let loaded = ListenerCertificate::load(server)?;
    let warning = loaded.and_then(|certificate| certificate.expiry_warning(Clock::default().now().wall));
    Ok(warning.map(|reason| ConfigError {
        origin: Origin::Default,
        key: Some(certificate::CERTIFICATE_KEY.to_owned()),
        reason,
    }))
}

/// `key` is where the address was configured.
async fn listen(address: std::net::SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
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
    async fn a_loop_that_hangs_is_not_said_to_turn() {
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
