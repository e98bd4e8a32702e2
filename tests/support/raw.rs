//! A client that sends arbitrary bytes.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Daemon, WAIT_MAX};

pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

/// One response of a server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RawResponse {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Raw {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self::over(TcpStream::connect(to).await.unwrap())
    }

    pub(crate) fn over(stream: TcpStream) -> Self {
        Self { stream, unread: Vec::new() }
    }

    /// A client whose connection buffers less than 100 kB of an answer that the client does not
    /// read: both kernels buffer a multiple of the largest segment.
    pub(crate) fn connect_narrow(to: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_tcp_mss(536).unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.connect(&to.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self::over(TcpStream::from_std(socket.into()).unwrap())
    }

    /// Returns whether all bytes could be sent.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Closes the sending side.
    pub(crate) async fn half_close(&mut self) {
        let _gone = self.stream.shutdown().await;
    }

    /// The next response, also a `100 Continue`. `None` when the server closes the connection
    /// instead.
    pub(crate) async fn answer(&mut self) -> Option<RawResponse> {
        tokio::time::timeout(WAIT_MAX, self.read_answer())
            .await
            .expect("the server neither answers nor closes")
    }

    async fn read_answer(&mut self) -> Option<RawResponse> {
        let end = loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8(self.unread.drain(..end).collect()).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        while self.unread.len() < length {
            self.more().await?;
        }
        let body = String::from_utf8(self.unread.drain(..length).collect()).unwrap();
        Some(RawResponse { status, head, body })
    }

    async fn more(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.unread).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }

    /// Whether the server closes the connection within that time, after any number of bytes.
    pub(crate) async fn is_closed_within(&mut self, limit: Duration) -> bool {
        let closed = async { while self.more().await.is_some() {} };
        tokio::time::timeout(limit, closed).await.is_ok()
    }
}

/// A whole request.
pub(crate) fn post(path: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A worker of a queue that takes up to `most` messages, none below 100 kB, and dies before it has
/// its answer.
pub(crate) async fn lose_answer(daemon: &Daemon, queue: &str, most: usize) {
    let mut worker = Raw::connect_narrow(daemon.address());
    let body = format!(r#"{{"max":{most},"maxBytes":{}}}"#, 16 << 20);
    worker.send(post(&format!("/v1/queues/{queue}/receive"), "", &body).as_bytes()).await;
    tokio::time::timeout(WAIT_MAX, worker.stream.readable()).await.expect("no answer begins").unwrap();
}
