//! The observer's knowledge of leases, from durable records alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{
    DeliveryKey, EndedLease, EndpointNumber, LeaseEnd, Position, Record, TakenFrom, Timestamp,
};
use crate::outbox::conformance::oracle::Oracle;
use crate::service::leases::ReceiptStatus;

/// A lease: the delivery, and the position of its record.
type Lease = (DeliveryKey, Position);

#[derive(Debug, Default)]
pub(super) struct LeaseModel {
    /// Leases that took their message, with the answers that its series had lost before.
    effective: BTreeMap<Lease, u32>,
    /// Ends that a record names, also without an effect.
    ends: BTreeMap<Lease, Vec<ReceiptStatus>>,
    /// Acknowledgements whose record delivered the message.
    acked: BTreeSet<Lease>,
    extended: BTreeMap<Lease, BTreeSet<Timestamp>>,
}

impl LeaseModel {
    pub(super) fn is_effective(&self, delivery: DeliveryKey, lease: Position) -> bool {
        self.effective.contains_key(&(delivery, lease))
    }

    pub(super) fn is_acked(&self, delivery: DeliveryKey, lease: Position) -> bool {
        self.acked.contains(&(delivery, lease))
    }

    /// Whether a record ends the lease with this result.
    pub(super) fn has_ended(&self, delivery: DeliveryKey, lease: Position, status: ReceiptStatus) -> bool {
        self.ends.get(&(delivery, lease)).is_some_and(|ends| ends.contains(&status))
    }

    pub(super) fn is_extended(&self, delivery: DeliveryKey, lease: Position, to: Option<Timestamp>) -> bool {
        let known = self.extended.get(&(delivery, lease));
        known.zip(to).is_some_and(|(known, to)| known.contains(&to))
    }

    /// Checks a record before the oracle applies it: a message is not taken while its lease runs,
    /// and of the lost answers of a series the first one alone is free.
    ///
    /// # Errors
    /// The lease that was ignored, or whose end has a wrong charge.
    pub(super) fn check(&self, record: &Record, oracle: &Oracle, clock_jumps: bool) -> Result<(), String> {
        if let Record::LeasesEnded { queue, ends, .. } = record {
            return ends.iter().try_for_each(|ended| self.check_lost(*queue, ended));
        }
        let Record::MessagesLeased { queue, messages, at, .. } = record else { return Ok(()) };
        for taken in messages {
            let key = DeliveryKey { event: taken.event, endpoint: *queue };
            let held = oracle.deliveries.get(&key).and_then(|known| known.lease);
            if let (TakenFrom::Lease(position), Some(held)) = (taken.from, held)
                && position == held.position
                && held.runs_at(*at)
                && !clock_jumps
            {
                return Err(format!("{key:?} was taken at {at:?} under a running lease {held:?}"));
            }
        }
        Ok(())
    }

    fn check_lost(&self, queue: EndpointNumber, ended: &EndedLease) -> Result<(), String> {
        let LeaseEnd::Lost(due) = ended.end else { return Ok(()) };
        let delivery = DeliveryKey { event: ended.key.event, endpoint: queue };
        match self.effective.get(&(delivery, ended.key.lease)) {
            Some(0) if due.is_some() => Err(format!("the first lost answer of {delivery:?} was charged")),
            Some(1..) if due.is_none() => {
                Err(format!("{delivery:?} came back uncharged after another lost answer"))
            }
            Some(_) => Ok(()),
            None => Err(format!("{:?} was lost, but is no lease of {delivery:?}", ended.key)),
        }
    }

    /// Call this after the oracle has applied the record.
    pub(super) fn apply(&mut self, position: Position, record: &Record, oracle: &Oracle) {
        match record {
            Record::MessagesLeased { queue, messages, .. } => {
                for taken in messages {
                    let key = DeliveryKey { event: taken.event, endpoint: *queue };
                    let Some(known) = oracle.deliveries.get(&key) else { continue };
                    if known.lease.is_some_and(|lease| lease.position == position) {
                        self.effective.insert((key, position), known.progress.lost_answers);
                    }
                }
            }
            Record::LeasesEnded { queue, ends, .. } => {
                for ended in ends {
                    let delivery = DeliveryKey { event: ended.key.event, endpoint: *queue };
                    let lease = (delivery, ended.key.lease);
                    let known = oracle.deliveries.get(&delivery);
                    if known.is_some_and(|known| known.settled.is_some_and(|(_, by)| by == position))
                        && ended.end == LeaseEnd::Acked
                    {
                        self.acked.insert(lease);
                    }
                    self.ends.entry(lease).or_default().push(match ended.end {
                        LeaseEnd::Acked => ReceiptStatus::Acked,
                        LeaseEnd::Released | LeaseEnd::Lost(None) => ReceiptStatus::Released,
                        LeaseEnd::Requeued(_) | LeaseEnd::Lost(Some(_)) => ReceiptStatus::Requeued,
                        LeaseEnd::Dead(_) => ReceiptStatus::Dead,
                    });
                }
            }
            Record::LeasesExtended { queue, leases, until, .. } => {
                for lease in leases {
                    let delivery = DeliveryKey { event: lease.event, endpoint: *queue };
                    self.extended.entry((delivery, lease.lease)).or_default().insert(*until);
                }
            }
            _ => {}
        }
    }
}
