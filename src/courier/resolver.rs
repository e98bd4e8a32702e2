//! Names to addresses.
//!
//! Owns: how the system's configuration is asked. Must never judge: whoever asks hands every address to the guard. A lookup
//! holds no thread, so one that hangs costs nobody else anything.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup_ip::LookupIp;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioRuntimeProvider};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, system_conf};
use rustix::io::Errno;

use super::is_exhausted;
use crate::limits;

/// A name server that has said nothing for this long is asked once more, within [`limits::DNS_TIMEOUT`].
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// Tries after the first.
const TRIES_AGAIN: usize = 1;
/// How long it may be remembered that a name has no address: whoever mends it should not wait for longer.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(10);
/// How long an address may be remembered, whatever its time to live says.
const POSITIVE_TTL_MAX: Duration = Duration::from_secs(300);

/// Seam for tests and simulations.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// All addresses of a host. Whoever asks sets the deadline.
    ///
    /// # Errors
    /// When the resolver fails; no answer is no address.
    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>>;
}

/// The hosts file, then DNS. Both configurations are read when it is made.
pub struct SystemResolver {
    hosts: Hosts,
    dns: hickory_resolver::Resolver<Sockets>,
    shortages: Arc<AtomicU64>,
}

/// The sockets that name servers are asked over. Counts how often there was no file descriptor for one: a lookup that fails
/// for that says only that it found no connection, or that the other family of addresses has none. One that failed for
/// another reason meanwhile is taken for one of them, and made again.
#[derive(Clone, Default)]
struct Sockets {
    tokio: TokioRuntimeProvider,
    shortages: Arc<AtomicU64>,
}

type Opening<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl Sockets {
    fn counted<T: 'static>(&self, opening: Opening<T>) -> Opening<T> {
        let shortages = self.shortages.clone();
        Box::pin(async move {
            let opened = opening.await;
            if opened.as_ref().is_err_and(|error| is_exhausted(error)) {
                shortages.fetch_add(1, Ordering::Relaxed);
            }
            opened
        })
    }
}

impl RuntimeProvider for Sockets {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = <TokioRuntimeProvider as RuntimeProvider>::Udp;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        from: Option<SocketAddr>,
        patience: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        self.counted(self.tokio.connect_tcp(server, from, patience))
    }

    fn bind_udp(&self, from: SocketAddr, server: SocketAddr) -> Opening<Self::Udp> {
        self.counted(self.tokio.bind_udp(from, server))
    }
}

impl SystemResolver {
    /// Asks these name servers; without any, those of `/etc/resolv.conf`.
    ///
    /// # Errors
    /// When the resolver cannot be set up.
    pub fn new(nameservers: &[SocketAddr]) -> io::Result<Self> {
        let (config, mut options) =
            if nameservers.is_empty() { system() } else { (told(nameservers), ResolverOpts::default()) };
        options.timeout = options.timeout.min(TRY_TIMEOUT);
        options.attempts = TRIES_AGAIN;
        options.cache_size = limits::DNS_CACHE_NAMES_MAX;
        options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
        options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
        // Done here, so that a name in the file is not asked for elsewhere too.
        options.use_hosts_file = ResolveHosts::Never;
        let sockets = Sockets::default();
        let shortages = sockets.shortages.clone();
        let builder = hickory_resolver::Resolver::builder_with_config(config, sockets);
        let dns = builder.with_options(options).build().map_err(io::Error::other)?;
        Ok(Self { hosts: Hosts::from_system().unwrap_or_default(), dns, shortages })
    }

    fn in_hosts_file(&self, name: &Name) -> Vec<IpAddr> {
        let kinds = [RecordType::A, RecordType::AAAA];
        let found = kinds.map(|kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind)));
        found.into_iter().flatten().flat_map(LookupIp::from).collect()
    }
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>> {
        let name = Name::from_ascii(&host).map_err(io::Error::other)?;
        let known = self.in_hosts_file(&name);
        if !known.is_empty() {
            return Ok(known);
        }
        let shortages = self.shortages.load(Ordering::Relaxed);
        match self.dns.lookup_ip(name).await {
            Ok(found) => Ok(found.into_iter().collect()),
            Err(_) if self.shortages.load(Ordering::Relaxed) != shortages => Err(Errno::MFILE.into()),
            Err(error) if error.is_no_records_found() => Ok(Vec::new()),
            Err(NetError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// As the C library does, a machine without configuration asks itself.
fn system() -> (ResolverConfig, ResolverOpts) {
    system_conf::read_system_conf().unwrap_or_else(|error| {
        tracing::warn!(%error, "/etc/resolv.conf cannot be used; 127.0.0.1 is asked for addresses");
        (told(&[SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53)]), ResolverOpts::default())
    })
}

fn told(nameservers: &[SocketAddr]) -> ResolverConfig {
    let servers = nameservers.iter().map(|server| {
        let mut config = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut config.connections {
            connection.port = server.port();
        }
        config
    });
    ResolverConfig::from_name_servers(servers.collect())
}
