//! The accept loop: HTTP/1.1 connections with bounds on their number, their headers, their answers and their end.
//!
//! Owns every connection's task; when it returns, none is left. What hyper lets pass and two readers of one request
//! could understand differently is refused here.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, Version, header};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::Service as _;

use super::problem::Problem;
use super::seats::{Seat, Seats};
use super::socket::Socket;
use crate::{limits, panics};

/// Requests that are being answered at shutdown get this long.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept error that will not go away by itself (no more file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener allows.
#[derive(Clone)]
pub struct Bounds {
    /// Places for connections.
    pub seats: Arc<Seats>,
    /// Time of a request's line and headers, and of a connection without a request.
    pub header_timeout: Duration,
    /// Time in which an answer that does not go out at once has to be taken.
    pub answer_timeout: Duration,
    /// Is called when there is no file descriptor left, again and again until there is one.
    pub on_shortage: Arc<dyn Fn() + Send + Sync>,
}

/// Who sent a request, as far as the connection says.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Marks an answer to somebody whose key is good.
#[derive(Clone, Copy, Debug)]
pub struct GoodKey;

/// Serves until `shutdown` is ready, then finishes the requests that are being answered, at most for
/// [`DRAIN_TIMEOUT`].
pub async fn serve(
    listener: TcpListener,
    router: Router,
    bounds: Bounds,
    shutdown: impl Future<Output = ()> + Send,
) {
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    let mut is_short = false;
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                panics::test_point("accept");
                is_short = false;
                let seat = tokio::select! {
                    () = &mut shutdown => break,
                    seat = bounds.seats.take() => Arc::new(seat),
                };
                let connection = Connection { router: router.clone(), seat, peer: Peer(peer) };
                // A defect that one client brings about costs that client its connection.
                connections.spawn(panics::contained(connection.run(stream, bounds.clone(), stopped.clone())));
            }
            // It broke before it was accepted, which says nothing of the next one.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if !is_short {
                    tracing::warn!(%error, "connections cannot be accepted");
                }
                is_short = true;
                (bounds.on_shortage)();
                bounds.seats.displace_stranger();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    drain(connections).await;
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

async fn drain(mut connections: JoinSet<()>) {
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections were cut at shutdown");
        connections.shutdown().await;
    }
}

struct Connection {
    router: Router,
    seat: Arc<Seat>,
    peer: Peer,
}

impl Connection {
    async fn run(self, stream: TcpStream, bounds: Bounds, mut stopped: watch::Receiver<bool>) {
        panics::test_point("connection");
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let seat = self.seat.clone();
        let socket = Socket::new(stream, seat.clone(), bounds.answer_timeout);
        let service = service_fn(|request| self.answer(request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.header_timeout)
            .max_buf_size(limits::HEADER_BYTES_MAX)
            // Whoever has said everything and listens gets an answer; and what is being done is done to its end.
            .half_close(true)
            .serve_connection(TokioIo::new(socket), service);
        let mut connection = std::pin::pin!(connection);
        // The watched value's guard must not live across an await, and a sender that is gone means the same as a stop.
        let stop = async { drop(stopped.wait_for(|stopped| *stopped).await) };
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = seat.left() => return,
            () = stop => {
                if seat.is_waiting() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, std::convert::Infallible> {
        if !self.seat.begin() {
            return pending().await; // this connection is being dropped
        }
        let read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
        let mut answer = match check(request.version(), request.headers()) {
            Ok(()) => {
                let read = read.clone();
                let mut request = request.map(|body| Body::new(Reading { body, read }));
                request.extensions_mut().insert(self.peer);
                self.router.clone().call(request).await?
            }
            Err(problem) => problem.into_reply().into_response(),
        };
        if !read.load(Ordering::Relaxed) {
            // What is left of the body is not read, so nothing can follow it.
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.seat.answered(answer.extensions().get::<GoodKey>().is_some());
        Ok(answer)
    }
}

/// A request's body that says whether it was read to its end.
struct Reading {
    body: Incoming,
    read: Arc<AtomicBool>,
}

impl HttpBody for Reading {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.read.fetch_or(frame.is_none(), Ordering::Relaxed);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a proxy in front might have understood in another way (RFC 9112 sections 3.2 and 6.1).
fn check(version: Version, headers: &HeaderMap) -> Result<(), Problem> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let encoding = encodings.next();
    if encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || encodings.next().is_some()
    {
        return Err(Problem::Malformed("the only transfer coding is `chunked`, once".to_owned()));
    }
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && version == Version::HTTP_11) {
        return Err(Problem::Malformed("exactly one `Host` is needed".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_request_in_flight_is_answered_before_the_server_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (entered, arrived) = oneshot::channel();
        let entered = Arc::new(std::sync::Mutex::new(Some(entered)));
        let release = Arc::new(tokio::sync::Notify::new());
        let gate = Arc::clone(&release);
        let router = Router::new().route(
            "/",
            get(move || async move {
                entered.lock().unwrap().take().unwrap().send(()).unwrap();
                gate.notified().await;
                "done"
            }),
        );
        let (stop, stopping) = oneshot::channel::<()>();
        let bounds = Bounds {
            seats: Seats::new(4),
            header_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(5),
            on_shortage: Arc::new(|| ()),
        };
        let server = tokio::spawn(serve(listener, router, bounds, async {
            stopping.await.ok();
        }));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        arrived.await.unwrap();
        stop.send(()).unwrap();
        release.notify_one();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("done"), "{answer}");
        server.await.unwrap();
    }
}
