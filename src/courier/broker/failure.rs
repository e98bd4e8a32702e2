//! Classification of lapin's errors.

use std::error::Error as _;

use lapin::ErrorKind;

use super::super::failure::{RequestFailure, find_cause};
use super::super::progress::ConnectProgress;
use super::super::read_limit::ReadLimitExceeded;
use crate::domain::ErrorClass;

/// The failure of an operation on a broker's connection.
pub(super) fn classify(error: &lapin::Error, progress: &ConnectProgress) -> RequestFailure {
    if let Some(alert) = progress.tls_alert() {
        return alert.into();
    }
    let (class, text) = match error.kind() {
        // The broker's own words, such as `404 NOT_FOUND - no exchange 'pets' in vhost '/'`.
        ErrorKind::ProtocolError(error) => {
            (ErrorClass::Broker, format!("{} {}", error.get_id(), error.get_message()))
        }
        ErrorKind::MissingHeartbeatError => (ErrorClass::Reset, "the broker sends no heartbeat".to_owned()),
        ErrorKind::IOError(_) => match error.source().and_then(find_cause::<ReadLimitExceeded>) {
            Some(_) => {
                let text = "the broker sent more bytes than the messages that it got".to_owned();
                (ErrorClass::ResponseTooLarge, text)
            }
            None => (ErrorClass::Reset, "the broker closed the connection".to_owned()),
        },
        ErrorKind::InvalidConnectionState(_)
        | ErrorKind::InvalidChannelState(..)
        | ErrorKind::InvalidChannel(_) => (ErrorClass::Reset, "the broker closed the connection".to_owned()),
        ErrorKind::SerialisationError(_) => {
            (ErrorClass::Request, "the headers of the message are too large".to_owned())
        }
        ErrorKind::ParsingError(_) => {
            (ErrorClass::Protocol, "the peer does not speak AMQP 0-9-1; is this the TLS port?".to_owned())
        }
        _ => (ErrorClass::Protocol, error.to_string()),
    };
    RequestFailure::Attempt(class, text)
}
