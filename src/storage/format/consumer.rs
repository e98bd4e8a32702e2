//! The fields of a consumer.

use super::endpoint::{get_pins, put_pins};
use super::fields::{
    CodecError, get_list, get_name, get_option, get_text, get_time, put_list, put_option, put_text, put_time,
};
use super::record::PINNED_CONSUMER_LAYOUT;
use crate::codec::{Reader, put_u8, put_varint};
use crate::domain::{Consumer, ConsumerFilter, ConsumerKey, ConsumerPlace, Position, StreamChoice};

/// Kinds of the choice of streams.
const ANY_STREAM: u8 = 0;
const ONE_STREAM: u8 = 1;
const STREAM_PREFIX: u8 = 2;

pub(super) fn put_consumer_key(out: &mut Vec<u8>, key: &ConsumerKey) {
    put_option(out, key.tenant.as_ref(), |out, tenant| put_text(out, tenant.as_str()));
    put_text(out, key.name.as_str());
}

pub(super) fn get_consumer_key(r: &mut Reader<'_>) -> Result<ConsumerKey, CodecError> {
    Ok(ConsumerKey { tenant: get_option(r, get_name)?, name: get_name(r)? })
}

pub(super) fn put_consumer(out: &mut Vec<u8>, consumer: &Consumer) {
    let Consumer { key, filter, versions, description, created_at, updated_at, place } = consumer;
    put_consumer_key(out, key);
    put_list(out, &filter.types, |out, pattern| put_text(out, pattern.as_str()));
    match &filter.streams {
        StreamChoice::Any => put_u8(out, ANY_STREAM),
        StreamChoice::One(stream) => {
            put_u8(out, ONE_STREAM);
            put_text(out, stream.as_str());
        }
        StreamChoice::Prefix(prefix) => {
            put_u8(out, STREAM_PREFIX);
            put_text(out, prefix);
        }
    }
    put_text(out, description);
    put_time(out, *created_at);
    put_time(out, *updated_at);
    put_varint(out, place.position.0);
    put_option(out, place.moved_at.as_ref(), |out, at| put_time(out, *at));
    // In their own layout, so that a consumer without pins has the bytes of earlier versions.
    if !versions.is_empty() {
        put_pins(out, versions);
    }
}

pub(super) fn get_consumer(r: &mut Reader<'_>, layout: u8) -> Result<Consumer, CodecError> {
    let mut consumer = Consumer {
        key: get_consumer_key(r)?,
        filter: ConsumerFilter {
            types: get_list(r, 2, get_name)?,
            streams: match r.get_u8()? {
                ANY_STREAM => StreamChoice::Any,
                ONE_STREAM => StreamChoice::One(get_name(r)?),
                STREAM_PREFIX => StreamChoice::Prefix(get_text(r)?),
                found => {
                    return Err(CodecError::UnknownValue {
                        what: "choice of streams",
                        found: u64::from(found),
                    });
                }
            },
        },
        versions: Vec::new(),
        description: get_text(r)?,
        created_at: get_time(r)?,
        updated_at: get_time(r)?,
        place: ConsumerPlace { position: Position(r.get_varint()?), moved_at: get_option(r, get_time)? },
    };
    if layout == PINNED_CONSUMER_LAYOUT {
        consumer.versions = get_pins(r)?;
        if consumer.versions.is_empty() {
            return Err(CodecError::UnknownValue { what: "pins of a consumer", found: 0 });
        }
    }
    Ok(consumer)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::{Timestamp, VersionPin};

    fn time(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    pub(in crate::storage::format) fn consumer() -> Consumer {
        Consumer {
            key: ConsumerKey { tenant: Some("acme".parse().unwrap()), name: "pet-search".parse().unwrap() },
            filter: ConsumerFilter {
                types: vec!["pet.*".parse().unwrap()],
                streams: StreamChoice::One("pet-1".parse().unwrap()),
            },
            versions: Vec::new(),
            description: "Search".into(),
            created_at: time(1_000),
            updated_at: time(2_000),
            place: ConsumerPlace { position: Position(300), moved_at: Some(time(3_000)) },
        }
    }

    pub(in crate::storage::format) fn pinned_consumer() -> Consumer {
        let versions = vec![
            ("pet.adopted".parse().unwrap(), VersionPin::Version("1.0".parse().unwrap())),
            ("pet.born".parse().unwrap(), VersionPin::Latest),
        ];
        Consumer { versions, ..consumer() }
    }

    pub(in crate::storage::format) fn bare_consumer() -> Consumer {
        Consumer {
            key: ConsumerKey { tenant: None, name: "a".parse().unwrap() },
            filter: ConsumerFilter::default(),
            description: "".into(),
            place: ConsumerPlace::default(),
            ..consumer()
        }
    }

    /// As in `golden.txt`: these bytes never change.
    #[test]
    fn golden_bytes_of_a_pinned_consumer() {
        let bytes = |consumer: &Consumer| {
            let mut out = Vec::new();
            put_consumer(&mut out, consumer);
            out
        };
        let mut golden = bytes(&consumer());
        golden.extend_from_slice(b"\x02\x0bpet.adopted\x031.0\x08pet.born\x00");
        assert_eq!(bytes(&pinned_consumer()), golden);
        let read = |bytes: &[u8]| get_consumer(&mut Reader::new(bytes), PINNED_CONSUMER_LAYOUT);
        assert_eq!(read(&golden), Ok(pinned_consumer()));
        // A list without pins would be a second form of the same consumer.
        assert!(read(&[bytes(&consumer()), vec![0]].concat()).is_err());
    }
}
