//! The courier: bytes to strangers.
//!
//! Owns the HTTP client, its timeouts and caps, the address guard and the body formats. Must never know the store. Every
//! attempt ends within its timeout (of time in which this process runs), reads at most [`limits::REPLY_WIRE_BYTES_MAX`]
//! bytes after it has written the last of its request, and holds at most [`limits::REPLY_BYTES_MAX`] of a reply's body.
//! No redirect is followed, no ambient proxy is used, nothing is decompressed.
//!
//! Connections are pooled by scheme, host and port. A pool lives as long as the settings that it was made under: a reload
//! drops it with all its connections, so that none outlives the policy that allowed it. Endpoints with a client
//! certificate have a pool each. A request on a pooled connection that the receiver ends before a byte of the reply is
//! sent again, once, on a new connection.
//!
//! The status of a reply decides. Its head is read as leniently as other clients read it, and its body, which has
//! [`limits::REPLY_BODY_TIMEOUT`], changes nothing; an irregular reply ends its connection.

mod addresses;
pub mod body;
mod connect;
pub mod guard;
mod metered;
mod own;
mod pool;
mod reply_head;
mod resolver;
pub mod tls;

use std::collections::HashMap;
use std::error::Error as StdError;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use futures_util::future::maybe_done;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::{Method, Request, Response, StatusCode};
use rustix::io::Errno;
use rustls::RootCertStore;
use tokio::task::unconstrained;
use url::Url;

use crate::domain::{EndpointNumber, ErrorClass, Network};
use crate::limits;
pub use connect::Proxy;
use connect::{ConnectError, Progress, Target, Wiring};
use guard::{EgressPolicy, Guard, RefusedUrl};
use metered::TooMuch;
use pool::{Line, Outgoing, Pool};
pub use resolver::{Resolver, SystemResolver};
use tls::{ClientCertificate, Identity};

/// A timer that is late by more than this was not late by itself: the process stood still.
const AWAKE_STEP: Duration = Duration::from_secs(1);
/// File descriptors are not looked for more often than this.
const SHORTAGE_INTERVAL: Duration = Duration::from_secs(1);

/// One request.
#[derive(Debug)]
pub struct Parcel {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Bytes,
    timeout: Duration,
    identity: Option<Identity>,
}

impl Parcel {
    /// A `POST`.
    ///
    /// # Errors
    /// When the URL does not parse any more.
    pub fn new(url: &str, headers: HeaderMap, body: Bytes, timeout: Duration) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| error.to_string())?;
        Ok(Self { method: Method::POST, url, headers, body, timeout, identity: None })
    }

    /// Over connections that present this certificate, and are used for nothing else.
    #[must_use]
    pub fn with_identity(self, identity: Option<Identity>) -> Self {
        Self { identity, ..self }
    }

    fn request(self) -> Result<Outgoing, RefusedUrl> {
        let (uri, host) = guard::request_line(&self.url)?;
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers;
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        request.headers_mut().insert(HOST, host);
        Ok(request)
    }

    /// A request for consent, which has no body.
    ///
    /// # Errors
    /// When the URL does not parse any more.
    pub fn options(url: &str, headers: HeaderMap, timeout: Duration) -> Result<Self, String> {
        Ok(Self { method: Method::OPTIONS, ..Self::new(url, headers, Bytes::new(), timeout)? })
    }
}

#[cfg(test)]
impl Parcel {
    pub(crate) fn is_options(&self) -> bool {
        self.method == Method::OPTIONS
    }

    /// What a receiver would see.
    pub(crate) fn contents(&self) -> (&Url, &HeaderMap, &[u8], Duration) {
        (&self.url, &self.headers, &self.body, self.timeout)
    }
}

/// Whether two URLs have the same scheme, host and port. What is no URL has the origin of nothing.
#[must_use]
pub fn is_same_origin(one: &str, other: &str) -> bool {
    let origin = |text| Url::parse(text).map(|url| url.origin());
    matches!((origin(one), origin(other)), (Ok(one), Ok(other)) if one == other)
}

/// What came of a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status, or why there is none that can be believed.
    pub outcome: Result<u16, (ErrorClass, String)>,
    pub retry_after: Option<String>,
    pub webhook_delivery: Option<String>,
    /// `WebHook-Allowed-Origin` and `WebHook-Allowed-Rate`; of several lines all, as one (RFC 9110, section 5.3).
    pub allowed_origin: Option<String>,
    pub allowed_rate: Option<String>,
    /// Where a redirect points to: at most [`limits::LOCATION_BYTES_MAX`] bytes, for people to read.
    pub location: Option<String>,
    /// At most [`limits::REPLY_BYTES_MAX`] bytes, as they came.
    pub body: Bytes,
    pub network: Network,
    pub duration: Duration,
    /// No request was made, because policy forbids the URL itself: a later attempt cannot succeed either.
    pub url_is_forbidden: bool,
}

impl Reply {
    /// Nothing came back.
    #[must_use]
    pub fn failed(class: ErrorClass, words: String) -> Self {
        Self::new(Err((class, cut(words, limits::ERROR_BYTES_MAX))))
    }

    /// What its head says, with no body.
    fn with_headers(status: u16, headers: &HeaderMap, network: Network) -> Self {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        Self {
            retry_after: header("retry-after"),
            webhook_delivery: header("webhook-delivery"),
            allowed_origin: whole_header(headers, "webhook-allowed-origin"),
            allowed_rate: whole_header(headers, "webhook-allowed-rate"),
            location: header("location").map(|place| cut(place, limits::LOCATION_BYTES_MAX)),
            network,
            ..Self::new(Ok(status))
        }
    }

    /// Nothing but its outcome.
    #[must_use]
    pub fn new(outcome: Result<u16, (ErrorClass, String)>) -> Self {
        Self {
            outcome,
            retry_after: None,
            webhook_delivery: None,
            allowed_origin: None,
            allowed_rate: None,
            location: None,
            body: Bytes::new(),
            network: Network::Public,
            duration: Duration::ZERO,
            url_is_forbidden: false,
        }
    }
}

/// The process can open no further connection: the parcel was not sent, and the receiver is not to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// Why there was no response.
enum Failure {
    Exhausted,
    Forbidden(RefusedUrl),
    Attempt(ErrorClass, String),
}

impl Failure {
    /// Whether the receiver ended the connection, with an alert of TLS or without.
    fn is_end(&self) -> bool {
        matches!(self, Self::Attempt(ErrorClass::Reset | ErrorClass::Tls, _))
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Exhausted => Self::Exhausted,
            ConnectError::Forbidden(refused) => Self::Forbidden(refused),
            error => Self::Attempt(error.class(), error.to_string()),
        }
    }
}

impl From<RefusedUrl> for Failure {
    fn from(error: RefusedUrl) -> Self {
        Self::Forbidden(error)
    }
}

/// What a courier works by.
#[derive(Clone)]
pub struct CourierSettings {
    pub policy: EgressPolicy,
    /// From the first packet to the end of the TLS handshake.
    pub connect_timeout: Duration,
    pub roots: Arc<RootCertStore>,
    /// Every connection goes through it.
    pub proxy: Option<Proxy>,
    pub resolver: Arc<dyn Resolver>,
}

#[cfg(test)]
impl CourierSettings {
    /// The default policy, trusting nobody, with the machine's resolver.
    pub(crate) fn for_tests() -> Self {
        Self {
            policy: EgressPolicy::default(),
            connect_timeout: Duration::from_secs(1),
            roots: Arc::new(RootCertStore::empty()),
            proxy: None,
            resolver: Arc::new(SystemResolver::new(&[]).expect("a resolver can be built")),
        }
    }
}

/// Sends parcels. Cheap to clone.
#[derive(Clone)]
pub struct Courier {
    shared: Arc<Shared>,
}

struct Shared {
    guard: Arc<Guard>,
    outfit: ArcSwap<Outfit>,
    /// When file descriptors were last short.
    shortage: Mutex<Option<Instant>>,
}

/// What a reload replaces, with all connections that were made by it.
struct Outfit {
    settings: CourierSettings,
    guard: Arc<Guard>,
    plain: Arc<Pool>,
    /// Connections resolve and judge as this does.
    wiring: Arc<Wiring>,
    certified: Mutex<Certified>,
}

/// The pools of endpoints that have a client certificate, with the turn of their last use.
#[derive(Default)]
struct Certified {
    pools: HashMap<(EndpointNumber, [u8; 32]), (Arc<Pool>, u64)>,
    turn: u64,
}

impl Outfit {
    fn new(settings: CourierSettings, guard: Arc<Guard>) -> Result<Self, String> {
        let wiring = Arc::new(wiring(&settings, &guard, None)?);
        let plain = Pool::new(wiring.clone());
        Ok(Self { settings, guard, plain, wiring, certified: Mutex::default() })
    }

    /// The pool of this identity, which is made when it is not there; the one that was used least recently makes room.
    fn pool(&self, identity: Option<&Identity>) -> Result<Arc<Pool>, String> {
        let Some(identity) = identity else { return Ok(self.plain.clone()) };
        let name = identity.name();
        let mut certified = self.certified.lock().unwrap_or_else(PoisonError::into_inner);
        certified.turn += 1;
        let turn = certified.turn;
        if let Some((pool, used)) = certified.pools.get_mut(&name) {
            *used = turn;
            return Ok(pool.clone());
        }
        let pool = Pool::new(Arc::new(wiring(&self.settings, &self.guard, Some(identity))?));
        if certified.pools.len() >= limits::CLIENTS_WITH_CERTIFICATE_MAX {
            let oldest = certified.pools.iter().min_by_key(|(_, (_, used))| *used).map(|(name, _)| *name);
            if let Some((pool, _)) = oldest.and_then(|name| certified.pools.remove(&name)) {
                pool.retire();
            }
        }
        certified.pools.insert(name, (pool.clone(), turn));
        Ok(pool)
    }
}

impl Drop for Outfit {
    /// What is under way still uses its connections, and leaves none behind.
    fn drop(&mut self) {
        let certified = std::mem::take(self.certified.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.plain.retire();
        certified.pools.into_values().for_each(|(pool, _)| pool.retire());
    }
}

fn wiring(
    settings: &CourierSettings,
    guard: &Arc<Guard>,
    identity: Option<&Identity>,
) -> Result<Wiring, String> {
    Ok(Wiring {
        guard: guard.clone(),
        resolver: settings.resolver.clone(),
        proxy: settings.proxy.clone(),
        tls: Arc::new(tls::client_config(settings.roots.clone(), identity)?),
        timeout: settings.connect_timeout,
    })
}

impl Courier {
    /// # Errors
    /// When the machine does not give what is needed.
    pub fn new(settings: CourierSettings) -> Result<Self, String> {
        let guard = Guard::new(settings.policy.clone());
        let guard =
            Arc::new(guard.map_err(|error| format!("this machine's addresses cannot be read: {error}"))?);
        let outfit = Outfit::new(settings, guard.clone())?;
        let outfit = ArcSwap::from_pointee(outfit);
        Ok(Self { shared: Arc::new(Shared { guard, outfit, shortage: Mutex::default() }) })
    }

    /// From now on everything goes by these settings, over connections that were made under them.
    ///
    /// # Errors
    /// When they cannot be used; those of before stay in force.
    pub fn reconfigure(&self, settings: CourierSettings) -> Result<(), String> {
        let policy = settings.policy.clone();
        let outfit = Outfit::new(settings, self.shared.guard.clone())?;
        self.shared.guard.set_policy(policy);
        self.shared.outfit.store(Arc::new(outfit));
        Ok(())
    }

    /// The ports that this daemon listens on: nothing is ever sent to them at this machine.
    pub fn set_listening(&self, ports: Vec<u16>) {
        self.shared.guard.set_listening(ports);
    }

    /// Judges a URL when an endpoint is saved; gives its canonical form. A host that does not resolve is accepted: it is
    /// judged whenever it is sent to.
    ///
    /// # Errors
    /// When policy forbids the URL, or an address that its host has.
    pub async fn check_url(&self, url: &str) -> Result<Box<str>, RefusedUrl> {
        let url = self.shared.guard.parse(url)?;
        let wiring = self.shared.outfit.load().wiring.clone();
        match wiring.probe(&url).await {
            Err(ConnectError::Forbidden(forbidden)) => Err(forbidden),
            Err(ConnectError::Blocked(blocked)) => Err(blocked.into()),
            _ => Ok(url.as_str().into()),
        }
    }

    /// There is no file descriptor left: the connections that are kept for later requests are given up.
    pub fn on_shortage(&self) {
        let mut shortage = self.shared.shortage.lock().unwrap_or_else(PoisonError::into_inner);
        if shortage.is_some_and(|last| last.elapsed() < SHORTAGE_INTERVAL) {
            return;
        }
        *shortage = Some(Instant::now());
        drop(shortage);
        self.shared.outfit.rcu(|outfit| {
            Outfit::new(outfit.settings.clone(), self.shared.guard.clone())
                .map_or_else(|_| outfit.clone(), Arc::new)
        });
    }

    /// Makes one attempt; never longer than the parcel's timeout, whatever the receiver does. Time in which this process
    /// stood still does not count.
    ///
    /// # Errors
    /// When no connection could be opened for want of file descriptors: no attempt was made.
    pub async fn send(&self, parcel: Parcel) -> Result<Reply, Exhausted> {
        let started = Instant::now();
        // Asked again after its end it says the same.
        let patience = pin!(maybe_done(awake(parcel.timeout)));
        let mut network = Network::Public;
        match self.exchange(parcel, started, patience, &mut network).await {
            Ok(reply) => Ok(reply),
            Err(Failure::Forbidden(refused)) => {
                let failed = Reply::failed(ErrorClass::BlockedAddress, refused.to_string());
                Ok(Reply { duration: started.elapsed(), url_is_forbidden: true, ..failed })
            }
            Err(Failure::Attempt(class, words)) => {
                Ok(Reply { network, duration: started.elapsed(), ..Reply::failed(class, words) })
            }
            Err(Failure::Exhausted) => {
                self.on_shortage();
                Err(Exhausted)
            }
        }
    }

    /// `network` is where the receiver is, also when the exchange fails.
    async fn exchange(
        &self,
        parcel: Parcel,
        started: Instant,
        mut patience: Pin<&mut impl Future<Output = ()>>,
        network: &mut Network,
    ) -> Result<Reply, Failure> {
        // A connection may be there already, which nobody would judge again.
        self.shared.guard.judge_url(&parcel.url)?;
        let target = Target::new(&parcel.url).ok_or(RefusedUrl::NoUrl("the URL needs a host"))?;
        let pool = self.shared.outfit.load().pool(parcel.identity.as_ref());
        let pool = pool.map_err(|reason| Failure::Attempt(ErrorClass::Request, reason))?;
        let mut request = parcel.request()?;
        let mut line = match pool.take(&target) {
            Some(line) => line,
            None => open(&pool, &target, patience.as_mut(), network).await?,
        };
        loop {
            *network = line.network;
            // Kept until the receiver answers: a connection that was used before may have been closed meanwhile.
            let kept = line.is_used.then(|| request.clone());
            let sent = within(patience.as_mut(), pin!(line.send(request))).await;
            let mut failed = match sent {
                Some(Ok(response)) => {
                    // Some servers and proxies say so before they close an idle connection. The
                    // request may be repeated on a new one (RFC 9110, section 15.5.9).
                    let is_idle_end = response.status() == StatusCode::REQUEST_TIMEOUT;
                    if let Some(again) = kept.filter(|_| is_idle_end) {
                        drop(response);
                        request = again;
                        line = open(&pool, &target, patience.as_mut(), network).await?;
                        continue;
                    }
                    let (reply, is_clear) = read_reply(response, &mut line, started, patience).await;
                    if is_clear {
                        pool.put(target, line);
                    }
                    return Ok(reply);
                }
                Some(Err(failed)) => failed,
                None => {
                    let words = "no reply within the timeout".to_owned();
                    return Err(Failure::Attempt(ErrorClass::Timeout, words));
                }
            };
            let unsent = failed.take_message();
            if let Some(status) = line.status().filter(|_| unsent.is_none()) {
                // The library refuses what the head says of the body.
                let reply = Reply::with_headers(status, &line.headers(), line.network);
                return Ok(Reply { duration: started.elapsed(), ..reply });
            }
            let failure = line.complaint().map_or_else(|| classify(&failed.into_error()), Into::into);
            let is_unanswered = unsent.is_some() || (failure.is_end() && !line.has_reply());
            let Some(again) = kept.filter(|_| is_unanswered) else { return Err(failure) };
            tracing::debug!("connection closed by the receiver, sending the request on a new one");
            request = again;
            drop(line);
            line = open(&pool, &target, patience.as_mut(), network).await?;
        }
    }
}

/// A new connection.
async fn open(
    pool: &Pool,
    target: &Target,
    patience: Pin<&mut impl Future<Output = ()>>,
    network: &mut Network,
) -> Result<Box<Line>, Failure> {
    let progress = Progress::default();
    // In a box: it is large and rare, and every attempt would keep room for it.
    let mut opening = Box::pin(pool.open(target, progress.clone()));
    let opened = within(patience, opening.as_mut()).await;
    *network = progress.network();
    Ok(opened.unwrap_or_else(|| Err(progress.timed_out()))?)
}

/// Waits for so long while this process runs. Time in which it was stopped, or the machine slept, is not the receiver's.
async fn awake(mut left: Duration) {
    while !left.is_zero() {
        let step = left.min(AWAKE_STEP);
        let started = tokio::time::Instant::now();
        tokio::time::sleep(step).await;
        if started.elapsed() < step + AWAKE_STEP {
            left -= step;
        }
    }
}

/// What comes of the work, unless patience ends first. However much the work has done, patience is asked: whoever talks
/// without end must not stop the clock. Whoever calls has both in place: an async function would hold what it is given twice.
fn within<T>(
    mut patience: Pin<&mut impl Future<Output = ()>>,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> impl Future<Output = Option<T>> {
    poll_fn(move |cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => pin!(unconstrained(patience.as_mut())).poll(cx).map(|()| None),
    })
}

/// Whether it failed because this process, or this machine, has no file descriptor or no memory for sockets left.
fn is_exhausted(error: &(dyn StdError + 'static)) -> bool {
    let code = |error: &(dyn StdError + 'static)| Errno::from_io_error(error.downcast_ref::<io::Error>()?);
    chain(error)
        .filter_map(code)
        .any(|code| matches!(code, Errno::NFILE | Errno::MFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// The status decides: a body that never ends, breaks off, is longer than what is kept or is framed wrongly changes
/// nothing. Gives also whether it is clear where the reply ends: what comes after it on the same connection is the next
/// one's.
async fn read_reply(
    mut response: Response<Incoming>,
    line: &mut Line,
    started: Instant,
    mut patience: Pin<&mut impl Future<Output = ()>>,
) -> (Reply, bool) {
    let status = response.status().as_u16();
    let mut reply = Reply::with_headers(status, response.headers(), line.network);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let words = "the receiver switched protocols".to_owned();
        reply.outcome = Err((ErrorClass::Protocol, words));
        reply.duration = started.elapsed();
        return (reply, false);
    }
    let is_clear = line.is_clear() && has_one_length(&response);
    let mut end = pin!(maybe_done(awake(limits::REPLY_BODY_TIMEOUT)));
    let mut end = pin!(poll_fn(|cx| match patience.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => end.as_mut().poll(cx),
    }));
    let mut body = BytesMut::new();
    while body.len() < limits::REPLY_BYTES_MAX {
        let frame = pin!(response.body_mut().frame());
        let heard = within(end.as_mut(), pin!(line.drive(frame))).await;
        let Some(Some(Ok(frame))) = heard else { break };
        let chunk = frame.into_data().unwrap_or_default(); // trailers are read past
        let room = limits::REPLY_BYTES_MAX - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    drop(response);
    reply.body = body.freeze();
    reply.duration = started.elapsed();
    if (200..300).contains(&status) {
        // A receiver that accepts a request before it has read it all may read the rest.
        let _read = within(end, pin!(line.finish())).await;
    }
    (reply, is_clear)
}

/// All lines of a header, as one.
fn whole_header(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines = headers.get_all(name).iter();
    let lines: Vec<_> = lines.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

/// Whether the head says once where the body ends, and the body is read to there. A body that cannot be is not read, and
/// may come when the next reply is expected. With a length and a transfer coding, readers differ (RFC 9112, section 6.3).
fn has_one_length(response: &Response<Incoming>) -> bool {
    let length = response.headers().get(CONTENT_LENGTH);
    let is_coded = response.headers().contains_key(TRANSFER_ENCODING);
    if matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return !is_coded && length.is_none_or(|length| length == "0");
    }
    !is_coded || length.is_none()
}

fn cut(mut text: String, bytes_max: usize) -> String {
    let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
    text
}

/// The error and what caused it, outermost first; also what an I/O error carries, which its own `source` leaves out.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let current = next?;
        let carried = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = carried.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| current.source());
        Some(current)
    })
}

fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    chain(error).find_map(|error| error.downcast_ref::<T>())
}

fn words(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// A class, and words that say nothing about forbidden addresses.
fn classify(error: &hyper::Error) -> Failure {
    if let Some(error) = find::<rustls::Error>(error) {
        return Failure::Attempt(ErrorClass::Tls, tls::describe(error, ClientCertificate::default()));
    }
    // A request that was not sent is cancelled because of what came instead.
    let cause = chain(error).filter_map(|error| error.downcast_ref::<hyper::Error>()).last().unwrap_or(error);
    let class = if find::<TooMuch>(error).is_some() || cause.is_parse_too_large() {
        ErrorClass::ResponseTooLarge
    } else if find::<io::Error>(error).is_some()
        || cause.is_incomplete_message()
        || cause.is_canceled()
        || cause.is_closed()
    {
        ErrorClass::Reset
    } else {
        // What cannot be read, and what came before it was asked for.
        ErrorClass::Protocol
    };
    Failure::Attempt(class, words(error))
}

#[cfg(test)]
mod tests;
