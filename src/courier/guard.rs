//! The address guard: which URLs and addresses may be sent to.
//!
//! A URL is parsed once and kept in its canonical form. Every address that it leads to is judged when it is connected
//! to, not only when it is saved. Deny wins over allow for addresses that hand out credentials.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::Url;

use super::as_address;
use crate::limits;

/// What an operator may change about egress.
#[derive(Clone, Debug, Default)]
pub struct EgressPolicy {
    pub allow_http: bool,
    /// Ranges that are opened although they are forbidden by default.
    pub allow_networks: Vec<IpNet>,
    /// Ranges that are forbidden beside the default ones.
    pub deny_networks: Vec<IpNet>,
    /// First and last of each range of ports that may be used. Empty: 80, 443 and everything from 1024 on.
    pub allow_ports: Vec<(u16, u16)>,
}

/// An address is forbidden. It says nothing about the address, so that nobody learns what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host has an address that policy forbids")]
pub struct BlockedAddress;

/// Why a URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ForbiddenUrl(pub &'static str);

impl ForbiddenUrl {
    pub(super) const ADDRESS: Self = Self("the host has an address that policy forbids");
}

/// Ranges that are not the public Internet. IPv6 is allowed only within 2000::/3, which leaves these inside it.
const FORBIDDEN_V4: [(Ipv4Addr, u32); 18] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 31, 196, 0), 24),
    (Ipv4Addr::new(192, 52, 193, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(192, 175, 48, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
const FORBIDDEN_V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];
/// Metadata services: no allow list opens them.
const CREDENTIALS: [IpAddr; 7] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];
/// Names that resolve inside, whatever the resolver says.
const INSIDE_SUFFIXES: [&str; 5] = ["internal", "local", "localdomain", "localhost", "cluster.local"];

fn in_v4(address: Ipv4Addr, (network, bits): (Ipv4Addr, u32)) -> bool {
    (address.to_bits() ^ network.to_bits()) >> (32 - bits) == 0
}

fn in_v6(address: Ipv6Addr, (network, bits): (Ipv6Addr, u32)) -> bool {
    (address.to_bits() ^ network.to_bits()) >> (128 - bits) == 0
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !FORBIDDEN_V4.iter().any(|range| in_v4(v4, *range)),
        IpAddr::V6(v6) => {
            let global = in_v6(v6, (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3));
            global && !FORBIDDEN_V6.iter().any(|range| in_v6(v6, *range))
        }
    }
}

impl EgressPolicy {
    /// The policy of `--dev`: loopback and plain HTTP are open.
    #[must_use]
    pub fn dev(mut self) -> Self {
        self.allow_http = true;
        self.allow_networks.push(IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        self.allow_networks.push(IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8));
        self
    }

    /// # Errors
    /// When nothing may be sent to the address.
    pub fn judge(&self, address: IpAddr) -> Result<(), BlockedAddress> {
        let address = address.to_canonical();
        let within = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        if CREDENTIALS.contains(&address) || within(&self.deny_networks) {
            return Err(BlockedAddress);
        }
        if is_public(address) || within(&self.allow_networks) { Ok(()) } else { Err(BlockedAddress) }
    }

    fn allows_port(&self, port: u16) -> bool {
        if self.allow_ports.is_empty() {
            return matches!(port, 80 | 443 | 1024..);
        }
        self.allow_ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    fn opens_loopback(&self) -> bool {
        self.judge(IpAddr::V4(Ipv4Addr::LOCALHOST)).is_ok()
            || self.judge(IpAddr::V6(Ipv6Addr::LOCALHOST)).is_ok()
    }
}

/// The address, when the URL's host is one.
#[must_use]
pub fn literal_address(url: &Url) -> Option<IpAddr> {
    as_address(&url.host()?)
}

/// Parses a URL as it was given, and judges what can be judged without asking anyone.
///
/// # Errors
/// When policy forbids it, or it is not an absolute URL.
pub fn parse_target(raw: &str, policy: &EgressPolicy) -> Result<Url, ForbiddenUrl> {
    if raw.len() > limits::URL_BYTES_MAX {
        return Err(ForbiddenUrl("a URL has at most 2048 bytes"));
    }
    if raw.chars().any(|c| c.is_control() || c == '\\') || raw.trim() != raw {
        return Err(ForbiddenUrl("a URL has no control characters, no backslashes and no spaces around it"));
    }
    let Some((scheme, _)) = raw.split_once(':') else {
        return Err(ForbiddenUrl("this is not an absolute URL such as https://example.com/hooks"));
    };
    if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
        let rule =
            if policy.allow_http { "the scheme must be https or http" } else { "the scheme must be https" };
        return Err(ForbiddenUrl(rule));
    }
    let authority = raw.split_once("://").map(|(_, rest)| rest);
    if authority.is_none_or(|rest| rest.starts_with('/')) {
        return Err(ForbiddenUrl("the URL needs a host after ://"));
    }
    let url = Url::parse(raw).map_err(|_| ForbiddenUrl("this is not an absolute URL"))?;
    judge_url(&url, policy)?;
    Ok(url)
}

/// Judges a parsed URL; the host's addresses only when it is one itself.
///
/// # Errors
/// When policy forbids it.
pub fn judge_url(url: &Url, policy: &EgressPolicy) -> Result<(), ForbiddenUrl> {
    match url.scheme() {
        "https" => {}
        "http" if policy.allow_http => {}
        _ => return Err(ForbiddenUrl("the scheme must be https")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ForbiddenUrl("a URL with a user name or password is not accepted"));
    }
    if url.fragment().is_some() {
        return Err(ForbiddenUrl("a URL with a fragment is not accepted"));
    }
    let port = url.port_or_known_default().unwrap_or(0);
    if !policy.allows_port(port) {
        return Err(ForbiddenUrl("the port is not one that policy allows"));
    }
    match url.host() {
        None => Err(ForbiddenUrl("the URL needs a host")),
        Some(url::Host::Domain(name)) => judge_name(name, policy),
        Some(host) => {
            let address = as_address(&host).ok_or(ForbiddenUrl::ADDRESS)?;
            policy.judge(address).map_err(|BlockedAddress| ForbiddenUrl::ADDRESS)
        }
    }
}

fn judge_name(name: &str, policy: &EgressPolicy) -> Result<(), ForbiddenUrl> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > 253 || name.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err(ForbiddenUrl("the host is not a legal name"));
    }
    if name == "localhost" && policy.opens_loopback() {
        return Ok(());
    }
    let inside =
        |suffix: &&str| name == *suffix || name.strip_suffix(*suffix).is_some_and(|rest| rest.ends_with('.'));
    // Whoever opens networks of their own names hosts in them as they like; the addresses are judged all the same.
    if policy.allow_networks.is_empty() && (!name.contains('.') || INSIDE_SUFFIXES.iter().any(inside)) {
        return Err(ForbiddenUrl("the host is a name inside a private network"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_refused_or_kept_in_canonical_form() {
        let open = EgressPolicy { allow_http: true, ..EgressPolicy::default() };
        let long = format!("https://example.com/{}", "x".repeat(3_000));
        let refused = [
            ("A1", "ftp://example.com/"),
            ("A1", "file:///etc/passwd"),
            ("A1", "gopher://127.0.0.1:6379/_x"),
            ("A1", "javascript:alert(1)"),
            ("A1", "ws://example.com/"),
            ("A3", "unix:/var/run/docker.sock"),
            ("A3", "http+unix://%2Fvar%2Frun%2Fdocker.sock/"),
            ("A4", "//example.com/"),
            ("A4", "example.com/path"),
            ("A4", ""),
            ("A4", long.as_str()),
            ("A4", "https://exa\0mple.com/"),
            ("A5", "https:example.com/"),
            ("A5", "https:///example.com/"),
            ("A6", "https://user:pass@example.com/"),
            ("A7", "http://example.com@127.0.0.1/"),
            ("A8", "http://127.0.0.1\\@example.com/"),
            ("A8", "http://example.com\\@127.0.0.1/"),
            ("A9", "http://127.0.0.1#@example.com/"),
            ("A9", "http://127.0.0.1%2523@example.com/"),
            ("A11", "https://example.com/\r\nX: y"),
            ("A11", "https://exam\tple.com/"),
            ("A12", "https://example.com:0/"),
            ("A12", "https://example.com:65536/"),
            ("A12", "https://example.com:80:80/"),
            ("A12", "https://example.com:-1/"),
            ("A13", "https://example.com:22/"),
            ("A13", "https://example.com:25/"),
            ("A14", "http://[::1%25eth0]/"),
            ("A14", "http://[127.0.0.1]/"),
            ("A14", "http://[::1"),
            ("A16", "http://ⓛocalhost/"),
            ("A16", "http://LOCALHOST/"),
            ("A16", "http://localhost./"),
            ("A17", "http://metadata/"),
            ("A17", "http://redis/"),
            ("A18", "http://metadata.google.internal/"),
            ("A18", "http://x.svc.cluster.local/"),
            ("A18", "http://printer.local/"),
            ("B1", "http://127.0.0.1/"),
            ("B1", "http://0/"),
            ("B1", "http://2130706433/"),
            ("B1", "http://0x7f000001/"),
            ("B1", "http://0177.0.0.1/"),
            ("B1", "http://127.1/"),
            ("B1", "http://①②⑦.⓪.⓪.①/"),
            ("B1", "http://[::ffff:127.0.0.1]/"),
        ];
        for (row, url) in refused {
            assert!(parse_target(url, &open).is_err(), "{row} {url:?}");
        }
        let accepted = [
            ("A2", "http://example.com/", "http://example.com/"),
            ("A10", "https://example.com/%0d%0aX-A:b", "https://example.com/%0d%0aX-A:b"),
            ("A13", "https://example.com:8443/a?b=c", "https://example.com:8443/a?b=c"),
            ("A15", "http://пример.рф/", "http://xn--e1afmkfd.xn--p1ai/"),
            ("B2", "https://8.8.8.8/", "https://8.8.8.8/"),
        ];
        for (row, url, canonical) in accepted {
            assert_eq!(parse_target(url, &open).map(String::from), Ok(canonical.to_owned()), "{row} {url:?}");
        }
        assert!(parse_target("http://example.com/", &EgressPolicy::default()).is_err(), "A2");
    }

    #[test]
    fn addresses_outside_the_public_internet_are_forbidden() {
        let policy = EgressPolicy::default();
        let forbidden = [
            "127.0.0.1",
            "127.255.255.255",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "100.64.0.1",
            "100.127.255.254",
            "100.100.100.200",
            "169.254.169.254",
            "169.254.170.2",
            "169.254.0.1",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "fc00::1",
            "100::1",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
        ];
        for address in forbidden {
            assert_eq!(policy.judge(address.parse().unwrap()), Err(BlockedAddress), "{address}");
        }
        let public = [
            "172.15.255.255",
            "172.32.0.1",
            "100.63.255.254",
            "100.128.0.1",
            "8.8.8.8",
            "1.1.1.1",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
        ];
        for address in public {
            assert_eq!(policy.judge(address.parse().unwrap()), Ok(()), "{address}");
        }
    }

    #[test]
    fn allowed_networks_open_but_never_the_metadata_services() {
        let policy =
            EgressPolicy { allow_networks: vec!["0.0.0.0/0".parse().unwrap()], ..EgressPolicy::default() };
        assert_eq!(policy.judge("10.0.0.1".parse().unwrap()), Ok(()));
        assert_eq!(policy.judge("169.254.169.254".parse().unwrap()), Err(BlockedAddress));
        let denied = EgressPolicy { deny_networks: vec!["10.0.0.0/8".parse().unwrap()], ..policy };
        assert_eq!(denied.judge("10.0.0.1".parse().unwrap()), Err(BlockedAddress));
        let dev = EgressPolicy::default().dev();
        assert!(parse_target("http://localhost:9000/", &dev).is_ok());
        assert!(parse_target("http://127.0.0.1:9000/", &dev).is_ok());
        assert!(parse_target("http://10.0.0.1/", &dev).is_err());
    }
}
