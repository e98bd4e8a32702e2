//! Names to addresses.
//!
//! Owns: how the system's configuration is asked. Must never judge: whoever asks hands every address to the guard. A lookup
//! holds no thread, so one that hangs costs nobody else anything.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup_ip::LookupIp;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};

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
    dns: TokioResolver,
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
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let dns = builder.with_options(options).build().map_err(io::Error::other)?;
        Ok(Self { hosts: Hosts::from_system().unwrap_or_default(), dns })
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
        match self.dns.lookup_ip(name).await {
            Ok(found) => Ok(found.into_iter().collect()),
            Err(error) if error.is_no_records_found() => Ok(Vec::new()),
            Err(NetError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(of_the_system(error)),
        }
    }
}

/// What the operating system said, where it said something: the resolver's error names it in words only, and whether the
/// process or a name server is at fault hangs on it.
fn of_the_system(error: NetError) -> io::Error {
    let code = match &error {
        NetError::Io(inner) => inner.raw_os_error(),
        _ => None,
    };
    code.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
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

#[cfg(test)]
mod tests {
    use super::super::is_exhausted;
    use super::*;

    #[test]
    fn a_want_of_file_descriptors_is_told_apart_from_name_servers_that_do_not_answer() {
        let of = |code| of_the_system(NetError::from(io::Error::from_raw_os_error(code)));
        assert!(is_exhausted(&of(24)) && is_exhausted(&of(23)), "ours, not the name server's");
        assert_eq!(of(111).kind(), io::ErrorKind::ConnectionRefused);
        assert!(!is_exhausted(&of(111)));
        assert!(!is_exhausted(&of_the_system(NetError::NoConnections)));
    }
}
