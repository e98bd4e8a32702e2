//! The bytes of a record: a public promise.
//!
//! Owns the layout of [`Record`] on disk. Tags are never reused, and a released layout never
//! changes. A changed record gets a new layout version, and the old version stays readable.
//! Decoding hostile bytes returns an error, never panics, and allocates memory in proportion to the
//! input only.
//!
//! A record is a tag byte, a layout version byte and the fields below, in this order. The layout
//! version is 5 for `AttemptFinished`, 2 for `EndpointPut`, `KeyPut`, `EventRejected`, the
//! `EventAccepted` of an erased event, a `ConsumerPut` with pins, a `TypePut` with state rules, a
//! `JobPut` with a search and a `LeasesEnded` with a lost answer, 3 for an event with labels, and 1
//! for all others.
//!
//! | tag | record | fields |
//! |---|---|---|
//! | 1 | `EventAccepted` | id, tenant, type, version, timestamp, accepted at, stream? (name, version), ordering key?, deliver at?, metadata?, attributes (name, value), data, targets, idempotency, erased at (layout 2 only), labels (layout 3 only) |
//! | 2 | `AttemptFinished` | delivery, due, number, trigger, started at, duration, status?, error? (class, text), reply, network, next, hold? (until, revision), uptime? (milliseconds), delay (milliseconds), exchange (flags, revision?, signed at?, address?, phase times in microseconds?, headers?) |
//! | 3 | `EndpointPut` | number, id, tenant, url, description, types, headers, rate limit?, in flight, timeout, ordering, retry, format, signature, secrets, trace, metadata?, status, created at, updated at, revision, options (tag, bytes) |
//! | 4 | `EndpointDeleted` | endpoint, at |
//! | 5 | `KeyPut` | id, role, tenant?, description, hash (32 bytes), created at, expires at? |
//! | 6 | `KeyDeleted` | id, at |
//! | 7 | `DeliveriesRevived` | deliveries, trigger, at |
//! | 8 | `DeliveriesCancelled` | deliveries, at |
//! | 9 | `DeliveriesDied` | deliveries, reason, at |
//! | 10 | `DeadLettersPurged` | deliveries, at |
//! | 11 | `RequestAnswered` | idempotency, status, body |
//! | 12 | `DeliveriesReordered` | deliveries, at |
//! | 13 | `EventRejected` | idempotency, rejection (expected and actual version), command? |
//! | 14 | `RateReserved` | endpoint, revision, rate (limit, per, burst), full at |
//! | 15 | `TenantPut` | tenant, name, metadata?, quotas (code, kind, limit), in flight?, timeout?, retry?, created at, updated at, revision |
//! | 16 | `TenantDeleted` | tenant, at |
//! | 17 | `EventErased` | event, tenant, at, reason |
//! | 18 | `HorizonMoved` | events, stream events, at |
//! | 19 | `ConsumerPut` | tenant?, name, types, streams (kind, text), description, created at, updated at, position, moved at?, pins (type, version; layout 2 only) |
//! | 20 | `ConsumerMoved` | tenant?, name, position, at |
//! | 21 | `ConsumerDeleted` | tenant?, name, at |
//! | 22 | `MessagesLeased` | queue, messages (event, place), until, at, worker? |
//! | 23 | `LeasesEnded` | queue, ends (event, lease, end; a lost answer in layout 2 only), at, reason? |
//! | 24 | `LeasesExtended` | queue, leases (event, lease), until, at |
//! | 25 | `TypePut` | name, description, compatibility, transitive, versions (version, schema, deprecated, sunset?, examples), migrations (from, to, patch), created at, updated at, revision, state rules (layout 2 only) |
//! | 26 | `TypeDeleted` | name, at |
//! | 27 | `JobPut` | id, number, kind, tenant?, started by (actor), started at, count, rate?, selection (endpoint?, types, reason?, since?, until?, only undelivered), progress, search (from layout 2: last attempt? (status?, class? (0: no reply), audience), id start?), meaning of its id (layout 3 only: 1 event (position), 2 events (first, last), 3 deliveries, 4 endpoints, 5 nothing) |
//! | 28 | `JobMoved` | number, progress (status, done, cursor? (position, endpoint, event), at, error?) |
//! | 29 | `Audited` | at, actor (key?, role, tenant?), action, target?, tenant?, address? (4 or 16 bytes), outcome |
//! | 30 | `SourcePut` | kind (1 AMQP), name, URL, user name, password (sealed), queue, type of queue, exchange?, bindings, declares, prefetch, tenant (1 fixed, 2 header), format, stream header?, ordering key header?, fate of invalid messages, recognition of repetitions, status, created at, updated at, revision |
//! | 31 | `SourceDeleted` | name, at |
//! | 32 | `KeyUsed` | id, at |
//!
//! Encoding of the fields:
//!
//! * Positions, numbers and times (milliseconds) are varints.
//! * Texts and bytes have a varint length; lists have a varint count.
//! * `?` marks an optional value: a byte 0 or 1 precedes it.
//! * A duration is varint seconds and varint nanoseconds.
//! * An HTTP status is a `u16`, a float is its bits as a `u64`; both are little-endian.
//! * An idempotency is scope and fingerprint (16 bytes each) and an optional expiry.
//! * A secret is its kind, sealed key and an optional expiry.
//! * An enumeration is one byte: the code in its declaration in [`domain`](crate::domain).

use std::sync::Arc;

use super::attempt::{get_attempt, get_dead_reason, get_trigger, put_attempt};
use super::consumer::{get_consumer, get_consumer_key, put_consumer, put_consumer_key};
use super::endpoint::{get_endpoint, get_rate_limit, put_endpoint, put_rate_limit};
use super::event::{get_event, put_event};
use super::event_type::{get_type, put_type};
use super::fields::{
    CodecError, get_coded, get_list, get_name, get_number, get_option, get_text, get_time, put_list,
    put_option, put_text, put_time,
};
use super::job::{get_audit_entry, get_job, get_move, put_audit_entry, put_job, put_move};
use super::lease::{
    get_leases_ended, get_leases_extended, get_messages_leased, has_lost_answer, put_leases_ended,
    put_leases_extended, put_messages_leased,
};
use super::source::{get_source, put_source};
use super::tenant::{get_tenant, put_tenant};
use crate::codec::{Reader, put_bytes, put_u8, put_u16, put_varint};
use crate::domain::{
    ApiKey, DeliveryKey, DeliverySearch, EndpointNumber, Expected, Horizon, Idempotency, Position, Record,
    Rejection, Reservation, Role, Tenant, Timestamp,
};

/// Layout version of the records that have had a single layout.
pub(super) const LAYOUT: u8 = 1;
/// Layout version of attempts. Earlier layouts stay readable: layout 1 has no network, layout 2 has
/// no hold and no uptime, layout 3 has no delay, layout 4 has no exchange.
const ATTEMPT_LAYOUT: u8 = 5;
/// Layout version of erased events. Layout 1, of all other events, has no time of erasure.
pub(super) const ERASED_EVENT_LAYOUT: u8 = 2;
/// Layout version of events with labels, which follow the fields of layout 1.
pub(super) const LABELLED_EVENT_LAYOUT: u8 = 3;
/// Layout version of consumers with pins. Layout 1, of all other consumers, has no pins.
pub(super) const PINNED_CONSUMER_LAYOUT: u8 = 2;
/// Layout version of jobs with a search. Layout 1, of jobs without one, has no search.
pub(super) const SEARCH_JOB_LAYOUT: u8 = 2;
/// Layout version of jobs whose search has an id, whose meaning follows the search. Layout 2 stays
/// readable with an id, too.
pub(super) const MEANING_JOB_LAYOUT: u8 = 3;
/// Layout version of types with state rules, which follow the fields of layout 1.
pub(super) const STATE_TYPE_LAYOUT: u8 = 2;
/// Layout version of ends of leases with a lost answer. Layout 1, of all others, has none.
pub(super) const LOST_ANSWER_LAYOUT: u8 = 2;
/// Layout version of endpoints. Layout 1 stays readable: its secrets have a single kind and plain
/// bytes, and it has no options.
const ENDPOINT_LAYOUT: u8 = 2;
/// Layout version of rejections. Layout 1 stays readable: it has no command.
const REJECTION_LAYOUT: u8 = 2;

/// Layout version of keys. Layout 1 stays readable: it has no expiry.
const KEY_LAYOUT: u8 = 2;

const EVENT_ACCEPTED: u8 = 1;
const ATTEMPT_FINISHED: u8 = 2;
const ENDPOINT_PUT: u8 = 3;
const ENDPOINT_DELETED: u8 = 4;
const KEY_PUT: u8 = 5;
const KEY_DELETED: u8 = 6;
const DELIVERIES_REVIVED: u8 = 7;
const DELIVERIES_CANCELLED: u8 = 8;
const DELIVERIES_DIED: u8 = 9;
const DEAD_LETTERS_PURGED: u8 = 10;
const REQUEST_ANSWERED: u8 = 11;
const DELIVERIES_REORDERED: u8 = 12;
const EVENT_REJECTED: u8 = 13;
const RATE_RESERVED: u8 = 14;
const TENANT_PUT: u8 = 15;
const TENANT_DELETED: u8 = 16;
const EVENT_ERASED: u8 = 17;
const HORIZON_MOVED: u8 = 18;
const CONSUMER_PUT: u8 = 19;
const CONSUMER_MOVED: u8 = 20;
const CONSUMER_DELETED: u8 = 21;
const MESSAGES_LEASED: u8 = 22;
const LEASES_ENDED: u8 = 23;
const LEASES_EXTENDED: u8 = 24;
const TYPE_PUT: u8 = 25;
const TYPE_DELETED: u8 = 26;
const JOB_PUT: u8 = 27;
const JOB_MOVED: u8 = 28;
const AUDITED: u8 = 29;
const SOURCE_PUT: u8 = 30;
const SOURCE_DELETED: u8 = 31;
const KEY_USED: u8 = 32;

/// Estimated encoded size of a record. Most records stay below it.
#[must_use]
pub fn size_hint(record: &Record) -> usize {
    match record {
        Record::EventAccepted(event) => event.weight(),
        Record::AttemptFinished { attempt, .. } => {
            let headers = &attempt.exchange.headers;
            128 + attempt.reply.len()
                + headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>()
        }
        Record::MessagesLeased { messages, .. } => 192 + 20 * messages.len(),
        Record::LeasesEnded { ends, .. } => 576 + 28 * ends.len(),
        Record::LeasesExtended { leases, .. } => 64 + 20 * leases.len(),
        Record::TypePut(definition) => definition.weight(),
        _ => 256,
    }
}

/// Appends the encoded record to `out`.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    let tag = record_tag(record);
    put_u8(out, tag);
    put_u8(out, written_layout(record));
    match record {
        Record::EventAccepted(event) => put_event(out, event),
        Record::AttemptFinished { delivery, due, attempt } => {
            put_delivery(out, *delivery);
            put_time(out, *due);
            put_attempt(out, attempt);
        }
        Record::EndpointPut(endpoint) => put_endpoint(out, endpoint),
        Record::EndpointDeleted { endpoint, at } => {
            put_varint(out, u64::from(endpoint.0));
            put_time(out, *at);
        }
        Record::KeyPut(key) => put_key(out, key),
        Record::KeyDeleted { id, at } | Record::KeyUsed { id, at } => put_deletion(out, id.as_str(), *at),
        Record::DeliveriesRevived { deliveries, trigger, at } => {
            put_list(out, deliveries, |out, key| put_delivery(out, *key));
            put_u8(out, trigger.code());
            put_time(out, *at);
        }
        Record::DeliveriesCancelled { deliveries, at }
        | Record::DeadLettersPurged { deliveries, at }
        | Record::DeliveriesReordered { deliveries, at } => {
            put_list(out, deliveries, |out, key| put_delivery(out, *key));
            put_time(out, *at);
        }
        Record::DeliveriesDied { deliveries, reason, at } => {
            put_list(out, deliveries, |out, key| put_delivery(out, *key));
            put_u8(out, reason.code());
            put_time(out, *at);
        }
        Record::RequestAnswered { idempotency, status, body } => {
            put_idempotency(out, idempotency);
            put_u16(out, *status);
            put_bytes(out, body);
        }
        Record::EventRejected { idempotency, rejection, command } => {
            put_idempotency(out, idempotency);
            put_rejection(out, *rejection);
            put_option(out, command.as_ref(), |out, command| put_varint(out, u64::from(*command)));
        }
        Record::RateReserved { endpoint, reservation } => put_reservation(out, *endpoint, reservation),
        Record::TenantPut(settings) => put_tenant(out, settings),
        Record::TenantDeleted { tenant, at } => put_deletion(out, tenant.as_str(), *at),
        Record::EventErased { event, tenant, at, reason } => put_erasure(out, *event, tenant, *at, reason),
        Record::HorizonMoved { horizon, at } => put_horizon(out, *horizon, *at),
        Record::ConsumerPut(consumer) => put_consumer(out, consumer),
        Record::ConsumerMoved { key, position, at } => {
            put_consumer_key(out, key);
            put_varint(out, position.0);
            put_time(out, *at);
        }
        Record::ConsumerDeleted { key, at } => {
            put_consumer_key(out, key);
            put_time(out, *at);
        }
        Record::MessagesLeased { queue, messages, until, at, worker } => {
            put_messages_leased(out, *queue, messages, (*until, *at), worker.as_ref());
        }
        Record::LeasesEnded { queue, ends, at, reason } => {
            put_leases_ended(out, *queue, ends, *at, reason.as_deref());
        }
        Record::LeasesExtended { queue, leases, until, at } => {
            put_leases_extended(out, *queue, leases, (*until, *at));
        }
        Record::TypePut(definition) => put_type(out, definition),
        Record::TypeDeleted { name, at } => put_deletion(out, name.as_str(), *at),
        Record::JobPut(job) => put_job(out, job),
        Record::JobMoved { job, progress } => put_move(out, *job, progress),
        Record::Audited(entry) => put_audit_entry(out, entry),
        Record::SourcePut(source) => put_source(out, source),
        Record::SourceDeleted { name, at } => put_deletion(out, name.as_str(), *at),
    }
}

/// Decodes one record. Trailing bytes are an error.
pub fn decode(bytes: &[u8]) -> Result<Record, CodecError> {
    let mut reader = Reader::new(bytes);
    let r = &mut reader;
    let tag = r.get_u8()?;
    let known = layout_of(tag).ok_or(CodecError::UnknownTag(tag))?;
    let found = r.get_u8()?;
    if !(LAYOUT..=known).contains(&found) {
        return Err(CodecError::UnknownLayout { tag, found, known });
    }
    let record = match tag {
        EVENT_ACCEPTED => Record::EventAccepted(Arc::new(get_event(r, found)?)),
        ATTEMPT_FINISHED => Record::AttemptFinished {
            delivery: get_delivery(r)?,
            due: get_time(r)?,
            attempt: Arc::new(get_attempt(r, found)?),
        },
        ENDPOINT_PUT => Record::EndpointPut(Arc::new(get_endpoint(r, found)?)),
        ENDPOINT_DELETED => Record::EndpointDeleted { endpoint: get_number(r)?, at: get_time(r)? },
        KEY_PUT => Record::KeyPut(Arc::new(get_key(r, found)?)),
        KEY_DELETED => Record::KeyDeleted { id: get_name(r)?, at: get_time(r)? },
        DELIVERIES_REVIVED => Record::DeliveriesRevived {
            deliveries: get_deliveries(r)?,
            trigger: get_trigger(r)?,
            at: get_time(r)?,
        },
        DELIVERIES_CANCELLED => {
            Record::DeliveriesCancelled { deliveries: get_deliveries(r)?, at: get_time(r)? }
        }
        DELIVERIES_DIED => Record::DeliveriesDied {
            deliveries: get_deliveries(r)?,
            reason: get_dead_reason(r)?,
            at: get_time(r)?,
        },
        DEAD_LETTERS_PURGED => Record::DeadLettersPurged { deliveries: get_deliveries(r)?, at: get_time(r)? },
        REQUEST_ANSWERED => Record::RequestAnswered {
            idempotency: get_idempotency(r)?,
            status: r.get_u16()?,
            body: Arc::from(r.get_bytes()?),
        },
        DELIVERIES_REORDERED => {
            Record::DeliveriesReordered { deliveries: get_deliveries(r)?, at: get_time(r)? }
        }
        EVENT_REJECTED => Record::EventRejected {
            idempotency: get_idempotency(r)?,
            rejection: get_rejection(r)?,
            command: if found < 2 { None } else { get_option(r, |r| Ok(r.get_varint_u32()?))? },
        },
        RATE_RESERVED => Record::RateReserved { endpoint: get_number(r)?, reservation: get_reservation(r)? },
        TENANT_PUT => Record::TenantPut(Arc::new(get_tenant(r)?)),
        TENANT_DELETED => Record::TenantDeleted { tenant: get_name(r)?, at: get_time(r)? },
        EVENT_ERASED => get_erasure(r)?,
        HORIZON_MOVED => Record::HorizonMoved {
            horizon: Horizon { events: Position(r.get_varint()?), stream_events: Position(r.get_varint()?) },
            at: get_time(r)?,
        },
        CONSUMER_PUT => Record::ConsumerPut(Arc::new(get_consumer(r, found)?)),
        CONSUMER_MOVED => Record::ConsumerMoved {
            key: get_consumer_key(r)?,
            position: Position(r.get_varint()?),
            at: get_time(r)?,
        },
        CONSUMER_DELETED => Record::ConsumerDeleted { key: get_consumer_key(r)?, at: get_time(r)? },
        MESSAGES_LEASED => get_messages_leased(r)?,
        LEASES_ENDED => get_leases_ended(r, found)?,
        LEASES_EXTENDED => get_leases_extended(r)?,
        TYPE_PUT => Record::TypePut(Arc::new(get_type(r, found)?)),
        TYPE_DELETED => Record::TypeDeleted { name: get_name(r)?, at: get_time(r)? },
        JOB_PUT..=AUDITED => get_work_record(tag, r, found)?,
        SOURCE_PUT => Record::SourcePut(Arc::new(get_source(r)?)),
        SOURCE_DELETED => Record::SourceDeleted { name: get_name(r)?, at: get_time(r)? },
        KEY_USED => Record::KeyUsed { id: get_name(r)?, at: get_time(r)? },
        other => return Err(CodecError::UnknownTag(other)),
    };
    reader.finish()?;
    Ok(record)
}

/// A record of a job or of an act.
fn get_work_record(tag: u8, r: &mut Reader<'_>, layout: u8) -> Result<Record, CodecError> {
    Ok(match tag {
        JOB_PUT => Record::JobPut(get_job(r, layout)?),
        JOB_MOVED => get_move(r)?,
        _ => Record::Audited(get_audit_entry(r)?),
    })
}

/// The latest layout version of a record; `None` for an unknown tag.
fn layout_of(tag: u8) -> Option<u8> {
    match tag {
        ATTEMPT_FINISHED => Some(ATTEMPT_LAYOUT),
        ENDPOINT_PUT => Some(ENDPOINT_LAYOUT),
        EVENT_REJECTED => Some(REJECTION_LAYOUT),
        KEY_PUT => Some(KEY_LAYOUT),
        EVENT_ACCEPTED => Some(LABELLED_EVENT_LAYOUT),
        CONSUMER_PUT => Some(PINNED_CONSUMER_LAYOUT),
        JOB_PUT => Some(MEANING_JOB_LAYOUT),
        TYPE_PUT => Some(STATE_TYPE_LAYOUT),
        LEASES_ENDED => Some(LOST_ANSWER_LAYOUT),
        EVENT_ACCEPTED..=EVENT_ERASED | HORIZON_MOVED | CONSUMER_PUT..=KEY_USED => Some(LAYOUT),
        _ => None,
    }
}

fn put_horizon(out: &mut Vec<u8>, horizon: Horizon, at: Timestamp) {
    put_varint(out, horizon.events.0);
    put_varint(out, horizon.stream_events.0);
    put_time(out, at);
}

/// The layout version that a record is written in: the latest, but the first for an event that is
/// neither erased nor labelled, a consumer without pins, a type without state rules, a job without
/// a search, and ends of leases without a lost answer.
fn written_layout(record: &Record) -> u8 {
    match record {
        Record::EventAccepted(event) if event.erased_at.is_some() => ERASED_EVENT_LAYOUT,
        Record::EventAccepted(event) if event.labels.is_empty() => LAYOUT,
        Record::ConsumerPut(consumer) if consumer.versions.is_empty() => LAYOUT,
        Record::JobPut(job) if job.selection.search == DeliverySearch::default() => LAYOUT,
        Record::JobPut(job) if job.selection.id_meaning.is_none() => SEARCH_JOB_LAYOUT,
        Record::TypePut(definition) if definition.state.is_none() => LAYOUT,
        Record::LeasesEnded { ends, .. } if !has_lost_answer(ends) => LAYOUT,
        _ => layout_of(record_tag(record)).expect("every record has a layout"),
    }
}

fn record_tag(record: &Record) -> u8 {
    match record {
        Record::EventAccepted(_) => EVENT_ACCEPTED,
        Record::AttemptFinished { .. } => ATTEMPT_FINISHED,
        Record::EndpointPut(_) => ENDPOINT_PUT,
        Record::EndpointDeleted { .. } => ENDPOINT_DELETED,
        Record::KeyPut(_) => KEY_PUT,
        Record::KeyDeleted { .. } => KEY_DELETED,
        Record::DeliveriesRevived { .. } => DELIVERIES_REVIVED,
        Record::DeliveriesCancelled { .. } => DELIVERIES_CANCELLED,
        Record::DeliveriesDied { .. } => DELIVERIES_DIED,
        Record::DeadLettersPurged { .. } => DEAD_LETTERS_PURGED,
        Record::RequestAnswered { .. } => REQUEST_ANSWERED,
        Record::DeliveriesReordered { .. } => DELIVERIES_REORDERED,
        Record::EventRejected { .. } => EVENT_REJECTED,
        Record::RateReserved { .. } => RATE_RESERVED,
        Record::TenantPut(_) => TENANT_PUT,
        Record::TenantDeleted { .. } => TENANT_DELETED,
        Record::EventErased { .. } => EVENT_ERASED,
        Record::HorizonMoved { .. } => HORIZON_MOVED,
        Record::ConsumerPut(_) => CONSUMER_PUT,
        Record::ConsumerMoved { .. } => CONSUMER_MOVED,
        Record::ConsumerDeleted { .. } => CONSUMER_DELETED,
        Record::MessagesLeased { .. } => MESSAGES_LEASED,
        Record::LeasesEnded { .. } => LEASES_ENDED,
        Record::LeasesExtended { .. } => LEASES_EXTENDED,
        Record::TypePut(_) => TYPE_PUT,
        Record::TypeDeleted { .. } => TYPE_DELETED,
        Record::JobPut(_) => JOB_PUT,
        Record::JobMoved { .. } => JOB_MOVED,
        Record::Audited(_) => AUDITED,
        Record::SourcePut(_) => SOURCE_PUT,
        Record::SourceDeleted { .. } => SOURCE_DELETED,
        Record::KeyUsed { .. } => KEY_USED,
    }
}

// ---- parts shared by several records -------------------------------------------------------

fn put_delivery(out: &mut Vec<u8>, key: DeliveryKey) {
    put_varint(out, key.event.0);
    put_varint(out, u64::from(key.endpoint.0));
}

fn get_delivery(r: &mut Reader<'_>) -> Result<DeliveryKey, CodecError> {
    Ok(DeliveryKey { event: Position(r.get_varint()?), endpoint: get_number(r)? })
}

fn get_deliveries(r: &mut Reader<'_>) -> Result<Vec<DeliveryKey>, CodecError> {
    get_list(r, 2, get_delivery)
}

pub(super) fn put_idempotency(out: &mut Vec<u8>, idempotency: &Idempotency) {
    out.extend_from_slice(&idempotency.scope);
    out.extend_from_slice(&idempotency.fingerprint);
    put_option(out, idempotency.expires_at.as_ref(), |out, at| put_time(out, *at));
}

pub(super) fn get_idempotency(r: &mut Reader<'_>) -> Result<Idempotency, CodecError> {
    Ok(Idempotency {
        scope: r.get_array()?,
        fingerprint: r.get_array()?,
        expires_at: get_option(r, get_time)?,
    })
}

/// 1 version conflict (expected: 0 any, 1 no stream, 2 a version, 3 exists; actual version?), 2 id
/// taken, 3 partial duplicate.
fn put_rejection(out: &mut Vec<u8>, rejection: Rejection) {
    match rejection {
        Rejection::VersionConflict { expected, actual } => {
            put_u8(out, 1);
            match expected {
                Expected::Any => put_u8(out, 0),
                Expected::NoStream => put_u8(out, 1),
                Expected::Version(version) => {
                    put_u8(out, 2);
                    put_varint(out, version);
                }
                Expected::Exists => put_u8(out, 3),
            }
            put_option(out, actual.as_ref(), |out, version| put_varint(out, *version));
        }
        Rejection::IdTaken => put_u8(out, 2),
        Rejection::PartialDuplicate => put_u8(out, 3),
    }
}

fn get_rejection(r: &mut Reader<'_>) -> Result<Rejection, CodecError> {
    match r.get_u8()? {
        1 => {
            let expected = match r.get_u8()? {
                0 => Expected::Any,
                1 => Expected::NoStream,
                2 => Expected::Version(r.get_varint()?),
                3 => Expected::Exists,
                found => {
                    return Err(CodecError::UnknownValue {
                        what: "expected version",
                        found: u64::from(found),
                    });
                }
            };
            let actual = get_option(r, |r| Ok(r.get_varint()?))?;
            Ok(Rejection::VersionConflict { expected, actual })
        }
        2 => Ok(Rejection::IdTaken),
        3 => Ok(Rejection::PartialDuplicate),
        found => Err(CodecError::UnknownValue { what: "rejection", found: u64::from(found) }),
    }
}

/// The end of what has this name.
fn put_deletion(out: &mut Vec<u8>, name: &str, at: Timestamp) {
    put_text(out, name);
    put_time(out, at);
}

fn get_erasure(r: &mut Reader<'_>) -> Result<Record, CodecError> {
    Ok(Record::EventErased {
        event: Position(r.get_varint()?),
        tenant: get_name(r)?,
        at: get_time(r)?,
        reason: get_text(r)?,
    })
}

fn put_erasure(out: &mut Vec<u8>, event: Position, tenant: &Tenant, at: Timestamp, reason: &str) {
    put_varint(out, event.0);
    put_text(out, tenant.as_str());
    put_time(out, at);
    put_text(out, reason);
}

fn put_reservation(out: &mut Vec<u8>, endpoint: EndpointNumber, reservation: &Reservation) {
    put_varint(out, u64::from(endpoint.0));
    put_varint(out, reservation.revision.0);
    put_rate_limit(out, &reservation.rate);
    put_time(out, reservation.full_at);
}

fn get_reservation(r: &mut Reader<'_>) -> Result<Reservation, CodecError> {
    Ok(Reservation { revision: Position(r.get_varint()?), rate: get_rate_limit(r)?, full_at: get_time(r)? })
}

// ---- keys ----------------------------------------------------------------------------------

fn put_key(out: &mut Vec<u8>, key: &ApiKey) {
    put_text(out, key.id.as_str());
    put_u8(out, key.role.code());
    put_option(out, key.tenant.as_ref(), |out, tenant| put_text(out, tenant.as_str()));
    put_text(out, &key.description);
    out.extend_from_slice(&key.hash);
    put_time(out, key.created_at);
    put_option(out, key.expires_at.as_ref(), |out, at| put_time(out, *at));
}

fn get_key(r: &mut Reader<'_>, layout: u8) -> Result<ApiKey, CodecError> {
    Ok(ApiKey {
        id: get_name(r)?,
        role: get_coded(r, "role", Role::from_code)?,
        tenant: get_option(r, get_name)?,
        description: get_text(r)?,
        hash: r.get_array()?,
        created_at: get_time(r)?,
        expires_at: if layout < 2 { None } else { get_option(r, get_time)? },
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
