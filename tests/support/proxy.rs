//! A TCP proxy between a client and the daemon: it cuts, splits and delays responses.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Pause between the parts of a split response, so that the client reads them separately.
const SPLIT_PAUSE: Duration = Duration::from_millis(3);

/// The treatment of the bytes from the daemon on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The connection ends after this many bytes, with FIN or with RST.
    Cut {
        after: usize,
        reset: bool,
    },
    /// One pause after this many bytes.
    Split {
        after: usize,
    },
    /// A pause after each step of this many bytes.
    Slow {
        step: usize,
    },
}

impl Fault {
    /// The number of bytes, at least `sent`, after which a pause or the end follows.
    fn next_stop(self, sent: usize) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Cut { after, .. } => Some(after),
            Self::Split { after } => Some(after).filter(|after| *after > sent),
            Self::Slow { step } => Some((sent / step + 1) * step),
        }
    }
}

/// The address of the daemon, which changes at a restart.
pub(crate) type Target = Arc<Mutex<SocketAddr>>;

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    is_open: watch::Sender<bool>,
    listening: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Proxy {
    /// `fault` chooses the fault of the connection with this number, from 0.
    pub(crate) async fn start(
        target: &Target,
        fault: impl Fn(usize) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<AtomicUsize> = Arc::default();
        let (is_open, open) = watch::channel(true);
        let ended: Arc<AtomicUsize> = Arc::default();
        let (target, counted, counted_ends) =
            (Arc::clone(target), Arc::clone(&connections), Arc::clone(&ended));
        let listening = tokio::spawn(async move {
            // The connections end with the proxy.
            let mut tasks = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let fault = fault(counted.fetch_add(1, Ordering::SeqCst));
                let (target, mut open) = (Arc::clone(&target), open.clone());
                let ended = Arc::clone(&counted_ends);
                tasks.spawn(async move {
                    if open.wait_for(|open| *open).await.is_err() {
                        return;
                    }
                    let address = *target.lock().unwrap();
                    // Without a daemon the client sees a closed connection.
                    if let Ok(server) = TcpStream::connect(address).await {
                        relay(client, server, fault).await;
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                });
                while tasks.try_join_next().is_some() {}
            }
        });
        Self { address, connections, ended, is_open, listening }
    }

    /// Connections so far, also those that found no daemon.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Connections that have ended, by a fault or by one of the sides.
    pub(crate) fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether new connections reach the daemon. Others wait.
    pub(crate) fn set_open(&self, is_open: bool) {
        self.is_open.send_replace(is_open);
    }
}

/// Relays until one side closes, or the fault ends the connection.
async fn relay(mut client: TcpStream, mut server: TcpStream, fault: Fault) {
    client.set_nodelay(true).unwrap();
    let (mut asked, mut answered) = (vec![0; 16_384], vec![0; 16_384]);
    let mut sent = 0;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                if server.write_all(&asked[..count]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(count @ 1..) = read else { return };
                if !pass_on(&mut client, &answered[..count], &mut sent, fault).await {
                    if matches!(fault, Fault::Cut { reset: true, .. }) {
                        client.set_zero_linger().unwrap();
                    }
                    return;
                }
            }
        }
    }
}

/// Returns whether the connection goes on.
async fn pass_on(client: &mut TcpStream, mut bytes: &[u8], sent: &mut usize, fault: Fault) -> bool {
    while !bytes.is_empty() {
        let stop = fault.next_stop(*sent);
        let count = stop.map_or(bytes.len(), |stop| (stop - *sent).min(bytes.len()));
        if client.write_all(&bytes[..count]).await.is_err() {
            return false;
        }
        bytes = &bytes[count..];
        *sent += count;
        if stop == Some(*sent) {
            if matches!(fault, Fault::Cut { .. }) {
                return false;
            }
            tokio::time::sleep(SPLIT_PAUSE).await;
        }
    }
    true
}
