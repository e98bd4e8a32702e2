//! Table D, rows D8 and D9: egress proxies.

use std::time::Duration;

use balto::courier::{Courier, CourierSettings};
use balto::domain::ErrorClass;
use balto::domain::ReceiverAnswer::Status;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::certificates::{Authority, Clients, Secure, params};
use super::connections::{LONG, UNREACHABLE, one_response_server};
use super::fixture::{FakeProxy, delivered, endpoint, failure, open, proxied, send};
use crate::support::{Daemon, Receiver};

#[tokio::test]
async fn d8_proxy_variables_of_the_environment_are_ignored() {
    let data = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::start(|_| 200).await;
    let receiver = Receiver::status(200).await;
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let environment: Vec<_> = names.map(|name| (name, proxy.url.as_str())).into();
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    endpoint(&daemon, &receiver.url, "a").await;
    assert_eq!(delivered(&daemon, "a").await["status"], "delivered");
    assert_eq!((receiver.got().len(), proxy.lines()), (1, Vec::<String>::new()));
    // Control: the same proxy is used when the configuration names it.
    drop(daemon);
    let configured = [("BALTO__EGRESS__PROXY", proxy.url.as_str())];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &configured).await;
    assert_eq!(delivered(&daemon, "a").await["status"], "delivered");
    assert!(proxy.lines()[0].starts_with("CONNECT 127.0.0.1:"), "{:?}", proxy.lines());
}

#[tokio::test]
async fn d9_proxy_gets_names_and_no_forbidden_requests() {
    let proxy = FakeProxy::start(|target| match target {
        "denied.example:80" => 403,
        "unknown.example:80" => 407,
        "down.example:443" => 502,
        _ => 200,
    })
    .await;
    let with_password = proxy.url.replace("http://", "http://user:p%40ss@");
    let courier = Courier::new(proxied(open(&[]), &with_password)).unwrap();
    // The daemon resolves no name: the resolver of this courier panics when it is called.
    assert_eq!(send(&courier, "http://hooks.example/a").await.outcome, Ok(Status(200)));
    let asked = proxy.asked();
    assert_eq!(asked[0].line, "CONNECT hooks.example:80 HTTP/1.1");
    assert_eq!(asked[0].headers["proxy-authorization"], "Basic dXNlcjpwQHNz");
    assert_eq!(
        (asked[1].line.as_str(), asked[1].headers["host"].as_str()),
        ("POST /a HTTP/1.1", "hooks.example")
    );
    assert!(!asked[1].headers.contains_key("proxy-authorization"), "the receiver got the proxy's password");
    assert!(
        courier.check_url("https://hooks.example/").await.is_ok(),
        "a save behind a proxy makes no lookup"
    );

    for (url, words) in [
        ("http://denied.example/", "the egress proxy refused the connection (status 403)"),
        ("http://unknown.example/", "the egress proxy refused the connection (status 407)"),
        ("https://down.example/", UNREACHABLE),
    ] {
        assert_eq!(failure(&send(&courier, url).await), (ErrorClass::Connect, words), "{url}");
    }
    let before = proxy.asked().len();
    for url in [
        "http://127.0.0.1/",
        "http://169.254.169.254/",
        "http://[::1]/",
        "http://2130706433/",
        "http://localhost/",
        "http://metadata.google.internal/",
        "http://redis/",
    ] {
        assert!(courier.check_url(url).await.is_err(), "{url} at save");
        assert_eq!(failure(&send(&courier, url).await).0, ErrorClass::BlockedAddress, "{url} at send");
    }
    assert_eq!(proxy.asked().len(), before, "the proxy got a forbidden request");
    // A proxy address without a listener.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let courier = Courier::new(proxied(open(&[]), &format!("http://{nobody}"))).unwrap();
    let reply = send(&courier, "http://hooks.example/").await;
    assert_eq!(failure(&reply), (ErrorClass::Connect, "the egress proxy cannot be reached"));
}

/// A proxy that forwards bytes to this address, for every request.
async fn forwarding_proxy(to: std::net::SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_buf(&mut head).await.unwrap();
                }
                let mut onward = TcpStream::connect(to).await.unwrap();
                // In two writes, as networks may deliver it.
                stream.write_all(b"HTTP/1.1 200 Connection ").await.unwrap();
                stream.flush().await.unwrap();
                stream.write_all(b"established\r\nx: y\r\n\r\n").await.unwrap();
                let _ended = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
            });
        }
    });
    url
}

#[tokio::test]
async fn d9_tls_is_end_to_end_through_a_proxy() {
    let authority = Authority::new("authority");
    let receiver = Secure::start(&authority.issue(&params(&["hooks.example"])), Clients::NotRequested).await;
    let through = forwarding_proxy(receiver.address).await;
    let settings = CourierSettings { roots: authority.roots(), ..proxied(open(&[]), &through) };
    let courier = Courier::new(settings).unwrap();
    assert_eq!(send(&courier, "https://hooks.example/x").await.outcome, Ok(Status(200)));
    assert_eq!(receiver.seen()[0].server_name.as_deref(), Some("hooks.example"));
    // The certificate must be the receiver's, not the proxy's.
    let reply = send(&courier, "https://other.example/x").await;
    assert_eq!(failure(&reply), (ErrorClass::Tls, "the certificate is for another name"));
}

/// Invalid responses of a proxy.
#[tokio::test]
async fn d9_invalid_proxy_response_fails_the_attempt() {
    let endless = [b"HTTP/1.1 200 x\r\n".to_vec(), b"a: b\r\n".repeat(20_000)].concat();
    let rows: [(&str, Vec<u8>); 6] = [
        ("garbage", b"hello\r\n\r\n".to_vec()),
        ("nothing", Vec::new()),
        ("an invalid status", b"HTTP/1.1 abc\r\n\r\n".to_vec()),
        (
            "bytes after the head",
            b"HTTP/1.1 200 x\r\n\r\nHTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n".to_vec(),
        ),
        ("an endless head", endless),
        ("another protocol", b"SSH-2.0-x\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in rows {
        let url = one_response_server(bytes).await.replace("https://", "http://");
        let quick =
            CourierSettings { connect_timeout: Duration::from_millis(500), ..proxied(open(&[]), &url) };
        let reply = send(&Courier::new(quick).unwrap(), "http://hooks.example/").await;
        assert_eq!(failure(&reply), (ErrorClass::Connect, "the egress proxy cannot be reached"), "{what}");
        assert!(reply.duration < LONG, "{what}: connect_timeout did not end it: {:?}", reply.duration);
    }
}
