//! Intake of a group's new deliveries into the lanes, in bounded steps.
//!
//! A group may have many thousand deliveries. The loop takes some of them, then looks after running
//! attempts and starts new ones. Later notices wait, so that the lanes get all notices in order.

use std::sync::Arc;

use crate::domain::Record;
use crate::failpoints::{self, Bound};
use crate::limits;
use crate::outbox::decide::CommittedGroup;
use crate::projections::LaneChange;

/// The part of a group that the lanes do not have yet.
#[derive(Debug)]
pub(super) struct Intake {
    group: Arc<CommittedGroup>,
    record: usize,
    target: usize,
}

impl Intake {
    pub(super) fn new(group: Arc<CommittedGroup>) -> Self {
        Self { group, record: 0, target: 0 }
    }

    /// Passes the next deliveries to `take`. Returns whether any are left.
    pub(super) fn step(&mut self, mut take: impl FnMut(LaneChange)) -> bool {
        let mut room = failpoints::bound(Bound::IntakeTargets, limits::INTAKE_TARGETS_MAX);
        while let Some((position, record)) = self.group.records.get(self.record) {
            if let Record::EventAccepted(event) = record {
                let targets = CommittedGroup::announced_targets(event);
                let end = targets.len().min(self.target + room);
                self.group.announced(*position, event, &targets[self.target..end]).for_each(&mut take);
                room -= end - self.target;
                self.target = end;
                if end < targets.len() {
                    return true;
                }
            }
            (self.record, self.target) = (self.record + 1, 0);
        }
        false
    }
}
