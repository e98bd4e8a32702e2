//! The layout of an attempt's exchange: two bytes of flags, then the fields that they name, in the
//! order of the flags. Most exchanges have few fields.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::fields::{CodecError, get_list, get_pair, get_time, put_list, put_pair, put_time};
use crate::codec::{Reader, put_u16, put_varint};
use crate::domain::{ConnectionFacts, Exchange, PhaseTimes, Position, RetryRule, SentRequest};

/// The endpoint's revision follows.
const REQUEST: u16 = 1;
/// The time in the request follows.
const SIGNED_AT: u16 = 1 << 1;
/// An address follows: 4 or 16 bytes, and the port.
const ADDRESS_V4: u16 = 1 << 2;
const ADDRESS_V6: u16 = 1 << 3;
const REUSED: u16 = 1 << 4;
/// A duration in microseconds follows for each of these.
const DNS: u16 = 1 << 5;
const CONNECT: u16 = 1 << 6;
const TLS: u16 = 1 << 7;
const FIRST_BYTE: u16 = 1 << 8;
/// The rule is `retryPolicy` or `retryAfter`.
const RETRY_POLICY: u16 = 1 << 9;
const RETRY_AFTER: u16 = 1 << 10;
/// A list of names and values follows.
const HEADERS: u16 = 1 << 11;
const ALL: u16 = (1 << 12) - 1;

pub(super) fn put_exchange(out: &mut Vec<u8>, exchange: &Exchange) {
    let ConnectionFacts { remote_address, is_reused, times } = exchange.connection;
    let flag = |flag: u16, is_set: bool| if is_set { flag } else { 0 };
    let signed_at = exchange.request.and_then(|request| request.signed_at);
    let flags = flag(REQUEST, exchange.request.is_some())
        | flag(SIGNED_AT, signed_at.is_some())
        | flag(ADDRESS_V4, remote_address.is_some_and(|address| address.is_ipv4()))
        | flag(ADDRESS_V6, remote_address.is_some_and(|address| address.is_ipv6()))
        | flag(REUSED, is_reused)
        | flag(DNS, times.dns.is_some())
        | flag(CONNECT, times.connect.is_some())
        | flag(TLS, times.tls.is_some())
        | flag(FIRST_BYTE, times.first_byte.is_some())
        | flag(RETRY_POLICY, exchange.rule == Some(RetryRule::RetryPolicy))
        | flag(RETRY_AFTER, exchange.rule == Some(RetryRule::RetryAfter))
        | flag(HEADERS, !exchange.headers.is_empty());
    put_u16(out, flags);
    if let Some(request) = exchange.request {
        put_varint(out, request.revision.0);
    }
    if let Some(at) = signed_at {
        put_time(out, at);
    }
    if let Some(address) = remote_address {
        match address {
            SocketAddr::V4(address) => out.extend_from_slice(&address.ip().octets()),
            SocketAddr::V6(address) => out.extend_from_slice(&address.ip().octets()),
        }
        put_u16(out, address.port());
    }
    for time in [times.dns, times.connect, times.tls, times.first_byte].into_iter().flatten() {
        put_varint(out, u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
    if !exchange.headers.is_empty() {
        put_list(out, &exchange.headers, put_pair);
    }
}

pub(super) fn get_exchange(r: &mut Reader<'_>) -> Result<Exchange, CodecError> {
    let flags = r.get_u16()?;
    let has = |flag: u16| flags & flag != 0;
    let is_known = flags & !ALL == 0
        && (has(REQUEST) || !has(SIGNED_AT))
        && !(has(ADDRESS_V4) && has(ADDRESS_V6))
        && !(has(RETRY_POLICY) && has(RETRY_AFTER));
    if !is_known {
        return Err(CodecError::UnknownValue { what: "exchange", found: u64::from(flags) });
    }
    let revision = if has(REQUEST) { Some(Position(r.get_varint()?)) } else { None };
    let signed_at = if has(SIGNED_AT) { Some(get_time(r)?) } else { None };
    let remote_address = get_address(r, has(ADDRESS_V4), has(ADDRESS_V6))?;
    let mut time = |flag: u16| -> Result<Option<Duration>, CodecError> {
        if has(flag) { Ok(Some(Duration::from_micros(r.get_varint()?))) } else { Ok(None) }
    };
    let times = PhaseTimes {
        dns: time(DNS)?,
        connect: time(CONNECT)?,
        tls: time(TLS)?,
        first_byte: time(FIRST_BYTE)?,
    };
    let headers = if has(HEADERS) { get_list(r, 2, get_pair)? } else { Vec::new() };
    if has(HEADERS) && headers.is_empty() {
        return Err(CodecError::UnknownValue { what: "number of headers", found: 0 });
    }
    Ok(Exchange {
        request: revision.map(|revision| SentRequest { revision, signed_at }),
        connection: ConnectionFacts { remote_address, is_reused: has(REUSED), times },
        rule: match (has(RETRY_POLICY), has(RETRY_AFTER)) {
            (true, _) => Some(RetryRule::RetryPolicy),
            (false, true) => Some(RetryRule::RetryAfter),
            (false, false) => None,
        },
        headers,
    })
}

fn get_address(r: &mut Reader<'_>, is_v4: bool, is_v6: bool) -> Result<Option<SocketAddr>, CodecError> {
    Ok(if is_v4 {
        Some(SocketAddr::new(Ipv4Addr::from(r.get_array::<4>()?).into(), r.get_u16()?))
    } else if is_v6 {
        Some(SocketAddr::new(Ipv6Addr::from(r.get_array::<16>()?).into(), r.get_u16()?))
    } else {
        None
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::Timestamp;

    /// An exchange with every field.
    pub(in super::super) fn exchange() -> Exchange {
        let micros = |micros| Some(Duration::from_micros(micros));
        Exchange {
            request: Some(SentRequest {
                revision: Position(77),
                signed_at: Some(Timestamp::from_millis(1_000)),
            }),
            connection: ConnectionFacts {
                remote_address: Some("192.0.2.7:8443".parse().unwrap()),
                is_reused: true,
                times: PhaseTimes {
                    dns: micros(900),
                    connect: micros(20_000),
                    tls: micros(41_000),
                    first_byte: micros(3),
                },
            },
            rule: Some(RetryRule::RetryAfter),
            headers: vec![("retry-after".into(), "30".into()), ("set-cookie".into(), "***".into())],
        }
    }

    /// An exchange on a reused connection, as after most attempts.
    pub(in super::super) fn bare_exchange() -> Exchange {
        Exchange {
            request: Some(SentRequest { revision: Position(77), signed_at: None }),
            connection: ConnectionFacts {
                remote_address: Some("[2001:db8::7]:443".parse().unwrap()),
                is_reused: true,
                times: PhaseTimes { first_byte: Some(Duration::from_micros(300)), ..PhaseTimes::default() },
            },
            rule: Some(RetryRule::RetryPolicy),
            headers: Vec::new(),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(pair).collect()
    }

    /// These bytes are on users' disks and never change.
    #[test]
    fn golden_bytes_of_an_exchange() {
        let full = "f70d4de807c0000207fb208407a09c01a8c00203020b72657472792d61667465720233300a7365742d636f6f6b6965032a2a2a";
        let bare = "19034d20010db8000000000000000000000007bb01ac02";
        for (exchange, golden) in [(exchange(), full), (bare_exchange(), bare), (Exchange::default(), "0000")]
        {
            let mut bytes = Vec::new();
            put_exchange(&mut bytes, &exchange);
            assert_eq!(hex(&bytes), golden);
            assert_eq!(get_exchange(&mut Reader::new(&unhex(golden))), Ok(exchange));
        }
        // Unknown flags, a time without a request, two addresses, two rules, no header.
        for bytes in ["0010", "0200e807", "0c00", "0006", "000800"] {
            assert!(get_exchange(&mut Reader::new(&unhex(bytes))).is_err(), "{bytes}");
        }
    }
}
