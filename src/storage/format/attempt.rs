//! The layout of an attempt.

use std::time::Duration;

use bytes::Bytes;

use super::exchange::{get_exchange, put_exchange};
use super::fields::{
    CodecError, get_coded, get_duration, get_millis, get_option, get_text, get_time, millis, put_duration,
    put_option, put_text, put_time,
};
use crate::codec::{Reader, put_bytes, put_u8, put_u16, put_varint};
use crate::domain::{Attempt, DeadReason, ErrorClass, Exchange, Hold, Network, Next, Position, Trigger};

pub(super) fn put_attempt(out: &mut Vec<u8>, attempt: &Attempt) {
    put_varint(out, u64::from(attempt.number));
    put_u8(out, attempt.trigger.code());
    put_time(out, attempt.started_at);
    put_duration(out, attempt.duration);
    put_option(out, attempt.status.as_ref(), |out, status| put_u16(out, *status));
    put_option(out, attempt.error.as_ref(), |out, (class, text)| {
        put_u8(out, class.code());
        put_text(out, text);
    });
    put_bytes(out, &attempt.reply);
    put_u8(out, attempt.network.code());
    put_next(out, attempt.next);
    put_option(out, attempt.hold.as_ref(), |out, hold| {
        put_time(out, hold.until);
        put_varint(out, hold.revision.0);
    });
    put_option(out, attempt.uptime.as_ref(), |out, uptime| put_varint(out, millis(*uptime)));
    put_varint(out, millis(attempt.delay));
    put_exchange(out, &attempt.exchange);
}

pub(super) fn get_attempt(r: &mut Reader<'_>, layout: u8) -> Result<Attempt, CodecError> {
    Ok(Attempt {
        number: r.get_varint_u32()?,
        trigger: get_trigger(r)?,
        started_at: get_time(r)?,
        duration: get_duration(r)?,
        status: get_option(r, |r| Ok(r.get_u16()?))?,
        error: get_option(r, |r| Ok((get_error_class(r)?, get_text(r)?)))?,
        reply: Bytes::copy_from_slice(r.get_bytes()?),
        network: if layout < 2 { Network::Public } else { get_network(r)? },
        next: get_next(r)?,
        hold: if layout < 3 { None } else { get_option(r, get_hold)? },
        uptime: if layout < 3 { None } else { get_option(r, get_millis)? },
        delay: if layout < 4 { Duration::ZERO } else { get_millis(r)? },
        exchange: if layout < 5 { Exchange::default() } else { get_exchange(r)? },
    })
}

fn get_hold(r: &mut Reader<'_>) -> Result<Hold, CodecError> {
    Ok(Hold { until: get_time(r)?, revision: Position(r.get_varint()?) })
}

/// 1 delivered, 2 retry at (time), 3 dead (reason).
fn put_next(out: &mut Vec<u8>, next: Next) {
    match next {
        Next::Delivered => put_u8(out, 1),
        Next::RetryAt(at) => {
            put_u8(out, 2);
            put_time(out, at);
        }
        Next::Dead(reason) => {
            put_u8(out, 3);
            put_u8(out, reason.code());
        }
    }
}

fn get_next(r: &mut Reader<'_>) -> Result<Next, CodecError> {
    match r.get_u8()? {
        1 => Ok(Next::Delivered),
        2 => Ok(Next::RetryAt(get_time(r)?)),
        3 => Ok(Next::Dead(get_dead_reason(r)?)),
        found => Err(CodecError::UnknownValue { what: "next step", found: u64::from(found) }),
    }
}

pub(super) fn get_trigger(r: &mut Reader<'_>) -> Result<Trigger, CodecError> {
    get_coded(r, "trigger", Trigger::from_code)
}

fn get_network(r: &mut Reader<'_>) -> Result<Network, CodecError> {
    get_coded(r, "network", Network::from_code)
}

pub(super) fn get_dead_reason(r: &mut Reader<'_>) -> Result<DeadReason, CodecError> {
    get_coded(r, "dead-letter reason", DeadReason::from_code)
}

fn get_error_class(r: &mut Reader<'_>) -> Result<ErrorClass, CodecError> {
    get_coded(r, "error class", ErrorClass::from_code)
}
