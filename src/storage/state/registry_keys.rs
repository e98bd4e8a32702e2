//! Keys of the rows of endpoints, API keys and their last uses, tenants, event types and sources.
//! Must never decide when a row exists.

use super::{DELETED, ENDPOINTS, KEY_USES, KEYS, SOURCES, TENANTS, TYPES};
use crate::domain::{EndpointNumber, EventType, KeyId, SourceName, Tenant};

pub(super) fn endpoint_key(number: EndpointNumber) -> Vec<u8> {
    [&[ENDPOINTS][..], &number.0.to_be_bytes()].concat()
}

pub(super) fn deleted_key(number: EndpointNumber) -> Vec<u8> {
    [&[DELETED][..], &number.0.to_be_bytes()].concat()
}

pub(super) fn key_key(id: &KeyId) -> Vec<u8> {
    [&[KEYS][..], id.as_str().as_bytes()].concat()
}

pub(super) fn use_key(id: &KeyId) -> Vec<u8> {
    [&[KEY_USES][..], id.as_str().as_bytes()].concat()
}

pub(super) fn type_key(name: &EventType) -> Vec<u8> {
    [&[TYPES][..], name.as_str().as_bytes()].concat()
}

pub(super) fn source_key(name: &SourceName) -> Vec<u8> {
    [&[SOURCES][..], name.as_str().as_bytes()].concat()
}

pub(super) fn tenant_key(tenant: &Tenant) -> Vec<u8> {
    [&[TENANTS][..], tenant.as_str().as_bytes()].concat()
}
