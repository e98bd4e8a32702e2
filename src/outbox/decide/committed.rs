//! A durable group of records, and the memory that unapplied groups hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as AtomicOrdering};

use crate::domain::{DueKey, EndpointNumber, Event, IdSet, Position, Progress, Record, Timestamp, Trigger};
use crate::outbox::fan_out::FanOutPermit;
use crate::outbox::overtaking::is_large;
use crate::projections::LaneChange;

/// A durable group.
#[derive(Debug)]
pub struct CommittedGroup {
    /// Commit time. Commit times never decrease.
    pub at: Timestamp,
    pub records: Vec<(Position, Record)>,
    /// Endpoints with an ordering at the time of the commit.
    pub(super) ordered: Arc<IdSet<EndpointNumber>>,
    /// Admitted deliveries, until the last holder drops the group.
    pub(super) _permits: Vec<Arc<FanOutPermit>>,
    /// Counts the group's bytes until the last holder drops it.
    pub(super) _held: UnappliedGuard,
}

impl CommittedGroup {
    /// The endpoints of an event of the group whose deliveries the commit announces. The state
    /// announces those of events that it applies in steps: a million at once would delay the
    /// deliveries of all tenants.
    pub fn announced_targets(event: &Event) -> &[EndpointNumber] {
        if is_large(event) { &[] } else { &event.targets }
    }

    /// Due deliveries of an event of the group, for the lanes of endpoints without ordering. The
    /// state announces the others.
    pub fn announced<'a>(
        &'a self,
        position: Position,
        event: &Event,
        targets: &'a [EndpointNumber],
    ) -> impl Iterator<Item = LaneChange> + use<'a> {
        let due = event.first_due();
        let (progress, key) = (Progress::begin(0, due, Trigger::Publish), DueKey { due, event: position });
        let unordered = targets.iter().filter(|target| !self.ordered.contains(target));
        unordered.map(move |target| LaneChange::Due { endpoint: *target, key, progress, at: position })
    }
}

/// Bytes of the groups that the state or the dispatcher still holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnappliedBytes(Arc<AtomicUsize>);

impl UnappliedBytes {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(AtomicOrdering::Relaxed)
    }

    pub(super) fn hold(&self, bytes: usize) -> UnappliedGuard {
        self.0.fetch_add(bytes, AtomicOrdering::Relaxed);
        UnappliedGuard { all: self.clone(), bytes }
    }
}

#[derive(Debug)]
pub(super) struct UnappliedGuard {
    all: UnappliedBytes,
    bytes: usize,
}

impl Drop for UnappliedGuard {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, AtomicOrdering::Relaxed);
    }
}
