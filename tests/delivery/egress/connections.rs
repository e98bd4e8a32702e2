//! Table D: connections, TLS and client certificates.

use std::path::Path;
use std::time::Duration;

use balto::courier::{Courier, CourierSettings};
use balto::domain::ErrorClass;
use balto::domain::ReceiverAnswer::Status;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::certificates::{
    Authority, Certificate, Clients, Secure, early, expired, floods_with_tickets, params, self_signed,
};
use super::fixture::{
    DnsAnswer, NameServer, courier, delivered, endpoint, failure, fixed_resolver, open, outbound_request,
    send, settings, strict, until,
};
use crate::support::{Daemon, WAIT_MAX, quiet, serve};

pub(super) const LOOPBACK: &str = "127.0.0.0/8";
pub(super) const UNREACHABLE: &str = "no connection could be made";
/// Connect deadlines are below a second here and the attempt's own is [`WAIT_MAX`]. The error shows
/// which of the two ended an attempt, even on a busy machine.
pub(super) const LONG: Duration = WAIT_MAX.checked_div(2).unwrap();

/// The real daemon. It trusts this authority, and resolves every name to this machine.
pub(super) async fn trusting(
    data: &Path,
    authority: &Authority,
    more: &[(&str, &str)],
) -> (Daemon, NameServer) {
    let names = NameServer::start(|_, _| DnsAnswer::Addresses(vec!["127.0.0.1"])).await;
    let file = data.join("ca.pem");
    std::fs::write(&file, authority.pem()).unwrap();
    let server = names.address.to_string();
    let own = [
        ("BALTO__EGRESS__CA_FILE", file.to_str().unwrap()),
        ("BALTO__EGRESS__ALLOW_NETWORKS", LOOPBACK),
        ("BALTO__EGRESS__NAMESERVERS", &server),
    ];
    (strict(&data.join("data"), &[&own, more].concat()).await, names)
}

#[tokio::test]
async fn d1_d3_d4_certificate_errors_are_recorded_with_the_reason() {
    let data = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let (daemon, _names) = trusting(data.path(), &authority, &[]).await;
    let name = ["hooks.example"];
    let rows: [(&str, &str, Certificate, &str); 8] = [
        ("D3", "hooks.example", authority.issue(&params(&name)), ""),
        (
            "D1",
            "hooks.example",
            self_signed(&params(&name)),
            "the certificate is not signed by a known authority",
        ),
        (
            "D1",
            "hooks.example",
            stranger.issue(&params(&name)),
            "the certificate is not signed by a known authority",
        ),
        ("D1", "hooks.example", authority.issue(&expired(params(&name))), "the certificate has expired"),
        ("D1", "hooks.example", authority.issue(&early(params(&name))), "the certificate is not valid yet"),
        ("D1", "other.example", authority.issue(&params(&name)), "the certificate is for another name"),
        ("D4", "127.0.0.1", authority.issue(&params(&name)), "the certificate is for another name"),
        ("D4", "127.0.0.1", authority.issue(&params(&["hooks.example", "127.0.0.1"])), ""),
    ];
    for (number, (row, host, certificate, words)) in rows.iter().enumerate() {
        let receiver = Secure::start(certificate, Clients::NotRequested).await;
        let port = receiver.address.port();
        let kind = format!("row.{number}");
        endpoint(&daemon, &format!("https://{host}:{port}/"), &kind).await;
        let delivery = delivered(&daemon, &kind).await;
        let attempt = &delivery["attempts"][0];
        if words.is_empty() {
            assert_eq!(delivery["status"], "delivered", "{row}: {delivery}");
            let seen = &receiver.seen()[0];
            let name = (*host != "127.0.0.1").then(|| (*host).to_owned());
            assert_eq!((&seen.server_name, &seen.host), (&name, &format!("{host}:{port}")), "{row}");
            assert_eq!(seen.offered, [b"http/1.1"], "{row}: what the client offers to speak");
            assert_eq!(seen.protocol.as_deref(), Some(&b"http/1.1"[..]));
        } else {
            assert_eq!((&attempt["errorClass"], &attempt["error"]), (&json!("tls"), &json!(words)), "{row}");
            assert_eq!(receiver.seen().len(), 0, "{row}: the receiver got a request");
        }
    }
}

/// Reads once and answers with these bytes.
pub(super) async fn one_response_server(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let bytes = bytes.clone();
            tokio::spawn(async move {
                let _read = stream.read(&mut [0; 4096]).await;
                let _written = stream.write_all(&bytes).await;
                // Until the client closes the connection.
                let _end = stream.read(&mut [0; 4096]).await;
            });
        }
    });
    url
}

/// A `ServerHello` that selects this version and suite (RFC 5246, section 7.4.1.3).
fn server_hello(version: [u8; 2], suite: [u8; 2]) -> Vec<u8> {
    let body = [&version[..], &[7; 32], &[0], &suite, &[0]].concat();
    let length = u8::try_from(body.len()).unwrap();
    [&[22][..], &version, &[0, length + 4, 2, 0, 0, length], &body].concat()
}

#[tokio::test]
async fn d2_obsolete_tls_versions_and_suites_are_refused() {
    const UNSAFE: &str = "the receiver offers no safe TLS version or cipher";
    const RULES: &str = "the receiver violates the TLS protocol";
    let rows = [
        ("TLS 1.0", server_hello([3, 1], [0, 0x2f]), UNSAFE),
        ("TLS 1.1", server_hello([3, 2], [0, 0x2f]), UNSAFE),
        ("the protocol_version alert of an old receiver", vec![21, 3, 1, 0, 2, 2, 70], UNSAFE),
        ("RC4", server_hello([3, 3], [0, 5]), RULES),
        ("NULL", server_hello([3, 3], [0, 1]), RULES),
        ("export", server_hello([3, 3], [0, 3]), RULES),
        ("no TLS at all", b"HTTP/1.1 400 x\r\n\r\n".to_vec(), "the receiver does not speak TLS"),
    ];
    let courier = courier(open(&[LOOPBACK]), fixed_resolver(&["127.0.0.1"]));
    for (what, bytes, words) in rows {
        let reply = send(&courier, &one_response_server(bytes).await).await;
        let (class, found) = failure(&reply);
        assert_eq!((class, found), (ErrorClass::Tls, words), "{what}");
    }
}

fn with_certificate(url: &str, kind: &str, certificate: &Certificate) -> Value {
    json!({"url": url, "eventTypes": [kind], "retry": {"maxAttempts": 1},
        "clientCertificate": {"certificate": certificate.pem, "key": certificate.key_pem}})
}

fn contains(directory: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return contains(&path, bytes);
        }
        std::fs::read(path).unwrap().windows(bytes.len()).any(|window| window == bytes)
    })
}

#[tokio::test]
async fn d5_client_certificates_share_no_connection() {
    let data = tempfile::tempdir().unwrap();
    let authority = Authority::new("authority");
    let receiver =
        Secure::start(&authority.issue(&params(&["hooks.example"])), Clients::Signed(&authority)).await;
    let key = [("BALTO__SECRETS__KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")];
    let (mut daemon, _names) = trusting(data.path(), &authority, &key).await;
    let url = |kind: &str| format!("https://hooks.example:{}/{kind}", receiver.address.port());
    let (first, second) = (authority.issue(&params(&["first"])), authority.issue(&params(&["second"])));
    // The last endpoint has the certificate of the first.
    let presented = [("a", &first), ("b", &second), ("c", &first)];
    let mut paths = Vec::new();
    for (kind, certificate) in presented {
        let made =
            daemon.post("/endpoints", &with_certificate(&url(kind), kind, certificate).to_string()).await;
        let shown = &made["clientCertificate"];
        assert!(shown["subject"].as_str().unwrap().contains("CN="), "{made}");
        assert_eq!(shown["fingerprint"].as_str().unwrap().len(), 64, "{made}");
        assert!(shown["expiresAt"].as_str().is_some(), "{made}");
        assert_eq!(shown.as_object().unwrap().len(), 3, "the response shows other members: {made}");
        paths.push(format!("/endpoints/{}", made["id"].as_str().unwrap()));
    }
    for _ in 0..3 {
        for (kind, _) in presented {
            assert_eq!(delivered(&daemon, kind).await["status"], "delivered");
        }
    }
    let seen = receiver.seen();
    assert_eq!(seen.len(), 9);
    for one in &seen {
        let kind = one.line.split(['/', ' ']).nth(2).unwrap();
        let certificate = presented.iter().find(|(known, _)| *known == kind).unwrap().1;
        assert_eq!(one.client.as_deref(), Some(certificate.der()), "{kind}");
        let shared = seen.iter().find(|other| other.connection == one.connection && other.line != one.line);
        assert!(shared.is_none(), "{one:?} and {shared:?} used the same connection");
    }
    let connections = seen.iter().map(|one| one.connection).max().unwrap() + 1;
    assert_eq!(connections, 3, "each endpoint reuses its connection");

    // A missing certificate and a wrong one get different errors.
    endpoint(&daemon, &url("d"), "d").await;
    let delivery = delivered(&daemon, "d").await;
    assert_eq!(delivery["attempts"][0]["error"], "the receiver asks for a client certificate", "{delivery}");
    assert_eq!(delivery["attempts"][0]["errorClass"], "tls");
    let stranger = Authority::new("stranger").issue(&params(&["stranger"]));
    daemon.post("/endpoints", &with_certificate(&url("e"), "e", &stranger).to_string()).await;
    let delivery = delivered(&daemon, "e").await;
    assert_eq!(delivery["attempts"][0]["error"], "the receiver did not accept the client certificate");

    // A handshake request presents the certificate, too.
    let mut asking = with_certificate(&url("f"), "f", &second);
    asking["handshake"] = json!({"origin": "events.example.com"});
    daemon.post("/endpoints", &asking.to_string()).await;
    let asked = || receiver.seen().into_iter().find(|one| one.line.starts_with("OPTIONS /f "));
    until("the handshake", || asked().is_some()).await;
    assert_eq!(asked().unwrap().client.as_deref(), Some(second.der()));

    // The certificate survives a crash, is sealed on disk, and can be removed.
    daemon.kill();
    for certificate in [&first, &second] {
        let pem: String = certificate.key_pem.lines().nth(1).unwrap().to_owned();
        assert!(!contains(data.path(), certificate.key_der()), "a private key is on disk");
        assert!(!contains(data.path(), pem.as_bytes()), "a private key is on disk, as text");
        assert!(contains(data.path(), certificate.der()), "control: the certificate is on disk");
    }
    let (daemon, _names) = trusting(data.path(), &authority, &key).await;
    assert_eq!(delivered(&daemon, "b").await["status"], "delivered");
    let changed = daemon.call("PATCH", &paths[1], &[], &json!({"description": "x"}).to_string()).await;
    assert!(
        changed.1["clientCertificate"].is_object(),
        "an unrelated change takes nothing away: {}",
        changed.1
    );
    let changed = daemon.call("PATCH", &paths[1], &[], &json!({"clientCertificate": null}).to_string()).await;
    assert_eq!((changed.0, &changed.1["clientCertificate"]), (200, &Value::Null));
    assert_eq!(delivered(&daemon, "b").await["attempts"][0]["errorClass"], "tls");
}

impl Certificate {
    fn with_key_of(&self, other: &Certificate) -> (String, String) {
        (self.pem.clone(), other.key_pem.clone())
    }
}

/// Name, member of the error, certificate and key, start of the detail.
type Unusable = (&'static str, &'static str, (String, String), &'static str);

fn unusable_certificates(authority: &Authority, good: &Certificate) -> Vec<Unusable> {
    let other = authority.issue(&params(&["b"]));
    let old = authority.issue(&expired(params(&["a"])));
    let own = |certificate: &Certificate| (certificate.pem.clone(), certificate.key_pem.clone());
    let (certificate, key) = own(good);
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let junk = |kind: &str, text: &str| format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n");
    vec![
        ("no PEM", "certificate", ("nope".into(), key.clone()), "must be 1 to 8 certificates in PEM"),
        ("empty", "certificate", (String::new(), key.clone()), "must be 1 to 8 certificates in PEM"),
        ("bad base64", "certificate", (junk("CERTIFICATE", "!!!!"), key.clone()), "is not well-formed PEM"),
        ("no DER", "certificate", (junk("CERTIFICATE", "AAAA"), key.clone()), "is not a certificate (X.509)"),
        ("cut off", "certificate", (certificate[..200].to_owned(), key.clone()), "is cut off"),
        ("too many", "certificate", (certificate.repeat(9), key.clone()), "must be 1 to 8"),
        (
            "too long",
            "certificate",
            (format!("{certificate}{}", "#\n".repeat(20_000)), key.clone()),
            "at most 32768",
        ),
        ("expired", "certificate", own(&old), "has expired"),
        (
            "key of another certificate",
            "key",
            good.with_key_of(&other),
            "does not belong to the first certificate",
        ),
        ("no key", "key", (certificate.clone(), certificate.clone()), "must be a private key in PEM"),
        ("encrypted", "key", (certificate.clone(), encrypted.into()), "is encrypted"),
        ("no DER", "key", (certificate.clone(), junk("PRIVATE KEY", "AAAA")), "has an unsupported type"),
        ("too long", "key", (certificate.clone(), format!("{key}{}", "#\n".repeat(20_000))), "at most 16384"),
    ]
}

#[tokio::test]
async fn d5_unusable_client_certificate_is_refused_at_save() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let authority = Authority::new("authority");
    let good = authority.issue(&params(&["a"]));
    let rows = unusable_certificates(&authority, &good);
    let (certificate, key) = (&good.pem, &good.key_pem);
    let url = "https://hooks.example/";
    for (what, member, (certificate, key), words) in rows {
        let body = json!({"url": url, "clientCertificate": {"certificate": certificate, "key": key}});
        let (status, answer, _) = daemon.call("POST", "/endpoints", &[], &body.to_string()).await;
        assert_eq!((status, answer["code"].as_str()), (422, Some("validation_failed")), "{what}: {answer}");
        let error = &answer["errors"][0];
        assert_eq!(error["pointer"], format!("/clientCertificate/{member}"), "{what}: {answer}");
        assert!(error["detail"].as_str().unwrap().starts_with(words), "{what}: {answer}");
        assert!(
            !answer.to_string().contains("AAAA"),
            "{what}: the response quotes the secret input: {answer}"
        );
    }
    for (body, pointer) in [
        (json!({"url": url, "clientCertificate": {"certificate": certificate}}), "/clientCertificate/key"),
        (json!({"url": url, "clientCertificate": {"key": key}}), "/clientCertificate/certificate"),
        (json!({"url": url, "clientCertificate": "x"}), "/clientCertificate"),
        (
            json!({"url": url, "clientCertificate": {"certificate": certificate, "key": key, "x": 1}}),
            "/clientCertificate/x",
        ),
    ] {
        let (status, answer, _) = daemon.call("POST", "/endpoints", &[], &body.to_string()).await;
        assert_eq!((status, &answer["errors"][0]["pointer"]), (422, &json!(pointer)), "{answer}");
    }
    let plain = json!({"url": "http://127.0.0.1:54321/", "clientCertificate": {"certificate": certificate, "key": key}});
    let (status, answer, _) = daemon.call("POST", "/endpoints", &[], &plain.to_string()).await;
    assert_eq!((status, &answer["errors"][0]["pointer"]), (422, &json!("/clientCertificate")), "{answer}");
    // A PEM with the chain and comments.
    let chain = format!("a comment\n{certificate}{}", authority.pem());
    let body = json!({"url": url, "clientCertificate": {"certificate": chain, "key": key}});
    let made = daemon.post("/endpoints", &body.to_string()).await;
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    let (status, answer, _) = daemon.call("PATCH", &path, &[], &plain.to_string()).await;
    assert_eq!((status, &answer["errors"][0]["pointer"]), (422, &json!("/clientCertificate")), "{answer}");
    // The receiver of this endpoint gets the certificate.
    let beside = json!({"url": format!("{url}beside")});
    let (status, answer, _) = daemon.call("PATCH", &path, &[], &beside.to_string()).await;
    assert_eq!((status, answer["clientCertificate"].is_object()), (200, true), "{answer}");
    let plain = json!({"url": "http://127.0.0.1:54321/"});
    let (status, answer, _) = daemon.call("PATCH", &path, &[], &plain.to_string()).await;
    assert_eq!((status, &answer["clientCertificate"]), (200, &Value::Null), "{answer}");
}

/// A port of this machine where connections get no answer: its accept queue is full.
struct BlackHole {
    port: u16,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    async fn open() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        loop {
            // Longer than a late answer of a busy machine.
            match tokio::time::timeout(Duration::from_secs(3), TcpStream::connect(address)).await {
                Ok(stream) => queued.push(stream.unwrap()),
                Err(_) => return Self { port: address.port(), _listener: listener, _queued: queued },
            }
            assert!(queued.len() < 1_000, "this machine answers every connection");
        }
    }
}

#[tokio::test]
async fn d6_connect_failures_do_not_reveal_their_kind() {
    let hole = BlackHole::open().await;
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let quick = CourierSettings {
        connect_timeout: Duration::from_millis(300),
        ..settings(open(&[LOOPBACK, "255.255.255.255/32"]), fixed_resolver(&["127.0.0.1"]))
    };
    let courier = Courier::new(quick).unwrap();
    let rows = [
        ("refused", format!("http://{refusing}/")),
        ("silent", format!("http://127.0.0.1:{}/", hole.port)),
        ("silent, by name", format!("http://a.example:{}/", hole.port)),
        ("no route", "http://255.255.255.255/".to_owned()),
        ("refused, https", format!("https://{refusing}/")),
    ];
    for (what, url) in &rows {
        let reply = send(&courier, url).await;
        assert_eq!(failure(&reply), (ErrorClass::Connect, UNREACHABLE), "{what}");
        assert!(reply.duration < LONG, "{what}: connect_timeout did not end it: {:?}", reply.duration);
    }
    // The attempt's own deadline is earlier than the connect deadline: the error is the same.
    let patient = super::fixture::courier(open(&[LOOPBACK]), fixed_resolver(&["127.0.0.1"]));
    let reply = patient.send(outbound_request(&rows[1].1, Duration::from_millis(300))).await.unwrap();
    assert_eq!(failure(&reply), (ErrorClass::Connect, UNREACHABLE));
}

/// The first address that answers is used, whichever failures the earlier ones have.
#[tokio::test]
async fn d6_next_address_is_tried_when_the_first_is_silent() {
    let hole = BlackHole::open().await;
    let listener = TcpListener::bind(("127.0.0.2", hole.port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _read = stream.read(&mut [0; 4096]).await;
            let _written = stream.write_all(crate::support::answer(200).as_bytes()).await;
        }
    });
    let courier = courier(open(&[LOOPBACK, "::1/128"]), fixed_resolver(&["127.0.0.1", "::1", "127.0.0.2"]));
    assert_eq!(send(&courier, &format!("http://a.example:{}/", hole.port)).await.outcome, Ok(Status(200)));
}

#[tokio::test]
async fn d7_stalled_tls_handshake_ends_at_its_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let quick = CourierSettings {
        connect_timeout: Duration::from_millis(300),
        ..settings(open(&[LOOPBACK]), fixed_resolver(&["127.0.0.1"]))
    };
    const STALLED: (ErrorClass, &str) = (ErrorClass::Tls, "the TLS handshake did not end in time");
    let reply = send(&Courier::new(quick).unwrap(), &url).await;
    assert_eq!(failure(&reply), STALLED);
    assert!(reply.duration < LONG, "connect_timeout did not end it: {:?}", reply.duration);
    let patient = courier(open(&[LOOPBACK]), fixed_resolver(&["127.0.0.1"]));
    let reply = patient.send(outbound_request(&url, Duration::from_millis(300))).await.unwrap();
    assert_eq!(failure(&reply), STALLED);
    held.abort();
}

#[tokio::test]
async fn unusable_ca_file_fails_the_start() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("ca.pem");
    let missing = data.path().join("nothing.pem");
    std::fs::write(&file, "no certificate in here").unwrap();
    for path in [&file, &missing] {
        let mut command = quiet(serve(&data.path().join("data"), &["--dev"]));
        command.env("BALTO__EGRESS__CA_FILE", path).stderr(std::process::Stdio::null());
        let ended = Daemon::spawn(command).ended_within(WAIT_MAX).await;
        assert_eq!(ended, Some(1), "{}", path.display());
    }
}

/// The pool of an endpoint with a certificate is evicted after many others were used, and created
/// again on demand.
#[tokio::test]
async fn clients_with_certificates_are_bounded() {
    use balto::courier::tls::ClientIdentity;
    use balto::domain::EndpointNumber;
    let authority = Authority::new("authority");
    let receiver =
        Secure::start(&authority.issue(&params(&["hooks.example"])), Clients::Signed(&authority)).await;
    let settings = CourierSettings {
        roots: authority.roots(),
        ..settings(open(&[LOOPBACK]), fixed_resolver(&["127.0.0.1"]))
    };
    let courier = Courier::new(settings).unwrap();
    let own = authority.issue(&params(&["client"]));
    let url = format!("https://hooks.example:{}/", receiver.address.port());
    let most = u32::try_from(balto::limits::CLIENTS_WITH_CERTIFICATE_MAX).unwrap();
    let as_endpoint = async |number: u32| {
        let identity =
            ClientIdentity::new(EndpointNumber(number), &[own.der().into()], own.key_der().to_vec());
        let outbound_request = outbound_request(&url, WAIT_MAX).with_identity(Some(identity));
        assert_eq!(courier.send(outbound_request).await.unwrap().outcome, Ok(Status(200)));
        receiver.seen().last().unwrap().connection
    };
    let first = as_endpoint(0).await;
    for number in 1..most {
        as_endpoint(number).await;
    }
    assert_eq!(as_endpoint(0).await, first, "the pool holds all of them");
    as_endpoint(most).await;
    assert_eq!(as_endpoint(0).await, first, "the recently used one is kept");
    assert_ne!(as_endpoint(1).await, first + 1, "the least recently used one is evicted");
}

#[tokio::test]
async fn scarce_descriptors_close_idle_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let courier = super::fixture::courier(open(&[LOOPBACK]), fixed_resolver(&["127.0.0.1"]));
    let answer = async |stream: &mut TcpStream| {
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0, "the connection was not reused");
        stream.write_all(b"HTTP/1.1 204 x\r\n\r\n").await.unwrap();
    };
    let (first, mut kept) = tokio::join!(send(&courier, &url), async {
        let mut stream = listener.accept().await.unwrap().0;
        answer(&mut stream).await;
        stream
    });
    let (second, ()) = tokio::join!(send(&courier, &url), answer(&mut kept));
    assert_eq!((first.outcome, second.outcome), (Ok(Status(204)), Ok(Status(204))));
    courier.on_shortage();
    // Earlier than the idle timeout.
    let closed = tokio::time::timeout(WAIT_MAX, kept.read(&mut [0; 1])).await;
    assert_eq!(closed.expect("the idle connection is still open").unwrap(), 0);
}

#[tokio::test]
async fn closed_tls_connection_sends_close_notify() {
    let authority = Authority::new("authority");
    let receiver = Secure::start(&authority.issue(&params(&["hooks.example"])), Clients::NotRequested).await;
    let settings = CourierSettings {
        roots: authority.roots(),
        ..settings(open(&[LOOPBACK]), fixed_resolver(&["127.0.0.1"]))
    };
    let courier = Courier::new(settings).unwrap();
    let url = format!("https://hooks.example:{}/", receiver.address.port());
    assert_eq!(send(&courier, &url).await.outcome, Ok(Status(200)));
    courier.on_shortage();
    let deadline = tokio::time::Instant::now() + WAIT_MAX;
    while receiver.close_notifies().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the connection is still open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        receiver.close_notifies(),
        [true],
        "the connection ended without close_notify (RFC 8446, section 6.1)"
    );
}

#[tokio::test]
async fn tls_messages_outside_http_count_toward_the_read_limit() {
    let authority = Authority::new("authority");
    let own = authority.issue(&params(&["hooks.example"]));
    let settings = CourierSettings {
        roots: authority.roots(),
        ..settings(open(&[LOOPBACK]), fixed_resolver(&["127.0.0.1"]))
    };
    let courier = Courier::new(settings).unwrap();
    let address = floods_with_tickets(&own, balto::limits::REPLY_WIRE_BYTES_MAX / 25).await;
    let reply = send(&courier, &format!("https://hooks.example:{}/", address.port())).await;
    assert_eq!(failure(&reply).0, ErrorClass::ResponseTooLarge, "{reply:?}");
}
