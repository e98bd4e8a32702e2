//! Fixtures: resolvers and name servers with scripted answers, and sockets that record their
//! connections.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use balto::courier::guard::EgressPolicy;
use balto::courier::{Courier, CourierSettings, OutboundRequest, Proxy, ReceiverReply, RequestUrl, Resolver};
use balto::domain::ErrorClass;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use crate::support::{Daemon, ReceivedRequest, WAIT_MAX, answer, next_request};

pub(crate) const BLOCKED: &str = "the host has an address that policy forbids";
pub(crate) const OWN_PORT: &str = "balto itself listens on this port, so its deliveries would come back to it; give the port that the receiver listens on";
pub(crate) const KEY: &str = "an-admin-key-that-is-long-enough-for-any-bound";

pub(crate) fn networks(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A policy with plain HTTP and these networks beside the public Internet.
pub(crate) fn open(allowed: &[&str]) -> EgressPolicy {
    EgressPolicy { allow_http: true, allow_networks: networks(allowed), ..EgressPolicy::default() }
}

/// A resolver that is a function.
pub(crate) struct FnResolver<F>(pub(crate) F);

#[async_trait]
impl<F: Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync> Resolver for FnResolver<F> {
    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>> {
        (self.0)(&host)
    }
}

/// A resolver that must not be called.
pub(crate) fn no_resolver() -> Arc<dyn Resolver> {
    Arc::new(FnResolver(|host: &str| panic!("{host} was asked for")))
}

pub(crate) fn fixed_resolver(addresses: &[&str]) -> Arc<dyn Resolver> {
    let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    Arc::new(FnResolver(move |_: &str| Ok(addresses.clone())))
}

pub(crate) fn settings(policy: EgressPolicy, resolver: Arc<dyn Resolver>) -> CourierSettings {
    CourierSettings {
        policy,
        connect_timeout: Duration::from_secs(5),
        address_max_in_flight: 0,
        roots: Arc::new(rustls::RootCertStore::empty()),
        proxy: None,
        resolver,
    }
}

pub(crate) fn courier(policy: EgressPolicy, resolver: Arc<dyn Resolver>) -> Courier {
    Courier::new(settings(policy, resolver)).unwrap()
}

/// Settings for a proxy at this address.
pub(crate) fn proxied(policy: EgressPolicy, proxy: &str) -> CourierSettings {
    let proxy = Proxy::new(&proxy.parse().unwrap());
    CourierSettings { proxy, ..settings(policy, no_resolver()) }
}

pub(crate) fn outbound_request(url: &str, timeout: Duration) -> OutboundRequest {
    let url = RequestUrl::parse(url).unwrap().into();
    OutboundRequest::new(url, hyper::HeaderMap::new(), Bytes::from_static(b"{}"), timeout)
}

pub(crate) async fn send(courier: &Courier, url: &str) -> ReceiverReply {
    courier.send(outbound_request(url, WAIT_MAX)).await.unwrap()
}

pub(crate) fn failure(reply: &ReceiverReply) -> (ErrorClass, &str) {
    match &reply.outcome {
        Err((class, words)) => (*class, words),
        Ok(status) => panic!("status {status:?} instead of a failure"),
    }
}

/// A receiver at every address of this machine. It answers with the address of the connection.
pub(crate) struct EchoReceiver {
    pub(crate) port: u16,
    /// Whether this machine has IPv6.
    pub(crate) six: bool,
    /// The local address of each connection.
    connections: Arc<Mutex<Vec<IpAddr>>>,
}

impl EchoReceiver {
    pub(crate) async fn open() -> Self {
        Self::answering("").await
    }

    /// Closes each connection after one request, to bound the number of open sockets.
    pub(crate) async fn closing() -> Self {
        Self::answering("connection: close\r\n").await
    }

    async fn answering(header: &'static str) -> Self {
        let (listener, six) = match TcpListener::bind("[::]:0").await {
            Ok(both) => (both, true),
            Err(_) => (TcpListener::bind("0.0.0.0:0").await.unwrap(), false),
        };
        let port = listener.local_addr().unwrap().port();
        let connections: Arc<Mutex<Vec<IpAddr>>> = Arc::default();
        let kept = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Ok(at) = stream.local_addr() else { continue };
                let at = at.ip().to_canonical();
                kept.lock().unwrap().push(at);
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    while next_request(&mut stream, &mut buffer).await.is_some() {
                        let body = at.to_string();
                        let reply =
                            format!("HTTP/1.1 200 x\r\n{header}content-length: {}\r\n\r\n{body}", body.len());
                        if stream.write_all(reply.as_bytes()).await.is_err() || !header.is_empty() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, six, connections }
    }

    pub(crate) fn connections(&self) -> Vec<IpAddr> {
        self.connections.lock().unwrap().clone()
    }
}

/// Scripted answer of a name server.
#[derive(Clone, Debug)]
pub(crate) enum DnsAnswer {
    Addresses(Vec<&'static str>),
    Alias(String),
    NoSuchName,
    Failure,
    /// This response code.
    Code(u8),
    /// Truncated over UDP, complete over TCP.
    Truncated(Vec<&'static str>),
    /// The answer after this number of milliseconds.
    Late(u64, Box<DnsAnswer>),
    Nothing,
    Silence,
    Noise,
}

/// A query.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// In lower case.
    pub(crate) name: String,
    kind: u16,
    pub(crate) has_edns: bool,
    /// The number of earlier queries for its addresses of this kind.
    pub(crate) before: usize,
}

impl Question {
    pub(crate) fn is_for_six(&self) -> bool {
        self.kind == AAAA
    }
}

type Rule = Arc<dyn Fn(&Question) -> DnsAnswer + Send + Sync>;

/// A name server on UDP and TCP.
#[derive(Clone)]
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<HashMap<(String, u16), usize>>>,
    rule: Rule,
}

const A: u16 = 1;
const AAAA: u16 = 28;
const CNAME: u16 = 5;

impl NameServer {
    /// `rule` gets a name in lower case, and the number of earlier queries for its addresses of
    /// this kind.
    pub(crate) async fn start(rule: impl Fn(&str, usize) -> DnsAnswer + Send + Sync + 'static) -> Self {
        Self::answering(move |question| rule(&question.name, question.before)).await
    }

    pub(crate) async fn answering(rule: impl Fn(&Question) -> DnsAnswer + Send + Sync + 'static) -> Self {
        loop {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // Another process may use this TCP port.
            if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
                return Self::on(socket, listener, rule);
            }
        }
    }

    pub(crate) fn on(
        socket: UdpSocket,
        listener: TcpListener,
        rule: impl Fn(&Question) -> DnsAnswer + Send + Sync + 'static,
    ) -> Self {
        let address = socket.local_addr().unwrap();
        let names = Self { address, asked: Arc::default(), rule: Arc::new(rule) };
        tokio::spawn(names.clone().serve_udp(Arc::new(socket)));
        tokio::spawn(names.clone().serve_tcp(listener));
        names
    }

    async fn serve_udp(self, socket: Arc<UdpSocket>) {
        let mut query = [0; 1_500];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            let Some((dns_answer, question, kind)) = self.dns_answer(&query[..length], false) else {
                continue;
            };
            let socket = socket.clone();
            let respond = async move {
                if let Some(reply) = reply(&question, kind, dns_answer, false).await {
                    let _unsent = socket.send_to(&reply, from).await.is_err();
                }
            };
            // Immediately and in the order of the queries, unless the rule delays the answer.
            tokio::spawn(respond);
        }
    }

    async fn serve_tcp(self, listener: TcpListener) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let names = self.clone();
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut query = vec![0; length.into()];
                    if stream.read_exact(&mut query).await.is_err() {
                        return;
                    }
                    let Some((dns_answer, question, kind)) = names.dns_answer(&query, true) else { return };
                    if let Some(reply) = reply(&question, kind, dns_answer, true).await {
                        let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
                        if stream.write_all(&[&length[..], &reply].concat()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    }

    /// The answer of the rule, with the question as it arrived and its type.
    fn dns_answer(&self, query: &[u8], over_tcp: bool) -> Option<(DnsAnswer, Vec<u8>, u16)> {
        let (name, kind, end) = question(query)?;
        let mut counts = self.asked.lock().unwrap();
        let count = counts.entry((name.clone(), kind)).or_default();
        let has_edns = query[10..12] != [0, 0];
        let asked = Question { name, kind, has_edns, before: *count };
        *count += usize::from(!over_tcp);
        drop(counts);
        Some(((self.rule)(&asked), query[..end].to_vec(), kind))
    }

    /// The number of queries for the IPv4 addresses of a name.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(&(name.to_owned(), A)).copied().unwrap_or_default()
    }
}

/// Name, type and end of the question (RFC 1035, section 4.1.2).
fn question(query: &[u8]) -> Option<(String, u16, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    Some((labels.join("."), kind, at + 4))
}

async fn reply(question: &[u8], kind: u16, mut dns_answer: DnsAnswer, over_tcp: bool) -> Option<Vec<u8>> {
    while let DnsAnswer::Late(milliseconds, inner) = dns_answer {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        dns_answer = *inner;
    }
    let is_cut = !over_tcp && matches!(dns_answer, DnsAnswer::Truncated(_));
    let (code, records): (u8, Vec<(u16, Vec<u8>)>) = match &dns_answer {
        DnsAnswer::Late(..) => return None,
        DnsAnswer::Code(code) => (*code, Vec::new()),
        DnsAnswer::Truncated(_) if is_cut => (0, Vec::new()),
        DnsAnswer::Silence => return None,
        DnsAnswer::Noise => return Some([&question[..2], &[0xff; 40]].concat()),
        DnsAnswer::NoSuchName => (3, Vec::new()),
        DnsAnswer::Failure => (2, Vec::new()),
        DnsAnswer::Nothing => (0, Vec::new()),
        DnsAnswer::Alias(target) => {
            let labels = target
                .split('.')
                .flat_map(|label| std::iter::once(u8::try_from(label.len()).unwrap()).chain(label.bytes()));
            (0, vec![(CNAME, labels.chain([0]).collect())])
        }
        DnsAnswer::Addresses(addresses) | DnsAnswer::Truncated(addresses) => {
            let of_kind = addresses.iter().filter_map(|text| match text.parse().unwrap() {
                IpAddr::V4(four) => (kind == A).then(|| (A, four.octets().to_vec())),
                IpAddr::V6(six) => (kind == AAAA).then(|| (AAAA, six.octets().to_vec())),
            });
            (0, of_kind.collect())
        }
    };
    let mut out = question.to_vec();
    out[2..4].copy_from_slice(&[if is_cut { 0x83 } else { 0x81 }, 0x80 | code]);
    out[6..12].copy_from_slice(&[0, u8::try_from(records.len()).unwrap(), 0, 0, 0, 0]);
    for (kind, data) in records {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        // Class IN, TTL 0.
        out.extend([0, 1, 0, 0, 0, 0]);
        out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        out.extend(data);
    }
    Some(out)
}

/// The real daemon with the default policy, except for these environment variables.
pub(crate) async fn strict(data: &Path, environment: &[(&str, &str)]) -> Daemon {
    let all = [&[("BALTO__AUTH__ADMIN_KEY", KEY)], environment].concat();
    let mut daemon = Daemon::start_in(data, &[], &all).await;
    daemon.key = Some(KEY.to_owned());
    daemon
}

/// Saves an endpoint with this URL: the URL that was kept, or the error's detail.
pub(crate) async fn save(daemon: &Daemon, url: &str) -> Result<String, String> {
    let (status, answer, _) = daemon.call("POST", "/endpoints", &[], &json!({"url": url}).to_string()).await;
    let text = |member: &str| answer[member].as_str().unwrap_or_default().to_owned();
    match status {
        201 => Ok(text("url")),
        422 => Err(text("detail")),
        _ => panic!("saving {url:?} was answered {answer}"),
    }
}

/// An endpoint for events of this type, with a single attempt.
pub(crate) async fn endpoint(daemon: &Daemon, url: &str, kind: &str) -> Value {
    let body = json!({"url": url, "eventTypes": [kind], "retry": {"maxAttempts": 1}, "timeout": "5s"});
    daemon.post("/endpoints", &body.to_string()).await
}

/// Posts an event of this type and returns its only delivery with its attempts, once it is settled.
pub(crate) async fn delivered(daemon: &Daemon, kind: &str) -> Value {
    let event = daemon.post("/events", &json!({"type": kind, "data": 1}).to_string()).await;
    let path = format!("/events/{}", event["id"].as_str().unwrap());
    let done = daemon
        .until(&path, |event| {
            event["deliveries"].as_array().unwrap().iter().all(|d| d["status"] != "pending")
        })
        .await;
    daemon.get(&format!("/deliveries/{}", done["deliveries"][0]["id"].as_str().unwrap())).await
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !reached() {
        assert!(Instant::now() < deadline, "timeout: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A proxy that records its requests and answers by a rule; it answers forwarded requests itself,
/// with 200.
pub(crate) struct FakeProxy {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl FakeProxy {
    /// `rule` gives the status of the answer to a `CONNECT` for this authority.
    pub(crate) async fn start(rule: impl Fn(&str) -> u16 + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<ReceivedRequest>>> = Arc::default();
        let (kept, rule) = (asked.clone(), Arc::new(rule));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (kept, rule) = (kept.clone(), rule.clone());
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    while let Some(request) = next_request(&mut stream, &mut buffer).await {
                        let target =
                            request.line.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
                        let reply = match target {
                            Some(target) => format!("HTTP/1.1 {} x\r\n\r\n", rule(target)),
                            None => answer(200),
                        };
                        kept.lock().unwrap().push(request);
                        if stream.write_all(reply.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, asked }
    }

    pub(crate) fn asked(&self) -> Vec<ReceivedRequest> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|request| request.line).collect()
    }
}
