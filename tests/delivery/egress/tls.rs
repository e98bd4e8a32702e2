//! Keys, certificates and failures of TLS receivers.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use balto::courier::tls::{CheckedCertificate, ClientIdentity};
use balto::courier::{Courier, CourierSettings, OutboundRequest};
use balto::domain::ReceiverAnswer::Status;
use balto::domain::{EndpointNumber, ErrorClass, Timestamp};
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
    PKCS_RSA_SHA512, SignatureAlgorithm,
};
use rustls::version::{TLS12, TLS13};
use rustls::{NamedGroup, RootCertStore};

use super::certificates::{
    Authority, Certificate, Clients, Secure, as_authority, early, expired, params, self_signed,
};
use super::fixture::{failure, fixed_resolver, open, outbound_request, settings};
use crate::support::{WAIT_MAX, has_program, say};

const HOST: &str = "hooks.example";

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

/// A courier that trusts these roots, and resolves every name to this machine.
fn trusting(roots: Arc<RootCertStore>) -> Courier {
    let settings = settings(open(&["127.0.0.0/8"]), fixed_resolver(&["127.0.0.1"]));
    Courier::new(CourierSettings { roots, ..settings }).unwrap()
}

fn to(port: u16) -> OutboundRequest {
    outbound_request(&format!("https://{HOST}:{port}/"), WAIT_MAX)
}

/// The error of the attempt's record; empty after a delivery.
async fn outcome(courier: &Courier, outbound_request: OutboundRequest) -> String {
    let reply = courier.send(outbound_request).await.unwrap();
    if reply.outcome == Ok(Status(200)) {
        return String::new();
    }
    let (class, words) = failure(&reply);
    assert_eq!(class, ErrorClass::Tls, "{words}");
    words.to_owned()
}

#[tokio::test]
async fn keys_of_every_kind_are_accepted() {
    let kinds = [
        ("P-256", &PKCS_ECDSA_P256_SHA256),
        ("P-384", &PKCS_ECDSA_P384_SHA384),
        ("P-521", &PKCS_ECDSA_P521_SHA512),
        ("Ed25519", &PKCS_ED25519),
        ("RSA", &PKCS_RSA_SHA512),
    ];
    for (name, kind) in kinds {
        for version in [&TLS12, &TLS13] {
            let authority = Authority::new("authority");
            let own = authority.issue_for(&params(&[HOST]), key(kind));
            let receiver = Secure::narrow(version, None, &own, Clients::NotRequested).await;
            let words = outcome(&trusting(authority.roots()), to(receiver.address.port())).await;
            assert_eq!(words, "", "a receiver's key of {name}, {version:?}");

            let authority = Authority::with_key("authority", key(kind));
            let receiver =
                Secure::narrow(version, None, &authority.issue(&params(&[HOST])), Clients::NotRequested)
                    .await;
            let words = outcome(&trusting(authority.roots()), to(receiver.address.port())).await;
            assert_eq!(words, "", "an authority's key of {name}, {version:?}");
        }
    }
}

#[tokio::test]
async fn client_certificates_of_every_kind_are_presented() {
    let authority = Authority::new("authority");
    for (name, kind) in [
        ("P-256", &PKCS_ECDSA_P256_SHA256),
        ("P-384", &PKCS_ECDSA_P384_SHA384),
        ("P-521", &PKCS_ECDSA_P521_SHA512),
        ("Ed25519", &PKCS_ED25519),
        ("RSA", &PKCS_RSA_SHA512),
    ] {
        for version in [&TLS12, &TLS13] {
            let own = authority.issue(&params(&[HOST]));
            let receiver = Secure::narrow(version, None, &own, Clients::Signed(&authority)).await;
            let client = authority.issue_for(&params(&["client"]), key(kind));
            let checked = CheckedCertificate::parse(&client.pem, &client.key_pem, Timestamp::default());
            let checked = checked.unwrap_or_else(|error| panic!("{name} is refused when saved: {error}"));
            let identity = ClientIdentity::new(EndpointNumber(1), &checked.chain, checked.key);
            let outbound_request = to(receiver.address.port()).with_identity(Some(identity));
            assert_eq!(
                outcome(&trusting(authority.roots()), outbound_request).await,
                "",
                "{name}, {version:?}"
            );
            assert_eq!(receiver.seen()[0].client.as_deref(), Some(client.der()), "{name}, {version:?}");
        }
    }
}

#[tokio::test]
async fn key_exchange_works_over_every_curve() {
    let authority = Authority::new("authority");
    let own = authority.issue_for(&params(&[HOST]), key(&PKCS_ECDSA_P521_SHA512));
    let courier = trusting(authority.roots());
    for group in [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1, NamedGroup::secp521r1] {
        for version in [&TLS12, &TLS13] {
            let receiver = Secure::narrow(version, Some(group), &own, Clients::NotRequested).await;
            let words = outcome(&courier, to(receiver.address.port())).await;
            assert_eq!(words, "", "{group:?}, {version:?}");
        }
    }
    let receiver =
        Secure::narrow(&TLS13, Some(NamedGroup::X25519MLKEM768), &own, Clients::NotRequested).await;
    assert_eq!(outcome(&courier, to(receiver.address.port())).await, "", "a hybrid group");
}

/// `openssl req -x509` makes such certificates, and operators put them into `egress.ca_file`.
#[tokio::test]
async fn trusted_authority_is_accepted_as_server_certificate() {
    let listed = |certificate: &Certificate| certificate.roots();
    let unlisted = |_: &Certificate| Authority::new("other").roots();
    type Roots<'a> = &'a dyn Fn(&Certificate) -> Arc<RootCertStore>;
    let rows: [(&str, Certificate, Roots<'_>, &str); 6] = [
        ("CA:TRUE", self_signed(&as_authority(params(&[HOST]))), &listed, ""),
        ("CA:FALSE", self_signed(&params(&[HOST])), &listed, ""),
        (
            "another name",
            self_signed(&as_authority(params(&["other.example"]))),
            &listed,
            "the certificate is for another name",
        ),
        (
            "expired",
            self_signed(&expired(as_authority(params(&[HOST])))),
            &listed,
            "the certificate has expired",
        ),
        (
            "early",
            self_signed(&early(as_authority(params(&[HOST])))),
            &listed,
            "the certificate is not valid yet",
        ),
        (
            "not listed",
            self_signed(&as_authority(params(&[HOST]))),
            &unlisted,
            "the certificate belongs to an untrusted authority (CA:TRUE); add it to egress.ca_file, or issue a separate certificate for the receiver",
        ),
    ];
    for (what, certificate, roots, words) in rows {
        let receiver = Secure::start(&certificate, Clients::NotRequested).await;
        let found = outcome(&trusting(roots(&certificate)), to(receiver.address.port())).await;
        assert_eq!(found, words, "{what}");
        assert_eq!(receiver.seen().len(), usize::from(words.is_empty()), "{what}");
    }
}

#[tokio::test]
async fn missing_and_refused_client_certificates_are_distinct() {
    let authority = Authority::new("authority");
    let own = authority.issue(&params(&[HOST]));
    let courier = trusting(authority.roots());
    for version in [&TLS12, &TLS13] {
        let receiver = Secure::narrow(version, None, &own, Clients::Signed(&authority)).await;
        let missing = outcome(&courier, to(receiver.address.port())).await;
        assert_eq!(missing, "the receiver asks for a client certificate", "{version:?}");
        let foreign = Authority::new("stranger").issue(&params(&["stranger"]));
        let identity =
            ClientIdentity::new(EndpointNumber(1), &[foreign.der().into()], foreign.key_der().to_vec());
        let refused = outcome(&courier, to(receiver.address.port()).with_identity(Some(identity))).await;
        assert_eq!(refused, "the receiver did not accept the client certificate", "{version:?}");
    }
}

/// Runs OpenSSL in this directory.
fn openssl(directory: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    command.current_dir(directory).args(arguments.split(' ')).stdout(Stdio::null()).stderr(Stdio::piped());
    let done = command.output().unwrap();
    assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A receiver with OpenSSL, because `openssl s_server` answers no POST. Prints its port.
const RECEIVER: &str = r#"
import http.server, ssl, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
exec(sys.argv[1])
context.load_cert_chain("own.pem", "own.key")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

/// Ends with the test.
struct OpenSslReceiver {
    process: Child,
    port: u16,
}

impl OpenSslReceiver {
    fn start(directory: &Path, settings: &str) -> Self {
        let mut command = Command::new("python3");
        command.current_dir(directory).args(["-c", RECEIVER, settings]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let port = port.trim().parse().unwrap_or_else(|_| panic!("no receiver with {settings}"));
        Self { process, port }
    }
}

impl Drop for OpenSslReceiver {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// An OpenSSL authority, and a certificate for [`HOST`] that it signed with these options.
fn signed_by_openssl(directory: &Path, options: &str) -> Arc<RootCertStore> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    openssl(
        directory,
        "req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=authority -keyout ca.key -out ca.pem",
    );
    openssl(directory, &format!("req -newkey rsa:2048 -nodes -subj /CN={HOST} -keyout own.key -out own.csr"));
    std::fs::write(directory.join("names"), format!("subjectAltName=DNS:{HOST}\n")).unwrap();
    openssl(
        directory,
        &format!(
            "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -set_serial 2 -days 9 -extfile names -out own.pem {options}"
        ),
    );
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap()).unwrap();
    Arc::new(roots)
}

#[tokio::test]
async fn openssl_receivers_get_deliveries_or_a_clear_error() {
    if !has_program("openssl") || !has_program("python3") {
        say("SKIPPED: there is no openssl or no python3 here");
        return;
    }
    const NO_CIPHER: &str = "the receiver accepts no safe cipher, key exchange or signature algorithm";
    const SHA_1: &str =
        "the certificate chain is signed with SHA-1 with RSA, which is unsafe; use SHA-256 or better";
    /// OpenSSL's default salt; certificates of public authorities have a salt as long as the
    /// digest.
    const LONG_SALT: &str =
        "the certificate chain is signed with these parameters of RSA-PSS, which is not supported";
    const NO_CLIENT: &str = "the receiver asks for a client certificate";
    let only = |version: &str| {
        format!("context.minimum_version = context.maximum_version = ssl.TLSVersion.{version}; ")
    };
    let asks = "context.load_verify_locations('ca.pem'); context.verify_mode = ssl.CERT_REQUIRED";
    let p521 = "context.set_ecdh_curve('secp521r1')";
    let rows = [
        ("-sha256", String::new(), ""),
        ("-sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest", String::new(), ""),
        ("-sha256 -sigopt rsa_padding_mode:pss", String::new(), LONG_SALT),
        ("-sha1", "context.set_ciphers('DEFAULT@SECLEVEL=0')".to_owned(), SHA_1),
        ("-sha256", only("TLSv1_2") + asks, NO_CLIENT),
        ("-sha256", only("TLSv1_3") + asks, NO_CLIENT),
        ("-sha256", only("TLSv1_2") + "context.set_ciphers('AES128-SHA')", NO_CIPHER),
        ("-sha256", only("TLSv1_2") + p521, ""),
        ("-sha256", only("TLSv1_3") + p521, ""),
    ];
    for (options, settings, words) in rows {
        let directory = tempfile::tempdir().unwrap();
        let roots = signed_by_openssl(directory.path(), options);
        let receiver = OpenSslReceiver::start(directory.path(), &settings);
        let found = outcome(&trusting(roots), to(receiver.port)).await;
        assert_eq!(found, words, "{options}; {settings}");
    }
}
