//! DNS: which query goes to which name server, and how long to wait for the answer.
//!
//! Owns the name servers and the search list of one configuration. Each server has a separate
//! client and cache, because the client treats one server's error as the answer of all.
//!
//! Queries carry no EDNS, like those of the C library, so that a server or firewall without EDNS
//! support needs no second query. An answer that is too long for UDP is requested again over TCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::select;
use futures_util::stream::FuturesUnordered;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf;
use tokio::time::{sleep, timeout};

use super::DnsSockets;
use crate::limits;

/// Timeout of one query. The total is bounded by [`limits::DNS_TIMEOUT`].
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// Retries after the first query.
const QUERY_RETRIES: usize = 1;
/// Longest time that a negative answer is cached.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(10);
/// Longest time that an address is cached, even if its time to live is longer.
const POSITIVE_TTL_MAX: Duration = Duration::from_secs(300);

type Client = hickory_resolver::Resolver<DnsSockets>;

pub(super) struct NameServers {
    /// In order of preference.
    clients: Vec<Client>,
    /// The search list: suffixes for relative names.
    search: Vec<Name>,
    /// `ndots`: a name with at least this many dots is queried without a suffix first.
    ndots: usize,
}

impl NameServers {
    /// The servers that the operator configured, without a search list.
    ///
    /// # Errors
    /// When a client cannot be built.
    pub(super) fn configured(servers: &[SocketAddr], sockets: &DnsSockets) -> io::Result<Self> {
        let servers = servers.iter().map(|server| {
            let mut config = NameServerConfig::udp_and_tcp(server.ip());
            for connection in &mut config.connections {
                connection.port = server.port();
            }
            config
        });
        let config = ResolverConfig::from_name_servers(servers.collect());
        Self::new(&config, &ResolverOpts::default(), sockets)
    }

    /// The name server on this machine, which the C library uses if none is configured.
    ///
    /// # Errors
    /// As [`Self::configured`].
    pub(super) fn local(sockets: &DnsSockets) -> io::Result<Self> {
        Self::configured(&[SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53)], sockets)
    }

    /// Parses the text of `/etc/resolv.conf`.
    ///
    /// # Errors
    /// When the text names no server.
    pub(super) fn parse(text: &[u8], sockets: &DnsSockets) -> io::Result<Self> {
        let (config, options) = system_conf::parse_resolv_conf(text).map_err(io::Error::other)?;
        Self::new(&config, &options, sockets)
    }

    fn new(config: &ResolverConfig, options: &ResolverOpts, sockets: &DnsSockets) -> io::Result<Self> {
        let mut client_options = ResolverOpts::default();
        client_options.timeout = options.timeout.min(QUERY_TIMEOUT);
        client_options.attempts = QUERY_RETRIES;
        client_options.cache_size = limits::DNS_CACHE_NAMES_MAX;
        client_options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
        client_options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
        client_options.edns0 = false;
        // `SystemResolver` reads the hosts file itself.
        client_options.use_hosts_file = ResolveHosts::Never;
        let client = |server: &NameServerConfig| {
            let config = ResolverConfig::from_name_servers(vec![server.clone()]);
            let builder = hickory_resolver::Resolver::builder_with_config(config, sockets.clone());
            builder.with_options(client_options.clone()).build().map_err(io::Error::other)
        };
        let clients = config.name_servers().iter().map(client).collect::<io::Result<_>>()?;
        let search = config.domain().into_iter().chain(config.search()).cloned().collect();
        Ok(Self { clients, search, ndots: options.ndots })
    }

    /// The addresses of the first candidate name that has any, in search list order. Empty if no
    /// candidate has addresses.
    ///
    /// # Errors
    /// When the servers fail.
    pub(super) async fn lookup(&self, name: &Name) -> Result<Vec<IpAddr>, NetError> {
        let mut failed = None;
        for candidate in self.candidates(name) {
            match self.lookup_both_families(&candidate).await {
                Ok(addresses) if addresses.is_empty() => {}
                Ok(addresses) => return Ok(addresses),
                Err(error) => failed = Some(prefer_answer(failed, error)),
            }
        }
        failed.map_or_else(|| Ok(Vec::new()), Err)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.clients.len()
    }

    /// The absolute names to query for a name, in order, according to the search list.
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return vec![absolute];
        }
        let suffixed = self.search.iter().filter_map(|suffix| {
            let mut suffixed = name.clone().append_domain(suffix).ok()?;
            suffixed.set_fqdn(true);
            Some(suffixed)
        });
        let mut candidates: Vec<_> = suffixed.collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let at = if dots >= self.ndots { 0 } else { candidates.len() };
        candidates.insert(at, absolute);
        candidates.dedup();
        candidates
    }

    /// Queries both families in parallel (RFC 8305, section 3). After one family has returned
    /// addresses, the other has [`limits::DNS_FAMILY_WAIT`] left.
    async fn lookup_both_families(&self, name: &Name) -> Result<Vec<IpAddr>, NetError> {
        let v4 = pin!(self.query(name, RecordType::A));
        let v6 = pin!(self.query(name, RecordType::AAAA));
        let (first, other) = select(v4, v6).await.factor_first();
        let second = match &first {
            Ok(addresses) if !addresses.is_empty() => {
                timeout(limits::DNS_FAMILY_WAIT, other).await.unwrap_or_else(|_late| Ok(Vec::new()))
            }
            _ => other.await,
        };
        match (first, second) {
            (Ok(first), Ok(second)) => Ok([first, second].concat()),
            (Ok(addresses), Err(_)) | (Err(_), Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
            (Ok(_), Err(error)) | (Err(error), Ok(_)) => Err(error),
            (Err(first), Err(second)) => Err(prefer_answer(Some(first), second)),
        }
    }

    /// Returns the first server's answer. The next server is queried when the previous one has
    /// failed or has been silent for [`limits::NAME_SERVER_HEAD_START`].
    async fn query(&self, name: &Name, kind: RecordType) -> Result<Vec<IpAddr>, NetError> {
        let mut clients = self.clients.iter();
        let mut pending = FuturesUnordered::new();
        let mut failed = None;
        loop {
            match clients.next() {
                Some(client) => pending.push(client.lookup(name.clone(), kind)),
                None if pending.is_empty() => return Err(failed.unwrap_or(NetError::NoConnections)),
                None => {}
            }
            tokio::select! {
                Some(answer) = pending.next() => match answer {
                    Ok(found) => {
                        return Ok(found.answers().iter().filter_map(|record| record.data.ip_addr()).collect());
                    }
                    Err(error) if error.is_no_records_found() => return Ok(Vec::new()),
                    Err(error) => failed = Some(prefer_answer(failed, error)),
                },
                () = sleep(limits::NAME_SERVER_HEAD_START), if clients.len() > 0 => {}
            }
        }
    }
}

/// Selects the more informative of two failures: a server's error over a timeout.
fn prefer_answer(known: Option<NetError>, error: NetError) -> NetError {
    match known {
        None | Some(NetError::Timeout) => error,
        Some(known) => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(text: &str, name: &str) -> Vec<String> {
        let servers = NameServers::parse(text.as_bytes(), &DnsSockets::default()).unwrap();
        let name = Name::from_ascii(name).unwrap();
        servers.candidates(&name).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn search_list_applies_by_number_of_dots() {
        let text = "nameserver 127.0.0.1\nsearch a.test b.test\n";
        let domain = candidates(text, "x.y");
        assert_eq!(domain[0], "x.y.");
        assert!(domain.ends_with(&["x.y.a.test.".to_owned(), "x.y.b.test.".to_owned()]), "{domain:?}");
        assert_eq!(candidates(text, "x").last().unwrap(), "x.");
        assert_eq!(candidates(text, "x.y."), ["x.y."]);
        let more_dots = format!("{text}options ndots:2\n");
        assert_eq!(candidates(&more_dots, "x.y").last().unwrap(), "x.y.");
    }

    #[test]
    fn resolv_conf_without_servers_is_an_error() {
        for text in ["", "\n", "# nameserver 1.2.3.4\n", "search a.test\n", "nameserver x\n"] {
            assert!(NameServers::parse(text.as_bytes(), &DnsSockets::default()).is_err(), "{text:?}");
        }
    }
}
