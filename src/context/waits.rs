//! Callers that wait for a change: the end of an event's deliveries, or a stream's next event.
//!
//! Owns one [`Notify`] per subject with callers. The delivery loop wakes them after each commit
//! that can end their wait; they read the state again. Must never hold anything for a subject
//! without a caller. All kinds of waits share the limits of callers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use crate::context::waiter_limit::{TooManyWaiters, WaiterLimit, WaiterPlace};
use crate::domain::{ConsumerKey, Party, Position, Record, StreamName, Tenant};
use crate::limits;

/// The change that a caller waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WaitSubject {
    /// The end of the deliveries of the event at this position.
    Deliveries(Position),
    /// An event of this stream.
    Stream(Tenant, StreamName),
    /// Any record.
    Log,
    /// A move of this consumer, or its end.
    Consumer(ConsumerKey),
}

/// All waiting callers.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    limit: Arc<WaiterLimit>,
    /// Streams of events: a separate limit.
    streams: Arc<WaiterLimit>,
    /// Subjects with callers, and the number of those.
    subjects: Mutex<Subjects>,
    /// The delivery loop has ended: nothing would wake a caller.
    ended: watch::Sender<bool>,
}

type Subjects = HashMap<WaitSubject, (Arc<Notify>, usize)>;

impl Waits {
    /// A place for a caller that waits.
    ///
    /// # Errors
    /// Above [`limits::WAITERS_MAX`] callers, or above the party's share of them.
    pub(crate) fn enter(&self, party: Party) -> Result<WaiterPlace, TooManyWaiters> {
        self.limit.enter(party, limits::WAITERS_MAX)
    }

    /// Streams of events.
    pub(crate) fn streams(&self) -> &Arc<WaiterLimit> {
        &self.streams
    }

    /// Registers a caller, until the wait is dropped.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub(crate) fn register(&self, subject: WaitSubject, party: Party) -> Result<Wait<'_>, TooManyWaiters> {
        let place = self.enter(party)?;
        let mut subjects = self.lock();
        let (notify, callers) = subjects.entry(subject.clone()).or_default();
        *callers += 1;
        Ok(Wait { waits: self, subject, notify: Arc::clone(notify), _place: place })
    }

    /// Number of waiting callers.
    pub(crate) fn callers(&self) -> usize {
        self.limit.callers()
    }

    /// Wakes the callers whose subject these records change. Costs one load without callers.
    pub(crate) fn on_committed<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        if self.limit.callers() > 0 {
            self.wake(records.flat_map(changed_subjects).chain([WaitSubject::Log]));
        }
    }

    fn wake(&self, subjects: impl IntoIterator<Item = WaitSubject>) {
        let waiting = self.lock();
        for (notify, _) in subjects.into_iter().filter_map(|subject| waiting.get(&subject)) {
            notify.notify_waiters();
        }
    }

    /// Whether the daemon stops: nothing wakes a caller any more.
    pub(crate) fn have_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Wakes all callers for good, because the daemon stops.
    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
        for (notify, _) in self.lock().values() {
            notify.notify_waiters();
        }
    }

    /// Becomes true when the daemon stops.
    pub(crate) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Subjects> {
        self.subjects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Subjects whose callers read the state again after this record.
fn changed_subjects(record: &Record) -> Vec<WaitSubject> {
    match record {
        Record::AttemptFinished { delivery, .. } => vec![WaitSubject::Deliveries(delivery.event)],
        Record::DeliveriesCancelled { deliveries, .. } | Record::DeliveriesDied { deliveries, .. } => {
            deliveries.iter().map(|delivery| WaitSubject::Deliveries(delivery.event)).collect()
        }
        Record::LeasesEnded { ends, .. } => {
            ends.iter().map(|ended| WaitSubject::Deliveries(ended.key.event)).collect()
        }
        Record::EventAccepted(event) => {
            let stream = event.stream.iter();
            stream.map(|(stream, _)| WaitSubject::Stream(event.tenant.clone(), stream.clone())).collect()
        }
        Record::ConsumerMoved { key, .. } | Record::ConsumerDeleted { key, .. } => {
            vec![WaitSubject::Consumer(key.clone())]
        }
        _ => Vec::new(),
    }
}

/// A caller that waits for its subject.
pub(crate) struct Wait<'a> {
    waits: &'a Waits,
    subject: WaitSubject,
    notify: Arc<Notify>,
    _place: WaiterPlace,
}

impl Wait<'_> {
    /// Completes at the next wake-up. Enable it before reading the state.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.notify.notified()
    }

    /// Whether waiting is useless, because the daemon stops.
    pub(crate) fn has_ended(&self) -> bool {
        self.waits.have_ended()
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut subjects = self.waits.lock();
        if let Entry::Occupied(mut entry) = subjects.entry(self.subject.clone()) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    const EVENT: WaitSubject = WaitSubject::Deliveries(Position(7));

    fn event(position: u64) -> WaitSubject {
        WaitSubject::Deliveries(Position(position))
    }

    fn stream(tenant: &str) -> WaitSubject {
        WaitSubject::Stream(tenant.parse().unwrap(), "order-1".parse().unwrap())
    }

    #[tokio::test]
    async fn commit_between_read_and_wait_wakes_the_caller() {
        let waits = Waits::default();
        let wait = waits.register(EVENT, Party::Operator).unwrap();
        let mut changed = pin!(wait.changed());
        changed.as_mut().enable();
        waits.wake([event(6), EVENT]);
        changed.await;
    }

    #[tokio::test]
    async fn other_events_wake_nothing() {
        let waits = Waits::default();
        let wait = waits.register(EVENT, Party::Operator).unwrap();
        let mut changed = pin!(wait.changed());
        assert!(!changed.as_mut().enable());
        waits.wake([event(6), event(8), stream("default")]);
        assert!(!changed.as_mut().enable());
    }

    #[tokio::test]
    async fn stream_of_another_tenant_wakes_nothing() {
        let waits = Waits::default();
        let wait = waits.register(stream("acme"), Party::Operator).unwrap();
        let mut changed = pin!(wait.changed());
        assert!(!changed.as_mut().enable());
        waits.wake([stream("other")]);
        assert!(!changed.as_mut().enable());
        waits.wake([stream("acme")]);
        changed.await;
    }

    #[tokio::test]
    async fn end_wakes_present_and_later_callers() {
        let waits = Waits::default();
        let wait = waits.register(EVENT, Party::Operator).unwrap();
        let mut changed = pin!(wait.changed());
        assert!(!changed.as_mut().enable() && !wait.has_ended());
        waits.end();
        changed.await;
        assert!(wait.has_ended() && waits.register(event(8), Party::Operator).unwrap().has_ended());
    }

    #[test]
    fn callers_are_bounded_and_leave_nothing() {
        let waits = Waits::default();
        let tenant = |name: &str| Party::Tenant(name.into());
        let register = |number: usize, name: &str| waits.register(event(number as u64 % 3), tenant(name));
        let all = |name: &str| (0..).map_while(|at| register(at, name).ok()).collect::<Vec<_>>();
        let (busy, others) = (all("busy"), all("other"));
        assert_eq!((busy.len(), others.len(), waits.lock().len()), (1_500, 375, 3));
        drop((busy, others));
        assert!(waits.lock().is_empty() && waits.callers() == 0);
        assert!(register(0, "busy").is_ok());
    }
}
