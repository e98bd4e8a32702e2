//! Connection pool.
//!
//! Owns the idle connections. A connection in use belongs to one request, and the request's own
//! task drives it, so that writing the request and reading the reply wake no other task. No task
//! waits on an idle connection. A reaper checks idle connections once per second, and `hyper`
//! detects a closed one at its next use.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant as StdInstant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::unconstrained;
use tokio::time::Instant;

use super::address_limit::AddressLimit;
use super::connect::{ConnectError, Connector, Target};
use super::progress::ConnectProgress;
use super::stream::Stream;
use crate::domain::{ConnectionFacts, Network, PhaseTimes};
use crate::{limits, panics};

/// Longest time that a connection stays idle.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two checks of the idle connections.
const REAP_INTERVAL: Duration = Duration::from_secs(1);

/// A request for the HTTP library, with its whole body.
pub(super) type HttpRequest = Request<Full<Bytes>>;

/// The connections made by one connector: under the same settings, with the same client
/// certificate.
pub(super) struct Pool {
    connector: Arc<Connector>,
    idle: Mutex<IdleConnections>,
}

#[derive(Default)]
struct IdleConnections {
    /// Idle connections per target with the time of their last use, oldest first.
    by_target: HashMap<Target, Vec<(Instant, Box<PooledConnection>)>>,
    /// A reaper task is running.
    has_reaper: bool,
    /// The pool is unreachable, so it must keep no connections.
    is_retired: bool,
}

impl Pool {
    pub(super) fn new(connector: Arc<Connector>) -> Arc<Self> {
        Arc::new(Self { connector, idle: Mutex::default() })
    }

    /// Takes the most recently used idle connection, so that surplus ones expire. The receiver may
    /// have closed it; using it shows that.
    pub(super) fn take(&self, target: &Target) -> Option<Box<PooledConnection>> {
        self.lock().by_target.get_mut(target)?.pop().map(|(_, connection)| connection)
    }

    /// Opens a new connection.
    pub(super) async fn open(
        &self,
        target: &Target,
        progress: ConnectProgress,
    ) -> Result<Box<PooledConnection>, ConnectError> {
        let stream = self.connector.connect(target, &progress).await?;
        let network = self.connector.network(&stream);
        let handshake = client().handshake(TokioIo::new(stream)).await;
        // Unreachable: an HTTP/1 handshake sends and reads nothing.
        let (sender, http) = handshake.map_err(|_| ConnectError::Unreachable)?;
        Ok(Box::new(PooledConnection {
            sender: Some(sender),
            http: Some(http),
            is_reused: false,
            network,
            progress,
        }))
    }

    /// Returns a connection after its reply. Closes it if the exchange is incomplete.
    pub(super) fn put(self: &Arc<Self>, target: Target, mut connection: Box<PooledConnection>) {
        if !connection.is_ready() && !connection.is_idle() {
            return;
        }
        connection.is_reused = true;
        connection.progress.end_request();
        let mut idle = self.lock();
        if idle.is_retired {
            return;
        }
        let connections = idle.by_target.entry(target).or_default();
        if connections.len() < limits::IDLE_CONNECTIONS_PER_HOST_MAX {
            connections.push((Instant::now(), connection));
        }
        if !std::mem::replace(&mut idle.has_reaper, true) {
            tokio::spawn(run_reaper(Arc::downgrade(self)));
        }
    }

    /// Closes idle connections that have ended or expired. Returns whether any is left; otherwise
    /// the reaper ends. Connections are removed from the pool while they are checked, because a
    /// check takes as long as there is data to read.
    pub(super) async fn evict_expired(&self) -> bool {
        let targets: Vec<_> = self.lock().by_target.keys().cloned().collect();
        for target in targets {
            let mut connections = self.lock().by_target.remove(&target).unwrap_or_default();
            connections.retain_mut(|(since, connection)| {
                since.elapsed() < IDLE_TIMEOUT && panics::contain(|| connection.is_idle()).unwrap_or(false)
            });
            self.restore(target, connections);
            tokio::task::yield_now().await;
        }
        let mut idle = self.lock();
        idle.has_reaper = !idle.by_target.is_empty();
        idle.has_reaper
    }

    /// Puts checked connections back, before those that became idle during the check.
    fn restore(&self, target: Target, connections: Vec<(Instant, Box<PooledConnection>)>) {
        let mut idle = self.lock();
        if !connections.is_empty() && !idle.is_retired {
            idle.by_target.entry(target).or_default().splice(..0, connections);
        }
    }

    /// Closes all idle connections and accepts no more.
    pub(super) fn retire(&self) {
        let mut idle = self.lock();
        idle.is_retired = true;
        let connections = std::mem::take(&mut idle.by_target);
        drop(idle);
        drop(connections);
    }

    fn lock(&self) -> MutexGuard<'_, IdleConnections> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run_reaper(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(REAP_INTERVAL).await;
        let Some(pool) = pool.upgrade() else { return };
        if !pool.evict_expired().await {
            return;
        }
    }
}

/// An HTTP client that parses replies as leniently as other clients do, because the status decides.
/// An irregular head prevents reuse of the connection ([`PooledConnection::has_regular_reply`]).
/// Header names are sent in title case, as in receivers' documentation, because some receivers
/// compare the case.
fn client() -> http1::Builder {
    let mut client = http1::Builder::new();
    client
        .title_case_headers(true)
        .max_buf_size(limits::REPLY_HEAD_BYTES_MAX)
        .max_headers(limits::REPLY_HEADERS_MAX)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    client
}

/// An HTTP/1.1 connection. Closed when dropped.
pub(super) struct PooledConnection {
    /// `None` during drop only.
    sender: Option<SendRequest<Full<Bytes>>>,
    /// `None` once the connection has ended. Dropping it fails all pending futures of the
    /// connection.
    http: Option<http1::Connection<TokioIo<Stream>, Full<Bytes>>>,
    /// The connection has been idle, so the receiver may have closed it unnoticed.
    pub(super) is_reused: bool,
    /// The receiver's network.
    pub(super) network: Network,
    progress: ConnectProgress,
}

impl PooledConnection {
    /// The receiver's TLS alert after the handshake, if any.
    pub(super) fn tls_alert(&self) -> Option<ConnectError> {
        self.progress.tls_alert()
    }

    /// Counts the next request at the connection's address. Returns whether the address allows it.
    pub(super) fn count_request(&self, limit: &Arc<AddressLimit>, tenant: &Arc<str>) -> bool {
        self.progress.count_request(limit, tenant)
    }

    /// Whether a byte of the reply to the last request has arrived.
    pub(super) fn has_reply(&self) -> bool {
        self.progress.reply().has_begun()
    }

    /// The facts about a connection that has just been taken or opened.
    pub(super) fn facts(&self) -> ConnectionFacts {
        let times = if self.is_reused { PhaseTimes::default() } else { self.progress.times() };
        ConnectionFacts { remote_address: self.progress.address(), is_reused: self.is_reused, times }
    }

    /// When the first byte of the reply to the last request arrived.
    pub(super) fn replied_at(&self) -> Option<StdInstant> {
        self.progress.replied_at()
    }

    /// The status of a complete reply head, even if the HTTP library rejects the head's body
    /// length.
    pub(super) fn status(&self) -> Option<u16> {
        self.progress.reply().status()
    }

    /// The headers of a complete reply head that the HTTP library has rejected.
    pub(super) fn headers(&self) -> HeaderMap {
        self.progress.reply().headers()
    }

    /// Whether every reader finds the end of the last reply's head at the same place.
    pub(super) fn has_regular_reply(&self) -> bool {
        self.progress.reply().is_regular()
    }

    /// Sends a request. A request inside the error is unsent: not one byte of it was written.
    pub(super) async fn send(
        &mut self,
        request: HttpRequest,
    ) -> Result<Response<Incoming>, TrySendError<HttpRequest>> {
        self.progress.begin_request();
        let sender = self.sender.as_mut().expect("present until drop");
        let response = pin!(sender.try_send_request(request));
        let response = self.drive(response).await;
        if response.is_ok() {
            self.progress.reply().discard_bytes();
        }
        response
    }

    /// Drives the connection until `work`, which waits for this connection only, is done.
    pub(super) fn drive<T>(
        &mut self,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> impl Future<Output = T> {
        poll_fn(move |cx| {
            self.poll_http(cx);
            work.as_mut().poll(cx)
        })
    }

    /// Drives the connection until the last exchange is complete or the connection has ended.
    pub(super) fn finish(&mut self) -> impl Future<Output = ()> {
        poll_fn(|cx| {
            if !self.is_ready() {
                self.poll_http(cx);
            }
            if self.is_ready() || self.http.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    fn poll_http(&mut self, cx: &mut Context<'_>) {
        // The error is also returned to the future that waits for a response or its body.
        if self.http.as_mut().is_some_and(|http| Pin::new(http).poll(cx).is_ready()) {
            self.http = None;
        }
    }

    fn is_ready(&self) -> bool {
        self.http.is_some() && self.sender.as_ref().is_some_and(SendRequest::is_ready)
    }

    /// Whether the connection is open and no unsolicited data has arrived. Registers no waker.
    fn is_idle(&mut self) -> bool {
        self.poll_once();
        self.is_ready()
    }

    /// Polls the connection once without waiting. Unconstrained, because a task that has used up
    /// its budget would see no data.
    fn poll_once(&mut self) {
        let poll = pin!(unconstrained(poll_fn(|cx| {
            self.poll_http(cx);
            Poll::Ready(())
        })));
        let _always_ready = poll.poll(&mut Context::from_waker(Waker::noop()));
    }
}

impl Drop for PooledConnection {
    /// Sends a TLS close notification if that is possible without waiting (RFC 8446, section 6.1).
    fn drop(&mut self) {
        self.sender = None;
        if !std::thread::panicking() {
            // A panic here only closes the connection.
            drop(panics::contain(|| self.poll_once()));
        }
    }
}
