//! TLS failures as sentences: for the record of an attempt, and for the client commands.
//!
//! Owns: the sentence for each failure. Must never show a Rust value: [`describe`] matches every known variant, and unknown
//! ones have a plain sentence too.

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use x509_cert::der::asn1::ObjectIdentifier;

use super::verifier::ClientCertificate;

const NOTHING_IN_COMMON: &str = "the receiver offers no version or cipher of TLS that is safe";
const NOT_TLS: &str = "what the receiver sends is not TLS";
const MALFORMED: &str = "the certificate is malformed";
const PURPOSE: &str = "the certificate is not one for servers";
const REVOCATION: &str = "whether the certificate has been revoked cannot be determined";
const TOO_COMPLEX: &str = "the certificate chain is too long or too complex";
const INTERNAL: &str = "TLS failed with an internal error";

/// The sentence for a failure. `client` is what came of the receiver's request for a client certificate.
pub(in crate::courier) fn describe(error: &Error, client: ClientCertificate) -> String {
    match error {
        Error::InvalidCertificate(certificate) => return describe_certificate(certificate),
        Error::AlertReceived(alert) => return describe_alert(*alert, client),
        Error::PeerIncompatible(incompatible) => describe_incompatible(incompatible),
        Error::PeerMisbehaved(_) => "the receiver breaks the rules of TLS",
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerSentOversizedRecord => NOT_TLS,
        Error::NoCertificatesPresented => "the receiver presents no certificate",
        Error::UnsupportedNameType => "the host's name can be in no certificate",
        Error::DecryptError => "what the receiver sends cannot be decrypted",
        Error::NoApplicationProtocol => "the receiver does not offer HTTP/1.1 over TLS",
        Error::InvalidCertRevocationList(_) => REVOCATION,
        Error::FailedToGetCurrentTime => "TLS failed because the machine does not tell the time",
        Error::FailedToGetRandomBytes => "TLS failed because the machine gives no random numbers",
        Error::InconsistentKeys(_) => "the client certificate's key does not belong to it",
        // What is left is no fault of the receiver: our own settings, and features that are not used.
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

/// The sentence for a failure between a client command and the daemon, which is no receiver.
#[must_use]
pub fn describe_server(error: &Error) -> String {
    describe(error, ClientCertificate::NotRequested)
        .replace("the receiver", "the server")
        .replace("egress.ca_file", "the file of BALTO_CA_FILE or --ca-file")
}

fn describe_incompatible(incompatible: &PeerIncompatible) -> &'static str {
    use PeerIncompatible as P;
    match incompatible {
        P::NoKxGroupsInCommon | P::NamedGroupsExtensionRequired | P::KeyShareExtensionRequired => {
            "the receiver offers no key exchange that is supported"
        }
        P::NoSignatureSchemesInCommon | P::SignatureAlgorithmsExtensionRequired => {
            "the receiver offers no signature algorithm that is supported"
        }
        P::NoCertificateRequestSignatureSchemesInCommon => {
            "the receiver accepts client certificates of other signature algorithms only"
        }
        P::ExtendedMasterSecretExtensionRequired => {
            "the receiver offers TLS 1.2 without the extended master secret, which is required"
        }
        P::EcPointsExtensionRequired | P::NoEcPointFormatsInCommon | P::UncompressedEcPointsRequired => {
            "the receiver offers no format of elliptic curve points that is supported"
        }
        P::IncorrectCertificateTypeExtension | P::UnsolicitedCertificateTypeExtension => {
            "the receiver offers no type of certificate that is supported"
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
            "a signature in the certificate chain is wrong, or its key is too short (RSA below 2048 bits)"
        }
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => PURPOSE,
        C::BadEncoding => MALFORMED,
        C::UnhandledCriticalExtension => "the certificate has a critical extension that is not supported",
        C::UnsupportedSignatureAlgorithmContext { signature_algorithm_id, .. }
        | C::UnsupportedSignatureAlgorithmForPublicKeyContext { signature_algorithm_id, .. } => {
            return describe_algorithm(signature_algorithm_id);
        }
        C::ApplicationVerificationFailure => "the certificate cannot be used",
        C::Other(other) => match other.0.downcast_ref::<webpki::Error>() {
            Some(error) => describe_webpki(error),
            None => "the certificate cannot be used",
        },
        // Also the variants that older versions of rustls had.
        _ => "the certificate is signed in a way that is not supported, or cannot be used",
    }
    .to_owned()
}

/// What rustls passes on of its certificate verifier as it is.
fn describe_webpki(error: &webpki::Error) -> &'static str {
    use webpki::Error as W;
    match error {
        W::CaUsedAsEndEntity => {
            "the certificate is that of an authority (CA:TRUE) and is not trusted; add it to egress.ca_file, or give the receiver a certificate of its own"
        }
        W::EndEntityUsedAsCa => "the certificate chain has a signer that is not an authority (CA:FALSE)",
        W::NameConstraintViolation => "the certificate is for a name that its authority may not sign for",
        W::PathLenConstraintViolated => "the certificate chain has more authorities than one of them allows",
        W::MaximumNameConstraintComparisonsExceeded
        | W::MaximumPathBuildCallsExceeded
        | W::MaximumPathDepthExceeded
        | W::MaximumSignatureChecksExceeded => TOO_COMPLEX,
        W::UnsupportedCertVersion => "the certificate is not of version 3 (X.509)",
        W::UnsupportedCriticalExtension => "the certificate has a critical extension that is not supported",
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

/// Of an algorithm that is not supported. `identifier` is the body of an `AlgorithmIdentifier` (RFC 5280, section 4.1.1.2).
fn describe_algorithm(identifier: &[u8]) -> String {
    let oid = match identifier {
        [6, length, rest @ ..] => rest.get(..usize::from(*length)),
        _ => None,
    };
    let oid = oid.and_then(|bytes| ObjectIdentifier::from_bytes(bytes).ok()).map(|oid| oid.to_string());
    let Some(oid) = oid else {
        return "the certificate chain is signed with an algorithm that is not supported".to_owned();
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
            return format!(
                "the certificate chain is signed with an algorithm that is not supported (OID {oid})"
            );
        }
    };
    if is_weak {
        format!(
            "the certificate chain is signed with {name}, which is no longer safe; SHA-256 or better is needed"
        )
    } else {
        format!("the certificate chain is signed with {name}, which is not supported")
    }
}

fn describe_alert(alert: AlertDescription, client: ClientCertificate) -> String {
    use AlertDescription as A;
    let about_us = match client {
        ClientCertificate::NotRequested => None,
        ClientCertificate::Missing => Some("the receiver asks for a client certificate"),
        ClientCertificate::Presented => Some("the receiver did not accept the client certificate"),
    };
    match alert {
        A::ProtocolVersion | A::InsufficientSecurity | A::InappropriateFallback => NOTHING_IN_COMMON,
        A::CertificateRequired => "the receiver asks for a client certificate",
        A::UnrecognisedName => "the receiver does not know the host's name",
        A::NoApplicationProtocol => "the receiver does not offer HTTP/1.1 over TLS",
        // Servers of TLS 1.2 say so, too, when they miss a client certificate.
        A::HandshakeFailure => about_us.unwrap_or(
            "the receiver accepts none of the ciphers, key exchanges and signature algorithms that are safe",
        ),
        A::NoCertificate
        | A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied => match about_us {
            Some(words) => words,
            None => return refused(alert),
        },
        _ => return refused(alert),
    }
    .to_owned()
}

/// With the alert's name as RFC 8446 writes it.
fn refused(alert: AlertDescription) -> String {
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

    const CLIENTS: [ClientCertificate; 3] =
        [ClientCertificate::NotRequested, ClientCertificate::Missing, ClientCertificate::Presented];

    /// A sentence has none of the marks that a Rust value is shown with.
    fn check(words: &str) {
        let marks = ["{", "}", "[", "]", "::", "\"", "Error", "Other", "Unknown", "Context"];
        assert!(!words.is_empty() && marks.iter().all(|mark| !words.contains(mark)), "{words}");
    }

    fn webpki(error: webpki::Error) -> Error {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }

    #[test]
    fn every_alert_is_one_plain_sentence() {
        for number in 0..=u8::MAX {
            for client in CLIENTS {
                check(&describe(&Error::AlertReceived(number.into()), client));
            }
        }
    }

    #[test]
    fn every_other_failure_is_one_plain_sentence() {
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
            check(&describe(error, ClientCertificate::NotRequested));
        }
    }

    #[test]
    fn server_sentences_name_no_receiver() {
        let errors = [
            webpki(webpki::Error::CaUsedAsEndEntity),
            Error::NoCertificatesPresented,
            PeerIncompatible::ServerDoesNotSupportTls12Or13.into(),
            Error::AlertReceived(AlertDescription::HandshakeFailure),
        ];
        for error in &errors {
            let words = describe_server(error);
            check(&words);
            assert!(!words.contains("receiver") && !words.contains("egress"), "{words}");
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
    fn handshake_failure_depends_on_the_client_certificate() {
        let described = |client| describe(&Error::AlertReceived(AlertDescription::HandshakeFailure), client);
        assert!(described(ClientCertificate::NotRequested).contains("none of the ciphers"));
        assert_eq!(described(ClientCertificate::Missing), "the receiver asks for a client certificate");
        assert_eq!(
            described(ClientCertificate::Presented),
            "the receiver did not accept the client certificate"
        );
    }
}
