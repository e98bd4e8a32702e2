//! Verification of receivers' certificates, and detection of client certificate requests.
//!
//! Owns the check of a receiver's certificate: chain, validity period and name, with one extension.
//! Like other clients, it also accepts a trusted authority's certificate as the receiver's own
//! certificate; `openssl req -x509` creates such certificates. Their validity period, name and
//! purpose are checked too.

use std::cell::Cell;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode as _;
use x509_cert::der::oid::db::rfc5280::{ANY_EXTENDED_KEY_USAGE, ID_KP_SERVER_AUTH};
use x509_cert::ext::pkix::ExtendedKeyUsage;

#[derive(Debug)]
pub(super) struct ReceiverVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ReceiverVerifier {
    /// Whether subject and key are those of a trusted authority. The handshake proves that the
    /// receiver has the key. That key can sign a certificate for any name, so a stricter comparison
    /// adds nothing.
    fn is_authority(&self, certificate: &CertificateDer<'_>) -> bool {
        webpki::anchor_from_trusted_cert(certificate).is_ok_and(|anchor| {
            self.roots.roots.iter().any(|root| {
                root.subject == anchor.subject
                    && root.subject_public_key_info == anchor.subject_public_key_info
            })
        })
    }
}

impl ServerCertVerifier for ReceiverVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        let chain = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            algorithms,
        );
        match chain {
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if self.is_authority(end_entity) => {
                check_validity_and_purpose(end_entity, now)?;
            }
            other => other?,
        }
        verify_server_name(&certificate, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Checks the validity period and the purpose of a self-signed certificate.
fn check_validity_and_purpose(
    certificate: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<(), CertificateError> {
    let malformed = |_| CertificateError::BadEncoding;
    let parsed = CertificateInner::<Raw>::from_der(certificate).map_err(malformed)?;
    let parsed = parsed.tbs_certificate();
    let validity = parsed.validity();
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired);
    }
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet);
    }
    let usage = parsed.get_extension::<ExtendedKeyUsage>().map_err(malformed)?;
    match usage {
        Some((_, usage))
            if !usage.0.iter().any(|one| [ID_KP_SERVER_AUTH, ANY_EXTENDED_KEY_USAGE].contains(one)) =>
        {
            Err(CertificateError::InvalidPurpose)
        }
        _ => Ok(()),
    }
}

/// Whether the receiver requested a client certificate, and whether one was presented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::courier) enum ClientCertificateUse {
    #[default]
    NotRequested,
    Missing,
    Presented,
}

tokio::task_local! {
    /// The certificate use in the current task's handshake. It cannot be stored in the TLS
    /// configuration: the connections of a pool share one, so that they can resume earlier
    /// sessions.
    static CERTIFICATE_USE: Cell<ClientCertificateUse>;
}

/// Runs a handshake and returns whether the receiver requested a client certificate.
pub(in crate::courier) async fn record_certificate_request<T>(
    handshake: impl Future<Output = T>,
) -> (T, ClientCertificateUse) {
    let recording = async {
        let done = handshake.await;
        (done, CERTIFICATE_USE.with(Cell::get))
    };
    CERTIFICATE_USE.scope(Cell::default(), recording).await
}

/// Selects client certificates with the inner resolver and records the request.
#[derive(Debug)]
pub(super) struct RecordingResolver(pub(super) Arc<dyn ResolvesClientCert>);

impl ResolvesClientCert for RecordingResolver {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let chosen = self.0.resolve(authorities, schemes);
        let presented = chosen.as_ref().is_some_and(|chosen| chosen.key.choose_scheme(schemes).is_some());
        let recorded =
            if presented { ClientCertificateUse::Presented } else { ClientCertificateUse::Missing };
        // Fails only outside of `record_certificate_request`.
        CERTIFICATE_USE.try_with(|certificate_use| certificate_use.set(recorded)).ok();
        chosen
    }

    fn has_certs(&self) -> bool {
        self.0.has_certs()
    }
}
