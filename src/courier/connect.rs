//! Connecting: the only code that opens sockets to receivers.
//!
//! Owns the steps from a host name to a stream for HTTP: resolve once, check every address, connect
//! to an allowed one, open a tunnel if there is a proxy, TLS handshake. TLS and the `Host` header
//! use the host name, which is never resolved again. Any error ends the connection attempt.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::{Host, Url};

use super::addresses;
use super::broker_url::BrokerUrl;
use super::deadline::{running_timer, with_deadline};
use super::failure::{find_cause, is_exhausted};
use super::guard::{AllowedAddress, BlockedAddress, Guard, LOOPBACK, RefusedUrl, is_localhost};
use super::progress::{ConnectPhase, ConnectProgress};
use super::read_limit::{ReadLimitExceeded, ReadLimited};
use super::reply_head::ReplyHead;
use super::resolver::Resolver;
use super::stream::Stream;
use super::tls;
use crate::domain::{ErrorClass, Network};
use crate::limits;

/// A failed connection. The message does not reveal whether an address refused, was silent or has
/// no route, so that the record of attempts cannot be used as a port scanner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConnectError {
    /// The URL itself is forbidden. Only a different URL or policy changes that.
    #[error(transparent)]
    Forbidden(#[from] RefusedUrl),
    /// The host currently has a forbidden address. A later attempt may succeed, because DNS can
    /// change.
    #[error(transparent)]
    Blocked(#[from] BlockedAddress),
    #[error("{0}")]
    Dns(&'static str),
    #[error("no connection could be made")]
    Unreachable,
    /// Every address that could be tried is at its limit of requests in flight.
    #[error("the address is at its limit of concurrent requests")]
    AddressLimit,
    /// The process has no file descriptor left. The receiver is not to blame.
    #[error("this process can open no further connection")]
    DescriptorsExhausted,
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
            Self::Unreachable
            | Self::AddressLimit
            | Self::DescriptorsExhausted
            | Self::ProxyUnreachable
            | Self::ProxyRefused(_) => ErrorClass::Connect,
            Self::Tls(_) => ErrorClass::Tls,
        }
    }
}

pub(super) const DNS_TIMED_OUT: ConnectError = ConnectError::Dns("the name servers did not answer in time");
const DNS_EMPTY: ConnectError = ConnectError::Dns("the host name has no address");
const DNS_FAILED: ConnectError = ConnectError::Dns("the name servers could not resolve the host name");

/// The egress proxy. Every connection goes through it with `CONNECT`.
#[derive(Clone)]
pub struct Proxy {
    host: Host,
    port: u16,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
}

impl Proxy {
    /// Parses `http://host:port`, with optional user name and password. `None` without a host.
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

/// Opens the connections of one pool.
pub(super) struct Connector {
    pub(super) guard: Arc<Guard>,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) proxy: Option<Proxy>,
    pub(super) tls: Arc<ClientConfig>,
    /// Timeout from the first packet to the end of the TLS handshake.
    pub(super) timeout: Duration,
}

/// Host, port and scheme of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    host: Host,
    port: u16,
    is_secure: bool,
}

impl Target {
    /// `None` for a URL without a host.
    pub(super) fn new(url: &Url) -> Option<Self> {
        let is_secure = url.scheme() == "https";
        Some(Self { host: url.host()?.to_owned(), port: url.port_or_known_default()?, is_secure })
    }

    pub(super) fn of_broker(url: &BrokerUrl) -> Self {
        Self { host: url.host.clone(), port: url.port, is_secure: url.is_secure }
    }
}

impl Connector {
    pub(super) async fn connect(
        &self,
        target: &Target,
        progress: &ConnectProgress,
    ) -> Result<Stream, ConnectError> {
        progress.enter(ConnectPhase::Resolving);
        let addresses = match &self.proxy {
            None => {
                let started = Instant::now();
                let addresses = self.resolve(&target.host, target.port, limits::DNS_TIMEOUT).await?;
                if matches!(&target.host, Host::Domain(name) if !is_localhost(name)) {
                    progress.end_phase(ConnectPhase::Resolving, started);
                }
                progress.record_network(&addresses);
                addresses
            }
            Some(proxy) => {
                // The proxy resolves the name and checks its addresses.
                self.guard.check_host(&target.host, target.port)?;
                self.resolve_proxy(proxy).await?
            }
        };
        let deadline = pin!(running_timer(self.timeout));
        let opened = with_deadline(deadline, pin!(self.open(target, addresses, progress))).await;
        opened.unwrap_or_else(|| Err(progress.timeout_error()))
    }

    /// The receiver's network. Behind a proxy it is unknown and counts as public.
    pub(super) fn network(&self, stream: &Stream) -> Network {
        let peer = stream.peer_address().filter(|_| self.proxy.is_none());
        peer.map_or(Network::Public, |address| addresses::network(address.ip()))
    }

    /// Resolves a URL's host and checks its addresses without connecting.
    pub(super) async fn probe(&self, url: &Url) -> Result<(), ConnectError> {
        match Target::new(url) {
            Some(target) => self.probe_target(&target).await,
            None => Ok(()),
        }
    }

    /// As [`Self::probe`].
    pub(super) async fn probe_target(&self, target: &Target) -> Result<(), ConnectError> {
        if self.proxy.is_some() {
            return self.guard.check_host(&target.host, target.port).map(drop).map_err(Into::into);
        }
        self.resolve(&target.host, target.port, limits::DNS_TIMEOUT_AT_SAVE).await.map(drop)
    }

    /// All addresses of the host. One forbidden address forbids the host, because the owner of a
    /// DNS zone can return any mix of addresses.
    async fn resolve(
        &self,
        host: &Host,
        port: u16,
        timeout: Duration,
    ) -> Result<Vec<AllowedAddress>, ConnectError> {
        if let Some(literal) = self.guard.check_host(host, port)? {
            return Ok(vec![literal]);
        }
        let name = host.to_string();
        if is_localhost(&name) {
            let checked = LOOPBACK.map(|address| self.guard.check(SocketAddr::new(address, port)));
            let allowed: Vec<_> = checked.into_iter().filter_map(Result::ok).collect();
            let [first, _] = checked;
            return if allowed.is_empty() {
                Ok(first.map(|_| allowed).map_err(RefusedUrl::from)?)
            } else {
                Ok(allowed)
            };
        }
        let addresses = self.lookup(name, timeout).await?;
        let checked = addresses.into_iter().map(|address| self.guard.check(SocketAddr::new(address, port)));
        Ok(checked.collect::<Result<_, _>>()?)
    }

    /// The addresses of a name; never empty.
    async fn lookup(&self, name: String, timeout: Duration) -> Result<Vec<IpAddr>, ConnectError> {
        match with_deadline(pin!(running_timer(timeout)), pin!(self.resolver.lookup(name))).await {
            None => Err(DNS_TIMED_OUT),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(DNS_EMPTY),
            Some(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Err(DNS_TIMED_OUT),
            Some(Err(error)) if is_exhausted(&error) => Err(ConnectError::DescriptorsExhausted),
            Some(Err(_)) => Err(DNS_FAILED),
            Some(Ok(addresses)) if addresses.is_empty() => Err(DNS_EMPTY),
            Some(Ok(addresses)) => Ok(addresses),
        }
    }

    /// The addresses of the proxy. They are not checked, because the operator configured it.
    async fn resolve_proxy(&self, proxy: &Proxy) -> Result<Vec<AllowedAddress>, ConnectError> {
        let addresses = match &proxy.host {
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
            Host::Domain(name) if is_localhost(name) => LOOPBACK.to_vec(),
            Host::Domain(name) => {
                self.lookup(name.clone(), limits::DNS_TIMEOUT).await.map_err(|error| match error {
                    ConnectError::DescriptorsExhausted => error,
                    _ => ConnectError::ProxyUnreachable,
                })?
            }
        };
        Ok(addresses
            .into_iter()
            .map(|address| AllowedAddress::of_proxy(SocketAddr::new(address, proxy.port)))
            .collect())
    }

    async fn open(
        &self,
        target: &Target,
        addresses: Vec<AllowedAddress>,
        progress: &ConnectProgress,
    ) -> Result<Stream, ConnectError> {
        let started = Instant::now();
        let stream = match &self.proxy {
            None => {
                progress.enter(ConnectPhase::Connecting);
                connect_tcp(addresses, ConnectError::Unreachable, progress, true).await?
            }
            Some(proxy) => {
                progress.enter(ConnectPhase::Tunnelling);
                let stream = connect_tcp(addresses, ConnectError::ProxyUnreachable, progress, false).await?;
                open_tunnel(stream, proxy, target).await?
            }
        };
        progress.end_phase(ConnectPhase::Connecting, started);
        let stream = ReadLimited::new(stream);
        if !target.is_secure {
            return Ok(Stream::Plain(stream, progress.clone()));
        }
        progress.enter(ConnectPhase::TlsHandshake);
        let started = Instant::now();
        let stream = Box::new(self.tls_handshake(stream, &target.host, progress).await?);
        progress.end_phase(ConnectPhase::TlsHandshake, started);
        Ok(Stream::Tls(stream, progress.clone()))
    }

    async fn tls_handshake(
        &self,
        stream: ReadLimited<TcpStream>,
        host: &Host,
        progress: &ConnectProgress,
    ) -> Result<TlsStream<ReadLimited<TcpStream>>, ConnectError> {
        let name = match host {
            Host::Ipv4(address) => Ok(ServerName::from(IpAddr::V4(*address))),
            Host::Ipv6(address) => Ok(ServerName::from(IpAddr::V6(*address))),
            // Names in certificates have no trailing dot.
            Host::Domain(name) => ServerName::try_from(name.strip_suffix('.').unwrap_or(name).to_owned()),
        };
        let invalid_name = |_| ConnectError::Tls("the host name is not valid in a certificate".to_owned());
        let connector = TlsConnector::from(self.tls.clone());
        let handshake = connector.connect(name.map_err(invalid_name)?, stream);
        let (connected, certificate_use) = tls::record_certificate_request(handshake).await;
        progress.set_certificate_use(certificate_use);
        connected.map_err(|error| {
            let (tls_error, read_limit) =
                (find_cause::<rustls::Error>(&error), find_cause::<ReadLimitExceeded>(&error));
            ConnectError::Tls(match (tls_error, read_limit) {
                (Some(error), _) => tls::describe(error, certificate_use),
                (None, Some(error)) => error.to_string(),
                (None, None) => "the connection was closed during the TLS handshake".to_owned(),
            })
        })
    }
}

async fn connect_tcp(
    addresses: Vec<AllowedAddress>,
    unreachable: ConnectError,
    progress: &ConnectProgress,
    is_receiver: bool,
) -> Result<TcpStream, ConnectError> {
    let connect = |address: SocketAddr| {
        let permit = if is_receiver { progress.acquire(address.ip()) } else { Ok(None) };
        async move {
            let permit = permit?;
            Ok((TcpStream::connect(address).await?, permit, address))
        }
    };
    let (stream, permit, address) = first_to_connect(addresses, unreachable, progress, connect).await?;
    progress.on_connected(is_receiver.then_some(address), permit);
    // If this fails, the connection is slower but works.
    let _slower = stream.set_nodelay(true).is_err();
    Ok(stream)
}

/// Connects to the first address that answers. The next address is tried when the previous one has
/// failed or has been silent for [`limits::CONNECT_HEAD_START`]. Address families alternate, so
/// that a broken family does not block the other. If descriptors run out for any address, the
/// result is [`ConnectError::DescriptorsExhausted`] unless another address connects.
async fn first_to_connect<S, F: Future<Output = io::Result<S>>>(
    addresses: Vec<AllowedAddress>,
    unreachable: ConnectError,
    progress: &ConnectProgress,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<S, ConnectError> {
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|allowed| allowed.address().is_ipv6());
    let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
    let mut candidates = std::iter::from_fn(|| Some([v4.next(), v6.next()]))
        .take_while(|pair| pair.iter().any(Option::is_some))
        .flatten()
        .flatten()
        .take(limits::ADDRESSES_TRIED_MAX)
        .collect::<Vec<_>>()
        .into_iter();
    let mut pending = FuturesUnordered::new();
    loop {
        match candidates.next() {
            Some(allowed) => pending.push(connect(allowed.address())),
            None if pending.is_empty() => return Err(progress.unless_exhausted(unreachable)),
            None => {}
        }
        tokio::select! {
            Some(connected) = pending.next() => match connected {
                Ok(stream) => {
                    progress.set_exhausted(false);
                    return Ok(stream);
                }
                Err(error) if is_exhausted(&error) => progress.set_exhausted(true),
                Err(_) => {}
            },
            () = sleep(limits::CONNECT_HEAD_START), if candidates.len() > 0 => {}
        }
    }
}

/// Opens a tunnel to the target, by name, through the proxy.
async fn open_tunnel(
    mut stream: TcpStream,
    proxy: &Proxy,
    target: &Target,
) -> Result<TcpStream, ConnectError> {
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
        // In a tunnel the client writes first, so bytes behind the head are not from the target.
        Some(200..300) if surplus > 0 => Err(ConnectError::ProxyUnreachable),
        Some(200..300) => Ok(stream),
        // The proxy could not reach the target.
        Some(502..=504) => Err(ConnectError::Unreachable),
        Some(status) => Err(ConnectError::ProxyRefused(status)),
        None => Err(ConnectError::ProxyUnreachable),
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// Behaviour of a simulated address.
    #[derive(Clone, Copy, Debug)]
    enum SimulatedAddress {
        Open,
        Refused,
        NoDescriptor,
        NoDescriptorInSystem,
        NoMemory,
        Silent,
    }

    /// Connects to one simulated address per entry.
    async fn connect(script: &[SimulatedAddress]) -> Result<(), ConnectError> {
        let addresses = (1..=script.len())
            .map(|port| AllowedAddress::of_proxy(SocketAddr::new(LOOPBACK[0], u16::try_from(port).unwrap())));
        let connector = |address: SocketAddr| {
            let behaviour = script[usize::from(address.port()) - 1];
            async move {
                let errno = match behaviour {
                    SimulatedAddress::Open => return Ok(()),
                    SimulatedAddress::Silent => return std::future::pending().await,
                    SimulatedAddress::Refused => Errno::CONNREFUSED,
                    SimulatedAddress::NoDescriptor => Errno::MFILE,
                    SimulatedAddress::NoDescriptorInSystem => Errno::NFILE,
                    SimulatedAddress::NoMemory => Errno::NOBUFS,
                };
                Err(errno.into())
            }
        };
        let progress = ConnectProgress::default();
        progress.enter(ConnectPhase::Connecting);
        let work = first_to_connect(addresses.collect(), ConnectError::Unreachable, &progress, connector);
        let connected = with_deadline(pin!(running_timer(Duration::from_secs(5))), pin!(work)).await;
        connected.unwrap_or_else(|| Err(progress.timeout_error()))
    }

    #[tokio::test(start_paused = true)]
    async fn shortage_of_descriptors_outranks_other_failures() {
        use SimulatedAddress::{NoDescriptor, NoDescriptorInSystem, NoMemory, Open, Refused, Silent};
        for shortage in [NoDescriptor, NoDescriptorInSystem, NoMemory] {
            for script in [
                vec![shortage],
                vec![shortage, Refused],
                vec![Refused, shortage],
                vec![Refused, shortage, Refused],
                vec![shortage, Silent],
                vec![Silent, shortage],
                vec![Silent, shortage, Refused],
            ] {
                assert_eq!(connect(&script).await, Err(ConnectError::DescriptorsExhausted), "{script:?}");
            }
            for script in [vec![shortage, Open], vec![Open, shortage], vec![Refused, shortage, Open]] {
                assert_eq!(connect(&script).await, Ok(()), "{script:?}");
            }
        }
        for script in [vec![Refused], vec![Refused, Refused], vec![Silent], vec![Refused, Silent]] {
            assert_eq!(connect(&script).await, Err(ConnectError::Unreachable), "{script:?}");
        }
        assert_eq!(connect(&[Silent, Silent, Open]).await, Ok(()));
    }
}
