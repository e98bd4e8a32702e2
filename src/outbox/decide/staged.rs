//! Decisions of a group that is not committed yet.

use std::collections::HashMap;

use super::atomic::Savepoint;
use crate::domain::{ConsumerKey, ConsumerPlace, Idempotency, Position, Record, StreamName, Tenant};
use crate::failpoints::{self, Bound};
use crate::limits;
use crate::outbox::quotas::GroupLoads;
use crate::projections::idempotency::Known;

/// Decisions of a group that is not committed yet.
#[derive(Default)]
pub(super) struct StagedGroup {
    pub(super) records: Vec<Record>,
    /// Number of records before the current unit.
    pub(super) unit_start: usize,
    /// Position of the next record.
    pub(super) next: Position,
    pub(super) scopes: HashMap<[u8; 16], Known>,
    pub(super) streams: HashMap<(Tenant, StreamName), (u64, Position)>,
    /// Places of the consumers that the group moves; `None`: deleted.
    pub(super) consumers: HashMap<ConsumerKey, Option<ConsumerPlace>>,
    /// Pending deliveries and bytes that the group adds, by tenant.
    pub(super) loads: GroupLoads,
    /// Number of deliveries that the group starts.
    pub(super) targets: usize,
    /// Number of deliveries that the current unit starts.
    pub(super) unit_targets: usize,
    /// The current unit reached its target limit. Its later events must not overtake the rejected
    /// one.
    pub(super) unit_is_full: bool,
    /// Of the atomic unit that is judged.
    pub(super) savepoint: Option<Savepoint>,
}

impl StagedGroup {
    pub(super) fn begin_unit(&mut self) {
        self.unit_start = self.records.len();
        self.unit_targets = 0;
        self.unit_is_full = false;
    }

    /// Whether the current unit changes more than the stored responses.
    pub(super) fn unit_has_changes(&self) -> bool {
        let is_response =
            |record: &Record| matches!(record, Record::RequestAnswered { .. } | Record::EventRejected { .. });
        !self.records[self.unit_start..].iter().all(is_response)
    }

    /// Reserves an event's targets in its unit. Returns whether they fit.
    pub(super) fn reserve_targets(&mut self, targets: usize) -> bool {
        self.unit_is_full |= self.unit_targets + targets > limits::REQUEST_TARGETS_MAX;
        if self.unit_is_full || targets > limits::EVENT_TARGETS_MAX {
            return false;
        }
        self.unit_targets += targets;
        self.targets += targets;
        true
    }

    pub(super) fn is_full(&self) -> bool {
        self.targets >= failpoints::bound(Bound::CommitTargets, limits::COMMIT_TARGETS)
    }

    pub(super) fn push(&mut self, record: Record) -> Position {
        let position = self.next;
        self.records.push(record);
        self.next = position.next();
        position
    }

    /// As [`Self::push`]; the record holds the result of a request with an idempotency key.
    pub(super) fn push_with_key(&mut self, idempotency: &Idempotency, record: Record) -> Position {
        let position = self.push(record);
        self.put_scope(idempotency.scope, known(idempotency, position));
        position
    }
}

pub(super) fn known(idempotency: &Idempotency, position: Position) -> Known {
    Known { position, fingerprint: idempotency.fingerprint, expires_at: idempotency.expires_at }
}
