//! Receipts: what a worker shows to end a lease.
//!
//! A receipt names the event, the record of the lease and the queue. The position of the record
//! fences it: it is unique, and rests on no clock and no chance. The check detects a damaged
//! receipt. The key of the caller and the fence protect a lease.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::domain::{EndpointNumber, LeaseKey, Position};

const PREFIX: &str = "rcp_";
/// Event, lease, queue and check.
const BYTES: usize = 8 + 8 + 4 + 4;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Receipt {
    pub queue: EndpointNumber,
    pub key: LeaseKey,
}

/// The text of a receipt is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a receipt; pass one from `receive` unchanged")]
pub struct MalformedReceipt;

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend_from_slice(&self.key.event.0.to_be_bytes());
        bytes.extend_from_slice(&self.key.lease.0.to_be_bytes());
        bytes.extend_from_slice(&self.queue.0.to_be_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Receipt {
    type Err = MalformedReceipt;

    fn from_str(text: &str) -> Result<Self, MalformedReceipt> {
        let encoded = text.strip_prefix(PREFIX).ok_or(MalformedReceipt)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| MalformedReceipt)?;
        let bytes: [u8; BYTES] = bytes.try_into().map_err(|_| MalformedReceipt)?;
        let number = |from: usize| u64::from_be_bytes(bytes[from..from + 8].try_into().expect("eight bytes"));
        let half = |from: usize| u32::from_be_bytes(bytes[from..from + 4].try_into().expect("four bytes"));
        if crc32fast::hash(&bytes[..BYTES - 4]) != half(BYTES - 4) {
            return Err(MalformedReceipt);
        }
        let key = LeaseKey { event: Position(number(0)), lease: Position(number(8)) };
        Ok(Self { queue: EndpointNumber(half(16)), key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipt_survives_and_damage_is_found() {
        let key = LeaseKey { event: Position(7), lease: Position(u64::MAX) };
        let receipt = Receipt { queue: EndpointNumber(3), key };
        let text = receipt.to_string();
        assert_eq!(text.parse(), Ok(receipt));
        assert_eq!(text.len(), 36, "{text}");
        for at in 0..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert_eq!(damaged.parse::<Receipt>(), Err(MalformedReceipt), "{damaged}");
        }
        for bad in ["", "rcp_", "rcp_AAAA", &text[1..], &format!("{text}A"), &text[..35], "rcp_é"] {
            assert_eq!(bad.parse::<Receipt>(), Err(MalformedReceipt), "{bad}");
        }
    }
}
