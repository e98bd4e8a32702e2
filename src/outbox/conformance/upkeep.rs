//! Random retention and erasures, and the search for erased content in the files.

use std::time::Duration;

use super::Store;
use super::work::Work;
use crate::domain::{OnDisk, Position, Record};
use crate::maintenance::retention::RetentionPolicy;
use crate::outbox::unit::Command;

impl<S: Store> Work<S> {
    /// Erases an event, with the end of its deliveries in the same unit. Sometimes it is erased
    /// already.
    pub(super) fn erase(&mut self) -> Result<(), String> {
        let oracle = &self.oracle.oracle;
        let events: Vec<_> = oracle.events.keys().filter(|event| !oracle.forgotten.contains(event)).collect();
        let Some(event) = self.random.choice(events).copied() else { return Ok(()) };
        let deliveries: Vec<_> = oracle.of_event(event).map(|(key, _)| *key).collect();
        let known = &oracle.events[&event];
        let (tenant, at, data) = (known.tenant.clone(), self.now, known.data.clone());
        self.erased.extend((!data.is_empty()).then_some((event, data)));
        self.count("erased");
        let records = [
            Record::EventErased { event, tenant, at, reason: "asked for".into() },
            Record::DeliveriesCancelled { deliveries: deliveries.clone(), at },
            Record::DeadLettersPurged { deliveries, at },
        ];
        self.submit(vec![records.into_iter().map(Command::Record).collect()])
    }

    /// Runs an erasure pass, then searches the files for the content of erased events.
    pub(super) fn erase_on_disk(&mut self) -> Result<(), String> {
        self.note("erasure pass");
        self.count("erasure passes");
        self.store.erase_on_disk();
        self.oracle.erase_on_disk();
        self.check_erased()
    }

    fn check_erased(&mut self) -> Result<(), String> {
        let erased: Vec<_> = self.erased.iter().map(|(event, _)| *event).collect();
        self.store.ask(&mut |found| {
            let is_pending = |event: &&Position| {
                found.erasure(**event).is_some_and(|erasure| erasure.on_disk == OnDisk::Pending)
            };
            erased.iter().find(is_pending).map_or(Ok(()), |event| Err(format!("{event} is still on disk")))
        })?;
        let left = self.erased.iter().find(|(_, data)| self.store.is_in_files(data));
        left.map_or(Ok(()), |(event, data)| Err(format!("the files have the data of {event}: {data:?}")))
    }

    pub(super) fn retain(&mut self) {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let events = self.random.choice([None, Some(hours(1)), Some(hours(6))]).expect("three");
        let stream_events = self.random.choice([None, Some(hours(2))]).expect("two");
        let audit = self.random.choice([None, Some(hours(1)), Some(hours(5))]).expect("three");
        let policy = RetentionPolicy { events, stream_events, audit };
        self.note(&format!("{policy:?}"));
        self.oracle.retain(policy);
        self.store.retain(policy);
        self.retained |= policy != RetentionPolicy::default();
        self.count("retained");
    }
}
