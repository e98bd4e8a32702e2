//! Connections: the one place where a socket to a receiver is opened.
//!
//! Owns: the way from a host's name to a stream that HTTP can be spoken on, in order: resolve once, judge every address,
//! connect to judged ones, go through the proxy if there is one, TLS. The host's name is kept for TLS and for `Host`; it
//! is never resolved a second time. Anything that goes wrong on the way ends it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::{Host, Url};

use super::addresses;
use super::guard::{BlockedAddress, Guard, Judged, LOOPBACK, RefusedUrl, is_localhost};
use super::metered::{Metered, TooMuch};
use super::reply_head::ReplyHead;
use super::resolver::Resolver;
use super::tls::ClientCertificate;
use super::{awake, find, is_exhausted, tls, within};
use crate::domain::{ErrorClass, Network};
use crate::limits;

/// Why there is no connection. The words are the same whether an address refused, was silent, or has no route: a record
/// of attempts is no port scanner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConnectError {
    /// The URL itself is forbidden: only another URL or another policy changes that.
    #[error(transparent)]
    Forbidden(#[from] RefusedUrl),
    /// The host's name has a forbidden address now. Names change, so that a later attempt may succeed.
    #[error(transparent)]
    Blocked(#[from] BlockedAddress),
    #[error("{0}")]
    Dns(&'static str),
    #[error("no connection could be made")]
    Unreachable,
    /// There is no file descriptor left for one: the receiver has nothing to do with it.
    #[error("this process can open no further connection")]
    Exhausted,
    #[error("the egress proxy cannot be reached")]
    ProxyUnreachable,
    #[error("the egress proxy refused the connection (status {0})")]
    ProxyRefused(u16),
    #[error("{0}")]
    Tls(String),
}

impl ConnectError {
    pub(super) fn class(&self) -> ErrorClass {
        match self {
            Self::Forbidden(_) | Self::Blocked(_) => ErrorClass::BlockedAddress,
            Self::Dns(_) => ErrorClass::Dns,
            Self::Unreachable | Self::Exhausted | Self::ProxyUnreachable | Self::ProxyRefused(_) => {
                ErrorClass::Connect
            }
            Self::Tls(_) => ErrorClass::Tls,
        }
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Step {
    Resolving = 1,
    Connecting = 2,
    Proxying = 3,
    Securing = 4,
}

/// How far a connection has come: whichever deadline ends it, the record says the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Reached>);

#[derive(Debug, Default)]
struct Reached {
    step: AtomicU8,
    /// There was no file descriptor for one of the addresses.
    exhausted: AtomicBool,
    /// One of the receiver's addresses can be reached only because the operator has opened its range.
    is_internal: AtomicBool,
    /// What came of the receiver's request for a client certificate, once the handshake seemed to be done.
    client: OnceLock<ClientCertificate>,
    /// What the receiver said about the handshake after it seemed to be done. Whoever waits for a reply may see no more
    /// than that the connection has gone.
    complaint: OnceLock<String>,
    /// What has arrived of the reply to the request that is under way.
    reply: Mutex<ReplyHead>,
}

impl Progress {
    fn reach(&self, step: Step) {
        self.0.step.store(step as u8, Ordering::Relaxed);
    }

    /// The failure of connecting, unless a want of descriptors had a part in it.
    fn unless_exhausted(&self, error: ConnectError) -> ConnectError {
        if self.0.exhausted.load(Ordering::Relaxed) { ConnectError::Exhausted } else { error }
    }

    /// Keeps where the addresses are that are about to be connected to.
    fn lead_to(&self, addresses: &[Judged]) {
        let is_internal = |judged: &Judged| addresses::network(judged.address().ip()) == Network::Internal;
        self.0.is_internal.store(addresses.iter().any(is_internal), Ordering::Relaxed);
    }

    /// Where the receiver is, as far as it is known: a failure from inside is told to operators only.
    pub(super) fn network(&self) -> Network {
        if self.0.is_internal.load(Ordering::Relaxed) { Network::Internal } else { Network::Public }
    }

    /// What to say when time is over before there is a connection.
    pub(super) fn timed_out(&self) -> ConnectError {
        let failed = match self.0.step.load(Ordering::Relaxed) {
            step if step == Step::Resolving as u8 => DNS_SILENT,
            step if step == Step::Proxying as u8 => ConnectError::ProxyUnreachable,
            step if step == Step::Securing as u8 => {
                return ConnectError::Tls("the TLS handshake did not end in time".to_owned());
            }
            _ => ConnectError::Unreachable,
        };
        self.unless_exhausted(failed)
    }

    /// What the receiver did not like about TLS.
    pub(super) fn complaint(&self) -> Option<ConnectError> {
        self.0.complaint.get().cloned().map(ConnectError::Tls)
    }

    pub(super) fn reply(&self) -> MutexGuard<'_, ReplyHead> {
        self.0.reply.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const DNS_SILENT: ConnectError = ConnectError::Dns("the name servers did not answer in time");
const DNS_EMPTY: ConnectError = ConnectError::Dns("the host name has no address");
const DNS_FAILED: ConnectError = ConnectError::Dns("the name servers could not resolve the host name");

/// A proxy that every request goes through, by `CONNECT`.
#[derive(Clone)]
pub struct Proxy {
    host: Host,
    port: u16,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
}

impl Proxy {
    /// From `http://host:port`, with user and password where the proxy asks for them. `None` without a host.
    #[must_use]
    pub fn new(url: &Url) -> Option<Self> {
        let host = url.host()?.to_owned();
        let authorization = (!url.username().is_empty() || url.password().is_some()).then(|| {
            let decoded = |text| percent_decode_str(text).collect::<Vec<u8>>();
            let pair = [decoded(url.username()), b":".to_vec(), decoded(url.password().unwrap_or_default())];
            format!("Basic {}", STANDARD.encode(pair.concat()))
        });
        Some(Self { host, port: url.port_or_known_default()?, authorization })
    }
}

/// Makes the connections of one pool.
pub(super) struct Wiring {
    pub(super) guard: Arc<Guard>,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) proxy: Option<Proxy>,
    pub(super) tls: Arc<ClientConfig>,
    /// From the first packet to the end of the TLS handshake.
    pub(super) timeout: Duration,
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    host: Host,
    port: u16,
    secure: bool,
}

impl Target {
    /// `None` for a URL without a host.
    pub(super) fn new(url: &Url) -> Option<Self> {
        let secure = url.scheme() == "https";
        Some(Self { host: url.host()?.to_owned(), port: url.port_or_known_default()?, secure })
    }
}

impl Wiring {
    pub(super) async fn connect(&self, target: &Target, progress: &Progress) -> Result<Wire, ConnectError> {
        progress.reach(Step::Resolving);
        let addresses = match &self.proxy {
            None => {
                let addresses = self.resolve(&target.host, target.port, limits::DNS_TIMEOUT).await?;
                progress.lead_to(&addresses);
                addresses
            }
            Some(proxy) => {
                // Names are the proxy's to resolve, and to judge.
                self.guard.judge_host(&target.host, target.port)?;
                self.resolve_proxy(proxy).await?
            }
        };
        let patience = pin!(awake(self.timeout));
        let opened = within(patience, pin!(self.open(target, addresses, progress))).await;
        opened.unwrap_or_else(|| Err(progress.timed_out()))
    }

    /// Where the receiver is. Where a proxy leads to is for the proxy to judge.
    pub(super) fn network(&self, wire: &Wire) -> Network {
        let remote = wire.remote().filter(|_| self.proxy.is_none());
        remote.map_or(Network::Public, |address| addresses::network(address.ip()))
    }

    /// What connecting to the URL would find out about its host's addresses, without connecting.
    pub(super) async fn probe(&self, url: &Url) -> Result<(), ConnectError> {
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else { return Ok(()) };
        if self.proxy.is_some() {
            return self.guard.judge_host(&host, port).map(drop).map_err(Into::into);
        }
        self.resolve(&host.to_owned(), port, limits::DNS_TIMEOUT_AT_SAVE).await.map(drop)
    }

    /// Every address of the host; one that is forbidden forbids the host, because whoever answers for it may say
    /// anything.
    async fn resolve(&self, host: &Host, port: u16, patience: Duration) -> Result<Vec<Judged>, ConnectError> {
        if let Some(literal) = self.guard.judge_host(host, port)? {
            return Ok(vec![literal]);
        }
        let name = host.to_string();
        if is_localhost(&name) {
            let judged = LOOPBACK.map(|address| self.guard.judge(SocketAddr::new(address, port)));
            let open: Vec<_> = judged.into_iter().filter_map(Result::ok).collect();
            let [first, _] = judged;
            return if open.is_empty() {
                Ok(first.map(|_| open).map_err(RefusedUrl::from)?)
            } else {
                Ok(open)
            };
        }
        let addresses = self.lookup(name, patience).await?;
        let judged = addresses.into_iter().map(|address| self.guard.judge(SocketAddr::new(address, port)));
        Ok(judged.collect::<Result<_, _>>()?)
    }

    /// Never empty.
    async fn lookup(&self, name: String, patience: Duration) -> Result<Vec<IpAddr>, ConnectError> {
        match within(pin!(awake(patience)), pin!(self.resolver.lookup(name))).await {
            None => Err(DNS_SILENT),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(DNS_EMPTY),
            Some(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Err(DNS_SILENT),
            Some(Err(error)) if is_exhausted(&error) => Err(ConnectError::Exhausted),
            Some(Err(_)) => Err(DNS_FAILED),
            Some(Ok(addresses)) if addresses.is_empty() => Err(DNS_EMPTY),
            Some(Ok(addresses)) => Ok(addresses),
        }
    }

    /// The operator named the proxy: it may be anywhere.
    async fn resolve_proxy(&self, proxy: &Proxy) -> Result<Vec<Judged>, ConnectError> {
        let addresses = match &proxy.host {
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
            Host::Domain(name) if is_localhost(name) => LOOPBACK.to_vec(),
            Host::Domain(name) => {
                self.lookup(name.clone(), limits::DNS_TIMEOUT).await.map_err(|error| match error {
                    ConnectError::Exhausted => error,
                    _ => ConnectError::ProxyUnreachable,
                })?
            }
        };
        Ok(addresses
            .into_iter()
            .map(|address| Judged::by_operator(SocketAddr::new(address, proxy.port)))
            .collect())
    }

    async fn open(
        &self,
        target: &Target,
        addresses: Vec<Judged>,
        progress: &Progress,
    ) -> Result<Wire, ConnectError> {
        let stream = match &self.proxy {
            None => {
                progress.reach(Step::Connecting);
                dial(addresses, ConnectError::Unreachable, progress).await?
            }
            Some(proxy) => {
                progress.reach(Step::Proxying);
                let stream = dial(addresses, ConnectError::ProxyUnreachable, progress).await?;
                tunnel(stream, proxy, target).await?
            }
        };
        let stream = Metered::new(stream);
        if !target.secure {
            return Ok(Wire::Plain(stream, progress.clone()));
        }
        progress.reach(Step::Securing);
        let stream = Box::new(self.secure(stream, &target.host, progress).await?);
        Ok(Wire::Secure(stream, progress.clone()))
    }

    async fn secure(
        &self,
        stream: Metered<TcpStream>,
        host: &Host,
        progress: &Progress,
    ) -> Result<TlsStream<Metered<TcpStream>>, ConnectError> {
        let name = match host {
            Host::Ipv4(address) => Ok(ServerName::from(IpAddr::V4(*address))),
            Host::Ipv6(address) => Ok(ServerName::from(IpAddr::V6(*address))),
            // The dot at the end is no part of a name in a certificate.
            Host::Domain(name) => ServerName::try_from(name.strip_suffix('.').unwrap_or(name).to_owned()),
        };
        let unnameable = |_| ConnectError::Tls("the host's name can be in no certificate".to_owned());
        let connector = TlsConnector::from(self.tls.clone());
        let handshake = connector.connect(name.map_err(unnameable)?, stream);
        let (connected, client) = tls::noting_request(handshake).await;
        progress.0.client.get_or_init(|| client);
        connected.map_err(|error| {
            ConnectError::Tls(match (find::<rustls::Error>(&error), find::<TooMuch>(&error)) {
                (Some(error), _) => tls::describe(error, client),
                (None, Some(error)) => error.to_string(),
                (None, None) => "the connection broke off during the TLS handshake".to_owned(),
            })
        })
    }
}

async fn dial(
    addresses: Vec<Judged>,
    unreachable: ConnectError,
    progress: &Progress,
) -> Result<TcpStream, ConnectError> {
    let stream = first_to_connect(addresses, unreachable, progress, TcpStream::connect::<SocketAddr>).await?;
    // A connection without it is slower and no worse.
    let _slower = stream.set_nodelay(true).is_err();
    Ok(stream)
}

/// Connects to the first address that answers: the next one is tried when the one before has failed, or has said nothing
/// for a while. Families take turns, so that a broken one does not stand in the way of the other. A want of descriptors for
/// any address is ours, whatever the other addresses did.
async fn first_to_connect<S, F: Future<Output = io::Result<S>>>(
    addresses: Vec<Judged>,
    unreachable: ConnectError,
    progress: &Progress,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<S, ConnectError> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|judged| judged.address().is_ipv6());
    let (mut four, mut six) = (four.into_iter(), six.into_iter());
    let mut turns = std::iter::from_fn(|| Some([four.next(), six.next()]))
        .take_while(|pair| pair.iter().any(Option::is_some))
        .flatten()
        .flatten()
        .take(limits::ADDRESSES_TRIED_MAX)
        .collect::<Vec<_>>()
        .into_iter();
    let mut trying = FuturesUnordered::new();
    loop {
        match turns.next() {
            Some(judged) => trying.push(connect(judged.address())),
            None if trying.is_empty() => return Err(progress.unless_exhausted(unreachable)),
            None => {}
        }
        tokio::select! {
            Some(tried) = trying.next() => match tried {
                Ok(stream) => {
                    progress.0.exhausted.store(false, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) if is_exhausted(&error) => progress.0.exhausted.store(true, Ordering::Relaxed),
                Err(_) => {}
            },
            () = sleep(limits::CONNECT_HEAD_START), if turns.len() > 0 => {}
        }
    }
}

/// Asks the proxy for a way to the target, by name.
async fn tunnel(mut stream: TcpStream, proxy: &Proxy, target: &Target) -> Result<TcpStream, ConnectError> {
    let authority = format!("{}:{}", target.host, target.port);
    let authorization = proxy.authorization.as_ref();
    let authorization =
        authorization.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n");
    let broken = |_: io::Error| ConnectError::ProxyUnreachable;
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let (mut head, mut bytes, mut left) = (ReplyHead::default(), [0; 1024], limits::REPLY_HEAD_BYTES_MAX);
    let (status, surplus) = loop {
        let read = stream.read(&mut bytes).await.map_err(broken)?;
        let end = bytes[..read].iter_mut().position(|byte| {
            head.read(std::slice::from_mut(byte));
            head.is_over()
        });
        match end {
            Some(at) => break (head.status(), read - at - 1),
            None if read == 0 || read >= left => return Err(ConnectError::ProxyUnreachable),
            None => left -= read,
        }
    };
    match status {
        // The client of a tunnel speaks first: bytes behind the head were never the target's.
        Some(200..300) if surplus > 0 => Err(ConnectError::ProxyUnreachable),
        Some(200..300) => Ok(stream),
        // What the proxy tried for us and did not get.
        Some(502..=504) => Err(ConnectError::Unreachable),
        Some(status) => Err(ConnectError::ProxyRefused(status)),
        None => Err(ConnectError::ProxyUnreachable),
    }
}

/// A stream that HTTP is spoken on.
pub(super) enum Wire {
    Plain(Metered<TcpStream>, Progress),
    Secure(Box<TlsStream<Metered<TcpStream>>>, Progress),
}

impl Wire {
    fn remote(&self) -> Option<SocketAddr> {
        let stream = match self {
            Self::Plain(stream, _) => stream,
            Self::Secure(stream, _) => stream.get_ref().0,
        };
        stream.get_ref().peer_addr().ok()
    }
}

/// The same call on whichever stream it is.
macro_rules! forward {
    ($wire:ident, $call:ident($($argument:expr),*)) => {
        match $wire.get_mut() {
            Wire::Plain(stream, _) => Pin::new(stream).$call($($argument),*),
            Wire::Secure(stream, _) => Pin::new(stream).$call($($argument),*),
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let before = buffer.filled().len();
        loop {
            let (read, progress) = match wire {
                Self::Plain(stream, progress) => (Pin::new(stream).poll_read(cx, buffer), progress),
                Self::Secure(stream, progress) => (Pin::new(stream).poll_read(cx, buffer), progress),
            };
            if let Poll::Ready(Err(error)) = &read
                && let Some(error) = find::<rustls::Error>(error)
            {
                let client = progress.0.client.get().copied().unwrap_or_default();
                progress.0.complaint.get_or_init(|| tls::describe(error, client));
            }
            ready!(read)?;
            let arrived = &mut buffer.filled_mut()[before..];
            let is_end = arrived.is_empty();
            let kept = progress.reply().read(arrived);
            buffer.set_filled(before + kept);
            // A read that gives nothing means the end; one of line ends alone is none.
            if is_end || kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Wire {
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
            Self::Secure(stream, _) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// What a connector says of an address.
    #[derive(Clone, Copy, Debug)]
    enum Says {
        Open,
        Refused,
        NoDescriptor,
        NoDescriptorInSystem,
        NoMemory,
        Silence,
    }

    /// Connects to one address for each of these, which a test's connector answers for.
    async fn connect(script: &[Says]) -> Result<(), ConnectError> {
        let addresses = (1..=script.len())
            .map(|port| Judged::by_operator(SocketAddr::new(LOOPBACK[0], u16::try_from(port).unwrap())));
        let connector = |address: SocketAddr| {
            let says = script[usize::from(address.port()) - 1];
            async move {
                let errno = match says {
                    Says::Open => return Ok(()),
                    Says::Silence => return std::future::pending().await,
                    Says::Refused => Errno::CONNREFUSED,
                    Says::NoDescriptor => Errno::MFILE,
                    Says::NoDescriptorInSystem => Errno::NFILE,
                    Says::NoMemory => Errno::NOBUFS,
                };
                Err(errno.into())
            }
        };
        let progress = Progress::default();
        progress.reach(Step::Connecting);
        let work = first_to_connect(addresses.collect(), ConnectError::Unreachable, &progress, connector);
        let connected = within(pin!(awake(Duration::from_secs(5))), pin!(work)).await;
        connected.unwrap_or_else(|| Err(progress.timed_out()))
    }

    #[tokio::test(start_paused = true)]
    async fn shortage_beside_another_failure_is_not_charged() {
        use Says::{NoDescriptor, NoDescriptorInSystem, NoMemory, Open, Refused, Silence};
        for shortage in [NoDescriptor, NoDescriptorInSystem, NoMemory] {
            for script in [
                vec![shortage],
                vec![shortage, Refused],
                vec![Refused, shortage],
                vec![Refused, shortage, Refused],
                vec![shortage, Silence],
                vec![Silence, shortage],
                vec![Silence, shortage, Refused],
            ] {
                assert_eq!(connect(&script).await, Err(ConnectError::Exhausted), "{script:?}");
            }
            for script in [vec![shortage, Open], vec![Open, shortage], vec![Refused, shortage, Open]] {
                assert_eq!(connect(&script).await, Ok(()), "{script:?}");
            }
        }
        for script in [vec![Refused], vec![Refused, Refused], vec![Silence], vec![Refused, Silence]] {
            assert_eq!(connect(&script).await, Err(ConnectError::Unreachable), "{script:?}");
        }
        assert_eq!(connect(&[Silence, Silence, Open]).await, Ok(()));
    }
}
