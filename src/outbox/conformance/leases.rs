//! Random leases of messages: taken, ended and extended, sometimes by an outdated place or receipt.

use std::time::Duration;

use super::Store;
use super::work::Work;
use crate::domain::{
    DeadReason, DeliveryKey, DeliveryState, EndedLease, EndpointTransport, LeaseEnd, LeaseKey, Position,
    QueueTarget, Record, TakenFrom, TakenMessage, Timestamp,
};
use crate::outbox::unit::Command;

impl<S: Store> Work<S> {
    /// The transport of a new endpoint.
    pub(super) fn transport(&mut self) -> EndpointTransport {
        if self.percent(70) {
            return EndpointTransport::Http;
        }
        let name = format!("work-{}", self.random.u64(..)).parse().expect("a legal name");
        EndpointTransport::Queue(QueueTarget { name, lease_max: Duration::from_secs(60) })
    }

    /// A random action of a worker on a few messages of one queue.
    pub(super) fn lease(&mut self) -> Option<Vec<Command>> {
        let first = self.message()?;
        let mut messages = vec![first];
        for _ in 0..self.random.u32(0..3) {
            messages.extend(self.message().filter(|other| other.endpoint == first.endpoint));
        }
        messages.sort_unstable();
        messages.dedup();
        let (queue, at) = (first.endpoint, self.now);
        let until = at.plus(Duration::from_millis(self.random.u64(0..3_000_000)));
        let leases: Vec<_> = messages.iter().filter_map(|key| self.receipt(*key)).collect();
        if leases.is_empty() || self.percent(50) {
            let messages = messages.into_iter().map(|key| self.taken(key)).collect();
            self.count("leased");
            let worker = None;
            return Some(vec![Command::Record(Record::MessagesLeased {
                queue,
                messages,
                until,
                at,
                worker,
            })]);
        }
        if self.percent(30) {
            self.count("extended");
            return Some(vec![Command::Record(Record::LeasesExtended { queue, leases, until, at })]);
        }
        let end = match self.random.u32(0..9) {
            0 | 1 => LeaseEnd::Acked,
            2 => LeaseEnd::Released,
            3 | 4 => LeaseEnd::Requeued(until),
            5 | 6 => LeaseEnd::Lost(None),
            7 => LeaseEnd::Lost(Some(until)),
            _ => LeaseEnd::Dead(DeadReason::Refused),
        };
        self.count("leases ended");
        let ends: Vec<_> = leases.into_iter().map(|key| EndedLease { key, end }).collect();
        // A reason is content of one event.
        let reason = (ends.len() == 1 && self.percent(50)).then(|| "no stock".into());
        Some(vec![Command::Record(Record::LeasesEnded { queue, ends, at, reason })])
    }

    /// A random message of any queue, mostly a pending one that is not behind others.
    fn message(&mut self) -> Option<DeliveryKey> {
        let is_any = self.percent(10);
        let oracle = &self.oracle.oracle;
        let wanted = oracle.deliveries.iter().filter(|(key, known)| {
            oracle.queues.contains(&key.endpoint)
                && !oracle.forgotten.contains(&key.event)
                && (known.sendable
                    || known.lease.is_some()
                    || (is_any && known.state != DeliveryState::Pending))
        });
        let wanted: Vec<_> = wanted.map(|(key, _)| *key).collect();
        self.random.choice(wanted)
    }

    /// A receipt of the message: mostly of its last lease, sometimes of an earlier one.
    fn receipt(&mut self, key: DeliveryKey) -> Option<LeaseKey> {
        let known = &self.oracle.oracle.deliveries[&key];
        let last = known.lease.map(|lease| lease.position);
        let earlier = known.attempts.clone();
        let lease = if self.percent(80) { last } else { self.random.choice(earlier).or(last) }?;
        Some(LeaseKey { event: key.event, lease })
    }

    /// The message in its place, and sometimes in a place that it has left.
    fn taken(&mut self, key: DeliveryKey) -> TakenMessage {
        let known = self.oracle.oracle.deliveries[&key].clone();
        let from = match known.lease {
            _ if self.percent(8) => TakenFrom::Due(Timestamp::from_millis(1)),
            _ if self.percent(8) => TakenFrom::Lease(Position(1)),
            Some(lease) => TakenFrom::Lease(lease.position),
            None => TakenFrom::Due(known.due),
        };
        TakenMessage { event: key.event, from }
    }
}
