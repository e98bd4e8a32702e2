//! The history of a delivery: its attempts, or the leases of its message.

use super::types::{HistoryEntry, LeaseOutcome, PastAttempt, PastLease};
use crate::domain::{HeldLease, LeaseEnd, Position, Record, Timestamp};

/// Why a lease ended whose answer did not reach the worker.
const ANSWER_LOST: &str = "the answer could not be sent whole";

/// Collects the records of one delivery, oldest first.
pub(super) struct History {
    event: Position,
    entries: Vec<HistoryEntry>,
    /// The record of the last lease.
    last: Position,
    leases: u32,
    /// The last extension: its lease, and the new end.
    extension: Option<(Position, Timestamp)>,
    /// The end of the message under the next lease.
    end: Option<(LeaseOutcome, Timestamp)>,
}

impl History {
    pub(super) fn new(event: Position) -> Self {
        Self { event, entries: Vec::new(), last: Position(0), leases: 0, extension: None, end: None }
    }

    pub(super) fn add(&mut self, position: Position, record: Record) {
        match record {
            Record::AttemptFinished { attempt, .. } => {
                self.entries.push(HistoryEntry::Attempt(PastAttempt { attempt, request: None }.into()));
            }
            Record::MessagesLeased { until, at, worker, .. } => {
                self.leases += 1;
                self.last = position;
                let extended = self.extension.take().filter(|(lease, _)| *lease == position);
                let (outcome, ended_at) = self.end.take().unzip();
                self.entries.push(HistoryEntry::Lease(PastLease {
                    number: self.leases,
                    received_at: at,
                    until: extended.map_or(until, |(_, until)| until),
                    worker,
                    // Unless its end follows.
                    outcome: outcome.unwrap_or(LeaseOutcome::Expired),
                    ended_at,
                    reason: None,
                    next_at: None,
                }));
            }
            // These precede the lease that they are about.
            Record::LeasesExtended { leases, until, .. } => {
                let own = leases.iter().find(|key| key.event == self.event);
                self.extension = own.map(|key| (key.lease, until));
            }
            Record::DeliveriesCancelled { at, .. } => self.end = Some((LeaseOutcome::Cancelled, at)),
            Record::DeliveriesDied { at, .. } => self.end = Some((LeaseOutcome::Dead, at)),
            Record::LeasesEnded { ends, at, reason, .. } => {
                let is_its = |key: crate::domain::LeaseKey| key.event == self.event && key.lease == self.last;
                let end = ends.iter().find(|ended| is_its(ended.key)).map(|ended| ended.end);
                if let (Some(HistoryEntry::Lease(lease)), Some(end)) = (self.entries.last_mut(), end) {
                    lease.ended_at = Some(at);
                    lease.reason = match end {
                        LeaseEnd::Lost(_) => Some(ANSWER_LOST.into()),
                        _ => reason,
                    };
                    lease.outcome = end.into();
                    lease.next_at = match end {
                        LeaseEnd::Requeued(due) => Some(due),
                        LeaseEnd::Lost(due) => due,
                        LeaseEnd::Acked | LeaseEnd::Released | LeaseEnd::Dead(_) => None,
                    };
                }
            }
            _ => {}
        }
    }

    /// The entries. `held`: the last lease of a pending message.
    pub(super) fn finish(mut self, held: Option<&HeldLease>, now: Timestamp) -> Vec<HistoryEntry> {
        if let (Some(held), Some(HistoryEntry::Lease(lease))) = (held, self.entries.last_mut())
            && held.position == self.last
            && !held.is_released
        {
            lease.until = held.until;
            if held.until > now {
                lease.outcome = LeaseOutcome::Leased;
            }
        }
        self.entries
    }
}
