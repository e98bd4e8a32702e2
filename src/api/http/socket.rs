//! The byte stream of a connection: write deadline and lingering close.
//!
//! hyper has no write deadline. Without the lingering close, a client that is still sending when it
//! is rejected would get a connection reset and lose the response. Also replaces the error
//! responses of hyper ([`super::early_errors`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::api::http::connection_limit::ConnectionSlot;
use crate::api::http::early_errors::EarlyError;

/// Lingering close: how long bytes from the client are discarded after the last response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes discarded at a time.
const LINGER_BYTES: usize = 16 * 1024;

pub(super) struct Socket<S> {
    stream: S,
    slot: Arc<ConnectionSlot>,
    answer_timeout: Duration,
    /// Set while an error response of hyper is being replaced.
    early_error: Option<EarlyError>,
    /// Deadline of a blocked write; unset once everything is written.
    blocked: Option<Pin<Box<Sleep>>>,
    /// Set after the last response.
    lingering: Option<Pin<Box<Sleep>>>,
    /// Our side is shut down.
    shut_down: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(super) fn new(stream: S, slot: Arc<ConnectionSlot>, answer_timeout: Duration) -> Self {
        Self {
            stream,
            slot,
            answer_timeout,
            early_error: None,
            blocked: None,
            lingering: None,
            shut_down: false,
        }
    }

    /// Fails a blocked write at its deadline. Partial progress extends only that of a stream.
    fn limit_time<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        if self.blocked.is_none() {
            self.slot.on_stalled();
        }
        let timeout = self.answer_timeout;
        let deadline = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client did not read the response in time",
        )))
    }

    fn has_lingered(&mut self, context: &mut Context<'_>) -> bool {
        self.lingering.as_mut().is_none_or(|over| over.as_mut().poll(context).is_ready())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, slot, early_error, .. } = &mut *self;
        // No request is in progress: these bytes are an error response of hyper.
        if early_error.is_none() && slot.is_idle() {
            *early_error = EarlyError::replacing(parts);
        }
        let stream = Pin::new(stream);
        let written = match early_error {
            Some(early_error) => early_error.poll_write(stream, context),
            None => stream.poll_write_vectored(context, parts),
        };
        if written.is_ready() {
            self.early_error = None;
            // A stream always has more to write: without this, its fastest client would be cut off.
            if self.slot.is_streaming() {
                self.blocked = None;
            }
        }
        self.limit_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper flushes once it has nothing more to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS buffers records until they are flushed.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        ready!(self.limit_time(context, flushed))?;
        self.blocked = None;
        self.slot.on_written();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            self.lingering = Some(Box::pin(tokio::time::sleep(LINGER_TIMEOUT)));
            self.slot.become_idle();
        }
        if !self.shut_down {
            match Pin::new(&mut self.stream).poll_shutdown(context) {
                Poll::Ready(result) => result?,
                // The client may not read the last TLS message.
                Poll::Pending if self.has_lingered(context) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
            self.shut_down = true;
        }
        let mut bytes = [0; LINGER_BYTES];
        // hyper also reads 16 times before it yields.
        for _ in 0..16 {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending if self.has_lingered(context) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        // Also checked while bytes arrive: a client may send forever.
        if self.has_lingered(context) {
            return Poll::Ready(Ok(()));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
