//! The courier: sends HTTP requests to receivers, and messages to AMQP brokers.
//!
//! Owns the HTTP client, its timeouts and limits, the address guard and the body formats. Must
//! never know the outbox. Each attempt
//!
//! * ends within its timeout, counted in running time of this process;
//! * reads at most [`limits::REPLY_WIRE_BYTES_MAX`] bytes after the last byte of its request;
//! * keeps at most [`limits::REPLY_BYTES_MAX`] bytes of a reply's body.
//!
//! It follows no redirect, uses no proxy from the environment and decompresses nothing.
//!
//! Connections are pooled by scheme, host and port. A reload drops all pools, so that no connection
//! outlives the policy that allowed it. Each client certificate has a separate pool. If the
//! receiver closes a pooled connection before the first byte of the reply, the request is sent once
//! more on a new connection.
//!
//! The status of a reply decides its outcome. The head is parsed as leniently as other clients do.
//! The body must arrive within [`limits::REPLY_BODY_TIMEOUT`] and does not affect the outcome. An
//! irregular reply closes its connection.

mod address_limit;
mod addresses;
pub mod body;
pub mod broker;
mod broker_url;
mod connect;
mod deadline;
mod failure;
mod generation;
pub mod guard;
mod local_addresses;
mod pool;
mod progress;
mod read_limit;
mod reply;
mod reply_head;
mod request;
mod request_url;
mod resolver;
mod stream;
pub mod tls;

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::future::maybe_done;
use hyper::StatusCode;
use rustls::RootCertStore;

use crate::domain::{ConnectionFacts, ErrorClass, Network};
use address_limit::AddressLimit;
pub use broker::{BrokerSession, OutboundMessage};
pub use broker_url::{BrokerCredentials, BrokerUrl, is_broker_url};
pub use connect::Proxy;
use connect::{ConnectError, Target};
use deadline::{running_timer, with_deadline};
use failure::{RequestFailure, classify};
use generation::Generation;
use guard::{EgressPolicy, Guard, RefusedUrl};
use pool::{Pool, PooledConnection};
use progress::ConnectProgress;
pub use reply::ReceiverReply;
use reply::read_reply;
pub use request::{OutboundRequest, is_same_origin};
pub use request_url::{RequestUrl, RequestUrls};
pub use resolver::{Resolver, SystemResolver};

/// Minimum time between two reactions to a shortage of file descriptors.
const SHORTAGE_INTERVAL: Duration = Duration::from_secs(1);

/// Why a request was not sent. The receiver is not to blame, and no attempt was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// The process can open no further connection.
    DescriptorsExhausted,
    /// The receiver's address is at its limit of concurrent requests.
    AddressLimit,
    /// The broker takes no messages, because it is short of memory or disk.
    BrokerBlocked,
}

/// Settings of a courier.
#[derive(Clone)]
pub struct CourierSettings {
    pub policy: EgressPolicy,
    /// Timeout from the first packet to the end of the TLS handshake.
    pub connect_timeout: Duration,
    /// Limit of concurrent requests to one address; 0: no limit.
    pub address_max_in_flight: usize,
    pub roots: Arc<RootCertStore>,
    /// Proxy for all connections.
    pub proxy: Option<Proxy>,
    pub resolver: Arc<dyn Resolver>,
}

#[cfg(test)]
impl CourierSettings {
    /// The default policy, no trusted authorities, and the machine's resolver.
    pub(crate) fn for_tests() -> Self {
        Self {
            policy: EgressPolicy::default(),
            connect_timeout: Duration::from_secs(1),
            address_max_in_flight: 0,
            roots: Arc::new(RootCertStore::empty()),
            proxy: None,
            resolver: Arc::new(SystemResolver::new(&[]).expect("a resolver can be built")),
        }
    }
}

/// Facts about the receiver and its connection, also of a request that fails.
#[derive(Default)]
struct Observed {
    network: Network,
    connection: ConnectionFacts,
}

impl Observed {
    /// A request begins on this connection.
    fn begin(&mut self, connection: &PooledConnection) {
        *self = Self { network: connection.network, connection: connection.facts() };
    }

    /// The request that began then has its reply, or has failed.
    fn end(&mut self, connection: &PooledConnection, begun_at: Instant) {
        let replied_at = connection.replied_at();
        self.connection.times.first_byte = replied_at.map(|at| at.saturating_duration_since(begun_at));
    }
}

/// Sends outbound requests. Cheap to clone.
#[derive(Clone)]
pub struct Courier {
    shared: Arc<Shared>,
}

struct Shared {
    guard: Arc<Guard>,
    address_limit: Arc<AddressLimit>,
    generation: ArcSwap<Generation>,
    /// Time of the last reaction to a shortage of file descriptors.
    shortage: Mutex<Option<Instant>>,
}

impl Courier {
    /// # Errors
    /// When this machine's addresses cannot be read, or the settings are invalid.
    pub fn new(settings: CourierSettings) -> Result<Self, String> {
        let guard = Guard::new(settings.policy.clone());
        let guard =
            Arc::new(guard.map_err(|error| format!("this machine's addresses cannot be read: {error}"))?);
        let address_limit = AddressLimit::new(settings.address_max_in_flight);
        let generation = Generation::new(settings, guard.clone())?;
        let generation = ArcSwap::from_pointee(generation);
        let shortage = Mutex::default();
        Ok(Self { shared: Arc::new(Shared { guard, address_limit, generation, shortage }) })
    }

    /// Replaces the settings and closes the connections made under the previous ones.
    ///
    /// # Errors
    /// When the settings are invalid. The previous ones stay in force.
    pub fn reconfigure(&self, settings: CourierSettings) -> Result<(), String> {
        let (policy, address_limit) = (settings.policy.clone(), settings.address_max_in_flight);
        let generation = Generation::new(settings, self.shared.guard.clone())?;
        self.shared.guard.set_policy(policy);
        self.shared.address_limit.set(address_limit);
        self.shared.generation.store(Arc::new(generation));
        Ok(())
    }

    /// Sets the ports that the daemon listens on. No request is sent to them on this machine.
    pub fn set_listening(&self, ports: Vec<u16>) {
        self.shared.guard.set_listening(ports);
    }

    /// Checks a URL when an endpoint is saved, and returns its canonical form. A host that does not
    /// resolve is accepted, because its addresses are checked again for each connection.
    ///
    /// # Errors
    /// When policy forbids the URL or an address of its host.
    pub async fn check_url(&self, url: &str) -> Result<Box<str>, RefusedUrl> {
        let url = self.shared.guard.parse(url)?;
        let connector = self.shared.generation.load().connector.clone();
        match connector.probe(&url).await {
            Err(ConnectError::Forbidden(forbidden)) => Err(forbidden),
            Err(ConnectError::Blocked(blocked)) => Err(blocked.into()),
            _ => Ok(url.as_str().into()),
        }
    }

    /// As [`Self::check_url`], for the URL of a broker.
    ///
    /// # Errors
    /// When policy forbids the URL or an address of its host.
    pub async fn check_broker_url(&self, url: &str) -> Result<Box<str>, RefusedUrl> {
        let url = self.shared.guard.parse_broker(url)?;
        let connector = self.shared.generation.load().connector.clone();
        match connector.probe_target(&Target::of_broker(&url)).await {
            Err(ConnectError::Forbidden(forbidden)) => Err(forbidden),
            Err(ConnectError::Blocked(blocked)) => Err(blocked.into()),
            _ => Ok(url.to_string().into()),
        }
    }

    /// Closes all idle connections, because the process has no file descriptor left.
    pub fn on_shortage(&self) {
        let mut shortage = self.shared.shortage.lock().unwrap_or_else(PoisonError::into_inner);
        if shortage.is_some_and(|last| last.elapsed() < SHORTAGE_INTERVAL) {
            return;
        }
        *shortage = Some(Instant::now());
        drop(shortage);
        self.shared.generation.rcu(|generation| {
            Generation::new(generation.settings.clone(), self.shared.guard.clone())
                .map_or_else(|_| generation.clone(), Arc::new)
        });
    }

    /// Makes one attempt. It ends within the request's timeout, not counting time in which this
    /// process was suspended.
    ///
    /// # Errors
    /// When the request was not sent for a local reason. No attempt was made.
    pub async fn send(&self, request: OutboundRequest) -> Result<ReceiverReply, NotSent> {
        let started = Instant::now();
        // `maybe_done`: the deadline may be polled again after its end.
        let deadline = pin!(maybe_done(running_timer(request.timeout)));
        let mut observed = Observed::default();
        let exchanged = self.exchange(request, started, deadline, &mut observed).await;
        self.to_reply(exchanged, started, observed)
    }

    /// The reply of an attempt that began then, or the failure in its place.
    fn to_reply(
        &self,
        exchanged: Result<ReceiverReply, RequestFailure>,
        started: Instant,
        observed: Observed,
    ) -> Result<ReceiverReply, NotSent> {
        match exchanged {
            Ok(reply) => Ok(ReceiverReply { connection: observed.connection, ..reply }),
            Err(RequestFailure::Forbidden(refused)) => {
                let failed = ReceiverReply::failed(ErrorClass::BlockedAddress, refused.to_string());
                Ok(ReceiverReply { duration: started.elapsed(), url_is_forbidden: true, ..failed })
            }
            Err(RequestFailure::Attempt(class, message)) => Ok(ReceiverReply {
                network: observed.network,
                connection: observed.connection,
                duration: started.elapsed(),
                ..ReceiverReply::failed(class, message)
            }),
            Err(RequestFailure::DescriptorsExhausted) => {
                self.on_shortage();
                Err(NotSent::DescriptorsExhausted)
            }
            Err(RequestFailure::AddressLimit) => Err(NotSent::AddressLimit),
            Err(RequestFailure::BrokerBlocked) => Err(NotSent::BrokerBlocked),
        }
    }

    /// Sends a request and reads its reply. Sets `observed` even on failure.
    async fn exchange(
        &self,
        outbound: OutboundRequest,
        started: Instant,
        mut deadline: Pin<&mut impl Future<Output = ()>>,
        observed: &mut Observed,
    ) -> Result<ReceiverReply, RequestFailure> {
        // A pooled connection would skip the check that connecting makes.
        let url = outbound.url.clone();
        self.shared.guard.check_url(&url.parsed)?;
        let target = &url.wire()?.target;
        let pool = self.shared.generation.load().pool(outbound.identity.as_ref());
        let pool = pool.map_err(|reason| RequestFailure::Attempt(ErrorClass::Request, reason))?;
        let tenant = outbound.tenant.clone();
        let mut request = outbound.into_http()?;
        let mut connection = match self.take(&pool, target, tenant.as_ref())? {
            Some(connection) => connection,
            None => self.open(&pool, target, tenant.as_ref(), deadline.as_mut(), observed).await?,
        };
        loop {
            observed.begin(&connection);
            let begun_at = Instant::now();
            // A copy for a second try: the receiver may have closed the idle connection.
            let copy = connection.is_reused.then(|| request.clone());
            let sent = with_deadline(deadline.as_mut(), pin!(connection.send(request))).await;
            observed.end(&connection, begun_at);
            let mut failed = match sent {
                Some(Ok(response)) => {
                    // Some servers and proxies send a 408 before they close an idle connection. The
                    // request may be repeated on a new one (RFC 9110, section 15.5.9).
                    let is_idle_timeout = response.status() == StatusCode::REQUEST_TIMEOUT;
                    if let Some(copy) = copy.filter(|_| is_idle_timeout) {
                        drop(response);
                        request = copy;
                        connection =
                            self.open(&pool, target, tenant.as_ref(), deadline.as_mut(), observed).await?;
                        continue;
                    }
                    let (reply, is_reusable) = read_reply(response, &mut connection, started, deadline).await;
                    if is_reusable {
                        pool.put(target.clone(), connection);
                    }
                    return Ok(reply);
                }
                Some(Err(failed)) => failed,
                None => {
                    let message = "no reply within the timeout".to_owned();
                    return Err(RequestFailure::Attempt(ErrorClass::Timeout, message));
                }
            };
            let unsent = failed.take_message();
            if let Some(status) = connection.status().filter(|_| unsent.is_none()) {
                // The head is valid, but the library rejects its body length.
                let reply = ReceiverReply::with_headers(status, &connection.headers(), connection.network);
                return Ok(ReceiverReply { duration: started.elapsed(), ..reply });
            }
            let failure = connection.tls_alert().map_or_else(|| classify(&failed.into_error()), Into::into);
            let is_unanswered = unsent.is_some() || (failure.is_close() && !connection.has_reply());
            let Some(copy) = copy.filter(|_| is_unanswered) else { return Err(failure) };
            tracing::debug!("connection closed by the receiver, sending the request on a new one");
            request = copy;
            drop(connection);
            connection = self.open(&pool, target, tenant.as_ref(), deadline.as_mut(), observed).await?;
        }
    }

    /// Takes an idle connection, and counts the request at its address.
    fn take(
        &self,
        pool: &Arc<Pool>,
        target: &Target,
        tenant: Option<&Arc<str>>,
    ) -> Result<Option<Box<PooledConnection>>, RequestFailure> {
        let Some(connection) = pool.take(target) else { return Ok(None) };
        match tenant {
            Some(tenant) if !connection.count_request(&self.shared.address_limit, tenant) => {
                pool.put(target.clone(), connection);
                Err(RequestFailure::AddressLimit)
            }
            Some(_) | None => Ok(Some(connection)),
        }
    }

    /// Opens a new connection before the deadline.
    async fn open(
        &self,
        pool: &Pool,
        target: &Target,
        tenant: Option<&Arc<str>>,
        deadline: Pin<&mut impl Future<Output = ()>>,
        observed: &mut Observed,
    ) -> Result<Box<PooledConnection>, RequestFailure> {
        let progress = match tenant {
            Some(tenant) => ConnectProgress::counted(self.shared.address_limit.clone(), tenant.clone()),
            None => ConnectProgress::default(),
        };
        // Boxed, because it is large and rare; every attempt would reserve its size otherwise.
        let mut opening = Box::pin(pool.open(target, progress.clone()));
        let opened = with_deadline(deadline, opening.as_mut()).await;
        observed.network = progress.network();
        let connection = ConnectionFacts { remote_address: progress.address(), ..ConnectionFacts::default() };
        observed.connection = ConnectionFacts { times: progress.times(), ..connection };
        Ok(opened.unwrap_or_else(|| Err(progress.timeout_error()))?)
    }
}

#[cfg(test)]
mod tests;
