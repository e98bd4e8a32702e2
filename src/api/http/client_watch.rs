//! A connection's TCP stream, and the watch for the end of its client.
//!
//! Half-closed clients get their responses, so hyper reads nothing while a request is in progress
//! and never learns that its client has gone. A request that waits watches the stream itself.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// A TCP stream whose end others can watch. Only tokio's own reader needs neither a cleared buffer
/// nor a second system call to learn that nothing is left.
pub(super) struct SharedStream {
    reader: OwnedReadHalf,
    writer: Arc<OwnedWriteHalf>,
}

/// Watches for the end of a request's client. The default never ends.
#[derive(Clone, Debug, Default)]
pub struct ClientWatch(Option<Arc<OwnedWriteHalf>>);

impl ClientWatch {
    /// Completes when the client has closed the connection or its sending side, or has reset the
    /// connection. It may have sent further requests before.
    pub async fn gone(&self) {
        let Some(stream) = &self.0 else { return pending().await };
        loop {
            // Readable bytes do not complete this interest, the end of the bytes does. Nothing
            // registers for urgent bytes.
            match stream.ready(Interest::PRIORITY).await {
                Ok(ready) if !ready.is_read_closed() => tokio::task::yield_now().await,
                // An error: the runtime shuts down.
                Ok(_) | Err(_) => return,
            }
        }
    }
}

impl SharedStream {
    pub(super) fn new(stream: TcpStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader, writer: Arc::new(writer) }
    }

    fn tcp(&self) -> &TcpStream {
        self.writer.as_ref().as_ref()
    }

    /// Reads the next bytes, and leaves them for the next read.
    pub(super) async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp().peek(buffer).await
    }

    pub(super) fn watch(&self) -> ClientWatch {
        ClientWatch(Some(Arc::clone(&self.writer)))
    }
}

/// Repeats an operation until it does not block, as tokio's own streams do.
macro_rules! retry_when_ready {
    ($ready:expr, $attempt:expr) => {
        loop {
            ready!($ready)?;
            match $attempt {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break Poll::Ready(result),
            }
        }
    };
}

impl AsyncRead for SharedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        retry_when_ready!(self.tcp().poll_write_ready(context), self.tcp().try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        retry_when_ready!(self.tcp().poll_write_ready(context), self.tcp().try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(self.tcp(), rustix::net::Shutdown::Write) {
            // The client was faster.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
