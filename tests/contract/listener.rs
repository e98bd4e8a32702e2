//! Listeners of the daemon: requests that web pages send, TLS, and listeners on public addresses.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::raw::Raw;
use crate::support::{Daemon, WAIT_MAX, quiet};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

// ---- pages in a browser ------------------------------------------------------------

/// Sends one request without a body; returns its status and the problem's code.
async fn status(daemon: &Daemon, line: &str, headers: &str) -> (u16, String) {
    let mut raw = Raw::connect(daemon.address()).await;
    raw.send(format!("{line} HTTP/1.1\r\n{headers}content-length: 0\r\n\r\n").as_bytes()).await;
    let answer = raw.answer().await.unwrap();
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    (answer.status, body["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn foreign_page_has_no_access_without_a_key() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let key = daemon.post("/keys", r#"{"role":"admin"}"#).await["secret"].as_str().unwrap().to_owned();
    let foreign = [
        "host: rebind.attacker.example:8400\r\norigin: http://rebind.attacker.example:8400\r\n",
        "host: rebind.attacker.example\r\n",
        "host: 127.0.0.1.attacker.example\r\n",
        "host: localhost.\r\n",
        "host: 2130706433\r\n",
        "host: localhost\r\norigin: http://evil.example\r\n",
        "host: localhost\r\norigin: null\r\n",
        "host: localhost\r\norigin: http://localhost\r\norigin: http://evil.example\r\n",
        "host: localhost\r\nsec-fetch-site: cross-site\r\n",
        "host: localhost\r\nsec-fetch-site: none\r\nsec-fetch-site: cross-site\r\n",
        "host: 127.0.0.1\r\norigin: http://evil.example\r\nsec-fetch-site: cross-site\r\n",
    ];
    let lines = [
        "GET /v1/backup",
        "GET /v1/events",
        "POST /v1/keys",
        "POST /v1/endpoints",
        "POST /v1/dead-letters/redrive",
        "DELETE /v1/keys/key_x",
        "GET http://evil.example/v1/events",
    ];
    for headers in foreign {
        for line in lines {
            let output = status(&daemon, line, headers).await;
            assert_eq!(output, (403, "untrusted_origin".to_owned()), "{line} {headers}");
        }
        // A key is not ambient authority: a page that has one may use it.
        let keyed = format!("{headers}authorization: Bearer {key}\r\n");
        assert_eq!(status(&daemon, "GET /v1/events", &keyed).await.0, 200, "{headers}");
        let wrong = format!("{headers}authorization: Bearer {key}x\r\n");
        assert_eq!(status(&daemon, "GET /v1/events", &wrong).await.0, 403, "{headers}");
    }
    assert_eq!(status(&daemon, "GET /v1/events", "host: localhost\r\nhost: evil.example\r\n").await.0, 400);
    let own = [
        "host: localhost:8400\r\n",
        "host: LOCALHOST\r\n",
        "host: 127.0.0.1:8400\r\norigin: http://127.0.0.1:8400\r\nsec-fetch-site: same-origin\r\n",
        "host: [::1]:8400\r\norigin: http://localhost:3000\r\nsec-fetch-site: same-site\r\n",
        "host: localhost\r\nsec-fetch-site: none\r\n",
    ];
    for headers in own {
        for line in ["GET /v1/events", "POST /v1/dead-letters/redrive", "GET http://localhost/v1/events"] {
            if line.contains("http://") && !headers.starts_with("host: localhost\r") {
                continue;
            }
            let (status, code) = status(&daemon, line, headers).await;
            assert!(status == 200 || status == 202, "{line} {headers}: {status} {code}");
        }
    }
    assert!(daemon.metric("balto_authentications_refused_total", "untrustedOrigin").await > 0.0);
    assert_eq!(daemon.get("/keys").await["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn public_url_is_a_known_host_after_a_reload() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("balto.toml");
    std::fs::write(&file, "").unwrap();
    let flags = ["--dev", "--config", file.to_str().unwrap()];
    let daemon = Daemon::start_with(&data.path().join("data"), &flags).await;
    let from = "host: hooks.example.test:9000\r\norigin: http://hooks.example.test:9000\r\n";
    assert_eq!(status(&daemon, "GET /v1/events", from).await.0, 403);
    std::fs::write(&file, "[server]\npublic_url = \"http://hooks.example.test:9000/balto\"").unwrap();
    daemon.signal("HUP");
    until("the host is known", async || status(&daemon, "GET /v1/events", from).await.0 == 200).await;
    assert_eq!(status(&daemon, "GET /v1/events", "host: hooks.example.test.\r\n").await.0, 403);
    let other = "host: hooks.example.test:9000\r\norigin: http://hooks.example.test\r\n";
    assert_eq!(status(&daemon, "GET /v1/events", other).await.0, 403, "another port is another origin");
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// ---- listeners on public addresses -------------------------------------------------

/// Starts the daemon on `api`, stops it when it is ready, and returns its exit code and log.
async fn log_of_start(flags: &[&str], environment: &[(&str, &str)], api: &str) -> (Option<i32>, String) {
    let below = tempfile::tempdir().unwrap();
    let log = below.path().join("log");
    let mut command = crate::support::serve(&below.path().join("data"), flags);
    command
        .env("BALTO__LOG__LEVEL", "info")
        .envs(environment.iter().copied())
        .env("BALTO__SERVER__API_LISTEN", api)
        .stderr(std::fs::File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    let text = || std::fs::read_to_string(&log).unwrap();
    let deadline = Instant::now() + WAIT_MAX;
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if text().contains("\"ready\"") {
            let output = Command::new("kill").arg(child.id().to_string()).status().unwrap();
            assert!(output.success());
            break child.wait().unwrap().code();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("neither ready nor ended: {}", text());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    (code, text())
}

#[tokio::test]
async fn dev_listener_beyond_loopback_needs_a_second_flag() {
    let (code, log) = log_of_start(&["--dev"], &[], "0.0.0.0:0").await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("--dev-listen-anywhere") && log.contains("server.api_listen"), "{log}");
    let ops = [("BALTO__SERVER__OPS_LISTEN", "0.0.0.0:0")];
    let (code, log) = log_of_start(&["--dev"], &ops, "127.0.0.1:0").await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("server.ops_listen"), "{log}");
    let (code, log) = log_of_start(&["--dev", "--dev-listen-anywhere"], &ops, "0.0.0.0:0").await;
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test]
async fn plain_listener_beyond_loopback_logs_a_warning() {
    let warnings = |log: &str| log.lines().filter(|line| line.contains("plain HTTP")).count();
    let (code, log) = log_of_start(&[], &[], "0.0.0.0:0").await;
    assert_eq!((code, warnings(&log)), (Some(0), 1), "{log}");
    let warning = log.lines().find(|line| line.contains("plain HTTP")).unwrap();
    for part in ["\"WARN\"", "0.0.0.0:", "server.tls_certificate_file", "server.tls_key_file", "proxy"] {
        assert!(warning.contains(part), "{part} is missing: {warning}");
    }
    let (code, log) = log_of_start(&[], &[], "127.0.0.1:0").await;
    assert_eq!((code, warnings(&log)), (Some(0), 0), "{log}");
    let files = Files::new();
    let (code, log) = log_of_start(&[], &files.environment(), "0.0.0.0:0").await;
    assert_eq!((code, warnings(&log)), (Some(0), 0), "{log}");
}

// ---- TLS ---------------------------------------------------------------------------

/// A certificate of `localhost`, its key and its authority, as files.
struct Files {
    directory: tempfile::TempDir,
    certificate: String,
    key: String,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [certificate, key] =
            ["certificate.pem", "key.pem"].map(|name| directory.path().join(name).display().to_string());
        let files = Self { directory, certificate, key };
        files.renew("first", false);
        files
    }

    fn authority(&self) -> PathBuf {
        self.directory.path().join("authority.pem")
    }

    /// Writes a certificate of a new authority.
    fn renew(&self, authority: &str, is_expired: bool) {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, authority);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        if is_expired {
            (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        let issued = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(self.authority(), issuer.pem()).unwrap();
        std::fs::write(&self.key, key.serialize_pem()).unwrap();
        std::fs::write(&self.certificate, issued.pem()).unwrap();
    }

    fn environment(&self) -> [(&str, &str); 2] {
        [
            ("BALTO__SERVER__TLS_CERTIFICATE_FILE", &self.certificate),
            ("BALTO__SERVER__TLS_KEY_FILE", &self.key),
        ]
    }

    fn authority_pem(&self) -> Vec<u8> {
        std::fs::read(self.authority()).unwrap()
    }

    /// A client that trusts only the current authority.
    fn client(&self) -> reqwest::Client {
        client(&self.authority_pem())
    }

    async fn daemon(&self, data: &Path, more: &[(&str, &str)]) -> Daemon {
        let environment = [&self.environment()[..], more].concat();
        Daemon::start_in(data, &["--dev"], &environment).await
    }
}

fn client(authority: &[u8]) -> reqwest::Client {
    let authority = reqwest::Certificate::from_pem(authority).unwrap();
    let builder = reqwest::Client::builder().no_proxy().timeout(2 * WAIT_MAX);
    builder.tls_certs_only([authority]).build().unwrap()
}

fn url(daemon: &Daemon, path: &str) -> String {
    format!("https://localhost:{}/v1{path}", daemon.address().port())
}

#[tokio::test]
async fn api_answers_over_tls_and_the_command_line_verifies_it() {
    let (data, files) = (tempfile::tempdir().unwrap(), Files::new());
    let daemon = files.daemon(data.path(), &[]).await;
    let client = files.client();
    let event = client.post(url(&daemon, "/events")).header("content-type", "application/json");
    let large = format!(r#"{{"type":"a.b","data":"{}"}}"#, "x".repeat(200_000));
    let answer = event.body(large.clone()).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (202, reqwest::Version::HTTP_11));
    for _ in 0..10 {
        let event = client.post(url(&daemon, "/events")).header("content-type", "application/json");
        assert_eq!(event.body(large.clone()).send().await.unwrap().status(), 202);
    }
    let page = client.get(url(&daemon, "/events")).send().await.unwrap();
    assert!(page.text().await.unwrap().len() > 2_000_000, "a response of many TLS records");
    // Plain HTTP gets an error with a remedy, and the daemon's pages are served over TLS only.
    let mut plain = Raw::connect(daemon.address()).await;
    plain.send(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let output = plain.answer().await.unwrap();
    assert_eq!(output.status, 400);
    assert!(output.body.contains("tls_required") && output.head.contains("connection: close"), "{output:?}");
    assert!(plain.is_closed_within(WAIT_MAX).await);
    let page = client.get(url(&daemon, "/events")).header("origin", "http://evil.example").send().await;
    assert_eq!(page.unwrap().status(), 403);

    let list = |environment: &[(&str, &str)]| list_events(&daemon, "localhost", environment);
    let authority = files.authority();
    let authority = authority.to_str().unwrap();
    assert_eq!(list(&[("BALTO_CA_FILE", authority)]).0, Some(0));
    assert_eq!(list(&[("SSL_CERT_FILE", authority)]).0, Some(0));
    let (code, output) = list(&[]);
    assert!(code == Some(1) && output.contains("BALTO_CA_FILE"), "{output}");
    assert!(
        output.contains("cannot be trusted: the certificate is not signed by a known authority"),
        "{output}"
    );
    let (code, output) = list(&[("BALTO_CA_FILE", &files.key)]);
    assert!(code == Some(1) && output.contains("contains no certificate"), "{output}");
}

/// Runs `balto events list` against this host name; returns the exit code and standard error.
fn list_events(daemon: &Daemon, host: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    command.args(["events", "list", "--server", &format!("https://{host}:{}", daemon.address().port())]);
    command.env_remove("BALTO_CA_FILE").envs(environment.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn self_signed_authority_is_trusted_as_the_server_itself() {
    let (data, files) = (tempfile::tempdir().unwrap(), Files::new());
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    std::fs::write(&files.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    let daemon = files.daemon(data.path(), &[]).await;
    let trusted = [("BALTO_CA_FILE", files.certificate.as_str())];
    assert_eq!(list_events(&daemon, "localhost", &trusted).0, Some(0));
    let (code, output) = list_events(&daemon, "127.0.0.1", &trusted);
    assert!(code == Some(1) && output.contains("the certificate is for another name"), "{output}");
    let (code, output) = list_events(&daemon, "localhost", &[]);
    assert!(code == Some(1) && output.contains("cannot be trusted: the certificate "), "{output}");
    assert!(!output.contains("CaUsedAsEndEntity") && !output.contains("egress"), "{output}");
}

#[tokio::test]
async fn reload_replaces_the_certificate_unless_it_is_bad() {
    let (data, files) = (tempfile::tempdir().unwrap(), Files::new());
    let log = data.path().join("log");
    let mut command = crate::support::serve(&data.path().join("data"), &["--dev"]);
    command.envs(files.environment()).env("BALTO__LOG__LEVEL", "info");
    command.stderr(std::fs::File::create(&log).unwrap());
    let daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    let works = async |authority: &[u8]| {
        let client = client(authority);
        client.get(url(&daemon, "/events")).send().await.is_ok()
    };
    let first = files.authority_pem();
    assert!(works(&first).await);
    let good_key = std::fs::read(&files.key).unwrap();

    files.renew("second", false);
    let second = files.authority_pem();
    assert!(works(&first).await && !works(&second).await, "the file is not read before the reload");
    daemon.signal("HUP");
    until("the second certificate is in use", async || works(&second).await).await;
    assert!(!works(&first).await);

    let refusals = || std::fs::read_to_string(&log).unwrap().matches("does not belong").count();
    std::fs::write(&files.key, good_key).unwrap();
    daemon.signal("HUP");
    until("the log reports the mismatched key", async || refusals() == 1).await;
    assert!(std::fs::read_to_string(&log).unwrap().contains("server.tls_key_file"));
    assert!(works(&second).await, "the old pair was dropped");
    std::fs::remove_file(&files.certificate).unwrap();
    daemon.signal("HUP");
    let cannot = || std::fs::read_to_string(&log).unwrap().matches("certificate.pem cannot be read").count();
    until("the log reports the missing file", async || cannot() == 1).await;
    assert!(works(&second).await, "the old pair was dropped");

    files.renew("third", true);
    daemon.signal("HUP");
    let expired =
        || std::fs::read_to_string(&log).unwrap().matches("the certificate expired at 2002-").count();
    until("the log warns", async || expired() == 1).await;
    assert!(!works(&files.authority_pem()).await, "the client accepted an expired certificate");
}

#[tokio::test]
async fn bad_certificate_files_fail_the_start_and_the_check() {
    let files = Files::new();
    let other = Files::new();
    let directory = files.directory.path();
    let empty = directory.join("empty.pem").display().to_string();
    std::fs::write(&empty, "").unwrap();
    let torn = directory.join("torn.pem").display().to_string();
    let whole = std::fs::read_to_string(&files.certificate).unwrap();
    std::fs::write(&torn, &whole[..whole.len() / 2]).unwrap();
    let none = directory.join("none.pem").display().to_string();
    let rows = [
        (&none, &files.key, "tls_certificate_file", "none.pem cannot be read"),
        (&files.certificate, &none, "tls_key_file", "none.pem cannot be read"),
        (&empty, &files.key, "tls_certificate_file", "must be 1 to 8 certificates"),
        (&torn, &files.key, "tls_certificate_file", "cut off"),
        (&files.key, &files.certificate, "tls_certificate_file", "must be 1 to 8 certificates"),
        (&files.certificate, &files.certificate, "tls_key_file", "must be a private key"),
        (&files.certificate, &other.key, "tls_key_file", "does not belong to the first certificate"),
    ];
    let config = directory.join("balto.toml");
    let check = |certificate: &str, key: &str| {
        let text = format!("[server]\ntls_certificate_file = {certificate:?}\ntls_key_file = {key:?}\n");
        std::fs::write(&config, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_balto")).arg("check-config").arg(&config).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (certificate, key, place, reason) in rows {
        let environment = [
            ("BALTO__SERVER__TLS_CERTIFICATE_FILE", certificate.as_str()),
            ("BALTO__SERVER__TLS_KEY_FILE", key.as_str()),
        ];
        let (code, log) = log_of_start(&["--dev"], &environment, "127.0.0.1:0").await;
        assert_eq!(code, Some(1), "{log}");
        let (checked, output) = check(certificate, key);
        assert_eq!(checked, Some(2), "{output}");
        for text in [log, output] {
            assert!(text.contains(place) && text.contains(reason), "{place} {reason}: {text}");
            assert!(!text.contains("PRIVATE"), "{text}");
        }
    }
    assert_eq!(check(&files.certificate, &files.key), (Some(0), String::new()));
    files.renew("late", true);
    let (code, output) = check(&files.certificate, &files.key);
    assert!(
        code == Some(0) && output.contains("warning: ") && output.contains("expired at 2002-01-01"),
        "{output}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_handshakes_do_not_block_other_clients() {
    const SOCKETS: usize = 500;
    let (data, files) = (tempfile::tempdir().unwrap(), Files::new());
    let limits = [("BALTO__SERVER__MAX_CONNECTIONS", "16"), ("BALTO__SERVER__HEADER_TIMEOUT", "1h")];
    let daemon = files.daemon(data.path(), &limits).await;
    let client = files.client();
    // The start of a ClientHello without its rest.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let mut sockets = Vec::new();
    for number in 0..SOCKETS {
        let mut raw = Raw::connect(daemon.address()).await;
        if number % 2 == 0 {
            raw.send(hello).await;
        }
        sockets.push(raw);
        if number % 100 == 99 {
            let answer = client.get(url(&daemon, "/events")).send().await.unwrap();
            assert_eq!(answer.status(), 200, "with {number} sockets");
        }
    }
    assert!(daemon.metric("balto_api_connections", "").await <= 16.0);
    let displaced = async || daemon.metric("balto_api_connections_displaced_total", "").await;
    until("the limit evicts unfinished handshakes", async || displaced().await >= (SOCKETS - 16) as f64)
        .await;
    drop(sockets);
    // Bytes that are not TLS end a connection immediately.
    for garbage in
        [&b"\x00\x01\x02"[..], &b"\x16\x03\x01\xff\xff\xff"[..], &[0x80; 100_000][..], &[0x16; 100_000][..]]
    {
        let mut raw = Raw::connect(daemon.address()).await;
        raw.send(garbage).await;
        raw.half_close().await;
        assert!(raw.is_closed_within(WAIT_MAX).await, "{:?}", &garbage[..3]);
    }
    assert_eq!(client.get(url(&daemon, "/events")).send().await.unwrap().status(), 200);
    assert!(daemon.kibibytes("VmHWM") < 200 * 1024);
}

#[tokio::test]
async fn handshakes_and_responses_over_tls_have_deadlines() {
    let (data, files) = (tempfile::tempdir().unwrap(), Files::new());
    let limits = [("BALTO__SERVER__HEADER_TIMEOUT", "1s"), ("BALTO__SERVER__ANSWER_TIMEOUT", "1s")];
    let daemon = files.daemon(data.path(), &limits).await;
    for bytes in [&b""[..], &b"\x16"[..], &b"\x16\x03\x01\x02\x00\x01\x00"[..]] {
        let mut raw = Raw::connect(daemon.address()).await;
        raw.send(bytes).await;
        assert!(raw.is_closed_within(WAIT_MAX).await, "{bytes:?}");
    }
    let client = files.client();
    let large = format!(r#"{{"type":"a.b","data":"{}"}}"#, "x".repeat(250_000));
    for _ in 0..8 {
        let event = client.post(url(&daemon, "/events")).header("content-type", "application/json");
        assert_eq!(event.body(large.clone()).send().await.unwrap().status(), 202);
    }
    // After the handshake: one client is silent, one does not read its response.
    let mut silent = tls_stream(&daemon, &files).await;
    let mut slow = tls_stream(&daemon, &files).await;
    let request = b"GET /v1/events?limit=250 HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(20);
    slow.write_all(&request).await.unwrap();
    slow.flush().await.unwrap();
    let mut rest = Vec::new();
    let _ended = tokio::time::timeout(WAIT_MAX, silent.read_to_end(&mut rest))
        .await
        .expect("the connection stays open");
    until("the reader's connection is closed", async || {
        daemon.metric("balto_api_connections", "").await == 0.0
    })
    .await;
    let read =
        tokio::time::timeout(WAIT_MAX, slow.read_to_end(&mut rest)).await.expect("the connection stays open");
    assert!(read.is_err() || rest.len() < 20 * 2_000_000, "a response is missing");
}

type Tls = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

async fn tls_stream(daemon: &Daemon, files: &Files) -> Tls {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(files.authority()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let stream = socket.connect(daemon.address()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

/// The certificate does not depend on the name that the client requests.
#[tokio::test]
async fn client_with_another_server_name_gets_the_same_certificate() {
    let (data, files) = (tempfile::tempdir().unwrap(), Files::new());
    let mut command = quiet(crate::support::serve(data.path(), &["--dev"]));
    command.envs(files.environment());
    let daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    let authority = reqwest::Certificate::from_pem(&std::fs::read(files.authority()).unwrap()).unwrap();
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([authority]);
    let client = builder.resolve("other.example", daemon.address()).build().unwrap();
    let error = client.get(format!("https://other.example:{}/", daemon.address().port())).send().await;
    let output = format!("{:?}", error.unwrap_err());
    assert!(output.contains("NotValidForName"), "{output}");
}
