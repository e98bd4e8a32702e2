//! The byte stream of a connection.
//!
//! Owns the choice between plain TCP and TLS. Passes all incoming bytes of HTTP through the
//! connection's [`ReplyHead`](super::reply_head::ReplyHead).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::failure::find_cause;
use super::progress::ConnectProgress;
use super::read_limit::ReadLimited;

/// A TCP or TLS stream with its progress. Reading feeds the reply head in [`ConnectProgress`].
pub(super) enum Stream {
    Plain(ReadLimited<TcpStream>, ConnectProgress),
    Tls(Box<TlsStream<ReadLimited<TcpStream>>>, ConnectProgress),
}

impl Stream {
    pub(super) fn peer_address(&self) -> Option<SocketAddr> {
        let stream = match self {
            Self::Plain(stream, _) => stream,
            Self::Tls(stream, _) => stream.get_ref().0,
        };
        stream.get_ref().peer_addr().ok()
    }

    /// Lifts the read limit: the other side is a broker that the operator chose.
    pub(super) fn lift_read_limit(&mut self) {
        match self {
            Self::Plain(stream, _) => stream.lift(),
            Self::Tls(stream, _) => stream.get_mut().0.lift(),
        }
    }

    /// Limits what is read to twice what is written, plus a constant: a broker sends back at most
    /// the messages that it got.
    pub(super) fn limit_reads_to_echo(&mut self) {
        match self {
            Self::Plain(stream, _) => stream.limit_to_echo(),
            Self::Tls(stream, _) => stream.get_mut().0.limit_to_echo(),
        }
    }

    /// Reads bytes of another protocol than HTTP.
    pub(super) fn poll_read_raw(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (read, progress) = match self {
            Self::Plain(stream, progress) => (Pin::new(stream).poll_read(cx, buffer), progress),
            Self::Tls(stream, progress) => (Pin::new(stream).poll_read(cx, buffer), progress),
        };
        record_tls_error(&read, progress);
        read
    }
}

fn record_tls_error(read: &Poll<io::Result<()>>, progress: &ConnectProgress) {
    if let Poll::Ready(Err(error)) = read
        && let Some(error) = find_cause::<rustls::Error>(error)
    {
        progress.record_tls_error(error);
    }
}

/// Forwards a call to the inner stream.
macro_rules! forward {
    ($stream:ident, $call:ident($($argument:expr),*)) => {
        match $stream.get_mut() {
            Stream::Plain(stream, _) => Pin::new(stream).$call($($argument),*),
            Stream::Tls(stream, _) => Pin::new(stream).$call($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        loop {
            ready!(this.poll_read_raw(cx, buffer))?;
            let (Self::Plain(_, progress) | Self::Tls(_, progress)) = this;
            let arrived = &mut buffer.filled_mut()[before..];
            let is_end = arrived.is_empty();
            let kept = progress.read_reply(arrived);
            buffer.set_filled(before + kept);
            // A read of zero bytes means end of stream. If all bytes were removed line ends, read
            // again.
            if is_end || kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self, poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream, _) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }
}
