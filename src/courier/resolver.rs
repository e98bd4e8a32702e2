//! Host name resolution.
//!
//! Owns the hosts file and the name servers, used in this order. `/etc/hosts` and
//! `/etc/resolv.conf` are read again when they change. Must never filter addresses: the caller
//! passes every address to the guard. Lookups are asynchronous, so a hanging lookup does not delay
//! others.

mod servers;
mod watched_file;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use hickory_resolver::Hosts;
use hickory_resolver::lookup_ip::LookupIp;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::{RuntimeProvider, Spawn, TokioHandle, TokioRuntimeProvider};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use rustix::io::Errno;

use super::failure::is_exhausted;
use crate::{limits, panics};
use servers::NameServers;
use watched_file::WatchedFile;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Host name resolution, replaceable in tests and simulations.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// All addresses of a host; empty if it has none. The caller sets the deadline.
    ///
    /// # Errors
    /// When the resolver fails.
    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>>;
}

/// Looks names up in the hosts file, then in DNS.
pub struct SystemResolver {
    hosts_file: PathBuf,
    /// `None` if the operator configured the name servers.
    resolv_conf: Option<PathBuf>,
    sockets: DnsSockets,
    files: ArcSwap<ResolverFiles>,
}

/// The parsed configuration files.
struct ResolverFiles {
    checked_at: Instant,
    hosts: WatchedFile<Hosts>,
    servers: WatchedFile<NameServers>,
}

/// Opens the sockets to name servers and counts failures for lack of file descriptors. The
/// library's own error for such a lookup is only "no connections" or "no records". A lookup that
/// fails for another reason while the count rises is treated as a shortage too, and repeated.
#[derive(Clone, Default)]
struct DnsSockets {
    tokio: TokioRuntimeProvider,
    shortages: Arc<AtomicU64>,
}

type SocketFuture<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl DnsSockets {
    fn count_shortage<T: 'static>(&self, socket: SocketFuture<T>) -> SocketFuture<T> {
        let shortages = self.shortages.clone();
        Box::pin(async move {
            let opened = socket.await;
            if opened.as_ref().is_err_and(|error| is_exhausted(error)) {
                shortages.fetch_add(1, Ordering::Relaxed);
            }
            opened
        })
    }
}

/// Starts the library's background tasks in a containment: a panic while parsing a malformed answer
/// fails one lookup, not the process.
#[derive(Clone)]
struct ContainedTasks(TokioHandle);

impl Spawn for ContainedTasks {
    fn spawn_bg(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn_bg(panics::contained(task));
    }
}

impl RuntimeProvider for DnsSockets {
    type Handle = ContainedTasks;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = <TokioRuntimeProvider as RuntimeProvider>::Udp;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        ContainedTasks(self.tokio.create_handle())
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        from: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> SocketFuture<Self::Tcp> {
        self.count_shortage(self.tokio.connect_tcp(server, from, timeout))
    }

    fn bind_udp(&self, from: SocketAddr, server: SocketAddr) -> SocketFuture<Self::Udp> {
        self.count_shortage(self.tokio.bind_udp(from, server))
    }
}

impl SystemResolver {
    /// Uses these name servers, or those in `/etc/resolv.conf` if the list is empty.
    ///
    /// # Errors
    /// When the resolver cannot be set up.
    pub fn new(nameservers: &[SocketAddr]) -> io::Result<Self> {
        Self::with_files(nameservers, Path::new(HOSTS), Path::new(RESOLV_CONF))
    }

    fn with_files(nameservers: &[SocketAddr], hosts_file: &Path, resolv_conf: &Path) -> io::Result<Self> {
        let sockets = DnsSockets::default();
        let (hosts, error) = WatchedFile::read(hosts_file, parse_hosts, Arc::default());
        // A missing hosts file is normal: every name is looked up in DNS.
        if let Some(error) = error.filter(|error| error.kind() != io::ErrorKind::NotFound) {
            let path = hosts_file.display();
            tracing::warn!(%path, %error, "hosts file unusable, its names are looked up in DNS");
        }
        let is_configured = !nameservers.is_empty();
        let servers = if is_configured {
            WatchedFile::fixed(NameServers::configured(nameservers, &sockets)?)
        } else {
            let local = Arc::new(NameServers::local(&sockets)?);
            let parse = |text: &[u8]| NameServers::parse(text, &sockets);
            let (servers, error) = WatchedFile::read(resolv_conf, parse, local);
            if let Some(error) = error {
                let path = resolv_conf.display();
                tracing::warn!(
                    %path,
                    %error,
                    "no name server known, asking 127.0.0.1: set egress.nameservers, or write the file (no restart needed)"
                );
            }
            servers
        };
        Ok(Self {
            hosts_file: hosts_file.to_owned(),
            resolv_conf: (!is_configured).then(|| resolv_conf.to_owned()),
            sockets,
            files: ArcSwap::from_pointee(ResolverFiles { checked_at: Instant::now(), hosts, servers }),
        })
    }

    /// The current configuration. A lookup checks the files for changes, at most once per
    /// [`limits::DNS_FILES_INTERVAL`].
    fn files(&self) -> Arc<ResolverFiles> {
        let files = self.files.load_full();
        if files.checked_at.elapsed() < limits::DNS_FILES_INTERVAL {
            return files;
        }
        let parse_servers = |text: &[u8]| NameServers::parse(text, &self.sockets);
        let servers = match &self.resolv_conf {
            Some(path) => files.servers.refreshed(path, parse_servers),
            None => files.servers.clone(),
        };
        let hosts = files.hosts.refreshed(&self.hosts_file, parse_hosts);
        let refreshed = Arc::new(ResolverFiles { checked_at: Instant::now(), hosts, servers });
        self.files.store(refreshed.clone());
        refreshed
    }
}

fn parse_hosts(text: &[u8]) -> io::Result<Hosts> {
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf(text)?;
    Ok(hosts)
}

fn lookup_hosts_file(hosts: &Hosts, name: &Name) -> Vec<IpAddr> {
    let kinds = [RecordType::A, RecordType::AAAA];
    let found = kinds.map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)));
    found.into_iter().flatten().flat_map(LookupIp::from).collect()
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>> {
        let name = Name::from_ascii(&host).map_err(io::Error::other)?;
        let files = self.files();
        let listed = lookup_hosts_file(&files.hosts.value, &name);
        if !listed.is_empty() {
            return Ok(listed);
        }
        let shortages = self.sockets.shortages.load(Ordering::Relaxed);
        files.servers.value.lookup(&name).await.map_err(|error| {
            if self.sockets.shortages.load(Ordering::Relaxed) != shortages {
                return Errno::MFILE.into();
            }
            match error {
                NetError::Timeout => io::ErrorKind::TimedOut.into(),
                error => io::Error::other(error),
            }
        })
    }
}

#[cfg(test)]
mod tests;
