//! Fields that several records share: texts, times, durations, options, lists, and tags of enumerations.

use std::str::FromStr;
use std::time::Duration;

use crate::codec::{Malformed, Reader, put_bytes, put_u8, put_varint};
use crate::domain::{EndpointNumber, InvalidName, Timestamp};

/// Bytes that are not a record of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("record is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("record has the unknown tag {0}; was it written by a newer version?")]
    UnknownTag(u8),
    #[error("record {tag} has layout {found}, at most {known} is known; was it written by a newer version?")]
    UnknownLayout { tag: u8, found: u8, known: u8 },
    #[error("{found} is no {what}")]
    UnknownValue { what: &'static str, found: u64 },
    #[error("record holds an illegal name: {0}")]
    Name(#[from] InvalidName),
}

impl CodecError {
    /// Whether the record is one of a version that knows more.
    #[must_use]
    pub fn is_newer(&self) -> bool {
        matches!(self, Self::UnknownTag(_) | Self::UnknownLayout { .. })
    }
}
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(super) fn get_text(r: &mut Reader<'_>) -> Result<Box<str>, CodecError> {
    Ok(r.get_str()?.into())
}

/// Names are parsed again: what is illegal to say does not enter through the disk either.
pub(super) fn get_name<T: FromStr<Err = InvalidName>>(r: &mut Reader<'_>) -> Result<T, CodecError> {
    Ok(r.get_str()?.parse()?)
}

pub(super) fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    put_varint(out, time.millis());
}

pub(super) fn get_time(r: &mut Reader<'_>) -> Result<Timestamp, CodecError> {
    let millis = r.get_varint()?;
    let time = Timestamp::from_millis(millis);
    if time.millis() == millis {
        Ok(time)
    } else {
        Err(CodecError::UnknownValue { what: "time", found: millis })
    }
}

pub(super) fn put_duration(out: &mut Vec<u8>, duration: Duration) {
    put_varint(out, duration.as_secs());
    put_varint(out, u64::from(duration.subsec_nanos()));
}

pub(super) fn get_duration(r: &mut Reader<'_>) -> Result<Duration, CodecError> {
    let seconds = r.get_varint()?;
    let nanos = r.get_varint_u32()?;
    if nanos >= 1_000_000_000 {
        return Err(CodecError::UnknownValue { what: "part of a second", found: u64::from(nanos) });
    }
    Ok(Duration::new(seconds, nanos))
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn get_millis(r: &mut Reader<'_>) -> Result<Duration, CodecError> {
    Ok(Duration::from_millis(r.get_varint()?))
}

pub(super) fn get_number(r: &mut Reader<'_>) -> Result<EndpointNumber, CodecError> {
    Ok(EndpointNumber(r.get_varint_u32()?))
}

pub(super) fn get_bool(r: &mut Reader<'_>) -> Result<bool, CodecError> {
    match r.get_u8()? {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(CodecError::UnknownValue { what: "flag", found: u64::from(found) }),
    }
}

pub(super) fn put_option<T>(out: &mut Vec<u8>, value: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    put_u8(out, u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

pub(super) fn get_option<'a, T>(
    r: &mut Reader<'a>,
    get: impl FnOnce(&mut Reader<'a>) -> Result<T, CodecError>,
) -> Result<Option<T>, CodecError> {
    if get_bool(r)? { get(r).map(Some) } else { Ok(None) }
}

pub(super) fn put_list<T>(out: &mut Vec<u8>, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    put_varint(out, items.len() as u64);
    for item in items {
        put(out, item);
    }
}

/// Bytes that an item takes at least are below its size in memory, so the list grows as it is read instead of being
/// reserved: memory follows the input.
pub(super) fn get_list<'a, T>(
    r: &mut Reader<'a>,
    item_bytes_min: usize,
    mut get: impl FnMut(&mut Reader<'a>) -> Result<T, CodecError>,
) -> Result<Vec<T>, CodecError> {
    let count = r.get_count(item_bytes_min)?;
    let mut items = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        items.push(get(r)?);
    }
    Ok(items)
}

pub(super) fn put_pair(out: &mut Vec<u8>, (name, value): &(Box<str>, Box<str>)) {
    put_text(out, name);
    put_text(out, value);
}

pub(super) fn get_pair(r: &mut Reader<'_>) -> Result<(Box<str>, Box<str>), CodecError> {
    Ok((get_text(r)?, get_text(r)?))
}

/// The value of a closed list by its code.
pub(super) fn get_coded<T>(
    r: &mut Reader<'_>,
    what: &'static str,
    from_code: fn(u8) -> Option<T>,
) -> Result<T, CodecError> {
    let found = r.get_u8()?;
    from_code(found).ok_or_else(|| CodecError::UnknownValue { what, found: u64::from(found) })
}
