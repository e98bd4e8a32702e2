//! Names to addresses.
//!
//! Owns: the hosts file and the name servers, in this order. Both configuration files are read again when they change.
//! Must never judge: the caller hands every address to the guard. A lookup holds no thread, so one that hangs costs
//! nobody else anything.

mod servers;
mod watched;

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

use super::is_exhausted;
use crate::{limits, panics};
use servers::NameServers;
use watched::Watched;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Seam for tests and simulations.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// All addresses of a host. Whoever asks sets the deadline.
    ///
    /// # Errors
    /// When the resolver fails; no answer is no address.
    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>>;
}

/// The hosts file, then DNS.
pub struct SystemResolver {
    hosts_file: PathBuf,
    /// `None` when the operator names the servers.
    resolv_conf: Option<PathBuf>,
    sockets: Sockets,
    known: ArcSwap<Known>,
}

/// What the files said when they were last looked at.
struct Known {
    looked_at: Instant,
    hosts: Watched<Hosts>,
    servers: Watched<NameServers>,
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

/// Starts the library's background tasks. A panic over a strange answer costs one lookup, not the
/// process.
#[derive(Clone)]
struct ContainedTasks(TokioHandle);

impl Spawn for ContainedTasks {
    fn spawn_bg(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn_bg(panics::contained(task));
    }
}

impl RuntimeProvider for Sockets {
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
        Self::with_files(nameservers, Path::new(HOSTS), Path::new(RESOLV_CONF))
    }

    fn with_files(nameservers: &[SocketAddr], hosts_file: &Path, resolv_conf: &Path) -> io::Result<Self> {
        let sockets = Sockets::default();
        let (hosts, unusable) = Watched::read(hosts_file, parse_hosts, Arc::default());
        // Without a hosts file every name is looked up in DNS, as it should be.
        if let Some(error) = unusable.filter(|error| error.kind() != io::ErrorKind::NotFound) {
            let path = hosts_file.display();
            tracing::warn!(%path, %error, "hosts file unusable, its names are looked up in DNS");
        }
        let told = !nameservers.is_empty();
        let servers = if told {
            Watched::fixed(NameServers::told(nameservers, &sockets)?)
        } else {
            let local = Arc::new(NameServers::local(&sockets)?);
            let parse = |text: &[u8]| NameServers::parse(text, &sockets);
            let (servers, unusable) = Watched::read(resolv_conf, parse, local);
            if let Some(error) = unusable {
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
            resolv_conf: (!told).then(|| resolv_conf.to_owned()),
            sockets,
            known: ArcSwap::from_pointee(Known { looked_at: Instant::now(), hosts, servers }),
        })
    }

    /// The configuration of now: the files are looked at every [`limits::DNS_FILES_INTERVAL`], when a name is looked up.
    fn known(&self) -> Arc<Known> {
        let known = self.known.load_full();
        if known.looked_at.elapsed() < limits::DNS_FILES_INTERVAL {
            return known;
        }
        let parse_servers = |text: &[u8]| NameServers::parse(text, &self.sockets);
        let servers = match &self.resolv_conf {
            Some(path) => known.servers.refreshed(path, parse_servers),
            None => known.servers.clone(),
        };
        let hosts = known.hosts.refreshed(&self.hosts_file, parse_hosts);
        let fresh = Arc::new(Known { looked_at: Instant::now(), hosts, servers });
        self.known.store(fresh.clone());
        fresh
    }
}

fn parse_hosts(text: &[u8]) -> io::Result<Hosts> {
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf(text)?;
    Ok(hosts)
}

fn in_hosts_file(hosts: &Hosts, name: &Name) -> Vec<IpAddr> {
    let kinds = [RecordType::A, RecordType::AAAA];
    let found = kinds.map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)));
    found.into_iter().flatten().flat_map(LookupIp::from).collect()
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>> {
        let name = Name::from_ascii(&host).map_err(io::Error::other)?;
        let known = self.known();
        let listed = in_hosts_file(&known.hosts.value, &name);
        if !listed.is_empty() {
            return Ok(listed);
        }
        let shortages = self.sockets.shortages.load(Ordering::Relaxed);
        known.servers.value.lookup(&name).await.map_err(|error| {
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
