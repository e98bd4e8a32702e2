//! Public identifiers (`evt_`, `ep_`, `dlv_`, `key_`, `job_`) and internal numbers.

use std::fmt;
use std::str::FromStr;

use super::{DeliveryKey, names::InvalidName};
use crate::limits;

/// Number of a record in the journal, from 1, in commit order. Zero means "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Dense internal number of an endpoint, from 1, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointNumber(pub u32);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
                if text.is_empty() || text.len() > $max || !text.bytes().all(legal) {
                    return Err(InvalidName { what: $what, rule: concat!("1 to ", stringify!($max), " characters of [A-Za-z0-9_-]") });
                }
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

const _: () = assert!(limits::EVENT_ID_BYTES_MAX == 64); // the literal below; the error message quotes it

text_id!(
    /// An event's id (`webhook-id`): `evt_` and a ULID in commit order, or the publisher's choice.
    EventId, "event id", 64
);
text_id!(
    /// An endpoint's id: `ep_` and an opaque part.
    EndpointId, "endpoint id", 64
);
text_id!(
    /// An API key's id: `key_` and an opaque part.
    KeyId, "key id", 64
);
text_id!(
    /// A job's id: `job_` and an opaque part.
    JobId, "job id", 64
);

/// A delivery's id. It encodes event and endpoint, so resolving it needs no index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub DeliveryKey);

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dlv_{:016x}{:08x}", self.0.event.0, self.0.endpoint.0)
    }
}

impl FromStr for DeliveryId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let error = InvalidName { what: "delivery id", rule: "dlv_ and 24 hexadecimal digits" };
        let digits = text.strip_prefix("dlv_").filter(|digits| digits.len() == 24).ok_or(error)?;
        if !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error);
        }
        let event = u64::from_str_radix(&digits[..16], 16).map_err(|_| error)?;
        let endpoint = u32::from_str_radix(&digits[16..], 16).map_err(|_| error)?;
        Ok(Self(DeliveryKey { event: Position(event), endpoint: EndpointNumber(endpoint) }))
    }
}
