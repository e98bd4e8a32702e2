//! Rejects keyless requests that a foreign web page may have sent.
//!
//! A page can send requests to loopback addresses, and can make its host name resolve to one (DNS
//! rebinding). But it cannot forge `Host`, `Origin` and `Sec-Fetch-Site`, and an address in `Host`
//! involves no DNS. A bearer key is not ambient authority, so requests with a valid key are exempt.
//! Clients other than browsers send neither `Origin` nor `Sec-Fetch-Site`, and pass.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::{HeaderMap, HeaderName, Uri, header};
use url::Url;

/// Maximum length of a rejected value in an error text, in characters.
const SHOWN_CHARACTERS_MAX: usize = 80;
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The headers that identify the page that sent a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestSource<'a> {
    /// From the request target or `Host`. `None` only in HTTP/1.0.
    pub host: Option<&'a str>,
    pub origin: Option<&'a str>,
    pub fetch_site: Option<&'a str>,
}

impl<'a> RequestSource<'a> {
    /// # Errors
    /// When a header is duplicated or not ASCII, or target and `Host` differ.
    pub fn read(uri: &'a Uri, headers: &'a HeaderMap) -> Result<Self, String> {
        let host = single(headers, &header::HOST)?;
        let target = uri.authority().map(axum::http::uri::Authority::as_str);
        if let (Some(target), Some(host)) = (target, host)
            && !target.eq_ignore_ascii_case(host)
        {
            let (target, host) = (quote(target), quote(host));
            return Err(format!("request target {target} and `Host` {host} differ"));
        }
        Ok(Self {
            host: target.or(host),
            origin: single(headers, &header::ORIGIN)?,
            fetch_site: single(headers, &SEC_FETCH_SITE)?,
        })
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, String> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(format!("duplicate header `{name}`"));
    }
    value.to_str().map(Some).map_err(|_| format!("the header `{name}` is not ASCII"))
}

/// Origins from which the operator uses the API without a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedSite {
    /// `https` if the listener uses TLS.
    scheme: &'static str,
    /// `server.public_url`.
    public: Option<Origin>,
    /// The listener serves other machines: `Host` may be any address, but no other name.
    allows_any_address: bool,
}

impl TrustedSite {
    #[must_use]
    pub fn new(speaks_tls: bool, public_url: Option<&str>, allows_any_address: bool) -> Self {
        let public = public_url.and_then(|url| Url::parse(url).ok()).and_then(|url| {
            let host = Authority::parse(url.host_str()?)?.host;
            Some(Origin { scheme: url.scheme().to_owned(), host, port: url.port_or_known_default()? })
        });
        Self { scheme: if speaks_tls { "https" } else { "http" }, public, allows_any_address }
    }

    /// # Errors
    /// The reason for the rejection, and the remedy.
    pub fn check_request(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), String> {
        self.check(&RequestSource::read(uri, headers)?)
    }

    /// # Errors
    /// The reason for the rejection, and the remedy.
    pub fn check(&self, source: &RequestSource<'_>) -> Result<(), String> {
        if let Some(host) = source.host
            && !self.is_own_host(host)
        {
            return Err(format!(
                "unknown host {}: without an API key, use localhost, a loopback address or the host of server.public_url",
                quote(host)
            ));
        }
        if let Some(origin) = source.origin
            && !self.is_own_origin(origin, source.host)
        {
            return Err(format!(
                "foreign page {}: without an API key, only pages of localhost, a loopback address or server.public_url have access",
                quote(origin)
            ));
        }
        match source.fetch_site {
            // Another port of the same host is `same-site`. `Origin` is checked above.
            None | Some("none" | "same-origin" | "same-site") => Ok(()),
            Some(site) => Err(format!(
                "a foreign page sent this request (`Sec-Fetch-Site` is {}): without an API key, enter the URL in the address bar",
                quote(site)
            )),
        }
    }

    fn is_own_host(&self, text: &str) -> bool {
        let Some(authority) = Authority::parse(text) else { return false };
        // Any port: a tunnel or a container may publish another one.
        authority.host.is_loopback()
            || self.public.as_ref().is_some_and(|public| public.host == authority.host)
            || self.allows_any_address && matches!(authority.host, Host::Address(_))
    }

    /// `host` must be the site's own.
    fn is_own_origin(&self, text: &str, host: Option<&str>) -> bool {
        let Some(origin) = Origin::parse(text) else { return false };
        let own = host.and_then(|host| Origin::parse(&format!("{}://{host}", self.scheme)));
        origin.host.is_loopback() || self.public.as_ref() == Some(&origin) || own == Some(origin)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// In lower case.
    Name(String),
}

impl Host {
    fn is_loopback(&self) -> bool {
        match self {
            Self::Address(address) => address.is_loopback(),
            Self::Name(name) => name == "localhost",
        }
    }
}

/// Host and port, as browsers write them. Other notations of an address parse as names.
#[derive(Debug, PartialEq, Eq)]
struct Authority {
    host: Host,
    port: Option<u16>,
}

impl Authority {
    fn parse(text: &str) -> Option<Self> {
        let (host, rest) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (address, rest) = bracketed.split_once(']')?;
                (Host::Address(IpAddr::V6(address.parse::<Ipv6Addr>().ok()?)), rest)
            }
            None => {
                let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                if host.is_empty() || !host.bytes().all(legal) {
                    return None;
                }
                let name = || Host::Name(host.to_ascii_lowercase());
                (host.parse().map_or_else(|_| name(), |address| Host::Address(IpAddr::V4(address))), rest)
            }
        };
        let port = match rest.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            None if rest.is_empty() => None,
            _ => return None,
        };
        Some(Self { host, port })
    }
}

/// RFC 6454, section 6.2.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: Host,
    port: u16,
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let default = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let Authority { host, port } = Authority::parse(authority)?;
        Some(Self { scheme: scheme.to_owned(), host, port: port.unwrap_or(default) })
    }
}

fn quote(text: &str) -> String {
    format!("`{}`", text.chars().take(SHOWN_CHARACTERS_MAX).flat_map(char::escape_debug).collect::<String>())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn site() -> TrustedSite {
        TrustedSite::new(false, Some("https://hooks.Example.com/balto"), false)
    }

    fn allows(site: &TrustedSite, host: &str, origin: Option<&str>, fetch_site: Option<&str>) -> bool {
        site.check(&RequestSource { host: Some(host), origin, fetch_site }).is_ok()
    }

    #[test]
    fn only_loopback_and_public_hosts_are_known() {
        let known = [
            "localhost",
            "LocalHost:8400",
            "localhost:1",
            "127.0.0.1",
            "127.0.0.1:8400",
            "127.255.255.254:80",
            "[::1]",
            "[::1]:8400",
            "[0:0:0:0:0:0:0:1]:8400",
            "hooks.example.com",
            "HOOKS.example.com:8400",
        ];
        let foreign = [
            "",
            ":8400",
            "rebind.attacker.example:8400",
            "localhost.",
            "localhost.attacker.example",
            "attacker.localhost",
            "127.0.0.1.",
            "127.0.0.1.attacker.example",
            "127.0.0.1:8400.attacker.example",
            "127.0.0.1:",
            "127.0.0.1:99999",
            "127.0.0.1:+80",
            "127.0.0.1:80:80",
            "127.0.0.1, attacker.example",
            "127.0.0.1 attacker.example",
            "127.0.0.1/",
            "localhost@attacker.example",
            "attacker.example@localhost",
            "user:password@127.0.0.1:8400",
            "localhost%00",
            "loc%61lhost",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "0.0.0.0",
            "128.0.0.1",
            "10.0.0.1",
            "192.168.1.5:8400",
            "[::]",
            "[::2]",
            "[::1%25lo]",
            "[::1%lo]:8400",
            "[fe80::1%eth0]",
            "[::ffff:127.0.0.1]",
            "[127.0.0.1]",
            "[::1",
            "::1",
            "[::1]x",
            "hooks.example.com.attacker.example",
            "xhooks.example.com",
            "example.com",
        ];
        for (hosts, expected) in [(&known[..], true), (&foreign[..], false)] {
            for host in hosts {
                assert_eq!(allows(&site(), host, None, None), expected, "{host:?}");
            }
        }
        assert!(site().check(&RequestSource::default()).is_ok(), "HTTP/1.0 without `Host`");
    }

    #[test]
    fn only_own_pages_have_access() {
        let own = [
            "http://localhost",
            "http://localhost:3000",
            "https://localhost:8443",
            "http://127.0.0.1:8400",
            "http://[::1]:8400",
            "https://hooks.example.com",
            "https://hooks.example.com:443",
        ];
        let foreign = [
            "null",
            "",
            "localhost",
            "http://evil.example",
            "http://localhost.evil.example",
            "http://localhost, http://evil.example",
            "http://localhost http://evil.example",
            "http://localhost/",
            "http://localhost@evil.example",
            "http://2130706433",
            "file://localhost",
            "chrome-extension://localhost",
            "HTTP://localhost",
            "http://hooks.example.com",
            "https://hooks.example.com:8443",
            "https://evil.hooks.example.com",
            "https://hooks.example.com.",
        ];
        for (origins, expected) in [(&own[..], true), (&foreign[..], false)] {
            for origin in origins {
                assert_eq!(allows(&site(), "localhost:8400", Some(origin), None), expected, "{origin:?}");
                let fetched = allows(&site(), "localhost:8400", Some(origin), Some("same-site"));
                assert_eq!(fetched, expected, "{origin:?}");
            }
        }
        for (fetch_site, expected) in [
            ("none", true),
            ("same-origin", true),
            ("same-site", true),
            ("cross-site", false),
            ("Cross-Site", false),
            ("", false),
            ("none, cross-site", false),
        ] {
            assert_eq!(allows(&site(), "localhost", None, Some(fetch_site)), expected, "{fetch_site:?}");
        }
        assert!(!allows(&site(), "evil.example", Some("http://localhost"), Some("none")), "host first");
    }

    #[test]
    fn listener_for_other_machines_knows_addresses_only() {
        let open = TrustedSite::new(false, None, true);
        for (host, origin, expected) in [
            ("192.168.1.5:8400", None, true),
            ("[fd00::5]:8400", None, true),
            ("rebind.example:8400", None, false),
            ("192.168.1.5:8400", Some("http://192.168.1.5:8400"), true),
            ("192.168.1.5", Some("http://192.168.1.5:80"), true),
            ("192.168.1.5:8400", Some("https://192.168.1.5:8400"), false),
            ("192.168.1.5:8400", Some("http://192.168.1.5:9000"), false),
            ("192.168.1.5:8400", Some("http://203.0.113.9:8400"), false),
        ] {
            assert_eq!(allows(&open, host, origin, None), expected, "{host} {origin:?}");
        }
        let secure = TrustedSite::new(true, None, true);
        assert!(allows(&secure, "10.0.0.5:8400", Some("https://10.0.0.5:8400"), None));
        assert!(!allows(&secure, "10.0.0.5:8400", Some("http://10.0.0.5:8400"), None));
    }

    #[test]
    fn headers_and_target_must_agree() {
        let read = |uri: &str, fields: &[(&'static str, &[u8])]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_bytes(value).unwrap());
            }
            let uri: Uri = uri.parse().unwrap();
            RequestSource::read(&uri, &headers).map(|source| source.host.map(str::to_owned))
        };
        let host = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(read("/v1/events", &[("host", b"localhost")]), host("localhost"));
        assert_eq!(read("http://evil.example/", &[]), host("evil.example"));
        assert_eq!(read("http://localhost/", &[("host", b"LOCALHOST")]), host("localhost"));
        assert_eq!(read("http://u@localhost/", &[]), host("u@localhost"));
        assert_eq!(read("/", &[]), Ok(None));
        assert!(read("http://evil.example/", &[("host", b"localhost")]).is_err());
        assert!(read("http://localhost/", &[("host", b"evil.example")]).is_err());
        for name in ["host", "origin", "sec-fetch-site"] {
            assert!(read("/", &[(name, b"localhost"), (name, b"localhost")]).is_err(), "{name} twice");
            assert!(read("/", &[(name, b"local\xffhost")]).is_err(), "{name} is not ASCII");
        }
    }
}
