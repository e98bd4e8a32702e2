//! URLs of AMQP brokers: `amqps://host:port/vhost`.
//!
//! Owns their parsing. The host is parsed by the rules of https URLs, so that an IP address in any
//! notation is an address and not a name.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::{Host, Url};

use super::guard::RefusedUrl;

/// Characters of a virtual host that its URL escapes.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Longest virtual host, in bytes: a short string of AMQP.
const VHOST_BYTES_MAX: usize = 255;

/// A broker, and a virtual host in it. Displays its canonical URL, without credentials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BrokerUrl {
    pub(super) is_secure: bool,
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) vhost: Box<str>,
}

/// User name and password of a broker.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BrokerCredentials {
    pub username: Box<str>,
    pub password: Box<str>,
}

impl fmt::Debug for BrokerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BrokerCredentials(..)")
    }
}

impl BrokerCredentials {
    /// The user that a broker has after its installation, and that it accepts only from its own
    /// machine.
    pub const GUEST: &str = "guest";

    #[must_use]
    pub fn guest() -> Self {
        Self { username: Self::GUEST.into(), password: Self::GUEST.into() }
    }
}

/// Whether a URL has a scheme of AMQP.
#[must_use]
pub fn is_broker_url(url: &str) -> bool {
    let scheme = url.split_once(':').map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| ["amqp", "amqps"].iter().any(|known| scheme.eq_ignore_ascii_case(known)))
}

impl BrokerUrl {
    /// Parses a URL and the credentials in it, if there are any.
    ///
    /// # Errors
    /// When it is not a URL of a broker with at most one virtual host.
    pub fn parse(text: &str) -> Result<(Self, Option<BrokerCredentials>), RefusedUrl> {
        const MALFORMED: RefusedUrl = RefusedUrl::Malformed("this is not an absolute URL");
        let (scheme, rest) = text.split_once("://").filter(|_| is_broker_url(text)).ok_or(MALFORMED)?;
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(end) => rest.split_at(end),
            None => (rest, ""),
        };
        if authority.is_empty() {
            return Err(RefusedUrl::Malformed("the URL needs a host after ://"));
        }
        if path.contains(['?', '#']) {
            return Err(RefusedUrl::Malformed("the URL of a broker has no query and no fragment"));
        }
        let parse = |scheme: &str| Url::parse(&format!("{scheme}://{authority}/")).map_err(|_| MALFORMED);
        let url = parse("https")?;
        let is_secure = scheme.eq_ignore_ascii_case("amqps");
        // The parser drops the default port of a scheme.
        let port = url.port().or(parse("http")?.port());
        let host = url.host().ok_or(RefusedUrl::Malformed("the URL needs a host"))?.to_owned();
        let decoded = |text: &str| -> Result<Box<str>, RefusedUrl> {
            let decoded = percent_decode_str(text)
                .decode_utf8()
                .map_err(|_| RefusedUrl::Malformed("an escaped part of the URL is not UTF-8"))?;
            Ok(Box::from(&*decoded))
        };
        let credentials = if url.username().is_empty() && url.password().is_none() {
            None
        } else {
            let (username, password) = (decoded(url.username())?, decoded(url.password().unwrap_or(""))?);
            Some(BrokerCredentials { username, password })
        };
        let vhost = match path.strip_prefix('/') {
            None => "/".into(),
            Some("") => {
                return Err(RefusedUrl::Malformed(
                    "the path / names the virtual host with the empty name; write /%2F or no path for the virtual host /",
                ));
            }
            Some(vhost) if vhost.contains('/') => {
                return Err(RefusedUrl::Malformed(
                    "the path is the name of one virtual host; write %2F for a slash in it",
                ));
            }
            Some(vhost) => decoded(vhost)?,
        };
        if vhost.len() > VHOST_BYTES_MAX || vhost.chars().any(char::is_control) {
            return Err(RefusedUrl::Malformed(
                "a virtual host has 1 to 255 bytes without control characters",
            ));
        }
        let port = port.unwrap_or(if is_secure { 5671 } else { 5672 });
        Ok((Self { is_secure, host, port, vhost }, credentials))
    }

    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// Whether both are the same broker.
    #[must_use]
    pub fn has_same_origin(&self, other: &Self) -> bool {
        (self.is_secure, &self.host, self.port) == (other.is_secure, &other.host, other.port)
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secure { "amqps" } else { "amqp" };
        let vhost = utf8_percent_encode(&self.vhost, ESCAPED);
        write!(f, "{scheme}://{}:{}/{vhost}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_urls_are_canonical_and_without_credentials() {
        for (text, canonical, credentials) in [
            ("amqps://Rabbit.Example", "amqps://rabbit.example:5671/%2F", None),
            ("amqp://h/%2f", "amqp://h:5672/%2F", None),
            ("AMQPS://h:443/a%2Fb", "amqps://h:443/a%2Fb", None),
            ("amqp://h:80/v", "amqp://h:80/v", None),
            ("amqps://u%40x:p%2F@h/v", "amqps://h:5671/v", Some(("u@x", "p/"))),
            ("amqps://u@h", "amqps://h:5671/%2F", Some(("u", ""))),
            ("amqps://[::1]:5671/v", "amqps://[::1]:5671/v", None),
            ("amqps://0x7f.1/v", "amqps://127.0.0.1:5671/v", None),
        ] {
            let (url, found) = BrokerUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), canonical, "{text}");
            let found = found.as_ref().map(|found| (&*found.username, &*found.password));
            assert_eq!(found, credentials, "{text}");
            assert_eq!(BrokerUrl::parse(canonical).unwrap().0, url, "{text}: parsed again");
        }
        let (literal, _) = BrokerUrl::parse("amqps://2130706433").unwrap();
        assert!(matches!(literal.host, Host::Ipv4(_)), "an address is not a name");
    }

    #[test]
    fn malformed_broker_urls_are_rejected_with_a_hint() {
        for (text, hint) in [
            ("amqps://h/", "%2F"),
            ("amqps://h/a/b", "%2F"),
            ("amqps://h/a?heartbeat=1", "no query"),
            ("amqps://h#x", "no fragment"),
            ("amqps://", "host"),
            ("amqps:///v", "host"),
            ("amqps://h:99999/v", "absolute"),
            ("amqps://h/%ff", "UTF-8"),
            ("amqps://h/%00", "control"),
            ("https://h/v", "absolute"),
            ("amqps:h", "absolute"),
        ] {
            let error = BrokerUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
