//! A receiver that follows a script on a raw socket, and counts the bytes that the peer takes.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::{Progress, ReceivedRequest, next_request};

/// A flood ends here: a peer that has read this much has no limit.
pub(crate) const FLOOD_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The behaviour of a receiver on each connection.
pub(crate) type Script = Arc<dyn Fn(Talk) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// An asynchronous function as a script.
pub(crate) fn script<F, Fut>(follow: F) -> Script
where
    F: Fn(Talk) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |talk| Box::pin(follow(talk)))
}

/// Answers every request on a connection with these bytes.
pub(crate) fn replies_with(bytes: impl Into<Vec<u8>>) -> Script {
    let bytes: Arc<[u8]> = bytes.into().into();
    script(move |mut talk| {
        let bytes = bytes.clone();
        async move { while talk.request().await.is_some() && talk.send(&bytes).await {} }
    })
}

/// Observations of a receiver.
#[derive(Default)]
pub(crate) struct Seen {
    connections: AtomicUsize,
    /// Connections whose script has ended.
    ended: AtomicUsize,
    /// Bytes that the peer or the socket buffers have taken.
    written: AtomicU64,
    requests: Mutex<Vec<ReceivedRequest>>,
}

pub(crate) struct Chaos {
    pub(crate) url: String,
    seen: Arc<Seen>,
    listening: JoinHandle<()>,
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Chaos {
    pub(crate) fn start(script: &Script) -> Self {
        Self::on(TcpSocket::new_v4().unwrap(), script)
    }

    /// With a small window, so that a large request does not fit into the socket buffers.
    pub(crate) fn with_small_window(script: &Script) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        Self::on(socket, script)
    }

    fn on(socket: TcpSocket, script: &Script) -> Self {
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1_024).unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let seen: Arc<Seen> = Arc::default();
        let listening = tokio::spawn(listen(listener, script.clone(), seen.clone()));
        Self { url, seen, listening }
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Connections that one of the two sides has closed.
    pub(crate) fn ended(&self) -> usize {
        self.seen.ended.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<ReceivedRequest> {
        self.seen.requests.lock().unwrap().clone()
    }

    pub(crate) fn written(&self) -> u64 {
        self.seen.written.load(Ordering::SeqCst)
    }

    /// Waits for this number of whole requests.
    pub(crate) async fn until(&self, count: usize) -> Vec<ReceivedRequest> {
        let mut progress = Progress::from(0);
        while self.requests().len() < count {
            let came = self.requests().len();
            assert!(progress.goes_on(came), "only {came} of {count} requests came");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.requests()
    }

    /// Waits until each connection's script has ended. A script that sends until the connection
    /// closes shows that the peer closed it.
    pub(crate) async fn until_all_closed(&self) {
        let mut progress = Progress::from(0);
        while self.ended() < self.connections() {
            assert!(progress.goes_on(self.ended()), "a connection to {} stays open", self.url);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn listen(listener: TcpListener, script: Script, seen: Arc<Seen>) {
    // The connections end with the receiver.
    let mut talks = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let number = seen.connections.fetch_add(1, Ordering::SeqCst);
        let talk = Talk { number, stream, buffer: Vec::new(), seen: seen.clone() };
        let (script, seen) = (script.clone(), seen.clone());
        talks.spawn(async move {
            script(talk).await;
            seen.ended.fetch_add(1, Ordering::SeqCst);
        });
    }
}

/// One connection, from the receiver's side.
pub(crate) struct Talk {
    /// From 0, over all connections of the receiver.
    pub(crate) number: usize,
    stream: TcpStream,
    buffer: Vec<u8>,
    seen: Arc<Seen>,
}

impl Talk {
    /// Waits for the next whole request; `None` at the end of the connection.
    pub(crate) async fn request(&mut self) -> Option<ReceivedRequest> {
        let got = next_request(&mut self.stream, &mut self.buffer).await?;
        self.seen.requests.lock().unwrap().push(got.clone());
        Some(got)
    }

    /// Waits until a request begins, and reads nothing of it.
    pub(crate) async fn first_byte(&mut self) {
        let _gone = self.stream.peek(&mut [0]).await;
    }

    /// Reads no further than the end of the next request's head.
    pub(crate) async fn head(&mut self) -> Option<()> {
        let mut byte = [0];
        while !self.buffer.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte).await.ok()?;
            self.buffer.push(byte[0]);
        }
        self.buffer.clear();
        Some(())
    }

    /// Returns whether the connection was still open.
    pub(crate) async fn send(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Ok(written) = self.stream.write(bytes).await else { return false };
            self.seen.written.fetch_add(written as u64, Ordering::SeqCst);
            bytes = &bytes[written..];
        }
        true
    }

    /// Sends the same bytes until the peer closes the connection (or has taken
    /// [`FLOOD_BYTES_MAX`]).
    pub(crate) async fn flood(&mut self, bytes: &[u8]) {
        while self.seen.written.load(Ordering::SeqCst) < FLOOD_BYTES_MAX && self.send(bytes).await {}
    }

    /// Sends the same bytes at intervals until the peer closes the connection.
    pub(crate) async fn drip(&mut self, bytes: &[u8]) {
        while self.send(bytes).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Keeps the connection open as long as the receiver exists, and reads nothing.
    pub(crate) async fn stay(self) {
        std::future::pending::<()>().await;
    }

    /// Waits until the peer closes the connection.
    pub(crate) async fn hang(&mut self) {
        while self.stream.read(&mut [0; 4_096]).await.is_ok_and(|read| read > 0) {}
    }

    /// Closes the sending side only.
    pub(crate) async fn half_close(&mut self) {
        let _gone = self.stream.shutdown().await;
    }

    /// RST instead of FIN.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}
