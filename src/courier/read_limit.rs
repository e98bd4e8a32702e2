//! Read limit: caps the bytes read from a connection per request.
//!
//! A receiver may send informational replies, empty lines or padding forever. The HTTP library
//! reads them in a loop that does not yield to a timer: four such receivers blocked a whole daemon
//! for longer than their timeouts. This stream counts all bytes below TLS, including TLS messages
//! that the layers above never see. A write resets the count: HTTP/1.1 writes only requests, and
//! TLS adds few and small messages.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits;

/// The receiver sent more than [`limits::REPLY_WIRE_BYTES_MAX`] bytes for one request.
#[derive(Debug, thiserror::Error)]
#[error("the receiver sent more than {} bytes for one request", limits::REPLY_WIRE_BYTES_MAX)]
pub(super) struct ReadLimitExceeded;

/// A stream with a read limit.
pub(super) struct ReadLimited<S> {
    stream: S,
    left: usize,
    refill: Refill,
}

/// The effect of a write on the limit.
#[derive(Clone, Copy)]
enum Refill {
    /// It is a request: the limit begins again.
    Request,
    /// Twice the written bytes.
    Echo,
    Unlimited,
}

impl<S> ReadLimited<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, left: limits::REPLY_WIRE_BYTES_MAX, refill: Refill::Request }
    }

    /// Ends the limit.
    pub(super) fn lift(&mut self) {
        (self.left, self.refill) = (usize::MAX, Refill::Unlimited);
    }

    /// From now on, allows twice the written bytes and [`limits::broker::READ_BYTES_MIN`].
    pub(super) fn limit_to_echo(&mut self) {
        (self.left, self.refill) = (limits::broker::READ_BYTES_MIN, Refill::Echo);
    }

    pub(super) fn get_ref(&self) -> &S {
        &self.stream
    }

    fn on_written(&mut self, written: &Poll<io::Result<usize>>) {
        let Poll::Ready(Ok(bytes @ 1..)) = written else { return };
        self.left = match self.refill {
            Refill::Request => limits::REPLY_WIRE_BYTES_MAX,
            Refill::Echo => self.left.saturating_add(2 * bytes),
            Refill::Unlimited => usize::MAX,
        };
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadLimited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::other(ReadLimitExceeded)));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        // The last read may exceed the limit by at most the reader's buffer.
        self.left = self.left.saturating_sub(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadLimited<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.on_written(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.on_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    async fn read(stream: &mut ReadLimited<tokio::io::DuplexStream>, bytes: usize) -> io::Result<usize> {
        stream.read_exact(&mut vec![0; bytes]).await
    }

    #[tokio::test]
    async fn read_limit_applies_to_each_request() {
        const MAX: usize = limits::REPLY_WIRE_BYTES_MAX;
        let (near, mut far) = duplex(4 * MAX);
        let mut stream = ReadLimited::new(near);
        far.write_all(&vec![0; 3 * MAX + 1]).await.unwrap();
        for _ in 0..2 {
            read(&mut stream, MAX).await.unwrap();
            stream.write_all(b"the next request").await.unwrap();
        }
        read(&mut stream, MAX).await.unwrap();
        for _ in 0..2 {
            let error = read(&mut stream, 1).await.unwrap_err();
            assert!(error.get_ref().unwrap().is::<ReadLimitExceeded>(), "{error}");
        }
    }

    #[tokio::test]
    async fn broker_may_send_back_twice_what_it_got() {
        const MIN: usize = limits::broker::READ_BYTES_MIN;
        let (near, mut far) = duplex(MIN + 100);
        let mut stream = ReadLimited::new(near);
        stream.limit_to_echo();
        far.write_all(&vec![0; MIN + 21]).await.unwrap();
        stream.write_all(&[0; 10]).await.unwrap();
        read(&mut stream, MIN + 20).await.unwrap();
        let error = read(&mut stream, 1).await.unwrap_err();
        assert!(error.get_ref().unwrap().is::<ReadLimitExceeded>(), "{error}");
        stream.lift();
        read(&mut stream, 1).await.unwrap();
    }

    #[tokio::test]
    async fn end_of_stream_is_passed_on() {
        let (near, far) = duplex(10);
        drop(far);
        let mut stream = ReadLimited::new(near);
        assert_eq!(read(&mut stream, 1).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
