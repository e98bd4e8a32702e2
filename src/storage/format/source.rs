//! The fields of a source.

use super::endpoint::{get_sealed, put_sealed};
use super::fields::{
    CodecError, get_bool, get_coded, get_list, get_name, get_option, get_text, get_time, put_list,
    put_option, put_text, put_time,
};
use crate::codec::{Reader, put_u8, put_u16, put_varint};
use crate::domain::{
    Dedup, OnInvalid, Position, Source, SourceFormat, SourceQueueType, SourceStatus, SourceTenant,
};

/// The kind of broker: AMQP 0-9-1. Other kinds have other fields.
const AMQP: u8 = 1;

pub(super) fn put_source(out: &mut Vec<u8>, source: &Source) {
    put_u8(out, AMQP);
    put_text(out, source.name.as_str());
    put_text(out, &source.url);
    put_text(out, &source.username);
    put_sealed(out, &source.password);
    put_text(out, &source.queue);
    put_u8(out, source.queue_type.code());
    put_option(out, source.exchange.as_ref(), |out, exchange| put_text(out, exchange));
    put_list(out, &source.bindings, |out, binding| put_text(out, binding));
    put_u8(out, u8::from(source.declares));
    put_u16(out, source.prefetch);
    match &source.tenant {
        SourceTenant::Fixed(tenant) => {
            put_u8(out, 1);
            put_text(out, tenant.as_str());
        }
        SourceTenant::Header(header) => {
            put_u8(out, 2);
            put_text(out, header);
        }
    }
    put_u8(out, source.format.code());
    put_option(out, source.stream_header.as_ref(), |out, header| put_text(out, header));
    put_option(out, source.ordering_key_header.as_ref(), |out, header| put_text(out, header));
    put_u8(out, source.on_invalid.code());
    put_u8(out, source.dedup.code());
    put_u8(out, source.status.code());
    put_time(out, source.created_at);
    put_time(out, source.updated_at);
    put_varint(out, source.revision.0);
}

pub(super) fn get_source(r: &mut Reader<'_>) -> Result<Source, CodecError> {
    match r.get_u8()? {
        AMQP => {}
        found => return Err(CodecError::UnknownValue { what: "kind of source", found: u64::from(found) }),
    }
    Ok(Source {
        name: get_name(r)?,
        url: get_text(r)?,
        username: get_text(r)?,
        password: get_sealed(r)?,
        queue: get_text(r)?,
        queue_type: get_coded(r, "type of queue", SourceQueueType::from_code)?,
        exchange: get_option(r, get_text)?,
        bindings: get_list(r, 1, get_text)?,
        declares: get_bool(r)?,
        prefetch: r.get_u16()?,
        tenant: match r.get_u8()? {
            1 => SourceTenant::Fixed(get_name(r)?),
            2 => SourceTenant::Header(get_text(r)?),
            found => {
                return Err(CodecError::UnknownValue { what: "tenant of a source", found: u64::from(found) });
            }
        },
        format: get_coded(r, "format of a source", SourceFormat::from_code)?,
        stream_header: get_option(r, get_text)?,
        ordering_key_header: get_option(r, get_text)?,
        on_invalid: get_coded(r, "fate of invalid messages", OnInvalid::from_code)?,
        dedup: get_coded(r, "recognition of repetitions", Dedup::from_code)?,
        status: get_coded(r, "status of a source", SourceStatus::from_code)?,
        created_at: get_time(r)?,
        updated_at: get_time(r)?,
        revision: Position(r.get_varint()?),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::{Sealed, Timestamp};

    /// A source with every field.
    pub(crate) fn sample_source() -> Source {
        Source {
            name: "shop".parse().unwrap(),
            url: "amqps://rabbit.example:5671/%2F".into(),
            username: "balto".into(),
            password: Sealed::Plain((*b"secret").into()),
            queue: "to-balto".into(),
            queue_type: SourceQueueType::Quorum,
            exchange: Some("shop".into()),
            bindings: vec!["pet.#".into(), "*.paid".into()],
            declares: true,
            prefetch: 500,
            tenant: SourceTenant::Header("x-tenant".into()),
            format: SourceFormat::Envelope,
            stream_header: Some("x-stream".into()),
            ordering_key_header: None,
            on_invalid: OnInvalid::Park,
            dedup: Dedup::MessageId,
            status: SourceStatus::Paused,
            created_at: Timestamp::from_millis(1_000),
            updated_at: Timestamp::from_millis(2_000),
            revision: Position(7),
        }
    }
}
