//! The runtime under lapin: the daemon's, without a way to open a connection.

use std::future::{Ready, ready};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_rs::Tokio;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::{DummyIO, Task};
use futures_util::Stream;

use super::stream::BrokerStream;

/// The current runtime. Its streams come from the courier only.
#[derive(Clone, Debug)]
pub(super) struct BrokerRuntime(Tokio);

impl BrokerRuntime {
    pub(super) fn current() -> Self {
        Self(Tokio::current())
    }
}

fn not_opened_here() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "only the courier opens connections")
}

impl RuntimeKit for BrokerRuntime {}

impl Executor for BrokerRuntime {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, f: F) -> T {
        self.0.block_on(f)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, f: F) -> Task<Self::Task<T>> {
        self.0.spawn(f)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        f: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(f)
    }
}

impl Reactor for BrokerRuntime {
    type TcpStream = BrokerStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    #[expect(refining_impl_trait, reason = "the trait's own type cannot be named")]
    fn register<H: Read + Write + Send + 'static>(&self, _socket: H) -> io::Result<DummyIO> {
        Err(not_opened_here())
    }

    fn sleep(&self, dur: Duration) -> Self::Sleep {
        self.0.sleep(dur)
    }

    fn interval(&self, dur: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(dur)
    }

    #[expect(refining_impl_trait, reason = "it never waits")]
    fn tcp_connect_addr(&self, _addr: SocketAddr) -> Ready<io::Result<BrokerStream>> {
        ready(Err(not_opened_here()))
    }
}
