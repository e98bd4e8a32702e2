//! Random URLs and DNS answers. The test checks where connections arrive, not the guard's own
//! decisions.
//!
//! The whole of loopback is this machine. The test's policy opens a part of it and forbids the
//! rest; a receiver at every address answers with the address of the connection. The test computes
//! the allowed addresses independently.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use balto::courier::guard::EgressPolicy;
use balto::courier::{Courier, OutboundRequest, RequestUrl};
use balto::domain::ReceiverAnswer::Status;
use bytes::Bytes;
use fastrand::Rng;
use url::Url;

use super::fixture::{EchoReceiver, FnResolver, networks, settings};
use crate::support::{number, say, seed};

/// 127.32.0.0 to 127.63.255.255 without 127.40.0.0/16.
fn may_be_reached(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(four) => {
            let [first, second, ..] = four.octets();
            first == 127 && (32..64).contains(&second) && second != 40
        }
        IpAddr::V6(_) => false,
    }
}

fn policy() -> EgressPolicy {
    // The test must not contact other machines: the public Internet is closed here.
    let others = (0..=255_u8).filter(|first| *first != 127).map(|first| format!("{first}.0.0.0/8"));
    let mut denied: Vec<_> = others.map(|text| text.parse().unwrap()).collect();
    denied.extend(networks(&["127.40.0.0/16", "2000::/3"]));
    EgressPolicy {
        allow_http: true,
        allow_networks: networks(&["127.32.0.0/11"]),
        deny_networks: denied,
        allow_ports: Vec::new(),
    }
}

fn open(rng: &mut Rng) -> Ipv4Addr {
    let second = loop {
        let second = rng.u8(32..64);
        if second != 40 {
            break second;
        }
    };
    Ipv4Addr::new(127, second, rng.u8(..), rng.u8(1..255))
}

/// Addresses of all kinds, most of them forbidden; many of them lead to the receiver nevertheless.
fn address(rng: &mut Rng, own: &[IpAddr]) -> IpAddr {
    let four = match rng.u8(0..8) {
        0..=2 => open(rng),
        3 => Ipv4Addr::new(127, rng.u8(..), rng.u8(..), rng.u8(..)),
        4 => Ipv4Addr::new(127, [31, 64, 40, 0][rng.usize(0..4)], rng.u8(..), rng.u8(..)),
        5 => Ipv4Addr::from_bits(rng.u32(..)),
        6 => {
            let known =
                [[0; 4], [10, 0, 0, 1], [169, 254, 169, 254], [192, 168, 0, 1], [127, 0, 0, 1], [8, 8, 8, 8]];
            known[rng.usize(0..known.len())].into()
        }
        _ => match own.get(rng.usize(0..own.len().max(1))) {
            Some(IpAddr::V4(four)) => *four,
            Some(six) => return *six,
            None => Ipv4Addr::LOCALHOST,
        },
    };
    let bits = u128::from(four.to_bits());
    match rng.u8(0..12) {
        0 => IpAddr::V6(four.to_ipv6_mapped()),
        1 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        2 => IpAddr::V6(Ipv6Addr::from_bits(bits | 0x0064_ff9b << 96)),
        3 => IpAddr::V6(Ipv6Addr::from_bits(bits << 80 | 0x2002 << 112)),
        4 => IpAddr::V6([Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED][rng.usize(0..2)]),
        5 => IpAddr::V6(Ipv6Addr::from_bits(rng.u128(..))),
        _ => IpAddr::V4(four),
    }
}

/// One of many ways to write an IPv4 address.
fn notation(rng: &mut Rng, four: Ipv4Addr) -> String {
    let [a, b, c, d] = four.octets();
    let bits = four.to_bits();
    let part = |rng: &mut Rng, value: u32| match rng.u8(0..4) {
        0 => format!("0x{value:x}"),
        1 => format!("0{value:o}"),
        _ => value.to_string(),
    };
    let decimal = four.to_string();
    match rng.u8(0..10) {
        0 => part(rng, bits),
        1 => format!("{}.{}", part(rng, a.into()), part(rng, bits & 0x00ff_ffff)),
        2 => format!("{}.{}.{}", part(rng, a.into()), part(rng, b.into()), part(rng, bits & 0xffff)),
        3 => [a, b, c, d].map(|octet| part(rng, octet.into())).join("."),
        4 => decimal.chars().map(|c| char::from_u32(u32::from(c) + 0xfee0).unwrap()).collect(),
        5 => decimal.bytes().map(|byte| format!("%{byte:02x}")).collect(),
        6 => decimal.replace('.', "。"),
        7 => format!("{decimal}."),
        _ => decimal,
    }
}

fn host(rng: &mut Rng, address: IpAddr) -> String {
    match address {
        IpAddr::V4(four) => notation(rng, four),
        IpAddr::V6(six) => match six.to_ipv4() {
            Some(four) if rng.bool() => format!("[::ffff:{four}]"),
            _ => format!("[{six}]"),
        },
    }
}

/// A URL around a host, with known tricks against parsers.
fn url(rng: &mut Rng, host: &str, port: u16) -> String {
    let decoy = ["example.com", "127.32.0.1", "127.0.0.1"][rng.usize(0..3)];
    match rng.u8(0..24) {
        0 => format!("http://{decoy}@{host}:{port}/"),
        1 => format!("http://{host}:{port}\\@{decoy}/"),
        2 => format!("http://{decoy}\\@{host}:{port}/"),
        3 => format!("http://{host}:{port}#@{decoy}/"),
        4 => format!("http://{host}:{port}/@{decoy}/..%2f{decoy}"),
        5 => format!("http:{host}:{port}/"),
        6 => format!("HTTP://{host}:{port}?{decoy}"),
        7 => format!("http://{host}\t:{port}/"),
        8 => format!("//{host}:{port}/"),
        9 => format!("http://{host}:0{port}/"),
        10 => format!("http://{decoy}:{port}@{host}:{port}/"),
        11 => format!("http://{host}:{port}:80/"),
        _ => format!("http://{host}:{port}/{}", rng.u32(..)),
    }
}

/// The answers for each name, one list per lookup; the last one is repeated.
type Answers = Arc<Mutex<HashMap<String, Vec<Vec<IpAddr>>>>>;

fn resolver(answers: &Answers) -> impl Fn(&str) -> std::io::Result<Vec<IpAddr>> + Send + Sync + 'static {
    let answers = answers.clone();
    move |host: &str| {
        let mut answers = answers.lock().unwrap();
        match answers.get_mut(host) {
            Some(lists) if lists.len() > 1 => Ok(lists.remove(0)),
            Some(lists) => Ok(lists[0].clone()),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }
}

struct Tally {
    saved: usize,
    sent: usize,
    arrived: usize,
}

/// Tries one URL: as it is at save and, in its canonical form, at send.
async fn trial(courier: &Courier, raw: &str, sure: bool) -> Tally {
    let kept = courier.check_url(raw).await;
    let mut tally = Tally { saved: usize::from(kept.is_ok()), sent: 0, arrived: 0 };
    // A refused URL may have been saved by an older version, or under another policy.
    let stored = kept.as_deref().map(str::to_owned).or_else(|_| Url::parse(raw).map(String::from));
    let Ok(stored) = stored else { return tally };
    let Ok(url) = RequestUrl::parse(&stored) else { return tally };
    let outbound_request =
        OutboundRequest::new(url.into(), hyper::HeaderMap::new(), Bytes::new(), Duration::from_secs(10));
    tally.sent = 1;
    let reply = courier.send(outbound_request).await.unwrap();
    if let Ok(Status(200)) = reply.outcome {
        tally.arrived = 1;
        let at: IpAddr = std::str::from_utf8(&reply.body).unwrap().parse().unwrap();
        assert!(may_be_reached(at), "{raw:?} ({stored}) arrived at {at}");
    }
    assert!(!sure || tally.arrived == 1, "control: {raw:?} did not arrive: {:?}", reply.outcome);
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_urls_and_dns_answers_reach_no_forbidden_address() {
    let seed = seed();
    let rounds = number("BALTO_TEST_ROUNDS").unwrap_or(10_000);
    let echo = EchoReceiver::closing().await;
    let own: Vec<IpAddr> = if_addrs::get_if_addrs().unwrap().iter().map(|interface| interface.ip()).collect();
    let answers = Answers::default();
    let mut settings = settings(policy(), Arc::new(FnResolver(resolver(&answers))));
    settings.connect_timeout = Duration::from_secs(2);
    let courier = Courier::new(settings).unwrap();
    let mut rng = Rng::with_seed(seed);
    let (mut running, mut sum) = (tokio::task::JoinSet::new(), Tally { saved: 0, sent: 0, arrived: 0 });
    let mut controls = 0;
    for round in 0..rounds {
        let (raw, sure) = match round % 10 {
            // Control: allowed addresses are reached, by address and by name.
            0 => (format!("http://{}:{}/", open(&mut rng), echo.port), true),
            1 => {
                let name = format!("good{round}.example");
                answers.lock().unwrap().insert(name.clone(), vec![vec![open(&mut rng).into()]]);
                (format!("http://{name}:{}/", echo.port), true)
            }
            2..=5 => {
                let address = address(&mut rng, &own);
                let host = host(&mut rng, address);
                (url(&mut rng, &host, echo.port), false)
            }
            _ => {
                let name = format!("n{round}.example");
                let lists = (0..rng.usize(1..4))
                    .map(|_| (0..rng.usize(0..4)).map(|_| address(&mut rng, &own)).collect())
                    .collect();
                answers.lock().unwrap().insert(name.clone(), lists);
                (url(&mut rng, &name, echo.port), false)
            }
        };
        controls += usize::from(sure);
        let courier = courier.clone();
        running.spawn(async move { trial(&courier, &raw, sure).await });
        while running.len() >= 32 {
            add(&mut sum, running.join_next().await.unwrap().unwrap());
        }
    }
    while let Some(ended) = running.join_next().await {
        add(&mut sum, ended.unwrap());
    }
    let connections = echo.connections();
    let others: Vec<_> = connections.iter().filter(|at| !may_be_reached(**at)).collect();
    assert!(others.is_empty(), "connections to forbidden addresses: {others:?}");
    let Tally { saved, sent, arrived } = sum;
    say(&format!(
        "{rounds} tried, {saved} saved, {sent} sent, {arrived} arrived over {} connections",
        connections.len()
    ));
    assert!(arrived > controls, "no random URL arrived");
    assert!(connections.len() > controls / 2, "the receiver saw too few connections");
}

fn add(sum: &mut Tally, one: Tally) {
    sum.saved += one.saved;
    sum.sent += one.sent;
    sum.arrived += one.arrived;
}
