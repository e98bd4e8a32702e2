//! TLS towards receivers: trusted authorities, client certificates, and failures as sentences.
//!
//! Owns: the trusted authorities, and client certificates with their checks. Versions below 1.2 are not spoken, and HTTP/1.1
//! is all that is offered. Revocation is not looked up: that would be a request to an address that a stranger's
//! certificate names. Must never show a private key.

mod provider;
mod verifier;
mod words;

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
pub use provider::{install_provider, provider};
pub(super) use verifier::{ClientCertificate, noting_request};
use verifier::{NotingResolver, ReceiverVerifier};
pub(super) use words::describe;
pub use words::describe_server;

/// The machine's authorities (`SSL_CERT_FILE` and `SSL_CERT_DIR` say where they are, when set), and those of a file
/// beside them.
///
/// # Errors
/// When the file cannot be read, or holds no certificate. A machine without any authority is a warning.
pub fn roots(file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "trusted authorities of this machine unreadable");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = file {
        let wrong = |what: String| format!("{}: {what}", path.display());
        let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|e| wrong(pem_words(&e)))?;
        if found.is_empty() {
            return Err(wrong("there is no certificate in it".to_owned()));
        }
        for certificate in found {
            roots
                .add(certificate)
                .map_err(|error| wrong(format!("not a certificate of an authority: {error}")))?;
        }
    }
    if roots.is_empty() {
        tracing::warn!(
            "no trusted authority, every https attempt fails: install ca-certificates, or set SSL_CERT_FILE or egress.ca_file"
        );
    }
    Ok(roots)
}

/// The TLS settings of connections to receivers, and of client commands to the daemon.
///
/// # Errors
/// When the client certificate and its key cannot be used.
pub fn client_config(roots: Arc<RootCertStore>, identity: Option<&Identity>) -> Result<ClientConfig, String> {
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
    config.client_auth_cert_resolver = Arc::new(NotingResolver(config.client_auth_cert_resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Who an endpoint's connections say that they are.
pub struct Identity {
    owner: EndpointNumber,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(of endpoint {})", self.owner.0)
    }
}

impl Identity {
    /// Chain and key as [`CheckedCertificate`] checked them, both in DER.
    #[must_use]
    pub fn new(owner: EndpointNumber, chain: &[Box<[u8]>], key: Vec<u8>) -> Self {
        let chain = chain.iter().map(|certificate| CertificateDer::from(certificate.to_vec())).collect();
        Self { owner, chain, key }
    }

    /// Connections are shared by nobody who has another one of these.
    pub(super) fn name(&self) -> (EndpointNumber, [u8; 32]) {
        let leaf = self.chain.first().map(AsRef::as_ref).unwrap_or_default();
        (self.owner, Sha256::digest(leaf).into())
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, String> {
        let key = PrivateKeyDer::try_from(&self.key[..]).map_err(ToString::to_string)?;
        Ok(key.clone_key())
    }
}

/// A client certificate that was checked: it parses, it is not over, and the key is its own.
pub struct CheckedCertificate {
    /// Its own certificate first, in DER.
    pub chain: Vec<Box<[u8]>>,
    /// In DER.
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

/// Which of the two texts is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("{0}")]
    Certificate(String),
    #[error("{0}")]
    Key(String),
}

impl CheckedCertificate {
    /// From PEM: the certificate with its chain, and its private key (PKCS #8, PKCS #1 or SEC 1).
    ///
    /// # Errors
    /// What is wrong with which of them; never a word of their contents.
    pub fn parse(certificate: &str, key: &str, now: Timestamp) -> Result<Self, IdentityError> {
        let checked = Self::read(certificate, key)?;
        if checked.expires_at <= now {
            return Err(IdentityError::Certificate("has expired".to_owned()));
        }
        Ok(checked)
    }

    /// As [`Self::parse`], whether it has expired or not.
    ///
    /// # Errors
    /// What is wrong with which of them; never a word of their contents.
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
                    IdentityError::Certificate("is not a certificate of version 3 (X.509)".to_owned())
                }
                _ => IdentityError::Key("is of a kind that is not supported".to_owned()),
            });
        }
        let (subject, expires_at) = facts(&chain[0]).map_err(IdentityError::Certificate)?;
        let chain = chain.iter().map(|certificate| Box::from(certificate.as_ref())).collect();
        Ok(Self { chain, key: key.secret_der().to_vec(), subject, expires_at })
    }

    /// What a server shows its clients.
    ///
    /// # Errors
    /// As [`Self::read`]; none that it has not found.
    pub fn certified_key(&self) -> Result<CertifiedKey, IdentityError> {
        let wrong = |error: rustls::Error| IdentityError::Key(error.to_string());
        let chain = self.chain.iter().map(|certificate| CertificateDer::from(certificate.to_vec())).collect();
        let key = PrivateKeyDer::try_from(self.key.clone())
            .map_err(|error| IdentityError::Key(error.to_owned()))?;
        CertifiedKey::from_der(chain, key, &provider()).map_err(wrong)
    }
}

fn parse_chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    if pem.len() > limits::CLIENT_CERTIFICATE_BYTES_MAX {
        return Err(format!("at most {} bytes", limits::CLIENT_CERTIFICATE_BYTES_MAX));
    }
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| pem_words(&e))?;
    if chain.is_empty() || chain.len() > limits::CLIENT_CERTIFICATES_MAX {
        return Err(format!("must be 1 to {} certificates in PEM", limits::CLIENT_CERTIFICATES_MAX));
    }
    for certificate in &chain {
        facts(certificate)?;
    }
    Ok(chain)
}

fn parse_key(pem: &str) -> Result<PrivateKeyDer<'static>, String> {
    if pem.len() > limits::CLIENT_KEY_BYTES_MAX {
        return Err(format!("at most {} bytes", limits::CLIENT_KEY_BYTES_MAX));
    }
    if pem.contains("ENCRYPTED") {
        return Err("is encrypted; take the passphrase off first".to_owned());
    }
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| match error {
        PemError::NoItemsFound => "must be a private key in PEM".to_owned(),
        other => pem_words(&other),
    })
}

/// What the parser says may quote the text, which may be a key.
fn pem_words(error: &PemError) -> String {
    match error {
        PemError::MissingSectionEnd { .. } => "is cut off: a section of PEM does not end",
        PemError::NoItemsFound => "holds nothing in PEM",
        _ => "is not well-formed PEM",
    }
    .to_owned()
}

/// Subject and end.
fn facts(certificate: &CertificateDer<'_>) -> Result<(String, Timestamp), String> {
    let parsed = CertificateInner::<Raw>::from_der(certificate)
        .map_err(|_| "is not a certificate (X.509)".to_owned())?;
    let parsed = parsed.tbs_certificate();
    let end: Duration = parsed.validity().not_after.to_unix_duration();
    let end = Timestamp::from_millis(u64::try_from(end.as_millis()).unwrap_or(u64::MAX));
    Ok((parsed.subject().to_string(), end))
}
