//! TLS to receivers: trusted authorities, client certificates and error messages.
//!
//! Owns the trusted authorities, and client certificates with their checks. Only TLS 1.2 and 1.3
//! are supported, and ALPN offers only HTTP/1.1. Revocation is not checked: the check would send a
//! request to an address from a stranger's certificate. Must never show a private key.

mod messages;
mod provider;
mod verifier;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, InconsistentKeys, RootCertStore};
use sha2::{Digest as _, Sha256};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode as _;

use crate::domain::{EndpointNumber, Timestamp};
use crate::limits;
pub(super) use messages::describe;
pub use messages::describe_server;
pub use provider::{install_provider, provider};
pub(super) use verifier::{ClientCertificateUse, record_certificate_request};
use verifier::{ReceiverVerifier, RecordingResolver};

/// The machine's trusted authorities (overridden by `SSL_CERT_FILE` and `SSL_CERT_DIR`), and those
/// in `file`.
///
/// # Errors
/// When `file` cannot be read or holds no certificate. A machine without authorities only logs a
/// warning.
pub fn roots(file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "trusted authorities of this machine unreadable");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = file {
        let at_path = |reason: String| format!("{}: {reason}", path.display());
        let text = std::fs::read(path).map_err(|error| at_path(error.to_string()))?;
        let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|e| at_path(pem_message(&e)))?;
        if found.is_empty() {
            return Err(at_path("contains no certificate".to_owned()));
        }
        for certificate in found {
            roots
                .add(certificate)
                .map_err(|error| at_path(format!("not a certificate of an authority: {error}")))?;
        }
    }
    if roots.is_empty() {
        tracing::warn!(
            "no trusted authority, every https attempt fails: install ca-certificates, or set SSL_CERT_FILE or egress.ca_file"
        );
    }
    Ok(roots)
}

/// The TLS configuration of connections to receivers, and of client commands to the daemon.
///
/// # Errors
/// When the client certificate or its key is invalid.
pub fn client_config(
    roots: Arc<RootCertStore>,
    identity: Option<&ClientIdentity>,
) -> Result<ClientConfig, String> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ReceiverVerifier { roots, algorithms }));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key()?)
            .map_err(|error| error.to_string())?,
    };
    config.client_auth_cert_resolver = Arc::new(RecordingResolver(config.client_auth_cert_resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The client certificate of an endpoint's connections, with its private key.
pub struct ClientIdentity {
    owner: EndpointNumber,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientIdentity(endpoint {})", self.owner.0)
    }
}

impl ClientIdentity {
    /// `chain` and `key` in DER, as returned by [`CheckedCertificate`].
    #[must_use]
    pub fn new(owner: EndpointNumber, chain: &[Box<[u8]>], key: Vec<u8>) -> Self {
        let chain = chain.iter().map(|certificate| CertificateDer::from(certificate.to_vec())).collect();
        Self { owner, chain, key }
    }

    /// The key of this identity's connection pool. Identities with different keys share no
    /// connection.
    pub(super) fn pool_key(&self) -> (EndpointNumber, [u8; 32]) {
        let leaf = self.chain.first().map(AsRef::as_ref).unwrap_or_default();
        (self.owner, Sha256::digest(leaf).into())
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, String> {
        let key = PrivateKeyDer::try_from(&self.key[..]).map_err(ToString::to_string)?;
        Ok(key.clone_key())
    }
}

/// A valid client certificate: it parses and the private key belongs to it.
pub struct CheckedCertificate {
    /// The chain in DER, leaf first.
    pub chain: Vec<Box<[u8]>>,
    /// The private key in DER.
    pub key: Vec<u8>,
    /// Distinguished name (RFC 4514).
    pub subject: String,
    pub expires_at: Timestamp,
}

impl fmt::Debug for CheckedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckedCertificate({})", self.subject)
    }
}

/// Error in the certificate or in the private key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("{0}")]
    Certificate(String),
    #[error("{0}")]
    Key(String),
}

impl CheckedCertificate {
    /// Parses and checks a certificate with its chain and its private key (PKCS #8, PKCS #1 or SEC
    /// 1), both in PEM.
    ///
    /// # Errors
    /// When either is invalid or the certificate has expired. The message never quotes the input.
    pub fn parse(certificate: &str, key: &str, now: Timestamp) -> Result<Self, IdentityError> {
        let checked = Self::read(certificate, key)?;
        if checked.expires_at <= now {
            return Err(IdentityError::Certificate("has expired".to_owned()));
        }
        Ok(checked)
    }

    /// Like [`Self::parse`], but accepts an expired certificate.
    ///
    /// # Errors
    /// When either is invalid. The message never quotes the input.
    pub fn read(certificate: &str, key: &str) -> Result<Self, IdentityError> {
        let chain = parse_chain(certificate).map_err(IdentityError::Certificate)?;
        let key = parse_key(key).map_err(IdentityError::Key)?;
        let checked = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider());
        if let Err(error) = checked {
            return Err(match error {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    IdentityError::Key("does not belong to the first certificate".to_owned())
                }
                rustls::Error::InvalidCertificate(_) => {
                    IdentityError::Certificate("is not an X.509 version 3 certificate".to_owned())
                }
                _ => IdentityError::Key("has an unsupported type".to_owned()),
            });
        }
        let (subject, expires_at) = subject_and_expiry(&chain[0]).map_err(IdentityError::Certificate)?;
        let chain = chain.iter().map(|certificate| Box::from(certificate.as_ref())).collect();
        Ok(Self { chain, key: key.secret_der().to_vec(), subject, expires_at })
    }

    /// The certificate as a TLS server presents it.
    ///
    /// # Errors
    /// Never after a successful [`Self::read`], which checks the same.
    pub fn certified_key(&self) -> Result<CertifiedKey, IdentityError> {
        let invalid = |error: rustls::Error| IdentityError::Key(error.to_string());
        let chain = self.chain.iter().map(|certificate| CertificateDer::from(certificate.to_vec())).collect();
        let key = PrivateKeyDer::try_from(self.key.clone())
            .map_err(|error| IdentityError::Key(error.to_owned()))?;
        CertifiedKey::from_der(chain, key, &provider()).map_err(invalid)
    }
}

fn parse_chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    if pem.len() > limits::CLIENT_CERTIFICATE_BYTES_MAX {
        return Err(format!("at most {} bytes", limits::CLIENT_CERTIFICATE_BYTES_MAX));
    }
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| pem_message(&e))?;
    if chain.is_empty() || chain.len() > limits::CLIENT_CERTIFICATES_MAX {
        return Err(format!("must be 1 to {} certificates in PEM", limits::CLIENT_CERTIFICATES_MAX));
    }
    for certificate in &chain {
        subject_and_expiry(certificate)?;
    }
    Ok(chain)
}

fn parse_key(pem: &str) -> Result<PrivateKeyDer<'static>, String> {
    if pem.len() > limits::CLIENT_KEY_BYTES_MAX {
        return Err(format!("at most {} bytes", limits::CLIENT_KEY_BYTES_MAX));
    }
    if pem.contains("ENCRYPTED") {
        return Err("is encrypted; remove the passphrase first".to_owned());
    }
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| match error {
        PemError::NoItemsFound => "must be a private key in PEM".to_owned(),
        other => pem_message(&other),
    })
}

/// A message that does not quote the text. The parser's own message may, and the text may be a key.
fn pem_message(error: &PemError) -> String {
    match error {
        PemError::MissingSectionEnd { .. } => "is cut off: a PEM section has no end line",
        PemError::NoItemsFound => "contains no PEM section",
        _ => "is not well-formed PEM",
    }
    .to_owned()
}

/// The subject and the expiry time of a certificate.
fn subject_and_expiry(certificate: &CertificateDer<'_>) -> Result<(String, Timestamp), String> {
    let parsed = CertificateInner::<Raw>::from_der(certificate)
        .map_err(|_| "is not a certificate (X.509)".to_owned())?;
    let parsed = parsed.tbs_certificate();
    let end: Duration = parsed.validity().not_after.to_unix_duration();
    let end = Timestamp::from_millis(u64::try_from(end.as_millis()).unwrap_or(u64::MAX));
    Ok((parsed.subject().to_string(), end))
}
