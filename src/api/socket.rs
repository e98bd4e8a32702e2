//! A connection's bytes: an answer has to be taken in time, and the end is one that the client can read.
//!
//! Owns the deadline of what is being written, which hyper does not have, and the lingering close: a client that is
//! refused while it is still sending would lose the refusal, if what it sends met a closed socket. What hyper answers by
//! itself says more here than it would say ([`super::unasked`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::seats::Seat;
use super::unasked::Refusal;

/// How long what a client still sends is thrown away after our last word.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that are thrown away at a time.
const LINGER_BYTES: usize = 16 * 1024;

pub(super) struct Socket<S> {
    stream: S,
    seat: Arc<Seat>,
    answer_timeout: Duration,
    /// Set while this is written in place of what hyper would say.
    refusal: Option<Refusal>,
    /// Set when a write could not go on, until everything is written.
    blocked: Option<Pin<Box<Sleep>>>,
    /// Set after our last word.
    lingering: Option<Pin<Box<Sleep>>>,
    /// Set when the client has been told that nothing more follows.
    shut_down: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(super) fn new(stream: S, seat: Arc<Seat>, answer_timeout: Duration) -> Self {
        Self { stream, seat, answer_timeout, refusal: None, blocked: None, lingering: None, shut_down: false }
    }

    /// A write that waits, waits within the deadline. What goes out in between does not extend it.
    fn in_time<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        if self.blocked.is_none() {
            self.seat.stalls();
        }
        let timeout = self.answer_timeout;
        let deadline = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the answer was not taken in time")))
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
        let Self { stream, seat, refusal, .. } = &mut *self;
        // No request has begun: nobody but hyper can have said this.
        if refusal.is_none() && seat.is_waiting() {
            *refusal = Refusal::instead_of(parts);
        }
        let stream = Pin::new(stream);
        let written = match refusal {
            Some(refusal) => refusal.poll_write(stream, context),
            None => stream.poll_write_vectored(context, parts),
        };
        if written.is_ready() {
            self.refusal = None;
        }
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper flushes once it has nothing more to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS keeps records of its own until they are flushed.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        ready!(self.in_time(context, flushed))?;
        self.blocked = None;
        self.seat.written();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            self.lingering = Some(Box::pin(tokio::time::sleep(LINGER_TIMEOUT)));
            self.seat.wait();
        }
        if !self.shut_down {
            match Pin::new(&mut self.stream).poll_shutdown(context) {
                Poll::Ready(result) => result?,
                // TLS has a last message, which the client may not take.
                Poll::Pending if self.has_lingered(context) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
            self.shut_down = true;
        }
        let mut bytes = [0; LINGER_BYTES];
        // As often as hyper reads before it lets others go on.
        for _ in 0..16 {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending if self.has_lingered(context) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        // A client that never stops sending is stopped by the clock as well.
        if self.has_lingered(context) {
            return Poll::Ready(Ok(()));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
