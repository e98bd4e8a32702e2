//! Connections, in use and at rest.
//!
//! Owns every connection that no request is using. One that is in use belongs to its request alone and is driven by the
//! request's own task, so that nothing else has to be woken to write a request or to read its reply. Nobody waits at one
//! that rests: whether it is still good is looked at once a second, and seen at its next use.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

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

use super::connect::{ConnectError, Progress, Target, Wire, Wiring};
use super::reply_head::ReplyHead;
use crate::domain::Network;
use crate::{limits, panics};

/// A connection rests this long at most.
pub(super) const REST_MAX: Duration = Duration::from_secs(30);
/// Between two looks at those that rest.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A request on its way out, with its whole body.
pub(super) type Outgoing = Request<Full<Bytes>>;

/// The connections that were made in one way: under the same settings, with the same certificate.
pub(super) struct Pool {
    wiring: Arc<Wiring>,
    resting: Mutex<Resting>,
}

#[derive(Default)]
struct Resting {
    /// In the order in which they came to rest.
    lines: HashMap<Target, Vec<(Instant, Box<Line>)>>,
    /// A task looks after them.
    attended: bool,
    /// Nobody can find this pool any more.
    retired: bool,
}

impl Pool {
    pub(super) fn new(wiring: Arc<Wiring>) -> Arc<Self> {
        Arc::new(Self { wiring, resting: Mutex::default() })
    }

    /// The connection that came to rest last: those that are not needed grow old. It may have been closed meanwhile, which
    /// is seen when it is used.
    pub(super) fn take(&self, target: &Target) -> Option<Box<Line>> {
        self.lock().lines.get_mut(target)?.pop().map(|(_, line)| line)
    }

    /// A new one.
    pub(super) async fn open(&self, target: &Target, progress: Progress) -> Result<Box<Line>, ConnectError> {
        let wire = self.wiring.connect(target, &progress).await?;
        let network = self.wiring.network(&wire);
        let spoken = client().handshake(TokioIo::new(wire)).await;
        // Not reached: nothing is said yet.
        let (sender, http) = spoken.map_err(|_| ConnectError::Unreachable)?;
        Ok(Box::new(Line { sender: Some(sender), http: Some(http), is_used: false, network, progress }))
    }

    /// Puts a connection to rest after a reply that was read. One that is not through with it is closed.
    pub(super) fn put(self: &Arc<Self>, target: Target, mut line: Box<Line>) {
        if !line.is_ready() && !line.is_free() {
            return;
        }
        line.is_used = true;
        let mut resting = self.lock();
        if resting.retired {
            return;
        }
        let lines = resting.lines.entry(target).or_default();
        if lines.len() < limits::IDLE_CONNECTIONS_PER_HOST_MAX {
            lines.push((Instant::now(), line));
        }
        if !std::mem::replace(&mut resting.attended, true) {
            tokio::spawn(attend(Arc::downgrade(self)));
        }
    }

    /// Closes what is no longer good, or has rested for too long. Gives whether any is left; with the last one its
    /// attendant goes. What is looked at is nobody's meanwhile: a look may take as long as there is to be read.
    pub(super) async fn look_after(&self) -> bool {
        let targets: Vec<_> = self.lock().lines.keys().cloned().collect();
        for target in targets {
            let mut lines = self.lock().lines.remove(&target).unwrap_or_default();
            lines.retain_mut(|(since, line)| {
                since.elapsed() < REST_MAX && panics::contain(|| line.is_free()).unwrap_or(false)
            });
            self.put_back(target, lines);
            tokio::task::yield_now().await;
        }
        let mut resting = self.lock();
        resting.attended = !resting.lines.is_empty();
        resting.attended
    }

    /// They came to rest before those that are there by now.
    fn put_back(&self, target: Target, lines: Vec<(Instant, Box<Line>)>) {
        let mut resting = self.lock();
        if !lines.is_empty() && !resting.retired {
            resting.lines.entry(target).or_default().splice(..0, lines);
        }
    }

    /// Closes what rests, and lets nothing rest any more.
    pub(super) fn retire(&self) {
        let mut resting = self.lock();
        resting.retired = true;
        let lines = std::mem::take(&mut resting.lines);
        drop(resting);
        drop(lines);
    }

    fn lock(&self) -> MutexGuard<'_, Resting> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn attend(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(pool) = pool.upgrade() else { return };
        if !pool.look_after().await {
            return;
        }
    }
}

/// Reads replies as leniently as other clients, since the status decides; a head that needed it spoils the connection
/// ([`Line::is_clear`]). Names are sent in the case in which receivers' documentation shows them: some compare it.
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

/// A connection that HTTP is spoken on. Closed when it is dropped.
pub(super) struct Line {
    /// `None` once nothing more is to be sent.
    sender: Option<SendRequest<Full<Bytes>>>,
    /// `None` once it has ended: by the drop of it those who still wait for something hear of that.
    http: Option<http1::Connection<TokioIo<Wire>, Full<Bytes>>>,
    /// It has rested: it may have been closed without anybody having seen it.
    pub(super) is_used: bool,
    /// Where the other end is.
    pub(super) network: Network,
    progress: Progress,
}

impl Line {
    /// What the receiver did not like about TLS, when it said so after the handshake seemed to be done.
    pub(super) fn complaint(&self) -> Option<ConnectError> {
        self.progress.complaint()
    }

    /// Whether a byte of the reply to the last request has arrived.
    pub(super) fn has_reply(&self) -> bool {
        self.progress.reply().has_begun()
    }

    /// The status of a reply whose head has arrived, even where the HTTP library refuses what the head says of the body.
    pub(super) fn status(&self) -> Option<u16> {
        self.progress.reply().status()
    }

    /// The headers of that reply.
    pub(super) fn headers(&self) -> HeaderMap {
        self.progress.reply().headers()
    }

    /// Whether every reader finds the end of the last reply's head, and its framing, in the same place.
    pub(super) fn is_clear(&self) -> bool {
        self.progress.reply().is_regular()
    }

    /// Sends a request. What comes back with an error was not sent, not one byte of it.
    pub(super) async fn send(
        &mut self,
        request: Outgoing,
    ) -> Result<Response<Incoming>, TrySendError<Outgoing>> {
        *self.progress.reply() = ReplyHead::default();
        let sender = self.sender.as_mut().expect("it is there until the drop");
        let response = pin!(sender.try_send_request(request));
        let response = self.drive(response).await;
        if response.is_ok() {
            self.progress.reply().forget();
        }
        response
    }

    /// What comes of work that waits for this connection and nothing else.
    pub(super) fn drive<T>(
        &mut self,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> impl Future<Output = T> {
        poll_fn(move |cx| {
            self.turn(cx);
            work.as_mut().poll(cx)
        })
    }

    /// Until the last request has left and its reply is over, or the connection has ended.
    pub(super) fn finish(&mut self) -> impl Future<Output = ()> {
        poll_fn(|cx| {
            if !self.is_ready() {
                self.turn(cx);
            }
            if self.is_ready() || self.http.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    fn turn(&mut self, cx: &mut Context<'_>) {
        // What went wrong is told to whoever waits for a response or its body.
        if self.http.as_mut().is_some_and(|http| Pin::new(http).poll(cx).is_ready()) {
            self.http = None;
        }
    }

    fn is_ready(&self) -> bool {
        self.http.is_some() && self.sender.as_ref().is_some_and(SendRequest::is_ready)
    }

    /// Whether it is still open, and nothing has come that nobody asked for. Nobody will be woken when that changes.
    fn is_free(&mut self) -> bool {
        self.glance();
        self.is_ready()
    }

    /// A turn that waits for nothing. What its task has done before does not count: it would be told that nothing has come.
    fn glance(&mut self) {
        let turn = pin!(unconstrained(poll_fn(|cx| {
            self.turn(cx);
            Poll::Ready(())
        })));
        let _always_ready = turn.poll(&mut Context::from_waker(Waker::noop()));
    }
}

impl Drop for Line {
    /// Says goodbye as far as it goes without waiting (RFC 8446, section 6.1).
    fn drop(&mut self) {
        self.sender = None;
        if !std::thread::panicking() {
            // One that panics is only closed.
            drop(panics::contain(|| self.glance()));
        }
    }
}
