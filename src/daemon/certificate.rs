//! The certificate of the API listener.
//!
//! Owns: reading, checking and replacing certificate and key. A replacement affects new connections
//! alone. Must never show the private key.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::config::{ConfigError, Origin, Server, read_bounded, read_secret};
use crate::courier::tls::{self, IdentityError};
use crate::domain::Timestamp;

pub(super) const CERTIFICATE_KEY: &str = "server.tls_certificate_file";
const PRIVATE_KEY: &str = "server.tls_key_file";

/// A checked certificate with its key.
pub(super) struct ListenerCertificate {
    key: Arc<CertifiedKey>,
    /// Distinguished name of the subject, for the log.
    pub(super) subject: String,
    pub(super) expires_at: Timestamp,
}

impl ListenerCertificate {
    /// `None` for a listener with plain HTTP.
    pub(super) fn load(server: &Server) -> Result<Option<Self>, ConfigError> {
        let (Some(certificate), Some(key)) = (&server.tls_certificate_file, &server.tls_key_file) else {
            return Ok(None);
        };
        let error = |name: &str, path: &Path, reason: String| ConfigError {
            origin: Origin::Default,
            key: Some(name.to_owned()),
            reason: format!("{} {reason}", path.display()),
        };
        let unreadable =
            |name, path, cause: std::io::Error| error(name, path, format!("cannot be read: {cause}"));
        let texts = (
            read_bounded(certificate).map_err(|cause| unreadable(CERTIFICATE_KEY, certificate, cause))?,
            read_secret(key).map_err(|cause| unreadable(PRIVATE_KEY, key, cause))?,
        );
        let checked = tls::CheckedCertificate::read(&texts.0, &texts.1).and_then(|checked| {
            let key = checked.certified_key()?;
            Ok(Self { key: Arc::new(key), subject: checked.subject, expires_at: checked.expires_at })
        });
        checked.map(Some).map_err(|wrong| match wrong {
            IdentityError::Certificate(reason) => error(CERTIFICATE_KEY, certificate, reason),
            IdentityError::Key(reason) => error(PRIVATE_KEY, key, reason),
        })
    }

    /// Clients refuse an expired certificate. It does not stop the daemon, because deliveries do
    /// not need it.
    pub(super) fn expiry_warning(&self, now: Timestamp) -> Option<String> {
        (self.expires_at <= now)
            .then(|| format!("the certificate expired at {}; clients refuse it", self.expires_at.rfc3339()))
    }
}

/// TLS of a listener, with a replaceable certificate.
#[derive(Clone)]
pub(super) struct ListenerTls(Arc<CurrentCertificate>);

impl ListenerTls {
    pub(super) fn new(certificate: &ListenerCertificate) -> Self {
        Self(Arc::new(CurrentCertificate(ArcSwap::new(certificate.key.clone()))))
    }

    /// New handshakes present this certificate.
    pub(super) fn replace(&self, certificate: &ListenerCertificate) {
        self.0.0.store(certificate.key.clone());
    }

    pub(super) fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .context("TLS cannot be set up")?
            .with_no_client_auth()
            .with_cert_resolver(self.0.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// The same certificate for all names.
struct CurrentCertificate(ArcSwap<CertifiedKey>);

impl fmt::Debug for CurrentCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentCertificate(..)")
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}
