//! Tables A and B: the syntax of URLs, and the literal addresses that they may name.

use balto::domain::ErrorClass;
use balto::domain::ReceiverAnswer::Status;
use serde_json::json;

use super::fixture::{
    BLOCKED, EchoReceiver, FakeProxy, OWN_PORT, courier, delivered, endpoint, failure, no_resolver, open,
    proxied, save, send, strict,
};
use crate::support::Receiver;

/// Result of saving a URL under the default policy with `egress.allow_http`.
enum Saved {
    Refused,
    /// Kept, in this canonical form.
    Kept(&'static str),
}
use Saved::{Kept, Refused};

const PARSING: &[(&str, &str, Saved)] = &[
    ("A1", "ftp://example.com/", Refused),
    ("A1", "file:///etc/passwd", Refused),
    ("A1", "gopher://127.0.0.1:6379/_x", Refused),
    ("A1", "data:text/plain,x", Refused),
    ("A1", "javascript:alert(1)", Refused),
    ("A1", "dict://example.com/", Refused),
    ("A1", "ws://example.com/", Refused),
    ("A2", "http://example.com/", Kept("http://example.com/")),
    ("A3", "unix:/var/run/docker.sock", Refused),
    ("A3", "http+unix://%2Fvar%2Frun%2Fdocker.sock/", Refused),
    ("A4", "//example.com/", Refused),
    ("A4", "example.com/path", Refused),
    ("A4", "nope", Refused),
    ("A4", "", Refused),
    ("A4", "https://exa\0mple.com/", Refused),
    ("A5", "https:example.com/", Refused),
    ("A5", "https:/example.com/", Refused),
    ("A5", "https:///example.com/", Refused),
    ("A6", "https://user:pass@example.com/", Refused),
    ("A6", "https://user@example.com/", Refused),
    ("A6", "https://:pass@example.com/", Refused),
    ("A7", "http://example.com@127.0.0.1/", Refused),
    ("A8", "http://127.0.0.1\\@example.com/", Refused),
    ("A8", "http://example.com\\@127.0.0.1/", Refused),
    ("A8", "https:\\\\example.com/", Refused),
    ("A9", "http://127.0.0.1#@example.com/", Refused),
    ("A9", "http://127.0.0.1%2523@example.com/", Refused),
    ("A9", "https://example.com/#", Refused),
    ("A10", "https://example.com/%0d%0aX-A:b", Kept("https://example.com/%0d%0aX-A:b")),
    ("A11", "https://example.com/\r\nX: y", Refused),
    ("A11", "https://exam\tple.com/", Refused),
    ("A11", " https://example.com/", Refused),
    ("A11", "https://example.com/\u{a0}", Refused),
    ("A12", "https://example.com:0/", Refused),
    ("A12", "https://example.com:65536/", Refused),
    ("A12", "https://example.com:80:80/", Refused),
    ("A12", "https://example.com:-1/", Refused),
    ("A12", "https://example.com:443/", Kept("https://example.com/")),
    ("A13", "https://example.com:22/", Refused),
    ("A13", "https://example.com:25/", Refused),
    ("A13", "https://example.com:6379/", Refused),
    ("A13", "https://example.com:11211/", Refused),
    ("A13", "https://example.com:2375/", Refused),
    ("A13", "https://example.com:8080/", Kept("https://example.com:8080/")),
    ("A13", "https://example.com:8443/a?b=c", Kept("https://example.com:8443/a?b=c")),
    ("A13", "https://example.com:54321/", Kept("https://example.com:54321/")),
    ("A14", "http://[::1%25eth0]/", Refused),
    ("A14", "http://[127.0.0.1]/", Refused),
    ("A14", "http://[::1", Refused),
    ("A15", "http://пример.рф/", Kept("http://xn--e1afmkfd.xn--p1ai/")),
    ("A16", "http://ⓛocalhost/", Refused),
    ("A16", "http://LOCALHOST/", Refused),
    ("A16", "http://localhost./", Refused),
    ("A16", "http://a.localhost/", Refused),
    ("A17", "http://metadata/", Refused),
    ("A17", "http://redis/", Refused),
    ("A18", "http://metadata.google.internal/", Refused),
    ("A18", "http://printer.local/", Refused),
    ("A18", "http://x.localhost/", Refused),
    ("A18", "http://x.svc.cluster.local/", Refused),
    ("A18", "http://kubernetes.default/", Refused),
    ("A18", "http://kubernetes.default.svc/", Refused),
    ("A18", "http://x.internal./", Refused),
    ("A18", "http://web.service.consul/", Refused),
    ("A18", "http://web.nomad/", Refused),
    ("A18", "http://router.home.arpa/", Refused),
    ("A18", "http://1.0.0.10.in-addr.arpa/", Refused),
    ("A18", "http://build.docker/", Refused),
    ("A18", "http://nas.home/", Refused),
    ("A18", "http://nas.lan/", Refused),
    ("A18", "http://mail.corp/", Refused),
    ("A18", "http://x.localdomain/", Refused),
    ("A18", "http://x.intranet/", Refused),
    ("A18", "http://x.private/", Refused),
    ("A18", "http://internal.example.com/", Kept("http://internal.example.com/")),
    ("A18", "http://consul.example.com/", Kept("http://consul.example.com/")),
    ("A19", "https://trail-.example.com/", Refused),
    ("A19", "https://-lead.example.com/", Refused),
    ("A19", "http://-lead.example.com/", Refused),
    ("A19", "http://example.com-/", Refused),
    ("A19", "http://a-b.xn--e1afmkfd.example.com/", Kept("http://a-b.xn--e1afmkfd.example.com/")),
    ("A19", "https://a_b._c.example.com/", Kept("https://a_b._c.example.com/")),
    ("A19", "http://a!b.example.com/", Refused),
    ("A19", "http://a(b).example.com/", Refused),
    ("A19", "https://*.example.com/", Refused),
    ("A19", "http://a~b.example.com/", Refused),
    ("B8", "http://256.256.256.256/", Refused),
    ("B8", "http://1.2.3.4.5/", Refused),
    ("B8", "http://08.8.8.8/", Refused),
    ("B8", "http://0x100000000/", Refused),
];

#[tokio::test]
async fn urls_are_refused_or_kept_in_canonical_form() {
    let data = tempfile::tempdir().unwrap();
    let daemon = strict(data.path(), &[("BALTO__EGRESS__ALLOW_HTTP", "true")]).await;
    for (row, url, expected) in PARSING {
        match (save(&daemon, url).await, expected) {
            (Err(_), Refused) => {}
            (Ok(kept), Kept(canonical)) => assert_eq!(kept, *canonical, "{row} {url:?}"),
            (outcome, _) => panic!("{row}: saving {url:?} gave {outcome:?}"),
        }
    }
    let long = format!("https://example.com/{}", "x".repeat(3_000));
    let label = format!("https://{}.com/", "a".repeat(64));
    let name = format!("https://{}com/", "a.".repeat(127));
    // The canonical form exceeds the length limit, so the endpoint could not be saved again.
    let grows = format!("https://example.com/{}", "ü".repeat(900));
    for (row, url) in [("A4", long), ("A19", label), ("A19", name), ("A4", grows)] {
        let refused = save(&daemon, &url).await;
        assert!(refused.is_err(), "{row}: {url:?} was saved");
    }
    // The error asks for a scheme that the policy allows.
    assert_eq!(save(&daemon, "ftp://example.com/").await, Err("the scheme must be https or http".to_owned()));
    assert_eq!(save(&daemon, "nope").await, Err("this is not an absolute URL".to_owned()));
}

#[tokio::test]
async fn impossible_host_names_are_refused_with_the_reason() {
    let data = tempfile::tempdir().unwrap();
    let daemon = strict(data.path(), &[]).await;
    for (url, reason) in [
        ("https://trail-.example.com/", "begins or ends with a hyphen"),
        ("https://-lead.example.com/", "begins or ends with a hyphen"),
        ("https://a!b.example.com/", "only letters, digits, hyphens, underscores and dots"),
    ] {
        let (status, answer, _) =
            daemon.call("POST", "/endpoints", &[], &json!({"url": url}).to_string()).await;
        assert_eq!((status, &answer["code"]), (422, &json!("validation_failed")), "{url}: {answer}");
        assert_eq!(answer["errors"][0]["pointer"], "/url", "{url}: {answer}");
        assert!(answer["errors"][0]["detail"].as_str().unwrap().contains(reason), "{url}: {answer}");
    }
}

#[tokio::test]
async fn a2_only_https_is_kept_without_allow_http() {
    let data = tempfile::tempdir().unwrap();
    let daemon = strict(data.path(), &[]).await;
    assert_eq!(save(&daemon, "http://example.com/").await, Err("the scheme must be https".to_owned()));
    assert_eq!(save(&daemon, "https://example.com/").await, Ok("https://example.com/".to_owned()));
}

/// The encoded line break of the endpoint's URL is sent encoded.
#[tokio::test]
async fn a10_encoded_line_break_stays_one_request_line() {
    let data = tempfile::tempdir().unwrap();
    let daemon = crate::support::Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    endpoint(&daemon, &format!("{}/%0d%0aX-A:b?c=%0a", receiver.url), "a").await;
    assert_eq!(delivered(&daemon, "a").await["status"], "delivered");
    let got = &receiver.got()[0];
    assert_eq!(got.line, "POST /hook/%0d%0aX-A:b?c=%0a HTTP/1.1");
    assert!(!got.headers.contains_key("x-a"), "{got:?}");
}

/// Host names that an allow list permits.
#[tokio::test]
async fn a17_a18_internal_names_need_an_open_private_network() {
    let data = tempfile::tempdir().unwrap();
    let allow = ("BALTO__EGRESS__ALLOW_NETWORKS", "10.0.0.0/8");
    let daemon = strict(data.path(), &[("BALTO__EGRESS__ALLOW_HTTP", "true"), allow]).await;
    for url in ["http://redis/", "http://printer.local/", "http://x.svc.cluster.local/", "http://10.1.2.3/"] {
        assert!(save(&daemon, url).await.is_ok(), "{url}");
    }
    for url in
        ["http://metadata/", "http://metadata.google.internal/", "http://localhost/", "http://127.0.0.1/"]
    {
        assert!(save(&daemon, url).await.is_err(), "{url}");
    }
    // Loopback does not count as a network with internal names.
    let data = tempfile::tempdir().unwrap();
    let daemon = crate::support::Daemon::start(data.path()).await;
    for url in
        ["http://localhost:9000/", "http://a.localhost:9000/", "http://[::1]:9000/", "http://127.9.9.9/"]
    {
        assert!(save(&daemon, url).await.is_ok(), "{url}");
    }
    for url in
        ["http://redis/", "http://metadata.google.internal/", "http://printer.local/", "http://10.0.0.1/"]
    {
        assert!(save(&daemon, url).await.is_err(), "{url}");
    }
}

/// Refused at save and blocked at send.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "B1",
        &[
            "127.0.0.1",
            "127.255.255.255",
            "0.0.0.0",
            "0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
        ],
    ),
    ("B3", &["100.64.0.1", "100.127.255.254", "100.100.100.200"]),
    ("B4", &["169.254.169.254", "169.254.170.2", "169.254.0.1"]),
    ("B5", &["168.63.129.16", "192.0.0.192", "[fd00:ec2::254]", "[fd20:ce::254]"]),
    ("B6", &["2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "127.1", "127.0.1", "017700000001"]),
    ("B7", &["１２７.０.０.１", "①②⑦.⓪.⓪.①", "127。0。0。1", "%31%32%37.0.0.1", "127.0.0.1."]),
    ("B9", &["[::]", "[::1]", "[0:0:0:0:0:0:0:1]"]),
    ("B10", &["[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:169.254.169.254]", "[::ffff:10.0.0.1]"]),
    ("B12", &["[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "[::5efe:7f00:1]"]),
    ("B13", &["[64:ff9b::a9fe:a9fe]", "[64:ff9b::808:808]", "[64:ff9b:1::1]"]),
    ("B14", &["[2002:7f00:1::1]", "[2002:808:808::1]"]),
    ("B15", &["[2001:0:4136:e378:8000:63bf:3fff:fdd2]"]),
    ("B16", &["[fc00::1]", "[fd7a:115c:a1e0::1]", "[fe80::1]", "[febf:ffff::1]", "[fec0::1]", "[ff02::1]"]),
    ("B17", &["[100::1]", "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[4000::1]"]),
    (
        "B18",
        &[
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
        ],
    ),
];

/// Allowed at save and at send: just outside the forbidden networks.
const PUBLIC: &[(&str, &[&str])] = &[
    (
        "B2",
        &[
            "172.15.255.255",
            "172.32.0.1",
            "100.63.255.254",
            "100.128.0.1",
            "8.8.8.8",
            "1.1.1.1",
            "[2606:4700:4700::1111]",
            "[2001:4860:4860::8888]",
        ],
    ),
    // Treated as the IPv4 address in it.
    ("B11", &["[::ffff:8.8.8.8]"]),
];

#[tokio::test]
async fn forbidden_literals_are_refused_in_every_notation() {
    let data = tempfile::tempdir().unwrap();
    let daemon = strict(data.path(), &[("BALTO__EGRESS__ALLOW_HTTP", "true")]).await;
    let echo = EchoReceiver::open().await;
    let courier = courier(open(&[]), no_resolver());
    for (row, hosts) in FORBIDDEN {
        for host in *hosts {
            let url = format!("http://{host}:{}/", echo.port);
            assert_eq!(save(&daemon, &url).await, Err(BLOCKED.to_owned()), "{row} {host} at save");
            let reply = send(&courier, &url).await;
            assert_eq!(failure(&reply), (ErrorClass::BlockedAddress, BLOCKED), "{row} {host} at send");
        }
    }
    assert_eq!(echo.connections(), Vec::<std::net::IpAddr>::new(), "connections to forbidden addresses");
}

#[tokio::test]
async fn public_literals_are_kept_and_connected_to() {
    let data = tempfile::tempdir().unwrap();
    let daemon = strict(data.path(), &[("BALTO__EGRESS__ALLOW_HTTP", "true")]).await;
    let proxy = FakeProxy::start(|_| 200).await;
    let courier = balto::courier::Courier::new(proxied(open(&[]), &proxy.url)).unwrap();
    for (row, hosts) in PUBLIC {
        for host in *hosts {
            let url = format!("http://{host}/");
            assert!(save(&daemon, &url).await.is_ok(), "{row} {host} at save");
            let asked = proxy.asked().len();
            assert_eq!(send(&courier, &url).await.outcome, Ok(Status(200)), "{row} {host}");
            let parsed: url::Url = url.parse().unwrap();
            let lines = proxy.lines();
            assert_eq!(
                lines[asked],
                format!("CONNECT {}:80 HTTP/1.1", parsed.host_str().unwrap()),
                "{row} {host}"
            );
        }
    }
}

/// Metadata services and link-local addresses stay closed under every allow list, in every
/// notation.
#[tokio::test]
async fn b4_b5_b13_allow_lists_never_open_metadata_services() {
    let everything = open(&["0.0.0.0/0", "::/0"]);
    let courier = courier(everything, no_resolver());
    let closed = [
        "169.254.169.254",
        "169.254.170.2",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "[::ffff:169.254.169.254]",
        "[::169.254.169.254]",
        "[::ffff:0:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[2001:0:4136:e378:8000:63bf:5601:5601]",
        "[2001:0:a9fe:a9fe:8000:63bf:f7f7:f7f7]",
        "169.254.0.1",
        "169.254.0.23",
        "169.254.42.42",
        "169.254.170.23",
        "169.254.255.254",
        "[::ffff:169.254.170.23]",
        "[fe80::1]",
        "[fe80::a9fe:a9fe]",
        "[febf::1]",
        "[fd00:ec2::23]",
        "[fd00:ec2::253]",
        "[fd00:42::42]",
        "[fd00:c1::a9fe:a9fe]",
        "[fd00:a9fe:a9fe::1]",
        // NAT64 at each prefix length (RFC 6052, section 2.2).
        "[64:ff9b:a9fe:a9fe::]",
        "[64:ff9b:a9:fea9:fe::]",
        "[64:ff9b:1:a9fe:a9:fe00::]",
        "[64:ff9b:1:a9:fe:a9fe::]",
        "[64:ff9b:1:0:a9:fea9:fe00:0]",
        "[64:ff9b:1::a8:3f81:1000:0]",
        // ISATAP, in a network of any kind.
        "[fd00::5efe:a9fe:a9fe]",
        "[2001:4860:4860::200:5efe:a9fe:a9fe]",
    ];
    for host in closed {
        let url = format!("http://{host}/");
        assert!(courier.check_url(&url).await.is_err(), "{host} at save");
        assert_eq!(
            failure(&send(&courier, &url).await),
            (ErrorClass::BlockedAddress, BLOCKED),
            "{host} at send"
        );
    }
    for host in [
        "10.0.0.1",
        "[64:ff9b::808:808]",
        "[64:ff9b::a00:1]",
        "[64:ff9b:1:808:8:800::]",
        "[fd00::99]",
        "[fd00:ec3::254]",
        "[fec0::1]",
        "[2002:808:808::1]",
    ] {
        assert!(courier.check_url(&format!("http://{host}/")).await.is_ok(), "{host} is opened");
    }
    // An allowed translator prefix does not open the private networks behind it.
    let translated = super::fixture::courier(open(&["64:ff9b::/96"]), no_resolver());
    assert!(translated.check_url("http://[64:ff9b::808:808]/").await.is_ok());
    assert!(translated.check_url("http://[64:ff9b::a00:1]/").await.is_err());
    let translated = super::fixture::courier(open(&["64:ff9b:1::/48"]), no_resolver());
    assert!(translated.check_url("http://[64:ff9b:1:808:8:800::]/").await.is_ok());
    assert!(translated.check_url("http://[64:ff9b:1:a00:0:100::]/").await.is_err());
}

#[tokio::test]
async fn b19_the_daemons_own_ports_are_refused_in_open_networks() {
    let echo = EchoReceiver::open().await;
    let courier = courier(open(&["0.0.0.0/0", "::/0"]), no_resolver());
    let interfaces = if_addrs::get_if_addrs().unwrap();
    let own: Vec<_> =
        interfaces.iter().map(|interface| interface.ip()).filter(|ip| !ip.is_loopback()).collect();
    if own.is_empty() {
        crate::support::say("SKIPPED in part: this machine has no address beside loopback");
    }
    let unspecified = ["0.0.0.0", "::"].map(|text| text.parse().unwrap());
    for address in own.into_iter().chain(unspecified) {
        let url = format!("http://{}/", std::net::SocketAddr::new(address, echo.port));
        assert!(courier.check_url(&url).await.is_err(), "{address} at save");
        assert_eq!(
            failure(&send(&courier, &url).await),
            (ErrorClass::BlockedAddress, BLOCKED),
            "{address} at send"
        );
    }
    assert_eq!(echo.connections().len(), 0, "{:?}", echo.connections());
    // Loopback is open for receivers on this machine, except for the daemon's own ports.
    let url = format!("http://127.0.0.1:{}/", echo.port);
    assert_eq!(send(&courier, &url).await.outcome, Ok(Status(200)));
    courier.set_listening(vec![echo.port]);
    for host in ["127.0.0.1", "127.1.2.3", "[::1]", "localhost", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{}/", echo.port);
        let saved = courier.check_url(&url).await.map_err(|refused| refused.to_string());
        assert_eq!(saved, Err(OWN_PORT.to_owned()), "{host} at save");
        assert_eq!(
            failure(&send(&courier, &url).await),
            (ErrorClass::BlockedAddress, OWN_PORT),
            "{host} at send"
        );
    }
    assert_eq!(echo.connections().len(), 1, "{:?}", echo.connections());
}

/// An address of this machine's interfaces that can be reached over IPv4.
fn interface_address() -> Option<std::net::IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap();
    interfaces.iter().map(|one| one.ip()).find(|ip| match ip {
        std::net::IpAddr::V4(four) => !four.is_loopback() && !four.is_link_local(),
        std::net::IpAddr::V6(_) => false,
    })
}

#[tokio::test]
async fn b19_own_address_is_explained_to_operators_only() {
    let Some(own) = interface_address() else {
        crate::support::say("SKIPPED: this machine has no address beside loopback");
        return;
    };
    let data = tempfile::tempdir().unwrap();
    let opened = [("BALTO__EGRESS__ALLOW_HTTP", "true"), ("BALTO__EGRESS__ALLOW_NETWORKS", "0.0.0.0/0")];
    let mut daemon = strict(data.path(), &opened).await;
    let url = format!("http://{own}:9000/");
    let words = save(&daemon, &url).await.unwrap_err();
    for part in ["an address of this machine", "127.0.0.1 or localhost", "egress.allow_networks"] {
        assert!(words.contains(part), "{words}");
    }
    assert!(save(&daemon, "http://127.0.0.1:9000/").await.is_ok(), "the advice works");
    let key = daemon.post("/keys", &json!({"role": "admin", "tenant": "acme"}).to_string()).await;
    daemon.key = key["secret"].as_str().map(str::to_owned);
    assert_eq!(save(&daemon, &url).await, Err(BLOCKED.to_owned()));
}

/// Where loopback is closed, the error does not reveal which ports belong to the daemon.
#[tokio::test]
async fn b19_own_port_is_indistinguishable_where_loopback_is_closed() {
    let courier = super::fixture::courier(open(&[]), no_resolver());
    courier.set_listening(vec![8400]);
    for port in [8400, 8399] {
        let saved = courier.check_url(&format!("https://127.0.0.1:{port}/")).await;
        assert_eq!(saved.map_err(|refused| refused.to_string()), Err(BLOCKED.to_owned()), "{port}");
    }
}

/// `localhost` maps to the open part of loopback, without a lookup.
#[tokio::test]
async fn a16_localhost_maps_to_the_open_part_of_loopback() {
    let echo = EchoReceiver::open().await;
    for (allowed, arrives) in
        [("127.0.0.0/8", true), ("::1/128", true), ("127.0.0.1/32", true), ("10.0.0.0/8", false)]
    {
        if allowed == "::1/128" && !echo.six {
            continue;
        }
        let courier = courier(open(&[allowed]), no_resolver());
        for host in ["localhost", "LOCALHOST.", "hooks.localhost"] {
            let url = format!("http://{host}:{}/", echo.port);
            let reply = send(&courier, &url).await;
            assert_eq!(
                (reply.outcome.is_ok(), courier.check_url(&url).await.is_ok()),
                (arrives, arrives),
                "{allowed} {host}"
            );
        }
    }
}

#[tokio::test]
async fn b19_the_daemon_knows_its_own_ports() {
    let data = tempfile::tempdir().unwrap();
    let daemon = crate::support::Daemon::start(data.path()).await;
    for own in [&daemon.api, &format!("{}/healthz", daemon.ops)] {
        for host in ["127.0.0.1", "localhost", "[::1]", "127.8.8.8", "0.0.0.0"] {
            let url = own.replace("127.0.0.1", host);
            let why = if host == "0.0.0.0" { BLOCKED } else { OWN_PORT };
            assert_eq!(save(&daemon, &url).await, Err(why.to_owned()), "{url}");
        }
    }
}
