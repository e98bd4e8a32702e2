//! The courier: bytes to strangers.
//!
//! Owns the HTTP client, its timeouts and caps, the address guard and the body formats. Must never know the store. Every
//! attempt ends within its timeout and holds at most [`limits::REPLY_BYTES_MAX`] bytes of reply. No redirect is
//! followed, no ambient proxy is used, nothing is decompressed.

pub mod body;
pub mod guard;
mod resolver;

use std::error::Error as StdError;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, Request, Response, Url};

use crate::domain::ErrorClass;
use crate::limits;
use guard::{BlockedAddress, EgressPolicy, ForbiddenUrl};
use resolver::{DnsError, GuardedDns};
pub use resolver::{Resolver, SystemResolver};

/// Idle connections are kept this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long saving an endpoint waits for its host to resolve.
const SAVE_LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// One request.
#[derive(Debug)]
pub struct Parcel {
    request: Request,
    timeout: Duration,
}

impl Parcel {
    /// # Errors
    /// When the URL does not parse any more.
    pub fn new(url: &str, headers: HeaderMap, body: Bytes, timeout: Duration) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| error.to_string())?;
        let mut request = Request::new(Method::POST, url);
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body.into());
        Ok(Self { request, timeout })
    }

    /// A request for consent, which has no body.
    ///
    /// # Errors
    /// When the URL does not parse any more.
    pub fn options(url: &str, headers: HeaderMap, timeout: Duration) -> Result<Self, String> {
        let mut parcel = Self::new(url, headers, Bytes::new(), timeout)?;
        *parcel.request.method_mut() = Method::OPTIONS;
        *parcel.request.body_mut() = None;
        Ok(parcel)
    }
}

#[cfg(test)]
impl Parcel {
    pub(crate) fn is_options(&self) -> bool {
        self.request.method() == Method::OPTIONS
    }

    /// What a receiver would see.
    pub(crate) fn contents(&self) -> (&Url, &HeaderMap, &[u8], Duration) {
        let body = self.request.body().and_then(reqwest::Body::as_bytes).unwrap_or_default();
        (self.request.url(), self.request.headers(), body, self.timeout)
    }
}

/// What came of a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status, or what went wrong before there was one.
    pub outcome: Result<u16, (ErrorClass, String)>,
    pub retry_after: Option<String>,
    pub webhook_delivery: Option<String>,
    /// `WebHook-Allowed-Origin` and `WebHook-Allowed-Rate`; of several lines all, as one (RFC 9110, section 5.3).
    pub allowed_origin: Option<String>,
    pub allowed_rate: Option<String>,
    /// At most [`limits::REPLY_BYTES_MAX`] bytes, as they came.
    pub body: Bytes,
    pub duration: Duration,
}

impl Reply {
    /// A request that never left.
    #[must_use]
    pub fn failed(class: ErrorClass, words: String) -> Self {
        Self {
            outcome: Err((class, words)),
            retry_after: None,
            webhook_delivery: None,
            allowed_origin: None,
            allowed_rate: None,
            body: Bytes::new(),
            duration: Duration::ZERO,
        }
    }
}

/// Sends parcels. Cheap to clone.
#[derive(Clone)]
pub struct Courier {
    client: Client,
    resolver: Arc<dyn Resolver>,
    policy: Arc<ArcSwap<EgressPolicy>>,
}

impl Courier {
    /// # Errors
    /// When the HTTP client cannot be built (for instance without any trusted root).
    pub fn new(
        policy: EgressPolicy,
        connect_timeout: Duration,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, reqwest::Error> {
        // Another courier of this process has installed the same provider before.
        let _again = rustls::crypto::ring::default_provider().install_default().is_err();
        let policy = Arc::new(ArcSwap::from_pointee(policy));
        let dns = GuardedDns { resolver: resolver.clone(), policy: policy.clone() };
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            // Every attempt is ours to count.
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .dns_resolver(Arc::new(dns))
            .build()?;
        Ok(Self { client, resolver, policy })
    }

    /// Connections that are made from now on follow this policy. Pooled ones were made to addresses that the policy of
    /// their time allowed; they are judged again by URL before each request.
    pub fn set_policy(&self, policy: EgressPolicy) {
        self.policy.store(Arc::new(policy));
    }

    /// Judges a URL when an endpoint is saved; gives its canonical form. A host that does not resolve is accepted.
    ///
    /// # Errors
    /// When policy forbids the URL, or an address that its host has.
    pub async fn check_url(&self, url: &str) -> Result<Box<str>, ForbiddenUrl> {
        let policy = self.policy.load_full();
        let url = guard::parse_target(url, &policy)?;
        if guard::literal_address(&url).is_none() {
            let host = url.host_str().unwrap_or_default().to_owned();
            let looked_up = tokio::time::timeout(SAVE_LOOKUP_TIMEOUT, self.resolver.lookup(host)).await;
            for address in looked_up.ok().and_then(Result::ok).unwrap_or_default() {
                policy.judge(address).map_err(|BlockedAddress| ForbiddenUrl::ADDRESS)?;
            }
        }
        Ok(url.as_str().into())
    }

    /// Makes one attempt; never longer than the parcel's timeout, whatever the receiver does.
    pub async fn send(&self, parcel: Parcel) -> Reply {
        let started = Instant::now();
        let deadline = tokio::time::Instant::now() + parcel.timeout;
        if let Err(forbidden) = guard::judge_url(parcel.request.url(), &self.policy.load()) {
            return Reply::failed(ErrorClass::BlockedAddress, forbidden.to_string());
        }
        let mut reply = match tokio::time::timeout_at(deadline, self.client.execute(parcel.request)).await {
            Err(_) => Reply::failed(ErrorClass::Timeout, "no reply within the timeout".to_owned()),
            Ok(Err(error)) => {
                let (class, words) = classify(&error);
                Reply::failed(class, words)
            }
            Ok(Ok(response)) => read_reply(response, deadline).await,
        };
        reply.duration = started.elapsed();
        reply
    }
}

/// The status line decides; a body that never ends or breaks off changes nothing.
async fn read_reply(mut response: Response, deadline: tokio::time::Instant) -> Reply {
    let status = response.status().as_u16();
    let header =
        |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
    let (retry_after, webhook_delivery) = (header("retry-after"), header("webhook-delivery"));
    let (allowed_origin, allowed_rate) =
        (whole_header(&response, "webhook-allowed-origin"), whole_header(&response, "webhook-allowed-rate"));
    if status == 101 {
        return Reply::failed(ErrorClass::Protocol, "the receiver switched protocols".to_owned());
    }
    let mut body = BytesMut::new();
    while body.len() < limits::REPLY_BYTES_MAX {
        match tokio::time::timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                let room = limits::REPLY_BYTES_MAX - body.len();
                body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            }
            Ok(Ok(None) | Err(_)) | Err(_) => break,
        }
    }
    Reply {
        outcome: Ok(status),
        retry_after,
        webhook_delivery,
        allowed_origin,
        allowed_rate,
        body: body.freeze(),
        duration: Duration::ZERO,
    }
}

/// All lines of a header, as one.
fn whole_header(response: &Response, name: &str) -> Option<String> {
    let lines = response.headers().get_all(name).iter();
    let lines: Vec<_> = lines.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

/// The error and what caused it, outermost first; also what an I/O error carries, which its own `source` leaves out.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let current = next?;
        let carried = current.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = carried.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| current.source());
        Some(current)
    })
}

fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    chain(error).find_map(|error| error.downcast_ref::<T>())
}

fn words(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// A class, and words that say nothing about forbidden addresses.
fn classify(error: &reqwest::Error) -> (ErrorClass, String) {
    let io_kind = find::<std::io::Error>(error).map(std::io::Error::kind);
    let class = if find::<BlockedAddress>(error).is_some() {
        return (ErrorClass::BlockedAddress, BlockedAddress.to_string());
    } else if find::<DnsError>(error).is_some() {
        ErrorClass::Dns
    } else if find::<rustls::Error>(error).is_some() {
        ErrorClass::Tls
    } else if error.is_timeout() {
        ErrorClass::Timeout
    } else if error.is_connect() {
        ErrorClass::Connect
    } else if let Some(hyper) = find::<hyper::Error>(error) {
        if hyper.is_parse_too_large() {
            ErrorClass::ResponseTooLarge
        } else if hyper.is_parse() {
            ErrorClass::Protocol
        } else {
            ErrorClass::Reset
        }
    } else if io_kind.is_some() {
        ErrorClass::Reset
    } else {
        ErrorClass::Protocol
    };
    (class, words(error))
}

/// The address, when the host is one.
pub(crate) fn as_address(host: &url::Host<&str>) -> Option<IpAddr> {
    match host {
        url::Host::Ipv4(address) => Some(IpAddr::V4(*address)),
        url::Host::Ipv6(address) => Some(IpAddr::V6(*address)),
        url::Host::Domain(_) => None,
    }
}

#[cfg(test)]
mod tests;
