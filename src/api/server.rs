//! The accept loop: HTTP/1.1 connections with bounds on their number, their headers and their end.
//!
//! Owns every connection's task; when it returns, none is left.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Most connections at once; further ones wait in the system's backlog.
pub const CONNECTIONS_MAX: usize = 4_096;
/// A request's headers must have arrived after this long; an idle connection is closed after it, too.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound of a connection's read buffer, and so of its request headers, in bytes.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Requests that are being answered at shutdown get this long.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept error that will not go away by itself (no more file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is ready, then finishes the requests that are being answered, at most for
/// [`DRAIN_TIMEOUT`].
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()> + Send) {
    let (stop, stopped) = watch::channel(false);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let permit = tokio::select! {
            () = &mut shutdown => break,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue, // the permit is returned and asked for again
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), stopped.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => pause_after(&error).await,
        }
    }
    drop(listener);
    stop.send_replace(true);
    drain(connections).await;
}

/// A connection that broke before it was accepted says nothing of the next one; anything else is given time.
async fn pause_after(error: &io::Error) {
    let of_one_connection = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    );
    if !of_one_connection {
        tracing::warn!(%error, "a connection could not be accepted");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

async fn drain(mut connections: JoinSet<()>) {
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections were cut at shutdown");
        connections.shutdown().await;
    }
}

async fn connection(stream: TcpStream, router: Router, mut stopped: watch::Receiver<bool>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // The watched value's guard must not live across an await, and a sender that is gone means the same as a stop.
    let stop = async { drop(stopped.wait_for(|stopped| *stopped).await) };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
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
        let server = tokio::spawn(serve(listener, router, async {
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
