//! The layout of an accepted event.

use bytes::Bytes;

use super::fields::{
    CodecError, get_list, get_name, get_number, get_option, get_pair, get_time, put_list, put_option,
    put_pair, put_text, put_time,
};
use super::record::{ERASED_EVENT_LAYOUT, LABELLED_EVENT_LAYOUT, get_idempotency, put_idempotency};
use crate::codec::{Reader, put_bytes, put_varint};
use crate::domain::{Event, Label};

pub(super) fn put_event(out: &mut Vec<u8>, event: &Event) {
    put_text(out, event.id.as_str());
    put_text(out, event.tenant.as_str());
    put_text(out, event.event_type.as_str());
    put_text(out, event.version.as_str());
    put_time(out, event.timestamp);
    put_time(out, event.accepted_at);
    put_option(out, event.stream.as_ref(), |out, (name, version)| {
        put_text(out, name.as_str());
        put_varint(out, *version);
    });
    put_option(out, event.ordering_key.as_ref(), |out, key| put_text(out, key.as_str()));
    put_option(out, event.deliver_at.as_ref(), |out, at| put_time(out, *at));
    put_option(out, event.metadata.as_ref(), |out, metadata| put_bytes(out, metadata));
    put_list(out, &event.attributes, put_pair);
    put_bytes(out, &event.data);
    put_list(out, &event.targets, |out, number| put_varint(out, u64::from(number.0)));
    put_list(out, &event.idempotency, put_idempotency);
    if let Some(at) = event.erased_at {
        put_time(out, at);
    } else if !event.labels.is_empty() {
        put_list(out, &event.labels, |out, label| put_text(out, label.as_str()));
    }
}

pub(super) fn get_event(r: &mut Reader<'_>, layout: u8) -> Result<Event, CodecError> {
    let mut event = Event {
        id: get_name(r)?,
        tenant: get_name(r)?,
        event_type: get_name(r)?,
        version: get_name(r)?,
        timestamp: get_time(r)?,
        accepted_at: get_time(r)?,
        stream: get_option(r, |r| Ok((get_name(r)?, r.get_varint()?)))?,
        ordering_key: get_option(r, get_name)?,
        deliver_at: get_option(r, get_time)?,
        labels: Vec::new(),
        metadata: get_option(r, |r| Ok(Bytes::copy_from_slice(r.get_bytes()?)))?,
        attributes: get_list(r, 2, get_pair)?,
        data: Bytes::copy_from_slice(r.get_bytes()?),
        targets: get_list(r, 1, get_number)?,
        idempotency: get_list(r, 33, get_idempotency)?,
        erased_at: if layout == ERASED_EVENT_LAYOUT { Some(get_time(r)?) } else { None },
    };
    if layout == LABELLED_EVENT_LAYOUT {
        event.labels = get_labels(r)?;
    }
    Ok(event)
}

/// One or more.
fn get_labels(r: &mut Reader<'_>) -> Result<Vec<Label>, CodecError> {
    let labels: Vec<Label> = get_list(r, 2, get_name)?;
    if labels.is_empty() {
        Err(CodecError::UnknownValue { what: "number of labels", found: 0 })
    } else {
        Ok(labels)
    }
}
