//! Fields that several records share: texts, times, durations, options, lists and enumeration tags.

use std::str::FromStr;
use std::time::Duration;

use crate::codec::{Malformed, Reader, put_bytes, put_u8, put_varint};
use crate::domain::{EndpointNumber, EndpointOwner, InvalidName, Tenant, Timestamp};

/// Why bytes cannot be decoded as a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("malformed record: {0}")]
    Malformed(#[from] Malformed),
    #[error("unknown record tag {0}; a newer version may have written it")]
    UnknownTag(u8),
    #[error(
        "record tag {tag} has layout {found}, the newest known is {known}; a newer version may have written it"
    )]
    UnknownLayout { tag: u8, found: u8, known: u8 },
    #[error("invalid {what}: {found}")]
    UnknownValue { what: &'static str, found: u64 },
    #[error("invalid name in record: {0}")]
    Name(#[from] InvalidName),
}

impl CodecError {
    /// Whether a newer version wrote the record.
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

/// Reads a name and validates it again, so that no invalid name enters from the disk.
pub(super) fn get_name<T: FromStr<Err = InvalidName>>(r: &mut Reader<'_>) -> Result<T, CodecError> {
    Ok(r.get_str()?.parse()?)
}

/// Reads the owner of a queue, or of what concerns one.
pub(super) fn get_owner(r: &mut Reader<'_>) -> Result<Tenant, CodecError> {
    get_name(r).map(|EndpointOwner(owner)| owner)
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
        return Err(CodecError::UnknownValue { what: "nanoseconds", found: u64::from(nanos) });
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

/// Reads a list of items with at least `item_bytes_min` bytes each. An item can be larger in memory
/// than on disk, so the list grows while it is read and memory stays proportional to the input.
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

/// Reads an enumeration by its code.
pub(super) fn get_coded<T>(
    r: &mut Reader<'_>,
    what: &'static str,
    from_code: fn(u8) -> Option<T>,
) -> Result<T, CodecError> {
    let found = r.get_u8()?;
    from_code(found).ok_or_else(|| CodecError::UnknownValue { what, found: u64::from(found) })
}
