//! Failures of a request, and their classification.
//!
//! Owns the mapping from library errors to an [`ErrorClass`] and a message. Messages reveal nothing
//! about forbidden addresses.

use std::error::Error as StdError;
use std::io;

use rustix::io::Errno;

use super::connect::ConnectError;
use super::guard::RefusedUrl;
use super::read_limit::ReadLimitExceeded;
use super::tls::{self, ClientCertificateUse};
use crate::domain::ErrorClass;

/// Why a request has no reply.
#[derive(Clone, Debug)]
pub(super) enum RequestFailure {
    /// The process has no file descriptor or socket memory left. No attempt was made.
    DescriptorsExhausted,
    /// The receiver's address is at its limit. No attempt was made.
    AddressLimit,
    /// The broker takes no messages now. No attempt was made.
    BrokerBlocked,
    /// Policy forbids the URL.
    Forbidden(RefusedUrl),
    /// The attempt failed.
    Attempt(ErrorClass, String),
}

impl RequestFailure {
    /// Whether the receiver closed the connection, with or without a TLS alert.
    pub(super) fn is_close(&self) -> bool {
        matches!(self, Self::Attempt(ErrorClass::Reset | ErrorClass::Tls, _))
    }
}

impl From<ConnectError> for RequestFailure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::DescriptorsExhausted => Self::DescriptorsExhausted,
            ConnectError::AddressLimit => Self::AddressLimit,
            ConnectError::Forbidden(refused) => Self::Forbidden(refused),
            error => Self::Attempt(error.class(), error.to_string()),
        }
    }
}

impl From<RefusedUrl> for RequestFailure {
    fn from(error: RefusedUrl) -> Self {
        Self::Forbidden(error)
    }
}

/// Classifies an error of the HTTP library.
pub(super) fn classify(error: &hyper::Error) -> RequestFailure {
    if let Some(error) = find_cause::<rustls::Error>(error) {
        return RequestFailure::Attempt(
            ErrorClass::Tls,
            tls::describe(error, ClientCertificateUse::default()),
        );
    }
    // The outer error of an unsent request is "canceled"; the innermost one has the reason.
    let innermost =
        causes(error).filter_map(|error| error.downcast_ref::<hyper::Error>()).last().unwrap_or(error);
    let class = if find_cause::<ReadLimitExceeded>(error).is_some() || innermost.is_parse_too_large() {
        ErrorClass::ResponseTooLarge
    } else if find_cause::<io::Error>(error).is_some()
        || innermost.is_incomplete_message()
        || innermost.is_canceled()
        || innermost.is_closed()
    {
        ErrorClass::Reset
    } else {
        // Malformed replies, and bytes that arrived before the request.
        ErrorClass::Protocol
    };
    RequestFailure::Attempt(class, root_message(error))
}

/// Whether the process or the machine has no file descriptor or socket memory left.
pub(super) fn is_exhausted(error: &(dyn StdError + 'static)) -> bool {
    let code = |error: &(dyn StdError + 'static)| Errno::from_io_error(error.downcast_ref::<io::Error>()?);
    causes(error)
        .filter_map(code)
        .any(|code| matches!(code, Errno::NFILE | Errno::MFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// The first cause of type `T`.
pub(super) fn find_cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    causes(error).find_map(|error| error.downcast_ref::<T>())
}

/// The error and its causes, outermost first. Includes the error inside an I/O error, which
/// [`StdError::source`] skips.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let current = next?;
        let inner = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| current.source());
        Some(current)
    })
}

/// The message of the innermost cause.
fn root_message(error: &(dyn StdError + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}
