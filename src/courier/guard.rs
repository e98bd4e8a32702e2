//! The address guard: decides which URLs and addresses may receive requests.
//!
//! Owns the policy in force and every decision based on it. A URL is parsed once, when it is saved,
//! and stored in canonical form. Each address that its host resolves to is checked before a
//! connection, and only an [`AllowedAddress`] can be connected to. Rules 1 to 4 override rule 5:
//!
//! 1. Link-local addresses and metadata services are denied in every notation. No allow list opens
//!    them.
//! 2. Networks in the deny list are denied.
//! 3. A port that this daemon listens on is denied on every address of this machine, because a
//!    delivery to the daemon itself is a loop.
//! 4. Addresses of this machine's interfaces are denied. Loopback addresses are exempt: they are
//!    denied by default like any private network, and an operator who allows `127.0.0.0/8` wants to
//!    reach receivers on this machine.
//! 5. Public addresses and addresses in an allowed network are allowed. All others are denied.
//!
//! The error message does not depend on what is at the address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use arc_swap::ArcSwap;
use hyper::Uri;
use hyper::header::HeaderValue;
use ipnet::{IpNet, Ipv4Net};
use url::{Host, Url};

use super::addresses::{embedded, is_always_denied, is_public};
use super::broker_url::BrokerUrl;
use super::local_addresses::LocalAddresses;
use crate::limits;

/// The operator's egress policy.
#[derive(Clone, Debug, Default)]
pub struct EgressPolicy {
    pub allow_http: bool,
    /// Networks that are allowed although they are denied by default.
    pub allow_networks: Vec<IpNet>,
    /// Networks that are denied in addition to the default ones.
    pub deny_networks: Vec<IpNet>,
    /// Allowed port ranges, first and last port inclusive. If empty: 80, 443, and all ports from
    /// 1024 except those of well-known services (`SERVICE_PORTS`).
    pub allow_ports: Vec<(u16, u16)>,
}

const BLOCKED: &str = "the host has an address that policy forbids";

/// A denied address. The message is the same for every address, so that a tenant learns nothing
/// about the network. [`Self::OwnPort`] is reported only on addresses whose other ports are
/// allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockedAddress {
    #[error("{BLOCKED}")]
    Forbidden,
    /// An address of this machine's interfaces.
    #[error("{BLOCKED}")]
    OwnAddress,
    #[error(
        "balto itself listens on this port, so its deliveries would come back to it; give the port that the receiver listens on"
    )]
    OwnPort,
}

impl BlockedAddress {
    /// The message for a caller who may know this machine's addresses.
    #[must_use]
    pub fn operator_message(self) -> String {
        match self {
            Self::OwnAddress => "the host has an address of this machine, and nothing opens those; to reach a receiver on this machine, use 127.0.0.1 or localhost in the URL, with \"127.0.0.0/8\" in egress.allow_networks".to_owned(),
            Self::Forbidden | Self::OwnPort => self.to_string(),
        }
    }
}

/// Why a URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedUrl {
    /// The URL is malformed or cannot be requested.
    #[error("{0}")]
    Malformed(&'static str),
    /// Policy forbids the URL.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Policy forbids an address of the URL's host.
    #[error(transparent)]
    Blocked(#[from] BlockedAddress),
}

/// An address that the guard has allowed, or the address of the operator's proxy. Has no other
/// constructor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AllowedAddress(SocketAddr);

impl AllowedAddress {
    /// The address of a proxy. The operator configured it, so it is not checked.
    pub(super) fn of_proxy(address: SocketAddr) -> Self {
        Self(address)
    }

    pub(super) fn address(self) -> SocketAddr {
        self.0
    }
}

/// Host names of metadata services. A proxy may resolve them even where this machine does not.
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
/// Suffixes of private host names. They are not public top-level domains, and `arpa` has no web
/// hosts.
const PRIVATE_SUFFIXES: [&str; 18] = [
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
/// Ports above 1023 of services that do not receive webhooks: databases, caches, container and
/// cluster control. A request there can do harm even if it is malformed for the service.
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

    /// Checks an address against the networks only. IPv4-mapped IPv6 addresses must already be
    /// IPv4.
    fn check_address(&self, address: IpAddr) -> Result<(), BlockedAddress> {
        let within = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        if is_always_denied(address) || within(&self.deny_networks) {
            return Err(BlockedAddress::Forbidden);
        }
        // Allowing the network of a NAT64 or tunnel does not allow the networks behind it.
        if let IpAddr::V6(v6) = address {
            for behind in embedded(v6) {
                self.check_address(IpAddr::V4(behind))?;
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

    fn allows_loopback(&self) -> bool {
        LOOPBACK.iter().any(|address| self.check_address(*address).is_ok())
    }

    /// Private host names are allowed as soon as any network other than loopback is allowed,
    /// because the hosts of a private network can have any name.
    fn allows_private_names(&self) -> bool {
        let loopback = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
        let beyond = |network: &IpNet| match network {
            IpNet::V4(network) => !loopback.contains(network),
            IpNet::V6(network) => network.addr() != Ipv6Addr::LOCALHOST || network.prefix_len() != 128,
        };
        self.allow_networks.iter().any(beyond)
    }

    fn check_scheme(&self, scheme: &str) -> Result<(), RefusedUrl> {
        match (scheme, self.allow_http) {
            ("https", _) | ("http", true) => Ok(()),
            (_, true) => Err(RefusedUrl::Forbidden("the scheme must be https or http")),
            (_, false) => Err(RefusedUrl::Forbidden("the scheme must be https")),
        }
    }

    fn check_broker_scheme(&self, url: &BrokerUrl) -> Result<(), RefusedUrl> {
        if url.is_secure || self.allow_http {
            return Ok(());
        }
        Err(RefusedUrl::Forbidden("the scheme of a broker must be amqps"))
    }

    fn check_name(&self, name: &str) -> Result<(), RefusedUrl> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.len() > limits::DNS_NAME_BYTES_MAX
            || name.split('.').any(|label| label.is_empty() || label.len() > 63)
        {
            return Err(RefusedUrl::Malformed("the host is not a valid DNS name"));
        }
        if is_localhost(name) && self.allows_loopback() {
            return Ok(());
        }
        let ends = |suffix: &&str| {
            name == *suffix || name.strip_suffix(*suffix).is_some_and(|rest| rest.ends_with('.'))
        };
        let is_private = !name.contains('.') || PRIVATE_SUFFIXES.iter().any(ends);
        if METADATA_NAMES.contains(&name) || is_localhost(name) || is_private && !self.allows_private_names()
        {
            return Err(RefusedUrl::Forbidden("the host is a name inside a private network"));
        }
        Ok(())
    }
}

/// The addresses of `localhost` and its subdomains; no resolver is asked (RFC 6761).
pub(super) const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// `name` must be in lower case.
pub(super) fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

/// Checks URLs and addresses against the current policy and this machine's addresses.
pub struct Guard {
    policy: ArcSwap<EgressPolicy>,
    /// The ports that this daemon listens on.
    listening: ArcSwap<Vec<u16>>,
    local: LocalAddresses,
}

impl Guard {
    /// # Errors
    /// When this machine's addresses cannot be read.
    pub(super) fn new(policy: EgressPolicy) -> io::Result<Self> {
        let local = LocalAddresses::read()?;
        Ok(Self { policy: ArcSwap::from_pointee(policy), listening: ArcSwap::default(), local })
    }

    /// Replaces the policy.
    pub(super) fn set_policy(&self, policy: EgressPolicy) {
        self.policy.store(policy.into());
    }

    /// Sets the ports that the daemon listens on. They are denied on this machine's addresses.
    pub fn set_listening(&self, ports: Vec<u16>) {
        self.listening.store(ports.into());
    }

    /// # Errors
    /// When the address or port is denied.
    pub(super) fn check(&self, target: SocketAddr) -> Result<AllowedAddress, BlockedAddress> {
        let address = target.ip().to_canonical();
        if address.is_unspecified() {
            return Err(BlockedAddress::Forbidden);
        }
        if self.local.contains(address) && !address.is_loopback() {
            return Err(BlockedAddress::OwnAddress);
        }
        self.policy.load().check_address(address)?;
        if address.is_loopback() && self.listening.load().contains(&target.port()) {
            return Err(BlockedAddress::OwnPort);
        }
        Ok(AllowedAddress(SocketAddr::new(address, target.port())))
    }

    /// Parses and checks the URL of a broker as the client wrote it, without resolving its host.
    ///
    /// # Errors
    /// When policy forbids it, or it is not the URL of a broker.
    pub(super) fn parse_broker(&self, raw: &str) -> Result<BrokerUrl, RefusedUrl> {
        check_text(raw)?;
        let (url, credentials) = BrokerUrl::parse(raw)?;
        if credentials.is_some() {
            return Err(RefusedUrl::Forbidden("a URL with a user name or password is not accepted"));
        }
        self.check_broker(&url)?;
        if let Host::Domain(name) = &url.host {
            check_new_name(name)?;
        }
        Ok(url)
    }

    /// Checks a broker's URL. Checks the host's address only if the host is an IP address.
    ///
    /// # Errors
    /// When policy forbids it.
    pub(super) fn check_broker(&self, url: &BrokerUrl) -> Result<(), RefusedUrl> {
        let policy = self.policy.load();
        policy.check_broker_scheme(url)?;
        if !policy.allows_port(url.port) {
            return Err(RefusedUrl::Forbidden("policy does not allow this port"));
        }
        self.check_host(&url.host, url.port).map(drop)
    }

    /// Parses and checks a URL as the client wrote it, without resolving its host.
    ///
    /// # Errors
    /// When policy forbids it, or it is not an absolute URL.
    pub(super) fn parse(&self, raw: &str) -> Result<Url, RefusedUrl> {
        check_text(raw)?;
        let (scheme, rest) =
            raw.split_once(':').ok_or(RefusedUrl::Malformed("this is not an absolute URL"))?;
        self.policy.load().check_scheme(&scheme.to_ascii_lowercase())?;
        // The parser would silently repair a missing host.
        if rest.strip_prefix("//").is_none_or(|host| host.starts_with('/')) {
            return Err(RefusedUrl::Malformed("the URL needs a host after ://"));
        }
        let url = Url::parse(raw).map_err(|_| RefusedUrl::Malformed("this is not an absolute URL"))?;
        if url.as_str().len() > limits::URL_BYTES_MAX {
            return Err(RefusedUrl::Malformed("a URL has at most 2048 bytes, percent-encoded"));
        }
        self.check_url(&url)?;
        if let Some(Host::Domain(name)) = url.host() {
            check_new_name(name)?;
        }
        request_line(&url)?;
        Ok(url)
    }

    /// Checks a parsed URL. Checks the host's address only if the host is an IP address.
    ///
    /// # Errors
    /// When policy forbids it.
    pub(super) fn check_url(&self, url: &Url) -> Result<(), RefusedUrl> {
        let policy = self.policy.load();
        policy.check_scheme(url.scheme())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RefusedUrl::Forbidden("a URL with a user name or password is not accepted"));
        }
        if url.fragment().is_some() {
            return Err(RefusedUrl::Forbidden("a URL with a fragment is not accepted"));
        }
        let port = url.port_or_known_default().unwrap_or(0);
        if !policy.allows_port(port) {
            return Err(RefusedUrl::Forbidden("policy does not allow this port"));
        }
        let host = url.host().ok_or(RefusedUrl::Malformed("the URL needs a host"))?;
        self.check_host(&host, port).map(drop)
    }

    /// Checks a host by its name. Returns the address if the host is an IP address.
    ///
    /// # Errors
    /// When policy forbids it.
    pub(super) fn check_host<S: AsRef<str>>(
        &self,
        host: &Host<S>,
        port: u16,
    ) -> Result<Option<AllowedAddress>, RefusedUrl> {
        let address = match host {
            Host::Domain(name) => return self.policy.load().check_name(name.as_ref()).map(|()| None),
            Host::Ipv4(address) => IpAddr::V4(*address),
            Host::Ipv6(address) => IpAddr::V6(*address),
        };
        Ok(Some(self.check(SocketAddr::new(address, port))?))
    }
}

fn check_text(raw: &str) -> Result<(), RefusedUrl> {
    if raw.len() > limits::URL_BYTES_MAX {
        return Err(RefusedUrl::Malformed("a URL has at most 2048 bytes"));
    }
    if raw.chars().any(|c| c.is_control() || c == '\\') || raw.trim() != raw {
        return Err(RefusedUrl::Malformed(
            "a URL has no control characters, no backslashes and no spaces around it",
        ));
    }
    Ok(())
}

/// Rejects names that no resolver or no certificate accepts. Underscores are accepted: names with
/// them resolve, and a wildcard certificate covers them. This check applies only when a URL is
/// saved, so that URLs saved under an earlier rule keep working.
fn check_new_name(name: &str) -> Result<(), RefusedUrl> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.bytes().all(is_allowed) {
        return Err(RefusedUrl::Malformed(
            "the host name may have only letters, digits, hyphens, underscores and dots",
        ));
    }
    if name.split('.').any(|label| label.starts_with('-') || label.ends_with('-')) {
        return Err(RefusedUrl::Malformed(
            "a label of the host name begins or ends with a hyphen; resolvers and certificates reject such names",
        ));
    }
    Ok(())
}

/// The request target and the `Host` header (RFC 9112, section 3.2). Receivers parse them with a
/// different parser, so two parsers must agree on the URL's meaning.
///
/// # Errors
/// When the two parsers disagree.
pub(super) fn request_line(url: &Url) -> Result<(Uri, HeaderValue), RefusedUrl> {
    const UNUSABLE: RefusedUrl = RefusedUrl::Malformed("the URL cannot be requested");
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
