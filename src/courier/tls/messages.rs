//! Error messages of TLS failures, for the record of an attempt and for the client commands.
//!
//! Owns the message of each failure. Must never show a Rust value: [`describe`] matches every known
//! variant and has a general message for unknown ones.

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use x509_cert::der::asn1::ObjectIdentifier;

use super::verifier::ClientCertificateUse;

const NOTHING_IN_COMMON: &str = "the receiver offers no safe TLS version or cipher";
const NOT_TLS: &str = "the receiver does not speak TLS";
const MALFORMED: &str = "the certificate is malformed";
const PURPOSE: &str = "the certificate is not valid for servers (extended key usage)";
const REVOCATION: &str = "the certificate's revocation status is not known";
const TOO_COMPLEX: &str = "the certificate chain is too long or too complex";
const INTERNAL: &str = "TLS failed with an internal error";

/// The message of a failure. `client` says whether the receiver requested a client certificate.
pub(in crate::courier) fn describe(error: &Error, client: ClientCertificateUse) -> String {
    match error {
        Error::InvalidCertificate(certificate) => return describe_certificate(certificate),
        Error::AlertReceived(alert) => return describe_alert(*alert, client),
        Error::PeerIncompatible(incompatible) => describe_incompatible(incompatible),
        Error::PeerMisbehaved(_) => "the receiver violates the TLS protocol",
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerSentOversizedRecord => NOT_TLS,
        Error::NoCertificatesPresented => "the receiver presents no certificate",
        Error::UnsupportedNameType => "the host name is not valid in a certificate",
        Error::DecryptError => "data from the receiver cannot be decrypted",
        Error::NoApplicationProtocol => "the receiver does not offer HTTP/1.1 over TLS",
        Error::InvalidCertRevocationList(_) => REVOCATION,
        Error::FailedToGetCurrentTime => "TLS failed because the system clock is not available",
        Error::FailedToGetRandomBytes => "TLS failed because the system provides no random numbers",
        Error::InconsistentKeys(_) => "the private key does not belong to the client certificate",
        // Errors in the local configuration, and errors of unused features.
        Error::EncryptError
        | Error::HandshakeNotComplete
        | Error::BadMaxFragmentSize
        | Error::InvalidEncryptedClientHello(_)
        | Error::General(_)
        | Error::Other(_) => INTERNAL,
        _ => INTERNAL,
    }
    .to_owned()
}

/// The message of a failure between a client command and the daemon.
#[must_use]
pub fn describe_server(error: &Error) -> String {
    describe(error, ClientCertificateUse::NotRequested)
        .replace("the receiver", "the server")
        .replace("egress.ca_file", "the file of BALTO_CA_FILE or --ca-file")
}

fn describe_incompatible(incompatible: &PeerIncompatible) -> &'static str {
    use PeerIncompatible as P;
    match incompatible {
        P::NoKxGroupsInCommon | P::NamedGroupsExtensionRequired | P::KeyShareExtensionRequired => {
            "the receiver offers no supported key exchange"
        }
        P::NoSignatureSchemesInCommon | P::SignatureAlgorithmsExtensionRequired => {
            "the receiver offers no supported signature algorithm"
        }
        P::NoCertificateRequestSignatureSchemesInCommon => {
            "the receiver does not accept the client certificate's signature algorithm"
        }
        P::ExtendedMasterSecretExtensionRequired => {
            "the receiver does not support the extended master secret, which Balto requires for TLS 1.2"
        }
        P::EcPointsExtensionRequired | P::NoEcPointFormatsInCommon | P::UncompressedEcPointsRequired => {
            "the receiver offers no supported elliptic curve point format"
        }
        P::IncorrectCertificateTypeExtension | P::UnsolicitedCertificateTypeExtension => {
            "the receiver offers no supported certificate type"
        }
        _ => NOTHING_IN_COMMON,
    }
}

fn describe_certificate(certificate: &CertificateError) -> String {
    use CertificateError as C;
    match certificate {
        C::Expired | C::ExpiredContext { .. } => "the certificate has expired",
        C::NotValidYet | C::NotValidYetContext { .. } => "the certificate is not valid yet",
        C::NotValidForName | C::NotValidForNameContext { .. } => "the certificate is for another name",
        C::UnknownIssuer => "the certificate is not signed by a known authority",
        C::Revoked => "the certificate has been revoked",
        C::UnknownRevocationStatus
        | C::ExpiredRevocationList
        | C::ExpiredRevocationListContext { .. }
        | C::InvalidOcspResponse => REVOCATION,
        C::BadSignature => {
            "a signature in the certificate chain is invalid, or its key is too short (RSA below 2048 bits)"
        }
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => PURPOSE,
        C::BadEncoding => MALFORMED,
        C::UnhandledCriticalExtension => "the certificate has an unsupported critical extension",
        C::UnsupportedSignatureAlgorithmContext { signature_algorithm_id, .. }
        | C::UnsupportedSignatureAlgorithmForPublicKeyContext { signature_algorithm_id, .. } => {
            return describe_algorithm(signature_algorithm_id);
        }
        C::ApplicationVerificationFailure => "the certificate cannot be used",
        C::Other(other) => match other.0.downcast_ref::<webpki::Error>() {
            Some(error) => describe_webpki(error),
            None => "the certificate cannot be used",
        },
        // Includes variants that only older versions of rustls return.
        _ => "the certificate has an unsupported signature, or cannot be used",
    }
    .to_owned()
}

/// Errors of the certificate verifier that rustls passes on unchanged.
fn describe_webpki(error: &webpki::Error) -> &'static str {
    use webpki::Error as W;
    match error {
        W::CaUsedAsEndEntity => {
            "the certificate belongs to an untrusted authority (CA:TRUE); add it to egress.ca_file, or issue a separate certificate for the receiver"
        }
        W::EndEntityUsedAsCa => "the certificate chain has a signer that is not an authority (CA:FALSE)",
        W::NameConstraintViolation => "the certificate is for a name that its authority must not sign",
        W::PathLenConstraintViolated => "the certificate chain is longer than one of its authorities allows",
        W::MaximumNameConstraintComparisonsExceeded
        | W::MaximumPathBuildCallsExceeded
        | W::MaximumPathDepthExceeded
        | W::MaximumSignatureChecksExceeded => TOO_COMPLEX,
        W::UnsupportedCertVersion => "the certificate is not X.509 version 3",
        W::UnsupportedCriticalExtension => "the certificate has an unsupported critical extension",
        W::CertDistrusted => "the certificate is signed by an authority that is no longer trusted",
        W::EmptyEkuExtension => PURPOSE,
        W::BadDer
        | W::BadDerTime
        | W::ExtensionValueInvalid
        | W::InvalidNetworkMaskConstraint
        | W::InvalidSerialNumber
        | W::MalformedDnsIdentifier
        | W::MalformedExtensions
        | W::MalformedNameConstraint
        | W::SignatureAlgorithmMismatch
        | W::TrailingData(_)
        | W::UnsupportedNameType => MALFORMED,
        _ => "the certificate cannot be used",
    }
}

/// The message for an unsupported signature algorithm. `identifier` is the body of an
/// `AlgorithmIdentifier` (RFC 5280, section 4.1.1.2).
fn describe_algorithm(identifier: &[u8]) -> String {
    let oid = match identifier {
        [6, length, rest @ ..] => rest.get(..usize::from(*length)),
        _ => None,
    };
    let oid = oid.and_then(|bytes| ObjectIdentifier::from_bytes(bytes).ok()).map(|oid| oid.to_string());
    let Some(oid) = oid else {
        return "the certificate chain is signed with an unsupported algorithm".to_owned();
    };
    let (name, is_weak) = match oid.as_str() {
        "1.2.840.113549.1.1.5" => ("SHA-1 with RSA", true),
        "1.2.840.10045.4.1" => ("SHA-1 with ECDSA", true),
        "1.2.840.10040.4.3" => ("SHA-1 with DSA", true),
        "1.2.840.113549.1.1.4" => ("MD5 with RSA", true),
        "1.2.840.113549.1.1.2" => ("MD2 with RSA", true),
        "1.2.840.113549.1.1.14" => ("SHA-224 with RSA", true),
        "1.2.840.10045.4.3.1" => ("SHA-224 with ECDSA", true),
        "2.16.840.1.101.3.4.3.2" => ("SHA-256 with DSA", false),
        "1.2.840.113549.1.1.10" => ("these parameters of RSA-PSS", false),
        "1.2.840.10045.4.3.2" | "1.2.840.10045.4.3.3" | "1.2.840.10045.4.3.4" => {
            ("ECDSA over an unusual curve", false)
        }
        "1.3.101.113" => ("Ed448", false),
        _ => {
            return format!("the certificate chain is signed with an unsupported algorithm (OID {oid})");
        }
    };
    if is_weak {
        format!("the certificate chain is signed with {name}, which is unsafe; use SHA-256 or better")
    } else {
        format!("the certificate chain is signed with {name}, which is not supported")
    }
}

fn describe_alert(alert: AlertDescription, client: ClientCertificateUse) -> String {
    use AlertDescription as A;
    let client_certificate = match client {
        ClientCertificateUse::NotRequested => None,
        ClientCertificateUse::Missing => Some("the receiver asks for a client certificate"),
        ClientCertificateUse::Presented => Some("the receiver did not accept the client certificate"),
    };
    match alert {
        A::ProtocolVersion | A::InsufficientSecurity | A::InappropriateFallback => NOTHING_IN_COMMON,
        A::CertificateRequired => "the receiver asks for a client certificate",
        A::UnrecognisedName => "the receiver does not know the host name",
        A::NoApplicationProtocol => "the receiver does not offer HTTP/1.1 over TLS",
        // TLS 1.2 servers also send this alert for a missing client certificate.
        A::HandshakeFailure => client_certificate
            .unwrap_or("the receiver accepts no safe cipher, key exchange or signature algorithm"),
        A::NoCertificate
        | A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied => match client_certificate {
            Some(message) => message,
            None => return describe_other_alert(alert),
        },
        _ => return describe_other_alert(alert),
    }
    .to_owned()
}

/// A message with the alert's name from RFC 8446.
fn describe_other_alert(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let name = match alert {
        A::CloseNotify => "close_notify",
        A::UnexpectedMessage => "unexpected_message",
        A::BadRecordMac => "bad_record_mac",
        A::DecryptionFailed => "decryption_failed",
        A::RecordOverflow => "record_overflow",
        A::DecompressionFailure => "decompression_failure",
        A::HandshakeFailure => "handshake_failure",
        A::NoCertificate => "no_certificate",
        A::BadCertificate => "bad_certificate",
        A::UnsupportedCertificate => "unsupported_certificate",
        A::CertificateRevoked => "certificate_revoked",
        A::CertificateExpired => "certificate_expired",
        A::CertificateUnknown => "certificate_unknown",
        A::IllegalParameter => "illegal_parameter",
        A::UnknownCA => "unknown_ca",
        A::AccessDenied => "access_denied",
        A::DecodeError => "decode_error",
        A::DecryptError => "decrypt_error",
        A::ExportRestriction => "export_restriction",
        A::ProtocolVersion => "protocol_version",
        A::InsufficientSecurity => "insufficient_security",
        A::InternalError => "internal_error",
        A::InappropriateFallback => "inappropriate_fallback",
        A::UserCanceled => "user_canceled",
        A::NoRenegotiation => "no_renegotiation",
        A::MissingExtension => "missing_extension",
        A::UnsupportedExtension => "unsupported_extension",
        A::CertificateUnobtainable => "certificate_unobtainable",
        A::UnrecognisedName => "unrecognized_name",
        A::BadCertificateStatusResponse => "bad_certificate_status_response",
        A::BadCertificateHashValue => "bad_certificate_hash_value",
        A::UnknownPSKIdentity => "unknown_psk_identity",
        A::CertificateRequired => "certificate_required",
        A::NoApplicationProtocol => "no_application_protocol",
        A::EncryptedClientHelloRequired => "ech_required",
        other => return format!("the receiver refused the TLS handshake (alert {})", u8::from(other)),
    };
    format!("the receiver refused the TLS handshake (alert {name})")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{InconsistentKeys, InvalidMessage, OtherError, PeerMisbehaved};

    use super::*;

    const CLIENTS: [ClientCertificateUse; 3] =
        [ClientCertificateUse::NotRequested, ClientCertificateUse::Missing, ClientCertificateUse::Presented];

    /// Checks that a message contains no part of a Rust value's `Debug` output.
    fn check(message: &str) {
        let marks = ["{", "}", "[", "]", "::", "\"", "Error", "Other", "Unknown", "Context"];
        assert!(!message.is_empty() && marks.iter().all(|mark| !message.contains(mark)), "{message}");
    }

    fn webpki(error: webpki::Error) -> Error {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }

    #[test]
    fn every_alert_has_a_plain_message() {
        for number in 0..=u8::MAX {
            for client in CLIENTS {
                check(&describe(&Error::AlertReceived(number.into()), client));
            }
        }
    }

    #[test]
    fn every_other_failure_has_a_plain_message() {
        let unsupported = |oid: &[u8]| {
            Error::from(CertificateError::UnsupportedSignatureAlgorithmContext {
                signature_algorithm_id: oid.to_vec(),
                supported_algorithms: Vec::new(),
            })
        };
        let errors = [
            Error::General("Error { code: [1] }".to_owned()),
            Error::Other(OtherError(Arc::new(std::io::Error::other("Other { x: 1 }")))),
            Error::DecryptError,
            Error::EncryptError,
            Error::NoCertificatesPresented,
            Error::UnsupportedNameType,
            Error::FailedToGetCurrentTime,
            Error::FailedToGetRandomBytes,
            Error::HandshakeNotComplete,
            Error::PeerSentOversizedRecord,
            Error::NoApplicationProtocol,
            Error::BadMaxFragmentSize,
            InconsistentKeys::KeyMismatch.into(),
            InvalidMessage::MissingData("X").into(),
            PeerMisbehaved::InvalidKeyShare.into(),
            PeerIncompatible::NoKxGroupsInCommon.into(),
            PeerIncompatible::NoSignatureSchemesInCommon.into(),
            PeerIncompatible::ServerDoesNotSupportTls12Or13.into(),
            PeerIncompatible::ServerRejectedEncryptedClientHello(None).into(),
            CertificateError::UnhandledCriticalExtension.into(),
            CertificateError::UnknownRevocationStatus.into(),
            CertificateError::InvalidOcspResponse.into(),
            CertificateError::ApplicationVerificationFailure.into(),
            CertificateError::BadSignature.into(),
            CertificateError::Other(OtherError(Arc::new(std::io::Error::other("Other { x: 1 }")))).into(),
            webpki(webpki::Error::CaUsedAsEndEntity),
            webpki(webpki::Error::EndEntityUsedAsCa),
            webpki(webpki::Error::NameConstraintViolation),
            webpki(webpki::Error::PathLenConstraintViolated),
            webpki(webpki::Error::MaximumPathDepthExceeded),
            webpki(webpki::Error::UnsupportedCertVersion),
            webpki(webpki::Error::MalformedExtensions),
            webpki(webpki::Error::UnsupportedRevocationReason),
            unsupported(&[]),
            unsupported(&[6, 200, 1]),
            unsupported(&[6, 7, 42, 134, 72, 206, 61, 4, 1]),
        ];
        for error in &errors {
            check(&describe(error, ClientCertificateUse::NotRequested));
        }
    }

    #[test]
    fn server_messages_do_not_mention_a_receiver() {
        let errors = [
            webpki(webpki::Error::CaUsedAsEndEntity),
            Error::NoCertificatesPresented,
            PeerIncompatible::ServerDoesNotSupportTls12Or13.into(),
            Error::AlertReceived(AlertDescription::HandshakeFailure),
        ];
        for error in &errors {
            let message = describe_server(error);
            check(&message);
            assert!(!message.contains("receiver") && !message.contains("egress"), "{message}");
        }
        assert!(describe_server(&errors[0]).contains("--ca-file"));
    }

    #[test]
    fn signature_algorithms_are_named() {
        let described = |bytes: &[u8]| describe_algorithm(bytes);
        assert!(described(&[6, 7, 42, 134, 72, 206, 61, 4, 1]).contains("SHA-1 with ECDSA"));
        assert!(described(&[6, 9, 42, 134, 72, 134, 247, 13, 1, 1, 5, 5, 0]).contains("SHA-1 with RSA"));
        assert!(described(&[6, 3, 43, 101, 113]).contains("Ed448"));
        assert!(described(&[6, 3, 43, 101, 99]).contains("OID 1.3.101.99"));
    }

    #[test]
    fn handshake_failure_message_depends_on_client_certificate() {
        let described = |client| describe(&Error::AlertReceived(AlertDescription::HandshakeFailure), client);
        assert!(described(ClientCertificateUse::NotRequested).contains("no safe cipher"));
        assert_eq!(described(ClientCertificateUse::Missing), "the receiver asks for a client certificate");
        assert_eq!(
            described(ClientCertificateUse::Presented),
            "the receiver did not accept the client certificate"
        );
    }
}
