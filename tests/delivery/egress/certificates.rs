//! Certificates of every kind, and a TLS receiver that records its requests.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use balto::courier::tls::provider;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use rustls::{
    ConfigBuilder, NamedGroup, RootCertStore, ServerConfig, SupportedProtocolVersion, WantsVerifier,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{answer, next_request};

/// A certificate authority of the test.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
pub(crate) struct Certificate {
    pub(crate) pem: String,
    pub(crate) key_pem: String,
    der: CertificateDer<'static>,
    key: KeyPair,
}

impl Certificate {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }

    pub(crate) fn key_der(&self) -> &[u8] {
        self.key.serialized_der()
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    /// Trusts this certificate as `egress.ca_file` does.
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        Arc::new(roots)
    }
}

pub(crate) fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names.clone()).unwrap();
    params.distinguished_name.push(DnType::CommonName, names.first().cloned().unwrap_or_default());
    params
}

/// Expired long ago.
pub(crate) fn expired(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2001, 1, 1);
    params.not_after = date_time_ymd(2002, 1, 1);
    params
}

/// Valid only in the distant future.
pub(crate) fn early(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2990, 1, 1);
    params.not_after = date_time_ymd(2999, 1, 1);
    params
}

fn certificate(issued: &rcgen::Certificate, key: KeyPair) -> Certificate {
    Certificate { pem: issued.pem(), key_pem: key.serialize_pem(), der: issued.der().clone(), key }
}

/// Like a certificate of `openssl req -x509`.
pub(crate) fn as_authority(mut params: CertificateParams) -> CertificateParams {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_key(name, KeyPair::generate().unwrap())
    }

    pub(crate) fn with_key(name: &str, key: KeyPair) -> Self {
        let mut params = as_authority(params(&[]));
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }

    pub(crate) fn issue(&self, params: &CertificateParams) -> Certificate {
        self.issue_for(params, KeyPair::generate().unwrap())
    }

    pub(crate) fn issue_for(&self, params: &CertificateParams, key: KeyPair) -> Certificate {
        let issued = params.signed_by(&key, &self.0).unwrap();
        certificate(&issued, key)
    }
}

pub(crate) fn self_signed(params: &CertificateParams) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let issued = params.self_signed(&key).unwrap();
    certificate(&issued, key)
}

/// Produces any number of session tickets.
#[derive(Debug)]
struct Tickets;

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        1
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        Some(vec![1])
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// A receiver that sends this number of session tickets of 50 bytes each, which HTTP never sees,
/// and no other data.
pub(crate) async fn floods_with_tickets(own: &Certificate, tickets: usize) -> SocketAddr {
    let mut config =
        server_config().with_no_client_auth().with_single_cert(vec![own.der.clone()], own.key()).unwrap();
    config.ticketer = Arc::new(Tickets);
    config.send_tls13_tickets = tickets;
    // Twenty tickets fit into a record of a thousand bytes, so that none is split: rustls buffers
    // only a few of those.
    config.max_fragment_size = Some(1_005);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut accepted = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        // Until the client closes the connection.
        while accepted.read(&mut [0; 1_024]).await.is_ok_and(|read| read > 0) {}
    });
    address
}

fn server_config() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    let builder = ServerConfig::builder_with_provider(provider());
    builder.with_safe_default_protocol_versions().unwrap()
}

/// Requests no client certificate.
pub(crate) fn plain_config(own: &Certificate) -> Arc<ServerConfig> {
    let config = server_config().with_no_client_auth();
    Arc::new(config.with_single_cert(vec![own.der.clone()], own.key()).unwrap())
}

/// With one version of TLS, and with one key exchange group if it is given.
fn narrow_config(
    version: &'static SupportedProtocolVersion,
    group: Option<NamedGroup>,
) -> ConfigBuilder<ServerConfig, WantsVerifier> {
    let mut provider = CryptoProvider::clone(&provider());
    provider.kx_groups.retain(|known| group.is_none_or(|group| known.name() == group));
    let builder = ServerConfig::builder_with_provider(Arc::new(provider));
    builder.with_protocol_versions(&[version]).unwrap()
}

/// One request over TLS.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The number of its connection, from 0.
    pub(crate) connection: usize,
    pub(crate) server_name: Option<String>,
    pub(crate) protocol: Option<Vec<u8>>,
    pub(crate) offered: Vec<Vec<u8>>,
    /// The client certificate.
    pub(crate) client: Option<Vec<u8>>,
    pub(crate) line: String,
    pub(crate) host: String,
}

/// A receiver with TLS at 127.0.0.1 that answers 200.
pub(crate) struct Secure {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    goodbyes: Arc<Mutex<Vec<bool>>>,
}

/// Whether a receiver requests client certificates.
pub(crate) enum Clients<'a> {
    NotRequested,
    Signed(&'a Authority),
}

impl Secure {
    pub(crate) async fn start(own: &Certificate, clients: Clients<'_>) -> Self {
        Self::serve(server_config(), own, clients).await
    }

    /// With only this version of TLS and this group.
    pub(crate) async fn narrow(
        version: &'static SupportedProtocolVersion,
        group: Option<NamedGroup>,
        own: &Certificate,
        clients: Clients<'_>,
    ) -> Self {
        Self::serve(narrow_config(version, group), own, clients).await
    }

    async fn serve(
        builder: ConfigBuilder<ServerConfig, WantsVerifier>,
        own: &Certificate,
        clients: Clients<'_>,
    ) -> Self {
        let builder = match clients {
            Clients::NotRequested => builder.with_no_client_auth(),
            Clients::Signed(authority) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(authority.roots(), provider());
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut config = builder.with_single_cert(vec![own.der.clone()], own.key()).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (kept, connections) = (seen.clone(), AtomicUsize::new(0));
        let goodbyes: Arc<Mutex<Vec<bool>>> = Arc::default();
        let ended = goodbyes.clone();
        let config = Arc::new(config);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = connections.fetch_add(1, Ordering::SeqCst);
                let (kept, ended, config) = (kept.clone(), ended.clone(), config.clone());
                tokio::spawn(async move {
                    let hello =
                        tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
                    let Ok(start) = hello.await else { return };
                    let offered =
                        start.client_hello().alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
                    let Ok(mut stream) = start.into_stream(config).await else { return };
                    let session = stream.get_ref().1;
                    let first = Seen {
                        connection,
                        server_name: session.server_name().map(str::to_owned),
                        protocol: session.alpn_protocol().map(<[u8]>::to_vec),
                        offered,
                        client: session.peer_certificates().map(|chain| chain[0].to_vec()),
                        line: String::new(),
                        host: String::new(),
                    };
                    let mut buffer = Vec::new();
                    while let Some(request) = next_request(&mut stream, &mut buffer).await {
                        let (line, host) = (request.line, request.headers["host"].clone());
                        kept.lock().unwrap().push(Seen { line, host, ..first.clone() });
                        if stream.write_all(answer(200).as_bytes()).await.is_err() {
                            return;
                        }
                    }
                    let goodbye = matches!(stream.read(&mut [0; 1]).await, Ok(0));
                    ended.lock().unwrap().push(goodbye);
                });
            }
        });
        Self { address, seen, goodbyes }
    }

    /// For each ended connection that had requests: whether the client sent `close_notify`.
    pub(crate) fn close_notifies(&self) -> Vec<bool> {
        self.goodbyes.lock().unwrap().clone()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}
