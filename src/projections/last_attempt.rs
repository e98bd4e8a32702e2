//! The last attempt in the rows of a delivery (`P`, `O`, `M`).
//!
//! Layout: status (0: none), then a byte for the failure (0: none) with the error class and two
//! flags, then the error text unless a flag says that it is the text of the status.

use crate::codec::{Malformed, Reader, put_bytes, put_u16};
use crate::domain::last_attempt::status_text;
use crate::domain::{ErrorClass, LastAttempt, LastFailure, Network};

/// The receiver is in the operator's network.
const INTERNAL: u8 = 0x80;
/// The error text is the text of the status.
const STATUS_TEXT: u8 = 0x40;
const CLASS: u8 = !(INTERNAL | STATUS_TEXT);

fn text_of(status: Option<u16>) -> Option<String> {
    status.map(|status| status_text(status, None))
}

pub(super) fn put(out: &mut Vec<u8>, last: &LastAttempt) {
    put_u16(out, last.status.unwrap_or(0));
    let Some(LastFailure { class, network, text }) = &last.failure else { return out.push(0) };
    let mut code = class.code();
    if *network == Network::Internal {
        code |= INTERNAL;
    }
    if text_of(last.status).is_some_and(|status| *status == **text) {
        return out.push(code | STATUS_TEXT);
    }
    out.push(code);
    put_bytes(out, text.as_bytes());
}

pub(super) fn get(reader: &mut Reader<'_>) -> Result<LastAttempt, Malformed> {
    let status = Some(reader.get_u16()?).filter(|status| *status != 0);
    let code = reader.get_u8()?;
    if code == 0 {
        return Ok(LastAttempt { status, failure: None });
    }
    let class = ErrorClass::from_code(code & CLASS).ok_or(Malformed::Number)?;
    let network = if code & INTERNAL == 0 { Network::Public } else { Network::Internal };
    let text = match code & STATUS_TEXT {
        0 => reader.get_str()?.into(),
        _ => text_of(status).ok_or(Malformed::Number)?.into(),
    };
    Ok(LastAttempt { status, failure: Some(LastFailure { class, network, text }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(last: &LastAttempt) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, last);
        bytes
    }

    fn failed(status: Option<u16>, class: ErrorClass, network: Network, text: &str) -> LastAttempt {
        LastAttempt { status, failure: Some(LastFailure { class, network, text: text.into() }) }
    }

    #[test]
    fn last_attempt_has_these_bytes() {
        let (public, internal) = (Network::Public, Network::Internal);
        for (last, bytes) in [
            (LastAttempt::default(), &b"\0\0\0"[..]),
            (LastAttempt { status: Some(204), failure: None }, b"\xcc\0\0"),
            (failed(Some(500), ErrorClass::Status, public, "status 500"), b"\xf4\x01\x46"),
            (
                failed(Some(302), ErrorClass::Status, internal, "status 302: no"),
                b"\x2e\x01\x86\x0estatus 302: no",
            ),
            (failed(None, ErrorClass::Timeout, public, "slow"), b"\0\0\x04\x04slow"),
        ] {
            assert_eq!(encoded(&last), bytes, "{last:?}");
            assert_eq!(get(&mut Reader::new(bytes)), Ok(last));
        }
    }

    #[test]
    fn every_class_fits_beside_the_flags() {
        for class in ErrorClass::ALL {
            assert!(class.code() > 0 && class.code() & CLASS == class.code(), "{class:?}");
            let last = failed(None, class, Network::Internal, "x");
            assert_eq!(get(&mut Reader::new(&encoded(&last))), Ok(last));
        }
    }

    #[test]
    fn malformed_last_attempt_is_rejected() {
        let no_status = b"\0\0\x46";
        let (unknown_class, no_text) = (b"\0\0\x3f\x01x", b"\0\0\x04\x09x");
        for bytes in [&b""[..], b"\0", b"\0\0", no_status, unknown_class, no_text] {
            assert!(get(&mut Reader::new(bytes)).is_err(), "{bytes:?}");
        }
    }
}
