//! The accept loop for HTTP/1.1 connections, with or without TLS.
//!
//! Owns the task of every connection: when [`serve`] returns, none is left. Limits the number of
//! connections, and the time of handshakes, headers, responses and shutdown. Rejects requests that
//! hyper accepts and a proxy could interpret differently.

use std::convert::Infallible;
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
use axum::http::{HeaderName, HeaderValue, Request, Response, Version, header};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::Service as _;

use crate::api::http::client_watch::{ClientWatch, SharedStream};
use crate::api::http::connection_limit::{ConnectionLimit, ConnectionSlot, RequestSeat};
use crate::api::http::problem::Problem;
use crate::api::http::reply::Streaming;
use crate::api::http::socket::Socket;
use crate::api::http::watched_write::WatchedWrite;
use crate::{limits, panics};

/// Time for requests in progress to complete at shutdown.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept error that persists, such as no free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits of a listener.
#[derive(Clone)]
pub struct Bounds {
    pub connections: Arc<ConnectionLimit>,
    /// Timeout of a TLS handshake, of a request's line and headers, and of an idle connection.
    pub header_timeout: Duration,
    /// Timeout of a blocked response write.
    pub answer_timeout: Duration,
    /// Called repeatedly while no file descriptor is free.
    pub on_shortage: Arc<dyn Fn() + Send + Sync>,
    /// `None`: plain HTTP.
    pub tls: Option<TlsAcceptor>,
}

/// The peer address of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Marks the response to a request with a valid key.
#[derive(Clone, Copy, Debug)]
pub struct GoodKey;

/// Serves until `shutdown` is ready. Then waits at most [`DRAIN_TIMEOUT`] for requests in progress.
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
                let slot = tokio::select! {
                    () = &mut shutdown => break,
                    slot = bounds.connections.take_for(peer.ip()) => slot.map(Arc::new),
                };
                // Closes the stream.
                let Some(slot) = slot else { continue };
                let router = router.clone();
                let watch = ClientWatch::default();
                let connection = Connection { router, slot, peer: Peer(peer), watch, needs_tls: false };
                // A panic ends only this connection.
                connections.spawn(panics::contained(connection.run(stream, bounds.clone(), stopped.clone())));
            }
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                if !is_short {
                    tracing::warn!(%error, "accept failed");
                }
                is_short = true;
                (bounds.on_shortage)();
                bounds.connections.evict_unauthenticated();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    drain(connections).await;
}

/// Listens with a backlog of [`limits::LISTEN_BACKLOG`].
///
/// # Errors
/// When the address is in use, or not one of this machine.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart gets the port while connections of the process before close.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(limits::LISTEN_BACKLOG)
}

/// Bounds the memory that the kernel holds for a client that reads slowly.
fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_notsent_lowat(limits::UNSENT_BYTES_MAX)
}

/// Whether only one connection failed before it was accepted.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

async fn drain(mut connections: JoinSet<()>) {
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err() {
        tracing::warn!(connections = connections.len(), "shutdown timed out, aborting connections");
        connections.shutdown().await;
    }
}

struct Connection {
    router: Router,
    slot: Arc<ConnectionSlot>,
    peer: Peer,
    watch: ClientWatch,
    /// The client sent plain HTTP to a TLS listener.
    needs_tls: bool,
}

/// A connection to a TLS listener. `Plain`: the client sent plain HTTP.
enum AcceptedStream {
    Tls(Box<TlsStream<SharedStream>>),
    Plain(SharedStream),
}

impl Connection {
    async fn run(mut self, stream: TcpStream, bounds: Bounds, mut stopped: watch::Receiver<bool>) {
        panics::test_point("connection");
        if let Err(error) = set_options(&stream) {
            tracing::debug!(%error, "setting the options of a connection failed");
        }
        let stream = SharedStream::new(stream);
        self.watch = stream.watch();
        let Some(acceptor) = &bounds.tls else { return self.serve(stream, &bounds, stopped).await };
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(bounds.header_timeout, accept_tls(acceptor, stream)) => accepted,
            () = self.slot.evicted() => return,
            () = wait_until_stopped(&mut stopped) => return,
        };
        match accepted {
            Ok(Ok(AcceptedStream::Tls(stream))) => self.serve(stream, &bounds, stopped).await,
            Ok(Ok(AcceptedStream::Plain(stream))) => {
                self.needs_tls = true;
                self.serve(stream, &bounds, stopped).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, peer = %self.peer.0, "TLS handshake failed"),
            Err(_) => tracing::debug!(peer = %self.peer.0, "TLS handshake timed out"),
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin>(
        &self,
        stream: S,
        bounds: &Bounds,
        mut stopped: watch::Receiver<bool>,
    ) {
        let slot = self.slot.clone();
        let socket = Socket::new(stream, slot.clone(), bounds.answer_timeout);
        let service = service_fn(|request| self.respond(request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.header_timeout)
            .max_buf_size(limits::HEADER_BYTES_MAX)
            // A client that has shut down its sending side still gets the response in progress.
            .half_close(true)
            .serve_connection(TokioIo::new(socket), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = slot.evicted() => return,
            () = wait_until_stopped(&mut stopped) => {
                if slot.is_idle() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection failed");
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Result<Response<ResponseBody>, Infallible> {
        if !self.slot.begin() {
            return pending().await; // this connection is being dropped
        }
        let read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
        let checked = if self.needs_tls { Err(Problem::MissesTls) } else { check_request(&request) };
        let is_rejected = checked.is_err();
        let mut response = match checked {
            Ok(()) => {
                let read = read.clone();
                let mut request = request.map(|body| Body::new(TrackedBody { body, read }));
                request.extensions_mut().insert(self.peer);
                request.extensions_mut().insert(self.slot.closer());
                request.extensions_mut().insert(RequestSeat::new(&self.slot));
                request.extensions_mut().insert(self.watch.clone());
                self.router.clone().call(request).await?
            }
            Err(problem) => problem.into_reply().into_response(),
        };
        if is_rejected || !read.load(Ordering::Relaxed) {
            // The rest of the body stays unread, so the connection cannot be reused.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(watch) = response.extensions_mut().remove::<Arc<WatchedWrite>>() {
            self.slot.watch_write(watch);
        }
        let extensions = response.extensions();
        let (key, stream) = (extensions.get::<GoodKey>(), extensions.get::<Streaming>());
        self.slot.on_response_begun(key.is_some(), stream.is_some());
        let slot = self.slot.clone();
        Ok(response.map(|body| ResponseBody { body, slot }))
    }
}

/// Detects plain HTTP by its first byte: a letter, with which a TLS record never begins.
async fn accept_tls(acceptor: &TlsAcceptor, stream: SharedStream) -> io::Result<AcceptedStream> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0].is_ascii_alphabetic() {
        return Ok(AcceptedStream::Plain(stream));
    }
    Ok(AcceptedStream::Tls(Box::new(acceptor.accept(stream).await?)))
}

/// Also returns when the sender is dropped. The watch guard must not live across an await.
async fn wait_until_stopped(stopped: &mut watch::Receiver<bool>) {
    drop(stopped.wait_for(|stopped| *stopped).await);
}

/// A response body that tells the connection when hyper has taken all of it.
struct ResponseBody {
    body: Body,
    slot: Arc<ConnectionSlot>,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.slot.on_response_taken();
    }
}

/// A request body that records whether it was read to its end.
struct TrackedBody {
    body: Incoming,
    read: Arc<AtomicBool>,
}

impl HttpBody for TrackedBody {
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

/// Size of a request's line and headers without optional spaces. hyper only limits its buffer,
/// which can hold more than that.
fn head_bytes<T>(request: &Request<T>) -> usize {
    let uri = request.uri();
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len())
        + uri.authority().map_or(0, |authority| authority.as_str().len())
        + uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len());
    let line = request.method().as_str().len() + target + "  HTTP/1.1\r\n".len();
    let field =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    line + request.headers().iter().map(field).sum::<usize>() + "\r\n".len()
}

/// Rejects headers that are too large, unsupported, or that a proxy could interpret differently
/// (RFC 9112, sections 3.2 and 6.1).
fn check_request<T>(request: &Request<T>) -> Result<(), Problem> {
    let (version, headers) = (request.version(), request.headers());
    if head_bytes(request) > limits::HEADER_BYTES_MAX {
        return Err(Problem::HeadersTooLarge);
    }
    // RFC 9110, section 10.1.1: ignored in HTTP/1.0.
    let mut expectations = headers.get_all(header::EXPECT).iter();
    if version == Version::HTTP_11
        && expectations.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Problem::ExpectationFailed);
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let encoding = encodings.next();
    if encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || encodings.next().is_some()
    {
        return Err(Problem::Malformed("the only supported transfer coding is `chunked`, once".to_owned()));
    }
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && version == Version::HTTP_11) {
        return Err(Problem::Malformed("exactly one `Host` header is required".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    use super::*;
    use crate::api::http::reply::{Reply, WritePermit};

    const TEST_TIMEOUT: Duration = Duration::from_secs(60);

    fn bounds(connections: usize, timeout: Duration) -> Bounds {
        Bounds {
            connections: ConnectionLimit::new(connections),
            header_timeout: timeout,
            answer_timeout: timeout,
            on_shortage: Arc::new(|| ()),
            tls: None,
        }
    }

    #[derive(Debug)]
    struct NoPermit;

    impl WritePermit for NoPermit {
        fn on_progress(&self) {}
    }

    #[tokio::test]
    async fn response_of_many_parts_is_written_whole_at_a_shutdown() {
        const BYTES: usize = 16 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let body = Bytes::from(vec![b'x'; BYTES]);
        let large =
            move || async move { Reply::bytes(200, body).hold_until_written(NoPermit).into_response() };
        let (stop, stopping) = oneshot::channel::<()>();
        let bounds = bounds(4, Duration::from_secs(5));
        let server = tokio::spawn(serve(listener, Router::new().route("/", get(large)), bounds, async {
            stopping.await.ok();
        }));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 1 << 20];
        client.read_exact(&mut answer).await.unwrap();
        stop.send(()).unwrap();
        // The server closes its listener first, then it tells the connections.
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.read_to_end(&mut answer).await.unwrap();
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(answer.len() - head, BYTES, "the response was cut");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn request_in_progress_completes_before_the_server_ends() {
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
        let bounds = bounds(4, Duration::from_secs(5));
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

    #[tokio::test]
    async fn burst_of_connections_waits_to_be_accepted() {
        // More than the 128 of std and tokio. The kernel allows 4,096 by default.
        const BURST: usize = 400;
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let burst = async {
            let mut clients = Vec::new();
            for _ in 0..BURST {
                clients.push(TcpStream::connect(address).await.unwrap());
            }
            clients
        };
        // Without room in the backlog, a connection would never be established.
        let clients = tokio::time::timeout(TEST_TIMEOUT, burst).await.expect("the backlog is full");
        assert_eq!(clients.len(), BURST);
    }

    #[tokio::test]
    async fn kernel_holds_little_for_a_slow_reader() {
        const CHUNK: usize = 16 * 1024;
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let chunks = Arc::new(AtomicUsize::new(0));
        let made = chunks.clone();
        let endless = move || {
            let made = made.clone();
            let next = move || {
                made.fetch_add(1, Ordering::Relaxed);
                Some(Ok::<_, io::Error>(Bytes::from_static(&[b'x'; CHUNK])))
            };
            std::future::ready(Body::from_stream(futures_util::stream::iter(std::iter::from_fn(next))))
        };
        let router = Router::new().route("/", get(endless));
        let server = tokio::spawn(serve(listener, router, bounds(4, 60 * TEST_TIMEOUT), pending()));
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut reader = socket.connect(address).await.unwrap();
        reader.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        reader.read_exact(&mut [0; 16]).await.unwrap();
        let mut seen = 0;
        while seen < chunks.load(Ordering::Relaxed) {
            seen = chunks.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert!(seen * CHUNK < 1024 * 1024, "{} bytes are held", seen * CHUNK);
        server.abort();
    }

    #[tokio::test]
    async fn slow_readers_do_not_block_probes() {
        const CONNECTIONS: usize = 8;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let large: Arc<str> = "x".repeat(8 << 20).into();
        let router = Router::new()
            .route("/metrics", get(move || std::future::ready(large.to_string())))
            .route("/readyz", get(|| std::future::ready("ready")));
        // No deadline expires during the test.
        let bounds = bounds(CONNECTIONS, 60 * TEST_TIMEOUT);
        let connections = bounds.connections.clone();
        let server = tokio::spawn(serve(listener, router, bounds, pending()));
        let mut readers = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4_096).unwrap();
            let mut reader = socket.connect(address).await.unwrap();
            reader.write_all(&b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(600)).await.unwrap();
            reader.read_exact(&mut [0; 16]).await.unwrap();
            readers.push(reader);
        }
        let probe = async {
            let mut probe = TcpStream::connect(address).await.unwrap();
            probe.write_all(b"GET /readyz HTTP/1.0\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            probe.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("ready"), "{answer}");
        };
        tokio::time::timeout(TEST_TIMEOUT, probe).await.expect("the probe gets no slot");
        assert!(connections.taken() <= CONNECTIONS && connections.take_evicted() > 0);
        server.abort();
    }
}
