//! The byte stream of a broker's connection, as lapin reads it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead, AsyncWrite};
use tokio::io::{AsyncWrite as _, ReadBuf};
use tokio::sync::oneshot;

use super::super::stream::Stream;

/// Room for what may precede a TLS alert, such as a session ticket.
const ALERT_BYTES_MAX: usize = 1_024;

/// A connection that the courier opened. Fails once its [`Lifeline`] is dropped, because lapin's
/// thread would otherwise wait for a broker that never answers.
pub(super) struct BrokerStream {
    stream: Stream,
    lifeline: oneshot::Receiver<()>,
    /// Whether the broker has sent a byte of AMQP.
    has_read: bool,
    /// The failure of a write, until [`Self::poll_alert`] is done.
    failed_write: Option<io::Error>,
}

/// Ends its connection when it is dropped.
#[derive(Debug)]
pub(super) struct Lifeline(#[expect(dead_code, reason = "only its end matters")] oneshot::Sender<()>);

impl BrokerStream {
    pub(super) fn new(stream: Stream) -> (Self, Lifeline) {
        let (sender, lifeline) = oneshot::channel();
        (Self { stream, lifeline, has_read: false, failed_write: None }, Lifeline(sender))
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match Pin::new(&mut self.lifeline).poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Passes the result of a write on. With TLS 1.3, a broker refuses a client certificate after
    /// the handshake, so the first write may fail before its alert is read.
    fn with_alert<T>(&mut self, cx: &mut Context<'_>, result: io::Result<T>) -> Poll<io::Result<T>> {
        match result {
            Err(error) if !self.has_read => {
                self.failed_write = Some(error);
                self.poll_alert(cx)
            }
            result => Poll::Ready(result),
        }
    }

    /// Reads the alert, which records it, and returns the failure of the write. A connection that
    /// fails becomes readable.
    fn poll_alert<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let mut bytes = [0; ALERT_BYTES_MAX];
        let _recorded = ready!(self.stream.poll_read_raw(cx, &mut ReadBuf::new(&mut bytes)));
        let failed = self.failed_write.take();
        Poll::Ready(Err(failed.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())))
    }
}

impl AsyncRead for BrokerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let mut buffer = ReadBuf::new(bytes);
        ready!(self.stream.poll_read_raw(cx, &mut buffer))?;
        self.has_read |= !buffer.filled().is_empty();
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl AsyncWrite for BrokerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.failed_write.is_some() {
            return self.poll_alert(cx);
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.with_alert(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed_write.is_some() {
            return self.poll_alert(cx);
        }
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.with_alert(cx, flushed)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
