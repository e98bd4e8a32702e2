//! The byte stream of a broker's connection, as lapin reads it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead, AsyncWrite};
use tokio::io::{AsyncWrite as _, ReadBuf};
use tokio::sync::oneshot;

use super::super::stream::Stream;

/// A connection that the courier opened. Fails once its [`Lifeline`] is dropped, because lapin's
/// thread would otherwise wait for a broker that never answers.
pub(super) struct BrokerStream {
    stream: Stream,
    lifeline: oneshot::Receiver<()>,
}

/// Ends its connection when it is dropped.
#[derive(Debug)]
pub(super) struct Lifeline(#[expect(dead_code, reason = "only its end matters")] oneshot::Sender<()>);

impl BrokerStream {
    pub(super) fn new(stream: Stream) -> (Self, Lifeline) {
        let (sender, lifeline) = oneshot::channel();
        (Self { stream, lifeline }, Lifeline(sender))
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match Pin::new(&mut self.lifeline).poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        }
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
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl AsyncWrite for BrokerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
