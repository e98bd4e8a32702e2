//! The address guard: which URLs and addresses may be sent to.
//!
//! Owns: the policy in force and every judgement by it. A URL is parsed once, when it is saved, and kept in its canonical
//! form; each address that it leads to is judged when it is connected to, and only a [`Judged`] one can be connected to.
//! In order, the first that holds:
//!
//! 1. Link-local addresses and metadata services are refused, in every notation: no allow list opens them.
//! 2. A denied network is refused.
//! 3. A port that this daemon listens on is refused at every address of this machine: a delivery to ourselves is a loop.
//! 4. An address of one of this machine's interfaces is refused. Loopback addresses are not meant: they are closed like
//!    any private network, and whoever opens `127.0.0.0/8` means what runs beside the daemon.
//! 5. What is on the public Internet, or in an allowed network, may be sent to. Everything else is refused.
//!
//! A refusal has the same words whatever is there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use arc_swap::ArcSwap;
use hyper::Uri;
use hyper::header::HeaderValue;
use ipnet::{IpNet, Ipv4Net};
use url::{Host, Url};

use super::addresses::{embedded, is_closed_forever, is_public};
use super::own::OwnAddresses;
use crate::limits;

/// What an operator may change about egress.
#[derive(Clone, Debug, Default)]
pub struct EgressPolicy {
    pub allow_http: bool,
    /// Ranges that are opened although they are forbidden by default.
    pub allow_networks: Vec<IpNet>,
    /// Ranges that are forbidden beside the default ones.
    pub deny_networks: Vec<IpNet>,
    /// First and last of each range of ports that may be used. Empty: 80, 443, and from 1024 on all that belong to no
    /// well-known service of another protocol.
    pub allow_ports: Vec<(u16, u16)>,
}

const BLOCKED: &str = "the host has an address that policy forbids";

/// An address is forbidden. The words are the same for every address, so that a tenant learns nothing about the network:
/// one of our own ports is called so only where its neighbours could be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockedAddress {
    #[error("{BLOCKED}")]
    Forbidden,
    /// One of this machine's interfaces.
    #[error("{BLOCKED}")]
    OwnAddress,
    #[error(
        "balto itself listens on this port, so its deliveries would come back to it; give the port that the receiver listens on"
    )]
    OwnPort,
}

impl BlockedAddress {
    /// The words for a caller who may know this machine's addresses.
    #[must_use]
    pub fn words_for_operator(self) -> String {
        match self {
            Self::OwnAddress => "the host has an address of this machine, and nothing opens those; to reach a receiver on this machine, use 127.0.0.1 or localhost in the URL, with \"127.0.0.0/8\" in egress.allow_networks".to_owned(),
            Self::Forbidden | Self::OwnPort => self.to_string(),
        }
    }
}

/// Why a URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedUrl {
    /// It is not a URL that a request could go to.
    #[error("{0}")]
    NoUrl(&'static str),
    /// Policy forbids it.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Policy forbids an address of its host.
    #[error(transparent)]
    Blocked(#[from] BlockedAddress),
}

/// An address that the guard has let pass. Nothing else makes one, but for that of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judged(SocketAddr);

impl Judged {
    /// The address of a proxy, which the operator answers for.
    pub(super) fn by_operator(address: SocketAddr) -> Self {
        Self(address)
    }

    pub(super) fn address(self) -> SocketAddr {
        self.0
    }
}

/// Names of metadata services. A proxy might resolve them where we do not.
const METADATA_NAMES: [&str; 8] = [
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "metadata.tencentyun.com",
    "api.metadata.cloud.ibm.com",
    "instance-data",
    "instance-data.ec2.internal",
];
/// Names inside a private network, whatever the resolver says. No public zone has these endings; `arpa` holds no hosts.
const INSIDE_SUFFIXES: [&str; 18] = [
    "arpa",
    "cluster",
    "consul",
    "corp",
    "default",
    "docker",
    "home",
    "incus",
    "internal",
    "intranet",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "lxd",
    "nomad",
    "private",
    "svc",
];
/// Services above port 1023 that speak no HTTP, or HTTP that gives power: databases, caches, container and cluster
/// control. Nobody receives webhooks there, and a request there can do harm although it is none of theirs.
const SERVICE_PORTS: [u16; 20] = [
    1433, 1521, 1723, 2049, 2375, 2376, 2379, 2380, 3306, 3389, 5060, 5432, 5984, 6379, 6667, 9042, 10250,
    10255, 11211, 27017,
];

impl EgressPolicy {
    /// The policy of `--dev`: loopback and plain HTTP are open.
    #[must_use]
    pub fn dev(mut self) -> Self {
        self.allow_http = true;
        self.allow_networks.push(IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        self.allow_networks.push(IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8));
        self
    }

    /// Judges an address by the networks alone; one that is IPv4 in IPv6 form comes as IPv4.
    fn judge(&self, address: IpAddr) -> Result<(), BlockedAddress> {
        let within = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        if is_closed_forever(address) || within(&self.deny_networks) {
            return Err(BlockedAddress::Forbidden);
        }
        // An operator who opens a translator's network has not opened the networks behind it.
        if let IpAddr::V6(v6) = address {
            for behind in embedded(v6) {
                self.judge(IpAddr::V4(behind))?;
            }
        }
        if is_public(address) || within(&self.allow_networks) {
            Ok(())
        } else {
            Err(BlockedAddress::Forbidden)
        }
    }

    fn allows_port(&self, port: u16) -> bool {
        if self.allow_ports.is_empty() {
            return matches!(port, 80 | 443 | 1024..) && !SERVICE_PORTS.contains(&port);
        }
        self.allow_ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    fn opens_loopback(&self) -> bool {
        LOOPBACK.iter().any(|address| self.judge(*address).is_ok())
    }

    /// Whoever opens networks of their own names the hosts in them as they like. Loopback is no such network.
    fn opens_inside_names(&self) -> bool {
        let loopback = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
        let beyond = |network: &IpNet| match network {
            IpNet::V4(network) => !loopback.contains(network),
            IpNet::V6(network) => network.addr() != Ipv6Addr::LOCALHOST || network.prefix_len() != 128,
        };
        self.allow_networks.iter().any(beyond)
    }

    fn judge_scheme(&self, scheme: &str) -> Result<(), RefusedUrl> {
        match (scheme, self.allow_http) {
            ("https", _) | ("http", true) => Ok(()),
            (_, true) => Err(RefusedUrl::Forbidden("the scheme must be https or http")),
            (_, false) => Err(RefusedUrl::Forbidden("the scheme must be https")),
        }
    }

    fn judge_name(&self, name: &str) -> Result<(), RefusedUrl> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.len() > limits::DNS_NAME_BYTES_MAX
            || name.split('.').any(|label| label.is_empty() || label.len() > 63)
        {
            return Err(RefusedUrl::NoUrl("the host is not a legal name"));
        }
        if is_localhost(name) && self.opens_loopback() {
            return Ok(());
        }
        let ends = |suffix: &&str| {
            name == *suffix || name.strip_suffix(*suffix).is_some_and(|rest| rest.ends_with('.'))
        };
        let inside = !name.contains('.') || INSIDE_SUFFIXES.iter().any(ends);
        if METADATA_NAMES.contains(&name) || is_localhost(name) || inside && !self.opens_inside_names() {
            return Err(RefusedUrl::Forbidden("the host is a name inside a private network"));
        }
        Ok(())
    }
}

/// What `localhost` and the names below it are, whatever a resolver says (RFC 6761).
pub(super) const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Of a name in lower case.
pub(super) fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

/// Judges by the policy of now, and by what this machine is.
pub struct Guard {
    policy: ArcSwap<EgressPolicy>,
    /// The ports that this daemon listens on.
    listening: ArcSwap<Vec<u16>>,
    own: OwnAddresses,
}

impl Guard {
    /// # Errors
    /// When this machine's addresses cannot be read.
    pub(super) fn new(policy: EgressPolicy) -> io::Result<Self> {
        let own = OwnAddresses::read()?;
        Ok(Self { policy: ArcSwap::from_pointee(policy), listening: ArcSwap::default(), own })
    }

    /// What is judged from now on is judged by this policy.
    pub(super) fn set_policy(&self, policy: EgressPolicy) {
        self.policy.store(policy.into());
    }

    /// Nothing is ever sent to these ports of this machine.
    pub fn set_listening(&self, ports: Vec<u16>) {
        self.listening.store(ports.into());
    }

    /// # Errors
    /// When nothing may be sent there.
    pub(super) fn judge(&self, target: SocketAddr) -> Result<Judged, BlockedAddress> {
        let address = target.ip().to_canonical();
        let interface = address.is_unspecified() || self.own.contains(address);
        if interface && !address.is_loopback() {
            let own = !address.is_unspecified();
            return Err(if own { BlockedAddress::OwnAddress } else { BlockedAddress::Forbidden });
        }
        self.policy.load().judge(address)?;
        if address.is_loopback() && self.listening.load().contains(&target.port()) {
            return Err(BlockedAddress::OwnPort);
        }
        Ok(Judged(SocketAddr::new(address, target.port())))
    }

    /// Parses a URL as it was given, and judges what can be judged without asking anyone.
    ///
    /// # Errors
    /// When policy forbids it, or it is not an absolute URL.
    pub(super) fn parse(&self, raw: &str) -> Result<Url, RefusedUrl> {
        if raw.len() > limits::URL_BYTES_MAX {
            return Err(RefusedUrl::NoUrl("a URL has at most 2048 bytes"));
        }
        if raw.chars().any(|c| c.is_control() || c == '\\') || raw.trim() != raw {
            return Err(RefusedUrl::NoUrl(
                "a URL has no control characters, no backslashes and no spaces around it",
            ));
        }
        let (scheme, rest) = raw.split_once(':').ok_or(RefusedUrl::NoUrl("this is not an absolute URL"))?;
        self.policy.load().judge_scheme(&scheme.to_ascii_lowercase())?;
        // The parser would mend both.
        if rest.strip_prefix("//").is_none_or(|host| host.starts_with('/')) {
            return Err(RefusedUrl::NoUrl("the URL needs a host after ://"));
        }
        let url = Url::parse(raw).map_err(|_| RefusedUrl::NoUrl("this is not an absolute URL"))?;
        if url.as_str().len() > limits::URL_BYTES_MAX {
            return Err(RefusedUrl::NoUrl("a URL has at most 2048 bytes, percent-encoded"));
        }
        self.judge_url(&url)?;
        if let Some(Host::Domain(name)) = url.host() {
            check_name(name)?;
        }
        request_line(&url)?;
        Ok(url)
    }

    /// Judges a parsed URL; the host's address only when it is one itself.
    ///
    /// # Errors
    /// When policy forbids it.
    pub(super) fn judge_url(&self, url: &Url) -> Result<(), RefusedUrl> {
        let policy = self.policy.load();
        policy.judge_scheme(url.scheme())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RefusedUrl::Forbidden("a URL with a user name or password is not accepted"));
        }
        if url.fragment().is_some() {
            return Err(RefusedUrl::Forbidden("a URL with a fragment is not accepted"));
        }
        let port = url.port_or_known_default().unwrap_or(0);
        if !policy.allows_port(port) {
            return Err(RefusedUrl::Forbidden("the port is not one that policy allows"));
        }
        let host = url.host().ok_or(RefusedUrl::NoUrl("the URL needs a host"))?;
        self.judge_host(&host, port).map(drop)
    }

    /// Judges a host by its name; gives its address when it is one itself.
    ///
    /// # Errors
    /// When policy forbids it.
    pub(super) fn judge_host<S: AsRef<str>>(
        &self,
        host: &Host<S>,
        port: u16,
    ) -> Result<Option<Judged>, RefusedUrl> {
        let address = match host {
            Host::Domain(name) => return self.policy.load().judge_name(name.as_ref()).map(|()| None),
            Host::Ipv4(address) => IpAddr::V4(*address),
            Host::Ipv6(address) => IpAddr::V6(*address),
        };
        Ok(Some(self.judge(SocketAddr::new(address, port))?))
    }
}

/// Refuses names that no resolver or no certificate accepts. Underscores are accepted: names with them resolve, and a
/// wildcard certificate covers them. URLs that were saved under an earlier rule are still sent to.
fn check_name(name: &str) -> Result<(), RefusedUrl> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.bytes().all(is_allowed) {
        return Err(RefusedUrl::NoUrl(
            "the host name may have only letters, digits, hyphens, underscores and dots",
        ));
    }
    if name.split('.').any(|label| label.starts_with('-') || label.ends_with('-')) {
        return Err(RefusedUrl::NoUrl(
            "a label of the host name begins or ends with a hyphen; resolvers and certificates accept no such name",
        ));
    }
    Ok(())
}

/// What is put on the wire: the request's target and its `Host` (RFC 9112, section 3.2). Receivers read them with another
/// parser than ours: two have to agree on what the URL means.
///
/// # Errors
/// When they do not.
pub(super) fn request_line(url: &Url) -> Result<(Uri, HeaderValue), RefusedUrl> {
    const UNUSABLE: RefusedUrl = RefusedUrl::NoUrl("the URL cannot be requested");
    let uri: Uri = url.as_str().parse().map_err(|_| UNUSABLE)?;
    let same = uri.scheme_str() == Some(url.scheme())
        && uri.host() == url.host_str()
        && uri.port_u16() == url.port()
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let parts = uri.into_parts();
    let (Some(authority), Some(path), true) = (parts.authority, parts.path_and_query, same) else {
        return Err(UNUSABLE);
    };
    let host = HeaderValue::try_from(authority.as_str()).map_err(|_| UNUSABLE)?;
    Ok((path.into(), host))
}
