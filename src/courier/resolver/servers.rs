//! DNS: which questions go to which name server, and how long each answer is waited for.
//!
//! Owns: the name servers and the search list of one configuration. Each server has a client and a cache of its own, since
//! the client takes an error from one server for the answer of all.
//!
//! Queries carry no EDNS, as those of the C library: a server or firewall that knows no EDNS then needs no second query.
//! An answer that is too long for UDP without it is asked for over TCP.

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

use super::Sockets;
use crate::limits;

/// A name server that is silent for this long is asked once more, within [`limits::DNS_TIMEOUT`].
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// Tries after the first.
const TRIES_AGAIN: usize = 1;
/// The longest time for which a missing address is remembered: a repaired name is found after it.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(10);
/// The longest time for which an address is remembered, whatever its time to live says.
const POSITIVE_TTL_MAX: Duration = Duration::from_secs(300);

type Client = hickory_resolver::Resolver<Sockets>;

pub(super) struct NameServers {
    /// In order of preference.
    clients: Vec<Client>,
    /// What is appended to a name that is not found as it is.
    search: Vec<Name>,
    /// A name with at least so many dots is asked for as it is first.
    dots: usize,
}

impl NameServers {
    /// The servers that the operator names; without a search list.
    ///
    /// # Errors
    /// When a client cannot be built.
    pub(super) fn told(servers: &[SocketAddr], sockets: &Sockets) -> io::Result<Self> {
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

    /// The C library asks this machine when it is told no server.
    ///
    /// # Errors
    /// As [`Self::told`].
    pub(super) fn local(sockets: &Sockets) -> io::Result<Self> {
        Self::told(&[SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53)], sockets)
    }

    /// From the text of `/etc/resolv.conf`.
    ///
    /// # Errors
    /// When it names no server.
    pub(super) fn parse(text: &[u8], sockets: &Sockets) -> io::Result<Self> {
        let (config, options) = system_conf::parse_resolv_conf(text).map_err(io::Error::other)?;
        Self::new(&config, &options, sockets)
    }

    fn new(config: &ResolverConfig, options: &ResolverOpts, sockets: &Sockets) -> io::Result<Self> {
        let mut client_options = ResolverOpts::default();
        client_options.timeout = options.timeout.min(TRY_TIMEOUT);
        client_options.attempts = TRIES_AGAIN;
        client_options.cache_size = limits::DNS_CACHE_NAMES_MAX;
        client_options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
        client_options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
        client_options.edns0 = false;
        // The file is looked into before.
        client_options.use_hosts_file = ResolveHosts::Never;
        let client = |server: &NameServerConfig| {
            let config = ResolverConfig::from_name_servers(vec![server.clone()]);
            let builder = hickory_resolver::Resolver::builder_with_config(config, sockets.clone());
            builder.with_options(client_options.clone()).build().map_err(io::Error::other)
        };
        let clients = config.name_servers().iter().map(client).collect::<io::Result<_>>()?;
        let search = config.domain().into_iter().chain(config.search()).cloned().collect();
        Ok(Self { clients, search, dots: options.ndots })
    }

    /// The addresses of a name, or of the first longer one by the search list that has any. Empty when the name has none.
    ///
    /// # Errors
    /// When the servers fail.
    pub(super) async fn lookup(&self, name: &Name) -> Result<Vec<IpAddr>, NetError> {
        let mut failed = None;
        for candidate in self.candidates(name) {
            match self.both_families(&candidate).await {
                Ok(addresses) if addresses.is_empty() => {}
                Ok(addresses) => return Ok(addresses),
                Err(error) => failed = Some(telling(failed, error)),
            }
        }
        failed.map_or_else(|| Ok(Vec::new()), Err)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.clients.len()
    }

    /// A name with the search list applied, in the order of questions.
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return vec![absolute];
        }
        let longer = self.search.iter().filter_map(|suffix| {
            let mut longer = name.clone().append_domain(suffix).ok()?;
            longer.set_fqdn(true);
            Some(longer)
        });
        let mut candidates: Vec<_> = longer.collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let at = if dots >= self.dots { 0 } else { candidates.len() };
        candidates.insert(at, absolute);
        candidates.dedup();
        candidates
    }

    /// Both families at once (RFC 8305, section 3): once one has addresses, the other is waited for
    /// [`limits::DNS_FAMILY_WAIT`] and then left out.
    async fn both_families(&self, name: &Name) -> Result<Vec<IpAddr>, NetError> {
        let four = pin!(self.ask(name, RecordType::A));
        let six = pin!(self.ask(name, RecordType::AAAA));
        let (first, other) = select(four, six).await.factor_first();
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
            (Err(first), Err(second)) => Err(telling(Some(first), second)),
        }
    }

    /// The first server that answers counts. The next one is asked when the one before has failed, or is silent for
    /// [`limits::NAME_SERVER_HEAD_START`].
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Vec<IpAddr>, NetError> {
        let mut clients = self.clients.iter();
        let mut asked = FuturesUnordered::new();
        let mut failed = None;
        loop {
            match clients.next() {
                Some(client) => asked.push(client.lookup(name.clone(), kind)),
                None if asked.is_empty() => return Err(failed.unwrap_or(NetError::NoConnections)),
                None => {}
            }
            tokio::select! {
                Some(answer) = asked.next() => match answer {
                    Ok(found) => {
                        return Ok(found.answers().iter().filter_map(|record| record.data.ip_addr()).collect());
                    }
                    Err(error) if error.is_no_records_found() => return Ok(Vec::new()),
                    Err(error) => failed = Some(telling(failed, error)),
                },
                () = sleep(limits::NAME_SERVER_HEAD_START), if clients.len() > 0 => {}
            }
        }
    }
}

/// Of two failures the one that says more: an answer says more than silence.
fn telling(known: Option<NetError>, error: NetError) -> NetError {
    match known {
        None | Some(NetError::Timeout) => error,
        Some(known) => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(text: &str, name: &str) -> Vec<String> {
        let servers = NameServers::parse(text.as_bytes(), &Sockets::default()).unwrap();
        let name = Name::from_ascii(name).unwrap();
        servers.candidates(&name).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn search_list_applies_by_the_number_of_dots() {
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
    fn text_without_servers_is_an_error() {
        for text in ["", "\n", "# nameserver 1.2.3.4\n", "search a.test\n", "nameserver x\n"] {
            assert!(NameServers::parse(text.as_bytes(), &Sockets::default()).is_err(), "{text:?}");
        }
    }
}
